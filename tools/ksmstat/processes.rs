//! Whose memory is merged: rows by process and by VM. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;

use clap::ValueEnum;

use crate::rows::Known;

/// A process. PIDs come back, but not with the same start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// Its PID.
    pub pid: i32,
    /// When it was started.
    pub start_boottime_ns: u64,
}

/// A process with mergeable memory as the kernel has it now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Whose.
    pub process: ProcessId,
    /// The memory: processes may share one.
    pub mm: u64,
    /// Its pages that are KSM pages.
    pub merging_pages: u64,
    /// Its pages that KSM keeps a record of.
    pub rmap_items: u64,
    /// Its pages replaced by the kernel's page of zeroes.
    pub zero_pages: u64,
    /// What it is called.
    pub comm: String,
}

/// What has happened to a process's memory since the programs were loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Pages that became KSM pages, or mappings of one.
    pub merged: u64,
    /// Pages that did not, though they were to.
    pub merge_failed: u64,
    /// Pages replaced by the kernel's page of zeroes.
    pub zero_merged: u64,
    /// Writes to merged pages.
    pub cow_breaks: u64,
    /// How long those took.
    pub cow_ns: u64,
    /// What it is called.
    pub comm: String,
}

impl Events {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            merged: self.merged - earlier.merged,
            merge_failed: self.merge_failed - earlier.merge_failed,
            zero_merged: self.zero_merged - earlier.zero_merged,
            cow_breaks: self.cow_breaks - earlier.cow_breaks,
            cow_ns: self.cow_ns - earlier.cow_ns,
            comm: self.comm.clone(),
        }
    }

    fn any(&self) -> bool {
        self.merged + self.merge_failed + self.zero_merged + self.cow_breaks > 0
    }
}

/// A process, or all those of a VM, in one interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessRow {
    /// Which; none if there may be several.
    pub process: Option<ProcessId>,
    /// What it is called.
    pub comm: String,
    /// The VM that it runs.
    pub vm: Option<String>,
    /// How many processes these are.
    pub processes: u64,
    /// Pages that are KSM pages.
    pub merging_pages: Option<u64>,
    /// Pages that KSM keeps a record of.
    pub rmap_items: Option<u64>,
    /// Pages replaced by the kernel's page of zeroes.
    pub zero_pages: Option<u64>,
    /// What merging them saves, less what KSM keeps; `ksm_process_profit()` in mm/ksm.c.
    pub profit_bytes: Option<i64>,
    /// Pages that became KSM pages in the interval.
    pub merged: Option<u64>,
    /// Pages that did not, though they were to.
    pub merge_failed: Option<u64>,
    /// Pages replaced by the kernel's page of zeroes in the interval.
    pub zero_merged: Option<u64>,
    /// Writes to merged pages.
    pub cow_breaks: Option<u64>,
    /// How long those took.
    pub cow_ns: Option<u64>,
    /// The memory is gone: the process has ended, or runs another program. These were its last figures.
    pub gone: bool,
}

impl ProcessRow {
    /// True if KSM's bookkeeping takes more than merging saves.
    pub fn costs(&self) -> bool {
        self.profit_bytes.is_some_and(|profit| profit < 0)
    }

    fn add(&mut self, other: &Self) {
        fn sum<N: std::ops::Add<Output = N>>(a: Option<N>, b: Option<N>) -> Option<N> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a + b),
                (one, other) => one.or(other),
            }
        }
        self.processes += other.processes;
        self.merging_pages = sum(self.merging_pages, other.merging_pages);
        self.rmap_items = sum(self.rmap_items, other.rmap_items);
        self.zero_pages = sum(self.zero_pages, other.zero_pages);
        self.profit_bytes = sum(self.profit_bytes, other.profit_bytes);
        self.merged = sum(self.merged, other.merged);
        self.merge_failed = sum(self.merge_failed, other.merge_failed);
        self.zero_merged = sum(self.zero_merged, other.zero_merged);
        self.cow_breaks = sum(self.cow_breaks, other.cow_breaks);
        self.cow_ns = sum(self.cow_ns, other.cow_ns);
        self.gone &= other.gone;
    }
}

/// What comes first.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// The most merged pages
    Merging,
    /// The most pages that KSM keeps a record of
    Rmap,
    /// The highest profit
    Profit,
    /// The lowest profit: the bookkeeping takes more than is saved
    Cost,
    /// The most pages merged in the interval
    Merged,
    /// The most failures to merge in the interval
    Failed,
    /// The most writes to merged pages in the interval
    Cow,
}

impl Sort {
    /// Puts the rows in this order.
    pub fn sort(self, rows: &mut [ProcessRow]) {
        rows.sort_by_key(|row| {
            let first: i64 = match self {
                Self::Merging => signed(row.merging_pages),
                Self::Rmap => signed(row.rmap_items),
                Self::Profit => row.profit_bytes.unwrap_or(i64::MIN),
                Self::Cost => row.profit_bytes.map_or(i64::MIN, |profit| -profit),
                Self::Merged => signed(row.merged),
                Self::Failed => signed(row.merge_failed),
                Self::Cow => signed(row.cow_breaks),
            };
            (Reverse(first), row.vm.clone(), row.process)
        });
    }
}

/// What is not known comes last.
fn signed(count: Option<u64>) -> i64 {
    count.map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX))
}

/// Turns samples and events into rows, interval by interval.
pub struct Processes {
    known: Known,
    page_bytes: u64,
    samples: HashMap<ProcessId, Sample>,
    events: HashMap<ProcessId, Events>,
}

impl Processes {
    /// None so far.
    pub fn new(known: Known, page_bytes: u64) -> Self {
        Self { known, page_bytes, samples: HashMap::new(), events: HashMap::new() }
    }

    /// The rows of the interval that ends with these, and who is gone and may be forgotten.
    pub fn rows(
        &mut self,
        samples: Vec<Sample>,
        events: Vec<(ProcessId, Events)>,
    ) -> (Vec<ProcessRow>, Vec<ProcessId>) {
        let mut events: HashMap<ProcessId, Events> = events.into_iter().collect();
        let before = mem::take(&mut self.samples);
        let mut rows = Vec::new();
        for sample in first_of_each_memory(samples) {
            let since = self.since(sample.process, &events);
            rows.push(self.row(sample.process, Some(&sample), &since, false));
            self.samples.insert(sample.process, sample);
        }
        let of_now: HashSet<ProcessId> = self.samples.keys().copied().collect();
        let known = before.keys().chain(events.keys()).copied();
        let mut gone: Vec<ProcessId> = known.filter(|process| !of_now.contains(process)).collect();
        gone.sort_unstable();
        gone.dedup();
        for process in &gone {
            let since = self.since(*process, &events);
            let sample = before.get(process);
            if sample.is_some() || since.any() {
                rows.push(self.row(*process, sample, &since, true));
            }
            events.remove(process);
        }
        self.events = events;
        (rows, gone)
    }

    fn since(&self, process: ProcessId, events: &HashMap<ProcessId, Events>) -> Events {
        let none = Events::default();
        let now = events.get(&process).unwrap_or(&none);
        now.since(self.events.get(&process).unwrap_or(&none))
    }

    fn row(
        &self,
        process: ProcessId,
        sample: Option<&Sample>,
        since: &Events,
        gone: bool,
    ) -> ProcessRow {
        let known = &self.known;
        let counted = sample.filter(|_| known.rmap_items);
        let merges = known.merges && known.owners;
        let cow = known.cow && known.owners;
        ProcessRow {
            process: Some(process),
            comm: sample.map_or_else(|| since.comm.clone(), |sample| sample.comm.clone()),
            vm: None,
            processes: 1,
            merging_pages: sample
                .filter(|_| known.merging_pages)
                .map(|sample| sample.merging_pages),
            rmap_items: counted.map(|sample| sample.rmap_items),
            zero_pages: sample.filter(|_| known.zero_pages).map(|sample| sample.zero_pages),
            profit_bytes: counted.map(|sample| self.profit_bytes(sample)),
            merged: merges.then_some(since.merged),
            merge_failed: merges.then_some(since.merge_failed),
            zero_merged: merges.then_some(since.zero_merged),
            cow_breaks: cow.then_some(since.cow_breaks),
            cow_ns: cow.then_some(since.cow_ns),
            gone,
        }
    }

    fn profit_bytes(&self, sample: &Sample) -> i64 {
        let saved = (sample.merging_pages + sample.zero_pages) * self.page_bytes;
        let cost = sample.rmap_items * self.known.item_bytes;
        i64::try_from(saved).unwrap_or(i64::MAX) - i64::try_from(cost).unwrap_or(i64::MAX)
    }
}

/// Of processes that share their memory, as after vfork(2), the one that was there first.
fn first_of_each_memory(mut samples: Vec<Sample>) -> Vec<Sample> {
    samples.sort_by_key(|sample| (sample.mm, sample.process.start_boottime_ns, sample.process.pid));
    samples.dedup_by_key(|sample| sample.mm);
    // Of a process whose first thread has ended, each other one is found.
    samples.sort_by_key(|sample| sample.process);
    samples.dedup_by_key(|sample| sample.process);
    samples
}

/// One row for each VM's name, and one for all processes that run none.
pub fn by_vm(rows: &[ProcessRow]) -> Vec<ProcessRow> {
    let mut vms: BTreeMap<Option<&str>, ProcessRow> = BTreeMap::new();
    for row in rows {
        let vm = vms.entry(row.vm.as_deref()).or_insert_with(|| ProcessRow {
            vm: row.vm.clone(),
            gone: true,
            ..ProcessRow::default()
        });
        vm.add(row);
    }
    vms.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known {
            merges: true,
            merging_pages: true,
            rmap_items: true,
            zero_pages: true,
            owners: true,
            item_bytes: 64,
            ..Known::default()
        }
    }

    fn id(pid: i32) -> ProcessId {
        ProcessId { pid, start_boottime_ns: 7 }
    }

    fn sample(pid: i32, merging_pages: u64, rmap_items: u64) -> Sample {
        Sample {
            process: id(pid),
            mm: pid.unsigned_abs().into(),
            merging_pages,
            rmap_items,
            zero_pages: 0,
            comm: format!("vm-{pid}"),
        }
    }

    fn merged(pid: i32, merged: u64) -> (ProcessId, Events) {
        (id(pid), Events { merged, comm: format!("vm-{pid}"), ..Events::default() })
    }

    #[test]
    fn a_process_that_ends_keeps_its_last_figures_and_is_marked_once() {
        let mut processes = Processes::new(known(), 4_096);
        processes.rows(vec![sample(23, 101, 307)], vec![merged(23, 90)]);
        let (rows, gone) = processes.rows(vec![], vec![merged(23, 101)]);
        assert_eq!(gone, [id(23)]);
        assert_eq!((rows[0].merging_pages, rows[0].merged), (Some(101), Some(11)));
        assert!(rows[0].gone);
        let (rows, gone) = processes.rows(vec![], vec![]);
        assert!(rows.is_empty() && gone.is_empty());
    }

    #[test]
    fn a_process_between_two_reads_has_its_events() {
        let mut processes = Processes::new(known(), 4_096);
        let (rows, gone) = processes.rows(vec![], vec![merged(23, 5)]);
        assert_eq!((rows[0].comm.as_str(), rows[0].merging_pages), ("vm-23", None));
        assert_eq!((rows[0].merged, rows[0].gone, gone), (Some(5), true, vec![id(23)]));
        // Another that has its PID begins anew.
        let (rows, _) = processes.rows(vec![sample(23, 3, 3)], vec![merged(23, 3)]);
        assert_eq!(rows[0].merged, Some(3));
    }

    #[test]
    fn memory_of_two_processes_is_counted_once() {
        let mut processes = Processes::new(known(), 4_096);
        let child = Sample { process: id(24), ..sample(23, 101, 307) };
        let (rows, _) = processes.rows(vec![child, sample(23, 101, 307)], vec![]);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].process, Some(id(23)));
    }

    #[test]
    fn bookkeeping_above_savings_costs() {
        let mut processes = Processes::new(known(), 4_096);
        let (mut rows, _) = processes.rows(vec![sample(1, 0, 100), sample(2, 2, 100)], vec![]);
        Sort::Cost.sort(&mut rows);
        assert_eq!(rows[0].profit_bytes, Some(-6_400));
        assert!(rows[0].costs() && !rows[1].costs());
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let mut processes = Processes::new(Known::default(), 4_096);
        let (rows, _) = processes.rows(vec![sample(1, 0, 0)], vec![]);
        assert_eq!(
            (rows[0].merging_pages, rows[0].profit_bytes, rows[0].merged),
            (None, None, None)
        );
    }

    #[test]
    fn a_vms_processes_are_added() {
        let mut processes = Processes::new(known(), 4_096);
        let samples = vec![sample(1, 2, 3), sample(2, 5, 7), sample(3, 11, 13)];
        let (mut rows, _) = processes.rows(samples, vec![]);
        for row in &mut rows[..2] {
            row.vm = Some("web".to_owned());
        }
        let vms = by_vm(&rows);
        let figures = vms.iter().map(|vm| (vm.vm.as_deref(), vm.processes, vm.merging_pages));
        let expected = [(None, 1, Some(11)), (Some("web"), 2, Some(7))];
        assert_eq!(figures.collect::<Vec<_>>(), expected);
    }
}
