//! What a user may type, and what signals and pipes do.

use std::fs;
use std::process::{Command, Output};

use crate::KSMSTAT;
use crate::util::alone;
use crate::util::mergeable::Mergeable;
use crate::util::tool::{self, Tool};

fn run(args: &[&str]) -> Output {
    tool::run(KSMSTAT, args)
}

#[test]
fn bad_input_is_refused_in_one_sentence() {
    for (args, words) in [
        (&["abc"][..], "abc"),
        (&["1", "0"], "0"),
        (&["-1"], "-1"),
        (&["-p", "abc"], "not the ID of a process or thread"),
        (&["-p", "999999999"], "no process has PID 999999999"),
        (&["--vm", "no such VM"], "no VM is named `no such VM`"),
        (&["--vm", "1"], "process 1 runs no VM"),
        (&["--by", "colour"], "colour"),
        (&["--sort", "colour"], "colour"),
        (&["--top", "0"], "0"),
        (&["-S", "1"], "cannot be used with"),
        (&["-S", "--json"], "cannot be used with"),
        (&["-m"], "--histogram"),
        (&["--histogram", "--by", "vm"], "cannot be used with"),
        (&["--stacks=0"], "0"),
        (&["--stacks", "--json"], "cannot be used with"),
        (&["--csv", "--json"], "cannot be used with"),
        (&["--csv=colours"], "colours"),
        (&["--csv=processes", "--by", "vm"], "cannot be used with"),
        (&["--csv=buckets", "--by", "vm"], "not for processes or VMs"),
        (&["--csv=buckets", "-p", "1"], "not for processes or VMs"),
        (&["-d", "0"], "0"),
        (&["--hdr", "/no/such/dir/x.hlog"], "cannot write `/no/such/dir/x.hlog`"),
        (&["--no-such-option"], "--no-such-option"),
    ] {
        tool::assert_refused("ksmstat", &run(args), 2, words);
    }
}

/// In a mount namespace of its own, the kernel's directory is hidden.
#[test]
fn a_kernel_without_ksm_is_told_in_one_sentence() {
    for args in ["", "-S", "--json 1 1"] {
        let script = format!("mount -t tmpfs none /sys/kernel/mm && exec {KSMSTAT} {args}");
        let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
        tool::assert_refused("ksmstat", &output, 3, "boot a kernel with CONFIG_KSM=y");
    }
}

#[test]
fn the_state_is_every_file_of_the_kernels() {
    let output = run(&["-S"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    for entry in fs::read_dir("/sys/kernel/mm/ksm").unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let line = text.lines().find(|line| line.trim_start().starts_with(&format!("{name} ")));
        let shown = line.unwrap_or_else(|| panic!("{name}: {text}"));
        assert!(!shown.contains("not known"), "{shown}");
    }
}

#[test]
fn each_signal_prints_the_last_interval_and_ends_well() {
    let _alone = alone();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let ended = Tool::start(KSMSTAT, &["60"]).end(signal);
        assert_eq!(ended.status.code(), Some(0), "signal {signal}: {}", ended.stderr);
        for part in ["Tracing KSM", "saved profit ", "ksmd%"] {
            assert!(ended.stdout.contains(part), "signal {signal}, {part}: {}", ended.stdout);
        }
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let _alone = alone();
    let script = format!("{KSMSTAT} 0.2 | head -1; echo ${{PIPESTATUS[0]}}");
    let output = Command::new("timeout").args(["30", "bash", "-c", &script]).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout, "Tracing KSM... Hit Ctrl-C to end.\n0\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn a_process_that_ends_ends_the_run_and_keeps_its_last_figures() {
    let _alone = alone();
    let memory = Mergeable::start(&[7; 23]);
    let pid = memory.pid().to_string();
    let mut tool = Tool::start(KSMSTAT, &["-p", &pid, "--csv", "0.3"]);
    assert!(tool.line().contains(&format!(",{pid},")));
    drop(memory);
    let ended = tool.wait();
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(ended.stderr, format!("ksmstat: process {pid} has ended\n"));
    let rows = tool::csv_rows(&ended.stdout);
    assert_eq!(rows.last().unwrap()["gone"], "true", "{}", ended.stdout);
}

#[test]
fn a_process_without_mergeable_memory_is_said_to_have_none() {
    let _alone = alone();
    let own = std::process::id().to_string();
    let ended = Tool::start(KSMSTAT, &["-p", &own, "-d", "0.3"]).wait();
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.stdout.ends_with("\nno mergeable memory\n"), "{}", ended.stdout);
}

#[test]
fn help_and_version_succeed() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    for option in ["INTERVAL", "--state", "--by", "--sort", "--cow", "--histogram", "--stacks"] {
        assert!(text.contains(option), "{option}: {text}");
    }
    assert!(run(&["--version"]).status.success());
}
