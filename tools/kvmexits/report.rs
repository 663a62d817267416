//! From kvmexits' rows to text, CSV and JSON. Pure: nothing here asks the kernel or the host.

use std::collections::HashMap;
use std::io::Write;

use anyhow::Result;
use common::args::CsvKind;
use common::hist::Unit;
use common::output::{self, Field, Format, Interval, printable, short_count, short_duration};
use serde_json::Value;

use crate::rows::{By, Key, Row};

/// What could not be counted in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Exits that found no room in a map.
    pub no_room: u64,
    /// Exits whose end was not seen, so that how long they were is not known.
    pub unended: u64,
    /// Events that found our program running on their CPU, so that the kernel did not run it again.
    pub missed: u64,
    /// Slow exits that are counted, but were not told.
    pub untold: u64,
}

impl Losses {
    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            no_room: self.no_room - earlier.no_room,
            unended: self.unended - earlier.unended,
            missed: self.missed - earlier.missed,
            untold: self.untold - earlier.untold,
        }
    }

    /// Exits that are in no row, or may be.
    pub fn lost(&self) -> u64 {
        self.no_room + self.unended + self.missed
    }

    /// Sentences about what is missing.
    pub fn warnings(&self) -> Vec<String> {
        let exits = |n: u64| format!("{n} exit{}", if n == 1 { "" } else { "s" });
        let all = [
            (self.no_room, format!("lost {}: no room for them", exits(self.no_room))),
            (self.unended, format!("lost {}: their end was not seen", exits(self.unended))),
            (self.missed, format!("lost {} events: the kernel skipped them", self.missed)),
            (self.untold, format!("not shown {}: too many at once", exits(self.untold))),
        ];
        all.into_iter().filter(|(count, _)| *count > 0).map(|(_, line)| line).collect()
    }
}

const QUANTILES: [f64; 2] = [0.5, 0.99];

/// The columns of `--csv`, but for keys.
const FIGURES: [&str; 10] = [
    "count",
    "total_ns",
    "max_ns",
    "p50_ns",
    "p99_ns",
    "kernel_ns",
    "userspace_ns",
    "asleep_ns",
    "runqueue_ns",
    "lost",
];

impl By {
    fn key_columns(self) -> Vec<&'static str> {
        let mut columns = Vec::new();
        if self.vm || self.vcpu {
            columns.extend(["pid", "vm"]);
        }
        if self.vcpu {
            columns.push("vcpu");
        }
        columns.extend(["kind", "reason", "code"]);
        if self.detail {
            columns.push("detail");
        }
        columns
    }
}

impl Row {
    /// In the order of [`By::key_columns`].
    fn keys(&self, by: By) -> Vec<Field> {
        let Key { vm, vcpu, userspace, reason, detail } = self.key;
        let mut fields: Vec<Field> = Vec::new();
        if let Some(vm) = vm {
            fields.push(("pid", vm.pid.into()));
            fields.push(("vm", self.vm.as_str().into()));
        }
        if let Some(vcpu) = vcpu {
            fields.push(("vcpu", vcpu.into()));
        }
        fields.push(("kind", if userspace { "userspace" } else { "hardware" }.into()));
        fields.push(("reason", reason.map(|reason| reason.name().into_owned()).into()));
        fields.push(("code", reason.map(|reason| reason.code).into()));
        if by.detail {
            fields.push(("detail", detail.map(|detail| detail.to_string()).into()));
        }
        fields
    }

    fn figures(&self, losses: &Losses) -> impl Iterator<Item = Field> {
        let hist = &self.hist;
        let [p50, p99] = hist.quantiles_ns(QUANTILES).map_or([None; 2], |q| q.map(Some));
        let values: [Value; 10] = [
            hist.count().into(),
            hist.sum_ns().into(),
            hist.max_ns().into(),
            p50.into(),
            p99.into(),
            self.kernel_ns().into(),
            self.parts.userspace_ns.into(),
            self.parts.asleep_ns.into(),
            self.parts.runqueue_ns.into(),
            losses.lost().into(),
        ];
        FIGURES.into_iter().zip(values)
    }

    /// For JSON, which has room for them.
    fn more(&self) -> [Field; 5] {
        [
            ("min_ns", self.hist.min_ns().into()),
            ("idle_ns", self.idle_ns.into()),
            ("open", self.open.into()),
            ("longest_open_ns", self.longest_open_ns.into()),
            output::buckets_json(&self.hist),
        ]
    }

    /// Whose exits: the VM, and the vCPU where it is known.
    fn owner(&self) -> Option<String> {
        Some(format!("{} (pid {})", self.short_owner()?, self.key.vm?.pid))
    }

    /// The same where names are enough.
    fn short_owner(&self) -> Option<String> {
        self.key.vm?;
        Some(match self.key.vcpu {
            Some(Some(vcpu)) => format!("{}/{vcpu}", self.vm),
            Some(None) => format!("{}/?", self.vm),
            None => self.vm.clone(),
        })
    }

    /// What exits.
    fn what(&self) -> Option<String> {
        let reason = self.key.reason?;
        Some(match self.key.detail {
            Some(detail) => format!("{} {detail}", reason.name()),
            None => reason.name().into_owned(),
        })
    }

    /// What tells this row apart from all others.
    pub fn title(&self) -> String {
        let kind = if self.key.userspace { "userspace" } else { "hardware" };
        let what = self.what().unwrap_or_else(|| kind.to_owned());
        let words = self.owner().into_iter().chain([what]);
        printable(&words.collect::<Vec<_>>().join(" "))
    }
}

/// What a run begins with.
pub const BANNER: &str = "Tracing VM exits... Hit Ctrl-C to end.";

/// The width of the first column.
const NAME: usize = 18;

/// Writes a run's intervals in one format.
pub struct Report {
    /// The format.
    pub format: Format,
    /// What rows are told apart by.
    pub by: By,
    /// Whether text has pictures.
    pub pictures: Option<Unit>,
    /// Whether text begins with the time of day.
    pub timestamp: bool,
}

/// What an interval's text needs beside its rows.
pub struct Context<'a> {
    /// When and how long.
    pub interval: Interval,
    /// What is missing.
    pub losses: Losses,
    /// The time that all exits of guest mode, and all to userspace, cost; filtered ones too.
    pub costs_ns: [u64; 2],
    /// The KVM module, if its vCPUs run without kvm_exit ever firing.
    pub untraced: Option<&'a str>,
}

impl Report {
    /// What comes before the first interval.
    pub fn begin(&self, out: &mut dyn Write) -> Result<()> {
        let columns: &[&str] = match self.format {
            Format::Text => {
                writeln!(out, "{BANNER}")?;
                return Ok(());
            }
            Format::Json => return Ok(()),
            Format::Csv(CsvKind::Summary) => &FIGURES,
            Format::Csv(CsvKind::Buckets) => &output::BUCKET_COLUMNS,
        };
        let keys = Interval::COLUMNS.into_iter().chain(self.by.key_columns());
        output::write_csv_header(out, keys.chain(columns.iter().copied()))
    }

    /// One interval.
    pub fn interval(&self, out: &mut dyn Write, rows: &[Row], context: &Context<'_>) -> Result<()> {
        if self.format == Format::Text {
            return self.text(out, rows, context);
        }
        // Rows that only have exits in progress are for text and JSON.
        for row in rows.iter().filter(|row| row.hist.count() > 0 || self.format == Format::Json) {
            let keys = context.interval.fields().into_iter().chain(row.keys(self.by));
            let figures = row.figures(&context.losses);
            match self.format {
                Format::Csv(CsvKind::Buckets) => {
                    let keys: Vec<_> = keys.collect();
                    for (range, count) in row.hist.buckets() {
                        let bucket = [range.start, range.end, count].map(Value::from);
                        let bucket = output::BUCKET_COLUMNS.into_iter().zip(bucket);
                        output::write_csv_row(out, keys.iter().cloned().chain(bucket))?;
                    }
                }
                Format::Json => {
                    output::write_json_line(out, keys.chain(figures).chain(row.more()))?;
                }
                _ => output::write_csv_row(out, keys.chain(figures))?,
            }
        }
        Ok(())
    }

    fn text(&self, out: &mut dyn Write, rows: &[Row], context: &Context<'_>) -> Result<()> {
        if self.timestamp {
            writeln!(out, "{}", context.interval.clock())?;
        }
        let ended: Vec<&Row> = rows.iter().filter(|row| row.hist.count() > 0).collect();
        for (owner, rows) in self.groups(&ended) {
            if let Some(owner) = owner {
                writeln!(out, "\n{}", printable(&owner))?;
            }
            let (userspace, hardware): (Vec<&Row>, Vec<&Row>) =
                rows.iter().partition(|row| row.key.userspace);
            self.table(out, "EXIT FROM GUEST", &hardware, context.costs_ns[0], context)?;
            let heading =
                if hardware.is_empty() { "EXIT TO USERSPACE" } else { "OF IT, USERSPACE" };
            self.table(out, heading, &userspace, context.costs_ns[1], context)?;
        }
        if ended.is_empty() {
            writeln!(out, "\nno exits")?;
        }
        for line in notes(rows, context) {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            output::write_words(out, &words)?;
        }
        if let Some(unit) = self.pictures {
            for row in ended {
                writeln!(out, "\n{}", row.title())?;
                output::write_picture(out, unit, row.hist.picture(unit))?;
            }
        }
        Ok(())
    }

    /// The rows of each VM or vCPU, if they are told apart by reason as well; the most expensive comes first.
    fn groups<'a>(&self, rows: &[&'a Row]) -> Vec<(Option<String>, Vec<&'a Row>)> {
        if !self.by.vm || !self.by.reason {
            return vec![(None, rows.to_vec())];
        }
        let mut groups: Vec<(Option<String>, Vec<&Row>)> = Vec::new();
        let mut places = HashMap::new();
        for row in rows {
            let place = *places.entry((row.key.vm, row.key.vcpu)).or_insert(groups.len());
            if place == groups.len() {
                groups.push((row.owner(), Vec::new()));
            }
            groups[place].1.push(row);
        }
        // What the VMM took is part of the exits from guest mode, if those are known.
        let cost_ns = |rows: &[&Row]| {
            let of_kind = |userspace| {
                let rows = rows.iter().filter(move |row| row.key.userspace == userspace);
                rows.map(|row| row.cost_ns()).sum::<u64>()
            };
            of_kind(false).max(of_kind(true))
        };
        groups.sort_by_key(|(_, rows)| std::cmp::Reverse(cost_ns(rows)));
        groups
    }

    fn table(
        &self,
        out: &mut dyn Write,
        heading: &str,
        rows: &[&Row],
        costs_ns: u64,
        context: &Context<'_>,
    ) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let seconds = context.interval.length.as_secs_f64();
        let blank = if self.by.vm && self.by.reason { "" } else { "\n" };
        writeln!(
            out,
            "{blank}{heading:<NAME$}{:>8}{:>6}{:>6}{:>6}{:>6}{:>6}{:>6} krn usr slp rnq",
            "COUNT", "/S", "TIME%", "MEAN", "P50", "P99", "MAX"
        )?;
        let mut twins: HashMap<Option<String>, usize> = HashMap::new();
        rows.iter().for_each(|row| *twins.entry(row.short_owner()).or_default() += 1);
        for row in rows {
            let owner = || match row.short_owner() {
                unique if twins.get(&unique) == Some(&1) => unique,
                _ => row.owner(),
            };
            let name = row.what().or_else(owner).unwrap_or_else(|| "all".to_owned());
            let name = printable(&name);
            match name.chars().count() < NAME {
                true => write!(out, "{name:<NAME$}")?,
                false => write!(out, "{name}\n{:<NAME$}", "")?,
            }
            let hist = &row.hist;
            let [p50, p99] = hist.quantiles_ns(QUANTILES).unwrap_or_default();
            let mean = hist.mean_ns().unwrap_or_default();
            let max = hist.max_ns().unwrap_or_default();
            let per_second = hist.count() as f64 / seconds;
            write!(
                out,
                "{:>8}{:>6}{:>6.1}",
                short_count(hist.count() as f64, 7),
                short_count(per_second, 5),
                percent(row.cost_ns(), costs_ns)
            )?;
            for ns in [mean, p50, p99, max] {
                write!(out, "{:>6}", short_duration(ns))?;
            }
            let parts = &row.parts;
            for ns in [row.kernel_ns(), parts.userspace_ns, parts.asleep_ns, parts.runqueue_ns] {
                write!(out, "{:>4.0}", percent(ns, hist.sum_ns()))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

/// What a reader of the table must know.
fn notes(rows: &[Row], context: &Context<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    // A VMM that halts its vCPUs itself counts twice: in userspace, and as part of an exit from guest mode.
    let idle_of = |userspace| {
        rows.iter().filter(|row| row.key.userspace == userspace).map(|row| row.idle_ns).sum::<u64>()
    };
    let idle_ns = idle_of(false).max(idle_of(true));
    if idle_ns > 0 {
        let idle = short_duration(idle_ns);
        notes.push(format!("halted {idle}: a halt's sleep is no cost, in neither order nor TIME%"));
    }
    let is_busy =
        |row: &&Row| row.open > 0 && !row.key.reason.is_some_and(|reason| reason.is_halt());
    let open: u64 = rows.iter().filter(is_busy).map(|row| row.open).sum();
    let longest = rows.iter().filter(is_busy).max_by_key(|row| row.longest_open_ns);
    if let Some((row, ns)) = longest.and_then(|row| Some((row, row.longest_open_ns?))) {
        notes.push(format!("not over yet {open}, longest {}: {}", short_duration(ns), row.title()));
    }
    notes.extend(context.untraced.map(|module| {
        format!(
            "no exits from guest mode: vCPUs ran, but {module} does not fire kvm_exit; \
             exits to userspace are complete"
        )
    }));
    notes.extend(context.losses.warnings());
    notes
}
