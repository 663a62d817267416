//! `loadgen ramp`: more and more guests, a row for each step, until a limit stops it.

mod facts;
mod row;
mod steps;
mod tools;

use std::fmt;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use common::args::parse_seconds;
use common::hist::Hist;
use common::output::{Interval, short_bytes, short_duration};
use common::session::{complain, host_cannot, usage};
use jiff::Timestamp;
use loadgen::{ChurnRate, Fleet, Pressure, Probe, Spec, parse_size};

use crate::churn::{self, ChurnSummary};
use crate::guests::GuestArgs;
use crate::signals::HeldBack;
use crate::stdout::{self, print};
use row::Row;
use steps::{Goal, Step};
use tools::Tools;

/// How often to look at the probe, the guests and the memory.
const LOOK: Duration = Duration::from_millis(100);
/// The same while guests are created, in guests.
const LOOK_GUESTS: u32 = 64;
/// What a guest is taken to need before some have been seen: more than it will; and what it needs at the least.
const GUEST_BYTES: u64 = 900 << 10;
const LEAST_GUEST_BYTES: u64 = 100 << 10;
/// The least that is left of the memory, if nobody says: a twentieth, or so much.
const RESERVE_BYTES: u64 = 1 << 30;

/// Starts more and more guests until a limit stops it; a row for each step
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Up to so many guests, or as many as there is memory for
    #[arg(long, value_name = "N|memory", default_value = "memory")]
    to: Goal,
    /// Each step adds so many guests, or makes them so many times as many, beginning with one
    ///
    /// The last step is as big as the target and the memory allow.
    #[arg(long, value_name = "N|xF", default_value = "x2")]
    step: Step,
    /// Seconds to watch each step
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    hold: Duration,
    /// Meanwhile stop so many guests a second, one after the other, and start another one for each
    ///
    /// Between holds none is told to leave. See the manual's CHURN.
    #[arg(long, value_name = "N/s")]
    churn: Option<ChurnRate>,
    /// Leave so much of the host's memory [default: a twentieth of what there is, or 1G if that is more]
    ///
    /// By MemAvailable, as it is at the beginning.
    #[arg(long, value_name = "SIZE", value_parser = reserve)]
    reserve: Option<u64>,
    /// Stop when a task of the host comes so late that one time in 100 it is more than so many milliseconds
    ///
    /// That is the 99th percentile of the probe's lateness in a step.
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    probe_late: u64,
    /// Keep everything in this directory, which is made: the rows, what the tools print, the host's facts
    ///
    /// It must not be there yet. The rows are in ramp.csv, the machine's facts and the command line in host.json, what
    /// each tool printed in runqlat.csv, runqlat-buckets.csv, vcpulag.csv, kvmexits.csv and ksmstat.csv. The
    /// notebook oblivion.ipynb draws it.
    #[arg(long, value_name = "DIR")]
    observe: Option<PathBuf>,
    /// Rows as CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Rows as JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    guests: GuestArgs,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Csv,
    Json,
}

/// Why a ramp went no further.
#[derive(Debug)]
enum Limit {
    Target(u32),
    /// Of the host's, but for memory.
    Host(String),
    Memory {
        available_bytes: u64,
        reserve_bytes: u64,
    },
    Probe {
        p99_ns: u64,
        most: Duration,
    },
    Creation(String),
    Guest(String),
    Signal,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |bytes: u64| short_bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
        match self {
            Self::Target(guests) => write!(f, "there are {guests} guests, as asked for"),
            Self::Memory { available_bytes, reserve_bytes } => write!(
                f,
                "memory: {} are available, and {} are to be left (--reserve)",
                bytes(*available_bytes),
                bytes(*reserve_bytes)
            ),
            Self::Probe { p99_ns, most } => write!(
                f,
                "a task of the host comes {} late, above {} ms (--probe-late)",
                short_duration(*p99_ns),
                most.as_millis()
            ),
            Self::Host(why) | Self::Creation(why) => write!(f, "{why}"),
            Self::Guest(why) => write!(f, "guest failed: {why}"),
            Self::Signal => write!(f, "a signal came"),
        }
    }
}

/// A ramp under way.
struct Ramp<'a> {
    args: &'a Args,
    fleet: Fleet,
    probe: Probe,
    tools: Tools,
    held_back: &'a HeldBack,
    target: u32,
    /// What allows no more than that, if it is the host.
    at_target: Option<String>,
    reserve_bytes: u64,
    /// Of each guest.
    filled_bytes: u64,
    /// What was available before there was a guest.
    before: Pressure,
    /// Where rows are kept, beside standard output.
    kept: Option<File>,
    rows: usize,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let before = Pressure::read();
    let available_bytes = before
        .available_bytes
        .ok_or_else(|| host_cannot("`/proc/meminfo` does not tell how much memory is available"))?;
    let reserve_bytes = args.reserve.unwrap_or((available_bytes / 20).max(RESERVE_BYTES));
    let (target, at_target) = match args.to {
        Goal::Guests(guests) => (guests, None),
        Goal::Memory => most_guests(&args.guests.spec(1)?, available_bytes, reserve_bytes),
    };
    let spec = args.guests.spec(target)?;
    if spec.workload.ends_by_itself() {
        return Err(usage(
            "guests of a ramp go on until they are told to leave: not exits=KIND:COUNT",
        ));
    }
    let kept = args.observe.as_deref().map(facts::keep).transpose()?;
    let held_back = HeldBack::new()?;
    let tools = Tools::find(args.observe.as_deref());
    // Before there is a guest, as a task that was there before.
    let probe = Probe::start()?;
    let fleet = Fleet::prepare(&spec)?;
    for warning in fleet.warning().into_iter().chain(missing(&tools)) {
        complain("loadgen", &format!("warning: {warning}"));
    }
    let mut ramp = Ramp {
        args,
        fleet,
        probe,
        tools,
        held_back: &held_back,
        target,
        at_target,
        reserve_bytes,
        filled_bytes: spec.filled_bytes(),
        before,
        kept,
        rows: 0,
    };
    let limit = ramp.climb();
    let stopped = ramp.fleet.stop();
    let (fleet, lateness) = (ramp.fleet, ramp.probe.lateness());
    // Whoever asks for the end twice has it already.
    while held_back.take() {}
    let guests = fleet.vms();
    fleet.finish()?;
    let limit = limit?;
    if ramp.args.format() == Format::Text {
        print(&format!(
            "stopped at {guests} guests: {limit}\ngone in {:.3} s (a task of the host came at most {} late)",
            stopped.duration.as_secs_f64(),
            short_duration(lateness.max_ns())
        ))?;
    }
    match limit {
        Limit::Guest(why) => Err(anyhow!("guest failed: {why}")),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// As many as there is memory for, if each needs no less than is known, and as the host's other limits allow; which
/// of these it is then.
fn most_guests(spec: &Spec, available_bytes: u64, reserve_bytes: u64) -> (u32, Option<String>) {
    let each = LEAST_GUEST_BYTES + spec.filled_bytes();
    let guests = available_bytes.saturating_sub(reserve_bytes) / each;
    let guests = u32::try_from(guests).unwrap_or(u32::MAX).max(1);
    match Fleet::most(spec) {
        Some((most, limit)) if most < guests => (most.max(1), Some(limit)),
        _ => (guests, None),
    }
}

fn missing(tools: &Tools) -> Option<String> {
    let missing = tools.missing();
    (!missing.is_empty())
        .then(|| format!("not found beside loadgen or in PATH: {}", missing.join(", ")))
}

impl Args {
    fn format(&self) -> Format {
        match (self.csv, self.json) {
            (true, _) => Format::Csv,
            (_, true) => Format::Json,
            _ => Format::Text,
        }
    }
}

impl Ramp<'_> {
    /// Step after step.
    fn climb(&mut self) -> Result<Limit> {
        if self.args.format() == Format::Text {
            print(Row::HEADER)?;
        }
        loop {
            let there = self.fleet.vms();
            if there >= self.target {
                return Ok(self.at_target.take().map_or(Limit::Target(there), Limit::Host));
            }
            let wanted = self.args.step.after(there).min(self.target);
            // The last step is as big as the memory allows.
            let wanted = wanted.min(there.saturating_add(self.room()));
            if wanted == there {
                return Ok(self.memory_limit());
            }
            let start = Instant::now();
            if let Err(e) = self.create(wanted) {
                return Ok(Limit::Creation(format!("{e:#}")));
            }
            let created_in = start.elapsed();
            self.fleet.start();
            let (row, limit) = self.watch(there, created_in)?;
            self.write(&row)?;
            if let Some(limit) = limit {
                return Ok(limit);
            }
            let most = Duration::from_millis(self.args.probe_late);
            if u128::from(row.probe_p99_ns) > most.as_nanos() {
                return Ok(Limit::Probe { p99_ns: row.probe_p99_ns, most });
            }
        }
    }

    fn create(&mut self, wanted: u32) -> Result<()> {
        let Self { fleet, probe, held_back, reserve_bytes, .. } = self;
        fleet.grow(wanted, |created| {
            if !created.is_multiple_of(LOOK_GUESTS) {
                return ControlFlow::Continue(());
            }
            probe.listen();
            match held_back.pending() || is_short_of(*reserve_bytes) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
    }

    /// How many more guests there is memory for, by what they have needed so far.
    fn room(&self) -> u32 {
        let now = Pressure::read();
        let each = match self.guest_bytes(&now) {
            // A few say little.
            Some(bytes) if self.fleet.vms() >= LOOK_GUESTS => {
                u64::try_from(bytes).unwrap_or(0).max(1)
            }
            _ => GUEST_BYTES + self.filled_bytes,
        };
        let free = now.available_bytes.unwrap_or(0).saturating_sub(self.reserve_bytes);
        u32::try_from(free / each).unwrap_or(u32::MAX)
    }

    /// What is gone of the memory, for each guest; less than nothing if the host has found more of it.
    fn guest_bytes(&self, now: &Pressure) -> Option<i64> {
        let (before, now) = (self.before.available_bytes?, now.available_bytes?);
        let gone = i64::try_from(before).ok()? - i64::try_from(now).ok()?;
        gone.checked_div(self.fleet.vms().into())
    }

    fn memory_limit(&self) -> Limit {
        Limit::Memory {
            available_bytes: Pressure::read().available_bytes.unwrap_or(0),
            reserve_bytes: self.reserve_bytes,
        }
    }

    /// Lets the guests run, and looks at the host meanwhile.
    fn watch(&mut self, before: u32, created_in: Duration) -> Result<(Row, Option<Limit>)> {
        let (started, from) = (Instant::now(), Pressure::read());
        // What it was while guests were created is no part of what they do.
        self.probe.lateness();
        let done: Vec<(u32, u64)> = self.fleet.iterations().collect();
        let creations = Hist::of(self.fleet.creations_ns().skip(before as usize));
        if let Some(rate) = self.args.churn {
            self.fleet.begin_churn(rate);
        }
        let running = self.tools.start(self.args.hold, self.held_back)?;
        let mut limit = None;
        while started.elapsed() < self.args.hold && limit.is_none() {
            let until = (Instant::now() + LOOK).min(started + self.args.hold);
            limit = match churn::pass_time(until, &mut self.fleet, self.held_back, |_| Ok(())) {
                Ok(true) => Some(Limit::Signal),
                Ok(false) => self.limit(),
                Err(e) => Some(Limit::Creation(format!("{e:#}"))),
            };
            self.probe.listen();
        }
        let churned = self.fleet.end_churn().map(ChurnSummary::from);
        let (now, length) = (Pressure::read(), started.elapsed());
        // Who has replaced another has begun anew.
        let has_moved = |((number, now), (before, done)): &((u32, u64), &(u32, u64))| {
            now > done || (number != before && *now > 0)
        };
        let moved = self.fleet.iterations().zip(&done).filter(has_moved).count();
        let moved = u32::try_from(moved).unwrap_or(u32::MAX);
        let lateness = self.probe.lateness();
        let probe = &mut self.probe;
        if limit.is_some() {
            running.interrupt();
        }
        let seen = running.finish(|| probe.listen())?;
        let per_s = |now: Option<u64>, then: Option<u64>| {
            Some((now? - then?) as f64 / length.as_secs_f64())
        };
        // Microseconds in a second, to per cent.
        let percent = |now, then| per_s(now, then).map(|us| (us / 1e4).min(100.0));
        let [p50, p99] = creations.quantiles_ns([0.5, 0.99]).unwrap_or_default();
        let row = Row {
            interval: Interval { end: Timestamp::now(), length },
            guests: self.fleet.vms(),
            vcpus: self.fleet.vcpus(),
            running: self.fleet.boots_ns().is_none().then_some(moved),
            created: self.fleet.vms() - before,
            create_s: created_in.as_secs_f64(),
            create_p50_ns: p50,
            create_p99_ns: p99,
            start_s: self.fleet.started_within(before).map(|within| within.as_secs_f64()),
            // The tools have not come yet.
            guest_bytes: self.guest_bytes(&from),
            available_bytes: now.available_bytes,
            cpu_some_percent: percent(now.cpu_some_us, from.cpu_some_us),
            memory_some_percent: percent(now.memory_some_us, from.memory_some_us),
            load: now.load,
            switches_per_s: per_s(now.switches, from.switches),
            probe_p50_ns: lateness.quantile_ns(0.5),
            probe_p99_ns: lateness.quantile_ns(0.99),
            probe_max_ns: lateness.max_ns(),
            seen,
            churn: churned,
        };
        Ok((row, limit))
    }

    fn limit(&mut self) -> Option<Limit> {
        if self.held_back.take() {
            return Some(Limit::Signal);
        }
        if let Some(failure) = self.fleet.failures().first() {
            return Some(Limit::Guest(failure.clone()));
        }
        is_short_of(self.reserve_bytes).then(|| self.memory_limit())
    }

    fn write(&mut self, row: &Row) -> Result<()> {
        let mut out = Vec::new();
        match self.args.format() {
            Format::Text => row.write_text(&mut out)?,
            Format::Csv => row.write_csv(&mut out, self.rows == 0)?,
            Format::Json => row.write_json(&mut out)?,
        }
        if let Some(kept) = &mut self.kept {
            row.write_csv(kept, self.rows == 0)?;
        }
        self.rows += 1;
        stdout::write(&out)
    }
}

fn is_short_of(reserve_bytes: u64) -> bool {
    Pressure::read().available_bytes.is_some_and(|bytes| bytes < reserve_bytes)
}

/// Less than all there is, which is found out later.
fn reserve(text: &str) -> Result<u64, String> {
    parse_size(text, 0, u64::MAX >> 1)
}
