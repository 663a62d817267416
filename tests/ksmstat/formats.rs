//! Output read back by those who will read it: the csv crate, pandas, serde_json, the hdrhistogram crate.

use std::fs;
use std::process::Command;
use std::time::Duration;

use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use crate::KSMSTAT;
use crate::util::ksm::Ksm;
use crate::util::mergeable::Mergeable;
use crate::util::tool::{Tool, json_lines, number};
use crate::util::{TempDir, alone};

/// The same on every kernel: files are put together.
const HOST: &str = "time,interval_s,pages_shared,pages_sharing,ksm_zero_pages,general_profit,\
    pages_unshared,pages_volatile,pages_skipped,pages_scanned,full_scans,stable_node_chains,\
    stable_node_dups,run,pages_to_scan,sleep_millisecs,merge_across_nodes,max_page_sharing,\
    stable_node_chains_prune_millisecs,use_zero_pages,smart_scan,advisor_mode,\
    advisor_target_scan_time,advisor_max_cpu,advisor_min_pages_to_scan,advisor_max_pages_to_scan,\
    scanned,merged,merge_failed,unmerged,cow_breaks,ksmd_cpu_ns,scan_ns,zero_merged,saved_bytes,\
    profit_bytes,batches,batch_p50_ns,batch_p99_ns,batch_max_ns,full_scan_mean_ns,\
    full_scan_max_ns,cow_p50_ns,cow_p99_ns,cow_max_ns,cow_unseen,advices,lost";
const FIGURES: &str = "merging_pages,rmap_items,profit_bytes,merged,merge_failed,zero_pages,\
    zero_merged,cow_breaks,cow_ns,gone,lost";

#[test]
fn csv_has_the_columns_of_the_design() {
    let _alone = alone();
    let _memory = Mergeable::start(&[7; 23]);
    for (args, header) in [
        (&["--csv"][..], HOST.to_owned()),
        (&["--csv=processes"], format!("time,interval_s,pid,comm,vm,{FIGURES}")),
        (&["--csv", "--by", "process"], format!("time,interval_s,pid,comm,vm,{FIGURES}")),
        (&["--csv", "--by", "vm"], format!("time,interval_s,vm,processes,{FIGURES}")),
        (&["--csv=buckets"], "time,interval_s,kind,lo_ns,hi_ns,count".to_owned()),
    ] {
        let ended = Tool::start(KSMSTAT, &[args, &["0.2", "3"]].concat()).wait();
        assert_eq!(ended.stdout.lines().next().unwrap(), header, "{args:?}");
        let rows = ended.rows();
        assert!(rows.len() >= 3 || args == ["--csv=buckets"], "{args:?}: {}", ended.stdout);
        for row in rows {
            assert!(row["time"].parse::<jiff::Timestamp>().is_ok(), "{row:?}");
        }
    }
}

#[test]
fn buckets_and_the_log_have_every_batch() {
    let _alone = alone();
    let ksm = Ksm::take();
    let _memory = Mergeable::start(&[7; 1_009]);
    let dir = TempDir::new("ksm-hdr");
    let path = dir.join("ksm.hlog");
    let hdr = path.to_str().unwrap();
    let tool = Tool::start(KSMSTAT, &["--json", "--hdr", hdr, "0.2"]);
    let buckets = Tool::start(KSMSTAT, &["--csv=buckets", "0.2"]);
    ksm.scan(2);
    std::thread::sleep(Duration::from_millis(600));
    let (buckets, json) = (buckets.end(libc::SIGINT).rows(), tool.end(libc::SIGINT));
    let rows = json_lines(&json.stdout);
    let batches: u64 = rows.iter().map(|row| row["batches"].as_u64().unwrap()).sum();
    assert!(batches > 0);
    let of_kind = |kind: &str| -> u64 {
        buckets.iter().filter(|row| row["kind"] == kind).map(|row| number(row, "count")).sum()
    };
    assert_eq!(of_kind("batch"), batches);
    let scans = rows.iter().flat_map(|row| row["buckets"]["full_scan"].as_array().unwrap());
    assert_eq!(of_kind("full_scan"), scans.map(|bucket| bucket[2].as_u64().unwrap()).sum::<u64>());
    let log = fs::read(&path).unwrap();
    let tags = IntervalLogIterator::new(&log).filter_map(|entry| match entry.unwrap() {
        LogEntry::Interval(entry) => entry.tag().map(|tag| tag.as_str().to_owned()),
        _ => None,
    });
    let tags: Vec<String> = tags.collect();
    for tag in ["batch", "full_scan"] {
        assert!(tags.iter().any(|found| found == tag), "{tag}: {tags:?}");
    }
}

#[test]
fn pandas_finds_the_types_by_itself() {
    let _alone = alone();
    let dir = TempDir::new("ksm-pandas");
    let path = dir.join("ksm.csv");
    let ended = Tool::start(KSMSTAT, &["--csv", "0.2", "3"]).wait();
    fs::write(&path, &ended.stdout).unwrap();
    let script = "import pandas, sys
frame = pandas.read_csv(sys.argv[1], parse_dates=['time'])
assert str(frame.time.dtype).startswith('datetime64[ns, UTC'), frame.time.dtype
for column in ['pages_shared', 'general_profit', 'scanned', 'merged', 'ksmd_cpu_ns', 'scan_ns', 'lost']:
    assert frame[column].dtype == 'int64', column
assert len(frame) == 3";
    let output = Command::new("/usr/bin/python3").args(["-c", script]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn text_fits_80_columns() {
    let _alone = alone();
    let ksm = Ksm::take();
    let _memory = Mergeable::start(&[7; 1_009]);
    for args in [&["--histogram", "-T"][..], &["--by", "process", "--cow"], &["--by", "vm"]] {
        let tool = Tool::start(KSMSTAT, &[args, &["0.2"]].concat());
        ksm.scan(1);
        std::thread::sleep(Duration::from_millis(400));
        let text = tool.end(libc::SIGINT).stdout;
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(
            !args.contains(&"--histogram") || text.contains("batches of ksmd, count"),
            "{text}"
        );
    }
}
