//! KSM for one test: ksmd scans when the test says so, and everything is put back as it was found.

use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// What a test may change; a kernel has only some of it. `run` comes last: then ksmd goes on as it did.
const SETTINGS: [&str; 8] = [
    "advisor_mode",
    "pages_to_scan",
    "sleep_millisecs",
    "max_page_sharing",
    "merge_across_nodes",
    "use_zero_pages",
    "smart_scan",
    "run",
];

/// However slow the machine is: no scan takes longer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const PAGEMAP_PRESENT: u64 = 1 << 63;
const PAGEMAP_PFN: u64 = (1 << 55) - 1;
/// A bit of /proc/kpageflags: KPF_KSM of include/uapi/linux/kernel-page-flags.h.
const KPF_KSM: u64 = 1 << 21;
const PAGE_SIZE: u64 = 4096;

/// Held by who uses KSM: tests, whatever their program, and people with `flock /tmp/ksm.lock COMMAND`.
const LOCK: &str = "/tmp/ksm.lock";

/// The settings as they were found. There is one KSM: one test at a time.
pub struct Ksm {
    found: Vec<(&'static str, String)>,
    // Dropped last: who comes next finds the settings as they were.
    _lock: Option<File>,
}

impl Ksm {
    /// Nothing is merged from here on, until [`Ksm::scan`].
    pub fn take() -> Self {
        Self::take_with(lock())
    }

    fn take_with(lock: Option<File>) -> Self {
        let found = SETTINGS.into_iter().filter_map(|name| Some((name, setting(name)?)));
        let ksm = Self { found: found.collect(), _lock: lock };
        assert!(!ksm.found.is_empty(), "this test needs KSM (CONFIG_KSM)");
        ksm.set("run", 2); // un-merges
        if setting("advisor_mode").is_some() {
            fs::write(path("advisor_mode"), "none").expect("advisor_mode");
        }
        if setting("smart_scan").is_some() {
            ksm.set("smart_scan", 0); // skips pages that did not merge before
        }
        ksm.set("pages_to_scan", 10_000);
        ksm.set("sleep_millisecs", 1);
        ksm
    }

    /// The same, for tests that count what is merged on the whole host: waits until nobody has mergeable memory.
    pub fn take_alone() -> Self {
        let (lock, deadline) = (lock(), Instant::now() + PATIENCE);
        while let Some(pid) = who_is_mergeable() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name = name.trim();
            assert!(Instant::now() < deadline, "`{name}` (PID {pid}) has mergeable memory");
            thread::sleep(Duration::from_millis(100));
        }
        Self::take_with(lock)
    }

    /// Changes a setting until the end of the test.
    pub fn set(&self, name: &str, value: u64) {
        fs::write(path(name), value.to_string()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// A counter or a setting; none if this kernel does not have it.
    pub fn read(&self, name: &str) -> Option<u64> {
        setting(name)?.parse().ok()
    }

    /// Lets ksmd scan until it has been through everything so many times, from beginning to end; then it stands still.
    pub fn scan(&self, times: u64) {
        let full_scans = || self.read("full_scans").expect("full_scans");
        let (deadline, before) = (Instant::now() + PATIENCE, full_scans());
        // It may have been stopped halfway: that scan does not count. 0: nothing has been scanned since `run` was 2
        // (unmerge_and_remove_all_rmap_items).
        let wanted = if before == 0 { times } else { before + 1 + times };
        self.set("run", 1);
        while full_scans() < wanted {
            assert!(Instant::now() < deadline, "ksmd does not scan");
            thread::sleep(Duration::from_millis(5));
        }
        self.set("run", 0);
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        // max_page_sharing can be changed only while nothing is merged.
        _ = fs::write(path("run"), "2");
        for (name, value) in &self.found {
            _ = fs::write(path(name), value);
        }
    }
}

/// Waits until nobody else uses KSM, and keeps others waiting as long as it is held. A test under flock(1) has
/// inherited its lock.
fn lock() -> Option<File> {
    let mut own = fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten();
    if own.any(|fd| fs::read_link(fd.path()).is_ok_and(|file| file == Path::new(LOCK))) {
        return None;
    }
    let lock = File::create(LOCK).expect(LOCK);
    // SAFETY: a plain system call; the file is open.
    assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
    Some(lock)
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/sys/kernel/mm/ksm").join(name)
}

/// As it would be written. Of several words the one in brackets is meant.
fn setting(name: &str) -> Option<String> {
    let text = fs::read_to_string(path(name)).ok()?;
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    Some(chosen.map_or(text.trim(), |(word, _)| word).to_owned())
}

/// A process that KSM may merge memory of.
fn who_is_mergeable() -> Option<u32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid| !mergeable_ranges(*pid).is_empty())
}

/// `cow_ksm` of /proc/vmstat: merged pages that were copied because somebody wrote to them. Since Linux 5.18.
pub fn cow_breaks() -> Option<u64> {
    let vmstat = fs::read_to_string("/proc/vmstat").expect("vmstat");
    vmstat.lines().find_map(|line| line.strip_prefix("cow_ksm ")?.parse().ok())
}

/// The mergeable memory of a process: a range of addresses, if there is exactly one.
pub fn mergeable(pid: u32) -> Range<u64> {
    let mut found = mergeable_ranges(pid);
    assert_eq!(found.len(), 1, "{found:x?} of {pid}");
    found.remove(0)
}

/// All of it; nothing if there is no such process.
fn mergeable_ranges(pid: u32) -> Vec<Range<u64>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut range, mut found) = (None, Vec::new());
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            found.extend(range.clone().filter(|_| flags.split(' ').any(|flag| flag == "mg")));
        } else if let Some((from, to)) =
            line.split(' ').next().and_then(|word| word.split_once('-'))
        {
            let hex = |text| u64::from_str_radix(text, 16);
            range = hex(from).ok().zip(hex(to).ok()).map(|(from, to)| from..to);
        }
    }
    found
}

/// The merged pages among those of a range of addresses of a process: which of them, and the page they share.
pub fn merged(pid: u32, addresses: Range<u64>) -> Vec<(u64, u64)> {
    let open = |path: String| File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let pagemap = open(format!("/proc/{pid}/pagemap"));
    let kpageflags = open("/proc/kpageflags".to_owned());
    let word = |file: &File, index: u64| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, index * 8).expect("a word of it");
        u64::from_ne_bytes(word)
    };
    let pages = (addresses.end - addresses.start) / PAGE_SIZE;
    let frames = (0..pages).map(|page| (page, word(&pagemap, addresses.start / PAGE_SIZE + page)));
    frames
        .filter(|(_, entry)| entry & PAGEMAP_PRESENT != 0)
        .map(|(page, entry)| (page, entry & PAGEMAP_PFN))
        .filter(|(_, frame)| word(&kpageflags, *frame) & KPF_KSM != 0)
        .collect()
}
