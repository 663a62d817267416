//! The measurements: each in many short rounds, in which everybody has a turn, so that whatever else the machine
//! does meets all alike.

use std::process::id;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use crate::fdinfo::{Holdings, ns_per};
use crate::floor::Floor;
use crate::pingpong;
use crate::samples::Samples;
use crate::stats::Stats;
use crate::table::Row;
use crate::tool::Tool;

/// Who is compared.
pub struct Peers<'obj> {
    /// The empty program.
    pub floor: Floor<'obj>,
    /// This repository's tool.
    pub ours: Tool,
    /// libbpf-tools'.
    pub theirs: Tool,
}

/// Of context switches.
pub const BPF_TIME_ROUNDS: u32 = 11;
const START_ROUNDS: u32 = 41;
const MEMORY_ROUNDS: u32 = 5;
const SLOWDOWN_ROUNDS: u32 = 41;
/// About 0.1 s.
const ROUND_TRIPS: u32 = 20_000;

/// What makes BPF programs run.
pub struct Load<'a> {
    /// What is counted, as a row's name.
    pub what: &'static str,
    /// Where the tool has programs that run.
    pub tracepoints: &'a [&'a str],
    /// How often each is measured.
    pub rounds: u32,
    /// How long a tool has run then: what it does for a switch may depend on what it has seen before.
    pub settled: Duration,
    /// Does it for a while, and returns how many there were.
    pub go: &'a dyn Fn() -> Result<u64>,
}

/// Context switches of two ordinary threads.
pub fn switches() -> Load<'static> {
    Load {
        what: "BPF time per switch, ns",
        tracepoints: &[pingpong::TRACEPOINT],
        rounds: BPF_TIME_ROUNDS,
        settled: Duration::ZERO,
        go: &|| Ok(pingpong::play(ROUND_TRIPS)?.switches),
    }
}

/// Nanoseconds in all BPF programs of each tool for every one of what the load makes.
pub fn bpf_time(
    peers: &Peers<'_>,
    load: &Load<'_>,
    limit: Option<f64>,
    variants: &[(&'static str, Tool)],
) -> Result<Vec<Row>> {
    let _on = Stats::on()?;
    let (mut floor, mut theirs) = (Samples::default(), Samples::default());
    let ours = [(load.what, &peers.ours)];
    let ours = ours.into_iter().chain(variants.iter().map(|(what, tool)| (*what, tool)));
    let mut ours: Vec<_> = ours.map(|(what, tool)| (what, tool, Samples::default())).collect();
    for _ in 0..load.rounds {
        {
            let _links = peers.floor.attach(load.tracepoints)?;
            floor.push(ns_per(|| Holdings::of(id()), load.go)?);
        }
        for (_, tool, samples) in &mut ours {
            let running = tool.start()?;
            sleep(load.settled);
            samples.push(ns_per(|| running.holdings(), load.go)?);
        }
        let running = peers.theirs.start()?;
        sleep(load.settled);
        theirs.push(ns_per(|| running.holdings(), load.go)?);
    }
    let rows = ours.into_iter().enumerate().map(|(i, (what, _, ours))| Row {
        what,
        floor: (i == 0).then(|| floor.clone()),
        ours,
        theirs: theirs.clone(),
        limit: limit.filter(|_| i == 0),
        floor_limit: None,
    });
    Ok(rows.collect())
}

/// Milliseconds from exec until all programs are attached.
pub fn start(peers: &Peers<'_>, limit: f64) -> Result<Row> {
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..START_ROUNDS {
        ours.push(1e3 * peers.ours.start()?.attached_after.as_secs_f64());
        theirs.push(1e3 * peers.theirs.start()?.attached_after.as_secs_f64());
    }
    Ok(Row {
        what: "exec to attached, ms",
        floor: None,
        ours,
        theirs,
        limit: Some(limit),
        floor_limit: None,
    })
}

/// Resident memory of the attached tools, now and at their highest, and what the kernel holds for them.
pub fn memory(peers: &Peers<'_>, limit: f64) -> Result<Vec<Row>> {
    let mut figures: [[Samples; 2]; 3] = Default::default();
    for _ in 0..MEMORY_ROUNDS {
        for (i, tool) in [&peers.ours, &peers.theirs].into_iter().enumerate() {
            let running = tool.start()?;
            // What follows the attachment, up to the first interval, belongs to it.
            pingpong::play(ROUND_TRIPS)?;
            let (now, highest) = running.resident_kib()?;
            let kernel = running.holdings()?.kernel_bytes as f64 / 1024.0;
            for (samples, kib) in figures.iter_mut().zip([now, highest, kernel]) {
                samples[i].push(kib);
            }
        }
    }
    let limits = [Some(limit), Some(limit), None];
    let whats = ["resident (VmRSS), KiB", "at most (VmHWM), KiB", "  BPF in the kernel, KiB"];
    let rows = figures.into_iter().zip(whats).zip(limits);
    Ok(rows
        .map(|(([ours, theirs], what), limit)| Row {
            what,
            floor: None,
            ours,
            theirs,
            limit,
            floor_limit: None,
        })
        .collect())
}

/// By how many percent a round trip takes longer than with nothing attached.
pub fn slowdown(peers: &Peers<'_>, limit: f64) -> Result<Row> {
    let [mut floor, mut ours, mut theirs] = <[Samples; 3]>::default();
    let round_trip = || Ok::<_, anyhow::Error>(pingpong::play(ROUND_TRIPS)?.round_trip);
    for _ in 0..SLOWDOWN_ROUNDS {
        let alone = round_trip()?.as_secs_f64();
        let slower = |samples: &mut Samples| {
            samples.push(100.0 * (round_trip()?.as_secs_f64() / alone - 1.0));
            Ok::<_, anyhow::Error>(())
        };
        {
            let _links = peers.floor.attach(&[pingpong::TRACEPOINT])?;
            slower(&mut floor)?;
        }
        {
            let _running = peers.ours.start()?;
            slower(&mut ours)?;
        }
        let _running = peers.theirs.start()?;
        slower(&mut theirs)?;
    }
    let what = "ping-pong slowdown, %";
    Ok(Row { what, floor: Some(floor), ours, theirs, limit: Some(limit), floor_limit: None })
}
