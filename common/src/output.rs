//! From figures to bytes: CSV through the csv crate, JSON lines through serde_json, the HdrHistogram interval log,
//! BCC's picture of a histogram, heat maps. A row's figures are named once, for CSV and JSON alike.

pub mod heatmap;

pub mod openmetrics;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
pub use hdrhistogram::serialization::V2DeflateSerializer as HdrSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriter, IntervalLogWriterBuilder, Tag};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use crate::args::{CsvKind, OutputArgs};
use crate::hist::{Hist, Unit};
use crate::session::usage;

/// The width that all text fits.
const COLUMNS: usize = 80;
/// The width of a picture's bars, BCC's.
const BAR: usize = 40;

/// A named figure or key: a CSV column, a JSON member. Null is an empty CSV field: there is no such figure.
pub type Field = (&'static str, Value);

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format<Csv = CsvKind> {
    /// For people.
    Text,
    /// A header, then one line a row.
    Csv(Csv),
    /// One object a row.
    Json,
}

impl<Csv: ValueEnum + Copy + Send + Sync + 'static> From<&OutputArgs<Csv>> for Format<Csv> {
    fn from(args: &OutputArgs<Csv>) -> Self {
        match args.csv {
            Some(kind) => Self::Csv(kind),
            None if args.json => Self::Json,
            None => Self::Text,
        }
    }
}

/// The time that an output is about.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// When it ended.
    pub end: Timestamp,
    /// How long it was.
    pub length: Duration,
}

impl Interval {
    /// The columns that begin every row.
    pub const COLUMNS: [&'static str; 2] = ["time", "interval_s"];

    /// Their values. All times have six decimals: pandas takes its format from the first one.
    pub fn fields(&self) -> [Field; 2] {
        let seconds = (self.length.as_secs_f64() * 1e6).round() / 1e6;
        [("time", format!("{:.6}", self.end).into()), ("interval_s", seconds.into())]
    }

    /// The local time of day at which the interval ended, as BCC prints it.
    pub fn clock(&self) -> String {
        self.end.to_zoned(TimeZone::system()).strftime("%H:%M:%S").to_string()
    }
}

/// Writes a CSV header.
pub fn write_csv_header<'a>(
    out: &mut dyn Write,
    columns: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    write_csv_record(out, columns.into_iter().map(Value::from))
}

/// Writes the fields' values as a CSV line. Names that would be taken for something else are in quotation marks of
/// their own.
pub fn write_csv_row(out: &mut dyn Write, fields: impl IntoIterator<Item = Field>) -> Result<()> {
    write_csv_record(out, fields.into_iter().map(|(_, value)| value))
}

fn write_csv_record(out: &mut dyn Write, values: impl Iterator<Item = Value>) -> Result<()> {
    let mut line = csv::Writer::from_writer(Vec::new());
    line.write_record(values.map(|value| match value {
        Value::Null => String::new(),
        Value::String(text) if is_mistakable(&text) => format!("\"{text}\""),
        Value::String(text) => text,
        other => other.to_string(),
    }))?;
    let bytes = line.into_inner().map_err(|err| err.into_error())?;
    out.write_all(&bytes)?;
    Ok(())
}

/// Words that pandas takes for a figure that is not there.
const NO_FIGURE: [&str; 14] = [
    "NA", "N/A", "n/a", "NULL", "null", "None", "<NA>", "#NA", "#N/A", "#N/A N/A", "1.#IND",
    "-1.#IND", "1.#QNAN", "-1.#QNAN",
];

/// Whether who finds the types of columns by itself would not take a name for text. A guest may be called 101, a
/// process null: it would be of another type than others, or missing where names are grouped.
fn is_mistakable(name: &str) -> bool {
    let word = name.trim();
    let is_truth = ["true", "false"].iter().any(|truth| word.eq_ignore_ascii_case(truth));
    // Not-a-number and infinity are numbers here.
    is_truth || word.parse::<f64>().is_ok() || NO_FIGURE.contains(&word)
}

/// Writes the fields as a JSON object on a line of its own.
pub fn write_json_line(out: &mut dyn Write, fields: impl IntoIterator<Item = Field>) -> Result<()> {
    let object: Map<String, Value> =
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    // As one write: what comes through a pipe is whole lines.
    let mut line = serde_json::to_vec(&object)?;
    line.push(b'\n');
    out.write_all(&line)?;
    Ok(())
}

/// The columns of one bucket.
pub const BUCKET_COLUMNS: [&str; 3] = ["lo_ns", "hi_ns", "count"];

/// A histogram's non-empty buckets as `[[lo_ns, hi_ns, count], …]`.
pub fn buckets_json(hist: &Hist) -> Field {
    let bucket = |(range, count): (std::ops::Range<u64>, u64)| {
        Value::from(vec![range.start, range.end, count])
    };
    ("buckets", hist.buckets().map(bucket).collect())
}

/// Writes BCC's picture of counts by power of two.
pub fn write_picture(out: &mut dyn Write, unit: Unit, counts: &[u64]) -> io::Result<()> {
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    writeln!(out, "     {:<19} : count     distribution", unit.plural())?;
    for (i, &count) in counts.iter().enumerate() {
        let (low, high) = (if i == 0 { 0 } else { 1_u64 << i }, (2_u64 << i) - 1);
        let stars = (u128::from(count) * BAR as u128 / u128::from(most)) as usize;
        writeln!(out, "{low:>10} -> {high:<10} : {count:<8} |{:<BAR$}|", "*".repeat(stars))?;
    }
    Ok(())
}

/// Writes words as one line, or more where they do not fit 80 columns.
pub fn write_words(out: &mut dyn Write, words: &[String]) -> io::Result<()> {
    let mut column = 0;
    for word in words {
        if column == 0 {
            write!(out, "{word}")?;
            column = word.len();
        } else if column + 1 + word.len() > COLUMNS {
            write!(out, "\n  {word}")?;
            column = 2 + word.len();
        } else {
            write!(out, " {word}")?;
            column += 1 + word.len();
        }
    }
    writeln!(out)
}

/// A length of time in at most five characters and the unit that makes it so: `812us`, `4.2ms`, `31ms`, `1.5s`.
pub fn short_duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns}ns"),
        1_000..999_500 => (ns as f64 / 1e3, "us"),
        999_500..999_500_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    // Below 9.95 a decimal is shown, and 9.95 would round to 10.0.
    let decimals = usize::from(value < 9.95);
    format!("{value:.decimals$}{unit}")
}

/// A number in at most `width` characters, of which there must be five or more: `97531`, `98k`, `1.2M`.
pub fn short_count(count: f64, width: usize) -> String {
    // Below 9.95 a decimal is shown, as in durations.
    let decimals = usize::from(count < 9.95 && count.fract() != 0.0);
    let plain = format!("{count:.decimals$}");
    if plain.len() <= width {
        return plain;
    }
    let mut scaled = count;
    for unit in ["k", "M", "G", "T", "P"] {
        scaled /= 1e3;
        let decimals = usize::from(scaled < 9.95);
        let text = format!("{scaled:.decimals$}{unit}");
        if scaled < 999.5 && text.len() <= width {
            return text;
        }
    }
    format!("{count:.0e}")
}

/// A number of bytes in at most five characters, and a minus if there are less than none: `4096`, `1.5M`, `-12K`.
pub fn short_bytes(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    let mut scaled = bytes.unsigned_abs() as f64;
    if scaled < 9_999.5 {
        return format!("{bytes}");
    }
    for unit in ["K", "M", "G", "T", "P"] {
        scaled /= 1_024.0;
        if scaled < 999.5 {
            let decimals = usize::from(scaled < 9.95);
            return format!("{sign}{scaled:.decimals$}{unit}");
        }
    }
    format!("{sign}{:.0}E", scaled / 1_024.0)
}

/// Text without control characters: names of others must not steer the terminal of whoever looks.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// An HdrHistogram interval log (<https://hdrhistogram.org>), in nanoseconds, one histogram per interval and row.
pub struct HdrLog<'a> {
    log: IntervalLogWriter<'a, 'a, File, HdrSerializer>,
    start: Timestamp,
}

/// Significant decimal digits of the histograms in an interval log: finer than ours.
const HDR_DIGITS: u8 = 3;

impl<'a> HdrLog<'a> {
    /// Opens the log's file, or creates it. A usage error if that cannot be; emptied only by [`HdrLog::begin`], when
    /// there is something to write.
    pub fn open(path: &Path) -> Result<File> {
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let opened = options.open(path);
        opened.map_err(|err| usage(format!("cannot write `{}`: {err}", path.display())))
    }

    /// Begins the log with its header; what the file held before is gone.
    pub fn begin(
        out: &'a mut File,
        serializer: &'a mut HdrSerializer,
        start: Timestamp,
        tool: &str,
    ) -> Result<Self> {
        out.set_len(0).context("failed to empty the HdrHistogram log")?;
        let log = IntervalLogWriterBuilder::new()
            .add_comment(&format!("[Logged by {tool} {}]", env!("CARGO_PKG_VERSION")))
            .with_start_time(start.into())
            .with_base_time(start.into())
            .with_max_value_divisor(1e6)
            .begin_log_with(out, serializer)
            .context("failed to begin the HdrHistogram log")?;
        Ok(Self { log, start })
    }

    /// Appends a row's histogram. The tag tells rows apart; characters that end one are replaced.
    pub fn append(&mut self, interval: &Interval, tag: Option<&str>, hist: &Hist) -> Result<()> {
        let tag = tag.map(|tag| tag.replace([',', ' ', '\r', '\n'], "_"));
        let end = Duration::try_from(interval.end.duration_since(self.start)).unwrap_or_default();
        let start = end.saturating_sub(interval.length);
        let hdr = hist.to_hdr(HDR_DIGITS)?;
        self.log
            .write_histogram(&hdr, start, interval.length, tag.as_deref().and_then(Tag::new))
            .map_err(|err| anyhow::anyhow!("failed to write the HdrHistogram log: {err:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut dyn Write)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_picture_is_bccs() {
        let picture = written(|out| write_picture(out, Unit::Micros, &[1, 0, 40]).unwrap());
        insta::assert_snapshot!(picture, @r"
             usecs               : count     distribution
                 0 -> 1          : 1        |*                                       |
                 2 -> 3          : 0        |                                        |
                 4 -> 7          : 40       |****************************************|
        ");
        assert!(picture.lines().all(|line| line.len() <= COLUMNS));
    }

    #[test]
    fn csv_quotes_what_needs_it_and_leaves_unknown_figures_empty() {
        let line = written(|out| {
            let fields = [("comm", "a,\"b\"".into()), ("count", 7.into()), ("p50_ns", Value::Null)];
            write_csv_row(out, fields).unwrap();
        });
        assert_eq!(line, "\"a,\"\"b\"\"\",7,\n");
    }

    #[test]
    fn names_that_look_like_figures_are_text_in_csv() {
        let names = ["101", "null", "nan", "-inf", " 1e5", "True", "NA"];
        let line = written(|out| {
            let fields = names.map(|name| ("vm", name.into()));
            write_csv_row(out, fields.into_iter().chain([("count", 7.into())])).unwrap();
        });
        let read = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
        let row = read.into_records().next().unwrap().unwrap();
        let expected = names.iter().map(|name| format!("\"{name}\"")).chain(["7".to_owned()]);
        assert!(row.iter().eq(expected), "{line}");
        let json = written(|out| write_json_line(out, [("vm", "101".into())]).unwrap());
        assert_eq!(json, "{\"vm\":\"101\"}\n");
        for name in ["loadgen-0001", "web", "none", "0x3f8", "1-1", "unknown(7)", "", "nano"] {
            assert!(!is_mistakable(name), "{name}");
        }
    }

    #[test]
    fn times_have_one_format() {
        let interval = |end: &str| Interval {
            end: end.parse().unwrap(),
            length: Duration::from_nanos(1_000_000_400),
        };
        let [time, seconds] = interval("2026-11-23T04:42:00Z").fields();
        assert_eq!(time.1, "2026-11-23T04:42:00.000000Z");
        assert_eq!(seconds.1, 1.0);
        let [time, _] = interval("2026-11-23T04:42:00.123456789Z").fields();
        assert_eq!(time.1, "2026-11-23T04:42:00.123456Z");
    }

    #[test]
    fn durations_are_short() {
        for (ns, text) in [
            (0, "0ns"),
            (999, "999ns"),
            (1_000, "1.0us"),
            (9_949, "9.9us"),
            (9_950, "10us"),
            (812_400, "812us"),
            (999_500, "1.0ms"),
            (41_000_000, "41ms"),
            (999_499_999, "999ms"),
            (999_500_000, "1.0s"),
            (120_000_000_000, "120s"),
        ] {
            assert_eq!(short_duration(ns), text, "{ns}");
        }
    }

    #[test]
    fn counts_are_short() {
        for (count, width, text) in [
            (0.0, 5, "0"),
            (0.5, 5, "0.5"),
            (3.0, 5, "3"),
            (12_345.0, 5, "12345"),
            (123_456.0, 5, "123k"),
            (123_456.0, 7, "123456"),
            (12_345_678.0, 7, "12M"),
            (999_600.0, 5, "1.0M"),
            (7e12, 5, "7.0T"),
        ] {
            assert_eq!(short_count(count, width), text, "{count} in {width}");
        }
    }

    #[test]
    fn bytes_are_short() {
        for (bytes, text) in [
            (0, "0"),
            (-64, "-64"),
            (9_999, "9999"),
            (12_288, "12K"),
            (-12_288, "-12K"),
            (1_048_576, "1.0M"),
            (1_023 << 20, "1.0G"),
            (i64::MAX, "8E"),
        ] {
            assert_eq!(short_bytes(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn words_wrap_at_80_columns() {
        let words = vec!["twelve chars".to_owned(); 8];
        let text = written(|out| write_words(out, &words).unwrap());
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().all(|line| line.len() <= COLUMNS));
    }

    #[test]
    fn an_interval_log_is_read_back() {
        use hdrhistogram::Histogram;
        use hdrhistogram::serialization::Deserializer;
        use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

        let start: Timestamp = "2026-11-23T04:42:00Z".parse().unwrap();
        let hist = Hist::of([1_000, 2_000, 3_000_000]);
        let interval =
            Interval { end: start + Duration::from_secs(2), length: Duration::from_secs(1) };
        let path = std::env::temp_dir().join(format!("common-hdr-{}", std::process::id()));
        std::fs::write(&path, "something else").unwrap();
        let mut file = File::options().write(true).open(&path).unwrap();
        let mut serializer = HdrSerializer::new();
        let mut log = HdrLog::begin(&mut file, &mut serializer, start, "runqlat").unwrap();
        log.append(&interval, Some("loadgen-0001, x"), &hist).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let entries: Vec<_> = IntervalLogIterator::new(&bytes).map(Result::unwrap).collect();
        let Some(LogEntry::Interval(entry)) = entries.last() else { panic!("{entries:?}") };
        assert_eq!(entry.tag().unwrap().as_str(), "loadgen-0001__x");
        assert_eq!(entry.start_timestamp(), Duration::from_secs(1));
        assert_eq!(entry.duration(), Duration::from_secs(1));
        let encoded = hdrhistogram_base64(entry.encoded_histogram());
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut &encoded[..]).unwrap();
        assert_eq!(read.len(), 3);
        assert!(read.max().abs_diff(3_000_000) < 3_000_000 / 60, "{}", read.max());
    }

    fn hdrhistogram_base64(text: &str) -> Vec<u8> {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    }
}
