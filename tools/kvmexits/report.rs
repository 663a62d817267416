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
    // What the VMM has not answered is part of an exit from guest mode that goes on, too.
    let open_of = |userspace| {
        let rows = rows.iter().filter(is_busy).filter(|row| row.key.userspace == userspace);
        rows.map(|row| row.open).sum::<u64>()
    };
    let open = open_of(false).max(open_of(true));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use common::exits::Reason;
    use common::hist::Hist;

    use super::*;
    use crate::detail::Detail;
    use crate::rows::{Parts, VmId};

    const BY_REASON: By = By { vm: false, vcpu: false, reason: true, detail: false };
    const BY_VM: By = By { vm: true, ..BY_REASON };
    const BY_VM_ONLY: By = By { reason: false, ..BY_VM };
    const BY_VCPU: By = By { vcpu: true, ..BY_VM };
    const BY_DETAIL: By = By { detail: true, ..BY_REASON };

    const IO: u32 = 2;
    const HLT: u32 = 0x78;

    fn key(by: By, reason: Reason) -> Key {
        Key {
            vm: by.vm.then_some(VmId { pid: 4_200, start_boottime_ns: 1 }),
            vcpu: by.vcpu.then_some(Some(3)),
            userspace: reason.kind() == "userspace",
            reason: by.reason.then_some(reason),
            detail: by.detail.then_some(Detail::Port { port: 0xf5, out: true }),
        }
    }

    fn vm(pid: i32, start_boottime_ns: u64) -> Option<VmId> {
        Some(VmId { pid, start_boottime_ns })
    }

    /// A thousand exits, most of them fast; the VMM has half of the time, and the run queue a quarter.
    fn row(key: Key) -> Row {
        let hist = Hist::of((0..1_000).map(|i| if i < 900 { 4_000 } else { 8_000_000 + i }));
        let ns = hist.sum_ns();
        let parts = Parts { userspace_ns: ns / 2, asleep_ns: ns / 8, runqueue_ns: ns / 4 };
        Row { vm: "web-1".to_owned(), hist, parts, ..Row::new(key) }
    }

    fn context(rows: &[Row]) -> Context<'static> {
        let interval = Interval {
            end: "2026-11-23T04:42:10Z".parse().unwrap(),
            length: Duration::from_secs(10),
        };
        let cost_ns = |userspace| {
            rows.iter().filter(|row| row.key.userspace == userspace).map(Row::cost_ns).sum()
        };
        let costs_ns = [cost_ns(false), cost_ns(true)];
        Context { interval, losses: Losses::default(), costs_ns, untraced: None }
    }

    fn written(format: Format, by: By, rows: &[Row], context: &Context<'_>) -> String {
        let report = Report { format, by, pictures: None, timestamp: false };
        let mut out = Vec::new();
        report.begin(&mut out).unwrap();
        report.interval(&mut out, rows, context).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn text(by: By, rows: &[Row]) -> String {
        let text = written(Format::Text, by, rows, &context(rows));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        text
    }

    fn io() -> Reason {
        Reason::userspace(IO, 0)
    }

    fn hlt() -> Reason {
        Reason::hardware(2, HLT)
    }

    #[test]
    fn exits_to_userspace_are_part_of_those_from_the_guest() {
        let rows = [
            row(key(BY_REASON, Reason::hardware(2, 0x7b))),
            row(key(BY_REASON, Reason::hardware(2, 0x72))),
            row(key(BY_REASON, io())),
        ];
        insta::assert_snapshot!(text(BY_REASON, &rows), @r"
        Tracing VM exits... Hit Ctrl-C to end.

        EXIT FROM GUEST      COUNT    /S TIME%  MEAN   P50   P99   MAX krn usr slp rnq
        io                    1000   100  50.0 804us 4.0us 8.0ms 8.0ms  13  50  12  25
        cpuid                 1000   100  50.0 804us 4.0us 8.0ms 8.0ms  13  50  12  25

        OF IT, USERSPACE     COUNT    /S TIME%  MEAN   P50   P99   MAX krn usr slp rnq
        KVM_EXIT_IO           1000   100 100.0 804us 4.0us 8.0ms 8.0ms  13  50  12  25
        ");
    }

    #[test]
    fn each_vm_has_a_table_and_the_most_expensive_is_first() {
        let mut rows = vec![row(key(BY_VM, io())), row(key(BY_VM, Reason::userspace(6, 0)))];
        let other = Key { vm: vm(4_300, 1), ..key(BY_VM, io()) };
        rows.push(Row { hist: Hist::of([900_000_000]), vm: "db".to_owned(), ..Row::new(other) });
        insta::assert_snapshot!(text(BY_VM, &rows), @r"
        Tracing VM exits... Hit Ctrl-C to end.

        web-1 (pid 4200)
        EXIT TO USERSPACE    COUNT    /S TIME%  MEAN   P50   P99   MAX krn usr slp rnq
        KVM_EXIT_IO           1000   100  32.1 804us 4.0us 8.0ms 8.0ms  13  50  12  25
        KVM_EXIT_MMIO         1000   100  32.1 804us 4.0us 8.0ms 8.0ms  13  50  12  25

        db (pid 4300)
        EXIT TO USERSPACE    COUNT    /S TIME%  MEAN   P50   P99   MAX krn usr slp rnq
        KVM_EXIT_IO              1   0.1  35.9 900ms 900ms 900ms 900ms 100   0   0   0
        ");
    }

    #[test]
    fn long_names_have_a_line_of_their_own() {
        let long = Key {
            detail: Some(Detail::Mmio { gpa: 0xf_ffff_ffff_f000, write: true }),
            ..key(BY_DETAIL, Reason::userspace(6, 0))
        };
        let rows = [row(key(BY_DETAIL, io())), row(long)];
        insta::assert_snapshot!(text(BY_DETAIL, &rows), @r"
        Tracing VM exits... Hit Ctrl-C to end.

        EXIT TO USERSPACE    COUNT    /S TIME%  MEAN   P50   P99   MAX krn usr slp rnq
        KVM_EXIT_IO out port 0xf5
                              1000   100  50.0 804us 4.0us 8.0ms 8.0ms  13  50  12  25
        KVM_EXIT_MMIO write 0xffffffffff000
                              1000   100  50.0 804us 4.0us 8.0ms 8.0ms  13  50  12  25
        ");
    }

    #[test]
    fn vms_of_one_name_are_told_apart() {
        let twin = |pid, start| Key { vm: vm(pid, start), ..key(BY_VM_ONLY, io()) };
        let mut rows = vec![row(twin(4_200, 1)), row(twin(4_300, 1))];
        rows.push(Row { vm: "db".to_owned(), ..row(twin(4_400, 1)) });
        insta::assert_snapshot!(text(BY_VM_ONLY, &rows), @r"
        Tracing VM exits... Hit Ctrl-C to end.

        EXIT TO USERSPACE    COUNT    /S TIME%  MEAN   P50   P99   MAX krn usr slp rnq
        web-1 (pid 4200)      1000   100  33.3 804us 4.0us 8.0ms 8.0ms  13  50  12  25
        web-1 (pid 4300)      1000   100  33.3 804us 4.0us 8.0ms 8.0ms  13  50  12  25
        db                    1000   100  33.3 804us 4.0us 8.0ms 8.0ms  13  50  12  25
        ");
    }

    #[test]
    fn a_halts_sleep_is_in_neither_order_nor_share() {
        let mut halts =
            Row { hist: Hist::of([4_000_000_000; 2]), ..Row::new(key(BY_REASON, hlt())) };
        halts.parts.asleep_ns = 7_900_000_000;
        halts.idle_ns = 7_900_000_000;
        let rows = [row(key(BY_REASON, Reason::hardware(2, 0x72))), halts];
        insta::assert_snapshot!(text(BY_REASON, &rows), @r"
        Tracing VM exits... Hit Ctrl-C to end.

        EXIT FROM GUEST      COUNT    /S TIME%  MEAN   P50   P99   MAX krn usr slp rnq
        cpuid                 1000   100  88.9 804us 4.0us 8.0ms 8.0ms  13  50  12  25
        hlt                      2   0.2  11.1  4.0s  4.0s  4.0s  4.0s   1   0  99   0
        halted 7.9s: a halt's sleep is no cost, in neither order nor TIME%
        ");
    }

    #[test]
    fn what_goes_on_and_what_is_missing_is_said() {
        let goes_on = Row {
            open: 3,
            longest_open_ns: Some(12_000_000_000),
            vm: "a-name-that-is-long".to_owned(),
            ..Row::new(key(BY_VCPU, io()))
        };
        let asleep =
            Row { open: 1, longest_open_ns: Some(99_000_000_000), ..Row::new(key(BY_VCPU, hlt())) };
        let rows = [goes_on, asleep];
        let losses = Losses { no_room: 1, unended: 2, missed: 3, untold: 4 };
        let context = Context { losses, untraced: Some("kvm_pvm"), ..context(&rows) };
        let text = written(Format::Text, BY_VCPU, &rows, &context);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        insta::assert_snapshot!(text, @r"
        Tracing VM exits... Hit Ctrl-C to end.

        no exits
        not over yet 3, longest 12s: a-name-that-is-long/3 (pid 4200) KVM_EXIT_IO
        no exits from guest mode: vCPUs ran, but kvm_pvm does not fire kvm_exit; exits
          to userspace are complete
        lost 1 exit: no room for them
        lost 2 exits: their end was not seen
        lost 3 events: the kernel skipped them
        not shown 4 exits: too many at once
        ");
        assert_eq!(losses.lost(), 6, "what is not told is counted");
    }

    #[test]
    fn a_name_cannot_forge_output() {
        let rows = [Row { vm: "a\nb\x1b[31m".to_owned(), ..row(key(BY_VM, io())) }];
        assert!(text(BY_VM, &rows).contains("\na?b?[31m (pid 4200)\n"));
        let rows = [Row { vm: "a\nb\x1b[31m".to_owned(), ..row(key(BY_VM_ONLY, io())) }];
        assert!(text(BY_VM_ONLY, &rows).contains("\na?b?[31m "));
        assert_eq!(rows[0].title(), "a?b?[31m (pid 4200) userspace");
    }

    #[test]
    fn csv_has_the_columns_of_the_design() {
        let rows = [Row { vm: "web,1".to_owned(), ..row(key(BY_VCPU, io())) }];
        let losses = Losses { no_room: 1, ..Losses::default() };
        let context = Context { losses, ..context(&rows) };
        insta::assert_snapshot!(written(Format::Csv(CsvKind::Summary), BY_VCPU, &rows, &context), @r#"
        time,interval_s,pid,vm,vcpu,kind,reason,code,count,total_ns,max_ns,p50_ns,p99_ns,kernel_ns,userspace_ns,asleep_ns,runqueue_ns,lost
        2026-11-23T04:42:10.000000Z,10.0,4200,"web,1",3,userspace,KVM_EXIT_IO,2,1000,803694950,8000999,4000,8000999,100461870,401847475,100461868,200923737,1
        "#);
    }

    #[test]
    fn csv_has_no_rows_of_exits_that_only_go_on() {
        let rows = [Row { open: 1, longest_open_ns: Some(7), ..Row::new(key(BY_REASON, io())) }];
        for kind in [CsvKind::Summary, CsvKind::Buckets] {
            let csv = written(Format::Csv(kind), BY_REASON, &rows, &context(&rows));
            assert_eq!(csv.lines().count(), 1, "{csv}");
        }
        let json: Value =
            serde_json::from_str(&written(Format::Json, BY_REASON, &rows, &context(&rows)))
                .unwrap();
        assert_eq!((&json["count"], &json["open"]), (&0.into(), &1.into()));
        assert_eq!((&json["max_ns"], &json["longest_open_ns"]), (&Value::Null, &7.into()));
    }

    #[test]
    fn bucket_rows_add_up_to_the_count() {
        let rows = [row(key(BY_DETAIL, io()))];
        let text = written(Format::Csv(CsvKind::Buckets), BY_DETAIL, &rows, &context(&rows));
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let columns = "time,interval_s,kind,reason,code,detail,lo_ns,hi_ns,count";
        assert_eq!(reader.headers().unwrap(), columns.split(',').collect::<Vec<_>>());
        let counts = reader.records().map(|record| record.unwrap()[8].parse::<u64>().unwrap());
        assert_eq!(counts.sum::<u64>(), 1_000);
    }

    #[test]
    fn json_has_the_names_of_csv_and_the_buckets() {
        let rows = [row(key(BY_VCPU, io()))];
        let text = written(Format::Json, BY_VCPU, &rows, &context(&rows));
        let object: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        let more = ["min_ns", "idle_ns", "open", "longest_open_ns", "buckets"];
        let keys = Interval::COLUMNS.into_iter().chain(BY_VCPU.key_columns());
        assert!(keys.chain(FIGURES).chain(more).eq(object.keys().map(String::as_str)), "{text}");
        let buckets = object["buckets"].as_array().unwrap();
        assert_eq!(buckets.iter().map(|b| b[2].as_u64().unwrap()).sum::<u64>(), 1_000);
    }

    #[test]
    fn keys_have_as_many_fields_as_columns() {
        for by in [BY_REASON, BY_VM, BY_VM_ONLY, BY_VCPU, BY_DETAIL] {
            let names: Vec<_> =
                row(key(by, io())).keys(by).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, by.key_columns());
        }
    }
}
