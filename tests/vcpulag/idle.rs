//! Guests that have little to do: they halt, and when they are woken they wait no longer than their threads do.

use crate::VCPULAG;
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::tool::{Tool, number};

const RUNQLAT: &str = env!("CARGO_BIN_EXE_runqlat");

#[test]
fn an_idle_guest_halts_and_its_waits_are_those_that_runqlat_shows() {
    let _alone = alone();
    let guests = Guests::start(&["--vms", "1", "--workload", "idle=97", "--duration", "60"]);
    let known = Tool::start(VCPULAG, &["-c", &guests.cgroup(), "--csv", "-d", "0.5"]).wait();
    let tid = &known.rows()[0]["tid"];
    // Of each the second interval, in which neither begins or ends.
    let lag = Tool::start(VCPULAG, &["-t", tid, "--csv", "4", "2"]);
    let runqlat = Tool::start(RUNQLAT, &["-t", tid, "--csv", "4", "2"]);
    let (lag, runqlat) = (lag.wait().rows(), runqlat.wait().rows());
    guests.end();

    let (row, waits) = (&lag[1], &runqlat[1]);
    let ns = |name: &str| number(row, name);
    let whole: u64 =
        ["run_ns", "wait_ns", "halt_ns", "blocked_ns", "vmm_ns"].iter().map(|name| ns(name)).sum();
    // KVM may poll for a while before it lets a vCPU sleep, and a VM is slow.
    assert!(ns("halt_ns") * 100 >= whole * 60, "{row:?}");
    let (ours, theirs) = (ns("wakeups") + ns("preemptions"), number(waits, "count"));
    assert!(theirs >= 300, "4 s of 97 ticks: {waits:?}");
    // The second intervals begin one after the other.
    assert!(ours.abs_diff(theirs) <= 20 + theirs / 10, "{row:?} {waits:?}");
    // Of 388 waits the 99th percentile is the fourth from the top.
    let close = |ours: u64, theirs: u64| ours <= 2 * theirs + 50_000;
    assert!(close(ns("p99_ns"), number(waits, "max_ns")), "{row:?} {waits:?}");
    assert!(close(number(waits, "p99_ns"), ns("max_ns")), "{row:?} {waits:?}");
}
