//! One step of a ramp as a row: text, CSV and JSON.

use std::io::Write;

use anyhow::Result;
use common::output::{self, Field, Interval, short_bytes, short_count, short_duration};

use super::tools::Seen;
use crate::churn::ChurnSummary;

/// What one step showed.
pub(crate) struct Row {
    pub(crate) interval: Interval,
    pub(crate) guests: u32,
    pub(crate) vcpus: u32,
    /// Guests that have done something during the hold; of those that boot Linux it is not known.
    pub(crate) running: Option<u32>,
    /// Guests that this step has made, and how long that took; each of them, its quantiles 0.5 and 0.99.
    pub(crate) created: u32,
    pub(crate) create_s: f64,
    pub(crate) create_p50_ns: u64,
    pub(crate) create_p99_ns: u64,
    /// How far apart these had a CPU for the first time; none if one has had none.
    pub(crate) start_s: Option<f64>,
    /// What is gone of the host's memory since the beginning, for each guest.
    pub(crate) guest_bytes: Option<i64>,
    pub(crate) available_bytes: Option<u64>,
    /// How much of the hold some task waited for a CPU, or for memory (PSI), in per cent.
    pub(crate) cpu_some_percent: Option<f64>,
    pub(crate) memory_some_percent: Option<f64>,
    pub(crate) load: Option<f64>,
    pub(crate) switches_per_s: Option<f64>,
    /// How late the probe came.
    pub(crate) probe_p50_ns: u64,
    pub(crate) probe_p99_ns: u64,
    pub(crate) probe_max_ns: u64,
    pub(crate) seen: Seen,
    /// What came of `--churn` during the hold.
    pub(crate) churn: Option<ChurnSummary>,
}

impl Row {
    fn fields(&self) -> Vec<Field> {
        let Self { seen, .. } = self;
        let mut fields = Vec::from(self.interval.fields());
        fields.extend([
            ("guests", self.guests.into()),
            ("vcpus", self.vcpus.into()),
            ("running", self.running.into()),
            ("created", self.created.into()),
            ("create_s", self.create_s.into()),
            ("create_p50_ns", self.create_p50_ns.into()),
            ("create_p99_ns", self.create_p99_ns.into()),
            ("start_s", self.start_s.into()),
            ("guest_bytes", self.guest_bytes.into()),
            ("available_bytes", self.available_bytes.into()),
            ("cpu_some_percent", self.cpu_some_percent.into()),
            ("memory_some_percent", self.memory_some_percent.into()),
            ("load", self.load.into()),
            ("switches_per_s", self.switches_per_s.into()),
            ("runq_p50_ns", seen.runq_p50_ns.into()),
            ("runq_p99_ns", seen.runq_p99_ns.into()),
            ("runq_p999_ns", seen.runq_p999_ns.into()),
            ("runq_max_ns", seen.runq_max_ns.into()),
            ("runq_groups", seen.runq_groups.clone().into()),
            ("waiting", seen.waiting.into()),
            ("longest_waiting_ns", seen.longest_waiting_ns.into()),
            ("vms_seen", seen.vms_seen.into()),
            ("wait_percent", seen.wait_percent.into()),
            ("exits_per_s", seen.exits_per_s.into()),
            ("ksm_sharing", seen.ksm_sharing.into()),
            ("ksm_profit_bytes", seen.ksm_profit_bytes.into()),
            ("probe_p50_ns", self.probe_p50_ns.into()),
            ("probe_p99_ns", self.probe_p99_ns.into()),
            ("probe_max_ns", self.probe_max_ns.into()),
        ]);
        fields.extend(ChurnSummary::fields(self.churn.as_ref()));
        fields
    }

    /// A CSV line, after the columns' names if it is the first.
    pub(crate) fn write_csv(&self, out: &mut dyn Write, first: bool) -> Result<()> {
        if first {
            output::write_csv_header(out, self.fields().iter().map(|(name, _)| *name))?;
        }
        output::write_csv_row(out, self.fields())
    }

    /// A JSON object on a line.
    pub(crate) fn write_json(&self, out: &mut dyn Write) -> Result<()> {
        output::write_json_line(out, self.fields())
    }

    /// A line for people, below [`Row::HEADER`].
    pub(crate) fn write_text(&self, out: &mut dyn Write) -> Result<()> {
        let Self { seen, .. } = self;
        let time = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), short_duration);
        let count = |n: Option<f64>| n.map_or_else(|| "-".to_owned(), |n| short_count(n, 5));
        let bytes = |n: Option<i64>| n.map_or_else(|| "-".to_owned(), short_bytes);
        let percent = |n: Option<f64>| n.map_or_else(|| "-".to_owned(), |n| format!("{n:.0}"));
        let available = self.available_bytes.and_then(|bytes| i64::try_from(bytes).ok());
        let per_s = f64::from(self.created) / self.create_s.max(1e-9);
        writeln!(
            out,
            "{:>6} {:>5} {:>6} {:>6} {:>4} {:>5} {:>5} {:>6} {:>6} {:>5} {:>6} {:>6}",
            self.guests,
            short_count(per_s.round(), 5),
            bytes(self.guest_bytes),
            bytes(available),
            percent(self.cpu_some_percent),
            count(self.switches_per_s.map(f64::round)),
            percent(seen.wait_percent),
            time(seen.runq_p50_ns),
            time(seen.runq_p99_ns),
            count(seen.exits_per_s.map(f64::round)),
            time(Some(self.probe_p99_ns)),
            time(Some(self.probe_max_ns)),
        )?;
        output::write_words(out, &self.more())?;
        Ok(())
    }

    /// What has no column, as the words of a line: only what can be said.
    fn more(&self) -> Vec<String> {
        let Self { seen, .. } = self;
        let mut parts = vec![];
        if let Some(groups) = &seen.runq_groups {
            parts.push(format!("waits: {groups}"));
        }
        if let Some(waiting) = seen.waiting {
            let longest = seen.longest_waiting_ns.map(short_duration);
            let longest = longest.map_or(String::new(), |age| format!(", longest {age}"));
            parts.push(format!("{waiting} waiting{longest}"));
        }
        if let Some(load) = self.load {
            parts.push(format!("load {load:.1}"));
        }
        if let Some(percent) = self.memory_some_percent {
            parts.push(format!("waited for memory {percent:.0} %"));
        }
        if let Some(bytes) = seen.ksm_profit_bytes {
            parts.push(format!("KSM profit {}", short_bytes(bytes)));
        }
        if let Some(running) = self.running.filter(|running| *running < self.guests) {
            parts.push(format!("{} guests did not run", self.guests - running));
        }
        if let Some(churn) = &self.churn {
            parts.extend(churn.parts());
        }
        // Lines are broken after punctuation only.
        let text = parts.join("; ");
        let phrases = text.split_inclusive([',', ';']).map(str::trim_start);
        let indent = |i: usize| if i == 0 { "  " } else { "" };
        phrases.enumerate().map(|(i, phrase)| format!("{}{phrase}", indent(i))).collect()
    }

    /// The names of [`Row::write_text`]'s columns.
    pub(crate) const HEADER: &str = concat!(
        "GUESTS NEW/S   EACH   FREE CPU%  CS/S WAIT% RUNQ50 RUNQ99 EXI/S",
        " PROB99 PROMAX"
    );
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_step_is_a_line_that_fits() {
        let row = Row {
            interval: Interval {
                end: "2026-11-23T04:42:10Z".parse().unwrap(),
                length: Duration::from_secs(10),
            },
            guests: 123_456,
            vcpus: 123_456,
            running: Some(123_456),
            created: 1_000,
            create_s: 0.5,
            create_p50_ns: 1_000_000,
            create_p99_ns: 9_000_000,
            start_s: Some(0.1),
            guest_bytes: Some(250 << 10),
            available_bytes: Some(22 << 30),
            cpu_some_percent: Some(100.0),
            memory_some_percent: Some(0.0),
            load: Some(1.5),
            switches_per_s: Some(123_456.7),
            probe_p50_ns: 60_000,
            probe_p99_ns: 15_000_000,
            probe_max_ns: 1_500_000_000,
            seen: Seen {
                runq_groups: Some("93.1 % in 4-511 us, 6.9 % in 1-32 ms".to_owned()),
                waiting: Some(3),
                longest_waiting_ns: Some(70_000_000),
                ksm_profit_bytes: Some(-64),
                ..Seen::default()
            },
            churn: None,
        };
        let mut out = Vec::new();
        row.write_text(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let (figures, more) = text.split_once('\n').unwrap();
        assert!(figures.len() <= 80 && Row::HEADER.len() == figures.len(), "{text}");
        assert_eq!(
            more,
            "  waits: 93.1 % in 4-511 us, 6.9 % in 1-32 ms; 3 waiting, longest 70ms;\n  load 1.5; \
             waited for memory 0 %; KSM profit -64\n"
        );
        let mut out = Vec::new();
        row.write_csv(&mut out, true).unwrap();
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(&out[..]);
        let lines: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 2, "the reader wants as many fields in each");
    }
}
