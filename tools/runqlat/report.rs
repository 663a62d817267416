//! From runqlat's rows to text, CSV and JSON. Pure: nothing here asks the kernel or the host.

use std::io::Write;

use anyhow::Result;
use common::args::CsvKind;
use common::groups::{self, groups};
use common::hist::{Hist, Unit};
use common::output::{self, Field, Format, Interval, short_duration};
use serde_json::Value;

/// What a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The whole host, or what the filters left of it.
    Nothing,
    /// A process.
    Process,
    /// A thread.
    Thread,
    /// The vCPUs of a virtual machine.
    Vm,
    /// A CPU.
    Cpu,
    /// A PID namespace.
    PidNs,
}

/// A row's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The only row.
    All,
    /// A process ID and its name.
    Process(i32, String),
    /// The process ID, the thread ID and the thread's name.
    Thread(i32, i32, String),
    /// The VM's process ID and name.
    Vm(i32, String),
    /// A CPU's number.
    Cpu(u32),
    /// A PID namespace's inode number, as in /proc/PID/ns/pid.
    PidNs(u64),
}

/// The waits of one key in one interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose waits.
    pub key: Key,
    /// The waits that ended in the interval.
    pub hist: Hist,
    /// How many of them began by preemption.
    pub preempted: u64,
    /// How many of them began before anybody looked, so that how is not known.
    pub start_unseen: u64,
    /// Tasks that wait at the interval's end.
    pub waiting: u64,
    /// The longest of those waits so far, in nanoseconds.
    pub longest_waiting_ns: Option<u64>,
}

/// What could not be counted in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Waits that found no room in a map, or none for their tasks' books: no row has them.
    pub lost: u64,
    /// Waits that the kernel has not booked either: of tasks preempted on their way to sleep.
    pub unbooked: u64,
    /// Waits counted from the kernel's books alone: their number and sum are exact, their spread is not.
    pub reconstructed: u64,
}

impl Losses {
    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            lost: self.lost - earlier.lost,
            unbooked: self.unbooked - earlier.unbooked,
            reconstructed: self.reconstructed - earlier.reconstructed,
        }
    }
}

impl Losses {
    /// Adds those of another interval.
    pub fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.unbooked += other.unbooked;
        self.reconstructed += other.reconstructed;
    }

    /// A sentence if anything is missing.
    pub fn warning(&self) -> Option<String> {
        (self.lost > 0).then(|| format!("lost {}: no room for them", waits(self.lost)))
    }

    /// What is not wrong, but worth knowing.
    pub fn notes(&self) -> Vec<String> {
        let Self { unbooked, reconstructed, .. } = *self;
        let all = [
            (unbooked, format!("no times for {}: preempted on the way to sleep", waits(unbooked))),
            (
                reconstructed,
                format!("from totals {}: sched_switch did not show them", waits(reconstructed)),
            ),
        ];
        all.into_iter().filter(|(count, _)| *count > 0).map(|(_, line)| line).collect()
    }

    /// For JSON, which has room for them.
    fn fields(&self) -> [Field; 2] {
        [("unbooked", self.unbooked.into()), ("reconstructed", self.reconstructed.into())]
    }
}

/// `1 wait`, `2 waits`.
fn waits(count: u64) -> String {
    format!("{count} wait{}", if count == 1 { "" } else { "s" })
}

impl By {
    fn key_columns(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[],
            Self::Process => &["pid", "comm"],
            Self::Thread => &["pid", "tid", "comm"],
            Self::Vm => &["pid", "vm"],
            Self::Cpu => &["cpu"],
            Self::PidNs => &["pidns"],
        }
    }
}

impl Key {
    /// In the order of [`By::key_columns`].
    fn fields(&self) -> Vec<Field> {
        match self {
            Self::All => vec![],
            Self::Process(pid, comm) => {
                vec![("pid", (*pid).into()), ("comm", comm.as_str().into())]
            }
            Self::Thread(pid, tid, comm) => {
                vec![("pid", (*pid).into()), ("tid", (*tid).into()), ("comm", comm.as_str().into())]
            }
            Self::Vm(pid, name) => vec![("pid", (*pid).into()), ("vm", name.as_str().into())],
            Self::Cpu(cpu) => vec![("cpu", (*cpu).into())],
            Self::PidNs(inum) => vec![("pidns", (*inum).into())],
        }
    }

    /// The line above a row's picture; also what tells its histogram apart in an HdrHistogram log.
    pub fn title(&self) -> Option<String> {
        match self {
            Self::All => None,
            Self::Process(pid, comm) => Some(format!("pid = {pid} {comm}")),
            Self::Thread(pid, tid, comm) => Some(format!("tid = {tid} {comm} (pid {pid})")),
            Self::Vm(pid, name) => Some(format!("vm = {name} (pid {pid})")),
            Self::Cpu(cpu) => Some(format!("cpu = {cpu}")),
            Self::PidNs(inum) => Some(format!("pidns = {inum}")),
        }
    }
}

const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

impl Row {
    /// A key without any waits.
    pub fn new(key: Key) -> Self {
        Self {
            key,
            hist: Hist::default(),
            preempted: 0,
            start_unseen: 0,
            waiting: 0,
            longest_waiting_ns: None,
        }
    }

    /// The columns after the keys. Without books nobody knows how a wait began.
    fn figures(&self, losses: &Losses, has_books: bool) -> [Field; 12] {
        let hist = &self.hist;
        let [p50, p90, p99, p999] = hist.quantiles_ns(QUANTILES).map_or([None; 4], |q| q.map(Some));
        [
            ("count", hist.count().into()),
            ("sum_ns", hist.sum_ns().into()),
            ("min_ns", hist.min_ns().into()),
            ("max_ns", hist.max_ns().into()),
            ("p50_ns", p50.into()),
            ("p90_ns", p90.into()),
            ("p99_ns", p99.into()),
            ("p999_ns", p999.into()),
            ("preempted", has_books.then_some(self.preempted).into()),
            ("waiting", self.waiting.into()),
            ("longest_waiting_ns", self.longest_waiting_ns.into()),
            ("lost", losses.lost.into()),
        ]
    }

    /// The share of waits that began by preemption, of those whose beginning was seen.
    fn preempted_percent(&self) -> Option<f64> {
        let seen = self.hist.count() - self.start_unseen.min(self.hist.count());
        (seen > 0).then(|| 100.0 * self.preempted as f64 / seen as f64)
    }

    fn write_text(&self, out: &mut dyn Write, unit: Unit) -> Result<()> {
        if let Some(title) = self.key.title() {
            writeln!(out, "{}", output::printable(&title))?;
        }
        if self.hist.count() > 0 {
            output::write_picture(out, unit, self.hist.picture(unit))?;
        }
        output::write_words(out, &self.summary())?;
        if self.hist.count() > 0 {
            output::write_words(out, &groups::words(&groups(self.hist.picture(Unit::Micros))))?;
        }
        match self.longest_waiting_ns {
            Some(longest) => {
                writeln!(
                    out,
                    "still waiting {}, longest {}",
                    self.waiting,
                    short_duration(longest)
                )?;
            }
            None => writeln!(out, "still waiting 0")?,
        }
        Ok(())
    }

    /// The words of the summary line.
    fn summary(&self) -> Vec<String> {
        let hist = &self.hist;
        let mut words = vec![format!("count {}", hist.count())];
        let quantiles = hist.quantiles_ns(QUANTILES);
        if let (Some(mean), Some([p50, p90, p99, p999]), Some(max)) =
            (hist.mean_ns(), quantiles, hist.max_ns())
        {
            let figures = [
                ("mean", mean),
                ("p50", p50),
                ("p90", p90),
                ("p99", p99),
                ("p99.9", p999),
                ("max", max),
            ];
            words.extend(figures.map(|(name, ns)| format!("{name} {}", short_duration(ns))));
        }
        if let Some(percent) = self.preempted_percent() {
            words.push(format!("preempted {percent:.1}%"));
        }
        words
    }
}

fn figure_columns() -> Vec<&'static str> {
    Row::new(Key::All).figures(&Losses::default(), true).into_iter().map(|(name, _)| name).collect()
}

/// Writes a run's intervals in one format.
pub struct Report {
    /// The format.
    pub format: Format,
    /// What rows stand for.
    pub by: By,
    /// The unit of the pictures.
    pub unit: Unit,
    /// Whether text begins with the time of day.
    pub timestamp: bool,
    /// Whether the kernel lets the programs keep books on tasks.
    pub has_books: bool,
}

/// What is missing without books.
const NO_BOOKS: &str = "this kernel has no task storage: a wait counts from its last move between CPUs, vCPUs' waits \
                        count only inside KVM, how waits began is unknown";

impl Report {
    /// What comes before the first interval.
    pub fn begin(&self, out: &mut dyn Write) -> Result<()> {
        let columns = match self.format {
            Format::Text => {
                writeln!(out, "Tracing run queue latency... Hit Ctrl-C to end.")?;
                if !self.has_books {
                    let words: Vec<_> = NO_BOOKS.split(' ').map(str::to_owned).collect();
                    output::write_words(out, &words)?;
                }
                return Ok(());
            }
            Format::Json => return Ok(()),
            Format::Csv(CsvKind::Summary) => figure_columns(),
            Format::Csv(CsvKind::Buckets) => output::BUCKET_COLUMNS.to_vec(),
        };
        let keys = Interval::COLUMNS.iter().chain(self.by.key_columns()).copied();
        output::write_csv_header(out, keys.chain(columns))
    }

    /// One interval.
    pub fn interval(
        &self,
        out: &mut dyn Write,
        interval: &Interval,
        rows: &[Row],
        losses: &Losses,
    ) -> Result<()> {
        if self.format == Format::Text {
            return self.text(out, interval, rows, losses);
        }
        for row in rows {
            let keys = interval.fields().into_iter().chain(row.key.fields());
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
                    let figures = row.figures(losses, self.has_books).into_iter();
                    let seen = [("start_unseen", row.start_unseen.into())];
                    let buckets = [output::buckets_json(&row.hist)];
                    let more = seen.into_iter().chain(losses.fields()).chain(buckets);
                    output::write_json_line(out, keys.chain(figures).chain(more))?;
                }
                _ => output::write_csv_row(out, keys.chain(row.figures(losses, self.has_books)))?,
            }
        }
        Ok(())
    }

    fn text(
        &self,
        out: &mut dyn Write,
        interval: &Interval,
        rows: &[Row],
        losses: &Losses,
    ) -> Result<()> {
        if self.timestamp {
            writeln!(out, "{}", interval.clock())?;
        }
        for row in rows {
            writeln!(out)?;
            row.write_text(out, self.unit)?;
        }
        if rows.is_empty() {
            writeln!(out, "\nno waits")?;
        }
        for line in losses.warning().iter().chain(&losses.notes()) {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn interval() -> Interval {
        Interval { end: "2026-11-23T04:42:10Z".parse().unwrap(), length: Duration::from_secs(10) }
    }

    /// A hump at microseconds and a smaller one at milliseconds.
    fn row(key: Key) -> Row {
        let fast = (0..900).map(|i| 4_000 + i * 10);
        let slow = (0..100).map(|i| 8_000_000 + i * 10_007);
        Row {
            key,
            hist: Hist::of(fast.chain(slow)),
            preempted: 101,
            start_unseen: 23,
            waiting: 22,
            longest_waiting_ns: Some(43_100_000),
        }
    }

    fn written(format: Format, by: By, rows: &[Row], losses: Losses) -> String {
        let report = Report { format, by, unit: Unit::Micros, timestamp: false, has_books: true };
        let mut out = Vec::new();
        report.begin(&mut out).unwrap();
        report.interval(&mut out, &interval(), rows, &losses).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_has_the_picture_and_its_reading() {
        let text = written(Format::Text, By::Nothing, &[row(Key::All)], Losses::default());
        insta::assert_snapshot!(text, @r"
        Tracing run queue latency... Hit Ctrl-C to end.

             usecs               : count     distribution
                 0 -> 1          : 0        |                                        |
                 2 -> 3          : 0        |                                        |
                 4 -> 7          : 400      |********************************        |
                 8 -> 15         : 500      |****************************************|
                16 -> 31         : 0        |                                        |
                32 -> 63         : 0        |                                        |
                64 -> 127        : 0        |                                        |
               128 -> 255        : 0        |                                        |
               256 -> 511        : 0        |                                        |
               512 -> 1023       : 0        |                                        |
              1024 -> 2047       : 0        |                                        |
              2048 -> 4095       : 0        |                                        |
              4096 -> 8191       : 20       |*                                       |
              8192 -> 16383      : 80       |******                                  |
        count 1000 mean 857us p50 9.1us p90 13us p99 8.8ms p99.9 9.0ms max 9.0ms
          preempted 10.3%
        groups: 90.0 % in 4-15 us, 10.0 % in 4-16 ms
        still waiting 22, longest 43ms
        ");
        assert!(text.lines().all(|line| line.len() <= 80));
    }

    #[test]
    fn rows_without_ended_waits_still_show_who_waits() {
        let starved = Row {
            waiting: 22,
            longest_waiting_ns: Some(43_100_000),
            ..Row::new(Key::Thread(7, 8, "victim".to_owned()))
        };
        let losses = Losses { lost: 7, unbooked: 6, reconstructed: 7 };
        let text = written(Format::Text, By::Thread, &[starved], losses);
        insta::assert_snapshot!(text, @r"
        Tracing run queue latency... Hit Ctrl-C to end.

        tid = 8 victim (pid 7)
        count 0
        still waiting 22, longest 43ms
        lost 7 waits: no room for them
        no times for 6 waits: preempted on the way to sleep
        from totals 7 waits: sched_switch did not show them
        ");
    }

    #[test]
    fn what_a_kernel_without_task_storage_cannot_tell_is_said() {
        let unseen = Row { preempted: 0, start_unseen: 1_000, ..row(Key::All) };
        let (by, unit) = (By::Nothing, Unit::Micros);
        let written = |format| {
            let report = Report { format, by, unit, timestamp: false, has_books: false };
            let mut out = Vec::new();
            report.begin(&mut out).unwrap();
            report
                .interval(&mut out, &interval(), std::slice::from_ref(&unseen), &Losses::default())
                .unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = written(Format::Text);
        insta::assert_snapshot!(text.split_once("\n\n").unwrap().0, @r"
        Tracing run queue latency... Hit Ctrl-C to end.
        this kernel has no task storage: a wait counts from its last move between CPUs,
          vCPUs' waits count only inside KVM, how waits began is unknown
        ");
        assert!(!text.contains("preempted"), "{text}");
        let csv = written(Format::Csv(CsvKind::Summary));
        assert!(csv.ends_with(",8990693,,22,43100000,0\n"), "{csv}");
        let json: Value = serde_json::from_str(&written(Format::Json)).unwrap();
        assert_eq!((&json["preempted"], &json["start_unseen"]), (&Value::Null, &1_000.into()));
    }

    #[test]
    fn a_name_cannot_forge_output() {
        let evil = Key::Process(7, "a\nb\x1b[31m".to_owned());
        let text = written(Format::Text, By::Process, &[Row::new(evil)], Losses::default());
        assert!(text.contains("pid = 7 a?b?[31m\n"), "{text}");
    }

    #[test]
    fn csv_has_the_columns_of_the_design() {
        let rows = [row(Key::Vm(4_200, "web,1".to_owned()))];
        let losses = Losses { lost: 1, ..Losses::default() };
        insta::assert_snapshot!(written(Format::Csv(CsvKind::Summary), By::Vm, &rows, losses), @r#"
        time,interval_s,pid,vm,count,sum_ns,min_ns,max_ns,p50_ns,p90_ns,p99_ns,p999_ns,preempted,waiting,longest_waiting_ns,lost
        2026-11-23T04:42:10.000000Z,10.0,4200,"web,1",1000,857180150,4000,8990693,9088,12928,8781824,8990693,101,22,43100000,1
        "#);
    }

    #[test]
    fn bucket_rows_add_up_to_the_count() {
        let rows = [row(Key::Cpu(1))];
        let text = written(Format::Csv(CsvKind::Buckets), By::Cpu, &rows, Losses::default());
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        assert_eq!(
            reader.headers().unwrap(),
            vec!["time", "interval_s", "cpu", "lo_ns", "hi_ns", "count"]
        );
        let counts = reader.records().map(|record| record.unwrap()[5].parse::<u64>().unwrap());
        assert_eq!(counts.sum::<u64>(), 1_000);
    }

    #[test]
    fn json_has_the_names_of_csv_and_the_buckets() {
        let text = written(
            Format::Json,
            By::Process,
            &[row(Key::Process(7, "x".to_owned()))],
            Losses::default(),
        );
        let object: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        let names = ["time", "interval_s", "pid", "comm"]
            .into_iter()
            .chain(figure_columns())
            .chain(["start_unseen", "unbooked", "reconstructed", "buckets"]);
        assert!(names.eq(object.keys().map(String::as_str)));
        let buckets = object["buckets"].as_array().unwrap();
        assert_eq!(buckets.iter().map(|b| b[2].as_u64().unwrap()).sum::<u64>(), 1_000);
    }

    #[test]
    fn keys_have_as_many_fields_as_columns() {
        for (by, key) in [
            (By::Nothing, Key::All),
            (By::Process, Key::Process(1, "a".to_owned())),
            (By::Thread, Key::Thread(1, 2, "a".to_owned())),
            (By::Vm, Key::Vm(1, "a".to_owned())),
            (By::Cpu, Key::Cpu(0)),
            (By::PidNs, Key::PidNs(4_026_531_836)),
        ] {
            let names: Vec<_> = key.fields().into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, by.key_columns());
        }
    }
}
