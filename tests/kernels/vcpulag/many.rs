//! A row for each vCPU, as many as there are.

use super::VCPULAG;
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::tool::{Tool, csv_rows, number};

/// They sleep, as a VM's scheduler leaves some of so many spinners without their first turn for a minute (7.2). For
/// 1,009 that spin see tests/vcpulag/filters.rs.
#[test]
fn every_vcpu_has_a_row() {
    let _alone = alone();
    let guests = Guests::start(&["--vms", "211", "--workload", "idle=1", "--duration", "240"]);
    let cgroup = guests.cgroup();
    // One that has not been in KVM_RUN yet is not known for a vCPU: each is to have its first tick.
    let look = || {
        let ended = Tool::start(VCPULAG, &["-c", &cgroup, "--csv", "-d", "5"]).wait();
        assert!(ended.status.success(), "{}", ended.stderr);
        // What had no room among the culprits is told, and on 7.2 an event or two that the kernel skipped.
        csv_rows(&ended.stdout)
    };
    let mut rows = look();
    for _ in 0..20 {
        if rows.len() < 211 {
            rows = look();
        }
    }
    rows.sort_by_key(|row| row["vm"].clone());
    let names: Vec<&str> = rows.iter().map(|row| row["vm"].as_str()).collect();
    assert_eq!(names, (1..=211).map(|i| format!("loadgen-{i:04}")).collect::<Vec<_>>());
    for row in &rows {
        let states = ["run_ns", "wait_ns", "halt_ns", "blocked_ns", "vmm_ns"];
        assert!(states.iter().map(|state| number(row, state)).sum::<u64>() > 0, "{row:?}");
        assert!(number(row, "halt_ns") > 0, "{row:?}");
    }
    guests.end();
}

#[test]
fn a_vcpu_is_asked_for_by_its_number() {
    let _alone = alone();
    let guests = Guests::start(&["--vms", "2", "--vcpus", "2", "--duration", "120"]);
    let args = ["-c", &guests.cgroup(), "--vcpu", "1", "--csv", "-d", "1"];
    let rows = Tool::start(VCPULAG, &args).wait().rows();
    let vcpus: Vec<&str> = rows.iter().map(|row| row["vcpu"].as_str()).collect();
    assert_eq!(vcpus, ["1", "1"]);
    guests.end();
}
