//! `ksmstat --why`: why does KSM merge nothing, or not more? Reads once what stands still, and for a while what moves,
//! decides what hinders it, and answers in sentences, each with the fact that it rests on.

mod causes;
mod facts;
mod numa;
mod read;
mod report;
mod scan;
mod sentences;
mod smaps;
#[cfg(test)]
mod tests;
mod words;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use common::args::TaskFilter;
use common::session::Stop;
use jiff::Timestamp;

use crate::sysfs::{self, Counter};
use facts::Facts;

/// How long KSM is watched if nobody says: at its default settings ksmd scans 50 batches meanwhile.
const WATCH: Duration = Duration::from_secs(1);

/// Answers for the process or VM that is asked about, or else for all.
pub fn run(
    out: &mut dyn Write,
    filter: &TaskFilter,
    duration: Option<Duration>,
    json: bool,
) -> Result<()> {
    let facts = read(filter, duration.unwrap_or(WATCH))?;
    match json {
        true => report::write_json(out, Timestamp::now(), &facts)?,
        false => report::write_text(out, &facts)?,
    }
    Ok(())
}

fn read(filter: &TaskFilter, length: Duration) -> Result<Facts> {
    let pid = filter.pid.or(filter.vm.as_ref().map(|vm| vm.pid));
    let mut facts = Facts { page_bytes: crate::page_bytes(), ..Facts::default() };
    if Path::new(sysfs::DIRECTORY).exists() {
        let stop = Stop::install()?;
        facts.ksm = Some(read::watch(length, &stop, pid)?);
    }
    let across_nodes = facts.ksm.as_ref().and_then(|ksm| ksm.known(Counter::MergeAcrossNodes));
    let by_node = across_nodes == Some(0);
    facts.process = pid.map(|pid| read::process(pid, by_node)).transpose()?;
    if pid.is_none() || by_node {
        facts.host = Some(read::host(by_node)?);
    }
    Ok(facts)
}
