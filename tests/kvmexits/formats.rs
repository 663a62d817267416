//! Output read back by those who will read it: the csv crate, pandas, serde_json, the hdrhistogram crate.

use std::fs;
use std::process::Command;

use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use crate::KVMEXITS;
use crate::guests::{self, Cgroup, assert_sound, attached, counts, json_rows, of};
use crate::util::tool::{Tool, number, total};
use crate::util::{TempDir, alone};

/// The columns of design.md after the keys, and those that are keys of every row.
const FIGURES: &str =
    "count,total_ns,max_ns,p50_ns,p99_ns,kernel_ns,userspace_ns,asleep_ns,runqueue_ns,lost";
const KINDS: &str = "kind,reason,code,";

/// What rows can be told apart by, and the columns that are added for it, before and after the kind.
const KEYS: [(&[&str], &str, &str); 8] = [
    (&[], "", ""),
    (&["--by", "reason"], "", ""),
    (&["--by", "vm"], "pid,vm,", ""),
    (&["--by", "vcpu"], "pid,vm,vcpu,", ""),
    (&["--by", "vm,reason"], "pid,vm,", ""),
    (&["--by", "vcpu,reason"], "pid,vm,vcpu,", ""),
    (&["--detail"], "", "detail,"),
    (&["--detail", "--by", "vcpu,reason"], "pid,vm,vcpu,", "detail,"),
];

fn keys(columns: &str) -> Vec<&str> {
    columns.split(',').filter(|column| !column.is_empty()).collect()
}

/// All at once: each sees the same guests.
#[test]
fn csv_has_the_columns_of_the_design_and_the_truth_for_every_key() {
    let _alone = alone();
    let cgroup = Cgroup::new();
    let args = |args: &[&str], format| -> Vec<String> {
        let args = [args, &["-c", cgroup.path(), format]].concat();
        args.into_iter().map(str::to_owned).collect()
    };
    let start = |args: Vec<String>| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        if args.contains(&"--json") { attached(&args) } else { Tool::start(KVMEXITS, &args) }
    };
    let tools = KEYS.map(|(keys, ..)| {
        let start = |format| start(args(keys, format));
        (start("--csv"), start("--csv=buckets"), start("--json"))
    });
    let truth = cgroup.run("", 2, 2, "pio:103,mmio:53,cpuid:101").truth();
    for ((summary, buckets, json), (args, before, after)) in tools.into_iter().zip(KEYS) {
        let has_reasons = !["vm", "vcpu"].contains(args.last().unwrap_or(&""));
        let by =
            [&keys(before)[..], &keys(after), &["reason"][..usize::from(has_reasons)]].concat();
        let summary = summary.end(libc::SIGINT);
        let header = summary.stdout.lines().next().unwrap();
        assert_eq!(header, format!("time,interval_s,{before}{KINDS}{after}{FIGURES}"));
        let rows = summary.rows();
        assert_sound(&rows);
        for row in &rows {
            assert!(row["time"].parse::<jiff::Timestamp>().is_ok(), "{row:?}");
            assert!(["p50_ns", "p99_ns", "max_ns"].map(|c| number(row, c)).is_sorted(), "{row:?}");
            assert_eq!(row["code"].is_empty(), !has_reasons, "{row:?}");
        }
        let expected = counts(&truth, &by);
        assert_eq!(counts(&rows, &by), expected, "{args:?}");

        let buckets = buckets.end(libc::SIGINT);
        let header = buckets.stdout.lines().next().unwrap();
        assert_eq!(header, format!("time,interval_s,{before}{KINDS}{after}lo_ns,hi_ns,count"));
        let rows = buckets.rows();
        for row in &rows {
            assert!(number(row, "lo_ns") < number(row, "hi_ns") && number(row, "count") > 0);
        }
        assert_eq!(counts(&rows, &by), expected, "{args:?}");

        let json = json.end(libc::SIGINT);
        assert!(json.status.success() && json.stderr.is_empty(), "{}", json.stderr);
        assert_sound(&json_rows(&json.stdout));
        assert_eq!(counts(&json_rows(&json.stdout), &by), expected, "{args:?}");
        for line in json.stdout.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let names = ["time,interval_s,", before, KINDS, after, FIGURES].concat();
            for name in names.split(',').chain(["min_ns", "idle_ns", "open", "longest_open_ns"]) {
                assert!(row.get(name).is_some(), "{name}: {line}");
            }
            let buckets = row["buckets"].as_array().unwrap();
            let sum: u64 = buckets.iter().map(|b| b[2].as_u64().unwrap()).sum();
            assert_eq!(row["count"], sum, "{line}");
        }
    }
}

/// Exits that begin in one interval and end in another are in just one.
#[test]
fn intervals_add_up_to_the_truth() {
    let _alone = alone();
    let by = ["--by", "vcpu,reason"];
    let tools = [
        Tool::start(KVMEXITS, &[&by[..], &["--csv", "0.5"]].concat()),
        Tool::start(KVMEXITS, &[&by[..], &["--csv", "0.05"]].concat()),
        Tool::start(KVMEXITS, &[&by[..], &["--csv=buckets", "0.5"]].concat()),
        Tool::start(KVMEXITS, &["--by", "vm,reason", "--detail", "--csv", "0.3"]),
    ];
    let truth = guests::run(2, 2, "pio:503@200,mmio:251@100", &["--vmm-sleep", "0.5"]);
    for (i, tool) in tools.into_iter().enumerate() {
        let rows = of(&truth, &tool.end(libc::SIGINT).rows());
        let mut times: Vec<&str> = rows.iter().map(|row| row["time"].as_str()).collect();
        assert!(times.is_sorted());
        times.dedup();
        assert!(times.len() >= 4, "several intervals: {times:?}");
        let keys = match i {
            3 => ["pid", "vm", "reason", "detail"],
            _ => ["pid", "vm", "vcpu", "reason"],
        };
        assert_eq!(counts(&rows, &keys), counts(&truth, &keys), "tool {i}");
        if i != 2 {
            assert_sound(&rows);
        }
    }
}

#[test]
fn pandas_finds_the_types_by_itself() {
    let _alone = alone();
    let dir = TempDir::new("kvmexits-pandas");
    let path = dir.join("exits.csv");
    // Of others' guests that ran before, a vCPU may not be known.
    let cgroup = Cgroup::new();
    let by = ["--by", "vcpu,reason", "-c", cgroup.path()];
    let tool = Tool::start(KVMEXITS, &[&by[..], &["--csv", "0.4"]].concat());
    cgroup.run("", 2, 2, "pio:211@200,mmio:103@100").truth();
    let ended = tool.end(libc::SIGINT);
    fs::write(&path, &ended.stdout).unwrap();
    let script = "
import sys, pandas as pd
t = pd.read_csv(sys.argv[1], parse_dates=['time'])
assert str(t.time.dt.tz) == 'UTC', t.time.dtype
assert t.time.nunique() >= 2, t.time
for c in t.columns:
    if c.endswith('_ns') or c in 'pid vcpu code count lost'.split():
        assert t[c].dtype == 'int64', (c, t[c].dtype)
assert t.interval_s.dtype == 'float64'
for c in 'vm kind reason'.split():
    assert t[c].dtype == object and t[c].notna().all(), c
assert (t.kernel_ns + t.userspace_ns + t.asleep_ns + t.runqueue_ns == t.total_ns).all()
print(len(t), t['count'].sum())
";
    let python =
        Command::new("/usr/bin/python3").arg("-c").arg(script).arg(&path).output().unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let rows = ended.rows();
    let told = format!("{} {}", rows.len(), total(&rows, "count"));
    assert_eq!(String::from_utf8(python.stdout).unwrap().trim(), told);
}

#[test]
fn the_hdr_log_has_every_exit() {
    let _alone = alone();
    let dir = TempDir::new("kvmexits-hdr");
    let path = dir.join("exits.hlog");
    let log = ["--hdr", path.to_str().unwrap()];
    let args = [&["--by", "vcpu,reason", "--detail", "--csv", "0.4"][..], &log].concat();
    let tool = Tool::start(KVMEXITS, &args);
    guests::run(2, 2, "pio:211@200,mmio:103@100", &[]);
    let rows = tool.end(libc::SIGINT).rows();
    let log = fs::read(&path).unwrap();
    let mut rest = rows.iter();
    for entry in IntervalLogIterator::new(&log) {
        let LogEntry::Interval(entry) = entry.unwrap() else {
            continue;
        };
        let row = rest.next().expect("a row for each histogram");
        let [vm, vcpu, pid, reason, detail] =
            ["vm", "vcpu", "pid", "reason", "detail"].map(|column| row[column].as_str());
        // Of another's guest that ran before, the first exit's vCPU may not be known.
        let vcpu = if vcpu.is_empty() { "?" } else { vcpu };
        let title = format!("{vm}/{vcpu} (pid {pid}) {reason} {detail}");
        assert_eq!(entry.tag().unwrap().as_str(), title.trim_end().replace(' ', "_"));
        let hist = decode(entry.encoded_histogram());
        assert_eq!(hist.len(), number(row, "count"));
        for (seen, truth) in [
            (hist.value_at_quantile(0.5), number(row, "p50_ns")),
            (hist.max(), number(row, "max_ns")),
        ] {
            assert!(seen.abs_diff(truth) <= truth / 25 + 1, "{seen} {truth}");
        }
    }
    assert_eq!(rest.next(), None, "a histogram for each row");
    assert!(rows.len() >= 4 * 3);
}

fn decode(text: &str) -> hdrhistogram::Histogram<u64> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    hdrhistogram::serialization::Deserializer::new().deserialize(&mut &bytes[..]).unwrap()
}
