//! ksmstat: what does page merging save, what does it cost, and why does it not merge?

mod ksmd;
mod metrics;
mod pages;
mod processes;
mod report;
mod rows;
mod stacks;
mod sysfs;
mod trace;
mod why;

#[cfg(test)]
#[path = "../../tests/util/docs.rs"]
mod docs;

use std::io::{BufWriter, Write as _, stdout};
use std::mem::MaybeUninit;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use common::args::{FILTERS, OUTPUT, OutputArgs, TaskFilter, TaskFilterArgs, parse_id};
use common::hist::{FIRST_EPOCH, Unit};
use common::host;
use common::output::openmetrics::OpenMetrics;
use common::output::{self, HdrLog, HdrSerializer, Interval};
use common::perf;
use common::session::{self, Stop, Ticker, host_cannot};
use common::vms::Names;
use jiff::Timestamp;

use metrics::Metrics;
use processes::{ProcessRow, Processes, Sort};
use report::{Report, Rows};
use rows::{Intervals, KINDS, Row};
use stacks::Stacks;
use sysfs::State;
use trace::{Tracer, Wanted};

/// What does page merging save, what does it cost, and why does it not merge?
///
/// Shows what KSM (kernel samepage merging) saves and does: pages merged, scanned and written to again, and the
/// time of its thread, ksmd. It only looks: no setting is changed.
#[derive(Parser, Debug)]
#[command(name = "ksmstat", version, allow_negative_numbers = true, args_override_self = true,
          max_term_width = 100, after_long_help = EXAMPLES)]
struct Args {
    #[command(flatten)]
    output: OutputArgs<CsvRows>,

    /// Print KSM's counters and settings once, with their meaning
    #[arg(short = 'S', long, exclusive = true)]
    state: bool,

    /// Why is nothing merged, or not more? Looks on for a second, or as long as -d says
    ///
    /// In sentences, each with the figure that shows it: see the manual's DIAGNOSIS.
    #[arg(long, conflicts_with_all = ["interval", "timestamp", "csv", "hdr", "strict", "by", "sort", "top", "cow",
                                      "histogram", "stacks", "openmetrics"])]
    why: bool,

    /// A row for each process with mergeable memory, or for each VM
    ///
    /// Processes that run no VM are one row with --by vm.
    #[arg(long, value_name = "WHAT", conflicts_with = "hdr")]
    by: Option<Breakdown>,

    /// Only this process
    ///
    /// Without --by, that means --by process.
    #[arg(short = 'p', long, value_parser = parse_id, conflicts_with = "hdr", help_heading = FILTERS)]
    pid: Option<i32>,

    /// Only this VM
    ///
    /// The name is the one that is printed for it: what its VMM was told (QEMU's -name, Firecracker's --id), or that of
    /// its libvirt scope, or else the name of the process. Where several VMs have it, name one by PID.
    #[arg(long, value_name = "NAME|PID", conflicts_with = "hdr", help_heading = FILTERS)]
    vm: Option<String>,

    /// What comes first
    #[arg(long, value_name = "ORDER", default_value = "merging", help_heading = OUTPUT)]
    sort: Sort,

    /// Show so many rows
    ///
    /// CSV and JSON have all.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..),
          help_heading = OUTPUT)]
    top: u32,

    /// COW breaks (writes to merged pages) by process, and how long they take: a probe in all write faults
    ///
    /// Others pay for it: see the manual's OVERHEAD.
    #[arg(long)]
    cow: bool,

    /// Pictures of how long batches, full scans and COW breaks (--cow) take
    #[arg(long, conflicts_with_all = ["by", "pid", "vm"], help_heading = OUTPUT)]
    histogram: bool,

    /// Pictures in milliseconds instead of microseconds
    #[arg(short = 'm', long, requires = "histogram", help_heading = OUTPUT)]
    milliseconds: bool,

    /// Where merged pages are written to from, folded, and how often: the most frequent, and no table
    ///
    /// The 10 most frequent stacks, or as many as TOP says, folded as for flame graphs.
    #[arg(long, value_name = "TOP", num_args = 0..=1, require_equals = true, default_missing_value = "10",
          value_parser = clap::value_parser!(u32).range(1..),
          conflicts_with_all = ["by", "histogram", "csv", "json", "hdr", "openmetrics"])]
    stacks: Option<u32>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Breakdown {
    /// Process with mergeable memory
    Process,
    /// VM, by its name
    Vm,
}

const EXAMPLES: &str = "\
Examples:
  ksmstat 1                 the host, line by line
  ksmstat -S                what is set, what is merged, what it all means
  ksmstat --why --vm web    why is nothing of this guest merged?
  ksmstat --by vm --sort cost -d 10
                            which guests cost more than they save?
  ksmstat --histogram -d 60
                            how long does ksmd hold a CPU at a time?
  ksmstat --stacks -d 10 | flamegraph.pl > cow.svg
                            who writes to merged pages, and from where?";

/// Which rows CSV output has.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CsvRows {
    /// Of the host, or of what --by says
    Summary,
    /// Of the host's histograms: one per non-empty bucket
    Buckets,
    /// Of processes, as with --by process
    Processes,
}

/// How rows are written.
pub type Format = output::Format<CsvRows>;

impl Args {
    /// The process that is asked about, found to exist.
    fn filter(&self) -> Result<TaskFilter> {
        let vm = self.vm.clone();
        TaskFilterArgs { pid: self.pid, tid: None, cgroup: None, vm }.resolve()
    }

    /// Somebody who names a process asks about processes.
    fn rows(&self) -> Result<Rows> {
        let named = self.pid.is_some() || self.vm.is_some();
        let rows = match (self.by, self.output.csv) {
            (Some(Breakdown::Vm), Some(CsvRows::Processes)) => {
                return Err(session::usage("--csv=processes cannot be used with --by vm"));
            }
            (Some(Breakdown::Vm), _) => Rows::Vms,
            (Some(Breakdown::Process), _) | (None, Some(CsvRows::Processes)) => Rows::Processes,
            (None, _) if named => Rows::Processes,
            (None, _) => Rows::Host,
        };
        if rows != Rows::Host && self.output.csv == Some(CsvRows::Buckets) {
            return Err(session::usage("--csv=buckets is of the host: not for processes or VMs"));
        }
        Ok(rows)
    }
}

fn main() -> ExitCode {
    session::main(run)
}

fn run(args: Args) -> Result<ExitCode> {
    if args.why {
        let mut out = BufWriter::new(stdout().lock());
        host::show_libbpf_messages(args.output.verbose);
        why::run(&mut out, &args.filter()?, args.output.duration, args.output.json)?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let state = State::read();
    if args.state {
        let mut out = BufWriter::new(stdout().lock());
        report::state(&mut out, &state?)?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let (filter, rows) = (args.filter()?, args.rows()?);
    let state = state?;
    host::check_bpf()?;
    perf::check()?;
    let mut hdr_file = args.output.hdr_file()?;
    let metrics_target = args.output.metrics_target()?;
    host::show_libbpf_messages(args.output.verbose);
    let stop = Stop::install()?;

    let wanted = Wanted {
        processes: rows != Rows::Host,
        cow: args.cow || args.stacks.is_some(),
        stacks: args.stacks.is_some(),
    };
    let mut object = MaybeUninit::uninit();
    let mut tracer = Tracer::start(wanted, &mut object)?;
    let known = tracer.what_is_known().clone();
    if let (Some(reason), true) = (&known.cow_refused, wanted.stacks) {
        return Err(host_cannot(format!(
            "COW breaks are not seen: the kernel refuses a probe ({reason})"
        )));
    }
    let page_bytes = page_bytes();
    let mut intervals = Intervals::new(known.clone(), page_bytes, tracer.reading(FIRST_EPOCH)?);
    let mut processes = Processes::new(known.clone(), page_bytes);
    processes.rows(tracer.samples()?, tracer.events()?);
    let mut ticker = Ticker::new(args.output.interval, args.output.count, args.output.duration);
    let mut names = Names::default();

    let mut report = Report::new(Format::from(&args.output), rows, args.top as usize);
    let unit = if args.milliseconds { Unit::Millis } else { Unit::Micros };
    report.pictures = args.histogram.then_some(unit);
    report.timestamp = args.output.timestamp;
    let mut hdr_serializer = HdrSerializer::new();
    let mut hdr = match &mut hdr_file {
        Some(file) => Some(HdrLog::begin(file, &mut hdr_serializer, Timestamp::now(), "ksmstat")?),
        None => None,
    };
    let metrics = Metrics::new(&known, rows, args.output.max_series);
    let mut openmetrics =
        metrics_target.map(|to| OpenMetrics::begin(to, "ksmstat", metrics)).transpose()?;
    let mut out = args.output.report_output();
    // Folded stacks are for programs that know no other lines.
    let mut stacks = args.stacks.map(|top| Stacks::new(top as usize));
    match stacks {
        Some(_) => {
            session::complain("ksmstat", report::BANNER);
            let nameless = host::nameless_stacks(true, true);
            nameless.iter().for_each(|line| session::complain("ksmstat", line));
        }
        None => report.begin(&mut out, &known, &state)?,
    }
    out.flush()?;

    let mut lost = 0;
    loop {
        let more = ticker.wait(&stop);
        // Before it is read what there is: the last row is about all of it.
        let ended = filter.ended();
        let (interval, reading) = tracer.read()?;
        let row = intervals.row(reading);
        if let Some(hdr) = &mut hdr {
            append(hdr, &interval, &row)?;
        }
        let mut found = Vec::new();
        match (&mut stacks, rows) {
            (Some(stacks), _) => {
                let mut places = tracer.places()?;
                places.retain(|place| wants(&filter, place.process.pid));
                stacks.write(&mut out, &places)?;
            }
            (None, Rows::Host) => report.host(&mut out, &interval, &row)?,
            (None, _) => {
                // In this order: who has events and is not there then has gone.
                let events = tracer.events()?;
                let (all, gone) = processes.rows(tracer.samples()?, events);
                found = named(all, &filter, &mut names);
                if rows == Rows::Vms {
                    found = processes::by_vm(&found);
                }
                args.sort.sort(&mut found);
                report.processes(&mut out, &interval, &found, &row.losses)?;
                names.end_interval();
                tracer.forget(&gone)?;
            }
        }
        out.flush()?;
        if let Some(openmetrics) = &mut openmetrics {
            openmetrics.interval(&interval, |metrics| {
                metrics.add(&row);
                metrics.add_owners(&interval, &found);
            })?;
        }
        lost += row.losses.lost();
        if report.format != Format::Text || stacks.is_some() {
            row.losses.warnings().iter().for_each(|line| session::complain("ksmstat", line));
        }
        if !more {
            break;
        }
        if let Some(sentence) = ended {
            session::complain("ksmstat", &sentence);
            break;
        }
    }
    Ok(args.output.exit_code(lost))
}

/// The processes that are asked for, with the names of the VMs they run.
fn named(rows: Vec<ProcessRow>, filter: &TaskFilter, names: &mut Names) -> Vec<ProcessRow> {
    let mut rows = rows;
    rows.retain(|row| row.process.is_some_and(|process| wants(filter, process.pid)));
    for row in &mut rows {
        if let Some(process) = row.process {
            let vm = names.vm(process.pid, process.start_boottime_ns, &row.comm);
            row.vm = vm.map(str::to_owned);
        }
    }
    rows
}

fn wants(filter: &TaskFilter, pid: i32) -> bool {
    let vm = filter.vm.as_ref().map(|vm| vm.pid);
    filter.pid.or(vm).is_none_or(|wanted| wanted == pid)
}

fn append(hdr: &mut HdrLog<'_>, interval: &Interval, row: &Row) -> Result<()> {
    for (kind, hist) in KINDS.into_iter().zip(&row.hists) {
        if hist.count() > 0 {
            hdr.append(interval, Some(kind.name()), hist)?;
        }
    }
    Ok(())
}

/// The size of a page.
fn page_bytes() -> u64 {
    // SAFETY: sysconf only returns a number.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4_096)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn page_and_completions_are_of_these_options() {
        docs::check(Args::command(), "ksmstat", "ksmstat");
    }
}
