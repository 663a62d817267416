//! The load: guests that run on while tools look at them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::loadgen;
use crate::schedstat::times_on_cpu;
use crate::signal::interrupt;

/// Running guests of one vCPU each. They end when dropped, or by themselves if the bench does not come to that.
pub struct Guests {
    child: Child,
    /// Who has no reader any more ends.
    stdout: BufReader<ChildStdout>,
    vcpus: Vec<PathBuf>,
}

impl Guests {
    /// Starts so many, and returns when they run. `tool` is one of those built beside loadgen.
    pub fn start(tool: &str, number: usize, args: &[&str], deadline: Duration) -> Result<Self> {
        let mut child = loadgen::command(tool)
            .args(["--vms", &number.to_string()])
            .args(["--duration", &deadline.as_secs().to_string()])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start loadgen")?;
        let stdout = child.stdout.take().context("loadgen has no standard output")?;
        let mut guests = Self { child, stdout: BufReader::new(stdout), vcpus: vec![] };
        // Its only line before the end.
        let mut said = String::new();
        guests.stdout.read_line(&mut said).context("failed to read what loadgen says")?;
        guests.vcpus = guests.processes()?;
        let found = guests.vcpus.len();
        ensure!(found == number, "{found} of {number} guests run; loadgen says: {said}");
        Ok(guests)
    }

    /// The guests' processes; their first threads are the vCPUs. Children that are no guests have other names.
    fn processes(&self) -> Result<Vec<PathBuf>> {
        let pid = self.child.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children =
            fs::read_to_string(&path).with_context(|| format!("failed to read `{path}`"))?;
        let directories = children.split_whitespace().map(|pid| PathBuf::from("/proc").join(pid));
        let is_guest = |directory: &PathBuf| {
            let name = fs::read_to_string(directory.join("comm"));
            name.is_ok_and(|name| name.starts_with("loadgen-"))
        };
        Ok(directories.filter(is_guest).collect())
    }

    /// How many turns on a CPU the vCPUs have within so much time, each between a switch to it and one away from it.
    pub fn turns_within(&self, time: Duration) -> Result<u64> {
        let before = self.turns()?;
        sleep(time);
        Ok(self.turns()? - before)
    }

    fn turns(&self) -> Result<u64> {
        self.vcpus.iter().map(times_on_cpu).sum()
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        interrupt(&self.child);
        drop(self.child.wait());
    }
}
