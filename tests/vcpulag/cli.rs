//! What a user may type, and what signals and pipes do.

use std::process::{Command, Output};
use std::time::Duration;

use crate::VCPULAG;
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::tool::{self, Tool};

fn run(args: &[&str]) -> Output {
    tool::run(VCPULAG, args)
}

#[test]
fn bad_input_is_refused_in_one_sentence() {
    for (args, words) in [
        (&["abc"][..], "abc"),
        (&["1", "0"], "0"),
        (&["-1"], "-1"),
        (&["-p", "abc"], "not the ID of a process or thread"),
        (&["-p", "999999999"], "no process has PID 999999999"),
        (&["-t", "999999999"], "no thread has TID 999999999"),
        (&["-c", "/no/such/cgroup"], "there is no cgroup `/no/such/cgroup`"),
        (&["--vm", "no such VM"], "no VM is named `no such VM`"),
        (&["--vm", "1"], "process 1 runs no VM"),
        (&["--vcpu", "-1"], "-1"),
        (&["--vcpu", "first"], "first"),
        (&["--by", "colour"], "colour"),
        (&["--top", "0"], "0"),
        (&["--late", "101"], "not a number from 0 to 100"),
        (&["--late", "nan"], "not a number from 0 to 100"),
        (&["--slower", "0"], "0"),
        (&["--slower", "x"], "x"),
        (&["--slower", "10", "1"], "cannot be used with"),
        (&["--slower", "10", "--culprits"], "cannot be used with"),
        (&["--culprits", "--histogram"], "cannot be used with"),
        (&["-m"], "--histogram"),
        (&["--csv", "--json"], "cannot be used with"),
        (&["--heatmap"], "INTERVAL"),
        (&["--heatmap", "--csv", "1"], "cannot be used with"),
        (&["--heatmap", "--json", "1"], "cannot be used with"),
        (&["--heatmap", "--culprits", "1"], "cannot be used with"),
        (&["-d", "0"], "0"),
        (&["--hdr", "/no/such/dir/x.hlog"], "cannot write `/no/such/dir/x.hlog`"),
        (&["--no-such-option"], "--no-such-option"),
    ] {
        tool::assert_refused("vcpulag", &run(args), 2, words);
    }
}

#[test]
fn each_signal_prints_the_last_interval_and_ends_well() {
    let _alone = alone();
    let guests = Guests::start(&["--vms", "2", "--duration", "60"]);
    let cgroup = guests.cgroup();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let tool = Tool::start(VCPULAG, &["-c", &cgroup, "60"]);
        std::thread::sleep(Duration::from_millis(500));
        let ended = tool.end(signal);
        assert_eq!(ended.status.code(), Some(0), "signal {signal}: {}", ended.stderr);
        for part in ["Tracing vCPUs", "VM/VCPU (%)", "loadgen-0001/0", " of 2 vCPUs waited"] {
            assert!(ended.stdout.contains(part), "signal {signal}, {part}: {}", ended.stdout);
        }
        assert_eq!(ended.stderr, "");
        let told = Tool::start(VCPULAG, &["-c", &cgroup, "--slower", "60000000"]).end(signal);
        assert_eq!(told.status.code(), Some(0), "signal {signal}: {}", told.stderr);
    }
    guests.end();
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let _alone = alone();
    let script = format!("{VCPULAG} 0.2 | head -1; echo ${{PIPESTATUS[0]}}");
    let output = Command::new("timeout").args(["30", "bash", "-c", &script]).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout, "Tracing vCPUs... Hit Ctrl-C to end.\n0\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn a_vm_that_ends_ends_the_run() {
    let _alone = alone();
    let guests = Guests::start(&["--vms", "1", "--duration", "3"]);
    let pid = guests.pids()[0].to_string();
    let ended = Tool::start(VCPULAG, &["-p", &pid, "--csv", "0.5"]).wait();
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(ended.stderr, format!("vcpulag: process {pid} has ended\n"));
    assert!(ended.stdout.contains(",loadgen-0001,"), "{}", ended.stdout);
}

#[test]
fn no_vcpus_are_said_to_be_none() {
    let _alone = alone();
    let own = std::process::id().to_string();
    let ended = Tool::start(VCPULAG, &["-p", &own, "-d", "0.3"]).wait();
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.stdout.ends_with("\nno vCPUs\n"), "{}", ended.stdout);
}

#[test]
fn help_and_version_succeed() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    for option in
        ["INTERVAL", "--by", "--vcpu", "--top", "--culprits", "--late", "--histogram", "--slower"]
    {
        assert!(text.contains(option), "{option}: {text}");
    }
    assert!(run(&["--version"]).status.success());
}
