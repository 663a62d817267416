//! From ksmstat's figures to text, CSV and JSON. Pure: nothing here asks the kernel or the host.

use std::io::{self, Write};

use crate::sysfs::{Counter, Group, State};

const GROUPS: [(Group, &str); 5] = [
    (Group::Merged, "merged"),
    (Group::Unmerged, "not merged"),
    (Group::Scanned, "scanned"),
    (Group::Setting, "settings"),
    (Group::Advisor, "the advisor's settings"),
];

/// Writes every counter with its meaning.
pub fn state(out: &mut dyn Write, state: &State) -> io::Result<()> {
    for (group, title) in GROUPS {
        writeln!(out, "{title}:")?;
        for counter in Counter::ALL {
            let facts = counter.facts();
            if facts.group != group {
                continue;
            }
            let number = state.get(counter).map(|number| number.to_string());
            let word = state.advisor_mode().filter(|_| counter == Counter::AdvisorMode);
            let value = match number.or(word.map(str::to_owned)) {
                Some(value) => format!("{value} {}", facts.unit.name()),
                None => format!("unknown: since Linux {}", facts.since),
            };
            writeln!(out, "  {:<34} {}", facts.name, value.trim_end())?;
            writeln!(out, "      {}", facts.meaning)?;
        }
    }
    Ok(())
}
