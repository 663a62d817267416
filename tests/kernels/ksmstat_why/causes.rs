//! The causes, one after the other as they stand in the way.

use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use serde_json::json;

use super::regions::{Contents, MERGEABLE, Region, Regions, Then};
use super::{HugePages, KSMSTAT, scan, why};
use crate::kernel;
use crate::util::alone;
use crate::util::ksm::Ksm;
use crate::util::tool::Tool;

/// The first that tells how many of a process's pages are merged, and scanned: 5.19 and 6.1.
const PROCESS_PAGES: (u32, u32) = (6, 1);
/// The first with tracepoints for KSM.
const TRACEPOINTS: (u32, u32) = (6, 3);
/// The first with a prctl for all memory.
const PRCTL: (u32, u32) = (6, 4);
/// The first that counts pages of zeroes, and pages scanned.
const COUNTS_MORE: (u32, u32) = (6, 6);
/// The first with smart scan.
const SMART_SCAN: (u32, u32) = (6, 7);
/// The first that tells whether a process has used that prctl.
const MERGE_ANY: (u32, u32) = (6, 14);

const BYTES: u64 = 4_096 * MERGEABLE.pages as u64;
const SHARED: libc::c_int = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
const UNASKED: Region = Region { advice: &[libc::MADV_NOHUGEPAGE], ..MERGEABLE };
const VOLATILE: Region = Region { then: Then::Rewritten, ..MERGEABLE };
const EQUAL: Region = Region { contents: Contents::Equal, ..MERGEABLE };

#[test]
fn ksm_is_stopped_or_idle_and_nobody_asks() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let stopped = why(&[]);
    // As it is taken.
    assert_eq!(stopped.number("stopped", "run"), 2);
    ksm.set("run", 0);
    let stopped = why(&[]);
    assert_eq!(stopped.ids(), ["stopped", "no_mergeable_memory"]);
    assert_eq!(stopped.number("stopped", "run"), 0);
    assert!(stopped.number("no_mergeable_memory", "processes") >= 1);
    ksm.set("run", 1);
    assert_eq!(why(&[]).ids(), ["no_mergeable_memory"]);
    ksm.set("pages_to_scan", 0);
    assert_eq!(why(&[]).ids(), ["scans_nothing", "no_mergeable_memory"]);
    let memory = Regions::start(&[MERGEABLE]);
    assert_eq!(why(&[]).ids(), ["scans_nothing"]);
    assert_eq!(why(&["-p", &memory.pid()]).ids(), ["scans_nothing"]);
    ksm.set("run", 0);
    assert_eq!(why(&["-p", &memory.pid()]).ids(), ["stopped"]);
}

#[test]
fn a_process_does_not_ask() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let memory = Regions::start(&[UNASKED]);
    let stopped = why(&["-p", &memory.pid()]);
    assert_eq!(stopped.ids(), ["stopped", "not_asked"]);
    ksm.set("run", 1);
    let answer = why(&["-p", &memory.pid()]);
    assert_eq!(answer.ids(), ["not_asked"]);
    assert!(answer.number("not_asked", "used_bytes") >= BYTES, "{answer:?}");
    assert_eq!(answer.number("not_asked", "mergeable_used_bytes"), 0);
    let merge_any = (kernel() >= MERGE_ANY).then_some(false);
    assert_eq!(*answer.fact("not_asked", "merge_any"), json!(merge_any));
    assert_eq!(answer.0["pid"].to_string(), memory.pid());
    // Half of it.
    let half = Regions::start(&[UNASKED, EQUAL]);
    scan(&ksm, 3);
    let answer = why(&["-p", &half.pid()]);
    assert_eq!(answer.ids(), ["not_asked"]);
    assert_eq!(answer.number("not_asked", "mergeable_used_bytes"), BYTES);
}

#[test]
fn ksm_refuses_such_memory() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    ksm.set("run", 1);
    // madvise(2) is not told that it is refused.
    let shared = Regions::start(&[Region { flags: SHARED, ..MERGEABLE }]);
    let answer = why(&["-p", &shared.pid()]);
    assert_eq!(answer.ids()[0], "refused");
    let figures = answer.fact("refused", "shared");
    assert!(figures["used_bytes"].as_u64().unwrap() >= BYTES, "{answer:?}");
    assert_eq!(figures["largest_bytes"], BYTES);
    assert_eq!(figures["largest"], "/dev/zero (deleted)");
    assert!(figures["mappings"].as_u64().unwrap() >= 1);

    let _huge = HugePages::reserve(3);
    let hugetlb = Region {
        pages: 3 * 512,
        flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB,
        advice: &[libc::MADV_MERGEABLE],
        ..MERGEABLE
    };
    // The largest first, and what could be merged as well.
    let shared = Region { pages: 6_007, flags: SHARED, ..MERGEABLE };
    let all = Regions::start(&[hugetlb, shared, UNASKED]);
    let answer = why(&["-p", &all.pid()]);
    assert_eq!(answer.ids(), ["refused", "not_asked"]);
    assert_eq!(answer.fact("refused", "hugetlb")["used_bytes"], 3 * 2 * 1_024 * 1_024);
    assert_eq!(answer.fact("refused", "hugetlb")["mappings"], 1);
    assert_eq!(answer.fact("refused", "shared")["largest_bytes"], 6_007 * 4_096);
    all.end();
    let more = Regions::start(&[hugetlb, UNASKED, UNASKED]);
    assert_eq!(why(&["-p", &more.pid()]).ids(), ["not_asked", "refused"]);
}

#[test]
fn a_prctl_asks_for_all_memory_that_ksm_takes() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    if kernel() < PRCTL {
        let memory = Regions::start(&[UNASKED]);
        let sentence = why(&["-p", &memory.pid()]).list("causes")[1]["sentence"].to_string();
        assert!(!sentence.contains("prctl"), "{sentence}");
        return;
    }
    ksm.set("run", 1);
    let shared = Region { flags: SHARED, ..MERGEABLE };
    let memory = Regions::start_merging_any(&[shared, UNASKED]);
    scan(&ksm, 3);
    let answer = why(&["-p", &memory.pid()]);
    assert_eq!(answer.ids(), ["refused", "all_different"], "{answer:?}");
}

#[test]
fn mergeable_memory_has_no_pages() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    ksm.set("run", 1);
    let memory = Regions::start(&[Region { contents: Contents::Untouched, ..MERGEABLE }]);
    assert_eq!(why(&[]).ids(), ["not_in_use"]);
    let answer = why(&["-p", &memory.pid()]);
    assert_eq!(answer.ids()[0], "not_in_use");
    assert_eq!(answer.number("not_in_use", "mapped_bytes"), BYTES);
}

#[test]
fn ksmd_has_not_come_by() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let memory = Regions::start(&[MERGEABLE]);
    ksm.set("sleep_millisecs", 50);
    ksm.set("pages_to_scan", 10);
    ksm.set("run", 1);
    for args in [vec![], vec!["-p".to_owned(), memory.pid()]] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let answer = why(&args);
        assert_eq!(answer.ids(), ["not_scanned"]);
        let (pages, of_pages) =
            (answer.number("not_scanned", "pages"), answer.number("not_scanned", "of_pages"));
        assert_eq!(of_pages, MERGEABLE.pages as u64);
        assert!(pages * 10 > of_pages * 9, "{answer:?}");
        let rate = answer.fact("not_scanned", "pages_per_s").as_f64().unwrap();
        assert!(rate > 0.0 && rate <= 220.0, "at most 10 in 50 ms: {answer:?}");
        let measured = kernel() >= COUNTS_MORE;
        assert_eq!(*answer.fact("not_scanned", "measured"), measured, "{answer:?}");
        let scan_s = answer.fact("not_scanned", "scan_s").as_f64().unwrap();
        assert!(scan_s >= of_pages as f64 / 221.0, "{answer:?}");
    }
}

#[test]
fn no_two_pages_are_equal() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let memory = Regions::start(&[MERGEABLE]);
    scan(&ksm, 3);
    for answer in [why(&[]), why(&["-p", &memory.pid()])] {
        assert_eq!(answer.ids(), ["all_different"]);
        // The page that ksmd looks at just then is nowhere.
        let pages = MERGEABLE.pages as u64;
        assert!(answer.number("all_different", "pages").abs_diff(pages) <= 1, "{answer:?}");
        assert!(answer.number("all_different", "of_pages").abs_diff(pages) <= 1, "{answer:?}");
    }
    let untold = why(&["-p", &memory.pid()]).remarks() == ["untold_process_pages"];
    assert_eq!(untold, kernel() < PROCESS_PAGES);
}

#[test]
fn pages_change_too_fast() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let memory = Regions::start(&[VOLATILE]);
    ksm.set("sleep_millisecs", 20);
    scan(&ksm, 3);
    for answer in [why(&[]), why(&["-p", &memory.pid()])] {
        assert_eq!(answer.ids(), ["volatile"], "{answer:?}");
        let pages = MERGEABLE.pages as u64;
        assert!(answer.number("volatile", "pages").abs_diff(pages) <= 1, "{answer:?}");
        let untold = answer.remarks().contains(&"untold_merge_errors");
        assert_eq!(untold, kernel() < TRACEPOINTS, "{answer:?}");
    }
    // And others are all different.
    let larger = Regions::start(&[Region { pages: 3 * MERGEABLE.pages, ..MERGEABLE }]);
    scan(&ksm, 3);
    assert_eq!(why(&[]).ids(), ["all_different", "volatile"]);
    if kernel() >= PROCESS_PAGES {
        assert_eq!(why(&["-p", &larger.pid()]).ids()[0], "all_different");
    }
    ksm.set("run", 0);
    assert_eq!(why(&["-p", &memory.pid()]).ids(), ["stopped"]);
}

#[test]
fn smart_scan_passes_over_pages() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    if kernel() < SMART_SCAN {
        assert_eq!(ksm.read("smart_scan"), None);
        return;
    }
    ksm.set("smart_scan", 1);
    let memory = Regions::start(&[MERGEABLE]);
    scan(&ksm, 12);
    for answer in [why(&["-d", "2"]), why(&["-d", "2", "-p", &memory.pid()])] {
        assert_eq!(answer.ids(), ["all_different", "smart_scan"], "{answer:?}");
        let percent = answer.fact("smart_scan", "skipped_percent").as_f64().unwrap();
        assert!((50.0..=100.0).contains(&percent), "{answer:?}");
        assert!(answer.number("smart_scan", "skips") > 0);
    }
    memory.end();
    let _volatile = Regions::start(&[VOLATILE]);
    scan(&ksm, 12);
    let answer = why(&["-d", "2"]);
    assert_eq!(answer.ids(), ["volatile", "smart_scan"], "{answer:?}");
}

#[test]
fn one_copy_serves_few() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    ksm.set("max_page_sharing", 2);
    let _memory = Regions::start(&[Region { pages: 509, ..EQUAL }]);
    scan(&ksm, 3);
    let answer = why(&[]);
    assert_eq!(answer.ids(), ["max_page_sharing"], "{answer:?}");
    assert_eq!(answer.number("max_page_sharing", "max_page_sharing"), 2);
    assert_eq!(answer.number("max_page_sharing", "contents"), 1);
    assert_eq!(answer.number("max_page_sharing", "copies"), 254);
    let _unique = Regions::start(&[Region { pages: 1_009, ..MERGEABLE }]);
    scan(&ksm, 3);
    assert_eq!(why(&[]).ids(), ["all_different", "max_page_sharing"]);
}

#[test]
fn equal_pages_are_on_different_nodes() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    ksm.set("merge_across_nodes", 0);
    let node = |node| Region { node: Some(node), ..MERGEABLE };
    let pages = MERGEABLE.pages as u64;
    if !Path::new("/sys/devices/system/node/node1").exists() {
        let cmdline = fs::read_to_string("/proc/cmdline").unwrap();
        assert!(!cmdline.contains("task=tests"), "tests/vm/run gives its VMs a second node");
        let _memory = Regions::start(&[node(0)]);
        assert_eq!(why(&[]).ids(), ["stopped"]);
        return;
    }
    // Unique in its node, and there again in the other: page for page at the same offset.
    let memory = Regions::start(&[node(0), Region { contents: Contents::Numbered, ..node(0) }]);
    let other = Regions::start(&[Region { contents: Contents::Numbered, ..node(1) }]);
    scan(&ksm, 3);
    for answer in [why(&[]), why(&["-p", &other.pid()])] {
        assert_eq!(answer.ids(), ["all_different", "across_nodes"], "{answer:?}");
        assert_eq!(answer.fact("across_nodes", "node_pages")["0"], 2 * pages, "{answer:?}");
        assert_eq!(answer.fact("across_nodes", "node_pages")["1"], pages, "{answer:?}");
        assert_eq!(answer.0["pages_shared"], 0);
    }
    ksm.set("run", 2);
    assert_eq!(why(&[]).ids(), ["stopped", "across_nodes"]);
    ksm.set("merge_across_nodes", 1);
    scan(&ksm, 3);
    let answer = why(&[]);
    assert_eq!(answer.0["pages_shared"], pages, "{answer:?}");
    assert_eq!(answer.ids(), ["all_different"]);
    drop(memory);
}

#[test]
fn pages_that_somebody_holds_are_not_merged() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let pinned = Region { pages: 211, then: Then::Pinned, ..EQUAL };
    let memory = Regions::start(&[pinned]);
    scan(&ksm, 3);
    let answer = why(&[]);
    if kernel() < TRACEPOINTS {
        // What failed looks like what changes: that it may be that is said.
        assert_eq!(answer.ids(), ["volatile"], "{answer:?}");
        assert_eq!(answer.remarks(), ["untold_merge_errors"]);
        return;
    }
    assert_eq!(answer.ids(), ["merge_errors"], "{answer:?}");
    assert_eq!(answer.number("merge_errors", "merged"), 0);
    let failed = answer.number("merge_errors", "failed");
    assert!(failed >= 210, "{answer:?}");
    assert_eq!(answer.fact("merge_errors", "errors_of_all")["EFAULT"], failed);
    let of_process = why(&["-p", &memory.pid()]);
    assert!(of_process.ids().contains(&"merge_errors"), "{of_process:?}");
    let _other = Regions::start(&[MERGEABLE]);
    scan(&ksm, 3);
    assert_eq!(why(&[]).ids(), ["all_different", "merge_errors"]);
}

#[test]
fn zeroes_are_the_kernels() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    ksm.set("use_zero_pages", 1);
    let memory = Regions::start(&[Region { contents: Contents::Zero, ..MERGEABLE }]);
    scan(&ksm, 3);
    let pages = (kernel() >= COUNTS_MORE).then_some(MERGEABLE.pages as u64);
    let answer = why(&[]);
    assert_eq!(answer.ids(), ["zero_pages"], "{answer:?}");
    assert_eq!(*answer.fact("zero_pages", "ksm_zero_pages"), json!(pages));
    let of_process = why(&["-p", &memory.pid()]);
    assert_eq!(*of_process.fact("zero_pages", "ksm_zero_pages"), json!(pages));
}

#[test]
fn what_merges_is_told() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let memory = Regions::start(&[EQUAL]);
    scan(&ksm, 3);
    for answer in [why(&[]), why(&["-p", &memory.pid()])] {
        assert_eq!(answer.ids(), [""; 0], "{answer:?}");
        let sum = [&answer.0["pages_shared"], &answer.0["pages_sharing"]];
        let sum: u64 = sum.iter().map(|pages| pages.as_u64().unwrap()).sum();
        assert_eq!(sum, MERGEABLE.pages as u64);
    }
    let merged = (kernel() >= PROCESS_PAGES).then_some(MERGEABLE.pages as u64);
    assert_eq!(why(&["-p", &memory.pid()]).0["merged_pages"], json!(merged));
    // And what hinders the rest.
    let _unique = Regions::start(&[Region { pages: 1_009, ..MERGEABLE }, VOLATILE]);
    ksm.set("sleep_millisecs", 20);
    scan(&ksm, 3);
    assert_eq!(why(&[]).ids(), ["volatile", "all_different"]);
}

#[test]
fn huge_pages_are_no_hindrance() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let advice = &[libc::MADV_HUGEPAGE, libc::MADV_MERGEABLE];
    let memory = Regions::start(&[Region { advice, ..EQUAL }]);
    let answer = why(&["-p", &memory.pid()]);
    assert_eq!(answer.ids(), ["stopped"]);
    assert_eq!(answer.remarks(), ["huge_pages"], "{answer:?}");
    scan(&ksm, 3);
    let answer = why(&["-p", &memory.pid()]);
    assert_eq!((answer.ids(), answer.remarks()), (vec![], vec![]), "{answer:?}");
}

#[test]
fn a_process_that_ends_meanwhile_is_one_sentence() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let memory = Regions::start(&[MERGEABLE]);
    ksm.set("run", 1);
    let pid = memory.pid();
    let tool = Tool::start_at_once(KSMSTAT, &["--why", "-p", &pid, "-d", "3"]);
    // Its second thread waits for signals while the first watches.
    let threads = || fs::read_dir(format!("/proc/{}/task", tool.pid())).unwrap().count();
    while threads() < 2 {
        thread::sleep(Duration::from_millis(20));
    }
    memory.end();
    let ended = tool.wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert_eq!(ended.stderr, format!("ksmstat: process {pid} has ended\n"));
    assert_eq!(ended.stdout, "");
}
