//! ksmstat, run as a user runs it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../util/mod.rs"]
mod util;

mod cli;
mod formats;
mod rates;
mod why;

/// The binary under test.
const KSMSTAT: &str = env!("CARGO_BIN_EXE_ksmstat");
