//! Guests run, on emulated AMD-V too, and know what they did.

use std::path::Path;

use serde_json::Value;

use crate::kernel;
use crate::util::ksm::{Ksm, cow_breaks};
use crate::util::tool::{Tool, json_lines};
use crate::util::{TempDir, alone, loadgen};

/// Runs guests to their end; what they say they did.
fn run(args: &[&str]) -> Vec<Value> {
    let dir = TempDir::new("truth");
    let path = dir.join("truth.json");
    let args = [&["run"], args, &["--truth", path.to_str().unwrap()]].concat();
    let ended = Tool::start(&loadgen(), &args).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    read(&path)
}

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    json_lines(&text)
}

#[test]
fn spinning_guests_spin() {
    let _alone = alone();
    let truth = run(&["--vms", "3", "--duration", "2"]);
    assert_eq!(truth.len(), 3);
    for vcpu in &truth {
        assert!(vcpu["iterations"].as_u64().unwrap() > 0, "{vcpu}");
        assert_eq!(vcpu["exits"]["hlt"], 0, "{vcpu}");
        assert_eq!(vcpu.get("failure"), None, "{vcpu}");
    }
}

/// Of a quota on plain cgroup v2 nothing is left, and an I/O thread uses it up as well.
#[test]
fn guests_have_quotas_and_io_threads() {
    let _alone = alone();
    let args = ["--vms", "2", "--cpu-max", "30", "--io-thread", "23", "--cpus", "0"];
    let truth = run(&[&args[..], &["--duration", "3"]].concat());
    for vcpu in &truth {
        let of = |name: &str| vcpu[name].as_u64().unwrap();
        assert!((100_000_000..3_500_000_000).contains(&of("throttled_ns")), "{vcpu}");
        assert!((20_000_000..1_000_000_000).contains(&of("io_thread_cpu_ns")), "{vcpu}");
        assert_ne!(of("io_thread_tid"), of("tid"), "{vcpu}");
    }
}

#[test]
fn idle_guests_tick_and_halt() {
    let _alone = alone();
    let truth = run(&["--vms", "2", "--workload", "idle=23", "--duration", "3"]);
    assert_eq!(truth.len(), 2);
    for vcpu in &truth {
        let [ticks, missed] = ["ticks", "ticks_missed"].map(|name| vcpu[name].as_u64().unwrap());
        let hlts = vcpu["exits"]["hlt"].as_u64().unwrap();
        assert!((60..=76).contains(&(ticks + missed)), "23 Hz for 3 s: {vcpu}");
        let late = vcpu["late_ticks"].as_array().unwrap().iter();
        assert_eq!(late.map(|row| row[2].as_u64().unwrap()).sum::<u64>(), ticks, "{vcpu}");
        // A tick that finds the guest awake needs no HLT.
        assert!(ticks >= 23 && hlts >= 23 && hlts <= ticks + 1, "{vcpu}");
        assert_eq!(vcpu.get("failure"), None, "{vcpu}");
    }
}

/// Guests with memory, as many as the issue asks for, which KSM may merge.
fn with_memory(memory: &str, truth: &Path) -> Tool {
    let args = ["run", "--vms", "8", "--workload", memory, "--truth", truth.to_str().unwrap()];
    Tool::start(&loadgen(), &args)
}

/// `pages_shared`, `pages_sharing`.
fn shown(ksm: &Ksm) -> [u64; 2] {
    ["pages_shared", "pages_sharing"].map(|name| ksm.read(name).unwrap())
}

fn expected(of: &Value) -> [u64; 2] {
    ["pages_shared", "pages_sharing"].map(|name| of[name].as_u64().unwrap())
}

#[test]
fn ksm_merges_what_the_truth_says() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let dir = TempDir::new("merged");
    let truth = dir.join("truth.json");
    // The last one leaves one zero page of 293 * 3 + 1 alone.
    for (memory, max_page_sharing) in [
        ("memory=16M,duplicate=50", 256),
        ("memory=4036K,duplicate=23,zero=11", 23),
        ("memory=4036K,zero=11", 293),
    ] {
        ksm.set("run", 2);
        ksm.set("max_page_sharing", max_page_sharing);
        let guests = with_memory(memory, &truth);
        ksm.scan(2);
        let off = shown(&ksm);
        ksm.set("run", 2);
        ksm.set("use_zero_pages", 1);
        ksm.scan(2);
        let (on, zero_pages) = (shown(&ksm), ksm.read("ksm_zero_pages"));
        ksm.set("use_zero_pages", 0);
        let ended = guests.end(libc::SIGTERM);
        assert!(ended.status.success(), "{}", ended.stderr);
        let truth = &read(&truth)[0]["memory"]["expected"];
        assert_eq!(truth["max_page_sharing"], max_page_sharing, "{truth}");
        assert_eq!(off, expected(truth), "{memory}: {truth}");
        let truth = &truth["use_zero_pages"];
        assert_eq!(on, expected(truth), "{memory}: {truth}");
        if let Some(zero_pages) = zero_pages {
            assert_eq!(truth["ksm_zero_pages"], zero_pages, "{memory}: {truth}");
        }
    }
}

/// Each rewrite of a merged page is one copy, and ksmd merges it again.
#[test]
fn rewritten_pages_are_copied_once() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let dir = TempDir::new("rewritten");
    let truth = dir.join("truth.json");
    let mut guests = with_memory("memory=4036K,duplicate=50,zero=20,rewrite=50/signal", &truth);
    ksm.scan(2);
    let (merged, copied) = (shown(&ksm), cow_breaks());
    // SAFETY: a plain system call; the child has not been waited for, so the PID is its own.
    assert_eq!(unsafe { libc::kill(guests.pid().cast_signed(), libc::SIGUSR1) }, 0);
    let done = guests.line();
    let copies = cow_breaks().zip(copied).map(|(after, before)| after - before);
    ksm.scan(2);
    let again = shown(&ksm);
    assert!(guests.end(libc::SIGTERM).status.success());

    let truth = read(&truth);
    let rewrites = |kind: &str| -> u64 {
        truth.iter().map(|vm| vm["memory"]["rewrites"][kind].as_u64().unwrap()).sum()
    };
    let [duplicate, zero, unique] = ["duplicate", "zero", "unique"].map(rewrites);
    assert_eq!(duplicate + zero + unique, 8 * 504);
    assert!(duplicate > 1_990 && zero > 790, "{duplicate} {zero} {unique}");
    assert_eq!(
        done,
        format!("rewritten up to now: {duplicate} duplicate, {zero} zero, {unique} unique pages")
    );
    if let Some(copies) = copies {
        assert_eq!(copies, duplicate + zero);
    } else {
        assert!(kernel() < (5, 18), "no cow_ksm in /proc/vmstat");
    }
    assert_eq!(merged, expected(&truth[0]["memory"]["expected"]));
    assert_eq!(again, merged);
}

/// A step of a ramp is seen by this project's own tools.
#[test]
fn a_ramp_is_watched_by_the_tools() {
    let _alone = alone();
    let args = "ramp --to 3 --step 3 --hold 6 --probe-late 10000 --json --workload idle=23";
    let ended = Tool::start(&loadgen(), &args.split(' ').collect::<Vec<_>>()).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let rows = json_lines(&ended.stdout);
    let [row] = rows.as_slice() else { panic!("{rows:#?}") };
    for name in ["guests", "running", "vms_seen"] {
        assert_eq!(row[name], 3, "{name}: {row}");
    }
    for name in ["runq_p50_ns", "runq_p99_ns", "runq_max_ns", "waiting", "ksm_sharing"] {
        assert!(row[name].is_u64(), "{name}: {row}");
    }
    let wait_percent = row["wait_percent"].as_f64().unwrap();
    assert!((0.0..=100.0).contains(&wait_percent), "{row}");
}
