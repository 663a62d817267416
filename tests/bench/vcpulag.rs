//! `make bench`: what vcpulag costs for context switches with and without vCPUs, against empty programs on the same
//! tracepoints and against libbpf-tools' runqlat, which knows waits only; and what it needs with a thousand vCPUs.
//! Owns the list of what is measured, its limits and the verdict; how each is measured is in the modules.

mod columns;
mod fdinfo;
mod fleet;
mod floor;
mod guests;
mod links;
mod loadgen;
#[allow(dead_code, reason = "this bench uses a part of it")]
mod measure;
mod peer;
#[allow(dead_code, reason = "this bench uses a part of it")]
mod pingpong;
mod samples;
mod schedstat;
mod signal;
mod stats;
mod table;
mod tool;
mod verdict;

use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use common::kvm;

use floor::Floor;
use guests::Guests;
use measure::{BPF_TIME_ROUNDS, Load, Peers};
use table::Row;
use tool::Tool;

const OURS: &str = env!("CARGO_BIN_EXE_vcpulag");

/// What a context switch of other threads may cost in BPF programs, of what an empty one takes: the host pays that
/// whoever is watched.
const FLOOR_LIMIT: f64 = 1.7;
/// "Less" than libbpf-tools' for the same switches.
const LESS: f64 = 1.0;

/// Where vcpulag has programs, but for those that run once in a thread's life.
const TRACEPOINTS: [&str; 4] = ["sched_switch", "sched_migrate_task", "kvm_fpu", "kvm_vcpu_wakeup"];
/// Guests that share a CPU and are woken so often that other switches hardly count.
const HALTING: [&str; 4] = ["--workload", "idle=5000", "--cpus", "0"];
/// Guests that want all of the host: each waits for hundreds of others.
const SPINNING: [&str; 0] = [];
const MANY: usize = 1009;
/// So many turns are enough: thousands.
const HALTING_ROUND: Duration = Duration::from_millis(500);
/// A few hundred turns, and two of the looks that vcpulag takes at all vCPUs each second.
const SPINNING_ROUND: Duration = Duration::from_secs(2);
const SPINNING_ROUNDS: u32 = 5;
/// Until then there are few slices to look back at.
const LOG_FULL: Duration = Duration::from_secs(3);
/// Guests that somebody forgets end by themselves.
const DEADLINE: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    verdict::exit_code(run())
}

/// False if a requirement is missed.
fn run() -> Result<bool> {
    stats::check_off()?;
    kvm::check_tracepoints(&["kvm_fpu", "kvm_vcpu_wakeup"])?;
    let mut object = MaybeUninit::uninit();
    let peers = Peers {
        floor: Floor::load(&mut object)?,
        ours: Tool::new(OURS, &[])?,
        theirs: Tool::new(peer::runqlat()?, &[])?,
    };
    let start = |number, args: &[&str]| Guests::start(OURS, number, args, DEADLINE);
    let mut rows = measure::bpf_time(&peers, &measure::switches(), Some(LESS), &[])?;
    rows.iter_mut().for_each(|row| row.floor_limit = Some(FLOOR_LIMIT));
    {
        let guests = start(3, &HALTING)?;
        let load = Load {
            what: "a halting vCPU's turn, ns",
            tracepoints: &TRACEPOINTS,
            rounds: BPF_TIME_ROUNDS,
            settled: Duration::ZERO,
            go: &|| guests.turns_within(HALTING_ROUND),
        };
        rows.extend(measure::bpf_time(&peers, &load, None, &[])?);
    }
    {
        let guests = start(MANY, &SPINNING)?;
        let load = Load {
            what: "a turn among 1,009, ns",
            tracepoints: &TRACEPOINTS,
            rounds: SPINNING_ROUNDS,
            settled: LOG_FULL,
            go: &|| guests.turns_within(SPINNING_ROUND),
        };
        rows.extend(measure::bpf_time(&peers, &load, None, &[])?);
    }
    table::print(&rows);
    println!("\nturn: a vCPU gets a CPU and leaves it again, with what KVM does meanwhile.");

    let csv = Tool::new(OURS, &["--csv"])?;
    fleet::print(&csv, MANY, |number| start(number, &SPINNING))?;
    Ok(!rows.iter().any(Row::missed))
}
