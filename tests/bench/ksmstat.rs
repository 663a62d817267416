//! `make bench`: what ksmstat costs ksmd: how fast a million pages are scanned, and pages merged, with and without it,
//! in one run. There is one KSM: nobody else may use it meanwhile (`/tmp/ksm.lock` is for that where others might).

#![allow(clippy::unwrap_used, reason = "what it shares with tests fails by panicking")]

#[allow(dead_code, reason = "the bench uses a part of it")]
#[path = "../util/child.rs"]
mod child;
#[allow(dead_code, reason = "this bench uses a part of it")]
mod columns;
#[allow(dead_code, reason = "this bench uses a part of it")]
mod fdinfo;
#[allow(dead_code, reason = "this bench uses a part of it")]
#[path = "../util/ksm.rs"]
mod ksm;
mod links;
#[allow(dead_code, reason = "this bench uses a part of it")]
#[path = "../util/mergeable.rs"]
mod mergeable;
#[allow(dead_code, reason = "this bench uses a part of it")]
mod samples;
#[allow(dead_code, reason = "this bench uses a part of it")]
mod schedstat;
#[allow(dead_code, reason = "this bench uses a part of it")]
mod stats;
#[allow(dead_code, reason = "this bench uses a part of it")]
mod tool;
mod verdict;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::session::Stop;

use ksm::Ksm;
use mergeable::Mergeable;
use samples::Samples;
use schedstat::on_cpu_ns;
use tool::Tool;

const OURS: &str = env!("CARGO_BIN_EXE_ksmstat");

/// Scanned four times: a million.
const PAGES: u64 = 250_007;
const SCANS: u64 = 4;
const ROUNDS: usize = 3;
/// Between the advisor's least and most; 500 batches a million.
const PAGES_TO_SCAN: u64 = 2_000;
const SLEEP_MS: u64 = 1;
/// Of which all become one KSM page for each 256.
const ALIKE: usize = 100_003;
/// How often it is looked whether a scan has ended.
const LOOK: Duration = Duration::from_millis(1);
/// No round takes longer.
const DEADLINE: Duration = Duration::from_secs(120);

/// The tool as it is used.
const USES: [(&str, &[&str]); 2] =
    [("ksmstat 1", &["1", "--csv"]), ("--by process 1", &["--by", "process", "1", "--csv"])];
/// What scanning may cost more, and besides what it differs from round to round.
const LIMIT: f64 = 1.05;

fn main() -> ExitCode {
    verdict::exit_code(run())
}

/// Per page: ksmd's time on a CPU, and the time on the wall.
type Figures = [Samples; 2];

/// False if scanning gets slower than it may.
fn run() -> Result<bool> {
    stats::check_off()?;
    // KSM's settings are put back, whatever happens.
    let stop = Stop::install()?;
    let ksmd = ksmd()?;
    let tools =
        USES.iter().map(|(_, args)| Tool::new(OURS, args)).collect::<Result<Vec<Tool>>>()?;
    let mut scans = vec![Figures::default(); 1 + USES.len()];
    let mut merges = scans.clone();
    {
        let _memory = Mergeable::start(&(0..PAGES).map(|page| 1 + page).collect::<Vec<_>>());
        rounds(&tools, &mut scans, |ksm| {
            // The first one makes the books.
            until_scanned(ksm, &stop, 1)?;
            per_page(ksmd, SCANS * PAGES, || until_scanned(ksm, &stop, SCANS))
        })?;
    }
    columns::print_head("ksmd, ns a page", &["without", "ksmstat", "process"]);
    print("scanned", &scans);
    {
        let _memory = Mergeable::start(&[23; ALIKE]);
        rounds(&tools, &mut merges, |ksm| {
            per_page(ksmd, ALIKE as u64, || until_scanned(ksm, &stop, 2))
        })?;
    }
    print("merged, all alike", &merges);
    println!("\nksmstat: `ksmstat 1`; process: `ksmstat --by process 1`.");
    let median = |figures: &Figures| figures[0].median();
    let slowest = scans[1..].iter().map(median).fold(0.0, f64::max);
    let ratio = slowest / median(&scans[0]);
    let [odd, even] = scans[0][0].halves();
    let noise = odd.max(even) / odd.min(even);
    println!("scanning takes {ratio:.3} of the CPU time; the same against itself {noise:.3}");
    Ok(ratio <= LIMIT * noise)
}

fn print(what: &str, figures: &[Figures]) {
    for (i, kind) in ["on a CPU", "on the wall"].into_iter().enumerate() {
        let medians: Vec<_> = figures.iter().map(|f| Some(f[i].median())).collect();
        columns::print(&format!("{what}, {kind}"), &medians);
    }
    let halves = figures[0][0].halves();
    columns::print("  on a CPU, odd and even rounds", &halves.map(Some));
}

/// Without a tool, then with each of them, again and again, so that what else the host does is in all of them.
fn rounds(
    tools: &[Tool],
    figures: &mut [Figures],
    mut round: impl FnMut(&Ksm) -> Result<[f64; 2]>,
) -> Result<()> {
    for _ in 0..ROUNDS {
        for (i, figures) in figures.iter_mut().enumerate() {
            let ksm = Ksm::take();
            ksm.set("pages_to_scan", PAGES_TO_SCAN);
            ksm.set("sleep_millisecs", SLEEP_MS);
            let _running = i.checked_sub(1).map(|i| tools[i].start()).transpose()?;
            for (samples, figure) in figures.iter_mut().zip(round(&ksm)?) {
                samples.push(figure);
            }
        }
    }
    Ok(())
}

fn per_page(ksmd: u32, pages: u64, work: impl FnOnce() -> Result<()>) -> Result<[f64; 2]> {
    let (start, before_ns) = (Instant::now(), on_cpu_ns(ksmd)?);
    work()?;
    let cpu_ns = on_cpu_ns(ksmd)? - before_ns;
    Ok([cpu_ns, start.elapsed().as_nanos() as f64].map(|ns| ns / pages as f64))
}

fn until_scanned(ksm: &Ksm, stop: &Stop, times: u64) -> Result<()> {
    let full_scans = || ksm.read("full_scans").context("failed to read `full_scans`");
    let (start, before) = (Instant::now(), full_scans()?);
    ksm.set("run", 1);
    while full_scans()? < before + times {
        ensure!(start.elapsed() < DEADLINE, "ksmd does not scan");
        ensure!(!stop.wait_until(Some(Instant::now() + LOOK)), "stopped");
    }
    ksm.set("run", 0);
    Ok(())
}

fn ksmd() -> Result<u32> {
    let pids = fs::read_dir("/proc")?.flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let comm = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.find(|pid| comm(pid).trim_end() == "ksmd").context("ksmd does not run: CONFIG_KSM")
}
