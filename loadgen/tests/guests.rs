//! Real guests do what they were told to, and say so truly.

mod support;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use support::{
    Running, TempDir, alone, cgroups, comm, number, read_truth, run, schedstat, share, threads,
};

#[test]
fn spinning_guests_all_spin_and_go_on_spinning() {
    let _alone = alone();
    let iterations = |seconds: &str| {
        let (summary, truth) = run(&["--vms", "5", "--duration", seconds]);
        assert_eq!(truth.len(), 5);
        for line in &truth {
            assert!(number(line, "iterations") > 0, "{line}");
            assert_eq!(line["workload"], "spin");
            assert_eq!(number(line, "ticks"), 0);
        }
        number(&summary, "iterations")
    };
    let (short, long) = (iterations("0.5"), iterations("2"));
    assert!(long > short * 3 / 2, "{short} in 0.5 s, {long} in 2 s");
}

/// Every period has a tick of its own or is counted as missed; a tick that finds the guest awake needs no HLT.
#[test]
fn idle_guests_tick_at_their_rate() {
    let _alone = alone();
    for hz in [100, 1_000] {
        let workload = format!("idle={hz}");
        let (summary, truth) = run(&["--vms", "2", "--workload", &workload, "--duration", "3"]);
        let expected = f64::from(hz) * summary["run_s"].as_f64().expect("run_s");
        for line in &truth {
            let (ticks, hlts) = (number(line, "ticks"), number(&line["exits"], "hlt"));
            let periods = (ticks + number(line, "ticks_missed")) as f64;
            let off = (periods - expected).abs();
            assert!(off <= 3.0 + expected * 0.02, "{expected} expected: {line}");
            assert!(hlts <= ticks + 1 && hlts + 2 + ticks / 10 >= ticks, "{line}");
            assert!(number(line, "latest_tick_ns") > 0, "{line}");
        }
    }
}

/// Late or not, every tick is in one bucket, and the latest one in the last.
#[test]
fn every_tick_is_in_the_histogram_of_lateness() {
    let _alone = alone();
    for workload in ["idle=1009", "duty=60", "exits=hlt:23", "spin"] {
        let args = ["--vms", "5", "--vcpus", "2", "--workload", workload, "--duration", "2"];
        for line in run(&args).1 {
            let buckets = line["late_ticks"].as_array().expect("an array");
            let buckets: Vec<_> = buckets
                .iter()
                .map(|row| [0, 1, 2].map(|at| row[at].as_u64().expect("a number")))
                .collect();
            let (ticks, latest_ns) = (number(&line, "ticks"), number(&line, "latest_tick_ns"));
            assert_eq!(buckets.iter().map(|[_, _, count]| count).sum::<u64>(), ticks, "{line}");
            assert!(buckets.is_sorted() && buckets.iter().all(|row| row[2] > 0), "{line}");
            let in_last = |[lo_ns, hi_ns, _]: &[u64; 3]| (*lo_ns..*hi_ns).contains(&latest_ns);
            assert!(buckets.last().is_none_or(in_last), "{line}");
        }
    }
}

#[test]
fn duty_burns_its_share_of_cpu_time() {
    let _alone = alone();
    let running = Running::start(&["--vms", "1", "--workload", "duty=30"], None);
    let share = share(&running, &running.guests()[..1]);
    assert!((0.27..0.34).contains(&share), "{share}");
}

#[test]
fn guests_and_vcpus_are_named_and_in_one_light_cgroup() {
    let _alone = alone();
    let args = ["--vms", "24", "--vcpus", "3", "--workload", "idle=23", "--duration", "20"];
    let dir = TempDir::new("names");
    let mut running = Running::start(&args, Some(&dir.file("truth")));
    let guests = running.guests();
    assert_eq!(guests.len(), 24);
    for (number, pid) in (1..).zip(&guests) {
        assert_eq!(comm(*pid), format!("loadgen-{number:04}"));
        let mut names: Vec<_> = threads(*pid)
            .into_iter()
            .map(comm)
            .filter(|name| !name.starts_with("kvm-nx")) // one of KVM's own, since 6.14
            .collect();
        names.sort();
        let expected = [
            format!("{number:04}/vcpu1"),
            format!("{number:04}/vcpu2"),
            format!("loadgen-{number:04}"),
        ];
        assert_eq!(names, expected);
    }
    let cgroups = cgroups(running.pid());
    assert!(!cgroups.is_empty());
    for dir in &cgroups {
        let procs = fs::read_to_string(dir.join("cgroup.procs")).expect("cgroup.procs");
        let mut procs: Vec<u32> = procs.lines().map(|pid| pid.parse().expect("a PID")).collect();
        let mut expected = guests.clone();
        procs.sort_unstable();
        expected.sort_unstable();
        assert_eq!(procs, expected, "{}", dir.display());
    }
    let weight = |dir: &std::path::PathBuf| {
        let file = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
        format!("{}{}", file("cpu.shares"), file("cpu.weight"))
    };
    let weights: String = cgroups.iter().map(weight).collect();
    assert!(["64\n", "6\n"].contains(&weights.as_str()), "{weights}");

    thread::sleep(Duration::from_secs(2));
    running.signal(libc::SIGTERM);
    assert!(running.wait().0.success());
    let truth = read_truth(&dir.file("truth"));
    assert_eq!(truth.len(), 24 * 3);
    for (index, line) in truth.iter().enumerate() {
        assert_eq!(line["vm"], format!("loadgen-{:04}", index / 3 + 1));
        assert_eq!(number(line, "vcpu"), index as u64 % 3);
        assert_eq!(number(line, "pid"), u64::from(guests[index / 3]));
        assert_eq!(number(line, "tid") == number(line, "pid"), index % 3 == 0);
        assert!(number(line, "ticks") > 0, "{line}");
    }
    running.assert_nothing_left(Duration::ZERO);
}

/// Wherever loadgen itself may run: every thread of a guest is bound, and the last CPU is one of theirs.
#[test]
fn all_threads_of_guests_stay_on_their_cpus() {
    let _alone = alone();
    let online = fs::read_to_string("/sys/devices/system/cpu/online").expect("the CPUs");
    let cpu = online.trim().rsplit([',', '-']).next().expect("a CPU");
    let args = ["--vms", "2", "--vcpus", "3", "--workload", "idle=23", "--io-thread", "5"];
    let running = Running::start(&[&args[..], &["--cpus", cpu, "--duration", "20"]].concat(), None);
    thread::sleep(Duration::from_millis(500));
    for guest in running.guests() {
        let tids = threads(guest);
        assert!(tids.len() >= 4);
        for tid in tids {
            let status = fs::read_to_string(format!("/proc/{tid}/status")).expect("a status");
            let allowed = format!("Cpus_allowed_list:\t{cpu}\n");
            assert!(status.contains(&allowed), "{cpu}: {status}");
        }
    }
}

/// What a guest reads as steal is what the host's scheduler has booked as its waiting.
#[test]
fn steal_is_what_the_scheduler_says() {
    let _alone = alone();
    let dir = TempDir::new("steal");
    let truth = dir.file("truth");
    let mut running = Running::start(&["--vms", "23", "--duration", "50"], Some(&truth));
    let guests = running.guests();
    // Guests begin to count later than the kernel: they have waited while they were made.
    let delays = || -> Vec<u64> { guests.iter().map(|pid| schedstat(*pid).1).collect() };
    let before = delays();
    thread::sleep(Duration::from_secs(5));
    let delays = delays();
    let read = Instant::now();
    running.signal(libc::SIGINT);
    assert!(running.wait().0.success());
    // The guest's figure is the later one, and it has the wait that was going on when we read ours.
    let later = u64::try_from(read.elapsed().as_nanos()).expect("nanoseconds") + 100_000_000;
    for ((line, delay), before) in read_truth(&truth).iter().zip(delays).zip(before) {
        let steal = number(line, "steal_ns");
        assert!(delay > 1_000_000_000, "no overload: {delay}");
        let expected = delay - before - delay / 50..delay + delay / 50 + later;
        assert!(expected.contains(&steal), "{before} {delay}: {line}");
    }
}

#[test]
fn a_thousand_and_nine_guests_run_at_once() {
    let _alone = alone();
    let (summary, truth) = run(&["--vms", "1009", "--duration", "8"]);
    assert_eq!(number(&summary, "vms"), 1_009);
    assert_eq!(number(&summary, "killed"), 0);
    // The kernel may let one of them wait for as long as that.
    let start_s = summary["start_s"].as_f64().expect("all have started");
    assert!(start_s > 0.0 && start_s < 8.0, "{start_s}");
    assert_eq!(truth.len(), 1_009);
    for line in &truth {
        assert!(number(line, "iterations") > 0, "{line}");
    }
    let pids: std::collections::BTreeSet<_> = truth.iter().map(|l| number(l, "pid")).collect();
    assert_eq!(pids.len(), 1_009);
    for pid in pids {
        let name = comm(u32::try_from(pid).expect("a PID"));
        assert!(!name.starts_with("loadgen-"), "{pid} is still there");
    }
}
