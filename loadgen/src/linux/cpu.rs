//! The processor that the kernel finds when it starts: in long mode with interrupts off, flat segments and the first GiB
//! mapped one to one, and CPUID without other processors.

use kvm_bindings::{CpuId, kvm_regs, kvm_sregs};

use super::boot::ZERO_PAGE;
use crate::long_mode::LongMode;

/// Where the tables are: in the first 640 KiB. The kernel makes its own before it uses that memory.
const GDT: u64 = 0x500;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PD: u64 = 0xb000;
/// The kernel has a stack of its own soon.
const STACK: u64 = 0x8ff0;

/// Segments at the selectors that the boot protocol prescribes, `__BOOT_CS` and `__BOOT_DS`; accessed bits set.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

const PTE_TABLE: u64 = 0x3; // present, writable
const PTE_LARGE_PAGE: u64 = PTE_TABLE | 1 << 7;
const LARGE_PAGE: u64 = 2 << 20;

/// Bit 1 is always set.
const RFLAGS: u64 = 1 << 1;

/// Writes the page tables and the descriptors, each entry with `put`.
pub(super) fn write_tables<E>(mut put: impl FnMut(u64, u64) -> Result<(), E>) -> Result<(), E> {
    for (at, descriptor) in (GDT..).step_by(8).zip(DESCRIPTORS) {
        put(descriptor, at)?;
    }
    put(PDPT | PTE_TABLE, PML4)?;
    put(PD | PTE_TABLE, PDPT)?;
    for entry in 0..512 {
        put((entry * LARGE_PAGE) | PTE_LARGE_PAGE, PD + entry * 8)?;
    }
    Ok(())
}

/// General registers for the first instruction.
pub(super) fn regs(entry: u64) -> kvm_regs {
    kvm_regs { rip: entry, rsp: STACK, rsi: ZERO_PAGE, rflags: RFLAGS, ..Default::default() }
}

/// System registers, changed from what KVM starts with.
pub(super) fn sregs(initial: kvm_sregs) -> kvm_sregs {
    let long_mode = LongMode {
        code: BOOT_CS,
        data: BOOT_DS,
        ring: 0,
        gdt: (&DESCRIPTORS, GDT),
        page_tables: PML4,
    };
    long_mode.sregs(initial)
}

/// What KVM supports, for the only vCPU of a guest: by it Linux finds out that it runs on KVM, too.
pub(super) fn cpuid(supported: &CpuId, has_tsc_deadline: bool) -> CpuId {
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const HYPER_THREADING: u32 = 1 << 28;
    let mut cpuid = supported.clone();
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            0x1 => {
                // APIC identifier 0, one logical processor.
                leaf.ebx = leaf.ebx & 0xffff | 1 << 16;
                leaf.edx &= !HYPER_THREADING;
                leaf.ecx |= HYPERVISOR;
                // Not all kernels say it with the other features.
                if has_tsc_deadline {
                    leaf.ecx |= TSC_DEADLINE;
                }
            }
            // Processors that share a cache, processors in a package.
            0x4 => leaf.eax &= 0x3fff,
            // The host's topology, with the number of whichever of its processors was asked.
            0xb | 0x1f => (leaf.eax, leaf.ebx, leaf.edx) = (0, 0, 0),
            // The same of AMD's.
            0x8000_0008 => leaf.ecx = 0,
            0x8000_001d => leaf.eax &= 0x3fff,
            _ => {}
        }
    }
    cpuid
}
