//! From ksmstat's rows to text, CSV and JSON. Pure: nothing here asks the kernel or the host.

use std::io::{self, Write};

use anyhow::Result;
use common::hist::{Hist, Unit};
use common::output::{self, Field, Interval, printable, short_bytes, short_count, short_duration};
use serde_json::Value;

use crate::processes::ProcessRow;
use crate::rows::{Advice, KINDS, Kind, Known, Losses, Row};
use crate::sysfs::{Counter, Group, State};
use crate::{CsvRows, Format};

/// What people are told first.
pub const BANNER: &str = "Tracing KSM... Hit Ctrl-C to end.";

/// How many lines of figures follow a header.
const LINES_PER_HEADER: u64 = 20;
/// The width of a process's name.
const NAME: usize = 18;

/// Which rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One for the host.
    Host,
    /// One for each process.
    Processes,
    /// One for each VM.
    Vms,
}

/// Writes a run's intervals in one format.
pub struct Report {
    /// The format.
    pub format: Format,
    /// Which rows.
    pub rows: Rows,
    /// How many rows of processes or VMs text has at most.
    pub top: usize,
    /// Whether text has pictures, and their unit.
    pub pictures: Option<Unit>,
    /// Whether text begins with the time of day.
    pub timestamp: bool,
    /// How many lines of the host's there have been.
    lines: u64,
}

impl Report {
    /// For text as these options say.
    pub fn new(format: Format, rows: Rows, top: usize) -> Self {
        Self { format, rows, top, pictures: None, timestamp: false, lines: 0 }
    }

    /// What comes before the first interval.
    pub fn begin(&self, out: &mut dyn Write, known: &Known, state: &State) -> Result<()> {
        let figures = match (self.format, self.rows) {
            (Format::Text, _) => {
                writeln!(out, "{BANNER}")?;
                for note in notes(known, state, self.rows) {
                    let words: Vec<String> = note.split(' ').map(str::to_owned).collect();
                    output::write_words(out, &words)?;
                }
                return Ok(());
            }
            (Format::Json, _) => return Ok(()),
            (Format::Csv(CsvRows::Buckets), _) => [&["kind"][..], &output::BUCKET_COLUMNS].concat(),
            (Format::Csv(_), Rows::Host) => names(host_figures(&Row::default())),
            (Format::Csv(_), rows) => {
                names(figures(&ProcessRow::default(), rows, &Losses::default()))
            }
        };
        output::write_csv_header(out, Interval::COLUMNS.into_iter().chain(figures))
    }

    /// One interval of the host's.
    pub fn host(&mut self, out: &mut dyn Write, interval: &Interval, row: &Row) -> Result<()> {
        match self.format {
            Format::Text => Ok(self.host_text(out, interval, row)?),
            Format::Csv(CsvRows::Buckets) => write_buckets(out, interval, row),
            Format::Csv(_) => {
                output::write_csv_row(out, interval.fields().into_iter().chain(host_figures(row)))
            }
            Format::Json => {
                let fields = interval.fields().into_iter().chain(host_figures(row));
                output::write_json_line(out, fields.chain(more(row)))
            }
        }
    }

    /// One interval of processes or VMs, in their order.
    pub fn processes(
        &self,
        out: &mut dyn Write,
        interval: &Interval,
        rows: &[ProcessRow],
        losses: &Losses,
    ) -> Result<()> {
        if self.format == Format::Text {
            return Ok(self.processes_text(out, interval, rows, losses)?);
        }
        for row in rows {
            let fields = interval.fields().into_iter().chain(figures(row, self.rows, losses));
            match self.format {
                Format::Json => output::write_json_line(out, fields)?,
                _ => output::write_csv_row(out, fields)?,
            }
        }
        Ok(())
    }

    fn host_text(&mut self, out: &mut dyn Write, interval: &Interval, row: &Row) -> io::Result<()> {
        if self.timestamp {
            writeln!(out, "{}", interval.clock())?;
        }
        if self.lines.is_multiple_of(LINES_PER_HEADER) || self.pictures.is_some() {
            writeln!(
                out,
                "{:>5} {:>6} {:>6} {:>7} {:>6} {:>6} {:>6} {:>6} {:>6} {:>5} {:>5} {:>5}",
                "saved",
                "profit",
                "shared",
                "sharing",
                "scan/s",
                "merg/s",
                "fail/s",
                "unmg/s",
                "cow/s",
                "ksmd%",
                "batch",
                "full",
            )?;
        }
        self.lines += 1;
        let seconds = interval.length.as_secs_f64();
        let rate = |count: Option<u64>| per_second(count, seconds);
        let pages = |counter| count(row.state.get(counter).and_then(|n| u64::try_from(n).ok()));
        let cpu = row.ksmd_cpu_ns.map(|ns| ns as f64 / 1e7 / seconds);
        writeln!(
            out,
            "{:>5} {:>6} {:>6} {:>7} {:>6} {:>6} {:>6} {:>6} {:>6} {:>5} {:>5} {:>5}",
            short_bytes(i64::try_from(row.saved_bytes).unwrap_or(i64::MAX)),
            short_bytes(row.state.get(Counter::GeneralProfit).unwrap_or(row.profit_bytes)),
            pages(Counter::PagesShared),
            pages(Counter::PagesSharing),
            rate(row.scanned),
            rate(row.merged),
            rate(row.merge_failed),
            rate(row.unmerged),
            rate(row.cow_breaks),
            cpu.map_or("?".to_owned(), |percent| format!("{percent:.1}")),
            mean(&row.hists[Kind::Batch as usize], row.batches.is_some()),
            mean(&row.hists[Kind::FullScan as usize], row.knows_full_scans),
        )?;
        if let Some(line) = row.advice.and_then(advice) {
            writeln!(out, "{line}")?;
        }
        for line in row.losses.warnings() {
            writeln!(out, "{line}")?;
        }
        if let Some(unseen) = row.cow_unseen.filter(|count| *count > 0) {
            writeln!(out, "not seen {unseen} COW breaks: the kernel counted them")?;
        }
        if let Some(unit) = self.pictures {
            for (kind, hist) in KINDS.into_iter().zip(&row.hists) {
                if hist.count() > 0 {
                    writeln!(out, "\n{}, {}", kind.title(), times(hist))?;
                    output::write_picture(out, unit, hist.picture(unit))?;
                }
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn processes_text(
        &self,
        out: &mut dyn Write,
        interval: &Interval,
        rows: &[ProcessRow],
        losses: &Losses,
    ) -> io::Result<()> {
        if self.timestamp {
            writeln!(out, "{}", interval.clock())?;
        }
        let vms = self.rows == Rows::Vms;
        if rows.is_empty() {
            writeln!(out, "\nno mergeable memory")?;
        } else {
            writeln!(
                out,
                "\n{:>7} {:<NAME$}{:>8}{:>9}{:>8}{:>8}{:>8}{:>7}",
                if vms { "PROCS" } else { "PID" },
                if vms { "VM" } else { "NAME" },
                "MERGED",
                "TRACKED",
                "PROFIT",
                "MERG/S",
                "FAIL/S",
                "COW/S",
            )?;
        }
        let shown = rows.len().min(self.top);
        for row in &rows[..shown] {
            self.process_text(out, interval, row)?;
        }
        if shown < rows.len() {
            writeln!(out, "... and {} more (--top)", rows.len() - shown)?;
        }
        let costly: Vec<i64> = rows.iter().filter(|row| !row.gone).filter_map(cost).collect();
        if !costly.is_empty() {
            let total = short_bytes(costly.iter().sum());
            let (many, whose) = (costly.len(), if vms { "VMs" } else { "processes" });
            let verb = if many == 1 { "costs" } else { "cost" };
            writeln!(
                out,
                "{many} of {} {whose} {verb} more than merging saves: {total}",
                rows.len()
            )?;
        }
        for line in losses.warnings() {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    fn process_text(
        &self,
        out: &mut dyn Write,
        interval: &Interval,
        row: &ProcessRow,
    ) -> io::Result<()> {
        let seconds = interval.length.as_secs_f64();
        let id = match (self.rows, row.process) {
            (Rows::Processes, Some(process)) => process.pid.to_string(),
            _ => row.processes.to_string(),
        };
        let name = match (self.rows, &row.vm) {
            (_, Some(vm)) => printable(vm),
            (Rows::Vms, None) => "(no VM)".to_owned(),
            _ => printable(&row.comm),
        };
        let name: String = name.chars().take(NAME).collect();
        let mark = match row {
            ProcessRow { gone: true, .. } => " gone",
            row if row.costs() => " costs",
            _ => "",
        };
        writeln!(
            out,
            "{id:>7} {name:<NAME$}{:>8}{:>9}{:>8}{:>8}{:>8}{:>7}{mark}",
            count(row.merging_pages),
            count(row.rmap_items),
            row.profit_bytes.map_or("?".to_owned(), short_bytes),
            per_second(row.merged, seconds),
            per_second(row.merge_failed, seconds),
            per_second(row.cow_breaks, seconds),
        )
    }
}

fn cost(row: &ProcessRow) -> Option<i64> {
    row.profit_bytes.filter(|profit| *profit < 0).map(|profit| -profit)
}

fn names(fields: Vec<Field>) -> Vec<&'static str> {
    fields.into_iter().map(|(name, _)| name).collect()
}

/// A number that may not be known: that is no zero.
fn count(count: Option<u64>) -> String {
    count.map_or("?".to_owned(), |count| short_count(count as f64, 6))
}

fn per_second(count: Option<u64>, seconds: f64) -> String {
    count.map_or("?".to_owned(), |count| short_count(count as f64 / seconds, 6))
}

/// The mean of what there was; nothing if there was none.
fn mean(hist: &Hist, known: bool) -> String {
    match (known, hist.mean_ns()) {
        (false, _) => "?".to_owned(),
        (true, None) => "-".to_owned(),
        (true, Some(ns)) => short_duration(ns),
    }
}

fn times(hist: &Hist) -> String {
    let quantiles = hist.quantiles_ns([0.5, 0.99]).unwrap_or_default().map(short_duration);
    let max = short_duration(hist.max_ns().unwrap_or(0));
    format!("count {} p50 {} p99 {} max {max}", hist.count(), quantiles[0], quantiles[1])
}

fn advice(advice: Advice) -> Option<String> {
    let Advice { count, pages_to_scan, scan_ms, cpu_percent } = advice;
    let again = if count > 1 { format!(" ({count} times)") } else { String::new() };
    (count > 0).then(|| {
        format!(
            "advisor: pages_to_scan {pages_to_scan}, as a scan took {scan_ms} ms, {cpu_percent} % CPU{again}"
        )
    })
}

/// What people should know before they read on: what is not to be seen on this kernel.
fn notes(known: &Known, state: &State, rows: Rows) -> Vec<String> {
    let mut notes = Vec::new();
    match state.get(Counter::Run) {
        Some(0) => notes.push("ksmd is stopped: /sys/kernel/mm/ksm/run is 0"),
        Some(2) => notes.push("ksmd is stopped, and all is un-merged: /sys/kernel/mm/ksm/run is 2"),
        _ => {}
    }
    if !known.merges {
        notes.push("not known on this kernel: merges, failures, un-merging (since Linux 6.3)");
    }
    if rows == Rows::Host && state.get(Counter::PagesScanned).is_none() {
        notes.push("not known on this kernel: pages scanned (since Linux 6.6)");
    }
    if rows == Rows::Host && !known.batches {
        notes.push("not known here: ksmd's time, as its thread is not to be seen");
    }
    if rows == Rows::Host && !known.full_scans {
        notes.push("not known on this kernel: how long full scans take (since Linux 6.3)");
    }
    if rows == Rows::Host && !known.cow_ksm && !known.cow {
        notes.push("not known on this kernel: COW breaks (since Linux 5.18, or with --cow)");
    }
    if rows != Rows::Host && !known.merging_pages {
        notes.push("not known on this kernel: processes' merged pages (since Linux 5.19)");
    }
    if rows != Rows::Host && !known.rmap_items {
        notes.push(
            "not known on this kernel: processes' tracked pages and profit (since Linux 6.1)",
        );
    }
    if rows != Rows::Host && known.merges && !known.owners {
        notes.push("not known on this kernel: whose pages are merged (CONFIG_MEMCG is not set)");
    }
    let mut notes: Vec<String> = notes.into_iter().map(str::to_owned).collect();
    if let Some(reason) = &known.cow_refused {
        notes.push(format!("COW breaks are not seen: the kernel refuses a probe ({reason})"));
    }
    notes
}

fn host_figures(row: &Row) -> Vec<Field> {
    let counters = Counter::ALL.map(|counter| {
        let number = row.state.get(counter).map(Value::from);
        let word = row.state.advisor_mode().filter(|_| counter == Counter::AdvisorMode);
        (counter.facts().name, number.or(word.map(Value::from)).into())
    });
    let [batches, full_scans, cows] = &row.hists;
    let [batch_p50, batch_p99] = quantiles(batches);
    let [cow_p50, cow_p99] = quantiles(cows);
    let figures = [
        ("scanned", row.scanned.into()),
        ("merged", row.merged.into()),
        ("merge_failed", row.merge_failed.into()),
        ("unmerged", row.unmerged.into()),
        ("cow_breaks", row.cow_breaks.into()),
        ("ksmd_cpu_ns", row.ksmd_cpu_ns.into()),
        ("scan_ns", row.scan_ns.into()),
        ("zero_merged", row.zero_merged.into()),
        ("saved_bytes", row.saved_bytes.into()),
        ("profit_bytes", row.profit_bytes.into()),
        ("batches", row.batches.into()),
        ("batch_p50_ns", batch_p50),
        ("batch_p99_ns", batch_p99),
        ("batch_max_ns", batches.max_ns().into()),
        ("full_scan_mean_ns", full_scans.mean_ns().into()),
        ("full_scan_max_ns", full_scans.max_ns().into()),
        ("cow_p50_ns", cow_p50),
        ("cow_p99_ns", cow_p99),
        ("cow_max_ns", cows.max_ns().into()),
        ("cow_unseen", row.cow_unseen.into()),
        ("advices", row.advice.map(|advice| advice.count).into()),
        ("lost", row.losses.lost().into()),
    ];
    counters.into_iter().chain(figures).collect()
}

fn quantiles(hist: &Hist) -> [Value; 2] {
    hist.quantiles_ns([0.5, 0.99]).map_or([Value::Null, Value::Null], |both| both.map(Value::from))
}

/// For JSON, which has room for them.
fn more(row: &Row) -> Vec<Field> {
    let buckets = KINDS.into_iter().zip(&row.hists).map(|(kind, hist)| {
        let (_, buckets) = output::buckets_json(hist);
        (kind.name().to_owned(), buckets)
    });
    let advice = row.advice.filter(|advice| advice.count > 0).map(|advice| {
        serde_json::json!({
            "pages_to_scan": advice.pages_to_scan,
            "full_scan_ms": advice.scan_ms,
            "cpu_percent": advice.cpu_percent,
        })
    });
    vec![("advice", advice.into()), ("buckets", Value::Object(buckets.collect()))]
}

fn figures(row: &ProcessRow, rows: Rows, losses: &Losses) -> Vec<Field> {
    let pid = row.process.map(|process| process.pid);
    let keys = match rows {
        Rows::Vms => vec![("vm", row.vm.clone().into()), ("processes", row.processes.into())],
        _ => vec![
            ("pid", pid.into()),
            ("comm", row.comm.as_str().into()),
            ("vm", row.vm.clone().into()),
        ],
    };
    let figures = [
        ("merging_pages", row.merging_pages.into()),
        ("rmap_items", row.rmap_items.into()),
        ("profit_bytes", row.profit_bytes.into()),
        ("merged", row.merged.into()),
        ("merge_failed", row.merge_failed.into()),
        ("zero_pages", row.zero_pages.into()),
        ("zero_merged", row.zero_merged.into()),
        ("cow_breaks", row.cow_breaks.into()),
        ("cow_ns", row.cow_ns.into()),
        ("gone", row.gone.into()),
        ("lost", losses.lost().into()),
    ];
    keys.into_iter().chain(figures).collect()
}

fn write_buckets(out: &mut dyn Write, interval: &Interval, row: &Row) -> Result<()> {
    for (kind, hist) in KINDS.into_iter().zip(&row.hists) {
        for (range, count) in hist.buckets() {
            let bucket = [range.start, range.end, count].map(Value::from);
            let bucket = output::BUCKET_COLUMNS.into_iter().zip(bucket);
            let keys = interval.fields().into_iter().chain([("kind", kind.name().into())]);
            output::write_csv_row(out, keys.chain(bucket))?;
        }
    }
    Ok(())
}

const GROUPS: [(Group, &str); 5] = [
    (Group::Merged, "merged"),
    (Group::Unmerged, "not merged"),
    (Group::Scanned, "scanned"),
    (Group::Setting, "settings"),
    (Group::Advisor, "the advisor's settings"),
];

/// Writes every counter with its meaning.
pub fn state(out: &mut dyn Write, state: &State) -> io::Result<()> {
    for (group, title) in GROUPS {
        writeln!(out, "{title}:")?;
        for counter in Counter::ALL {
            let facts = counter.facts();
            if facts.group != group {
                continue;
            }
            let number = state.get(counter).map(|number| number.to_string());
            let word = state.advisor_mode().filter(|_| counter == Counter::AdvisorMode);
            let value = match number.or(word.map(str::to_owned)) {
                Some(value) => format!("{value} {}", facts.unit.name()),
                None => format!("not known: Linux {} has it", facts.since),
            };
            writeln!(out, "  {:<34} {}", facts.name, value.trim_end())?;
            writeln!(out, "      {}", facts.meaning)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::processes::ProcessId;

    fn known() -> Known {
        Known {
            merges: true,
            advice: true,
            batches: true,
            full_scans: true,
            merging_pages: true,
            rmap_items: true,
            zero_pages: true,
            owners: true,
            item_bytes: 64,
            ..Known::default()
        }
    }

    fn interval() -> Interval {
        Interval { end: "2026-11-23T04:42:00Z".parse().unwrap(), length: Duration::from_secs(2) }
    }

    fn busy() -> Row {
        Row {
            saved_bytes: 6_417 << 20,
            profit_bytes: -6_417 << 20,
            scanned: Some(100_000),
            merged: Some(46_000_000),
            merge_failed: Some(3),
            unmerged: Some(0),
            cow_breaks: Some(101),
            ksmd_cpu_ns: Some(2_000_000_000),
            scan_ns: Some(1_990_000_000),
            batches: Some(3),
            knows_full_scans: true,
            advice: Some(Advice { count: 2, pages_to_scan: 5_000, scan_ms: 41, cpu_percent: 23 }),
            hists: [
                Hist::of([1_000_000, 2_000_000, 6_000_000]),
                Hist::of([120_000_000_000]),
                Hist::default(),
            ],
            ..Row::default()
        }
    }

    fn written(write: impl FnOnce(&mut dyn Write)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        text
    }

    #[test]
    fn a_line_is_an_interval() {
        let mut report = Report::new(Format::Text, Rows::Host, 20);
        let text = written(|out| {
            report.host(out, &interval(), &busy()).unwrap();
            report.host(out, &interval(), &Row::default()).unwrap();
        });
        insta::assert_snapshot!(text, @r"
        saved profit shared sharing scan/s merg/s fail/s unmg/s  cow/s ksmd% batch  full
         6.3G  -6.3G      ?       ?  50000    23M    1.5      0     50 100.0 3.0ms  120s
        advisor: pages_to_scan 5000, as a scan took 41 ms, 23 % CPU (2 times)
            0      0      ?       ?      ?      ?      ?      ?      ?     ?     ?     ?
        ");
    }

    #[test]
    fn pictures_have_titles() {
        let mut report = Report::new(Format::Text, Rows::Host, 20);
        report.pictures = Some(Unit::Millis);
        report.timestamp = true;
        let row = Row {
            hists: [Hist::of([5_000_000; 7]), Hist::default(), Hist::default()],
            ..Row::default()
        };
        let text = written(|out| report.host(out, &interval(), &row).unwrap());
        let (clock, text) = text.split_once('\n').unwrap();
        assert_eq!(clock.len(), "04:42:00".len());
        insta::assert_snapshot!(text, @r"
        saved profit shared sharing scan/s merg/s fail/s unmg/s  cow/s ksmd% batch  full
            0      0      ?       ?      ?      ?      ?      ?      ?     ?     ?     ?

        batches of ksmd, count 7 p50 5.0ms p99 5.0ms max 5.0ms
             msecs               : count     distribution
                 0 -> 1          : 0        |                                        |
                 2 -> 3          : 0        |                                        |
                 4 -> 7          : 7        |****************************************|
        ");
    }

    #[test]
    fn what_is_missing_is_said_first() {
        let report = Report::new(Format::Text, Rows::Host, 20);
        let text = written(|out| report.begin(out, &Known::default(), &State::default()).unwrap());
        insta::assert_snapshot!(text, @r"
        Tracing KSM... Hit Ctrl-C to end.
        not known on this kernel: merges, failures, un-merging (since Linux 6.3)
        not known on this kernel: pages scanned (since Linux 6.6)
        not known here: ksmd's time, as its thread is not to be seen
        not known on this kernel: how long full scans take (since Linux 6.3)
        not known on this kernel: COW breaks (since Linux 5.18, or with --cow)
        ");
        let report = Report::new(Format::Text, Rows::Processes, 20);
        let refused = Some("Operation not permitted".to_owned());
        let known = Known { cow_refused: refused, ..known() };
        let text = written(|out| report.begin(out, &known, &State::default()).unwrap());
        insta::assert_snapshot!(text, @r"
        Tracing KSM... Hit Ctrl-C to end.
        COW breaks are not seen: the kernel refuses a probe (Operation not permitted)
        ");
    }

    fn process(pid: i32, vm: Option<&str>, profit_bytes: Option<i64>) -> ProcessRow {
        ProcessRow {
            process: Some(ProcessId { pid, start_boottime_ns: 7 }),
            comm: "long name\x1b".to_owned(),
            vm: vm.map(str::to_owned),
            processes: 1,
            merging_pages: profit_bytes.map(|_| 1_234_567),
            rmap_items: profit_bytes.map(|_| 2_234_567),
            profit_bytes,
            merged: Some(4_001),
            merge_failed: Some(0),
            ..ProcessRow::default()
        }
    }

    #[test]
    fn processes_that_cost_or_are_gone_are_marked() {
        let report = Report::new(Format::Text, Rows::Processes, 3);
        let rows = [
            process(4_194_304, Some("a VM with a name that is long"), Some(4 << 30)),
            process(2, None, Some(-12_288)),
            ProcessRow { gone: true, ..process(3, None, None) },
            process(4, None, Some(-4_096)),
        ];
        let losses = Losses { missed: 3, ..Losses::default() };
        let text = written(|out| report.processes(out, &interval(), &rows, &losses).unwrap());
        insta::assert_snapshot!(text, @r"
            PID NAME                MERGED  TRACKED  PROFIT  MERG/S  FAIL/S  COW/S
        4194304 a VM with a name t    1.2M     2.2M    4.0G    2000       0      ?
              2 long name?            1.2M     2.2M    -12K    2000       0      ? costs
              3 long name?               ?        ?       ?    2000       0      ? gone
        ... and 1 more (--top)
        2 of 4 processes cost more than merging saves: 16K
        lost 3 events: the kernel skipped them
        ");
    }

    #[test]
    fn vms_are_shown_by_name() {
        let report = Report::new(Format::Text, Rows::Vms, 20);
        let rows = crate::processes::by_vm(&[
            process(2, Some("web"), Some(4_096)),
            process(3, None, Some(-4_096)),
        ]);
        let text = written(|out| {
            report.processes(out, &interval(), &rows, &Losses::default()).unwrap();
            report.processes(out, &interval(), &[], &Losses::default()).unwrap();
        });
        insta::assert_snapshot!(text, @r"
          PROCS VM                  MERGED  TRACKED  PROFIT  MERG/S  FAIL/S  COW/S
              1 (no VM)               1.2M     2.2M   -4096    2000       0      ? costs
              1 web                   1.2M     2.2M    4096    2000       0      ?
        1 of 2 VMs costs more than merging saves: 4096

        no mergeable memory
        ");
    }

    #[test]
    fn rows_have_as_many_fields_as_there_are_columns() {
        for (rows, kind) in [
            (Rows::Host, CsvRows::Summary),
            (Rows::Vms, CsvRows::Summary),
            (Rows::Processes, CsvRows::Processes),
        ] {
            let mut report = Report::new(Format::Csv(kind), rows, 20);
            let mut out = Vec::new();
            report.begin(&mut out, &known(), &State::default()).unwrap();
            match rows {
                Rows::Host => report.host(&mut out, &interval(), &busy()).unwrap(),
                _ => {
                    let rows = [process(2, None, None)];
                    report.processes(&mut out, &interval(), &rows, &Losses::default()).unwrap();
                }
            }
            let text = String::from_utf8(out).unwrap();
            let fields: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
            assert!(fields.len() == 2 && fields[0] == fields[1], "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_null_in_json() {
        let mut report = Report::new(Format::Json, Rows::Host, 20);
        let text = written_any(|out| report.host(out, &interval(), &Row::default()).unwrap());
        let row: Value = serde_json::from_str(&text).unwrap();
        for name in ["merged", "unmerged", "cow_breaks", "scan_ns", "advisor_mode", "smart_scan"] {
            assert!(row[name].is_null(), "{name}: {row}");
        }
        assert_eq!(row["lost"], 0);
    }

    fn written_any(write: impl FnOnce(&mut dyn Write)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }
}
