//! Rows by their labels, no more than there is room for: names come from guests and their owners, and somebody's
//! Prometheus keeps every one that it has ever seen.

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use super::Labels;

/// A row of which nothing was heard for so long is forgotten: Prometheus looks back five minutes.
const PATIENCE: Duration = Duration::from_secs(600);

/// The value of labels of rows that found no room of their own.
const OTHER: &str = "other";

/// What is counted for each row.
#[derive(Debug)]
pub struct Series<T> {
    rows: BTreeMap<Labels, Held<T>>,
    folded_rows: BTreeMap<Labels, T>,
    room: usize,
    few: &'static [&'static str],
    folded: u64,
}

#[derive(Debug, Default)]
struct Held<T> {
    values: T,
    heard: bool,
    silent: Duration,
}

impl<T: Default> Series<T> {
    /// For `max_series`, of which a row has `per_row`. Labels of these names have `few` values: rows that have no
    /// others are neither folded nor forgotten, and folded rows keep them.
    pub fn new(max_series: u32, per_row: usize, few: &'static [&'static str]) -> Self {
        Self {
            rows: BTreeMap::new(),
            folded_rows: BTreeMap::new(),
            room: max_series as usize / per_row,
            few,
            folded: 0,
        }
    }

    /// The row that has these labels, or the one into which it is folded.
    pub fn row(&mut self, labels: Labels) -> &mut T {
        if are_few(self.few, &labels) {
            return self.own_row(labels);
        }
        let kept = |name: &str| self.few.contains(&name);
        let fold = |(name, value): &(&'static str, String)| {
            (*name, if kept(name) { value.clone() } else { OTHER.to_owned() })
        };
        let folded: Labels = labels.iter().map(fold).collect();
        // Somebody may have a VM of that name: the same series twice would be none.
        if labels != folded {
            if self.has_room(&labels) {
                return self.own_row(labels);
            }
            self.folded += 1;
        }
        self.folded_rows.entry(folded).or_default()
    }

    fn own_row(&mut self, labels: Labels) -> &mut T {
        let held = self.rows.entry(labels).or_default();
        held.heard = true;
        &mut held.values
    }

    fn has_room(&self, labels: &Labels) -> bool {
        let taken = || self.rows.keys().filter(|labels| !are_few(self.few, labels)).count();
        self.rows.contains_key(labels) || taken() < self.room
    }

    /// Ends an interval of this length: forgets rows that have been silent for too long.
    pub fn end_interval(&mut self, length: Duration) {
        let few = self.few;
        self.rows.retain(|labels, held| {
            let heard = mem::take(&mut held.heard);
            held.silent = if heard { Duration::ZERO } else { held.silent + length };
            are_few(few, labels) || held.silent < PATIENCE
        });
    }

    /// All rows, those into which others are folded last.
    pub fn iter(&self) -> impl Iterator<Item = (&Labels, &T)> {
        let own = self.rows.iter().map(|(labels, held)| (labels, &held.values));
        own.chain(&self.folded_rows)
    }

    /// The same, to forget what was true only at the end of the last interval.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let own = self.rows.values_mut().map(|held| &mut held.values);
        own.chain(self.folded_rows.values_mut())
    }

    /// How often a row was folded: once in each interval in which it had no room.
    pub fn folded(&self) -> u64 {
        self.folded
    }
}

fn are_few(few: &[&str], labels: &Labels) -> bool {
    labels.iter().all(|(name, _)| few.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn labels(kind: &str, vm: &str) -> Labels {
        vec![("kind", kind.to_owned()), ("vm", vm.to_owned())]
    }

    fn all(series: &Series<u64>) -> Vec<(String, u64)> {
        let words = |labels: &Labels| {
            labels.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(" ")
        };
        series.iter().map(|(labels, value)| (words(labels), *value)).collect()
    }

    #[test]
    fn what_is_beyond_is_folded_and_counted() {
        let mut series = Series::new(20, 10, &["kind"]);
        for (kind, vm, n) in [("in", "a", 1), ("in", "b", 2), ("in", "c", 4), ("out", "d", 8)] {
            *series.row(labels(kind, vm)) += n;
        }
        *series.row(labels("in", "a")) += 16;
        *series.row(labels("in", "c")) += 32;
        *series.row(vec![("kind", "in".to_owned())]) += 64;
        let expected = [("in", 64), ("in a", 17), ("in b", 2), ("in other", 36), ("out other", 8)];
        assert_eq!(all(&series), expected.map(|(row, n)| (row.to_owned(), n)));
        assert_eq!(series.folded(), 3);
    }

    #[test]
    fn whoever_is_called_other_is_with_the_others() {
        let mut series = Series::new(10, 10, &["kind"]);
        for vm in ["other", "a", "b"] {
            *series.row(labels("in", vm)) += 1;
        }
        let expected = [("in a", 1), ("in other", 2)];
        assert_eq!(all(&series), expected.map(|(row, n)| (row.to_owned(), n)));
        assert_eq!(series.folded(), 1);
    }

    #[test]
    fn who_was_silent_for_ten_minutes_makes_room() {
        let mut series = Series::new(10, 10, &["kind"]);
        *series.row(labels("in", "a")) += 1;
        *series.row(vec![("kind", "in".to_owned())]) += 1;
        series.end_interval(MINUTE);
        for _ in 0..9 {
            *series.row(labels("in", "b")) += 1;
            series.end_interval(MINUTE);
        }
        assert_eq!(all(&series)[1], ("in a".to_owned(), 1));
        series.end_interval(MINUTE);
        *series.row(labels("in", "b")) += 1;
        let expected = [("in", 1), ("in b", 1), ("in other", 9)];
        assert_eq!(all(&series), expected.map(|(row, n)| (row.to_owned(), n)));
    }

    #[test]
    fn an_interval_longer_than_patience_forgets_nobody_who_is_there() {
        let mut series = Series::new(10, 10, &[]);
        for _ in 0..3 {
            *series.row(labels("in", "a")) += 1;
            series.end_interval(100 * MINUTE);
        }
        assert_eq!(all(&series), [("in a".to_owned(), 3)]);
    }
}
