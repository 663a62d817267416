//! runqlat's BPF program: opened, told what to do, loaded, attached, and read.

use std::collections::HashSet;
use std::io::Read as _;
use std::mem::{MaybeUninit, size_of};
use std::time::Instant;

use anyhow::{Context as _, Result};
use common::args::{CpuList, TaskFilter};
use common::hist::{FIRST_EPOCH, Octave, next_epoch};
use common::maps::{copy_out, read_all};
use common::output::Interval;
use common::{host, time};
use jiff::Timestamp;
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{Iter, Link, MapCore as _, MapFlags, OpenObject, ProgramInput};
use plain::Plain;

use crate::report::{By, Losses};
use crate::rows::{Counts, Earlier, Element, Waiting};

common::skeleton!("runqlat");
use skel::{OpenRunqlatSkel, RunqlatSkel, RunqlatSkelBuilder, types};

// SAFETY: repr(C), integers only, generated from bpf/runqlat.h; any bytes are valid.
unsafe impl Plain for types::cpu_waits {}
// SAFETY: as above.
unsafe impl Plain for types::waits_key {}
// SAFETY: as above.
unsafe impl Plain for types::keyed_waits {}
// SAFETY: as above.
unsafe impl Plain for types::waiting_task {}
// SAFETY: as above.
unsafe impl Plain for types::bss {}

/// What the program is to count.
pub struct Wanted {
    /// What a row stands for.
    pub by: By,
    /// Whose waits.
    pub filter: TaskFilter,
    /// On which CPUs they end.
    pub cpus: Option<CpuList>,
}

impl Wanted {
    /// True if it takes the programs that may read everything: see `task_id()` in bpf/runqlat.bpf.c.
    fn reads_all(&self) -> bool {
        self.by == By::PidNs || self.filter.cgroup.is_some()
    }

    /// True if waits are counted in `keyed`.
    fn is_keyed(&self) -> bool {
        !matches!(self.by, By::Nothing | By::Cpu)
    }
}

/// How many powers of two the waits of one task usually spread over, when maps are sized.
const OCTAVES_PER_KEY: u64 = 8;
/// The least number of tasks that maps have room for: those yet to be created.
const MIN_KEYS: u64 = 65_536;

/// The same where map elements must exist before they are used, which costs 27 MB for so many tasks.
const MIN_KEYS_PREALLOCATED: u64 = 8_192;

/// BPF_F_TEST_RUN_ON_CPU of include/uapi/linux/bpf.h.
const RUN_ON_CPU: u32 = 1;

/// The attached program.
pub struct Tracer<'obj> {
    skel: RunqlatSkel<'obj>,
    /// Whether the programs keep books on tasks: see bpf/runq.bpf.h.
    has_books: bool,
    tasks: Link,
    _others: Vec<Link>,
    by: By,
    cpus: u32,
    epoch: u32,
    interval_start: Instant,
    earlier_losses: Losses,
    /// Elements of `keyed` that have been deleted.
    deleted: u64,
}

/// What an interval's end finds in the kernel.
pub struct Reading {
    /// The interval's number, which its extremes carry.
    pub epoch: u32,
    /// When and how long it was.
    pub interval: Interval,
    /// Counters since the start.
    pub elements: Vec<Element>,
    /// Tasks waiting now.
    pub waiting: Vec<Waiting>,
    /// What was lost in the interval.
    pub losses: Losses,
}

impl<'obj> Tracer<'obj> {
    /// Loads and attaches the program. The interval starts here. The second place is taken where the kernel refuses
    /// programs that keep books on tasks.
    pub fn start(
        wanted: &Wanted,
        [object, plain]: &'obj mut [MaybeUninit<OpenObject>; 2],
    ) -> Result<Self> {
        let cpus = u32::try_from(libbpf_rs::num_possible_cpus()?)?;
        // To ask first would make every start slower.
        let (skel, has_books) = match open(wanted, cpus, true, object)?.load() {
            Err(_) if host::lacks_task_storage() => {
                (open(wanted, cpus, false, plain)?.load(), false)
            }
            loaded => (loaded, true),
        };
        let skel = skel.map_err(host::explain_load_error)?;
        let (switch_prog, tasks_prog) = match (has_books, wanted.reads_all()) {
            (false, _) => (&skel.progs.sched_switch_plain, &skel.progs.tasks_plain),
            (true, true) => (&skel.progs.sched_switch_all, &skel.progs.tasks_all),
            (true, false) => (&skel.progs.sched_switch, &skel.progs.tasks),
        };
        let mut others = Vec::new();
        if has_books {
            if wanted.is_keyed() {
                stock_up(&skel, cpus);
            }
            let task_newtask = skel.progs.task_newtask.attach();
            others.push(task_newtask.context("failed to attach to `task_newtask`")?);
        }
        others.push(switch_prog.attach().context("failed to attach to `sched_switch`")?);
        let interval_start = Instant::now();
        let tasks = tasks_prog.attach().context("failed to attach the task iterator")?;
        let mut tracer = Self {
            skel,
            has_books,
            tasks,
            _others: others,
            by: wanted.by,
            cpus,
            epoch: FIRST_EPOCH,
            interval_start,
            earlier_losses: Losses::default(),
            deleted: 0,
        };
        if has_books {
            // Opens the books of all tasks that exist, so that their first waits are whole.
            tracer.read_waiting()?;
            tracer.bss_mut()?.runq_books_open = true;
        }
        Ok(tracer)
    }

    /// Whether the programs keep books on tasks.
    pub fn has_books(&self) -> bool {
        self.has_books
    }

    /// Ends the interval and reads what it found.
    pub fn read(&mut self) -> Result<Reading> {
        // Waits that sched_switch did not show belong to the interval that ends.
        self.read_waiting()?;
        let epoch = self.epoch;
        self.epoch = next_epoch(epoch);
        self.bss_mut()?.epoch = self.epoch;
        let (now, end) = (Instant::now(), Timestamp::now());
        let interval = Interval { end, length: now.duration_since(self.interval_start) };
        self.interval_start = now;
        let elements = match self.by {
            By::Nothing | By::Cpu => self.read_by_cpu()?,
            _ => self.read_keyed()?,
        };
        let waiting = self.read_waiting()?;
        Ok(Reading { epoch, interval, elements, waiting, losses: self.new_losses()? })
    }

    fn bss_mut(&mut self) -> Result<&mut types::bss> {
        self.skel.maps.bss_data.as_deref_mut().context("failed to map the program's variables")
    }

    /// A copy of the program's variables.
    fn bss(&self) -> Result<types::bss> {
        let bytes = self.skel.maps.bss.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
        copy_out(&bytes.context("failed to read the program's variables")?)
    }

    fn read_by_cpu(&self) -> Result<Vec<Element>> {
        let map = &self.skel.maps.by_cpu;
        let elements: Vec<(u32, types::cpu_waits)> = read_all(map, u64::from(map.max_entries()))?;
        let elements = elements.iter().flat_map(|&(element, ref waits)| {
            // Most are empty, and stay so.
            let used =
                waits.octaves.iter().zip(0..).filter(|(waits, _)| waits.hist.highest != [0; 2]);
            used.map(move |(waits, octave)| Element {
                id: u64::from(element % self.cpus),
                part: element / self.cpus,
                octave,
                counts: counts(waits),
                last_ns: 0,
                comm: String::new(),
            })
        });
        Ok(elements.collect())
    }

    fn read_keyed(&self) -> Result<Vec<Element>> {
        // Elements may be added while the table is read, but those there before must be found.
        let created = self.bss()?.keyed_created - self.deleted;
        let elements: Vec<(types::waits_key, types::keyed_waits)> =
            read_all(&self.skel.maps.keyed, created)?;
        let elements = elements.iter().map(|(key, keyed)| Element {
            id: key.id,
            part: 0,
            octave: key.octave,
            counts: counts(&keyed.waits),
            last_ns: keyed.last_ns,
            comm: comm(&keyed.comm),
        });
        Ok(elements.collect())
    }

    fn read_waiting(&mut self) -> Result<Vec<Waiting>> {
        self.bss_mut()?.clock_offset_ns = i64::MAX;
        let now_ns = time::monotonic_ns();
        let mut bytes = Vec::new();
        Iter::new(&self.tasks)
            .context("failed to start the task iterator")?
            .read_to_end(&mut bytes)
            .context("failed to read the task iterator")?;
        // A run queue's clock stands still between its updates. The one updated last, that of the CPU which
        // woke us, tells by how much it differs from CLOCK_MONOTONIC; all have the same base.
        let clock_ns = now_ns.wrapping_add_signed(-self.bss()?.clock_offset_ns);
        bytes
            .chunks(size_of::<types::waiting_task>())
            .map(|record| {
                let task: types::waiting_task = copy_out(record)?;
                let waited_ns = clock_ns.saturating_sub(task.last_queued_ns);
                Ok(Waiting {
                    id: task.id,
                    cpu: task.cpu,
                    waited_ns: waited_ns + task.waited_before_ns,
                    comm: comm(&task.comm),
                })
            })
            .collect()
    }

    /// Tasks that have had waits and are gone by now. What is read after this has their last ones.
    pub fn gone(&self, earlier: &Earlier) -> HashSet<u64> {
        let task = |id: u64| match self.by {
            By::Process | By::Vm => Some((id >> 32) as i32),
            By::Thread => Some(id as u32 as i32),
            By::Nothing | By::Cpu | By::PidNs => None,
        };
        earlier.ids().into_iter().filter(|id| task(*id).is_some_and(host::is_gone)).collect()
    }

    /// Deletes what belongs to tasks that are gone, so that what they take does not outlive them by much.
    pub fn forget(&mut self, gone: &HashSet<u64>, earlier: &mut Earlier) -> Result<()> {
        for (id, octave) in earlier.forget(gone) {
            let key = types::waits_key { id, octave, ..types::waits_key::default() };
            // SAFETY: repr(C), with its padding a field of its own.
            let key = unsafe { plain::as_bytes(&key) };
            let keyed = &self.skel.maps.keyed;
            keyed.delete(key).context("failed to delete from map `keyed`")?;
            self.deleted += 1;
        }
        Ok(())
    }

    fn new_losses(&mut self) -> Result<Losses> {
        let bss = self.bss()?;
        let now =
            Losses { lost: bss.lost, unbooked: bss.unbooked, reconstructed: bss.reconstructed };
        let since = now.since(&self.earlier_losses);
        self.earlier_losses = now;
        Ok(since)
    }
}

/// Sees to elements of `keyed` on every CPU.
fn stock_up(skel: &RunqlatSkel<'_>, cpus: u32) {
    for cpu in 0..cpus {
        let on_cpu = ProgramInput { cpu, flags: RUN_ON_CPU, ..Default::default() };
        // A CPU that is offline has no waits. If it comes, its first elements are lost at worst, which is counted.
        _ = skel.progs.stock_up.test_run(on_cpu);
    }
}

/// Opens the programs and tells them what to do.
fn open<'obj>(
    wanted: &Wanted,
    cpus: u32,
    has_books: bool,
    object: &'obj mut MaybeUninit<OpenObject>,
) -> Result<OpenRunqlatSkel<'obj>> {
    let mut open =
        RunqlatSkelBuilder::default().open(object).context("failed to open the BPF programs")?;
    let all = wanted.reads_all();
    open.progs.sched_switch_all.set_autoload(has_books && all);
    open.progs.tasks_all.set_autoload(has_books && all);
    open.progs.sched_switch.set_autoload(has_books && !all);
    open.progs.tasks.set_autoload(has_books && !all);
    open.progs.task_newtask.set_autoload(has_books);
    open.progs.stock_up.set_autoload(has_books && wanted.is_keyed());
    open.progs.sched_switch_plain.set_autoload(!has_books);
    open.progs.tasks_plain.set_autoload(!has_books);
    open.maps.books.set_autocreate(has_books)?;

    open.maps.by_cpu.set_max_entries(2 * cpus)?;
    if wanted.is_keyed() {
        let tasks = match has_books {
            true => (4 * host::threads()?).max(MIN_KEYS),
            false => (2 * host::threads()?).max(MIN_KEYS_PREALLOCATED),
        };
        let tasks = tasks.min(host::pid_max()?);
        open.maps.keyed.set_max_entries(u32::try_from(tasks * OCTAVES_PER_KEY)?)?;
    }
    if !has_books {
        // Such kernels allocate an element with kmalloc(): under the run queue's lock that can wake kswapd, which
        // takes that lock.
        open.maps.keyed.set_map_flags(0)?;
    }
    set_knobs(&mut open, wanted, cpus)?;
    open.maps.bss_data.as_deref_mut().context("failed to map the program's variables")?.epoch =
        FIRST_EPOCH;
    Ok(open)
}

fn set_knobs(open: &mut OpenRunqlatSkel<'_>, wanted: &Wanted, cpus: u32) -> Result<()> {
    let knobs = open.maps.rodata_data.as_deref_mut().context("failed to map the knobs")?;
    knobs.cpus = cpus;
    knobs.by = match wanted.by {
        By::Nothing => types::breakdown::BY_NOTHING,
        By::Process => types::breakdown::BY_PROCESS,
        By::Thread => types::breakdown::BY_THREAD,
        By::Vm => types::breakdown::BY_VM,
        By::Cpu => types::breakdown::BY_CPU,
        By::PidNs => types::breakdown::BY_PIDNS,
    };
    let TaskFilter { pid, tid, cgroup, vm } = &wanted.filter;
    if let Some(vm) = vm {
        knobs.only_tgid = vm.pid;
        knobs.only_vcpus = true;
    }
    if let Some(pid) = pid {
        knobs.only_tgid = *pid;
    }
    knobs.only_tid = tid.unwrap_or(0);
    if let Some(cgroup) = cgroup {
        knobs.only_cgroup_id = cgroup.id;
        knobs.only_cgroup_level = cgroup.level;
    }
    if let Some(CpuList(cpus)) = &wanted.cpus {
        knobs.only_some_cpus = true;
        for cpu in cpus {
            let word = knobs.only_cpus.get_mut(cpu / 64).context("CPU number out of range")?;
            *word |= 1 << (cpu % 64);
        }
    }
    Ok(())
}

fn counts(waits: &types::waits) -> Counts {
    let types::hist_octave { slots, sum_ns, highest, lowest, above_us, above_ms } = waits.hist;
    Counts {
        octave: Octave { slots, sum_ns, highest, lowest, above_us, above_ms },
        preempted: waits.preempted,
        start_unseen: waits.start_unseen,
    }
}

fn comm(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
