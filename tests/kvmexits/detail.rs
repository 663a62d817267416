//! Single exits: which port and address, which were slow, and what the VMM was doing.

use std::collections::BTreeMap;

use crate::KVMEXITS;
use crate::guests::{self, Cgroup, Guests, assert_sound, counts, json_rows, of};
use crate::util::alone;
use crate::util::tool::{CsvRow, Tool, number};

#[test]
fn each_port_and_address_is_told_apart_by_direction() {
    let _alone = alone();
    let keys = ["pid", "vm", "vcpu", "reason", "detail"];
    let tool = Tool::start(KVMEXITS, &["--detail", "--by", "vcpu,reason", "--csv"]);
    let truth = guests::run(2, 2, "pio:503,mmio:251,cpuid:101", &[]);
    let rows = of(&truth, &tool.end(libc::SIGINT).rows());
    assert_sound(&rows);
    let expected = counts(&truth, &keys);
    assert_eq!(expected.len(), 4 * 5, "both directions of both, and how it left: {expected:?}");
    assert_eq!(counts(&rows, &keys), expected);
}

/// The exits that `--slower` is to tell, by vCPU and detail: where the hardware's exits are known it tells those, of
/// which the ones to userspace are a part.
fn expected(truth: &guests::Truth) -> BTreeMap<Vec<String>, u64> {
    let truth: Vec<_> = truth.iter().filter(|row| !row["detail"].is_empty()).cloned().collect();
    counts(&truth, &["pid", "vm", "vcpu", "detail"])
}

#[test]
fn each_slow_exit_is_told_once_with_its_parts() {
    let _alone = alone();
    let cgroup = Cgroup::new();
    let slower = ["-c", cgroup.path(), "--slower"];
    let start = |more: &[&str]| Tool::start(KVMEXITS, &[&slower[..], &["1000"], more].concat());
    let csv = start(&["--csv", "--detail"]);
    let json = guests::attached(&[&slower[..], &["1000", "--json", "--detail"]].concat());
    let (short, text) = (start(&["--csv"]), start(&["--detail"]));
    // These tell of nobody.
    let above = Tool::start(KVMEXITS, &[&slower[..], &["60000000", "--csv"]].concat());
    let other = start(&["--reason", "debug", "--csv"]);
    let truth = cgroup.run_with("", 2, 2, "pio:23,mmio:11", &["--vmm-sleep", "5"]).truth();
    let expected = expected(&truth);

    let (csv, json) = (csv.end(libc::SIGINT), json.end(libc::SIGINT));
    assert!(json.status.success() && json.stderr.is_empty(), "{}", json.stderr);
    for rows in [csv.rows(), json_rows(&json.stdout)] {
        assert_sound(&rows);
        assert!(rows.iter().all(|row| number(row, "total_ns") > 1_000_000), "{rows:?}");
        let mut seen: BTreeMap<Vec<String>, u64> = BTreeMap::new();
        for row in of(&truth, &rows).iter().filter(|row| !row["detail"].is_empty()) {
            assert!(number(row, "total_ns") >= 5_000_000, "{row:?}");
            assert!(row["time"].parse::<jiff::Timestamp>().is_ok(), "{row:?}");
            let is_thread =
                |exits: &&CsvRow| ["tid", "pid", "vcpu"].iter().all(|c| exits[*c] == row[*c]);
            let exits = truth.iter().find(is_thread).unwrap_or_else(|| panic!("whose: {row:?}"));
            assert_eq!(exits["vm"], row["vm"]);
            *seen
                .entry(["pid", "vm", "vcpu", "detail"].map(|c| row[c].clone()).to_vec())
                .or_default() += 1;
        }
        assert_eq!(seen, expected);
    }
    let columns = "time,pid,tid,vm,vcpu,kind,reason,code,detail,total_ns,kernel_ns,userspace_ns,asleep_ns,runqueue_ns";
    assert_eq!(csv.stdout.lines().next().unwrap(), columns);
    let ours = of(&truth, &short.end(libc::SIGINT).rows());
    let all: u64 = expected.values().sum();
    assert!(ours.iter().filter(|row| number(row, "total_ns") >= 5_000_000).count() as u64 >= all);
    // The kernel's books may take a part of a sleep for a wait, if its task was moved meanwhile: see runqlat(8).
    let slept = ours.iter().filter(|row| number(row, "userspace_ns") >= 5_000_000);
    assert!(slept.count() as u64 * 10 >= all * 9, "{ours:?}");
    assert!(ours.iter().all(|row| row["detail"].is_empty()), "nobody asked for details");
    let text = text.end(libc::SIGINT).stdout;
    for (detail, count) in counts(&truth, &["detail"]).iter().filter(|(key, _)| !key[0].is_empty())
    {
        assert_eq!(text.matches(&detail[0]).count() as u64, *count, "{text}");
    }
    for tool in [above, other] {
        assert_eq!(tool.end(libc::SIGINT).stdout, format!("{columns}\n"));
    }
}

#[test]
fn slow_exits_are_told_while_they_happen() {
    let _alone = alone();
    for format in [&["--csv"][..], &["--json"], &[]] {
        let guests = Guests::start(1, 1, "pio:101", &["--vmm-sleep", "100"]);
        let pid = guests.pids()[0];
        let mut tool = Tool::start_at_once(KVMEXITS, &[&["--slower", "1000"], format].concat());
        for _ in 0..5 {
            assert!(!tool.line().is_empty());
        }
        // Ten seconds are not over yet.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        assert!(!stat.contains(") Z "), "{stat}");
        assert!(tool.end(libc::SIGINT).status.success());
        guests::signal(pid, libc::SIGKILL);
        guests.wait();
    }
}

#[test]
fn stacks_add_up_to_the_truth_and_have_names() {
    let _alone = alone();
    let cgroup = Cgroup::new();
    let tool = guests::attached(&["--stacks=1000", "-c", cgroup.path()]);
    // Longer than it takes to learn the names of their functions.
    let truth = cgroup.run("", 2, 2, "pio:211@100,mmio:103@50").truth();
    let ended = tool.end(libc::SIGINT);
    assert!(ended.status.success(), "{}", ended.stderr);
    let mut seen: BTreeMap<Vec<String>, u64> = BTreeMap::new();
    for line in ended.stdout.lines() {
        let (stack, count) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not folded: {line}"));
        let frames: Vec<&str> = stack.split(';').collect();
        let [vm, functions @ .., reason] = &frames[..] else { panic!("not folded: {line}") };
        *seen.entry(vec![vm.to_string(), reason.to_string()]).or_default() +=
            count.parse::<u64>().unwrap();
        // Some may have left before anybody could ask for names.
        if *reason != "KVM_EXIT_SHUTDOWN" {
            let names_ioctl = functions.iter().any(|name| name.contains("ioctl"));
            assert!(names_ioctl, "in KVM_RUN: {line}");
        }
    }
    assert_eq!(seen, counts(&truth, &["vm", "reason"]), "{}", ended.stdout);
}

#[test]
fn the_most_expensive_stacks_come_first_and_alone() {
    let _alone = alone();
    let cgroup = Cgroup::new();
    let tool = guests::attached(&["--stacks=2", "--reason", "KVM_EXIT_IO", "-c", cgroup.path()]);
    cgroup.run("", 2, 2, "pio:101@100,mmio:53@50").truth();
    let ended = tool.end(libc::SIGINT);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.contains(";KVM_EXIT_IO ")), "{lines:?}");
}
