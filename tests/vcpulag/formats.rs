//! Output read back by those who will read it: the csv crate, pandas, serde_json, the hdrhistogram crate.

use std::fs;
use std::process::Command;

use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use serde_json::Value;

use crate::VCPULAG;
use crate::util::guests::Guests;
use crate::util::tool::{Tool, number};
use crate::util::{TempDir, alone};

/// The columns of design.md.
const FIGURES: &str = "run_ns,wait_ns,halt_ns,blocked_ns,vmm_ns,wakeups,preemptions,wait_wakeup_ns,\
                       wait_preempted_ns,wait_throttled_ns,p50_ns,p99_ns,max_ns,waiting_ns,culprit,culprit_ns,lost";

fn some_guests() -> Guests {
    Guests::start(&["--vms", "5", "--duration", "60"])
}

#[test]
fn csv_has_the_columns_of_the_design() {
    let _alone = alone();
    let guests = some_guests();
    let cgroup = guests.cgroup();
    for (args, keys) in [(&[][..], "vm,pid,tid,vcpu"), (&["--by", "vm"], "vm,pid")] {
        let args = [&["-c", &cgroup], args].concat();
        let ended = Tool::start(VCPULAG, &[&args[..], &["--csv", "0.5", "2"]].concat()).wait();
        let header = ended.stdout.lines().next().unwrap();
        assert_eq!(header, format!("time,interval_s,{keys},{FIGURES}"));
        let rows = ended.rows();
        assert_eq!(rows.len(), 10);
        for row in rows {
            assert!(row["time"].parse::<jiff::Timestamp>().is_ok(), "{row:?}");
            if !row["max_ns"].is_empty() {
                let order = ["p50_ns", "p99_ns", "max_ns"];
                assert!(order.map(|name| number(&row, name)).is_sorted(), "{row:?}");
            }
        }
        let buckets =
            Tool::start(VCPULAG, &[&args[..], &["--csv=buckets", "0.5", "2"]].concat()).wait();
        let header = buckets.stdout.lines().next().unwrap();
        assert_eq!(header, format!("time,interval_s,{keys},lo_ns,hi_ns,count"));
        for row in buckets.rows() {
            assert!(number(&row, "lo_ns") < number(&row, "hi_ns") && number(&row, "count") > 0);
        }
    }
    guests.end();
}

#[test]
fn pandas_finds_the_types_by_itself() {
    let _alone = alone();
    let guests = some_guests();
    let dir = TempDir::new("lag-pandas");
    let path = dir.join("lag.csv");
    let ended = Tool::start(VCPULAG, &["-c", &guests.cgroup(), "--csv", "0.5", "3"]).wait();
    guests.end();
    fs::write(&path, &ended.stdout).unwrap();
    let script = "
import sys, pandas as pd
t = pd.read_csv(sys.argv[1], parse_dates=['time'])
assert str(t.time.dt.tz) == 'UTC', t.time.dtype
assert t.time.nunique() == 3, t.time
for c in 'pid tid vcpu run_ns wait_ns halt_ns blocked_ns vmm_ns wakeups preemptions lost'.split():
    assert t[c].dtype == 'int64', (c, t[c].dtype)
for c in 'interval_s p50_ns max_ns waiting_ns culprit_ns'.split():
    assert t[c].dtype.kind in 'if', (c, t[c].dtype)
assert t.vm.dtype == object
print(len(t), t.wait_ns.sum())
";
    let python =
        Command::new("/usr/bin/python3").arg("-c").arg(script).arg(&path).output().unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let rows = ended.rows();
    let sum: u64 = rows.iter().map(|row| number(row, "wait_ns")).sum();
    assert_eq!(String::from_utf8(python.stdout).unwrap().trim(), format!("{} {sum}", rows.len()));
}

#[test]
fn json_has_the_names_of_csv_and_more() {
    let _alone = alone();
    let guests = some_guests();
    let args = ["-c", &guests.cgroup(), "--json", "0.5", "2"];
    let ended = Tool::start(VCPULAG, &args).wait();
    guests.end();
    assert!(ended.status.success(), "{}", ended.stderr);
    let mut lines = 0;
    for line in ended.stdout.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let row = row.as_object().unwrap();
        let names: Vec<&str> = row.keys().map(String::as_str).collect();
        let more = ["vmm_cpu_ns", "poll_ns", "blamed_ns", "culprits", "unseen", "unnamed_ns"];
        let expected = ["time", "interval_s", "vm", "pid", "tid", "vcpu"].into_iter();
        let expected = expected.chain(FIGURES.split(',')).chain(more).chain(["buckets"]);
        let mut expected: Vec<&str> = expected.collect();
        let mut found = names;
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
        let kinds: Vec<&str> =
            row["blamed_ns"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(kinds.len(), 6, "{kinds:?}");
        for culprit in row["culprits"].as_array().unwrap() {
            assert!(kinds.contains(&culprit["kind"].as_str().unwrap()), "{culprit}");
            assert!(culprit["pid"].is_u64() && culprit["name"].is_string(), "{culprit}");
            assert!(culprit["ns"].as_u64().unwrap() > 0, "{culprit}");
        }
        lines += 1;
    }
    assert_eq!(lines, 10);
}

#[test]
fn an_hdr_log_has_the_waits_of_each_row() {
    let _alone = alone();
    let guests = some_guests();
    let dir = TempDir::new("lag-hdr");
    let path = dir.join("waits.hlog");
    let path_arg = path.to_str().unwrap();
    let args = ["-c", &guests.cgroup(), "--csv", "--hdr", path_arg, "1", "2"];
    let rows = Tool::start(VCPULAG, &args).wait().rows();
    guests.end();
    let with_waits: Vec<_> = rows.iter().filter(|row| !row["max_ns"].is_empty()).collect();
    let log = fs::read(&path).unwrap();
    let entries = IntervalLogIterator::new(&log).filter_map(|entry| match entry.unwrap() {
        LogEntry::Interval(entry) => Some((entry.tag().unwrap().as_str().to_owned(), entry.max())),
        _ => None,
    });
    let entries: Vec<_> = entries.collect();
    assert_eq!(entries.len(), with_waits.len());
    for ((tag, max_ms), row) in entries.iter().zip(with_waits) {
        assert_eq!(*tag, format!("{}/{}", row["vm"], row["vcpu"]));
        let truth_ms = number(row, "max_ns") as f64 / 1e6;
        assert!((max_ms - truth_ms).abs() <= 0.02 * truth_ms + 0.001, "{max_ms} {truth_ms}");
    }
}

#[test]
fn a_heat_map_has_a_line_of_all_vcpus_for_each_interval() {
    let _alone = alone();
    let guests = some_guests();
    let args = ["-c", &guests.cgroup(), "--heatmap", "0.5", "2"];
    let map = Tool::start(VCPULAG, &args).wait();
    guests.end();
    assert!(map.status.success(), "{}", map.stderr);
    let lines: Vec<_> = map.stdout.lines().filter(|line| line.contains('|')).collect();
    assert_eq!(lines.len(), 2, "{}", map.stdout);
    for line in lines {
        let figures: Vec<_> = line.rsplit_once('|').unwrap().1.split_whitespace().collect();
        let [count, _, _, share, _] = figures[..] else { panic!("{line}") };
        assert!(count.parse::<u64>().is_ok(), "{line}");
        // Five that spin; others may want the CPUs, too.
        let share: f64 = share.strip_suffix('%').unwrap().parse().unwrap();
        let at_least = 100.0 * (1.0 - cpus() as f64 / 5.0);
        assert!((at_least - 10.0..=100.0).contains(&share), "{line}");
    }
    assert!(map.stdout.lines().all(|line| line.len() <= 80), "{}", map.stdout);
}

fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

#[test]
fn text_fits_80_columns() {
    let _alone = alone();
    let guests = some_guests();
    let cgroup = guests.cgroup();
    for args in [&["-T"][..], &["--by", "vm"], &["--histogram", "-m"], &["--culprits"]] {
        let ended = Tool::start(VCPULAG, &[&["-c", &cgroup], args, &["0.5", "2"]].concat()).wait();
        assert!(ended.status.success(), "{}", ended.stderr);
        assert!(ended.stdout.contains("loadgen-0001"), "{}", ended.stdout);
        for line in ended.stdout.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
    guests.end();
}
