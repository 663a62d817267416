//! runqlat: how long do runnable tasks wait for a CPU?

fn main() {}
