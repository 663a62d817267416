//! From causes to words, for people, and to names and figures, for programs. Pure.

use std::collections::BTreeMap;

use common::output::{Field, printable};
use serde_json::{Value, json};

use super::causes::{Cause, NotScanned, Pages, memory, mergeable_pages};
use super::facts::{Facts, Merges, Refusal, Share};
use super::words::{bound_id, capital, error_name, prefix, seconds, size, so_many};
use crate::sysfs::Counter;

/// A cause's name, the facts it rests on, and both in a sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// A name that stays the same.
    pub id: &'static str,
    /// Figures with their units in their names.
    pub facts: Vec<Field>,
    /// For people.
    pub sentence: String,
}

/// What is merged: the sentence before all causes.
pub fn merged(facts: &Facts) -> String {
    let (shared, sharing) = match &facts.ksm {
        Some(ksm) => (ksm.count(Counter::PagesShared), ksm.count(Counter::PagesSharing)),
        None => (0, 0),
    };
    let zeroes = facts.ksm.as_ref().map_or(0, |ksm| ksm.count(Counter::KsmZeroPages));
    let all = match shared + sharing {
        0 if zeroes > 0 => "only pages of zeroes are merged on this host".to_owned(),
        0 => "nothing is merged on this host".to_owned(),
        pages => format!(
            "{pages} pages are merged on this host into {shared}, which saves {}",
            size(sharing * facts.page_bytes)
        ),
    };
    let Some(process) = &facts.process else {
        return capital(&format!("{all}."));
    };
    let who = format!("process {} ({})", process.pid, printable(&process.name));
    match process.merged_pages {
        Some(0) if process.zero_pages.is_some_and(|pages| pages > 0) => {
            format!("Of {who} only pages of zeroes are merged.")
        }
        Some(0) => format!("Nothing of {who} is merged."),
        Some(pages) => format!(
            "{pages} pages of {who} are merged, {} of {} in mergeable memory.",
            size(pages * facts.page_bytes),
            size(mergeable_pages(facts).max(pages) * facts.page_bytes)
        ),
        None if shared == 0 => format!("Nothing of {who} is merged: {all}."),
        None => format!("How much of {who} is merged Linux tells since 5.19; {all}."),
    }
}

/// What is no cause, but should be known: of huge pages, and of what this kernel does not tell.
pub fn remarks(facts: &Facts, causes: &[Cause]) -> Vec<Told> {
    let mut remarks = Vec::new();
    let huge_bytes = memory(facts).map_or(0, |memory| memory.huge_bytes);
    if huge_bytes > 0 {
        remarks.push(Told {
            id: "huge_pages",
            facts: vec![("huge_bytes", huge_bytes.into())],
            sentence: format!(
                "Transparent huge pages, {} of mergeable memory, are no hindrance: KSM looks at \
                 each page of one, and splits it to merge one.",
                size(huge_bytes)
            ),
        });
    }
    let Some(ksm) = &facts.ksm else { return remarks };
    let of_scanned = causes.iter().any(|cause| {
        matches!(
            cause,
            Cause::NotScanned(_)
                | Cause::AllDifferent(_)
                | Cause::Volatile { .. }
                | Cause::DifferentOrVolatile { .. }
        )
    });
    let process = facts.process.as_ref();
    if of_scanned && process.is_some_and(|process| process.scanned_pages.is_none()) {
        remarks.push(Told {
            id: "untold_process_pages",
            facts: Vec::new(),
            sentence: "Which process's pages were scanned Linux tells since 6.1: figures of \
                       scanned pages are of all processes."
                .to_owned(),
        });
    }
    let may_fail = causes
        .iter()
        .any(|cause| matches!(cause, Cause::Volatile { .. } | Cause::DifferentOrVolatile { .. }));
    if let (true, Merges::Untold(why)) = (may_fail, &ksm.merges) {
        let why = match why {
            Some(why) => why.as_str(),
            None => "KSM's tracepoints came with Linux 6.3",
        };
        remarks.push(Told {
            id: "untold_merge_errors",
            facts: Vec::new(),
            sentence: format!("Whether merges failed is not told here: {why}."),
        });
    }
    remarks
}

/// Tells a cause.
pub fn told(cause: &Cause, facts: &Facts) -> Told {
    let its = if facts.process.is_some() { "its" } else { "all" };
    let (id, facts, sentence): (_, Vec<Field>, _) = match cause {
        Cause::NotCompiledIn => (
            "not_compiled_in",
            vec![],
            "This kernel has no KSM: /sys/kernel/mm/ksm is not there; CONFIG_KSM=y makes it."
                .to_owned(),
        ),
        Cause::Stopped { run } => {
            let all = if *run == 2 { " and has un-merged all" } else { "" };
            let sentence = format!("KSM is stopped{all}: run is {run}; 1 starts it.");
            ("stopped", vec![("run", (*run).into())], sentence)
        }
        Cause::ScansNothing => (
            "scans_nothing",
            vec![("pages_to_scan", 0.into())],
            "ksmd runs, but scans nothing: pages_to_scan is 0.".to_owned(),
        ),
        Cause::NoMergeableMemory { processes } => (
            "no_mergeable_memory",
            vec![("processes", (*processes).into())],
            format!(
                "No memory is mergeable: none of {processes} processes has asked to merge memory that \
                 KSM takes (`mg` in smaps)."
            ),
        ),
        Cause::Refused { shares } => refused(shares),
        Cause::NotAsked { used_bytes, mergeable_bytes, merge_any, has_prctl } => {
            not_asked(*used_bytes, *mergeable_bytes, *merge_any, *has_prctl)
        }
        Cause::NotInUse { mapped_bytes } => (
            "not_in_use",
            vec![("mapped_bytes", (*mapped_bytes).into())],
            format!(
                "{} mergeable memory, {}, has no page in use: nothing has been written there.",
                capital(its),
                size(*mapped_bytes)
            ),
        ),
        Cause::NotScanned(pages) => not_scanned(pages, its),
        Cause::AllDifferent(pages) => (
            "all_different",
            pages_facts(pages),
            format!("{} no equal (pages_unshared).", many(pages, its, "has", "have")),
        ),
        Cause::Volatile { pages, maybe_new } => {
            let mut facts = pages_facts(pages);
            facts.push(("maybe_new", (*maybe_new).into()));
            let new = if *maybe_new { ", or were seen only once: watch longer (-d)" } else { "" };
            let many = many(pages, its, "changes", "change");
            ("volatile", facts, format!("{many} from one scan to the next (pages_volatile){new}."))
        }
        Cause::DifferentOrVolatile { pages, of_pages, unshared, volatile } => (
            "different_or_volatile",
            vec![
                ("pages", (*pages).into()),
                ("of_pages", (*of_pages).into()),
                ("pages_unshared", (*unshared).into()),
                ("pages_volatile", (*volatile).into()),
            ],
            format!(
                "{} have no equal, or change from one scan to the next: which of the two KSM does not \
                 tell, as it counts all processes together (pages_unshared {unshared}, pages_volatile \
                 {volatile}).",
                capital(&so_many(*pages, its, *of_pages, "pages scanned and not merged"))
            ),
        ),
        Cause::SmartScan { skips, share } => {
            let percent = share * 100.0;
            let sentence = format!(
                "Smart scan skips {percent:.0} % of visits to pages not merged so far \
                 (pages_skipped grew by {skips}): if they become equal, it is seen late; \
                 smart_scan 0 ends that."
            );
            let percent = (percent * 10.0).round() / 10.0;
            (
                "smart_scan",
                vec![("skips", (*skips).into()), ("skipped_percent", percent.into())],
                sentence,
            )
        }
        Cause::MaxPageSharing { limit, contents, copies } => (
            "max_page_sharing",
            vec![
                ("max_page_sharing", (*limit).into()),
                ("contents", (*contents).into()),
                ("copies", (*copies).into()),
            ],
            format!(
                "Equal pages are kept in {copies} copies instead of {contents}, as max_page_sharing \
                 is {limit} (stable_node_dups, stable_node_chains)."
            ),
        ),
        Cause::AcrossNodes { node_pages } => {
            let nodes: Vec<_> =
                node_pages.iter().map(|(node, pages)| format!("{pages} on node {node}")).collect();
            let by_node = node_pages.iter().map(|(node, pages)| (node.to_string(), json!(pages)));
            (
                "across_nodes",
                vec![
                    ("merge_across_nodes", 0.into()),
                    ("node_pages", Value::Object(by_node.collect())),
                ],
                format!(
                    "Pages are not merged across NUMA nodes, as merge_across_nodes is 0: of \
                     mergeable ones are {}.",
                    nodes.join(", ")
                ),
            )
        }
        Cause::MergeErrors { merged, failed, errors } => merge_errors(*merged, *failed, errors),
        Cause::ZeroPages { pages } => (
            "zero_pages",
            vec![("ksm_zero_pages", (*pages).into())],
            match pages {
                Some(pages) => format!(
                    "{pages} pages of zeroes are merged with the kernel's own, which is not counted as \
                     sharing (use_zero_pages is 1; ksm_zero_pages)."
                ),
                None => "Pages of zeroes are merged with the kernel's own (use_zero_pages is 1), \
                         which is counted since Linux 6.6."
                    .to_owned(),
            },
        ),
    };
    Told { id, facts, sentence }
}

type Parts = (&'static str, Vec<Field>, String);

fn refused(shares: &[(Refusal, Share)]) -> Parts {
    let facts = shares.iter().map(|(refusal, share)| {
        let figures = json!({
            "mappings": share.mappings,
            "mapped_bytes": share.mapped_bytes,
            "used_bytes": share.used_bytes,
            "largest_bytes": share.largest_bytes,
            "largest": share.largest_name,
        });
        (refusal.id(), figures)
    });
    let kinds = shares.iter().map(|(refusal, share)| {
        let kind = match refusal {
            Refusal::Shared => "shared memory",
            Refusal::Hugetlb => "huge pages of hugetlbfs",
            Refusal::Device => "devices' memory",
            Refusal::Droppable => "droppable memory",
        };
        let largest = match share.largest_name.as_str() {
            "" => String::new(),
            name => format!(", the largest {}", printable(name)),
        };
        let plural = if share.mappings == 1 { "" } else { "s" };
        let size = size(share.used_bytes);
        format!("{kind} ({size} in {} mapping{plural}{largest})", share.mappings)
    });
    let kinds: Vec<_> = kinds.collect();
    let sentence = format!("KSM never takes {}, whoever asks.", kinds.join(", nor "));
    ("refused", facts.collect(), sentence)
}

fn not_asked(used: u64, mergeable: u64, merge_any: Option<bool>, has_prctl: bool) -> Parts {
    let by_prctl = match merge_any {
        Some(false) => ", ksm_merge_any: no",
        Some(true) => ", though ksm_merge_any: yes",
        None => "",
    };
    let so_far = match mergeable {
        0 => String::new(),
        bytes => format!(" beside {} that it asked for", size(bytes)),
    };
    let or_prctl = if has_prctl { " or a prctl (systemd: MemoryKSM=)" } else { "" };
    let sentence = format!(
        "It has not asked to merge {} of private memory{so_far} (no `mg` in smaps{by_prctl}): that \
         takes madvise(MADV_MERGEABLE){or_prctl}.",
        size(used)
    );
    let facts = vec![
        ("used_bytes", used.into()),
        ("mergeable_used_bytes", mergeable.into()),
        ("merge_any", merge_any.into()),
    ];
    ("not_asked", facts, sentence)
}

fn not_scanned(it: &NotScanned, its: &str) -> Parts {
    let NotScanned { pages, of_pages, once, pages_per_s, scan_s, .. } = it;
    let second = match once {
        0 => "and it is the second scan that merges",
        _ => "some for the second time, which is the one that merges",
    };
    let (most, least) = match it.measured {
        true => ("", ""),
        false => (" at most (pages_to_scan, sleep_millisecs)", "at least "),
    };
    let sentence = format!(
        "{}{} are still to be scanned, {second}: a full scan takes {least}{} at {pages_per_s:.0} \
         pages a second{most}.",
        prefix(it.bound),
        so_many(*pages, its, *of_pages, "mergeable pages"),
        seconds(*scan_s)
    );
    let facts = vec![
        ("pages", (*pages).into()),
        ("of_pages", (*of_pages).into()),
        ("scanned_once_pages", (*once).into()),
        ("pages_per_s", pages_per_s.round().into()),
        ("measured", it.measured.into()),
        ("scan_s", ((scan_s * 1e3).round() / 1e3).into()),
        ("bound", bound_id(it.bound).into()),
    ];
    ("not_scanned", facts, capital(&sentence))
}

fn merge_errors(merged: u64, failed: u64, errors: &BTreeMap<i32, u64>) -> Parts {
    let names: Vec<_> = errors.keys().map(|error| error_name(*error)).collect();
    let by_error = errors.iter().map(|(error, times)| (error_name(*error), json!(times)));
    let facts = vec![
        ("merged", merged.into()),
        ("failed", failed.into()),
        ("errors_of_all", Value::Object(by_error.collect())),
    ];
    let sentence = format!(
        "{failed} of {} attempts to merge failed ({}): somebody pins or locks the pages (devices, \
         io_uring, splice), or wrote to them.",
        merged + failed,
        names.join(", ")
    );
    ("merge_errors", facts, sentence)
}

fn pages_facts(pages: &Pages) -> Vec<Field> {
    vec![
        ("pages", pages.pages.into()),
        ("of_pages", pages.of_pages.into()),
        ("bound", bound_id(pages.bound).into()),
    ]
}

/// `At least 7 of its 9 pages scanned and not merged VERB`
fn many(pages: &Pages, its: &str, singular: &str, plural: &str) -> String {
    let Pages { pages, of_pages, bound } = pages;
    let verb = if *pages == 1 { singular } else { plural };
    let pages = so_many(*pages, its, *of_pages, "pages scanned and not merged");
    capital(&format!("{}{pages} {verb}", prefix(*bound)))
}
