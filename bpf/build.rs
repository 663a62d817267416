//! Builds the BPF programs.

fn main() {}
