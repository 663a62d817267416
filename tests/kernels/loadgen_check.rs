//! `loadgen check` tells what each kernel has, and `loadgen run` goes by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::util::guests::Guests;
use crate::util::{alone, loadgen};

fn parse(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn check() -> Value {
    parse(&Command::new(loadgen()).args(["check", "--json"]).output().unwrap())
}

/// A parameter of a module, as the kernel writes it.
fn parameter(module: &str, name: &str) -> String {
    let path = format!("/sys/module/{module}/parameters/{name}");
    fs::read_to_string(path).unwrap().trim().to_owned()
}

#[test]
fn the_vendors_parameters_are_told() {
    let found = check();
    assert_eq!(found["can_run_guests"], true);
    assert_eq!(found["steal_time"]["verdict"], "ok", "{found}");
    assert!(found["ksm"]["pages_to_scan"].is_u64(), "{found}");
    if found["kvm_module"]["module"] != "kvm_amd" {
        assert_eq!(found["kvm_module"]["module"], "kvm_pvm", "these machines have one of the two");
        assert_eq!(found["nested_paging"]["verdict"], "unknown");
        return;
    }
    assert_eq!(found["kvm_module"]["verdict"], "ok");
    assert_eq!(found["cpu_flag"]["flag"], "svm");
    assert_eq!(found["nested_paging"]["verdict"], "ok", "{found}");
    for (key, name) in [
        ("nested_paging", "npt"),
        ("nested", "nested"),
        ("nested_shadowing", "vls"),
        ("posted_interrupts", "avic"),
    ] {
        let on = match &*parameter("kvm_amd", name) {
            "Y" | "1" => true,
            "N" | "0" => false,
            value => panic!("{name}: {value}"),
        };
        assert_eq!(found[key]["parameter"], name);
        assert_eq!(found[key]["on"], on, "{name}");
    }
    for name in ["pause_filter_count", "pause_filter_thresh"] {
        let number: u64 = parameter("kvm_amd", name).parse().unwrap();
        assert_eq!(found["pause_loops"][name], number);
    }
    let polling_ns: u64 = parameter("kvm", "halt_poll_ns").parse().unwrap();
    assert_eq!(found["halt_polling"]["halt_poll_ns"], polling_ns);
}

/// A cgroup with a limit on processes, gone when dropped.
struct PidsCgroup(PathBuf);

impl PidsCgroup {
    fn new(pids_max: u64) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/pids");
        let parent = if v1.exists() { v1 } else { Path::new("/sys/fs/cgroup") };
        if !v1.exists() {
            fs::write(parent.join("cgroup.subtree_control"), "+pids").unwrap();
        }
        let dir = parent.join(format!("kernels-test-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("pids.max"), pids_max.to_string()).unwrap();
        Self(dir)
    }

    /// Runs loadgen, which begins in it.
    fn loadgen(&self, args: &[&str]) -> Output {
        let join = r#"echo $$ >"$0" && exec "$@""#;
        let mut shell = Command::new("sh");
        shell.args(["-c", join]).arg(self.0.join("cgroup.procs")).arg(loadgen());
        shell.args(args).output().unwrap()
    }
}

impl Drop for PidsCgroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

#[test]
fn as_many_guests_run_as_fit() {
    let _alone = alone();
    let each = check()["guests"]["threads_each"].as_u64().unwrap();
    // 16 are left to loadgen's own; one is the process that asks.
    let cgroup = PidsCgroup::new(16 + 1 + 7 * each);
    let found = parse(&cgroup.loadgen(&["check", "--json"]));
    assert_eq!(found["guests"]["guests"], 7, "{found}");
    assert_eq!(found["guests"]["limit"], "pids_cgroup");
    let run = |vms: &str| cgroup.loadgen(&["run", "--vms", vms, "--duration", "2"]);
    let fits = run("7");
    assert!(fits.status.success(), "{fits:?}");
    let refused = run("8");
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    let file = cgroup.0.join("pids.max");
    let sentence = String::from_utf8_lossy(&refused.stderr);
    assert!(
        sentence.starts_with(&format!("loadgen: too many guests: {} is ", file.display())),
        "{sentence}"
    );
}

/// KVM has a thread for each guest on every kernel: of the guest's process, or (up to 6.12) a process of its own.
#[test]
fn a_guest_has_as_many_threads_as_is_said() {
    let _alone = alone();
    let each = check()["guests"]["threads_each"].as_u64().unwrap();
    let before = workers();
    let guests = Guests::start(&["--vms", "5", "--workload", "idle=23"]);
    let count = || -> u64 {
        let pids = guests.pids().into_iter();
        let own = pids.map(|pid| fs::read_dir(format!("/proc/{pid}/task")).unwrap().count());
        (own.sum::<usize>() + workers() - before) as u64
    };
    // Not before a guest first runs.
    let deadline = Instant::now() + Duration::from_secs(20);
    while count() < 5 * each && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(count(), 5 * each);
}

fn workers() -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let names = processes.map(|e| fs::read_to_string(e.path().join("comm")).unwrap_or_default());
    names.filter(|name| name.starts_with("kvm-nx-lpage")).count()
}
