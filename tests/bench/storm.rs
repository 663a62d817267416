//! The load: guests that leave guest mode as fast as they can, and nothing else.

use std::io::{self, Read as _};
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::loadgen;

/// What a storm was.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// How often its guests left, as they have counted.
    pub exits: u64,
    /// How long they ran, to 0.2 s.
    pub wall_s: f64,
    /// What that took of the CPUs, in the guests, in KVM and in their VMM, with what hangs on tracepoints there.
    pub cpu_ns: f64,
}

impl Storm {
    /// CPU time of one exit.
    pub fn ns_per_exit(&self) -> f64 {
        self.cpu_ns / self.exits as f64
    }
}

/// Lets so many guests leave guest mode so many times each, for a reason as loadgen calls it. `tool` is one of those
/// built beside it.
pub fn rage(tool: &str, guests: usize, reason: &str, count: u64) -> Result<Storm> {
    let mut child = loadgen::command(tool)
        .args(["--json", "--vms", &guests.to_string()])
        .args(["--workload", &format!("exits={reason}:{count}")])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("failed to start loadgen")?;
    let mut text = String::new();
    let stdout = child.stdout.take().context("loadgen has no standard output")?;
    io::BufReader::new(stdout).read_to_string(&mut text)?;
    let cpu_ns = wait(&child)?;
    let summary: Value =
        serde_json::from_str(&text).context("failed to parse what loadgen says")?;
    let exits = summary["exits"][reason].as_u64().unwrap_or_default();
    ensure!(exits == guests as u64 * count, "loadgen's guests did not finish: {text}");
    Ok(Storm { exits, wall_s: summary["run_s"].as_f64().unwrap_or(f64::NAN), cpu_ns })
}

/// Waits for a child; its CPU time, and that of all children it has waited for itself.
fn wait(child: &Child) -> Result<f64> {
    let mut status = 0;
    // SAFETY: both outlive the call, an all-zero rusage is valid, and nobody else waits for this child.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let pid = child.id().cast_signed();
        if libc::wait4(pid, &raw mut status, 0, &raw mut usage) != pid {
            return Err(io::Error::last_os_error()).context("failed to wait for a child");
        }
        usage
    };
    if status != 0 {
        bail!("a child failed: wait status {status:#x}");
    }
    let ns = |time: libc::timeval| 1e9 * time.tv_sec as f64 + 1e3 * time.tv_usec as f64;
    Ok(ns(usage.ru_utime) + ns(usage.ru_stime))
}
