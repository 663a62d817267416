//! The sum of waits is the kernel's `run_delay`; nothing is missed.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::RUNQLAT;
use crate::util::threads::{Threads, burn, pin, set_fifo};
use crate::util::tool::{CsvRow, Tool, csv_rows, number, total};
use crate::util::{self, alone};

/// A prime number of threads, more than the CPUs can run at once.
const THREADS: usize = 23;

/// Traces this process's threads by thread while they work.
fn trace(threads: &Threads) -> HashMap<i32, CsvRow> {
    let pid = std::process::id().to_string();
    let tool = Tool::start(RUNQLAT, &["-L", "-p", &pid, "--csv"]);
    threads.go();
    threads.finish();
    let rows = tool.end(libc::SIGINT).rows();
    rows.into_iter().map(|row| (number(&row, "tid") as i32, row)).collect()
}

fn timeslices(tid: i32) -> u64 {
    util::timeslices(std::process::id(), tid)
}

/// One thread, as the kernel's books and runqlat have it.
struct BothSides {
    tid: i32,
    run_delay_ns: u64,
    sum_ns: u64,
    timeslices: u64,
    count: u64,
}

/// What the books grew by while the threads worked, and what runqlat says of the same time.
fn both_sides(threads: &Threads) -> Vec<BothSides> {
    let slices = || threads.tids.iter().map(|&tid| timeslices(tid)).collect::<Vec<_>>();
    let before = (threads.run_delays_ns(), slices());
    let rows = trace(threads);
    let after = (threads.run_delays_ns(), slices());
    let side = |(i, &tid): (usize, &i32)| BothSides {
        tid,
        run_delay_ns: after.0[i] - before.0[i],
        sum_ns: number(&rows[&tid], "sum_ns"),
        timeslices: after.1[i] - before.1[i],
        count: number(&rows[&tid], "count"),
    };
    threads.tids.iter().enumerate().map(side).collect()
}

/// Bursts with sleeps between, so that there are wake-ups as well as preemptions.
fn busy() {
    for _ in 0..7 {
        burn(Duration::from_millis(23));
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn pinned_threads_waits_equal_run_delay_to_the_nanosecond() {
    let _alone = alone();
    let threads = Threads::asleep(THREADS, |i| {
        pin(i % 2);
        busy();
    });
    for side in both_sides(&threads) {
        let tid = side.tid;
        assert!(
            side.run_delay_ns > 1_000_000,
            "thread {tid} was to wait: {} ns",
            side.run_delay_ns
        );
        assert_eq!(side.sum_ns, side.run_delay_ns, "thread {tid}");
        assert_eq!(side.count, side.timeslices, "thread {tid}");
    }
}

#[test]
fn migrating_threads_waits_equal_run_delay_within_a_thousandth() {
    let _alone = alone();
    let threads = Threads::asleep(THREADS, |_| busy());
    for side in both_sides(&threads) {
        let (tid, truth, seen) = (side.tid, side.run_delay_ns, side.sum_ns);
        assert!(truth > 1_000_000, "thread {tid} was to wait: {truth} ns");
        assert!(seen.abs_diff(truth) <= truth / 1_000, "thread {tid}: {seen} for {truth}");
    }
}

#[test]
fn waits_that_end_on_an_idle_cpu_are_counted_on_every_cpu() {
    let _alone = alone();
    let threads = Threads::asleep(2, |cpu| {
        pin(cpu);
        for _ in 0..503 {
            thread::sleep(Duration::from_micros(200));
        }
    });
    for side in both_sides(&threads) {
        assert!(side.timeslices >= 503);
        assert_eq!(side.count, side.timeslices, "thread {}", side.tid);
        assert_eq!(side.sum_ns, side.run_delay_ns, "thread {}", side.tid);
    }
}

#[test]
fn none_of_14_009_threads_is_lost() {
    let _alone = alone();
    const MANY: usize = 14_009;
    let threads = Threads::asleep(MANY, |_| ());
    let before = threads.run_delays_ns();
    let rows = trace(&threads);
    let after = threads.run_delays_ns();
    for ((tid, before), after) in threads.tids.iter().zip(before).zip(after) {
        let row = rows.get(tid).unwrap_or_else(|| panic!("thread {tid} has no row"));
        assert!(number(row, "count") >= 1);
        assert_eq!(number(row, "sum_ns"), after - before, "thread {tid}");
        assert_eq!(number(row, "lost"), 0);
    }
}

#[test]
fn what_finds_no_room_is_counted() {
    let _alone = alone();
    const MANY: usize = 14_009;
    let pid = std::process::id().to_string();
    let tool = with_small_maps(&["-L", "-p", &pid, "--csv", "--strict"]);
    let threads = Threads::asleep(MANY, |_| ());
    threads.go();
    threads.finish();
    let happened = threads.tids.iter().map(|tid| timeslices(*tid)).sum::<u64>();

    let ended = tool.end(libc::SIGINT);
    assert_eq!(ended.status.code(), Some(4), "--strict: {}", ended.stderr);
    let rows = csv_rows(&ended.stdout);
    let lost = number(&rows[0], "lost");
    assert!(lost >= (MANY - ROOM) as u64, "{lost}");
    assert_eq!(ended.stderr, format!("runqlat: lost {lost} waits: no room for them\n"));
    // This test's own thread, which has waited for the others, and the test runner's are in it, too.
    let seen = total(&rows, "count") + lost;
    assert!(seen >= happened && seen <= happened + happened / 5, "{seen} of {happened}");
}

#[test]
fn threads_that_come_and_go_do_not_fill_the_maps() {
    let _alone = alone();
    const WAVES: usize = 31;
    // Up to twenty powers of two each: a wave fits, all together do not.
    const WAVE: usize = 151;
    let pid = std::process::id().to_string();
    let tool = with_small_maps(&["-L", "-p", &pid, "--csv", "0.1"]);
    let mut happened = 0;
    for _ in 0..WAVES {
        let threads = Threads::asleep(WAVE, |_| burn(Duration::from_micros(200)));
        threads.go();
        threads.finish();
        happened += threads.tids.iter().map(|tid| timeslices(*tid)).sum::<u64>();
        drop(threads);
        thread::sleep(Duration::from_millis(350));
    }
    let ended = tool.end(libc::SIGINT);
    let rows = ended.rows();
    let rows_of_threads = rows.iter().filter(|row| number(row, "count") > 0).count();
    assert!(rows_of_threads > WAVES * WAVE, "{rows_of_threads}");
    assert_eq!(rows.iter().map(|row| number(row, "lost")).max(), Some(0));
    // More than that: they have a last wait when they end.
    assert!(total(&rows, "count") >= happened, "{} of {happened}", total(&rows, "count"));
}

/// How many elements maps have room for when they are sized by [`SMALL_PID_MAX`]: 8 powers of two for each task.
const ROOM: usize = 8 * SMALL_PID_MAX;
/// More than the PIDs that a machine has after its start, so that there is one for the tool.
const SMALL_PID_MAX: usize = 1_511;

/// Starts runqlat while kernel.pid_max, from which maps are sized, is small.
fn with_small_maps(args: &[&str]) -> Tool {
    let _small = PidMax::set(SMALL_PID_MAX);
    Tool::start(RUNQLAT, args)
}

const PID_MAX: &str = "/proc/sys/kernel/pid_max";

/// Another kernel.pid_max, put back when dropped. Tasks that exist are not touched by it.
struct PidMax(String);

impl PidMax {
    fn set(pid_max: usize) -> Self {
        let before = std::fs::read_to_string(PID_MAX).unwrap();
        std::fs::write(PID_MAX, pid_max.to_string()).unwrap();
        Self(before)
    }
}

impl Drop for PidMax {
    fn drop(&mut self) {
        std::fs::write(PID_MAX, &self.0).unwrap();
    }
}

#[test]
fn a_starved_thread_is_seen_waiting_and_its_wait_is_whole() {
    let _alone = alone();
    let pid = std::process::id().to_string();
    let threads = Threads::asleep(1, |_| {
        pin(1);
        set_fifo(1);
        // Asleep until the hog has its CPU; then, woken, it waits.
        thread::sleep(Duration::from_millis(300));
        burn(Duration::from_millis(1));
        set_fifo(0);
    });
    let victim = threads.tids[0];
    threads.go();
    thread::sleep(Duration::from_millis(100));
    let hog = thread::spawn(|| {
        pin(1);
        set_fifo(2);
        burn(Duration::from_millis(3_500));
    });
    let woken = Instant::now() + Duration::from_millis(200);
    thread::sleep(Duration::from_millis(500));

    // The tool itself must not be in the hog's way.
    let victim_tid = victim.to_string();
    let args = ["-c", "0", RUNQLAT, "-L", "-t", &victim_tid, "-p", &pid, "--csv", "1", "4"];
    let mut tool = Tool::start("taskset", &args);
    let first = tool.line();
    let age_s = woken.elapsed().as_secs_f64();
    hog.join().unwrap();
    threads.finish();
    let waited_s = woken.elapsed().as_secs_f64();
    let ended = tool.wait();
    let header = ended.stdout.lines().next().unwrap();

    let starved = &csv_rows(&format!("{header}\n{first}\n"))[0];
    assert_eq!(number(starved, "tid"), victim as u64);
    assert_eq!((number(starved, "count"), number(starved, "waiting")), (0, 1));
    assert_eq!(starved["max_ns"], "", "no wait ended, so there is no longest");
    let seen_s = number(starved, "longest_waiting_ns") as f64 / 1e9;
    assert!((seen_s - age_s).abs() < 0.1, "{seen_s} s for {age_s} s");

    let later = ended.rows();
    let whole: Vec<_> = later.iter().filter(|row| number(row, "count") > 0).collect();
    assert!(!whole.is_empty(), "the wait has ended: {}", ended.stdout);
    let longest_s = whole.iter().map(|row| number(row, "max_ns")).max().unwrap() as f64 / 1e9;
    assert!(longest_s > 2.0 && longest_s <= waited_s + 0.1, "{longest_s} s of {waited_s} s");
}

#[test]
fn extremes_are_exact_from_the_first_interval_on() {
    let _alone = alone();
    // One wait each, so that the lowest, the highest and the sum are one figure.
    let threads = Threads::asleep(101, |_| ());
    let rows = trace(&threads);
    for tid in &threads.tids {
        let row = &rows[tid];
        if number(row, "count") == 1 {
            assert_eq!(row["min_ns"], row["sum_ns"]);
            assert_eq!(row["max_ns"], row["sum_ns"]);
        }
    }
    assert!(rows.values().filter(|row| number(row, "count") == 1).count() > 23);
}

#[test]
fn waits_begun_by_preemption_are_told_from_wake_ups() {
    let _alone = alone();
    // Two spinners on one CPU preempt each other and never sleep; the third sleeps between short bursts.
    let threads = Threads::asleep(3, |i| {
        pin(0);
        if i < 2 {
            burn(Duration::from_millis(997));
        } else {
            for _ in 0..101 {
                thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let before: Vec<_> = threads.tids.iter().map(|&tid| involuntary_switches(tid)).collect();
    let rows = trace(&threads);
    let after: Vec<_> = threads.tids.iter().map(|&tid| involuntary_switches(tid)).collect();
    for ((tid, before), after) in threads.tids.iter().zip(before).zip(after) {
        // A host whose sched_switch hides a wait now and then does not tell how it began.
        let unseen = (after - before).checked_sub(number(&rows[tid], "preempted"));
        assert!(unseen.is_some_and(|waits| waits <= 1), "thread {tid}: {unseen:?}");
    }
    let preempted: u64 = threads.tids.iter().map(|tid| number(&rows[tid], "preempted")).sum();
    assert!(preempted > 100, "spinners push each other off: {preempted}");
    let counts = total(&rows.into_values().collect::<Vec<_>>(), "count");
    assert!(counts >= preempted + 101, "each of 101 sleeps ends in a wake-up: {counts}");
}

fn involuntary_switches(tid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    count.unwrap().trim().parse().unwrap()
}
