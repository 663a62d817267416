//! The options by which guests are held in hand: the same for every command that runs guests.

use clap::ValueEnum;
use common::args::CpuList;
use loadgen::{Controls, Sched, parse_size};

/// Where `--help` lists what guests are held to.
const CONTROLS: &str = "Controls";

/// What guests are held to.
#[derive(clap::Args)]
pub(crate) struct ControlArgs {
    /// Nice value of all guests, and of their cgroup as a whole unless it has a --weight
    ///
    /// From -20 to 19. Between cgroups the kernel does not look at the nice values of tasks, so the fleet's cgroup weighs
    /// what one task with this nice value does (cpu.weight.nice).
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = CONTROLS,
          value_parser = clap::value_parser!(i32).range(-20..=19))]
    nice: Option<i32>,
    /// Scheduling policy of all guests
    ///
    /// Without it, that of loadgen itself. Of idle guests the fleet's cgroup is idle, too (cpu.idle), or has the lowest
    /// weight where the kernel has no such thing (before Linux 5.15): they get what nobody else wants. Neither --nice
    /// nor --weight goes with it, as they would do nothing.
    #[arg(long, value_name = "POLICY", help_heading = CONTROLS)]
    sched: Option<Policy>,
    /// Bind all guests to these CPUs: 0-3,8
    ///
    /// All their threads, before they first run. They are created wherever there is room.
    #[arg(long, value_name = "LIST", help_heading = CONTROLS)]
    cpus: Option<CpuList>,
    /// Bind each vCPU to one CPU, in turn: of --cpus, of --numa-node, or of all
    ///
    /// The first vCPU of the first guest to the first of these CPUs, the next vCPU to the next one, and so on; after the
    /// last CPU it is the first one's turn again. The I/O thread may use all of them.
    #[arg(long, help_heading = CONTROLS)]
    pin: bool,
    /// Bind all guests to the CPUs and the memory of this NUMA node
    ///
    /// That is all memory that their processes get (MPOL_BIND), what KVM allocates for them, and what they share with
    /// loadgen; not what they inherit from it. CPUs of --cpus must be on that node, unless it has memory alone: then
    /// guests may run on any CPU.
    #[arg(long, value_name = "N", help_heading = CONTROLS,
          value_parser = clap::value_parser!(u32).range(..=i64::from(Controls::MAX_NUMA_NODE)))]
    numa_node: Option<u32>,
    /// CPU weight of all guests together; an ordinary task has 100 [default: 6]
    ///
    /// From 1 to 10,000, as cpu.weight has it. In v1 hierarchies it is cpu.shares, 1,024 for 100. Guests among each other
    /// weigh the same.
    #[arg(long, value_name = "N", help_heading = CONTROLS,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(Controls::MAX_WEIGHT)))]
    weight: Option<u32>,
    /// Give each guest a CPU quota, in per cent of one CPU
    ///
    /// From 1 to 25,600, in each period of 100 ms (the kernel's default and libvirt's): all its threads together are
    /// throttled when it is used up. Each guest is then in a cgroup of its own below the fleet's, of the guest's name,
    /// with cpu.cfs_quota_us or cpu.max.
    #[arg(long, value_name = "PCT", help_heading = CONTROLS,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(Controls::MAX_CPU_MAX_PERCENT)))]
    cpu_max: Option<u32>,
    /// Give all guests together a CPU quota, in per cent of one CPU
    ///
    /// Up to 1,000,000: a quota of the fleet's cgroup. No guest's may be above it. Weight and quotas hold from the start,
    /// not while guests are created. When guests are to leave, quotas are lifted, and an idle cgroup is idle no more.
    #[arg(long, value_name = "PCT", help_heading = CONTROLS,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(Controls::MAX_FLEET_CPU_MAX_PERCENT)))]
    fleet_cpu_max: Option<u32>,
    /// Kill a guest that needs more memory of the host than this
    ///
    /// As memory.max or memory.limit_in_bytes of a cgroup of its own; sizes are written as for --memory. All memory of its
    /// process counts, and what the kernel allocates for its virtual machine: some hundred KiB even if the guest touches
    /// nothing. Pages that it has in common with others count for whoever touched them first: with the parent, or with
    /// another guest after KSM has merged them. It is killed if there is no swap space to make room with. Then loadgen
    /// ends with exit status 1 and says which guest it was, and which limit.
    #[arg(long, value_name = "SIZE", value_parser = memory_max, help_heading = CONTROLS)]
    memory_max: Option<u64>,
    /// Kill a guest when all together need more memory of the host than this
    ///
    /// The kernel chooses whom to kill. No guest's limit may be above it.
    #[arg(long, value_name = "SIZE", value_parser = memory_max, help_heading = CONTROLS)]
    fleet_memory_max: Option<u64>,
}

/// [`Sched`] as it is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Policy {
    /// SCHED_OTHER, that of ordinary tasks
    Other,
    /// SCHED_BATCH
    Batch,
    /// SCHED_IDLE
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
