//! A heat map of waits that grows downwards: a line an interval, latency across. Its cells are characters, so that it
//! can be read where it is pasted; colours come on top of them.

use std::io::{self, Write, stdout};

use anstream::{AutoStream, ColorChoice};
use anstyle::{Ansi256Color, Style};
use terminal_size::{Width, terminal_size_of};

use super::{COLUMNS, short_count, short_duration};
use crate::hist::Hist;

/// Wider is not easier to read.
const MOST_COLUMNS: usize = 200;
/// The time of day and a border to the left of the cells, a border to the right.
const CLOCK: usize = 8;
const BORDERS: usize = 2;
/// A figure at a line's end, with the space before it.
const FIGURE: usize = 6;
/// So many lines come below a heading.
const HEADING_EVERY: usize = 20;

/// The first cell begins at 2^10 ns, about 1 us; what is shorter is in it, too.
const FIRST_LOG2: u32 = 10;
/// Up to 2^30 ns, about 1 s, whatever the width; where there is room up to 2^34 ns, 17 s. The last cell has what is
/// longer, too.
const LEAST_OCTAVES: usize = 20;
const MOST_OCTAVES: usize = 24;
/// At most so many cells per power of two: a divisor of the histogram's slots, so that no slot is in two cells.
const MOST_CELLS: usize = 8;

/// A cell's share of its line's waits: from how many in 100,000, the character, and its colours among the 256, from dark
/// to light: the cell's and the character's in it.
const SHADES: [(u64, char, u8, u8); 8] = [
    (0, '.', 17, 61),
    (30, ':', 54, 97),
    (100, '-', 90, 133),
    (300, '=', 126, 168),
    (1_000, '+', 161, 210),
    (3_000, '*', 202, 223),
    (10_000, '#', 214, 130),
    (30_000, '@', 227, 136),
];

/// What the output can show.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Its width in characters.
    pub columns: usize,
    /// Whether it has 256 colours.
    pub colours: bool,
}

impl Look {
    /// Of standard output: as wide as the terminal, 80 columns elsewhere; colours on terminals, as NO_COLOR,
    /// CLICOLOR_FORCE, CLICOLOR and TERM have it.
    pub fn of_stdout() -> Self {
        let width = terminal_size_of(stdout()).map(|(Width(width), _)| usize::from(width));
        let colours = AutoStream::choice(&stdout()) != ColorChoice::Never;
        Self { columns: width.unwrap_or(COLUMNS), colours }
    }
}

/// A heat map under way.
#[derive(Debug)]
pub struct HeatMap {
    look: Look,
    lines: usize,
}

impl HeatMap {
    /// One without lines so far.
    pub fn new(look: Look) -> Self {
        let columns = look.columns.clamp(COLUMNS, MOST_COLUMNS);
        Self { look: Look { columns, ..look }, lines: 0 }
    }

    /// Writes the line of an interval that ended at this time of day: its waits, and `figures` with the names of their
    /// columns, of at most five characters each.
    pub fn write_line(
        &mut self,
        out: &mut dyn Write,
        clock: &str,
        waits: &Hist,
        figures: &[(&str, String)],
    ) -> io::Result<()> {
        let [p99] = waits.quantiles_ns([0.99]).map_or([None], |q| q.map(Some));
        let time = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), short_duration);
        let own = [
            ("count", short_count(waits.count() as f64, 5)),
            ("p99", time(p99)),
            ("max", time(waits.max_ns())),
        ];
        let figures: Vec<_> = own.iter().chain(figures).collect();
        let scale = Scale::of(self.look.columns - CLOCK - BORDERS - FIGURE * figures.len());
        if self.lines.is_multiple_of(HEADING_EVERY) {
            self.write_legend(out)?;
            // The last label may reach over the border.
            write!(out, "{:CLOCK$} {:<width$}", "time", scale.labels(), width = scale.cells + 1)?;
            figures.iter().try_for_each(|(name, _)| write!(out, " {name:>5}"))?;
            writeln!(out)?;
        }
        self.lines += 1;
        write!(out, "{clock:CLOCK$}|")?;
        let (count, cells) = (waits.count(), scale.counts(waits));
        let shades: Vec<_> = cells.into_iter().map(|cell| shade(cell, count)).collect();
        for run in shades.chunk_by(|a, b| a == b) {
            self.write_cells(out, run[0], run.len())?;
        }
        write!(out, "|")?;
        figures.iter().try_for_each(|(_, figure)| write!(out, " {figure:>5}"))?;
        writeln!(out)
    }

    fn write_legend(&self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "share of a line's waits in %:")?;
        for (level, (least, ..)) in SHADES.iter().enumerate() {
            write!(out, "  ")?;
            self.write_cells(out, Some(level), 1)?;
            let percent = (*least as f64 / 1e3).to_string();
            match *least {
                0 => write!(out, " >0")?,
                _ => write!(out, " {}", percent.trim_start_matches('0'))?,
            }
        }
        writeln!(out)
    }

    /// So many cells of one shade; none is that of a cell without waits.
    fn write_cells(&self, out: &mut dyn Write, shade: Option<usize>, n: usize) -> io::Result<()> {
        let Some(shade) = shade else { return write!(out, "{:n$}", "") };
        let (_, character, cell, own) = SHADES[shade];
        let text = character.to_string().repeat(n);
        if !self.look.colours {
            return write!(out, "{text}");
        }
        let colour = |number| Some(Ansi256Color(number).into());
        let style = Style::new().bg_color(colour(cell)).fg_color(colour(own));
        write!(out, "{style}{text}{style:#}")
    }
}

/// The shade of a cell with `cell` of a line's waits: none without any.
fn shade(cell: u64, line: u64) -> Option<usize> {
    let share = |least: u64| u128::from(cell) * 100_000 >= u128::from(least) * u128::from(line);
    SHADES.iter().rposition(|(least, ..)| cell > 0 && share(*least))
}

/// Which latencies lie where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    cells: usize,
    /// Cells for each power of two.
    per_octave: usize,
}

impl Scale {
    /// In at most so many cells.
    fn of(room: usize) -> Self {
        let fits = |per_octave: &usize| per_octave * LEAST_OCTAVES <= room;
        let per_octave = [MOST_CELLS, 4, 2].into_iter().find(fits).unwrap_or(1);
        Self { cells: per_octave * (room / per_octave).min(MOST_OCTAVES), per_octave }
    }

    fn cell_of(&self, ns: u64) -> usize {
        let Some(log2) = ns.checked_ilog2().filter(|log2| *log2 >= FIRST_LOG2) else { return 0 };
        let within = ((ns - (1 << log2)) as u128 * self.per_octave as u128) >> log2;
        let cell = (log2 - FIRST_LOG2) as usize * self.per_octave + within as usize;
        cell.min(self.cells - 1)
    }

    fn counts(&self, hist: &Hist) -> Vec<u64> {
        let mut counts = vec![0; self.cells];
        for (range, count) in hist.buckets() {
            counts[self.cell_of(range.start)] += count;
        }
        counts
    }

    /// Powers of ten; each begins above the cell that has it.
    fn labels(&self) -> String {
        let mut line = String::new();
        for (ns, label) in [
            (1_000, "1us"),
            (10_000, "10us"),
            (100_000, "100us"),
            (1_000_000, "1ms"),
            (10_000_000, "10ms"),
            (100_000_000, "100ms"),
            (1_000_000_000, "1s"),
            (10_000_000_000, "10s"),
        ] {
            let last = FIRST_LOG2 as usize + self.cells / self.per_octave;
            if ns < 1_u64 << last {
                line = format!("{line:<width$}{label}", width = self.cell_of(ns));
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(look: Look, lines: &[Hist]) -> String {
        let (mut map, mut out) = (HeatMap::new(look), Vec::new());
        let figures = [("wait", "22".to_owned()), ("now", "43ms".to_owned())];
        for hist in lines {
            map.write_line(&mut out, "04:42:10", hist, &figures).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    /// Shares of 90, 9.9, 0.09 and 0.01 per cent.
    fn overload() -> Hist {
        let of = |ns: u64, count: usize| std::iter::repeat_n(ns, count);
        let long = of(9_000_000, 990).chain(of(40_000_000, 9)).chain(of(3_000_000_000, 1));
        Hist::of(of(5_000, 9_000).chain(long))
    }

    const PLAIN: Look = Look { columns: 80, colours: false };

    #[test]
    fn lines_are_shades_below_a_scale() {
        insta::assert_snapshot!(written(PLAIN, &[overload(), Hist::default()]), @r"
        share of a line's waits in %:  . >0  : .03  - .1  = .3  + 1  * 3  # 10  @ 30
        time     1us   10us   100us 1ms    10ms  100ms  1s count   p99   max  wait   now
        04:42:10|    @                     *   :        .| 10000 9.0ms  3.0s    22  43ms
        04:42:10|                                        |     0     -     -    22  43ms
        ");
    }

    #[test]
    fn a_wide_terminal_has_finer_cells_and_longer_waits() {
        for (columns, width, cells) in [
            (0, 80, 40),
            (100, 88, 48),
            (120, 120, 80),
            (140, 136, 96),
            (200, 200, 160),
            (999, 200, 160),
        ] {
            let text = written(Look { columns, ..PLAIN }, &[overload()]);
            let line = text.lines().last().unwrap();
            assert_eq!(line.len(), width, "{line}");
            assert_eq!(line.split('|').nth(1).unwrap().len(), cells, "{line}");
            assert!(text.lines().all(|line| line.len() <= width), "{text}");
        }
        let text = written(Look { columns: 140, ..PLAIN }, &[overload()]);
        insta::assert_snapshot!(text, @r"
        share of a line's waits in %:  . >0  : .03  - .1  = .3  + 1  * 3  # 10  @ 30
        time     1us         10us          100us        1ms          10ms         100ms         1s           10s   count   p99   max  wait   now
        04:42:10|        @                                           *       :                        .          | 10000 9.0ms  3.0s    22  43ms
        ");
    }

    #[test]
    fn the_scale_comes_again() {
        let text = written(PLAIN, &vec![Hist::of([7_000]); 2 * HEADING_EVERY + 1]);
        let headings = text.lines().enumerate().filter(|(_, line)| line.starts_with("time "));
        assert_eq!(headings.map(|(at, _)| at).collect::<Vec<_>>(), [1, 23, 45]);
    }

    #[test]
    fn colours_leave_the_characters() {
        let (plain, lines) = (written(PLAIN, &[overload()]), [overload()]);
        let coloured = written(Look { colours: true, ..PLAIN }, &lines);
        assert!(coloured.contains("\x1b[38;5;136m\x1b[48;5;227m@\x1b[0m"), "{coloured:?}");
        assert!(!plain.contains('\x1b'));
        assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
    }

    #[test]
    fn shades_begin_at_their_shares() {
        assert_eq!(shade(0, 100_000), None);
        assert_eq!(shade(0, 0), None);
        for (level, (least, ..)) in SHADES.iter().enumerate() {
            assert_eq!(shade((*least).max(1), 100_000), Some(level));
            assert_eq!(shade(least.saturating_sub(1), 100_000), level.checked_sub(1));
        }
        assert_eq!(shade(u64::MAX, u64::MAX), Some(SHADES.len() - 1));
    }

    #[test]
    fn no_slot_is_in_two_cells() {
        for per_octave in [1, 2, 4, MOST_CELLS] {
            let scale = Scale { cells: per_octave * MOST_OCTAVES, per_octave };
            let hist = Hist::of((0..40 * 32).map(|i| (32 + i % 32) << (i / 32)));
            for (range, _) in hist.buckets().filter(|(range, _)| range.start >= 1 << FIRST_LOG2) {
                assert_eq!(scale.cell_of(range.start), scale.cell_of(range.end - 1), "{range:?}");
            }
            assert_eq!(scale.counts(&hist).iter().sum::<u64>(), hist.count());
            assert_eq!(scale.cell_of(u64::MAX), scale.cells - 1);
        }
    }
}
