//! The kernel's own count of an event, as `perf stat -a` has it.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::FromRawFd as _;

/// Counts a tracepoint on all CPUs from its start.
pub struct Counter(Vec<File>);

impl Counter {
    /// `kvm/kvm_exit` for one.
    pub fn start(event: &str) -> Self {
        let path = format!("/sys/kernel/tracing/events/{event}/id");
        let id: u64 = fs::read_to_string(&path)
            .unwrap_or_else(|err| panic!("`{path}`: {err}: tracefs must be mounted"))
            .trim()
            .parse()
            .unwrap();
        let cpus = std::thread::available_parallelism().unwrap().get();
        Self((0..cpus as i32).map(|cpu| open(id, cpu)).collect())
    }

    /// How often it has fired.
    pub fn count(&self) -> u64 {
        let count = |mut file: &File| {
            let mut bytes = [0; 8];
            file.read_exact(&mut bytes).unwrap();
            u64::from_ne_bytes(bytes)
        };
        self.0.iter().map(count).sum()
    }
}

/// `struct perf_event_attr` of include/uapi/linux/perf_event.h in its first size; the rest is zeroes.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    rest: [u64; 6],
}

const PERF_TYPE_TRACEPOINT: u32 = 2;

fn open(id: u64, cpu: i32) -> File {
    let size = size_of::<Attr>() as u32;
    let attr = Attr { kind: PERF_TYPE_TRACEPOINT, size, config: id, ..Attr::default() };
    let all_processes = -1;
    // SAFETY: `attr` is as long as it says and outlives the call; the descriptor returned is nobody else's.
    unsafe {
        let fd =
            libc::syscall(libc::SYS_perf_event_open, &raw const attr, all_processes, cpu, -1, 0);
        assert!(fd >= 0, "perf_event_open: {}", std::io::Error::last_os_error());
        File::from_raw_fd(fd as i32)
    }
}
