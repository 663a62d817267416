//! Reads the facts: /sys/kernel/mm/ksm for a while, then /proc/PID of the process that is asked about, or of all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use common::session::{Stop, host_cannot};
use common::vms::{self, Names};

use super::facts::{Attempts, Host, Memory, Merges, Process, Watched};
use super::numa;
use super::smaps;
use crate::sysfs::{Counter, State};
use crate::trace::{Tracer, Wanted};

/// How often pages_unshared is looked at.
const SAMPLE_PERIOD: Duration = Duration::from_millis(20);

/// Watches KSM for so long, or until a signal comes; not at all if it does not scan. Of attempts to merge, those of
/// process `pid` are told apart.
pub fn watch(length: Duration, stop: &Stop, pid: Option<i32>) -> Result<Watched> {
    let first = State::read()?;
    if !scans(&first) {
        return Ok(Watched { last: first.clone(), first, ..Watched::default() });
    }
    let mut object = MaybeUninit::uninit();
    let wanted = Wanted { processes: pid.is_some(), ..Wanted::default() };
    let tracer = Tracer::start(wanted, &mut object);
    let (first, started) = (State::read()?, Instant::now());
    let (mut last, mut unshared) = (first.clone(), Vec::new());
    let mut stopped = false;
    while !stopped && started.elapsed() < length {
        let until = Instant::now() + SAMPLE_PERIOD;
        stopped = stop.wait_until(Some(until.min(started + length)));
        last = State::read()?;
        unshared.push(last.get(Counter::PagesUnshared).map_or(0, |pages| pages.max(0) as u64));
    }
    Ok(Watched {
        first,
        last,
        length: started.elapsed(),
        unshared_mean: unshared.iter().sum::<u64>() as f64 / unshared.len().max(1) as f64,
        unshared_most: unshared.iter().copied().max().unwrap_or(0),
        merges: match tracer {
            Ok(tracer) => merges(&tracer, pid)?,
            // The rest can be told without.
            Err(err) => Merges::Untold(Some(format!("{err:#}"))),
        },
    })
}

fn scans(state: &State) -> bool {
    let runs = state.get(Counter::Run).is_some_and(|run| run & 1 == 1);
    runs && state.get(Counter::PagesToScan) != Some(0)
}

fn merges(tracer: &Tracer<'_>, pid: Option<i32>) -> Result<Merges> {
    let known = tracer.what_is_known();
    if !known.merges {
        return Ok(Merges::Untold(None));
    }
    let (merged, errors) = tracer.merges()?;
    let mut of_process = None;
    if let (Some(pid), true) = (pid, known.owners) {
        let events = tracer.events()?.into_iter().filter(|(process, _)| process.pid == pid);
        of_process = Some(events.fold((0, 0), |(merged, failed), (_, events)| {
            (merged + events.merged + events.zero_merged, failed + events.merge_failed)
        }));
    }
    Ok(Merges::Seen(Attempts { merged, errors, of_process }))
}

/// What reading other users' processes needs: ksm_stat the one, smaps the other.
const FOR_OTHERS: &str = "CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE";

/// Reads what /proc says of a process. `by_node` asks for the NUMA nodes of its memory.
pub fn process(pid: i32, by_node: bool) -> Result<Process> {
    let memory = match memory(pid, by_node) {
        Ok(Some(memory)) => memory,
        Ok(None) => {
            return Err(anyhow!("process {pid} has no memory: it has ended or is a kernel thread"));
        }
        Err(err) if has_ended(&err) => return Err(anyhow!("process {pid} has ended")),
        Err(err) if err.kind() == ErrorKind::PermissionDenied => {
            return Err(host_cannot(format!(
                "not allowed to read `/proc/{pid}/smaps`: run as root, or with {FOR_OTHERS}"
            )));
        }
        Err(err) => return Err(err).context(format!("failed to read `/proc/{pid}/smaps`")),
    };
    let stat = ksm_stat(pid)?;
    let merging = fs::read_to_string(format!("/proc/{pid}/ksm_merging_pages")).ok();
    Ok(Process {
        pid,
        name: Names::default().name(pid, 0, "").to_owned(),
        memory,
        scanned_pages: number(&stat, "ksm_rmap_items"),
        merged_pages: merging.and_then(|text| text.trim().parse().ok()),
        zero_pages: number(&stat, "ksm_zero_pages"),
        merge_any: word(&stat, "ksm_merge_any:").map(|word| word == "yes"),
    })
}

/// Reads it of all processes.
pub fn host(by_node: bool) -> Result<Host> {
    let mut host = Host::default();
    for pid in vms::processes() {
        // Walking page tables takes time: where the kernel says that there is nothing (Linux 6.14), that is believed.
        let stat = ksm_stat(pid)?;
        let memory = match word(&stat, "ksm_mergeable:") {
            Some("no") => Memory::default(),
            _ => match memory(pid, by_node) {
                Ok(memory) => memory.unwrap_or_default(),
                Err(err) if has_ended(&err) => continue,
                Err(err) if err.kind() == ErrorKind::PermissionDenied => {
                    return Err(host_cannot(format!(
                        "not allowed to read other processes' smaps: run as root, or with {FOR_OTHERS}"
                    )));
                }
                Err(err) => return Err(err).context(format!("failed to read `/proc/{pid}/smaps`")),
            },
        };
        host.processes += 1;
        if memory.mergeable.mappings > 0 {
            host.mergeable_processes += 1;
            host.memory.add(memory);
        }
    }
    Ok(host)
}

/// What KSM's books say of a process; nothing before Linux 6.1, or if it has ended.
fn ksm_stat(pid: i32) -> Result<String> {
    let path = format!("/proc/{pid}/ksm_stat");
    match fs::read_to_string(&path) {
        Err(err) if err.kind() == ErrorKind::PermissionDenied => Err(host_cannot(format!(
            "not allowed to read `{path}`: run as root, or with {FOR_OTHERS}"
        ))),
        read => Ok(read.unwrap_or_default()),
    }
}

/// A process's memory; `None` if it has none.
fn memory(pid: i32, by_node: bool) -> io::Result<Option<Memory>> {
    // Bytes: a file may have any name.
    let smaps = fs::read(format!("/proc/{pid}/smaps"))?;
    if smaps.is_empty() {
        return Ok(None);
    }
    let mut mappings = smaps::mappings(&String::from_utf8_lossy(&smaps));
    if by_node {
        mappings.memory.node_pages = node_pages(pid, &mappings.mergeable_starts)?;
    }
    Ok(Some(mappings.memory))
}

fn node_pages(pid: i32, starts: &BTreeSet<u64>) -> io::Result<BTreeMap<u32, u64>> {
    if starts.is_empty() {
        return Ok(BTreeMap::new());
    }
    let numa_maps = fs::read(format!("/proc/{pid}/numa_maps"))?;
    Ok(numa::node_pages(&String::from_utf8_lossy(&numa_maps), starts))
}

/// True if the process was gone before its file was opened, or before it was read.
fn has_ended(err: &io::Error) -> bool {
    err.kind() == ErrorKind::NotFound || err.raw_os_error() == Some(libc::ESRCH)
}

fn word<'a>(stat: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = stat.lines().map(|line| line.split_whitespace());
    lines.find_map(|mut words| (words.next() == Some(key)).then(|| words.next()).flatten())
}

fn number(stat: &str, key: &str) -> Option<u64> {
    word(stat, key)?.parse::<i64>().ok().map(|number| u64::try_from(number).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ksm_stat_is_read_on_every_kernel() {
        let stat =
            "ksm_rmap_items 1009\nksm_zero_pages -1\nksm_merge_any: no\nksm_mergeable: yes\n";
        assert_eq!(number(stat, "ksm_rmap_items"), Some(1_009));
        assert_eq!(number(stat, "ksm_zero_pages"), Some(0));
        assert_eq!(word(stat, "ksm_merge_any:"), Some("no"));
        assert_eq!(word(stat, "ksm_mergeable:"), Some("yes"));
        assert_eq!(number("ksm_rmap_items 7\n", "ksm_zero_pages"), None);
        assert_eq!(number("", "ksm_rmap_items"), None);
    }

    #[test]
    fn this_process_has_memory() {
        let process = process(std::process::id() as i32, false).unwrap();
        assert!(process.memory.unasked.used_bytes > 0, "{process:?}");
        assert_eq!(process.memory.mergeable.mappings, 0, "{process:?}");
    }

    #[test]
    fn a_process_that_is_gone_is_told() {
        let gone = process(i32::MAX, false).unwrap_err().to_string();
        assert_eq!(gone, format!("process {} has ended", i32::MAX));
    }
}
