//! How many guests fit: what one of them takes, what limits this host has, and what is used of them already. `run`
//! refuses by it, and `check` tells it.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use common::host::{self, CAP_SYS_ADMIN, CAP_SYS_RESOURCE};

use crate::chain;
use crate::fleet::Spec;
use crate::size::size_text;

/// Host memory that KVM and the kernel need for a guest that has run, and for each of its vCPUs: by memory cgroups
/// 749 KiB with one vCPU, 1,267 with two (PVM, Linux 6.18); by MemAvailable up to 825 with one, 506 on AMD (Linux 6.12).
const GUEST_BYTES: u64 = 320 << 10;
const VCPU_BYTES: u64 = 512 << 10;
/// Of all memory so much is left to the host, in per cent: without it the kernel swaps or kills.
const RESERVE_PERCENT: u64 = 5;
/// What else the host starts meanwhile is not known: a little room for it, in threads and in open files.
const ROOM_THREADS: u64 = 100;
const ROOM_FILES: u64 = 1_000;
/// The same where only our own processes count: the janitor, the thread for signals.
const ROOM_OWN_THREADS: u64 = 16;
/// PIDs below this one are given out once only (RESERVED_PIDS of kernel/pid.c).
const RESERVED_PIDS: u64 = 300;
/// `PID_MAX_LIMIT`: no higher kernel.pid_max can be set.
const PID_MAX_LIMIT: u64 = 4 << 20;
/// Values to set are multiples of this.
const ROUND: u64 = 1_024;

/// What one guest takes of the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Each {
    /// Threads, that of KVM among them.
    pub(crate) threads: u64,
    /// Open files of the whole system.
    pub(crate) files: u64,
    /// File descriptors of its process.
    pub(crate) descriptors: u64,
    /// Host memory, with what is filled.
    pub(crate) memory_bytes: u64,
    /// What is filled of it.
    pub(crate) filled_bytes: u64,
}

impl Each {
    /// A guest of this fleet, on this host.
    pub(crate) fn of(spec: &Spec) -> Self {
        let each =
            Self::new(spec.vcpus.into(), spec.threads().into(), spec.filled_bytes(), has_worker());
        let consoles = u64::from(spec.linux.as_ref().is_some_and(|linux| linux.console.is_some()));
        Self { files: each.files + consoles, descriptors: each.descriptors + consoles, ..each }
    }

    /// The smallest guest, on this host.
    pub(crate) fn smallest() -> Self {
        Self::new(1, 1, 0, has_worker())
    }

    fn new(vcpus: u64, threads: u64, filled_bytes: u64, has_worker: bool) -> Self {
        Self {
            threads: threads + u64::from(has_worker),
            files: vcpus + 2,       // the VM, /dev/null
            descriptors: vcpus + 5, // the same thrice, the VM, /dev/kvm
            memory_bytes: GUEST_BYTES + VCPU_BYTES * vcpus + filled_bytes,
            filled_bytes,
        }
    }
}

/// Whether KVM starts a thread for each guest, `kvm-nx-lpage-recovery` (kvm_mmu_post_init_vm; since 6.5 it does not if
/// the mitigation is off for good).
fn has_worker() -> bool {
    let nx_huge_pages = fs::read_to_string("/sys/module/kvm/parameters/nx_huge_pages");
    nx_huge_pages.is_ok_and(|value| value.trim() != "never")
}

/// What can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// PIDs.
    PidMax,
    /// Threads.
    ThreadsMax,
    /// Threads in a cgroup.
    PidsCgroup,
    /// Threads of a user.
    UserThreads,
    /// Descriptors of one process.
    Descriptors,
    /// Open files of the system.
    FileMax,
    /// Memory.
    Memory,
    /// Memory in a cgroup.
    MemoryCgroup,
}

/// One limit.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub(crate) kind: Kind,
    /// The cgroup's file that sets it.
    pub(crate) file: Option<PathBuf>,
    /// None: there is none.
    pub(crate) most: Option<u64>,
    /// Whether it holds for us.
    pub(crate) is_enforced: bool,
    /// What is used already.
    pub(crate) used: u64,
    /// What is left to others.
    pub(crate) room: u64,
    /// What a guest takes of it; 0 where each has a limit of its own, of which `used` is what it needs.
    pub(crate) each: u64,
}

impl Limit {
    /// One of which nothing is used yet, and guests take nothing.
    pub(crate) fn new(kind: Kind, most: Option<u64>) -> Self {
        Self { kind, file: None, most, is_enforced: true, used: 0, room: 0, each: 0 }
    }

    fn of_cgroup(kind: Kind, most: Option<u64>, file: PathBuf) -> Self {
        Self { file: Some(file), ..Self::new(kind, most) }
    }

    /// How many guests it allows; none if any number.
    pub(crate) fn guests(&self) -> Option<u64> {
        let left = self.most.filter(|_| self.is_enforced)?.checked_sub(self.used + self.room);
        match (left, self.each) {
            (None, _) => Some(0),
            (Some(_), 0) => None,
            (Some(left), each) => Some(left / each),
        }
    }

    /// How high it would have to be.
    fn needed(&self, guests: u64) -> u64 {
        self.used + self.room + guests.saturating_mul(self.each)
    }

    /// The most guests that it can be raised to allow.
    pub(crate) fn ceiling(&self) -> u64 {
        match self.kind {
            Kind::PidMax => PID_MAX_LIMIT.saturating_sub(self.used + self.room) / self.each.max(1),
            _ => u64::MAX,
        }
    }

    /// What raises it to allow so many guests.
    pub(crate) fn remedy(&self, guests: u64) -> String {
        let value = self.needed(guests).next_multiple_of(ROUND);
        match (self.kind, &self.file) {
            _ if guests > self.ceiling() => "ask for fewer".to_owned(),
            (Kind::PidMax | Kind::ThreadsMax | Kind::FileMax, _) => {
                format!("sysctl -w {self}={value}")
            }
            (Kind::UserThreads, _) => format!("ulimit -u {value}"),
            (Kind::Descriptors, _) => format!("ulimit -n {value}"),
            (Kind::Memory, _) | (_, None) => "free memory".to_owned(),
            (_, Some(file)) => format!("echo {value} >{}", file.display()),
        }
    }

    /// The sentence that refuses so many guests.
    fn refusal(&self, guests: u64, each: &Each) -> String {
        let needed = self.needed(guests);
        match self.kind {
            Kind::Memory | Kind::MemoryCgroup => {
                let has = self.most.unwrap_or_default().saturating_sub(self.used + self.room);
                let of_it = match each.filled_bytes {
                    0 => String::new(),
                    bytes => format!(" ({} of it filled)", size_text(bytes)),
                };
                let remedy = match self.kind {
                    Kind::MemoryCgroup => self.remedy(guests) + ", or ask for fewer",
                    _ => "ask for fewer or for less".to_owned(),
                };
                format!(
                    "too much memory: {guests} guests with {}{of_it} each need {}, and {self} leaves {}: {remedy}",
                    size_text(each.memory_bytes),
                    mib(guests.saturating_mul(each.memory_bytes)),
                    mib(has),
                )
            }
            _ => format!(
                "too many guests: {self} is {}, and {needed} are needed: {}",
                self.most.unwrap_or_default(),
                self.remedy(guests)
            ),
        }
    }
}

/// The name that a person knows it by.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, &self.file) {
            (Kind::PidMax, _) => f.write_str("kernel.pid_max"),
            (Kind::ThreadsMax, _) => f.write_str("kernel.threads-max"),
            (Kind::UserThreads, _) => f.write_str("RLIMIT_NPROC"),
            (Kind::Descriptors, _) => f.write_str("RLIMIT_NOFILE"),
            (Kind::FileMax, _) => f.write_str("fs.file-max"),
            (Kind::Memory, _) => f.write_str("MemAvailable"),
            (Kind::PidsCgroup | Kind::MemoryCgroup, Some(file)) => write!(f, "{}", file.display()),
            (Kind::PidsCgroup, None) => f.write_str("pids.max"),
            (Kind::MemoryCgroup, None) => f.write_str("memory.max"),
        }
    }
}

/// All limits, and what a guest takes of them.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    pub(crate) each: Each,
    pub(crate) limits: Vec<Limit>,
}

impl Room {
    /// Reads this host's limits. What the kernel does not tell does not limit.
    pub(crate) fn read(each: Each) -> Self {
        let sysctl = |path: &str| number(&read(format!("/proc/sys/{path}")));
        let pid_max = Limit {
            used: host::threads().unwrap_or_default(),
            room: RESERVED_PIDS + ROOM_THREADS,
            each: each.threads,
            ..Limit::new(Kind::PidMax, sysctl("kernel/pid_max"))
        };
        let threads_max = Limit {
            kind: Kind::ThreadsMax,
            most: sysctl("kernel/threads-max"),
            room: ROOM_THREADS,
            ..pid_max.clone()
        };
        // copy_process and alloc_empty_file let these pass.
        let is_admin = host::is_capable(CAP_SYS_ADMIN);
        let is_limited = !is_admin && !host::is_capable(CAP_SYS_RESOURCE) && real_uid() != 0;
        let user_threads = Limit {
            is_enforced: is_limited,
            used: threads_of(real_uid()),
            room: ROOM_OWN_THREADS,
            each: each.threads,
            ..Limit::new(Kind::UserThreads, soft_limit(libc::RLIMIT_NPROC))
        };
        let descriptors = Limit {
            used: each.descriptors,
            ..Limit::new(Kind::Descriptors, soft_limit(libc::RLIMIT_NOFILE))
        };
        let file_max = Limit {
            is_enforced: !is_admin,
            used: sysctl("fs/file-nr").unwrap_or_default(),
            room: ROOM_FILES,
            each: each.files,
            ..Limit::new(Kind::FileMax, sysctl("fs/file-max"))
        };
        let meminfo = read("/proc/meminfo");
        let total_bytes = meminfo_bytes(&meminfo, "MemTotal").unwrap_or_default();
        let memory = Limit {
            room: total_bytes / 100 * RESERVE_PERCENT,
            each: each.memory_bytes,
            ..Limit::new(Kind::Memory, meminfo_bytes(&meminfo, "MemAvailable"))
        };
        let (pids, memory_cgroup) = (pids_cgroup(&each), memory_cgroup(&each));
        let limits = vec![
            pid_max,
            threads_max,
            pids,
            user_threads,
            descriptors,
            file_max,
            memory,
            memory_cgroup,
        ];
        Self { each, limits }
    }

    /// But for memory, of which guests may turn out to need less.
    pub(crate) fn but_for_memory(mut self) -> Self {
        self.limits.retain(|limit| !matches!(limit.kind, Kind::Memory | Kind::MemoryCgroup));
        self
    }

    /// The limit that allows the fewest guests, and how many.
    pub(crate) fn binding(&self) -> Option<(&Limit, u64)> {
        let limits = self.limits.iter().filter_map(|limit| Some((limit, limit.guests()?)));
        limits.min_by_key(|(_, guests)| *guests)
    }

    /// How many guests there could be if that limit were as high as necessary.
    pub(crate) fn without(&self, limit: &Limit) -> Option<u64> {
        let others = self.limits.iter().filter(|other| other.kind != limit.kind);
        others.filter_map(Limit::guests).min()
    }

    /// The sentence that refuses so many guests, if they do not fit.
    pub(crate) fn refuses(&self, guests: u64) -> Option<String> {
        let exceeded = |limit: &&Limit| limit.guests().is_some_and(|most| most < guests);
        let limit = self.limits.iter().find(exceeded)?;
        Some(limit.refusal(guests, &self.each))
    }
}

/// The tightest `pids.max` from our own cgroup upwards. On v2 guests leave it when they have been created; until then
/// nobody knows how many are in it, and up to Linux 6.12 KVM's thread stays there (kvm_vm_create_worker_thread).
fn pids_cgroup(each: &Each) -> Limit {
    let limits = chain::of_own_cgroup("pids").into_iter().map(|dir| {
        let file = dir.join("pids.max");
        Limit {
            used: number(&read(dir.join("pids.current"))).unwrap_or_default(),
            room: ROOM_OWN_THREADS,
            each: each.threads,
            ..Limit::of_cgroup(Kind::PidsCgroup, number(&read(&file)), file)
        }
    });
    tightest(limits, Kind::PidsCgroup)
}

/// The tightest limit on memory from our own cgroup upwards: what guests are created with is charged there for good.
fn memory_cgroup(each: &Each) -> Limit {
    let limits = chain::of_own_cgroup("memory").into_iter().map(|dir| {
        let [v2, v1] = ["memory.max", "memory.limit_in_bytes"].map(|name| dir.join(name));
        let (file, usage) = match v1.exists() {
            true => (v1, "memory.usage_in_bytes"),
            false => (v2, "memory.current"),
        };
        let usage = number(&read(dir.join(usage))).unwrap_or_default();
        let cache = file_cache_bytes(&read(dir.join("memory.stat")));
        Limit {
            used: usage.saturating_sub(cache),
            each: each.memory_bytes,
            ..Limit::of_cgroup(Kind::MemoryCgroup, memory_limit(&read(&file)), file)
        }
    });
    tightest(limits, Kind::MemoryCgroup)
}

fn tightest(limits: impl Iterator<Item = Limit>, kind: Kind) -> Limit {
    let limited = limits.filter(|limit| limit.guests().is_some());
    limited.min_by_key(Limit::guests).unwrap_or_else(|| Limit::new(kind, None))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The first word as a number: `max` is none.
fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// A cgroup's limit in bytes. That of v1 is, without one, the biggest number of whole pages (PAGE_COUNTER_MAX).
fn memory_limit(text: &str) -> Option<u64> {
    number(text).filter(|bytes| *bytes < i64::MAX.unsigned_abs() >> 12 << 12)
}

/// What the kernel can take back of a cgroup's memory: `memory.stat` of v1 has the sum with those below as `total_`.
fn file_cache_bytes(stat: &str) -> u64 {
    let sum = |names: [&str; 2]| {
        let lines = stat.lines().filter_map(|line| line.split_once(' '));
        let found: Vec<u64> =
            lines.filter(|(name, _)| names.contains(name)).filter_map(|(_, n)| number(n)).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    };
    let hierarchical = sum(["total_inactive_file", "total_active_file"]);
    hierarchical.or_else(|| sum(["inactive_file", "active_file"])).unwrap_or_default()
}

/// A line of /proc/meminfo, in bytes.
pub(crate) fn meminfo_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let mut lines = meminfo.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(found, _)| *found == name)?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// Whole MiB.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{}M", bytes >> 20)
}

fn soft_limit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result.
    let result = unsafe { libc::getrlimit(resource, &raw mut limit) };
    (result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn real_uid() -> u32 {
    // SAFETY: getuid has no preconditions.
    unsafe { libc::getuid() }
}

/// Threads of all processes of a user.
fn threads_of(uid: u32) -> u64 {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    // `self` and `thread-self` would count twice.
    let is_pid = |name: &OsString| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let processes = entries.filter(|entry| is_pid(&entry.file_name()));
    let statuses = processes.map(|entry| read(entry.path().join("status")));
    statuses.filter_map(|status| threads_if_of(&status, uid)).sum()
}

/// `Threads` of /proc/PID/status if the real user is this one.
fn threads_if_of(status: &str, uid: u32) -> Option<u64> {
    let field =
        |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).and_then(number);
    field("Uid:").filter(|found| *found == u64::from(uid)).and_then(|_| field("Threads:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(kind: Kind, most: u64, used: u64, each: u64) -> Limit {
        Limit { used, each, ..Limit::new(kind, Some(most)) }
    }

    #[test]
    fn the_limit_that_allows_the_fewest_binds() {
        let each = Each::new(1, 1, 0, true);
        assert_eq!((each.threads, each.files, each.descriptors), (2, 3, 6));
        assert_eq!(each.memory_bytes, 832 << 10);
        let limits = vec![
            limit(Kind::PidMax, 1_000, 101, each.threads),
            limit(Kind::FileMax, 1_000, 101, each.files),
            limit(Kind::Memory, 832 << 30, 0, each.memory_bytes),
            limit(Kind::Descriptors, 1_000, 6, 0),
            Limit { is_enforced: false, ..limit(Kind::UserThreads, 0, 7, 1) },
            Limit::new(Kind::MemoryCgroup, None),
        ];
        let room = Room { each, limits };
        let (binding, guests) = room.binding().unwrap();
        assert_eq!((binding.kind, guests), (Kind::FileMax, 299));
        assert_eq!(room.without(binding), Some(449));
        assert_eq!(binding.remedy(449), "sysctl -w fs.file-max=2048");
        assert_eq!(room.refuses(299), None);
        assert_eq!(
            room.refuses(300).unwrap(),
            "too many guests: fs.file-max is 1000, and 1001 are needed: sysctl -w fs.file-max=1024"
        );
        // The first of those that are exceeded.
        assert!(room.refuses(450).unwrap().starts_with("too many guests: kernel.pid_max is 1000"));
    }

    #[test]
    fn a_limit_that_is_exceeded_already_allows_none() {
        assert_eq!(limit(Kind::PidMax, 100, 101, 1).guests(), Some(0));
        assert_eq!(limit(Kind::Descriptors, 5, 6, 0).guests(), Some(0));
        assert_eq!(limit(Kind::Descriptors, 6, 6, 0).guests(), None);
    }

    #[test]
    fn each_limit_has_its_remedy() {
        let file = Some(PathBuf::from("/sys/fs/cgroup/a/pids.max"));
        let pids = Limit { file, ..limit(Kind::PidsCgroup, 100, 1, 2) };
        assert_eq!(pids.remedy(1_009), "echo 2048 >/sys/fs/cgroup/a/pids.max");
        assert_eq!(limit(Kind::UserThreads, 1, 1, 2).remedy(23), "ulimit -u 1024");
        assert_eq!(limit(Kind::Descriptors, 1, 6, 0).remedy(23), "ulimit -n 1024");
        let pid_max = limit(Kind::PidMax, 1, 4, 2);
        assert_eq!(pid_max.remedy((2 << 20) - 2), "sysctl -w kernel.pid_max=4194304");
        assert_eq!(pid_max.remedy((2 << 20) - 1), "ask for fewer");
        assert_eq!(limit(Kind::Memory, 1, 0, 2).remedy(23), "free memory");
    }

    #[test]
    fn too_much_memory_is_told_in_full() {
        let each = Each::new(2, 2, 16 << 20, true);
        let limits = vec![limit(Kind::Memory, 1 << 30, 0, each.memory_bytes)];
        assert_eq!(
            Room { each, limits }.refuses(101).unwrap(),
            "too much memory: 101 guests with 17728K (16M of it filled) each need 1748M, and MemAvailable \
             leaves 1024M: ask for fewer or for less"
        );
    }

    #[test]
    fn the_kernels_files_are_read() {
        assert_eq!(number("828\t0\t2466177\n"), Some(828));
        assert_eq!(number("max\n"), None);
        assert_eq!(memory_limit("9223372036854771712\n"), None);
        assert_eq!(memory_limit("1073741824\n"), Some(1 << 30));
        let meminfo = "MemTotal:       24684092 kB\nMemAvailable:   23026652 kB\n";
        assert_eq!(meminfo_bytes(meminfo, "MemAvailable"), Some(23_026_652 << 10));
        assert_eq!(meminfo_bytes("MemTotal:\n", "MemTotal"), None);
        let v2 = "anon 5\ninactive_file 23\nactive_file 101\n";
        assert_eq!(file_cache_bytes(v2), 124);
        assert_eq!(
            file_cache_bytes(&format!("{v2}total_inactive_file 7\ntotal_active_file 2\n")),
            9
        );
        let status = "Name:\tsh\nUid:\t1000\t0\t0\t0\nThreads:\t7\n";
        assert_eq!(threads_if_of(status, 1_000), Some(7));
        assert_eq!(threads_if_of(status, 0), None);
    }
}
