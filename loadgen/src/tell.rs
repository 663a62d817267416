//! What a guest is told in its vCPU's page before it starts: its timer, the exits it is to cause, the memory it is to
//! rewrite.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::code::Entry;
use crate::exits::{ExitKind, Exits};
use crate::image;
use crate::memory::{Memory, Rewrite};
use crate::record::{PAGE_SIZE, VcpuPage};
use crate::workload::Timer;

/// How long a HLT of an `exits` guest lasts.
const HLT_PERIOD: Duration = Duration::from_millis(1);

/// Tells the guest about its timer.
pub(crate) fn timer(page: &VcpuPage, wanted: Timer, tsc_khz: u32) {
    let period = tsc_cycles(wanted.period.as_nanos(), tsc_khz).max(1);
    let period_ns = u32::try_from(wanted.period.as_nanos()).unwrap_or(u32::MAX);
    page.period_ns.store(period_ns, Relaxed);
    page.period_tsc.store(period, Relaxed);
    page.grid_tsc.store(period + (period >> 14), Relaxed);
    page.burn_tsc.store(tsc_cycles(wanted.burn.as_nanos(), tsc_khz), Relaxed);
    page.tsc_per_ns.store(tsc_cycles(1 << 32, tsc_khz), Relaxed);
    page.ns_per_tsc.store((1_000_000 << 32) / u64::from(tsc_khz.max(1)), Relaxed);
}

/// Tells the guest what exits to cause; `vmcall`: whether its hypercall is VMCALL; `fresh_gva`: from where on nobody has
/// touched its memory.
pub(crate) fn exits(
    page: &VcpuPage,
    wanted: &Exits,
    vcpu: u32,
    tsc_khz: u32,
    vmcall: bool,
    fresh_gva: u64,
) {
    for exit in wanted.iter() {
        let record = &page.kinds[exit.kind as usize];
        record.count.store(exit.count.into(), Relaxed);
        let period_tsc = exit.period().map_or(0, |period| tsc_cycles(period.as_nanos(), tsc_khz));
        record.period_tsc.store(period_tsc, Relaxed);
    }
    if wanted.count(ExitKind::Hlt) > 0 {
        page.period_ns.store(HLT_PERIOD.subsec_nanos(), Relaxed);
    }
    // Every vCPU has pages of its own.
    let touched = u64::from(wanted.count(ExitKind::Pagefault)) * u64::from(vcpu);
    page.fresh_gva.store(fresh_gva + touched * PAGE_SIZE as u64, Relaxed);
    page.vmcall.store(vmcall.into(), Relaxed);
}

/// Tells the guest what memory to rewrite.
pub(crate) fn rewrites(page: &VcpuPage, wanted: &Memory, rewrite: Rewrite, tsc_khz: u32) {
    let pages = wanted.pages();
    let record = &page.memory;
    record.duplicate_end.store(pages.duplicate, Relaxed);
    record.zero_end.store(pages.duplicate + pages.zero, Relaxed);
    record.end.store(pages.all(), Relaxed);
    record.stride.store(stride(pages.all()), Relaxed);
    match rewrite {
        Rewrite::PerSignal(_) => {}
        Rewrite::PerSecond(percent) => {
            let period_tsc =
                u64::from(tsc_khz) * 1_000 * 100 / (pages.all() * u64::from(percent)).max(1);
            record.period_tsc.store(period_tsc.max(1), Relaxed);
            record.goal.store(u64::MAX, Relaxed);
        }
    }
    record.rewriter.store(image::address_of(Entry::Rewriter), Relaxed);
}

/// How far to go from a page to the next so that all have their turn and each stretch of turns has its share of every
/// part of the memory: the golden section does.
fn stride(pages: u64) -> u64 {
    let golden = pages * 618 / 1_000;
    (1..=golden).rev().find(|stride| greatest_common_divisor(*stride, pages) == 1).unwrap_or(0)
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Nanoseconds in cycles of a TSC.
fn tsc_cycles(ns: u128, tsc_khz: u32) -> u64 {
    let cycles = ns * u128::from(tsc_khz) / 1_000_000;
    u64::try_from(cycles).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;

    #[test]
    fn a_timer_is_told_in_tsc_cycles() {
        // SAFETY: a page of zeroes is a valid record: it has only integers.
        let page: VcpuPage = unsafe { std::mem::zeroed() };
        let wanted = Workload::Duty { percent: 30 }.timer().expect("a timer");
        timer(&page, wanted, 2_600_000);
        assert_eq!(page.period_ns.load(Relaxed), 10_000_000);
        assert_eq!(page.period_tsc.load(Relaxed), 26_000_000);
        assert_eq!(page.grid_tsc.load(Relaxed), 26_000_000 + 1_586);
        assert_eq!(page.burn_tsc.load(Relaxed), 7_800_000);
        assert_eq!(page.tsc_per_ns.load(Relaxed), (26 << 32) / 10);
        assert_eq!(page.ns_per_tsc.load(Relaxed), (10 << 32) / 26);
    }

    #[test]
    fn exits_are_told_by_kind_and_every_vcpu_has_pages_of_its_own() {
        // SAFETY: a page of zeroes is a valid record: it has only integers.
        let page: VcpuPage = unsafe { std::mem::zeroed() };
        let wanted = "pagefault:1009,cpuid:503@100".parse().expect("exits");
        exits(&page, &wanted, 2, 2_600_000, true, 4 << 30);
        let cpuid = &page.kinds[ExitKind::Cpuid as usize];
        assert_eq!(cpuid.count.load(Relaxed), 503);
        assert_eq!(cpuid.period_tsc.load(Relaxed), 26_000_000);
        assert_eq!(page.kinds[ExitKind::Pagefault as usize].period_tsc.load(Relaxed), 0);
        assert_eq!(page.kinds[ExitKind::Pio as usize].count.load(Relaxed), 0);
        assert_eq!(page.fresh_gva.load(Relaxed), (4 << 30) + 2 * 1_009 * 4_096);
        assert_eq!(page.vmcall.load(Relaxed), 1);
        assert_eq!(page.period_ns.load(Relaxed), 0, "there is no HLT, so no timer");
    }

    #[test]
    fn rewrites_are_told_as_pages_and_cycles() {
        // SAFETY: a page of zeroes is a valid record: it has only integers.
        let page: VcpuPage = unsafe { std::mem::zeroed() };
        let wanted: Memory = "4M,duplicate=50,zero=10".parse().expect("memory");
        rewrites(&page, &wanted, Rewrite::PerSecond(50), 2_600_000);
        let record = &page.memory;
        let ends = [&record.duplicate_end, &record.zero_end, &record.end];
        assert_eq!(ends.map(|end| end.load(Relaxed)), [512, 614, 1_024]);
        assert_eq!(record.period_tsc.load(Relaxed), 2_600_000_000 / 512);
        assert_eq!(record.goal.load(Relaxed), u64::MAX);
        assert!(record.rewriter.load(Relaxed) > 0);
        rewrites(&page, &wanted, Rewrite::PerSignal(50), 2_600_000);
    }

    #[test]
    fn every_page_has_its_turn_and_every_part_its_share() {
        for pages in [1, 2, 3, 4, 1_009, 4_096, 10_007] {
            let mut turns = vec![0; usize::try_from(pages).expect("pages")];
            let mut page = 0;
            for turn in 1..=pages {
                turns[usize::try_from(page).expect("a page")] += 1;
                page = (page + stride(pages)) % pages;
                let first_half = turns[..turns.len() / 2].iter().sum::<u64>();
                assert!((turn / 2).abs_diff(first_half) <= 4, "{pages}: {first_half} of {turn}");
            }
            assert!(turns.iter().all(|turns| *turns == 1), "{pages}");
        }
    }
}
