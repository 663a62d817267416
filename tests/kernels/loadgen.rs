//! Guests run, on emulated AMD-V too, and know what they did.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::kernel;
use crate::util::ksm::{Ksm, cow_breaks};
use crate::util::tool::{Tool, json_lines};
use crate::util::{TempDir, alone, loadgen};

/// Runs guests to their end; what they say they did.
fn run(args: &[&str]) -> Vec<Value> {
    let dir = TempDir::new("truth");
    let path = dir.join("truth.json");
    let args = [&["run"], args, &["--truth", path.to_str().unwrap()]].concat();
    let ended = Tool::start(&loadgen(), &args).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    read(&path)
}

fn read(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    json_lines(&text)
}

#[test]
fn spinning_guests_spin() {
    let _alone = alone();
    let truth = run(&["--vms", "3", "--duration", "2"]);
    assert_eq!(truth.len(), 3);
    for vcpu in &truth {
        assert!(vcpu["iterations"].as_u64().unwrap() > 0, "{vcpu}");
        assert_eq!(vcpu["exits"]["hlt"], 0, "{vcpu}");
        assert_eq!(vcpu.get("failure"), None, "{vcpu}");
    }
}

/// Of a quota on plain cgroup v2 nothing is left, and an I/O thread uses it up as well.
#[test]
fn guests_have_quotas_and_io_threads() {
    let _alone = alone();
    let args = ["--vms", "2", "--cpu-max", "30", "--io-thread", "23", "--cpus", "0"];
    let truth = run(&[&args[..], &["--duration", "3"]].concat());
    for vcpu in &truth {
        let of = |name: &str| vcpu[name].as_u64().unwrap();
        assert!((100_000_000..3_500_000_000).contains(&of("throttled_ns")), "{vcpu}");
        assert!((20_000_000..1_000_000_000).contains(&of("io_thread_cpu_ns")), "{vcpu}");
        assert_ne!(of("io_thread_tid"), of("tid"), "{vcpu}");
    }
}

/// What the first of these files of a fleet's cgroup says, in whichever hierarchy it is.
fn of_cgroup(fleet: &Tool, files: &[&str]) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next().filter(|_| fields.next().unwrap().starts_with("cgroup"))
    });
    let dirs = points.map(|point| format!("{point}/loadgen-{}", fleet.pid()));
    let mut paths = dirs.flat_map(|dir| files.iter().map(move |file| format!("{dir}/{file}")));
    paths.find_map(|path| fs::read_to_string(path).ok()).map(|text| text.trim().to_owned())
}

/// The controllers that each v2 cgroup at the top has.
fn switched_on() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    let point = line.split(' ').nth(1).unwrap();
    fs::read_to_string(format!("{point}/cgroup.subtree_control")).ok()
}

/// By what the kernel says of them, on plain cgroup v2 and others: priority, CPUs, memory, and each limit.
#[test]
fn guests_are_held_to_what_is_asked_for() {
    let _alone = alone();
    let before = switched_on();
    let online = fs::read_to_string("/sys/devices/system/node/online").unwrap();
    let node = online.trim().rsplit(['-', ',']).next().unwrap();
    let cpus = fs::read_to_string(format!("/sys/devices/system/node/node{node}/cpulist")).unwrap();
    // A node of memory alone, as the VM has, lets guests run everywhere.
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let cpus = if cpus == "\n" { online } else { cpus };
    let fleet = "run --vms 2 --workload memory=4M --mem-merge off --nice 5 --sched batch --weight 300 --cpu-max 40 \
                 --fleet-cpu-max 60 --memory-max 32M --fleet-memory-max 48M --numa-node";
    let args: Vec<&str> = fleet.split_whitespace().chain([node]).collect();
    let fleet = Tool::start(&loadgen(), &args);
    let is = |files: &[&str], values: &[&str]| {
        let value = of_cgroup(&fleet, files);
        assert!(value.as_deref().is_some_and(|v| values.contains(&v)), "{files:?}: {value:?}");
    };
    is(&["cpu.shares", "cpu.weight"], &["3072", "300"]);
    is(&["cpu.cfs_quota_us", "cpu.max"], &["60000", "60000 100000"]);
    is(&["memory.limit_in_bytes", "memory.max"], &["50331648"]);
    let own = |file: &str| format!("loadgen-0002/{file}");
    is(&[&own("cpu.cfs_quota_us"), &own("cpu.max")], &["40000", "40000 100000"]);
    is(&[&own("memory.limit_in_bytes"), &own("memory.max")], &["33554432"]);
    let bytes = of_cgroup(&fleet, &[&own("memory.usage_in_bytes"), &own("memory.current")]);
    let bytes: u64 = bytes.unwrap().parse().unwrap();
    assert!((4 << 20..8 << 20).contains(&bytes), "{bytes}");

    // Some kernels have a thread of their own for each virtual machine, in its cgroup.
    let pids = of_cgroup(&fleet, &[&own("cgroup.procs")]).unwrap();
    let of_pid = |pid: &str, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let pid = pids.lines().find(|pid| of_pid(pid, "comm") == "loadgen-0002\n").unwrap();
    let of_process = |file: &str| of_pid(pid, file);
    let stat = of_process("stat");
    let stat: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    assert_eq!([stat[19 - 3], stat[41 - 3]], ["5", "3"], "nice value, SCHED_BATCH");
    let status = of_process("status");
    assert!(status.contains(&format!("\nCpus_allowed_list:\t{cpus}")), "{status}");
    let maps = of_process("numa_maps");
    let policy = format!("bind:{node}");
    assert!(maps.lines().all(|line| line.split(' ').nth(1) == Some(&policy)), "{maps}");
    let filled = maps.lines().find(|line| line.contains(" anon=1024 ")).unwrap();
    assert!(filled.contains(&format!(" N{node}=1024 ")), "{maps}");

    let ended = fleet.end(libc::SIGTERM);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(switched_on(), before);
}

/// On kernels without idle cgroups (5.15) it is the lowest weight.
#[test]
fn idle_fleets_are_idle() {
    let _alone = alone();
    let args = ["run", "--vms", "2", "--sched", "idle", "--pin"];
    let fleet = Tool::start(&loadgen(), &args);
    match kernel() < (5, 15) {
        false => assert_eq!(of_cgroup(&fleet, &["cpu.idle"]).as_deref(), Some("1")),
        true => assert_eq!(of_cgroup(&fleet, &["cpu.weight"]).as_deref(), Some("1")),
    }
    let ended = fleet.end(libc::SIGTERM);
    assert!(ended.status.success(), "{}", ended.stderr);
}

#[test]
fn guests_that_reach_a_memory_limit_are_named() {
    let _alone = alone();
    let work = ["run", "--vms", "1", "--workload", "exits=pagefault:20000"];
    for (limit, what) in [
        ("--memory-max", "it reached its"),
        ("--fleet-memory-max", "the guests together reached their"),
    ] {
        let ended = Tool::start(&loadgen(), &[&work[..], &[limit, "16M"]].concat()).wait();
        assert_eq!(ended.status.code(), Some(1));
        assert_eq!(
            ended.stderr,
            format!(
                "loadgen: guest failed: `loadgen-0001` was killed by the kernel: {what} memory limit ({limit} 16M)\n"
            )
        );
    }
}

#[test]
fn idle_guests_tick_and_halt() {
    let _alone = alone();
    let truth = run(&["--vms", "2", "--workload", "idle=23", "--duration", "3"]);
    assert_eq!(truth.len(), 2);
    for vcpu in &truth {
        let [ticks, missed] = ["ticks", "ticks_missed"].map(|name| vcpu[name].as_u64().unwrap());
        let hlts = vcpu["exits"]["hlt"].as_u64().unwrap();
        assert!((60..=76).contains(&(ticks + missed)), "23 Hz for 3 s: {vcpu}");
        let late = vcpu["late_ticks"].as_array().unwrap().iter();
        assert_eq!(late.map(|row| row[2].as_u64().unwrap()).sum::<u64>(), ticks, "{vcpu}");
        // A tick that finds the guest awake needs no HLT.
        assert!(ticks >= 23 && hlts >= 23 && hlts <= ticks + 1, "{vcpu}");
        assert_eq!(vcpu.get("failure"), None, "{vcpu}");
    }
}

/// Guests with memory, as many as the issue asks for, which KSM may merge.
fn with_memory(memory: &str, truth: &Path) -> Tool {
    let args = ["run", "--vms", "8", "--workload", memory, "--truth", truth.to_str().unwrap()];
    Tool::start(&loadgen(), &args)
}

/// `pages_shared`, `pages_sharing`.
fn shown(ksm: &Ksm) -> [u64; 2] {
    ["pages_shared", "pages_sharing"].map(|name| ksm.read(name).unwrap())
}

fn expected(of: &Value) -> [u64; 2] {
    ["pages_shared", "pages_sharing"].map(|name| of[name].as_u64().unwrap())
}

#[test]
fn ksm_merges_what_the_truth_says() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let dir = TempDir::new("merged");
    let truth = dir.join("truth.json");
    // The last one leaves one zero page of 293 * 3 + 1 alone.
    for (memory, max_page_sharing) in [
        ("memory=16M,duplicate=50", 256),
        ("memory=4036K,duplicate=23,zero=11", 23),
        ("memory=4036K,zero=11", 293),
    ] {
        ksm.set("run", 2);
        ksm.set("max_page_sharing", max_page_sharing);
        let guests = with_memory(memory, &truth);
        ksm.scan(2);
        let off = shown(&ksm);
        ksm.set("run", 2);
        ksm.set("use_zero_pages", 1);
        ksm.scan(2);
        let (on, zero_pages) = (shown(&ksm), ksm.read("ksm_zero_pages"));
        ksm.set("use_zero_pages", 0);
        let ended = guests.end(libc::SIGTERM);
        assert!(ended.status.success(), "{}", ended.stderr);
        let truth = &read(&truth)[0]["memory"]["expected"];
        assert_eq!(truth["max_page_sharing"], max_page_sharing, "{truth}");
        assert_eq!(off, expected(truth), "{memory}: {truth}");
        let truth = &truth["use_zero_pages"];
        assert_eq!(on, expected(truth), "{memory}: {truth}");
        if let Some(zero_pages) = zero_pages {
            assert_eq!(truth["ksm_zero_pages"], zero_pages, "{memory}: {truth}");
        }
    }
}

/// Each rewrite of a merged page is one copy, and ksmd merges it again.
#[test]
fn rewritten_pages_are_copied_once() {
    let _alone = alone();
    let ksm = Ksm::take_alone();
    let dir = TempDir::new("rewritten");
    let truth = dir.join("truth.json");
    let mut guests = with_memory("memory=4036K,duplicate=50,zero=20,rewrite=50/signal", &truth);
    ksm.scan(2);
    let (merged, copied) = (shown(&ksm), cow_breaks());
    // SAFETY: a plain system call; the child has not been waited for, so the PID is its own.
    assert_eq!(unsafe { libc::kill(guests.pid().cast_signed(), libc::SIGUSR1) }, 0);
    let done = guests.line();
    let copies = cow_breaks().zip(copied).map(|(after, before)| after - before);
    ksm.scan(2);
    let again = shown(&ksm);
    assert!(guests.end(libc::SIGTERM).status.success());

    let truth = read(&truth);
    let rewrites = |kind: &str| -> u64 {
        truth.iter().map(|vm| vm["memory"]["rewrites"][kind].as_u64().unwrap()).sum()
    };
    let [duplicate, zero, unique] = ["duplicate", "zero", "unique"].map(rewrites);
    assert_eq!(duplicate + zero + unique, 8 * 504);
    assert!(duplicate > 1_990 && zero > 790, "{duplicate} {zero} {unique}");
    assert_eq!(
        done,
        format!("rewritten up to now: {duplicate} duplicate, {zero} zero, {unique} unique pages")
    );
    if let Some(copies) = copies {
        assert_eq!(copies, duplicate + zero);
    } else {
        assert!(kernel() < (5, 18), "no cow_ksm in /proc/vmstat");
    }
    assert_eq!(merged, expected(&truth[0]["memory"]["expected"]));
    assert_eq!(again, merged);
}
