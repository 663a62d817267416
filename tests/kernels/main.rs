//! What holds on every supported kernel: run here, and by tests/vm inside a VM with each kernel of the matrix, as
//! root, with real guests. A VM is slow: figures are exact in number, generous in time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../util/mod.rs"]
mod util;

mod capabilities;
mod ksm_guests;
mod ksmstat;
mod ksmstat_why;
mod kvmexits;
mod loadgen;
mod loadgen_check;
mod readme;
mod runqlat;
mod vcpulag;

/// The running kernel's version, as (6, 12).
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
