//! What the tools of kvm-bpf-tools share: everything that is neither a tool's own program nor its own report.

pub mod args;
pub mod cgroup;
pub mod groups;
pub mod hist;
pub mod host;
pub mod maps;
pub mod output;
pub mod session;
pub mod time;
pub mod vms;
