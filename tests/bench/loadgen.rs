//! The load generator.

use std::path::Path;
use std::process::Command;

/// `loadgen run`. `tool` is one of those built beside it.
pub fn command(tool: &str) -> Command {
    let mut command = Command::new(Path::new(tool).with_file_name("loadgen"));
    command.arg("run");
    command
}
