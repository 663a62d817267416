//! Guests that have little to do: they halt, and when they are woken they wait no longer than their threads do.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::VCPULAG;
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::tool::{Tool, number};

const RUNQLAT: &str = env!("CARGO_BIN_EXE_runqlat");

fn first_row(stdout: &str) -> Value {
    serde_json::from_str(stdout.lines().next().expect("a row")).unwrap()
}

#[test]
fn an_idle_guest_halts_and_its_waits_are_those_that_runqlat_shows() {
    let _alone = alone();
    let guests = Guests::start(&["--vms", "1", "--workload", "idle=97", "--duration", "60"]);
    let known = Tool::start(VCPULAG, &["-c", &guests.cgroup(), "--json", "-d", "0.5"]).wait();
    let tid = first_row(&known.stdout)["tid"].to_string();
    let lag = Tool::start(VCPULAG, &["-t", &tid, "--csv"]);
    let runqlat = Tool::start(RUNQLAT, &["-t", &tid, "--csv"]);
    thread::sleep(Duration::from_secs(4));
    let (runqlat, lag) = (runqlat.end(libc::SIGINT), lag.end(libc::SIGINT));
    guests.end();

    let row = &lag.rows()[0];
    let ns = |name: &str| number(row, name);
    let whole: u64 =
        ["run_ns", "wait_ns", "halt_ns", "blocked_ns", "vmm_ns"].iter().map(|name| ns(name)).sum();
    // KVM may poll for a while before it lets a vCPU sleep.
    assert!(ns("halt_ns") * 100 >= whole * 85, "{row:?}");
    let rows = runqlat.rows();
    let waits = &rows[0];
    // vcpulag began before and ended after.
    let (ours, theirs) = (ns("wakeups") + ns("preemptions"), number(waits, "count"));
    assert!(theirs >= 300, "4 s of 97 ticks: {waits:?}");
    assert!((theirs..=theirs + theirs / 10 + 97).contains(&ours), "{row:?} {waits:?}");
    // A p99 is the fourth of four hundred: by one more or less it may be another bucket's.
    let (ours, theirs) = (ns("p99_ns"), number(waits, "p99_ns"));
    assert!(ours <= 2 * theirs + 20_000 && theirs <= 2 * ours + 20_000, "{row:?} {waits:?}");
}
