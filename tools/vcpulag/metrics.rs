//! vcpulag's metrics for Prometheus: all vCPUs' time since the start. Pure.

use std::fmt;

use common::output::Interval;
use common::output::openmetrics::{
    self, Buckets, Families, Labels, SERIES_PER_HISTOGRAM, Series, and, only, seconds,
};

use crate::losses::Losses;
use crate::report::NamedRow;
use crate::rows::{KINDS, Row, Times};

/// The vCPUs of those that have the same labels.
#[derive(Debug, Default)]
struct Vcpus {
    times: Times,
    unknown_ns: u64,
    waits: Buckets,
    vcpus: u64,
    longest_waiting_ns: u64,
}

/// How many series a row is: states, causes and culprits among them.
const SERIES_PER_ROW: usize = SERIES_PER_HISTOGRAM + 5 + 3 + KINDS.len() + 2 + 6;

/// What rows stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// All vCPUs together.
    Nothing,
    /// A VM.
    Vm,
    /// A vCPU.
    Vcpu,
}

/// All that was counted since the start.
#[derive(Debug)]
pub struct Metrics {
    by: By,
    rows: Series<Vcpus>,
    losses: Losses,
}

impl Metrics {
    /// Nothing so far; of more than `max_series` series some are folded into others.
    pub fn new(by: By, max_series: u32) -> Self {
        let mut rows = Series::new(max_series, SERIES_PER_ROW, &[]);
        if by == By::Nothing {
            rows.row(Labels::new());
        }
        Self { by, rows, losses: Losses::default() }
    }

    /// Adds an interval.
    pub fn add(&mut self, interval: &Interval, rows: &[NamedRow], losses: &Losses) {
        for vcpus in self.rows.values_mut() {
            (vcpus.vcpus, vcpus.longest_waiting_ns) = (0, 0);
        }
        for NamedRow { row, .. } in rows {
            let vcpus = self.rows.row(labels(self.by, row));
            vcpus.times.add(row.times);
            vcpus.unknown_ns += row.times.unknown_ns();
            vcpus.waits.add(&row.waits);
            vcpus.vcpus += row.vcpus;
            vcpus.longest_waiting_ns = vcpus.longest_waiting_ns.max(row.waiting_ns.unwrap_or(0));
        }
        self.rows.end_interval(interval.length);
        self.losses.add(losses);
    }
}

/// No PIDs: they come and go, and Prometheus keeps them all. VMs of one name are counted together.
fn labels(by: By, row: &Row) -> Labels {
    let mut labels = Labels::new();
    if by != By::Nothing {
        labels.push(("vm", row.name.clone()));
    }
    if let (By::Vcpu, Some(thread)) = (by, row.thread) {
        let number = thread.vcpu.map_or("unknown".to_owned(), |n| n.to_string());
        labels.push(("vcpu", number));
    }
    labels
}

impl Vcpus {
    /// What each vCPU is doing at any time.
    fn states_ns(&self) -> [(&'static str, u64); 5] {
        let times = &self.times;
        [
            ("run", times.run_ns),
            ("wait", times.wait_ns()),
            ("halt", times.halt_ns),
            ("blocked", times.blocked_ns),
            ("vmm", times.vmm_ns),
        ]
    }

    fn causes_ns(&self) -> [(&'static str, u64); 3] {
        let times = &self.times;
        [
            ("wakeup", times.wait_wakeup_ns),
            ("preempted", times.wait_preempted_ns),
            ("throttled", times.wait_throttled_ns),
        ]
    }

    /// Who ran while these waited: all of what they waited.
    fn culprits_ns(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let of_kind = KINDS.map(|kind| (kind.name(), self.times.blamed_ns(kind)));
        let others = [("quota", self.times.wait_throttled_ns), ("unknown", self.unknown_ns)];
        of_kind.into_iter().chain(others)
    }
}

/// Times by a label of their own.
fn by<'a, I: IntoIterator<Item = (&'static str, u64)>>(
    rows: impl Iterator<Item = (&'a Labels, &'a Vcpus)>,
    label: &'static str,
    parts_ns: impl Fn(&'a Vcpus) -> I,
) -> impl Iterator<Item = (Labels, f64)> {
    rows.flat_map(move |(labels, row)| {
        let parts = parts_ns(row).into_iter();
        parts.map(move |(part, ns)| (and(labels, label, part), seconds(ns)))
    })
}

impl openmetrics::Metrics for Metrics {
    fn encode(&self, families: &mut Families<'_>) -> fmt::Result {
        let rows = || self.rows.iter();
        families.counter(
            "vcpulag_time_seconds_total",
            "Where all time of vCPUs went.",
            by(rows(), "state", Vcpus::states_ns),
        )?;
        families.counter(
            "vcpulag_waited_seconds_total",
            "Of it, the time that they waited for a CPU, by how the waits began.",
            by(rows(), "cause", Vcpus::causes_ns),
        )?;
        families.counter(
            "vcpulag_blamed_seconds_total",
            "The same time, by who ran meanwhile.",
            by(rows(), "culprit", Vcpus::culprits_ns),
        )?;
        families.counter(
            "vcpulag_poll_seconds_total",
            "Of the time that they ran, polling in HLT.",
            rows().map(|(labels, row)| (labels, seconds(row.times.poll_ns))),
        )?;
        families.counter(
            "vcpulag_vmm_cpu_seconds_total",
            "Of the time in the VMM, what it was on a CPU.",
            rows().map(|(labels, row)| (labels, seconds(row.times.vmm_cpu_ns))),
        )?;
        families.counter(
            "vcpulag_wakeups_total",
            "Waits that began with a wake-up.",
            rows().map(|(labels, row)| (labels, row.times.wakeups)),
        )?;
        families.counter(
            "vcpulag_preemptions_total",
            "Waits that began because the vCPU was pushed off its CPU.",
            rows().map(|(labels, row)| (labels, row.times.preemptions)),
        )?;
        families.histogram(
            "vcpulag_wait_seconds",
            "How long each wait for a CPU was that has ended.",
            rows().map(|(labels, row)| (labels, &row.waits)),
        )?;
        families.gauge(
            "vcpulag_vcpus",
            "vCPUs that there were in the interval.",
            rows().map(|(labels, row)| (labels, row.vcpus)),
        )?;
        families.gauge(
            "vcpulag_longest_waiting_seconds",
            "How long the longest wait has lasted that goes on; 0 if there is none.",
            rows().map(|(labels, row)| (labels, seconds(row.longest_waiting_ns))),
        )?;
        let Losses { vcpus, waits, missed, unseen, unnamed_ns, untold: _ } = self.losses;
        let lost = [("vcpus", vcpus), ("waits", waits), ("events", missed)];
        families.counter(
            "vcpulag_lost_total",
            "What could not be counted: vCPUs, waits in the histogram, events.",
            lost.map(|(what, count)| (vec![("what", what.to_owned())], count)),
        )?;
        families.counter(
            "vcpulag_unseen_waits_total",
            "Waits that are in the times but not in the histogram: sched_switch did not show them.",
            only(unseen),
        )?;
        families.counter(
            "vcpulag_unnamed_seconds_total",
            "Waits for others for whose names there was no room.",
            only(seconds(unnamed_ns)),
        )?;
        families.counter(
            "vcpulag_folded_rows_total",
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
    use crate::rows::{Thread, VmId};

    const MS: u64 = 1_000_000;

    fn interval() -> Interval {
        Interval { end: Timestamp::UNIX_EPOCH, length: Duration::from_secs(1) }
    }

    fn vcpu(name: &str, vcpu: Option<u32>) -> NamedRow {
        let vm = VmId { pid: 4_200, start_boottime_ns: 1 };
        let times = Times {
            run_ns: 500 * MS,
            poll_ns: 20 * MS,
            wait_wakeup_ns: 60 * MS,
            wait_preempted_ns: 300 * MS,
            wait_throttled_ns: 40 * MS,
            halt_ns: 50 * MS,
            blocked_ns: 30 * MS,
            vmm_ns: 20 * MS,
            vmm_cpu_ns: 10 * MS,
            wakeups: 63,
            preemptions: 37,
            culprits_ns: [200 * MS, 70 * MS, 30 * MS, 20 * MS, 10 * MS, 5 * MS],
        };
        let row = Row {
            vm,
            name: name.to_owned(),
            thread: Some(Thread { vm, vcpu, tid: 4_203 }),
            vcpus: 1,
            times,
            waits: Hist::of([3 * MS, 5 * MS]),
            waiting_ns: Some(7 * MS),
            culprits: vec![],
        };
        NamedRow { row, culprits: vec![] }
    }

    fn text(metrics: Metrics) -> String {
        encoded("vcpulag", metrics).unwrap()
    }

    #[test]
    fn the_page_has_all_families() {
        let text = text(Metrics::new(By::Nothing, 5_000));
        page::assert_documented(include_str!("../../man/vcpulag.8"), &text);
    }

    #[test]
    fn all_vcpus_together_have_all_their_time() {
        let mut metrics = Metrics::new(By::Nothing, 5_000);
        let losses =
            Losses { vcpus: 1, waits: 2, missed: 3, unseen: 4, unnamed_ns: 5 * MS, untold: 6 };
        let rows = [vcpu("web", Some(0)), vcpu("web", Some(1)), vcpu("db", None)];
        metrics.add(&interval(), &rows, &losses);
        metrics.add(&interval(), &[], &losses);
        let text = text(metrics);
        for line in [
            "vcpulag_time_seconds_total{state=\"run\"} 1.5",
            "vcpulag_time_seconds_total{state=\"wait\"} 1.2",
            "vcpulag_time_seconds_total{state=\"vmm\"} 0.06",
            "vcpulag_waited_seconds_total{cause=\"preempted\"} 0.9",
            "vcpulag_blamed_seconds_total{culprit=\"vm\"} 0.6",
            "vcpulag_blamed_seconds_total{culprit=\"quota\"} 0.12",
            "vcpulag_blamed_seconds_total{culprit=\"unknown\"} 0.075",
            "vcpulag_preemptions_total 111",
            "vcpulag_wait_seconds_count 6",
            "vcpulag_vcpus 0",
            "vcpulag_longest_waiting_seconds 0.0",
            "vcpulag_lost_total{what=\"events\"} 6",
            "vcpulag_unnamed_seconds_total 0.01",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        let of = |family: &str| {
            let lines = text.lines().filter(|line| line.starts_with(family));
            let values = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
            (values.sum::<f64>() * 1e9).round()
        };
        assert_eq!(of("vcpulag_waited_seconds_total{"), 1.2e9);
        assert_eq!(of("vcpulag_blamed_seconds_total{"), 1.2e9);
    }

    #[test]
    fn rows_are_by_what_was_asked_for() {
        let rows = [vcpu("web", Some(0)), vcpu("web", None), vcpu("db", Some(0))];
        let written = |by| {
            let mut metrics = Metrics::new(by, 5_000);
            metrics.add(&interval(), &rows, &Losses::default());
            text(metrics)
        };
        assert!(written(By::Vm).contains("vcpulag_vcpus{vm=\"web\"} 2\n"));
        let by_vcpu = written(By::Vcpu);
        assert!(by_vcpu.contains("vcpulag_vcpus{vm=\"web\",vcpu=\"unknown\"} 1\n"), "{by_vcpu}");
        let of_one = by_vcpu.lines().filter(|line| line.contains("vm=\"db\",vcpu=\"0\""));
        assert_eq!(of_one.count(), SERIES_PER_ROW);
    }
}
