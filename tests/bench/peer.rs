//! The peer: libbpf-tools' runqlat.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Where Debian's and Fedora's libbpf-tools have it.
const RUNQLAT: [&str; 2] = ["/usr/sbin/runqlat", "/usr/sbin/bpf-runqlat"];

/// The program.
pub fn runqlat() -> Result<&'static str> {
    let found = RUNQLAT.into_iter().find(|path| Path::new(path).exists());
    found.with_context(|| format!("there is no `{}`: install the package libbpf-tools", RUNQLAT[0]))
}
