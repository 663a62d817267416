//! The kernel's statistics of BPF programs' run time.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use libbpf_rs::libbpf_sys::{BPF_STATS_RUN_TIME, bpf_enable_stats};

const SYSCTL: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Statistics are on while this lives. They belong to a file descriptor, so that the kernel switches them off
/// however this process ends.
pub struct Stats(#[allow(dead_code)] OwnedFd);

impl Stats {
    /// Switches them on.
    pub fn on() -> Result<Self> {
        // SAFETY: takes an integer, returns a file descriptor or an error.
        let fd = unsafe { bpf_enable_stats(BPF_STATS_RUN_TIME) };
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd))
                .context("failed to switch on statistics of BPF programs: the bench needs root");
        }
        // SAFETY: a new file descriptor that nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// Fails if somebody else has them on: they add two clock readings to every run of every program.
pub fn check_off() -> Result<()> {
    let text = fs::read_to_string(SYSCTL).with_context(|| format!("failed to read `{SYSCTL}`"))?;
    if text.trim() != "0" {
        bail!("kernel.bpf_stats_enabled is on, which slows all programs down: set it to 0");
    }
    Ok(())
}
