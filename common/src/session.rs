//! How a program begins and ends: one sentence for what went wrong, the exit status that goes with it, the
//! signals that end a run, and ticks that do not drift.

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Exit status when events were lost and `--strict` was given.
pub const EXIT_LOST: u8 = 4;

/// A failure whose exit status is not the plain 1.
#[derive(Debug)]
pub enum Failure {
    /// The user asked for something that cannot be: exit status 2.
    Usage(String),
    /// This host cannot do it; the sentence names the cause and the remedy: exit status 3.
    HostCannot(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(sentence) | Self::HostCannot(sentence) => f.write_str(sentence),
        }
    }
}

impl std::error::Error for Failure {}

/// A usage error (exit status 2) as an [`anyhow::Error`].
pub fn usage(sentence: impl Into<String>) -> anyhow::Error {
    Failure::Usage(sentence.into()).into()
}

/// "This host cannot" (exit status 3) as an [`anyhow::Error`].
pub fn host_cannot(sentence: impl Into<String>) -> anyhow::Error {
    Failure::HostCannot(sentence.into()).into()
}

/// Parses the command line, calls `run`, and turns what comes back into an exit status. Whatever goes wrong is
/// told in one sentence on standard error; a pipe closed by its reader is no error at all.
pub fn main<A: clap::Parser>(run: impl FnOnce(A) -> Result<ExitCode>) -> ExitCode {
    let name = A::command().get_name().to_owned();
    let args = match A::try_parse() {
        Ok(args) => args,
        Err(err) if !err.use_stderr() => err.exit(),
        Err(err) => {
            complain(&name, &usage_sentence(&err));
            return ExitCode::from(2);
        }
    };
    match run(args) {
        Ok(code) => code,
        Err(err) if is_closed_pipe(&err) => ExitCode::SUCCESS,
        Err(err) => {
            complain(&name, &format!("{err:#}"));
            match err.downcast_ref() {
                Some(Failure::Usage(_)) => ExitCode::from(2),
                Some(Failure::HostCannot(_)) => ExitCode::from(3),
                None => ExitCode::FAILURE,
            }
        }
    }
}

/// Writes a sentence to standard error, if that can be written to: no reason to fail in another way.
pub fn complain(name: &str, sentence: &str) {
    _ = writeln!(io::stderr(), "{name}: {sentence}");
}

/// The first paragraph of what clap would print, as one line: the rest repeats `--help`.
fn usage_sentence(err: &clap::Error) -> String {
    let text = err.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let sentence = paragraph.strip_prefix("error: ").unwrap_or(paragraph);
    sentence.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// True if the error is, at its root, a write to a pipe whose reader has gone.
fn is_closed_pipe(err: &anyhow::Error) -> bool {
    err.chain().any(|cause| {
        let io_error = cause.downcast_ref::<io::Error>();
        io_error.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// True if this process has been told to ignore a signal, as nohup(1) does with SIGHUP.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action this only writes the current one; all zeroes is a valid sigaction.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// The request to end, made by SIGINT, SIGTERM or SIGHUP.
pub struct Stop(Receiver<()>);

impl Stop {
    /// Installs the handlers; this starts a thread. To be called once. If SIGHUP is ignored, as nohup(1) has it, it
    /// stays so; SIGINT does not, as a shell script's `command &` ignores it without having been asked.
    pub fn install() -> Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let nohup = is_ignored(libc::SIGHUP);
        // The receiver may be gone when a second signal comes: then the program is ending anyway.
        ctrlc::set_handler(move || _ = sender.send(()))
            .context("failed to install signal handlers")?;
        if nohup {
            // SAFETY: ignoring a signal runs no code.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        }
        Ok(Self(receiver))
    }

    /// Waits until `deadline` (for ever if there is none); true if a signal came first.
    pub fn wait_until(&self, deadline: Option<Instant>) -> bool {
        let Some(deadline) = deadline else {
            return self.0.recv().is_ok();
        };
        let left = deadline.saturating_duration_since(Instant::now());
        self.0.recv_timeout(left) != Err(RecvTimeoutError::Timeout)
    }
}

/// When the figures of an interval are due: multiples of the interval since the start, so that ticks do not drift.
pub struct Ticker {
    start: Instant,
    interval: Option<Duration>,
    left: Option<u64>,
    end: Option<Instant>,
}

impl Ticker {
    /// Without an interval there is one tick, at the end. `count` limits the ticks, `duration` the whole run.
    pub fn new(interval: Option<Duration>, count: Option<u64>, duration: Option<Duration>) -> Self {
        let start = Instant::now();
        Self { start, interval, left: count, end: duration.map(|d| start + d) }
    }

    /// Waits for the next tick. False if it is the last one: the count or the duration is over, or a signal came.
    pub fn wait(&mut self, stop: &Stop) -> bool {
        let deadline = self.deadline();
        let stopped = stop.wait_until(deadline);
        self.tick(stopped)
    }

    /// The same, but calls `work` every so often meanwhile, and once more at the end.
    pub fn wait_working(
        &mut self,
        stop: &Stop,
        period: Duration,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<bool> {
        let deadline = self.deadline();
        loop {
            let pause = Instant::now() + period;
            let until = deadline.map_or(pause, |deadline| deadline.min(pause));
            let stopped = stop.wait_until(Some(until));
            work()?;
            if stopped || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(self.tick(stopped));
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let tick = self.interval.map(|interval| self.next_tick(interval, Instant::now()));
        [tick, self.end].into_iter().flatten().min()
    }

    fn tick(&mut self, stopped: bool) -> bool {
        self.left = self.left.map(|left| left.saturating_sub(1));
        let over = self.end.is_some_and(|end| Instant::now() >= end);
        !stopped && !over && self.left != Some(0)
    }

    /// The first multiple of the interval after `now`: ticks missed by a starved process are not made up for.
    fn next_tick(&self, interval: Duration, now: Instant) -> Instant {
        let past =
            now.saturating_duration_since(self.start).as_nanos() / interval.as_nanos().max(1);
        let nanos = interval.as_nanos().saturating_mul(past + 1);
        self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_multiples_of_the_interval_since_the_start() {
        let second = Duration::from_secs(1);
        let ticker = Ticker::new(Some(second), None, None);
        let start = ticker.start;
        assert_eq!(ticker.next_tick(second, start), start + second);
        let late = start + Duration::from_millis(1_007);
        assert_eq!(ticker.next_tick(second, late), start + 2 * second);
        let starved = start + Duration::from_millis(5_500);
        assert_eq!(ticker.next_tick(second, starved), start + 6 * second);
    }

    #[test]
    fn a_closed_pipe_is_recognised_under_context() {
        let pipe: anyhow::Error = io::Error::from(io::ErrorKind::BrokenPipe).into();
        assert!(is_closed_pipe(&pipe.context("failed to write the histogram")));
        assert!(!is_closed_pipe(&anyhow::anyhow!("something else")));
    }
}
