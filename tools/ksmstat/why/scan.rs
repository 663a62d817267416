//! What became of the pages that ksmd has scanned, as far as the kernel's counters tell. Pure.

use super::facts::{Merges, Watched};
use crate::sysfs::Counter;

/// How sure a number of pages is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bound {
    /// The kernel counts them.
    #[default]
    Exactly,
    /// Reckoned from what was seen for a while.
    About,
    /// There may be more.
    AtLeast,
}

/// Pages of all processes that ksmd knows of, by what became of them.
///
/// The kernel's `pages_volatile` is the rest after merged and unshared ones: pages that changed, but also those whose
/// merge failed and, under smart scan, those that were skipped the last time, changed or not
/// (mm/ksm.c: `should_skip_rmap_item` takes them off the unstable tree). What is skipped is like what is looked at, so
/// it is shared out in proportion. Pages that appeared together are skipped together, too: then the most that were
/// unshared at one time tells more than the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// All of them: rmap_items.
    pub scanned: u64,
    /// Merged.
    pub merged: u64,
    /// Looked at twice and more, and no two equal.
    pub different: u64,
    /// Not the same from one look to the next.
    pub changing: u64,
    /// Not merged as the attempt failed.
    pub failing: u64,
    /// One of these.
    pub open: u64,
    /// The share of visits to pages not merged in which smart scan skipped the page.
    pub skipped_share: f64,
    /// How sure `different` and `changing` are.
    pub bound: Bound,
}

impl Outcome {
    /// Reckons what became of pages; `None` if that cannot be told: smart scan is at work, but not in that while.
    pub fn of(ksm: &Watched) -> Option<Self> {
        let unshared = ksm.count(Counter::PagesUnshared);
        let merged = ksm.count(Counter::PagesShared) + ksm.count(Counter::PagesSharing);
        let unmerged = unshared + ksm.count(Counter::PagesVolatile);
        let scanned = merged + unmerged;

        let skips = ksm.growth(Counter::PagesSkipped).unwrap_or(0);
        let looks = ksm.growth(Counter::PagesScanned).unwrap_or(0);
        let visits = (skips + looks) as f64;
        if visits == 0.0 && ksm.count(Counter::PagesSkipped) > 0 && unmerged > 0 {
            return None;
        }
        // Merged pages are visited as well, and never skipped.
        let merged_visits = visits * merged as f64 / (scanned as f64).max(1.0);
        let unmerged_looks = (looks as f64 - merged_visits).max(0.0);
        let skipped_share = skips as f64 / (skips as f64 + unmerged_looks).max(1.0);
        let (different, bound) = match skips {
            0 => (unshared, Bound::Exactly),
            _ => {
                let reckoned = ksm.unshared_mean / (1.0 - skipped_share).max(f64::EPSILON);
                ((reckoned.round() as u64).max(ksm.unshared_most), Bound::About)
            }
        };
        let different = different.min(unmerged);
        let failed = match &ksm.merges {
            Merges::Seen(attempts) => attempts.failed() as f64,
            Merges::Untold(_) => 0.0,
        };
        let failing = (unmerged as f64 * failed / unmerged_looks.max(1.0)).round() as u64;
        let failing = failing.min(unmerged - different);
        let changing = unmerged - different - failing;
        let open = 0;
        Some(Self { scanned, merged, different, changing, failing, open, skipped_share, bound })
    }

    /// What that means for one process, of whose pages the kernel says only how many were scanned and merged: at
    /// least so many are different, and so many change, as others cannot account for them.
    pub fn of_process(&self, scanned: u64, merged: u64) -> Self {
        let unmerged = scanned.saturating_sub(merged);
        let all = self.different + self.changing + self.failing;
        // More than there are: the counters were read at another time.
        let mut open = unmerged;
        let mut least = |of: u64| {
            let least = unmerged.saturating_sub(all - of).min(open);
            open -= least;
            least
        };
        let different = least(self.different);
        let changing = least(self.changing);
        let failing = least(self.failing);
        let bound = if open > 0 { Bound::AtLeast } else { self.bound };
        Self { scanned, merged, different, changing, failing, open, bound, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::Attempts;
    use super::*;
    use crate::sysfs::State;

    const SCANNED: [(Counter, i64); 4] = [
        (Counter::PagesShared, 100),
        (Counter::PagesSharing, 900),
        (Counter::PagesUnshared, 700),
        (Counter::PagesVolatile, 300),
    ];

    fn watched(first: &[(Counter, i64)], last: &[(Counter, i64)]) -> Watched {
        Watched { first: State::of(first), last: State::of(last), ..Watched::default() }
    }

    #[test]
    fn without_smart_scan_the_kernel_counts() {
        let outcome = Outcome::of(&watched(&[], &SCANNED)).unwrap();
        assert_eq!(
            outcome,
            Outcome {
                scanned: 2_000,
                merged: 1_000,
                different: 700,
                changing: 300,
                failing: 0,
                open: 0,
                skipped_share: 0.0,
                bound: Bound::Exactly,
            }
        );
    }

    /// Ten scans of 1,000 merged and 1,000 other pages, of which smart scan skipped nine tenths.
    fn smart(unshared: u64, unshared_mean: f64, unshared_most: u64) -> Watched {
        let first = [(Counter::PagesSkipped, 5), (Counter::PagesScanned, 50)];
        let last = [
            (Counter::PagesShared, 100),
            (Counter::PagesSharing, 900),
            (Counter::PagesUnshared, unshared as i64),
            (Counter::PagesVolatile, 1_000 - unshared as i64),
            (Counter::PagesSkipped, 9_005),
            (Counter::PagesScanned, 11_050),
        ];
        Watched { unshared_mean, unshared_most, ..watched(&first, &last) }
    }

    #[test]
    fn pages_that_are_skipped_do_not_change() {
        let steady = Outcome::of(&smart(98, 100.0, 103)).unwrap();
        assert_eq!((steady.different, steady.changing), (1_000, 0));
        assert!((steady.skipped_share - 0.9).abs() < 1e-9);
        assert_eq!(steady.bound, Bound::About);
        let together = Outcome::of(&smart(0, 40.0, 1_000)).unwrap();
        assert_eq!((together.different, together.changing), (1_000, 0));
    }

    #[test]
    fn pages_that_change_are_skipped_as_well() {
        let changing = Outcome::of(&smart(0, 0.0, 0)).unwrap();
        assert_eq!((changing.different, changing.changing), (0, 1_000));
        let half = Outcome::of(&smart(52, 50.0, 54)).unwrap();
        assert_eq!((half.different, half.changing), (500, 500));
    }

    #[test]
    fn a_while_without_visits_tells_nothing() {
        let counters = [SCANNED.as_slice(), &[(Counter::PagesSkipped, 9)]].concat();
        assert_eq!(Outcome::of(&watched(&counters, &counters)), None);
        let merged = [(Counter::PagesShared, 7), (Counter::PagesSkipped, 9)];
        assert!(Outcome::of(&watched(&merged, &merged)).is_some());
    }

    #[test]
    fn failed_merges_do_not_change() {
        let last = [SCANNED.as_slice(), &[(Counter::PagesScanned, 4_000)]].concat();
        let mut ksm = watched(&[(Counter::PagesScanned, 0)], &last);
        let errors = [(libc::EFAULT, 500)].into();
        ksm.merges = Merges::Seen(Attempts { errors, ..Attempts::default() });
        // Two scans, in each of which 250 failed.
        let outcome = Outcome::of(&ksm).unwrap();
        assert_eq!((outcome.different, outcome.failing, outcome.changing), (700, 250, 50));
    }

    #[test]
    fn others_account_for_so_many_of_a_processs_pages() {
        let all = Outcome::of(&watched(&[], &SCANNED)).unwrap();
        let most = all.of_process(1_800, 900);
        assert_eq!((most.different, most.changing, most.open), (600, 200, 100));
        assert_eq!((most.scanned, most.merged, most.bound), (1_800, 900, Bound::AtLeast));
        let few = all.of_process(300, 0);
        assert_eq!((few.different, few.changing, few.open), (0, 0, 300));

        let different = Outcome { different: 1_000, changing: 0, ..all };
        let few = different.of_process(300, 0);
        assert_eq!((few.different, few.open, few.bound), (300, 0, Bound::Exactly));
        // Counted at another time.
        assert_eq!(different.of_process(1_013, 0).different, 1_013);
    }
}
