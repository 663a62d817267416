//! ksmstat's metrics for Prometheus: what is merged now, and all that was done since the start. Pure.

use std::fmt;

use common::hist::Unit;
use common::output::Interval;
use common::output::openmetrics::{self, Buckets, Families, Labels, Series, only, seconds};

use crate::processes::ProcessRow;
use crate::report::Rows;
use crate::rows::{KINDS, Kind, Known, Losses, Row};
use crate::sysfs::{Counter, State};

/// What was done since the start; `None` is not known on this kernel.
#[derive(Debug, Default)]
struct Totals {
    merged: Option<u64>,
    merge_failed: Option<u64>,
    unmerged: Option<u64>,
    zero_merged: Option<u64>,
    cow_breaks: Option<u64>,
    cow_unseen: Option<u64>,
    ksmd_cpu_ns: Option<u64>,
    scan_ns: Option<u64>,
    advices: Option<u64>,
    times: [Option<Buckets>; KINDS.len()],
    losses: Losses,
}

/// The processes that have the same labels.
#[derive(Debug, Default)]
struct Owners {
    merging_pages: Option<u64>,
    rmap_items: Option<u64>,
    zero_pages: Option<u64>,
    profit_bytes: Option<i64>,
    merged: Option<u64>,
    merge_failed: Option<u64>,
    cow_breaks: Option<u64>,
    cow_ns: Option<u64>,
}

/// How many series a row is.
const SERIES_PER_ROW: usize = 8;

/// All that was counted since the start, and the last interval.
#[derive(Debug)]
pub struct Metrics {
    totals: Totals,
    last: Option<Row>,
    rows: Rows,
    owners: Series<Owners>,
}

impl Metrics {
    /// Nothing so far; of more than `max_series` series some are folded into others.
    pub fn new(known: &Known, rows: Rows, max_series: u32) -> Self {
        let merges = known.merges.then_some(0);
        let times = KINDS.map(|kind| match kind {
            Kind::Batch => known.batches.then(Buckets::default),
            // Those may take hours.
            Kind::FullScan => known.full_scans.then(|| Buckets::new(Unit::Millis)),
            Kind::CowBreak => known.cow.then(Buckets::default),
        });
        let totals = Totals {
            merged: merges,
            merge_failed: merges,
            unmerged: merges,
            zero_merged: merges,
            cow_breaks: (known.cow_ksm || known.cow).then_some(0),
            cow_unseen: (known.cow_ksm && known.cow).then_some(0),
            ksmd_cpu_ns: None,
            scan_ns: known.batches.then_some(0),
            advices: known.advice.then_some(0),
            times,
            losses: Losses::default(),
        };
        Self { totals, last: None, rows, owners: Series::new(max_series, SERIES_PER_ROW, &[]) }
    }

    /// Adds an interval of the host's.
    pub fn add(&mut self, row: &Row) {
        let totals = &mut self.totals;
        for (total, more) in [
            (&mut totals.merged, row.merged),
            (&mut totals.merge_failed, row.merge_failed),
            (&mut totals.unmerged, row.unmerged),
            (&mut totals.zero_merged, row.zero_merged),
            (&mut totals.cow_breaks, row.cow_breaks),
            (&mut totals.cow_unseen, row.cow_unseen),
            (&mut totals.ksmd_cpu_ns, row.ksmd_cpu_ns),
            (&mut totals.scan_ns, row.scan_ns),
            (&mut totals.advices, row.advice.map(|advice| advice.count)),
        ] {
            add(total, more);
        }
        for (times, hist) in totals.times.iter_mut().zip(&row.hists) {
            times.iter_mut().for_each(|times| times.add(hist));
        }
        let Losses { processes, switches, cows, places: _, missed } = row.losses;
        totals.losses.processes += processes;
        totals.losses.switches += switches;
        totals.losses.cows += cows;
        totals.losses.missed += missed;
        self.last = Some(row.clone());
    }

    /// Adds an interval of processes or VMs.
    pub fn add_owners(&mut self, interval: &Interval, rows: &[ProcessRow]) {
        for owners in self.owners.values_mut() {
            let now = [&mut owners.merging_pages, &mut owners.rmap_items, &mut owners.zero_pages];
            now.into_iter().flatten().for_each(|pages| *pages = 0);
            owners.profit_bytes.iter_mut().for_each(|bytes| *bytes = 0);
        }
        for row in rows {
            let owners = self.owners.row(labels(self.rows, row));
            add(&mut owners.merged, row.merged);
            add(&mut owners.merge_failed, row.merge_failed);
            add(&mut owners.cow_breaks, row.cow_breaks);
            add(&mut owners.cow_ns, row.cow_ns);
            // What is gone has no memory any more.
            let now = |count: Option<u64>| count.map(|count| if row.gone { 0 } else { count });
            add(&mut owners.merging_pages, now(row.merging_pages));
            add(&mut owners.rmap_items, now(row.rmap_items));
            add(&mut owners.zero_pages, now(row.zero_pages));
            if let Some(bytes) = row.profit_bytes {
                let bytes = if row.gone { 0 } else { bytes };
                owners.profit_bytes = Some(owners.profit_bytes.unwrap_or(0) + bytes);
            }
        }
        self.owners.end_interval(interval.length);
    }

    fn encode_owners(&self, families: &mut Families<'_>) -> fmt::Result {
        type Figure = fn(&Owners) -> Option<u64>;
        let of = |figure: Figure| {
            let rows = self.owners.iter();
            rows.filter_map(move |(labels, row)| Some((labels, figure(row)?)))
        };
        families.gauge(
            "ksmstat_process_merging_pages",
            "Pages of processes that are KSM pages.",
            of(|row| row.merging_pages),
        )?;
        families.gauge(
            "ksmstat_process_rmap_items",
            "Pages of processes that KSM keeps a record of.",
            of(|row| row.rmap_items),
        )?;
        families.gauge(
            "ksmstat_process_zero_pages",
            "Pages of processes replaced by the kernel's page of zeroes.",
            of(|row| row.zero_pages),
        )?;
        families.gauge(
            "ksmstat_process_profit_bytes",
            "What merging saves of their memory, less what KSM's bookkeeping takes.",
            self.owners.iter().filter_map(|(labels, row)| Some((labels, row.profit_bytes?))),
        )?;
        families.counter(
            "ksmstat_process_merged_pages_total",
            "Pages of processes that became KSM pages.",
            of(|row| row.merged),
        )?;
        families.counter(
            "ksmstat_process_merge_failures_total",
            "Pages of processes that did not, though they were to.",
            of(|row| row.merge_failed),
        )?;
        families.counter(
            "ksmstat_process_cow_breaks_total",
            "Writes of processes to merged pages.",
            of(|row| row.cow_breaks),
        )?;
        families.counter(
            "ksmstat_process_cow_seconds_total",
            "How long those took.",
            of(|row| row.cow_ns).map(|(labels, ns)| (labels, seconds(ns))),
        )?;
        families.counter(
            "ksmstat_folded_rows_total",
            "Rows folded into the one labelled other, once for each interval.",
            (self.rows != Rows::Host).then_some((Labels::new(), self.owners.folded())),
        )
    }
}

fn add(total: &mut Option<u64>, more: Option<u64>) {
    if let Some(more) = more {
        *total = Some(total.unwrap_or(0) + more);
    }
}

/// No PIDs: they come and go, and Prometheus keeps them all. What runs no VM has an empty `vm`.
fn labels(rows: Rows, row: &ProcessRow) -> Labels {
    let mut labels = Labels::new();
    if rows == Rows::Processes {
        labels.push(("comm", row.comm.clone()));
    }
    labels.push(("vm", row.vm.clone().unwrap_or_default()));
    labels
}

/// Counters of /sys/kernel/mm/ksm that only grow, since boot.
const GROWING: [(Counter, &str, &str); 3] = [
    (Counter::PagesScanned, "ksmstat_scanned_pages_total", "Pages that ksmd has looked at."),
    (
        Counter::PagesSkipped,
        "ksmstat_skipped_pages_total",
        "Pages that smart scan did not look at.",
    ),
    (
        Counter::FullScans,
        "ksmstat_full_scans_total",
        "Times that all mergeable memory was scanned.",
    ),
];

/// What goes up and down.
const GAUGES: [(Counter, &str, &str); 9] = [
    (Counter::PagesShared, "ksmstat_shared_pages", "KSM pages: what is left of merged ones."),
    (Counter::PagesSharing, "ksmstat_sharing_pages", "Further places where KSM pages are mapped."),
    (Counter::KsmZeroPages, "ksmstat_zero_pages", "Pages of zeroes replaced by the kernel's own."),
    (Counter::PagesUnshared, "ksmstat_unshared_pages", "Pages scanned, without a twin so far."),
    (Counter::PagesVolatile, "ksmstat_volatile_pages", "Pages that change too fast to merge."),
    (
        Counter::StableNodeChains,
        "ksmstat_stable_node_chains",
        "Contents with more than one KSM page.",
    ),
    (Counter::StableNodeDups, "ksmstat_stable_node_dups", "KSM pages of such contents."),
    (Counter::Run, "ksmstat_run", "0: ksmd stopped, 1: it runs, 2: stopped, and all un-merged."),
    (
        Counter::PagesToScan,
        "ksmstat_pages_to_scan",
        "Pages scanned in a batch, before ksmd sleeps.",
    ),
];

fn encode_state(state: &State, families: &mut Families<'_>) -> fmt::Result {
    for (counter, name, help) in GROWING {
        families.counter(name, help, state.get(counter).and_then(only))?;
    }
    for (counter, name, help) in GAUGES {
        families.gauge(name, help, state.get(counter).and_then(only))?;
    }
    let sleep = state.get(Counter::SleepMillisecs).map(|millis| millis as f64 / 1e3);
    families.gauge(
        "ksmstat_sleep_seconds",
        "How long ksmd sleeps between batches.",
        sleep.and_then(only),
    )
}

impl openmetrics::Metrics for Metrics {
    fn encode(&self, families: &mut Families<'_>) -> fmt::Result {
        if let Some(row) = &self.last {
            families.gauge(
                "ksmstat_saved_bytes",
                "Memory that page merging saves now.",
                only(row.saved_bytes),
            )?;
            families.gauge(
                "ksmstat_profit_bytes",
                "The same, less what KSM's bookkeeping takes.",
                only(row.state.get(Counter::GeneralProfit).unwrap_or(row.profit_bytes)),
            )?;
            encode_state(&row.state, families)?;
        }
        let totals = &self.totals;
        for (name, help, total) in [
            (
                "ksmstat_merged_pages_total",
                "Pages that became KSM pages, or mappings of one.",
                totals.merged,
            ),
            (
                "ksmstat_merge_failures_total",
                "Pages that did not, though they were to.",
                totals.merge_failed,
            ),
            (
                "ksmstat_unmerged_pages_total",
                "Pages that were merged and are not any more.",
                totals.unmerged,
            ),
            (
                "ksmstat_zero_merged_pages_total",
                "Pages replaced by the kernel's page of zeroes.",
                totals.zero_merged,
            ),
            ("ksmstat_cow_breaks_total", "Writes to merged pages.", totals.cow_breaks),
            (
                "ksmstat_unseen_cow_breaks_total",
                "Of them, those that the probe did not see: in no process's figures.",
                totals.cow_unseen,
            ),
            ("ksmstat_advices_total", "Decisions of the kernel's advisor.", totals.advices),
        ] {
            families.counter(name, help, total.and_then(only))?;
        }
        for (name, help, total_ns) in [
            ("ksmstat_ksmd_cpu_seconds_total", "Time of ksmd on a CPU.", totals.ksmd_cpu_ns),
            ("ksmstat_scan_seconds_total", "Time of ksmd's batches.", totals.scan_ns),
        ] {
            families.counter(name, help, total_ns.map(seconds).and_then(only))?;
        }
        let [batches, full_scans, cow_breaks] = &totals.times;
        for (name, help, times) in [
            ("ksmstat_batch_seconds", "ksmd's batches, from one sleep to the next.", batches),
            ("ksmstat_full_scan_seconds", "Full scans of all mergeable memory.", full_scans),
            ("ksmstat_cow_break_seconds", "Writes to merged pages.", cow_breaks),
        ] {
            families.histogram(name, help, times.as_ref().and_then(only))?;
        }
        let Losses { processes, switches, cows, places: _, missed } = totals.losses;
        let lost = [
            ("processes", processes),
            ("switches", switches),
            ("cow_breaks", cows),
            ("events", missed),
        ];
        families.counter(
            "ksmstat_lost_total",
            "What could not be counted, or not for a process.",
            lost.map(|(what, count)| (vec![("what", what.to_owned())], count)),
        )?;
        self.encode_owners(families)
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
    use crate::rows::Advice;

    fn interval() -> Interval {
        Interval { end: Timestamp::UNIX_EPOCH, length: Duration::from_secs(1) }
    }

    fn all_known() -> Known {
        Known {
            merges: true,
            advice: true,
            batches: true,
            full_scans: true,
            cow_ksm: true,
            cow: true,
            ..Known::default()
        }
    }

    fn row() -> Row {
        let state = Counter::ALL.into_iter().zip(1..).collect::<Vec<_>>();
        Row {
            state: State::of(&state),
            saved_bytes: 4_096,
            profit_bytes: -64,
            merged: Some(101),
            merge_failed: Some(23),
            unmerged: Some(7),
            zero_merged: Some(5),
            cow_breaks: Some(3),
            cow_unseen: Some(1),
            ksmd_cpu_ns: Some(500_000_000),
            scan_ns: Some(250_000_000),
            advice: Some(Advice { count: 2, ..Advice::default() }),
            hists: [Hist::of([3_000]), Hist::of([9_000_000_000]), Hist::of([5_000])],
            losses: Losses { processes: 1, switches: 2, cows: 3, places: 4, missed: 5 },
            ..Row::default()
        }
    }

    fn process(comm: &str, vm: Option<&str>, pages: u64) -> ProcessRow {
        ProcessRow {
            comm: comm.to_owned(),
            vm: vm.map(str::to_owned),
            merging_pages: Some(pages),
            rmap_items: Some(2 * pages),
            zero_pages: Some(1),
            profit_bytes: Some(-64),
            merged: Some(pages),
            merge_failed: Some(1),
            cow_breaks: Some(2),
            cow_ns: Some(3_000),
            ..ProcessRow::default()
        }
    }

    fn text(metrics: Metrics) -> String {
        encoded("ksmstat", metrics).unwrap()
    }

    #[test]
    fn the_page_has_all_families() {
        let mut metrics = Metrics::new(&all_known(), Rows::Processes, 5_000);
        metrics.add(&row());
        metrics.add_owners(&interval(), &[process("qemu", Some("web"), 101)]);
        page::assert_documented(include_str!("../../man/ksmstat.8"), &text(metrics));
    }

    #[test]
    fn counters_go_on_and_gauges_are_of_now() {
        let mut metrics = Metrics::new(&all_known(), Rows::Host, 5_000);
        metrics.add(&row());
        metrics.add(&row());
        let text = text(metrics);
        for line in [
            "ksmstat_saved_bytes 4096",
            "ksmstat_shared_pages 1",
            "ksmstat_merged_pages_total 202",
            "ksmstat_ksmd_cpu_seconds_total 1.0",
            "ksmstat_full_scan_seconds_bucket{le=\"16.384\"} 2",
            "ksmstat_full_scan_seconds_bucket{le=\"8.192\"} 0",
            "ksmstat_lost_total{what=\"events\"} 10",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert!(!text.contains("_process_") && !text.contains("folded"), "{text}");
    }

    #[test]
    fn who_is_gone_has_done_what_it_has_and_keeps_no_memory() {
        let mut metrics = Metrics::new(&all_known(), Rows::Vms, 5_000);
        let web = process("qemu", Some("web"), 101);
        metrics.add_owners(&interval(), &[web.clone(), process("ksm", None, 7)]);
        metrics.add_owners(&interval(), &[ProcessRow { gone: true, ..web }]);
        let text = text(metrics);
        for line in [
            "ksmstat_process_merging_pages{vm=\"web\"} 0",
            "ksmstat_process_merging_pages{vm=\"\"} 0",
            "ksmstat_process_profit_bytes{vm=\"web\"} 0",
            "ksmstat_process_merged_pages_total{vm=\"web\"} 202",
            "ksmstat_process_cow_seconds_total{vm=\"web\"} 0.000006",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        let of_web = text.lines().filter(|line| line.contains("vm=\"web\""));
        assert_eq!(of_web.count(), SERIES_PER_ROW);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let text = text(Metrics::new(&Known::default(), Rows::Host, 5_000));
        assert!(!text.contains("merged") && !text.contains("cow_break_seconds"), "{text}");
    }
}
