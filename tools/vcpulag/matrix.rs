//! The matrix of victims and culprits: who waited, who ran meanwhile, and the other way round.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::Result;
use common::output::{Field, printable, short_duration};

use crate::losses::Losses;
use crate::report::{CULPRITS, NamedRow};
use crate::rows::{Culprit, Kind};

/// A pair's columns, after the interval's.
pub const COLUMNS: [&str; 7] = ["pid", "victim", "culprit_pid", "culprit", "kind", "ns", "lost"];

/// The width of each of the matrix's two parties, with the space after it.
const PARTY: usize = 25;

/// A row, one of its culprits, that one's name, and the time.
type Pair<'a> = (&'a NamedRow, &'a Culprit, &'a str, u64);

/// Those with the most time first.
fn pairs(rows: &[NamedRow]) -> Vec<Pair<'_>> {
    let pairs = rows.iter().flat_map(|row| {
        let culprits = row.row.culprits.iter().zip(&row.culprits);
        culprits.map(move |((culprit, ns), name)| (row, culprit, name.as_str(), *ns))
    });
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort_by_key(|(.., ns)| Reverse(*ns));
    pairs
}

/// A row for each pair, for CSV and JSON.
pub fn fields(rows: &[NamedRow], losses: &Losses) -> impl Iterator<Item = [Field; 7]> {
    let lost = losses.lost();
    pairs(rows).into_iter().map(move |(row, culprit, name, ns)| {
        [
            ("pid", row.row.vm.pid.into()),
            ("victim", row.title().into()),
            ("culprit_pid", culprit.pid.into()),
            ("culprit", name.into()),
            ("kind", culprit.kind.name().into()),
            ("ns", ns.into()),
            ("lost", lost.into()),
        ]
    })
}

/// Both sides, of each the `top` with the most time, in an interval of so many seconds.
pub fn write(out: &mut dyn Write, rows: &[NamedRow], top: usize, seconds: f64) -> Result<()> {
    let (mut victims, mut culprits) = (Groups::default(), Groups::default());
    for (row, culprit, name, ns) in pairs(rows) {
        victims.add(&row.title(), name, ns);
        // Each VM is itself to its own vCPUs only.
        let name = if culprit.kind == Kind::Sibling { &row.row.name } else { name };
        culprits.add(name, &row.title(), ns);
    }
    for row in rows {
        victims.add(&row.title(), "not known who", row.row.times.unknown_ns());
    }
    victims.write(out, ["WHO WAITED", "WHO RAN"], top, seconds)?;
    culprits.write(out, ["WHO RAN", "WHO WAITED"], top, seconds)
}

/// One side of the matrix: times by one party, and each of these by the other.
#[derive(Default)]
struct Groups(BTreeMap<String, BTreeMap<String, u64>>);

impl Groups {
    fn add(&mut self, one: &str, other: &str, ns: u64) {
        if ns > 0 {
            let group = self.0.entry(one.to_owned()).or_default();
            *group.entry(other.to_owned()).or_default() += ns;
        }
    }

    /// The `top` that have the most time, and of each the [`CULPRITS`] that have.
    fn write(self, out: &mut dyn Write, heads: [&str; 2], top: usize, seconds: f64) -> Result<()> {
        let [one, other] = heads;
        writeln!(out, "\n{one:<PARTY$}{other:<PARTY$}{:>7} {:>9}", "TIME", "OF A CPU")?;
        let mut line = |one: &str, other: &str, ns: u64| -> io::Result<()> {
            let share = ns as f64 / 1e7 / seconds;
            write_name(out, &printable(one), 0)?;
            write_name(out, &printable(other), PARTY)?;
            writeln!(out, "{:>7} {share:>8.1}%", short_duration(ns))
        };
        let sum = |group: &BTreeMap<String, u64>| group.values().sum::<u64>();
        let mut groups: Vec<_> = self.0.into_iter().collect();
        groups.sort_by_key(|(_, group)| Reverse(sum(group)));
        let more = groups.len().saturating_sub(top);
        for (one, group) in groups.into_iter().take(top) {
            let all = sum(&group);
            let mut others: Vec<_> = group.into_iter().collect();
            others.sort_by_key(|(_, ns)| Reverse(*ns));
            let count = others.len();
            // Whoever is alone needs no sum.
            let (mut title, mut shown) = (one.as_str(), 0);
            if count > 1 {
                line(title, &format!("{count} together"), all)?;
                title = "";
            }
            for (other, ns) in others.into_iter().take(CULPRITS) {
                line(title, &other, ns)?;
                (title, shown) = ("", shown + ns);
            }
            if count > CULPRITS {
                line("", &format!("{} more", count - CULPRITS), all - shown)?;
            }
        }
        if more > 0 {
            writeln!(out, "... and {more} more (--top)")?;
        }
        Ok(())
    }
}

/// Writes a column of the matrix that begins after `indent` others; what does not fit has a line of its own.
fn write_name(out: &mut dyn Write, name: &str, indent: usize) -> io::Result<()> {
    match name.chars().count() < PARTY {
        true => write!(out, "{name:<PARTY$}"),
        false => write!(out, "{name}\n{:<1$}", "", indent + PARTY),
    }
}
