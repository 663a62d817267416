//! Who ran while a vCPU waited.

use std::process::id;
use std::time::Duration;

use super::{VCPULAG, ns, rows, taken_by, taken_by_others, with_hog};
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::tool::{Tool, number};

#[test]
fn a_host_task_is_the_culprit() {
    let _alone = alone();
    let guests = Guests::on_cpu(1, &["--vms", "1", "--duration", "60"]);
    let args = ["-c", &guests.cgroup(), "-d", "2"];
    let turn = Duration::from_millis(23);
    let rows = with_hog(1, turn, turn, || rows(&args));
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    let (wait_ns, hog_ns) = (ns(row, "wait_ns"), taken_by(row, id()));
    assert!((800_000_000..1_400_000_000).contains(&wait_ns), "half of 2 s: {row}");
    // Others work on this machine, too.
    let others_ns = taken_by_others(row, id());
    assert!(others_ns * 5 <= wait_ns, "{row}");
    assert!(hog_ns * 100 >= (wait_ns - others_ns) * 99, "it is the hog: {row}");
    // Culprits are read after the vCPUs, which go on.
    assert!(hog_ns <= wait_ns + 150_000_000, "{row}");
    let hog = row["culprits"].as_array().unwrap().iter().find(|c| c["pid"] == id()).unwrap();
    assert_eq!(hog["kind"], "task", "{row}");
    guests.end();
}

#[test]
fn two_vms_on_one_cpu_are_each_others_culprits() {
    let _alone = alone();
    let guests = Guests::on_cpu(0, &["--vms", "2", "--duration", "60"]);
    let pids = guests.pids();
    assert_eq!(pids.len(), 2);
    let rows = rows(&["-c", &guests.cgroup(), "-d", "3"]);
    assert_eq!(rows.len(), 2);
    for (i, row) in rows.iter().enumerate() {
        let (victim, other) = (&rows[i], &rows[1 - i]);
        assert_eq!(row["pid"], pids[i]);
        // One waits while the other runs.
        let (taken_ns, ran_ns) = (taken_by(victim, pids[1 - i]), ns(other, "run_ns"));
        assert!(taken_ns.abs_diff(ran_ns) * 20 <= ran_ns + 200_000_000, "{victim} {other}");
        let culprits = victim["culprits"].as_array().unwrap();
        let culprit = culprits.iter().find(|c| c["pid"] == pids[1 - i]).unwrap();
        assert_eq!((&culprit["kind"], &culprit["name"]), (&"vm".into(), &other["vm"]));
    }
    // A VM is one even if it is not watched itself.
    let pid = pids[0].to_string();
    let rows = self::rows(&["-p", &pid, "-d", "1"]);
    let culprits = rows[0]["culprits"].as_array().unwrap();
    let other = culprits.iter().find(|c| c["pid"] == pids[1]).unwrap();
    assert_eq!((&other["kind"], &other["name"]), (&"vm".into(), &"loadgen-0002".into()));
    guests.end();
}

#[test]
fn vcpus_of_one_vm_hold_each_other_up() {
    let _alone = alone();
    let guests = Guests::on_cpu(0, &["--vms", "1", "--vcpus", "2", "--duration", "60"]);
    let rows = rows(&["-c", &guests.cgroup(), "-d", "2"]);
    assert_eq!(rows.len(), 2);
    for i in 0..2 {
        let (same_ns, ran_ns) = (ns(&rows[i]["blamed_ns"], "same vm"), ns(&rows[1 - i], "run_ns"));
        assert!(same_ns.abs_diff(ran_ns) * 20 <= ran_ns + 200_000_000, "{rows:#?}");
    }
    guests.end();
}

#[test]
fn a_vm_whose_io_thread_burns_is_its_own_culprit() {
    let _alone = alone();
    let guests = Guests::on_cpu(1, &["--vms", "1", "--io-thread", "100", "--duration", "60"]);
    let rows = rows(&["-c", &guests.cgroup(), "-d", "2"]);
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    let (wait_ns, own_ns) = (ns(row, "wait_ns"), taken_by(row, guests.pids()[0]));
    assert!((600_000_000..1_500_000_000).contains(&wait_ns), "half of 2 s: {row}");
    let others_ns = taken_by_others(row, guests.pids()[0]);
    assert!(others_ns * 5 <= wait_ns, "{row}");
    assert!(own_ns * 100 >= (wait_ns - others_ns) * 99, "it is itself: {row}");
    // Culprits are read after the vCPUs, which go on.
    let same_ns = ns(&row["blamed_ns"], "same vm");
    assert!(own_ns >= same_ns && own_ns - same_ns < 150_000_000, "{row}");
    assert_eq!(
        (&row["culprits"][0]["kind"], &row["culprit"]),
        (&"same vm".into(), &"itself".into())
    );
    guests.end();
}

#[test]
fn a_matrix_has_victims_and_culprits() {
    let _alone = alone();
    let guests = Guests::on_cpu(0, &["--vms", "3", "--duration", "60"]);
    let pids = guests.pids();
    let ended =
        Tool::start(VCPULAG, &["-c", &guests.cgroup(), "--culprits", "--csv", "-d", "2"]).wait();
    let header = ended.stdout.lines().next().unwrap();
    assert_eq!(header, "time,interval_s,pid,victim,culprit_pid,culprit,kind,ns,lost");
    let rows = ended.rows();
    for victim in &pids {
        for culprit in pids.iter().filter(|pid| *pid != victim) {
            let pair = rows.iter().find(|row| {
                row["pid"] == victim.to_string() && row["culprit_pid"] == culprit.to_string()
            });
            let pair = pair.unwrap_or_else(|| panic!("{victim} {culprit}: {}", ended.stdout));
            assert_eq!(pair["kind"], "vm");
            assert!(number(pair, "ns") > 10_000_000, "{pair:?}");
        }
    }
    let ended = Tool::start(VCPULAG, &["-c", &guests.cgroup(), "--culprits", "-d", "1"]).wait();
    assert!(ended.stdout.contains("\nWHO WAITED "), "{}", ended.stdout);
    assert!(ended.stdout.contains("\nWHO RAN "), "{}", ended.stdout);
    assert!(ended.stdout.lines().all(|line| line.chars().count() <= 80), "{}", ended.stdout);
    guests.end();
}
