//! What people and programs read: written to standard output at once.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};

/// Whole lines.
pub(crate) fn write(lines: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(lines)
        .and_then(|()| stdout.flush())
        .context("failed to write to standard output")
}

/// A line.
pub(crate) fn print(line: &str) -> Result<()> {
    write(format!("{line}\n").as_bytes())
}
