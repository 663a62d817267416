//! `loadgen check`: tells what this host can do, a line for each fact, or as JSON.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use loadgen::{Finding, Report};
use serde_json::{Map, Value, json};

/// Lines are no longer than this where that can be.
const COLUMNS: usize = 80;
/// Where the value begins, and the remedy that has a line of its own.
const VERDICT_COLUMNS: usize = 8;
const WHAT_COLUMNS: usize = 16;

/// Tells what this host can do for guests, and how many it has room for; changes nothing
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let report = Report::of_this_host();
    let text = match args.json {
        true => json(&report).to_string() + "\n",
        false => report.findings.iter().map(line).collect(),
    };
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("failed to write to standard output")?;
    report.cannot.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// A fact; its remedy beside it if there is room, else below.
fn line(finding: &Finding) -> String {
    let Finding { what, verdict, value, remedy, .. } = finding;
    let verdict = verdict.word();
    let fact = format!("{verdict:VERDICT_COLUMNS$}{what:WHAT_COLUMNS$}{value}");
    match remedy {
        None => fact + "\n",
        Some(remedy) if fact.len() + " -> ".len() + remedy.len() <= COLUMNS => {
            format!("{fact} -> {remedy}\n")
        }
        Some(remedy) => format!("{fact}\n{:VERDICT_COLUMNS$}-> {remedy}\n", ""),
    }
}

fn json(report: &Report) -> Value {
    let can_run_guests = ("can_run_guests".to_owned(), report.cannot.is_none().into());
    let findings = report.findings.iter().map(|finding| (finding.key.to_owned(), json!(finding)));
    [can_run_guests].into_iter().chain(findings).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use loadgen::Verdict;

    use super::*;

    fn finding(value: &str, remedy: Option<&str>) -> Finding {
        Finding {
            key: "ksm",
            what: "KSM",
            verdict: Verdict::Warn,
            value: value.to_owned(),
            remedy: remedy.map(str::to_owned),
            details: json!({"run": 0}),
        }
    }

    #[test]
    fn a_remedy_that_does_not_fit_has_its_own_line() {
        assert_eq!(line(&finding("off", None)), "warn    KSM             off\n");
        assert_eq!(line(&finding("off", Some("on"))), "warn    KSM             off -> on\n");
        let fits = "x".repeat(COLUMNS - 31);
        assert_eq!(line(&finding("off", Some(&fits))).len(), COLUMNS + 1);
        let long = fits + "x";
        let lines = format!("warn    KSM             off\n        -> {long}\n");
        assert_eq!(line(&finding("off", Some(&long))), lines);
    }

    #[test]
    fn json_has_a_key_for_each_fact() {
        let findings = vec![finding("off", Some("on"))];
        let expected = json!({
            "can_run_guests": true,
            "ksm": {"verdict": "warn", "value": "off", "remedy": "on", "run": 0},
        });
        assert_eq!(json(&Report { findings, cannot: None }), expected);
    }
}
