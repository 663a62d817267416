//! The kernel's thread that scans, ksmd, and what /proc tells of it.

use std::fs;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use common::perf;
use libbpf_rs::libbpf_sys;

/// The PID of kthreadd, which is the parent of all kernel threads.
const KTHREADD: &str = "2";

/// Finds ksmd; `None` if it is not there, or not to be seen.
pub fn find() -> Option<i32> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid| is_ksmd(*pid))
}

fn is_ksmd(pid: i32) -> bool {
    // PID (COMM) STATE PPID …
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    let Some(rest) = stat.strip_prefix(&format!("{pid} (ksmd) ")) else {
        return false;
    };
    rest.split(' ').nth(1) == Some(KTHREADD)
}

/// How long it has been on a CPU, in nanoseconds: the first field of schedstat.
pub fn cpu_time_ns(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    text.split(' ').next()?.parse().ok()
}

/// Writes to merged pages since boot, the kernel's own count (Linux 5.18 and later).
pub fn cow_breaks() -> Result<Option<u64>> {
    let text = fs::read_to_string("/proc/vmstat").context("failed to read `/proc/vmstat`")?;
    let count = text.lines().find_map(|line| line.strip_prefix("cow_ksm "));
    count.map(|count| count.parse().context("failed to parse `/proc/vmstat`")).transpose()
}

/// An event for each time that this thread is switched away from.
pub fn open_switches(pid: i32) -> Result<OwnedFd> {
    let switches = perf::open_software(libbpf_sys::PERF_COUNT_SW_CONTEXT_SWITCHES, 1, pid);
    switches.context("failed to watch ksmd's switches")
}
