//! Output read back by those who will read it: the csv crate, pandas, serde_json, jq, the hdrhistogram crate.

use std::fs;
use std::process::Command;

use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use crate::RUNQLAT;
use crate::util::tool::{Tool, number};
use crate::util::{TempDir, alone};

/// The columns of design.md.
const FIGURES: &str = "count,sum_ns,min_ns,max_ns,p50_ns,p90_ns,p99_ns,p999_ns,preempted,waiting,\
                       longest_waiting_ns,lost";

#[test]
fn csv_has_the_columns_of_the_design_for_every_key() {
    let _alone = alone();
    for (args, keys) in [
        (&[][..], ""),
        (&["--by", "process"], "pid,comm,"),
        (&["-P"], "pid,comm,"),
        (&["--by", "thread"], "pid,tid,comm,"),
        (&["-L"], "pid,tid,comm,"),
        (&["--by", "vm"], "pid,vm,"),
        (&["--by", "cpu"], "cpu,"),
        (&["--by", "pidns"], "pidns,"),
        (&["--pidnss"], "pidns,"),
    ] {
        let ended = Tool::start(RUNQLAT, &[args, &["--csv", "0.3", "1"]].concat()).wait();
        let header = ended.stdout.lines().next().unwrap();
        assert_eq!(header, format!("time,interval_s,{keys}{FIGURES}"));
        for row in ended.rows() {
            assert!(row["time"].parse::<jiff::Timestamp>().is_ok(), "{row:?}");
            if number(&row, "count") > 0 {
                let order = ["min_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"];
                assert!(order.map(|c| number(&row, c)).is_sorted(), "{row:?}");
            }
        }
        let buckets = Tool::start(RUNQLAT, &[args, &["--csv=buckets", "0.3", "1"]].concat()).wait();
        let header = buckets.stdout.lines().next().unwrap();
        assert_eq!(header, format!("time,interval_s,{keys}lo_ns,hi_ns,count"));
        for row in buckets.rows() {
            assert!(number(&row, "lo_ns") < number(&row, "hi_ns") && number(&row, "count") > 0);
        }
    }
}

#[test]
fn pandas_finds_the_types_by_itself() {
    let _alone = alone();
    let dir = TempDir::new("pandas");
    let path = dir.join("waits.csv");
    let ended = Tool::start(RUNQLAT, &["-P", "--csv", "0.3", "3"]).wait();
    fs::write(&path, &ended.stdout).unwrap();
    let script = "
import sys, pandas as pd
t = pd.read_csv(sys.argv[1], parse_dates=['time'])
assert str(t.time.dt.tz) == 'UTC', t.time.dtype
assert t.time.nunique() == 3, t.time
for c in 'pid count sum_ns preempted waiting lost'.split():
    assert t[c].dtype == 'int64', (c, t[c].dtype)
for c in 'interval_s min_ns max_ns p50_ns p999_ns'.split():
    assert t[c].dtype.kind in 'if', (c, t[c].dtype)
assert t.comm.dtype == object
print(len(t), t['count'].sum())
";
    let python =
        Command::new("/usr/bin/python3").arg("-c").arg(script).arg(&path).output().unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let rows = ended.rows();
    let sum: u64 = rows.iter().map(|row| number(row, "count")).sum();
    assert_eq!(String::from_utf8(python.stdout).unwrap().trim(), format!("{} {sum}", rows.len()));
}

#[test]
fn json_lines_are_read_by_serde_json_and_jq() {
    let _alone = alone();
    let ended = Tool::start(RUNQLAT, &["--by", "cpu", "--json", "0.3", "3"]).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let mut counts = 0;
    for line in ended.stdout.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        for name in ["time", "interval_s", "cpu"].into_iter().chain(FIGURES.split(',')) {
            assert!(row.get(name).is_some(), "{name}: {line}");
        }
        let buckets = row["buckets"].as_array().unwrap();
        let sum: u64 = buckets.iter().map(|b| b[2].as_u64().unwrap()).sum();
        assert_eq!(row["count"], sum, "{line}");
        counts += sum;
    }
    assert!(counts > 0);

    let dir = TempDir::new("jq");
    let path = dir.join("waits.json");
    fs::write(&path, &ended.stdout).unwrap();
    let filter = "[.[].buckets[][2]] | add";
    let jq = Command::new("jq").args(["--slurp", filter]).arg(&path).output().unwrap();
    assert!(jq.status.success(), "{}", String::from_utf8_lossy(&jq.stderr));
    assert_eq!(String::from_utf8(jq.stdout).unwrap().trim(), counts.to_string());
}

#[test]
fn the_hdr_log_has_every_wait() {
    let _alone = alone();
    let dir = TempDir::new("hdr");
    let path = dir.join("waits.hlog");
    let ended = Tool::start(
        RUNQLAT,
        &["--by", "cpu", "--csv", "--hdr", path.to_str().unwrap(), "0.4", "3"],
    )
    .wait();
    let rows = ended.rows();
    let log = fs::read(&path).unwrap();
    let mut histograms = 0;
    for entry in IntervalLogIterator::new(&log) {
        let LogEntry::Interval(entry) = entry.unwrap() else {
            continue;
        };
        let row = &rows[histograms];
        assert_eq!(entry.tag().unwrap().as_str(), format!("cpu_=_{}", row["cpu"]));
        assert!((entry.duration().as_secs_f64() - 0.4).abs() < 0.3);
        let max_ms = number(row, "max_ns") as f64 / 1e6;
        assert!((entry.max() - max_ms).abs() <= 0.02 * max_ms + 0.001, "{} {max_ms}", entry.max());
        let hist = decode(entry.encoded_histogram());
        assert_eq!(hist.len(), number(row, "count"));
        let p50 = hist.value_at_quantile(0.5);
        let truth = number(row, "p50_ns");
        assert!(p50.abs_diff(truth) <= truth / 50 + 1, "{p50} {truth}");
        histograms += 1;
    }
    assert_eq!(histograms, rows.len());
}

fn decode(text: &str) -> hdrhistogram::Histogram<u64> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    hdrhistogram::serialization::Deserializer::new().deserialize(&mut &bytes[..]).unwrap()
}

#[test]
fn text_is_bccs_and_fits_80_columns() {
    let _alone = alone();
    for (args, unit) in
        [(&["-T"][..], "usecs"), (&["-m", "-P"], "msecs"), (&["--by", "cpu"], "usecs")]
    {
        let ended = Tool::start(RUNQLAT, &[args, &["0.4", "2"]].concat()).wait();
        assert!(ended.status.success(), "{}", ended.stderr);
        assert!(ended.stdout.contains(&format!("     {unit:<19} : count     distribution")));
        for line in ended.stdout.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
    let ended = Tool::start(RUNQLAT, &["-T", "0.4", "2"]).wait();
    let clocks =
        ended.stdout.lines().filter(|line| jiff::civil::Time::strptime("%H:%M:%S", line).is_ok());
    assert_eq!(clocks.count(), 2, "{}", ended.stdout);
}
