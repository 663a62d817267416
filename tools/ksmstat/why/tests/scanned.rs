//! What ksmd found in the memory that it may merge, and what limits it.

use std::collections::BTreeMap;

use super::super::facts::{Attempts, Facts, Merges};
use super::{RUNS, host, ids, mergeable, process, text, watched, why};
use crate::sysfs::{Counter, State};

#[test]
fn not_scanned_yet() {
    let facts = process(mergeable(8), 0, 0, &[]);
    assert_eq!(ids(&facts), ["not_scanned"]);
    insta::assert_snapshot!(why(&facts), @r"
    All its 2048 mergeable pages are still to be scanned, and it is the second scan
      that merges: a full scan takes 0.4 s at 5000 pages a second.
    ");
    // Once is not enough.
    let once = [(Counter::PagesVolatile, 1_024), (Counter::FullScans, 1)];
    let facts = process(mergeable(8), 1_024, 0, &once);
    assert_eq!(ids(&facts), ["not_scanned"]);
    insta::assert_snapshot!(why(&facts), @r"
    All its 2048 mergeable pages are still to be scanned, some for the second time,
      which is the one that merges: a full scan takes 0.4 s at 5000 pages a second.
    ");
    let facts = host(8, &[(Counter::PagesVolatile, 2_048), (Counter::FullScans, 1)]);
    assert_eq!(ids(&facts), ["not_scanned"]);
}

#[test]
fn the_rate_is_the_settings_where_it_is_not_measured() {
    let mut facts = process(mergeable(8), 0, 0, &[]);
    let process = facts.process.as_mut().unwrap();
    (process.scanned_pages, process.merged_pages) = (None, None);
    let settings = [(Counter::Run, 1), (Counter::PagesToScan, 100), (Counter::SleepMillisecs, 20)];
    facts.ksm.as_mut().unwrap().last = State::of(&settings);
    assert_eq!(ids(&facts), ["not_scanned"]);
    insta::assert_snapshot!(text(&facts), @r"
    Nothing of process 4711 (web) is merged: nothing is merged on this host.
    All its 2048 mergeable pages are still to be scanned, and it is the second scan
      that merges: a full scan takes at least 0.4 s at 5000 pages a second at most
      (pages_to_scan, sleep_millisecs).
    Which process's pages were scanned Linux tells since 6.1: figures of scanned
      pages are of all processes.
    ");
}

#[test]
fn all_different() {
    let facts = process(mergeable(8), 2_048, 0, &[(Counter::PagesUnshared, 2_048)]);
    assert_eq!(ids(&facts), ["all_different"]);
    insta::assert_snapshot!(why(&facts), @r"
    All its 2048 pages scanned and not merged have no equal (pages_unshared).
    ");
    assert_eq!(ids(&host(8, &[(Counter::PagesUnshared, 2_048)])), ["all_different"]);
}

#[test]
fn changing_too_fast() {
    let counters = [(Counter::PagesVolatile, 2_048)];
    let mut facts = process(mergeable(8), 2_048, 0, &counters);
    assert_eq!(ids(&facts), ["volatile"]);
    facts.ksm.as_mut().unwrap().merges = Merges::Untold(None);
    insta::assert_snapshot!(why(&facts), @r"
    All its 2048 pages scanned and not merged change from one scan to the next
      (pages_volatile).
    Whether merges failed is not told here: KSM's tracepoints came with Linux 6.3.
    ");
    // No two scans while it was watched.
    facts.ksm.as_mut().unwrap().first = State::of(&[(Counter::FullScans, 11)]);
    insta::assert_snapshot!(why(&facts), @r"
    All its 2048 pages scanned and not merged change from one scan to the next
      (pages_volatile), or were seen only once: watch longer (-d).
    Whether merges failed is not told here: KSM's tracepoints came with Linux 6.3.
    ");
    assert_eq!(ids(&host(8, &counters)), ["volatile"]);
}

#[test]
fn other_processes_leave_it_open() {
    let counters = [(Counter::PagesUnshared, 9_000), (Counter::PagesVolatile, 8_000)];
    let facts = process(mergeable(8), 2_048, 0, &counters);
    assert_eq!(ids(&facts), ["different_or_volatile"]);
    insta::assert_snapshot!(why(&facts), @r"
    All its 2048 pages scanned and not merged have no equal, or change from one scan
      to the next: which of the two KSM does not tell, as it counts all processes
      together (pages_unshared 9000, pages_volatile 8000).
    ");
    // More than the others account for.
    let facts = process(mergeable(64), 16_384, 0, &counters);
    assert_eq!(ids(&facts), ["all_different", "volatile"]);
    insta::assert_snapshot!(why(&facts), @r"
    At least 8384 of its 16384 pages scanned and not merged have no equal
      (pages_unshared).
    At least 7384 of its 16384 pages scanned and not merged change from one scan to
      the next (pages_volatile).
    ");
}

#[test]
fn smart_scan_skips() {
    let counters = [(Counter::PagesVolatile, 2_048), (Counter::PagesSkipped, 40_000)];
    let mut facts = host(8, &counters);
    let ksm = facts.ksm.as_mut().unwrap();
    ksm.first = State::of(&[(Counter::PagesSkipped, 0), (Counter::PagesScanned, 4_000)]);
    // They appeared together: all were unshared at one time, and none the next.
    (ksm.unshared_most, ksm.unshared_mean) = (2_048, 220.0);
    assert_eq!(ids(&facts), ["all_different", "smart_scan"]);
    insta::assert_snapshot!(why(&facts), @r"
    About all 2048 pages scanned and not merged have no equal (pages_unshared).
    Smart scan skips 89 % of visits to pages not merged so far (pages_skipped grew
      by 40000): if they become equal, it is seen late; smart_scan 0 ends that.
    ");
    (facts.ksm.as_mut().unwrap().unshared_most, facts.ksm.as_mut().unwrap().unshared_mean) =
        (0, 0.0);
    assert_eq!(ids(&facts), ["volatile", "smart_scan"]);
    // Nobody came by while it was watched.
    facts.ksm.as_mut().unwrap().first = facts.ksm.as_ref().unwrap().last.clone();
    assert_eq!(ids(&facts), ["different_or_volatile"]);
}

#[test]
fn more_equal_pages_than_one_copy_may_have() {
    let chains = [
        (Counter::MaxPageSharing, 2),
        (Counter::PagesShared, 1_024),
        (Counter::PagesSharing, 1_024),
        (Counter::StableNodeChains, 1),
        (Counter::StableNodeDups, 1_024),
    ];
    let facts = host(8, &chains);
    assert_eq!(ids(&facts), ["max_page_sharing"]);
    insta::assert_snapshot!(text(&facts), @r"
    2048 pages are merged on this host into 1024, which saves 4.0 MiB.
    Equal pages are kept in 1024 copies instead of 1, as max_page_sharing is 2
      (stable_node_dups, stable_node_chains).
    ");
    // One more copy for 255 pages costs too little to be named.
    let mut facts = host(8, &[(Counter::PagesSharing, 2_040), (Counter::PagesShared, 8)]);
    let few = [(Counter::StableNodeChains, 1), (Counter::StableNodeDups, 8)];
    facts.ksm.as_mut().unwrap().last = State::of(
        &[RUNS.as_slice(), &few, &[(Counter::PagesSharing, 2_040), (Counter::PagesShared, 8)]]
            .concat(),
    );
    assert_eq!(ids(&facts), [""; 0]);
}

#[test]
fn equal_pages_on_different_nodes() {
    let mut facts = host(8, &[(Counter::MergeAcrossNodes, 0), (Counter::PagesUnshared, 2_048)]);
    let memory = &mut facts.host.as_mut().unwrap().memory;
    memory.node_pages = [(0, 1_025), (1, 1_023)].into();
    assert_eq!(ids(&facts), ["all_different", "across_nodes"]);
    insta::assert_snapshot!(why(&facts), @r"
    All 2048 pages scanned and not merged have no equal (pages_unshared).
    Pages are not merged across NUMA nodes, as merge_across_nodes is 0: of mergeable
      ones are 1025 on node 0, 1023 on node 1.
    ");
    memory_nodes(&mut facts, [(0, 2_047), (1, 1)].into());
    assert_eq!(ids(&facts), ["all_different"]);
    // It is a setting: it hinders as well when KSM is started.
    memory_nodes(&mut facts, [(0, 1_025), (1, 1_023)].into());
    facts.ksm = Some(watched(&[(Counter::MergeAcrossNodes, 0), (Counter::Run, 0)]));
    assert_eq!(ids(&facts), ["stopped", "across_nodes"]);
    facts.ksm = Some(watched(&[(Counter::Run, 0)]));
    assert_eq!(ids(&facts), ["stopped"]);
}

fn memory_nodes(facts: &mut Facts, pages: BTreeMap<u32, u64>) {
    facts.host.as_mut().unwrap().memory.node_pages = pages;
}

#[test]
fn merges_fail() {
    let mut facts = process(mergeable(8), 2_048, 0, &[(Counter::PagesVolatile, 2_048)]);
    // Two scans and a bit, in each of which all failed.
    let errors = [(libc::EFAULT, 5_000)].into();
    let attempts = Attempts { merged: 3, errors, of_process: None };
    facts.ksm.as_mut().unwrap().merges = Merges::Seen(attempts.clone());
    assert_eq!(ids(&facts), ["merge_errors"]);
    insta::assert_snapshot!(why(&facts), @r"
    5000 of 5003 attempts to merge failed (EFAULT): somebody pins or locks the pages
      (devices, io_uring, splice), or wrote to them.
    ");
    let errors = [(libc::EFAULT, 4_998), (libc::ENOMEM, 2)].into();
    let attempts = Attempts { errors, of_process: Some((0, 7)), ..attempts };
    facts.ksm.as_mut().unwrap().merges = Merges::Seen(attempts.clone());
    insta::assert_snapshot!(why(&facts), @r"
    7 of 7 attempts to merge failed (error 12, EFAULT): somebody pins or locks the
      pages (devices, io_uring, splice), or wrote to them.
    ");
    // Others' failures are not its own.
    let attempts = Attempts { of_process: Some((500, 7)), ..attempts };
    facts.ksm.as_mut().unwrap().merges = Merges::Seen(attempts);
    assert_eq!(ids(&facts), [""; 0]);
    let errors = [(libc::EFAULT, 7)].into();
    let few = Attempts { merged: 500, errors, of_process: None };
    facts.ksm.as_mut().unwrap().merges = Merges::Seen(few);
    assert_eq!(ids(&facts), ["volatile"]);
}

#[test]
fn pages_of_zeroes_do_not_count_as_sharing() {
    let zero = [(Counter::UseZeroPages, 1)];
    let mut facts = process(mergeable(8), 0, 0, &zero);
    facts.process.as_mut().unwrap().memory.mergeable.used_bytes = 0;
    facts.process.as_mut().unwrap().zero_pages = Some(2_048);
    assert_eq!(ids(&facts), ["zero_pages"]);
    insta::assert_snapshot!(text(&facts), @r"
    Of process 4711 (web) only pages of zeroes are merged.
    2048 pages of zeroes are merged with the kernel's own, which is not counted as
      sharing (use_zero_pages is 1; ksm_zero_pages).
    ");
    facts.process.as_mut().unwrap().zero_pages = None;
    assert_eq!(ids(&facts), ["zero_pages"]);
    insta::assert_snapshot!(why(&facts), @r"
    Pages of zeroes are merged with the kernel's own (use_zero_pages is 1), which is
      counted since Linux 6.6.
    ");
    facts.process.as_mut().unwrap().zero_pages = Some(0);
    assert_eq!(ids(&facts), ["not_in_use"]);
    let facts = host(8, &[(Counter::UseZeroPages, 1), (Counter::KsmZeroPages, 7)]);
    insta::assert_snapshot!(text(&facts), @r"
    Only pages of zeroes are merged on this host.
    All 2048 mergeable pages are still to be scanned, and it is the second scan that
      merges: a full scan takes 0.4 s at 5000 pages a second.
    7 pages of zeroes are merged with the kernel's own, which is not counted as
      sharing (use_zero_pages is 1; ksm_zero_pages).
    ");
}

#[test]
fn several_causes_come_by_how_many_pages_they_concern() {
    let counters = [
        (Counter::PagesShared, 100),
        (Counter::PagesSharing, 924),
        (Counter::PagesUnshared, 1_024),
        (Counter::PagesVolatile, 4_096),
    ];
    let facts = host(32, &counters);
    assert_eq!(ids(&facts), ["volatile", "not_scanned", "all_different"]);
    insta::assert_snapshot!(text(&facts), @r"
    1024 pages are merged on this host into 100, which saves 3.6 MiB.
    4096 of all 5120 pages scanned and not merged change from one scan to the next
      (pages_volatile).
    2048 of all 8192 mergeable pages are still to be scanned, and it is the second
      scan that merges: a full scan takes 1.6 s at 5000 pages a second.
    1024 of all 5120 pages scanned and not merged have no equal (pages_unshared).
    ");
}
