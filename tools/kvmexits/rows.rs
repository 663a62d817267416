//! From the kernel's counters to rows: what was added since the last read, gathered as the user asked. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;

use common::exits::Reason;
use common::hist::{Hist, Octave};

use crate::detail::Detail;

/// The process that runs a VM: a PID may be another's later, but not with the same start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId {
    /// The process ID.
    pub pid: i32,
    /// When it started, in nanoseconds since boot.
    pub start_boottime_ns: u64,
}

/// Where time went, in nanoseconds; inside KVM what is in none of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// In the VMM, on a CPU or asleep.
    pub userspace_ns: u64,
    /// Asleep inside KVM_RUN.
    pub asleep_ns: u64,
    /// Waiting for a CPU.
    pub runqueue_ns: u64,
}

impl Parts {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            userspace_ns: self.userspace_ns - earlier.userspace_ns,
            asleep_ns: self.asleep_ns - earlier.asleep_ns,
            runqueue_ns: self.runqueue_ns - earlier.runqueue_ns,
        }
    }

    fn add(&mut self, other: &Self) {
        self.userspace_ns += other.userspace_ns;
        self.asleep_ns += other.asleep_ns;
        self.runqueue_ns += other.runqueue_ns;
    }

    fn sum_ns(&self) -> u64 {
        self.userspace_ns + self.asleep_ns + self.runqueue_ns
    }
}

/// Whose exits, and what they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The VM; all the same if nobody asks for it.
    pub vm: VmId,
    /// The kernel's vcpu_id, if known.
    pub vcpu: Option<u32>,
    /// The thread or the CPU that alone writes an element.
    pub writer: u32,
    /// The reason.
    pub reason: Reason,
    /// What the reason does not say.
    pub detail: Option<Detail>,
}

/// The exits of one source and one power of two, since the program's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The histogram.
    pub octave: Octave,
    /// Where the time went.
    pub parts: Parts,
}

/// What tells the elements of the kernel's map apart: the bytes of `struct exits_key` in bpf/kvmexits.h.
pub type ElementId = [u8; 48];

/// One element of the kernel's map.
#[derive(Clone, Debug)]
pub struct Element {
    /// Which: two may have the same source, as reasons lose their flag bits.
    pub id: ElementId,
    /// Whose.
    pub source: Source,
    /// Which power of two.
    pub octave: u32,
    /// What it has counted.
    pub counts: Counts,
    /// The process's name.
    pub comm: String,
}

/// An exit that has not ended.
#[derive(Clone, Debug)]
pub struct Open {
    /// Whose.
    pub source: Source,
    /// How long it has lasted.
    pub total_ns: u64,
    /// Where that time went.
    pub parts: Parts,
    /// The process's name.
    pub comm: String,
}

/// What rows are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct By {
    /// The VM.
    pub vm: bool,
    /// The vCPU, and so the VM.
    pub vcpu: bool,
    /// The reason.
    pub reason: bool,
    /// What the reason does not say, and so the reason.
    pub detail: bool,
}

/// A row's key: `None` for what rows are not told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The VM.
    pub vm: Option<VmId>,
    /// The kernel's vcpu_id; `Some(None)` where it is not known.
    pub vcpu: Option<Option<u32>>,
    /// Whether the exits are those to userspace, whose time is part of the others'.
    pub userspace: bool,
    /// The reason.
    pub reason: Option<Reason>,
    /// The detail, if there is any.
    pub detail: Option<Detail>,
}

/// The exits of one key in one interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose, and what.
    pub key: Key,
    /// The VM's name.
    pub vm: String,
    /// How long they took.
    pub hist: Hist,
    /// Where the time went.
    pub parts: Parts,
    /// How much of it a halted vCPU had nothing to do, which is no cost.
    pub idle_ns: u64,
    /// Exits that go on at the end of the interval.
    pub open: u64,
    /// The longest of them so far.
    pub longest_open_ns: Option<u64>,
}

impl Row {
    /// A key without any exits.
    pub fn new(key: Key) -> Self {
        Self {
            key,
            vm: String::new(),
            hist: Hist::default(),
            parts: Parts::default(),
            idle_ns: 0,
            open: 0,
            longest_open_ns: None,
        }
    }

    /// The time in KVM: what is in no other part.
    pub fn kernel_ns(&self) -> u64 {
        self.hist.sum_ns().saturating_sub(self.parts.sum_ns())
    }

    /// The time that somebody may have waited for.
    pub fn cost_ns(&self) -> u64 {
        self.hist.sum_ns().saturating_sub(self.idle_ns)
    }
}

/// What of this time a halted vCPU had nothing to do.
fn idle_ns(reason: Reason, parts: &Parts) -> u64 {
    match reason.is_halt() {
        // A VMM that halts its vCPUs itself sleeps in its own time.
        true => parts.asleep_ns + parts.userspace_ns,
        false => 0,
    }
}

/// What elements had counted when they were read last.
#[derive(Default)]
pub struct Earlier(HashMap<ElementId, Last>);

struct Last {
    vm: VmId,
    writer: u32,
    counts: Counts,
    changed: bool,
}

impl Earlier {
    fn since(&mut self, element: &Element) -> Counts {
        let now = &element.counts;
        let Source { vm, writer, .. } = element.source;
        let last = Last { vm, writer, counts: now.clone(), changed: true };
        let Some(before) = self.0.insert(element.id, last) else {
            return now.clone();
        };
        let before = before.counts;
        if let Some(last) = self.0.get_mut(&element.id) {
            last.changed = *now != before;
        }
        Counts { octave: now.octave.since(&before.octave), parts: now.parts.since(&before.parts) }
    }

    /// Forgets elements that had not changed when they were read last and whose writer is not `alive`: nothing more
    /// will be counted there. Returns which.
    pub fn forget(&mut self, alive: &HashSet<(VmId, u32)>) -> Vec<ElementId> {
        let forgotten = |_: &ElementId, last: &mut Last| {
            !last.changed && !alive.contains(&(last.vm, last.writer))
        };
        self.0.extract_if(forgotten).map(|(id, _)| id).collect()
    }
}

/// The rows of an interval that is going on.
pub struct Rows {
    by: By,
    rows: BTreeMap<Key, Row>,
    comms: HashMap<VmId, String>,
}

impl Rows {
    /// None yet.
    pub fn new(by: By) -> Self {
        Self { by, rows: BTreeMap::new(), comms: HashMap::new() }
    }

    fn row(&mut self, source: &Source, comm: &str) -> &mut Row {
        let by = self.by;
        let key = Key {
            vm: by.vm.then_some(source.vm),
            vcpu: by.vcpu.then_some(source.vcpu),
            userspace: source.reason.kind() == "userspace",
            reason: by.reason.then_some(source.reason),
            detail: source.detail.filter(|_| by.detail),
        };
        if by.vm && !self.comms.contains_key(&source.vm) {
            self.comms.insert(source.vm, comm.to_owned());
        }
        self.rows.entry(key).or_insert_with(|| Row::new(key))
    }

    /// Adds what elements have counted since they were read last, in the interval that is number `epoch`.
    pub fn add(&mut self, elements: &[Element], earlier: &mut Earlier, epoch: u32) {
        for element in elements {
            let since = earlier.since(element);
            if since.octave.slots.iter().all(|&n| n == 0) && since.octave.sum_ns == 0 {
                continue;
            }
            let idle_ns = idle_ns(element.source.reason, &since.parts);
            let row = self.row(&element.source, &element.comm);
            row.hist.add(element.octave as usize, &since.octave, epoch);
            row.parts.add(&since.parts);
            row.idle_ns += idle_ns;
        }
    }

    /// Notes exits that go on at the end of the interval.
    pub fn note(&mut self, open: &[Open]) {
        for open in open {
            let row = self.row(&open.source, &open.comm);
            row.open += 1;
            row.longest_open_ns = row.longest_open_ns.max(Some(open.total_ns));
        }
    }

    /// Counts exits that go on when the last interval ends, as far as they have come.
    pub fn close(&mut self, open: &[Open]) {
        for open in open {
            let idle_ns = idle_ns(open.source.reason, &open.parts);
            let row = self.row(&open.source, &open.comm);
            row.hist.record(open.total_ns);
            row.parts.add(&open.parts);
            row.idle_ns += idle_ns;
        }
    }

    /// The rows so far, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// Ends the interval: its rows, those that cost the most first. `name` is asked for the name of a VM, given its
    /// process's.
    pub fn take(&mut self, mut name: impl FnMut(VmId, &str) -> String) -> Vec<Row> {
        let comms = mem::take(&mut self.comms);
        let mut rows: Vec<Row> = mem::take(&mut self.rows).into_values().collect();
        for row in &mut rows {
            if let Some(vm) = row.key.vm {
                row.vm = name(vm, comms.get(&vm).map_or("", String::as_str));
            }
        }
        rows.sort_by_key(|row| (row.key.userspace, std::cmp::Reverse(row.cost_ns()), row.key));
        rows
    }
}

#[cfg(test)]
mod tests {
    use common::hist::FIRST_EPOCH;

    use super::*;

    const BY_VM: By = By { vm: true, vcpu: false, reason: true, detail: false };
    const BY_REASON: By = By { vm: false, ..BY_VM };
    const VM: VmId = VmId { pid: 4_200, start_boottime_ns: 1 };

    fn io() -> Reason {
        Reason::userspace(2, 0)
    }

    fn hlt() -> Reason {
        Reason::hardware(2, 0x78)
    }

    fn source(vm: VmId, writer: u32, reason: Reason) -> Source {
        Source { vm, vcpu: Some(0), writer, reason, detail: None }
    }

    /// So many exits of 1,024 ns, of which the VMM had 1,000.
    fn element(id: u8, source: Source, exits: u32) -> Element {
        let sum_ns = u64::from(exits) * 1_024;
        let mut octave = Octave { sum_ns, ..Octave::default() };
        octave.slots[0] = exits.into();
        let parts = Parts { userspace_ns: u64::from(exits) * 1_000, ..Parts::default() };
        Element {
            id: [id; 48],
            source,
            octave: 10,
            counts: Counts { octave, parts },
            comm: "qemu".to_owned(),
        }
    }

    fn named(vm: VmId, comm: &str) -> String {
        format!("{comm}-{}-{}", vm.pid, vm.start_boottime_ns)
    }

    fn summary(rows: &[Row]) -> Vec<(String, u64, u64)> {
        rows.iter().map(|row| (row.vm.clone(), row.hist.count(), row.parts.userspace_ns)).collect()
    }

    #[test]
    fn only_what_is_new_is_counted() {
        let (mut rows, mut earlier) = (Rows::new(BY_VM), Earlier::default());
        let element = |exits| element(1, source(VM, 7, io()), exits);
        rows.add(&[element(5)], &mut earlier, FIRST_EPOCH);
        rows.add(&[element(8)], &mut earlier, FIRST_EPOCH);
        assert_eq!(summary(&rows.take(named)), [("qemu-4200-1".to_owned(), 8, 8_000)]);
        rows.add(&[element(8)], &mut earlier, FIRST_EPOCH + 1);
        assert_eq!(rows.take(named), []);
        rows.add(&[element(9)], &mut earlier, FIRST_EPOCH + 2);
        assert_eq!(summary(&rows.take(named)), [("qemu-4200-1".to_owned(), 1, 1_000)]);
    }

    #[test]
    fn a_pid_that_comes_back_is_another_vm() {
        let (mut rows, mut earlier) = (Rows::new(BY_VM), Earlier::default());
        let later = VmId { start_boottime_ns: 2, ..VM };
        let elements = [element(1, source(VM, 7, io()), 5), element(2, source(later, 7, io()), 3)];
        rows.add(&elements, &mut earlier, FIRST_EPOCH);
        let expected = [("qemu-4200-1".to_owned(), 5, 5_000), ("qemu-4200-2".to_owned(), 3, 3_000)];
        assert_eq!(summary(&rows.take(named)), expected);
        // Where nobody asks for VMs, all are one.
        let mut rows = Rows::new(BY_REASON);
        rows.add(&elements, &mut Earlier::default(), FIRST_EPOCH);
        assert_eq!(summary(&rows.take(named)), [(String::new(), 8, 8_000)]);
    }

    #[test]
    fn elements_are_forgotten_when_their_writer_is_dead_and_all_is_counted() {
        let (mut rows, mut earlier) = (Rows::new(BY_VM), Earlier::default());
        let (dead, alive) =
            (element(1, source(VM, 7, io()), 5), element(2, source(VM, 8, io()), 5));
        let living = HashSet::from([(VM, 8)]);
        rows.add(&[dead.clone(), alive.clone()], &mut earlier, FIRST_EPOCH);
        assert!(earlier.forget(&living).is_empty(), "it may have written after it was read");
        rows.add(&[dead.clone(), alive], &mut earlier, FIRST_EPOCH);
        assert_eq!(earlier.forget(&living), [dead.id]);
        assert!(earlier.forget(&living).is_empty());
        assert_eq!(rows.take(named)[0].hist.count(), 10);
        // The thread of another process that has this PID now is another writer.
        let later = HashSet::from([(VmId { start_boottime_ns: 2, ..VM }, 8)]);
        assert_eq!(earlier.forget(&later), [[2; 48]]);
    }

    #[test]
    fn exits_that_go_on_are_noted_and_closed_at_the_end() {
        let open = |total_ns| Open {
            source: source(VM, 7, io()),
            total_ns,
            parts: Parts { userspace_ns: total_ns, ..Parts::default() },
            comm: "qemu".to_owned(),
        };
        let mut rows = Rows::new(BY_VM);
        rows.note(&[open(5), open(7)]);
        let row = &rows.take(named)[0];
        assert_eq!((row.hist.count(), row.open, row.longest_open_ns), (0, 2, Some(7)));
        rows.close(&[open(5), open(7)]);
        let row = &rows.take(named)[0];
        assert_eq!((row.hist.count(), row.open, row.hist.sum_ns()), (2, 0, 12));
        assert_eq!((row.parts.userspace_ns, row.kernel_ns(), row.cost_ns()), (12, 0, 12));
    }

    #[test]
    fn rows_are_in_the_order_of_cost_and_a_halts_sleep_is_none() {
        let open = |reason, total_ns, asleep_ns| Open {
            source: source(VM, 7, reason),
            total_ns,
            parts: Parts { asleep_ns, ..Parts::default() },
            comm: String::new(),
        };
        let (msr, cpuid) = (Reason::hardware(2, 0x7c), Reason::hardware(2, 0x72));
        let mut rows = Rows::new(BY_REASON);
        rows.close(&[
            open(io(), 90_000, 0),
            open(hlt(), 50_000, 49_000),
            open(cpuid, 2_000, 1_500),
            open(msr, 3_000, 0),
        ]);
        let rows = rows.take(named);
        let costs: Vec<_> = rows.iter().map(|row| (row.key.reason, row.cost_ns())).collect();
        let expected = [(msr, 3_000), (cpuid, 2_000), (hlt(), 1_000), (io(), 90_000)];
        assert_eq!(
            costs,
            expected.map(|(reason, ns)| (Some(reason), ns)),
            "userspace has its own table"
        );
        assert_eq!(rows[2].idle_ns, 49_000);
    }
}
