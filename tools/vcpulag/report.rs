//! From vcpulag's rows to text, CSV and JSON. Pure: nothing here asks the kernel or the host.

use std::io::Write;

use anyhow::Result;
use common::args::CsvKind;
use common::hist::Unit;
use common::output::{self, Field, Format, Interval, printable, short_count, short_duration};
use serde_json::Value;

use crate::losses::Losses;
use crate::matrix;
use crate::rows::{Culprit, Kind, Row};

const QUANTILES: [f64; 2] = [0.5, 0.99];

/// A row and the names of its culprits.
pub struct NamedRow {
    /// The row.
    pub row: Row,
    /// The culprits' names in the row's order.
    pub culprits: Vec<String>,
}

/// What a culprit is called: the VM by its name, everything else by its process.
pub fn culprit_name(culprit: &Culprit, vm_name: impl FnOnce(i32, &str) -> String) -> String {
    match culprit.kind {
        Kind::Vm => vm_name(culprit.pid, &culprit.comm),
        Kind::Sibling => "itself".to_owned(),
        Kind::Interrupts => "interrupts".to_owned(),
        _ => culprit.comm.clone(),
    }
}

impl NamedRow {
    fn columns(by_vm: bool) -> Vec<&'static str> {
        let mut columns = vec!["vm", "pid"];
        if !by_vm {
            columns.extend(["tid", "vcpu"]);
        }
        columns
    }

    fn keys(&self) -> Vec<Field> {
        let row = &self.row;
        let mut fields: Vec<Field> =
            vec![("vm", row.name.as_str().into()), ("pid", row.vm.pid.into())];
        if let Some(thread) = row.thread {
            fields.push(("tid", thread.tid.into()));
            fields.push(("vcpu", thread.vcpu.into()));
        }
        fields
    }

    fn figures(&self, losses: &Losses) -> Vec<Field> {
        let Row { times, waits, waiting_ns, culprits, .. } = &self.row;
        let [p50, p99] = waits.quantiles_ns(QUANTILES).map_or([None; 2], |q| q.map(Some));
        vec![
            ("run_ns", times.run_ns.into()),
            ("wait_ns", times.wait_ns().into()),
            ("halt_ns", times.halt_ns.into()),
            ("blocked_ns", times.blocked_ns.into()),
            ("vmm_ns", times.vmm_ns.into()),
            ("wakeups", times.wakeups.into()),
            ("preemptions", times.preemptions.into()),
            ("wait_wakeup_ns", times.wait_wakeup_ns.into()),
            ("wait_preempted_ns", times.wait_preempted_ns.into()),
            ("wait_throttled_ns", times.wait_throttled_ns.into()),
            ("p50_ns", p50.into()),
            ("p99_ns", p99.into()),
            ("max_ns", waits.max_ns().into()),
            ("waiting_ns", (*waiting_ns).into()),
            ("culprit", self.culprits.first().cloned().into()),
            ("culprit_ns", culprits.first().map(|(_, ns)| *ns).into()),
            ("lost", losses.lost().into()),
        ]
    }

    /// For JSON, which has room for them.
    fn more(&self, losses: &Losses) -> Vec<Field> {
        let Row { times, culprits, .. } = &self.row;
        let by_kind = crate::rows::KINDS
            .into_iter()
            .map(|kind| (kind.name().to_owned(), times.blamed_ns(kind).into()));
        let pairs = culprits.iter().zip(&self.culprits).map(|((culprit, ns), name)| {
            serde_json::json!({
                "name": name, "pid": culprit.pid, "kind": culprit.kind.name(), "ns": ns,
            })
        });
        vec![
            ("vmm_cpu_ns", times.vmm_cpu_ns.into()),
            ("poll_ns", times.poll_ns.into()),
            ("blamed_ns", Value::Object(by_kind.collect())),
            ("culprits", pairs.collect()),
            ("unseen", losses.unseen.into()),
            ("unnamed_ns", losses.unnamed_ns.into()),
            output::buckets_json(&self.row.waits),
        ]
    }

    /// What tells this row apart.
    pub fn title(&self) -> String {
        let name = match self.row.thread {
            Some(thread) => match thread.vcpu {
                Some(vcpu) => format!("{}/{vcpu}", self.row.name),
                None => format!("{}/?", self.row.name),
            },
            None => self.row.name.clone(),
        };
        printable(&name)
    }
}

/// Writes a run's intervals in one format.
pub struct Report {
    /// The format.
    pub format: Format,
    /// A row is a VM, not a vCPU.
    pub by_vm: bool,
    /// How many rows text has at most.
    pub top: usize,
    /// From which share of its time on, in per cent, a vCPU's waiting is worth a verdict.
    pub late_percent: f64,
    /// Whether text has pictures.
    pub pictures: Option<Unit>,
    /// Whether there is a matrix of victims and culprits instead of rows.
    pub matrix: bool,
    /// Whether text begins with the time of day.
    pub timestamp: bool,
}

/// What people are told first.
pub const BANNER: &str = "Tracing vCPUs... Hit Ctrl-C to end.";

/// The width of the first column.
const NAME: usize = 15;
/// How many culprits text names for each row.
pub const CULPRITS: usize = 3;

impl Report {
    /// What comes before the first interval.
    pub fn begin(&self, out: &mut dyn Write) -> Result<()> {
        let figures = match self.format {
            Format::Text => {
                writeln!(out, "{BANNER}")?;
                return Ok(());
            }
            Format::Json => return Ok(()),
            Format::Csv(_) if self.matrix => matrix::COLUMNS.to_vec(),
            Format::Csv(CsvKind::Buckets) => output::BUCKET_COLUMNS.to_vec(),
            Format::Csv(CsvKind::Summary) => {
                let none = NamedRow { row: Row::default(), culprits: vec![] };
                none.figures(&Losses::default()).into_iter().map(|(name, _)| name).collect()
            }
        };
        let keys = match self.matrix {
            true => vec![],
            false => NamedRow::columns(self.by_vm),
        };
        let columns = Interval::COLUMNS.into_iter().chain(keys).chain(figures);
        output::write_csv_header(out, columns)
    }

    /// One interval.
    pub fn interval(
        &self,
        out: &mut dyn Write,
        interval: &Interval,
        rows: &[NamedRow],
        losses: &Losses,
    ) -> Result<()> {
        if self.format == Format::Text {
            return self.text(out, interval, rows, losses);
        }
        if self.matrix {
            for fields in matrix::fields(rows, losses) {
                let fields = interval.fields().into_iter().chain(fields);
                match self.format {
                    Format::Json => output::write_json_line(out, fields)?,
                    _ => output::write_csv_row(out, fields)?,
                }
            }
            return Ok(());
        }
        for row in rows {
            // All that there was of this vCPU: less if it is younger than the interval.
            let own = row.row.times.sum_ns() as f64 / 1e9 / row.row.vcpus.max(1) as f64;
            let [time, (name, _)] = interval.fields();
            let keys = [time, (name, ((own * 1e6).round() / 1e6).into())];
            let keys = keys.into_iter().chain(row.keys());
            match self.format {
                Format::Csv(CsvKind::Buckets) => {
                    let keys: Vec<_> = keys.collect();
                    for (range, count) in row.row.waits.buckets() {
                        let bucket = [range.start, range.end, count].map(Value::from);
                        let bucket = output::BUCKET_COLUMNS.into_iter().zip(bucket);
                        output::write_csv_row(out, keys.iter().cloned().chain(bucket))?;
                    }
                }
                Format::Json => {
                    let fields = keys.chain(row.figures(losses)).chain(row.more(losses));
                    output::write_json_line(out, fields)?;
                }
                _ => output::write_csv_row(out, keys.chain(row.figures(losses)))?,
            }
        }
        Ok(())
    }

    fn text(
        &self,
        out: &mut dyn Write,
        interval: &Interval,
        rows: &[NamedRow],
        losses: &Losses,
    ) -> Result<()> {
        if self.timestamp {
            writeln!(out, "{}", interval.clock())?;
        }
        if rows.is_empty() {
            writeln!(out, "\nno vCPUs")?;
        } else if self.matrix {
            matrix::write(out, rows, self.top, interval.length.as_secs_f64())?;
        } else {
            self.write_rows(out, rows)?;
        }
        for line in losses.warnings().iter().chain(&losses.notes()) {
            writeln!(out, "{line}")?;
        }
        if let Some(unit) = self.pictures {
            let shown = &rows[..rows.len().min(self.top)];
            for row in shown.iter().filter(|row| row.row.waits.count() > 0) {
                writeln!(out, "\n{}", row.title())?;
                output::write_picture(out, unit, row.row.waits.picture(unit))?;
            }
        }
        Ok(())
    }

    fn write_rows(&self, out: &mut dyn Write, rows: &[NamedRow]) -> Result<()> {
        writeln!(
            out,
            "\n{:<NAME$} run wait halt blk vmm poll {:>5} {:>5} {:>5} {:>5} {:>5} {:>5}",
            if self.by_vm { "VM (%)" } else { "VM/VCPU (%)" },
            "wak/s",
            "pre/s",
            "p50",
            "p99",
            "max",
            "now",
        )?;
        let shown = rows.len().min(self.top);
        for row in &rows[..shown] {
            write_row(out, row)?;
        }
        if shown < rows.len() {
            writeln!(out, "... and {} more (--top)", rows.len() - shown)?;
        }
        if !self.by_vm {
            output::write_words(out, &verdict(rows, self.late_percent))?;
        }
        Ok(())
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

fn write_row(out: &mut dyn Write, named: &NamedRow) -> Result<()> {
    let Row { times, waits, waiting_ns, culprits, vcpus, .. } = &named.row;
    let title = named.title();
    match title.chars().count() <= NAME {
        true => write!(out, "{title:<NAME$}")?,
        false => write!(out, "{title}\n{:<NAME$}", "")?,
    }
    let whole = times.sum_ns();
    let parts = [
        (times.run_ns, 4),
        (times.wait_ns(), 5),
        (times.halt_ns, 5),
        (times.blocked_ns, 4),
        (times.vmm_ns, 4),
        (times.poll_ns, 5),
    ];
    for (ns, width) in parts {
        write!(out, "{:>width$.0}", percent(ns, whole))?;
    }
    let seconds = whole as f64 / 1e9 / (*vcpus).max(1) as f64;
    for count in [times.wakeups, times.preemptions] {
        let per_second = if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        write!(out, " {:>5}", short_count(per_second.round(), 5))?;
    }
    let [p50, p99] = waits.quantiles_ns(QUANTILES).map_or([None; 2], |q| q.map(Some));
    for ns in [p50, p99, waits.max_ns(), *waiting_ns] {
        write!(out, " {:>5}", ns.map_or_else(|| "-".to_owned(), short_duration))?;
    }
    writeln!(out)?;
    if percent(times.wait_ns(), whole) < 1.0 {
        return Ok(());
    }
    // What rounds to nothing is left out.
    let share = |who: &str, ns| {
        let percent = percent(ns, times.wait_ns());
        (percent >= 0.5).then(|| format!("{} {percent:.0}%", printable(who)))
    };
    let quota = share("its quota", times.wait_throttled_ns);
    let who = culprits.iter().zip(&named.culprits).take(CULPRITS);
    let who = who.filter_map(|((_, ns), name)| share(name, *ns));
    let named_ns: u64 = culprits.iter().map(|(_, ns)| ns).sum();
    let unnamed = share("others, no room for names", times.named_ns().saturating_sub(named_ns));
    let unknown = share("not known who", times.unknown_ns());
    let words = quota.into_iter().chain(who).chain(unnamed).chain(unknown);
    let mut words: Vec<String> = words.collect();
    if let Some((_, all_but_last)) = words.split_last_mut() {
        all_but_last.iter_mut().for_each(|word| word.push(','));
        words[0].insert_str(0, "  waited for ");
        output::write_words(out, &words)?;
    }
    Ok(())
}

/// How many vCPUs were late, and whose fault it was, in plain words.
fn verdict(rows: &[NamedRow], late_percent: f64) -> Vec<String> {
    let is_late =
        |row: &&NamedRow| percent(row.row.times.wait_ns(), row.row.times.sum_ns()) > late_percent;
    let late: Vec<&NamedRow> = rows.iter().filter(is_late).collect();
    let all = rows.len();
    if late.is_empty() {
        return vec![format!("none of {all} vCPUs waited more than {late_percent} % of the time")];
    }
    let wait_ns: u64 = late.iter().map(|row| row.row.times.wait_ns()).sum();
    let of = |kind| late.iter().map(|row| row.row.times.blamed_ns(kind)).sum::<u64>();
    let throttled: u64 = late.iter().map(|row| row.row.times.wait_throttled_ns).sum();
    let unknown: u64 = late.iter().map(|row| row.row.times.unknown_ns()).sum();
    let causes = [
        (unknown, "not known whose fault"),
        (of(Kind::Vm), "other VMs"),
        (of(Kind::Sibling), "their own VM"),
        (of(Kind::Task), "host tasks"),
        (of(Kind::Kernel), "the kernel"),
        (of(Kind::Interrupts), "interrupts"),
        (of(Kind::Nobody), "nobody's fault"),
        (throttled, "their own quota"),
    ];
    let worst = causes.into_iter().max_by_key(|(ns, _)| *ns);
    let (ns, who) = worst.unwrap_or_default();
    vec![
        format!("{} of {all} vCPUs waited more than {late_percent} % of the time;", late.len()),
        format!("{:.0} % of that was {who}", percent(ns, wait_ns)),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use common::hist::Hist;

    use super::*;
    use crate::rows::{KINDS, Thread, Times, VmId};

    const MS: u64 = 1_000_000;

    fn vcpu(name: &str, vcpu: Option<u32>, times: Times) -> NamedRow {
        let vm = VmId { pid: 4_200, start_boottime_ns: 1 };
        let row = Row {
            vm,
            name: name.to_owned(),
            thread: Some(Thread { vm, vcpu, tid: 4_203 }),
            vcpus: 1,
            times,
            waits: Hist::of((1..=100).map(|i| i * 500_000)),
            ..Row::default()
        };
        NamedRow { row, culprits: vec![] }
    }

    /// Half of 10 s it ran, four tenths it waited: a tenth of that for its quota.
    fn times() -> Times {
        Times {
            run_ns: 5_000 * MS,
            poll_ns: 200 * MS,
            wait_wakeup_ns: 600 * MS,
            wait_preempted_ns: 3_000 * MS,
            wait_throttled_ns: 400 * MS,
            halt_ns: 500 * MS,
            blocked_ns: 300 * MS,
            vmm_ns: 200 * MS,
            vmm_cpu_ns: 100 * MS,
            wakeups: 63,
            preemptions: 37,
            ..Times::default()
        }
    }

    /// Blames culprits of so many milliseconds, as the kernel would: by kind, and by name but for the idle task.
    fn blame(mut named: NamedRow, culprits: &[(Kind, i32, &str, u64)]) -> NamedRow {
        for (kind, pid, name, ms) in culprits {
            let at = KINDS.iter().position(|k| k == kind).unwrap();
            named.row.times.culprits_ns[at] += ms * MS;
            if *kind != Kind::Nobody {
                let culprit = Culprit { kind: *kind, pid: *pid, comm: (*name).to_owned() };
                named.culprits.push(culprit_name(&culprit, |_, comm| comm.to_owned()));
                named.row.culprits.push((culprit, ms * MS));
            }
        }
        named
    }

    fn web() -> NamedRow {
        let culprits = [
            (Kind::Vm, 4_300, "db", 1_500),
            (Kind::Task, 99, "backup", 900),
            (Kind::Sibling, 4_200, "qemu", 300),
            (Kind::Kernel, 12, "kworker/0:1", 200),
            (Kind::Interrupts, 0, "", 100),
            (Kind::Nobody, 0, "", 50),
        ];
        let mut named = blame(vcpu("web", Some(3), times()), &culprits);
        named.row.waiting_ns = Some(7_200_000);
        named
    }

    fn batch() -> NamedRow {
        let named = vcpu("batch", None, Times { run_ns: 9_900 * MS, ..Times::default() });
        let mut named = NamedRow { row: Row { waits: Hist::default(), ..named.row }, ..named };
        named.row.times.wait_wakeup_ns = 100 * MS;
        blame(named, &[(Kind::Vm, 4_200, "web", 99)])
    }

    fn of_vm(mut named: NamedRow, vcpus: u64) -> NamedRow {
        named.row.thread = None;
        named.row.vcpus = vcpus;
        named
    }

    fn report(format: Format) -> Report {
        Report {
            format,
            by_vm: false,
            top: 20,
            late_percent: 5.0,
            pictures: None,
            matrix: false,
            timestamp: false,
        }
    }

    fn written_with(report: &Report, rows: &[NamedRow], losses: &Losses) -> String {
        let interval = Interval {
            end: "2026-11-23T04:42:10Z".parse().unwrap(),
            length: Duration::from_secs(10),
        };
        let mut out = Vec::new();
        report.begin(&mut out).unwrap();
        report.interval(&mut out, &interval, rows, losses).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn written(report: &Report, rows: &[NamedRow]) -> String {
        let text = written_with(report, rows, &Losses::default());
        if report.format == Format::Text {
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        }
        text
    }

    fn text(rows: &[NamedRow]) -> String {
        written(&report(Format::Text), rows)
    }

    #[test]
    fn each_vcpu_has_a_row_and_what_it_waited_for() {
        insta::assert_snapshot!(text(&[web(), batch()]), @r"
        Tracing vCPUs... Hit Ctrl-C to end.

        VM/VCPU (%)     run wait halt blk vmm poll wak/s pre/s   p50   p99   max   now
        web/3            50   40    5   3   2    2     6     4  25ms  50ms  50ms 7.2ms
          waited for its quota 10%, db 38%, backup 22%, itself 8%, not known who 14%
        batch/?          99    1    0   0   0    0     0     0     -     -     -     -
          waited for web 99%, not known who 1%
        1 of 2 vCPUs waited more than 5 % of the time; 38 % of that was other VMs
        ");
    }

    #[test]
    fn what_rounds_to_nothing_is_no_culprit() {
        let named = vcpu("web", Some(3), Times { wait_throttled_ns: 0, ..times() });
        let named = blame(named, &[(Kind::Vm, 4_300, "db", 3_582), (Kind::Task, 9, "sshd", 17)]);
        let text = text(&[named]);
        assert!(text.contains("\n  waited for db 100%\n"), "{text}");
    }

    #[test]
    fn names_that_are_long_have_lines_of_their_own() {
        let named = vcpu("a-name-that-is-long", Some(12), times());
        let culprits = [
            (Kind::Vm, 1, "another-name-that-is-long", 1_000),
            (Kind::Vm, 2, "instance-00000000000000000000000000000000042", 900),
            (Kind::Vm, 3, "yet-another-name-that-is-long", 800),
        ];
        let full = vcpu("exactly-15-wi", Some(3), Times { run_ns: 1, ..Times::default() });
        let rows = [blame(named, &culprits), full];
        insta::assert_snapshot!(text(&rows), @r"
        Tracing vCPUs... Hit Ctrl-C to end.

        VM/VCPU (%)     run wait halt blk vmm poll wak/s pre/s   p50   p99   max   now
        a-name-that-is-long/12
                         50   40    5   3   2    2     6     4  25ms  50ms  50ms     -
          waited for its quota 10%, another-name-that-is-long 25%,
          instance-00000000000000000000000000000000042 22%,
          yet-another-name-that-is-long 20%, not known who 22%
        exactly-15-wi/3 100    0    0   0   0    0     0     0  25ms  50ms  50ms     -
        1 of 2 vCPUs waited more than 5 % of the time; 68 % of that was other VMs
        ");
        let matrix = Report { matrix: true, ..report(Format::Text) };
        insta::assert_snapshot!(written(&matrix, &rows), @r"
        Tracing vCPUs... Hit Ctrl-C to end.

        WHO WAITED               WHO RAN                     TIME  OF A CPU
        a-name-that-is-long/12   4 together                  3.6s     36.0%
                                 another-name-that-is-long
                                                             1.0s     10.0%
                                 instance-00000000000000000000000000000000042
                                                            900ms      9.0%
                                 not known who              900ms      9.0%
                                 1 more                     800ms      8.0%

        WHO RAN                  WHO WAITED                  TIME  OF A CPU
        another-name-that-is-long
                                 a-name-that-is-long/12      1.0s     10.0%
        instance-00000000000000000000000000000000042
                                 a-name-that-is-long/12     900ms      9.0%
        yet-another-name-that-is-long
                                 a-name-that-is-long/12     800ms      8.0%
        ");
    }

    #[test]
    fn a_vms_shares_are_of_the_time_of_all_its_vcpus_and_rates_of_their_sum() {
        let report = Report { by_vm: true, ..report(Format::Text) };
        insta::assert_snapshot!(written(&report, &[of_vm(web(), 2), of_vm(batch(), 1)]), @r"
        Tracing vCPUs... Hit Ctrl-C to end.

        VM (%)          run wait halt blk vmm poll wak/s pre/s   p50   p99   max   now
        web              50   40    5   3   2    2    13     7  25ms  50ms  50ms 7.2ms
          waited for its quota 10%, db 38%, backup 22%, itself 8%, not known who 14%
        batch            99    1    0   0   0    0     0     0     -     -     -     -
          waited for web 99%, not known who 1%
        ");
    }

    #[test]
    fn the_verdict_names_the_largest_cause() {
        let of = |rows: &[NamedRow]| verdict(rows, 5.0).join(" ");
        let waits = || vcpu("web", Some(0), Times { wait_throttled_ns: 0, ..times() });
        let lines: Vec<String> = [
            (Kind::Vm, "other VMs"),
            (Kind::Sibling, "their own VM"),
            (Kind::Task, "host tasks"),
            (Kind::Kernel, "the kernel"),
            (Kind::Interrupts, "interrupts"),
            (Kind::Nobody, "nobody's fault"),
        ]
        .map(|(kind, who)| {
            let line = of(&[blame(waits(), &[(kind, 1, "x", 2_700)])]);
            let expected = "1 of 1 vCPUs waited more than 5 % of the time; 75 % of that was ";
            assert_eq!(line, format!("{expected}{who}"));
            line
        })
        .into();
        assert!(lines.iter().all(|line| line.len() <= 80), "{lines:?}");
        let quota = Times {
            wait_throttled_ns: 3_000 * MS,
            wait_preempted_ns: 1_000 * MS,
            run_ns: 1,
            ..Times::default()
        };
        assert!(of(&[vcpu("web", Some(0), quota)]).ends_with("; 75 % of that was their own quota"));
        assert!(of(&[waits()]).ends_with("; 100 % of that was not known whose fault"));
        assert_eq!(of(&[batch()]), "none of 1 vCPUs waited more than 5 % of the time");
    }

    #[test]
    fn the_verdict_is_of_those_that_were_late() {
        // Who waits for exactly so much is not late; who is not has no part in the cause.
        let waits = |name, ms, kind| {
            let times =
                Times { wait_wakeup_ns: ms * MS, run_ns: (10_000 - ms) * MS, ..Times::default() };
            blame(vcpu(name, Some(0), times), &[(kind, 1, "x", ms)])
        };
        let mut rows = vec![waits("a", 501, Kind::Task)];
        rows.extend((0..9).map(|_| waits("b", 500, Kind::Vm)));
        let expected =
            ["1 of 10 vCPUs waited more than 5 % of the time;", "100 % of that was host tasks"];
        assert_eq!(verdict(&rows, 5.0), expected);
        assert_eq!(verdict(&rows, 4.9)[0], "10 of 10 vCPUs waited more than 4.9 % of the time;");
        assert_eq!(verdict(&rows, 4.9)[1], "90 % of that was other VMs");
    }

    #[test]
    fn a_verdict_that_is_too_long_is_two_lines() {
        let rows: Vec<_> = (0..10).map(|i| vcpu("web", Some(i), times())).collect();
        let lines = text(&rows);
        let lines: Vec<_> = lines.lines().rev().take(2).collect();
        let expected = [
            "  90 % of that was not known whose fault",
            "10 of 10 vCPUs waited more than 5 % of the time;",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn rows_that_are_not_shown_are_counted_and_in_the_verdict() {
        let report = Report { top: 1, ..report(Format::Text) };
        let text = written(&report, &[batch(), web(), web()]);
        assert_eq!(text.matches("web").count(), 1, "as a culprit: {text}");
        assert!(text.contains("\n... and 2 more (--top)\n2 of 3 vCPUs waited"), "{text}");
        let text = written(&Report { matrix: true, ..report }, &[batch(), web()]);
        assert_eq!(text.matches("\n... and ").count(), 2, "{text}");
        assert!(text.contains("\n... and 1 more (--top)\n"), "{text}");
        assert!(!written(&report_of_all(), &[web()]).contains("--top"));
    }

    fn report_of_all() -> Report {
        Report { matrix: true, top: 6, ..report(Format::Text) }
    }

    #[test]
    fn no_vcpus_and_what_is_missing_are_said() {
        let losses =
            Losses { vcpus: 1, waits: 2, missed: 3, unseen: 4, unnamed_ns: 88_000, untold: 5 };
        let rows = written_with(&report(Format::Text), &[], &losses);
        insta::assert_snapshot!(rows, @r"
        Tracing vCPUs... Hit Ctrl-C to end.

        no vCPUs
        lost 1 vCPUs: no room for them
        lost 2 waits in histograms: no room for them
        lost 3 events: the kernel skipped them
        not shown 5 waits: too many at once
        88us of waits for others without names: no room for them
        from totals 4 waits: sched_switch did not show them
        ");
        let matrix = written_with(&report_of_all(), &[], &losses);
        assert_eq!(matrix, rows);
        assert_eq!(losses.lost(), 6, "what is only not shown or less well known is not lost");
        let earlier = Losses { vcpus: 1, unseen: 3, unnamed_ns: 80_000, ..Losses::default() };
        let since = Losses { vcpus: 0, unseen: 1, unnamed_ns: 8_000, ..losses };
        assert_eq!(losses.since(&earlier), since);
    }

    #[test]
    fn the_matrix_has_both_sides() {
        let idle = vcpu("idle", Some(0), Times { halt_ns: 1, ..Times::default() });
        let rows = [web(), batch(), blame(idle, &[(Kind::Task, 99, "backup", 200)])];
        insta::assert_snapshot!(written(&report_of_all(), &rows), @r"
        Tracing vCPUs... Hit Ctrl-C to end.

        WHO WAITED               WHO RAN                     TIME  OF A CPU
        web/3                    6 together                  3.5s     35.5%
                                 db                          1.5s     15.0%
                                 backup                     900ms      9.0%
                                 not known who              550ms      5.5%
                                 3 more                     600ms      6.0%
        idle/0                   backup                     200ms      2.0%
        batch/?                  2 together                 100ms      1.0%
                                 web                         99ms      1.0%
                                 not known who              1.0ms      0.0%

        WHO RAN                  WHO WAITED                  TIME  OF A CPU
        db                       web/3                       1.5s     15.0%
        backup                   2 together                  1.1s     11.0%
                                 web/3                      900ms      9.0%
                                 idle/0                     200ms      2.0%
        web                      2 together                 399ms      4.0%
                                 web/3                      300ms      3.0%
                                 batch/?                     99ms      1.0%
        kworker/0:1              web/3                      200ms      2.0%
        interrupts               web/3                      100ms      1.0%
        ");
        let rows = rows.map(|row| of_vm(row, 1));
        let by_vm = written(&Report { by_vm: true, ..report_of_all() }, &rows);
        assert!(by_vm.contains("\nweb  ") && !by_vm.contains("web/3"), "{by_vm}");
    }

    #[test]
    fn processes_of_one_name_are_one_in_the_matrix_and_two_below_a_row() {
        let culprits = [(Kind::Task, 8, "backup", 900), (Kind::Task, 9, "backup", 300)];
        let named = || blame(vcpu("web", Some(3), times()), &culprits);
        assert!(text(&[named()]).contains(", backup 22%, backup 8%, "));
        let matrix = written(&report_of_all(), &[named()]);
        assert!(matrix.contains("\nbackup                   web/3"), "{matrix}");
        assert!(matrix.contains(" 1.2s     12.0%\n"), "{matrix}");
        let csv =
            written(&Report { matrix: true, ..report(Format::Csv(CsvKind::Summary)) }, &[named()]);
        assert_eq!(csv.matches(",backup,task,").count(), 2, "{csv}");
    }

    #[test]
    fn the_matrix_as_csv_and_json_has_a_row_for_each_pair() {
        let of = |format| Report { matrix: true, ..report(format) };
        let csv = written(&of(Format::Csv(CsvKind::Summary)), &[batch(), web()]);
        insta::assert_snapshot!(csv, @r"
        time,interval_s,pid,victim,culprit_pid,culprit,kind,ns,lost
        2026-11-23T04:42:10.000000Z,10.0,4200,web/3,4300,db,vm,1500000000,0
        2026-11-23T04:42:10.000000Z,10.0,4200,web/3,99,backup,task,900000000,0
        2026-11-23T04:42:10.000000Z,10.0,4200,web/3,4200,itself,same vm,300000000,0
        2026-11-23T04:42:10.000000Z,10.0,4200,web/3,12,kworker/0:1,kernel,200000000,0
        2026-11-23T04:42:10.000000Z,10.0,4200,web/3,0,interrupts,interrupts,100000000,0
        2026-11-23T04:42:10.000000Z,10.0,4200,batch/?,4200,web,vm,99000000,0
        ");
        let json = written(&of(Format::Json), &[batch(), web()]);
        let objects: Vec<serde_json::Map<String, Value>> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let columns = Interval::COLUMNS.into_iter().chain(matrix::COLUMNS);
        assert!(columns.eq(objects[0].keys().map(String::as_str)), "{json}");
        assert_eq!(objects.len(), 6);
        assert_eq!((&objects[0]["culprit"], &objects[0]["kind"]), (&"db".into(), &"vm".into()));
        assert_eq!(objects[0]["ns"], 1_500 * MS);
    }

    #[test]
    fn a_name_cannot_forge_output() {
        let forged = || {
            let named = vcpu("a\nb\x1b[31m", Some(0), times());
            blame(named, &[(Kind::Task, 9, "c\r\nd", 3_000)])
        };
        let text = text(&[forged()]);
        assert!(text.contains("\na?b?[31m/0 "), "{text}");
        assert!(text.contains(", c??d 75%, "), "{text}");
        let matrix = written(&report_of_all(), &[forged()]);
        assert!(matrix.contains(" c??d ") && matrix.contains("\nc??d "), "{matrix}");
    }

    #[test]
    fn pictures_are_of_those_that_waited() {
        let report = Report { pictures: Some(Unit::Millis), ..report(Format::Text) };
        let text = written(&report, &[web(), batch()]);
        let pictures = text.split_once("of that was").unwrap().1;
        insta::assert_snapshot!(pictures.split_once('\n').unwrap().1, @r"
        web/3
             msecs               : count     distribution
                 0 -> 1          : 3        |***                                     |
                 2 -> 3          : 4        |****                                    |
                 4 -> 7          : 8        |********                                |
                 8 -> 15         : 16       |*****************                       |
                16 -> 31         : 32       |**********************************      |
                32 -> 63         : 37       |****************************************|
        ");
    }

    #[test]
    fn csv_has_the_columns_of_the_design() {
        let csv = |report: &Report, rows: &[NamedRow]| {
            written_with(report, rows, &Losses { waits: 2, ..Losses::default() })
        };
        let mut rows = [web(), batch()];
        rows[0].row.name = "web,1".to_owned();
        let report = report(Format::Csv(CsvKind::Summary));
        insta::assert_snapshot!(csv(&report, &rows), @r#"
        time,interval_s,vm,pid,tid,vcpu,run_ns,wait_ns,halt_ns,blocked_ns,vmm_ns,wakeups,preemptions,wait_wakeup_ns,wait_preempted_ns,wait_throttled_ns,p50_ns,p99_ns,max_ns,waiting_ns,culprit,culprit_ns,lost
        2026-11-23T04:42:10.000000Z,10.0,"web,1",4200,4203,3,5000000000,4000000000,500000000,300000000,200000000,63,37,600000000,3000000000,400000000,24903680,49807360,50000000,7200000,db,1500000000,2
        2026-11-23T04:42:10.000000Z,10.0,batch,4200,4203,,9900000000,100000000,0,0,0,0,0,100000000,0,0,,,,,web,99000000,2
        "#);
        let rows = rows.map(|row| of_vm(row, 2));
        insta::assert_snapshot!(csv(&Report { by_vm: true, ..report }, &rows), @r#"
        time,interval_s,vm,pid,run_ns,wait_ns,halt_ns,blocked_ns,vmm_ns,wakeups,preemptions,wait_wakeup_ns,wait_preempted_ns,wait_throttled_ns,p50_ns,p99_ns,max_ns,waiting_ns,culprit,culprit_ns,lost
        2026-11-23T04:42:10.000000Z,5.0,"web,1",4200,5000000000,4000000000,500000000,300000000,200000000,63,37,600000000,3000000000,400000000,24903680,49807360,50000000,7200000,db,1500000000,2
        2026-11-23T04:42:10.000000Z,5.0,batch,4200,9900000000,100000000,0,0,0,0,0,100000000,0,0,,,,,web,99000000,2
        "#);
    }

    #[test]
    fn bucket_rows_add_up_to_the_count() {
        let text = written(&report(Format::Csv(CsvKind::Buckets)), &[web(), batch()]);
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let columns = "time,interval_s,vm,pid,tid,vcpu,lo_ns,hi_ns,count";
        assert_eq!(reader.headers().unwrap(), columns.split(',').collect::<Vec<_>>());
        let counts = reader.records().map(|record| record.unwrap()[8].parse::<u64>().unwrap());
        assert_eq!(counts.sum::<u64>(), 100);
    }

    #[test]
    fn json_has_the_names_of_csv_and_more() {
        let losses = Losses { unseen: 7, unnamed_ns: 9, ..Losses::default() };
        let json = written_with(&report(Format::Json), &[web()], &losses);
        let object: serde_json::Map<String, Value> = serde_json::from_str(&json).unwrap();
        let header = written(&report(Format::Csv(CsvKind::Summary)), &[]);
        let more =
            ["vmm_cpu_ns", "poll_ns", "blamed_ns", "culprits", "unseen", "unnamed_ns", "buckets"];
        let columns = header.trim_end().split(',').chain(more);
        assert!(columns.eq(object.keys().map(String::as_str)), "{json}");
        assert_eq!((&object["unseen"], &object["unnamed_ns"]), (&7.into(), &9.into()));
        let blamed = serde_json::json!({
            "vm": 1_500 * MS, "same vm": 300 * MS, "task": 900 * MS, "kernel": 200 * MS,
            "nobody": 50 * MS, "interrupts": 100 * MS,
        });
        assert_eq!(object["blamed_ns"], blamed);
        let worst = serde_json::json!({"name": "db", "pid": 4_300, "kind": "vm", "ns": 1_500 * MS});
        assert_eq!(object["culprits"][0], worst);
        assert_eq!(object["culprits"].as_array().unwrap().len(), 5);
        let buckets = object["buckets"].as_array().unwrap();
        assert_eq!(buckets.iter().map(|b| b[2].as_u64().unwrap()).sum::<u64>(), 100);
    }
}
