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

/// What comes out of a terminal of 200 columns, in which a shell runs this command.
fn in_a_terminal(command: &str) -> String {
    let script = format!("stty rows 24 cols 200; TERM=xterm-256color {command}");
    let output = Command::new("timeout")
        .args(["30", "script", "-qec", &script, "/dev/null"])
        .env_remove("NO_COLOR")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of a heat map that begin with a time of day: what is between the bars.
fn heat_lines(text: &str) -> Vec<&str> {
    let is_clock = |clock: &str| jiff::civil::Time::strptime("%H:%M:%S", clock).is_ok();
    let lines = text.lines().filter_map(|line| line.split_once('|'));
    lines.filter(|(clock, _)| is_clock(clock)).map(|(_, rest)| rest).collect()
}

#[test]
fn a_heat_map_is_plain_where_it_is_no_terminal_or_colours_are_not_wanted() {
    let _alone = alone();
    let map = Tool::start("env", &["-u", "NO_COLOR", RUNQLAT, "--heatmap", "0.2", "3"]).wait();
    assert!(map.status.success(), "{}", map.stderr);
    let lines = heat_lines(&map.stdout);
    assert_eq!(lines.len(), 3, "{}", map.stdout);
    for line in lines {
        let (cells, figures) = line.split_once('|').unwrap();
        assert!(cells.len() == 40 && cells.trim() != "", "{line}");
        assert_eq!(figures.split_whitespace().count(), 5, "{line}");
    }
    assert!(map.stdout.lines().all(|line| line.len() <= 80), "{}", map.stdout);
    assert!(map.stdout.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", map.stdout);

    let forced = ["-u", "NO_COLOR", "CLICOLOR_FORCE=1", RUNQLAT, "--heatmap", "0.2", "1"];
    let forced = Tool::start("env", &forced).wait().stdout;
    assert!(heat_lines(&forced)[0].contains("\x1b[48;5;"), "{forced:?}");

    let wide = in_a_terminal(&format!("{RUNQLAT} --heatmap 0.2 1"));
    assert!(heat_lines(&wide)[0].contains("\x1b[48;5;"), "{wide:?}");
    let wide = in_a_terminal(&format!("NO_COLOR=1 {RUNQLAT} --heatmap 0.2 1"));
    assert!(!wide.contains('\x1b'), "{wide:?}");
    assert_eq!(heat_lines(&wide)[0].split_once('|').unwrap().0.len(), 160, "{wide}");
}

#[test]
fn a_heat_map_shows_the_waits_of_the_hdr_log() {
    let _alone = alone();
    let dir = TempDir::new("heat");
    let log = dir.join("waits.hlog");
    let args = ["--heatmap", "--hdr", log.to_str().unwrap(), "0.5", "1"];
    let map = Tool::start(RUNQLAT, &args).wait().stdout;
    let log = fs::read(&log).unwrap();
    let entry = IntervalLogIterator::new(&log).find_map(|entry| match entry.unwrap() {
        LogEntry::Interval(entry) => Some(decode(entry.encoded_histogram())),
        _ => None,
    });
    let waits = entry.unwrap();
    let line = heat_lines(&map)[0];
    let (cells, figures) = line.split_once('|').unwrap();
    assert_eq!(figures.split_whitespace().next().unwrap(), waits.len().to_string());
    // Half a power of two each, from 2^10 ns on.
    let from = |cell: u64| if cell == 0 { 0 } else { (2 + cell % 2) << (9 + cell / 2) };
    for (cell, i) in cells.chars().zip(0..) {
        let (from, to) = (from(i), if i == 39 { u64::MAX } else { from(i + 1) });
        let n = waits.iter_recorded().filter(|v| (from..to).contains(&v.value_iterated_to()));
        let n: u64 = n.map(|v| v.count_at_value()).sum();
        let share = 100.0 * n as f64 / waits.len() as f64;
        let steps = [0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
        let step = steps.iter().rposition(|step| n > 0 && share >= *step);
        assert_eq!(cell, step.map_or(' ', |step| b".:-=+*#@"[step].into()), "{i}: {share}\n{map}");
    }
}
