//! The table that the bench prints, 80 columns wide. Pure.

use crate::samples::Samples;

/// One thing measured.
pub struct Row {
    /// What, with its unit.
    pub what: &'static str,
    /// Of the empty program, where it has any.
    pub floor: Option<Samples>,
    /// Of our tool.
    pub ours: Samples,
    /// Of libbpf-tools'.
    pub theirs: Samples,
    /// The most that ours may be of theirs.
    pub limit: Option<f64>,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.ours.median() / self.theirs.median()
    }

    /// True if there is a limit and it is exceeded, or there is nothing to compare.
    pub fn missed(&self) -> bool {
        let within = |limit| self.ratio() <= limit;
        !self.limit.is_none_or(within)
    }

    fn line(&self) -> String {
        let Self { what, floor, ours, theirs, limit } = self;
        let floor = floor.as_ref().map_or("-".to_owned(), |floor| format!("{:.1}", floor.median()));
        let limit_text = limit.map_or("-".to_owned(), |limit| format!("{limit:.2}"));
        let verdict = match limit {
            None => "",
            Some(_) if self.missed() => "MISSED",
            Some(_) => "ok",
        };
        let (ours, theirs, ratio) = (ours.median(), theirs.median(), self.ratio());
        let line = format!(
            "{what:<27}{floor:>8}{ours:>10.1}{theirs:>10.1}{ratio:>9.2}{limit_text:>7}  {verdict}"
        );
        line.trim_end().to_owned()
    }
}

/// Prints all rows, and below them how far they can be trusted.
pub fn print(rows: &[Row]) {
    println!(
        "{:<27}{:>8}{:>10}{:>10}{:>9}{:>7}  verdict",
        "median", "floor", "ours", "theirs", "ratio", "limit"
    );
    for row in rows {
        println!("{}", row.line());
    }
    println!("\nratio: ours / theirs. Noise, even rounds against odd ones of the same tool:");
    for row in rows.iter().filter(|row| row.limit.is_some()) {
        let percent = |samples: &Samples| {
            let [even, odd] = samples.halves();
            100.0 * (even / odd - 1.0).abs()
        };
        let (ours, theirs) = (percent(&row.ours), percent(&row.theirs));
        println!("  {:<27}ours {ours:.1} %, theirs {theirs:.1} %", row.what);
    }
}
