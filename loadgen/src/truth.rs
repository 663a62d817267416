//! What the guests did, as they counted it: one record per vCPU, and the file of them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context as _, Result};
use common::session::usage;
use serde::Serialize;

use crate::exits::ExitKind;
use crate::guest;
use crate::ksm::Expected;
use crate::memory::{ByKind, Memory, PageKind};
use crate::process;
use crate::record::VcpuPage;
use crate::workload::Workload;

/// What one vCPU did. The field names are those of the file.
#[derive(Clone, Debug, Serialize)]
pub struct Truth {
    /// Name of the guest: `loadgen-0001` and so on.
    pub vm: String,
    /// Process of the guest.
    pub pid: u32,
    /// Thread of the vCPU.
    pub tid: u32,
    /// Number of the vCPU, from 0: what the kernel calls vcpu_id.
    pub vcpu: u32,
    /// What it was to do.
    #[serde(serialize_with = "as_text")]
    pub workload: Workload,
    /// What the guest counted; none of one that boots Linux.
    #[serde(flatten)]
    pub counted: Option<Counted>,
    /// From the first instruction of a guest that boots Linux until it was ready, in nanoseconds; none inside if it has
    /// not become so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_ns: Option<Option<u64>>,
    /// Steal time since the guest's first instruction, as the guest read it from MSR_KVM_STEAL_TIME, in nanoseconds;
    /// none if KVM has no steal time, or the guest boots Linux and has it to itself.
    pub steal_ns: Option<u64>,
    /// How long the guest was out of quota, on all CPUs together, in nanoseconds; known at the end, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_ns: Option<u64>,
    /// The guest's I/O thread, if it has one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub io_thread: Option<IoThread>,
    /// The guest's memory, if it was filled: the same for all its vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryTruth>,
    /// What went wrong, if the guest ended without being told to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What a guest counts of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Counted {
    /// Rounds of the workload's loop: of spinning, or timer periods.
    pub iterations: u64,
    /// Timer interrupts it handled.
    pub ticks: u64,
    /// Timer periods that had no interrupt of their own, because an earlier tick came so late that it stood for
    /// several.
    pub ticks_missed: u64,
    /// How late the latest tick came, in nanoseconds; at most 61 ppm of the run's length too small.
    pub latest_tick_ns: u64,
    /// All ticks by how late they came: `[lo_ns, hi_ns, count]`, from `lo_ns` to below `hi_ns`, in powers of two.
    pub late_ticks: Vec<[u64; 3]>,
    /// Exits the guest caused, by kind.
    pub exits: BTreeMap<&'static str, u64>,
}

/// What the I/O thread of a guest did: the same for all its vCPUs.
#[derive(Clone, Debug, Serialize)]
pub struct IoThread {
    /// The thread.
    #[serde(rename = "io_thread_tid")]
    pub tid: u32,
    /// CPU time it has had.
    #[serde(rename = "io_thread_cpu_ns")]
    pub cpu_ns: u64,
}

impl IoThread {
    /// From the page of vCPU 0.
    pub(crate) fn read(page: &VcpuPage) -> Self {
        Self { tid: page.io_thread_tid.load(Relaxed), cpu_ns: page.io_thread_cpu_ns.load(Relaxed) }
    }
}

/// What the memory of a guest holds and what has been done to it.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryTruth {
    /// What was asked for.
    #[serde(serialize_with = "as_text")]
    pub workload: Memory,
    /// Pages.
    pub pages: ByKind,
    /// Pages that KSM may merge and whose content another page of the fleet has.
    pub could_merge: u64,
    /// How often pages were rewritten.
    pub rewrites: ByKind,
    /// What KSM can make of the whole fleet: the same for all guests; none if it has no KSM or may not merge them.
    pub expected: Option<Expected>,
}

impl MemoryTruth {
    /// From the page of vCPU 0.
    pub(crate) fn read(
        page: &VcpuPage,
        workload: Memory,
        could_merge: u64,
        expected: Option<Expected>,
    ) -> Self {
        let rewrites = |kind: PageKind| page.memory.rewrites[kind as usize].load(Relaxed);
        Self {
            workload,
            pages: workload.pages(),
            could_merge,
            rewrites: ByKind {
                duplicate: rewrites(PageKind::Duplicate),
                zero: rewrites(PageKind::Zero),
                unique: rewrites(PageKind::Unique),
            },
            expected,
        }
    }
}

/// What all vCPUs of a guest have in common.
pub(crate) struct OfVm {
    /// Counted from 0.
    pub(crate) number: u32,
    pub(crate) pid: u32,
    pub(crate) workload: Workload,
    pub(crate) has_steal: bool,
    pub(crate) throttled_ns: Option<u64>,
    pub(crate) io_thread: Option<IoThread>,
    pub(crate) memory: Option<MemoryTruth>,
}

impl Truth {
    pub(crate) fn read(page: &VcpuPage, vcpu: u32, of_vm: &OfVm) -> Self {
        let workload = of_vm.workload;
        let boots = workload == Workload::Linux;
        Self {
            vm: guest::name(of_vm.number),
            pid: of_vm.pid,
            tid: page.tid.load(Relaxed),
            vcpu,
            workload,
            counted: (!boots).then(|| Counted::read(page, workload)),
            boot_ns: boots.then(|| boot_ns(page)),
            // A guest that has not come to its first look has read nothing yet.
            steal_ns: (of_vm.has_steal && !boots).then(|| {
                let at_start_ns = page.steal_at_start_ns.load(Relaxed);
                page.steal_ns.load(Relaxed).saturating_sub(at_start_ns)
            }),
            throttled_ns: of_vm.throttled_ns,
            io_thread: of_vm.io_thread.clone(),
            memory: of_vm.memory.clone(),
            failure: page.failure().map(|failure| failure.to_string()),
        }
    }
}

impl Counted {
    fn read(page: &VcpuPage, workload: Workload) -> Self {
        Self {
            iterations: page.iterations.load(Relaxed),
            ticks: page.ticks.load(Relaxed),
            ticks_missed: page.ticks_missed.load(Relaxed),
            latest_tick_ns: page.latest_tick_ns.load(Relaxed),
            late_ticks: page.late_ticks(),
            exits: exits(page, workload),
        }
    }
}

/// How long a guest that boots Linux took to become ready, if it has.
pub(crate) fn boot_ns(page: &VcpuPage) -> Option<u64> {
    Some(page.boot_ns.load(Relaxed)).filter(|ns| *ns > 0)
}

/// By kind: all kinds of an `exits` guest, of the others those that they cause on purpose.
fn exits(page: &VcpuPage, workload: Workload) -> BTreeMap<&'static str, u64> {
    if !matches!(workload, Workload::Exits(_)) {
        return BTreeMap::from([(ExitKind::Hlt.name(), page.hlts.load(Relaxed))]);
    }
    let done = |kind: ExitKind| page.kinds[kind as usize].done.load(Relaxed);
    ExitKind::ALL.into_iter().map(|kind| (kind.name(), done(kind))).collect()
}

fn as_text<S: serde::Serializer>(workload: &impl fmt::Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(workload)
}

/// Where the truth will be written: JSON lines, complete or not there at all.
#[derive(Debug)]
pub struct TruthFile {
    path: PathBuf,
    temporary: PathBuf,
    /// What was added before the end: a file without a name, beside the one to come.
    early: BufWriter<File>,
}

impl TruthFile {
    /// Makes sure, before anything else is done, that a file can be written there. Leaves nothing behind.
    pub fn check(path: &Path) -> Result<Self> {
        let refuse =
            |why: &str| usage(format!("cannot write the truth to `{}`: {why}", path.display()));
        // The file that a symbolic link stands for is replaced, not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => return Err(refuse("it is not a regular file")),
            _ => {}
        }
        let name = path.file_name().ok_or_else(|| refuse("it names no file"))?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}", process::pid()));
        let temporary = path.with_file_name(temporary);
        let mut options = File::options();
        let early = options.read(true).write(true).create_new(true).open(&temporary);
        let early = early.and_then(|early| fs::remove_file(&temporary).map(|()| early));
        let early = BufWriter::new(early.map_err(|e| refuse(&e.to_string()))?);
        Ok(Self { path, temporary, early })
    }

    /// Adds the line of a vCPU that is gone before the end.
    pub fn add(&mut self, truth: &Truth) -> Result<()> {
        let Self { path, early, .. } = self;
        write_line(early, truth)
            .with_context(|| format!("failed to write what is to be in `{}`", path.display()))
    }

    /// Writes one line for each vCPU, after those that have been added.
    pub fn write(mut self, truth: impl Iterator<Item = Truth>) -> Result<()> {
        let written = self.try_write(truth);
        if written.is_err() {
            _ = fs::remove_file(&self.temporary);
        }
        written.with_context(|| format!("failed to write `{}`", self.path.display()))
    }

    fn try_write(&mut self, mut truth: impl Iterator<Item = Truth>) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(&self.temporary)?);
        self.early.rewind()?;
        io::copy(self.early.get_mut(), &mut file)?;
        truth.try_for_each(|line| write_line(&mut file, &line))?;
        file.into_inner()?.sync_data()?;
        fs::rename(&self.temporary, &self.path)
    }
}

fn write_line(file: &mut impl Write, truth: &Truth) -> io::Result<()> {
    serde_json::to_writer(&mut *file, truth)?;
    file.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_vm(workload: Workload) -> OfVm {
        OfVm {
            number: 0,
            pid: 101,
            workload,
            has_steal: false,
            throttled_ns: None,
            io_thread: None,
            memory: None,
        }
    }

    #[test]
    fn a_line_has_the_names_that_were_promised() {
        // SAFETY: a page of zeroes is a valid record: it has only integers.
        let page: VcpuPage = unsafe { std::mem::zeroed() };
        page.iterations.store(23, Relaxed);
        page.tid.store(102, Relaxed);
        page.late_ticks[4].store(7, Relaxed);
        let mut truth = Truth::read(&page, 1, &of_vm(Workload::Duty { percent: 30 }));
        let line = serde_json::to_string(&truth).expect("JSON");
        assert_eq!(
            line,
            r#"{"vm":"loadgen-0001","pid":101,"tid":102,"vcpu":1,"workload":"duty=30","iterations":23,"ticks":0,"ticks_missed":0,"latest_tick_ns":0,"late_ticks":[[16,32,7]],"exits":{"hlt":0},"steal_ns":null}"#
        );
        truth.throttled_ns = Some(1009);
        truth.io_thread = Some(IoThread { tid: 103, cpu_ns: 503 });
        let line = serde_json::to_string(&truth).expect("JSON");
        assert!(
            line.ends_with(r#""throttled_ns":1009,"io_thread_tid":103,"io_thread_cpu_ns":503}"#),
            "{line}"
        );
    }

    #[test]
    fn of_linux_only_the_boot_is_known() {
        // SAFETY: a page of zeroes is a valid record: it has only integers.
        let page: VcpuPage = unsafe { std::mem::zeroed() };
        let line = || {
            let of_vm = OfVm { has_steal: true, ..of_vm(Workload::Linux) };
            serde_json::to_string(&Truth::read(&page, 0, &of_vm)).expect("JSON")
        };
        assert_eq!(
            line(),
            r#"{"vm":"loadgen-0001","pid":101,"tid":0,"vcpu":0,"workload":"linux","boot_ns":null,"steal_ns":null}"#
        );
        page.boot_ns.store(1009, Relaxed);
        assert!(line().contains(r#""boot_ns":1009,"#), "{}", line());
    }

    #[test]
    fn exits_have_all_kinds() {
        // SAFETY: a page of zeroes is a valid record: it has only integers.
        let page: VcpuPage = unsafe { std::mem::zeroed() };
        page.kinds[ExitKind::Pio as usize].done.store(503, Relaxed);
        page.kinds[ExitKind::Pagefault as usize].done.store(23, Relaxed);
        let workload = "exits=pagefault:23,pio:503".parse().expect("a workload");
        let truth = Truth::read(&page, 0, &of_vm(workload));
        let line = serde_json::to_value(&truth).expect("JSON");
        assert_eq!(line["workload"], "exits=pagefault:23,pio:503");
        assert_eq!(
            line["exits"].to_string(),
            r#"{"cpuid":0,"hlt":0,"hypercall":0,"mmio":0,"msr":0,"pagefault":23,"pio":503}"#
        );
    }

    #[test]
    fn memory_has_its_pages_and_rewrites_by_kind() {
        // SAFETY: a page of zeroes is a valid record: it has only integers.
        let page: VcpuPage = unsafe { std::mem::zeroed() };
        page.memory.rewrites[PageKind::Zero as usize].store(23, Relaxed);
        page.memory.rewrites[PageKind::Unique as usize].store(101, Relaxed);
        let workload = "4M,duplicate=50,zero=1,rewrite=5/signal".parse().expect("a workload");
        let memory = MemoryTruth::read(&page, workload, 522, None);
        assert_eq!(
            serde_json::to_string(&memory).expect("JSON"),
            r#"{"workload":"memory=4M,duplicate=50,zero=1,rewrite=5/signal","pages":{"duplicate":512,"zero":10,"unique":502},"could_merge":522,"rewrites":{"duplicate":0,"zero":23,"unique":101},"expected":null}"#
        );
    }

    #[test]
    fn what_cannot_be_written_is_refused_at_once() {
        for path in ["/", "/dev/null", "/nonexistent/truth", "/proc/truth", ".."] {
            assert!(TruthFile::check(Path::new(path)).is_err(), "{path}");
        }
    }
}
