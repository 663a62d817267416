//! Guests get the CPU time that they were promised, no more and no less, and say so.

mod support;

use std::fs;
use std::time::Duration;

use support::{Running, TempDir, alone, comm, number, read_truth, schedstat, share};

/// The thread of this process that has this name.
fn thread_named(pid: u32, name: &str) -> u32 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("tasks").flatten();
    let mut tids = tasks.map(|task| task.file_name().to_string_lossy().parse().expect("a TID"));
    tids.find(|tid| comm(*tid) == name).unwrap_or_else(|| panic!("no thread {name}"))
}

#[test]
fn the_io_thread_burns_its_share() {
    let _alone = alone();
    let dir = TempDir::new("io");
    for percent in [23_u32, 71] {
        let truth = dir.file("truth");
        let share_text = percent.to_string();
        let args = ["--vms", "1", "--vcpus", "2", "--workload", "idle=23", "--io-thread"];
        let mut running = Running::start(&[&args[..], &[&share_text]].concat(), Some(&truth));
        let tid = thread_named(running.guests()[0], "0001/io");
        let (share, wanted) = (share(&running, tid), f64::from(percent) / 100.0);
        assert!((share / wanted - 1.0).abs() < 0.1, "{share} instead of {wanted}");

        let burnt = schedstat(tid).0;
        running.signal(libc::SIGINT);
        assert!(running.wait().0.success());
        running.assert_nothing_left(Duration::ZERO);
        let truth = read_truth(&truth);
        assert_eq!(truth.len(), 2);
        for line in &truth {
            assert_eq!(number(line, "io_thread_tid"), u64::from(tid), "{line}");
            let told = number(line, "io_thread_cpu_ns");
            assert!((burnt..burnt + 100_000_000).contains(&told), "{burnt}: {line}");
        }
    }
}

/// It does not keep a guest that is done from leaving; nobody has one who did not ask.
#[test]
fn the_io_thread_leaves_with_its_guest() {
    let _alone = alone();
    let args = ["--vms", "2", "--workload", "exits=cpuid:101@1000", "--io-thread", "5"];
    let (summary, truth) = support::run(&args);
    assert_eq!((number(&summary, "failed"), number(&summary, "killed")), (0, 0), "{summary}");
    for line in &truth {
        assert!(number(line, "io_thread_cpu_ns") > 0, "{line}");
        assert_ne!(number(line, "io_thread_tid"), number(line, "tid"), "{line}");
    }
    let (_, truth) = support::run(&["--vms", "1", "--duration", "0.1"]);
    assert!(truth[0].get("io_thread_tid").is_none(), "{}", truth[0]);
}
