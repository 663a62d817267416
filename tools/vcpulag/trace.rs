//! vcpulag's BPF programs: opened, told what to do, loaded, attached, and read.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::Read as _;
use std::mem::{MaybeUninit, size_of, take};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::args::TaskFilter;
use common::hist::{FIRST_EPOCH, Octave, next_epoch};
use common::maps::{copy_out, read_all};
use common::output::Interval;
use common::{host, kvm, progs, time};
use jiff::Timestamp;
use libbpf_rs::skel::{OpenSkel as _, Skel as _, SkelBuilder as _};
use libbpf_rs::{
    Iter, Link, MapCore as _, MapFlags, MapType, OpenObject, RingBuffer, RingBufferBuilder,
};
use plain::Plain;

use crate::losses::Losses;
use crate::rows::{
    Culprit, Earlier, Kind, PairElement, Reading, Sample, Thread, Times, VmId, WaitsElement,
};
use crate::slow::LongWait;
use crate::stacks::Block;

common::skeleton!("vcpulag");
use skel::{OpenVcpulagSkel, VcpulagSkel, VcpulagSkelBuilder, types};

// SAFETY: repr(C), integers only, generated from bpf/vcpulag.h; any bytes are valid.
unsafe impl Plain for types::lag_vcpu {}
// SAFETY: as above.
unsafe impl Plain for types::lag_sample {}
// SAFETY: as above.
unsafe impl Plain for types::waits_key {}
// SAFETY: as above.
unsafe impl Plain for types::hist_octave {}
// SAFETY: as above.
unsafe impl Plain for types::pair_key {}
// SAFETY: as above.
unsafe impl Plain for types::pair {}
// SAFETY: as above.
unsafe impl Plain for types::long_wait {}
// SAFETY: as above.
unsafe impl Plain for types::block_key {}
// SAFETY: as above.
unsafe impl Plain for types::block {}

/// What the programs are to watch.
pub struct Wanted {
    /// Whose vCPUs.
    pub filter: TaskFilter,
    /// Which, by the kernel's vcpu_id.
    pub vcpu: Option<u32>,
    /// Waits above this are told as they end.
    pub slower: Option<Duration>,
    /// Whether it is noted where vCPUs are blocked.
    pub stacks: bool,
}

/// The tracepoints of KVM's that are needed.
const TRACEPOINTS: [&str; 2] = ["kvm_fpu", "kvm_vcpu_wakeup"];
/// The least number of threads there is room for: those yet to be created.
const MIN_THREADS: u64 = 16_384;
/// How many powers of two a vCPU's waits usually spread over.
const OCTAVES_PER_VCPU: u64 = 16;
/// The most elements there is room for; a bucket of an empty table is 16 bytes.
const MAX_ELEMENTS: u64 = 1 << 20;
/// The same where all elements must exist from the start.
const MAX_PREALLOCATED: u64 = 65_536;
/// Bytes for long waits on their way to us.
const SLOW_BYTES: u32 = 256 << 10;
/// Room for stacks, and for vCPUs at each.
const STACKS: u32 = 4_096;
const BLOCKS: u32 = 65_536;
/// `PIDS_PER_ELEMENT` in bpf/pids.bpf.h.
const PIDS_PER_ELEMENT: u64 = 64;

type LongWaits = (RingBuffer<'static>, Rc<RefCell<Vec<LongWait>>>);

/// The attached programs.
pub struct Tracer<'obj> {
    skel: VcpulagSkel<'obj>,
    samples: Link,
    others: Vec<Link>,
    slow: Option<LongWaits>,
    epoch: u32,
    interval_start: Instant,
    earlier_losses: Losses,
}

impl<'obj> Tracer<'obj> {
    /// Loads and attaches the programs. The interval starts here.
    pub fn start(wanted: &Wanted, object: &'obj mut MaybeUninit<OpenObject>) -> Result<Self> {
        kvm::check_tracepoints(&TRACEPOINTS)?;
        let mut open = VcpulagSkelBuilder::default()
            .open(object)
            .context("failed to open the BPF programs")?;
        set_map_sizes(&mut open, wanted)?;
        set_knobs(&mut open, wanted)?;
        open.maps.bss_data.as_deref_mut().context("failed to map the program's variables")?.epoch =
            FIRST_EPOCH;
        let skel = open.load().map_err(host::explain_load_error)?;
        let slow = wanted.slower.map(|_| long_waits(&skel)).transpose()?;
        let samples = skel.progs.samples.attach().context("failed to attach the task iterator")?;
        let mut tracer = Self {
            skel,
            samples,
            others: Vec::new(),
            slow,
            epoch: FIRST_EPOCH,
            interval_start: Instant::now(),
            earlier_losses: Losses::default(),
        };
        // Finds out who is a VM, so that none is taken for an ordinary task.
        run_iterator(&tracer.samples)?;
        tracer.others = attach(&tracer.skel)?;
        tracer.bss_mut()?.counting = true;
        tracer.interval_start = Instant::now();
        // Finds the vCPUs that are in KVM now.
        tracer.read_samples()?;
        Ok(tracer)
    }

    /// Blames so far who is to blame for waits that go on, before it is forgotten who ran.
    pub fn settle(&mut self) -> Result<()> {
        self.bss_mut()?.settling = true;
        run_iterator(&self.samples)?;
        self.bss_mut()?.settling = false;
        Ok(())
    }

    /// Ends the interval and reads what it found.
    pub fn read(&mut self) -> Result<(Interval, Reading, Losses)> {
        let epoch = self.epoch;
        self.epoch = next_epoch(epoch);
        self.bss_mut()?.epoch = self.epoch;
        let (now, end) = (Instant::now(), Timestamp::now());
        let interval = Interval { end, length: now.duration_since(self.interval_start) };
        self.interval_start = now;
        // Who ends between the two is in both, and is the same.
        let mut samples = self.read_samples()?;
        samples.extend(self.read_ended()?);
        samples.sort_by_key(|sample: &Sample| (sample.thread, !sample.ended));
        samples.dedup_by_key(|sample| sample.thread);
        let reading =
            Reading { epoch, samples, waits: self.read_waits()?, pairs: self.read_pairs()? };
        Ok((interval, reading, self.new_losses()?))
    }

    /// Forgets vCPUs whose threads have ended, and culprits that had gone, now that they have been read.
    pub fn forget(
        &mut self,
        reading: &Reading,
        gone: &HashSet<i32>,
        earlier: &mut Earlier,
    ) -> Result<()> {
        let ended = reading.samples.iter().filter(|sample| sample.ended);
        let ended: HashSet<(u64, i32)> =
            ended.map(|sample| (sample.thread.vm.start_boottime_ns, sample.thread.tid)).collect();
        if ended.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let maps = &self.skel.maps;
        for (_, tid) in &ended {
            maps.vcpus.delete(&tid.to_ne_bytes()).context("failed to delete from map `vcpus`")?;
        }
        let waits = reading.waits.iter().filter(|element| ended.contains(&element.id));
        for WaitsElement { id: (start, tid), octave, .. } in waits {
            let key = types::waits_key {
                start_boottime_ns: *start,
                tid: tid.cast_unsigned(),
                octave: *octave,
            };
            // SAFETY: repr(C), without padding.
            let key = unsafe { plain::as_bytes(&key) };
            maps.waits.delete(key).context("failed to delete from map `waits`")?;
        }
        let is_over =
            |pair: &&PairElement| ended.contains(&pair.victim) || gone.contains(&pair.culprit.pid);
        for pair in reading.pairs.iter().filter(is_over) {
            let key = types::pair_key {
                victim_tid: pair.victim.1.cast_unsigned(),
                culprit_tgid: pair.culprit.pid.cast_unsigned(),
            };
            // SAFETY: as above.
            let key = unsafe { plain::as_bytes(&key) };
            maps.pairs.delete(key).context("failed to delete from map `pairs`")?;
        }
        self.bss_mut()?.pairs_full = false;
        earlier.forget(&ended, gone);
        Ok(())
    }

    /// Forgets vCPUs whose threads have ended, where nobody asks what there was of them.
    pub fn forget_ended(&mut self) -> Result<()> {
        let samples = self.read_ended()?;
        if samples.is_empty() {
            return Ok(());
        }
        let (waits, pairs) = (self.read_waits()?, self.read_pairs()?);
        let gone = gone(pairs.iter().map(|pair| pair.culprit.pid).collect());
        let reading = Reading { epoch: self.epoch, samples, waits, pairs };
        self.forget(&reading, &gone, &mut Earlier::default())
    }

    /// Hands over the long waits that have ended.
    pub fn long_waits(&self) -> Result<Vec<LongWait>> {
        let Some((ring, found)) = &self.slow else {
            return Ok(Vec::new());
        };
        ring.consume().context("failed to read the ring buffer")?;
        Ok(take(&mut *found.borrow_mut()))
    }

    /// Where vCPUs have been blocked since the start: the stack's addresses, the innermost first, how often and for
    /// how many nanoseconds.
    pub fn blocks(&self) -> Result<Vec<Block>> {
        let blocks: Vec<(types::block_key, types::block)> = read_all(&self.skel.maps.blocks, 0)?;
        let block = |(key, block): &(types::block_key, types::block)| {
            let found = match u32::try_from(key.stack) {
                Ok(id) => self.skel.maps.stacks.lookup(&id.to_ne_bytes(), MapFlags::ANY)?,
                Err(_) => None,
            };
            let address = |word: &[u8]| word.try_into().map(u64::from_ne_bytes).unwrap_or_default();
            let addresses = found.unwrap_or_default().chunks(8).map(address).collect::<Vec<_>>();
            Ok(Block {
                id: (key.start_boottime_ns, key.tid.cast_signed(), key.stack),
                addresses: addresses.into_iter().take_while(|&address| address != 0).collect(),
                count: block.count,
                ns: block.ns,
            })
        };
        blocks.iter().map(block).collect()
    }

    /// What was lost since this was last asked.
    pub fn new_losses(&mut self) -> Result<Losses> {
        let missed = progs::misses(self.skel.object())?;
        let bss = self.bss_mut()?;
        let now = Losses {
            vcpus: bss.lost_vcpus,
            waits: bss.lost_waits,
            missed,
            unseen: bss.unseen_waits,
            unnamed_ns: bss.lost_pairs_ns,
            untold: bss.lost_slow,
        };
        let since = now.since(&self.earlier_losses);
        self.earlier_losses = now;
        Ok(since)
    }

    fn bss_mut(&mut self) -> Result<&mut types::bss> {
        self.skel.maps.bss_data.as_deref_mut().context("failed to map the program's variables")
    }

    fn read_samples(&self) -> Result<Vec<Sample>> {
        let bytes = run_iterator(&self.samples)?;
        let samples = bytes.chunks(size_of::<types::lag_sample>());
        samples.map(|record| Ok(sample(&copy_out(record)?))).collect()
    }

    fn read_ended(&self) -> Result<Vec<Sample>> {
        let vcpus: Vec<(u32, types::lag_vcpu)> = read_all(&self.skel.maps.vcpus, 0)?;
        let ended = vcpus.iter().filter(|(_, vcpu)| vcpu.ended_ns != 0);
        Ok(ended
            .map(|(tid, vcpu)| Sample {
                thread: thread(vcpu, *tid),
                comm: comm(&vcpu.comm),
                times: times(&vcpu.times),
                waiting_ns: None,
                ended: true,
            })
            .collect())
    }

    fn read_waits(&self) -> Result<Vec<WaitsElement>> {
        let waits: Vec<(types::waits_key, types::hist_octave)> =
            read_all(&self.skel.maps.waits, 0)?;
        let element = |(key, counts): &(types::waits_key, types::hist_octave)| {
            let types::hist_octave { slots, sum_ns, highest, lowest, above_us, above_ms } = *counts;
            WaitsElement {
                id: (key.start_boottime_ns, key.tid.cast_signed()),
                octave: key.octave,
                counts: Octave { slots, sum_ns, highest, lowest, above_us, above_ms },
            }
        };
        Ok(waits.iter().map(element).collect())
    }

    fn read_pairs(&self) -> Result<Vec<PairElement>> {
        let pairs: Vec<(types::pair_key, types::pair)> = read_all(&self.skel.maps.pairs, 0)?;
        let element = |(key, pair): &(types::pair_key, types::pair)| PairElement {
            victim: (pair.victim_start_ns, key.victim_tid.cast_signed()),
            culprit: Culprit {
                kind: Kind::from_raw(pair.kind),
                pid: key.culprit_tgid.cast_signed(),
                comm: comm(&pair.culprit.comm),
            },
            ns: pair.ns,
        };
        Ok(pairs.iter().map(element).collect())
    }
}

/// Of these processes those that are gone.
pub fn gone(mut pids: HashSet<i32>) -> HashSet<i32> {
    // 0 stands for interrupts.
    pids.retain(|pid| *pid != 0 && host::is_gone(*pid));
    pids
}

fn attach(skel: &VcpulagSkel<'_>) -> Result<Vec<Link>> {
    let progs = &skel.progs;
    let in_order = [
        &progs.sched_process_exit,
        &progs.sched_process_exec,
        &progs.kvm_vcpu_wakeup,
        &progs.sched_migrate_task,
        &progs.sched_switch,
        &progs.kvm_fpu,
    ];
    let links = in_order.map(|prog| {
        prog.attach().with_context(|| format!("failed to attach `{}`", prog.name().display()))
    });
    links.into_iter().collect()
}

fn run_iterator(link: &Link) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Iter::new(link)
        .context("failed to start the task iterator")?
        .read_to_end(&mut bytes)
        .context("failed to read the task iterator")?;
    Ok(bytes)
}

fn set_map_sizes(open: &mut OpenVcpulagSkel<'_>, wanted: &Wanted) -> Result<()> {
    let cpus = u32::try_from(libbpf_rs::num_possible_cpus()?)?;
    let pid_max = host::pid_max()?;
    let threads = pid_max.min((4 * host::threads()?).max(MIN_THREADS));
    // Linux 6.1 is the first to allow allocation there: see kvmexits.
    let preallocated = matches!(MapType::UserRingBuf.is_supported(), Ok(false));
    let most = if preallocated { MAX_PREALLOCATED } else { MAX_ELEMENTS };
    let maps = &mut open.maps;
    maps.vcpus.set_max_entries(u32::try_from(threads)?)?;
    maps.waits.set_max_entries(u32::try_from((threads * OCTAVES_PER_VCPU).min(most))?)?;
    if preallocated {
        maps.vcpus.set_map_flags(0)?;
        maps.waits.set_map_flags(0)?;
        maps.blocks.set_map_flags(0)?;
    }
    if wanted.stacks {
        maps.stacks.set_max_entries(STACKS)?;
        maps.blocks.set_max_entries(BLOCKS)?;
    }
    maps.pids.set_max_entries(u32::try_from(pid_max.div_ceil(PIDS_PER_ELEMENT) + 1)?)?;
    maps.cpu_logs.set_max_entries(cpus)?;
    maps.looks.set_max_entries(cpus + 1)?;
    if wanted.slower.is_some() {
        maps.slow.set_max_entries(SLOW_BYTES)?;
    }
    let knobs = open.maps.rodata_data.as_deref_mut().context("failed to map the knobs")?;
    knobs.cpus = cpus;
    Ok(())
}

fn set_knobs(open: &mut OpenVcpulagSkel<'_>, wanted: &Wanted) -> Result<()> {
    let knobs = open.maps.rodata_data.as_deref_mut().context("failed to map the knobs")?;
    let TaskFilter { pid, tid, cgroup, vm } = &wanted.filter;
    knobs.only_tgid = pid.or(vm.as_ref().map(|vm| vm.pid)).unwrap_or(0);
    knobs.only_tid = tid.unwrap_or(0);
    knobs.only_vcpu_id = wanted.vcpu.map_or(Ok(-1), i32::try_from)?;
    if let Some(cgroup) = cgroup {
        knobs.only_cgroup_id = cgroup.id;
        knobs.only_cgroup_level = cgroup.level;
    }
    knobs.with_stacks = wanted.stacks;
    knobs.slower_ns = wanted.slower.map_or(Ok(0), |slower| u64::try_from(slower.as_nanos()))?;
    Ok(())
}

fn long_waits(skel: &VcpulagSkel<'_>) -> Result<LongWaits> {
    let found = Rc::new(RefCell::new(Vec::new()));
    let to = Rc::clone(&found);
    let mut builder = RingBufferBuilder::new();
    builder.add(&skel.maps.slow, move |bytes: &[u8]| {
        to.borrow_mut().extend(copy_out(bytes).map(|wait| long_wait(&wait)));
        0
    })?;
    Ok((builder.build().context("failed to map the ring buffer")?, found))
}

fn long_wait(wait: &types::long_wait) -> LongWait {
    let ago = Duration::from_nanos(time::monotonic_ns().saturating_sub(wait.end_ns));
    LongWait {
        end: Timestamp::now() - ago,
        thread: Thread {
            vm: vm_id(&wait.vm),
            vcpu: vcpu_id(&wait.vm),
            tid: wait.tid.cast_signed(),
        },
        comm: comm(&wait.comm),
        cpu: wait.cpu,
        wait_ns: wait.wait_ns,
        throttled_ns: wait.throttled_ns,
        preempted: wait.preempted != 0,
        culprit: (wait.culprit_ns > 0).then(|| Culprit {
            kind: Kind::from_raw(wait.culprit_kind),
            pid: wait.culprit_tgid.cast_signed(),
            comm: comm(&wait.culprit.comm),
        }),
        culprit_ns: wait.culprit_ns,
    }
}

/// `enum lag_place` in bpf/vcpulag.h
const RUNNING: u32 = 0;
const PREEMPTED: u32 = 1;
const HALTED: u32 = 2;
const BLOCKED: u32 = 3;

/// What goes on counts up to now.
fn sample(sample: &types::lag_sample) -> Sample {
    let vcpu = &sample.vcpu;
    let mut times = times(&vcpu.times);
    let so_far_ns = sample.now_ns.saturating_sub(vcpu.since_ns);
    let mut waiting_ns = None;
    match vcpu.place {
        RUNNING if vcpu.inside != 0 => times.run_ns += so_far_ns,
        RUNNING => {
            times.vmm_ns += so_far_ns;
            times.vmm_cpu_ns += so_far_ns;
        }
        PREEMPTED => {
            let throttled_ns = sample.throttled_ns.saturating_sub(vcpu.off_throttled_ns);
            let throttled_ns = throttled_ns.min(so_far_ns);
            times.wait_throttled_ns += throttled_ns;
            times.wait_preempted_ns += so_far_ns - throttled_ns;
            waiting_ns = Some(so_far_ns);
        }
        asleep => {
            // What it waited on other run queues is in the books already.
            let before_ns = sample.run_delay_ns.saturating_sub(vcpu.seen_run_delay_ns);
            let wait_ns = match sample.queued_for_ns {
                0 => 0,
                queued_for_ns => (before_ns + queued_for_ns).min(so_far_ns),
            };
            times.wait_wakeup_ns += wait_ns;
            waiting_ns = (wait_ns > 0).then_some(wait_ns);
            let asleep_ns = so_far_ns - wait_ns;
            match asleep {
                HALTED => times.halt_ns += asleep_ns,
                BLOCKED => times.blocked_ns += asleep_ns,
                _ => times.vmm_ns += asleep_ns,
            }
        }
    }
    Sample {
        thread: thread(vcpu, sample.tid),
        comm: comm(&vcpu.comm),
        times,
        waiting_ns,
        ended: false,
    }
}

fn thread(vcpu: &types::lag_vcpu, tid: u32) -> Thread {
    Thread { vm: vm_id(&vcpu.vm), vcpu: vcpu_id(&vcpu.vm), tid: tid.cast_signed() }
}

fn vm_id(vm: &types::vm_id) -> VmId {
    VmId { pid: vm.tgid.cast_signed(), start_boottime_ns: vm.start_boottime_ns }
}

/// `VCPU_ID_UNKNOWN` in bpf/vcpulag.h is all ones.
fn vcpu_id(vm: &types::vm_id) -> Option<u32> {
    (vm.vcpu_id != u32::MAX).then_some(vm.vcpu_id)
}

fn times(times: &types::lag_times) -> Times {
    let types::lag_times {
        run_ns,
        poll_ns,
        vmm_ns,
        vmm_cpu_ns,
        halt_ns,
        blocked_ns,
        wait_wakeup_ns,
        wait_preempted_ns,
        wait_throttled_ns,
        wakeups,
        preemptions,
        culprits_ns,
    } = *times;
    Times {
        run_ns,
        poll_ns,
        vmm_ns,
        vmm_cpu_ns,
        halt_ns,
        blocked_ns,
        wait_wakeup_ns,
        wait_preempted_ns,
        wait_throttled_ns,
        wakeups,
        preemptions,
        culprits_ns,
    }
}

fn comm(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
