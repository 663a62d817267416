//! The ACPI tables, by which the kernel finds its APICs: without them it would tick by the PIT. They name what else there
//! is, so that nobody looks for the rest, and how the machine is reset and switched off.

use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

/// Where they are: in what is no RAM by the memory map, where kernels look for them.
pub(super) const ADDRESS: u64 = 0xe_0000;
/// Tables begin at multiples of this, of which one needs it.
const ALIGNMENT: usize = 64;

const OEM: [u8; 6] = *b"KVMBPF";
const TABLE: [u8; 8] = *b"LOADGEN ";
const REVISION: u32 = 1;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;

/// Ports of the event registers (16 bits of status, as many of what is enabled), and of the control register.
pub(super) const PM1_STATUS: u16 = 0x600;
pub(super) const PM1_ENABLE: u16 = PM1_STATUS + 2;
pub(super) const PM1_CONTROL: u16 = PM1_STATUS + 4;
const SCI: u16 = 9;
/// What the control register is to have written to it to switch the machine off: this type and the bit that does it, in
/// the upper byte.
const SLEEP_TYPE_OFF: u8 = 5;
pub(super) const SWITCH_OFF: u8 = SLEEP_TYPE_OFF << 2 | 1 << 5;
/// The reset register, and the bits that do it.
pub(super) const RESET_CONTROL: u16 = 0xcf9;
pub(super) const RESET_NOW: u8 = 6;

/// `IAPC_BOOT_ARCH`: there are devices of old, but neither a VGA nor a clock; and, as that bit is not set, no keyboard.
const LEGACY_DEVICES: u16 = 1 << 0;
const NO_VGA: u16 = 1 << 2;
const NO_CLOCK: u16 = 1 << 5;

/// All tables, to be put at [`ADDRESS`].
pub(super) fn tables() -> Vec<u8> {
    let mut memory = Memory(vec![0; Rsdp::len()]);
    let facs = memory.add(&FACS::new());
    let dsdt = memory.add(&dsdt());
    let fadt = memory.add(&fadt(facs, dsdt));
    let madt = memory.add(&madt());
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = memory.add(&xsdt);
    let mut first = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut first);
    memory.0[..first.len()].copy_from_slice(&first);
    memory.0
}

/// Tables one after the other.
struct Memory(Vec<u8>);

impl Memory {
    /// Returns the table's address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        let address = ADDRESS + self.0.len() as u64;
        table.to_aml_bytes(&mut self.0);
        address
    }
}

/// One processor.
fn madt() -> MADT {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LOCAL_APIC));
    madt.add_structure(ProcessorLocalApic::new(0, 0, EnabledStatus::Enabled));
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn fadt(facs: u64, dsdt: u64) -> impl Aml {
    let port = |bits, port: u16| {
        GAS::new(AddressSpace::SystemIo, bits, 0, AccessSize::Undefined, port.into())
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_32(dsdt as u32)
        .flag(Flags::Wbinvd)
        // Neither of the two is in a register.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = SCI.into();
    fadt.pm1a_evt_blk = u32::from(PM1_STATUS).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(32, PM1_STATUS);
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(16, PM1_CONTROL);
    fadt.reset_reg = port(8, RESET_CONTROL);
    fadt.reset_value = RESET_NOW;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA | NO_CLOCK).into();
    fadt.finalize()
}

/// How to switch off, and nothing else.
fn dsdt() -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    let nought = aml::ZERO;
    let off = aml::Package::new(vec![&SLEEP_TYPE_OFF, &nought, &nought, &nought]);
    aml::Name::new("_S5_".into(), &off).to_aml_bytes(&mut dsdt);
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of so many bytes, which is to be nought.
    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn each_table_adds_up_and_is_found_from_the_first() {
        let tables = tables();
        assert!(tables.len() < 0x1000, "{}", tables.len());
        assert_eq!(&tables[..8], b"RSD PTR ");
        assert_eq!((sum(&tables[..20]), sum(&tables[..36])), (0, 0));
        let number = |at: usize, bytes: usize| {
            tables[at..at + bytes].iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte))
        };
        let offset = |at: usize, bytes: usize| number(at, bytes) - ADDRESS as usize;
        let table = |at: usize| {
            let table = &tables[at..at + number(at + 4, 4)];
            assert_eq!(sum(table), 0, "{table:?}");
            (&table[..4], at)
        };
        let (name, xsdt) = table(offset(24, 8));
        assert_eq!((name, number(xsdt + 4, 4)), (&b"XSDT"[..], 36 + 2 * 8));
        let (name, fadt) = table(offset(xsdt + 36, 8));
        assert_eq!(name, b"FACP");
        assert_eq!(table(offset(xsdt + 44, 8)).0, b"APIC");
        assert_eq!(table(offset(fadt + 40, 4)).0, b"DSDT");
        assert_eq!(tables[offset(fadt + 36, 4)..][..4], *b"FACS");
    }
}
