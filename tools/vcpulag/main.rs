//! vcpulag: how late do vCPUs run, why, and who ran instead?

mod heat;
mod losses;
mod matrix;
mod metrics;
mod report;
mod rows;
mod slow;
mod stacks;
mod trace;

#[cfg(test)]
#[path = "../../tests/util/docs.rs"]
mod docs;

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use common::args::{FILTERS, OUTPUT, OutputArgs, TaskFilterArgs, parse_micros};
use common::hist::Unit;
use common::host;
use common::output::heatmap::Look;
use common::output::openmetrics::OpenMetrics;
use common::output::{Format, HdrLog, HdrSerializer};
use common::perf;
use common::session::{self, Stop, Ticker};
use common::vms::Names;
use jiff::Timestamp;

use heat::Heat;
use metrics::Metrics;
use report::{NamedRow, Report, culprit_name};
use rows::{Earlier, Row};
use stacks::Stacks;
use trace::{Tracer, Wanted};

/// How late do vCPUs run, why, and who ran instead?
///
/// Shows where every nanosecond of each vCPU went: running, waiting for a CPU, halted, blocked in KVM or in the VMM.
/// The waits, how they began, and who had the CPU meanwhile. Those that waited the longest come first.
#[derive(Parser, Debug)]
#[command(name = "vcpulag", version, allow_negative_numbers = true, args_override_self = true,
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

    /// A row for each vCPU (the default), or for each VM; metrics have such rows only if asked for
    #[arg(long, value_name = "WHAT")]
    by: Option<Breakdown>,

    /// Show so many rows
    ///
    /// Text: so many at most; with --culprits so many of those who waited, and of those who ran. CSV and JSON have all.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..),
          help_heading = OUTPUT)]
    top: u32,

    /// Who made whom wait, and for how long, instead of rows
    ///
    /// Not with --histogram or --hdr.
    #[arg(long, conflicts_with_all = ["histogram", "hdr"])]
    culprits: bool,

    /// A vCPU is late if it waits more than this share of its time
    ///
    /// Text: such a vCPU is called late in the verdict.
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = parse_percent)]
    late: f64,

    /// A picture of each row's waits as well
    #[arg(long, help_heading = OUTPUT)]
    histogram: bool,

    /// Pictures in milliseconds instead of microseconds
    #[arg(short = 'm', long, requires = "histogram", help_heading = OUTPUT)]
    milliseconds: bool,

    /// Print each wait that takes longer, as it ends, and no table
    ///
    /// In microseconds, fractions allowed. Not with INTERVAL or what is about tables: --by, --top, --late, --culprits,
    /// --histogram and --hdr.
    #[arg(long, value_name = "USECS", value_parser = parse_micros,
          conflicts_with_all = ["interval", "by", "top", "late", "culprits", "histogram", "hdr", "openmetrics"])]
    slower: Option<Duration>,

    /// Where in the kernel vCPUs were blocked, folded, and for how many microseconds: the worst ones, and no table
    ///
    /// The 10 stacks at which the longest, or as many as TOP says, folded as for flame graphs. Not with --slower,
    /// --culprits, --histogram, --hdr, --csv and --json.
    #[arg(long, value_name = "TOP", num_args = 0..=1, require_equals = true, default_missing_value = "10",
          value_parser = clap::value_parser!(u32).range(1..),
          conflicts_with_all = ["slower", "culprits", "histogram", "csv", "json", "hdr", "openmetrics"])]
    stacks: Option<u32>,

    /// A heat map of all their waits: a line for each interval, latency across, in colour on a terminal
    ///
    /// Instead of a table. INTERVAL must be given. Not with --by, --top, --late, --culprits, --histogram, --slower,
    /// --stacks, --csv and --json.
    #[arg(long, requires = "interval", help_heading = OUTPUT,
          conflicts_with_all = ["csv", "json", "by", "top", "late", "culprits", "histogram", "slower", "stacks"])]
    heatmap: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Breakdown {
    /// vCPU, as name/vcpu_id, or name/? if its number is not known
    Vcpu,
    /// KVM guest, with all of its vCPUs that are wanted: shares are of their time together, rates those of all of them
    Vm,
}

const EXAMPLES: &str = "\
Examples:
  vcpulag 10 1              the host, for ten seconds
  vcpulag -T --top 5 1      every second, until Ctrl-C, the five worst
  vcpulag --by vm -d 10     which guests wait the longest?
  vcpulag --culprits -d 10  who makes whom wait?
  vcpulag --vm web --slower 20000
                            each time it does not run for more than 20 ms
  vcpulag --vm web --stacks -d 10 | flamegraph.pl > blocked.svg
                            where in the kernel were its vCPUs blocked?";

fn parse_percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("not a number from 0 to 100".to_owned()),
    }
}

/// How often long waits are looked for.
const SLOW_PERIOD: Duration = Duration::from_millis(50);
/// How often debts are paid, and waits that go on are blamed so far where the log would forget: see bpf/blame.bpf.h.
const SETTLE_PERIOD: Duration = Duration::from_secs(1);

impl Args {
    fn wanted(&self) -> Result<Wanted> {
        Ok(Wanted {
            filter: self.filter.resolve()?,
            vcpu: self.vcpu,
            slower: self.slower,
            stacks: self.stacks.is_some(),
        })
    }

    /// Of a host with thousands of vCPUs somebody may want no more than their sum.
    fn metrics(&self) -> Metrics {
        let by = match self.by {
            None => metrics::By::Nothing,
            Some(Breakdown::Vm) => metrics::By::Vm,
            Some(Breakdown::Vcpu) => metrics::By::Vcpu,
        };
        Metrics::new(by, self.output.max_series)
    }
}

fn main() -> ExitCode {
    session::main(run)
}

fn run(args: Args) -> Result<ExitCode> {
    let wanted = args.wanted()?;
    host::check_bpf()?;
    perf::check()?;
    let mut hdr_file = args.output.hdr_file()?;
    let metrics_target = args.output.metrics_target()?;
    host::show_libbpf_messages(args.output.verbose);
    let stop = Stop::install()?;

    let mut object = MaybeUninit::uninit();
    let mut tracer = Tracer::start(&wanted, &mut object)?;
    let mut ticker = Ticker::new(args.output.interval, args.output.count, args.output.duration);
    let mut out = args.output.report_output();
    let mut names = Names::default();

    if args.slower.is_some() {
        tell_long_waits(&args, &mut out, &mut tracer, &mut ticker, &stop, &mut names)?;
        let losses = tracer.new_losses()?;
        losses.warnings().iter().for_each(|line| session::complain("vcpulag", line));
        return Ok(args.output.exit_code(losses.lost() + losses.untold));
    }

    let unit = if args.milliseconds { Unit::Millis } else { Unit::Micros };
    let report = Report {
        format: Format::from(&args.output),
        by_vm: args.by == Some(Breakdown::Vm),
        top: args.top as usize,
        late_percent: args.late,
        pictures: args.histogram.then_some(unit),
        matrix: args.culprits,
        timestamp: args.output.timestamp,
    };
    let mut heat = args.heatmap.then(|| Heat::new(Look::of_stdout()));
    let mut hdr_serializer = HdrSerializer::new();
    let mut hdr = match &mut hdr_file {
        Some(file) => Some(HdrLog::begin(file, &mut hdr_serializer, Timestamp::now(), "vcpulag")?),
        None => None,
    };
    let mut openmetrics =
        metrics_target.map(|to| OpenMetrics::begin(to, "vcpulag", args.metrics())).transpose()?;
    // Folded stacks are for programs that know no other lines.
    let mut stacks = args.stacks.map(|top| Stacks::new(top as usize));
    match stacks {
        Some(_) => {
            session::complain("vcpulag", report::BANNER);
            let nameless = host::nameless_stacks(false, true);
            nameless.iter().for_each(|line| session::complain("vcpulag", line));
        }
        None => report.begin(&mut out)?,
    }
    out.flush()?;

    let (mut earlier, mut lost) = (Earlier::default(), 0);
    loop {
        let mut gone = HashSet::new();
        let more = ticker.wait_working(&stop, SETTLE_PERIOD, || {
            // In this order: who is gone then is blamed for nothing any more.
            gone = trace::gone(earlier.culprits());
            tracer.settle()
        })?;
        let (interval, reading, losses) = tracer.read()?;
        let rows = rows::rows(report.by_vm, &reading, &mut earlier);
        let rows = named(rows, &mut names);
        if let Some(hdr) = &mut hdr {
            for row in rows.iter().filter(|row| row.row.waits.count() > 0) {
                hdr.append(&interval, Some(&row.title()), &row.row.waits)?;
            }
        }
        match (&mut stacks, &mut heat) {
            (Some(stacks), _) => stacks.write(&mut out, &tracer.blocks()?)?,
            (None, Some(heat)) => {
                heat.line(&mut out, &interval, rows.iter().map(|named| &named.row), &losses)?;
            }
            (None, None) => report.interval(&mut out, &interval, &rows, &losses)?,
        }
        out.flush()?;
        if let Some(openmetrics) = &mut openmetrics {
            openmetrics.interval(&interval, |metrics| metrics.add(&interval, &rows, &losses))?;
        }
        names.end_interval();
        tracer.forget(&reading, &gone, &mut earlier)?;
        lost += losses.lost();
        if report.format != Format::Text || stacks.is_some() {
            losses.warnings().iter().for_each(|line| session::complain("vcpulag", line));
        }
        if !more {
            break;
        }
        if let Some(sentence) = wanted.filter.ended() {
            session::complain("vcpulag", &sentence);
            break;
        }
    }
    if let Some(heat) = &heat {
        heat.end(&mut out)?;
        out.flush()?;
    }
    Ok(args.output.exit_code(lost))
}

/// Gives VMs their names, as victims and as culprits.
fn named(mut rows: Vec<Row>, names: &mut Names) -> Vec<NamedRow> {
    let mut vms: HashMap<i32, String> = HashMap::new();
    for row in &mut rows {
        row.name = names.name(row.vm.pid, row.vm.start_boottime_ns, &row.name).to_owned();
        vms.insert(row.vm.pid, row.name.clone());
    }
    let mut vm_name = |pid, comm: &str| match vms.get(&pid) {
        Some(name) => name.clone(),
        None => names.name(pid, 0, comm).to_owned(),
    };
    let named = rows.into_iter().map(|row| {
        let culprits = row.culprits.iter().map(|(who, _)| culprit_name(who, &mut vm_name));
        let culprits = culprits.collect();
        NamedRow { row, culprits }
    });
    named.collect()
}

fn tell_long_waits(
    args: &Args,
    out: &mut dyn std::io::Write,
    tracer: &mut Tracer<'_>,
    ticker: &mut Ticker,
    stop: &Stop,
    names: &mut Names,
) -> Result<()> {
    let format = Format::from(&args.output);
    slow::begin(out, format)?;
    out.flush()?;
    let mut looked = Instant::now();
    ticker.wait_working(stop, SLOW_PERIOD, || {
        for wait in tracer.long_waits()? {
            let vm = wait.thread.vm;
            let name = names.name(vm.pid, vm.start_boottime_ns, &wait.comm).to_owned();
            let culprit = wait.culprit.as_ref().map(|culprit| {
                culprit_name(culprit, |pid, comm| names.name(pid, 0, comm).to_owned())
            });
            slow::write(out, format, &wait, &name, culprit.as_deref())?;
        }
        if looked.elapsed() >= SETTLE_PERIOD {
            looked = Instant::now();
            tracer.forget_ended()?;
        }
        Ok(out.flush()?)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn page_and_completions_are_of_these_options() {
        docs::check(Args::command(), "vcpulag", "vcpulag");
    }
}
