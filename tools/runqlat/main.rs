//! runqlat: how long do runnable tasks wait for a CPU?

mod heat;
mod metrics;
mod report;
mod rows;
mod trace;

#[cfg(test)]
#[path = "../../tests/util/docs.rs"]
mod docs;

use std::io::Write as _;
use std::mem::MaybeUninit;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{ArgGroup, Parser, ValueEnum};
use common::args::{CpuList, FILTERS, OUTPUT, OutputArgs, TaskFilterArgs};
use common::hist::Unit;
use common::host;
use common::output::heatmap::Look;
use common::output::openmetrics::OpenMetrics;
use common::output::{Format, HdrLog, HdrSerializer};
use common::session::{self, Stop, Ticker};
use common::vms::Names;
use jiff::Timestamp;

use heat::Heat;
use metrics::Metrics;
use report::{By, Report};
use rows::Earlier;
use trace::{Tracer, Wanted};

/// How long do runnable tasks wait for a CPU?
///
/// Shows the distribution of run-queue latency from the kernel's own accounting: every wait that ends in the
/// interval, whole, and the tasks that still wait at its end.
#[derive(Parser, Debug)]
#[command(name = "runqlat", version, allow_negative_numbers = true, args_override_self = true,
          max_term_width = 100, after_long_help = EXAMPLES,
          group(ArgGroup::new("breakdown").args(["by", "pids", "tids", "pidnss"])))]
struct Args {
    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    filter: TaskFilterArgs,

    /// Only waits that end on these CPUs, as in 0-3,8
    #[arg(short = 'C', long, value_name = "LIST", help_heading = FILTERS)]
    cpu: Option<CpuList>,

    /// Pictures in milliseconds instead of microseconds
    #[arg(short = 'm', long, help_heading = OUTPUT)]
    milliseconds: bool,

    /// A histogram for each of these
    ///
    /// Those with the longest total wait come first.
    #[arg(long, value_name = "WHAT")]
    by: Option<Breakdown>,

    /// A histogram per process, as --by process
    #[arg(short = 'P', long)]
    pids: bool,

    /// A histogram per thread, as --by thread
    #[arg(short = 'L', long)]
    tids: bool,

    /// A histogram per PID namespace, as --by pidns
    #[arg(long)]
    pidnss: bool,

    /// A heat map: a line for each interval, latency across, in colour on a terminal
    ///
    /// Instead of pictures. INTERVAL must be given. Not with --by and its like, -m, --csv and --json.
    #[arg(long, requires = "interval", help_heading = OUTPUT, conflicts_with_all = ["csv", "json", "breakdown", "milliseconds"])]
    heatmap: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Breakdown {
    /// Process, with the name of its main thread
    Process,
    /// Thread, with its own name
    Thread,
    /// KVM guest: its vCPUs' threads only, each from the first time it is seen inside a vCPU's ioctl
    Vm,
    /// CPU on which waits end, in the order of numbers
    Cpu,
    /// PID namespace, by its inode number: ls -iL /proc/PID/ns/pid
    Pidns,
}

const EXAMPLES: &str = "\
Examples:
  runqlat -m 10 1           the host, in milliseconds, for ten seconds
  runqlat -T 1              every second with the time of day, until Ctrl-C
  runqlat --by vm -d 10     which guests wait longest?
  runqlat --vm web --by thread -d 10
                            one guest, by thread
  runqlat -c /sys/fs/cgroup/machine.slice -C 0-17 10
                            a slice of systemd, on the first 18 CPUs
  runqlat --by vm --json 5 | jq -r '[.vm, .p99_ns / 1e6] | @tsv'
                            each guest's 99th percentile in milliseconds";

impl Args {
    fn by(&self) -> By {
        match self.by {
            Some(Breakdown::Process) => By::Process,
            Some(Breakdown::Thread) => By::Thread,
            Some(Breakdown::Vm) => By::Vm,
            Some(Breakdown::Cpu) => By::Cpu,
            Some(Breakdown::Pidns) => By::PidNs,
            None if self.pids => By::Process,
            None if self.tids => By::Thread,
            None if self.pidnss => By::PidNs,
            None => By::Nothing,
        }
    }

    /// Checks what can only be checked on this host.
    fn wanted(&self) -> Result<Wanted> {
        let possible = libbpf_rs::num_possible_cpus().context("failed to count the CPUs")?;
        self.cpu.iter().try_for_each(|list| list.check(possible))?;
        Ok(Wanted { by: self.by(), filter: self.filter.resolve()?, cpus: self.cpu.clone() })
    }
}

fn main() -> ExitCode {
    session::main(run)
}

fn run(args: Args) -> Result<ExitCode> {
    let wanted = args.wanted()?;
    host::check_bpf()?;
    let mut hdr_file = args.output.hdr_file()?;
    let metrics_target = args.output.metrics_target()?;
    host::show_libbpf_messages(args.output.verbose);
    let stop = Stop::install()?;

    let mut objects = [const { MaybeUninit::uninit() }; 2];
    let mut tracer = Tracer::start(&wanted, &mut objects)?;
    let mut ticker = Ticker::new(args.output.interval, args.output.count, args.output.duration);

    let report = Report {
        format: Format::from(&args.output),
        by: wanted.by,
        unit: if args.milliseconds { Unit::Millis } else { Unit::Micros },
        timestamp: args.output.timestamp,
        has_books: tracer.has_books(),
    };
    let mut heat = args.heatmap.then(|| Heat::new(Look::of_stdout()));
    let mut hdr_serializer = HdrSerializer::new();
    let mut hdr = match &mut hdr_file {
        Some(file) => Some(HdrLog::begin(file, &mut hdr_serializer, Timestamp::now(), "runqlat")?),
        None => None,
    };
    let metrics = Metrics::new(wanted.by, tracer.has_books(), args.output.max_series);
    let mut openmetrics =
        metrics_target.map(|to| OpenMetrics::begin(to, "runqlat", metrics)).transpose()?;
    let mut out = args.output.report_output();
    report.begin(&mut out)?;
    out.flush()?;

    let (mut earlier, mut names, mut lost) = (Earlier::default(), Names::default(), 0);
    loop {
        let more = ticker.wait(&stop);
        let gone = tracer.gone(&earlier);
        let reading = tracer.read()?;
        let rows = rows::rows(
            wanted.by,
            reading.epoch,
            &reading.elements,
            &reading.waiting,
            &mut earlier,
            |pid, comm| names.name(pid, 0, comm).to_owned(),
        );
        if let Some(hdr) = &mut hdr {
            for row in &rows {
                hdr.append(&reading.interval, row.key.title().as_deref(), &row.hist)?;
            }
        }
        match &mut heat {
            Some(heat) => heat.line(&mut out, &reading.interval, &rows, &reading.losses)?,
            None => report.interval(&mut out, &reading.interval, &rows, &reading.losses)?,
        }
        out.flush()?;
        if let Some(openmetrics) = &mut openmetrics {
            openmetrics.interval(&reading.interval, |metrics| {
                metrics.add(&reading.interval, &rows, &reading.losses);
            })?;
        }
        names.end_interval();
        tracer.forget(&gone, &mut earlier)?;
        lost += reading.losses.lost;
        if report.format != Format::Text {
            reading.losses.warning().iter().for_each(|line| session::complain("runqlat", line));
        }
        if !more {
            break;
        }
        if let Some(sentence) = wanted.filter.ended() {
            session::complain("runqlat", &sentence);
            break;
        }
    }
    if let Some(heat) = &heat {
        heat.end(&mut out)?;
        out.flush()?;
    }
    Ok(args.output.exit_code(lost))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn page_and_completions_are_of_these_options() {
        docs::check(Args::command(), "runqlat", "runqlat");
    }
}
