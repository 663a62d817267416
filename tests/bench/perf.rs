//! The peer: perf, recording every exit to a file.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::signal::interrupt;

/// What perf says when it records, if it was told to wait for a moment (-D) before.
const RECORDS: &str = "Events enabled";

/// perf, recording. Killed on drop.
pub struct Recording {
    child: Child,
    stderr: BufReader<ChildStderr>,
    file: PathBuf,
}

impl Recording {
    /// Starts perf with these arguments and returns when it records.
    pub fn start(args: &[&str]) -> Result<Self> {
        let file = std::env::temp_dir().join(format!("bench-{}.data", std::process::id()));
        let mut child = Command::new("perf")
            .args(args)
            .args(["-a", "-D", "1", "-o"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to start `perf`: install the package linux-perf")?;
        let stderr = child.stderr.take().context("perf has no standard error")?;
        let mut recording = Self { child, stderr: BufReader::new(stderr), file };
        let mut said = String::new();
        while !said.contains(RECORDS) {
            if recording.stderr.read_line(&mut said)? == 0 {
                bail!("`perf {}` does not record: {said}", args.join(" "));
            }
        }
        Ok(recording)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it. It must have recorded as many events.
    pub fn end(mut self, at_least: u64) -> Result<()> {
        interrupt(&self.child);
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        let samples = said.split(['(', ')']).find_map(|part| part.strip_suffix(" samples"));
        let samples: u64 = samples.and_then(|number| number.parse().ok()).unwrap_or_default();
        ensure!(samples >= at_least, "perf has recorded {samples} of {at_least} events: {said}");
        Ok(())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_file(&self.file));
    }
}
