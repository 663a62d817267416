//! What `loadgen check` says of this host is what /proc and /sys say, and what `loadgen run` goes by.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{PATIENCE, Running, TempDir, alone, loadgen, threads};

/// Every fact there is.
const KEYS: [&str; 23] = [
    "can_run_guests",
    "cgroup",
    "cpu_flag",
    "dev_kvm",
    "file_max",
    "guests",
    "halt_polling",
    "huge_pages",
    "ksm",
    "kvm_module",
    "memory",
    "memory_cgroup",
    "nested",
    "nested_paging",
    "nested_shadowing",
    "pause_loops",
    "pid_max",
    "pids_cgroup",
    "posted_interrupts",
    "rlimit_nofile",
    "rlimit_nproc",
    "steal_time",
    "threads_max",
];

fn parse(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn check() -> Value {
    let output = loadgen().args(["check", "--json"]).output().expect("loadgen");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    parse(&output)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}")).trim().to_owned()
}

fn number(path: &str) -> u64 {
    read(path).split_whitespace().next().and_then(|word| word.parse().ok()).expect(path)
}

fn meminfo_bytes(name: &str) -> u64 {
    let meminfo = read("/proc/meminfo");
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    let kib: u64 = line.trim_matches([':', ' ', 'k', 'B']).parse().expect(name);
    kib << 10
}

#[test]
fn figures_are_those_of_the_kernel() {
    let found = check();
    let object = found.as_object().expect("an object");
    let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, KEYS);
    for (key, finding) in object {
        let verdict = finding["verdict"].as_str();
        let known = ["ok", "warn", "fail", "unknown"].map(Some);
        assert!(key == "can_run_guests" || known.contains(&verdict), "{key}: {finding}");
    }
    assert_eq!(found["can_run_guests"], true);
    for (key, path) in [
        ("pid_max", "kernel/pid_max"),
        ("threads_max", "kernel/threads-max"),
        ("file_max", "fs/file-max"),
    ] {
        assert_eq!(found[key]["limit"], number(&format!("/proc/sys/{path}")), "{key}");
    }
    let total_bytes = meminfo_bytes("MemTotal");
    assert_eq!(found["memory"]["reserved_bytes"], total_bytes / 100 * 5);
    let available_bytes = found["memory"]["limit_bytes"].as_u64().expect("a number");
    assert!((1..total_bytes).contains(&available_bytes), "{available_bytes}");
    let limits = read("/proc/self/limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let soft: u64 = files.split_whitespace().nth(3).and_then(|n| n.parse().ok()).expect("a number");
    assert_eq!(found["rlimit_nofile"]["limit"], soft);
    let polling_ns = number("/sys/module/kvm/parameters/halt_poll_ns");
    assert_eq!(found["halt_polling"]["halt_poll_ns"], polling_ns);
    assert_eq!(found["dev_kvm"]["usable"], true);
    let module = found["kvm_module"]["module"].as_str().expect("a module");
    assert!(Path::new("/sys/module").join(module).exists(), "{module}");
    assert_eq!(found["kvm_module"]["software"], module == "kvm_pvm");
    assert_eq!(found["steal_time"]["available"], true);
    let huge_pages = found["huge_pages"]["enabled"].as_str().expect("a setting");
    let setting = read("/sys/kernel/mm/transparent_hugepage/enabled");
    assert!(setting.contains(&format!("[{huge_pages}]")), "{huge_pages}");
}

/// KSM is one per machine, and other tests change it: read before and after until it has not changed meanwhile.
#[test]
fn settings_of_ksm_are_those_of_the_kernel() {
    let files = ["run", "pages_to_scan", "sleep_millisecs"];
    let settings = || files.map(|name| number(&format!("/sys/kernel/mm/ksm/{name}")));
    for _ in 0..20 {
        let (before, found, after) = (settings(), check(), settings());
        if before == after {
            let found = ["run", "pages_to_scan", "sleep_ms"].map(|name| found["ksm"][name].clone());
            assert_eq!(found, before.map(Value::from));
            return;
        }
    }
    panic!("the settings of KSM change all the time");
}

#[test]
fn text_has_a_line_for_each_fact_and_fits() {
    let output = loadgen().arg("check").output().expect("loadgen");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let (remedies, facts): (Vec<_>, Vec<_>) =
        text.lines().partition(|line| line.starts_with("        -> "));
    assert_eq!(facts.len(), KEYS.len() - 1, "{text}");
    for line in facts {
        let word = line.split(' ').next().expect("a word");
        assert!(["ok", "warn", "fail", "unknown"].contains(&word), "{line}");
        assert!(line.len() <= 80, "{line}");
    }
    for line in remedies {
        assert!(line.len() <= 80, "{line}");
    }
}

/// A cgroup for processes, with a limit on their number: gone when dropped.
struct PidsCgroup(PathBuf);

impl PidsCgroup {
    fn new(pids_max: u64) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/pids");
        let parent = if v1.exists() { v1 } else { Path::new("/sys/fs/cgroup") };
        let dir = parent.join(format!("loadgen-test-{}", std::process::id()));
        if !v1.exists() {
            fs::write(parent.join("cgroup.subtree_control"), "+pids").expect("pids");
        }
        fs::create_dir(&dir).expect("a cgroup for pids");
        let cgroup = Self(dir);
        fs::write(cgroup.limit(), pids_max.to_string()).expect("pids.max");
        cgroup
    }

    fn limit(&self) -> PathBuf {
        self.0.join("pids.max")
    }

    fn loadgen(&self) -> Command {
        loadgen_in(&self.0)
    }
}

/// loadgen, which begins in this cgroup.
fn loadgen_in(cgroup: &Path) -> Command {
    let mut shell = Command::new("sh");
    let join = r#"echo $$ >"$0" && exec "$@""#;
    shell.args(["-c", join]).arg(cgroup.join("cgroup.procs")).arg(loadgen().get_program());
    shell
}

impl Drop for PidsCgroup {
    fn drop(&mut self) {
        _ = fs::remove_dir(&self.0);
    }
}

/// 16 are left to loadgen's own, of which there are fewer; one is the process that asks.
#[test]
fn as_many_guests_run_as_the_binding_limit_allows() {
    let _alone = alone();
    let each = check()["guests"]["threads_each"].as_u64().expect("a number");
    let cgroup = PidsCgroup::new(16 + 1 + 23 * each);
    let file = cgroup.limit().display().to_string();
    let found = parse(&cgroup.loadgen().args(["check", "--json"]).output().expect("loadgen"));
    assert_eq!(found["guests"]["guests"], 23, "{found}");
    assert_eq!(found["guests"]["limit"], "pids_cgroup");
    assert_eq!(found["pids_cgroup"]["file"], file.as_str());
    assert_eq!(found["pids_cgroup"]["used"], 1);
    let value = found["guests"]["value"].as_str().expect("text");
    assert!(value.ends_with(&format!("each: {file} binds")), "{value}");
    let remedy = found["guests"]["remedy"].as_str().expect("a remedy");
    assert!(
        remedy.starts_with("echo ") && remedy.contains(&format!(" >{file} # for ")),
        "{remedy}"
    );

    let run = |vms: &str| {
        let args = ["run", "--vms", vms, "--workload", "idle=101", "--duration", "2"];
        cgroup.loadgen().args(args).output().expect("loadgen")
    };
    let fits = run("23");
    assert!(fits.status.success(), "{fits:?}");
    assert!(String::from_utf8_lossy(&fits.stdout).starts_with("23 guests"), "{fits:?}");
    let refused = run("24");
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    let (most, needed) = (17 + 23 * each, 17 + 24 * each);
    assert_eq!(
        String::from_utf8_lossy(&refused.stderr),
        format!(
            "loadgen: too many guests: {file} is {most}, and {needed} are needed: echo 1024 >{file}\n"
        )
    );
}

/// Others come and go meanwhile: so many more guests than fit are refused in any case.
#[test]
fn the_limit_that_binds_on_this_host_is_the_one_that_refuses() {
    let found = check();
    let guests = found["guests"]["guests"].as_u64().expect("a number");
    let vms = (guests + guests / 10 + 1_000).to_string();
    let output =
        loadgen().args(["run", "--vms", &vms, "--duration", "1"]).output().expect("loadgen");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let value = found["guests"]["value"].as_str().expect("text");
    let limit = value.rsplit(' ').nth(1).expect("the limit's name");
    let sentence = String::from_utf8_lossy(&output.stderr);
    assert!(sentence.contains(&format!(" {limit} ")), "{limit}: {sentence}");
}

/// What a guest takes of the host is what the limits are divided by.
#[test]
fn a_guest_takes_what_is_said() {
    let _alone = alone();
    let found = check();
    let each = |name: &str| found["guests"][name].as_u64().expect("a number");
    let workers_before = workers();
    let args = ["--vms", "7", "--workload", "idle=101", "--duration", "3"];
    let mut running = Running::start(&args, None);
    let guests = running.guests();
    assert_eq!(guests.len(), 7);
    // KVM's own thread comes when a guest first runs.
    let deadline = Instant::now() + PATIENCE;
    let all = || -> usize {
        let own: usize = guests.iter().map(|pid| threads(*pid).len()).sum();
        own + workers() - workers_before
    };
    while (all() as u64) < 7 * each("threads_each") {
        assert!(Instant::now() < deadline, "{} threads", all());
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(all() as u64, 7 * each("threads_each"));
    for pid in guests {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").count();
        assert_eq!(descriptors as u64, each("descriptors_each"));
    }
    assert!(running.wait().0.success());
}

/// KVM's threads that are processes of their own, as they are up to Linux 6.12.
fn workers() -> usize {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let names = processes.map(|e| fs::read_to_string(e.path().join("comm")).unwrap_or_default());
    names.filter(|name| name.starts_with("kvm-nx-lpage")).count()
}

/// A cgroup for memory: gone when dropped.
struct MemoryCgroup(PathBuf);

impl MemoryCgroup {
    fn new() -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let parent = if v1.exists() { v1 } else { Path::new("/sys/fs/cgroup") };
        let dir = parent.join(format!("loadgen-test-memory-{}", std::process::id()));
        fs::create_dir(&dir).expect("a cgroup for memory");
        Self(dir)
    }

    fn usage_bytes(&self) -> u64 {
        let files = ["memory.usage_in_bytes", "memory.current"].map(|name| self.0.join(name));
        let file = files.iter().find(|file| file.exists()).expect("memory usage");
        number(&file.display().to_string())
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        _ = fs::remove_dir(&self.0);
    }
}

/// The estimate is on the safe side, but not far off.
#[test]
fn a_guest_takes_as_much_memory_as_is_said() {
    let _alone = alone();
    let each = check()["guests"]["memory_each_bytes"].as_u64().expect("a number");
    let cgroup = MemoryCgroup::new();
    let mut command = loadgen_in(&cgroup.0);
    command.args(["run", "--vms", "211", "--workload", "idle=11", "--duration", "6"]);
    let mut child = command.stdout(Stdio::null()).spawn().expect("loadgen");
    let mut most_bytes = 0;
    while child.try_wait().expect("a child").is_none() {
        most_bytes = most_bytes.max(cgroup.usage_bytes());
        thread::sleep(Duration::from_millis(50));
    }
    let per_guest = most_bytes / 211;
    assert!((each / 2..=each).contains(&per_guest), "{per_guest} of {each}");
}

/// Seen without /dev/kvm: in a mount namespace of its own. What there is is told even so.
#[test]
fn a_host_without_kvm() {
    let mut unshare = Command::new("unshare");
    let hide = r#"mount -t tmpfs none /dev && exec "$@""#;
    unshare.args(["--mount", "sh", "-c", hide, "sh"]).arg(loadgen().get_program());
    let output = unshare.args(["check", "--json"]).output().expect("loadgen");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let sentence = String::from_utf8_lossy(&output.stderr);
    assert_eq!(sentence.lines().count(), 1, "{sentence}");
    assert!(sentence.starts_with("loadgen: `/dev/kvm` does not exist: load "), "{sentence}");
    let found = parse(&output);
    assert_eq!(found["can_run_guests"], false);
    assert_eq!(found["dev_kvm"]["verdict"], "fail");
    assert_eq!(found["steal_time"]["verdict"], "unknown");
    assert_eq!(found["guests"]["verdict"], "fail");
    assert_eq!(found["guests"]["guests"], 0);
    assert_eq!(found["pid_max"]["limit"], number("/proc/sys/kernel/pid_max"));
}

/// The kernel spares root these limits, and nobody else.
#[test]
fn an_ordinary_user_has_limits_of_his_own() {
    // The build directory may be out of nobody's reach.
    let dir = TempDir::new("limits");
    let copy = dir.file("loadgen");
    let mut install = Command::new("install");
    let status = install.args(["-m", "755"]).arg(loadgen().get_program()).arg(&copy).status();
    assert!(status.expect("install").success());
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o755)).expect("permissions");
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--nproc=57:57", "--nofile=5:5"]).arg(&copy).args(["check", "--json"]);
    let output = prlimit.uid(54_321).gid(54_321).output().expect("prlimit");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let found = parse(&output);
    assert_eq!(found["dev_kvm"]["verdict"], "fail");
    let nproc = &found["rlimit_nproc"];
    assert_eq!((&nproc["enforced"], &nproc["limit"]), (&true.into(), &57.into()));
    assert_eq!(nproc["used"], 1, "itself");
    let each = found["guests"]["threads_each"].as_u64().expect("a number");
    assert_eq!(nproc["guests"], (57 - 1 - 16) / each);
    assert_eq!(found["file_max"]["enforced"], true);
    assert!(found["file_max"]["guests"].is_u64(), "{found}");
    assert_eq!(found["rlimit_nofile"]["verdict"], "fail", "a guest needs 6");
    assert_eq!(found["rlimit_nofile"]["remedy"], "ulimit -n 1024");
}

#[test]
fn bad_arguments() {
    for args in [&["check", "more"][..], &["check", "--csv"], &["check", "--json", "--json"]] {
        let output = loadgen().args(args).output().expect("loadgen");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{args:?}");
    }
}
