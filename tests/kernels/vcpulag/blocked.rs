//! vCPUs that sleep inside KVM_RUN, though their guests have work.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::VCPULAG;
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::tool::{Tool, number};

/// Runs vCPUs that touch fresh pages, which needs the lock of their process's memory, while we take that to go through
/// all of the memory: clear_refs_write(), fs/proc/task_mmu.c.
fn run_blocked_guests() -> Vec<u32> {
    let args = "--vms 2 --vcpus 4 --memory 1G --workload exits=pagefault:60000 --duration 60";
    let guests = Guests::start(&args.split(' ').collect::<Vec<_>>());
    let pids = guests.pids();
    let over = Instant::now() + Duration::from_secs(3);
    // A guest that has touched all its pages is gone.
    let clear = |pid: &u32| fs::write(format!("/proc/{pid}/clear_refs"), "1").is_ok();
    let mut cleared = 0;
    while Instant::now() < over && pids.iter().map(clear).fold(false, |some, one| some | one) {
        cleared += 1;
    }
    assert!(cleared > 0, "the guests were gone at once");
    guests.end();
    pids
}

#[test]
fn vcpus_that_wait_for_a_lock_are_blocked() {
    let _alone = alone();
    let tool = Tool::start(VCPULAG, &["--csv", "--by", "vm"]);
    let pids = run_blocked_guests();
    let rows = tool.end(libc::SIGINT).rows();
    for pid in pids {
        let row = rows.iter().find(|row| row["pid"] == pid.to_string()).expect("a row");
        assert!(number(row, "blocked_ns") > 0, "{row:?}");
    }
}

#[test]
fn stacks_tell_where_vcpus_are_blocked() {
    let _alone = alone();
    let tool = Tool::start_at_once(VCPULAG, &["--stacks"]);
    thread::sleep(Duration::from_secs(1));
    run_blocked_guests();
    let ended = tool.end(libc::SIGINT);
    assert!(ended.status.success());
    assert_eq!(ended.stderr, "vcpulag: Tracing vCPUs... Hit Ctrl-C to end.\n");
    let mut faults = 0;
    for line in ended.stdout.lines() {
        let (stack, micros) = line.rsplit_once(' ').unwrap();
        assert!(!stack.contains(' ') && micros.parse::<u64>().is_ok(), "{line}");
        let innermost = stack.rsplit(';').next().unwrap();
        assert!(innermost.starts_with("__schedule") || stack == "[no_stack]", "{line}");
        faults += usize::from(stack.contains(";kvm_vcpu_ioctl;") && stack.contains("fault"));
    }
    assert!(faults > 0, "{}", ended.stdout);
}
