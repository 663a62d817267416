//! `--why` as a user asks it. What it answers is tested on every kernel: tests/kernels/ksmstat_why.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::KSMSTAT;
use crate::util::guests::Guests;
use crate::util::ksm::Ksm;
use crate::util::tool::{self, Tool};
use crate::util::{TempDir, alone};

fn run(args: &[&str]) -> Output {
    tool::run(KSMSTAT, args)
}

#[test]
fn bad_input_is_refused_in_one_sentence() {
    for (args, words) in [
        (&["--why", "1"][..], "cannot be used with"),
        (&["--why", "-S"], "cannot be used with"),
        (&["--why", "-T"], "cannot be used with"),
        (&["--why", "--csv"], "cannot be used with"),
        (&["--why", "--hdr", "x"], "cannot be used with"),
        (&["--why", "--by", "vm"], "cannot be used with"),
        (&["--why", "--top", "3"], "cannot be used with"),
        (&["--why", "--cow"], "cannot be used with"),
        (&["--why", "--stacks"], "cannot be used with"),
        (&["--why", "-d", "0"], "0"),
        (&["--why", "-p", "abc"], "not the ID of a process or thread"),
        (&["--why", "-p", "999999999"], "no process has PID 999999999"),
        (&["--why", "--vm", "no such VM"], "no VM is named `no such VM`"),
        (&["--why", "--vm", "1"], "process 1 runs no VM"),
    ] {
        tool::assert_refused("ksmstat", &run(args), 2, words);
    }
    // kthreadd: it is there, but has nothing to merge.
    tool::assert_refused("ksmstat", &run(&["--why", "-p", "2"]), 1, "process 2 has no memory");
}

#[test]
fn whoever_may_not_look_is_told_so() {
    let dir = TempDir::new("ksmstat-not-root");
    let copy = dir.join("ksmstat");
    // Not written by this process: see kvmexits' test.
    let install = Command::new("install").args(["-m", "755", KSMSTAT]).arg(&copy).status().unwrap();
    assert!(install.success());
    let as_nobody =
        |args: &[&str]| Command::new(&copy).args(args).uid(65_534).gid(65_534).output().unwrap();
    let (one, all) = (as_nobody(&["--why", "-p", "1"]), as_nobody(&["--why"]));
    tool::assert_refused("ksmstat", &one, 3, "`/proc/1/smaps`: run as root");
    tool::assert_refused("ksmstat", &all, 3, "run as root");
}

#[test]
fn a_kernel_without_ksm_is_told() {
    let script = format!("mount -t tmpfs none /sys/kernel/mm && exec {KSMSTAT} --why");
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "Nothing is merged on this host.\n\
         This kernel has no KSM: /sys/kernel/mm/ksm is not there; CONFIG_KSM=y makes it.\n"
    );
    assert_eq!(output.status.code(), Some(0));
}

/// Whether a guest asks for merging is up to its VMM.
#[test]
fn a_vm_is_asked_about() {
    let _alone = alone();
    for (asks, expected) in [("on", false), ("off", true)] {
        let args =
            ["--vms", "1", "--workload", "memory=16M", "--mem-merge", asks, "--duration", "60"];
        let guests = Guests::start(&args);
        // Somebody else may have guests of that name.
        let pid = guests.pids()[0];
        let output = run(&["--why", "--json", "--vm", &pid.to_string(), "-d", "0.1"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&answer["pid"], &answer["name"]), (&pid.into(), &"loadgen-0001".into()));
        let causes = answer["causes"].as_array().unwrap();
        let not_asked = causes.iter().any(|cause| cause["cause"] == "not_asked");
        assert_eq!(not_asked, expected, "{answer}");
        guests.end();
    }
}

#[test]
fn a_signal_ends_the_watch_and_gets_the_answer() {
    let _alone = alone();
    let ksm = Ksm::take();
    ksm.set("run", 1);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let tool = Tool::start_at_once(KSMSTAT, &["--why", "-d", "60"]);
        // Its second thread waits for signals while the first watches.
        let threads = || fs::read_dir(format!("/proc/{}/task", tool.pid())).unwrap().count();
        while threads() < 2 {
            thread::sleep(Duration::from_millis(5));
        }
        let ended = tool.end(signal);
        assert_eq!(ended.status.code(), Some(0), "signal {signal}: {}", ended.stderr);
        assert!(ended.stdout.lines().count() >= 1, "{}", ended.stdout);
        assert!(ended.stdout.lines().all(|line| line.len() <= 80), "{}", ended.stdout);
    }
}
