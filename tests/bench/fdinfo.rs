//! What a process holds of BPF, as its /proc/PID/fdinfo tells: exact where a list of all programs on the host
//! would also have those of others.

use std::collections::{HashMap, HashSet};
use std::fs;

use anyhow::{Context as _, Result};

/// The BPF objects of a process.
#[derive(Debug, Default)]
pub struct Holdings {
    /// The IDs of its links: programs attached.
    pub links: Vec<u32>,
    /// How long its programs have run, while statistics were on.
    pub run_time_ns: u64,
    /// What the kernel has allocated for its programs and maps.
    pub kernel_bytes: u64,
}

impl Holdings {
    /// Looks at every file descriptor of the process.
    pub fn of(pid: u32) -> Result<Self> {
        let directory = format!("/proc/{pid}/fdinfo");
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("failed to read `{directory}`"))?
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
        let mut all = Self::default();
        let mut seen = HashSet::new();
        for text in entries {
            let fields: HashMap<&str, &str> = text
                .lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name, value.trim()))
                .collect();
            // A link names its program too, so that its own ID is asked for first.
            let kinds = ["link_id", "prog_id", "map_id"];
            let Some(kind) = kinds.into_iter().find(|kind| fields.contains_key(kind)) else {
                continue;
            };
            if !seen.insert((kind, fields[kind].to_owned())) {
                continue;
            }
            if kind == "link_id" {
                all.links.push(fields[kind].parse().context("failed to parse a link's ID")?);
            }
            let number = |name| fields.get(name).and_then(|value| value.parse().ok()).unwrap_or(0);
            all.run_time_ns += number("run_time_ns");
            all.kernel_bytes += number("memlock");
        }
        Ok(all)
    }
}

/// Nanoseconds in the BPF programs of somebody for each of the things that a load does; it returns how many it did.
pub fn ns_per(
    holdings: impl Fn() -> Result<Holdings>,
    load: impl FnOnce() -> Result<u64>,
) -> Result<f64> {
    let before = holdings()?.run_time_ns;
    let count = load()?;
    let run_time_ns = holdings()?.run_time_ns - before;
    Ok(run_time_ns as f64 / count as f64)
}
