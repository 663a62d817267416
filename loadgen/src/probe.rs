//! The probe: a task of the host, outside the guests' cgroup, that wants to run for a moment every 10 ms. How late it
//! comes tells whether anybody could still log in.

use std::fs::File;
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::hist::Hist;

use crate::ns::ns;
use crate::process::{self, Name};

/// How often it wants to run.
const PERIOD: Duration = Duration::from_millis(10);
/// Bytes of a message: how late it was, in nanoseconds.
const MESSAGE: usize = size_of::<u64>();

/// The parent's side. Dropping it ends the probe.
pub struct Probe {
    pid: libc::pid_t,
    pipe: PipeReader,
    begun: Instant,
    /// How often it has run.
    runs: u32,
    /// How late it came, as far as that has not been asked for.
    hist: Hist,
}

/// How late the probe came.
#[derive(Clone, Debug, Default)]
pub struct Lateness {
    /// Each time it should have run and has.
    pub hist: Hist,
    /// It should be running now: for so long, in nanoseconds. 0 if not.
    pub going_on_ns: u64,
}

impl Lateness {
    /// The latest, whether it has come or not, in nanoseconds.
    pub fn max_ns(&self) -> u64 {
        self.hist.max_ns().unwrap_or(0).max(self.going_on_ns)
    }

    /// So many of 1,000 times it came no later, in nanoseconds. If it has not come at all, that is what it is late by now.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        self.hist.quantiles_ns([quantile]).map_or(self.going_on_ns, |[ns]| ns)
    }
}

impl Probe {
    /// Forks it: the process must have a single thread.
    pub fn start() -> Result<Self> {
        process::check_single_threaded()?;
        let (pipe, writer) = io::pipe().context("failed to make a pipe for the probe")?;
        // SAFETY: fcntl with F_SETFL takes no memory.
        unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        let (begun, parent) = (Instant::now(), process::pid());
        let pid = process::fork(|| match run(writer.as_raw_fd(), begun, parent) {
            Ok(()) => 0,
            Err(_) => 1,
        })
        .context("failed to fork the probe")?;
        Ok(Self { pid, pipe, begun, runs: 0, hist: Hist::default() })
    }

    /// Listens to it: to be called every minute at least, as nobody else keeps what it says.
    pub fn listen(&mut self) {
        let mut bytes = [0; 512 * MESSAGE];
        // The probe writes whole messages, and a pipe gives what it has.
        while let Ok(length @ 1..) = self.pipe.read(&mut bytes) {
            for message in bytes[..length].chunks_exact(MESSAGE) {
                self.hist.record(message.try_into().map_or(0, u64::from_ne_bytes));
                self.runs += 1;
            }
        }
    }

    /// How late it has come since the last time that this was asked.
    pub fn lateness(&mut self) -> Lateness {
        self.listen();
        let due = self.begun + PERIOD * (self.runs + 1);
        let going_on = Instant::now().saturating_duration_since(due);
        Lateness { hist: std::mem::take(&mut self.hist), going_on_ns: ns(going_on) }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: kill has no memory to go wrong with; the probe has not been waited for, so the PID is its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        process::wait(self.pid, 0);
    }
}

/// What the probe's process does, until its parent ends.
fn run(pipe: i32, begun: Instant, parent: u32) -> io::Result<()> {
    process::die_with(parent)?;
    Name::new(format_args!("lg-probe")).set();
    let pipe = process::keep_only(pipe)?;
    // SAFETY: `keep_only` returns an open descriptor that nothing else owns.
    let mut pipe = unsafe { File::from_raw_fd(pipe) };
    // The kernel would let a timer come up to 50 us late, to save a wake-up.
    // SAFETY: PR_SET_TIMERSLACK takes a number.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let mut due = begun;
    loop {
        due += PERIOD;
        // When it is late by more than a period, it is so for the next time, too.
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let late = Instant::now().saturating_duration_since(due);
        pipe.write_all(&ns(late).to_ne_bytes())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_come_is_late_too() {
        let mut lateness = Lateness { hist: Hist::of([1_000, 2_000]), going_on_ns: 5_000 };
        assert_eq!(lateness.max_ns(), 5_000);
        lateness.going_on_ns = 0;
        assert_eq!(lateness.max_ns(), 2_000);
        let starved = Lateness { hist: Hist::default(), going_on_ns: 7_000 };
        assert_eq!((starved.quantile_ns(0.99), starved.max_ns()), (7_000, 7_000));
    }
}
