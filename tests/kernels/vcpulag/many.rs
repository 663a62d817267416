//! A row for each vCPU, as many as there are.

use super::VCPULAG;
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::tool::{Tool, csv_rows, number};

#[test]
fn every_vcpu_has_a_row() {
    let _alone = alone();
    let guests = Guests::start(&["--vms", "1009", "--duration", "120"]);
    let cgroup = guests.cgroup();
    // Each has its turn meanwhile: one that has not been in KVM_RUN yet is not known for a vCPU.
    let ended = Tool::start(VCPULAG, &["-c", &cgroup, "--csv", "-d", "15"]).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    // A thousand that wait for a thousand are more pairs than have names.
    assert!(ended.stderr.lines().all(|line| line.contains(" without names: ")), "{}", ended.stderr);
    let mut rows = csv_rows(&ended.stdout);
    rows.sort_by_key(|row| row["vm"].clone());
    let expected: Vec<_> = (1..=1009).map(|i| format!("loadgen-{i:04}")).collect();
    assert_eq!(rows.iter().map(|row| row["vm"].as_str()).collect::<Vec<_>>(), expected);
    for row in &rows {
        // 1,009 spinners on 2 CPUs.
        let (run_ns, wait_ns) = (number(row, "run_ns"), number(row, "wait_ns"));
        assert!(wait_ns > run_ns, "{row:?}");
    }
    let text = Tool::start(VCPULAG, &["-c", &cgroup, "--top", "3", "-d", "1"]).wait().stdout;
    assert_eq!(text.lines().filter(|line| line.starts_with("loadgen-")).count(), 3, "{text}");
    assert!(text.contains("\n... and 1006 more (--top)\n"), "{text}");
    assert!(text.contains(" of 1009 vCPUs waited more than 5 % of the time;"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
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
