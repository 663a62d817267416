//! A guest's I/O thread: burns a share of a CPU in the VMM, so that a VM can keep its own vCPUs waiting.

use std::hint;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crate::record::VcpuPage;

/// In each of these it burns its share, then sleeps.
const PERIOD: Duration = Duration::from_millis(10);
/// Turns of the loop between two looks at the clock, which is a system call: some 10 µs.
const SPINS: u32 = 1 << 14;

/// Burns `percent` of a CPU, in CPU time, until the guest is to leave; what it has burnt is on the page of vCPU 0.
pub(crate) fn burn(page: &VcpuPage, percent: u32) {
    let share_ns = u64::from(PERIOD.subsec_nanos()) * u64::from(percent) / 100;
    let must_leave = || page.stop.load(Relaxed) != 0;
    let mut goal_ns = thread_cpu_ns();
    let mut end = Instant::now();
    while !must_leave() {
        // Onwards from the last goal: what waking up took is a part of the share, and what was too much is made good.
        goal_ns += share_ns;
        end += PERIOD;
        loop {
            let burnt_ns = thread_cpu_ns();
            page.io_thread_cpu_ns.store(burnt_ns, Relaxed);
            if burnt_ns >= goal_ns || must_leave() {
                break;
            }
            for spin in 0..SPINS {
                hint::black_box(spin);
            }
        }
        // If burning took longer than the period, the next one begins at once.
        end = end.max(Instant::now());
        while let Some(rest) = end.checked_duration_since(Instant::now())
            && !rest.is_zero()
            && !must_leave()
        {
            thread::park_timeout(rest);
        }
    }
    page.io_thread_cpu_ns.store(thread_cpu_ns(), Relaxed);
}

/// CPU time of the calling thread.
fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_burns_until_told_to_leave_and_says_how_much() {
        // SAFETY: a page of zeroes is a valid record: it has only integers.
        let page: VcpuPage = unsafe { std::mem::zeroed() };
        let burnt_ns = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                burn(&page, 23);
                thread_cpu_ns()
            });
            thread::sleep(Duration::from_millis(203));
            page.stop.store(1, Relaxed);
            thread.thread().unpark();
            thread.join().expect("a thread")
        });
        let told_ns = page.io_thread_cpu_ns.load(Relaxed);
        // 21 periods have begun, or fewer on a busy machine.
        assert!((2_300_000..=21 * 2_300_000 + 1_000_000).contains(&told_ns), "{told_ns}");
        assert!((told_ns..told_ns + 2_000_000).contains(&burnt_ns), "{told_ns}, {burnt_ns}");
    }
}
