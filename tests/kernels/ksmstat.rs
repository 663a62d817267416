//! What ksmstat shows of known memory is what the kernel's counters say, on every kernel.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::kernel;
use crate::util::alone;
use crate::util::ksm::Ksm;
use crate::util::mergeable::Mergeable;
use crate::util::tool::{self, Ended, Tool, json_lines};

const KSMSTAT: &str = env!("CARGO_BIN_EXE_ksmstat");

/// The first with tracepoints for KSM.
const TRACEPOINTS: (u32, u32) = (6, 3);
/// The first that counts pages scanned.
const PAGES_SCANNED: (u32, u32) = (6, 6);
/// The first that counts the pages of processes that KSM keeps a record of.
const RMAP_ITEMS: (u32, u32) = (6, 1);
/// The first that counts writes to merged pages.
const COW_KSM: (u32, u32) = (5, 18);

/// True on a host that lets a program look into the kernel's functions; README.md says so, too.
fn has_probes() -> bool {
    !Path::new("/sys/module/kvm_pvm").exists()
}

/// So many pages that are all alike, and so many like no other: these numbers are theirs.
fn pages(alike: usize, unique: u64, from: u64) -> Vec<u64> {
    let unique = (0..unique).map(|page| from + page);
    std::iter::repeat_n(0x5eed, alike).chain(unique).collect()
}

fn rows(ended: &Ended) -> Vec<Value> {
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(ended.stderr, "");
    json_lines(&ended.stdout)
}

fn number(row: &Value, name: &str) -> i64 {
    row[name].as_i64().unwrap_or_else(|| panic!("{name}: {row}"))
}

fn sum(rows: &[Value], name: &str) -> i64 {
    rows.iter().map(|row| number(row, name)).sum()
}

/// What the counter has grown by after the first row.
fn growth(rows: &[Value], name: &str) -> i64 {
    number(rows.last().unwrap(), name) - number(&rows[0], name)
}

/// Lets the tool print a row, about what has been so far.
fn pause() {
    thread::sleep(Duration::from_millis(900));
}

#[test]
fn rates_add_up_to_the_kernels_counters_and_to_what_was_done() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let mut tool = Tool::start(KSMSTAT, &["--json", "0.3"]);
    // The first row is about nothing.
    assert!(!tool.line().is_empty());
    let mut first = Mergeable::start(&pages(101, 23, 1_000));
    let second = Mergeable::start(&pages(53, 7, 2_000));
    ksm.scan(3);
    pause();
    first.write(37);
    ksm.scan(2);
    pause();
    let rows = rows(&tool.end(libc::SIGINT));
    drop((first, second));
    let last = rows.last().unwrap();
    assert_eq!(number(last, "pages_shared"), 1, "{last}");
    assert_eq!(number(last, "pages_sharing"), 101 + 53 - 37 - 1);

    if kernel() >= TRACEPOINTS {
        assert_eq!(sum(&rows, "merged"), 101 + 53, "{rows:?}");
        assert_eq!(sum(&rows, "unmerged"), 37);
        let merged = sum(&rows[1..], "merged") - sum(&rows[1..], "unmerged");
        assert_eq!(merged, growth(&rows, "pages_shared") + growth(&rows, "pages_sharing"));
    } else {
        for name in ["merged", "merge_failed", "unmerged"] {
            assert!(last[name].is_null(), "{name}: {last}");
        }
    }
    match kernel() >= PAGES_SCANNED {
        true => assert_eq!(sum(&rows[1..], "scanned"), growth(&rows, "pages_scanned")),
        false => assert!(last["scanned"].is_null(), "{last}"),
    }
    match kernel() >= COW_KSM {
        true => assert_eq!(sum(&rows, "cow_breaks"), 37),
        false => assert!(last["cow_breaks"].is_null(), "{last}"),
    }
    assert_eq!(sum(&rows, "lost"), 0);
}

/// How many there were of a kind.
fn count(rows: &[Value], kind: &str) -> i64 {
    let buckets = rows.iter().flat_map(|row| row["buckets"][kind].as_array().unwrap());
    buckets.map(|bucket| bucket[2].as_i64().unwrap()).sum()
}

#[test]
fn scans_are_so_many_and_take_so_long() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    // 1,009 pages: nine batches of 101, and one that finds the end. The first one sees nothing merge.
    let _memory = Mergeable::start(&pages(0, 1_009, 1_000));
    ksm.set("pages_to_scan", 101);
    ksm.set("sleep_millisecs", 3);
    let tool = Tool::start(KSMSTAT, &["--json", "0.3"]);
    ksm.scan(7);
    pause();
    let rows = rows(&tool.end(libc::SIGINT));
    let full_scans = number(rows.last().unwrap(), "full_scans");
    let scans = count(&rows, "full_scan");
    // Without tracepoints, the first one's beginning is not known.
    let unknown = i64::from(kernel() < TRACEPOINTS);
    let before = number(&rows[0], "full_scans");
    assert!(scans <= full_scans && scans >= full_scans - before - unknown, "{scans}: {rows:?}");
    let batches = sum(&rows, "batches");
    assert_eq!(count(&rows, "batch"), batches);
    assert!((10 * scans..=10 * (full_scans + 1) + 1).contains(&batches), "{batches}: {rows:?}");
    let scan = |row: &&Value| !row["full_scan_mean_ns"].is_null();
    for row in rows.iter().filter(scan) {
        assert!(number(row, "full_scan_mean_ns") >= 9 * 3_000_000, "{row}");
    }
    // A batch is on the wall, and ksmd's waking and falling asleep are no part of it.
    let (scan_ns, cpu_ns) = (sum(&rows, "scan_ns"), sum(&rows, "ksmd_cpu_ns"));
    assert!(scan_ns > cpu_ns / 2, "{scan_ns} for {cpu_ns}");
    let wall_s: f64 = rows.iter().map(|row| row["interval_s"].as_f64().unwrap()).sum();
    assert!((scan_ns as f64) < wall_s * 1e9, "{scan_ns} in {wall_s} s");
    assert_eq!(sum(&rows, "lost"), 0);
}

/// The formula, which serves where the kernel does not count.
#[test]
fn profit_is_the_kernels() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let _memory = Mergeable::start(&pages(101, 23, 1_000));
    ksm.scan(3);
    let rows = rows(&Tool::start(KSMSTAT, &["--json", "0.2", "2"]).wait());
    for row in rows {
        if kernel() >= (6, 4) {
            assert_eq!(row["profit_bytes"], row["general_profit"], "{row}");
        } else {
            assert!(row["general_profit"].is_null());
        }
        // struct rmap_item has 64 bytes on all these kernels, as pahole(1) says.
        assert_eq!(number(&row, "profit_bytes"), 100 * 4_096 - 124 * 64, "{row}");
        assert_eq!(number(&row, "saved_bytes"), 100 * 4_096);
    }
}

#[test]
fn processes_have_their_own_and_keep_it_when_they_end() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    // Before there is a row, there is no first line.
    let _another = Mergeable::start(&[7]);
    let tool = Tool::start(KSMSTAT, &["--by", "process", "--json", "0.3"]);
    let first = Mergeable::start(&pages(101, 23, 1_000));
    let costly = Mergeable::start(&pages(0, 307, 5_000));
    ksm.scan(3);
    pause();
    let (first_pid, costly_pid) = (i64::from(first.pid()), i64::from(costly.pid()));
    let kernels = fs::read_to_string(format!("/proc/{first_pid}/ksm_stat")).unwrap_or_default();
    drop((first, costly));
    pause();
    let rows = rows(&tool.end(libc::SIGINT));
    let of = |pid: i64| {
        let of = rows.iter().filter(|row| row["pid"] == pid).cloned();
        let of: Vec<Value> = of.collect();
        let (last, before) = of.split_last().expect("rows of the process");
        assert_eq!(last["gone"], true, "{last}");
        assert!(before.iter().all(|row| row["gone"] == false));
        of
    };
    let (first, costly) = (of(first_pid), of(costly_pid));
    let (last, cost) = (first.last().unwrap(), costly.last().unwrap());
    assert_eq!(number(last, "merging_pages"), 101);
    if kernel() >= RMAP_ITEMS {
        assert_eq!(number(last, "rmap_items"), 124);
        assert_eq!(number(last, "profit_bytes"), 101 * 4_096 - 124 * 64);
        assert_eq!(number(cost, "profit_bytes"), -307 * 64);
    } else {
        assert!(last["rmap_items"].is_null() && last["profit_bytes"].is_null(), "{last}");
    }
    let profit = kernels.lines().find_map(|line| line.strip_prefix("ksm_process_profit "));
    if let Some(profit) = profit {
        assert_eq!(last["profit_bytes"].to_string(), profit);
    }
    if kernel() >= TRACEPOINTS {
        assert_eq!((sum(&first, "merged"), sum(&costly, "merged")), (101, 0));
    } else {
        assert!(last["merged"].is_null(), "{last}");
    }
}

#[test]
fn writes_to_merged_pages_are_their_processes() {
    let _alone = alone();
    if !has_probes() {
        let refusal = "COW breaks are not seen: the kernel refuses a probe";
        tool::assert_refused("ksmstat", &tool::run(KSMSTAT, &["--stacks", "1", "1"]), 3, refusal);
        let text = Tool::start(KSMSTAT, &["--cow", "-d", "0.2"]).wait().stdout;
        assert!(text.contains(refusal), "{text}");
        return;
    }
    let ksm = Ksm::take_alone();
    let mut first = Mergeable::start(&pages(101, 23, 1_000));
    let mut second = Mergeable::start(&pages(53, 7, 2_000));
    ksm.scan(3);
    let host = Tool::start(KSMSTAT, &["--cow", "--json", "0.3"]);
    let by_process = Tool::start(KSMSTAT, &["--by", "process", "--cow", "--json", "0.3"]);
    let mut stacks = Tool::start_at_once(KSMSTAT, &["--stacks", "60"]);
    assert_eq!(stacks.complaint(), "ksmstat: Tracing KSM... Hit Ctrl-C to end.");
    first.write(37);
    second.write(53);
    pause();
    let stacks = stacks.end(libc::SIGINT);
    let of_process = rows(&by_process.end(libc::SIGINT));
    let rows = rows(&host.end(libc::SIGINT));
    assert_eq!(sum(&rows, "cow_breaks"), 37 + 53);
    assert_eq!(count(&rows, "cow_break"), 37 + 53);
    if kernel() >= COW_KSM {
        // The kernel counts a break before it is seen: one may be on its way at a look.
        assert!(sum(&rows, "cow_unseen") <= 2, "{rows:#?}");
    }
    for (process, written) in [(&first, 37), (&second, 53)] {
        let of_process = of_process.iter().filter(|row| row["pid"] == process.pid()).cloned();
        assert_eq!(sum(&of_process.collect::<Vec<_>>(), "cow_breaks"), written);
    }
    // Both have the same name, and write from the same place.
    let folded: Vec<&str> = stacks.stdout.lines().collect();
    assert_eq!(folded.len(), 1, "{}", stacks.stdout);
    for part in ["mergeable::live;", "_[k];do_wp_page_[k] 90"] {
        assert!(folded[0].contains(part), "{part}: {}", folded[0]);
    }
}
