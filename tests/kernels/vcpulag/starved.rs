//! A vCPU that another task keeps from its CPU: waits that go on, and those that are told as they end.

use std::process::id;
use std::time::Duration;

use serde_json::Value;

use super::{VCPULAG, ns, taken_by, taken_by_others, with_hog};
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::tool::{Tool, json_lines, number};

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
        assert_eq!(ns(row, "run_ns"), 0, "{row}");
        assert!(ns(row, "waiting_ns") + 1_000 >= whole(row), "its true age: {row}");
    }
    // A wait may end before the waits are read, and after the states have been.
    let next_too = rows.windows(2).filter(|pair| pair.iter().all(|row| starved.contains(&row)));
    assert!(next_too.clone().count() >= 10, "{rows:#?}");
    for pair in next_too {
        assert_eq!(pair[0]["max_ns"], Value::Null, "nothing ended: {pair:#?}");
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
    // Others work on this machine, too, and where it is a guest itself, for others below.
    let others_ns: u64 = starved.iter().map(|row| taken_by_others(row, id())).sum();
    assert!(others_ns * 5 <= wait_ns, "{others_ns} of {wait_ns}: {starved:#?}");
    assert!(of_hog * 100 >= (wait_ns - others_ns) * 99, "{of_hog} of {wait_ns}: {starved:#?}");
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
