//! However it ends: the truth is written if anybody is left to write it, and nothing is left behind.

mod support;

use std::fs;
use std::io::Read as _;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use support::{PATIENCE, Running, TempDir, alone, cgroups, kill, loadgen, number, read_truth};

#[test]
fn signals_end_a_run_in_order() {
    let _alone = alone();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let dir = TempDir::new("signals");
        let truth = dir.file("truth");
        let mut running = Running::start(&["--vms", "7", "--duration", "50"], Some(&truth));
        assert!(running.first_line.starts_with("7 guests (7 vCPUs) running: created in "));
        assert_eq!(running.guests().len(), 7);
        thread::sleep(Duration::from_millis(500));
        running.signal(signal);
        let (status, stderr) = running.wait();
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
        running.assert_nothing_left(Duration::ZERO);
        assert_eq!(read_truth(&truth).len(), 7);
        assert_eq!(fs::read_dir(&dir.0).expect("a directory").count(), 1, "temporary files");
        let mut rest = String::new();
        let stdout = running.stdout.as_mut().expect("its output");
        stdout.read_to_string(&mut rest).expect("UTF-8");
        assert!(rest.starts_with("ran ") && rest.lines().count() == 1, "{rest}");
    }
}

#[test]
fn a_signal_during_creation_ends_it_early() {
    let _alone = alone();
    let dir = TempDir::new("early");
    let truth = dir.file("truth");
    let mut child = loadgen()
        .args(["run", "--vms", "5003", "--duration", "50", "--truth"])
        .arg(&truth)
        .stdout(Stdio::null())
        .spawn()
        .expect("loadgen");
    while cgroups(child.id()).is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(100));
    kill(child.id(), libc::SIGINT);
    assert_eq!(child.wait().expect("a child").code(), Some(0));
    assert!((1..5_003).contains(&read_truth(&truth).len()));
    assert!(cgroups(child.id()).is_empty());
}

#[test]
fn a_killed_parent_leaves_nothing_behind() {
    let _alone = alone();
    for workload in ["spin", "idle=100"] {
        let args = ["--vms", "101", "--workload", workload, "--duration", "50"];
        let mut running = Running::start(&args, None);
        assert_eq!(running.children.len(), 102, "guests and the janitor");
        assert!(!cgroups(running.pid()).is_empty());
        running.signal(libc::SIGKILL);
        running.wait();
        running.assert_nothing_left(PATIENCE);
    }
}

#[test]
fn a_reader_who_goes_away_ends_the_run() {
    let _alone = alone();
    let dir = TempDir::new("pipe");
    let truth = dir.file("truth");
    let mut running = Running::start(&["--vms", "3", "--duration", "50"], Some(&truth));
    drop(running.stdout.take());
    let (status, stderr) = running.wait();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    running.assert_nothing_left(Duration::ZERO);
    assert_eq!(read_truth(&truth).len(), 3);
}

#[test]
fn a_guest_that_dies_is_named_and_the_rest_is_told() {
    let _alone = alone();
    let dir = TempDir::new("dies");
    let truth = dir.file("truth");
    let args = ["--vms", "3", "--workload", "idle", "--duration", "50"];
    let mut running = Running::start(&args, Some(&truth));
    kill(running.guests()[1], libc::SIGKILL);
    let (status, stderr) = running.wait();
    assert_eq!(status.code(), Some(1));
    assert_eq!(stderr, "loadgen: guest failed: `loadgen-0002` was killed by signal 9\n");
    running.assert_nothing_left(Duration::ZERO);
    let truth = read_truth(&truth);
    assert_eq!(truth.len(), 3);
    assert!(number(&truth[2], "iterations") > 0);
}
