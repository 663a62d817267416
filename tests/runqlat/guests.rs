//! Real KVM guests, whose own view of their waiting (steal time) loadgen writes down.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use crate::RUNQLAT;
use crate::util::tool::{Tool, number};
use crate::util::{TempDir, alone, loadgen};

/// The guests' own records, by name.
fn truth(path: &Path) -> HashMap<String, serde_json::Value> {
    let lines = std::fs::read_to_string(path).unwrap();
    let vcpus = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    vcpus.map(|vcpu| (vcpu["vm"].as_str().unwrap().to_owned(), vcpu)).collect()
}

fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

#[test]
fn each_vms_wait_is_the_steal_that_its_guest_reads() {
    let _alone = alone();
    let dir = TempDir::new("steal");
    let vms = 12 * cpus();
    let path = dir.join("truth.json");
    let tool = Tool::start(RUNQLAT, &["--by", "vm", "--csv"]);
    let guests =
        ["run", "--vms", &vms.to_string(), "--duration", "8", "--truth", path.to_str().unwrap()];
    let ended = Tool::start(&loadgen(), &guests).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    // The guests are gone; their names are not.
    let rows = tool.end(libc::SIGINT).rows();

    let truth = truth(&path);
    assert_eq!(truth.len(), vms);
    assert_eq!(rows.len(), vms, "a row for each VM and nothing else");
    for row in &rows {
        let vcpu = truth.get(&row["vm"]).unwrap_or_else(|| panic!("no VM is named {}", row["vm"]));
        assert_eq!(number(row, "pid"), vcpu["pid"].as_u64().unwrap());
        let (wait_ns, steal_ns) = (number(row, "sum_ns"), vcpu["steal_ns"].as_u64().unwrap());
        assert!(steal_ns > 4_000_000_000, "12 spinners on a CPU mostly wait: {steal_ns}");
        let difference = wait_ns.abs_diff(steal_ns);
        assert!(difference * 50 <= steal_ns, "{}: {wait_ns} for {steal_ns}", row["vm"]);
        assert!(number(row, "preempted") > 0, "spinners are pushed off: {row:?}");
    }
}

#[test]
fn one_vm_is_taken_by_name_or_pid() {
    let _alone = alone();
    let guests =
        Tool::start(&loadgen(), &["run", "--vms", "5", "--vcpus", "2", "--duration", "30"]);
    let by_name = ["--vm", "loadgen-0003", "-L", "--csv", "-d", "1"];
    let rows = Tool::start(RUNQLAT, &by_name).wait().rows();
    assert_eq!(rows.len(), 2, "one row for each vCPU: {rows:?}");
    let pid = rows[0]["pid"].clone();
    assert!(rows.iter().all(|row| row["pid"] == pid && number(row, "count") > 0));

    let rows =
        Tool::start(RUNQLAT, &["--vm", &pid, "--by", "vm", "--csv", "-d", "1"]).wait().rows();
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0]["vm"], &rows[0]["pid"]), (&"loadgen-0003".to_owned(), &pid));
    assert!(guests.end(libc::SIGTERM).status.success());
}

#[test]
fn guests_that_wait_at_the_end_are_counted_as_waiting() {
    let _alone = alone();
    let guests = Tool::start(&loadgen(), &["run", "--vms", "101", "--duration", "30"]);
    std::thread::sleep(Duration::from_millis(500));
    let rows = Tool::start(RUNQLAT, &["--by", "vm", "--csv", "-d", "1"]).wait().rows();
    assert!(guests.end(libc::SIGTERM).status.success());
    assert_eq!(rows.len(), 101, "every VM either had a CPU or waits for one");
    let waiting: u64 = rows.iter().map(|row| number(row, "waiting")).sum();
    // At most one runs on each CPU; on the way between run queues another may be on neither.
    let (vms, cpus) = (101, cpus() as u64);
    assert!(waiting <= vms && waiting + 2 * cpus >= vms, "{waiting}");
}
