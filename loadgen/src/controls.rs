//! What guests are held to, by the host's ordinary means: priority, CPUs, memory, a share of both. What can be asked
//! for, and what cannot be asked for together.

use anyhow::Result;
use common::args::CpuList;
use common::session::usage;

use crate::image;
use crate::size::size_text;

/// Controls of all guests of a fleet; by default there are none but the low weight of the fleet's cgroup.
#[derive(Clone, Debug, Default)]
pub struct Controls {
    /// The nice value of all threads of guests, and of the fleet as a whole unless it has a `weight`.
    pub nice: Option<i32>,
    /// The scheduling policy of all threads of guests; without one they have this process's.
    pub sched: Option<Sched>,
    /// The CPUs that guests are bound to.
    pub cpus: Option<CpuList>,
    /// Whether each vCPU is bound to one CPU of those that guests may have, in turn.
    pub pin: bool,
    /// The NUMA node whose CPUs and memory guests are bound to.
    pub numa_node: Option<u32>,
    /// How much of the CPUs all guests together get when others want them, too: a `cpu.weight`.
    pub weight: Option<u32>,
    /// How much of a CPU each guest may have, in per cent: its quota in a cgroup of its own.
    pub cpu_max_percent: Option<u32>,
    /// How much of a CPU all guests together may have, in per cent.
    pub fleet_cpu_max_percent: Option<u32>,
    /// How much memory each guest may have, in a cgroup of its own.
    pub memory_max_bytes: Option<u64>,
    /// How much memory all guests together may have.
    pub fleet_memory_max_bytes: Option<u64>,
}

/// A scheduling policy, as of sched(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sched {
    /// `SCHED_OTHER`, that of ordinary tasks.
    Other,
    /// `SCHED_BATCH`.
    Batch,
    /// `SCHED_IDLE`.
    Idle,
}

impl Controls {
    /// The highest `weight`: what the kernel allows.
    pub const MAX_WEIGHT: u32 = 10_000;
    /// The highest quota of a guest: as much as all threads of the biggest can use.
    pub const MAX_CPU_MAX_PERCENT: u32 = (image::MAX_VCPUS + 1) * 100;
    /// The highest quota of a fleet: more CPUs than any kernel knows.
    pub const MAX_FLEET_CPU_MAX_PERCENT: u32 = 1_000_000;
    /// The highest memory limit: more than any host has.
    pub const MAX_MEMORY_MAX: u64 = 64 << 40;
    /// The highest number of a NUMA node that a kernel can have (CONFIG_NODES_SHIFT is at most 10).
    pub const MAX_NUMA_NODE: u32 = 1_023;

    /// True if each guest needs a cgroup of its own.
    pub(crate) fn hold_each_guest(&self) -> bool {
        self.cpu_max_percent.is_some() || self.memory_max_bytes.is_some()
    }

    /// True if there is any CPU quota.
    pub(crate) fn have_quota(&self) -> bool {
        self.cpu_max_percent.is_some() || self.fleet_cpu_max_percent.is_some()
    }

    /// True if there is any memory limit.
    pub(crate) fn have_memory_max(&self) -> bool {
        self.memory_max_bytes.is_some() || self.fleet_memory_max_bytes.is_some()
    }

    /// Refuses what contradicts itself on any host.
    pub(crate) fn check(&self) -> Result<()> {
        if self.sched == Some(Sched::Idle) && self.nice.is_some() {
            return Err(usage(
                "--nice does nothing with --sched idle: all idle tasks weigh the same, give one of the two",
            ));
        }
        if self.sched == Some(Sched::Idle) && self.weight.is_some() {
            return Err(usage(
                "--weight does nothing with --sched idle: an idle cgroup has none (cpu.idle), give one of the two",
            ));
        }
        if let (Some(guest), Some(fleet)) = (self.cpu_max_percent, self.fleet_cpu_max_percent)
            && guest > fleet
        {
            return Err(usage(format!(
                "--cpu-max {guest} is above --fleet-cpu-max {fleet}: no guest can have more than all together"
            )));
        }
        if let (Some(guest), Some(fleet)) = (self.memory_max_bytes, self.fleet_memory_max_bytes)
            && guest > fleet
        {
            return Err(usage(format!(
                "--memory-max {} is above --fleet-memory-max {}: no guest can have more than all together",
                size_text(guest),
                size_text(fleet)
            )));
        }
        Ok(())
    }
}
