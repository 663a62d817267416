//! What the tools write with --openmetrics, read by those it is written for: the real node_exporter, the real
//! Prometheus, promtool.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../util/mod.rs"]
mod util;

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../util/metrics.rs"]
mod families;

mod cli;
mod overload;
mod producer;
mod server;
mod shipped;

use std::io::Write as _;
use std::process::{Command, Stdio};

/// The tools, and their pages.
const TOOLS: [(&str, &str); 4] = [
    (env!("CARGO_BIN_EXE_runqlat"), include_str!("../../man/runqlat.8")),
    (env!("CARGO_BIN_EXE_kvmexits"), include_str!("../../man/kvmexits.8")),
    (env!("CARGO_BIN_EXE_vcpulag"), include_str!("../../man/vcpulag.8")),
    (env!("CARGO_BIN_EXE_ksmstat"), include_str!("../../man/ksmstat.8")),
];

/// A tool's name.
fn name(tool: &str) -> &str {
    tool.rsplit('/').next().unwrap()
}

/// A file of this project.
fn shipped(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// `promtool check metrics` has nothing to say about this text.
fn assert_clean(text: &str) {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut child = promtool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}
