//! What the tests share: a running loadgen and what can be known of it from outside.

#![allow(dead_code)] // each test binary uses a part of it

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// However slow the machine is: nothing here may take longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

static GUESTS: Mutex<()> = Mutex::new(());

/// One test at a time may have guests: they measure time and load.
pub fn alone() -> MutexGuard<'static, ()> {
    assert!(Path::new("/dev/kvm").exists(), "these tests need /dev/kvm and root");
    GUESTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// loadgen, with everything but its arguments.
pub fn loadgen() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("loadgen"))
}

/// A directory for one test's files, gone with it.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("loadgen-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("a temporary directory");
        Self(dir)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// The truth, one value per line.
pub fn read_truth(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the truth");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
}

/// A number of a line of truth.
pub fn number(line: &Value, name: &str) -> u64 {
    line[name].as_u64().unwrap_or_else(|| panic!("{name} in {line}"))
}

/// Runs to the end; returns the summary (`--json`) and the truth.
pub fn run(args: &[&str]) -> (Value, Vec<Value>) {
    let dir = TempDir::new("run");
    let truth = dir.file("truth");
    let output = loadgen()
        .arg("run")
        .args(args)
        .args(["--json", "--truth"])
        .arg(&truth)
        .output()
        .expect("loadgen");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {stderr}", output.status);
    assert_eq!(stderr, "");
    let summary = serde_json::from_slice(&output.stdout).expect("one JSON object");
    (summary, read_truth(&truth))
}

/// A loadgen that runs beside the test. Killed if the test fails.
pub struct Running {
    child: Child,
    pub stdout: Option<BufReader<ChildStdout>>,
    pub first_line: String,
    /// Processes it had made when it said that they run: guests and the janitor.
    pub children: Vec<u32>,
}

impl Running {
    /// Starts it and waits until its guests run.
    pub fn start(args: &[&str], truth: Option<&Path>) -> Self {
        let mut command = loadgen();
        command.arg("run").args(args);
        if let Some(truth) = truth {
            command.arg("--truth").arg(truth);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("loadgen");
        let mut stdout = BufReader::new(child.stdout.take().expect("its output"));
        let mut first_line = String::new();
        stdout.read_line(&mut first_line).expect("its first line");
        let children = children_of(child.id());
        Self { child, stdout: Some(stdout), first_line, children }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// PIDs of the guests, in the order of their names.
    pub fn guests(&self) -> Vec<u32> {
        let mut guests: Vec<_> = self
            .children
            .iter()
            .map(|pid| (comm(*pid), *pid))
            .filter(|(comm, _)| comm.starts_with("loadgen-"))
            .collect();
        guests.sort();
        guests.into_iter().map(|(_, pid)| pid).collect()
    }

    pub fn signal(&self, signal: i32) {
        kill(self.pid(), signal);
    }

    /// Waits for its end; returns the status and what it said on standard error.
    pub fn wait(&mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < deadline, "loadgen does not end");
            thread::sleep(Duration::from_millis(5));
        };
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().expect("its standard error");
        pipe.read_to_string(&mut stderr).expect("UTF-8");
        (status, stderr)
    }

    /// Fails unless, within `patience`, there is no guest, no janitor and no cgroup any more.
    pub fn assert_nothing_left(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn left(&self) -> Vec<String> {
        let mut left = cgroups(self.pid())
            .into_iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>();
        for pid in &self.children {
            let comm = comm(*pid);
            if comm.starts_with("loadgen") || comm == "lg-janitor" {
                left.push(format!("{pid} ({comm})"));
            }
        }
        left
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

pub fn kill(pid: u32, signal: i32) {
    let pid = libc::pid_t::try_from(pid).expect("a PID");
    // SAFETY: kill has no memory to go wrong with.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "kill {pid}");
}

/// The directories of a fleet's cgroup, in whichever hierarchies there are.
pub fn cgroups(pid: u32) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            kind.starts_with("cgroup").then(|| Path::new(point).join(format!("loadgen-{pid}")))
        })
        .filter(|dir| dir.exists())
        .collect()
}

/// The name of a process or thread, or nothing if there is none.
pub fn comm(pid: u32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end().to_owned()
}

/// Nanoseconds on a CPU and waiting for one, of a thread.
pub fn schedstat(tid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{tid}/schedstat")).expect("schedstat");
    let mut fields = text.split_whitespace().map(|f| f.parse().expect("a number"));
    (fields.next().expect("run"), fields.next().expect("run_delay"))
}

/// From here on nothing else on this machine has a CPU before these guests.
pub fn favour(running: &Running) {
    for dir in cgroups(running.pid()) {
        for (file, highest) in [("cpu.shares", "262144"), ("cpu.weight", "10000")] {
            if dir.join(file).exists() {
                fs::write(dir.join(file), highest).expect(file);
            }
        }
    }
}

/// What threads of guests run in 3 s, as a share of one CPU, with nothing else on this machine before them.
pub fn share(running: &Running, tids: &[u32]) -> f64 {
    favour(running);
    thread::sleep(Duration::from_millis(200));
    let run_ns = || -> u64 { tids.iter().map(|tid| schedstat(*tid).0).sum() };
    let (before_ns, start) = (run_ns(), Instant::now());
    thread::sleep(Duration::from_secs(3));
    let (after_ns, elapsed) = (run_ns(), start.elapsed());
    (after_ns - before_ns) as f64 / elapsed.as_nanos() as f64
}

/// Fails unless a share is within a tenth of so many per cent.
pub fn assert_close(share: f64, percent: u32) {
    let wanted = f64::from(percent) / 100.0;
    assert!((share / wanted - 1.0).abs() < 0.1, "{share} instead of {wanted}");
}

/// The threads of a process.
pub fn threads(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("tasks").flatten();
    tasks.map(|task| task.file_name().to_string_lossy().parse().expect("a TID")).collect()
}

/// The processes that a process has made.
pub fn children_of(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    if let Ok(children) = fs::read_to_string(path) {
        return children.split_whitespace().map(|pid| pid.parse().expect("a PID")).collect();
    }
    // Kernels without CONFIG_PROC_CHILDREN.
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_comm = stat.rsplit(") ").next().unwrap_or_default();
        after_comm.split(' ').nth(1) == Some(parent.to_string().as_str())
    })
    .collect()
}
