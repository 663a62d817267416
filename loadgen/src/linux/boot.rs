//! What the kernel finds in memory when it starts: itself, its initrd, its command line and the zero page, as the x86
//! boot protocol has it (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use std::fmt;
use std::io::Cursor;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::{Linux, acpi, cpu};

/// Where boot parameters and command line are: in the first 640 KiB, where nothing else is but what [`cpu`] needs.
pub(super) const ZERO_PAGE: u64 = 0x7000;
const CMDLINE: u64 = 0x2_0000;
/// Memory from here up to the first MiB is no RAM on a PC.
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 1 << 20;
/// Between this and 4 GiB is no memory but devices: what the guest has more follows above.
const HOLE: u64 = 3 << 30;
const HOLE_END: u64 = 4 << 30;

/// `E820_TYPE_RAM`.
const E820_RAM: u32 = 1;
/// `XLF_KERNEL_64` of the header's xloadflags, which version 2.12 of the protocol has first, says that there is an entry
/// for 64 bits, so far behind the kernel's beginning.
const VERSION_WITH_XLOADFLAGS: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// What the header of a vmlinux would say, if it had one: magic numbers, alignment, COMMAND_LINE_SIZE - 1, and where an
/// initrd may end.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448; // "HdrS"
const ALIGNMENT: u32 = 16 << 20;
const MAX_CMDLINE: u32 = 2047;
const INITRD_ADDR_MAX: u32 = 0x7fff_ffff;
/// `type_of_loader` for those that have no number of their own.
const LOADER_UNDEFINED: u8 = 0xff;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Why a kernel cannot be booted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unbootable {
    /// Not a kernel, or not all of it.
    Kernel,
    /// For another processor, or for 32 bits.
    Machine,
    /// The command line has so many bytes, and may have so many.
    Cmdline(usize, u32),
    Memory,
}

impl fmt::Display for Unbootable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("it is no Linux kernel (bzImage or ELF vmlinux)"),
            Self::Machine => f.write_str("it is no kernel for x86-64"),
            Self::Cmdline(bytes, most) => {
                write!(f, "its command line may have {most} bytes, not {bytes}")
            }
            Self::Memory => f.write_str("it does not fit in the guest's memory"),
        }
    }
}

/// Reserves a guest's memory.
pub(super) fn memory(bytes: u64) -> Result<GuestMemoryMmap, vm_memory::mmap::FromRangesError> {
    let [low, high] = [bytes.min(HOLE), bytes.saturating_sub(HOLE)];
    let ranges = [(0, low), (HOLE_END, high)].into_iter().filter(|(_, bytes)| *bytes > 0);
    let ranges: Vec<_> = ranges
        .map(|(start, bytes)| (GuestAddress(start), usize::try_from(bytes).unwrap_or(usize::MAX)))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges)
}

/// The least memory that a guest can boot this in; it may well need more to go on.
pub(super) fn least_memory(linux: &Linux) -> Result<u64, Unbootable> {
    // Tried out in memory of which only what is loaded comes to exist.
    let memory = memory(HOLE).map_err(|_| Unbootable::Memory)?;
    let kernel = load_kernel(&memory, &linux.kernel.bytes)?;
    let most = kernel.header.cmdline_size;
    if linux.cmdline.len() > most as usize {
        return Err(Unbootable::Cmdline(linux.cmdline.len(), most));
    }
    let initrd_bytes = linux.initrd.as_ref().map_or(0, |initrd| initrd.len());
    let least = (kernel.end + initrd_bytes.next_multiple_of(PAGE)).next_multiple_of(MIB);
    if least > HOLE.min(u64::from(kernel.header.initrd_addr_max)) {
        return Err(Unbootable::Memory);
    }
    Ok(least)
}

/// Loads all that the guest needs; returns the address of its first instruction.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    memory_bytes: u64,
    linux: &Linux,
) -> Result<u64, Unbootable> {
    let mut kernel = load_kernel(memory, &linux.kernel.bytes)?;
    let put = |bytes: &[u8], at: u64| {
        memory.write_slice(bytes, GuestAddress(at)).map_err(|_| Unbootable::Memory)
    };
    put(linux.cmdline.as_bytes(), CMDLINE)?;
    put(&[0], CMDLINE + linux.cmdline.len() as u64)?;
    kernel.header.cmd_line_ptr = CMDLINE as u32;
    kernel.header.type_of_loader = LOADER_UNDEFINED;
    if let Some(initrd) = &linux.initrd {
        // As far up as it may be: the kernel unpacks itself further down.
        let end = memory_bytes.min(HOLE).min(u64::from(kernel.header.initrd_addr_max) + 1);
        let start = end.checked_sub(initrd.len()).ok_or(Unbootable::Memory)? / PAGE * PAGE;
        put(&initrd.bytes, start)?;
        kernel.header.ramdisk_image = start as u32;
        kernel.header.ramdisk_size = initrd.bytes.len() as u32;
    }
    let zero_page = zero_page(kernel.header, memory_bytes);
    memory.write_obj(zero_page, GuestAddress(ZERO_PAGE)).map_err(|_| Unbootable::Memory)?;
    put(&acpi::tables(), acpi::ADDRESS)?;
    cpu::write_tables(|value, at| put(&value.to_le_bytes(), at))?;
    Ok(kernel.entry)
}

/// A kernel in memory.
struct Kernel {
    /// Of its first instruction.
    entry: u64,
    /// Above all that it needs before it looks at the memory map.
    end: u64,
    header: setup_header,
}

fn load_kernel(memory: &GuestMemoryMmap, bytes: &[u8]) -> Result<Kernel, Unbootable> {
    let high = Some(GuestAddress(HIGH_START));
    let mut file = Cursor::new(bytes);
    if let [0x7f, b'E', b'L', b'F', rest @ ..] = bytes {
        if !is_for_x86_64(rest) {
            return Err(Unbootable::Machine);
        }
        let loaded = Elf::load(memory, None, &mut file, high).map_err(|_| Unbootable::Kernel)?;
        let header = setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            kernel_alignment: ALIGNMENT,
            cmdline_size: MAX_CMDLINE,
            initrd_addr_max: INITRD_ADDR_MAX,
            ..Default::default()
        };
        return Ok(Kernel { entry: loaded.kernel_load.0, end: loaded.kernel_end, header });
    }
    let loaded = BzImage::load(memory, None, &mut file, high).map_err(|_| Unbootable::Kernel)?;
    let header = loaded.setup_header.ok_or(Unbootable::Kernel)?;
    let has_entry_64 = header.xloadflags & XLF_KERNEL_64 != 0;
    if header.version < VERSION_WITH_XLOADFLAGS || !has_entry_64 {
        return Err(Unbootable::Machine);
    }
    // It unpacks itself at the address it prefers, and needs so much from there on.
    let unpacked_end = header.pref_address.checked_add(header.init_size.into());
    let end = unpacked_end.ok_or(Unbootable::Kernel)?.max(loaded.kernel_end);
    Ok(Kernel { entry: loaded.kernel_load.0 + ENTRY_64, end, header })
}

/// Whether an ELF header, without its magic number, is of an executable (ET_EXEC) of 64 bits for x86-64.
fn is_for_x86_64(header: &[u8]) -> bool {
    const CLASS_64: u8 = 2;
    const ET_EXEC_FOR_X86_64: [u8; 4] = [2, 0, 62, 0];
    header.first() == Some(&CLASS_64) && header.get(12..16) == Some(&ET_EXEC_FOR_X86_64)
}

/// The zero page: the kernel's own header as we have changed it, and what is RAM.
fn zero_page(header: setup_header, memory_bytes: u64) -> boot_params {
    let mut params = boot_params { hdr: header, ..Default::default() };
    let ram = [
        (0, LOW_END),
        (HIGH_START, memory_bytes.min(HOLE)),
        (HOLE_END, HOLE_END + memory_bytes.saturating_sub(HOLE)),
    ];
    let ram = ram.into_iter().filter(|(start, end)| start < end);
    let mut entries = 0;
    for (start, end) in ram {
        params.e820_table[usize::from(entries)] =
            boot_e820_entry { addr: start, size: end - start, r#type: E820_RAM };
        entries += 1;
    }
    params.e820_entries = entries;
    params
}
