//! How a host fares: memory, load, pressure and context switches, as /proc has them.

use std::fs;

use crate::room::meminfo_bytes;

/// One reading. What this kernel does not tell is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// `MemAvailable` of /proc/meminfo.
    pub available_bytes: Option<u64>,
    /// Load average of a minute.
    pub load: Option<f64>,
    /// Context switches since boot.
    pub switches: Option<u64>,
    /// How long some task has waited for a CPU since boot, in microseconds (PSI).
    pub cpu_some_us: Option<u64>,
    /// How long some task has waited for memory since boot, in microseconds (PSI).
    pub memory_some_us: Option<u64>,
}

impl Pressure {
    /// Of this host, now.
    pub fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            available_bytes: available_bytes(&read("/proc/meminfo")),
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()),
            switches: switches(&read("/proc/stat")),
            cpu_some_us: some_us(&read("/proc/pressure/cpu")),
            memory_some_us: some_us(&read("/proc/pressure/memory")),
        }
    }
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    meminfo_bytes(meminfo, "MemAvailable")
}

fn switches(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("ctxt "))?.parse().ok()
}

/// Documentation/accounting/psi.rst: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn some_us(pressure: &str) -> Option<u64> {
    let line = pressure.lines().find(|line| line.starts_with("some "))?;
    line.split_once("total=")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found() {
        assert_eq!(available_bytes("MemFree: 1 kB\nMemAvailable:   22 kB\n"), Some(22 << 10));
        assert_eq!(switches("cpu 1 2\nctxt 3443\nbtime 1\n"), Some(3_443));
        let psi = "some avg10=1.00 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.00 total=9\n";
        assert_eq!(some_us(psi), Some(77));
        assert_eq!((available_bytes(""), switches(""), some_us("")), (None, None, None));
    }

    #[test]
    fn this_host_tells() {
        let now = Pressure::read();
        assert!(now.available_bytes.unwrap() > 0 && now.switches.unwrap() > 0, "{now:?}");
    }
}
