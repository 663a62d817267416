//! What many rounds gave, and their median. Pure.

/// Figures of one kind in the order of their rounds.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a round's figure.
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The median; of an even number, the upper of the two in the middle.
    pub fn median(&self) -> f64 {
        median(self.0.iter().copied())
    }

    /// The medians of even and odd rounds: the same thing measured against itself.
    pub fn halves(&self) -> [f64; 2] {
        [0, 1].map(|first| median(self.0.iter().copied().skip(first).step_by(2)))
    }
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
