//! The cgroups whose limits count for us: our own and those above it, in the hierarchy that has a controller.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use common::cgroup::{Mount, mounts};

use crate::cgroup::{Version, own_path};

/// Where the hierarchy with a controller is mounted: that of v1 if there is one.
pub(crate) fn mount_of(mountinfo: &str, controller: &str) -> Option<(Mount, Version)> {
    [Version::V1, Version::V2].into_iter().find_map(|version| {
        let mut found = mounts(mountinfo).filter(|mount| version.is_of(mount, controller));
        found.next().map(|mount| (mount, version))
    })
}

/// The chain on this host; empty without such a hierarchy.
pub(crate) fn of_own_cgroup(controller: &str) -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    chain(&mountinfo, &own, controller)
}

/// From our own cgroup to the one that is mounted.
fn chain(mountinfo: &str, own: &str, controller: &str) -> Vec<PathBuf> {
    let Some((mount, version)) = mount_of(mountinfo, controller) else { return Vec::new() };
    let below = own_path(own, version, controller).and_then(|p| p.strip_prefix(&mount.root).ok());
    let own = mount.point.join(below.unwrap_or(Path::new("")));
    let ours = own.ancestors().take_while(|path| path.starts_with(&mount.point));
    ours.map(Path::to_owned).collect()
}

/// Whether this process may make entries in a directory.
pub(crate) fn may_write(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path ends with a NUL.
    unsafe { libc::access(path.as_ptr(), libc::W_OK) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_in_the_hierarchy_of_the_controller() {
        let v1 = "36 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                  37 31 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "8:pids:/a/b\n0::/c\n";
        let at = |dirs: [&str; 3]| dirs.map(PathBuf::from);
        let pids = ["/sys/fs/cgroup/pids/a/b", "/sys/fs/cgroup/pids/a", "/sys/fs/cgroup/pids"];
        assert_eq!(chain(v1, own, "pids"), at(pids));
        let unified = ["/sys/fs/cgroup/unified/c", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(chain(v1, own, "memory"), unified);
        assert!(chain("", own, "pids").is_empty());
    }

    #[test]
    fn a_part_of_a_hierarchy_is_enough() {
        let mountinfo = "30 23 0:26 /docker/1 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        let found = chain(mountinfo, "0::/docker/1/x\n", "memory");
        assert_eq!(found, ["/sys/fs/cgroup/x", "/sys/fs/cgroup"].map(PathBuf::from));
    }
}
