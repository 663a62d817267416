//! ksmstat: what does page merging save, what does it cost, and why does it not merge?

mod report;
mod sysfs;

use std::io::{BufWriter, Write as _, stdout};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use common::args::{OutputArgs, TaskFilter, TaskFilterArgs, parse_id};
use common::session;

use sysfs::State;

/// What does page merging save, what does it cost, and why does it not merge?
///
/// Shows what KSM (kernel samepage merging) saves and does. It only looks: no setting is changed.
#[derive(Parser, Debug)]
#[command(name = "ksmstat", version, allow_negative_numbers = true, args_override_self = true)]
struct Args {
    #[command(flatten)]
    output: OutputArgs<CsvRows>,

    /// Print KSM's counters and settings once, with their meaning
    #[arg(short = 'S', long, conflicts_with_all = ["interval", "duration", "timestamp", "csv", "json", "hdr", "pid", "vm"])]
    state: bool,

    /// Only this process
    #[arg(short = 'p', long, value_parser = parse_id)]
    pid: Option<i32>,

    /// Only this VM
    #[arg(long, value_name = "NAME|PID")]
    vm: Option<String>,
}

/// Which rows CSV output has.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum CsvRows {
    /// Of the host, or of what --by says
    Summary,
    /// Of histograms: one per non-empty bucket
    Buckets,
    /// Of processes
    Processes,
}

impl Args {
    /// The process that is asked about, found to exist.
    fn filter(&self) -> Result<TaskFilter> {
        let vm = self.vm.clone();
        TaskFilterArgs { pid: self.pid, tid: None, cgroup: None, vm }.resolve()
    }
}

fn main() -> ExitCode {
    session::main(run)
}

fn run(args: Args) -> Result<ExitCode> {
    args.filter()?;
    let state = State::read()?;
    let mut out = BufWriter::new(stdout().lock());
    if args.state {
        report::state(&mut out, &state)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
