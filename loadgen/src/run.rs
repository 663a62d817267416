//! `loadgen run`: creates guests, lets them run, and writes down what they did.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use common::args::parse_seconds;
use common::session::complain;
use indicatif::{ProgressBar, ProgressStyle};
use loadgen::{
    ByKind, ChurnRate, Expected, Fleet, MemoryTruth, Rewrite, Spec, Truth, TruthFile, Workload,
};
use serde::Serialize;

use crate::boots::Boots;
use crate::churn::{self, ChurnSummary};
use crate::guests::GuestArgs;
use crate::signals::{HeldBack, Usr1};
use crate::stdout::print;

/// How often to look whether guests are still there and anybody is still reading.
const LOOK: Duration = Duration::from_millis(200);

/// Runs guests for a time, or until SIGINT, SIGTERM or SIGHUP
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of guests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    vms: u32,
    #[command(flatten)]
    guests: GuestArgs,
    /// Stop so many guests a second, one after the other, and start another one for each
    ///
    /// From 0.001 to 10,000. See the manual's CHURN.
    #[arg(long, value_name = "N/s")]
    churn: Option<ChurnRate>,
    /// Stop after this many seconds
    ///
    /// Fractions are allowed. Without it guests run until a signal comes, or until they are done.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    duration: Option<Duration>,
    /// Write what each vCPU did to this file, as JSON lines
    ///
    /// At the end. The file is replaced as a whole or not at all.
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// Print nothing but a summary at the end, as one JSON object
    #[arg(long)]
    json: bool,
}

/// What all guests did together.
#[derive(Default, Serialize)]
struct Summary {
    vms: u32,
    vcpus: u32,
    workload: String,
    create_s: f64,
    create_per_s: f64,
    /// How far apart guests had a CPU for the first time; none if one has had none.
    start_s: Option<f64>,
    run_s: f64,
    stop_s: f64,
    #[serde(flatten)]
    counted: Option<Counted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linux: Option<Boots>,
    steal_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemorySummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    churn: Option<ChurnSummary>,
    killed: u32,
    failed: usize,
    /// Whether the text has the exits: with ticks they would only say the same again.
    #[serde(skip)]
    shows_exits: bool,
}

/// The sums of what guests count.
#[derive(Default, Serialize)]
struct Counted {
    iterations: u64,
    ticks: u64,
    ticks_missed: u64,
    latest_tick_ns: u64,
    exits: BTreeMap<&'static str, u64>,
}

/// The memory of all guests together.
#[derive(Serialize)]
struct MemorySummary {
    workload: String,
    pages: ByKind,
    could_merge: u64,
    rewrites: ByKind,
    expected: Option<Expected>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let spec = args.guests.spec(args.vms)?;
    let mut truth = args.truth.as_deref().map(TruthFile::check).transpose()?;
    let usr1 = match spec.memory.and_then(|memory| memory.rewrite) {
        Some(Rewrite::PerSignal(_)) => Some(Usr1::block()?),
        Some(Rewrite::PerSecond(_)) | None => None,
    };
    let held_back = HeldBack::new()?;
    let mut fleet = create(&spec, &held_back)?;
    if let Some(warning) = fleet.warning() {
        complain("loadgen", &format!("warning: {warning}"));
    }

    let mut summary = Summary::new(spec.workload);
    let start = Instant::now();
    fleet.start();
    if let Some(rate) = args.churn {
        fleet.begin_churn(rate);
    }
    let mut ran = match args.json {
        true => Ok(()),
        false => print(&started(&fleet)),
    };
    if ran.is_ok() {
        let end = args.duration.map(|duration| start + duration);
        let rewrites = usr1.map(|usr1| Rewrites { usr1, under_way: false, silent: args.json });
        ran = wait(&mut fleet, &held_back, end, rewrites, !args.json, |left| {
            summary.add(&left);
            truth.as_mut().map_or(Ok(()), |file| file.add(&left))
        });
    }
    summary.run_s = start.elapsed().as_secs_f64();
    summary.churn = fleet.end_churn().map(ChurnSummary::from);
    let stopped = fleet.stop();
    (summary.stop_s, summary.killed) = (stopped.duration.as_secs_f64(), stopped.killed);
    let failures = fleet.failures().to_vec();
    summary.failed = failures.len();
    summary.finish(&fleet);
    // Whatever else goes wrong: the truth is written, and nothing is left behind.
    let written = truth.map_or(Ok(()), |file| file.write(fleet.truth()));
    // Whoever asks for the end twice has it already.
    while held_back.take() {}
    let finished = fleet.finish();
    let printed = print(&match args.json {
        true => serde_json::to_string(&summary).context("failed to write the summary")?,
        false => summary.to_string(),
    });
    summary.churn.as_ref().inspect(|churn| churn.complain());
    written.and(finished)?;
    match failures.as_slice() {
        [] => {}
        [one] => return Err(anyhow!("guest failed: {one}")),
        [first, others @ ..] => {
            return Err(anyhow!("guest failed: {first} (and {} more)", others.len()));
        }
    }
    ran.and(printed).map(|()| ExitCode::SUCCESS)
}

/// So many guests further the progress bar moves.
const SHOWN: u32 = 64;

/// Creates the fleet, with a progress bar on a terminal; a signal ends the creation early.
fn create(spec: &Spec, held_back: &HeldBack) -> Result<Fleet> {
    // Draws on standard error, and only if that is a terminal. No ticker: that would be a thread.
    let bar = ProgressBar::new(spec.vms.into());
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} guests ({per_sec})") {
        bar.set_style(style);
    }
    let fleet = Fleet::create(spec, |created| {
        // What is written here while guests are forked, each of them has a copy of.
        if created.is_multiple_of(SHOWN) || created == spec.vms {
            bar.set_position(created.into());
        }
        match held_back.pending() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    bar.finish_and_clear();
    fleet
}

/// What SIGUSR1 makes guests do.
struct Rewrites {
    usr1: Usr1,
    under_way: bool,
    /// Whether nothing is said of it.
    silent: bool,
}

impl Rewrites {
    /// Looks whether it has come, and says so when all guests have done what it asked for.
    fn look(&mut self, fleet: &Fleet) -> Result<()> {
        if self.usr1.came() {
            fleet.rewrite();
            self.under_way = true;
        }
        if !self.under_way || fleet.is_rewriting() {
            return Ok(());
        }
        self.under_way = false;
        if self.silent {
            return Ok(());
        }
        let mut rewrites = ByKind::default();
        fleet.memory().for_each(|memory| rewrites += memory.rewrites);
        print(&format!("rewritten up to now: {rewrites} pages"))
    }
}

/// Waits for the end of the run: its time is over, a signal came, a guest failed, or nobody reads any more. `left` as for
/// [`Fleet::churn`].
fn wait(
    fleet: &mut Fleet,
    held_back: &HeldBack,
    end: Option<Instant>,
    mut rewrites: Option<Rewrites>,
    tells_boots: bool,
    mut left: impl FnMut(Truth) -> Result<()>,
) -> Result<()> {
    let mut tells_boots = tells_boots && fleet.boots_ns().is_some();
    loop {
        let look = Instant::now() + LOOK;
        let until = end.map_or(look, |end| look.min(end));
        let over = churn::pass_time(until, fleet, held_back, &mut left)?
            || end.is_some_and(|end| Instant::now() >= end);
        if over || !fleet.failures().is_empty() || fleet.is_over() || stdout_is_closed() {
            return Ok(());
        }
        rewrites.as_mut().map_or(Ok(()), |rewrites| rewrites.look(fleet))?;
        if tells_boots && let Some(boots) = Boots::of(fleet).filter(Boots::are_over) {
            print(&boots.to_string())?;
            tells_boots = false;
        }
    }
}

/// True if standard output is a pipe that nobody can read from any more.
fn stdout_is_closed() -> bool {
    let mut stdout = libc::pollfd { fd: libc::STDOUT_FILENO, events: 0, revents: 0 };
    // SAFETY: `stdout` is one valid entry, and the timeout is 0.
    let ready = unsafe { libc::poll(&raw mut stdout, 1, 0) };
    ready > 0 && stdout.revents & libc::POLLERR != 0
}

/// The line that says that guests are running.
fn started(fleet: &Fleet) -> String {
    let seconds = fleet.creation().as_secs_f64();
    format!(
        "{} ({}) running: created in {seconds:.3} s ({:.0}/s)",
        count(fleet.vms().into(), "guest"),
        count(fleet.vcpus().into(), "vCPU"),
        per_second(fleet.vms(), seconds)
    )
}

impl Summary {
    fn new(workload: Workload) -> Self {
        Self {
            workload: workload.to_string(),
            shows_exits: matches!(workload, Workload::Exits(_)),
            counted: (workload != Workload::Linux).then(Counted::default),
            linux: (workload == Workload::Linux).then(Boots::default),
            ..Self::default()
        }
    }

    /// Adds what a vCPU did.
    fn add(&mut self, truth: &Truth) {
        if let (Some(counted), Some(of_vcpu)) = (&mut self.counted, &truth.counted) {
            counted.add(of_vcpu);
        }
        if let (Some(boots), Some(boot_ns)) = (&mut self.linux, truth.boot_ns) {
            boots.add(boot_ns);
        }
        if let Some(steal_ns) = truth.steal_ns {
            *self.steal_ns.get_or_insert(0) += steal_ns;
        }
        if let Some(memory) = truth.memory.as_ref().filter(|_| truth.vcpu == 0) {
            self.memory.get_or_insert_with(|| MemorySummary::new(memory)).add(memory);
        }
    }

    /// Adds what those did that were there to the end.
    fn finish(&mut self, fleet: &Fleet) {
        self.vms = fleet.vms();
        self.vcpus = fleet.vcpus();
        self.create_s = fleet.creation().as_secs_f64();
        self.create_per_s = per_second(self.vms, self.create_s);
        self.start_s = fleet.started_within(0).map(|within| within.as_secs_f64());
        fleet.truth().for_each(|truth| self.add(&truth));
    }
}

impl Counted {
    fn add(&mut self, of_vcpu: &loadgen::Counted) {
        self.iterations += of_vcpu.iterations;
        self.ticks += of_vcpu.ticks;
        self.ticks_missed += of_vcpu.ticks_missed;
        self.latest_tick_ns = self.latest_tick_ns.max(of_vcpu.latest_tick_ns);
        for (kind, count) in &of_vcpu.exits {
            *self.exits.entry(kind).or_insert(0) += count;
        }
    }
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&count(self.iterations, "iteration"))?;
        if self.ticks > 0 {
            write!(
                f,
                ", {} ({} missed, latest {:.3} ms)",
                count(self.ticks, "tick"),
                self.ticks_missed,
                self.latest_tick_ns as f64 / 1e6
            )?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ran {:.3} s: ", self.run_s)?;
        if let Some(boots) = &self.linux {
            write!(f, "{boots}")?;
        }
        if let Some(counted) = &self.counted {
            write!(f, "{counted}")?;
            let caused = counted.exits.iter().filter(|(_, count)| **count > 0);
            let caused: Vec<_> = caused.map(|(kind, count)| format!("{count} {kind}")).collect();
            if self.shows_exits && !caused.is_empty() {
                write!(f, ", exits: {}", caused.join(" "))?;
            }
            match self.steal_ns {
                Some(steal_ns) => write!(f, ", {:.3} s stolen", steal_ns as f64 / 1e9)?,
                None => f.write_str(", steal time not known to KVM")?,
            }
        }
        write!(f, "; gone in {:.3} s", self.stop_s)?;
        if self.killed > 0 {
            write!(f, " ({} did not leave and were killed)", self.killed)?;
        }
        self.memory.as_ref().map_or(Ok(()), |memory| write!(f, "\n{memory}"))?;
        self.churn.as_ref().map_or(Ok(()), |churn| write!(f, "\n{churn}"))
    }
}

impl MemorySummary {
    fn new(memory: &MemoryTruth) -> Self {
        Self {
            workload: memory.workload.to_string(),
            pages: ByKind::default(),
            could_merge: 0,
            rewrites: ByKind::default(),
            expected: memory.expected,
        }
    }

    fn add(&mut self, memory: &MemoryTruth) {
        self.pages += memory.pages;
        self.could_merge += memory.could_merge;
        self.rewrites += memory.rewrites;
    }
}

impl std::fmt::Display for MemorySummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pages, could_merge, rewrites, .. } = self;
        write!(f, "pages: {pages}; {could_merge} could merge; rewritten: {rewrites}")
    }
}

fn per_second(number: u32, seconds: f64) -> f64 {
    f64::from(number) / seconds.max(1e-9)
}

/// `1 guest`, `2 guests`.
fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
