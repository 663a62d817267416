//! Long mode with flat segments and paging, as every vCPU enters it before its first instruction, whatever its guest runs.

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};

pub(crate) const CR0_MP: u64 = 1 << 1;
pub(crate) const CR0_NE: u64 = 1 << 5;
pub(crate) const CR0_WP: u64 = 1 << 16;
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Where a vCPU finds what it needs, and what it may do.
pub(crate) struct LongMode<'a> {
    /// Selectors of 64-bit code and of data.
    pub(crate) code: u16,
    pub(crate) data: u16,
    /// The ring that both are of.
    pub(crate) ring: u8,
    /// The descriptors, and the guest-physical address of their copy in the guest.
    pub(crate) gdt: (&'a [u64], u64),
    /// The guest-physical address of the page tables' root.
    pub(crate) page_tables: u64,
}

impl LongMode<'_> {
    /// System registers, changed from what KVM starts with.
    pub(crate) fn sregs(&self, initial: kvm_sregs) -> kvm_sregs {
        let data = segment(self.data, 0x3, self.ring, 0);
        let (descriptors, base) = self.gdt;
        kvm_sregs {
            cs: segment(self.code, 0xb, self.ring, 1),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            gdt: kvm_dtable {
                base,
                limit: size_of_val(descriptors) as u16 - 1,
                ..Default::default()
            },
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3: self.page_tables,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..initial
        }
    }
}

/// A flat segment; `long` is 1 for 64-bit code.
fn segment(selector: u16, type_: u8, dpl: u8, long: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..Default::default()
    }
}
