//! How much of the CPUs a fleet gets when others want them, too: the weight of its cgroup in both versions.

use std::fs;
use std::io;
use std::path::Path;

use crate::controls::{Controls, Sched};
use crate::hierarchy::Version;

/// `cpu.shares` of all guests together; one ordinary task of nice 0 has 1,024.
const CPU_SHARES: u32 = 64;
/// The same as a v2 `cpu.weight`, where an ordinary task has 100.
const CPU_WEIGHT: u32 = 6;
/// Whether a cgroup is idle: Linux 5.15 and newer have it (304000390f88), in both versions.
const IDLE: &str = "cpu.idle";
/// What an idle task weighs, as `cpu.shares` (WEIGHT_IDLEPRIO of kernel/sched/sched.h).
const IDLE_SHARES: u32 = 3;

/// What a fleet weighs against whatever is not in its cgroup. Between cgroups the kernel looks at these alone: nice
/// value and policy of the tasks within count among themselves only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Little: the host goes first.
    Low,
    /// A `cpu.weight`.
    Given(u32),
    /// As much as one task of this nice value.
    Nice(i32),
    /// As little as one idle task, and like that it gives way to whoever wakes up.
    Idle,
}

impl Weight {
    /// The one that is asked for.
    pub(crate) fn of(controls: &Controls) -> Self {
        match (controls.sched, controls.weight, controls.nice) {
            (Some(Sched::Idle), ..) => Self::Idle,
            (_, Some(weight), _) => Self::Given(weight),
            (_, None, Some(nice)) => Self::Nice(nice),
            (_, None, None) => Self::Low,
        }
    }

    /// True if this cgroup can have a weight.
    pub(crate) fn exists(dir: &Path, version: Version) -> bool {
        let file = match version {
            Version::V1 => "cpu.shares",
            Version::V2 => "cpu.weight",
        };
        dir.join(file).exists()
    }

    /// Gives it to a cgroup.
    pub(crate) fn set(self, dir: &Path, version: Version) -> io::Result<()> {
        let (file, value) = match (self, version) {
            (Self::Idle, _) if dir.join(IDLE).exists() => (IDLE, 1),
            (Self::Idle, Version::V1) => ("cpu.shares", IDLE_SHARES),
            (Self::Idle, Version::V2) => ("cpu.weight", 1),
            (Self::Low, Version::V1) => ("cpu.shares", CPU_SHARES),
            (Self::Low, Version::V2) => ("cpu.weight", CPU_WEIGHT),
            (Self::Given(weight), Version::V1) => ("cpu.shares", shares_of_weight(weight)),
            (Self::Given(weight), Version::V2) => ("cpu.weight", weight),
            (Self::Nice(nice), Version::V1) => ("cpu.shares", shares_of_nice(nice)),
            (Self::Nice(nice), Version::V2) => {
                return fs::write(dir.join("cpu.weight.nice"), nice.to_string());
            }
        };
        fs::write(dir.join(file), value.to_string())
    }

    /// Takes the idleness of a cgroup away; it is then an ordinary one.
    pub(crate) fn lift_idle(dir: &Path) -> io::Result<()> {
        fs::write(dir.join(IDLE), "0")
    }
}

/// As sched_weight_from_cgroup of kernel/sched/sched.h has it.
fn shares_of_weight(weight: u32) -> u32 {
    (weight * 1024 + 50) / 100
}

/// The kernel's table, sched_prio_to_weight, but for its roundings.
fn shares_of_nice(nice: i32) -> u32 {
    (1024.0 / 1.25_f64.powi(nice)).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_shares_of_1024_for_100() {
        let shares = [1, 6, 100, 300, 10_000].map(shares_of_weight);
        assert_eq!(shares, [10, 61, 1_024, 3_072, 102_400]);
    }

    /// Some entries of sched_prio_to_weight.
    #[test]
    fn nice_values_weigh_as_in_the_kernel() {
        for (nice, weight) in
            [(-20, 88_761), (-10, 9_548), (0, 1_024), (5, 335), (10, 110), (19, 15)]
        {
            let shares = shares_of_nice(nice);
            assert!(shares.abs_diff(weight) * 50 <= weight, "{nice}: {shares} for {weight}");
        }
    }
}
