//! From vcpulag's rows to text, CSV and JSON. Pure: nothing here asks the kernel or the host.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::Result;
use common::args::CsvKind;
use common::hist::Unit;
use common::output::{self, Field, Format, Interval, printable, short_count, short_duration};
use serde_json::Value;

use crate::rows::{Culprit, Kind, Row};

/// What could not be seen in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// vCPUs that found no room in a map.
    pub vcpus: u64,
    /// Waits that are in the times, but in no histogram.
    pub waits: u64,
    /// Events that found our program running on their CPU, so that the kernel did not run it again.
    pub missed: u64,
    /// Waits by the kernel's books, in no histogram: sched_switch did not show them.
    pub unseen: u64,
    /// Waiting time that is blamed on a kind of task, but on none by name.
    pub unnamed_ns: u64,
    /// Long waits that are counted, but were not told.
    pub untold: u64,
}

impl Losses {
    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            vcpus: self.vcpus - earlier.vcpus,
            waits: self.waits - earlier.waits,
            missed: self.missed - earlier.missed,
            unseen: self.unseen - earlier.unseen,
            unnamed_ns: self.unnamed_ns - earlier.unnamed_ns,
            untold: self.untold - earlier.untold,
        }
    }

    /// What is in no row, or may be.
    pub fn lost(&self) -> u64 {
        self.vcpus + self.waits + self.missed
    }

    /// Sentences about what is missing.
    pub fn warnings(&self) -> Vec<String> {
        said([
            (self.vcpus, format!("lost {} vCPUs: no room for them", self.vcpus)),
            (self.waits, format!("lost {} waits in histograms: no room for them", self.waits)),
            (self.missed, format!("lost {} events: the kernel skipped them", self.missed)),
            (self.untold, format!("not shown {} waits: too many at once", self.untold)),
        ])
    }

    /// Sentences about what is known less well.
    fn notes(&self) -> Vec<String> {
        let unnamed = short_duration(self.unnamed_ns);
        said([
            (
                self.unseen,
                format!("from totals {} waits: sched_switch did not show them", self.unseen),
            ),
            (self.unnamed_ns, format!("{unnamed} of waits for whom is not known: no memory")),
        ])
    }
}

/// The sentences whose figure is not 0.
fn said<const N: usize>(sentences: [(u64, String); N]) -> Vec<String> {
    sentences.into_iter().filter(|(count, _)| *count > 0).map(|(_, line)| line).collect()
}

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
const CULPRITS: usize = 3;
/// The width of each of the matrix's two parties, with the space after it.
const PARTY: usize = 25;

impl Report {
    /// What comes before the first interval.
    pub fn begin(&self, out: &mut dyn Write) -> Result<()> {
        let figures = match self.format {
            Format::Text => {
                writeln!(out, "{BANNER}")?;
                return Ok(());
            }
            Format::Json => return Ok(()),
            Format::Csv(_) if self.matrix => MATRIX_COLUMNS.to_vec(),
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
        if self.matrix {
            return self.write_matrix(out, interval, rows, losses);
        }
        if self.format == Format::Text {
            return self.text(out, interval, rows, losses);
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
        let shown = rows.len().min(self.top);
        if rows.is_empty() {
            writeln!(out, "\nno vCPUs")?;
        } else {
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
        }
        for row in &rows[..shown] {
            write_row(out, row)?;
        }
        if shown < rows.len() {
            writeln!(out, "... and {} more (--top)", rows.len() - shown)?;
        }
        if !rows.is_empty() && !self.by_vm {
            output::write_words(out, &verdict(rows, self.late_percent))?;
        }
        for line in losses.warnings().iter().chain(&losses.notes()) {
            writeln!(out, "{line}")?;
        }
        if let Some(unit) = self.pictures {
            for row in rows[..shown].iter().filter(|row| row.row.waits.count() > 0) {
                writeln!(out, "\n{}", row.title())?;
                output::write_picture(out, unit, row.row.waits.picture(unit))?;
            }
        }
        Ok(())
    }

    fn write_matrix(
        &self,
        out: &mut dyn Write,
        interval: &Interval,
        rows: &[NamedRow],
        losses: &Losses,
    ) -> Result<()> {
        let pairs = rows.iter().flat_map(|row| {
            let culprits = row.row.culprits.iter().zip(&row.culprits);
            culprits.map(move |((culprit, ns), name)| (row, culprit, name, *ns))
        });
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_by_key(|(.., ns)| Reverse(*ns));
        if self.format != Format::Text {
            for (row, culprit, name, ns) in pairs {
                let values: [Value; 7] = [
                    row.row.vm.pid.into(),
                    row.title().into(),
                    culprit.pid.into(),
                    name.as_str().into(),
                    culprit.kind.name().into(),
                    ns.into(),
                    losses.lost().into(),
                ];
                let fields = MATRIX_COLUMNS.into_iter().zip(values);
                let fields = interval.fields().into_iter().chain(fields);
                match self.format {
                    Format::Json => output::write_json_line(out, fields)?,
                    _ => output::write_csv_row(out, fields)?,
                }
            }
            return Ok(());
        }
        if self.timestamp {
            writeln!(out, "{}", interval.clock())?;
        }
        let (mut victims, mut culprits) = (Groups::default(), Groups::default());
        for (row, _, name, ns) in pairs {
            victims.add(&row.title(), name, ns);
            culprits.add(name, &row.title(), ns);
        }
        for row in rows {
            victims.add(&row.title(), "not known who", row.row.times.unknown_ns());
        }
        let seconds = interval.length.as_secs_f64();
        if rows.is_empty() {
            writeln!(out, "\nno vCPUs")?;
        } else {
            victims.write(out, ["WHO WAITED", "WHO RAN"], self.top, seconds)?;
            culprits.write(out, ["WHO RAN", "WHO WAITED"], self.top, seconds)?;
        }
        for line in losses.warnings().iter().chain(&losses.notes()) {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

/// One side of the matrix: times by one party, and each of these by the other.
#[derive(Default)]
struct Groups(BTreeMap<String, BTreeMap<String, u64>>);

impl Groups {
    fn add(&mut self, one: &str, other: &str, ns: u64) {
        if ns > 0 {
            let group = self.0.entry(one.to_owned()).or_default();
            *group.entry(other.to_owned()).or_default() += ns;
        }
    }

    /// The `top` that have the most time, and of each the [`CULPRITS`] that have.
    fn write(self, out: &mut dyn Write, heads: [&str; 2], top: usize, seconds: f64) -> Result<()> {
        let [one, other] = heads;
        writeln!(out, "\n{one:<PARTY$}{other:<PARTY$}{:>7} {:>9}", "TIME", "OF A CPU")?;
        let mut line = |one: &str, other: &str, ns: u64| -> io::Result<()> {
            let share = ns as f64 / 1e7 / seconds;
            write_name(out, &printable(one), 0)?;
            write_name(out, &printable(other), PARTY)?;
            writeln!(out, "{:>7} {share:>8.1}%", short_duration(ns))
        };
        let sum = |group: &BTreeMap<String, u64>| group.values().sum::<u64>();
        let mut groups: Vec<_> = self.0.into_iter().collect();
        groups.sort_by_key(|(_, group)| Reverse(sum(group)));
        let more = groups.len().saturating_sub(top);
        for (one, group) in groups.into_iter().take(top) {
            let all = sum(&group);
            let mut others: Vec<_> = group.into_iter().collect();
            others.sort_by_key(|(_, ns)| Reverse(*ns));
            let count = others.len();
            // Whoever is alone needs no sum.
            let (mut title, mut shown) = (one.as_str(), 0);
            if count > 1 {
                line(title, &format!("{count} together"), all)?;
                title = "";
            }
            for (other, ns) in others.into_iter().take(CULPRITS) {
                line(title, &other, ns)?;
                (title, shown) = ("", shown + ns);
            }
            if count > CULPRITS {
                line("", &format!("{} more", count - CULPRITS), all - shown)?;
            }
        }
        if more > 0 {
            writeln!(out, "... and {more} more (--top)")?;
        }
        Ok(())
    }
}

/// Writes a column of the matrix that begins after `indent` others; what does not fit has a line of its own.
fn write_name(out: &mut dyn Write, name: &str, indent: usize) -> io::Result<()> {
    match name.chars().count() < PARTY {
        true => write!(out, "{name:<PARTY$}"),
        false => write!(out, "{name}\n{:<1$}", "", indent + PARTY),
    }
}

const MATRIX_COLUMNS: [&str; 7] = ["pid", "victim", "culprit_pid", "culprit", "kind", "ns", "lost"];

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
    let unknown = share("not known who", times.unknown_ns());
    let mut words: Vec<String> = quota.into_iter().chain(who).chain(unknown).collect();
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
