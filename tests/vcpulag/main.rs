//! vcpulag, run as a user runs it, with real guests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../util/mod.rs"]
mod util;

mod cli;
mod filters;
mod formats;
mod idle;
mod steal;

/// The binary under test.
const VCPULAG: &str = env!("CARGO_BIN_EXE_vcpulag");
