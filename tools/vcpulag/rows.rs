//! From what is known of each vCPU to rows: where its time went in the interval, and who is to blame. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use common::hist::{Hist, Octave};

/// The process that runs a VM: a PID may be another's later, but not with the same start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId {
    /// The process ID.
    pub pid: i32,
    /// When it started, in nanoseconds since boot.
    pub start_boottime_ns: u64,
}

/// A vCPU's thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Thread {
    /// Its VM.
    pub vm: VmId,
    /// The kernel's vcpu_id, if known.
    pub vcpu: Option<u32>,
    /// The thread ID.
    pub tid: i32,
}

/// What sort of task ran while a vCPU waited, as `enum culprit_kind` in bpf/vcpulag.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Another VM: its vCPU, or another thread of its process.
    Vm,
    /// The same VM.
    Sibling,
    /// Any other process.
    Task,
    /// A kernel thread.
    Kernel,
    /// The idle task: the vCPU was on its way to the CPU.
    Nobody,
    /// Interrupts, as far as the kernel counts them, and on a host that is a guest itself its own steal time.
    Interrupts,
}

/// All kinds, in the kernel's order.
pub const KINDS: [Kind; 6] =
    [Kind::Vm, Kind::Sibling, Kind::Task, Kind::Kernel, Kind::Nobody, Kind::Interrupts];

impl Kind {
    /// From the kernel's number.
    pub fn from_raw(raw: u32) -> Self {
        KINDS.get(raw as usize).copied().unwrap_or(Self::Nobody)
    }

    /// For CSV.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Sibling => "same vm",
            Self::Task => "task",
            Self::Kernel => "kernel",
            Self::Nobody => "nobody",
            Self::Interrupts => "interrupts",
        }
    }
}

/// Where a vCPU's time has gone since its thread is known, in nanoseconds and numbers; only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// On a CPU inside KVM_RUN.
    pub run_ns: u64,
    /// Of it, polling in HLT.
    pub poll_ns: u64,
    /// Outside KVM_RUN, on a CPU or asleep.
    pub vmm_ns: u64,
    /// Of it, on a CPU.
    pub vmm_cpu_ns: u64,
    /// Asleep in HLT.
    pub halt_ns: u64,
    /// Asleep inside KVM_RUN otherwise.
    pub blocked_ns: u64,
    /// Waiting for a CPU after a wake-up.
    pub wait_wakeup_ns: u64,
    /// Waiting for a CPU after having been pushed off one.
    pub wait_preempted_ns: u64,
    /// Waiting for its own quota.
    pub wait_throttled_ns: u64,
    /// Waits that began with a wake-up.
    pub wakeups: u64,
    /// Waits that began with a preemption.
    pub preemptions: u64,
    /// Who ran meanwhile, in the order of [`KINDS`].
    pub culprits_ns: [u64; KINDS.len()],
}

impl Times {
    fn fields_mut(&mut self) -> impl Iterator<Item = &mut u64> {
        let Self {
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
        } = self;
        [
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
        ]
        .into_iter()
        .chain(culprits_ns)
    }

    /// What was added since `earlier`.
    fn since(mut self, mut earlier: Self) -> Self {
        let whole = (self.sum_ns()).saturating_sub(earlier.sum_ns());
        for (now, before) in self.fields_mut().zip(earlier.fields_mut()) {
            // How a wait that goes on began, whether a quota is in its way, and when a sleep became one, is known for
            // certain only at its end: what was taken for one may turn out to be another.
            *now = now.saturating_sub(*before);
        }
        let mut excess = self.sum_ns().saturating_sub(whole);
        for part in [
            &mut self.wait_throttled_ns,
            &mut self.wait_preempted_ns,
            &mut self.wait_wakeup_ns,
            &mut self.halt_ns,
            &mut self.blocked_ns,
            &mut self.vmm_ns,
            &mut self.run_ns,
        ] {
            let taken = excess.min(*part);
            *part -= taken;
            excess -= taken;
        }
        self.vmm_cpu_ns = self.vmm_cpu_ns.min(self.vmm_ns);
        self
    }

    fn add(&mut self, mut other: Self) {
        for (sum, n) in self.fields_mut().zip(other.fields_mut()) {
            *sum += *n;
        }
    }

    /// All waits.
    pub fn wait_ns(&self) -> u64 {
        self.wait_wakeup_ns + self.wait_preempted_ns + self.wait_throttled_ns
    }

    /// The five states: all time that there was.
    pub fn sum_ns(&self) -> u64 {
        self.run_ns + self.wait_ns() + self.halt_ns + self.blocked_ns + self.vmm_ns
    }

    /// Waits of which it is not known who ran meanwhile: what the log had forgotten.
    pub fn unknown_ns(&self) -> u64 {
        let known: u64 = self.culprits_ns.iter().sum::<u64>() + self.wait_throttled_ns;
        self.wait_ns().saturating_sub(known)
    }

    /// Waits for others, by kind; the last is what nobody can be blamed for, as it is not known who ran.
    pub fn blamed_ns(&self, kind: Kind) -> u64 {
        KINDS.iter().position(|k| *k == kind).map_or(0, |at| self.culprits_ns[at])
    }
}

/// A vCPU at an interval's end.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which.
    pub thread: Thread,
    /// Its process's name.
    pub comm: String,
    /// Up to now.
    pub times: Times,
    /// How long it has waited, if it waits.
    pub waiting_ns: Option<u64>,
    /// Its thread has ended: this is the last of it.
    pub ended: bool,
}

/// Waits of one vCPU and one power of two, since its thread is known.
#[derive(Clone, Debug)]
pub struct WaitsElement {
    /// The process's start and the thread.
    pub id: (u64, i32),
    /// Which power of two.
    pub octave: u32,
    /// The counters.
    pub counts: Octave,
}

/// Time that one process has taken from one vCPU, since that is known.
#[derive(Clone, Debug)]
pub struct PairElement {
    /// The victim's process's start and thread.
    pub victim: (u64, i32),
    /// The process that ran.
    pub culprit: Culprit,
    /// For how long.
    pub ns: u64,
}

/// Who ran.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Culprit {
    /// What sort of task.
    pub kind: Kind,
    /// The process.
    pub pid: i32,
    /// A thread's name of it, when it was first seen.
    pub comm: String,
}

/// All that an interval's end finds.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The interval's number, which extremes carry.
    pub epoch: u32,
    /// vCPUs.
    pub samples: Vec<Sample>,
    /// Their waits.
    pub waits: Vec<WaitsElement>,
    /// Who made them wait.
    pub pairs: Vec<PairElement>,
}

/// What was read last, to be subtracted from what is read next.
#[derive(Default)]
pub struct Earlier {
    times: HashMap<(u64, i32), Times>,
    waits: HashMap<((u64, i32), u32), Octave>,
    /// By victim and the culprit's PID, as in the kernel: what it is called and taken for may change.
    pairs: HashMap<((u64, i32), i32), u64>,
}

/// A vCPU, or all of a VM, in one interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// The vCPU, if rows are by vCPU.
    pub thread: Option<Thread>,
    /// How many vCPUs there are in it.
    pub vcpus: u64,
    /// Where their time went.
    pub times: Times,
    /// Waits that ended in the interval.
    pub waits: Hist,
    /// The longest wait that goes on.
    pub waiting_ns: Option<u64>,
    /// Who made them wait, the worst first.
    pub culprits: Vec<(Culprit, u64)>,
}

impl Row {
    fn new(thread: Thread, by_vm: bool) -> Self {
        Self { vm: thread.vm, thread: (!by_vm).then_some(thread), ..Self::default() }
    }
}

/// Makes rows of a reading, the longest wait first.
pub fn rows(by_vm: bool, reading: &Reading, earlier: &mut Earlier) -> Vec<Row> {
    let mut rows: BTreeMap<(VmId, Option<Thread>), Row> = BTreeMap::new();
    let mut threads: HashMap<(u64, i32), Thread> = HashMap::new();
    for sample in &reading.samples {
        let thread = sample.thread;
        let id = (thread.vm.start_boottime_ns, thread.tid);
        threads.insert(id, thread);
        let key = (thread.vm, (!by_vm).then_some(thread));
        let row = rows.entry(key).or_insert_with(|| Row::new(thread, by_vm));
        let before = earlier.times.insert(id, sample.times).unwrap_or_default();
        row.times.add(sample.times.since(before));
        row.vcpus += 1;
        row.waiting_ns = row.waiting_ns.max(sample.waiting_ns);
        row.name.clone_from(&sample.comm);
    }
    let key_of = |id: (u64, i32)| {
        let thread = threads.get(&id)?;
        Some((thread.vm, (!by_vm).then_some(*thread)))
    };
    // A vCPU that has come since the samples were taken has no row yet: what it has is the next interval's.
    for element in &reading.waits {
        let Some(row) = key_of(element.id).and_then(|key| rows.get_mut(&key)) else { continue };
        let before = earlier.waits.insert((element.id, element.octave), element.counts.clone());
        let since = element.counts.since(&before.unwrap_or_default());
        row.waits.add(element.octave as usize, &since, reading.epoch);
    }
    let mut blamed: HashMap<_, BTreeMap<Culprit, u64>> = HashMap::new();
    for pair in &reading.pairs {
        let Some(key) = key_of(pair.victim) else { continue };
        let before = earlier.pairs.insert((pair.victim, pair.culprit.pid), pair.ns);
        let ns = pair.ns - before.unwrap_or(0).min(pair.ns);
        if ns > 0 {
            *blamed.entry(key).or_default().entry(pair.culprit.clone()).or_default() += ns;
        }
    }
    for (key, culprits) in blamed {
        if let Some(row) = rows.get_mut(&key) {
            row.culprits = culprits.into_iter().collect();
            row.culprits.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
        }
    }
    let mut rows: Vec<Row> = rows.into_values().collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(row.times.wait_ns()), row.vm, row.thread));
    rows
}

impl Earlier {
    /// Forgets vCPUs whose threads have ended, by their processes' starts and thread IDs.
    pub fn forget(&mut self, ended: &HashSet<(u64, i32)>) {
        self.times.retain(|id, _| !ended.contains(id));
        self.waits.retain(|(id, _), _| !ended.contains(id));
        self.pairs.retain(|(victim, _), _| !ended.contains(victim));
    }
}
