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
