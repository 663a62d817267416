//! The table of the kvmexits bench: a column for each who is compared, 80 columns wide. Pure.

use crate::samples::Samples;

/// Prints the headings.
pub fn print_head(title: &str, columns: &[&str]) {
    let columns: String = columns.iter().map(|column| format!("{column:>9}")).collect();
    println!("\n{title:<35}{columns}");
}

/// Prints a row: medians, `-` for who was not measured.
pub fn print(what: &str, figures: &[Option<f64>]) {
    let largest =
        figures.iter().flatten().fold(0.0, |largest: f64, figure| largest.max(figure.abs()));
    let decimals = match largest {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let cell = |figure: &Option<f64>| match figure {
        Some(figure) => format!("{figure:>9.decimals$}"),
        None => format!("{:>9}", "-"),
    };
    println!("{what:<35}{}", figures.iter().map(cell).collect::<String>());
}

/// The median of each.
pub fn medians(samples: &[Samples]) -> Vec<Option<f64>> {
    samples.iter().map(Samples::median).map(|median| (!median.is_nan()).then_some(median)).collect()
}
