//! What holds on every supported kernel: run here, and by tests/vm inside a VM with each kernel of the matrix, as
//! root, with real guests. A VM is slow: figures are exact in number, generous in time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../util/mod.rs"]
mod util;

mod kvmexits;
mod loadgen;
