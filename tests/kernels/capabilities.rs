//! Root is not needed: who each tool works for, and what it says to whom it does not.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::kernel;
use crate::kvmexits::traces_exits;
use crate::util::capabilities::{
    BPF, Capability, Copy, DAC_READ_SEARCH, PERFMON, SYS_PTRACE, SYS_RESOURCE,
};
use crate::util::guests::Guests;
use crate::util::tool::{Tool, assert_refused, json_lines, number};
use crate::util::{TempDir, alone, loadgen};

const RUNQLAT: &str = env!("CARGO_BIN_EXE_runqlat");
const KVMEXITS: &str = env!("CARGO_BIN_EXE_kvmexits");
const VCPULAG: &str = env!("CARGO_BIN_EXE_vcpulag");
const KSMSTAT: &str = env!("CARGO_BIN_EXE_ksmstat");

/// What REQUIREMENTS of the manuals say, on this kernel.
fn with(capabilities: &[Capability]) -> Vec<Capability> {
    // Before Linux 5.11 maps count as locked memory.
    let memory = (kernel() < (5, 11)).then_some(SYS_RESOURCE);
    capabilities.iter().copied().chain(memory).collect()
}

/// Lets CAP_PERFMON be enough for perf events, as it is where kernel.perf_event_paranoid is not above 2.
struct PerfEvents(String);

impl PerfEvents {
    const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";

    /// Where it is not yet enough, the tool says so.
    fn allow(program: &Copy, name: &str, capabilities: &[Capability]) -> Self {
        let before = fs::read_to_string(Self::PARANOID).unwrap();
        if before.trim().parse::<i32>().unwrap() > 2 {
            let output = program.command(capabilities).args(["0.1", "1"]).output().unwrap();
            assert_refused(name, &output, 3, "kernel.perf_event_paranoid");
            fs::write(Self::PARANOID, "2").unwrap();
        }
        Self(before)
    }
}

impl Drop for PerfEvents {
    fn drop(&mut self) {
        drop(fs::write(Self::PARANOID, &self.0));
    }
}

/// Runs it as nobody with all of these but each in turn: exit status 3, and the name.
fn each_is_needed(program: &Copy, name: &str, capabilities: &[Capability], args: &[&str]) {
    for left_out in capabilities {
        let others: Vec<Capability> =
            capabilities.iter().copied().filter(|capability| capability != left_out).collect();
        let output: Output = program.command(&others).args(args).output().unwrap();
        assert_refused(name, &output, 3, &format!("CAP_{}", left_out.1));
    }
}

#[test]
fn runqlat_needs_two_capabilities() {
    let _alone = alone();
    let (program, needed) = (Copy::of(RUNQLAT), with(&[BPF, PERFMON]));
    let args = ["--csv", "--by", "thread", "0.3", "2"];
    let ended = Tool::start_command(program.command(&needed).args(args)).wait();
    assert!(ended.rows().len() >= 2, "{}", ended.stdout);
    each_is_needed(&program, "runqlat", &needed, &["0.1", "1"]);
}

/// Guests' exits are counted as root counts them.
#[test]
fn kvmexits_needs_three_capabilities() {
    let _alone = alone();
    let (program, needed) = (Copy::of(KVMEXITS), with(&[BPF, PERFMON, DAC_READ_SEARCH]));
    let _perf = PerfEvents::allow(&program, "kvmexits", &needed);
    let dir = TempDir::new("capabilities-truth");
    let truth = dir.join("truth.json");
    let tool = Tool::start_command(program.command(&needed).args(["--by", "vm,reason", "--csv"]));
    let guests =
        ["run", "--vms", "2", "--workload", "exits=pio:503", "--truth", truth.to_str().unwrap()];
    assert!(Tool::start(&loadgen(), &guests).wait().status.success());
    let rows = tool.end(libc::SIGINT).rows();
    for vcpu in json_lines(&fs::read_to_string(&truth).unwrap()) {
        let own = || rows.iter().filter(|row| number(row, "pid") == vcpu["pid"]);
        let count = |reasons: &[&str]| -> u64 {
            let of = own().filter(|row| reasons.contains(&row["reason"].as_str()));
            of.map(|row| number(row, "count")).sum()
        };
        assert_eq!(count(&["KVM_EXIT_IO"]), 503, "{:?}", own().collect::<Vec<_>>());
        if traces_exits() {
            assert_eq!(count(&["IO_INSTRUCTION", "io"]), 503, "{:?}", own().collect::<Vec<_>>());
        }
    }
    each_is_needed(&program, "kvmexits", &needed, &["0.1", "1"]);
}

#[test]
fn vcpulag_needs_three_capabilities() {
    let _alone = alone();
    let (program, needed) = (Copy::of(VCPULAG), with(&[BPF, PERFMON, DAC_READ_SEARCH]));
    let _perf = PerfEvents::allow(&program, "vcpulag", &needed);
    let guests = Guests::start(&["--vms", "3"]);
    let ended = Tool::start_command(program.command(&needed).args(["--csv", "1", "2"])).wait();
    guests.end();
    let mut busy: Vec<u64> = ended
        .rows()
        .iter()
        .filter(|row| row["vm"].starts_with("loadgen-"))
        .filter(|row| number(row, "run_ns") + number(row, "wait_ns") > 0)
        .map(|row| number(row, "pid"))
        .collect();
    busy.sort_unstable();
    busy.dedup();
    assert!(busy.len() >= 3, "{}", ended.stdout);
    each_is_needed(&program, "vcpulag", &needed, &["0.1", "1"]);
}

#[test]
fn ksmstat_needs_three_capabilities_and_why_two() {
    let _alone = alone();
    let (program, needed) = (Copy::of(KSMSTAT), with(&[BPF, PERFMON, DAC_READ_SEARCH]));
    let _perf = PerfEvents::allow(&program, "ksmstat", &needed);
    let ended = Tool::start_command(program.command(&needed).args(["--csv", "0.3", "2"])).wait();
    assert_eq!(ended.rows().len(), 2);
    each_is_needed(&program, "ksmstat", &needed, &["0.1", "1"]);

    // Of a process of root's that has mergeable memory: else nobody need look closer.
    let guests = Guests::start(&["--vms", "1", "--workload", "memory=1M"]);
    let pid = guests.pids()[0].to_string();
    let (both, why) = ([DAC_READ_SEARCH, SYS_PTRACE], ["--why", "-d", "0.1", "-p", &pid]);
    let ended = program.command(&both).args(why).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    // The first one is for /proc/PID/ksm_stat, which is there since Linux 6.1.
    let needed = if kernel() < (6, 1) { &both[1..] } else { &both };
    each_is_needed(&program, "ksmstat", needed, &why);
    guests.end();

    // What anybody may read.
    if Path::new("/sys/kernel/mm/ksm").exists() {
        assert!(program.command(&[]).arg("-S").output().unwrap().status.success());
    }
}
