//! How many exits a second kvmexits survives: as many guests as there are CPUs do nothing but leave guest mode, and
//! afterwards know how often they did.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::exits::{Kind, Peers};
use crate::signal::interrupt;
use crate::storm;

/// How long a storm is to last.
const STORM: Duration = Duration::from_secs(4);
/// A tool that has not printed its headings by then never will.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// What the exits may be called, in the order in which to look: what is shown one by one is either one that the VMM
/// answers or, if there are such, one from guest mode with that inside.
fn names_of(reason: &str) -> &'static [&'static [&'static str]] {
    match reason {
        "cpuid" => &[&["CPUID", "cpuid"]],
        _ => &[&["KVM_EXIT_IO"], &["IO_INSTRUCTION", "io"]],
    }
}

const VARIANTS: [(&str, &[&str]); 3] = [
    ("ours", &["--csv"]),
    ("by vcpu", &["--by", "vcpu,reason", "--csv"]),
    ("--slower 1", &["--slower", "1", "--csv"]),
];

/// Prints how many exits were counted of how many there were. False if any were lost: not to be shown one by one is
/// no loss, as the kernel counts those, too.
pub fn survives(program: &str, kind: &Kind, peers: &Peers<'_>) -> Result<bool> {
    println!(
        "\n{:<24}{:>12}{:>11}{:>11}{:>9}{:>13}",
        format!("a storm of {}", kind.reason),
        "exits/s",
        "exits",
        "counted",
        "lost",
        "not shown"
    );
    let guests = thread::available_parallelism()?.get();
    let one = storm::rage(program, guests, kind.reason, peers.rounds.exits)?;
    let count = match peers.rounds.lasting {
        true => (STORM.as_nanos() as f64 / one.ns_per_exit()) as u64,
        false => peers.rounds.exits,
    };
    let mut good = true;
    for (name, args) in VARIANTS {
        let counting = Counting::start(program, args)?;
        let storm = storm::rage(program, guests, kind.reason, count)?;
        let ended = counting.end()?;
        let (counted, lost, not_shown) =
            (ended.counted(kind.reason)?, ended.warned_of("lost "), ended.warned_of("not shown "));
        let rate = match peers.rounds.lasting {
            true => format!("{:.0}", storm.exits as f64 / storm.wall_s),
            false => "-".to_owned(),
        };
        println!("{name:<24}{rate:>12}{:>11}{counted:>11}{lost:>9}{not_shown:>13}", storm.exits);
        good &= lost == 0 && counted + not_shown >= storm.exits;
    }
    Ok(good)
}

/// A running kvmexits that writes to files, as a pipe could become full.
struct Counting {
    child: Child,
    files: [PathBuf; 2],
}

/// What it has written.
struct Ended {
    stdout: String,
    stderr: String,
}

impl Counting {
    /// Returns when it counts.
    fn start(program: &str, args: &[&str]) -> Result<Self> {
        let id = std::process::id();
        let files =
            ["out", "err"].map(|name| std::env::temp_dir().join(format!("bench-{id}.{name}")));
        let [stdout, stderr] = &files;
        let child = Command::new(program)
            .args(args)
            .stdout(File::create(stdout)?)
            .stderr(File::create(stderr)?)
            .spawn()
            .with_context(|| format!("failed to start `{program}`"))?;
        let counting = Self { child, files };
        let start = Instant::now();
        while fs::metadata(&counting.files[0])?.len() == 0 {
            ensure!(start.elapsed() < PATIENCE, "`{program} {}` does not begin", args.join(" "));
            sleep(POLL);
        }
        Ok(counting)
    }

    fn end(mut self) -> Result<Ended> {
        interrupt(&self.child);
        let status = self.child.wait()?;
        let [stdout, stderr] = &self.files;
        let (stdout, stderr) = (fs::read_to_string(stdout)?, fs::read_to_string(stderr)?);
        ensure!(status.success(), "kvmexits ended badly, {status}: {stderr}");
        Ok(Ended { stdout, stderr })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        self.files.iter().for_each(|file| drop(fs::remove_file(file)));
    }
}

impl Ended {
    /// The exits of the storm: the numbers in a table, or so many lines.
    fn counted(&self, reason: &str) -> Result<u64> {
        let mut by_name: HashMap<String, u64> = HashMap::new();
        for row in csv::Reader::from_reader(self.stdout.as_bytes()).deserialize() {
            let row: HashMap<String, String> = row.context("failed to parse what kvmexits says")?;
            let count = row.get("count").map_or(Ok(1), |count| count.parse())?;
            *by_name.entry(row["reason"].clone()).or_default() += count;
        }
        let named =
            |names: &&[&str]| -> u64 { names.iter().filter_map(|&name| by_name.get(name)).sum() };
        Ok(names_of(reason).iter().map(named).find(|&count| count > 0).unwrap_or_default())
    }

    /// The number in each warning that begins so.
    fn warned_of(&self, what: &str) -> u64 {
        let number = |line: &str| {
            let rest = line.strip_prefix("kvmexits: ")?.strip_prefix(what)?;
            rest.split(' ').next()?.parse::<u64>().ok()
        };
        self.stderr.lines().filter_map(number).sum()
    }
}
