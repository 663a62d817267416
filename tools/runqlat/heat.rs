//! runqlat's heat map: all waits of an interval as one line. Pure.

use std::io::{self, Write};

use common::output::heatmap::{HeatMap, Look};
use common::output::{Interval, short_count, short_duration};

use crate::report::{Losses, Row};

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
    pub fn line(
        &mut self,
        out: &mut dyn Write,
        interval: &Interval,
        rows: &[Row],
        losses: &Losses,
    ) -> io::Result<()> {
        for row in rows {
            let longest = row.longest_waiting_ns.map_or_else(|| "-".to_owned(), short_duration);
            let figures = [("wait", short_count(row.waiting as f64, 5)), ("now", longest)];
            self.map.write_line(out, &interval.clock(), &row.hist, &figures)?;
        }
        self.losses.add(losses);
        losses.warning().iter().try_for_each(|line| writeln!(out, "{line}"))
    }

    /// What comes after the last interval.
    pub fn end(&self, out: &mut dyn Write) -> io::Result<()> {
        self.losses.notes().iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use common::hist::Hist;

    use super::*;
    use crate::report::Key;

    #[test]
    fn each_interval_is_a_line_and_notes_come_at_the_end() {
        let interval = Interval {
            end: "2026-11-23T04:42:10Z".parse().unwrap(),
            length: Duration::from_secs(10),
        };
        let hist = Hist::of((1..1_000).map(|i| i * i * 101));
        let row =
            Row { hist, waiting: 22, longest_waiting_ns: Some(43_100_000), ..Row::new(Key::All) };
        let (mut heat, mut out) = (Heat::new(Look { columns: 80, colours: false }), Vec::new());
        let losses = Losses { lost: 7, unbooked: 6, reconstructed: 5 };
        heat.line(&mut out, &interval, &[row], &losses).unwrap();
        let losses = Losses { lost: 0, ..losses };
        heat.line(&mut out, &interval, &[Row::new(Key::All)], &losses).unwrap();
        heat.end(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap().replace(&interval.clock(), "04:42:10");
        insta::assert_snapshot!(text, @r"
        share of a line's waits in %:  . >0  : .03  - .1  = .3  + 1  * 3  # 10  @ 30
        time     1us   10us   100us 1ms    10ms  100ms  1s count   p99   max  wait   now
        04:42:10|=-------========++++++*+******###-      |   999 100ms 101ms    22  43ms
        lost 7 waits: no room for them
        04:42:10|                                        |     0     -     -     0     -
        no times for 12 waits: preempted on the way to sleep
        from totals 10 waits: sched_switch did not show them
        ");
    }
}
