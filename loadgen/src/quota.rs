//! The CPU quota of a cgroup: how a cgroup is told of it, and what its `cpu.stat` says of time without CPU.

use std::fs;
use std::io;
use std::path::Path;

use crate::hierarchy::Version;

/// In each of these a guest gets its quota of CPU time: the kernel's default, and libvirt's. Of a shorter one a single
/// per cent would be less than the kernel allows, which is 1 ms.
const PERIOD_US: u32 = 100_000;

/// True if this cgroup can have a quota.
pub(crate) fn exists(dir: &Path, version: Version) -> bool {
    let file = match version {
        Version::V1 => "cpu.cfs_quota_us",
        Version::V2 => "cpu.max",
    };
    dir.join(file).exists()
}

/// Sets the quota of a cgroup, in per cent of one CPU.
pub(crate) fn set(dir: &Path, version: Version, percent: u32) -> io::Result<()> {
    let quota_us = PERIOD_US / 100 * percent;
    match version {
        Version::V1 => {
            fs::write(dir.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
            fs::write(dir.join("cpu.cfs_quota_us"), quota_us.to_string())
        }
        Version::V2 => fs::write(dir.join("cpu.max"), format!("{quota_us} {PERIOD_US}")),
    }
}

/// Takes the quota away: what waits for it runs at once.
pub(crate) fn lift(dir: &Path, version: Version) -> io::Result<()> {
    match version {
        Version::V1 => fs::write(dir.join("cpu.cfs_quota_us"), "-1"),
        Version::V2 => fs::write(dir.join("cpu.max"), "max"),
    }
}

/// How long the cgroup was out of quota, on all CPUs together.
pub(crate) fn throttled_ns(dir: &Path) -> Option<u64> {
    parse_throttled_ns(&fs::read_to_string(dir.join("cpu.stat")).ok()?)
}

/// The one field of `cpu.stat` that a version of cgroups has, in its unit.
fn parse_throttled_ns(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| match line.split_once(' ')? {
        ("throttled_time", ns) => ns.parse().ok(),
        ("throttled_usec", us) => us.parse::<u64>().ok()?.checked_mul(1_000),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_tell_of_throttling_in_their_units() {
        let v1 = "nr_periods 31\nnr_throttled 29\nthrottled_time 2030123456\nnr_bursts 0\n";
        assert_eq!(parse_throttled_ns(v1), Some(2_030_123_456));
        let v2 = "usage_usec 907\nuser_usec 904\nnr_periods 31\nnr_throttled 29\nthrottled_usec 2030123\n";
        assert_eq!(parse_throttled_ns(v2), Some(2_030_123_000));
        assert_eq!(parse_throttled_ns("usage_usec 907\n"), None, "no cpu controller");
    }
}
