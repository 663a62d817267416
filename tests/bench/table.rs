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
    /// The most that ours may be of the empty program's.
    pub floor_limit: Option<f64>,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.ours.median() / self.theirs.median()
    }

    fn floor_ratio(&self) -> Option<f64> {
        Some(self.ours.median() / self.floor.as_ref()?.median())
    }

    /// True if there is a limit and it is exceeded, or there is nothing to compare.
    pub fn missed(&self) -> bool {
        exceeded(self.ratio(), self.limit)
            || exceeded(self.floor_ratio().unwrap_or(f64::NAN), self.floor_limit)
    }

    fn line(&self) -> String {
        let Self { what, floor, ours, theirs, limit, .. } = self;
        let floor = floor.as_ref().map_or("-".to_owned(), |floor| format!("{:.1}", floor.median()));
        let (ours, theirs) = (ours.median(), theirs.median());
        let verdict = verdict(self.ratio(), *limit);
        format!("{what:<27}{floor:>8}{ours:>10.1}{theirs:>10.1}{verdict}").trim_end().to_owned()
    }

    /// A second line, where the empty program is what ours is held against, too.
    fn floor_line(&self) -> Option<String> {
        self.floor_limit?;
        let verdict = verdict(self.floor_ratio()?, self.floor_limit);
        Some(format!("{:<55}{verdict}", "  times the floor"))
    }
}

/// What is no number exceeds any limit.
fn exceeded(ratio: f64, limit: Option<f64>) -> bool {
    let within = |limit| ratio <= limit;
    !limit.is_none_or(within)
}

fn verdict(ratio: f64, limit: Option<f64>) -> String {
    let limit_text = limit.map_or("-".to_owned(), |limit| format!("{limit:.2}"));
    let verdict = match limit {
        None => "",
        Some(_) if exceeded(ratio, limit) => "MISSED",
        Some(_) => "ok",
    };
    format!("{ratio:>9.2}{limit_text:>7}  {verdict}")
}

/// Prints all rows, and below them how far they can be trusted.
pub fn print(rows: &[Row]) {
    println!(
        "{:<27}{:>8}{:>10}{:>10}{:>9}{:>7}  verdict",
        "median", "floor", "ours", "theirs", "ratio", "limit"
    );
    for row in rows {
        println!("{}", row.line());
        row.floor_line().iter().for_each(|line| println!("{line}"));
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
