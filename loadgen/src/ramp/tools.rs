//! This project's own tools, run beside a step of a ramp: what they print is kept, and the row has its main figures.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::FromRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use common::groups;
use common::session::complain;

use crate::signals::HeldBack;

/// On an overloaded host a tool may take so much longer than it was told to.
const PATIENCE: Duration = Duration::from_secs(60);

/// What runs beside a step: the name under which its CSV is kept, the tool, and what it is asked for.
struct Run {
    kept: &'static str,
    tool: &'static str,
    args: &'static [&'static str],
}

/// What is run beside each step.
const RUNS: [Run; 5] = [
    Run { kept: "runqlat", tool: "runqlat", args: &["--csv"] },
    Run { kept: "runqlat-buckets", tool: "runqlat", args: &["--csv=buckets"] },
    Run { kept: "vcpulag", tool: "vcpulag", args: &["--csv", "--by", "vm"] },
    Run { kept: "kvmexits", tool: "kvmexits", args: &["--csv"] },
    Run { kept: "ksmstat", tool: "ksmstat", args: &["--csv"] },
];

/// What the tools said of one step. None where a tool is not there, or the host does not let it see.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// Waits for a CPU: quantiles 0.5, 0.99, 0.999, and the longest, in nanoseconds.
    pub(crate) runq_p50_ns: Option<u64>,
    pub(crate) runq_p99_ns: Option<u64>,
    pub(crate) runq_p999_ns: Option<u64>,
    pub(crate) runq_max_ns: Option<u64>,
    /// The groups of these waits: see [`common::groups`].
    pub(crate) runq_groups: Option<String>,
    /// Tasks that waited at the end, and the longest of these waits.
    pub(crate) waiting: Option<u64>,
    pub(crate) longest_waiting_ns: Option<u64>,
    /// VMs that vcpulag has a row for, and the share of their vCPUs' time that was waiting, in per cent.
    pub(crate) vms_seen: Option<u64>,
    pub(crate) wait_percent: Option<f64>,
    /// VM exits a second: those to hardware's reasons, or where these do not show, those to userspace.
    pub(crate) exits_per_s: Option<f64>,
    /// Pages that KSM saves, and what is left of them when its bookkeeping is paid.
    pub(crate) ksm_sharing: Option<u64>,
    pub(crate) ksm_profit_bytes: Option<i64>,
}

/// A line of CSV by its columns' names.
type Line = HashMap<String, String>;

/// The tools that are there, and where to keep what they print.
pub(crate) struct Tools {
    found: Vec<(&'static Run, PathBuf)>,
    kept: Option<PathBuf>,
}

/// Tools that run.
pub(crate) struct Running {
    kept: Option<PathBuf>,
    /// Each under the name of its CSV.
    children: Vec<(&'static str, Child, File)>,
}

impl Tools {
    /// Those beside this program or in PATH; what they print is kept in this directory, if there is one.
    pub(crate) fn find(kept: Option<&Path>) -> Self {
        let own = std::env::current_exe().ok();
        let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs: Vec<PathBuf> = beside.into_iter().chain(std::env::split_paths(&path)).collect();
        let find = |name| dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        let found = RUNS.iter().filter_map(|run| Some((run, find(run.tool)?))).collect();
        Self { found, kept: kept.map(Path::to_owned) }
    }

    /// The names of those that are not there.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let has = |run: &&Run| self.found.iter().any(|(found, _)| found.tool == run.tool);
        let mut missing: Vec<_> = RUNS.iter().filter(|run| !has(run)).map(|run| run.tool).collect();
        missing.dedup();
        missing
    }

    /// Starts them all, for so long.
    pub(crate) fn start(&self, time: Duration, held_back: &HeldBack) -> Result<Running> {
        let mut running = Running { kept: self.kept.clone(), children: vec![] };
        for (run, path) in &self.found {
            // Not a pipe: nobody reads before the end.
            let out = unnamed_file(c"ramp").context("failed to make a file for a tool's output")?;
            let mut command = Command::new(path);
            let child = held_back
                .spare(&mut command)
                .args(["-d", &time.as_secs_f64().to_string()])
                .args(run.args)
                .stdin(Stdio::null())
                .stdout(out.try_clone().context("failed to share a file with a tool")?)
                .spawn()
                .with_context(|| format!("failed to start `{}`", path.display()))?;
            running.children.push((run.kept, child, out));
        }
        Ok(running)
    }
}

impl Running {
    /// Lets them end now: they print what they have seen.
    pub(crate) fn interrupt(&self) {
        for (_, child, _) in &self.children {
            // SAFETY: kill has no memory to go wrong with; the child has not been waited for, so the PID is its own.
            unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
        }
    }

    /// Waits for their end, and reads what they have printed. `meanwhile` is called every so often.
    pub(crate) fn finish(mut self, mut meanwhile: impl FnMut()) -> Result<Seen> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Seen::default();
        for (name, mut child, mut out) in std::mem::take(&mut self.children) {
            let status = loop {
                if let Some(status) = child.try_wait().context("failed to wait for a tool")? {
                    break Some(status);
                }
                if Instant::now() > deadline {
                    _ = child.kill();
                    _ = child.wait();
                    break None;
                }
                meanwhile();
                std::thread::sleep(Duration::from_millis(10));
            };
            match status {
                Some(status) if status.success() => {}
                Some(status) => complain("loadgen", &format!("warning: `{name}` ended: {status}")),
                None => {
                    complain("loadgen", &format!("warning: `{name}` did not end, and was killed"));
                }
            }
            let mut text = String::new();
            out.rewind()
                .and_then(|()| out.read_to_string(&mut text))
                .context("failed to read what a tool printed")?;
            if let Some(dir) = &self.kept {
                keep(&dir.join(format!("{name}.csv")), &text)?;
            }
            seen.add(name, &lines(&text)?);
        }
        Ok(seen)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for (_, child, _) in &mut self.children {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

/// A file of no name: it is gone with its last descriptor.
fn unnamed_file(name: &CStr) -> io::Result<File> {
    // SAFETY: memfd_create reads the name up to its NUL.
    match unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the descriptor is new, and nobody else's.
        fd => Ok(unsafe { File::from_raw_fd(fd) }),
    }
}

/// Appends a tool's CSV; only the first of them brings the header.
fn keep(path: &Path, text: &str) -> Result<()> {
    let append = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let rows = text.split_once('\n').map_or("", |(_, rows)| rows);
        let new = file.metadata()?.len() == 0;
        file.write_all(if new { text } else { rows }.as_bytes())
    };
    append().with_context(|| format!("failed to write `{}`", path.display()))
}

fn lines(text: &str) -> Result<Vec<Line>> {
    let lines = csv::Reader::from_reader(text.as_bytes()).into_deserialize().collect();
    let lines: Result<Vec<Line>, csv::Error> = lines;
    lines.map_err(|e| anyhow!("failed to read a tool's CSV: {e}"))
}

fn number<T: std::str::FromStr>(line: &Line, column: &str) -> Option<T> {
    line.get(column)?.parse().ok()
}

impl Seen {
    fn add(&mut self, name: &str, lines: &[Line]) {
        let sum = |columns: &[&str]| -> u64 {
            let of =
                |line| columns.iter().filter_map(|column| number::<u64>(line, column)).sum::<u64>();
            lines.iter().map(of).sum()
        };
        match (name, lines.last()) {
            ("runqlat", Some(line)) => {
                self.runq_p50_ns = number(line, "p50_ns");
                self.runq_p99_ns = number(line, "p99_ns");
                self.runq_p999_ns = number(line, "p999_ns");
                self.runq_max_ns = number(line, "max_ns");
                self.waiting = number(line, "waiting");
                self.longest_waiting_ns = number(line, "longest_waiting_ns");
            }
            ("runqlat-buckets", Some(_)) => {
                let buckets = lines
                    .iter()
                    .filter_map(|line| Some((number(line, "lo_ns")?, number(line, "count")?)));
                self.runq_groups = Some(groups_of(buckets));
            }
            ("vcpulag", _) => {
                self.vms_seen = Some(lines.len() as u64);
                let whole = sum(&["run_ns", "wait_ns", "halt_ns", "blocked_ns", "vmm_ns"]);
                let waited = sum(&["wait_ns"]);
                self.wait_percent = (whole > 0).then(|| 100.0 * waited as f64 / whole as f64);
            }
            ("kvmexits", Some(line)) => {
                let hardware =
                    |line: &&Line| line.get("kind").is_some_and(|kind| kind == "hardware");
                let is_hardware = lines.iter().any(|line| hardware(&line));
                let counted = lines.iter().filter(|line| hardware(line) == is_hardware);
                let count: u64 = counted.filter_map(|line| number::<u64>(line, "count")).sum();
                self.exits_per_s =
                    number(line, "interval_s").map(|seconds: f64| count as f64 / seconds);
            }
            ("ksmstat", Some(line)) => {
                self.ksm_sharing = number(line, "pages_sharing");
                self.ksm_profit_bytes = number(line, "profit_bytes");
            }
            _ => {}
        }
    }
}

/// The groups of a histogram of which each bucket's lower end and count are known, in words. A bucket that a power of
/// two of microseconds lies in is taken for one below it: 1.6 % of its values at most.
fn groups_of(buckets: impl Iterator<Item = (u64, u64)>) -> String {
    let mut picture_us = vec![];
    for (lo_ns, count) in buckets {
        let octave = (lo_ns / 1_000).max(1).ilog2() as usize;
        picture_us.resize(picture_us.len().max(octave + 1), 0);
        picture_us[octave] += count;
    }
    groups::words(&groups::groups(&picture_us)).split_off(1).join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: &str, csv: &str) -> Seen {
        let mut seen = Seen::default();
        seen.add(name, &lines(csv).unwrap());
        seen
    }

    #[test]
    fn figures_are_those_of_the_tools() {
        let runqlat = seen(
            "runqlat",
            "p50_ns,p99_ns,p999_ns,max_ns,waiting,longest_waiting_ns\n1,2,3,4,5,\n",
        );
        assert_eq!((runqlat.runq_p50_ns, runqlat.runq_max_ns), (Some(1), Some(4)));
        assert_eq!((runqlat.waiting, runqlat.longest_waiting_ns), (Some(5), None));
        let buckets = seen(
            "runqlat-buckets",
            "lo_ns,hi_ns,count\n0,32,10\n1024,1056,500\n4000,4096,90\n1048576,1081344,400\n",
        );
        let groups = buckets.runq_groups.unwrap();
        assert_eq!(groups, "51.0 % in 0-1 us, 9.0 % in 4-7 us, 40.0 % in 1-2 ms");
        let vcpulag = seen("vcpulag", "vm,run_ns,wait_ns,halt_ns\na,1,2,0\nb,3,2,0\n");
        assert_eq!((vcpulag.vms_seen, vcpulag.wait_percent), (Some(2), Some(50.0)));
        let both = "interval_s,kind,count\n2.0,hardware,10\n2.0,userspace,3\n2.0,hardware,6\n";
        assert_eq!(seen("kvmexits", both).exits_per_s, Some(8.0));
        let userspace = "interval_s,kind,count\n2.0,userspace,3\n";
        assert_eq!(seen("kvmexits", userspace).exits_per_s, Some(1.5));
        let ksmstat = seen("ksmstat", "pages_sharing,profit_bytes\n7,-64\n");
        assert_eq!((ksmstat.ksm_sharing, ksmstat.ksm_profit_bytes), (Some(7), Some(-64)));
    }

    #[test]
    fn a_tool_that_says_nothing_has_no_figures() {
        assert_eq!(seen("runqlat", ""), Seen::default());
        assert_eq!(seen("kvmexits", "interval_s,kind,count\n"), Seen::default());
        assert_eq!(seen("vcpulag", "vm,run_ns\n").wait_percent, None);
    }
}
