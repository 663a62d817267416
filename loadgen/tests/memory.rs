//! Guests' memory holds what was asked for, before and after it is rewritten, and KSM merges what is equal.

mod support;

#[path = "../../tests/util/ksm.rs"]
#[allow(dead_code)] // these tests use a part of it
mod ksm;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufRead as _;
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use ksm::Ksm;
use support::{PATIENCE, Running, TempDir, alone, favour, number, read_truth, run};

const PAGE_SIZE: usize = 4096;

/// Each page of a guest's filled memory.
fn pages(guest: u32) -> Vec<Vec<u8>> {
    // Not mergeable, it is found by its size; see `SIZE`.
    let maps = std::fs::read_to_string(format!("/proc/{guest}/maps")).expect("maps");
    let address = |text| usize::from_str_radix(text, 16).expect("an address");
    let sizes = maps.lines().map(|line| {
        let (from, rest) = line.split_once('-').expect("a range");
        let from = address(from);
        (from, address(rest.split(' ').next().expect("an address")) - from)
    });
    let found: Vec<_> = sizes.filter(|(_, size)| *size == SIZE_PAGES * PAGE_SIZE).collect();
    assert_eq!(found.len(), 1, "{maps}");
    let mut bytes = vec![0; SIZE_PAGES * PAGE_SIZE];
    let memory = File::open(format!("/proc/{guest}/mem")).expect("the memory");
    memory.read_exact_at(&mut bytes, found[0].0 as u64).expect("the memory");
    bytes.chunks(PAGE_SIZE).map(<[u8]>::to_vec).collect()
}

/// 4036K: a prime number of pages that nothing else has.
const SIZE_PAGES: usize = 1_009;

/// How many pages of `truth` are of each kind.
fn by_kind(truth: &Value) -> [u64; 3] {
    ["duplicate", "zero", "unique"].map(|kind| number(truth, kind))
}

/// The contents of pages by how often they are there.
fn count(pages: impl IntoIterator<Item = Vec<u8>>) -> BTreeMap<Vec<u8>, usize> {
    let mut counts = BTreeMap::new();
    pages.into_iter().for_each(|page| *counts.entry(page).or_default() += 1);
    counts
}

impl Running {
    /// Makes each guest rewrite its pages; returns what was said when all had.
    fn rewrite(&mut self) -> String {
        self.signal(libc::SIGUSR1);
        let mut line = String::new();
        self.stdout.as_mut().expect("its output").read_line(&mut line).expect("a line");
        line
    }
}

#[test]
fn pages_hold_what_was_asked_for_and_go_on_doing_so() {
    let _alone = alone();
    let dir = TempDir::new("contents");
    let truth = dir.file("truth");
    let workload = "memory=4036K,duplicate=40,zero=10,rewrite=200/signal";
    let args = ["--vms", "3", "--vcpus", "2", "--workload", workload, "--duration", "50"];
    let args = [&args[..], &["--workload", "duty=5", "--mem-merge", "off"]].concat();
    let mut running = Running::start(&args, Some(&truth));
    let guests = running.guests();
    let check = || {
        let memories: Vec<_> = guests.iter().map(|guest| pages(*guest)).collect();
        assert!(memories.iter().all(|pages| pages[..403] == memories[0][..403]), "duplicates");
        let counts = count(memories.concat());
        let times = |times| counts.values().filter(|count| **count == times).count();
        assert_eq!(counts[&vec![0; PAGE_SIZE]], 3 * 100);
        assert_eq!((times(3), times(300), times(1)), (403, 1, 3 * 506));
        memories
    };
    let before = check();
    let line = running.rewrite();
    assert_eq!(line, "rewritten up to now: 2418 duplicate, 600 zero, 3036 unique pages\n");
    let after = check();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before[..503], after[..503]);
        for (before, after) in before[503..].iter().zip(&after[503..]) {
            let rewrites = |page: &[u8]| u64::from_ne_bytes(page[16..24].try_into().expect("8"));
            assert_eq!((rewrites(before), rewrites(after)), (0, 2));
            assert_eq!((&before[..16], &before[24..]), (&after[..16], &after[24..]));
        }
    }
    running.signal(libc::SIGTERM);
    assert!(running.wait().0.success());
    let truth = read_truth(&truth);
    assert_eq!(truth.len(), 6);
    for line in &truth {
        let memory = &line["memory"];
        let asked = "memory=4036K,duplicate=40,zero=10,rewrite=200/signal";
        assert_eq!((&memory["workload"], &line["workload"]), (&asked.into(), &"duty=5".into()));
        assert_eq!(by_kind(&memory["pages"]), [403, 100, 506]);
        assert_eq!(by_kind(&memory["rewrites"]), [806, 200, 1_012]);
        assert_eq!((number(memory, "could_merge"), &memory["expected"]), (0, &Value::Null));
    }
    running.assert_nothing_left(Duration::ZERO);
}

/// By frame, so that it does not matter who else on this host has mergeable memory.
#[test]
fn ksm_merges_duplicates_and_copies_what_is_rewritten() {
    let _alone = alone();
    let ksm = Ksm::take();
    let dir = TempDir::new("merged");
    let truth = dir.file("truth");
    let workload = "memory=4036K,duplicate=50,rewrite=23/signal";
    let args = ["--vms", "8", "--workload", workload, "--duration", "100"];
    let mut running = Running::start(&args, Some(&truth));
    let guests = running.guests();
    let merged = || -> Vec<_> {
        guests.iter().map(|guest| ksm::merged(*guest, ksm::mergeable(*guest))).collect()
    };
    let scan = || {
        // Two are enough (tests/kernels/loadgen.rs), unless somebody else's pages change while they are in ksmd's
        // unstable tree: then it does not find all.
        for _ in 0..10 {
            ksm.scan(2);
            if merged().iter().flatten().count() == 8 * 504 {
                break;
            }
        }
        let merged = merged();
        for pages in &merged {
            assert_eq!(pages, &merged[0]);
            assert!(pages.iter().map(|(page, _)| *page).eq(0..504));
        }
        let frames: BTreeSet<_> = merged[0].iter().map(|(_, frame)| *frame).collect();
        assert_eq!(frames.len(), 504);
    };
    scan();
    // 23 per cent are 232 pages, of which so many are duplicates.
    let line = running.rewrite();
    let left = merged();
    scan();
    running.signal(libc::SIGTERM);
    assert!(running.wait().0.success());

    let truth = read_truth(&truth);
    let mut all = [0; 3];
    for (line, left) in truth.iter().zip(left) {
        let memory = &line["memory"];
        let rewrites = by_kind(&memory["rewrites"]);
        assert_eq!(rewrites.iter().sum::<u64>(), 232);
        assert_eq!(left.len() as u64, 504 - rewrites[0], "{line}");
        all = [0, 1, 2].map(|kind| all[kind] + rewrites[kind]);
        assert_eq!(number(memory, "could_merge"), 504);
        assert_eq!(number(&memory["expected"], "pages_shared"), 504);
        assert_eq!(number(&memory["expected"], "pages_sharing"), 7 * 504);
    }
    let [duplicate, zero, unique] = all;
    let said = format!("{duplicate} duplicate, {zero} zero, {unique} unique pages");
    assert_eq!(line, format!("rewritten up to now: {said}\n"));
    assert!((112..=120).contains(&(duplicate / 8)), "in proportion: {said}");
}

/// Whatever the vCPUs do beside it, and no more than asked for.
#[test]
fn memory_is_rewritten_at_its_rate() {
    let _alone = alone();
    let dir = TempDir::new("rate");
    let path = dir.file("truth");
    for cpu in ["spin", "idle=23", "duty=20", "exits=cpuid:1000000000@503"] {
        let memory = "memory=16M,duplicate=50,zero=25,rewrite=100/s";
        let args = ["--vms", "2", "--vcpus", "2", "--workload", cpu, "--workload", memory];
        let start = Instant::now();
        let mut running = Running::start(&args, Some(&path));
        favour(&running);
        let favoured = Instant::now();
        thread::sleep(Duration::from_secs(3));
        let least_s = favoured.elapsed().as_secs_f64();
        running.signal(libc::SIGTERM);
        assert!(running.wait().0.success());
        let most_s = start.elapsed().as_secs_f64();
        for line in read_truth(&path).iter().filter(|line| number(line, "vcpu") == 0) {
            let [duplicate, zero, unique] = by_kind(&line["memory"]["rewrites"]);
            // What a vCPU has waited for is made up for, unless it was the order to leave that it saw then.
            let waited_s = number(line, "steal_ns") as f64 / 1e9 + 0.5;
            let expected = 4096.0 * (least_s - waited_s)..4096.0 * most_s;
            let all = (duplicate + zero + unique) as f64;
            assert!(expected.contains(&all) && all > 503.0, "{cpu}, {least_s} s: {line}");
            assert!(duplicate.abs_diff(2 * zero) < 23 && zero.abs_diff(unique) < 23, "{line}");
        }
    }
}

#[test]
fn the_summary_has_the_sums() {
    let _alone = alone();
    let args = ["--vms", "3", "--vcpus", "2", "--workload", "memory=4M,zero=50,rewrite=1000/s"];
    let (summary, truth) = run(&[&args[..], &["--duration", "1"]].concat());
    let summary = &summary["memory"];
    let each = [0, 2, 4].map(|line| by_kind(&truth[line]["memory"]["rewrites"]));
    let sums = [0, 1, 2].map(|kind| each.iter().map(|rewrites| rewrites[kind]).sum::<u64>());
    assert_eq!(by_kind(&summary["rewrites"]), sums);
    assert!(sums[0] == 0 && sums[1] > 0 && sums[2] > 0, "{summary}");
    assert_eq!(by_kind(&summary["pages"]), [0, 1_536, 1_536]);
    assert_eq!(number(summary, "could_merge"), 1_536);
    assert_eq!(summary["expected"], truth[0]["memory"]["expected"]);
}

/// Pages for `pagefault` come after those that are filled.
#[test]
fn page_faults_do_not_touch_filled_memory() {
    let _alone = alone();
    let args = ["--vms", "2", "--vcpus", "2", "--workload", "exits=pagefault:101,cpuid:1000000@50"];
    let args = [&args[..], &["--workload", "memory=4036K", "--mem-merge", "on"]].concat();
    let mut running = Running::start(&args, None);
    let guests = running.guests();
    for guest in guests {
        let filled = ksm::mergeable(guest);
        assert_eq!(filled.end - filled.start, (SIZE_PAGES * PAGE_SIZE) as u64);
        let memory = File::open(format!("/proc/{guest}/mem")).expect("the memory");
        let first_words = || -> Vec<u64> {
            let mut bytes = vec![0; (SIZE_PAGES + 202) * PAGE_SIZE];
            memory.read_exact_at(&mut bytes, filled.start).expect("the memory");
            let first_word = |page: &[u8]| u64::from_ne_bytes(page[..8].try_into().expect("8"));
            bytes.chunks(PAGE_SIZE).map(first_word).collect()
        };
        // What `pagefault` writes is the address.
        let expected: Vec<u64> = (0..1_009)
            .map(|page| 1 << 63 | page)
            .chain((1_009..1_211).map(|page| (1 << 32) + page * 4_096))
            .collect();
        let deadline = Instant::now() + PATIENCE;
        while first_words() != expected {
            assert!(Instant::now() < deadline, "{:x?}", first_words());
            thread::sleep(Duration::from_millis(50));
        }
    }
    running.signal(libc::SIGINT);
    assert!(running.wait().0.success());
}
