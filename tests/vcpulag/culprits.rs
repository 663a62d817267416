//! Who ran while a vCPU waited.

use std::process::id;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::VCPULAG;
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::threads::{burn, pin, set_fifo};
use crate::util::tool::{Tool, json_lines, number};

/// The rows of JSON, by name of the VM and vCPU.
fn rows(args: &[&str]) -> Vec<Value> {
    let ended = Tool::start(VCPULAG, &[args, &["--json"]].concat()).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let mut rows = json_lines(&ended.stdout);
    rows.sort_by_key(|row| row["vm"].as_str().unwrap().to_owned());
    rows
}

fn ns(row: &Value, name: &str) -> u64 {
    row[name].as_u64().unwrap_or_else(|| panic!("{name}: {row}"))
}

/// What a process has taken from a vCPU.
fn taken_by(row: &Value, pid: u32) -> u64 {
    let culprits = row["culprits"].as_array().unwrap().iter();
    culprits.filter(|culprit| culprit["pid"] == pid).map(|culprit| ns(culprit, "ns")).sum()
}

/// Keeps a CPU busy with real-time turns, so that whoever is on it too waits for these, and nobody else gets it.
fn with_hog<T>(cpu: usize, turn: Duration, pause: Duration, run: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(cpu);
            set_fifo(1);
            let deadline = Instant::now() + Duration::from_secs(20);
            while !over.load(Relaxed) && Instant::now() < deadline {
                burn(turn);
                thread::sleep(pause);
            }
        });
        let result = run();
        over.store(true, Relaxed);
        result
    })
}

/// Of the time that has been blamed on anybody, as others work on this machine as well.
fn blamed(row: &Value) -> u64 {
    row["blamed_ns"].as_object().unwrap().values().map(|ns| ns.as_u64().unwrap()).sum()
}

#[test]
fn a_host_task_is_the_culprit() {
    let _alone = alone();
    let guests = Guests::on_cpu(1, &["--vms", "1", "--duration", "60"]);
    let args = ["-c", &guests.cgroup(), "-d", "2"];
    let turn = Duration::from_millis(23);
    let rows = with_hog(1, turn, turn, || rows(&args));
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    let (wait_ns, hog_ns) = (ns(row, "wait_ns"), taken_by(row, id()));
    assert!((800_000_000..1_400_000_000).contains(&wait_ns), "half of 2 s: {row}");
    // Others work on this machine, too.
    let others_ns = blamed(row) - hog_ns;
    assert!(others_ns * 5 <= wait_ns, "{row}");
    assert!(hog_ns * 100 >= (wait_ns - others_ns) * 99, "it is the hog: {row}");
    assert!(hog_ns <= wait_ns + wait_ns / 100, "{row}");
    let hog = row["culprits"].as_array().unwrap().iter().find(|c| c["pid"] == id()).unwrap();
    assert_eq!(hog["kind"], "task", "{row}");
    guests.end();
}

#[test]
fn two_vms_on_one_cpu_are_each_others_culprits() {
    let _alone = alone();
    let guests = Guests::on_cpu(0, &["--vms", "2", "--duration", "60"]);
    let pids = guests.pids();
    assert_eq!(pids.len(), 2);
    let rows = rows(&["-c", &guests.cgroup(), "-d", "3"]);
    assert_eq!(rows.len(), 2);
    for (i, row) in rows.iter().enumerate() {
        let (victim, other) = (&rows[i], &rows[1 - i]);
        assert_eq!(row["pid"], pids[i]);
        // One waits while the other runs.
        let (taken_ns, ran_ns) = (taken_by(victim, pids[1 - i]), ns(other, "run_ns"));
        assert!(taken_ns.abs_diff(ran_ns) * 20 <= ran_ns + 200_000_000, "{victim} {other}");
        let culprits = victim["culprits"].as_array().unwrap();
        let culprit = culprits.iter().find(|c| c["pid"] == pids[1 - i]).unwrap();
        assert_eq!((&culprit["kind"], &culprit["name"]), (&"vm".into(), &other["vm"]));
    }
    // A VM is one even if it is not watched itself.
    let pid = pids[0].to_string();
    let rows = self::rows(&["-p", &pid, "-d", "1"]);
    let culprits = rows[0]["culprits"].as_array().unwrap();
    let other = culprits.iter().find(|c| c["pid"] == pids[1]).unwrap();
    assert_eq!((&other["kind"], &other["name"]), (&"vm".into(), &"loadgen-0002".into()));
    guests.end();
}

#[test]
fn vcpus_of_one_vm_hold_each_other_up() {
    let _alone = alone();
    let guests = Guests::on_cpu(0, &["--vms", "1", "--vcpus", "2", "--duration", "60"]);
    let rows = rows(&["-c", &guests.cgroup(), "-d", "2"]);
    assert_eq!(rows.len(), 2);
    for i in 0..2 {
        let (same_ns, ran_ns) = (ns(&rows[i]["blamed_ns"], "same vm"), ns(&rows[1 - i], "run_ns"));
        assert!(same_ns.abs_diff(ran_ns) * 20 <= ran_ns + 200_000_000, "{rows:#?}");
    }
    guests.end();
}

#[test]
fn a_vm_whose_io_thread_burns_is_its_own_culprit() {
    let _alone = alone();
    let guests = Guests::on_cpu(1, &["--vms", "1", "--io-thread", "100", "--duration", "60"]);
    let rows = rows(&["-c", &guests.cgroup(), "-d", "2"]);
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    let (wait_ns, own_ns) = (ns(row, "wait_ns"), taken_by(row, guests.pids()[0]));
    assert!((700_000_000..1_500_000_000).contains(&wait_ns), "half of 2 s: {row}");
    let others_ns = blamed(row) - own_ns;
    assert!(others_ns * 5 <= wait_ns, "{row}");
    assert!(own_ns * 100 >= (wait_ns - others_ns) * 99, "it is itself: {row}");
    // Culprits are read after the vCPUs, which go on.
    let same_ns = ns(&row["blamed_ns"], "same vm");
    assert!(own_ns.abs_diff(same_ns) * 100 <= same_ns, "{row}");
    assert_eq!(
        (&row["culprits"][0]["kind"], &row["culprit"]),
        (&"same vm".into(), &"itself".into())
    );
    guests.end();
}

#[test]
fn a_vcpu_that_waits_for_its_own_quota_is_nobodys_victim() {
    let _alone = alone();
    let guests = Guests::on_cpu(1, &["--vms", "1", "--cpu-max", "30", "--duration", "60"]);
    let cgroup = guests.cgroup();
    let rows = rows(&["-c", &cgroup, "-d", "3"]);
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    let (wait_ns, throttled_ns) = (ns(row, "wait_ns"), ns(row, "wait_throttled_ns"));
    assert!((1_900_000_000..2_500_000_000).contains(&wait_ns), "70 % of 3 s: {row}");
    // What goes on at the interval's end is not known to be for the quota: at most a period less the quota.
    let others_ns = blamed(row);
    assert!(throttled_ns + others_ns + 80_000_000 >= wait_ns - wait_ns / 50, "{row}");
    assert!(others_ns * 5 <= wait_ns, "but for those who work on this machine, too: {row}");
    let text = Tool::start(VCPULAG, &["-c", &cgroup, "-d", "2"]).wait().stdout;
    assert!(text.contains("\n  waited for its quota "), "{text}");
    assert!(text.ends_with(" of that was their own quota\n"), "{text}");
    guests.end();
}

/// The kernel keeps real-time tasks from taking a CPU for a whole second: the intervals are shorter.
#[test]
fn a_starved_vcpu_waits_all_the_time_for_its_hog() {
    let _alone = alone();
    let guests = Guests::on_cpu(1, &["--vms", "1", "--duration", "60"]);
    let cgroup = guests.cgroup();
    let rows = with_hog(1, Duration::from_millis(3_500), Duration::from_millis(1), || {
        // The tool itself must not be in the hog's way.
        let args = ["-c", "0", VCPULAG, "-c", &cgroup, "--json", "0.1", "30"];
        let ended = Tool::start("taskset", &args).wait();
        assert!(ended.status.success(), "{}", ended.stderr);
        json_lines(&ended.stdout)
    });
    assert_eq!(rows.len(), 30, "a row even if nothing ended");
    let whole = |row: &Value| (row["interval_s"].as_f64().unwrap() * 1e9) as u64;
    let starved = |row: &&Value| ns(row, "wait_ns") + 1_000 >= whole(row);
    let starved: Vec<&Value> = rows.iter().filter(starved).collect();
    assert!(starved.len() >= 15, "{rows:#?}");
    for row in &starved {
        assert_eq!((&row["max_ns"], ns(row, "run_ns")), (&Value::Null, 0), "{row}");
        assert!(ns(row, "waiting_ns") + 1_000 >= whole(row), "its true age: {row}");
    }
    // An age grows by each interval's length.
    let ages = rows.windows(2).filter(|pair| starved.contains(&&pair[1]));
    for pair in ages {
        let before = pair[0]["waiting_ns"].as_u64().unwrap_or(0);
        let grown_ns = ns(&pair[1], "waiting_ns") - before;
        assert!(grown_ns.abs_diff(whole(&pair[1])) < 2_000_000, "{pair:#?}");
    }
    let oldest = starved.iter().map(|row| ns(row, "waiting_ns")).max().unwrap();
    assert!(oldest > 500_000_000, "{oldest}");
    let of_hog: u64 = starved.iter().map(|row| taken_by(row, id())).sum();
    let wait_ns: u64 = starved.iter().map(|row| ns(row, "wait_ns")).sum();
    assert!(of_hog * 100 >= wait_ns * 99, "{of_hog} of {wait_ns}");
    guests.end();
}

#[test]
fn a_wait_above_the_threshold_is_told_once_with_its_culprit() {
    let _alone = alone();
    let guests = Guests::on_cpu(1, &["--vms", "1", "--duration", "60"]);
    let args = ["-c", &guests.cgroup(), "--slower", "19000", "--csv", "-d", "3"];
    let (turn, pause) = (Duration::from_millis(23), Duration::from_millis(83));
    let ended = with_hog(1, turn, pause, || Tool::start(VCPULAG, &args).wait());
    let told = ended.rows();
    let of_hog: Vec<_> = told.iter().filter(|row| row["culprit_pid"] == id().to_string()).collect();
    // 3 s of turns and pauses.
    assert!((20..=29).contains(&of_hog.len()), "{} of {}", of_hog.len(), ended.stdout);
    for row in &told {
        assert!(number(row, "wait_ns") > 19_000_000, "{row:?}");
        assert_eq!((row["vm"].as_str(), row["cpu"].as_str()), ("loadgen-0001", "1"));
    }
    for row in of_hog {
        assert!(number(row, "culprit_ns") >= 12_000_000, "{row:?}");
    }
    let mut times: Vec<_> = told.iter().map(|row| (row["time"].clone(), &row["wait_ns"])).collect();
    times.dedup();
    assert_eq!(times.len(), told.len(), "each once");
    guests.end();
}

#[test]
fn a_matrix_has_victims_and_culprits() {
    let _alone = alone();
    let guests = Guests::on_cpu(0, &["--vms", "3", "--duration", "60"]);
    let pids = guests.pids();
    let ended =
        Tool::start(VCPULAG, &["-c", &guests.cgroup(), "--culprits", "--csv", "-d", "2"]).wait();
    let header = ended.stdout.lines().next().unwrap();
    assert_eq!(header, "time,interval_s,pid,victim,culprit_pid,culprit,kind,ns,lost");
    let rows = ended.rows();
    for victim in &pids {
        for culprit in pids.iter().filter(|pid| *pid != victim) {
            let pair = rows.iter().find(|row| {
                row["pid"] == victim.to_string() && row["culprit_pid"] == culprit.to_string()
            });
            let pair = pair.unwrap_or_else(|| panic!("{victim} {culprit}: {}", ended.stdout));
            assert_eq!(pair["kind"], "vm");
            assert!(number(pair, "ns") > 10_000_000, "{pair:?}");
        }
    }
    let ended = Tool::start(VCPULAG, &["-c", &guests.cgroup(), "--culprits", "-d", "1"]).wait();
    assert!(ended.stdout.contains("\nWHO WAITED "), "{}", ended.stdout);
    assert!(ended.stdout.contains("\nWHO RAN "), "{}", ended.stdout);
    assert!(ended.stdout.lines().all(|line| line.chars().count() <= 80), "{}", ended.stdout);
    guests.end();
}
