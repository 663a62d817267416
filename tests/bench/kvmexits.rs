//! `make bench`: what kvmexits costs for every exit, against empty programs on the same tracepoints and against perf,
//! and how many exits it survives. Owns the list of who is compared; how is in the modules.
//!
//! With `--instructions`, the clock is one that counts instructions (tests/vm/bench): then what depends on the speed
//! of the machine is left out.

mod columns;
mod exits;
mod fdinfo;
mod floor;
mod links;
mod loadgen;
mod loss;
mod perf;
#[allow(dead_code, reason = "this bench uses a part of it")]
mod pingpong;
mod samples;
mod schedstat;
mod signal;
mod stats;
mod storm;
mod tool;
mod verdict;

use std::env;
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use common::kvm;

use exits::{Kind, Peers, Rounds};
use floor::Floor;
use tool::Tool;

const OURS: &str = env!("CARGO_BIN_EXE_kvmexits");

/// Exits from guest mode that KVM handles itself.
const HARDWARE: Kind = Kind {
    title: "exits handled by KVM (cpuid)",
    reason: "cpuid",
    perf: &["kvm", "stat", "record"],
    floor: &["kvm_exit", "kvm_entry", "kvm_userspace_exit", "kvm_fpu", "sched_switch"],
    perf_events: 2,
};
/// Exits to the VMM. perf kvm stat record has those, too, but wants kvm_exit to be there.
const USERSPACE: Kind = Kind {
    title: "exits to the VMM (pio)",
    reason: "pio",
    perf: &["record", "-e", "kvm:kvm_userspace_exit,kvm:kvm_fpu"],
    perf_events: 3,
    ..HARDWARE
};

/// Instructions are the same in every round, but for what the timer interrupts.
const IN_INSTRUCTIONS: Rounds = Rounds {
    bpf_time: 1,
    slowdown: 2,
    exits: 10_000,
    switches: 1,
    round_trips: 2_000,
    lasting: false,
};
const IN_NANOSECONDS: Rounds = Rounds {
    bpf_time: 11,
    slowdown: 15,
    exits: 10_000,
    switches: 5,
    round_trips: 20_000,
    lasting: true,
};

fn main() -> ExitCode {
    verdict::exit_code(run())
}

/// False if exits were lost.
fn run() -> Result<bool> {
    stats::check_off()?;
    kvm::check_tracepoints(&["kvm_exit"])?;
    let instructions = env::args().any(|arg| arg == "--instructions");
    let mut object = MaybeUninit::uninit();
    let peers = Peers {
        floor: Floor::load(&mut object)?,
        ours: [
            ("ours", Tool::new(OURS, &[])?),
            ("by vcpu", Tool::new(OURS, &["--by", "vcpu,reason"])?),
            ("detail", Tool::new(OURS, &["--detail"])?),
        ],
        program: OURS,
        unit: if instructions { "instructions" } else { "ns" },
        rounds: if instructions { IN_INSTRUCTIONS } else { IN_NANOSECONDS },
    };
    let hardware = ["kvm_amd", "kvm_intel"].iter().any(|module| fires_kvm_exit(module));
    if !hardware {
        println!("{} does not fire kvm_exit: exits to the VMM only", kvm::vendor());
    }
    let kinds = [HARDWARE, USERSPACE];
    let kinds = &kinds[usize::from(!hardware)..];
    for kind in kinds {
        peers.exits(kind)?;
    }
    peers.switches()?;
    if !instructions {
        peers.start_and_memory()?;
    }
    let mut good = true;
    for kind in kinds {
        good &= loss::survives(OURS, kind, &peers)?;
    }
    Ok(good)
}

fn fires_kvm_exit(module: &str) -> bool {
    Path::new("/sys/module").join(module).exists()
}
