//! `--slower`: each wait that was long, as it ends. Pure but for the local time zone.

use std::io::Write;

use anyhow::Result;
use common::output::{self, Field, Format, printable, short_duration};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::rows::{Culprit, Thread};

/// A wait that was long.
#[derive(Clone, Debug)]
pub struct LongWait {
    /// When it ended.
    pub end: Timestamp,
    /// Whose it was.
    pub thread: Thread,
    /// Its process's name.
    pub comm: String,
    /// The CPU that it got.
    pub cpu: u32,
    /// How long it was, in nanoseconds.
    pub wait_ns: u64,
    /// How long of it was for the vCPU's own quota.
    pub throttled_ns: u64,
    /// It began when the vCPU was pushed off its CPU, not when it was woken.
    pub preempted: bool,
    /// Who ran the longest at a stretch meanwhile, if that is known.
    pub culprit: Option<Culprit>,
    /// For how long.
    pub culprit_ns: u64,
}

const COLUMNS: [&str; 12] = [
    "time",
    "pid",
    "tid",
    "vm",
    "vcpu",
    "cpu",
    "wait_ns",
    "throttled_ns",
    "began",
    "culprit",
    "culprit_pid",
    "culprit_ns",
];

/// The widths of the VM's column and of what remains for the culprit: a thread's name. Longer names have lines of their
/// own.
const VCPU: usize = 15;
const CULPRIT: usize = 15;

/// What comes before the first one.
pub fn begin(out: &mut dyn Write, format: Format) -> Result<()> {
    match format {
        Format::Text => writeln!(
            out,
            "{:<12} {:<VCPU$} {:>3} {:>5} {:<9} {:>9} WHO RAN",
            "TIME", "VM/VCPU", "CPU", "WAIT", "BEGAN", "THROTTLED"
        )?,
        Format::Csv(_) => output::write_csv_header(out, COLUMNS)?,
        Format::Json => {}
    }
    Ok(())
}

/// One wait of the VM of that name, for which the other, if any, is to blame.
pub fn write(
    out: &mut dyn Write,
    format: Format,
    wait: &LongWait,
    vm: &str,
    culprit: Option<&str>,
) -> Result<()> {
    let began = if wait.preempted { "preempted" } else { "woken" };
    if format == Format::Text {
        let clock = wait.end.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.3f").to_string();
        let vcpu = wait.thread.vcpu.map_or_else(|| "?".to_owned(), |vcpu| vcpu.to_string());
        let vcpu = printable(&format!("{vm}/{vcpu}"));
        match vcpu.chars().count() <= VCPU {
            true => write!(out, "{clock:<12} {vcpu:<VCPU$}")?,
            false => write!(out, "{clock:<12} {vcpu}\n{:<12} {:<VCPU$}", "", "")?,
        }
        write!(
            out,
            " {:>3} {:>5} {began:<9} {:>9}",
            wait.cpu,
            short_duration(wait.wait_ns),
            short_duration(wait.throttled_ns)
        )?;
        match culprit {
            Some(culprit) => {
                let culprit = printable(culprit);
                if culprit.chars().count() > CULPRIT {
                    write!(out, "\n{:<12}", "")?;
                }
                writeln!(out, " {culprit} {}", short_duration(wait.culprit_ns))?;
            }
            None => writeln!(out)?,
        }
        return Ok(());
    }
    let values = [
        format!("{:.6}", wait.end).into(),
        wait.thread.vm.pid.into(),
        wait.thread.tid.into(),
        vm.into(),
        wait.thread.vcpu.into(),
        wait.cpu.into(),
        wait.wait_ns.into(),
        wait.throttled_ns.into(),
        began.into(),
        culprit.into(),
        wait.culprit.as_ref().map(|culprit| culprit.pid).into(),
        wait.culprit_ns.into(),
    ];
    let fields = COLUMNS.into_iter().zip(values).collect::<Vec<Field>>();
    match format {
        Format::Json => output::write_json_line(out, fields),
        _ => output::write_csv_row(out, fields),
    }
}
