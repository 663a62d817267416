//! The groups of a histogram: how many humps it has, where they lie, and how much is in each.
//!
//! The authors of the i3.metal experiment read their run-queue histogram by its groups: one at microseconds is a
//! healthy host, a second one at milliseconds an overloaded one. The rule, on counts by power of two:
//!
//! 1. Two peaks belong to different groups if a valley between them holds at most half of the lower peak, and the
//!    difference is more than chance makes: more than three times the square root of that peak.
//! 2. The valley, the lowest bucket between two groups, belongs to the one before it.
//! 3. A group reaches from its peak, either way, as far as buckets hold a hundredth of that peak.
//!
//! Values in no group's range are not silently added to one: they are the rest.

/// What a valley may hold at most, as a share of the lower of the two peaks beside it.
const VALLEY: f64 = 0.5;
/// How many standard deviations (of a Poisson count) a peak must rise above a valley.
const SIGNIFICANCE: f64 = 3.0;
/// What each bucket of a group must hold at least, as a share of its peak.
const EDGE: f64 = 0.01;

/// A run of buckets of a picture in powers of two of microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The first microsecond in the group.
    pub first_us: u64,
    /// The last microsecond in the group.
    pub last_us: u64,
    /// The group's share of all values, 0 to 1.
    pub share: f64,
}

/// Finds the groups of a picture in microseconds ([0, 2), [2, 4), [4, 8) and so on).
pub fn groups(picture_us: &[u64]) -> Vec<Group> {
    let total: u64 = picture_us.iter().sum();
    let mut groups = Vec::new();
    let mut start = 0;
    for valley in valleys(picture_us).into_iter().chain([picture_us.len()]) {
        let end = picture_us.len().min(valley + 1);
        if let Some((first, last)) = around_peak(picture_us, start, end) {
            let held: u64 = picture_us[first..=last].iter().sum();
            groups.push(Group {
                first_us: if first == 0 { 0 } else { 1 << first },
                last_us: (1 << (last + 1)) - 1,
                share: held as f64 / total as f64,
            });
        }
        start = valley + 1;
    }
    groups
}

/// The indices of the buckets that part groups.
fn valleys(counts: &[u64]) -> Vec<usize> {
    let mut valleys = Vec::new();
    // The highest bucket of the group so far, and the lowest since.
    let (mut peak, mut valley) = (0, 0);
    for (index, &count) in counts.iter().enumerate() {
        if parts(count, counts[valley]) && parts(counts[peak], counts[valley]) {
            valleys.push(valley);
            (peak, valley) = (index, index);
        } else if count > counts[peak] && !parts(counts[peak], counts[valley]) {
            (peak, valley) = (index, index);
        } else if count < counts[valley] {
            valley = index;
        }
    }
    valleys
}

/// True if `peak` stands out from `valley`.
fn parts(peak: u64, valley: u64) -> bool {
    let (peak, valley) = (peak as f64, valley as f64);
    valley <= VALLEY * peak && peak - valley > SIGNIFICANCE * peak.sqrt()
}

/// The first and the last bucket around the peak of `start..end`; `None` if there is nothing.
fn around_peak(counts: &[u64], start: usize, end: usize) -> Option<(usize, usize)> {
    let peak = (start..end).max_by_key(|&i| counts[i]).filter(|&i| counts[i] > 0)?;
    let least = (EDGE * counts[peak] as f64).max(1.0);
    let holds = |&i: &usize| counts[i] as f64 >= least;
    let first = (start..peak).rev().take_while(holds).last().unwrap_or(peak);
    let last = (peak + 1..end).take_while(holds).last().unwrap_or(peak);
    Some((first, last))
}

/// The groups as the words of a line: `groups: 93.1 % in 4-511 us, 6.9 % in 1-32 ms`.
pub fn words(groups: &[Group]) -> Vec<String> {
    let mut shares: Vec<(f64, String)> =
        groups.iter().map(|group| (group.share, format!("in {}", range(group)))).collect();
    let rest = 1.0 - groups.iter().map(|group| group.share).sum::<f64>();
    // A smaller rest would be printed as 0.0: the others add up to 100.0 without it.
    if rest >= 0.000_5 {
        shares.push((rest, "elsewhere".to_owned()));
    }
    let last = shares.len() - 1;
    let word = |(i, (share, place)): (usize, (f64, String))| {
        let comma = if i < last { "," } else { "" };
        format!("{:.1} % {place}{comma}", 100.0 * share)
    };
    ["groups:".to_owned()].into_iter().chain(shares.into_iter().enumerate().map(word)).collect()
}

/// A group's range with one unit where one will do: `4-511 us`, `1-32 ms`, `512 us-2 s`.
fn range(group: &Group) -> String {
    let ((first, first_unit), (last, last_unit)) =
        (rounded(group.first_us), rounded(group.last_us));
    if first_unit == last_unit || first == 0 {
        format!("{first}-{last} {last_unit}")
    } else {
        format!("{first} {first_unit}-{last} {last_unit}")
    }
}

/// Whole units, rounded down: 1,024 us is 1 ms and 32,767 us is 32 ms.
fn rounded(us: u64) -> (u64, &'static str) {
    match us {
        0..1_000 => (us, "us"),
        1_000..1_000_000 => (us / 1_000, "ms"),
        _ => (us / 1_000_000, "s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(picture: &[u64]) -> String {
        words(&groups(picture)).join(" ")
    }

    #[test]
    fn the_published_shape_has_two_groups() {
        // mission.md: half of all samples at 4-15 us, most below 511 us, about 7 % at 1,024-32,767 us.
        let picture = [
            60, 90, 26_000, 25_000, 14_000, 10_500, 8_000, 6_000, 3_500, 40, 900, 1_900, 2_300,
            1_300, 500, 4,
        ];
        assert_eq!(line(&picture), "groups: 92.9 % in 4-511 us, 6.9 % in 1-32 ms, 0.2 % elsewhere");
    }

    #[test]
    fn a_single_hump_is_one_group() {
        assert_eq!(line(&[0, 10, 100, 1_000, 100, 10]), "groups: 100.0 % in 2-63 us");
        assert_eq!(line(&[97]), "groups: 100.0 % in 0-1 us");
    }

    #[test]
    fn an_empty_bucket_parts_two_groups() {
        assert_eq!(line(&[0, 0, 500, 0, 500]), "groups: 50.0 % in 4-7 us, 50.0 % in 16-31 us");
    }

    #[test]
    fn three_humps_are_three_groups() {
        let picture = [1_000, 20, 3_000, 30, 2_000, 10];
        let found = groups(&picture);
        assert_eq!(found.len(), 3, "{found:?}");
        let ranges: Vec<_> = found.iter().map(|g| (g.first_us, g.last_us)).collect();
        assert_eq!(ranges, [(0, 3), (4, 15), (16, 31)]);
    }

    #[test]
    fn a_dip_that_chance_explains_parts_nothing() {
        assert_eq!(groups(&[0, 9, 4, 9]).len(), 1, "5 below 9 is within three deviations");
        assert_eq!(groups(&[0, 900, 600, 900]).len(), 1, "600 is more than half of 900");
        assert_eq!(groups(&[0, 900, 400, 900]).len(), 2);
    }

    #[test]
    fn a_shoulder_that_rises_again_below_the_peak_is_a_group() {
        // Falling, a deep valley, then a small hump: the second group of a healthy overloaded host.
        assert_eq!(groups(&[100_000, 10_000, 1_000, 10, 1_000, 100]).len(), 2);
    }

    #[test]
    fn a_deep_valley_after_a_false_one_is_still_found() {
        // 90 to 60 to 95 is no valley; 95 to 2 to 80 is one.
        assert_eq!(groups(&[9_000, 6_000, 9_500, 200, 8_000]).len(), 2);
    }

    #[test]
    fn ranges_are_written_in_the_unit_of_their_ends() {
        let group = |first_us, last_us| range(&Group { first_us, last_us, share: 1.0 });
        assert_eq!(group(4, 511), "4-511 us");
        assert_eq!(group(1_024, 32_767), "1-32 ms");
        assert_eq!(group(512, 2_097_151), "512 us-2 s");
        assert_eq!(group(0, 2_047), "0-2 ms");
    }

    #[test]
    fn a_few_values_far_away_do_not_widen_a_group() {
        let picture = [0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 3, 27, 476, 2];
        assert_eq!(line(&picture), "groups: 97.7 % in 4-16 ms, 2.3 % elsewhere");
    }

    #[test]
    fn nothing_has_no_groups() {
        assert!(groups(&[]).is_empty());
        assert!(groups(&[0, 0]).is_empty());
    }
}
