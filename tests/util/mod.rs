//! What integration tests share: tools run as a user runs them, and threads whose waits the kernel's books tell.

pub mod capabilities;
pub mod child;
pub mod guests;
pub mod ksm;
pub mod mergeable;
pub mod perf;
pub mod threads;
pub mod tool;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One at a time: these tests load both CPUs and count what happens on them.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // What a test has freed is given back: processes that others fork have what is left.
    // SAFETY: they take numbers, and the values are those that the C library begins with.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The load generator, built beside the tools.
pub fn loadgen() -> String {
    let path = Path::new(env!("CARGO_BIN_EXE_runqlat")).with_file_name("loadgen");
    assert!(path.exists(), "`{}` is not built: cargo build --workspace", path.display());
    path.to_str().unwrap().to_owned()
}

/// The first field of /proc/PID/task/TID/schedstat: nanoseconds spent on a CPU.
pub fn cpu_time_ns(pid: u32, tid: i32) -> u64 {
    schedstat(pid, tid, 0)
}

/// The second field: nanoseconds spent waiting for a CPU.
pub fn run_delay_ns(pid: u32, tid: i32) -> u64 {
    schedstat(pid, tid, 1)
}

/// The third field: how often the thread got a CPU.
pub fn timeslices(pid: u32, tid: i32) -> u64 {
    schedstat(pid, tid, 2)
}

fn schedstat(pid: u32, tid: i32, field: usize) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).unwrap();
    text.split_whitespace().nth(field).unwrap().parse().unwrap()
}

/// Nanoseconds that the hypervisor below has taken from all CPUs, where this host is a guest itself: steal of
/// /proc/stat, which counts in ticks of user space (10 ms).
pub fn stolen_ns() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let ticks: u64 = text.split_whitespace().nth(8).unwrap().parse().unwrap();
    ticks * 10_000_000
}

/// A directory that is removed at the end.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("kvm-bpf-tools-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}
