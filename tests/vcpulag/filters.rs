//! A row for every vCPU, or for those asked for.

use crate::VCPULAG;
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::tool::{CsvRow, Tool, csv_rows, number};

fn rows(args: &[&str]) -> Vec<CsvRow> {
    let mut rows = Tool::start(VCPULAG, &[&["--csv", "-d", "1"], args].concat()).wait().rows();
    rows.sort_by_key(|row| (row["vm"].clone(), row.get("vcpu").cloned()));
    rows
}

fn column<'a>(rows: &'a [CsvRow], column: &str) -> Vec<&'a str> {
    rows.iter().map(|row| row[column].as_str()).collect()
}

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
    assert_eq!(column(&rows, "vm"), expected);
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
fn filters_take_what_they_name() {
    let _alone = alone();
    let guests = Guests::start(&["--vms", "3", "--vcpus", "2", "--duration", "60"]);
    let cgroup = guests.cgroup();
    let all = rows(&["-c", &cgroup]);
    assert_eq!(column(&all, "vcpu"), ["0", "1", "0", "1", "0", "1"]);
    let (pid, tid) = (all[2]["pid"].as_str(), all[3]["tid"].as_str());
    assert_eq!(all[3]["pid"], pid);

    for args in [["-p", pid], ["--vm", pid]] {
        let of_one = rows(&args);
        assert_eq!(column(&of_one, "vm"), ["loadgen-0002"; 2], "{args:?}");
        assert_eq!(column(&of_one, "pid"), [pid; 2], "{args:?}");
    }
    let of_thread = rows(&["-t", tid]);
    assert_eq!((column(&of_thread, "tid"), column(&of_thread, "vcpu")), (vec![tid], vec!["1"]));
    let second = rows(&["-c", &cgroup, "--vcpu", "1"]);
    assert_eq!(column(&second, "vcpu"), ["1"; 3]);
    assert!(rows(&["-p", pid, "--vcpu", "7"]).is_empty());

    let by_vm = rows(&["-c", &cgroup, "--by", "vm"]);
    assert_eq!(column(&by_vm, "vm"), ["loadgen-0001", "loadgen-0002", "loadgen-0003"]);
    let parts = ["run_ns", "wait_ns", "halt_ns", "blocked_ns", "vmm_ns"];
    for row in by_vm {
        let sum: u64 = parts.iter().map(|part| number(&row, part)).sum();
        let interval_s: f64 = row["interval_s"].parse().unwrap();
        let vcpus = sum as f64 / 1e9 / interval_s;
        assert!((vcpus - 2.0).abs() < 0.001, "the time of two vCPUs: {row:?}");
    }
    guests.end();
}

/// One that is halted when tracing begins does not wait.
#[test]
fn a_vcpu_asleep_from_the_start_halts() {
    let _alone = alone();
    let guests = Guests::start(&["--vms", "3", "--workload", "idle=1", "--duration", "60"]);
    for row in rows(&["-c", &guests.cgroup(), "-d", "0.3"]) {
        let halt_ns = number(&row, "halt_ns");
        assert!(halt_ns > 150_000_000, "{row:?}");
        assert_eq!(number(&row, "blocked_ns"), 0, "{row:?}");
    }
    guests.end();
}
