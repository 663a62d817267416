//! What KVM on this host is, and what its tracepoints look like.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::session::host_cannot;

const MODULES: &str = "/sys/module";
/// Where tracefs is, or may be under debugfs.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The part of KVM that is made for this processor: `kvm_intel`, `kvm_amd` or another; `kvm` if that cannot be told.
pub fn vendor() -> String {
    let modules = fs::read_dir(MODULES).into_iter().flatten().flatten();
    let mut names = modules.filter_map(|module| module.file_name().into_string().ok());
    names.find(|name| name.starts_with("kvm_")).unwrap_or_else(|| "kvm".to_owned())
}

/// A tracepoint of KVM's, and where its record has the fields that bpf/vmlinux.h declares.
type Record = (&'static str, &'static [(&'static str, usize)]);

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
    let events = tracefs_events()?;
    for (name, fields) in RECORDS.iter().filter(|(name, _)| names.contains(name)) {
        let path = events.join("kvm").join(name).join("format");
        let Ok(format) = fs::read_to_string(&path) else {
            return Err(host_cannot(format!(
                "this kernel's KVM has no tracepoint `{name}`: boot one with CONFIG_FTRACE=y"
            )));
        };
        if let Some((field, _)) = fields.iter().find(|(f, at)| offset_of(&format, f) != Some(*at)) {
            return Err(host_cannot(format!(
                "this kernel's {name} has no `{field}` where it used to be: use a newer version"
            )));
        }
    }
    Ok(())
}

/// The directory of all tracepoints.
fn tracefs_events() -> Result<PathBuf> {
    for tracefs in TRACEFS {
        let events = Path::new(tracefs).join("events");
        match fs::read_dir(&events) {
            Ok(_) => return Ok(events),
            Err(err) if err.kind() == ErrorKind::PermissionDenied => {
                return Err(host_cannot(format!(
                    "not allowed to read `{}`: run as root",
                    events.display()
                )));
            }
            Err(_) => {}
        }
    }
    Err(host_cannot("tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing"))
}

/// The offset of a field in a tracepoint's format file.
fn offset_of(format: &str, name: &str) -> Option<usize> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().strip_prefix("field:")?.split(';');
        let declared = parts.next()?.split([' ', '[']).rfind(|word| !word.ends_with(']'))?;
        let offset = parts.find_map(|part| part.trim().strip_prefix("offset:"))?;
        (declared == name).then(|| offset.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_from_the_format() {
        let format = "name: kvm_exit\nformat:\n\tfield:unsigned int exit_reason;\toffset:8;\tsize:4;\n\
                      \n\tfield:u32 isa;\toffset:24;\tsize:4;\tsigned:0;\n";
        assert_eq!(offset_of(format, "exit_reason"), Some(8));
        assert_eq!(offset_of(format, "isa"), Some(24));
        assert_eq!(offset_of(format, "vcpu_id"), None);
        assert_eq!(offset_of("\tfield:__u8 comm[16];\toffset:8;\tsize:16;\n", "comm"), Some(8));
    }
}
