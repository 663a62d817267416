//! Guests get the CPU time that they were promised, no more and no less, and say so.

mod support;

use std::fs;
use std::thread;
use std::time::Duration;

use support::{
    PATIENCE, Running, TempDir, alone, assert_close, cgroups, comm, number, read_truth, run,
    schedstat, share, threads,
};

#[test]
fn the_io_thread_burns_its_share() {
    let _alone = alone();
    let dir = TempDir::new("io");
    for percent in [23_u32, 71] {
        let truth = dir.file("truth");
        let share_text = percent.to_string();
        let args = ["--vms", "1", "--vcpus", "2", "--workload", "idle=23", "--io-thread"];
        let mut running = Running::start(&[&args[..], &[&share_text]].concat(), Some(&truth));
        let tids = threads(running.guests()[0]);
        let tid = tids.into_iter().find(|tid| comm(*tid) == "0001/io").expect("its I/O thread");
        assert_close(share(&running, &[tid]), percent);

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
    let (summary, truth) = run(&args);
    assert_eq!((number(&summary, "failed"), number(&summary, "killed")), (0, 0), "{summary}");
    for line in &truth {
        assert!(number(line, "io_thread_cpu_ns") > 0, "{line}");
        assert_ne!(number(line, "io_thread_tid"), number(line, "tid"), "{line}");
    }
    let (_, truth) = run(&["--vms", "1", "--duration", "0.1"]);
    assert!(truth[0].get("io_thread_tid").is_none(), "{}", truth[0]);
}

#[test]
fn guests_get_their_quota_and_are_throttled_beyond_it() {
    let _alone = alone();
    let dir = TempDir::new("quota");
    let all = ["--vms", "2", "--vcpus", "2", "--io-thread", "59", "--cpu-max", "61"];
    for (args, percent) in [(&["--vms", "1", "--cpu-max", "23"][..], 23), (&all, 61)] {
        let truth = dir.file("truth");
        let mut running = Running::start(args, Some(&truth));
        assert_close(share(&running, &threads(running.guests()[0])), percent);
        running.signal(libc::SIGTERM);
        assert_eq!(running.wait(), (Default::default(), String::new()));
        running.assert_nothing_left(Duration::ZERO);
        for line in read_truth(&truth) {
            assert!(number(&line, "throttled_ns") > 100_000_000, "{line}");
        }
    }
}

#[test]
fn who_stays_below_the_quota_is_not_throttled_and_who_has_none_says_nothing() {
    let _alone = alone();
    let args = ["--vms", "2", "--workload", "idle=23", "--duration", "1"];
    let (_, truth) = run(&[&args[..], &["--cpu-max", "50"]].concat());
    assert!(truth.iter().all(|line| number(line, "throttled_ns") == 0), "{truth:?}");
    let (_, truth) = run(&args);
    assert!(truth.iter().all(|line| line.get("throttled_ns").is_none()), "{truth:?}");
}

/// Guests that have no quota left take their time, but leave: told to, and killed.
#[test]
fn each_guest_has_a_cgroup_of_its_own_that_is_gone_afterwards() {
    let _alone = alone();
    for signal in [libc::SIGINT, libc::SIGKILL] {
        let args = ["--vms", "7", "--vcpus", "2", "--cpu-max", "1", "--duration", "50"];
        let mut running = Running::start(&args, None);
        let fleet = cgroups(running.pid());
        assert!(!fleet.is_empty());
        for (number, pid) in (1..).zip(running.guests()) {
            for dir in &fleet {
                let procs = dir.join(format!("loadgen-{number:04}/cgroup.procs"));
                let procs = fs::read_to_string(procs).expect("the guest's cgroup");
                assert_eq!(procs, format!("{pid}\n"));
            }
        }
        thread::sleep(Duration::from_millis(500));
        running.signal(signal);
        running.wait();
        let patience = if signal == libc::SIGKILL { PATIENCE } else { Duration::ZERO };
        running.assert_nothing_left(patience);
    }
}
