//! `--churn`: passing time while guests come and go, and what came of it as text, JSON and columns.

use std::fmt;
use std::time::Instant;

use anyhow::Result;
use common::hist::Hist;
use common::output::{Field, short_duration};
use common::session::complain;
use loadgen::{Churned, Fleet, Truth};
use serde::Serialize;

use crate::signals::HeldBack;

/// A host that lets so many per cent of those go that should have gone keeps the rate, but for the last of them.
const KEPT_PERCENT: u64 = 95;

/// Passes time until then, or until a signal comes: true if one has. `left` is given what each vCPU of a guest did that
/// has been replaced meanwhile.
pub(crate) fn pass_time(
    until: Instant,
    fleet: &mut Fleet,
    held_back: &HeldBack,
    mut left: impl FnMut(Truth) -> Result<()>,
) -> Result<bool> {
    loop {
        let has_come = match fleet.churn(&mut left)? {
            None => held_back.wait_until(until),
            // A guest that has left is replaced at once.
            Some(next) => held_back.wait_for_child_until(until.min(next)),
        };
        if has_come || Instant::now() >= until {
            return Ok(has_come);
        }
    }
}

/// What came of it. The field names are those of the summary; those of columns begin with `churn_`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ChurnSummary {
    asked_per_s: f64,
    asked: u64,
    told: u64,
    stopped: u64,
    stopped_per_s: f64,
    stop_p50_ns: Option<u64>,
    stop_p99_ns: Option<u64>,
    leaving: u64,
    longest_leaving_ns: Option<u64>,
    created: u64,
    created_per_s: f64,
    create_p50_ns: Option<u64>,
    create_p99_ns: Option<u64>,
    coming: u64,
}

impl From<Churned> for ChurnSummary {
    fn from(churned: Churned) -> Self {
        let Churned { rate, time, asked, told, stopped, created, .. } = churned;
        let per_s = |guests: u64| guests as f64 / time.as_secs_f64().max(1e-9);
        let quantiles =
            |hist: &Hist| hist.quantiles_ns([0.5, 0.99]).map_or([None; 2], |q| q.map(Some));
        let ([stop_p50_ns, stop_p99_ns], [create_p50_ns, create_p99_ns]) =
            (quantiles(&stopped), quantiles(&created));
        let (stopped, created) = (stopped.count(), created.count());
        Self {
            asked_per_s: rate.per_second(),
            asked,
            told,
            stopped,
            stopped_per_s: per_s(stopped),
            stop_p50_ns,
            stop_p99_ns,
            leaving: churned.leaving,
            longest_leaving_ns: churned.longest_leaving_ns,
            created,
            created_per_s: per_s(created),
            create_p50_ns,
            create_p99_ns,
            coming: churned.coming,
        }
    }
}

impl ChurnSummary {
    /// Says so if the rate was not kept.
    pub(crate) fn complain(&self) {
        if self.told * 100 < self.asked * KEPT_PERCENT {
            let Self { asked_per_s, asked, told, .. } = self;
            complain(
                "loadgen",
                &format!(
                    "warning: --churn {asked_per_s}/s was not kept: only {told} of {asked} guests could be told to leave, \
                     the next one was still coming or going"
                ),
            );
        }
    }

    /// In words.
    pub(crate) fn parts(&self) -> Vec<String> {
        let each = |p50_ns: Option<u64>, p99_ns: Option<u64>| match (p50_ns, p99_ns) {
            (Some(p50), Some(p99)) => {
                format!(", p50 {} p99 {}", short_duration(p50), short_duration(p99))
            }
            _ => String::new(),
        };
        let Self { asked, stopped, stopped_per_s, created, created_per_s, .. } = self;
        let stops = each(self.stop_p50_ns, self.stop_p99_ns);
        let mut parts =
            vec![format!("churn: {stopped} of {asked} stopped ({stopped_per_s:.1}/s{stops})")];
        if let Some(ns) = self.longest_leaving_ns {
            parts.push(format!("{} leaving for up to {}", self.leaving, short_duration(ns)));
        }
        let creations = each(self.create_p50_ns, self.create_p99_ns);
        parts.push(format!("{created} created ({created_per_s:.1}/s{creations})"));
        if self.coming > 0 {
            parts.push(format!("{} coming", self.coming));
        }
        parts
    }

    /// The columns of a row; empty if there was no churn.
    pub(crate) fn fields(of: Option<&Self>) -> [Field; 11] {
        let number = |figure: fn(&Self) -> Option<u64>| of.and_then(figure).into();
        [
            ("churn_asked", number(|of| Some(of.asked))),
            ("churn_told", number(|of| Some(of.told))),
            ("churn_stopped", number(|of| Some(of.stopped))),
            ("churn_stop_p50_ns", number(|of| of.stop_p50_ns)),
            ("churn_stop_p99_ns", number(|of| of.stop_p99_ns)),
            ("churn_leaving", number(|of| Some(of.leaving))),
            ("churn_longest_leaving_ns", number(|of| of.longest_leaving_ns)),
            ("churn_created", number(|of| Some(of.created))),
            ("churn_create_p50_ns", number(|of| of.create_p50_ns)),
            ("churn_create_p99_ns", number(|of| of.create_p99_ns)),
            ("churn_coming", number(|of| Some(of.coming))),
        ]
    }
}

impl fmt::Display for ChurnSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_what_was_asked_for_and_what_came_of_it() {
        let mut summary = ChurnSummary {
            asked: 43,
            told: 43,
            stopped: 42,
            stopped_per_s: 7.0,
            stop_p50_ns: Some(3_100_000),
            stop_p99_ns: Some(12_000_000),
            created: 41,
            created_per_s: 6.84,
            create_p50_ns: Some(2_000_000),
            create_p99_ns: Some(9_000_000),
            ..Default::default()
        };
        assert_eq!(
            summary.to_string(),
            "churn: 42 of 43 stopped (7.0/s, p50 3.1ms p99 12ms); 41 created (6.8/s, p50 2.0ms p99 9.0ms)"
        );
        (summary.leaving, summary.longest_leaving_ns) = (1, Some(70_000_000));
        (summary.create_p50_ns, summary.coming) = (None, 1);
        assert_eq!(
            summary.to_string(),
            "churn: 42 of 43 stopped (7.0/s, p50 3.1ms p99 12ms); 1 leaving for up to 70ms; \
             41 created (6.8/s); 1 coming"
        );
    }

    #[test]
    fn without_churn_columns_are_empty() {
        let some = ChurnSummary::fields(Some(&ChurnSummary::default()));
        let none = ChurnSummary::fields(None);
        assert_eq!(some.map(|(name, _)| name), none.clone().map(|(name, _)| name));
        assert!(none.iter().all(|(_, value)| value.is_null()));
    }
}
