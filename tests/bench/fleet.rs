//! What vcpulag needs when there are many vCPUs: the same figures with none and with all of them.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::columns::{self, medians};
use crate::guests::Guests;
use crate::samples::Samples;
use crate::schedstat::on_cpu_ns;
use crate::signal::interrupt;
use crate::tool::Tool;

const ROUNDS: u32 = 7;
/// The interval: some of the looks that are taken at all vCPUs each second.
const INTERVAL: Duration = Duration::from_secs(3);

const WHATS: [&str; 6] = [
    "exec to first line, ms",
    "in the tool itself, ms/s",
    "SIGINT to last row, ms",
    "resident (VmRSS), KiB",
    "at most (VmHWM), KiB",
    "  BPF in the kernel, KiB",
];

/// In the order of `WHATS`.
type Figures = [Samples; WHATS.len()];

/// Prints it. `csv` prints CSV when it is interrupted; `start` starts so many guests as it is told.
pub fn print(csv: &Tool, vcpus: usize, start: impl Fn(usize) -> Result<Guests>) -> Result<()> {
    let without = measure(csv, 0)?;
    let with = {
        let _guests = start(vcpus)?;
        measure(csv, vcpus)?
    };
    columns::print_head("vCPUs on this host", &["none", &vcpus.to_string()]);
    for (what, figures) in WHATS.iter().zip(without.into_iter().zip(with)) {
        columns::print(what, &medians(&<[Samples; 2]>::from(figures)));
    }
    Ok(())
}

fn measure(csv: &Tool, vcpus: usize) -> Result<Figures> {
    let mut all = Figures::default();
    for _ in 0..ROUNDS {
        for (samples, figure) in all.iter_mut().zip(once(csv, vcpus)?) {
            samples.push(figure);
        }
    }
    Ok(all)
}

/// One run: an interval, ended by SIGINT.
fn once(csv: &Tool, vcpus: usize) -> Result<[f64; WHATS.len()]> {
    let start = Instant::now();
    let mut running = csv.start_to(Stdio::piped())?;
    let stdout = running.child.stdout.take().context("vcpulag has no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    // The headings come when all is attached, and who is a vCPU is known.
    lines.next().context("vcpulag prints no headings")??;
    let begun = start.elapsed();

    let before_ns = on_cpu_ns(running.pid())?;
    sleep(INTERVAL);
    let own_ns = on_cpu_ns(running.pid())? - before_ns;
    let kernel_kib = running.holdings()?.kernel_bytes as f64 / 1024.0;

    let end = Instant::now();
    interrupt(&running.child);
    let mut rows = 0;
    let mut last = Duration::ZERO;
    let mut resident = running.resident_kib()?;
    for line in lines {
        line.context("failed to read what vcpulag says")?;
        last = end.elapsed();
        rows += 1;
        // Until it has printed all it is there; afterwards this cannot be asked any more.
        if rows == 1 {
            resident = running.resident_kib().unwrap_or(resident);
        }
    }
    ensure!(rows >= vcpus, "vcpulag has shown {rows} of {vcpus} vCPUs");
    let ms = |time: Duration| 1e3 * time.as_secs_f64();
    let own_ms = own_ns / 1e6 / INTERVAL.as_secs_f64();
    Ok([ms(begun), own_ms, ms(last), resident.0, resident.1, kernel_kib])
}
