//! The scheduler's books of each thread: /proc/PID/task/TID/schedstat.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// How often a thread has got a CPU: the third field. The path is that of the thread, or of a process for its first.
pub fn times_on_cpu(thread: impl AsRef<Path>) -> Result<u64> {
    let path = thread.as_ref().join("schedstat");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("failed to read `{}`", path.display()))?;
    let field = text.split_whitespace().nth(2).and_then(|field| field.parse().ok());
    field.with_context(|| format!("failed to parse `{}`", path.display()))
}

/// The CPU time of a process: of each thread the first field.
pub fn on_cpu_ns(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&path).with_context(|| format!("failed to read `{path}`"))?;
    let of = |thread: fs::DirEntry| -> Option<f64> {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    Ok(threads.flatten().filter_map(of).sum())
}
