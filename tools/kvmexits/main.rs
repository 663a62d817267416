//! kvmexits: why do guests leave guest mode, how often, and where does the time go?

mod detail;
mod metrics;
mod report;
mod rows;
mod slow;
mod stacks;
mod trace;

#[cfg(test)]
#[path = "../../tests/util/docs.rs"]
mod docs;

use std::io::Write as _;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use common::args::{FILTERS, OUTPUT, OutputArgs, TaskFilterArgs, parse_micros};
use common::exits::Reason;
use common::hist::Unit;
use common::output::openmetrics::OpenMetrics;
use common::output::{Format, HdrLog, HdrSerializer};
use common::session::{self, Stop, Ticker, usage};
use common::vms::Names;
use common::{host, kvm, perf};
use jiff::Timestamp;

use metrics::Metrics;
use report::{BANNER, Context, Report};
use rows::{By, Row, Rows, VmId};
use stacks::Stacks;
use trace::{Tracer, Wanted};

/// Why do guests leave guest mode, how often, and where does the time go?
///
/// Shows exits by reason, with how long they took and where that time went: in KVM (krn), in the VMM (usr), asleep
/// (slp) or waiting for a CPU (rnq). Those that cost the most come first.
#[derive(Parser, Debug)]
#[command(name = "kvmexits", version, allow_negative_numbers = true, args_override_self = true,
          max_term_width = 100, after_long_help = EXAMPLES)]
struct Args {
    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    filter: TaskFilterArgs,

    /// Only this vCPU of each VM, by the kernel's vcpu_id
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(i32::MAX)),
          help_heading = FILTERS)]
    vcpu: Option<u32>,

    /// Only this reason, as the kernel or this tool spells it
    ///
    /// Capitals do not matter: hlt is Intel's, AMD's and the VMM's. The spelling of the kernel's headers says which is
    /// meant: SVM_EXIT_HLT is AMD's alone. TIME% remains the share of all. With --by it needs rows by reason: --by
    /// vm,reason.
    #[arg(long, value_name = "NAME", value_parser = parse_reasons, help_heading = FILTERS)]
    reason: Option<Reasons>,

    /// A row for each of these, several with commas between; by reason if nothing is said
    ///
    /// It may be given more than once, too. --by vm,reason is a table of reasons for each guest.
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    by: Vec<Breakdown>,

    /// Tell exits of one reason apart: port, address, MSR, hypercall, how a halt ended
    ///
    /// I/O ports, addresses of memory that is none (MMIO) and model-specific registers come with their direction, halts
    /// with slept or polled. An exit that accesses several is known by the first. The first exit that is seen of a vCPU
    /// may be without.
    #[arg(long)]
    detail: bool,

    /// A picture of each row's times as well
    #[arg(long, help_heading = OUTPUT)]
    histogram: bool,

    /// Pictures in milliseconds instead of microseconds
    #[arg(short = 'm', long, requires = "histogram", help_heading = OUTPUT)]
    milliseconds: bool,

    /// Print each exit that takes longer, as it ends, and no table
    ///
    /// In microseconds, fractions allowed. An exit to userspace is told as part of its exit from guest mode, whose name
    /// --reason then has to give; alone only where there is none.
    #[arg(long, value_name = "USECS", value_parser = parse_micros,
          conflicts_with_all = ["interval", "by", "histogram", "stacks", "hdr", "openmetrics"])]
    slower: Option<Duration>,

    /// The VMM's stacks at exits to userspace, folded: the most expensive ones
    ///
    /// 10 of them, or as many as TOP says, and no table. They are folded as flame graphs want them: VM, functions, the
    /// outermost first, reason, and the number of exits. Names need a VMM that still runs and is not stripped, else
    /// there are addresses; whole stacks need one that is built with frame pointers.
    #[arg(long, value_name = "TOP", num_args = 0..=1, require_equals = true, default_missing_value = "10",
          value_parser = clap::value_parser!(u32).range(1..),
          conflicts_with_all = ["by", "detail", "histogram", "csv", "json", "hdr", "openmetrics"])]
    stacks: Option<u32>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Breakdown {
    /// KVM guest: the process that runs it, whatever its VMM
    Vm,
    /// Its vCPUs: name/vcpu_id, or name/? for an exit that was the first to be seen of its thread
    Vcpu,
    /// Exit reason
    Reason,
}

const EXAMPLES: &str = "\
Examples:
  kvmexits 10 1             the host, for ten seconds
  kvmexits -T 1             every second with the time of day, until Ctrl-C
  kvmexits --by vm -d 10    which guests' exits cost the most?
  kvmexits --vm web --detail -d 10
                            one guest: why, with which ports and registers?
  kvmexits --slower 10000 --detail
                            each exit of more than 10 ms, as it happens
  kvmexits --vm web --stacks -d 10
                            where in its VMM a guest's I/O is handled";

/// All reasons of one name: Intel's, AMD's, the VMM's.
#[derive(Clone, Debug)]
struct Reasons(Vec<Reason>);

fn parse_reasons(name: &str) -> Result<Reasons, String> {
    match Reason::named(name) {
        none if none.is_empty() => Err("no exit reason has that name".to_owned()),
        reasons => Ok(Reasons(reasons)),
    }
}

impl Args {
    fn by(&self) -> By {
        let has = |what| self.by.contains(&what);
        // Stacks are told apart like details, and each is of one process.
        let (detail, stacks) = (self.detail, self.stacks.is_some());
        By {
            vm: has(Breakdown::Vm) || has(Breakdown::Vcpu) || stacks,
            vcpu: has(Breakdown::Vcpu),
            reason: has(Breakdown::Reason) || self.by.is_empty() || detail || stacks,
            detail: detail || stacks,
        }
    }

    fn wanted(&self) -> Result<Wanted> {
        Ok(Wanted {
            filter: self.filter.resolve()?,
            vcpu: self.vcpu,
            by_vm: self.by().vm,
            detail: self.detail,
            stacks: self.stacks.is_some(),
            slower: self.slower,
        })
    }

    fn wants(&self, reason: Option<Reason>) -> bool {
        let Some(Reasons(wanted)) = &self.reason else {
            return true;
        };
        reason.is_some_and(|reason| wanted.contains(&reason))
    }
}

/// How often slow exits are looked for.
const SLOW_PERIOD: Duration = Duration::from_millis(50);
/// How often it is looked whether maps need room, or for new stacks.
const GATHER_PERIOD: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    session::main(run)
}

fn run(args: Args) -> Result<ExitCode> {
    if args.reason.is_some() && !args.by().reason {
        return Err(usage("--reason needs rows by reason: --by vm,reason"));
    }
    let wanted = args.wanted()?;
    host::check_bpf()?;
    perf::check()?;
    let mut hdr_file = args.output.hdr_file()?;
    let metrics_target = args.output.metrics_target()?;
    host::show_libbpf_messages(args.output.verbose);
    let stop = Stop::install()?;

    let (mut typed, mut record) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let mut tracer = Tracer::start(&wanted, &mut typed, &mut record)?;
    let mut ticker = Ticker::new(args.output.interval, args.output.count, args.output.duration);
    let mut out = args.output.report_output();
    let mut names = Names::default();
    // Who was asked for by name keeps it, gone or not.
    let name = |names: &mut Names, vm: VmId, comm: &str| match &wanted.filter.vm {
        Some(named) if named.pid == vm.pid => named.name.clone(),
        _ => names.name(vm.pid, vm.start_boottime_ns, comm).to_owned(),
    };

    if args.slower.is_some() {
        let format = Format::from(&args.output);
        slow::begin(&mut out, format)?;
        out.flush()?;
        let mut ticker = Ticker::new(Some(SLOW_PERIOD), None, args.output.duration);
        loop {
            let more = ticker.wait(&stop);
            let ended = wanted.filter.ended();
            for slow in tracer.slow_exits()? {
                if args.wants(Some(slow.source.reason)) {
                    let vm = name(&mut names, slow.source.vm, &slow.comm);
                    slow::write(&mut out, format, &slow, &vm)?;
                }
            }
            out.flush()?;
            ended.iter().for_each(|sentence| session::complain("kvmexits", sentence));
            if !more || ended.is_some() {
                break;
            }
        }
        let losses = tracer.new_losses()?;
        losses.warnings().iter().for_each(|line| session::complain("kvmexits", line));
        return Ok(args.output.exit_code(losses.lost() + losses.untold));
    }

    let unit = if args.milliseconds { Unit::Millis } else { Unit::Micros };
    let report = Report {
        format: Format::from(&args.output),
        by: args.by(),
        pictures: args.histogram.then_some(unit),
        timestamp: args.output.timestamp,
    };
    let mut stacks = args.stacks.map(|top| Stacks::new(top as usize));
    let mut hdr_serializer = HdrSerializer::new();
    let mut hdr = match &mut hdr_file {
        Some(file) => Some(HdrLog::begin(file, &mut hdr_serializer, Timestamp::now(), "kvmexits")?),
        None => None,
    };
    let metrics = Metrics::new(args.output.max_series);
    let mut openmetrics =
        metrics_target.map(|to| OpenMetrics::begin(to, "kvmexits", metrics)).transpose()?;
    // Folded stacks are for programs that know no other lines.
    match stacks {
        Some(_) => {
            session::complain("kvmexits", BANNER);
            let nameless = host::nameless_stacks(true, false);
            nameless.iter().for_each(|line| session::complain("kvmexits", line));
        }
        None => report.begin(&mut out)?,
    }
    out.flush()?;

    let module = kvm::vendor();
    let (mut rows, mut lost) = (Rows::new(args.by()), 0);
    loop {
        let more = ticker.wait_working(&stop, GATHER_PERIOD, || {
            if stacks.is_some() || tracer.needs_room()? {
                tracer.gather(&mut rows)?;
            }
            // While their processes live.
            stacks
                .as_mut()
                .map_or(Ok(()), |stacks| stacks.learn(rows.iter(), |id| tracer.stack(id)))
        })?;
        let ended = wanted.filter.ended();
        let more = more && ended.is_none();
        let reading = tracer.read(&mut rows, !more)?;
        let mut rows: Vec<Row> = rows.take(|vm, comm| name(&mut names, vm, comm));
        let cost_ns = |userspace| {
            let of_kind = rows.iter().filter(|row| row.key.userspace == userspace);
            of_kind.map(Row::cost_ns).sum()
        };
        let context = Context {
            interval: reading.interval,
            losses: reading.losses,
            costs_ns: [cost_ns(false), cost_ns(true)],
            untraced: reading.exits_untraced.then_some(module.as_str()),
        };
        rows.retain(|row| args.wants(row.key.reason));
        if let Some(hdr) = &mut hdr {
            for row in rows.iter().filter(|row| row.hist.count() > 0) {
                hdr.append(&reading.interval, Some(&row.title()), &row.hist)?;
            }
        }
        match &stacks {
            Some(stacks) => stacks.write(&mut out, &rows)?,
            None => report.interval(&mut out, &rows, &context)?,
        }
        out.flush()?;
        if let Some(openmetrics) = &mut openmetrics {
            openmetrics.interval(&reading.interval, |metrics| {
                metrics.add(&reading.interval, &rows, &reading.losses, reading.exits_untraced);
            })?;
        }
        names.end_interval();
        lost += reading.losses.lost();
        if report.format != Format::Text || stacks.is_some() {
            reading.losses.warnings().iter().for_each(|line| session::complain("kvmexits", line));
        }
        ended.iter().for_each(|sentence| session::complain("kvmexits", sentence));
        if !more {
            break;
        }
    }
    Ok(args.output.exit_code(lost))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn page_and_completions_are_of_these_options() {
        docs::check(Args::command(), "kvmexits", "kvmexits");
    }
}
