//! vcpulag on every kernel: where vCPUs' time goes, why they wait, and who ran meanwhile.

mod blocked;
mod culprits;
mod many;
mod quota;
mod starved;
mod states;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::util::threads::{burn, pin, set_fifo};
use crate::util::tool::{Tool, json_lines};

/// The binary under test.
const VCPULAG: &str = env!("CARGO_BIN_EXE_vcpulag");

/// The rows of JSON, by name of the VM and vCPU.
fn rows(args: &[&str]) -> Vec<Value> {
    let ended = Tool::start(VCPULAG, &[args, &["--json"]].concat()).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let mut rows = json_lines(&ended.stdout);
    rows.sort_by_key(|row| row["vm"].as_str().unwrap().to_owned());
    rows
}

fn ns(row: &Value, name: &str) -> u64 {
    row[name].as_u64().unwrap_or_else(|| panic!("{name}: {row}"))
}

/// What a process has taken from a vCPU.
fn taken_by(row: &Value, pid: u32) -> u64 {
    let culprits = row["culprits"].as_array().unwrap().iter();
    culprits.filter(|culprit| culprit["pid"] == pid).map(|culprit| ns(culprit, "ns")).sum()
}

/// What others have taken from a vCPU, too, who work on this machine: read at the same moment as what `pid` has.
fn taken_by_others(row: &Value, pid: u32) -> u64 {
    let culprits = row["culprits"].as_array().unwrap().iter();
    culprits.filter(|culprit| culprit["pid"] != pid).map(|culprit| ns(culprit, "ns")).sum()
}

/// Keeps a CPU busy with real-time turns, so that whoever is on it too waits for these, and nobody else gets it.
fn with_hog<T>(cpu: usize, turn: Duration, pause: Duration, run: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(cpu);
            set_fifo(1);
            let deadline = Instant::now() + Duration::from_secs(20);
            while !over.load(Relaxed) && Instant::now() < deadline {
                burn(turn);
                thread::sleep(pause);
            }
        });
        let result = run();
        over.store(true, Relaxed);
        result
    })
}
