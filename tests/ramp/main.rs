//! loadgen's ramp with this project's own tools beside it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../util/mod.rs"]
mod util;

mod churn;

use util::tool::{Tool, json_lines};
use util::{alone, loadgen};

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
