//! An answer as text or JSON. Pure.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use common::output::{self, Field};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::causes::causes;
use super::facts::Facts;
use super::sentences::{self, Told};
use crate::sysfs::Counter;

/// Writes the answer in sentences, each on a line of its own or more.
pub fn write_text(out: &mut dyn Write, facts: &Facts) -> Result<()> {
    let causes = causes(facts);
    let told = causes.iter().map(|cause| sentences::told(cause, facts));
    let told = told.chain(sentences::remarks(facts, &causes)).map(|told| told.sentence);
    for sentence in [sentences::merged(facts)].into_iter().chain(told) {
        let words: Vec<String> = sentence.split(' ').map(str::to_owned).collect();
        output::write_words(out, &words)?;
    }
    Ok(())
}

/// Writes the answer as one JSON object on a line.
pub fn write_json(out: &mut dyn Write, end: Timestamp, facts: &Facts) -> Result<()> {
    let causes = causes(facts);
    let told = causes.iter().map(|cause| sentences::told(cause, facts));
    let length = facts.ksm.as_ref().map_or(Duration::ZERO, |ksm| ksm.length);
    let mut fields: Vec<Field> = output::Interval { end, length }.fields().into();
    if let Some(process) = &facts.process {
        fields.extend([("pid", process.pid.into()), ("name", process.name.as_str().into())]);
        fields.push(("merged_pages", process.merged_pages.into()));
    }
    let count = |counter| facts.ksm.as_ref().map(|ksm| ksm.count(counter)).into();
    fields.extend([
        ("pages_shared", count(Counter::PagesShared)),
        ("pages_sharing", count(Counter::PagesSharing)),
        ("sentence", sentences::merged(facts).into()),
        ("causes", told.map(|told| object("cause", told)).collect()),
    ]);
    let remarks = sentences::remarks(facts, &causes).into_iter();
    fields.push(("remarks", remarks.map(|told| object("remark", told)).collect()));
    output::write_json_line(out, fields)
}

fn object(kind: &'static str, told: Told) -> Value {
    let facts: Map<String, Value> =
        told.facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let members =
        [(kind, told.id.into()), ("facts", facts.into()), ("sentence", told.sentence.into())];
    Value::Object(members.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
}
