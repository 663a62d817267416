//! The figures are the kernel's own, whoever else has mergeable memory on this host.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::KSMSTAT;
use crate::util::alone;
use crate::util::ksm::Ksm;
use crate::util::mergeable::Mergeable;
use crate::util::tool::{Tool, json_lines};

fn number(row: &Value, name: &str) -> i64 {
    row[name].as_i64().unwrap_or_else(|| panic!("{name}: {row}"))
}

fn sum(rows: &[Value], name: &str) -> i64 {
    rows.iter().map(|row| number(row, name)).sum()
}

#[test]
fn rates_add_up_to_the_kernels_counters() {
    let _alone = alone();
    let ksm = Ksm::take();
    let mut memory = Mergeable::start(&[0x5eed; 211]);
    let mut tool = Tool::start(KSMSTAT, &["--json", "0.2"]);
    assert!(!tool.line().is_empty());
    ksm.scan(2);
    memory.write(101);
    ksm.scan(1);
    // The last row is about nothing.
    thread::sleep(Duration::from_millis(600));
    let rows = json_lines(&tool.end(libc::SIGINT).stdout);
    let (first, last) = (&rows[0], rows.last().unwrap());
    let growth = |name: &str| number(last, name) - number(first, name);
    let after = &rows[1..];
    assert!(sum(after, "merged") >= 211, "{last}");
    let merged_now = growth("pages_shared") + growth("pages_sharing");
    assert_eq!(sum(after, "merged") - sum(after, "unmerged"), merged_now);
    assert!(sum(after, "unmerged") >= 101, "{last}");
    assert!(sum(after, "cow_breaks") >= 101, "{last}");
    assert_eq!(sum(after, "scanned"), growth("pages_scanned"));
    assert_eq!(last["profit_bytes"], last["general_profit"], "{last}");
    assert_eq!(sum(&rows, "lost"), 0);
}

#[test]
fn a_process_has_the_merges_that_are_its_own() {
    let _alone = alone();
    let ksm = Ksm::take();
    let (first, second) = (Mergeable::start(&[23; 101]), Mergeable::start(&[23; 53]));
    let tool = Tool::start(KSMSTAT, &["--by", "process", "--json", "0.2"]);
    ksm.scan(2);
    thread::sleep(Duration::from_millis(600));
    let rows = json_lines(&tool.end(libc::SIGINT).stdout);
    for (process, pages) in [(&first, 101), (&second, 53)] {
        let of = rows.iter().filter(|row| row["pid"] == process.pid()).cloned();
        let of: Vec<Value> = of.collect();
        assert_eq!(sum(&of, "merged"), pages);
        assert_eq!(number(of.last().unwrap(), "merging_pages"), pages);
        assert_eq!(number(of.last().unwrap(), "rmap_items"), pages);
    }
}
