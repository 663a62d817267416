//! What the tools of kvm-bpf-tools share: everything that is neither a tool's own program nor its own report.

pub mod session;
