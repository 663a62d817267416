//! What a vCPU waits is what its guest knows as stolen.

use std::collections::HashMap;
use std::fs;

use crate::VCPULAG;
use crate::util::tool::{Tool, json_lines, number};
use crate::util::{TempDir, alone, loadgen};

#[test]
fn each_vcpus_wait_is_the_steal_that_its_guest_reads() {
    let _alone = alone();
    let dir = TempDir::new("lag-steal");
    let path = dir.join("truth.json");
    let vms = 12 * std::thread::available_parallelism().unwrap().get();
    let tool = Tool::start(VCPULAG, &["--csv"]);
    let guests =
        ["run", "--vms", &vms.to_string(), "--duration", "8", "--truth", path.to_str().unwrap()];
    let ended = Tool::start(&loadgen(), &guests).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    // The guests are gone; their names are not.
    let rows = tool.end(libc::SIGINT).rows();
    let rows: HashMap<u64, _> = rows.into_iter().map(|row| (number(&row, "tid"), row)).collect();

    let truth = fs::read_to_string(&path).unwrap();
    let truth = json_lines(&truth);
    assert_eq!(truth.len(), vms);
    for vcpu in truth {
        let row = &rows[&vcpu["tid"].as_u64().unwrap()];
        assert_eq!(row["vm"], vcpu["vm"].as_str().unwrap());
        let (wait_ns, steal_ns) = (number(row, "wait_ns"), vcpu["steal_ns"].as_u64().unwrap());
        assert!(steal_ns > 4_000_000_000, "12 spinners on a CPU mostly wait: {steal_ns}");
        assert!(wait_ns.abs_diff(steal_ns) * 50 <= steal_ns, "{wait_ns} for {steal_ns}: {row:?}");
        assert!(number(row, "preemptions") > 0, "spinners are pushed off: {row:?}");
    }
}
