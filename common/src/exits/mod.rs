//! Exit reasons by number and by name: what the hardware told KVM (`kvm_exit`), and what KVM told the VMM
//! (`kvm_userspace_exit`). Names are those that the kernel's trace events print, letter by letter; where they print a
//! number, the name is that of the kernel's headers.

mod hypercall;
mod msr;
mod svm;
mod userspace;
mod vmx;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub use hypercall::hypercall_name;
pub use msr::msr_name;

/// `isa` of `kvm_exit` for VMX (arch/x86/kvm/trace.h: `KVM_ISA_VMX`). The event treats every other value as SVM.
const ISA_VMX: u32 = 1;

/// Above these bits VMX has flags: failed VM entry, enclave, bus lock (arch/x86/kvm/vmx/vmx.h: `vmx_exit_reason`).
const VMX_BASIC: u32 = 0xffff;

/// Which table a number is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Intel's exit reasons.
    Vmx,
    /// AMD's exit codes.
    Svm,
    /// Why `KVM_RUN` returned to the VMM.
    Userspace,
}

/// What may be written before a name, and the table that is meant then.
const PREFIXES: [(&str, Table); 4] = [
    ("KVM_EXIT_", Table::Userspace),
    ("EXIT_REASON_", Table::Vmx),
    ("SVM_EXIT_", Table::Svm),
    ("SVM_", Table::Svm), // SVM_VMGEXIT_*
];

impl Table {
    const ALL: [Self; 3] = [Self::Vmx, Self::Svm, Self::Userspace];

    /// Numbers and names, by number.
    fn reasons(self) -> &'static [(u32, &'static str)] {
        match self {
            Self::Vmx => vmx::REASONS,
            Self::Svm => svm::REASONS,
            Self::Userspace => userspace::REASONS,
        }
    }

    /// Other names for some of them.
    fn other_names(self) -> &'static [(u32, &'static str)] {
        match self {
            Self::Svm => svm::UAPI_SPELLINGS,
            Self::Vmx | Self::Userspace => &[],
        }
    }

    /// The code of this name, which is in capitals and without prefix.
    fn code(self, bare: &str) -> Option<u32> {
        let mut names = self.reasons().iter().chain(self.other_names());
        let known = names.find(|(_, name)| without_prefix(&spelling(name)) == bare);
        match (known, self) {
            (Some((code, _)), _) => Some(*code),
            (None, Self::Userspace) => userspace::error_named(bare),
            (None, Self::Vmx | Self::Svm) => None,
        }
    }
}

/// A name as names are compared: in capitals, words joined by `_`.
fn spelling(name: &str) -> String {
    name.trim().to_ascii_uppercase().replace(['-', ' '], "_")
}

fn without_prefix(name: &str) -> &str {
    PREFIXES.iter().find_map(|(prefix, _)| name.strip_prefix(prefix)).unwrap_or(name)
}

/// An exit reason: a table and a code without flag bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason {
    /// Where the code is to be looked up.
    pub table: Table,
    /// The number; for a `KVM_RUN` that failed, the negative errno in 32 bits.
    pub code: u32,
}

impl Reason {
    /// The reason of a `kvm_exit`, from its fields `isa` and `exit_reason`.
    pub fn hardware(isa: u32, raw: u32) -> Self {
        if isa == ISA_VMX {
            Self { table: Table::Vmx, code: raw & VMX_BASIC }
        } else {
            // No flags: bit 31 is set in SEV-ES's own codes, all bits in that of an invalid guest state.
            Self { table: Table::Svm, code: raw }
        }
    }

    /// The reason of a `kvm_userspace_exit`, from its fields `reason` and `errno`.
    pub fn userspace(reason: u32, errno: i32) -> Self {
        Self { table: Table::Userspace, code: userspace::code(reason, errno) }
    }

    /// `hardware` or `userspace`: who got to know this reason.
    pub fn kind(self) -> &'static str {
        match self.table {
            Table::Vmx | Table::Svm => "hardware",
            Table::Userspace => "userspace",
        }
    }

    /// The name, or `unknown(N)`. A `KVM_RUN` that failed is `restart` (EINTR) or an `error(…)`.
    pub fn name(self) -> Cow<'static, str> {
        let reasons = self.table.reasons();
        if let Ok(at) = reasons.binary_search_by_key(&self.code, |(code, _)| *code) {
            return Cow::Borrowed(reasons[at].1);
        }
        let errno = Some(self.code).filter(|_| self.table == Table::Userspace);
        match errno.and_then(userspace::errno_of) {
            Some(errno) => userspace::error_name(errno)
                .map_or_else(|| Cow::Owned(format!("error({errno})")), Cow::Borrowed),
            None => Cow::Owned(format!("unknown({})", self.code)),
        }
    }

    /// True if the guest has nothing to do and sleeps until something happens: the time until it runs again is no cost
    /// of the exit. Apart from HLT in its forms that is only the HLT loop in which an SEV-ES guest parks a CPU
    /// (arch/x86/kvm/svm/sev.c: `AP_RESET_HOLD`, in user space where the VMM has the interrupt controller).
    ///
    /// Not MWAIT: KVM returns to the guest at once (arch/x86/kvm/x86.c: `kvm_emulate_mwait`), and a guest that is let
    /// sleep in it does not exit. Not PAUSE, UMWAIT or TPAUSE: who spins has work to do. Not `restart`: the VMM wanted
    /// its thread back.
    pub fn is_halt(self) -> bool {
        match self.table {
            Table::Vmx => self.code == 12,
            Table::Svm => [0x78, 0xa6, 0x8000_0004].contains(&self.code),
            Table::Userspace => [5, 32].contains(&self.code),
        }
    }

    /// The reasons of that name, in all tables: `hlt` is three. Capitals do not matter, nor whether words are joined by
    /// `-`, `_` or a space. The spelling of the kernel's headers is understood too, and says which table is meant when
    /// it has its prefix: `KVM_EXIT_HLT`, `EXIT_REASON_HLT`, `SVM_EXIT_HLT`. Empty if there is no such reason.
    pub fn named(name: &str) -> Vec<Self> {
        let wanted = spelling(name);
        let prefix = PREFIXES.iter().find(|(prefix, _)| wanted.starts_with(prefix));
        let tables = Table::ALL.into_iter().filter(|t| prefix.is_none_or(|(_, only)| only == t));
        let bare = without_prefix(&wanted);
        tables.filter_map(|table| table.code(bare).map(|code| Self { table, code })).collect()
    }
}
