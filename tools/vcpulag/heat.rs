//! vcpulag's heat map: the waits of all vCPUs in an interval as one line. Pure.

use std::io::{self, Write};

use common::hist::Hist;
use common::output::heatmap::{HeatMap, Look};
use common::output::{Interval, short_duration};

use crate::losses::Losses;
use crate::rows::Row;

/// A heat map under way.
pub struct Heat {
    map: HeatMap,
    /// Of all intervals: notes between the lines would tear the map.
    losses: Losses,
}

impl Heat {
    /// One without lines so far.
    pub fn new(look: Look) -> Self {
        Self { map: HeatMap::new(look), losses: Losses::default() }
    }

    /// One interval.
    pub fn line<'a>(
        &mut self,
        out: &mut dyn Write,
        interval: &Interval,
        rows: impl IntoIterator<Item = &'a Row>,
        losses: &Losses,
    ) -> io::Result<()> {
        let (mut waits, mut waited_ns, mut whole_ns, mut longest) = (Hist::default(), 0, 0, None);
        for row in rows {
            waits.merge(&row.waits);
            waited_ns += row.times.wait_ns();
            whole_ns += row.times.sum_ns();
            longest = longest.max(row.waiting_ns);
        }
        let share = match whole_ns {
            0 => "-".to_owned(),
            _ => format!("{:.0}%", 100.0 * waited_ns as f64 / whole_ns as f64),
        };
        let now = longest.map_or_else(|| "-".to_owned(), short_duration);
        self.map.write_line(out, &interval.clock(), &waits, &[("wait", share), ("now", now)])?;
        self.losses.add(losses);
        losses.warnings().iter().try_for_each(|line| writeln!(out, "{line}"))
    }

    /// What comes after the last interval.
    pub fn end(&self, out: &mut dyn Write) -> io::Result<()> {
        self.losses.notes().iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rows::Times;

    #[test]
    fn each_interval_is_a_line_of_all_vcpus() {
        let interval = Interval {
            end: "2026-11-23T04:42:10Z".parse().unwrap(),
            length: Duration::from_secs(10),
        };
        let row = |of: std::ops::Range<u64>, wait_preempted_ns, waiting_ns| Row {
            times: Times { run_ns: 1_000, wait_preempted_ns, ..Times::default() },
            waits: Hist::of(of.map(|i| i * i * 101)),
            waiting_ns,
            ..Row::default()
        };
        let rows = [row(1..600, 5_000, None), row(600..1_000, 3_000, Some(43_100_000))];
        let (mut heat, mut out) = (Heat::new(Look { columns: 80, colours: false }), Vec::new());
        let losses = Losses { waits: 7, unseen: 5, ..Losses::default() };
        heat.line(&mut out, &interval, &rows, &losses).unwrap();
        let losses = Losses { waits: 0, ..losses };
        heat.line(&mut out, &interval, &[], &losses).unwrap();
        heat.end(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap().replace(&interval.clock(), "04:42:10");
        insta::assert_snapshot!(text, @r"
        share of a line's waits in %:  . >0  : .03  - .1  = .3  + 1  * 3  # 10  @ 30
        time     1us   10us   100us 1ms    10ms  100ms  1s count   p99   max  wait   now
        04:42:10|=-------========++++++*+******###-      |   999 100ms 101ms   80%  43ms
        lost 7 waits in histograms: no room for them
        04:42:10|                                        |     0     -     -     -     -
        from totals 10 waits: sched_switch did not show them
        ");
    }
}
