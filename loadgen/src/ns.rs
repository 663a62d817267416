//! Times as the numbers of nanoseconds that pages, reports and histograms hold.

use std::time::Duration;

/// This time in nanoseconds; of more than 584 years, that.
pub(crate) fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
