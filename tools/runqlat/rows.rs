//! From the kernel's counters to rows: what was added since the last read, gathered by key. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use common::hist::Octave;

use crate::report::{By, Key, Row};

/// The waits of one power of two of one element, since the program's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The histogram.
    pub octave: Octave,
    /// Waits that began by preemption.
    pub preempted: u64,
    /// Waits whose beginning nobody saw.
    pub start_unseen: u64,
}

/// One element of the kernel's maps.
#[derive(Clone, Debug)]
pub struct Element {
    /// A CPU's number, or what `struct waits_key` in bpf/runqlat.h says.
    pub id: u64,
    /// Which of an ID's elements: a CPU has two.
    pub part: u32,
    /// Which power of two.
    pub octave: u32,
    /// What it has counted.
    pub counts: Counts,
    /// When it was last written, to tell which of a key's names is the latest.
    pub last_ns: u64,
    /// The task's name then.
    pub comm: String,
}

/// A task that waits at the interval's end.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// As in [`Element`], but 0 for a CPU.
    pub id: u64,
    /// The CPU whose run queue it is on.
    pub cpu: u32,
    /// How long it has waited so far, in nanoseconds.
    pub waited_ns: u64,
    /// The task's name.
    pub comm: String,
}

/// What was read last, to be subtracted from what is read next.
#[derive(Default)]
pub struct Earlier(HashMap<(u64, u32, u32), Counts>);

impl Earlier {
    /// What an element has counted since it was read last.
    fn since(&mut self, element: &Element) -> Counts {
        let earlier = self.0.entry((element.id, element.part, element.octave)).or_default();
        let (now, before) = (&element.counts, &*earlier);
        let since = Counts {
            octave: now.octave.since(&before.octave),
            preempted: now.preempted - before.preempted,
            start_unseen: now.start_unseen - before.start_unseen,
        };
        *earlier = now.clone();
        since
    }

    /// The IDs of all elements.
    pub fn ids(&self) -> HashSet<u64> {
        self.0.keys().map(|(id, _, _)| *id).collect()
    }

    /// Forgets elements of these. Returns their IDs and octaves.
    pub fn forget(&mut self, gone: &HashSet<u64>) -> Vec<(u64, u32)> {
        let forgotten = self.0.extract_if(|(id, _, _), _| gone.contains(id));
        forgotten.map(|((id, _, octave), _)| (id, octave)).collect()
    }
}

/// Gathers what happened in interval number `epoch` into rows, the longest total wait first; CPUs in their order.
/// `vm_name` is asked for the name of a VM's process.
pub fn rows(
    by: By,
    epoch: u32,
    elements: &[Element],
    waiting: &[Waiting],
    earlier: &mut Earlier,
    mut vm_name: impl FnMut(i32, &str) -> String,
) -> Vec<Row> {
    let mut rows: BTreeMap<u64, (u64, Row)> = BTreeMap::new();
    let mut key = |id: u64, comm: &str| match by {
        By::Nothing => Key::All,
        By::Process => Key::Process((id >> 32) as i32, comm.to_owned()),
        By::Thread => Key::Thread((id >> 32) as i32, id as u32 as i32, comm.to_owned()),
        By::Vm => Key::Vm((id >> 32) as i32, vm_name((id >> 32) as i32, comm)),
        By::Cpu => Key::Cpu(id as u32),
        By::PidNs => Key::PidNs(id),
    };
    if by == By::Nothing {
        rows.insert(0, (0, Row::new(Key::All)));
    }
    for element in elements {
        let since = earlier.since(element);
        if since.octave
            == (Octave {
                highest: since.octave.highest,
                lowest: since.octave.lowest,
                ..Octave::default()
            })
        {
            continue;
        }
        let id = if by == By::Nothing { 0 } else { element.id };
        let (named_ns, row) =
            rows.entry(id).or_insert_with(|| (element.last_ns, Row::new(key(id, &element.comm))));
        if element.last_ns > *named_ns {
            *named_ns = element.last_ns;
            row.key = key(id, &element.comm);
        }
        row.hist.add(element.octave as usize, &since.octave, epoch);
        row.preempted += since.preempted;
        row.start_unseen += since.start_unseen;
    }
    for task in waiting {
        let id = if by == By::Cpu { u64::from(task.cpu) } else { task.id };
        let (_, row) = rows.entry(id).or_insert_with(|| (0, Row::new(key(id, &task.comm))));
        row.waiting += 1;
        row.longest_waiting_ns = row.longest_waiting_ns.max(Some(task.waited_ns));
    }
    let mut rows: Vec<Row> = rows.into_values().map(|(_, row)| row).collect();
    if by != By::Cpu {
        rows.sort_by_key(|row| std::cmp::Reverse(row.hist.sum_ns()));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An element of octave 6, [1024, 2048), with so many values in its first slot.
    fn element(id: u64, count: u64, last_ns: u64, comm: &str) -> Element {
        let mut octave = Octave { sum_ns: count * 1_030, ..Octave::default() };
        octave.slots[0] = count;
        let counts = Counts { octave, preempted: count / 2, start_unseen: 0 };
        Element { id, part: 0, octave: 6, counts, last_ns, comm: comm.to_owned() }
    }

    fn thread(tgid: u64, tid: u64) -> u64 {
        tgid << 32 | tid
    }

    fn rows_by(
        by: By,
        elements: &[Element],
        waiting: &[Waiting],
        earlier: &mut Earlier,
    ) -> Vec<Row> {
        rows(by, 0, elements, waiting, earlier, |pid, comm| format!("{comm}@{pid}"))
    }

    #[test]
    fn only_what_is_new_is_counted() {
        let mut earlier = Earlier::default();
        let first = rows_by(By::Thread, &[element(thread(1, 2), 7, 1, "a")], &[], &mut earlier);
        assert_eq!((first[0].hist.count(), first[0].preempted), (7, 3));
        let elements = [element(thread(1, 2), 18, 1, "a"), element(thread(1, 3), 1, 1, "b")];
        let second = rows_by(By::Thread, &elements, &[], &mut earlier);
        assert_eq!(second.len(), 2);
        assert_eq!((second[0].hist.count(), second[0].hist.sum_ns()), (11, 11 * 1_030));
        let third = rows_by(By::Thread, &elements, &[], &mut earlier);
        assert!(third.is_empty(), "nothing new: {third:?}");
    }

    #[test]
    fn only_who_is_gone_is_forgotten() {
        let mut earlier = Earlier::default();
        let elements = [element(1, 2, 0, "a"), element(2, 1, 0, "b")];
        rows_by(By::Process, &elements, &[], &mut earlier);
        assert_eq!(earlier.ids(), HashSet::from([1, 2]));
        assert_eq!(earlier.forget(&HashSet::from([1, 3])), [(1, 6)]);
        let again = rows_by(By::Process, &elements, &[], &mut earlier);
        assert_eq!(
            (again.len(), again[0].hist.count()),
            (1, 2),
            "another one with the ID of the first"
        );
    }

    #[test]
    fn without_a_key_all_cpus_are_one_row_even_when_idle() {
        let mut earlier = Earlier::default();
        let elements = [element(0, 3, 0, ""), element(1, 4, 0, "")];
        let row = &rows_by(By::Nothing, &elements, &[], &mut earlier)[0];
        assert_eq!((row.key.clone(), row.hist.count()), (Key::All, 7));
        let rows = rows_by(By::Nothing, &elements, &[], &mut earlier);
        assert_eq!(rows, [Row::new(Key::All)]);
    }

    #[test]
    fn the_latest_name_counts_and_the_longest_wait_comes_first() {
        let old = element(thread(1, 1), 1, 10, "bash");
        let new = Element { octave: 7, ..element(thread(1, 1), 1, 20, "stress") };
        let other = element(thread(9, 9), 5, 15, "other");
        let rows = rows_by(By::Process, &[old, new, other], &[], &mut Earlier::default());
        let keys: Vec<_> = rows.into_iter().map(|row| row.key).collect();
        assert_eq!(
            keys,
            [Key::Process(9, "other".to_owned()), Key::Process(1, "stress".to_owned())]
        );
    }

    #[test]
    fn who_only_waits_has_a_row() {
        let waiting = |id, cpu, waited_ns| Waiting { id, cpu, waited_ns, comm: "vm".to_owned() };
        let tasks = [waiting(thread(5, 0), 1, 70), waiting(thread(5, 0), 0, 90)];
        let rows = rows_by(By::Vm, &[], &tasks, &mut Earlier::default());
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].key, Key::Vm(5, "vm@5".to_owned()));
        assert_eq!((rows[0].waiting, rows[0].longest_waiting_ns), (2, Some(90)));
        let rows =
            rows_by(By::Cpu, &[], &[waiting(0, 1, 70), waiting(0, 0, 90)], &mut Earlier::default());
        assert_eq!(rows.iter().map(|row| row.waiting).collect::<Vec<_>>(), [1, 1]);
    }
}
