//! The directory that a ramp leaves behind: on which host it ran and how it was called. The rows and the tools' CSV
//! come to lie beside that.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::session::usage;
use serde_json::json;

/// Makes the directory and writes the facts; returns the file for the rows.
pub(crate) fn keep(dir: &Path) -> Result<File> {
    fs::create_dir(dir).map_err(|e| {
        let why = match e.kind() {
            io::ErrorKind::AlreadyExists => "it is there already".to_owned(),
            _ => e.to_string(),
        };
        usage(format!("cannot make the directory `{}`: {why}", dir.display()))
    })?;
    let path = dir.join("host.json");
    let written = fs::write(&path, format!("{:#}\n", facts()));
    written.with_context(|| format!("failed to write `{}`", path.display()))?;
    let path = dir.join("ramp.csv");
    File::create(&path).with_context(|| format!("failed to write `{}`", path.display()))
}

fn facts() -> serde_json::Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let of = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim_start_matches(['\t', ' ', ':']).trim().to_owned())
    };
    let modules = ["kvm_intel", "kvm_amd", "kvm_pvm"];
    let module = modules.into_iter().find(|name| Path::new("/sys/module").join(name).exists());
    json!({
        "time": jiff::Timestamp::now().to_string(),
        "command": std::env::args().collect::<Vec<_>>(),
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": read("/proc/version").trim(),
        "cpus": std::thread::available_parallelism().map(usize::from).ok(),
        "cpu": of(&cpuinfo, "model name"),
        "kvm_module": module,
        "memory": of(&read("/proc/meminfo"), "MemTotal"),
    })
}
