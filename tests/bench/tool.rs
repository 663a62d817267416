//! A tool under test: started, waited for until it is attached, and killed when it is done with.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::fdinfo::Holdings;
use crate::links;

/// Between two looks at the links.
const POLL: Duration = Duration::from_micros(100);
/// A tool that has not attached anything new for so long has attached all.
const SETTLED: Duration = Duration::from_millis(300);
/// A tool that is not attached by then never will be.
const PATIENCE: Duration = Duration::from_secs(10);

/// A command line, and how many links it makes.
pub struct Tool {
    program: String,
    args: Vec<String>,
    links: usize,
}

/// A tool that is attached. Killed on drop.
pub struct Running {
    /// The process.
    pub child: Child,
    links: Vec<u32>,
    /// From just before fork and exec until its last link was there.
    pub attached_after: Duration,
}

impl Tool {
    /// Starts the tool once to see how many links it makes.
    pub fn new(program: &str, args: &[&str]) -> Result<Self> {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut tool = Self { program: program.to_owned(), args, links: 1 };
        let running = tool.start()?;
        sleep(SETTLED);
        tool.links = running.holdings()?.links.len();
        Ok(tool)
    }

    /// Returns when the tool is attached.
    pub fn start(&self) -> Result<Running> {
        self.start_to(Stdio::null())
    }

    /// The same, with its output to go there.
    pub fn start_to(&self, stdout: Stdio) -> Result<Running> {
        let newest_before = links::newest();
        let start = Instant::now();
        let child = Command::new(&self.program)
            .args(&self.args)
            .stdout(stdout)
            .spawn()
            .with_context(|| format!("failed to start `{}`", self.program))?;
        let mut running = Running { child, links: vec![], attached_after: Duration::ZERO };
        loop {
            // Others may make links too: whose they are is asked only when there are enough.
            if links::after(newest_before).count() >= self.links {
                running.attached_after = start.elapsed();
                running.links = running.holdings()?.links;
                if running.links.len() >= self.links {
                    return Ok(running);
                }
            }
            if let Some(status) = running.child.try_wait()? {
                bail!("`{}` ended before it was attached: {status}", self.program);
            }
            if start.elapsed() > PATIENCE {
                bail!("`{}` does not attach", self.program);
            }
            sleep(POLL);
        }
    }
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it holds of BPF.
    pub fn holdings(&self) -> Result<Holdings> {
        Holdings::of(self.pid())
    }

    /// VmRSS and VmHWM, in KiB: its resident memory now and at its highest.
    pub fn resident_kib(&self) -> Result<(f64, f64)> {
        let path = format!("/proc/{}/status", self.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read `{path}`"))?;
        let field = |name| {
            let value = text.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().trim_end_matches(" kB").parse().ok()
        };
        field("VmRSS:").zip(field("VmHWM:")).with_context(|| format!("failed to parse `{path}`"))
    }
}

impl Drop for Running {
    /// The next measurement must not find it attached: the kernel may detach after the process has gone.
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        let start = Instant::now();
        while links::after(0).any(|id| self.links.contains(&id)) && start.elapsed() < PATIENCE {
            sleep(POLL);
        }
    }
}
