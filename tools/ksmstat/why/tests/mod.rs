//! Every cause, alone and with others, out of facts alone: what is named, in which order, and how it is told.

mod scanned;

use std::time::Duration;

use super::causes::{Cause, causes};
use super::facts::{Attempts, Facts, Host, Memory, Merges, Process, Refusal, Share, Watched};
use super::report;
use crate::sysfs::{Counter, State};

const MIB: u64 = 1_024 * 1_024;

/// Settings of a KSM that runs, and two scans within a second.
const RUNS: [(Counter, i64); 8] = [
    (Counter::Run, 1),
    (Counter::PagesToScan, 100),
    (Counter::SleepMillisecs, 20),
    (Counter::FullScans, 12),
    (Counter::PagesScanned, 9_000),
    (Counter::MaxPageSharing, 256),
    (Counter::MergeAcrossNodes, 1),
    (Counter::GeneralProfit, 0),
];

fn watched(counters: &[(Counter, i64)]) -> Watched {
    let first = [(Counter::FullScans, 10), (Counter::PagesScanned, 4_000)];
    Watched {
        first: State::of(&first),
        last: State::of(&[RUNS.as_slice(), counters].concat()),
        length: Duration::from_secs(1),
        merges: Merges::Seen(Attempts::default()),
        ..Watched::default()
    }
}

fn share(used_mib: u64, name: &str) -> Share {
    let bytes = used_mib * MIB;
    Share {
        mappings: 1,
        mapped_bytes: bytes,
        used_bytes: bytes,
        largest_bytes: bytes,
        largest_name: name.to_owned(),
    }
}

fn mergeable(mib: u64) -> Memory {
    Memory { mergeable: share(mib, ""), ..Memory::default() }
}

/// Facts of the host, where a process has so much mergeable memory.
fn host(mib: u64, counters: &[(Counter, i64)]) -> Facts {
    let host = Host { processes: 101, mergeable_processes: 1, memory: mergeable(mib) };
    Facts { page_bytes: 4_096, ksm: Some(watched(counters)), host: Some(host), ..Facts::default() }
}

/// Facts of a process.
fn process(memory: Memory, scanned: u64, merged: u64, counters: &[(Counter, i64)]) -> Facts {
    let process = Process {
        pid: 4_711,
        name: "web".to_owned(),
        memory,
        scanned_pages: Some(scanned),
        merged_pages: Some(merged),
        zero_pages: Some(0),
        merge_any: Some(false),
    };
    Facts {
        page_bytes: 4_096,
        ksm: Some(watched(counters)),
        process: Some(process),
        ..Facts::default()
    }
}

fn ids(facts: &Facts) -> Vec<&'static str> {
    let causes = causes(facts);
    causes.iter().map(|cause| super::sentences::told(cause, facts).id).collect()
}

fn text(facts: &Facts) -> String {
    let mut out = Vec::new();
    report::write_text(&mut out, facts).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    text
}

/// The lines after the first, which says what is merged.
fn why(facts: &Facts) -> String {
    text(facts).split_once('\n').unwrap().1.to_owned()
}

#[test]
fn a_kernel_without_ksm() {
    let facts = Facts { host: Some(Host::default()), ..Facts::default() };
    assert_eq!(ids(&facts), ["not_compiled_in"]);
    insta::assert_snapshot!(text(&facts), @r"
    Nothing is merged on this host.
    This kernel has no KSM: /sys/kernel/mm/ksm is not there; CONFIG_KSM=y makes it.
    ");
}

#[test]
fn ksm_is_stopped() {
    let stopped = host(8, &[(Counter::Run, 0), (Counter::PagesVolatile, 2_048)]);
    assert_eq!(ids(&stopped), ["stopped"]);
    let unmerged = host(8, &[(Counter::Run, 2)]);
    insta::assert_snapshot!(why(&stopped) + &why(&unmerged), @r"
    KSM is stopped: run is 0; 1 starts it.
    KSM is stopped and has un-merged all: run is 2; 1 starts it.
    ");
    // KSM_RUN_MERGE with KSM_RUN_OFFLINE, while memory goes offline.
    assert_ne!(ids(&host(8, &[(Counter::Run, 5)])), ["stopped"]);
    let idle = host(8, &[(Counter::PagesToScan, 0)]);
    assert_eq!(ids(&idle), ["scans_nothing"]);
    insta::assert_snapshot!(why(&idle), @r"
    ksmd runs, but scans nothing: pages_to_scan is 0.
    ");
}

#[test]
fn nobody_has_mergeable_memory() {
    let mut facts = host(0, &[]);
    facts.host = Some(Host { processes: 101, ..Host::default() });
    assert_eq!(ids(&facts), ["no_mergeable_memory"]);
    insta::assert_snapshot!(text(&facts), @r"
    Nothing is merged on this host.
    No memory is mergeable: none of 101 processes has asked to merge memory that KSM
      takes (`mg` in smaps).
    ");
    facts.ksm = Some(watched(&[(Counter::Run, 0)]));
    assert_eq!(ids(&facts), ["stopped", "no_mergeable_memory"]);
}

#[test]
fn a_process_has_not_asked() {
    let memory = Memory { unasked: share(64, ""), ..Memory::default() };
    let mut facts = process(memory.clone(), 0, 0, &[]);
    assert_eq!(ids(&facts), ["not_asked"]);
    insta::assert_snapshot!(text(&facts), @r"
    Nothing of process 4711 (web) is merged.
    It has not asked to merge 64.0 MiB of private memory (no `mg` in smaps,
      ksm_merge_any: no): that takes madvise(MADV_MERGEABLE) or a prctl (systemd:
      MemoryKSM=).
    ");
    // Linux 5.10 has no prctl, and says nothing of it.
    facts.process.as_mut().unwrap().merge_any = None;
    let ksm = facts.ksm.as_mut().unwrap();
    ksm.last = State::of(&RUNS[..RUNS.len() - 1]);
    insta::assert_snapshot!(why(&facts), @r"
    It has not asked to merge 64.0 MiB of private memory (no `mg` in smaps): that
      takes madvise(MADV_MERGEABLE).
    ");

    let partly = Memory { mergeable: share(8, ""), ..memory };
    let facts = process(partly.clone(), 2_048, 2_048, &[(Counter::PagesSharing, 2_048)]);
    assert_eq!(ids(&facts), ["not_asked"]);
    insta::assert_snapshot!(text(&facts), @r"
    2048 pages of process 4711 (web) are merged, 8.0 MiB of 8.0 MiB in mergeable
      memory.
    It has not asked to merge 64.0 MiB of private memory beside 8.0 MiB that it
      asked for (no `mg` in smaps, ksm_merge_any: no): that takes
      madvise(MADV_MERGEABLE) or a prctl (systemd: MemoryKSM=).
    ");
    let stopped = process(partly, 0, 0, &[(Counter::Run, 0)]);
    assert_eq!(ids(&stopped), ["stopped", "not_asked"]);
}

#[test]
fn what_ksm_refuses_is_named_by_size() {
    let refused = [
        (Refusal::Shared, share(64, "/memfd:ram (deleted)")),
        (Refusal::Hugetlb, share(128, "")),
        (Refusal::Device, share(1, "[vvar]")),
        (Refusal::Droppable, share(32, "")),
    ];
    let mut memory =
        Memory { unasked: share(2, "[heap]"), refused: refused.into(), ..Memory::default() };
    let facts = process(memory.clone(), 0, 0, &[]);
    assert_eq!(ids(&facts), ["refused", "not_asked"]);
    insta::assert_snapshot!(why(&facts), @r"
    KSM never takes huge pages of hugetlbfs (128.0 MiB in 1 mapping), nor shared
      memory (64.0 MiB in 1 mapping, the largest /memfd:ram (deleted)), nor
      droppable memory (32.0 MiB in 1 mapping), whoever asks.
    It has not asked to merge 2.0 MiB of private memory (no `mg` in smaps,
      ksm_merge_any: no): that takes madvise(MADV_MERGEABLE) or a prctl (systemd:
      MemoryKSM=).
    ");
    // Where the guest's memory is mergeable, a little shared memory does not matter.
    memory.mergeable = share(4_096, "");
    let merged = 4_096 * 256;
    let facts = process(memory, merged, merged, &[(Counter::PagesSharing, merged as i64)]);
    assert_eq!(ids(&facts), [""; 0]);
}

#[test]
fn mergeable_memory_without_pages() {
    let mut memory = mergeable(64);
    memory.mergeable.used_bytes = 0;
    let facts = process(memory.clone(), 0, 0, &[]);
    assert_eq!(ids(&facts), ["not_in_use"]);
    insta::assert_snapshot!(why(&facts), @r"
    Its mergeable memory, 64.0 MiB, has no page in use: nothing has been written
      there.
    ");
    let mut facts = host(64, &[]);
    facts.host.as_mut().unwrap().memory = memory;
    assert_eq!(ids(&facts), ["not_in_use"]);
}

#[test]
fn merged_pages_are_told_and_what_is_no_hindrance() {
    let mut memory = mergeable(8);
    memory.huge_bytes = 2 * MIB;
    let counters = [(Counter::PagesShared, 24), (Counter::PagesSharing, 2_024)];
    let mut facts = process(memory, 2_048, 2_048, &counters);
    assert_eq!(causes(&facts), [] as [Cause; 0]);
    insta::assert_snapshot!(text(&facts), @r"
    2048 pages of process 4711 (web) are merged, 8.0 MiB of 8.0 MiB in mergeable
      memory.
    Transparent huge pages, 2.0 MiB of mergeable memory, are no hindrance: KSM looks
      at each page of one, and splits it to merge one.
    ");
    facts.process = None;
    facts.host = Some(Host { processes: 7, mergeable_processes: 1, memory: mergeable(8) });
    insta::assert_snapshot!(text(&facts), @r"
    2048 pages are merged on this host into 24, which saves 7.9 MiB.
    ");
}

#[test]
fn json_has_names_and_figures() {
    let memory = Memory {
        unasked: share(8, ""),
        refused: [(Refusal::Shared, share(64, "/dev/shm/a"))].into(),
        ..Memory::default()
    };
    let mut out = Vec::new();
    let facts = process(memory, 0, 0, &[(Counter::Run, 0)]);
    let end = "2026-11-23T04:42:00Z".parse().unwrap();
    report::write_json(&mut out, end, &facts).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.lines().count(), 1);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    insta::assert_snapshot!(serde_json::to_string_pretty(&value).unwrap(), @r#"
    {
      "time": "2026-11-23T04:42:00.000000Z",
      "interval_s": 1.0,
      "pid": 4711,
      "name": "web",
      "merged_pages": 0,
      "pages_shared": 0,
      "pages_sharing": 0,
      "sentence": "Nothing of process 4711 (web) is merged.",
      "causes": [
        {
          "cause": "stopped",
          "facts": {
            "run": 0
          },
          "sentence": "KSM is stopped: run is 0; 1 starts it."
        },
        {
          "cause": "refused",
          "facts": {
            "shared": {
              "mappings": 1,
              "mapped_bytes": 67108864,
              "used_bytes": 67108864,
              "largest_bytes": 67108864,
              "largest": "/dev/shm/a"
            }
          },
          "sentence": "KSM never takes shared memory (64.0 MiB in 1 mapping, the largest /dev/shm/a), whoever asks."
        },
        {
          "cause": "not_asked",
          "facts": {
            "used_bytes": 8388608,
            "mergeable_used_bytes": 0,
            "merge_any": false
          },
          "sentence": "It has not asked to merge 8.0 MiB of private memory (no `mg` in smaps, ksm_merge_any: no): that takes madvise(MADV_MERGEABLE) or a prctl (systemd: MemoryKSM=)."
        }
      ],
      "remarks": []
    }
    "#);
}
