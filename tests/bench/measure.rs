//! The measurements: each in many short rounds, in which everybody has a turn, so that whatever else the machine
//! does meets all alike.

use std::process::id;

use anyhow::Result;

use crate::fdinfo::Holdings;
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

const BPF_TIME_ROUNDS: u32 = 11;
const START_ROUNDS: u32 = 41;
const MEMORY_ROUNDS: u32 = 5;
const SLOWDOWN_ROUNDS: u32 = 41;
/// About 0.1 s.
const ROUND_TRIPS: u32 = 20_000;

/// Nanoseconds in all BPF programs of each tool for every context switch of the ping-pong.
pub fn bpf_time(
    peers: &Peers<'_>,
    limit: f64,
    variants: &[(&'static str, Tool)],
) -> Result<Vec<Row>> {
    let _on = Stats::on()?;
    let (mut floor, mut theirs) = (Samples::default(), Samples::default());
    let ours = [("BPF time per switch, ns", &peers.ours)];
    let ours = ours.into_iter().chain(variants.iter().map(|(what, tool)| (*what, tool)));
    let mut ours: Vec<_> = ours.map(|(what, tool)| (what, tool, Samples::default())).collect();
    for _ in 0..BPF_TIME_ROUNDS {
        {
            let _links = peers.floor.attach(&[pingpong::TRACEPOINT])?;
            floor.push(pingpong::ns_per_switch(ROUND_TRIPS, || Holdings::of(id()))?);
        }
        for (_, tool, samples) in &mut ours {
            let running = tool.start()?;
            samples.push(pingpong::ns_per_switch(ROUND_TRIPS, || running.holdings())?);
        }
        let running = peers.theirs.start()?;
        theirs.push(pingpong::ns_per_switch(ROUND_TRIPS, || running.holdings())?);
    }
    let rows = ours.into_iter().enumerate().map(|(i, (what, _, ours))| Row {
        what,
        floor: (i == 0).then(|| floor.clone()),
        ours,
        theirs: theirs.clone(),
        limit: (i == 0).then_some(limit),
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
    Ok(Row { what: "exec to attached, ms", floor: None, ours, theirs, limit: Some(limit) })
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
        .map(|(([ours, theirs], what), limit)| Row { what, floor: None, ours, theirs, limit })
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
    Ok(Row { what, floor: Some(floor), ours, theirs, limit: Some(limit) })
}
