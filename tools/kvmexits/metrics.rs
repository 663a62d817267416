//! kvmexits' metrics for Prometheus: all exits since the start. Pure.

use std::fmt;

use common::output::Interval;
use common::output::openmetrics::{
    self, Buckets, Families, Labels, SERIES_PER_HISTOGRAM, Series, and, only, seconds,
};

use crate::report::Losses;
use crate::rows::{Key, Row};

/// The exits of those that have the same labels.
#[derive(Debug, Default)]
struct Exits {
    times: Buckets,
    kernel_ns: u64,
    userspace_ns: u64,
    asleep_ns: u64,
    runqueue_ns: u64,
    idle_ns: u64,
    open: u64,
    longest_open_ns: u64,
}

/// How many series a row is.
const SERIES_PER_ROW: usize = SERIES_PER_HISTOGRAM + 7;

/// Labels whose values the kernel's tables limit.
const FEW: [&str; 2] = ["kind", "reason"];

/// All that was counted since the start.
#[derive(Debug)]
pub struct Metrics {
    rows: Series<Exits>,
    losses: Losses,
    exits_untraced: bool,
}

impl Metrics {
    /// Nothing so far; of more than `max_series` series some are folded into others.
    pub fn new(max_series: u32) -> Self {
        let rows = Series::new(max_series, SERIES_PER_ROW, &FEW);
        Self { rows, losses: Losses::default(), exits_untraced: false }
    }

    /// Adds an interval. Where vCPUs run without exits from guest mode to be seen, `exits_untraced`.
    pub fn add(
        &mut self,
        interval: &Interval,
        rows: &[Row],
        losses: &Losses,
        exits_untraced: bool,
    ) {
        for exits in self.rows.values_mut() {
            (exits.open, exits.longest_open_ns) = (0, 0);
        }
        for row in rows {
            let exits = self.rows.row(labels(row));
            exits.times.add(&row.hist);
            exits.kernel_ns += row.kernel_ns();
            exits.userspace_ns += row.parts.userspace_ns;
            exits.asleep_ns += row.parts.asleep_ns;
            exits.runqueue_ns += row.parts.runqueue_ns;
            exits.idle_ns += row.idle_ns;
            exits.open += row.open;
            exits.longest_open_ns = exits.longest_open_ns.max(row.longest_open_ns.unwrap_or(0));
        }
        self.rows.end_interval(interval.length);
        self.losses.no_room += losses.no_room;
        self.losses.unended += losses.unended;
        self.losses.missed += losses.missed;
        self.exits_untraced = exits_untraced;
    }
}

/// No PIDs: they come and go, and Prometheus keeps them all. VMs of one name are counted together.
fn labels(row: &Row) -> Labels {
    let Key { vm, vcpu, userspace, reason, detail } = row.key;
    let mut labels = Labels::new();
    labels.extend(vm.map(|_| ("vm", row.vm.clone())));
    let number = |vcpu: Option<u32>| vcpu.map_or("unknown".to_owned(), |n| n.to_string());
    labels.extend(vcpu.map(|vcpu| ("vcpu", number(vcpu))));
    labels.push(("kind", if userspace { "userspace" } else { "hardware" }.to_owned()));
    labels.extend(reason.map(|reason| ("reason", reason.name().into_owned())));
    labels.extend(detail.map(|detail| ("detail", detail.to_string())));
    labels
}

impl openmetrics::Metrics for Metrics {
    fn encode(&self, families: &mut Families<'_>) -> fmt::Result {
        let rows = || self.rows.iter();
        families.histogram(
            "kvmexits_exit_seconds",
            "Time from an exit to the next entry, or to the next KVM_RUN.",
            rows().map(|(labels, row)| (labels, &row.times)),
        )?;
        families.counter(
            "kvmexits_time_seconds_total",
            "Where the time of exits went: in KVM, in the VMM, asleep, or waiting for a CPU.",
            rows().flat_map(|(labels, row)| {
                let parts = [
                    ("kernel", row.kernel_ns),
                    ("userspace", row.userspace_ns),
                    ("asleep", row.asleep_ns),
                    ("runqueue", row.runqueue_ns),
                ];
                parts.map(|(part, ns)| (and(labels, "part", part), seconds(ns)))
            }),
        )?;
        families.counter(
            "kvmexits_idle_seconds_total",
            "Of it, the time in which a halted vCPU had nothing to do: no cost.",
            rows().map(|(labels, row)| (labels, seconds(row.idle_ns))),
        )?;
        families.gauge(
            "kvmexits_open_exits",
            "Exits that go on at the end of the interval.",
            rows().map(|(labels, row)| (labels, row.open)),
        )?;
        families.gauge(
            "kvmexits_longest_open_seconds",
            "How long the longest of them has lasted so far; 0 if there is none.",
            rows().map(|(labels, row)| (labels, seconds(row.longest_open_ns))),
        )?;
        families.gauge(
            "kvmexits_exits_untraced",
            "1 if vCPUs run, but this host does not show exits from guest mode.",
            only(u32::from(self.exits_untraced)),
        )?;
        let Losses { no_room, unended, missed, untold: _ } = self.losses;
        let lost = [("no_room", no_room), ("unended", unended), ("missed", missed)];
        families.counter(
            "kvmexits_lost_exits_total",
            "Exits that no other figure has.",
            lost.map(|(cause, count)| (vec![("cause", cause.to_owned())], count)),
        )?;
        families.counter(
            "kvmexits_folded_rows_total",
            "Rows folded into one labelled other, once for each interval.",
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

    use common::exits::Reason;
    use common::hist::Hist;
    use common::output::openmetrics::encoded;
    use jiff::Timestamp;

    use super::*;
    use crate::rows::{Parts, VmId};

    const IO: u32 = 2;

    fn interval() -> Interval {
        Interval { end: Timestamp::UNIX_EPOCH, length: Duration::from_secs(1) }
    }

    fn row(vm: Option<&str>, reason: Reason) -> Row {
        let key = Key {
            vm: vm.map(|_| VmId::default()),
            vcpu: None,
            userspace: reason.kind() == "userspace",
            reason: Some(reason),
            detail: None,
        };
        Row {
            vm: vm.unwrap_or_default().to_owned(),
            hist: Hist::of([1_000, 3_000_000]),
            parts: Parts { userspace_ns: 2_000_000, asleep_ns: 500_000, runqueue_ns: 250_000 },
            idle_ns: 100_000,
            open: 1,
            longest_open_ns: Some(5_000_000),
            ..Row::new(key)
        }
    }

    fn text(metrics: Metrics) -> String {
        encoded("kvmexits", metrics).unwrap()
    }

    #[test]
    fn the_page_has_all_families() {
        let mut metrics = Metrics::new(5_000);
        metrics.add(&interval(), &[row(None, Reason::userspace(IO, 0))], &Losses::default(), false);
        page::assert_documented(include_str!("../../man/kvmexits.8"), &text(metrics));
    }

    #[test]
    fn counters_go_on_and_gauges_are_of_now() {
        let mut metrics = Metrics::new(5_000);
        let losses = Losses { no_room: 1, unended: 2, missed: 3, untold: 4 };
        let io = row(None, Reason::userspace(IO, 0));
        metrics.add(&interval(), std::slice::from_ref(&io), &losses, true);
        metrics.add(&interval(), &[Row { open: 0, longest_open_ns: None, ..io }], &losses, true);
        let text = text(metrics);
        let io = "kind=\"userspace\",reason=\"KVM_EXIT_IO\"";
        for line in [
            format!("kvmexits_exit_seconds_count{{{io}}} 4"),
            format!("kvmexits_exit_seconds_sum{{{io}}} 0.006002"),
            format!("kvmexits_time_seconds_total{{{io},part=\"kernel\"}} 0.000502"),
            format!("kvmexits_time_seconds_total{{{io},part=\"userspace\"}} 0.004"),
            format!("kvmexits_time_seconds_total{{{io},part=\"asleep\"}} 0.001"),
            format!("kvmexits_time_seconds_total{{{io},part=\"runqueue\"}} 0.0005"),
            format!("kvmexits_idle_seconds_total{{{io}}} 0.0002"),
            format!("kvmexits_open_exits{{{io}}} 0"),
            "kvmexits_exits_untraced 1".to_owned(),
            "kvmexits_lost_exits_total{cause=\"missed\"} 6".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }

    #[test]
    fn what_is_folded_keeps_its_reason() {
        let mut metrics = Metrics::new(SERIES_PER_ROW as u32);
        let (io, hlt) = (Reason::userspace(IO, 0), Reason::hardware(2, 0x78));
        let rows = [row(Some("a"), io), row(Some("b"), io), row(Some("c"), hlt)];
        metrics.add(&interval(), &rows, &Losses::default(), false);
        let text = text(metrics);
        for labels in
            ["kind=\"userspace\",reason=\"KVM_EXIT_IO\"", "kind=\"hardware\",reason=\"hlt\""]
        {
            let line = format!("kvmexits_exit_seconds_count{{vm=\"other\",{labels}}} 2\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
        let of_a = text.lines().filter(|line| line.contains("vm=\"a\""));
        assert_eq!(of_a.count(), SERIES_PER_ROW);
        assert!(text.contains("kvmexits_folded_rows_total 2\n"), "{text}");
    }
}
