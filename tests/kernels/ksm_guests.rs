//! What ksmstat shows of guests whose memory is known is what loadgen's truth predicts, on every kernel.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::kernel;
use crate::util::ksm::Ksm;
use crate::util::tool::{Ended, Tool, json_lines};
use crate::util::{TempDir, alone, loadgen};

const KSMSTAT: &str = env!("CARGO_BIN_EXE_ksmstat");

const GUESTS: u64 = 8;

fn rows(ended: &Ended) -> Vec<Value> {
    assert!(ended.status.success(), "{}", ended.stderr);
    json_lines(&ended.stdout)
}

fn number(row: &Value, name: &str) -> u64 {
    row[name].as_u64().unwrap_or_else(|| panic!("{name}: {row}"))
}

fn sum<'a>(rows: impl IntoIterator<Item = &'a Value>, name: &str) -> u64 {
    rows.into_iter().map(|row| number(row, name)).sum()
}

/// The merges that were not seen, by the tool's own word: the kernel runs no program on a CPU while a reader of maps is
/// preempted there (bpf_disable_instrumentation()). Rows of one interval all have its number.
fn lost(rows: &[Value]) -> u64 {
    let intervals: BTreeMap<&str, u64> =
        rows.iter().map(|row| (row["time"].as_str().unwrap(), number(row, "lost"))).collect();
    intervals.values().sum()
}

/// As many as there were, but for those of which the tool says that it has not seen them.
fn assert_merged(merged: u64, expected: u64, rows: &[Value]) {
    let seen = expected.saturating_sub(lost(rows))..=expected;
    assert!(seen.contains(&merged), "{merged}, not {expected}: {rows:#?}");
}

/// Half of the pages of each of 8 guests of 16 MiB are those of the others, too; 16 % of all are rewritten when those
/// have been merged.
#[test]
fn guests_are_merged_and_written_to_as_known() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let dir = TempDir::new("ksm-guests");
    let truth = dir.join("truth.json");
    let memory = "memory=16M,duplicate=50,rewrite=16/signal";
    let vms = GUESTS.to_string();
    let args = ["run", "--vms", &vms, "--workload", memory, "--truth", truth.to_str().unwrap()];
    let mut guests = Tool::start(&loadgen(), &args);
    let mut host = Tool::start(KSMSTAT, &["--json", "0.5"]);
    let mut processes = Tool::start(KSMSTAT, &["--by", "process", "--json", "0.5"]);
    host.line();
    processes.line();
    ksm.scan(2);
    // There is a row of this.
    thread::sleep(Duration::from_secs(2));
    let sysfs = ["pages_shared", "pages_sharing"].map(|name| ksm.read(name).unwrap());
    // SAFETY: a plain system call; the child has not been waited for, so the PID is its own.
    assert_eq!(unsafe { libc::kill(guests.pid().cast_signed(), libc::SIGUSR1) }, 0);
    guests.line();
    thread::sleep(Duration::from_secs(1));
    let (host, processes) = (host.end(libc::SIGINT), processes.end(libc::SIGINT));
    assert!(guests.end(libc::SIGTERM).status.success());
    let (host, processes) = (rows(&host), rows(&processes));

    let truth = json_lines(&fs::read_to_string(&truth).unwrap());
    let expected = &truth[0]["memory"]["expected"];
    let shown = ["pages_shared", "pages_sharing"].map(|name| number(expected, name));
    assert_eq!(sysfs, shown);
    // ksmd has stopped, so the counters stay.
    let last = host.last().unwrap();
    assert_eq!(["pages_shared", "pages_sharing"].map(|name| number(last, name)), shown, "{last}");

    let rewritten: u64 =
        truth.iter().map(|vm| vm["memory"]["rewrites"]["duplicate"].as_u64().unwrap()).sum();
    assert!(rewritten > 1_000, "{rewritten}");
    // The first rows are of what was before.
    match kernel() >= (5, 18) {
        true => assert_eq!(sum(&host, "cow_breaks"), rewritten),
        false => assert!(last["cow_breaks"].is_null(), "{last}"),
    }
    let places = shown[0] + shown[1];
    for vm in &truth {
        let of = processes.iter().filter(|row| row["pid"] == vm["pid"]);
        let last = of.clone().next_back().expect("its rows");
        assert_eq!((&last["vm"], &last["gone"]), (&vm["vm"], &Value::Bool(false)), "{last}");
        // The kernel's own count has what is written to until ksmd comes by; without it the pages themselves tell.
        let written = vm["memory"]["rewrites"]["duplicate"].as_u64().unwrap();
        let written = if kernel() >= (5, 19) { 0 } else { written };
        assert_eq!((number(last, "merging_pages") + written) * GUESTS, places, "{last}");
        if kernel() >= (6, 3) {
            assert_merged(sum(of, "merged"), places / GUESTS, &processes);
        }
    }
    if kernel() >= (6, 3) {
        assert_merged(sum(&host, "merged"), places, &host);
        // ksmd tells of a merge before it counts it: a pair may be on its way at a look, and for once seem to be gone.
        assert!(sum(&host, "unmerged") <= 2, "{host:#?}");
    }
}
