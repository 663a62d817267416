//! Why `KVM_RUN` returned: `KVM_EXIT_*` (include/uapi/linux/kvm.h), and the errors that take their place.

/// By number. `kvm_userspace_exit` prints names up to 30 (include/trace/events/kvm.h), numbers above.
pub(super) const REASONS: &[(u32, &str)] = &[
    (0, "KVM_EXIT_UNKNOWN"),
    (1, "KVM_EXIT_EXCEPTION"),
    (2, "KVM_EXIT_IO"),
    (3, "KVM_EXIT_HYPERCALL"),
    (4, "KVM_EXIT_DEBUG"),
    (5, "KVM_EXIT_HLT"),
    (6, "KVM_EXIT_MMIO"),
    (7, "KVM_EXIT_IRQ_WINDOW_OPEN"),
    (8, "KVM_EXIT_SHUTDOWN"),
    (9, "KVM_EXIT_FAIL_ENTRY"),
    (10, "KVM_EXIT_INTR"),
    (11, "KVM_EXIT_SET_TPR"),
    (12, "KVM_EXIT_TPR_ACCESS"),
    (13, "KVM_EXIT_S390_SIEIC"),
    (14, "KVM_EXIT_S390_RESET"),
    (15, "KVM_EXIT_DCR"),
    (16, "KVM_EXIT_NMI"),
    (17, "KVM_EXIT_INTERNAL_ERROR"),
    (18, "KVM_EXIT_OSI"),
    (19, "KVM_EXIT_PAPR_HCALL"),
    (20, "KVM_EXIT_S390_UCONTROL"),
    (21, "KVM_EXIT_WATCHDOG"),
    (22, "KVM_EXIT_S390_TSCH"),
    (23, "KVM_EXIT_EPR"),
    (24, "KVM_EXIT_SYSTEM_EVENT"),
    (25, "KVM_EXIT_S390_STSI"),
    (26, "KVM_EXIT_IOAPIC_EOI"),
    (27, "KVM_EXIT_HYPERV"),
    (28, "KVM_EXIT_ARM_NISV"),
    (29, "KVM_EXIT_X86_RDMSR"),
    (30, "KVM_EXIT_X86_WRMSR"),
    (31, "KVM_EXIT_DIRTY_RING_FULL"),
    (32, "KVM_EXIT_AP_RESET_HOLD"),
    (33, "KVM_EXIT_X86_BUS_LOCK"),
    (34, "KVM_EXIT_XEN"),
    (35, "KVM_EXIT_RISCV_SBI"),
    (36, "KVM_EXIT_RISCV_CSR"),
    (37, "KVM_EXIT_NOTIFY"),
    (38, "KVM_EXIT_LOONGARCH_IOCSR"),
    (39, "KVM_EXIT_MEMORY_FAULT"),
    (40, "KVM_EXIT_TDX"),
    (41, "KVM_EXIT_ARM_SEA"),
    (42, "KVM_EXIT_ARM_LDST64B"),
    (43, "KVM_EXIT_SNP_REQ_CERTS"),
];

/// The one exit that returns an error: include/uapi/linux/kvm.h `KVM_EXIT_MEMORY_FAULT`.
const MEMORY_FAULT: u32 = 39;

/// What the trace event calls -EINTR: a signal, or `immediate_exit`.
const RESTART: &str = "restart";

/// Errors that have a name here: those Documentation/virt/kvm/api.rst has for `KVM_RUN`, and those of x86: a vCPU that
/// waits for its start-up IPI (EAGAIN), a VM that is dead (EIO), and registers that make no sense (EINVAL). By number.
const ERRORS: &[(i32, &str)] = &[
    (libc::EPERM, "error(EPERM)"),
    (libc::EINTR, RESTART),
    (libc::EIO, "error(EIO)"),
    (libc::ENOEXEC, "error(ENOEXEC)"),
    (libc::EAGAIN, "error(EAGAIN)"),
    (libc::ENOMEM, "error(ENOMEM)"),
    (libc::EFAULT, "error(EFAULT)"),
    (libc::EINVAL, "error(EINVAL)"),
    (libc::ENOSYS, "error(ENOSYS)"),
    (libc::EHWPOISON, "error(EHWPOISON)"),
];

/// The largest errno (include/linux/err.h).
const MAX_ERRNO: i32 = 4095;

/// The code of an exit: its reason, or the negative errno as 32 bits, which no reason will ever be.
pub(super) fn code(reason: u32, errno: i32) -> u32 {
    // api.rst, KVM_EXIT_MEMORY_FAULT: with any other error the reason is that of an earlier exit.
    let told = reason == MEMORY_FAULT && [-libc::EFAULT, -libc::EHWPOISON].contains(&errno);
    if errno < 0 && !told { errno.cast_unsigned() } else { reason }
}

/// The errno, if the code is that of an error.
pub(super) fn errno_of(code: u32) -> Option<i32> {
    Some(code.cast_signed().checked_neg()?).filter(|errno| (1..=MAX_ERRNO).contains(errno))
}

/// The name of an error, if it has one.
pub(super) fn error_name(errno: i32) -> Option<&'static str> {
    ERRORS.iter().find(|(n, _)| *n == errno).map(|(_, name)| *name)
}

/// The code of the error of this name, in capitals: `RESTART`, `ERROR(EAGAIN)`, `ERROR(11)`.
pub(super) fn error_named(name: &str) -> Option<u32> {
    let errno = match ERRORS.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)) {
        Some((errno, _)) => *errno,
        None => name.strip_prefix("ERROR(")?.strip_suffix(')')?.parse().ok()?,
    };
    (1..=MAX_ERRNO).contains(&errno).then(|| (-errno).cast_unsigned())
}
