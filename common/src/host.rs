//! What this host can do, asked before anything is loaded, and what to tell a user when it cannot.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use libbpf_rs::btf::{self, Btf};
use libbpf_rs::{ErrorKind, MapType, PrintLevel};

use crate::session::host_cannot;

// Bits of the capability sets in /proc/PID/status (include/uapi/linux/capability.h).

/// May do nearly everything.
pub const CAP_SYS_ADMIN: u32 = 21;
/// May have more than the limits on resources allow.
pub const CAP_SYS_RESOURCE: u32 = 24;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
const CAP_CHECKPOINT_RESTORE: u32 = 40;

/// What loading our programs needs.
const FOR_BPF: [(u32, &str); 2] = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")];

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Fails with the cause and the remedy if BPF programs cannot be loaded here, or not see all of the host.
pub fn check_bpf() -> Result<()> {
    let status = fs::read("/proc/self/status").context("failed to read `/proc/self/status`")?;
    let missing = missing_for_bpf(effective_capabilities(&String::from_utf8_lossy(&status)));
    if !missing.is_empty() {
        return Err(host_cannot(format!(
            "not allowed to load BPF programs without {}: run as root, or with CAP_BPF and CAP_PERFMON",
            missing.join(" and ")
        )));
    }
    if !Path::new(BTF).exists() {
        return Err(host_cannot(format!(
            "`{BTF}` is not there: boot a kernel with CONFIG_DEBUG_INFO_BTF=y"
        )));
    }
    // Capabilities count in the host's user namespace alone, and the task iterator sees the tasks of its
    // reader's PID namespace.
    check_namespace("user", USER_NS_INIT_INO, "--userns=host")?;
    check_pid_namespace()
}

/// The inode numbers of the host's own namespaces (include/uapi/linux/nsfs.h; before: include/linux/proc_ns.h).
const CGROUP_NS_INIT_INO: u64 = 0xEFFF_FFFB;
const USER_NS_INIT_INO: u64 = 0xEFFF_FFFD;
const PID_NS_INIT_INO: u64 = 0xEFFF_FFFC;

/// PIDs must be those that the kernel's programs see.
pub fn check_pid_namespace() -> Result<()> {
    check_namespace("pid", PID_NS_INIT_INO, "--pid=host")
}

/// Paths of cgroups must be those of the whole hierarchy.
pub fn check_cgroup_namespace() -> Result<()> {
    check_namespace("cgroup", CGROUP_NS_INIT_INO, "--cgroupns=host")
}

fn check_namespace(kind: &str, init: u64, option: &str) -> Result<()> {
    match fs::metadata(format!("/proc/self/ns/{kind}")) {
        Ok(own) if own.ino() != init => Err(host_cannot(format!(
            "this is a {kind} namespace of its own: run on the host, or in a container with {option}"
        ))),
        _ => Ok(()),
    }
}

/// Whether this process has a capability.
pub fn is_capable(capability: u32) -> bool {
    let status = fs::read("/proc/self/status").unwrap_or_default();
    effective_capabilities(&String::from_utf8_lossy(&status)) & 1 << capability != 0
}

fn effective_capabilities(status: &str) -> u64 {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// What loading BPF programs needs and is not among `capabilities`.
fn missing_for_bpf(capabilities: u64) -> Vec<&'static str> {
    let lacks = |cap: u32| capabilities & 1 << cap == 0;
    let missing = FOR_BPF.iter().filter(|(cap, _)| lacks(CAP_SYS_ADMIN) && lacks(*cap));
    missing.map(|(_, name)| *name).collect()
}

/// Which stacks are those of addresses, as this process may not see names: a sentence for each capability that lacks.
pub fn nameless_stacks(of_processes: bool, of_kernel: bool) -> Vec<&'static str> {
    let mut sentences = Vec::new();
    // /proc/PID/maps, and /proc/PID/map_files, by which a file is found in any mount namespace.
    let (may_look, may_open) = (is_capable(CAP_SYS_PTRACE), is_capable(CAP_CHECKPOINT_RESTORE));
    if of_processes && !(may_look && (may_open || is_capable(CAP_SYS_ADMIN))) {
        sentences.push(
            "without CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE functions of other users' processes are addresses",
        );
    }
    if of_kernel && hides_addresses() {
        sentences.push("without CAP_SYSLOG functions of the kernel are addresses");
    }
    sentences
}

/// Whether the kernel shows this process zeroes for addresses (kallsyms_show_value() in kernel/ksyms_common.c).
fn hides_addresses() -> bool {
    // Some, as the very first may really be at 0.
    let mut some = [0; 4_096];
    let file = fs::File::open("/proc/kallsyms");
    let read = file.and_then(|mut file| file.read_exact(&mut some));
    let text = String::from_utf8_lossy(&some);
    let hidden =
        |line: &str| line.split(' ').next().is_some_and(|word| word.bytes().all(|b| b == b'0'));
    read.is_err() || text.lines().all(hidden)
}

/// What the kernel must have, as its type information tells: a field, and the option that makes it exist.
const NEEDED: [(&str, &str, &str); 2] = [
    ("sched_info", "last_queued", "CONFIG_SCHED_INFO"),
    ("cfs_rq", "rq", "CONFIG_FAIR_GROUP_SCHED"),
];

/// Says why the kernel refused a program, where that can be known; else the error as it is.
pub fn explain_load_error(err: libbpf_rs::Error) -> anyhow::Error {
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        return host_cannot(
            "kernel memory cannot be read under lockdown: boot with lockdown=integrity or none",
        );
    }
    if let Ok(btf) = Btf::from_vmlinux() {
        let missing = NEEDED.iter().find(|(name, field, _)| !has_field(&btf, name, field));
        if let Some((name, field, option)) = missing {
            return host_cannot(format!(
                "this kernel has no `{field}` in `struct {name}`: boot one with {option}=y"
            ));
        }
    }
    if err.kind() == ErrorKind::PermissionDenied {
        return host_cannot(format!(
            "the kernel refuses to load BPF programs ({err}): run as root, or before Linux 5.11 with \
             CAP_SYS_RESOURCE, too"
        ));
    }
    anyhow::Error::new(err).context("failed to load the BPF programs (-v shows why)")
}

/// True if the kernel has no BPF task storage (Linux before 5.13), without which some programs cannot be loaded.
pub fn lacks_task_storage() -> bool {
    matches!(MapType::TaskStorage.is_supported(), Ok(false))
}

fn has_field(btf: &Btf<'_>, name: &str, field: &str) -> bool {
    let found: Option<btf::types::Struct<'_>> = btf.type_by_name(name);
    found.is_some_and(|found| found.iter().any(|member| member.name.is_some_and(|n| n == field)))
}

/// The highest number of tasks the kernel will have at once (sysctl kernel.pid_max).
pub fn pid_max() -> Result<u64> {
    let path = "/proc/sys/kernel/pid_max";
    let text = fs::read_to_string(path).with_context(|| format!("failed to read `{path}`"))?;
    text.trim().parse().with_context(|| format!("failed to parse `{path}`"))
}

/// The number of threads that exist now (the second half of /proc/loadavg's fourth field).
pub fn threads() -> Result<u64> {
    let text = fs::read_to_string("/proc/loadavg").context("failed to read `/proc/loadavg`")?;
    let total = text.split(' ').nth(3).and_then(|field| field.split_once('/'));
    total.and_then(|(_, total)| total.parse().ok()).context("failed to parse `/proc/loadavg`")
}

/// True if there is no process or thread with this ID. Cheap enough to be asked of thousands.
pub fn is_gone(id: i32) -> bool {
    // SAFETY: signal 0 is not sent; whoever has the ID is not touched.
    let asked = unsafe { libc::kill(id, 0) };
    asked != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

/// Sends libbpf's messages to standard error, or nowhere.
pub fn show_libbpf_messages(show: bool) {
    // libbpf's callback must not panic, so it cannot be eprint.
    let print = |_, message: String| _ = io::stderr().write_all(message.as_bytes());
    libbpf_rs::set_print(show.then_some((PrintLevel::Debug, print)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_status() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000000c000000000\n";
        assert_eq!(effective_capabilities(status), 0xc0_0000_0000);
        assert!(missing_for_bpf(1 << CAP_BPF | 1 << CAP_PERFMON).is_empty());
        assert!(missing_for_bpf(1 << CAP_SYS_ADMIN).is_empty());
        assert_eq!(missing_for_bpf(1 << CAP_BPF), ["CAP_PERFMON"]);
        assert_eq!(missing_for_bpf(effective_capabilities("")), ["CAP_BPF", "CAP_PERFMON"]);
    }

    #[test]
    fn this_kernel_has_what_is_needed() {
        let btf = Btf::from_vmlinux().unwrap();
        assert!(NEEDED.iter().all(|(name, field, _)| has_field(&btf, name, field)));
        assert!(!has_field(&btf, "sched_info", "no_such_field"));
    }

    #[test]
    fn this_host_has_threads() {
        assert!(threads().unwrap() >= 1);
        assert!(pid_max().unwrap() >= threads().unwrap());
    }
}
