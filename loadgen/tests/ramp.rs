//! A ramp: its steps, its limits, and what it leaves behind.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{PATIENCE, TempDir, alone, cgroups, comm, kill, loadgen, number};

fn ramp(args: &str) -> Output {
    loadgen().arg("ramp").args(args.split(' ')).output().expect("loadgen")
}

fn stdout(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {stderr}", output.status);
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn rows(json: &str) -> Vec<Value> {
    json.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
}

/// A ramp that is up to be stopped.
fn started(args: &str) -> Child {
    let mut command = loadgen();
    command.arg("ramp").args(args.split(' ')).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().expect("loadgen")
}

/// Processes of this parent, by name.
fn children(parent: u32, name: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let of = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        fields.split(' ').nth(1) == Some(parent.to_string().as_str())
    };
    pids.filter(of).filter(|pid| comm(*pid).starts_with(name)).collect()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn steps_lead_to_the_target_and_all_guests_run() {
    let _alone = alone();
    let json =
        stdout(&ramp("--to 23 --step x3 --hold 1 --probe-late 10000 --json --workload idle=101"));
    let rows = rows(&json);
    let of = |name: &str| rows.iter().map(|row| number(row, name)).collect::<Vec<_>>();
    assert_eq!(of("guests"), [1, 3, 9, 23]);
    assert_eq!(of("created"), [1, 2, 6, 14]);
    assert_eq!(of("running"), of("guests"), "all of them run on");
    for row in &rows {
        let [p50, p99] = ["create_p50_ns", "create_p99_ns"].map(|name| number(row, name));
        assert!(p50 > 0 && p50 <= p99, "{row}");
        assert!(number(row, "probe_max_ns") >= number(row, "probe_p50_ns"), "{row}");
        assert!(number(row, "probe_p50_ns") > 0, "{row}");
        assert!(row["interval_s"].as_f64().expect("seconds") >= 1.0, "{row}");
    }
}

/// In each hold, and none of its columns is there without.
#[test]
fn guests_come_and_go_while_it_holds() {
    let _alone = alone();
    let common = "--to 10 --step x10 --hold 1.5 --probe-late 10000 --json --workload idle=101";
    for row in rows(&stdout(&ramp(&format!("{common} --churn 7/s")))) {
        let of = |name: &str| number(&row, name);
        // But for those that have come at the end.
        assert!((of("guests") - of("guests") / 2..=of("guests")).contains(&of("running")), "{row}");
        assert!((10..=11).contains(&of("churn_told")), "{row}");
        assert!(of("churn_told") <= of("churn_asked"), "{row}");
        assert!(of("churn_stopped") >= 7 && of("churn_created") >= 7, "{row}");
        assert!(of("churn_stop_p50_ns") > 0 && of("churn_create_p99_ns") > 0, "{row}");
    }
    let text = stdout(&ramp("--to 1 --hold 0.5 --churn 7/s --probe-late 10000"));
    let mut lines = text.lines().filter(|line| line.contains("churn: "));
    assert!(lines.next().is_some_and(|line| line.len() <= 80), "{text}");
}

#[test]
fn everything_is_kept_that_a_notebook_needs() {
    let _alone = alone();
    let dir = TempDir::new("kept");
    let kept = dir.file("ramp");
    let kept = kept.to_str().expect("UTF-8");
    let args = format!(
        "--to 4 --step 2 --hold 0.5 --probe-late 10000 --observe {kept} --workload idle=101"
    );
    let text = stdout(&ramp(&args));
    let steps = text.lines().filter(|line| line.starts_with("     "));
    assert_eq!(steps.count(), 2, "{text}");
    assert!(text.contains("\nstopped at 4 guests: there are 4 guests, as asked for\n"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let csv = fs::read_to_string(format!("{kept}/ramp.csv")).expect("rows");
    let guests: Vec<_> = csv.lines().skip(1).map(|line| line.split(',').nth(2)).collect();
    assert_eq!(guests, [Some("2"), Some("4")]);
    let buckets = fs::read_to_string(format!("{kept}/runqlat-buckets.csv")).expect("buckets");
    assert!(buckets.starts_with("time,interval_s,lo_ns,hi_ns,count\n"), "{buckets}");
    let facts = fs::read_to_string(format!("{kept}/host.json")).expect("facts");
    let facts: Value = serde_json::from_str(&facts).expect("JSON");
    let command = facts["command"].as_array().expect("a list");
    let command: Vec<_> = command.iter().skip(1).filter_map(Value::as_str).collect();
    assert_eq!(command.join(" "), format!("ramp {args}"));
    let refused = ramp(&args);
    assert_eq!(refused.status.code(), Some(2), "what is there is not touched");
}

#[test]
fn memory_that_is_to_be_left_is_left() {
    let _alone = alone();
    let meminfo = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("MemTotal");
    let kib = total.trim().trim_end_matches(" kB");
    let text = stdout(&ramp(&format!("--to 3 --hold 0.5 --reserve {kib}K")));
    assert!(text.contains("\nstopped at 0 guests: memory: "), "{text}");
}

#[test]
fn a_signal_ends_it_with_a_row() {
    let _alone = alone();
    let mut child = started("--to 3 --step 3 --hold 50");
    wait_until("guests", || children(child.id(), "loadgen-").len() == 3);
    thread::sleep(Duration::from_secs(1));
    let mut out = BufReader::new(child.stdout.take().expect("its output"));
    let mut header = String::new();
    out.read_line(&mut header).expect("a header");
    kill(child.id(), libc::SIGINT);
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("UTF-8");
    assert_eq!(child.wait().expect("a child").code(), Some(0));
    assert!(rest.starts_with("     3 "), "{rest}");
    assert!(rest.contains("\nstopped at 3 guests: a signal came\n"), "{rest}");
    assert!(cgroups(child.id()).is_empty());
}

#[test]
fn a_killed_ramp_leaves_nothing_behind() {
    let _alone = alone();
    let mut child = started("--to 23 --step 23 --hold 3");
    wait_until("guests", || children(child.id(), "loadgen-").len() == 23);
    let all: Vec<u32> = ["loadgen-", "lg-", "runqlat", "vcpulag", "kvmexits", "ksmstat"]
        .into_iter()
        .flat_map(|name| children(child.id(), name))
        .collect();
    assert!(all.len() >= 25, "guests, probe and janitor: {all:?}");
    let names: Vec<String> = all.iter().map(|pid| comm(*pid)).collect();
    kill(child.id(), libc::SIGKILL);
    child.wait().expect("a child");
    for (pid, name) in all.iter().zip(names) {
        wait_until(&format!("{pid} ({name}) is left"), || comm(*pid) != name);
    }
    wait_until("the cgroup is left", || cgroups(child.id()).is_empty());
}

#[test]
fn what_cannot_be_is_refused() {
    for args in [
        "--to 0",
        "--to all",
        "--step 0",
        "--step x1",
        "--hold 0",
        "--reserve 1X",
        "--probe-late 0",
        "--csv --json",
        "--observe /proc/x",
        "--workload exits=pio:5",
        "--churn 5",
    ] {
        let output = ramp(args);
        assert_eq!(output.status.code(), Some(2), "{args}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.lines().count(), 1, "{args}: {stderr}");
        assert!(stderr.starts_with("loadgen: "), "{args}: {stderr}");
    }
}
