//! kvmexits' BPF programs: opened, told what to do, loaded, attached, and read.

use std::cell::RefCell;
use std::collections::HashSet;
use std::mem::{MaybeUninit, take};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::args::TaskFilter;
use common::exits::Reason;
use common::hist::{FIRST_EPOCH, Octave, next_epoch};
use common::maps::{copy_out, read_all};
use common::output::Interval;
use common::{host, kvm, progs, time};
use jiff::Timestamp;
use libbpf_rs::skel::{OpenSkel as _, Skel as _, SkelBuilder as _};
use libbpf_rs::{
    Link, MapCore as _, MapFlags, MapType, OpenObject, OpenProgramMut, ProgramMut, RingBuffer,
    RingBufferBuilder,
};
use plain::Plain;

use crate::detail::Detail;
use crate::report::Losses;
use crate::rows::{Counts, Earlier, Element, ElementId, Open, Parts, Rows, Source, VmId};
use crate::slow::SlowExit;

common::skeleton!("kvmexits");
use skel::{KvmexitsSkel, KvmexitsSkelBuilder, OpenKvmexitsSkel, types};

// SAFETY: repr(C), integers only, generated from bpf/kvmexits.h; any bytes are valid.
unsafe impl Plain for types::exits_key {}
// SAFETY: as above.
unsafe impl Plain for types::exits {}
// SAFETY: as above.
unsafe impl Plain for types::vcpu_thread {}
// SAFETY: as above.
unsafe impl Plain for types::slow_exit {}

/// What the programs are to count.
pub struct Wanted {
    /// Whose exits.
    pub filter: TaskFilter,
    /// Of which vCPU, by the kernel's vcpu_id.
    pub vcpu: Option<u32>,
    /// Whether VMs or vCPUs are told apart.
    pub by_vm: bool,
    /// Whether exits of one reason are told apart.
    pub detail: bool,
    /// Whether the VMM's stacks are taken.
    pub stacks: bool,
    /// Exits above this are told as they happen.
    pub slower: Option<Duration>,
}

/// How many reasons, and powers of two of each, a vCPU's exits usually spread over, when maps are sized.
const ELEMENTS_PER_WRITER: u64 = 64;
/// The same where all elements must exist from the start.
const MAX_PREALLOCATED: u64 = 65_536;
/// With details there are more.
const DETAILS_PER_REASON: u64 = 16;
/// The tracepoints that details are from.
const DETAILS: [&str; 5] = ["kvm_pio", "kvm_mmio", "kvm_msr", "kvm_hypercall", "kvm_vcpu_wakeup"];
/// The least and the most elements there is room for; a bucket of an empty table is 16 bytes.
const ELEMENTS: std::ops::RangeInclusive<u64> = 65_536..=1 << 20;
/// The least number of threads there is room for: those yet to be created.
const MIN_THREADS: u64 = 16_384;
/// How often an element is read again if it is written just then: for long only if its writer was preempted.
const READS: u32 = 100;
/// Bytes for slow exits on their way to us, and room for stacks.
const SLOW_BYTES: u32 = 256 << 10;
const STACKS: u32 = 16_384;

/// Longer than any program runs that has not seen that all is over.
const IN_FLIGHT: Duration = Duration::from_millis(1);

/// Where the reason of an exit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// KVM's own structures.
    Typed,
    /// The tracepoint's record, where their layout is not known: no BTF of kvm.ko (Linux 5.10), or another KVM.
    Record,
}

/// The attached programs.
pub struct Tracer<'obj> {
    skel: KvmexitsSkel<'obj>,
    _links: Vec<Link>,
    by_thread: bool,
    vcpu: Option<u32>,
    slow: Option<(RingBuffer<'static>, Rc<RefCell<Vec<SlowExit>>>)>,
    epoch: u32,
    interval_start: Instant,
    earlier: Earlier,
    earlier_losses: Losses,
    /// Elements of `exits` that have been deleted.
    deleted: u64,
}

/// What an interval's end finds.
pub struct Reading {
    /// When and how long it was.
    pub interval: Interval,
    /// What was lost in it.
    pub losses: Losses,
    /// vCPUs have run, but never left guest mode in a way that kvm_exit shows.
    pub exits_untraced: bool,
}

impl<'obj> Tracer<'obj> {
    /// Loads and attaches the programs. The interval starts here.
    pub fn start(
        wanted: &Wanted,
        typed: &'obj mut MaybeUninit<OpenObject>,
        record: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<Self> {
        let skel = match load(wanted, Variant::Typed, typed) {
            Ok(skel) => skel,
            Err(_) => load(wanted, Variant::Record, record)?,
        };
        let slow = wanted.slower.map(|_| slow_exits(&skel)).transpose()?;
        let links = attach(&skel)?;
        Ok(Self {
            skel,
            _links: links,
            by_thread: wanted.by_thread(),
            vcpu: wanted.vcpu,
            slow,
            epoch: FIRST_EPOCH,
            interval_start: Instant::now(),
            earlier: Earlier::default(),
            earlier_losses: Losses::default(),
            deleted: 0,
        })
    }

    /// Ends the interval: fills in its rows. The last one has all exits that go on, too.
    pub fn read(&mut self, rows: &mut Rows, last: bool) -> Result<Reading> {
        let epoch = self.epoch;
        self.epoch = next_epoch(epoch);
        let bss = self.skel.maps.bss_data.as_deref_mut();
        let bss = bss.context("failed to map the program's variables")?;
        bss.epoch = self.epoch;
        // All programs end here; to detach one after the other would take too long.
        bss.over = last;
        let (now, end, now_ns) = (Instant::now(), Timestamp::now(), time::monotonic_ns());
        if last {
            thread::sleep(IN_FLIGHT);
        }
        let interval = Interval { end, length: now.duration_since(self.interval_start) };
        self.interval_start = now;
        let threads = self.read_threads()?;
        let elements = self.read_exits()?;
        rows.add(&elements, &mut self.earlier, epoch);
        // A thread whose vCPU is not known yet may be in an exit of another than the one that is wanted.
        let is_wanted = |open: &Open| self.vcpu.is_none() || open.source.vcpu == self.vcpu;
        let open: Vec<Open> = threads
            .iter()
            .flat_map(|thread| open_exits(thread, now_ns))
            .filter(is_wanted)
            .collect();
        match last {
            true => rows.close(&open),
            false => rows.note(&open),
        }
        self.forget_dead(&threads)?;
        let bss = self.bss()?;
        let exits_untraced = bss.runs_seen && !bss.exits_seen;
        Ok(Reading { interval, losses: self.new_losses()?, exits_untraced })
    }

    /// True if the table fills up, as it does where VMs come and go during a long interval.
    pub fn needs_room(&self) -> Result<bool> {
        let elements = self.bss()?.exits_created - self.deleted;
        Ok(2 * elements >= u64::from(self.skel.maps.exits.max_entries()))
    }

    /// Takes what there is into `rows` before the interval's end, and deletes what belongs to VMs that are gone.
    pub fn gather(&mut self, rows: &mut Rows) -> Result<()> {
        let threads = self.read_threads()?;
        let elements = self.read_exits()?;
        rows.add(&elements, &mut self.earlier, self.epoch);
        self.forget_dead(&threads)
    }

    /// Hands over the slow exits that have come.
    pub fn slow_exits(&self) -> Result<Vec<SlowExit>> {
        let Some((ring, found)) = &self.slow else {
            return Ok(Vec::new());
        };
        ring.consume().context("failed to read the ring buffer")?;
        Ok(take(&mut *found.borrow_mut()))
    }

    /// The addresses of a user stack, the innermost first.
    pub fn stack(&self, id: u32) -> Result<Vec<u64>> {
        let found = self.skel.maps.stacks.lookup(&id.to_ne_bytes(), MapFlags::ANY)?;
        let bytes = found.unwrap_or_default();
        let address = |word: &[u8]| word.try_into().map(u64::from_ne_bytes).unwrap_or_default();
        Ok(bytes.chunks(8).map(address).take_while(|&address| address != 0).collect())
    }

    fn bss(&self) -> Result<&types::bss> {
        self.skel.maps.bss_data.as_deref().context("failed to map the program's variables")
    }

    fn read_threads(&self) -> Result<Vec<(u32, types::vcpu_thread)>> {
        read_all(&self.skel.maps.threads, 0)
    }

    fn read_exits(&self) -> Result<Vec<Element>> {
        // Elements may be added while the table is read, but those there before must be found.
        let created = self.bss()?.exits_created - self.deleted;
        let mut elements: Vec<(types::exits_key, types::exits)> =
            read_all(&self.skel.maps.exits, created)?;
        elements.iter_mut().try_for_each(|(key, exits)| self.read_again(key, exits))?;
        let elements = elements.iter().map(|(key, exits)| Element {
            id: element_id(key),
            source: source(&key.vm, key.writer, reason(key.kind, key.code, key.err), key.detail),
            octave: key.octave,
            counts: counts(exits),
            comm: comm(&exits.comm),
        });
        Ok(elements.collect())
    }

    /// Reads an element again that was being written while it was read: its parts would not be of the same exits.
    fn read_again(&self, key: &types::exits_key, exits: &mut types::exits) -> Result<()> {
        for _ in 0..READS {
            if exits.begun == exits.done {
                break;
            }
            if let Some(bytes) = self.skel.maps.exits.lookup(&element_id(key), MapFlags::ANY)? {
                *exits = copy_out(&bytes)?;
            }
        }
        Ok(())
    }

    /// Deletes what belongs to threads that are gone, so that what VMs take does not outlive them by much. `threads`
    /// were read before the elements: who is not among them has written its last.
    fn forget_dead(&mut self, threads: &[(u32, types::vcpu_thread)]) -> Result<()> {
        if !self.by_thread {
            return Ok(());
        }
        let exits = &self.skel.maps.exits;
        let alive: HashSet<(VmId, u32)> =
            threads.iter().map(|(tid, thread)| (vm_id(&thread.vm), *tid)).collect();
        for id in self.earlier.forget(&alive) {
            exits.delete(&id).context("failed to delete from map `exits`")?;
            self.deleted += 1;
        }
        Ok(())
    }

    /// What was lost since this was last asked.
    pub fn new_losses(&mut self) -> Result<Losses> {
        let bss = self.bss()?;
        let now = Losses {
            no_room: bss.lost,
            unended: bss.unended,
            missed: progs::misses(self.skel.object())?,
            untold: bss.lost_slow,
        };
        let since = now.since(&self.earlier_losses);
        self.earlier_losses = now;
        Ok(since)
    }
}

impl Wanted {
    /// Whether each thread has elements of its own: a stack means something in one process only.
    fn by_thread(&self) -> bool {
        self.by_vm || self.stacks
    }
}

fn load<'obj>(
    wanted: &Wanted,
    variant: Variant,
    object: &'obj mut MaybeUninit<OpenObject>,
) -> Result<KvmexitsSkel<'obj>> {
    let exit = ["kvm_exit"].into_iter().filter(|_| variant == Variant::Record);
    let details = DETAILS.into_iter().filter(|_| wanted.detail);
    let records = ["kvm_userspace_exit", "kvm_fpu"].into_iter().chain(exit).chain(details);
    kvm::check_tracepoints(&records.collect::<Vec<_>>())?;
    let mut open =
        KvmexitsSkelBuilder::default().open(object).context("failed to open the BPF programs")?;
    let progs = &mut open.progs;
    progs.kvm_exit.set_autoload(variant == Variant::Typed);
    progs.kvm_exit_record.set_autoload(variant == Variant::Record);
    let details: [&mut OpenProgramMut<'_>; 5] = [
        &mut progs.kvm_pio,
        &mut progs.kvm_mmio,
        &mut progs.kvm_msr,
        &mut progs.kvm_hypercall,
        &mut progs.kvm_vcpu_wakeup,
    ];
    details.into_iter().for_each(|prog| prog.set_autoload(wanted.detail));
    set_map_sizes(&mut open, wanted)?;
    set_knobs(&mut open, wanted)?;
    open.maps.bss_data.as_deref_mut().context("failed to map the program's variables")?.epoch =
        FIRST_EPOCH;
    open.load().map_err(host::explain_load_error)
}

fn set_map_sizes(open: &mut OpenKvmexitsSkel<'_>, wanted: &Wanted) -> Result<()> {
    let threads = host::pid_max()?.min((4 * host::threads()?).max(MIN_THREADS));
    let writers = match wanted.by_thread() {
        true => threads,
        false => libbpf_rs::num_possible_cpus()? as u64,
    };
    let details = if wanted.detail || wanted.stacks { DETAILS_PER_REASON } else { 1 };
    let elements = writers * ELEMENTS_PER_WRITER * details;
    let elements = elements.clamp(*ELEMENTS.start(), *ELEMENTS.end());
    open.maps.threads.set_max_entries(u32::try_from(threads)?)?;
    open.maps.exits.set_max_entries(u32::try_from(elements)?)?;
    // Before Linux 6.1 (96da3f7d489d, "bpf: Remove tracing program restriction on map types") the kernel warns of
    // programs on tracepoints that allocate. 6.1 is also the first to have ring buffers that user space writes.
    if matches!(MapType::UserRingBuf.is_supported(), Ok(false)) {
        open.maps.threads.set_map_flags(0)?;
        open.maps.exits.set_map_flags(0)?;
        open.maps.exits.set_max_entries(u32::try_from(elements.min(MAX_PREALLOCATED))?)?;
    }
    if wanted.slower.is_some() {
        open.maps.slow.set_max_entries(SLOW_BYTES)?;
    }
    if wanted.stacks {
        open.maps.stacks.set_max_entries(STACKS)?;
    }
    Ok(())
}

fn set_knobs(open: &mut OpenKvmexitsSkel<'_>, wanted: &Wanted) -> Result<()> {
    let knobs = open.maps.rodata_data.as_deref_mut().context("failed to map the knobs")?;
    let TaskFilter { pid, tid, cgroup, vm } = &wanted.filter;
    knobs.only_tgid = pid.or(vm.as_ref().map(|vm| vm.pid)).unwrap_or(0);
    knobs.only_tid = tid.unwrap_or(0);
    knobs.only_vcpu_id = wanted.vcpu.map_or(Ok(-1), i32::try_from)?;
    if let Some(cgroup) = cgroup {
        knobs.only_cgroup_id = cgroup.id;
        knobs.only_cgroup_level = cgroup.level;
    }
    knobs.by_thread = wanted.by_thread();
    knobs.with_detail = wanted.detail;
    knobs.with_stacks = wanted.stacks;
    knobs.slower_ns = wanted.slower.map_or(Ok(0), |slower| u64::try_from(slower.as_nanos()))?;
    Ok(())
}

/// kvm_exit comes last: what it begins is then seen to its end.
fn attach(skel: &KvmexitsSkel<'_>) -> Result<Vec<Link>> {
    let progs = &skel.progs;
    let in_order: [&ProgramMut<'_>; 12] = [
        &progs.sched_process_exit,
        &progs.sched_switch,
        &progs.kvm_pio,
        &progs.kvm_mmio,
        &progs.kvm_msr,
        &progs.kvm_hypercall,
        &progs.kvm_vcpu_wakeup,
        &progs.kvm_fpu,
        &progs.kvm_userspace_exit,
        &progs.kvm_entry,
        &progs.kvm_exit,
        &progs.kvm_exit_record,
    ];
    let loaded = in_order.into_iter().filter(|prog| prog.autoload());
    loaded
        .map(|prog| {
            prog.attach().with_context(|| format!("failed to attach `{}`", prog.name().display()))
        })
        .collect()
}

fn slow_exits(
    skel: &KvmexitsSkel<'_>,
) -> Result<(RingBuffer<'static>, Rc<RefCell<Vec<SlowExit>>>)> {
    let found = Rc::new(RefCell::new(Vec::new()));
    let to = Rc::clone(&found);
    let mut builder = RingBufferBuilder::new();
    builder.add(&skel.maps.slow, move |bytes: &[u8]| {
        to.borrow_mut().extend(copy_out(bytes).map(|slow| slow_exit(&slow)));
        0
    })?;
    Ok((builder.build().context("failed to map the ring buffer")?, found))
}

fn slow_exit(slow: &types::slow_exit) -> SlowExit {
    // Both clocks are read once for both to be wrong by no more than it takes.
    let ago = Duration::from_nanos(time::monotonic_ns().saturating_sub(slow.end_ns));
    SlowExit {
        end: Timestamp::now() - ago,
        source: source(&slow.vm, slow.tid, reason(slow.kind, slow.code, slow.err), slow.detail),
        total_ns: slow.total_ns,
        parts: parts(&slow.parts),
        comm: comm(&slow.comm),
    }
}

/// The exits that a thread is in: from guest mode, to userspace, or one inside the other.
fn open_exits((tid, thread): &(u32, types::vcpu_thread), now: u64) -> Vec<Open> {
    let mut open = Vec::new();
    let mut inside = parts(&thread.parts);
    let since = |ns: u64| now.saturating_sub(ns);
    if thread.user_ns != 0 {
        let total_ns = since(thread.user_ns);
        inside.userspace_ns += total_ns;
        open.push(Open {
            source: source(
                &thread.vm,
                *tid,
                Reason::userspace(thread.user_code, thread.user_err),
                thread.user_detail,
            ),
            total_ns,
            parts: Parts { userspace_ns: total_ns, ..Parts::default() },
            comm: comm(&thread.comm),
        });
    } else if thread.off_ns != 0 && thread.off_asleep != 0 {
        inside.asleep_ns += since(thread.off_ns);
    } else if thread.off_ns != 0 {
        inside.runqueue_ns += since(thread.off_ns);
    }
    if thread.exit_ns != 0 {
        open.push(Open {
            source: source(
                &thread.vm,
                *tid,
                Reason::hardware(thread.exit_kind, thread.exit_code),
                thread.exit_detail,
            ),
            total_ns: since(thread.exit_ns),
            parts: inside,
            comm: comm(&thread.comm),
        });
    }
    open
}

fn reason(kind: u32, code: u32, err: i32) -> Reason {
    match kind {
        KIND_USERSPACE => Reason::userspace(code, err),
        isa => Reason::hardware(isa, code),
    }
}

/// `enum exit_kind` in bpf/kvmexits.h
const KIND_USERSPACE: u32 = 3;
/// `VCPU_ID_UNKNOWN` there.
const VCPU_UNKNOWN: u32 = u32::MAX;

fn source(vm: &types::vm_id, writer: u32, reason: Reason, detail: u64) -> Source {
    Source {
        vm: vm_id(vm),
        vcpu: (vm.vcpu_id != VCPU_UNKNOWN).then_some(vm.vcpu_id),
        writer,
        reason,
        detail: Detail::from_raw(detail),
    }
}

fn vm_id(vm: &types::vm_id) -> VmId {
    VmId { pid: vm.tgid.cast_signed(), start_boottime_ns: vm.start_boottime_ns }
}

fn element_id(key: &types::exits_key) -> ElementId {
    let mut id = [0; size_of::<ElementId>()];
    // SAFETY: repr(C), with its padding a field of its own.
    id.copy_from_slice(unsafe { plain::as_bytes(key) });
    id
}

fn counts(exits: &types::exits) -> Counts {
    let types::hist_octave { slots, sum_ns, highest, lowest, above_us, above_ms } = exits.hist;
    Counts {
        octave: Octave { slots, sum_ns, highest, lowest, above_us, above_ms },
        parts: parts(&exits.parts),
    }
}

fn parts(parts: &types::exit_parts) -> Parts {
    let types::exit_parts { userspace_ns, asleep_ns, runqueue_ns } = *parts;
    Parts { userspace_ns, asleep_ns, runqueue_ns }
}

fn comm(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
