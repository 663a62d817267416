//! What an exit costs: measured in many short rounds, in which everybody has a turn, so that whatever else the machine
//! does meets all alike.

use std::process::id;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use crate::columns::{self, medians};
use crate::fdinfo::{Holdings, ns_per};
use crate::floor::Floor;
use crate::perf::Recording;
use crate::pingpong;
use crate::samples::Samples;
use crate::schedstat::on_cpu_ns;
use crate::stats::Stats;
use crate::storm;
use crate::tool::Tool;

/// A kind of exits.
pub struct Kind {
    /// As a heading.
    pub title: &'static str,
    /// As loadgen calls it.
    pub reason: &'static str,
    /// How perf records it.
    pub perf: &'static [&'static str],
    /// How many events that are for each exit.
    pub perf_events: u64,
    /// Where kvmexits has programs.
    pub floor: &'static [&'static str],
}

/// How often, and how much in each round.
pub struct Rounds {
    /// Of BPF run time.
    pub bpf_time: u32,
    /// Of CPU time.
    pub slowdown: u32,
    /// In each of them.
    pub exits: u64,
    /// Of context switches.
    pub switches: u32,
    /// In each of them, with two switches each.
    pub round_trips: u32,
    /// Whether storms that could lose some are to last.
    pub lasting: bool,
}

/// Who is compared.
pub struct Peers<'obj> {
    /// The empty programs.
    pub floor: Floor<'obj>,
    /// kvmexits, in several ways.
    pub ours: [(&'static str, Tool); 3],
    /// The program itself.
    pub program: &'static str,
    /// What the clock counts.
    pub unit: &'static str,
    /// How long to measure.
    pub rounds: Rounds,
}

/// Everybody's place in a row.
const FLOOR: usize = 0;
const OURS: usize = 1;
const PERF: usize = 4;
const COLUMNS: usize = 5;

const START_ROUNDS: u32 = 21;
/// What a tool still has to do when a storm is over, it has done by then.
const SETTLED: Duration = Duration::from_millis(300);

impl Peers<'_> {
    fn head(&self, title: &str) {
        let [(a, _), (b, _), (c, _)] = &self.ours;
        columns::print_head(title, &["floor", a, b, c, "perf"]);
    }

    fn ours(&self) -> impl Iterator<Item = (usize, &Tool)> {
        self.ours.iter().enumerate().map(|(i, (_, tool))| (OURS + i, tool))
    }

    /// Prints what exits of a kind cost.
    pub fn exits(&self, kind: &Kind) -> Result<()> {
        self.head(kind.title);
        let bpf = self.bpf_time(kind)?;
        let unit = self.unit;
        let figures = medians(&bpf);
        columns::print(&format!("BPF per exit, {unit}"), &figures);
        let ratio = |to: usize, figures: &[Option<f64>]| -> Vec<_> {
            figures.iter().map(|figure| Some((*figure)? / figures[to]?)).collect()
        };
        columns::print("  times the floor", &ratio(FLOOR, &figures));
        let Slowdown { alone, added, own } = self.slowdown(kind)?;
        let alone = alone.median();
        let added_medians = medians(&added);
        columns::print(&format!("added to an exit, {unit}"), &added_medians);
        columns::print("  of perf's", &ratio(PERF, &added_medians));
        let percent = |figure: &Option<f64>| figure.map(|figure| 100.0 * figure / alone);
        let percent: Vec<_> = added_medians.iter().map(percent).collect();
        columns::print(&format!("  % of its {alone:.0} {unit}"), &percent);
        columns::print(&format!("in the tool itself, {unit}"), &medians(&own));
        let noise = |samples: &Samples| {
            let [even, odd] = samples.halves();
            Some((even - odd).abs())
        };
        let noise: Vec<_> = added.iter().map(noise).collect();
        columns::print("  noise: odd and even rounds apart", &noise);
        Ok(())
    }

    /// In all BPF programs of each, for every exit.
    fn bpf_time(&self, kind: &Kind) -> Result<[Samples; COLUMNS]> {
        let _on = Stats::on()?;
        let mut all: [Samples; COLUMNS] = Default::default();
        let storm = || Ok(storm::rage(self.program, 1, kind.reason, self.rounds.exits)?.exits);
        for _ in 0..self.rounds.bpf_time {
            {
                let _links = self.floor.attach(kind.floor)?;
                all[FLOOR].push(ns_per(|| Holdings::of(id()), storm)?);
            }
            for (column, tool) in self.ours() {
                let running = tool.start()?;
                all[column].push(ns_per(|| running.holdings(), storm)?);
            }
        }
        Ok(all)
    }

    /// What a guest's exit takes longer, in CPU time: that other processes want a CPU, too, is not in it.
    fn slowdown(&self, kind: &Kind) -> Result<Slowdown> {
        let mut all = Slowdown::default();
        let storm = || storm::rage(self.program, 1, kind.reason, self.rounds.exits);
        for _ in 0..self.rounds.slowdown {
            let alone = storm()?.ns_per_exit();
            all.alone.push(alone);
            {
                let _links = self.floor.attach(kind.floor)?;
                all.added[FLOOR].push(storm()?.ns_per_exit() - alone);
            }
            for (column, tool) in self.ours() {
                let running = tool.start()?;
                let (storm, own) = with_own(running.pid(), storm)?;
                all.added[column].push(storm.ns_per_exit() - alone);
                all.own[column].push(own);
            }
            let recording = Recording::start(kind.perf)?;
            let (storm, own) = with_own(recording.pid(), storm)?;
            all.added[PERF].push(storm.ns_per_exit() - alone);
            all.own[PERF].push(own);
            recording.end(kind.perf_events * storm.exits)?;
        }
        Ok(all)
    }

    /// Prints what a context switch costs that has nothing to do with a guest.
    pub fn switches(&self) -> Result<()> {
        let _on = Stats::on()?;
        let mut all: [Samples; COLUMNS] = Default::default();
        let switches = || Ok(pingpong::play(self.rounds.round_trips)?.switches);
        for _ in 0..self.rounds.switches {
            {
                let _links = self.floor.attach(&[pingpong::TRACEPOINT])?;
                all[FLOOR].push(ns_per(|| Holdings::of(id()), switches)?);
            }
            for (column, tool) in self.ours() {
                let running = tool.start()?;
                all[column].push(ns_per(|| running.holdings(), switches)?);
            }
        }
        self.head("context switches of other threads");
        columns::print(&format!("BPF per switch, {}", self.unit), &medians(&all));
        Ok(())
    }

    /// Prints how long it takes until all programs are attached, and what that needs of memory.
    pub fn start_and_memory(&self) -> Result<()> {
        let mut all: [[Samples; COLUMNS]; 4] = Default::default();
        for _ in 0..START_ROUNDS {
            for (column, tool) in self.ours() {
                let running = tool.start()?;
                let (now, highest) = running.resident_kib()?;
                let kernel_kib = running.holdings()?.kernel_bytes as f64 / 1024.0;
                let start_ms = 1e3 * running.attached_after.as_secs_f64();
                for (samples, figure) in all.iter_mut().zip([start_ms, now, highest, kernel_kib]) {
                    samples[column].push(figure);
                }
            }
        }
        self.head("start and memory");
        let whats = [
            "exec to attached, ms",
            "resident (VmRSS), KiB",
            "at most (VmHWM), KiB",
            "  BPF in the kernel, KiB",
        ];
        for (what, samples) in whats.into_iter().zip(&all) {
            columns::print(what, &medians(samples));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Slowdown {
    /// An exit's time with nothing attached.
    alone: Samples,
    /// How much longer it takes with each.
    added: [Samples; COLUMNS],
    /// What the tool's own process takes for it.
    own: [Samples; COLUMNS],
}

/// A storm, and what a process has done meanwhile for each of its exits.
fn with_own(pid: u32, storm: impl Fn() -> Result<storm::Storm>) -> Result<(storm::Storm, f64)> {
    let before = on_cpu_ns(pid)?;
    let storm = storm()?;
    sleep(SETTLED);
    Ok((storm, (on_cpu_ns(pid)? - before) / storm.exits as f64))
}
