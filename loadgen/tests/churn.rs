//! Guests that come and go: at their rate, each counted to its end, and nothing of them stays.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{
    PATIENCE, Running, TempDir, alone, cgroups, children_of, comm, loadgen, number, read_truth,
};

/// What a process has: open files, and KiB of memory that is its own.
fn belongings(pid: u32) -> (usize, u64) {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    (files, anonymous.trim().trim_end_matches(" kB").parse().expect("a number"))
}

fn guests_of(pid: u32) -> usize {
    children_of(pid).into_iter().filter(|child| comm(*child).starts_with("loadgen-")).count()
}

#[test]
fn guests_come_and_go_at_their_rate_and_nothing_grows() {
    let _alone = alone();
    let dir = TempDir::new("churn");
    let truth = dir.file("truth");
    let args = "run --vms 23 --workload idle=101 --churn 11/s --duration 4.2 --json --truth";
    let child = loadgen()
        .args(args.split(' '))
        .arg(&truth)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("loadgen");
    let deadline = Instant::now() + PATIENCE;
    while guests_of(child.id()) < 23 {
        assert!(Instant::now() < deadline, "guests do not come");
        thread::sleep(Duration::from_millis(5));
    }
    let start = Instant::now();
    let mut early = None;
    while start.elapsed() < Duration::from_millis(3_500) {
        assert!(guests_of(child.id()) <= 23, "never more than were asked for");
        if start.elapsed() > Duration::from_millis(1_000) {
            early.get_or_insert_with(|| belongings(child.id()));
        }
        thread::sleep(Duration::from_millis(50));
    }
    let (early, late) = (early.expect("a look"), belongings(child.id()));
    assert!(late.0 == early.0 && late.1 <= early.1 + 64, "{early:?} became {late:?}");
    assert_eq!(fs::read_dir(&dir.0).expect("a directory").count(), 0, "nothing to be seen yet");

    let pid = child.id();
    let output = child.wait_with_output().expect("loadgen");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{}: {stderr}", output.status);
    let summary: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let of = |name: &str| number(&summary["churn"], name);
    assert_eq!((of("asked"), of("told")), (46, 46), "{summary}");
    assert_eq!(of("stopped") + of("leaving"), 46, "{summary}");
    assert_eq!(of("created") + of("coming"), of("stopped"), "{summary}");
    assert!(of("stopped") >= 40, "{summary}");
    assert!(0 < of("stop_p50_ns") && of("stop_p50_ns") <= of("stop_p99_ns"), "{summary}");
    assert!(0 < of("create_p50_ns") && of("create_p50_ns") <= of("create_p99_ns"), "{summary}");
    assert_eq!((number(&summary, "vms"), number(&summary, "killed")), (23, 0));

    // Who has been replaced comes first, in the order of leaving.
    let truth = read_truth(&truth);
    let replaced = &truth[..truth.len() - 23];
    assert!((of("created")..=of("stopped")).contains(&(replaced.len() as u64)), "{summary}");
    for line in replaced {
        assert!(number(line, "iterations") > 0, "{line}");
    }
    let total: u64 = truth.iter().map(|line| number(line, "iterations")).sum();
    assert_eq!(number(&summary, "iterations"), total);
    let names: BTreeSet<_> =
        truth.iter().map(|line| line["vm"].as_str().expect("a name")).collect();
    let numbered = (1..=truth.len()).map(|number| format!("loadgen-{number:04}"));
    assert!(names.into_iter().eq(numbered.collect::<Vec<_>>().iter()), "each has its own number");
    for line in &truth {
        let pid = u32::try_from(number(line, "pid")).expect("a PID");
        assert!(!comm(pid).starts_with("loadgen-"), "{pid} is still there");
    }
    assert!(cgroups(pid).is_empty());
}

/// A signal comes while guests are on their way out and in: all is as it should be; and after SIGKILL nothing is left.
#[test]
fn it_can_end_at_any_time() {
    let _alone = alone();
    let dir = TempDir::new("churn-ends");
    let args = ["--vms", "11", "--workload", "idle=11", "--churn", "101/s", "--duration", "50"];
    for signal in [libc::SIGINT, libc::SIGKILL] {
        let truth = dir.file(&signal.to_string());
        let mut running = Running::start(&args, Some(&truth));
        thread::sleep(Duration::from_millis(1_009));
        running.children = children_of(running.pid());
        running.signal(signal);
        let (status, stderr) = running.wait();
        if signal == libc::SIGKILL {
            running.assert_nothing_left(PATIENCE);
            assert!(!truth.exists());
            continue;
        }
        running.assert_nothing_left(Duration::ZERO);
        // They tick 11 times a second: with 11 of them no more than 121 a second can leave.
        assert!(status.success(), "{stderr}");
        let mut text = String::new();
        running.stdout.take().expect("its output").read_to_string(&mut text).expect("UTF-8");
        assert!(text.lines().last().expect("a line").starts_with("churn: "), "{text}");
        assert!(read_truth(&truth).len() > 22);
    }
    assert_eq!(fs::read_dir(&dir.0).expect("a directory").count(), 1, "temporary files");
}

/// Those that are done by themselves are replaced, too, when it is their turn.
#[test]
fn guests_that_are_done_are_replaced_in_their_turn() {
    let _alone = alone();
    let dir = TempDir::new("churn-done");
    let truth = dir.file("truth");
    let args = "--vms 5 --workload exits=pio:5@10 --churn 5/s --duration 2.3";
    let mut running = Running::start(&args.split(' ').collect::<Vec<_>>(), Some(&truth));
    let (status, stderr) = running.wait();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    let truth = read_truth(&truth);
    assert!((5 + 10..=5 + 11).contains(&truth.len()), "eleven turns in 2.3 s: {}", truth.len());
    let exits: Vec<u64> = truth.iter().map(|line| number(&line["exits"], "pio")).collect();
    assert!(exits.iter().all(|exits| *exits <= 5), "{exits:?}");
    assert!(exits.iter().filter(|exits| **exits == 5).count() >= 3, "{exits:?}");
    running.assert_nothing_left(Duration::ZERO);
}
