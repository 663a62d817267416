//! Guests are held to what was asked for: by what the kernel says of them, and by what they get.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use support::{
    PATIENCE, Running, TempDir, alone, assert_close, cgroups, children_of, comm, kill, loadgen,
    number, read_truth, run, schedstat, share, threads,
};

/// The number of a field of /proc/TID/stat, as proc(5) counts them.
fn stat(tid: u32, field: usize) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).expect("stat");
    let after_comm = stat.rsplit(") ").next().expect("what follows the name");
    after_comm.split(' ').nth(field - 3).expect("a field").parse().expect("a number")
}

/// Nice value and scheduling policy.
fn priority(tid: u32) -> [i32; 2] {
    [19, 41].map(|field| stat(tid, field))
}

/// The CPUs that a thread may run on.
fn allowed(tid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).expect("status");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.expect("its CPUs").trim().to_owned()
}

/// What the file of that name says, in whichever of these directories it is; none if it is nowhere.
fn value(dirs: &[impl AsRef<Path>], names: &[&str]) -> Option<String> {
    let files = dirs.iter().flat_map(|dir| names.iter().map(move |name| dir.as_ref().join(name)));
    files.filter_map(|file| fs::read_to_string(file).ok()).next().map(|text| text.trim().to_owned())
}

/// Of v2 with its period, of v1 without.
const QUOTA: [&str; 2] = ["cpu.cfs_quota_us", "cpu.max"];
const MEMORY_MAX: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];

/// Nanoseconds that all threads of its guests have run.
fn run_ns(fleet: &Running) -> u64 {
    let tids = fleet.guests().into_iter().flat_map(threads);
    tids.map(|tid| schedstat(tid).0).sum()
}

/// What the first of two fleets on one CPU gets of what both get, in 3 s, whatever else the machine does.
fn part_of_first(first: &[&str], second: &[&str]) -> f64 {
    let common = ["--vms", "2", "--cpus", "0", "--duration", "50"];
    let fleets = [first, second].map(|args| Running::start(&[&common, args].concat(), None));
    thread::sleep(Duration::from_millis(500));
    let before_ns = fleets.each_ref().map(run_ns);
    thread::sleep(Duration::from_secs(3));
    let after_ns = fleets.each_ref().map(run_ns);
    for mut fleet in fleets {
        fleet.signal(libc::SIGTERM);
        assert_eq!(fleet.wait(), (Default::default(), String::new()));
        fleet.assert_nothing_left(Duration::ZERO);
    }
    let [first_ns, second_ns] = [0, 1].map(|fleet| (after_ns[fleet] - before_ns[fleet]) as f64);
    first_ns / (first_ns + second_ns)
}

/// And nothing is left of the cgroup of one that is gone.
#[test]
fn who_replaces_another_is_held_to_the_same() {
    let _alone = alone();
    let args = "--vms 3 --vcpus 2 --workload idle=101 --io-thread 1 --churn 5/s --duration 50";
    let held = "--cpu-max 50 --memory-max 64M --pin --sched batch";
    let args: Vec<_> = args.split(' ').chain(held.split(' ')).collect();
    let dir = TempDir::new("replaced");
    let mut fleet = Running::start(&args, Some(&dir.file("truth")));
    let own = || -> Vec<PathBuf> {
        let fleets = cgroups(fleet.pid()).into_iter();
        let entries = fleets.flat_map(|dir| fs::read_dir(dir).expect("a cgroup").flatten());
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| path.is_dir()).collect()
    };
    let number = |dir: &PathBuf| -> u32 {
        let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
        name.trim_start_matches("loadgen-").parse().expect("a number")
    };
    let deadline = Instant::now() + PATIENCE;
    let (pid, dirs) = loop {
        let newest = children_of(fleet.pid()).into_iter().max_by_key(|pid| comm(*pid));
        let newest = newest.expect("a guest");
        let dirs: Vec<_> = own().into_iter().filter(|dir| dir.ends_with(comm(newest))).collect();
        let has_begun = threads(newest).len() >= 3 && !dirs.is_empty();
        if number(&PathBuf::from(comm(newest))) > 10 && has_begun {
            break (newest, dirs);
        }
        assert!(Instant::now() < deadline, "nobody comes");
        thread::sleep(Duration::from_millis(20));
    };
    thread::sleep(Duration::from_millis(100));
    let quota = value(&dirs, &QUOTA).expect("a quota");
    assert!(["50000", "50000 100000"].contains(&quota.as_str()), "{quota}");
    assert_eq!(value(&dirs, &MEMORY_MAX).expect("a limit"), (64 << 20).to_string());
    let vcpus = [pid, threads(pid).into_iter().find(|t| comm(*t).ends_with("vcpu1")).expect("it")];
    for tid in vcpus {
        assert!(allowed(tid).parse::<u32>().is_ok(), "one CPU: {}", allowed(tid));
        assert_eq!(priority(tid)[1], libc::SCHED_BATCH);
    }
    // The cgroup of who has just gone may be there a moment longer.
    let numbers: std::collections::BTreeSet<_> = own().iter().map(number).collect();
    assert!(numbers.len() <= 3 + 2, "{numbers:?}");
    fleet.signal(libc::SIGTERM);
    assert_eq!(fleet.wait(), (Default::default(), String::new()));
    fleet.assert_nothing_left(Duration::ZERO);
    let truth = read_truth(&dir.file("truth"));
    assert!(truth.iter().all(|line| line["throttled_ns"].is_u64()), "{truth:?}");
}

#[test]
fn all_threads_have_the_nice_value_and_the_policy() {
    let _alone = alone();
    let common = ["--vms", "2", "--vcpus", "2", "--workload", "idle", "--io-thread", "1"];
    for (args, wanted) in [
        (&[][..], [0, libc::SCHED_OTHER]),
        (&["--sched", "other"], [0, libc::SCHED_OTHER]),
        (&["--nice", "7"], [7, libc::SCHED_OTHER]),
        (&["--nice", "-3", "--sched", "batch"], [-3, libc::SCHED_BATCH]),
        (&["--nice", "19", "--weight", "23"], [19, libc::SCHED_OTHER]),
        (&["--sched", "idle"], [0, libc::SCHED_IDLE]),
    ] {
        let running = Running::start(&[&common, args].concat(), None);
        let before = [running.pid()].map(priority);
        assert_eq!(before, [[0, libc::SCHED_OTHER]], "loadgen itself");
        let tids: Vec<u32> = running.guests().into_iter().flat_map(threads).collect();
        let ours: Vec<&u32> = tids.iter().filter(|tid| comm(**tid) != "kvm-nx-lpage-re").collect();
        assert_eq!(ours.len(), 2 * 3, "{args:?}");
        assert!(ours.iter().all(|tid| priority(**tid) == wanted), "{args:?}");
    }
}

/// In both versions; nothing asked for is what it always was.
#[test]
fn the_fleet_has_the_weight() {
    let _alone = alone();
    for (args, shares, weight) in [
        (&[][..], "64", "6"),
        (&["--weight", "300"], "3072", "300"),
        (&["--weight", "1"], "10", "1"),
        (&["--nice", "0"], "1024", "100"),
        (&["--nice", "19"], "15", "1"),
        (&["--nice", "5", "--weight", "10000"], "102400", "10000"),
    ] {
        let args = [&["--vms", "1", "--workload", "idle"], args].concat();
        let running = Running::start(&args, None);
        let dirs = cgroups(running.pid());
        let [v1, v2] = ["cpu.shares", "cpu.weight"].map(|name| value(&dirs, &[name]));
        assert!(v1.is_some() != v2.is_some(), "{v1:?} {v2:?}");
        assert_eq!(v1.unwrap_or(shares.to_owned()), shares, "{args:?}");
        assert_eq!(v2.unwrap_or(weight.to_owned()), weight, "{args:?}");
    }
    let running = Running::start(&["--vms", "1", "--workload", "idle", "--sched", "idle"], None);
    assert_eq!(value(&cgroups(running.pid()), &["cpu.idle"]).as_deref(), Some("1"));
}

#[test]
fn a_weight_of_100_against_300_gets_a_quarter() {
    let _alone = alone();
    assert_close(part_of_first(&["--weight", "100"], &["--weight", "300"]), 25);
}

/// 335 against 1,024.
#[test]
fn nice_5_against_0_gets_a_quarter() {
    let _alone = alone();
    assert_close(part_of_first(&["--nice", "5"], &["--nice", "0"]), 25);
}

#[test]
fn who_is_idle_gives_way() {
    let _alone = alone();
    let part = part_of_first(&["--sched", "idle"], &["--nice", "0"]);
    assert!((0.000_1..0.02).contains(&part), "{part}");
}

#[test]
fn each_vcpu_is_on_a_cpu_of_its_own_in_turn() {
    let _alone = alone();
    let common = ["--vms", "3", "--vcpus", "3", "--io-thread", "1", "--workload", "idle"];
    let everywhere = allowed(std::process::id());
    assert_eq!(everywhere, "0-1", "this test knows a machine with two CPUs");
    for (args, turns, all) in [
        (&["--pin"][..], ["0", "1"], "0-1"),
        (&["--pin", "--cpus", "1"], ["1", "1"], "1"),
        (&["--pin", "--numa-node", "0"], ["0", "1"], "0-1"),
        (&["--cpus", "0"], ["0", "0"], "0"),
        (&[], ["0-1", "0-1"], "0-1"),
    ] {
        let dir = TempDir::new("pin");
        let truth = dir.file("truth");
        let mut running = Running::start(&[&common, args].concat(), Some(&truth));
        let mut of = Vec::new();
        for pid in running.guests() {
            of.extend(threads(pid).into_iter().map(|tid| (tid, allowed(tid))));
        }
        running.signal(libc::SIGTERM);
        assert_eq!(running.wait(), (Default::default(), String::new()));
        let cpus = |tid: u64| &of.iter().find(|(of, _)| u64::from(*of) == tid).expect("a thread").1;
        let truth = read_truth(&truth);
        assert_eq!(truth.len(), 9);
        for (line, wanted) in truth.iter().zip(turns.iter().cycle()) {
            assert_eq!(cpus(number(line, "tid")), wanted, "{args:?}: {line}");
            assert_eq!(cpus(number(line, "io_thread_tid")), all, "{args:?}: {line}");
        }
    }
}

/// The policy of every mapping, the one shared with the parent too; without the option it is nobody's.
#[test]
fn memory_is_bound_to_the_node() {
    let _alone = alone();
    let common = ["--vms", "2", "--workload", "memory=4M", "--mem-merge", "off"];
    for (args, policy) in [(&["--numa-node", "0"][..], "bind:0"), (&[], "default")] {
        let running = Running::start(&[&common, args].concat(), None);
        for pid in running.guests() {
            let maps = fs::read_to_string(format!("/proc/{pid}/numa_maps")).expect("numa_maps");
            let policies: Vec<_> = maps.lines().filter_map(|line| line.split(' ').nth(1)).collect();
            assert!(policies.len() > 5 && policies.iter().all(|p| *p == policy), "{maps}");
            let filled = maps.lines().find(|line| line.contains("anon=1024 "));
            assert!(filled.is_some_and(|line| line.contains(" N0=1024 ")), "{maps}");
        }
        let maps = fs::read_to_string(format!("/proc/{}/numa_maps", running.pid()));
        let bound = maps.expect("numa_maps").lines().filter(|l| l.contains(" bind:")).count();
        assert_eq!(bound, usize::from(policy != "default"), "loadgen's own memory");
    }
}

#[test]
fn the_fleet_gets_its_quota_and_no_more() {
    let _alone = alone();
    for guests_too in [&[][..], &["--cpu-max", "37"]] {
        let args = [&["--vms", "3", "--fleet-cpu-max", "50"], guests_too].concat();
        let mut running = Running::start(&args, None);
        let dirs = cgroups(running.pid());
        let quota = value(&dirs, &QUOTA).expect("a quota");
        assert!(["50000", "50000 100000"].contains(&quota.as_str()), "{quota}");
        let tids: Vec<u32> = running.guests().into_iter().flat_map(threads).collect();
        assert_close(share(&running, &tids), 50);
        let stat =
            dirs.iter().find(|dir| dir.join(QUOTA[0]).exists() || dir.join(QUOTA[1]).exists());
        let stat = value(&[stat.expect("its directory")], &["cpu.stat"]).expect("cpu.stat");
        let throttled = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        let throttled: u32 = throttled.expect("a count").parse().expect("a number");
        assert!(throttled >= 20, "of some 30 periods: {stat}");
        running.signal(libc::SIGTERM);
        assert_eq!(running.wait(), (Default::default(), String::new()));
        running.assert_nothing_left(Duration::ZERO);
    }
}

/// 14 vCPUs with one per cent of a CPU together would need seconds to leave; told to, and killed.
#[test]
fn a_fleet_without_quota_left_leaves() {
    let _alone = alone();
    for signal in [libc::SIGINT, libc::SIGKILL] {
        for args in [&["--fleet-cpu-max", "1"][..], &["--sched", "idle"]] {
            let args = [&["--vms", "7", "--vcpus", "2", "--duration", "50"], args].concat();
            let mut running = Running::start(&args, None);
            thread::sleep(Duration::from_millis(500));
            let start = Instant::now();
            running.signal(signal);
            running.wait();
            let patience = if signal == libc::SIGKILL { PATIENCE } else { Duration::ZERO };
            running.assert_nothing_left(patience);
            assert!(start.elapsed() < Duration::from_secs(20), "{args:?}: {:?}", start.elapsed());
        }
    }
}

/// The directory in which a fleet has its memory limits.
fn memory_dir(running: &Running) -> PathBuf {
    let dirs = cgroups(running.pid());
    let dir = dirs.iter().find(|dir| value(&[dir], &MEMORY_MAX).is_some());
    dir.expect("a cgroup with the memory controller").clone()
}

/// How much memory a cgroup has.
fn usage(dir: &Path) -> u64 {
    let files = ["memory.usage_in_bytes", "memory.current"];
    value(&[dir], &files).expect("its usage").parse().expect("a number")
}

/// All that a guest has is counted to it, what was filled before it ran, too.
#[test]
fn guests_have_memory_limits() {
    let _alone = alone();
    let args = ["--vms", "2", "--workload", "memory=8M", "--mem-merge", "off"];
    let limits = ["--memory-max", "23M", "--fleet-memory-max", "101M"];
    let mut running = Running::start(&[&args[..], &limits].concat(), None);
    let dir = memory_dir(&running);
    assert_eq!(value(&[&dir], &MEMORY_MAX), Some((101 << 20).to_string()));
    for (number, pid) in (1..).zip(running.guests()) {
        let own = dir.join(format!("loadgen-{number:04}"));
        assert_eq!(value(&[&own], &MEMORY_MAX), Some((23 << 20).to_string()));
        let procs = value(&[&own], &["cgroup.procs"]).expect("its processes");
        assert!(procs.lines().any(|line| line == pid.to_string()), "{procs}");
        assert!((8 << 20..12 << 20).contains(&usage(&own)), "{}", usage(&own));
    }
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(), (Default::default(), String::new()));
    running.assert_nothing_left(Duration::ZERO);
}

/// Of all guests together it is not known beforehand which one the kernel kills.
#[test]
fn a_guest_that_reaches_a_memory_limit_is_named() {
    let _alone = alone();
    // Some 20 MiB a second, up to 80.
    let work = ["--vms", "2", "--workload", "exits=pagefault:20000@5000"];
    for (limits, why) in [
        (&["--memory-max", "16M"][..], "it reached its memory limit (--memory-max 16M)"),
        (
            &["--fleet-memory-max", "32M"],
            "the guests together reached their memory limit (--fleet-memory-max 32M)",
        ),
        (
            &["--memory-max", "30M", "--fleet-memory-max", "32M"],
            "the guests together reached their memory limit (--fleet-memory-max 32M)",
        ),
    ] {
        let mut running = Running::start(&[&work[..], limits].concat(), None);
        assert!(running.first_line.starts_with("2 guests (2 vCPUs) running"), "{limits:?}");
        let (status, stderr) = running.wait();
        assert_eq!(status.code(), Some(1), "{stderr}");
        let wanted = [1, 2]
            .map(|vm| format!("guest failed: `loadgen-{vm:04}` was killed by the kernel: {why}"));
        let told = stderr.trim_end().strip_prefix("loadgen: ").expect("a sentence");
        // Both may have been killed before anybody looked.
        let told = told.strip_suffix(" (and 1 more)").unwrap_or(told);
        assert!(wanted.iter().any(|wanted| wanted == told), "{stderr}");
        running.assert_nothing_left(Duration::ZERO);
    }
}

#[test]
fn a_guest_too_big_for_its_limit_is_not_created() {
    let _alone = alone();
    let args = ["--vms", "1", "--workload", "memory=32M", "--memory-max", "16M"];
    let output = loadgen().arg("run").args(args).output().expect("loadgen");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "loadgen: failed to create guests: `loadgen-0001` was killed by the kernel: it reached its memory limit \
         (--memory-max 16M)\n"
    );
}

/// Somebody else's SIGKILL is not taken for the kernel's.
#[test]
fn who_is_killed_below_the_limit_is_not_said_to_have_reached_it() {
    let _alone = alone();
    let args = ["--vms", "2", "--workload", "idle", "--memory-max", "16M"];
    let mut running = Running::start(&args, None);
    kill(running.guests()[0], libc::SIGKILL);
    let (status, stderr) = running.wait();
    assert_eq!(status.code(), Some(1));
    assert_eq!(stderr, "loadgen: guest failed: `loadgen-0001` was killed by signal 9\n");
}

#[test]
fn all_of_it_at_once() {
    let _alone = alone();
    let args = "--vms 3 --vcpus 2 --nice 3 --sched batch --pin --numa-node 0 --weight 200 --cpu-max 80 \
                --fleet-cpu-max 150 --memory-max 64M --fleet-memory-max 128M --duration 1";
    let (summary, truth) = run(&args.split_whitespace().collect::<Vec<_>>());
    assert_eq!((number(&summary, "failed"), number(&summary, "killed")), (0, 0), "{summary}");
    assert!(truth.iter().all(|line| number(line, "iterations") > 0), "{truth:?}");
}
