//! `--slower`: each exit that took long, as it ends. Pure but for the local time zone.

use std::io::Write;

use anyhow::Result;
use common::output::{self, Field, Format, printable, short_duration};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::rows::{Parts, Source};

/// An exit that took long.
#[derive(Clone, Debug)]
pub struct SlowExit {
    /// When it ended.
    pub end: Timestamp,
    /// Whose; the writer is the vCPU's thread.
    pub source: Source,
    /// How long it took, in nanoseconds.
    pub total_ns: u64,
    /// Where that time went.
    pub parts: Parts,
    /// The process's name.
    pub comm: String,
}

/// The width of names.
const NAME: usize = 18;

const COLUMNS: [&str; 14] = [
    "time",
    "pid",
    "tid",
    "vm",
    "vcpu",
    "kind",
    "reason",
    "code",
    "detail",
    "total_ns",
    "kernel_ns",
    "userspace_ns",
    "asleep_ns",
    "runqueue_ns",
];

/// What comes before the first one.
pub fn begin(out: &mut dyn Write, format: Format) -> Result<()> {
    match format {
        Format::Text => writeln!(
            out,
            "{:<12} {:<18} {:<18} {:>5} {:>5} {:>5} {:>5} {:>5}",
            "TIME", "VM/VCPU", "REASON", "TOTAL", "kern", "user", "sleep", "runq"
        )?,
        Format::Csv(_) => output::write_csv_header(out, COLUMNS)?,
        Format::Json => {}
    }
    Ok(())
}

/// One exit of the VM of that name.
pub fn write(out: &mut dyn Write, format: Format, slow: &SlowExit, vm: &str) -> Result<()> {
    match format {
        Format::Text => write_text(out, slow, vm),
        Format::Csv(_) => output::write_csv_row(out, slow.fields(vm)),
        Format::Json => output::write_json_line(out, slow.fields(vm)),
    }
}

fn write_text(out: &mut dyn Write, slow: &SlowExit, vm: &str) -> Result<()> {
    let Source { vcpu, reason, detail, .. } = slow.source;
    let clock = slow.end.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.3f").to_string();
    let vcpu = vcpu.map_or_else(|| "?".to_owned(), |vcpu| vcpu.to_string());
    let vm = printable(&format!("{vm}/{vcpu}"));
    let name = reason.name();
    write!(out, "{clock:<12} ")?;
    // What is too long for its column is on a line of its own, so that the figures stay in theirs.
    for (i, text) in [vm, name.into_owned()].into_iter().enumerate() {
        match text.chars().count() <= NAME {
            true => write!(out, "{text:<NAME$}")?,
            false => write!(out, "{text}\n{:1$}", "", (i + 1) * (NAME + 1) + 12)?,
        }
        if i == 0 {
            write!(out, " ")?;
        }
    }
    let Parts { userspace_ns, asleep_ns, runqueue_ns } = slow.parts;
    for ns in [slow.total_ns, slow.kernel_ns(), userspace_ns, asleep_ns, runqueue_ns] {
        write!(out, " {:>5}", short_duration(ns))?;
    }
    match detail {
        Some(detail) => writeln!(out, "\n{:32}{detail}", "")?,
        None => writeln!(out)?,
    }
    Ok(())
}

impl SlowExit {
    fn kernel_ns(&self) -> u64 {
        let Parts { userspace_ns, asleep_ns, runqueue_ns } = self.parts;
        self.total_ns.saturating_sub(userspace_ns + asleep_ns + runqueue_ns)
    }

    fn fields(&self, vm: &str) -> impl Iterator<Item = Field> {
        let Source { vm: id, vcpu, writer, reason, detail } = self.source;
        let Parts { userspace_ns, asleep_ns, runqueue_ns } = self.parts;
        let values = [
            format!("{:.6}", self.end).into(),
            id.pid.into(),
            writer.into(),
            vm.into(),
            vcpu.into(),
            reason.kind().into(),
            reason.name().into(),
            reason.code.into(),
            detail.map(|detail| detail.to_string()).into(),
            self.total_ns.into(),
            self.kernel_ns().into(),
            userspace_ns.into(),
            asleep_ns.into(),
            runqueue_ns.into(),
        ];
        COLUMNS.into_iter().zip(values)
    }
}
