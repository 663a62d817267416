//! Filters take exactly the exits they name.

use crate::KVMEXITS;
use crate::guests::{self, Cgroup, Guests, Truth, counts, of, without_first};
use crate::util::alone;
use crate::util::tool::{CsvRow, Tool, csv_rows};

const KEYS: [&str; 4] = ["pid", "vm", "vcpu", "reason"];

fn start(filter: &[&str]) -> Tool {
    Tool::start(KVMEXITS, &[filter, &["--by", "vcpu,reason", "--csv"]].concat())
}

fn end(tool: Tool) -> Vec<CsvRow> {
    let ended = tool.end(libc::SIGINT);
    // Who was asked for may be gone.
    let stderr = ended.stderr.as_str();
    assert!(
        ended.status.success() && (stderr.is_empty() || stderr.ends_with(" has ended\n")),
        "{stderr}"
    );
    csv_rows(&ended.stdout)
}

/// Those exits of the truth that are so.
fn only(truth: &Truth, is_so: impl Fn(&CsvRow) -> bool) -> Truth {
    truth.iter().filter(|row| is_so(row)).cloned().collect()
}

#[test]
fn processes_threads_vms_and_vcpus_are_taken_alone() {
    let _alone = alone();
    let guests = Guests::start(3, 2, "pio:5,mmio:2", &["--vmm-sleep", "500"]);
    let held = guests.hold();
    let pid = held.pids[1].to_string();
    let tid = held.vcpu_thread(held.pids[2], "0003/vcpu1").to_string();
    let by_pid = start(&["-p", &pid]);
    let by_tid = start(&["-t", &tid]);
    let by_both = start(&["-p", &held.pids[2].to_string(), "-t", &tid]);
    let by_vm_pid = start(&["--vm", &pid]);
    let by_vcpu = start(&["--vcpu", "1"]);
    let by_all = start(&["-p", &pid, "--vm", &pid, "--vcpu", "0", "--reason", "mmio"]);
    held.release();
    let truth = without_first(guests.truth());

    let of_pid = counts(&only(&truth, |row| row["pid"] == pid), &KEYS);
    assert_eq!(of_pid.values().sum::<u64>(), 2 * (5 + 2 - 1 + 1), "what is expected: {of_pid:?}");
    assert_eq!(counts(&end(by_pid), &KEYS), of_pid);
    assert_eq!(counts(&end(by_vm_pid), &KEYS), of_pid);
    let of_tid = counts(&only(&truth, |row| row["tid"] == tid), &KEYS);
    assert_eq!(counts(&end(by_tid), &KEYS), of_tid);
    assert_eq!(counts(&end(by_both), &KEYS), of_tid);
    let rows = end(by_vcpu);
    assert!(rows.iter().all(|row| row["vcpu"] == "1"), "{rows:?}");
    let of_vcpu = counts(&only(&truth, |row| row["vcpu"] == "1"), &KEYS);
    assert_eq!(counts(&of(&truth, &rows), &KEYS), of_vcpu);
    let of_all = only(&truth, |row| {
        row["pid"] == pid && row["vcpu"] == "0" && row["reason"] == "KVM_EXIT_MMIO"
    });
    assert_eq!(counts(&end(by_all), &KEYS), counts(&of_all, &KEYS));
}

/// A libvirt scope's name is the VM's, and that of no other that may run on this host.
#[test]
fn a_vm_is_taken_by_its_name() {
    let _alone = alone();
    let name = format!("test{}", std::process::id());
    let scope = Cgroup::named(&format!("machine-qemu\\x2d7\\x2d{name}.scope"));
    let guests = scope.run_with("", 1, 2, "pio:5", &["--vmm-sleep", "500"]);
    let others = Guests::start(2, 1, "pio:23", &[]);
    let held = guests.hold();
    let tool = start(&["--vm", &name]);
    held.release();
    let truth = without_first(guests.truth());
    others.wait();
    let rows = end(tool);
    assert!(rows.iter().all(|row| row["vm"] == name), "{rows:?}");
    let keys = ["pid", "vcpu", "reason"];
    assert_eq!(counts(&rows, &keys), counts(&truth, &keys));
}

/// Where kvm_exit does not fire, the first thing that is seen of a guest that runs already is an exit to userspace.
#[test]
fn the_first_exit_of_a_guest_that_runs_already_is_its_vcpus() {
    let _alone = alone();
    let guests = Guests::start(1, 2, "pio:101@20", &[]);
    let pid = guests.pids()[0].to_string();
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    let tools = [start(&["-p", &pid]), start(&["-p", &pid, "--vcpu", "1"])];
    guests.wait();
    for (tool, vcpus) in tools.into_iter().zip([&["0", "1"][..], &["1"]]) {
        let seen = counts(&end(tool), &["vcpu", "reason"]);
        let io = |vcpu: &str| seen[&vec![vcpu.to_owned(), "KVM_EXIT_IO".to_owned()]];
        assert!(vcpus.iter().all(|vcpu| (1..101).contains(&io(vcpu))), "{seen:?}");
        assert_eq!(seen.len(), 2 * vcpus.len(), "each exit is a known vCPU's: {seen:?}");
    }
}

#[test]
fn a_reason_is_taken_however_it_is_spelt() {
    let _alone = alone();
    let spellings = [
        ("KVM_EXIT_IO", "KVM_EXIT_IO"),
        ("kvm_exit_io", "KVM_EXIT_IO"),
        ("io", "KVM_EXIT_IO"),
        ("Mmio", "KVM_EXIT_MMIO"),
        ("shutdown", "KVM_EXIT_SHUTDOWN"),
        ("KVM_EXIT_DEBUG", "KVM_EXIT_DEBUG"),
    ];
    let tools: Vec<Tool> =
        spellings.iter().map(|(spelling, _)| start(&["--reason", spelling])).collect();
    let truth = guests::run(2, 1, "pio:23,mmio:11,cpuid:101", &[]);
    for (tool, (spelling, reason)) in tools.into_iter().zip(spellings) {
        let rows = of(&truth, &end(tool));
        let expected = only(&truth, |row| row["reason"] == reason);
        assert_eq!(counts(&rows, &KEYS), counts(&expected, &KEYS), "{spelling}");
        // A name is one of the hardware's, too, where that has it; not with a prefix.
        let is_named = |row: &CsvRow| row["reason"] == reason || spelling == "io";
        assert!(rows.iter().all(is_named), "{spelling}: {rows:?}");
    }
}

#[test]
fn a_cgroup_takes_exactly_its_guests() {
    let _alone = alone();
    let cgroup = Cgroup::new();
    let above = start(&["-c", cgroup.path()]);
    let below = start(&["-c", &format!("{}/below", cgroup.path())]);
    let (inside, deeper, outside) = (
        cgroup.run("", 2, 1, "pio:23"),
        cgroup.run("below", 2, 1, "pio:29,mmio:7"),
        Guests::start(2, 1, "pio:31", &[]),
    );
    let (inside, deeper) = (inside.truth(), deeper.truth());
    outside.wait();
    assert_eq!(counts(&end(below), &KEYS), counts(&deeper, &KEYS));
    assert_eq!(counts(&end(above), &KEYS), counts(&[inside, deeper].concat(), &KEYS));
}
