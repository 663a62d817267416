//! What KSM can make of a fleet's memory: known from what the pages hold, before ksmd has looked at any.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::memory::ByKind;

const SYSFS: &str = "/sys/kernel/mm/ksm";

/// Whether this kernel has KSM (CONFIG_KSM).
pub(crate) fn exists() -> bool {
    Path::new(SYSFS).exists()
}

/// What the counters of /sys/kernel/mm/ksm show of a fleet when all that can be merged is. The field names are those of
/// the summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// The host's setting, which this rests on.
    pub max_page_sharing: u64,
    /// With `use_zero_pages` off: zero pages are merged like any others.
    #[serde(flatten)]
    pub off: Merged,
    /// With `use_zero_pages` on.
    pub use_zero_pages: WithZeroPages,
}

/// Two counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Merged {
    /// Pages that are left of those that were merged.
    pub pages_shared: u64,
    /// Pages that were saved.
    pub pages_sharing: u64,
}

/// And a third one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WithZeroPages {
    /// Of duplicate pages only.
    #[serde(flatten)]
    pub merged: Merged,
    /// Pages replaced by the kernel's own zero page; a file since Linux 6.6.
    pub ksm_zero_pages: u64,
}

impl Expected {
    /// With this host's `max_page_sharing`; none if it has no KSM.
    pub(crate) fn on_this_host(vms: u32, pages_each: ByKind) -> Option<Self> {
        let max_page_sharing = fs::read_to_string(format!("{SYSFS}/max_page_sharing")).ok()?;
        Some(Self::new(vms, pages_each, max_page_sharing.trim().parse().ok()?))
    }

    fn new(vms: u32, pages_each: ByKind, max_page_sharing: u64) -> Self {
        let vms = u64::from(vms);
        let duplicates = Merged::from_copies(vms, max_page_sharing).times(pages_each.duplicate);
        let zero_pages = pages_each.zero * vms;
        let zeroes = Merged::from_copies(zero_pages, max_page_sharing);
        Self {
            max_page_sharing,
            off: Merged {
                pages_shared: duplicates.pages_shared + zeroes.pages_shared,
                pages_sharing: duplicates.pages_sharing + zeroes.pages_sharing,
            },
            use_zero_pages: WithZeroPages { merged: duplicates, ksm_zero_pages: zero_pages },
        }
    }
}

impl Merged {
    /// What becomes of so many equal pages. As many as `max_page_sharing` share one, which is full then
    /// (`is_page_sharing_candidate` of mm/ksm.c); those that are left need to be two to share another one.
    fn from_copies(copies: u64, max_page_sharing: u64) -> Self {
        let most = max_page_sharing.max(1);
        let (full, rest) = (copies / most, copies % most);
        let (shared, alone) = match rest {
            0 => (full, 0),
            1 => (full, 1),
            _ => (full + 1, 0),
        };
        Self { pages_shared: shared, pages_sharing: copies - alone - shared }
    }

    fn times(self, number: u64) -> Self {
        let Self { pages_shared, pages_sharing } = self;
        Self { pages_shared: pages_shared * number, pages_sharing: pages_sharing * number }
    }
}

/// Of a guest's pages those whose content another page of the fleet has.
pub(crate) fn could_merge(vms: u32, pages_each: ByKind) -> u64 {
    let duplicate = if vms > 1 { pages_each.duplicate } else { 0 };
    let zero = if pages_each.zero * u64::from(vms) > 1 { pages_each.zero } else { 0 };
    duplicate + zero
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_leave_one_of_each_and_zero_pages_one_in_all() {
        let pages = ByKind { duplicate: 2_048, zero: 0, unique: 2_048 };
        let expected = Expected::new(8, pages, 256);
        assert_eq!(expected.off, Merged { pages_shared: 2_048, pages_sharing: 14_336 });
        assert_eq!(expected.use_zero_pages.merged, expected.off);
        let expected = Expected::new(8, ByKind { duplicate: 23, zero: 11, unique: 7 }, 256);
        assert_eq!(expected.off, Merged { pages_shared: 24, pages_sharing: 23 * 7 + 87 });
        let Merged { pages_shared, pages_sharing } = expected.use_zero_pages.merged;
        assert_eq!((pages_shared, pages_sharing), (23, 23 * 7));
        assert_eq!(expected.use_zero_pages.ksm_zero_pages, 88);
    }

    #[test]
    fn a_full_page_is_followed_by_another_if_two_are_left() {
        let merged = |copies| {
            let Merged { pages_shared, pages_sharing } = Merged::from_copies(copies, 256);
            (pages_shared, pages_sharing)
        };
        assert_eq!([0, 1, 2].map(merged), [(0, 0), (0, 0), (1, 1)]);
        assert_eq!([256, 257, 258].map(merged), [(1, 255), (1, 255), (2, 256)]);
        assert_eq!(merged(1_009), (4, 1_005));
    }

    #[test]
    fn alone_nothing_is_equal_but_zero_pages() {
        let pages = ByKind { duplicate: 101, zero: 23, unique: 7 };
        assert_eq!(could_merge(1, pages), 23);
        assert_eq!(could_merge(2, pages), 124);
        assert_eq!(could_merge(1, ByKind { zero: 1, ..pages }), 0);
    }
}
