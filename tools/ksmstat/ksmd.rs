//! The kernel's thread that scans, ksmd, and what /proc tells of it.

use std::fs;
use std::io;
use std::mem;
use std::os::fd::{FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
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
    // SAFETY: all zeroes is a valid perf_event_attr.
    let mut attr: libbpf_sys::perf_event_attr = unsafe { mem::zeroed() };
    attr.size = u32::try_from(size_of_val(&attr))?;
    attr.type_ = libbpf_sys::PERF_TYPE_SOFTWARE;
    attr.config = libbpf_sys::PERF_COUNT_SW_CONTEXT_SWITCHES.into();
    attr.__bindgen_anon_1.sample_period = 1;
    let (any_cpu, no_group) = (-1, -1);
    let flags = libbpf_sys::PERF_FLAG_FD_CLOEXEC;
    // SAFETY: `attr` is as long as it says and outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attr, pid, any_cpu, no_group, flags)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("failed to watch ksmd's switches");
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}
