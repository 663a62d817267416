//! `make bench`: runqlat against libbpf-tools' runqlat and against an empty program, as ratios within one run.
//! Owns the list of what is measured, its limits and the verdict; how each is measured is in the modules.

mod fdinfo;
mod floor;
mod links;
mod measure;
mod peer;
mod pingpong;
mod samples;
#[allow(dead_code, reason = "this bench uses a part of it")]
mod schedstat;
mod stats;
mod table;
mod tool;
mod verdict;

use std::fs;
use std::mem::MaybeUninit;
use std::process::{ExitCode, id};

use anyhow::Result;

use floor::Floor;
use measure::Peers;
use table::Row;
use tool::Tool;

const OURS: &str = env!("CARGO_BIN_EXE_runqlat");

/// What a context switch may cost in BPF programs, of what libbpf-tools' take.
const BPF_TIME_LIMIT: f64 = 0.20;
/// "No worse", with room for noise: the medians of even and odd rounds of one tool differ by 0.1 to 4 % for
/// starts and memory on a quiet machine (2 cores). The table says by how much they did in its run.
const NO_WORSE: f64 = 1.05;

fn main() -> ExitCode {
    verdict::exit_code(run())
}

/// False if a requirement is missed.
fn run() -> Result<bool> {
    stats::check_off()?;
    let mut object = MaybeUninit::uninit();
    let peers = Peers {
        floor: Floor::load(&mut object)?,
        ours: Tool::new(OURS, &[])?,
        theirs: Tool::new(peer::runqlat()?, &[])?,
    };
    let mut variants = vec![
        ("  ours --by thread", Tool::new(OURS, &["--by", "thread"])?),
        ("  ours -p PID", Tool::new(OURS, &["-p", &id().to_string()])?),
    ];
    match cgroup2() {
        Some(root) => variants.push(("  ours -c CGROUP", Tool::new(OURS, &["-c", &root])?)),
        None => println!("no cgroup2 mounted: nothing to say about `-c`"),
    }

    let mut rows =
        measure::bpf_time(&peers, &measure::switches(), Some(BPF_TIME_LIMIT), &variants)?;
    rows.push(measure::start(&peers, NO_WORSE)?);
    rows.extend(measure::memory(&peers, NO_WORSE)?);
    rows.push(measure::slowdown(&peers, NO_WORSE)?);
    table::print(&rows);
    Ok(!rows.iter().any(Row::missed))
}

/// The root of the cgroup2 hierarchy, which holds every task; how deep a group lies does not matter for `-c`.
fn cgroup2() -> Option<String> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    mounts.find_map(|mut fields| {
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| point.to_owned())
    })
}
