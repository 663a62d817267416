//! What a user may type, what signals and pipes do, and how a host that cannot is told so.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::KVMEXITS;
use crate::guests::{self, Guests, counts};
use crate::util::tool::{self, Tool, csv_rows};
use crate::util::{TempDir, alone};

fn run(args: &[&str]) -> Output {
    tool::run(KVMEXITS, args)
}

#[test]
fn bad_input_is_refused_in_one_sentence() {
    for (args, words) in [
        (&["abc"][..], "abc"),
        (&["1", "abc"], "abc"),
        (&["1", "0"], "not a number of outputs"),
        (&["1", "2", "3"], "3"),
        (&["0"], "0"),
        (&["-1"], "-1"),
        (&["nan"], "nan"),
        (&["-d", "0"], "0"),
        (&["-p", "abc"], "not the ID of a process or thread"),
        (&["-p", "0"], "not the ID of a process or thread"),
        (&["-p", "999999999"], "no process has PID 999999999"),
        (&["-t", "999999999"], "no thread has TID 999999999"),
        (&["-c", "/no/such/cgroup"], "there is no cgroup `/no/such/cgroup`"),
        (&["-c", "/etc"], "`/etc` is no cgroup directory"),
        (&["--vm", "nosuch"], "no VM is named `nosuch`"),
        (&["--vm", "1"], "process 1 runs no VM"),
        (&["--vcpu", "-1"], "-1"),
        (&["--vcpu", "abc"], "abc"),
        (&["--vcpu", "99999999999"], "99999999999"),
        (&["--reason", "nosuch"], "no exit reason has that name"),
        (&["--reason", "KVM_EXIT_"], "no exit reason has that name"),
        (&["--reason", ""], "no exit reason has that name"),
        (&["--reason", "io", "--by", "vm"], "--by vm,reason"),
        (&["--by", "colour"], "colour"),
        (&["--by", ""], "--by"),
        (&["--by", "vm,"], "--by"),
        (&["--slower", "0"], "not a length of time in microseconds"),
        (&["--slower", "-5"], "not a length of time in microseconds"),
        (&["--slower", "1e18"], "not a length of time in microseconds"),
        (&["--slower", "abc"], "not a number of microseconds"),
        (&["--slower", "100", "1"], "cannot be used with"),
        (&["--slower", "100", "--histogram"], "cannot be used with"),
        (&["--slower", "100", "--by", "vm"], "cannot be used with"),
        (&["--slower", "100", "--stacks"], "cannot be used with"),
        (&["--slower", "100", "--hdr", "/tmp/x"], "cannot be used with"),
        (&["--stacks", "--csv"], "cannot be used with"),
        (&["--stacks", "--json"], "cannot be used with"),
        (&["--stacks", "--detail"], "cannot be used with"),
        (&["--stacks", "--hdr", "/tmp/x"], "cannot be used with"),
        (&["--stacks", "--by", "vm"], "cannot be used with"),
        (&["--stacks", "--histogram"], "cannot be used with"),
        (&["--stacks=abc"], "abc"),
        (&["--stacks=0"], "0"),
        (&["--csv", "--json"], "cannot be used with"),
        (&["--csv=all"], "all"),
        (&["--hdr", "/no/such/dir/x.hlog"], "cannot write `/no/such/dir/x.hlog`"),
        (&["--hdr", "/"], "cannot write `/`"),
        (&["--no-such-option"], "--no-such-option"),
    ] {
        tool::assert_refused("kvmexits", &run(args), 2, words);
    }
}

/// Not even looked at by somebody who may not load anything: what is wrong with the words is said first.
#[test]
fn not_root_is_told_the_remedy() {
    let dir = TempDir::new("kvmexits-not-root");
    let copy = dir.join("kvmexits");
    // Not written by this process: what it forks meanwhile would hold the file open, and it could not be run.
    let install =
        Command::new("install").args(["-m", "755", KVMEXITS]).arg(&copy).status().unwrap();
    assert!(install.success());
    let as_nobody =
        |args: &[&str]| Command::new(&copy).args(args).uid(65_534).gid(65_534).output().unwrap();
    let remedy = "not allowed to load BPF programs without CAP_BPF and CAP_PERFMON: run as root";
    tool::assert_refused("kvmexits", &as_nobody(&["1", "1"]), 3, remedy);
    tool::assert_refused("kvmexits", &as_nobody(&["abc"]), 2, "abc");
    tool::assert_refused("kvmexits", &as_nobody(&["--reason", "nosuch"]), 2, "no exit reason");
    tool::assert_refused("kvmexits", &as_nobody(&["-p", "999999999"]), 2, "no process has PID");
}

#[test]
fn a_kernel_without_btf_is_told_the_remedy() {
    let hidden = format!("mount -t tmpfs none /sys/kernel/btf && exec {KVMEXITS} 1 1");
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &hidden]).output().unwrap();
    tool::assert_refused("kvmexits", &output, 3, "boot a kernel with CONFIG_DEBUG_INFO_BTF=y");
}

#[test]
fn a_host_without_tracefs_is_told_the_remedy() {
    let hide = "for fs in $(awk '$3 == \"tracefs\" || $3 == \"debugfs\" {print $2}' /proc/mounts | sort -r); do \
                umount -l $fs || exit; done; exec ";
    let hidden = format!("{hide}{KVMEXITS} 1 1");
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &hidden]).output().unwrap();
    tool::assert_refused("kvmexits", &output, 3, "mount -t tracefs");
}

#[test]
fn a_log_is_not_emptied_by_a_tool_that_cannot_run() {
    let dir = TempDir::new("kvmexits-kept");
    let log = dir.join("exits.hlog");
    fs::write(&log, "precious").unwrap();
    let hidden = format!(
        "mount -t tmpfs none /sys/kernel/btf && exec {KVMEXITS} --hdr {} 1 1",
        log.display()
    );
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &hidden]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(fs::read_to_string(&log).unwrap(), "precious");
}

#[test]
fn each_signal_prints_the_last_interval_and_ends_well() {
    let _alone = alone();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let tool = Tool::start(KVMEXITS, &["--csv", "600"]);
        let truth = guests::run(1, 1, "pio:23", &[]);
        let pid = truth[0]["pid"].clone();
        let ended = tool.end(signal);
        let rows = ended.rows();
        let seen = counts(&rows, &["reason"]);
        for (reason, count) in counts(&truth, &["reason"]) {
            assert!(seen[&reason] >= count, "signal {signal}, guest {pid}: {seen:?}");
        }
    }
}

#[test]
fn text_says_what_it_must_and_fits_80_columns() {
    let _alone = alone();
    for args in [
        &["-T"][..],
        &["--histogram"],
        &["--histogram", "-m"],
        &["--by", "vm"],
        &["--by", "vcpu"],
        &["--by", "vcpu,reason", "--detail"],
        &["--slower", "1", "--detail"],
    ] {
        let tool = Tool::start(KVMEXITS, args);
        let pid = guests::run(2, 2, "pio:23,mmio:11", &[])[0]["pid"].clone();
        let ended = tool.end(libc::SIGINT);
        assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""), "guest {pid}");
        for line in ended.stdout.lines() {
            assert!(line.chars().count() <= 80, "{args:?}: {line}");
        }
        let vendor = ["kvm_intel", "kvm_amd"]
            .iter()
            .any(|module| fs::exists(format!("/sys/module/{module}")).unwrap());
        let untold = vendor || args[0] == "--slower";
        assert!(untold || ended.stdout.contains("does not fire kvm_exit"), "{}", ended.stdout);
        let parts =
            if args[0] == "--slower" { "kern  user sleep  runq" } else { "krn usr slp rnq" };
        assert!(ended.stdout.contains(parts), "{}", ended.stdout);
        if args[0] == "--histogram" {
            let unit = if args.len() > 1 { "msecs" } else { "usecs" };
            let head = format!("     {unit:<19} : count     distribution");
            assert!(ended.stdout.contains(&head), "{}", ended.stdout);
        }
        if args[0] == "-T" {
            let is_clock = |line: &&str| jiff::civil::Time::strptime("%H:%M:%S", line).is_ok();
            assert_eq!(ended.stdout.lines().filter(is_clock).count(), 1, "{}", ended.stdout);
        }
    }
}

#[test]
fn intervals_come_through_a_pipe_when_they_end_and_do_not_drift() {
    let _alone = alone();
    let mut tool = Tool::start(KVMEXITS, &["-T", "0.5", "6"]);
    let start = Instant::now();
    let mut clocks = 0;
    while clocks < 6 {
        let line = tool.line();
        if jiff::civil::Time::strptime("%H:%M:%S", &line).is_ok() {
            clocks += 1;
            let late_s = start.elapsed().as_secs_f64() - 0.5 * f64::from(clocks);
            assert!(late_s.abs() < 0.4, "interval {clocks} came {late_s} s late");
        }
    }
    let ended = tool.wait();
    assert!(ended.status.success() && !ended.stdout.contains("lost"), "{}", ended.stdout);
}

#[test]
fn a_duration_ends_a_run() {
    let _alone = alone();
    for args in [&["-d", "0.7"][..], &["-d", "0.7", "0.3"], &["--slower", "100", "-d", "0.7"]] {
        let start = Instant::now();
        assert!(Tool::start(KVMEXITS, args).wait().status.success());
        let seconds = start.elapsed().as_secs_f64();
        assert!((0.7..5.0).contains(&seconds), "{args:?}: {seconds}");
    }
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let _alone = alone();
    for args in ["0.2", "--csv 0.2"] {
        let script = format!("{KVMEXITS} {args} | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}");
        // CSV has rows only where there are exits.
        let guests = Guests::start(1, 1, "pio:600@200", &[]);
        let output = Command::new("timeout").args(["30", "bash", "-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "0\n", "{args}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{args}");
        guests.wait();
    }
}

#[test]
fn a_broken_stderr_does_not_change_the_status() {
    for (args, status) in [("abc", 2), ("-v 0.2 1", 0)] {
        let script = format!("{KVMEXITS} {args} >/dev/null 2>/dev/full");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{args}");
    }
}

#[test]
fn a_process_that_ends_ends_the_run() {
    let _alone = alone();
    for (by, args) in
        [("-p", &["--csv", "0.5"][..]), ("-t", &["--csv", "0.5"]), ("-p", &["--slower", "1000"])]
    {
        let mut child = Command::new("sleep").arg("1.2").spawn().unwrap();
        let pid = child.id().to_string();
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        let start = Instant::now();
        let ended = Tool::start("timeout", &[&["20", KVMEXITS, by, &pid], args].concat()).wait();
        assert_eq!(ended.status.code(), Some(0), "{args:?}: {}", ended.stderr);
        let what = if by == "-p" { "process" } else { "thread" };
        assert_eq!(ended.stderr, format!("kvmexits: {what} {pid} has ended\n"));
        assert_eq!(
            ended.stdout.lines().count(),
            1,
            "no exits, as it ran no guest: {}",
            ended.stdout
        );
        assert!(start.elapsed() < Duration::from_secs(15));
        reaper.join().unwrap();
    }
}

/// The guest ends when it has made its exits, and the run with it: all are in the output.
#[test]
fn a_vm_that_ends_ends_the_run_and_is_whole() {
    let _alone = alone();
    let guests = Guests::start(1, 1, "pio:800@200", &[]);
    let tool = Tool::start(
        KVMEXITS,
        &["--vm", &guests.pids()[0].to_string(), "--by", "vm,reason", "--csv", "0.5"],
    );
    let truth = guests.truth();
    let ended = tool.wait();
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.stderr.ends_with(" has ended\n"), "{}", ended.stderr);
    let seen = counts(&csv_rows(&ended.stdout), &["pid", "reason"]);
    let pid = &truth[0]["pid"];
    let count = |reason: &str| seen[&vec![pid.clone(), reason.to_owned()]];
    assert!((1..=800).contains(&count("KVM_EXIT_IO")), "it was on its way before: {seen:?}");
    assert_eq!(count("KVM_EXIT_SHUTDOWN"), 1);
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[test]
fn help_and_version_succeed() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    for option in ["INTERVAL", "--by", "--detail", "--slower", "--stacks", "--reason", "--vcpu"] {
        assert!(text.contains(option), "{option}: {text}");
    }
    assert!(run(&["--version"]).status.success());
}

#[test]
fn it_starts_in_good_time() {
    let _alone = alone();
    let start = Instant::now();
    let tool = Tool::start(KVMEXITS, &[]);
    let ready = start.elapsed();
    assert!(tool.end(libc::SIGINT).status.success());
    // Speed is for `make bench`; this only catches a start that hangs.
    assert!(ready < Duration::from_secs(10), "{ready:?}");
}
