//! What this host can do for guests: the facts, read once, and a verdict on each.

mod facts;
mod hardware;
mod judge;
mod limits;

use common::session::host_cannot;
use serde::Serialize;
use serde_json::Value;

use crate::room::{Each, Room};
use facts::Facts;

/// What a fact means for guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Guests run, but not as they could.
    Warn,
    /// No guest runs.
    Fail,
    /// This host does not tell, or has no such thing.
    Unknown,
}

impl Verdict {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
        }
    }
}

/// One fact.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Its name for programs.
    #[serde(skip)]
    pub key: &'static str,
    /// Its name for people.
    #[serde(skip)]
    pub what: &'static str,
    /// What it means for guests.
    pub verdict: Verdict,
    /// The fact, in words.
    pub value: String,
    /// What would make it better, if anything would.
    pub remedy: Option<String>,
    /// The fact as numbers and names, whose units are in their names.
    #[serde(flatten)]
    pub details: Value,
}

/// All facts about a host.
#[derive(Debug)]
pub struct Report {
    /// In the order in which they are told.
    pub findings: Vec<Finding>,
    /// Why this host can run no guest, if so: exit status 3.
    pub cannot: Option<anyhow::Error>,
}

impl Report {
    /// Looks at this host. Changes nothing, and creates no guest.
    pub fn of_this_host() -> Self {
        let (facts, kvm_fails) = Facts::read();
        let room = Room::read(Each::smallest());
        let mut findings = judge::all(&facts);
        findings.extend(limits::all(&room, kvm_fails.is_none()));
        let cannot = kvm_fails.or_else(|| room.refuses(1).map(host_cannot));
        Self { findings, cannot }
    }
}
