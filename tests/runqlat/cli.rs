//! What a user may type, what signals and pipes do, and how a host that cannot is told so.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::RUNQLAT;
use crate::util::tool::{self, Tool, csv_rows, number};
use crate::util::{TempDir, alone};

fn run(args: &[&str]) -> Output {
    tool::run(RUNQLAT, args)
}

#[test]
fn bad_input_is_refused_in_one_sentence() {
    for (args, words) in [
        (&["abc"][..], "abc"),
        (&["1", "abc"], "abc"),
        (&["1", "0"], "0"),
        (&["-1"], "-1"),
        (&["0"], "0"),
        (&["nan"], "nan"),
        (&["-p", "abc"], "not the ID of a process or thread"),
        (&["-p", "999999999"], "no process has PID 999999999"),
        (&["-p", "0"], "0"),
        (&["-p", "-5"], "-5"),
        (&["-t", "999999999"], "no thread has TID 999999999"),
        (&["-c", "/no/such/cgroup"], "there is no cgroup `/no/such/cgroup`"),
        (&["-c", "/etc"], "`/etc` is no cgroup directory"),
        (&["-C", "0-"], "0-"),
        (&["-C", "8191"], "there is no CPU 8191"),
        (&["--vm", "no such VM"], "no VM is named `no such VM`"),
        (&["--vm", "1"], "process 1 runs no VM"),
        (&["--by", "colour"], "colour"),
        (&["--by", "vm", "-P"], "cannot be used with"),
        (&["--csv", "--json"], "cannot be used with"),
        (&["--csv=all"], "all"),
        (&["--heatmap"], "INTERVAL"),
        (&["--heatmap", "--csv", "1"], "cannot be used with"),
        (&["--heatmap", "--json", "1"], "cannot be used with"),
        (&["--heatmap", "-P", "1"], "cannot be used with"),
        (&["-d", "0"], "0"),
        (&["--hdr", "/no/such/dir/x.hlog"], "cannot write `/no/such/dir/x.hlog`"),
        (&["--no-such-option"], "--no-such-option"),
    ] {
        tool::assert_refused("runqlat", &run(args), 2, words);
    }
}

#[test]
fn a_thread_is_no_process() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        // SAFETY: a plain system call.
        sender.send(unsafe { libc::gettid() }).unwrap();
        wait.recv().unwrap_err();
    });
    let tid = receiver.recv().unwrap().to_string();
    tool::assert_refused("runqlat", &run(&["-p", &tid]), 2, &format!("use -t {tid}"));
    drop(done);
    thread.join().unwrap();
}

#[test]
fn a_thread_of_another_process_is_refused() {
    let own = std::process::id().to_string();
    tool::assert_refused("runqlat", &run(&["-p", &own, "-t", "1"]), 2, "1 is no thread of process");
}

#[test]
fn a_process_that_ends_ends_the_run() {
    let _alone = alone();
    let mut child = Command::new("sleep").arg("0.7").spawn().unwrap();
    let pid = child.id().to_string();
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    let ended = Tool::start(RUNQLAT, &["-p", &pid, "--csv", "0.5"]).wait();
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(ended.stderr, format!("runqlat: process {pid} has ended\n"));
    let rows = csv_rows(&ended.stdout);
    assert_eq!(rows.len(), 2, "the interval in which it ended is the last");
    assert!(rows.iter().map(|row| number(row, "count")).sum::<u64>() >= 1, "{rows:?}");
    reaper.join().unwrap();
}

#[test]
fn other_namespaces_are_refused_with_the_way_out() {
    let script = format!("exec {RUNQLAT} -p 1 1 1");
    let args = ["--pid", "--fork", "--mount-proc", "sh", "-c", &script];
    let output = Command::new("unshare").args(args).output().unwrap();
    tool::assert_refused("runqlat", &output, 3, "--pid=host");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let v2 = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
    let script = format!("exec {RUNQLAT} -c {} 1 1", v2.split(' ').nth(1).unwrap());
    let output = Command::new("unshare").args(["--cgroup", "sh", "-c", &script]).output().unwrap();
    tool::assert_refused("runqlat", &output, 3, "--cgroupns=host");
}

#[test]
fn a_shells_background_job_ends_on_sigint() {
    let _alone = alone();
    // A script's `&` ignores SIGINT for the command.
    let script = format!("{RUNQLAT} 60 & sleep 1; kill -INT $!; wait $!; echo status $?");
    let output = Command::new("timeout").args(["30", "sh", "-c", &script]).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("still waiting ") && stdout.ends_with("status 0\n"), "{stdout}");
}

#[test]
fn a_broken_stderr_does_not_change_the_status() {
    for (args, status) in [("abc", 2), ("-v 0.2 1", 0)] {
        let script = format!("{RUNQLAT} {args} >/dev/null 2>/dev/full");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{args}");
    }
}

#[test]
fn a_user_namespace_is_told_the_way_out() {
    let script = format!("exec {RUNQLAT} 1 1");
    let args = ["--user", "--map-root-user", "sh", "-c", &script];
    let output = Command::new("unshare").args(args).output().unwrap();
    tool::assert_refused("runqlat", &output, 3, "--userns=host");
}

#[test]
fn nohup_keeps_it_running() {
    let _alone = alone();
    let tool = Tool::start("nohup", &[RUNQLAT, "--csv", "0.3", "4"]);
    let pid = tool.pid();
    std::thread::sleep(Duration::from_millis(100));
    // SAFETY: a plain system call; the child has not been waited for, so the PID is its own.
    assert_eq!(unsafe { libc::kill(pid as i32, libc::SIGHUP) }, 0);
    assert_eq!(csv_rows(&tool.wait().stdout).len(), 4);
}

#[test]
fn a_log_is_not_emptied_by_a_tool_that_cannot_run() {
    let dir = TempDir::new("kept");
    let log = dir.join("waits.hlog");
    fs::write(&log, "precious").unwrap();
    let hidden = format!(
        "mount -t tmpfs none /sys/kernel/btf && exec {RUNQLAT} --hdr {} 1 1",
        log.display()
    );
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &hidden]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(fs::read_to_string(&log).unwrap(), "precious");
}

#[test]
fn a_cgroup_of_version_1_is_refused_with_the_way_out() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let v1 =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|m| m[2] == "cgroup");
    // A host that has version 2 alone has nothing to mistake for it.
    let Some(v1) = v1 else {
        assert!(mounts.contains(" cgroup2 "), "no cgroups at all: {mounts}");
        return;
    };
    tool::assert_refused(
        "runqlat",
        &run(&["-c", v1[1]]),
        2,
        "is not a cgroup of version 2: name one below /",
    );
}

/// Runs a copy of the tool that anybody may execute, with uid 65534 and no capabilities.
#[test]
fn not_root_is_told_the_remedy() {
    let dir = TempDir::new("not-root");
    let copy = dir.join("runqlat");
    // Not written by this process: what it forks meanwhile would hold the file open, and it could not be run.
    let install = Command::new("install").args(["-m", "755", RUNQLAT]).arg(&copy).status().unwrap();
    assert!(install.success());
    let output = Command::new(&copy).arg("1").arg("1").uid(65_534).gid(65_534).output().unwrap();
    tool::assert_refused(
        "runqlat",
        &output,
        3,
        "not allowed to load BPF programs without CAP_BPF and CAP_PERFMON: run as root",
    );
    // What is wrong with the words is still said first.
    let output = Command::new(&copy).arg("abc").uid(65_534).gid(65_534).output().unwrap();
    tool::assert_refused("runqlat", &output, 2, "abc");
}

#[test]
fn a_kernel_without_btf_is_told_the_remedy() {
    let hidden = format!("mount -t tmpfs none /sys/kernel/btf && exec {RUNQLAT} 1 1");
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &hidden]).output().unwrap();
    tool::assert_refused("runqlat", &output, 3, "boot a kernel with CONFIG_DEBUG_INFO_BTF=y");
}

#[test]
fn each_signal_prints_the_last_interval_and_ends_well() {
    let _alone = alone();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let tool = Tool::start(RUNQLAT, &["60"]);
        std::thread::sleep(Duration::from_millis(300));
        let ended = tool.end(signal);
        assert_eq!(ended.status.code(), Some(0), "signal {signal}: {}", ended.stderr);
        for part in
            ["Tracing run queue latency", "usecs", "count ", "p99.9 ", "groups: ", "still waiting "]
        {
            assert!(ended.stdout.contains(part), "signal {signal}, {part}: {}", ended.stdout);
        }
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn intervals_come_through_a_pipe_when_they_end_and_do_not_drift() {
    let _alone = alone();
    let mut tool = Tool::start(RUNQLAT, &["--csv", "0.5", "6"]);
    let start = Instant::now();
    for tick in 1..=6 {
        let line = tool.line();
        let late_s = start.elapsed().as_secs_f64() - 0.5 * f64::from(tick);
        assert!(line.contains(','), "{line}");
        assert!(late_s.abs() < 0.25, "interval {tick} came {late_s} s late");
    }
    assert!(tool.wait().status.success());
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let _alone = alone();
    let script = format!("{RUNQLAT} 0.2 | head -1; echo ${{PIPESTATUS[0]}}");
    let output = Command::new("timeout").args(["30", "bash", "-c", &script]).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout, "Tracing run queue latency... Hit Ctrl-C to end.\n0\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn count_and_duration_end_a_run() {
    let _alone = alone();
    let timed = |args: &[&str]| {
        let start = Instant::now();
        let rows = Tool::start(RUNQLAT, args).wait().rows();
        (rows.len(), start.elapsed().as_secs_f64())
    };
    let (rows, seconds) = timed(&["--csv", "0.3", "3"]);
    assert_eq!(rows, 3);
    assert!((0.9..3.0).contains(&seconds), "{seconds}");
    let (rows, seconds) = timed(&["--csv", "-d", "0.7"]);
    assert_eq!(rows, 1);
    assert!((0.7..3.0).contains(&seconds), "{seconds}");
    let (rows, _) = timed(&["--csv", "-d", "1", "0.4"]);
    assert_eq!(rows, 3, "two whole intervals and the rest");
}

#[test]
fn help_and_version_succeed() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    for option in
        ["INTERVAL", "--milliseconds", "--by", "--pidnss", "--cgroup", "--vm", "--hdr", "--strict"]
    {
        assert!(text.contains(option), "{option}: {text}");
    }
    assert!(run(&["--version"]).status.success());
}

#[test]
fn it_starts_in_good_time() {
    let _alone = alone();
    let start = Instant::now();
    let tool = Tool::start(RUNQLAT, &[]);
    let ready = start.elapsed();
    assert!(tool.end(libc::SIGINT).status.success());
    // Speed is for `make bench`; this only catches a start that hangs.
    assert!(ready < Duration::from_secs(10), "{ready:?}");
}

#[test]
fn verbose_shows_libbpfs_messages() {
    let mut child = Command::new(RUNQLAT)
        .args(["-v", "0.1", "1"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(stderr.contains("libbpf: "), "{stderr}");
}
