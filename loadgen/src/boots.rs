//! How many guests that boot Linux have become ready, and how long that took.

use std::fmt;

use common::hist::Hist;
use common::output::short_duration;
use loadgen::Fleet;
use serde::{Serialize, Serializer};

/// Of all guests that have been looked at.
#[derive(Default)]
pub(crate) struct Boots {
    guests: u32,
    ready: u32,
    /// How long each took that is ready.
    boots: Hist,
}

impl Boots {
    /// Those that are there; none if guests do not boot Linux.
    pub(crate) fn of(fleet: &Fleet) -> Option<Self> {
        let mut boots = Self::default();
        fleet.boots_ns()?.for_each(|boot_ns| boots.add(boot_ns));
        Some(boots)
    }

    /// One more, ready or not.
    pub(crate) fn add(&mut self, boot_ns: Option<u64>) {
        self.guests += 1;
        if let Some(boot_ns) = boot_ns {
            self.ready += 1;
            self.boots.record(boot_ns);
        }
    }

    /// Whether they have come that far, all of them.
    pub(crate) fn are_over(&self) -> bool {
        self.ready == self.guests
    }

    /// The quantiles 0.5 and 0.99; none if none is ready.
    fn quantiles_ns(&self) -> Option<[u64; 2]> {
        self.boots.quantiles_ns([0.5, 0.99])
    }
}

impl fmt::Display for Boots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} guests ready", self.ready, self.guests)?;
        let Some(quantiles) = self.quantiles_ns() else { return Ok(()) };
        let [p50, p99] = quantiles.map(short_duration);
        write!(f, ", booted in {p50} (p50), {p99} (p99)")
    }
}

impl Serialize for Boots {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let quantiles = self.quantiles_ns();
        let value = serde_json::json!({
            "ready": self.ready,
            "boot_p50_ns": quantiles.map(|[p50, _]| p50),
            "boot_p99_ns": quantiles.map(|[_, p99]| p99),
        });
        value.serialize(to)
    }
}
