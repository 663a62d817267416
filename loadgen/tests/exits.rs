//! Guests that leave so many times, by kind: no more and no less.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use support::{PATIENCE, Running, TempDir, alone, number, read_truth, run};

/// What this machine's KVM can do, whichever it is.
const ALL: &str = "exits=cpuid:1009,pio:503,mmio:251,msr:101,hlt:23,pagefault:997";

/// The exits of a line of truth or of a summary, in the order of the names.
fn exits(line: &Value) -> Vec<(&str, u64)> {
    let exits = line["exits"].as_object().expect("an object");
    exits.iter().map(|(kind, count)| (kind.as_str(), count.as_u64().expect("a count"))).collect()
}

#[test]
fn every_vcpu_causes_exactly_what_was_asked_for() {
    let _alone = alone();
    let all = |times: u64| {
        [
            ("cpuid", 1009 * times),
            ("hlt", 23 * times),
            ("hypercall", 0),
            ("mmio", 251 * times),
            ("msr", 101 * times),
            ("pagefault", 997 * times),
            ("pio", 503 * times),
        ]
    };
    let (summary, truth) = run(&["--vms", "3", "--vcpus", "2", "--workload", ALL]);
    assert_eq!(truth.len(), 6);
    for line in &truth {
        assert_eq!(exits(line), all(1), "{line}");
        assert_eq!(line["workload"], ALL);
        assert!(line.get("failure").is_none(), "{line}");
    }
    assert_eq!(exits(&summary), all(6), "{summary}");
    assert_eq!((number(&summary, "failed"), number(&summary, "killed")), (0, 0));
}

#[test]
fn a_rate_is_kept_and_does_not_slow_down_the_others() {
    let _alone = alone();
    let workload = "exits=cpuid:101@50,pio:503@1000,mmio:23,hlt:11@100";
    let (summary, truth) = run(&["--vms", "1", "--vcpus", "2", "--workload", workload]);
    for line in &truth {
        let expected = [11, 23, 503, 101];
        let got = ["hlt", "mmio", "pio", "cpuid"].map(|kind| number(&line["exits"], kind));
        assert_eq!(got, expected, "{line}");
    }
    // The first is due at once: 100 periods of 20 ms. Longer only if the machine has no CPU for them.
    let run_s = summary["run_s"].as_f64().expect("run_s");
    assert!((2.0..4.0).contains(&run_s), "{run_s}");
}

#[test]
fn who_is_told_to_leave_early_leaves_with_what_has_been_counted() {
    let _alone = alone();
    let workload = "exits=cpuid:1000000000,pio:1000000000@1000000,hlt:1009@100";
    let args = ["--vms", "2", "--vcpus", "2", "--workload", workload];
    let (summary, by_time) = run(&[&args[..], &["--duration", "1"]].concat());
    assert_eq!((number(&summary, "failed"), number(&summary, "killed")), (0, 0));

    let dir = TempDir::new("early-exits");
    let truth = dir.file("truth");
    let mut running = Running::start(&args, Some(&truth));
    thread::sleep(Duration::from_secs(1));
    running.signal(libc::SIGTERM);
    let (status, stderr) = running.wait();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    running.assert_nothing_left(Duration::ZERO);

    for line in by_time.iter().chain(&read_truth(&truth)) {
        for (kind, most) in [("cpuid", 1_000_000_000), ("pio", 1_000_000_000), ("hlt", 1_009)] {
            let done = number(&line["exits"], kind);
            assert!((1..most).contains(&done), "{kind}: {line}");
        }
    }
}

/// Each page is one of its own, and a small one.
#[test]
fn page_faults_fill_the_guests_memory() {
    let _alone = alone();
    let workload = "exits=pagefault:10007,cpuid:10007@10";
    let args = ["--vms", "1", "--vcpus", "2", "--workload", workload];
    let mut running = Running::start(&args, None);
    let guest = running.guests()[0];
    let (mut small_kib, mut huge_kib) = (0, 0);
    let deadline = Instant::now() + PATIENCE;
    while small_kib < 2 * 10_007 * 4 {
        assert!(Instant::now() < deadline, "{small_kib} KiB");
        thread::sleep(Duration::from_millis(50));
        let rollup = fs::read_to_string(format!("/proc/{guest}/smaps_rollup")).expect("smaps");
        let kib = |name: &str| {
            let line = rollup.lines().find(|line| line.starts_with(name)).expect("a line");
            line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
        };
        (small_kib, huge_kib) = (kib("Private_Dirty:"), kib("AnonHugePages:"));
    }
    assert_eq!(huge_kib, 0);
    assert!(small_kib < 2 * 10_007 * 4 + 8_192, "{small_kib} KiB");
    running.signal(libc::SIGINT);
    assert!(running.wait().0.success());
}

#[test]
fn the_vmm_sleeps_before_it_answers() {
    let _alone = alone();
    let args = ["--vms", "1", "--vcpus", "2", "--workload", "exits=pio:23,mmio:11,cpuid:1009"];
    let (summary, truth) = run(&[&args[..], &["--vmm-sleep", "12.5"]].concat());
    assert_eq!(truth.len(), 2);
    // 34 answers of 12.5 ms, of both vCPUs at the same time; the end is looked for five times a second.
    let run_s = summary["run_s"].as_f64().expect("run_s");
    assert!((0.425..2.0).contains(&run_s), "{run_s}");
}

/// However long each answer takes: the order to leave is looked for after each, so nobody has to be killed.
#[test]
fn a_slow_vmm_leaves_in_time() {
    let _alone = alone();
    let args = ["--vms", "1", "--workload", "exits=pio:1009,mmio:1009", "--vmm-sleep", "1000"];
    let (summary, truth) = run(&[&args[..], &["--duration", "1.5"]].concat());
    assert_eq!((number(&summary, "failed"), number(&summary, "killed")), (0, 0), "{summary}");
    assert_eq!(number(&truth[0]["exits"], "pio"), 1, "{summary}");
}

/// An instance of the kernel's trace buffer that only this test has, with `kvm_userspace_exit` on.
struct Trace(PathBuf);

impl Trace {
    fn start() -> Self {
        let tracing = Path::new("/sys/kernel/tracing");
        assert!(tracing.join("instances").exists(), "this test needs tracefs at {tracing:?}");
        let dir = tracing.join(format!("instances/loadgen-test-{}", std::process::id()));
        fs::create_dir(&dir).expect("a trace instance");
        let trace = Self(dir);
        for (file, value) in
            [("buffer_size_kb", "4096"), ("events/kvm/kvm_userspace_exit/enable", "1")]
        {
            fs::write(trace.0.join(file), value).expect(file);
        }
        trace
    }

    /// How often a thread left KVM for this reason.
    fn count(&self, tid: u64, reason: &str) -> usize {
        let trace = fs::read_to_string(self.0.join("trace")).expect("the trace");
        let (thread, reason) = (format!("-{tid} "), format!("reason {reason} "));
        trace.lines().filter(|line| line.contains(&thread) && line.contains(&reason)).count()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn the_kernel_counts_the_same_exits_to_userspace() {
    let _alone = alone();
    let trace = Trace::start();
    let (_, truth) = run(&["--vms", "2", "--vcpus", "2", "--workload", ALL]);
    for line in &truth {
        let tid = number(line, "tid");
        assert_eq!(trace.count(tid, "KVM_EXIT_IO"), 503, "{line}");
        assert_eq!(trace.count(tid, "KVM_EXIT_MMIO"), 251, "{line}");
        assert_eq!(trace.count(tid, "KVM_EXIT_SHUTDOWN"), 1, "{line}");
    }
}
