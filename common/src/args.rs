//! The part of the command line that all tools have: BCC's `[INTERVAL [COUNT]]`, filters, formats. Values are
//! checked here, before anything is loaded.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;

use crate::cgroup::Cgroup;
use crate::host;
use crate::output::HdrLog;
use crate::output::openmetrics::Target;
use crate::session::{EXIT_LOST, usage};
use crate::vms::{self, Vm};

/// Where `--help` and the manuals list what is common to all tools, and what else belongs there.
pub const FILTERS: &str = "Filters";
/// The same for what is about output alone.
pub const OUTPUT: &str = "Output";

/// What every tool is told about when and how to print; `Csv` is what its CSV rows may be.
#[derive(clap::Args, Clone, Debug)]
pub struct OutputArgs<Csv: ValueEnum + Clone + Send + Sync + 'static = CsvKind> {
    /// Seconds between outputs; without it, print once at the end
    ///
    /// Fractions are allowed, from 0.001. Outputs are due at multiples of it since the start and do not drift.
    #[arg(value_name = "INTERVAL", value_parser = parse_seconds)]
    pub interval: Option<Duration>,

    /// Number of outputs; without it, until Ctrl-C
    #[arg(value_name = "COUNT", value_parser = parse_count)]
    pub count: Option<u64>,

    /// End after so many seconds
    ///
    /// The last output may cover less than INTERVAL.
    #[arg(short = 'd', long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub duration: Option<Duration>,

    /// Print the time with each output
    ///
    /// Text: the local time at which the interval ended. CSV and JSON always have it.
    #[arg(short = 'T', long, help_heading = OUTPUT)]
    pub timestamp: bool,

    /// CSV: a summary per row, or the histogram's buckets
    ///
    /// Without KIND it is the summary.
    #[arg(
        long,
        value_name = "KIND",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "summary",
        conflicts_with = "json",
        help_heading = OUTPUT
    )]
    pub csv: Option<Csv>,

    /// JSON: one object a line
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,

    /// Write histograms to an HdrHistogram interval log as well
    ///
    /// FILE is overwritten.
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub hdr: Option<PathBuf>,

    /// Write metrics for Prometheus as well, anew after each interval; - is standard output, instead
    ///
    /// All that was counted since the start. FILE is replaced as a whole, so that nobody reads a part of it. With - there
    /// is nothing else on standard output: no text, and neither --csv nor --json. See the manual's METRICS. It is about
    /// tables: not with options that print something else, such as --stacks.
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub openmetrics: Option<PathBuf>,

    /// Metrics: fold rows beyond so many series into one that is labelled other
    #[arg(long, value_name = "N", default_value_t = 5_000, requires = "openmetrics", help_heading = OUTPUT)]
    pub max_series: u32,

    /// Exit with status 4 if events were lost
    #[arg(long, help_heading = OUTPUT)]
    pub strict: bool,

    /// Show libbpf's messages, on standard error
    #[arg(short = 'v', long, help_heading = OUTPUT)]
    pub verbose: bool,
}

impl<Csv: ValueEnum + Clone + Send + Sync + 'static> OutputArgs<Csv> {
    /// The exit status after `lost` events: [`EXIT_LOST`] if any are and that is asked for.
    pub fn exit_code(&self, lost: u64) -> ExitCode {
        match self.strict && lost > 0 {
            true => ExitCode::from(EXIT_LOST),
            false => ExitCode::SUCCESS,
        }
    }

    /// The file that histograms are to be written to, if any: see [`HdrLog::open`].
    pub fn hdr_file(&self) -> Result<Option<File>> {
        self.hdr.as_deref().map(HdrLog::open).transpose()
    }

    /// Where metrics are to be written to, if anywhere. A usage error if that cannot be.
    pub fn metrics_target(&self) -> Result<Option<Target>> {
        let target = self.openmetrics.as_deref().map(Target::find).transpose()?;
        if target == Some(Target::Stdout) && (self.csv.is_some() || self.json) {
            return Err(usage(
                "--openmetrics - has standard output for itself: with --csv or --json name a file",
            ));
        }
        Ok(target)
    }

    /// Standard output for reports; they are not written where metrics have it.
    pub fn report_output(&self) -> Box<dyn Write> {
        match self.openmetrics.as_deref() {
            Some(path) if path == Path::new("-") => Box::new(io::sink()),
            _ => Box::new(BufWriter::new(io::stdout().lock())),
        }
    }
}

/// Which rows CSV output has.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CsvKind {
    /// One row of figures per interval and key
    Summary,
    /// One row per non-empty bucket
    Buckets,
}

/// Which tasks are wanted. All that are given must hold.
#[derive(clap::Args, Clone, Debug)]
pub struct TaskFilterArgs {
    /// Only threads of this process
    #[arg(short = 'p', long, value_parser = parse_id, help_heading = FILTERS)]
    pub pid: Option<i32>,

    /// Only this thread
    #[arg(short = 't', long, value_parser = parse_id, help_heading = FILTERS)]
    pub tid: Option<i32>,

    /// Only tasks in this cgroup (v2) and below
    #[arg(short = 'c', long, value_name = "PATH", help_heading = FILTERS)]
    pub cgroup: Option<PathBuf>,

    /// Only vCPUs of this VM
    ///
    /// The name is the one that is printed for it: what its VMM was told (QEMU's -name, Firecracker's --id), or that of
    /// its libvirt scope, or else the name of the process. Where several VMs have it, name one by PID.
    #[arg(long, value_name = "NAME|PID", help_heading = FILTERS)]
    pub vm: Option<String>,
}

/// [`TaskFilterArgs`] found to exist.
#[derive(Clone, Debug, Default)]
pub struct TaskFilter {
    /// A process (thread group) ID.
    pub pid: Option<i32>,
    /// A thread ID.
    pub tid: Option<i32>,
    /// A control group.
    pub cgroup: Option<Cgroup>,
    /// A virtual machine.
    pub vm: Option<Vm>,
}

impl TaskFilterArgs {
    /// Checks that what is named exists. A usage error if not.
    pub fn resolve(&self) -> Result<TaskFilter> {
        if self.pid.is_some() || self.tid.is_some() || self.vm.is_some() {
            host::check_pid_namespace()?;
        }
        if let Some(pid) = self.pid {
            check_process(pid)?;
        }
        if let Some(tid) = self.tid {
            check_thread(tid, self.pid)?;
        }
        let vm = self.vm.as_deref().map(vms::find).transpose()?;
        if let (Some(pid), Some(vm)) = (self.pid, &vm)
            && vm.pid != pid
        {
            return Err(usage(format!("VM {} is process {}, not {pid}", vm.name, vm.pid)));
        }
        Ok(TaskFilter {
            pid: self.pid,
            tid: self.tid,
            cgroup: self.cgroup.as_deref().map(Cgroup::resolve).transpose()?,
            vm,
        })
    }
}

fn check_process(pid: i32) -> Result<()> {
    // Bytes: a process may call itself what it likes, UTF-8 or not.
    let Ok(status) = fs::read(format!("/proc/{pid}/status")) else {
        return Err(usage(format!("no process has PID {pid}")));
    };
    let status = String::from_utf8_lossy(&status);
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if let Some(tgid) = field("Tgid:").filter(|tgid| *tgid != pid.to_string()) {
        let sentence = format!("{pid} is a thread of process {tgid}: use -t {pid} for it alone");
        return Err(usage(sentence));
    }
    match field("State:") {
        Some(state) if state.starts_with(['Z', 'X']) => {
            Err(usage(format!("process {pid} has ended")))
        }
        _ => Ok(()),
    }
}

fn check_thread(tid: i32, pid: Option<i32>) -> Result<()> {
    if !Path::new(&format!("/proc/{tid}")).exists() {
        return Err(usage(format!("no thread has TID {tid}")));
    }
    match pid {
        Some(pid) if !Path::new(&format!("/proc/{pid}/task/{tid}")).exists() => {
            Err(usage(format!("{tid} is no thread of process {pid}")))
        }
        _ => Ok(()),
    }
}

impl TaskFilter {
    /// A sentence if the process or thread that was asked for has ended since: nothing more will come.
    pub fn ended(&self) -> Option<String> {
        let gone = |id: &i32| !Path::new(&format!("/proc/{id}")).exists();
        if let Some(tid) = self.tid.filter(gone) {
            return Some(format!("thread {tid} has ended"));
        }
        let pid = self.pid.or(self.vm.as_ref().map(|vm| vm.pid)).filter(gone)?;
        Some(format!("process {pid} has ended"))
    }
}

/// The ID of a process or thread.
pub fn parse_id(text: &str) -> Result<i32, String> {
    text.parse()
        .ok()
        .filter(|id| *id > 0)
        .ok_or_else(|| "not the ID of a process or thread".to_owned())
}

fn parse_count(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "not a number of outputs".to_owned())
}

/// A positive number of seconds, fractions allowed, no more than a clock can count.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if Instant::now().checked_add(duration).is_none() => {
            Err("not a length of time".to_owned())
        }
        Ok(duration) if duration >= Duration::from_millis(1) => Ok(duration),
        Ok(_) => Err("must be at least 0.001 seconds".to_owned()),
        Err(_) if seconds < 0.0 => Err("must be more than 0 seconds".to_owned()),
        Err(_) => Err("not a length of time".to_owned()),
    }
}

/// A positive number of microseconds, fractions allowed, whose nanoseconds fit 64 bits.
pub fn parse_micros(text: &str) -> Result<Duration, String> {
    let micros: f64 = text.parse().map_err(|_| "not a number of microseconds".to_owned())?;
    match Duration::try_from_secs_f64(micros / 1e6) {
        Ok(duration) if !duration.is_zero() && u64::try_from(duration.as_nanos()).is_ok() => {
            Ok(duration)
        }
        _ => Err("not a length of time in microseconds".to_owned()),
    }
}

/// CPU numbers as in `0-3,8`, the kernel's own list format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

impl std::str::FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse::<u16>().map(usize::from).map_err(|_| "not a list of CPUs like 0-3,8")
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => cpus.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(format!("{first} is after {last}"));
                    }
                    cpus.extend(first..=last);
                }
            }
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

impl CpuList {
    /// Checks that this host can have all these CPUs, of which it has `possible`. A usage error if not.
    pub fn check(&self, possible: usize) -> Result<()> {
        match self.0.last() {
            Some(&last) if last >= possible => {
                Err(usage(format!("there is no CPU {last}: this host has 0-{}", possible - 1)))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_positive_numbers() {
        assert_eq!(parse_seconds("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["abc", "", "1s", "-1", "0", "nan", "inf", "1e19", "1e300"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn microseconds_are_positive_numbers() {
        assert_eq!(parse_micros("1500"), Ok(Duration::from_micros(1_500)));
        assert_eq!(parse_micros("0.5"), Ok(Duration::from_nanos(500)));
        for bad in ["abc", "", "1us", "-1", "0", "nan", "inf", "1e17", "1e300"] {
            assert!(parse_micros(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_lists_are_the_kernels() {
        assert_eq!("0-3,8".parse(), Ok(CpuList(vec![0, 1, 2, 3, 8])));
        assert_eq!("5,1,5".parse(), Ok(CpuList(vec![1, 5])));
        for bad in ["", "a", "3-1", "1,", "1-", "-1", "0x1"] {
            assert!(bad.parse::<CpuList>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_that_are_not_there_are_refused() {
        let list: CpuList = "0-3".parse().unwrap();
        assert!(list.check(4).is_ok());
        assert_eq!(list.check(2).unwrap_err().to_string(), "there is no CPU 3: this host has 0-1");
    }
}
