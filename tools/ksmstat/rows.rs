//! From two readings of KSM's counters to one interval's figures. Pure.

use std::collections::BTreeMap;

use common::hist::{Hist, Octave};

use crate::sysfs::{Counter, State};

/// What this kernel lets us know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Merges and failures, by KSM's tracepoints.
    pub merges: bool,
    /// The advisor's decisions, likewise.
    pub advice: bool,
    /// ksmd's batches, by its switches.
    pub batches: bool,
    /// How long full scans take.
    pub full_scans: bool,
    /// How many pages of a process are merged.
    pub merging_pages: bool,
    /// How many KSM keeps a record of.
    pub rmap_items: bool,
    /// How many of them were replaced by the kernel's page of zeroes.
    pub zero_pages: bool,
    /// Whose memory it is.
    pub owners: bool,
    /// What KSM's bookkeeping takes for each page.
    pub item_bytes: u64,
    /// Writes to merged pages of the whole host, by the kernel's own count.
    pub cow_ksm: bool,
    /// Writes to merged pages, by process.
    pub cow: bool,
    /// Why not, if that was asked for.
    pub cow_refused: Option<String>,
}

/// What the kernel's advisor decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// How often it has decided.
    pub count: u64,
    /// The new setting of pages_to_scan.
    pub pages_to_scan: u64,
    /// How long the full scan took that it decided upon, in milliseconds.
    pub scan_ms: i64,
    /// What ksmd took of a CPU meanwhile, in percent.
    pub cpu_percent: u32,
}

/// What could not be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Merges and writes that are counted, but for no process: no room for it, or it was ending.
    pub processes: u64,
    /// Switches of ksmd's that were not shown.
    pub switches: u64,
    /// Writes to merged pages: too many at once.
    pub cows: u64,
    /// Places where they came from: no room for them.
    pub places: u64,
    /// Events that found our program running on their CPU, so that the kernel did not run it again.
    pub missed: u64,
}

impl Losses {
    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            processes: self.processes - earlier.processes,
            switches: self.switches - earlier.switches,
            cows: self.cows - earlier.cows,
            places: self.places - earlier.places,
            missed: self.missed - earlier.missed,
        }
    }

    /// What is missing in some row.
    pub fn lost(&self) -> u64 {
        self.processes + self.switches + self.cows + self.places + self.missed
    }

    /// Sentences about it.
    pub fn warnings(&self) -> Vec<String> {
        let sentences = [
            (self.processes, "merges or COW breaks: not known of which process"),
            (self.switches, "switches of ksmd: its batches then are not known"),
            (self.cows, "COW breaks: too many at once"),
            (self.places, "COW breaks in stacks: no room for them"),
            (self.missed, "events: the kernel skipped them"),
        ];
        let said = sentences.into_iter().filter(|(count, _)| *count > 0);
        said.map(|(count, what)| format!("lost {count} {what}")).collect()
    }
}

/// What the programs have counted since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pages that became KSM pages, or mappings of one.
    pub merged: u64,
    /// Pages that did not, though they were to.
    pub merge_failed: u64,
    /// Pages replaced by the kernel's page of zeroes.
    pub zero_merged: u64,
    /// ksmd's batches that have ended.
    pub batches: u64,
    /// How long they took, and the one that goes on.
    pub scan_ns: u64,
    /// Writes to merged pages.
    pub cow_breaks: u64,
    /// The advisor's decisions.
    pub advice: Advice,
    /// What was lost.
    pub losses: Losses,
}

/// What takes time, as `enum ksm_kind` in bpf/ksmstat.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ksmd's batch, from one sleep to the next.
    Batch,
    /// All mergeable memory once.
    FullScan,
    /// A write to a merged page.
    CowBreak,
}

/// All of them.
pub const KINDS: [Kind; 3] = [Kind::Batch, Kind::FullScan, Kind::CowBreak];

impl Kind {
    /// Its name in formats.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::FullScan => "full_scan",
            Self::CowBreak => "cow_break",
        }
    }

    /// Its histogram's title.
    pub fn title(self) -> &'static str {
        match self {
            Self::Batch => "batches of ksmd",
            Self::FullScan => "full scans",
            Self::CowBreak => "COW breaks",
        }
    }
}

/// Histograms by kind and octave, as the kernel side has them.
pub type Elements = [BTreeMap<usize, Octave>; KINDS.len()];

/// All that is known at one time.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The number of the interval that ends here.
    pub epoch: u32,
    /// The programs' counts.
    pub totals: Totals,
    /// The kernel's counters and settings.
    pub state: State,
    /// Writes to merged pages since boot, by the kernel's count.
    pub cow_ksm: Option<u64>,
    /// How long ksmd has been on a CPU.
    pub ksmd_cpu_ns: Option<u64>,
    /// Histograms.
    pub elements: Elements,
}

/// One interval.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// The counters and settings at its end.
    pub state: State,
    /// What page merging saves now.
    pub saved_bytes: u64,
    /// The same less what the bookkeeping takes.
    pub profit_bytes: i64,
    /// Pages that ksmd has looked at, as the kernel counts them.
    pub scanned: Option<u64>,
    /// Pages that became KSM pages, or mappings of one.
    pub merged: Option<u64>,
    /// Pages that did not, though they were to.
    pub merge_failed: Option<u64>,
    /// Pages that were merged and are not any more.
    pub unmerged: Option<u64>,
    /// Pages replaced by the kernel's page of zeroes.
    pub zero_merged: Option<u64>,
    /// Writes to merged pages.
    pub cow_breaks: Option<u64>,
    /// Of them, how many our probe did not see.
    pub cow_unseen: Option<u64>,
    /// ksmd's time on a CPU.
    pub ksmd_cpu_ns: Option<u64>,
    /// The time of its batches.
    pub scan_ns: Option<u64>,
    /// Its batches that ended.
    pub batches: Option<u64>,
    /// Whether full scans' times are known.
    pub knows_full_scans: bool,
    /// The advisor's last decision, and how many there were in the interval.
    pub advice: Option<Advice>,
    /// By kind.
    pub hists: [Hist; KINDS.len()],
    /// What was lost.
    pub losses: Losses,
}

/// Turns readings into rows.
pub struct Intervals {
    known: Known,
    page_bytes: u64,
    first: Reading,
    earlier: Reading,
    unmerged: u64,
    unseen: u64,
    scan_ns: u64,
}

impl Intervals {
    /// From this reading on.
    pub fn new(known: Known, page_bytes: u64, first: Reading) -> Self {
        let scan_ns = first.totals.scan_ns;
        Self { known, page_bytes, earlier: first.clone(), first, unmerged: 0, unseen: 0, scan_ns }
    }

    /// The interval that ends with `now`.
    pub fn row(&mut self, now: Reading) -> Row {
        let (earlier, known) = (&self.earlier, &self.known);
        let (totals, before) = (&now.totals, &earlier.totals);
        let merges =
            |count: fn(&Totals) -> u64| known.merges.then(|| count(totals) - count(before));
        let cow_seen = known.cow.then(|| totals.cow_breaks - before.cow_breaks);
        let cow_ksm = difference(now.cow_ksm, earlier.cow_ksm);
        // Of a kernel's own: they never go back.
        let scanned = [&now, earlier].map(|reading| reading.state.get(Counter::PagesScanned));
        let scanned = scanned.map(|pages| pages.and_then(|pages| u64::try_from(pages).ok()));

        // Merges are counted a little before the counters rise. What looks un-merged now, and not any more in a
        // moment, is not told twice.
        let merged_now = now.state.merged_pages() - self.first.state.merged_pages();
        let so_far = i64::try_from(totals.merged - self.first.totals.merged).unwrap_or(i64::MAX);
        let unmerged = u64::try_from(so_far - merged_now).unwrap_or(0).max(self.unmerged);
        let cow_ksm_so_far = difference(now.cow_ksm, self.first.cow_ksm);
        let seen_so_far = totals.cow_breaks - self.first.totals.cow_breaks;
        let unseen = cow_ksm_so_far.map(|all| all.saturating_sub(seen_so_far).max(self.unseen));
        // Nor is a clock told twice that was a tick late.
        let scan_ns = totals.scan_ns.max(self.scan_ns);

        let row = Row {
            saved_bytes: now.state.saved_pages() * self.page_bytes,
            profit_bytes: profit_bytes(&now.state, self.page_bytes, known.item_bytes),
            scanned: difference(scanned[0], scanned[1]),
            merged: merges(|totals| totals.merged),
            merge_failed: merges(|totals| totals.merge_failed),
            unmerged: known.merges.then(|| unmerged - self.unmerged),
            zero_merged: merges(|totals| totals.zero_merged),
            cow_breaks: cow_ksm.or(cow_seen),
            cow_unseen: unseen.filter(|_| known.cow).map(|unseen| unseen - self.unseen),
            ksmd_cpu_ns: difference(now.ksmd_cpu_ns, earlier.ksmd_cpu_ns),
            scan_ns: known.batches.then(|| scan_ns - self.scan_ns),
            batches: known.batches.then(|| totals.batches - before.batches),
            knows_full_scans: known.full_scans,
            advice: known.advice.then(|| Advice {
                count: totals.advice.count - before.advice.count,
                ..totals.advice
            }),
            hists: hists(&now, earlier),
            losses: totals.losses.since(&before.losses),
            state: now.state.clone(),
        };
        (self.unmerged, self.scan_ns) = (unmerged, scan_ns);
        self.unseen = unseen.unwrap_or(0);
        self.earlier = now;
        row
    }
}

fn difference(now: Option<u64>, earlier: Option<u64>) -> Option<u64> {
    Some(now?.saturating_sub(earlier?))
}

fn hists(now: &Reading, earlier: &Reading) -> [Hist; KINDS.len()] {
    KINDS.map(|kind| {
        let mut hist = Hist::default();
        for (octave, counts) in &now.elements[kind as usize] {
            let before = earlier.elements[kind as usize].get(octave);
            let since = before.map_or_else(|| counts.clone(), |before| counts.since(before));
            hist.add(*octave, &since, now.epoch);
        }
        hist
    })
}

/// What merging saves, less what KSM keeps for each page that it has looked at: the kernel's general_profit, also
/// where it does not have that (Linux before 6.4; `general_profit_show()` in mm/ksm.c).
fn profit_bytes(state: &State, page_bytes: u64, item_bytes: u64) -> i64 {
    let items = state.merged_pages()
        + state.get(Counter::PagesUnshared).unwrap_or(0)
        + state.get(Counter::PagesVolatile).unwrap_or(0);
    let cost = items * i64::try_from(item_bytes).unwrap_or(0);
    i64::try_from(state.saved_pages() * page_bytes).unwrap_or(i64::MAX) - cost
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4_096;

    fn state(counters: &[(Counter, i64)]) -> State {
        let mut state = State::default();
        for (counter, number) in counters {
            state.set(*counter, &number.to_string()).unwrap();
        }
        state
    }

    fn reading(merged: u64, shared: i64, sharing: i64) -> Reading {
        Reading {
            totals: Totals { merged, ..Totals::default() },
            state: state(&[(Counter::PagesShared, shared), (Counter::PagesSharing, sharing)]),
            ..Reading::default()
        }
    }

    fn intervals(first: Reading) -> Intervals {
        Intervals::new(Known { merges: true, ..Known::default() }, PAGE, first)
    }

    #[test]
    fn what_was_merged_and_is_not_any_more_is_unmerged() {
        let mut intervals = intervals(reading(0, 7, 23));
        let row = intervals.row(reading(101, 8, 123));
        assert_eq!((row.merged, row.unmerged), (Some(101), Some(0)));
        let row = intervals.row(reading(101, 8, 86));
        assert_eq!((row.merged, row.unmerged), (Some(0), Some(37)));
    }

    #[test]
    fn what_is_about_to_be_counted_is_not_unmerged_twice() {
        let mut intervals = intervals(reading(0, 0, 0));
        // Two pages have been merged, which the kernel counts in a moment.
        assert_eq!(intervals.row(reading(12, 1, 9)).unmerged, Some(2));
        assert_eq!(intervals.row(reading(12, 1, 11)).unmerged, Some(0));
        assert_eq!(intervals.row(reading(12, 1, 8)).unmerged, Some(1));
        assert_eq!(intervals.row(reading(12, 0, 0)).unmerged, Some(9));
    }

    #[test]
    fn without_tracepoints_merges_are_not_known() {
        let mut intervals = Intervals::new(Known::default(), PAGE, reading(0, 0, 0));
        let row = intervals.row(reading(0, 1, 9));
        assert_eq!((row.merged, row.merge_failed, row.unmerged), (None, None, None));
        assert_eq!((row.scanned, row.cow_breaks, row.scan_ns), (None, None, None));
    }

    #[test]
    fn profit_is_what_is_saved_less_the_bookkeeping() {
        let state = state(&[
            (Counter::PagesShared, 1),
            (Counter::PagesSharing, 100),
            (Counter::PagesUnshared, 20),
            (Counter::PagesVolatile, 3),
            (Counter::KsmZeroPages, 5),
        ]);
        assert_eq!(state.saved_pages(), 105);
        assert_eq!(profit_bytes(&state, PAGE, 64), 105 * 4_096 - 124 * 64);
    }

    #[test]
    fn writes_that_were_not_seen_are_told_once() {
        let known = Known { cow: true, ..Known::default() };
        let now = |all, seen| Reading {
            cow_ksm: Some(all),
            totals: Totals { cow_breaks: seen, ..Totals::default() },
            ..Reading::default()
        };
        let mut intervals = Intervals::new(known, PAGE, now(1_000, 0));
        let row = intervals.row(now(1_023, 20));
        assert_eq!((row.cow_breaks, row.cow_unseen), (Some(23), Some(3)));
        let row = intervals.row(now(1_023, 22));
        assert_eq!((row.cow_breaks, row.cow_unseen), (Some(0), Some(0)));
    }

    #[test]
    fn a_clock_that_was_late_does_not_go_back() {
        let known = Known { batches: true, ..Known::default() };
        let now = |scan_ns| Reading {
            totals: Totals { scan_ns, ..Totals::default() },
            ..Reading::default()
        };
        let mut intervals = Intervals::new(known, PAGE, now(0));
        assert_eq!(intervals.row(now(900)).scan_ns, Some(900));
        assert_eq!(intervals.row(now(800)).scan_ns, Some(0));
        assert_eq!(intervals.row(now(1_000)).scan_ns, Some(100));
    }
}
