//! Classic histograms since the start, as exact folds of the tools' own.

use crate::hist::{Hist, Unit};

/// Buckets but the last: 2, 4, 8, … 2^23 units, that is 8.4 s in microseconds and 2.3 h in milliseconds.
const BOUNDS: usize = 23;

/// How many series a histogram is: its buckets, their sum and their count.
pub const SERIES_PER_HISTOGRAM: usize = BOUNDS + 1 + 2;

/// How many of all that there was since the start took how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    unit: Unit,
    counts: [u64; BOUNDS + 1],
    sum_ns: u64,
}

impl Default for Buckets {
    fn default() -> Self {
        Self::new(Unit::Micros)
    }
}

impl Buckets {
    /// None so far, with bounds at powers of two of the unit.
    pub fn new(unit: Unit) -> Self {
        Self { unit, counts: [0; BOUNDS + 1], sum_ns: 0 }
    }

    /// Adds an interval's.
    pub fn add(&mut self, hist: &Hist) {
        for (index, count) in hist.picture(self.unit).iter().enumerate() {
            self.counts[index.min(BOUNDS)] += count;
        }
        self.sum_ns += hist.sum_ns();
    }

    /// The sum of all, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Upper bounds in seconds, and how many lie between each and the one before.
    pub fn buckets(&self) -> [(f64, u64); BOUNDS + 1] {
        let units_per_second = match self.unit {
            Unit::Micros => 1e6,
            Unit::Millis => 1e3,
        };
        std::array::from_fn(|index| match index {
            BOUNDS => (f64::INFINITY, self.counts[index]),
            _ => ((2_u64 << index) as f64 / units_per_second, self.counts[index]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn buckets_are_exact(values in prop::collection::vec(0..1_u64 << 44, 1..200), millis in any::<bool>()) {
            let unit = if millis { Unit::Millis } else { Unit::Micros };
            let mut all = Buckets::new(unit);
            for values in values.chunks(101) {
                all.add(&Hist::of(values.iter().copied()));
            }
            let mut below = 0;
            for (bound, count) in all.buckets() {
                below += count;
                let bound_ns = (bound * 1e9).round();
                let truth = values.iter().filter(|&&ns| (ns as f64) < bound_ns).count();
                prop_assert_eq!(below, truth as u64, "below {}", bound);
            }
            prop_assert_eq!(all.count(), values.len() as u64);
            prop_assert_eq!(all.sum_ns(), values.iter().sum::<u64>());
        }
    }
}
