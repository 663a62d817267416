//! kvmexits shows the exits that guests know they caused, and no others.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use std::{fs, thread};

use serde_json::Value;

use crate::util::perf::Counter;
use crate::util::threads::{burn, pin, set_fifo};
use crate::util::tool::{CsvRow, Tool, csv_rows, json_lines, number};
use crate::util::{TempDir, alone, loadgen};

const KVMEXITS: &str = env!("CARGO_BIN_EXE_kvmexits");

/// Whether this host's KVM fires kvm_exit: Intel's and AMD's do, PVM does not.
pub fn traces_exits() -> bool {
    ["kvm_amd", "kvm_intel"].iter().any(|module| Path::new("/sys/module").join(module).exists())
}

/// What kvmexits and the guests say of the same run.
fn observed(kvmexits: &[&str], guests: &[&str]) -> (Vec<CsvRow>, Vec<Value>) {
    let dir = TempDir::new("kvmexits");
    let path = dir.join("truth.json");
    let tool = Tool::start(KVMEXITS, kvmexits);
    let guests = [&["run"], guests, &["--truth", path.to_str().unwrap()]].concat();
    let ended = Tool::start(&loadgen(), &guests).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let rows = tool.end(libc::SIGINT).rows();
    let truth = fs::read_to_string(&path).unwrap();
    (rows, json_lines(&truth))
}

/// The same with the rows of these guests only: others may be there, too.
fn observed_own(args: &[&str], guests: &[&str]) -> (Vec<CsvRow>, Vec<Value>) {
    let (mut rows, truth) = observed(&[&["--by", "vm,reason", "--csv"], args].concat(), guests);
    rows.retain(|row| truth.iter().any(|vcpu| number(row, "pid") == vcpu["pid"]));
    (rows, truth)
}

/// Rows of these reasons, whatever the vendor calls them.
fn of<'a>(rows: &'a [CsvRow], reasons: &[&str]) -> Vec<&'a CsvRow> {
    rows.iter().filter(|row| reasons.contains(&row["reason"].as_str())).collect()
}

fn count(rows: &[CsvRow], reasons: &[&str]) -> u64 {
    of(rows, reasons).into_iter().map(|row| number(row, "count")).sum()
}

/// What the vendors call what the guests did, and what a VMM is told of it.
const HARDWARE: [(&str, &[&str]); 5] = [
    ("cpuid", &["CPUID", "cpuid"]),
    ("pio", &["IO_INSTRUCTION", "io"]),
    ("msr", &["MSR_READ", "MSR_WRITE", "msr"]),
    ("hypercall", &["VMCALL", "hypercall"]),
    ("hlt", &["HLT", "hlt"]),
];
const USERSPACE: [(&str, &[&str]); 2] = [("pio", &["KVM_EXIT_IO"]), ("mmio", &["KVM_EXIT_MMIO"])];

#[test]
fn exits_are_those_that_guests_caused() {
    let _alone = alone();
    let (hardware, workload) = match traces_exits() {
        true => (
            &HARDWARE[..],
            "exits=cpuid:1009,pio:503,mmio:251,msr:127,hypercall:101,hlt:61,pagefault:97",
        ),
        false => (&[][..], "exits=cpuid:1009,pio:503,mmio:251,msr:127,hlt:61"),
    };
    let kernels = traces_exits().then(|| Counter::start("kvm/kvm_exit"));
    let guests = ["--vms", "3", "--vcpus", "2", "--workload", workload];
    let (rows, truth) = observed(&["--by", "vcpu,reason", "--csv"], &guests);
    assert_eq!(truth.len(), 6);
    for vcpu in &truth {
        let own = |row: &&CsvRow| {
            number(row, "pid") == vcpu["pid"] && number(row, "vcpu") == vcpu["vcpu"]
        };
        let own: Vec<CsvRow> = rows.iter().filter(own).cloned().collect();
        assert!(own.iter().all(|row| row["vm"] == vcpu["vm"]), "{own:?}");
        for (kind, reasons) in hardware.iter().chain(&USERSPACE) {
            assert_eq!(count(&own, reasons), vcpu["exits"][kind], "{kind}: {own:#?}");
        }
        assert_eq!(count(&own, &["KVM_EXIT_SHUTDOWN"]), 1, "how it left: {own:?}");
    }
    // Not one is missing: the kernel has counted as many, guests' first page faults and interrupts included.
    let hardware = rows.iter().filter(|row| row["kind"] == "hardware");
    let seen: u64 = hardware.map(|row| number(row, "count")).sum();
    assert_eq!(seen, kernels.map_or(0, |kernels| kernels.count()));
    assert!(rows.iter().all(|row| number(row, "lost") == 0));
}

#[test]
fn the_parts_are_the_whole() {
    let _alone = alone();
    let workload = ["--vms", "3", "--workload", "exits=cpuid:211,pio:103,mmio:53@200"];
    let (rows, _) = observed(&["--by", "vm,reason", "--csv"], &workload);
    assert!(rows.len() >= 3 * 2);
    for row in &rows {
        let parts = ["kernel_ns", "userspace_ns", "asleep_ns", "runqueue_ns"];
        let sum: u64 = parts.iter().map(|part| number(row, part)).sum();
        assert_eq!(sum, number(row, "total_ns"), "{row:?}");
    }
}

/// A VMM that takes its time is seen to do so, in the exit to userspace and in the exit from guest mode.
#[test]
fn a_slow_vmm_is_userspace_time() {
    let _alone = alone();
    let guests = ["--vms", "1", "--workload", "exits=pio:23", "--vmm-sleep", "5"];
    let (rows, _) = observed_own(&[], &guests);
    let mut expected = vec!["KVM_EXIT_IO"];
    if traces_exits() {
        expected.extend(["IO_INSTRUCTION", "io"]);
    }
    let rows = of(&rows, &expected);
    assert_eq!(rows.len(), 1 + usize::from(traces_exits()), "{rows:?}");
    for row in rows {
        assert!(number(row, "userspace_ns") >= 23 * 5_000_000, "{row:?}");
        assert!(number(row, "p50_ns") >= 4_900_000, "{row:?}");
        assert_eq!(number(row, "asleep_ns"), 0, "{row:?}");
    }
}

/// Where a halt is known as such.
#[test]
fn a_halted_guest_is_asleep() {
    if !traces_exits() {
        return;
    }
    let _alone = alone();
    let guests = ["--vms", "1", "--workload", "idle=50", "--duration", "3"];
    let (rows, truth) = observed_own(&[], &guests);
    let halts = of(&rows, &["HLT", "hlt"]);
    assert_eq!(halts.len(), 1, "{rows:?}");
    assert_eq!(number(halts[0], "count"), truth[0]["exits"]["hlt"]);
    let (asleep_ns, total_ns) = (number(halts[0], "asleep_ns"), number(halts[0], "total_ns"));
    assert!(total_ns > 1_500_000_000, "{halts:?}");
    assert!(asleep_ns * 10 >= total_ns * 6, "{halts:?}");
}

/// A VMM that has slept in its handler waits for a CPU before it can answer, if somebody with a higher priority has
/// them all most of the time.
#[test]
fn an_overloaded_host_is_the_run_queue() {
    let _alone = alone();
    let over = AtomicBool::new(false);
    let rows = thread::scope(|scope| {
        for cpu in 0..thread::available_parallelism().unwrap().get() {
            let over = &over;
            scope.spawn(move || {
                pin(cpu);
                set_fifo(1);
                while !over.load(Relaxed) {
                    burn(Duration::from_millis(8));
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
        let guests = ["--vms", "1", "--workload", "exits=pio:31", "--vmm-sleep", "1"];
        let (rows, _) = observed_own(&[], &guests);
        over.store(true, Relaxed);
        rows
    });
    let expected = if traces_exits() { 2 } else { 1 };
    let rows = of(&rows, &["KVM_EXIT_IO", "IO_INSTRUCTION", "io"]);
    assert_eq!(rows.len(), expected, "{rows:?}");
    for row in rows {
        assert!(number(row, "runqueue_ns") * 8 > number(row, "total_ns"), "{row:?}");
        assert!(number(row, "userspace_ns") >= 31 * 1_000_000, "{row:?}");
    }
}

#[test]
fn a_host_that_does_not_trace_exits_is_said_to_be_one() {
    if traces_exits() {
        return;
    }
    let _alone = alone();
    let tool = Tool::start(KVMEXITS, &[]);
    let guests = ["run", "--vms", "1", "--workload", "exits=pio:23"];
    assert!(Tool::start(&loadgen(), &guests).wait().status.success());
    let ended = tool.end(libc::SIGINT);
    assert!(ended.stdout.contains("does not fire kvm_exit"), "{}", ended.stdout);
    assert!(ended.stdout.contains("KVM_EXIT_IO"), "{}", ended.stdout);
}

#[test]
fn details_add_up_to_their_reasons() {
    let _alone = alone();
    let workload = match traces_exits() {
        true => "exits=pio:101,mmio:53,msr:127,hypercall:23,hlt:61",
        false => "exits=pio:101,mmio:53",
    };
    let guests = ["--vms", "2", "--workload", workload];
    let (rows, truth) = observed(&["--by", "vm", "--detail", "--csv"], &guests);
    assert_eq!(truth.len(), 2);
    for vm in truth {
        let count = |kind: &str, details: &[&str]| -> u64 {
            let rows = rows.iter().filter(|row| number(row, "pid") == vm["pid"]);
            let rows = rows.filter(|row| row["vm"] == vm["vm"] && row["kind"] == kind);
            let rows = rows.filter(|row| details.contains(&row["detail"].as_str()));
            rows.map(|row| number(row, "count")).sum()
        };
        let kinds = match traces_exits() {
            true => &["hardware", "userspace"][..],
            false => &["userspace"],
        };
        for kind in kinds {
            // Alternately, beginning with out and write.
            assert_eq!(count(kind, &["out port 0xf5"]), 51, "{rows:#?}");
            assert_eq!(count(kind, &["in port 0xf5"]), 50, "{rows:#?}");
            assert_eq!(count(kind, &["write 0xd0000000"]), 27, "{rows:#?}");
            assert_eq!(count(kind, &["read 0xd0000000"]), 26, "{rows:#?}");
        }
        if traces_exits() {
            assert_eq!(count("hardware", &["read IA32_MCG_STATUS"]), 64, "{rows:#?}");
            assert_eq!(count("hardware", &["write IA32_MCG_STATUS"]), 63, "{rows:#?}");
            assert_eq!(count("hardware", &["VAPIC_POLL_IRQ"]), 23, "{rows:#?}");
            // One whose interrupt is there at once neither sleeps nor polls.
            let halts = count("hardware", &["slept", "polled"]);
            assert!((1..=61).contains(&halts), "{rows:#?}");
        }
    }
}

/// Each exit above the threshold, with its parts, as it ends.
#[test]
fn slow_exits_are_told_one_by_one() {
    let _alone = alone();
    let guests = ["--vms", "1", "--workload", "exits=pio:23,cpuid:101", "--vmm-sleep", "20"];
    let (mut rows, truth) = observed(&["--slower", "15000", "--csv"], &guests);
    rows.retain(|row| number(row, "pid") == truth[0]["pid"]);
    let kind = if traces_exits() { "hardware" } else { "userspace" };
    let slow = of(&rows, &["IO_INSTRUCTION", "io", "KVM_EXIT_IO"]);
    assert_eq!(slow.len(), 23, "{rows:#?}");
    for row in slow {
        assert_eq!((&row["kind"], &row["vcpu"]), (&kind.to_owned(), &"0".to_owned()), "{row:?}");
        assert_eq!(number(row, "tid"), truth[0]["tid"], "{row:?}");
        assert!(number(row, "userspace_ns") >= 20_000_000, "{row:?}");
    }
}

/// While guests go on, all ends at once: no exit is cut in two, and none is counted as lost.
#[test]
fn the_last_output_is_as_true_as_the_others() {
    let _alone = alone();
    let workload = "exits=cpuid:1000000@300,pio:1000000@200,mmio:1000000@100";
    let guests = ["run", "--vms", "2", "--vcpus", "2", "--workload", workload, "--duration", "60"];
    let guests = Tool::start(&loadgen(), &guests);
    for _ in 0..3 {
        let args = ["--by", "vcpu,reason", "--csv", "-d", "1"];
        let ended = Tool::start(KVMEXITS, &args).wait();
        assert!(ended.status.success(), "{}", ended.stderr);
        let rows = csv_rows(&ended.stdout);
        assert!(rows.len() >= 4 * 2, "{rows:?}");
        for row in rows {
            let parts = ["kernel_ns", "userspace_ns", "asleep_ns", "runqueue_ns"];
            let sum: u64 = parts.iter().map(|part| number(&row, part)).sum();
            assert_eq!(sum, number(&row, "total_ns"), "{row:?}");
            // Where programs can be preempted the kernel skips events meanwhile (bpf_disable_instrumentation()), and
            // that is told: in the last output as in others.
            assert!(number(&row, "lost") == 0 || crate::kernel() >= (7, 0), "{row:?}");
        }
    }
    drop(guests.end(libc::SIGTERM));
}
