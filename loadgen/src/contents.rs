//! What the pages of `memory` guests hold. The VMM fills them before the guest starts: each page is touched, and has two
//! words that tell it from others; a third one counts the rewrites of a unique page. The rest is zeroes.

use std::ptr::NonNull;

use crate::memory::ByKind;
use crate::process;
use crate::record::PAGE_SIZE;

/// The first word of duplicate and of unique pages: this, and the page's number.
const DUPLICATE: u64 = 1 << 62;
const UNIQUE: u64 = 1 << 63;
/// Where the count of rewrites is, in bytes from the beginning of the page.
pub(crate) const REWRITES_OFFSET: usize = 16;

/// The first two words of each page, in the order of the pages.
fn words(pages: ByKind, pid: u32) -> impl Iterator<Item = [u64; 2]> {
    let zero_end = pages.duplicate + pages.zero;
    (0..pages.all()).map(move |page| match page {
        _ if page < pages.duplicate => [DUPLICATE | page, 0],
        _ if page < zero_end => [0, 0],
        // Other fleets may have unique pages, too: the guest's process tells whose they are.
        _ => [UNIQUE | page, pid.into()],
    })
}

/// Fills a guest's memory.
///
/// # Safety
/// `memory` is a writable mapping of so many pages, all zeroes, that nobody else uses yet.
pub(crate) unsafe fn fill(memory: NonNull<u8>, pages: ByKind) {
    for (page, words) in words(pages, process::pid()).enumerate() {
        // SAFETY: inside the mapping and aligned, as it begins at a page. Volatile, so that zeroes are written, too:
        // otherwise there would be no memory behind them.
        unsafe { memory.add(page * PAGE_SIZE).cast::<[u64; 2]>().write_volatile(words) };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn only_what_is_to_be_equal_is_equal() {
        let pages = ByKind { duplicate: 101, zero: 7, unique: 23 };
        let [one, other]: [Vec<_>; 2] = [503, 509].map(|pid| words(pages, pid).collect());
        assert_eq!((one.len(), &one[..108]), (131, &other[..108]));
        assert!(one[101..108].iter().all(|words| *words == [0, 0]));
        let different: HashSet<_> = one.iter().chain(&other).collect();
        assert_eq!(different.len(), 101 + 1 + 2 * 23);
    }
}
