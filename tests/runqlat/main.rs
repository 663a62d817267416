//! runqlat, run as a user runs it, against the kernel's own books.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../util/mod.rs"]
mod util;

mod accounting;
mod cli;
mod filters;
mod formats;
mod guests;

/// The binary under test.
const RUNQLAT: &str = env!("CARGO_BIN_EXE_runqlat");
