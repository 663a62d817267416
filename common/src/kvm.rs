//! What KVM on this host is, and what its tracepoints look like.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::session::host_cannot;

const MODULES: &str = "/sys/module";
/// Where tracefs is, or may be under debugfs.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Fails if this kernel has no KVM, loaded or built in, or its tracepoints cannot be found.
pub fn check() -> Result<()> {
    if !Path::new(MODULES).join("kvm").exists() {
        return Err(host_cannot("KVM is not loaded: modprobe kvm_intel or kvm_amd"));
    }
    exit_format().map(drop)
}

/// The format of kvm_exit's record.
fn exit_format() -> Result<String> {
    let read =
        |tracefs| fs::read_to_string(Path::new(tracefs).join("events/kvm/kvm_exit/format")).ok();
    TRACEFS.into_iter().find_map(read).ok_or_else(|| {
        host_cannot("tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing")
    })
}

/// The part of KVM that is made for this processor: `kvm_intel`, `kvm_amd` or another; `kvm` if that cannot be told.
pub fn vendor() -> String {
    let modules = fs::read_dir(MODULES).into_iter().flatten().flatten();
    let mut names = modules.filter_map(|module| module.file_name().into_string().ok());
    names.find(|name| name.starts_with("kvm_")).unwrap_or_else(|| "kvm".to_owned())
}

/// The fields of kvm_exit's record that bpf/vmlinux.h declares, and where they are.
const EXIT_RECORD: [(&str, usize); 4] =
    [("exit_reason", 8), ("isa", 24), ("info1", 32), ("vcpu_id", 56)];

/// Fails if kvm_exit's record is not what our program takes it for.
pub fn check_exit_record() -> Result<()> {
    let format = exit_format()?;
    match EXIT_RECORD.iter().find(|(name, offset)| offset_of(&format, name) != Some(*offset)) {
        None => Ok(()),
        Some((name, _)) => Err(host_cannot(format!(
            "this kernel's kvm_exit has no `{name}` where it used to be: use a newer kvmexits"
        ))),
    }
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
    }
}
