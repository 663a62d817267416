//! KVM's own hypercalls: `KVM_HC_*` (include/uapi/linux/kvm_para.h), without that prefix.

/// The first is number 1. Those of PowerPC and MIPS are in the same row of numbers.
const NAMES: [&str; 12] = [
    "VAPIC_POLL_IRQ",
    "MMU_OP",
    "FEATURES",
    "PPC_MAP_MAGIC_PAGE",
    "KICK_CPU",
    "MIPS_GET_CLOCK_FREQ",
    "MIPS_EXIT_VM",
    "MIPS_CONSOLE_OUTPUT",
    "CLOCK_PAIRING",
    "SEND_IPI",
    "SCHED_YIELD",
    "MAP_GPA_RANGE",
];

/// The name of the hypercall with this number (field `nr` of `kvm_hypercall`).
pub fn hypercall_name(nr: u64) -> Option<&'static str> {
    let index = usize::try_from(nr.checked_sub(1)?).ok()?;
    NAMES.get(index).copied()
}
