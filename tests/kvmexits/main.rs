//! kvmexits, run as a user runs it, against guests that know what they did.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../util/mod.rs"]
mod util;

mod churn;
mod cli;
mod detail;
mod filters;
mod formats;
mod guests;

/// The binary under test.
const KVMEXITS: &str = env!("CARGO_BIN_EXE_kvmexits");
