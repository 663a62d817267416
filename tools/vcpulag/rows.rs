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
        // Polling is counted when the halt ends, and may have been in the interval before.
        self.poll_ns = self.poll_ns.min(self.run_ns);
        self
    }

    /// Adds those of another vCPU, or of a later time.
    pub fn add(&mut self, mut other: Self) {
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

    /// Waits for those who have names, if there is room for them: all but the idle task.
    pub fn named_ns(&self) -> u64 {
        self.culprits_ns.iter().sum::<u64>() - self.blamed_ns(Kind::Nobody)
    }

    /// Waits for one kind of others.
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
    /// Its name when it was first seen.
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
    /// The processes of all culprits.
    pub fn culprits(&self) -> HashSet<i32> {
        self.pairs.keys().map(|(_, culprit)| *culprit).collect()
    }

    /// Forgets vCPUs whose threads have ended, by their processes' starts and thread IDs, and culprits that are gone, by
    /// their processes.
    pub fn forget(&mut self, ended: &HashSet<(u64, i32)>, gone: &HashSet<i32>) {
        self.times.retain(|id, _| !ended.contains(id));
        self.waits.retain(|(id, _), _| !ended.contains(id));
        self.pairs.retain(|(victim, pid), _| !ended.contains(victim) && !gone.contains(pid));
    }
}

#[cfg(test)]
mod tests {
    use common::hist::FIRST_EPOCH;

    use super::*;

    const VM: VmId = VmId { pid: 4_200, start_boottime_ns: 1 };
    const OTHER: VmId = VmId { pid: 4_300, start_boottime_ns: 2 };

    fn thread(vm: VmId, tid: i32) -> Thread {
        Thread { vm, vcpu: Some(0), tid }
    }

    fn sample(thread: Thread, times: Times) -> Sample {
        Sample { thread, comm: "qemu".to_owned(), times, waiting_ns: None, ended: false }
    }

    fn id(thread: Thread) -> (u64, i32) {
        (thread.vm.start_boottime_ns, thread.tid)
    }

    /// So many waits of 1,024 ns since the start, of which the longest in each of the two latest epochs is known.
    fn waits(thread: Thread, count: u64, highest: [u64; 2]) -> WaitsElement {
        let mut counts = Octave { sum_ns: count * 1_024, highest, ..Octave::default() };
        counts.slots[0] = count;
        WaitsElement { id: id(thread), octave: 6, counts }
    }

    fn culprit(kind: Kind, pid: i32, comm: &str) -> Culprit {
        Culprit { kind, pid, comm: comm.to_owned() }
    }

    fn pair(thread: Thread, culprit: Culprit, ns: u64) -> PairElement {
        PairElement { victim: id(thread), culprit, ns }
    }

    fn reading(samples: &[Sample]) -> Reading {
        Reading { epoch: FIRST_EPOCH, samples: samples.to_vec(), ..Reading::default() }
    }

    /// One vCPU's times in the second of two intervals.
    fn second(first: Times, second: Times) -> Times {
        let (mut earlier, vcpu) = (Earlier::default(), thread(VM, 7));
        rows(false, &reading(&[sample(vcpu, first)]), &mut earlier);
        rows(false, &reading(&[sample(vcpu, second)]), &mut earlier)[0].times
    }

    #[test]
    fn only_what_is_new_is_counted() {
        let mut earlier = Earlier::default();
        let vcpu = thread(VM, 7);
        let at = |n: u64| {
            let times = Times { run_ns: 10 * n, wakeups: n, ..Times::default() };
            let waits = vec![waits(vcpu, n, [0; 2])];
            let pairs = vec![pair(vcpu, culprit(Kind::Task, 9, "backup"), 100 * n)];
            Reading { waits, pairs, ..reading(&[sample(vcpu, times)]) }
        };
        rows(false, &at(3), &mut earlier);
        let row = &rows(false, &at(5), &mut earlier)[0];
        assert_eq!((row.times.run_ns, row.times.wakeups), (20, 2));
        assert_eq!((row.waits.count(), row.waits.sum_ns()), (2, 2 * 1_024));
        assert_eq!(row.culprits, [(culprit(Kind::Task, 9, "backup"), 200)]);
        let row = &rows(false, &at(5), &mut earlier)[0];
        assert_eq!((row.times, row.waits.count()), (Times::default(), 0));
        assert_eq!(row.culprits, [], "who has taken nothing is not one");
    }

    #[test]
    fn a_wait_that_turns_out_to_be_of_another_kind_is_not_counted_twice() {
        // 10 of a wait that goes on were taken for a preemption's; at its end, 18 of 20 were for its quota.
        let so_far = Times { wait_preempted_ns: 10, run_ns: 5, ..Times::default() };
        let end =
            Times { wait_preempted_ns: 2, wait_throttled_ns: 18, run_ns: 8, ..Times::default() };
        let times = second(so_far, end);
        assert_eq!((times.sum_ns(), times.wait_ns(), times.run_ns), (13, 10, 3));
        // Where the correction is larger than all that came, nothing is below 0.
        let end = Times { wait_wakeup_ns: 11, run_ns: 5, ..Times::default() };
        let times = second(so_far, end);
        assert_eq!((times.wait_wakeup_ns, times.wait_preempted_ns, times.run_ns), (1, 0, 0));
    }

    #[test]
    fn a_wait_that_turns_out_to_be_none_leaves_no_more_than_there_was() {
        // 10 were taken for a wait, of which 7 were still sleep; since then it has run for 5.
        let so_far = Times { wait_wakeup_ns: 10, ..Times::default() };
        let end = Times { wait_wakeup_ns: 3, halt_ns: 7, run_ns: 5, ..Times::default() };
        let times = second(so_far, end);
        assert_eq!((times.sum_ns(), times.run_ns, times.halt_ns), (5, 5, 0));
        // Likewise for the VMM, of whose time on a CPU there is no more than of its time.
        let vmm = Times { vmm_ns: 7, vmm_cpu_ns: 7, wait_wakeup_ns: 3, ..Times::default() };
        let times = second(so_far, Times { run_ns: 2, ..vmm });
        assert_eq!((times.sum_ns(), times.run_ns, times.vmm_ns), (2, 2, 0));
        assert_eq!(times.vmm_cpu_ns, 0);
        // And where running turns out to have been a wait.
        let so_far = Times { run_ns: 10, ..Times::default() };
        let times = second(so_far, Times { wait_wakeup_ns: 12, run_ns: 1, ..Times::default() });
        assert_eq!((times.sum_ns(), times.wait_wakeup_ns), (3, 3));
    }

    #[test]
    fn waits_whose_log_was_forgotten_are_of_unknown_fault() {
        let mut times = Times {
            wait_wakeup_ns: 50,
            wait_preempted_ns: 30,
            wait_throttled_ns: 20,
            culprits_ns: [10, 9, 8, 7, 6, 5],
            ..Times::default()
        };
        assert_eq!(times.unknown_ns(), 100 - 20 - 45);
        let by_kind = KINDS.map(|kind| times.blamed_ns(kind));
        assert_eq!(by_kind, times.culprits_ns);
        times.culprits_ns[0] = 1_000;
        assert_eq!(times.unknown_ns(), 0, "the two are of two clocks");
    }

    #[test]
    fn a_thread_that_ends_has_a_last_row_and_its_successor_begins_at_0() {
        let mut earlier = Earlier::default();
        let vcpu = thread(VM, 7);
        let at = |times, count, ns, ended| Reading {
            waits: vec![waits(vcpu, count, [0; 2])],
            pairs: vec![pair(vcpu, culprit(Kind::Task, 9, "backup"), ns)],
            ..reading(&[Sample { ended, ..sample(vcpu, times) }])
        };
        let run = |run_ns| Times { run_ns, ..Times::default() };
        rows(false, &at(run(100), 50, 70, false), &mut earlier);
        let last = &rows(false, &at(run(130), 60, 90, true), &mut earlier)[0];
        assert_eq!((last.times.run_ns, last.waits.count(), last.culprits[0].1), (30, 10, 20));
        earlier.forget(&HashSet::from([id(vcpu)]), &HashSet::new());
        // The next thread of this process with this ID has all of its own.
        let next = &rows(false, &at(run(40), 3, 5, false), &mut earlier)[0];
        assert_eq!((next.times.run_ns, next.waits.count(), next.culprits[0].1), (40, 3, 5));
    }

    #[test]
    fn a_culprit_that_is_gone_begins_at_0_if_its_pid_comes_back() {
        let mut earlier = Earlier::default();
        let vcpu = thread(VM, 7);
        let at = |ns| Reading {
            pairs: vec![pair(vcpu, culprit(Kind::Task, 9, "backup"), ns)],
            ..reading(&[sample(vcpu, Times::default())])
        };
        rows(false, &at(70), &mut earlier);
        assert_eq!(earlier.culprits(), HashSet::from([9]));
        earlier.forget(&HashSet::new(), &HashSet::from([9]));
        assert_eq!(rows(false, &at(5), &mut earlier)[0].culprits[0].1, 5);
    }

    #[test]
    fn those_that_live_are_not_forgotten_with_those_that_end() {
        let mut earlier = Earlier::default();
        let (dead, alive) = (thread(VM, 7), thread(OTHER, 7));
        let times = Times { run_ns: 100, ..Times::default() };
        rows(false, &reading(&[sample(dead, times), sample(alive, times)]), &mut earlier);
        earlier.forget(&HashSet::from([id(dead)]), &HashSet::new());
        let rows = rows(false, &reading(&[sample(alive, times)]), &mut earlier);
        assert_eq!((rows.len(), rows[0].times), (1, Times::default()));
    }

    #[test]
    fn a_pid_that_comes_back_is_another_vm() {
        let later = VmId { start_boottime_ns: 9, ..VM };
        let times = |run_ns| Times { run_ns, ..Times::default() };
        let (old, new) = (thread(VM, 4_200), thread(later, 4_200));
        for by_vm in [false, true] {
            let mut earlier = Earlier::default();
            rows(by_vm, &reading(&[sample(old, times(100))]), &mut earlier);
            let both = reading(&[sample(old, times(110)), sample(new, times(105))]);
            let run = |row: &Row| (row.vm.start_boottime_ns, row.vcpus, row.times.run_ns);
            let rows = rows(by_vm, &both, &mut earlier);
            assert_eq!(rows.iter().map(run).collect::<Vec<_>>(), [(1, 1, 10), (9, 1, 105)]);
        }
    }

    #[test]
    fn what_a_vcpu_that_comes_as_the_interval_ends_has_is_the_nexts() {
        let mut earlier = Earlier::default();
        let (vcpu, new) = (thread(VM, 7), thread(OTHER, 8));
        let more = Reading {
            waits: vec![waits(new, 5, [0; 2])],
            pairs: vec![pair(new, culprit(Kind::Task, 9, "backup"), 70)],
            ..reading(&[sample(vcpu, Times::default())])
        };
        assert_eq!(rows(false, &more, &mut earlier).len(), 1);
        let samples = vec![sample(new, Times::default())];
        let row = &rows(false, &Reading { samples, ..more }, &mut earlier)[0];
        assert_eq!((row.waits.count(), row.culprits[0].1), (5, 70));
    }

    #[test]
    fn the_longest_wait_is_that_of_the_interval() {
        // As bpf/hist.bpf.h: 44 bits below the epoch, one each for odd and even ones.
        let of = |epoch: u32, ns: u64| u64::from(epoch) << 44 | ns;
        let (mut earlier, vcpu) = (Earlier::default(), thread(VM, 7));
        let at = |epoch, count, highest| Reading {
            epoch,
            waits: vec![waits(vcpu, count, highest)],
            ..reading(&[sample(vcpu, Times::default())])
        };
        let highest = [0, of(1, 1_055)];
        let row = &rows(false, &at(1, 3, highest), &mut earlier)[0];
        assert_eq!(row.waits.max_ns(), Some(1_055));
        let highest = [of(2, 1_030), of(1, 1_055)];
        let row = &rows(false, &at(2, 4, highest), &mut earlier)[0];
        assert_eq!(row.waits.max_ns(), Some(1_030));
    }

    #[test]
    fn a_vms_row_has_all_of_its_vcpus_and_its_culprits_once() {
        let waits_for = |ns| Times { wait_preempted_ns: ns, preemptions: 1, ..Times::default() };
        let [a, b, c] = [thread(VM, 7), thread(VM, 8), thread(OTHER, 9)];
        let waiting = |ns, sample| Sample { waiting_ns: ns, ..sample };
        let backup = || culprit(Kind::Task, 9, "backup");
        let twin = || culprit(Kind::Task, 10, "backup");
        let interrupts = || culprit(Kind::Interrupts, 0, "");
        let reading = Reading {
            waits: vec![waits(a, 2, [0; 2]), waits(b, 3, [0; 2]), waits(c, 7, [0; 2])],
            pairs: vec![
                pair(a, twin(), 25),
                pair(a, backup(), 20),
                pair(b, backup(), 30),
                pair(b, interrupts(), 3),
                pair(a, interrupts(), 4),
                pair(c, backup(), 1_000),
            ],
            ..reading(&[
                waiting(Some(8), sample(a, waits_for(45))),
                waiting(None, sample(c, waits_for(1_000))),
                waiting(Some(5), sample(b, waits_for(46))),
            ])
        };
        let by_vm = rows(true, &reading, &mut Earlier::default());
        let [other, vm] = &by_vm[..] else { panic!("{by_vm:?}") };
        assert_eq!((other.vm, other.vcpus, other.times.wait_ns()), (OTHER, 1, 1_000));
        assert_eq!((vm.vm, vm.vcpus, vm.thread, vm.waiting_ns), (VM, 2, None, Some(8)));
        assert_eq!((vm.times.wait_ns(), vm.times.preemptions, vm.waits.count()), (91, 2, 5));
        assert_eq!(vm.culprits, [(backup(), 50), (twin(), 25), (interrupts(), 7)]);
        // By vCPU, the one that waited the longest comes first.
        let by_vcpu = rows(false, &reading, &mut Earlier::default());
        let threads: Vec<_> = by_vcpu.iter().map(|row| row.thread).collect();
        assert_eq!(threads, [c, b, a].map(Some));
        assert_eq!(by_vcpu[1].culprits, [(backup(), 30), (interrupts(), 3)]);
    }

    #[test]
    fn a_culprit_that_becomes_known_as_a_vm_keeps_what_it_was_blamed_for() {
        let (mut earlier, vcpu) = (Earlier::default(), thread(VM, 7));
        let mut at = |kind, comm, ns| {
            let pairs = vec![pair(vcpu, culprit(kind, 4_300, comm), ns)];
            let reading = Reading { pairs, ..reading(&[sample(vcpu, Times::default())]) };
            rows(false, &reading, &mut earlier)[0].culprits.clone()
        };
        at(Kind::Task, "qemu", 100);
        assert_eq!(at(Kind::Vm, "qemu", 130), [(culprit(Kind::Vm, 4_300, "qemu"), 30)]);
    }
}
