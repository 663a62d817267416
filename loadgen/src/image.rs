//! What a guest's memory looks like: where everything lies, the page tables and descriptor tables that all
//! guests share, and the registers that put a vCPU into long mode before its first instruction.
//!
//! Guest-physical memory: the image (read, never written, by every guest), right after it one page for each
//! vCPU, and far above both the guest's own memory, if it has any. The first 2 MiB are mapped one to one; the next 2 MiB
//! of virtual memory are the local APIC, the next have no memory behind them. The first GiB of the guest's own memory is
//! mapped one to one, too.

use std::ptr;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use crate::code::{self, EXITS_OFFSET, Entry, MEMORY_OFFSET};
use crate::exits_code;
use crate::long_mode::{CR0_MP, CR0_NE, CR0_WP, LongMode};
use crate::memory_code;
use crate::record::{PAGE_SIZE, VcpuPage};
use crate::workload::Workload;

/// Guest-physical address of the image.
pub(crate) const IMAGE_GPA: u64 = 0x1000;
/// Size of the image: four page tables, a page of descriptors, a page of code.
pub(crate) const IMAGE_SIZE: usize = 6 * PAGE_SIZE;
/// Guest-physical address of the page of vCPU 0; the others follow. Next to the image, so that one memory slot
/// holds both: each costs KVM some 20 KiB and the guest's creation an RCU grace period.
const VCPU_GPA: u64 = IMAGE_GPA + IMAGE_SIZE as u64;
/// More cannot be addressed: an xAPIC identifier has 8 bits, and 255 means all of them.
pub(crate) const MAX_VCPUS: u32 = 255;
/// Guest-physical address of the guest's own memory: above the 4 GiB with the local APIC.
pub(crate) const MEMORY_GPA: u64 = 1 << 32;
/// No processor has fewer than 36 bits of physical address.
pub(crate) const MAX_MEMORY: u64 = (1 << 36) - MEMORY_GPA;
/// Where KVM may put the three pages it needs on Intel hosts without unrestricted guest mode
/// (KVM_SET_TSS_ADDR): below 4 GiB and outside all of the above.
pub(crate) const KVM_TSS_GPA: usize = 0xfffb_d000;

const PML4_GPA: u64 = IMAGE_GPA;
const PDPT_GPA: u64 = PML4_GPA + PAGE_SIZE as u64;
const PD_GPA: u64 = PDPT_GPA + PAGE_SIZE as u64;
/// The page directory of the guest's own memory.
const MEMORY_PD_GPA: u64 = PD_GPA + PAGE_SIZE as u64;
const GDT_GPA: u64 = MEMORY_PD_GPA + PAGE_SIZE as u64;
const IDT_GPA: u64 = GDT_GPA + 0x100;
const CODE_GPA: u64 = GDT_GPA + PAGE_SIZE as u64;

const APIC_GPA: u64 = 0xfee0_0000;
const APIC_GVA: u64 = LARGE_PAGE_SIZE;
/// An address without memory: in none of the slots above, and no device in the kernel has it.
pub(crate) const MMIO_GPA: u64 = 0xd000_0000;
/// Where guests see it.
pub(crate) const MMIO_GVA: u64 = 2 * LARGE_PAGE_SIZE;
/// What one entry of a page directory maps.
const LARGE_PAGE_SIZE: u64 = 2 << 20;
/// Entries of a page table of any level.
const TABLE_ENTRIES: u64 = 512;
/// How much of its own memory a guest can reach: one page directory, which all guests share. Guest-physical and
/// virtual addresses are the same.
pub(crate) const MAPPED_MEMORY: u64 = TABLE_ENTRIES * LARGE_PAGE_SIZE;

const _: () =
    assert!(MEMORY_GPA.is_multiple_of(MAPPED_MEMORY) && MMIO_GPA.is_multiple_of(LARGE_PAGE_SIZE));
const _: () = assert!(VCPU_GPA + MAX_VCPUS as u64 * PAGE_SIZE as u64 <= APIC_GVA);

/// Bits of a page table entry. Accessed and dirty are set from the start: nobody need write them later.
mod pte {
    const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const USER: u64 = 1 << 2;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    const LARGE: u64 = 1 << 7;
    /// Points to the next table.
    pub(super) const TABLE: u64 = PRESENT | WRITE | USER | ACCESSED;
    /// Maps 2 MiB.
    pub(super) const PAGE: u64 = TABLE | DIRTY | LARGE;
    /// With [`PAGE`]: not cached (PCD, PWT), for device registers.
    pub(super) const UNCACHED: u64 = 1 << 4 | 1 << 3;
}

/// Segment selectors. 0x10 would be ring 0's data, which nothing uses.
const KERNEL_CODE: u16 = 0x08;
const USER_DATA: u16 = 0x18 | 3;
const USER_CODE: u16 = 0x20 | 3;
const TASK: u16 = 0x28;

/// Flat 64-bit segments in the order of the selectors above, accessed bit set. The task descriptor is absent:
/// KVM_SET_SREGS loads TR directly and nothing loads it again.
const GDT: [u64; 5] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];

/// Interrupts on, and I/O allowed in ring 3 (IOPL 3) for the write to the stop port; bit 1 is always set.
const RFLAGS: u64 = 1 << 9 | 3 << 12 | 1 << 1;

/// Writes the image of guests with this workload.
///
/// # Safety
/// `image` points to [`IMAGE_SIZE`] writable bytes of zeroes, aligned to a page, that nobody else uses yet.
pub(crate) unsafe fn write(image: *mut u8, workload: Workload) {
    let put = |gpa: u64, value: u64| {
        let offset = usize::try_from(gpa - IMAGE_GPA).unwrap_or(usize::MAX);
        assert!(offset <= IMAGE_SIZE - 8, "image address out of range");
        // SAFETY: in range as just asserted; the caller promises that the memory is ours.
        unsafe { image.add(offset).cast::<u64>().write(value) };
    };
    put(PML4_GPA, PDPT_GPA | pte::TABLE);
    put(PDPT_GPA, PD_GPA | pte::TABLE);
    put(PD_GPA, pte::PAGE);
    put(PD_GPA + 8, APIC_GPA | pte::PAGE | pte::UNCACHED);
    put(PD_GPA + 16, MMIO_GPA | pte::PAGE | pte::UNCACHED);
    put(PDPT_GPA + MEMORY_GPA / MAPPED_MEMORY * 8, MEMORY_PD_GPA | pte::TABLE);
    for entry in 0..TABLE_ENTRIES {
        put(MEMORY_PD_GPA + entry * 8, (MEMORY_GPA + entry * LARGE_PAGE_SIZE) | pte::PAGE);
    }
    for (gpa, descriptor) in (GDT_GPA..).step_by(8).zip(GDT) {
        put(gpa, descriptor);
    }
    // Everything else in the IDT stays absent: an exception is a triple fault, which the VMM reports.
    let gates = [
        (code::TICK_VECTOR, Entry::on_tick(workload), 0),
        (code::INT3_VECTOR, Entry::on_int3(workload), 3),
    ];
    for (vector, entry, ring) in gates {
        let [low, high] = interrupt_gate(address_of(entry), ring);
        put(IDT_GPA + u64::from(vector) * 16, low);
        put(IDT_GPA + u64::from(vector) * 16 + 8, high);
    }
    let parts = [
        (0..EXITS_OFFSET, code::code()),
        (EXITS_OFFSET..MEMORY_OFFSET, exits_code::code()),
        (MEMORY_OFFSET..PAGE_SIZE, memory_code::code()),
    ];
    for (place, code) in parts {
        assert!(code.len() <= place.len(), "guest code outgrew its part of the page");
        let offset = IMAGE_SIZE - PAGE_SIZE + place.start;
        // SAFETY: the code's page is the image's last one, and each part fits into its place there.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), image.add(offset), code.len()) };
    }
}

/// Where a piece of code is in the guest.
pub(crate) fn address_of(entry: Entry) -> u64 {
    CODE_GPA + entry.offset() as u64
}

/// Guest-physical (and, being in the first 2 MiB, virtual) address of a vCPU's page.
pub(crate) fn vcpu_gpa(vcpu: u32) -> u64 {
    VCPU_GPA + u64::from(vcpu) * PAGE_SIZE as u64
}

/// A 64-bit interrupt gate that code of ring `ring` may call with INT.
fn interrupt_gate(handler: u64, ring: u64) -> [u64; 2] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e << 40;
    let low = (handler & 0xffff)
        | u64::from(KERNEL_CODE) << 16
        | PRESENT_INTERRUPT_GATE
        | ring << 45
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// Sets up what the processor wants to find in the vCPU's page: the stack for interrupts is its upper end.
pub(crate) fn prepare_page(page: &VcpuPage, vcpu: u32) {
    let top = vcpu_gpa(vcpu) + PAGE_SIZE as u64;
    let [low, high] = &page.tss.rsp0;
    low.store(top as u32, std::sync::atomic::Ordering::Relaxed);
    high.store((top >> 32) as u32, std::sync::atomic::Ordering::Relaxed);
}

/// General registers for the first instruction of a vCPU.
pub(crate) fn regs(entry: Entry, vcpu: u32) -> kvm_regs {
    let page = vcpu_gpa(vcpu);
    kvm_regs {
        rip: address_of(entry),
        rsp: page + std::mem::offset_of!(VcpuPage, user_stack_top) as u64,
        rflags: RFLAGS,
        r15: page,
        r14: APIC_GVA,
        ..Default::default()
    }
}

/// System registers for ring 3 of long mode, changed from what KVM starts with.
pub(crate) fn sregs(initial: kvm_sregs, vcpu: u32) -> kvm_sregs {
    let long_mode = LongMode {
        code: USER_CODE,
        data: USER_DATA,
        ring: 3,
        gdt: (&GDT, GDT_GPA),
        page_tables: PML4_GPA,
    };
    let flat = long_mode.sregs(initial);
    kvm_sregs {
        tr: kvm_segment {
            base: vcpu_gpa(vcpu) + std::mem::offset_of!(VcpuPage, tss) as u64,
            limit: size_of::<crate::record::Tss>() as u32 - 1,
            selector: TASK,
            type_: 0xb, // a busy 64-bit TSS
            present: 1,
            ..Default::default()
        },
        idt: kvm_bindings::kvm_dtable {
            base: IDT_GPA,
            limit: (u16::from(code::TICK_VECTOR) + 1) * 16 - 1,
            ..Default::default()
        },
        cr0: flat.cr0 | CR0_MP | CR0_NE | CR0_WP,
        ..flat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_split_the_address_as_the_processor_wants_it() {
        let [low, high] = interrupt_gate(0x1122_3344_5566_7788, 3);
        assert_eq!(high, 0x1122_3344);
        assert_eq!(low, 0x5566_ee00_0008_7788);
    }

    #[test]
    fn the_code_fits_and_begins_with_what_comes_first() {
        assert!((1..=EXITS_OFFSET).contains(&code::code().len()));
        assert!((1..=MEMORY_OFFSET - EXITS_OFFSET).contains(&exits_code::code().len()));
        assert!((1..=PAGE_SIZE - MEMORY_OFFSET).contains(&memory_code::code().len()));
        assert_eq!(Entry::Spin.offset(), 0);
        assert!(Entry::OnWait.offset() < code::code().len());
        assert_eq!(Entry::Exits.offset(), EXITS_OFFSET);
        assert!(Entry::OnRequest.offset() < EXITS_OFFSET + exits_code::code().len());
    }
}
