//! runqlat's metrics for Prometheus: all waits since the start. Pure.

use std::fmt;

use common::output::Interval;
use common::output::openmetrics::{
    self, Buckets, Families, Labels, SERIES_PER_HISTOGRAM, Series, only, seconds,
};

use crate::report::{By, Key, Losses, Row};

/// The waits of those that have the same labels.
#[derive(Debug, Default)]
struct Waits {
    waits: Buckets,
    preempted: u64,
    start_unseen: u64,
    waiting: u64,
    longest_waiting_ns: u64,
}

/// How many series a row is.
const SERIES_PER_ROW: usize = SERIES_PER_HISTOGRAM + 4;

/// All that was counted since the start.
#[derive(Debug)]
pub struct Metrics {
    rows: Series<Waits>,
    losses: Losses,
    has_books: bool,
}

impl Metrics {
    /// Nothing so far; of more than `max_series` series some are folded into others.
    pub fn new(by: By, has_books: bool, max_series: u32) -> Self {
        let mut rows = Series::new(max_series, SERIES_PER_ROW, &[]);
        if by == By::Nothing {
            rows.row(Labels::new());
        }
        Self { rows, losses: Losses::default(), has_books }
    }

    /// Adds an interval.
    pub fn add(&mut self, interval: &Interval, rows: &[Row], losses: &Losses) {
        for waits in self.rows.values_mut() {
            (waits.waiting, waits.longest_waiting_ns) = (0, 0);
        }
        for row in rows {
            let waits = self.rows.row(labels(&row.key));
            waits.waits.add(&row.hist);
            waits.preempted += row.preempted;
            waits.start_unseen += row.start_unseen;
            waits.waiting += row.waiting;
            let longest_ns = row.longest_waiting_ns.unwrap_or(0);
            waits.longest_waiting_ns = waits.longest_waiting_ns.max(longest_ns);
        }
        self.rows.end_interval(interval.length);
        self.losses.add(losses);
    }
}

/// No PIDs: they come and go, and Prometheus keeps them all. Whoever has the same name is counted together.
fn labels(key: &Key) -> Labels {
    match key {
        Key::All => vec![],
        Key::Process(_, comm) | Key::Thread(_, _, comm) => vec![("comm", comm.clone())],
        Key::Vm(_, name) => vec![("vm", name.clone())],
        Key::Cpu(cpu) => vec![("cpu", cpu.to_string())],
        Key::PidNs(inum) => vec![("pidns", inum.to_string())],
    }
}

impl openmetrics::Metrics for Metrics {
    fn encode(&self, families: &mut Families<'_>) -> fmt::Result {
        let rows = || self.rows.iter();
        families.histogram(
            "runqlat_wait_seconds",
            "Time that tasks were runnable before they got a CPU.",
            rows().map(|(labels, row)| (labels, &row.waits)),
        )?;
        families.counter(
            "runqlat_preempted_waits_total",
            "Waits that began because the task was pushed off its CPU.",
            rows().filter(|_| self.has_books).map(|(labels, row)| (labels, row.preempted)),
        )?;
        families.counter(
            "runqlat_start_unseen_waits_total",
            "Waits of which it is not known how they began.",
            rows().map(|(labels, row)| (labels, row.start_unseen)),
        )?;
        families.gauge(
            "runqlat_waiting_tasks",
            "Tasks that wait for a CPU at the end of the interval.",
            rows().map(|(labels, row)| (labels, row.waiting)),
        )?;
        families.gauge(
            "runqlat_longest_waiting_seconds",
            "How long the longest of them has waited so far; 0 if there is none.",
            rows().map(|(labels, row)| (labels, seconds(row.longest_waiting_ns))),
        )?;
        families.counter(
            "runqlat_lost_waits_total",
            "Waits that found no room in a map: no other figure has them.",
            only(self.losses.lost),
        )?;
        families.counter(
            "runqlat_unbooked_waits_total",
            "Waits for which the kernel has no time: no other figure has them.",
            only(self.losses.unbooked),
        )?;
        families.counter(
            "runqlat_reconstructed_waits_total",
            "Waits that sched_switch did not show: number and sum are exact, buckets are not.",
            only(self.losses.reconstructed),
        )?;
        families.counter(
            "runqlat_folded_rows_total",
            "Rows folded into the one labelled other, once for each interval.",
            only(self.rows.folded()),
        )
    }
}

#[cfg(test)]
#[path = "../../tests/util/metrics.rs"]
mod page;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use common::hist::Hist;
    use common::output::openmetrics::encoded;
    use jiff::Timestamp;

    use super::*;

    fn interval() -> Interval {
        Interval { end: Timestamp::UNIX_EPOCH, length: Duration::from_secs(1) }
    }

    fn row(key: Key, waits_ns: &[u64], waiting: u64) -> Row {
        Row {
            key,
            hist: Hist::of(waits_ns.iter().copied()),
            preempted: 1,
            start_unseen: 2,
            waiting,
            longest_waiting_ns: (waiting > 0).then_some(43_000_000),
        }
    }

    fn vm(pid: i32, name: &str) -> Key {
        Key::Vm(pid, name.to_owned())
    }

    fn text(metrics: Metrics) -> String {
        encoded("runqlat", metrics).unwrap()
    }

    #[test]
    fn the_page_has_all_families() {
        let text = text(Metrics::new(By::Nothing, true, 5_000));
        page::assert_documented(include_str!("../../man/runqlat.8"), &text);
    }

    #[test]
    fn counters_go_on_and_gauges_are_of_now() {
        let mut metrics = Metrics::new(By::Nothing, true, 5_000);
        let losses = Losses { lost: 3, unbooked: 5, reconstructed: 7 };
        metrics.add(&interval(), &[row(Key::All, &[1_000, 3_000_000], 22)], &losses);
        metrics.add(&interval(), &[row(Key::All, &[5_000_000], 0)], &losses);
        let text = text(metrics);
        for line in [
            "runqlat_wait_seconds_count 3",
            "runqlat_wait_seconds_sum 0.008001",
            "runqlat_wait_seconds_bucket{le=\"0.004096\"} 2",
            "runqlat_preempted_waits_total 2",
            "runqlat_start_unseen_waits_total 4",
            "runqlat_waiting_tasks 0",
            "runqlat_longest_waiting_seconds 0.0",
            "runqlat_lost_waits_total 6",
            "runqlat_unbooked_waits_total 10",
            "runqlat_reconstructed_waits_total 14",
            "runqlat_folded_rows_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }

    #[test]
    fn vms_of_one_name_are_one_and_the_rest_is_folded() {
        let mut metrics = Metrics::new(By::Vm, true, 2 * SERIES_PER_ROW as u32);
        let rows = [(1, "a"), (2, "b"), (3, "a"), (4, "c"), (5, "d")]
            .map(|(pid, name)| row(vm(pid, name), &[1_000], 1));
        metrics.add(&interval(), &rows, &Losses::default());
        let text = text(metrics);
        for (vm, count) in [("a", 2), ("b", 1), ("other", 2)] {
            let line = format!("runqlat_wait_seconds_count{{vm=\"{vm}\"}} {count}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(text.contains("runqlat_waiting_tasks{vm=\"other\"} 2\n"), "{text}");
        assert!(text.contains("runqlat_folded_rows_total 2\n"), "{text}");
        let of_a = text.lines().filter(|line| line.contains("vm=\"a\""));
        assert_eq!(of_a.count(), SERIES_PER_ROW);
    }

    #[test]
    fn what_a_kernel_without_task_storage_cannot_tell_is_left_out() {
        assert!(!text(Metrics::new(By::Nothing, false, 5_000)).contains("preempted_waits"));
    }
}
