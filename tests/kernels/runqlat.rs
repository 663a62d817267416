//! Waits are what the kernel's books and the guests say, on every kernel.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::util::threads::{Threads, burn, pin, pin_thread, set_fifo};
use crate::util::tool::{CsvRow, Tool, json_lines, number, total};
use crate::util::{TempDir, alone, loadgen, timeslices};

const RUNQLAT: &str = env!("CARGO_BIN_EXE_runqlat");

/// Whether runqlat can keep books on tasks: what it says of moved waits and of how waits began takes that.
fn has_task_storage() -> bool {
    crate::kernel() >= (5, 13)
}

/// Traces threads while `go` lets them work: what the kernel's books of each grew by, as (run_delay, timeslices), and
/// its row.
fn trace(threads: &Threads, go: impl FnOnce(&Threads)) -> Vec<(u64, u64, CsvRow)> {
    let pid = std::process::id();
    let slices = || threads.tids.iter().map(|&tid| timeslices(pid, tid)).collect::<Vec<_>>();
    let before = (threads.run_delays_ns(), slices());
    let tool = Tool::start(RUNQLAT, &["-L", "-p", &pid.to_string(), "--csv"]);
    go(threads);
    threads.finish();
    let rows = tool.end(libc::SIGINT).rows();
    let after = (threads.run_delays_ns(), slices());
    let mut rows: HashMap<_, _> =
        rows.into_iter().map(|row| (number(&row, "tid") as i32, row)).collect();
    let sides = threads.tids.iter().enumerate();
    sides
        .map(|(i, tid)| {
            (after.0[i] - before.0[i], after.1[i] - before.1[i], rows.remove(tid).unwrap())
        })
        .collect()
}

#[test]
fn pinned_threads_waits_equal_the_kernels_books() {
    let _alone = alone();
    let threads = Threads::asleep(7, |_| {
        for _ in 0..5 {
            burn(Duration::from_millis(23));
            thread::sleep(Duration::from_millis(1));
        }
    });
    threads.tids.iter().zip(0..).for_each(|(&tid, i)| pin_thread(tid, i % 2));
    for (run_delay_ns, timeslices, row) in trace(&threads, Threads::go) {
        assert!(run_delay_ns > 1_000_000, "it was to wait: {row:?}");
        assert_eq!(number(&row, "sum_ns"), run_delay_ns, "{row:?}");
        assert_eq!(number(&row, "count"), timeslices, "{row:?}");
        assert_eq!(number(&row, "lost"), 0);
    }
}

#[test]
fn wake_ups_on_idle_cpus_are_all_counted() {
    let _alone = alone();
    let threads = Threads::asleep(2, |_| {
        for _ in 0..101 {
            thread::sleep(Duration::from_millis(1));
        }
    });
    threads.tids.iter().zip(0..).for_each(|(&tid, cpu)| pin_thread(tid, cpu));
    for (run_delay_ns, timeslices, row) in trace(&threads, Threads::go) {
        assert!(timeslices >= 101);
        assert_eq!(number(&row, "count"), timeslices, "{row:?}");
        assert_eq!(number(&row, "sum_ns"), run_delay_ns, "{row:?}");
    }
}

#[test]
fn a_wait_moved_to_another_cpu_is_one_where_books_can_be_kept() {
    let _alone = alone();
    let threads = Threads::asleep(1, |_| burn(Duration::from_millis(10)));
    let victim = threads.tids[0];
    pin_thread(victim, 1);
    // Woken behind a hog; moved away from it after a while by somebody who is not in its way.
    let hog = || {
        pin(1);
        set_fifo(1);
        burn(Duration::from_millis(700));
    };
    let mover = || {
        pin(0);
        thread::sleep(Duration::from_millis(100));
        threads.go();
        thread::sleep(Duration::from_millis(300));
        pin_thread(victim, 0);
    };
    let sides = trace(&threads, |_| {
        thread::scope(|scope| {
            scope.spawn(mover);
            scope.spawn(hog);
        });
    });
    let (run_delay_ns, timeslices, row) = &sides[0];
    assert!(*run_delay_ns > 250_000_000, "it was to wait: {run_delay_ns}");
    assert_eq!(number(row, "count"), *timeslices, "{row:?}");
    if has_task_storage() {
        assert_eq!(number(row, "sum_ns"), *run_delay_ns, "{row:?}");
    } else {
        assert!(number(row, "sum_ns") < run_delay_ns - 250_000_000, "{run_delay_ns}: {row:?}");
    }
}

#[test]
fn how_waits_began_is_told_where_books_can_be_kept() {
    let _alone = alone();
    // Two push each other off a CPU; the third sleeps.
    let threads = Threads::asleep(3, |i| match i {
        2 => (0..23).for_each(|_| thread::sleep(Duration::from_millis(5))),
        _ => burn(Duration::from_millis(503)),
    });
    threads.tids.iter().for_each(|&tid| pin_thread(tid, 0));
    let involuntary =
        || -> Vec<u64> { threads.tids.iter().map(|&tid| involuntary_switches(tid)).collect() };
    let before = involuntary();
    let sides = trace(&threads, Threads::go);
    let pushed_off: Vec<_> = involuntary().iter().zip(before).map(|(a, b)| a - b).collect();
    assert!(pushed_off.iter().sum::<u64>() > 23, "{pushed_off:?}");
    for ((_, _, row), pushed_off) in sides.iter().zip(pushed_off) {
        let expected = if has_task_storage() { pushed_off.to_string() } else { String::new() };
        assert_eq!(row["preempted"], expected, "{row:?}");
    }
}

fn involuntary_switches(tid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    count.unwrap().trim().parse().unwrap()
}

#[test]
fn what_a_kernel_cannot_tell_is_said() {
    let _alone = alone();
    let text = Tool::start(RUNQLAT, &["-d", "1"]).wait();
    assert!(text.status.success(), "{}", text.stderr);
    assert!(text.stdout.contains("\ncount "), "{}", text.stdout);
    let said = text.stdout.contains("this kernel has no task storage");
    assert_eq!(said, !has_task_storage(), "{}", text.stdout);
    assert_eq!(text.stdout.contains("preempted"), has_task_storage(), "{}", text.stdout);

    let json = Tool::start(RUNQLAT, &["--json", "-d", "1"]).wait();
    let row: Value = serde_json::from_str(&json.stdout).unwrap();
    let [count, unseen] = ["count", "start_unseen"].map(|name| row[name].as_u64().unwrap());
    assert!(count > 0, "{row}");
    assert_eq!(unseen == count, !has_task_storage(), "{row}");
    assert_eq!(row["preempted"].is_null(), !has_task_storage(), "{row}");
}

#[test]
fn each_vms_wait_is_the_steal_that_its_guest_reads() {
    let _alone = alone();
    let dir = TempDir::new("steal");
    let path = dir.join("truth.json");
    let tool = Tool::start(RUNQLAT, &["--by", "vm", "--csv"]);
    let guests = ["run", "--vms", "7", "--duration", "4", "--truth", path.to_str().unwrap()];
    let ended = Tool::start(&loadgen(), &guests).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let rows = tool.end(libc::SIGINT).rows();

    let truth = fs::read_to_string(&path).unwrap();
    let truth = json_lines(&truth);
    assert_eq!(truth.len(), 7);
    for vcpu in truth {
        let pid = vcpu["pid"].as_u64().unwrap();
        let row = rows.iter().find(|row| number(row, "pid") == pid).unwrap();
        assert_eq!(row["vm"], vcpu["vm"].as_str().unwrap());
        let (wait_ns, steal_ns) = (number(row, "sum_ns"), vcpu["steal_ns"].as_u64().unwrap());
        assert!(steal_ns > 1_000_000_000, "7 spinners wait: {vcpu}");
        // What a guest waits before its first instruction it does not know; without books, what waits that were
        // moved between CPUs had waited before is missing.
        let missing_ns = if has_task_storage() { steal_ns / 20 } else { steal_ns / 4 };
        let likely_ns = steal_ns - missing_ns..steal_ns + steal_ns / 20 + 700_000_000;
        assert!(likely_ns.contains(&wait_ns), "{wait_ns} ns: {vcpu}");
    }
}

#[test]
fn guests_that_wait_are_counted_as_waiting() {
    let _alone = alone();
    let guests = Tool::start(&loadgen(), &["run", "--vms", "11", "--duration", "60"]);
    thread::sleep(Duration::from_millis(500));
    // Somebody else may have guests, too.
    let own = cgroup_of(&guests);
    let rows = Tool::start(RUNQLAT, &["--by", "vm", "-c", &own, "--csv", "-d", "2"]).wait().rows();
    assert!(guests.end(libc::SIGTERM).status.success());
    assert_eq!(rows.len(), 11, "every VM either had a CPU or waits for one");
    // At most one runs on each CPU; on the way between run queues another may be on neither.
    let waiting = total(&rows, "waiting");
    let cpus = thread::available_parallelism().unwrap().get() as u64;
    assert!(waiting <= 11 && waiting + 2 * cpus >= 11, "{rows:?}");
    let waits = rows.iter().filter(|row| number(row, "waiting") > 0);
    let longest_ns = waits.map(|row| number(row, "longest_waiting_ns")).max().unwrap();
    assert!(longest_ns > 1_000_000, "whoever waits longest was not just pushed off: {rows:?}");
}

#[test]
fn a_cgroup_takes_exactly_its_tasks() {
    let _alone = alone();
    let guests = Tool::start(&loadgen(), &["run", "--vms", "5", "--duration", "60"]);
    let own = cgroup_of(&guests);
    let rows = Tool::start(RUNQLAT, &["-P", "-c", &own, "--csv", "-d", "2"]).wait().rows();
    assert!(guests.end(libc::SIGTERM).status.success());
    let mut names: Vec<_> = rows.iter().map(|row| row["comm"].as_str()).collect();
    names.sort_unstable();
    let expected: Vec<_> = (1..=5).map(|i| format!("loadgen-{i:04}")).collect();
    assert_eq!(names, expected);
}

/// The cgroup of version 2 that a loadgen has put its guests into.
fn cgroup_of(guests: &Tool) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let point = mount.expect("a cgroup2 mount").split(' ').nth(1).unwrap();
    format!("{point}/loadgen-{}", guests.pid())
}

#[test]
fn pid_namespaces_are_told_apart() {
    let _alone = alone();
    let rows = Tool::start(RUNQLAT, &["--pidnss", "--csv", "-d", "1"]).wait().rows();
    let host = fs::metadata("/proc/self/ns/pid").unwrap().ino();
    let row = rows.iter().find(|row| number(row, "pidns") == host).unwrap();
    assert!(number(row, "count") > 0, "{row:?}");
}
