//! The options by which guests are held in hand: the same for every command that runs guests.

use clap::ValueEnum;
use common::args::CpuList;
use loadgen::{Controls, Sched, parse_size};

/// What guests are held to.
#[derive(clap::Args)]
pub(crate) struct ControlArgs {
    /// Nice value of all guests, and of their cgroup as a whole unless it has a --weight
    #[arg(long, value_name = "N", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-20..=19))]
    nice: Option<i32>,
    /// Scheduling policy of all guests
    #[arg(long, value_name = "POLICY")]
    sched: Option<Policy>,
    /// Bind all guests to these CPUs: 0-3,8
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,
    /// Bind each vCPU to one CPU, in turn: of --cpus, of --numa-node, or of all
    #[arg(long)]
    pin: bool,
    /// Bind all guests to the CPUs and the memory of this NUMA node
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(..=i64::from(Controls::MAX_NUMA_NODE)))]
    numa_node: Option<u32>,
    /// CPU weight of all guests together; an ordinary task has 100 [default: 6]
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(Controls::MAX_WEIGHT)))]
    weight: Option<u32>,
    /// Give each guest a CPU quota, in per cent of one CPU
    #[arg(long, value_name = "PCT",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(Controls::MAX_CPU_MAX_PERCENT)))]
    cpu_max: Option<u32>,
    /// Give all guests together a CPU quota, in per cent of one CPU
    #[arg(long, value_name = "PCT",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(Controls::MAX_FLEET_CPU_MAX_PERCENT)))]
    fleet_cpu_max: Option<u32>,
    /// Kill a guest that needs more memory of the host than this
    #[arg(long, value_name = "SIZE", value_parser = memory_max)]
    memory_max: Option<u64>,
    /// Kill a guest when all together need more memory of the host than this
    #[arg(long, value_name = "SIZE", value_parser = memory_max)]
    fleet_memory_max: Option<u64>,
}

/// [`Sched`] as it is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Policy {
    Other,
    Batch,
    Idle,
}

impl ControlArgs {
    /// The controls that are asked for.
    pub(crate) fn controls(&self) -> Controls {
        Controls {
            nice: self.nice,
            sched: self.sched.map(|policy| match policy {
                Policy::Other => Sched::Other,
                Policy::Batch => Sched::Batch,
                Policy::Idle => Sched::Idle,
            }),
            cpus: self.cpus.clone(),
            pin: self.pin,
            numa_node: self.numa_node,
            weight: self.weight,
            cpu_max_percent: self.cpu_max,
            fleet_cpu_max_percent: self.fleet_cpu_max,
            memory_max_bytes: self.memory_max,
            fleet_memory_max_bytes: self.fleet_memory_max,
        }
    }
}

/// What a memory limit may be.
fn memory_max(text: &str) -> Result<u64, String> {
    parse_size(text, 4096, Controls::MAX_MEMORY_MAX)
}
