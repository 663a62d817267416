//! VMs that come and go, die, and inherit each other's PIDs.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::KVMEXITS;
use crate::guests::{self, Guests, Truth, assert_sound, counts, json_rows, of, soon};
use crate::util::alone;
use crate::util::tool::{Tool, number, total};

/// What a process and the maps it holds take, in bytes.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss_kib: u64 = rss.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    // Maps that several descriptors hold are one.
    let mut maps = BTreeMap::new();
    for fd in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
        let info = fs::read_to_string(fd.unwrap().path()).unwrap_or_default();
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            value.and_then(|value| value.parse::<u64>().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id"), field("memlock")) {
            maps.insert(id, bytes);
        }
    }
    assert!(!maps.is_empty(), "a tracing tool has maps");
    rss_kib * 1024 + maps.values().sum::<u64>()
}

/// 1,000 guests, 50 at a time, each fleet with numbers of its own, so that what is put on the wrong account shows.
#[test]
fn a_thousand_guests_that_come_and_go_are_each_counted_to_the_last_exit() {
    let _alone = alone();
    let (fleets, guests) = (20, 50);
    let start = Instant::now();
    let tool = Tool::start(KVMEXITS, &["--by", "vm,reason", "--csv", "1"]);
    let mut truth = Truth::new();
    let mut grown = Vec::new();
    for fleet in 0..fleets {
        let exits = format!("pio:{},mmio:{}", 23 + fleet, 11 + 2 * fleet);
        truth.extend(guests::run(guests, 1, &exits, &[]));
        grown.push(memory(tool.pid()));
        assert!(start.elapsed() < Duration::from_secs(900), "{fleet} fleets take too long");
    }
    let rows = of(&truth, &tool.end(libc::SIGINT).rows());
    assert_sound(&rows);
    let vms = counts(&truth, &["pid", "vm"]).len();
    assert_eq!(vms, (fleets * guests) as usize, "no PID came back with the same name");
    let keys = ["pid", "vm", "reason"];
    let (seen, expected) = (counts(&rows, &keys), counts(&truth, &keys));
    let wrong: Vec<_> =
        expected.iter().filter(|(key, count)| seen.get(*key) != Some(count)).collect();
    assert!(wrong.is_empty() && seen.len() == expected.len(), "{} {wrong:?}", seen.len());
    assert_eq!(total(&rows, "count"), truth.iter().map(|row| number(row, "count")).sum::<u64>());

    // Who is gone is forgotten: the last 250 guests take no more room than the first 500 did.
    let (early, late) = (&grown[5..10], &grown[15..]);
    let (early, late) = (early.iter().max().unwrap(), late.iter().max().unwrap());
    assert!(*late <= early + (4 << 20), "{grown:?}");
}

/// Two fleets of which the second has the first's PIDs.
#[test]
fn a_pid_that_comes_back_is_another_vm() {
    let _alone = alone();
    let last_pid = "/proc/sys/kernel/ns_last_pid";
    assert!(fs::exists(last_pid).unwrap(), "this test needs CONFIG_CHECKPOINT_RESTORE");
    let deadline = Instant::now() + Duration::from_secs(120);
    let (first, second, rows) = loop {
        let tool = Tool::start(KVMEXITS, &["--by", "vm,reason", "--csv"]);
        let first = guests::run(20, 1, "pio:101", &[]);
        // The parent gets what was the first guest's: names move on by some.
        let lowest: u32 = first.iter().map(|row| row["pid"].parse().unwrap()).min().unwrap();
        fs::write(last_pid, (lowest - 1).to_string()).unwrap();
        let second = guests::run(20, 1, "pio:211,mmio:7", &[]);
        let rows = tool.end(libc::SIGINT).rows();
        // Others create processes, too.
        if second.iter().any(|row| first.iter().any(|other| other["pid"] == row["pid"])) {
            break (first, second, rows);
        }
        assert!(Instant::now() < deadline, "no PID comes back");
    };
    let keys = ["pid", "vm", "reason"];
    let both = [first, second].concat();
    let rows = of(&both, &rows);
    assert_eq!(counts(&rows, &keys), counts(&both, &keys));
    // Even where the name is the same, too.
    let of_reason = |reason: &str| rows.iter().filter(|row| row["reason"] == reason).count();
    assert_eq!((of_reason("KVM_EXIT_IO"), of_reason("KVM_EXIT_SHUTDOWN")), (40, 40));
}

/// Killed while the VMM thinks: the exit it was in is counted, as long as it was.
#[test]
fn a_guest_killed_in_the_middle_of_an_exit_is_not_lost() {
    let _alone = alone();
    let tool = Tool::start(KVMEXITS, &["--by", "vcpu,reason", "--csv"]);
    let json = guests::attached(&["--by", "vcpu,reason", "--json", "0.2"]);
    let guests = Guests::start(2, 2, "pio:3", &["--vmm-sleep", "1000"]);
    let pids = guests.hold().pids;
    std::thread::sleep(Duration::from_millis(500));
    pids.iter().for_each(|pid| guests::signal(*pid, libc::SIGKILL));
    guests.wait();
    soon("gone", || pids.iter().all(|pid| !fs::exists(format!("/proc/{pid}")).unwrap()));

    let truth: Truth =
        pids.iter().map(|pid| [("pid".to_owned(), pid.to_string())].into()).collect();
    let rows = of(&truth, &tool.end(libc::SIGINT).rows());
    assert_sound(&rows);
    let json = json.end(libc::SIGINT);
    let lines = of(&truth, &json_rows(&json.stdout));
    let expected: BTreeMap<_, u64> = pids
        .iter()
        .zip(["loadgen-0001", "loadgen-0002"])
        .flat_map(|(pid, vm)| ["0", "1"].map(|vcpu| (pid.to_string(), vm, vcpu)))
        .map(|(pid, vm, vcpu)| {
            (vec![pid, vm.to_owned(), vcpu.to_owned(), "KVM_EXIT_IO".to_owned()], 1)
        })
        .collect();
    for rows in [&rows, &lines] {
        assert_eq!(counts(rows, &["pid", "vm", "vcpu", "reason"]), expected);
        let took = |ns| (400_000_000..20_000_000_000).contains(&ns);
        let ended: Vec<_> =
            guests::to_userspace(rows).into_iter().filter(|row| number(row, "count") > 0).collect();
        assert!(ended.iter().all(|row| took(number(row, "total_ns"))), "{ended:?}");
    }
    // Before it was over, it was told to go on.
    assert!(lines.iter().any(|row| row["open"] == "1"), "{}", json.stdout);
}
