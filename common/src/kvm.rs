//! What KVM on this host is, and what its tracepoints look like.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::session::host_cannot;
use crate::tracepoints::{self, Found, Record};

const MODULES: &str = "/sys/module";

/// The part of KVM that is made for this processor: `kvm_intel`, `kvm_amd` or another; `kvm` if that cannot be told.
pub fn vendor() -> String {
    let modules = fs::read_dir(MODULES).into_iter().flatten().flatten();
    let mut names = modules.filter_map(|module| module.file_name().into_string().ok());
    names.find(|name| name.starts_with("kvm_")).unwrap_or_else(|| "kvm".to_owned())
}

const RECORDS: [Record; 8] = [
    ("kvm_exit", &[("exit_reason", 8), ("isa", 24), ("info1", 32), ("vcpu_id", 56)]),
    ("kvm_userspace_exit", &[("reason", 8), ("errno", 12)]),
    ("kvm_fpu", &[("load", 8)]),
    ("kvm_pio", &[("rw", 8), ("port", 12)]),
    ("kvm_mmio", &[("type", 8), ("gpa", 16)]),
    ("kvm_msr", &[("write", 8), ("ecx", 12)]),
    ("kvm_hypercall", &[("nr", 8)]),
    ("kvm_vcpu_wakeup", &[("waited", 16)]),
];

/// Fails if KVM is not there, or one of these tracepoints has another record than our programs take it to have.
pub fn check_tracepoints(names: &[&str]) -> Result<()> {
    if !Path::new(MODULES).join("kvm").exists() {
        return Err(host_cannot("KVM is not loaded: modprobe kvm_intel or kvm_amd"));
    }
    for record in RECORDS.iter().filter(|(name, _)| names.contains(name)) {
        let (name, _) = record;
        match tracepoints::find("kvm", record)? {
            Found::Fits => {}
            Found::Missing => {
                return Err(host_cannot(format!(
                    "this kernel's KVM has no tracepoint `{name}`: boot one with CONFIG_FTRACE=y"
                )));
            }
            Found::Differs(field) => {
                return Err(host_cannot(format!(
                    "this kernel's {name} has no `{field}` where it used to be: use a newer version"
                )));
            }
        }
    }
    Ok(())
}
