//! The kernel's tracepoints, as tracefs describes them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::session::host_cannot;

/// Where tracefs is, or may be under debugfs.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// A tracepoint, and where its record has the fields that bpf/vmlinux.h declares.
pub type Record = (&'static str, &'static [(&'static str, usize)]);

/// What this kernel has of a tracepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its record is as our programs take it to be.
    Fits,
    /// This field is elsewhere, or not there.
    Differs(&'static str),
    /// There is no such tracepoint.
    Missing,
}

/// Compares a tracepoint of `system` with what our programs take it to be. "This host cannot" without tracefs.
pub fn find(system: &str, (name, fields): &Record) -> Result<Found> {
    let path = tracefs_events()?.join(system).join(name).join("format");
    let Ok(format) = fs::read_to_string(&path) else {
        return Ok(Found::Missing);
    };
    let moved = fields.iter().find(|(field, at)| offset_of(&format, field) != Some(*at));
    Ok(moved.map_or(Found::Fits, |(field, _)| Found::Differs(field)))
}

/// The directory of all tracepoints.
fn tracefs_events() -> Result<PathBuf> {
    for tracefs in TRACEFS {
        let events = Path::new(tracefs).join("events");
        match fs::read_dir(&events) {
            Ok(_) => return Ok(events),
            Err(err) if err.kind() == ErrorKind::PermissionDenied => {
                return Err(host_cannot(format!(
                    "not allowed to read `{}`: run as root, or with CAP_DAC_READ_SEARCH",
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
