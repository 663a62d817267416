//! What this host can do, asked before anything is loaded, and what to tell a user when it cannot.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use libbpf_rs::PrintLevel;

use crate::session::host_cannot;

/// Bits of the capability sets in /proc/PID/status (include/uapi/linux/capability.h).
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Fails with the cause and the remedy if BPF programs cannot be loaded here, or not see all of the host.
pub fn check_bpf() -> Result<()> {
    let status = fs::read("/proc/self/status").context("failed to read `/proc/self/status`")?;
    if !may_load_bpf(effective_capabilities(&String::from_utf8_lossy(&status))) {
        return Err(host_cannot(
            "not allowed to load BPF programs: run as root, or with CAP_BPF and CAP_PERFMON",
        ));
    }
    if !Path::new(BTF).exists() {
        return Err(host_cannot(format!(
            "`{BTF}` is not there: boot a kernel with CONFIG_DEBUG_INFO_BTF=y"
        )));
    }
    // The task iterator sees the tasks of its reader's PID namespace only.
    check_pid_namespace()
}

/// The inode numbers of the host's own namespaces (include/uapi/linux/nsfs.h; before: include/linux/proc_ns.h).
const CGROUP_NS_INIT_INO: u64 = 0xEFFF_FFFB;
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

fn effective_capabilities(status: &str) -> u64 {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn may_load_bpf(capabilities: u64) -> bool {
    let has = |cap: u32| capabilities & 1 << cap != 0;
    has(CAP_SYS_ADMIN) || has(CAP_BPF) && has(CAP_PERFMON)
}

/// Says why the kernel refused a program, where that can be known; else the error as it is.
pub fn explain_load_error(err: libbpf_rs::Error) -> anyhow::Error {
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        return host_cannot(
            "kernel memory cannot be read under lockdown: boot with lockdown=integrity or none",
        );
    }
    anyhow::Error::new(err).context("failed to load the BPF programs (-v shows why)")
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

/// Sends libbpf's messages to standard error, or nowhere.
pub fn show_libbpf_messages(show: bool) {
    let print = |_, message: String| eprint!("{message}");
    libbpf_rs::set_print(show.then_some((PrintLevel::Debug, print)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_status() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000000c000000000\n";
        assert_eq!(effective_capabilities(status), 0xc0_0000_0000);
        assert!(may_load_bpf(1 << CAP_BPF | 1 << CAP_PERFMON));
        assert!(may_load_bpf(1 << CAP_SYS_ADMIN));
        assert!(!may_load_bpf(1 << CAP_BPF));
        assert!(!may_load_bpf(effective_capabilities("")));
    }

    #[test]
    fn this_host_has_threads() {
        assert!(threads().unwrap() >= 1);
        assert!(pid_max().unwrap() >= threads().unwrap());
    }
}
