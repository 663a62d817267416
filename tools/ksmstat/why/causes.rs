//! From facts to causes: why KSM merges nothing, or not more. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::facts::{Facts, Memory, Merges, Refusal, Share, Watched};
use super::scan::{Bound, Outcome};
use crate::sysfs::Counter;

/// Why memory is not merged.
#[derive(Clone, Debug, PartialEq)]
pub enum Cause {
    /// The kernel has no KSM.
    NotCompiledIn,
    /// ksmd does not run.
    Stopped {
        /// The setting: 0, or 2 if all was un-merged as well.
        run: u64,
    },
    /// ksmd runs, but in batches of no pages.
    ScansNothing,
    /// No process has asked for merging.
    NoMergeableMemory {
        /// How many were looked at.
        processes: u64,
    },
    /// KSM does not take such memory.
    Refused {
        /// By reason; the largest first.
        shares: Vec<(Refusal, Share)>,
    },
    /// KSM would take the memory, but nobody asked.
    NotAsked {
        /// What is in use of it.
        used_bytes: u64,
        /// What is in use of mergeable memory.
        mergeable_bytes: u64,
        /// Whether the process asked by prctl, if the kernel tells.
        merge_any: Option<bool>,
        /// Whether the kernel has that prctl.
        has_prctl: bool,
    },
    /// The mergeable memory has no pages yet.
    NotInUse {
        /// How large it is.
        mapped_bytes: u64,
    },
    /// ksmd has not come by yet, or only once.
    NotScanned(NotScanned),
    /// Scanned, and no two pages are equal.
    AllDifferent(Pages),
    /// The pages change from scan to scan.
    Volatile {
        /// How many.
        pages: Pages,
        /// Whether some may have been looked at only once.
        maybe_new: bool,
    },
    /// One of the two: the kernel counts for all processes together, or smart scan leaves it open.
    DifferentOrVolatile {
        /// How many, of this process or of all.
        pages: u64,
        /// Of how many that are scanned and not merged.
        of_pages: u64,
        /// Of all processes: pages_unshared.
        unshared: u64,
        /// Of all processes: pages_volatile.
        volatile: u64,
    },
    /// Smart scan passes over pages that were looked at in vain.
    SmartScan {
        /// How often, in the while that was watched.
        skips: u64,
        /// The share of visits to pages not merged.
        share: f64,
    },
    /// Pages with more than so many equals need more than one copy.
    MaxPageSharing {
        /// The setting.
        limit: u64,
        /// How many contents have more than one copy.
        contents: u64,
        /// How many copies they have.
        copies: u64,
    },
    /// Equal pages on different NUMA nodes are not merged.
    AcrossNodes {
        /// Where mergeable memory lies.
        node_pages: BTreeMap<u32, u64>,
    },
    /// Merging was tried and failed.
    MergeErrors {
        /// Attempts that ended well.
        merged: u64,
        /// Attempts that failed.
        failed: u64,
        /// Errors of all processes' attempts, by number.
        errors: BTreeMap<i32, u64>,
    },
    /// Pages of zeroes are merged with the kernel's own, which does not count as sharing.
    ZeroPages {
        /// How many; `None`: this kernel does not count them.
        pages: Option<u64>,
    },
}

/// Pages that ksmd has not scanned, or only once, which is not enough: it merges what a second scan finds unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct NotScanned {
    /// How many.
    pub pages: u64,
    /// Of how many that are mergeable.
    pub of_pages: u64,
    /// How many of them were scanned once.
    pub once: u64,
    /// Whether it is known of how many; else there may be more.
    pub bound: Bound,
    /// How many ksmd scans in a second: measured, or the most that the settings allow.
    pub pages_per_s: f64,
    /// Whether that was measured.
    pub measured: bool,
    /// How long a scan of all of them takes, at that rate.
    pub scan_s: f64,
}

/// Some of the pages that ksmd has scanned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pages {
    /// How many.
    pub pages: u64,
    /// Of how many that are scanned and not merged.
    pub of_pages: u64,
    /// How sure that is.
    pub bound: Bound,
}

/// Less than a twentieth of something is not why it does not merge.
fn matters(part: u64, whole: u64) -> bool {
    part > 0 && part.saturating_mul(20) >= whole
}

/// All causes, the most important first: what keeps ksmd from memory before what it found there, and that by how
/// many pages it concerns.
pub fn causes(facts: &Facts) -> Vec<Cause> {
    let Some(ksm) = &facts.ksm else { return vec![Cause::NotCompiledIn] };
    let stop = stop(ksm);
    let runs = stop.is_none();
    let mut causes: Vec<Cause> = stop.into_iter().collect();
    let zeroes = zero_pages(facts, ksm);
    // Memory whose pages are all the kernel's zero page has none that can be seen.
    causes.extend(match zeroes {
        None => not_in_use(facts),
        Some(_) => None,
    });
    causes.extend(not_offered(facts, ksm));
    if runs && mergeable_pages(facts) > 0 {
        causes.extend(scanned(facts, ksm));
        causes.extend(max_page_sharing(ksm));
    }
    causes.extend(across_nodes(facts, ksm));
    if runs {
        causes.extend(merge_errors(&ksm.merges));
    }
    causes.extend(zeroes);
    causes
}

/// Whose memory it is about: the process's, or all.
pub fn memory(facts: &Facts) -> Option<&Memory> {
    let process = facts.process.as_ref().map(|process| &process.memory);
    process.or(facts.host.as_ref().map(|host| &host.memory))
}

/// Its pages that KSM may merge.
pub fn mergeable_pages(facts: &Facts) -> u64 {
    let used_bytes = memory(facts).map_or(0, |memory| memory.mergeable.used_bytes);
    used_bytes / facts.page_bytes.max(1)
}

fn stop(ksm: &Watched) -> Option<Cause> {
    // KSM_RUN_MERGE; KSM_RUN_OFFLINE may be set beside it for a while.
    match ksm.count(Counter::Run) {
        run if run & 1 == 0 => Some(Cause::Stopped { run }),
        _ if ksm.count(Counter::PagesToScan) == 0 => Some(Cause::ScansNothing),
        _ => None,
    }
}

/// Memory that was marked, but not written to.
fn not_in_use(facts: &Facts) -> Option<Cause> {
    let mergeable = &memory(facts)?.mergeable;
    (mergeable.mappings > 0 && mergeable_pages(facts) == 0)
        .then_some(Cause::NotInUse { mapped_bytes: mergeable.mapped_bytes })
}

/// Memory that KSM never gets to see.
fn not_offered(facts: &Facts, ksm: &Watched) -> Vec<Cause> {
    let Some(process) = &facts.process else {
        let host = facts.host.iter().filter(|host| host.mergeable_processes == 0);
        return host.map(|host| Cause::NoMergeableMemory { processes: host.processes }).collect();
    };
    let memory = &process.memory;
    let all = memory.used_bytes();
    let mut shares: Vec<_> = memory.refused.clone().into_iter().collect();
    shares.retain(|(_, share)| matters(share.used_bytes, all));
    shares.sort_by_key(|(_, share)| Reverse(share.used_bytes));
    let refused_bytes: u64 = shares.iter().map(|(_, share)| share.used_bytes).sum();
    let refused = (!shares.is_empty()).then_some((refused_bytes, Cause::Refused { shares }));

    let unasked_bytes = memory.unasked.used_bytes;
    let asked = memory.mergeable.mappings > 0;
    let unasked = (matters(unasked_bytes, all) || !asked && unasked_bytes > 0).then(|| {
        let cause = Cause::NotAsked {
            used_bytes: unasked_bytes,
            mergeable_bytes: memory.mergeable.used_bytes,
            merge_any: process.merge_any,
            has_prctl: ksm.has_prctl(),
        };
        (unasked_bytes, cause)
    });
    let mut causes: Vec<_> = refused.into_iter().chain(unasked).collect();
    causes.sort_by_key(|(bytes, _)| Reverse(*bytes));
    causes.into_iter().map(|(_, cause)| cause).collect()
}

/// What ksmd has not come to yet, and what it found in the rest.
fn scanned(facts: &Facts, ksm: &Watched) -> Vec<Cause> {
    let of_pages = mergeable_pages(facts);
    let own = own_pages(facts, of_pages);
    let (scanned, merged) = own.unwrap_or_else(|| all_pages(ksm));
    let unmerged = scanned.saturating_sub(merged);
    let all = Outcome::of(ksm);
    let found = match own {
        Some((scanned, merged)) => all.map(|all| all.of_process(scanned, merged)),
        None => all,
    };
    // What is not known even of all processes is not known of any.
    let found = found.unwrap_or(Outcome { open: unmerged, ..Outcome::default() });
    let (unshared, volatile) =
        (ksm.count(Counter::PagesUnshared), ksm.count(Counter::PagesVolatile));

    // Nothing is known of pages before their second scan.
    let first_scans = ksm.count(Counter::FullScans) < 2;
    let once = if first_scans { unmerged.min(volatile) } else { 0 };
    let mut causes = Vec::new();
    let unscanned = of_pages.saturating_sub(scanned) + once;
    if matters(unscanned, of_pages) {
        // Of a process whose scanned pages the kernel does not count: at most all that are.
        let counted = facts.process.is_none() || own.is_some();
        let bound = if counted || unscanned == of_pages { Bound::Exactly } else { Bound::AtLeast };
        let (pages_per_s, measured) = rate(ksm);
        let scan_s = all_pages(ksm).0.max(of_pages) as f64 / pages_per_s.max(f64::MIN_POSITIVE);
        let pages = unscanned;
        let it = NotScanned { pages, of_pages, once, bound, pages_per_s, measured, scan_s };
        causes.push((unscanned, Cause::NotScanned(it)));
    }
    let pages = |pages| Pages { pages, of_pages: unmerged, bound: found.bound };
    if matters(found.different, of_pages) {
        causes.push((found.different, Cause::AllDifferent(pages(found.different))));
    }
    if matters(found.changing, of_pages) && !first_scans {
        let maybe_new = ksm.growth(Counter::FullScans).unwrap_or(0) < 2;
        causes.push((found.changing, Cause::Volatile { pages: pages(found.changing), maybe_new }));
    }
    let pages = found.open.saturating_sub(once);
    if matters(pages, of_pages) {
        let of_pages = unmerged;
        causes.push((pages, Cause::DifferentOrVolatile { pages, of_pages, unshared, volatile }));
    }
    if let Some(share) = all.map(|all| all.skipped_share).filter(|share| *share >= 0.05)
        && matters(unmerged, of_pages)
    {
        let skips = ksm.growth(Counter::PagesSkipped).unwrap_or(0);
        causes.push(((unmerged as f64 * share) as u64, Cause::SmartScan { skips, share }));
    }
    causes.sort_by_key(|(pages, _)| Reverse(*pages));
    causes.into_iter().map(|(_, cause)| cause).collect()
}

/// Pages of all processes that ksmd knows of, and those that are merged.
fn all_pages(ksm: &Watched) -> (u64, u64) {
    let merged = ksm.count(Counter::PagesShared) + ksm.count(Counter::PagesSharing);
    let unmerged = ksm.count(Counter::PagesUnshared) + ksm.count(Counter::PagesVolatile);
    (merged + unmerged, merged)
}

/// The same of the process that is asked about, if the kernel counts them. A forked child's include its parent's on
/// kernels without "mm/ksm: fix incorrect KSM counter handling in mm_struct during fork".
fn own_pages(facts: &Facts, of_pages: u64) -> Option<(u64, u64)> {
    let process = facts.process.as_ref()?;
    Some((process.scanned_pages?.min(of_pages), process.merged_pages?.min(of_pages)))
}

/// How many pages ksmd scans in a second, and whether that was measured (pages_scanned, Linux 6.6). Else it is what
/// the settings allow if scanning itself took no time.
fn rate(ksm: &Watched) -> (f64, bool) {
    match ksm.growth(Counter::PagesScanned) {
        Some(pages) if pages > 0 => (pages as f64 / ksm.length.as_secs_f64(), true),
        _ => {
            let sleep_ms = ksm.count(Counter::SleepMillisecs).max(1);
            (ksm.count(Counter::PagesToScan) as f64 * 1e3 / sleep_ms as f64, false)
        }
    }
}

fn max_page_sharing(ksm: &Watched) -> Option<Cause> {
    let (contents, copies) =
        (ksm.count(Counter::StableNodeChains), ksm.count(Counter::StableNodeDups));
    let sharing = ksm.count(Counter::PagesSharing);
    // With no limit each content had one copy, and all others were saved.
    let more = copies.saturating_sub(contents);
    matters(more, sharing + more).then(|| {
        let limit = ksm.count(Counter::MaxPageSharing);
        Cause::MaxPageSharing { limit, contents, copies }
    })
}

fn across_nodes(facts: &Facts, ksm: &Watched) -> Option<Cause> {
    if ksm.known(Counter::MergeAcrossNodes)? != 0 {
        return None;
    }
    let node_pages = facts.host.as_ref()?.memory.node_pages.clone();
    let all: u64 = node_pages.values().sum();
    let most = node_pages.values().max()?;
    matters(all - most, all).then_some(Cause::AcrossNodes { node_pages })
}

fn merge_errors(merges: &Merges) -> Option<Cause> {
    let Merges::Seen(attempts) = merges else { return None };
    let (merged, failed) = attempts.of_process.unwrap_or((attempts.merged, attempts.failed()));
    matters(failed, failed + merged).then(|| Cause::MergeErrors {
        merged,
        failed,
        errors: attempts.errors.clone(),
    })
}

fn zero_pages(facts: &Facts, ksm: &Watched) -> Option<Cause> {
    if ksm.count(Counter::UseZeroPages) == 0 || memory(facts)?.mergeable.mappings == 0 {
        return None;
    }
    let pages = match &facts.process {
        Some(process) => process.zero_pages,
        None => ksm.known(Counter::KsmZeroPages),
    };
    (pages != Some(0)).then_some(Cause::ZeroPages { pages })
}
