//! Guests run, on emulated AMD-V too, and know what they did.

use std::path::Path;

use serde_json::Value;

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
