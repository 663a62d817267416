//! The part of the command line that says what guests are like: the same for all that make some.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use common::session::usage;
use loadgen::{Linux, Memory, Part, Spec, Workload, parse_size};

use crate::control_args::ControlArgs;
use crate::linux_args::LinuxArgs;

/// The longest `--vmm-sleep`: a guest must see within the fleet's patience that it is to leave.
const MAX_SLEEP_MS: f64 = 1_000.0;

/// Where `--help` lists what guests are like.
const GUESTS: &str = "Guests";

/// What guests are like.
#[derive(clap::Args)]
pub(crate) struct GuestArgs {
    /// vCPUs of each guest
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = GUESTS,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(Spec::MAX_VCPUS)))]
    vcpus: u32,
    /// Memory of each guest: bytes, or a number with K, M or G; none of it exists before it is touched
    /// [default: 0; with --linux 128M]
    ///
    /// A multiple of 4K, up to 60G. Only the workloads pagefault and memory, and Linux, touch it. Whatever is said here,
    /// these workloads have what they need.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = GUESTS)]
    memory: Option<u64>,
    /// What the guests do: spin, idle, idle=HZ, duty=PCT or exits=KIND:COUNT[@RATE],...; and, alone or given beside one
    /// of these, memory=SIZE[,duplicate=PCT][,zero=PCT][,rewrite=PCT/s|PCT/signal]
    ///
    /// See the manual's WORKLOADS.
    #[arg(long, value_name = "WORKLOAD", default_value = "spin", help_heading = GUESTS)]
    workload: Vec<Part>,
    /// Whether KSM may merge the memory of memory=SIZE, or of --linux, as QEMU's mem-merge [default: on]
    ///
    /// It depends on the host whether anything is merged; no setting of KSM is changed.
    #[arg(long, value_name = "on|off", help_heading = GUESTS)]
    mem_merge: Option<Switch>,
    /// Sleep so many milliseconds before answering an exit to userspace (pio, mmio); fractions are allowed
    ///
    /// Up to 1000. A tool should show it as time in userspace.
    #[arg(long, value_name = "MS", value_parser = sleep, help_heading = GUESTS)]
    vmm_sleep: Option<Duration>,
    /// One more thread in each guest's process, which burns so many per cent of a CPU
    ///
    /// From 1 to 100: a VM that keeps its own vCPUs waiting. The thread is named like 0001/io. It burns its share of each
    /// period of 10 ms as CPU time, measured by its own CPU clock, then sleeps; if that takes longer than the period,
    /// the next one begins at once. It runs from the start until its guest is to leave, or is done.
    #[arg(long, value_name = "PCT", value_parser = clap::value_parser!(u32).range(1..=100), help_heading = GUESTS)]
    io_thread: Option<u32>,
    #[command(flatten)]
    linux: LinuxArgs,
    #[command(flatten)]
    controls: ControlArgs,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// It may (MADV_MERGEABLE)
    On,
    /// It may not
    Off,
}

/// What all guests do at the same time.
struct Work {
    cpu: Workload,
    memory: Option<Memory>,
}

impl GuestArgs {
    /// So many of them. Refuses options that would do nothing.
    pub(crate) fn spec(&self, vms: u32) -> Result<Spec> {
        let linux = self.linux.linux()?;
        let work = match linux {
            Some(_) => Work { cpu: Workload::Linux, memory: None },
            None => work(&self.workload)?,
        };
        check(self, &work)?;
        let default_memory = if linux.is_some() { Linux::MEMORY } else { 0 };
        Ok(Spec {
            vms,
            vcpus: self.vcpus,
            memory_bytes: self.memory.unwrap_or(default_memory),
            workload: work.cpu,
            linux,
            memory: work.memory,
            mem_merge: self.mem_merge != Some(Switch::Off),
            vmm_sleep: self.vmm_sleep.unwrap_or_default(),
            io_thread_percent: self.io_thread,
            controls: self.controls.controls(),
        })
    }
}

/// What `--workload` says, however often: one of each kind. Memory alone leaves the vCPUs idle.
fn work(parts: &[Part]) -> Result<Work> {
    let (mut cpu, mut memory) = (None, None);
    for part in parts {
        let twice = match *part {
            Part::Cpu(workload) => cpu.replace(workload).is_some(),
            Part::Memory(wanted) => memory.replace(wanted).is_some(),
        };
        if twice {
            return Err(usage(
                "--workload is given twice: it may be, once for the vCPUs and once for memory=SIZE",
            ));
        }
    }
    Ok(Work { cpu: cpu.unwrap_or_else(Workload::idle), memory })
}

/// Refuses options that would do nothing.
fn check(args: &GuestArgs, work: &Work) -> Result<()> {
    let may_merge = work.memory.is_some() || work.cpu == Workload::Linux;
    if args.mem_merge.is_some() && !may_merge {
        return Err(usage(
            "--mem-merge needs memory that is filled: --workload memory=SIZE, or --linux",
        ));
    }
    let reach_the_vmm = matches!(work.cpu, Workload::Exits(exits) if exits.reach_the_vmm());
    if args.vmm_sleep.is_some() && !reach_the_vmm {
        return Err(usage(
            "--vmm-sleep needs exits to userspace: --workload exits=pio:COUNT or exits=mmio:COUNT",
        ));
    }
    Ok(())
}

/// What the guest's memory may be.
fn size(text: &str) -> Result<u64, String> {
    parse_size(text, 0, Spec::MAX_MEMORY)
}

/// Milliseconds to sleep: short enough for guests to be told to leave.
fn sleep(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(ms) if ms > 0.0 && ms <= MAX_SLEEP_MS => Ok(Duration::from_secs_f64(ms / 1e3)),
        _ => Err(format!("it is not a number of milliseconds above 0, up to {MAX_SLEEP_MS}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_are_milliseconds() {
        assert_eq!(sleep("2"), Ok(Duration::from_millis(2)));
        assert_eq!(sleep("0.5"), Ok(Duration::from_micros(500)));
        for text in ["", "0", "-1", "1001", "inf", "nan", "1ms"] {
            assert!(sleep(text).is_err(), "{text}");
        }
    }
}
