//! Guests that make exits, what they know of them, and what the tool says of the same.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::KVMEXITS;
use crate::util::tool::{CsvRow, Tool, number};
use crate::util::{TempDir, loadgen};

/// The exits of some vCPUs as rows of the tool's own making: `pid`, `tid`, `vm`, `vcpu`, `kind`, `reason`, `detail`,
/// `count`.
pub type Truth = Vec<CsvRow>;

/// Runs guests until they have made these exits.
pub fn run(vms: u32, vcpus: u32, exits: &str, more: &[&str]) -> Truth {
    Guests::start(vms, vcpus, exits, more).truth()
}

/// A tool that prints nothing at first, as soon as all its programs are attached.
pub fn attached(args: &[&str]) -> Tool {
    let tool = Tool::start_at_once(KVMEXITS, args);
    let links = || {
        let files = fs::read_dir(format!("/proc/{}/fd", tool.pid())).unwrap();
        let targets = files.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        targets
            .filter(|to| ["bpf-link", "bpf_link"].iter().any(|s| to.to_string_lossy().contains(s)))
            .count()
    };
    soon("attached programs", || {
        let before = links();
        std::thread::sleep(Duration::from_millis(300));
        before > 0 && links() == before
    });
    tool
}

/// Guests at work.
pub struct Guests {
    loadgen: Tool,
    dir: TempDir,
    vms: u32,
    vcpus: u32,
}

impl Guests {
    pub fn start(vms: u32, vcpus: u32, exits: &str, more: &[&str]) -> Self {
        Self::start_by(&[], vms, vcpus, exits, more)
    }

    /// The same by way of another program: `unshare --mount` and such.
    pub fn start_by(by: &[&str], vms: u32, vcpus: u32, exits: &str, more: &[&str]) -> Self {
        let dir = TempDir::new(&format!("exits-{}", unique()));
        let numbers = [vms, vcpus].map(|number| number.to_string());
        let (workload, truth, loadgen) =
            (format!("exits={exits}"), dir.join("truth.json"), loadgen());
        let args = ["run", "--vms", &numbers[0], "--vcpus", &numbers[1]];
        let args = [&args[..], &["--workload", &workload, "--truth"]].concat();
        let args = [&args[..], &[truth.to_str().unwrap()], more].concat();
        let command = [by, &[&loadgen], &args].concat();
        Self { loadgen: Tool::start(command[0], &command[1..]), dir, vms, vcpus }
    }

    /// The guests' processes, as soon as there are as many as there should be.
    pub fn pids(&self) -> Vec<u32> {
        let loadgen = self.loadgen.pid();
        let mut pids = Vec::new();
        soon("guests", || {
            let children = fs::read_to_string(format!("/proc/{loadgen}/task/{loadgen}/children"));
            let children = children.unwrap();
            let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
            pids = children.filter(|pid| comm(*pid, *pid).starts_with("loadgen-")).collect();
            pids.len() as u32 == self.vms
        });
        pids
    }

    /// Stops guests whose VMM takes its time in the middle of the first exit of each vCPU.
    pub fn hold(&self) -> Held {
        let pids = self.pids();
        for pid in &pids {
            soon("vCPUs asleep in their VMM", || {
                let tids = threads(*pid);
                let vcpus = tids.iter().filter(|tid| !comm(*pid, **tid).starts_with("kvm-"));
                vcpus.filter(|tid| is_in_nanosleep(*pid, **tid)).count() as u32 == self.vcpus
            });
            signal(*pid, libc::SIGSTOP);
        }
        Held { pids }
    }

    /// Waits until they are done.
    pub fn truth(self) -> Truth {
        let ended = self.loadgen.wait();
        assert!(ended.status.success(), "{}", ended.stderr);
        read(&self.dir.join("truth.json"))
    }

    /// Waits until they are done or dead.
    pub fn wait(self) {
        self.loadgen.wait();
    }
}

/// A cgroup of version 2 and one below it, removed when dropped.
pub struct Cgroup(String);

impl Cgroup {
    pub fn new() -> Self {
        Self::named(&format!("kvmexits-{}-{}", std::process::id(), unique()))
    }

    pub fn named(name: &str) -> Self {
        let cgroup = format!("{}/{name}", mount());
        fs::create_dir_all(format!("{cgroup}/below")).unwrap();
        Self(cgroup)
    }

    pub fn path(&self) -> &str {
        &self.0
    }

    /// Guests in it. loadgen makes a cgroup of its own where it can: it must not see any of this version.
    pub fn run(&self, below: &str, vms: u32, vcpus: u32, exits: &str) -> Guests {
        self.run_with(below, vms, vcpus, exits, &[])
    }

    pub fn run_with(
        &self,
        below: &str,
        vms: u32,
        vcpus: u32,
        exits: &str,
        more: &[&str],
    ) -> Guests {
        let join = format!(
            "echo $$ >'{}'/{below}/cgroup.procs && \
             exec unshare --mount sh -c 'umount -l {} && exec \"$@\"' sh \"$@\"",
            self.0,
            mount()
        );
        Guests::start_by(&["sh", "-c", &join, "sh"], vms, vcpus, exits, more)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(format!("{}/below", self.0)));
        drop(fs::remove_dir(&self.0));
    }
}

/// Where version 2 is mounted.
fn mount() -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    mount.expect("a cgroup2 mount").split(' ').nth(1).unwrap().to_owned()
}

/// Guests that stand still in the middle of an exit.
pub struct Held {
    /// Their processes.
    pub pids: Vec<u32>,
}

impl Held {
    /// The thread of this name.
    pub fn vcpu_thread(&self, pid: u32, name: &str) -> u32 {
        let found = threads(pid).into_iter().find(|tid| comm(pid, *tid).trim_end() == name);
        found.unwrap_or_else(|| panic!("{pid} has no thread `{name}`"))
    }

    /// Lets them go on.
    pub fn release(self) {
        self.pids.into_iter().for_each(|pid| signal(pid, libc::SIGCONT));
    }
}

/// Takes the first exit of each vCPU, a write to a port, off the truth: nobody watched when it began.
pub fn without_first(mut truth: Truth) -> Truth {
    for row in truth.iter_mut().filter(|row| row["detail"] == "out port 0xf5") {
        let count = number(row, "count") - 1;
        row.insert("count".to_owned(), count.to_string());
    }
    truth
}

pub fn signal(pid: u32, signal: i32) {
    // SAFETY: a plain system call; the process is a guest that its parent has not waited for.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0, "kill {pid}");
}

/// Waits until it is so, within reason.
pub fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not after a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn threads(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

fn comm(pid: u32, tid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default()
}

fn is_in_nanosleep(pid: u32, tid: u32) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|number| number.parse::<i64>().ok());
    [libc::SYS_nanosleep, libc::SYS_clock_nanosleep].contains(&number.unwrap_or(-1))
}

/// A name that no other test has.
fn unique() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn read(path: &Path) -> Truth {
    let text = fs::read_to_string(path).unwrap();
    text.lines().flat_map(|line| exits(&serde_json::from_str(line).unwrap())).collect()
}

/// What a vCPU did, by man/loadgen.8: it takes turns at writing and reading, beginning with the first, and leaves
/// by a triple fault.
fn exits(vcpu: &Value) -> Vec<CsvRow> {
    let made = |kind: &str| vcpu["exits"][kind].as_u64().unwrap();
    let (pio, mmio) = (made("pio"), made("mmio"));
    let rows = [
        ("KVM_EXIT_IO", "out port 0xf5", pio.div_ceil(2)),
        ("KVM_EXIT_IO", "in port 0xf5", pio / 2),
        ("KVM_EXIT_MMIO", "write 0xd0000000", mmio.div_ceil(2)),
        ("KVM_EXIT_MMIO", "read 0xd0000000", mmio / 2),
        ("KVM_EXIT_SHUTDOWN", "", 1),
    ];
    let rows = rows.into_iter().filter(|(_, _, count)| *count > 0);
    rows.map(|(reason, detail, count)| {
        let columns = [
            ("vm", vcpu["vm"].as_str().unwrap().to_owned()),
            ("pid", vcpu["pid"].to_string()),
            ("tid", vcpu["tid"].to_string()),
            ("vcpu", vcpu["vcpu"].to_string()),
            ("kind", "userspace".to_owned()),
            ("reason", reason.to_owned()),
            ("detail", detail.to_owned()),
            ("count", count.to_string()),
        ];
        columns.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    })
    .collect()
}

/// Rows of exits to userspace: what there is besides depends on the host.
pub fn to_userspace(rows: &[CsvRow]) -> Vec<CsvRow> {
    rows.iter().filter(|row| row["kind"] == "userspace").cloned().collect()
}

/// Rows of the truth's guests: other guests may run on this host.
pub fn of(truth: &Truth, rows: &[CsvRow]) -> Vec<CsvRow> {
    let is_ours = |row: &&CsvRow| truth.iter().any(|exits| exits["pid"] == row["pid"]);
    rows.iter().filter(is_ours).cloned().collect()
}

/// How many exits to userspace there were of each key. The same of the tool's rows and of the truth, if all is well.
pub fn counts(rows: &[CsvRow], keys: &[&str]) -> BTreeMap<Vec<String>, u64> {
    let mut counts = BTreeMap::new();
    for row in to_userspace(rows) {
        let key = keys.iter().map(|key| row[*key].clone()).collect();
        *counts.entry(key).or_default() += number(&row, "count");
    }
    counts
}

/// Rows of JSON lines as those of CSV; what is no text or number is left out.
pub fn json_rows(text: &str) -> Vec<CsvRow> {
    let row = |line| {
        let row: HashMap<String, Value> = serde_json::from_str(line).unwrap();
        row.into_iter().filter_map(|(name, value)| Some((name, plain(value)?))).collect()
    };
    text.lines().map(row).collect()
}

fn plain(value: Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// In each row the parts are the whole, and nothing was lost.
pub fn assert_sound(rows: &[CsvRow]) {
    for row in rows {
        let parts = ["kernel_ns", "userspace_ns", "asleep_ns", "runqueue_ns"];
        let sum: u64 = parts.iter().map(|part| number(row, part)).sum();
        assert_eq!(sum, number(row, "total_ns"), "{row:?}");
        assert_eq!(row.get("lost").map_or("0", String::as_str), "0", "{row:?}");
    }
}
