//! Log-linear histograms in nanoseconds, as the kernel side keeps them (bpf/hist.bpf.h): the geometry of their
//! slots, differences between two reads, percentiles, and the familiar picture in powers of two.

use std::collections::BTreeMap;
use std::ops::Range;

use hdrhistogram::{CreationError, Histogram};

/// Linear steps per power of two: a value is known to 1/32 of it, its slot's middle to 1.6 %.
pub const SLOTS: usize = 32;
const SLOT_BITS: u32 = SLOTS.trailing_zeros();

/// Extremes carry their epoch above this many bits (bpf/hist.bpf.h: `HIST_EPOCH_SHIFT`).
const EPOCH_SHIFT: u32 = 44;
const EXTREME_MAX: u64 = (1 << EPOCH_SHIFT) - 1;

/// The first interval's number. Elements begin as zeroes, which must not look like extremes of an interval.
pub const FIRST_EPOCH: u32 = 1;

/// The number of the interval after `epoch`. After a million intervals there is no later one, and extremes are those of
/// their slots: known to 3 %.
pub fn next_epoch(epoch: u32) -> u32 {
    (epoch + 1).min((1 << (u64::BITS - EPOCH_SHIFT)) - 1)
}

/// A power of two of a histogram, as read from the kernel. Counts and sums are since the start of the program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Octave {
    /// How many values fell into each slot.
    pub slots: [u64; SLOTS],
    /// The sum of all values, in nanoseconds.
    pub sum_ns: u64,
    /// The highest value of an even and of an odd epoch, in 44 bits below the epoch.
    pub highest: [u64; 2],
    /// The lowest value likewise, as the distance from the end of those bits.
    pub lowest: [u64; 2],
    /// How many values are at least 1000·2^k ns, for the one k with which that lies in this octave.
    pub above_us: u64,
    /// How many values are at least 1000000·2^k ns, likewise.
    pub above_ms: u64,
}

impl Octave {
    /// What was added since `earlier` was read. The extremes are those of this read.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut slots = self.slots;
        for (slot, before) in slots.iter_mut().zip(earlier.slots) {
            *slot -= before;
        }
        Self {
            slots,
            sum_ns: self.sum_ns - earlier.sum_ns,
            above_us: self.above_us - earlier.above_us,
            above_ms: self.above_ms - earlier.above_ms,
            ..*self
        }
    }

    fn count(&self) -> u64 {
        self.slots.iter().sum()
    }
}

/// The unit in which a picture is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds.
    Micros,
    /// Milliseconds.
    Millis,
}

impl Unit {
    /// How BCC's tools write the unit above a histogram.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Micros => "usecs",
            Self::Millis => "msecs",
        }
    }

    /// log2 of the largest power of two, in nanoseconds, below the unit: 512 ns and 524,288 ns.
    fn log2_below(self) -> u32 {
        match self {
            Self::Micros => 9,
            Self::Millis => 19,
        }
    }
}

/// The values of one row in one interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hist {
    slots: BTreeMap<usize, u64>,
    sum_ns: u64,
    min_ns: Option<u64>,
    max_ns: u64,
    micros: Vec<u64>,
    millis: Vec<u64>,
}

/// The index of the slot that holds `ns`, counted over all octaves.
fn slot_of(ns: u64) -> usize {
    let octave = (u64::BITS - ns.leading_zeros()).saturating_sub(SLOT_BITS);
    let within = if octave == 0 { ns } else { ns >> (octave - 1) } as usize % SLOTS;
    octave as usize * SLOTS + within
}

/// The values that slot `index` holds. The last one ends at the largest value there is.
fn slot_range(index: usize) -> Range<u64> {
    let (octave, within) = (index / SLOTS, (index % SLOTS) as u64);
    if octave == 0 {
        return within..within + 1;
    }
    let width = 1 << (octave - 1);
    let lo = (SLOTS as u64 + within) * width;
    lo..lo.saturating_add(width)
}

/// The middle of what slot `index` holds: at most 1.6 % from any of it.
fn slot_middle(index: usize) -> u64 {
    let Range { start, end } = slot_range(index);
    start + (end - start) / 2
}

/// The extremes of the epoch just ended and, as it may have been read late, of the one after it.
fn extremes_of(epoch: u32, both: [u64; 2]) -> impl Iterator<Item = u64> {
    let wanted = [epoch, next_epoch(epoch)].map(u64::from);
    both.into_iter().filter(move |e| wanted.contains(&(e >> EPOCH_SHIFT))).map(|e| e & EXTREME_MAX)
}

impl Hist {
    /// Adds an octave's values of the interval that was number `epoch`.
    pub fn add(&mut self, octave: usize, values: &Octave, epoch: u32) {
        // Read while another CPU was writing, the sum may be a value ahead of the slots, or behind.
        self.sum_ns += values.sum_ns;
        let count = values.count();
        if count == 0 {
            return;
        }
        for (within, &n) in values.slots.iter().enumerate().filter(|(_, n)| **n > 0) {
            *self.slots.entry(octave * SLOTS + within).or_default() += n;
        }
        self.add_picture(Unit::Micros, octave, count, values.above_us.min(count));
        self.add_picture(Unit::Millis, octave, count, values.above_ms.min(count));
        self.add_extremes(octave, values, epoch);
    }

    /// Extremes are exact, except that a value which came between the end of the epoch and its being read may
    /// stand for one of the same slot.
    fn add_extremes(&mut self, octave: usize, values: &Octave, epoch: u32) {
        let used = |(_, n): &(usize, &u64)| **n > 0;
        let index = |(within, _)| octave * SLOTS + within;
        let slots = || values.slots.iter().enumerate();
        if let Some(range) = slots().rfind(used).map(index).map(slot_range) {
            let seen = extremes_of(epoch, values.highest).max().unwrap_or(range.end - 1);
            self.max_ns = self.max_ns.max(seen.clamp(range.start, range.end - 1));
        }
        if let Some(range) = slots().find(used).map(index).map(slot_range) {
            let seen = extremes_of(epoch, values.lowest).max();
            let seen = seen.map_or(range.start, |distance| EXTREME_MAX - distance);
            let lowest = seen.clamp(range.start, range.end - 1);
            self.min_ns = Some(self.min_ns.map_or(lowest, |min| min.min(lowest)));
        }
    }

    /// Every octave at or above the unit is cut in two at 2^k units; its `above` values lie beyond the cut.
    fn add_picture(&mut self, unit: Unit, octave: usize, count: u64, above: u64) {
        let log2 = octave + SLOT_BITS as usize - 1;
        let upper = log2.saturating_sub(unit.log2_below() as usize);
        let picture = match unit {
            Unit::Micros => &mut self.micros,
            Unit::Millis => &mut self.millis,
        };
        if picture.len() <= upper {
            picture.resize(upper + 1, 0);
        }
        picture[upper.saturating_sub(1)] += count - above;
        picture[upper] += above;
    }

    /// A histogram of these values.
    pub fn of(values_ns: impl IntoIterator<Item = u64>) -> Self {
        let mut hist = Self::default();
        values_ns.into_iter().for_each(|ns| hist.record(ns));
        hist
    }

    /// Adds one value, as the kernel side would have.
    pub fn record(&mut self, ns: u64) {
        let slot = slot_of(ns);
        let above = |unit_ns: u64, log2: u32| {
            let is = ns.checked_ilog2().is_some_and(|n| n >= log2 && ns >= unit_ns << (n - log2));
            u64::from(is)
        };
        let epoch = u64::from(FIRST_EPOCH) << EPOCH_SHIFT;
        let mut octave = Octave {
            sum_ns: ns,
            above_us: above(1_000, 9),
            above_ms: above(1_000_000, 19),
            highest: [epoch | ns.min(EXTREME_MAX); 2],
            lowest: [epoch | (EXTREME_MAX - ns.min(EXTREME_MAX)); 2],
            ..Octave::default()
        };
        octave.slots[slot % SLOTS] = 1;
        self.add(slot / SLOTS, &octave, FIRST_EPOCH);
    }

    /// Adds the values of another.
    pub fn merge(&mut self, other: &Self) {
        for (&slot, n) in &other.slots {
            *self.slots.entry(slot).or_default() += n;
        }
        self.sum_ns += other.sum_ns;
        self.min_ns = self.min_ns.into_iter().chain(other.min_ns).min();
        self.max_ns = self.max_ns.max(other.max_ns);
        for (own, others) in [(&mut self.micros, &other.micros), (&mut self.millis, &other.millis)]
        {
            own.resize(own.len().max(others.len()), 0);
            own.iter_mut().zip(others).for_each(|(own, n)| *own += n);
        }
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.slots.values().sum()
    }

    /// The exact sum of all values, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The mean in nanoseconds; `None` without values.
    pub fn mean_ns(&self) -> Option<u64> {
        self.sum_ns.checked_div(self.count())
    }

    /// The lowest value in nanoseconds; `None` without values.
    pub fn min_ns(&self) -> Option<u64> {
        self.min_ns
    }

    /// The highest value in nanoseconds; `None` without values.
    pub fn max_ns(&self) -> Option<u64> {
        self.min_ns.map(|_| self.max_ns)
    }

    /// The non-empty slots: the values they hold (half-open, in nanoseconds) and how many there were.
    pub fn buckets(&self) -> impl Iterator<Item = (Range<u64>, u64)> {
        self.slots.iter().map(|(&index, &count)| (slot_range(index), count))
    }

    /// Counts by power of two of the unit: the first element is [0, 2), then [2, 4), [4, 8) and so on. Exact.
    pub fn picture(&self, unit: Unit) -> &[u64] {
        let counts = match unit {
            Unit::Micros => &self.micros,
            Unit::Millis => &self.millis,
        };
        let used = counts.iter().rposition(|&n| n > 0).map_or(0, |last| last + 1);
        &counts[..used]
    }

    /// The same values as an HdrHistogram of so many significant digits, each at the middle of its slot.
    pub fn to_hdr(&self, digits: u8) -> Result<Histogram<u64>, CreationError> {
        let mut hdr = Histogram::new_with_max(self.max_ns.max(2), digits)?;
        for (&index, &count) in &self.slots {
            hdr.saturating_record_n(slot_middle(index), count);
        }
        Ok(hdr)
    }

    /// The values at these quantiles (0.5 is the median), in nanoseconds, with an error of at most 1.6 %; `None`
    /// without values.
    pub fn quantiles_ns<const N: usize>(&self, quantiles: [f64; N]) -> Option<[u64; N]> {
        let (min, max) = (self.min_ns?, self.max_ns);
        // Two digits are 128 steps per power of two: HdrHistogram's answer is in just one of our slots.
        let hdr = self.to_hdr(2).ok()?;
        Some(quantiles.map(|q| slot_middle(slot_of(hdr.value_at_quantile(q))).clamp(min, max)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_tile_all_values() {
        let mut next = 0;
        for index in 0..60 * SLOTS {
            let range = slot_range(index);
            assert_eq!(range.start, next, "slot {index}");
            assert_eq!(slot_of(range.start), index);
            assert_eq!(slot_of(range.end - 1), index);
            next = range.end;
        }
        assert_eq!(next, u64::MAX);
    }

    #[test]
    fn differences_leave_nothing_of_the_earlier_interval() {
        let mut early = Octave { sum_ns: 2_100, above_us: 1, ..Octave::default() };
        early.slots[3] = 2;
        let mut late = Octave { sum_ns: 3_300, above_us: 2, ..early };
        late.slots[4] = 1;
        let since = late.since(&early);
        assert_eq!((since.count(), since.sum_ns, since.above_us), (1, 1_200, 1));
        assert_eq!(since.slots[4], 1);
    }

    #[test]
    fn extremes_belong_to_their_interval() {
        let epoch = 65_535_u32;
        let (long_ago, now) = (7 << EPOCH_SHIFT, u64::from(epoch) << EPOCH_SHIFT);
        let mut octave = Octave::default();
        octave.slots[0] = 1;
        octave.slots[31] = 1;
        // Octave 6 is [1024, 2048). The other epoch's extremes are of long ago.
        octave.highest = [long_ago | 2_047, now | 2_020];
        octave.lowest = [long_ago | (EXTREME_MAX - 1_024), now | (EXTREME_MAX - 1_031)];
        let mut hist = Hist::default();
        hist.add(6, &octave, epoch);
        assert_eq!((hist.min_ns(), hist.max_ns()), (Some(1_031), Some(2_020)));
    }

    #[test]
    fn nothing_of_a_torn_read_is_lost() {
        let mut hist = Hist::default();
        hist.add(6, &Octave { sum_ns: 1_030, above_us: 1, ..Octave::default() }, FIRST_EPOCH);
        let mut rest = Octave::default();
        rest.slots[0] = 1;
        hist.add(6, &rest, FIRST_EPOCH);
        assert_eq!((hist.count(), hist.sum_ns()), (1, 1_030));
        assert_eq!(hist.picture(Unit::Micros).iter().sum::<u64>(), 1);
    }

    #[test]
    fn epochs_alternate_and_end() {
        assert_eq!(next_epoch(FIRST_EPOCH), 2);
        assert_eq!(next_epoch((1 << 20) - 2), (1 << 20) - 1);
        assert_eq!(next_epoch((1 << 20) - 1), (1 << 20) - 1);
    }

    #[test]
    fn empty_histograms_have_no_figures() {
        let hist = Hist::default();
        assert_eq!(hist.count(), 0);
        assert_eq!(hist.mean_ns(), None);
        assert_eq!(hist.max_ns(), None);
        assert_eq!(hist.quantiles_ns([0.5]), None);
        assert!(hist.picture(Unit::Micros).is_empty());
    }

    proptest! {
        #[test]
        fn a_histogram_agrees_with_its_values(mut values in prop::collection::vec(0..1_u64 << 44, 1..200)) {
            let hist = Hist::of(values.iter().copied());
            values.sort_unstable();
            prop_assert_eq!(hist.count(), values.len() as u64);
            prop_assert_eq!(hist.sum_ns(), values.iter().sum::<u64>());
            prop_assert_eq!(hist.min_ns(), values.first().copied());
            prop_assert_eq!(hist.max_ns(), values.last().copied());
            for q in [0.5, 0.9, 0.99, 0.999] {
                let [seen] = hist.quantiles_ns([q]).unwrap();
                let rank = ((q * values.len() as f64).ceil() as usize).max(1);
                let truth = values[rank - 1];
                prop_assert!(seen.abs_diff(truth) as f64 <= truth as f64 / 63.0 + 1.0, "{} for {}", seen, truth);
            }
        }

        #[test]
        fn merged_histograms_are_one_of_all_values(one in prop::collection::vec(0..1_u64 << 44, 0..50),
                                                   other in prop::collection::vec(0..1_u64 << 44, 0..50)) {
            let mut merged = Hist::of(one.iter().copied());
            merged.merge(&Hist::of(other.iter().copied()));
            prop_assert_eq!(merged, Hist::of(one.into_iter().chain(other)));
        }

        #[test]
        fn pictures_are_exact(values in prop::collection::vec(0..1_u64 << 44, 1..200)) {
            let hist = Hist::of(values.iter().copied());
            for (unit, unit_ns) in [(Unit::Micros, 1_000), (Unit::Millis, 1_000_000)] {
                let mut truth = vec![0; 64];
                for value in &values {
                    truth[(value / unit_ns).checked_ilog2().unwrap_or(0) as usize] += 1;
                }
                let used = truth.iter().rposition(|&n| n > 0).unwrap() + 1;
                prop_assert_eq!(hist.picture(unit), &truth[..used]);
            }
        }
    }
}
