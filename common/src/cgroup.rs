//! Control groups (v2) as the kernel side compares them: an ID and a depth in the hierarchy.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::host;
use crate::session::usage;

/// A cgroup v2 directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its kernfs node's ID, which is the directory's inode number (fs/kernfs/inode.c).
    pub id: u64,
    /// Its depth; the hierarchy's root has 0.
    pub level: u32,
}

impl Cgroup {
    /// Finds a cgroup by its directory. A usage error if it is none.
    pub fn resolve(path: &Path) -> Result<Self> {
        let shown = path.display();
        let (Ok(path), Ok(metadata)) = (path.canonicalize(), fs::metadata(path)) else {
            return Err(usage(format!("there is no cgroup `{shown}`")));
        };
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let hint = match first_cgroup2(&mountinfo) {
            Some(root) => format!("name one below {}", root.display()),
            None => "this host has none".to_owned(),
        };
        let Some(mount) = mount_of(&path, &mountinfo).filter(|_| metadata.is_dir()) else {
            return Err(usage(format!("`{shown}` is no cgroup directory: {hint}")));
        };
        if mount.kind != "cgroup2" {
            return Err(usage(format!("`{shown}` is not a cgroup of version 2: {hint}")));
        }
        host::check_cgroup_namespace()?;
        let depth = |path: &Path| path.components().count();
        // Both the mount's root and its mount point begin with a component for `/`.
        let level = depth(&mount.root) - 1 + depth(&path) - depth(&mount.point);
        Ok(Self { id: metadata.ino(), level: level as u32 })
    }
}

/// Where a cgroup hierarchy, or a part of it, is mounted.
#[derive(Debug)]
pub struct Mount {
    /// The path within the hierarchy of what is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// `cgroup` (version 1) or `cgroup2`.
    pub kind: String,
    /// The options of the hierarchy; of version 1, its controllers are among them.
    pub options: String,
}

/// The lines of /proc/self/mountinfo that are cgroup mounts (proc(5); octal escapes do not occur in them).
pub fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount> {
    mountinfo.lines().filter_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        let mut rest = rest.split(' ');
        let kind = rest.next().filter(|kind| kind.starts_with("cgroup"))?;
        let mut fields = fields.split(' ').skip(3);
        Some(Mount {
            root: fields.next()?.into(),
            point: fields.next()?.into(),
            kind: kind.to_owned(),
            options: rest.nth(1)?.to_owned(),
        })
    })
}

fn mount_of(path: &Path, mountinfo: &str) -> Option<Mount> {
    let holders = mounts(mountinfo).filter(|mount| path.starts_with(&mount.point));
    holders.max_by_key(|mount| mount.point.components().count())
}

fn first_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    mounts(mountinfo).find(|mount| mount.kind == "cgroup2").map(|mount| mount.point)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
33 25 0:28 /machine.slice /mnt/machines rw - cgroup2 cgroup2 rw
";

    #[test]
    fn the_innermost_mount_counts() {
        let mount = mount_of(Path::new("/sys/fs/cgroup/unified/a/b"), HYBRID).unwrap();
        assert_eq!(
            (mount.kind.as_str(), mount.point),
            ("cgroup2", "/sys/fs/cgroup/unified".into())
        );
        let mount = mount_of(Path::new("/sys/fs/cgroup/cpu/a"), HYBRID).unwrap();
        assert_eq!(mount.kind, "cgroup");
        let mount = mount_of(Path::new("/mnt/machines/vm"), HYBRID).unwrap();
        assert_eq!(mount.root, Path::new("/machine.slice"));
        assert!(mount_of(Path::new("/etc"), HYBRID).is_none());
        assert_eq!(first_cgroup2(HYBRID), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn what_is_no_cgroup_is_refused() {
        let refusal = |path: &str| Cgroup::resolve(Path::new(path)).unwrap_err().to_string();
        assert_eq!(refusal("/no/such"), "there is no cgroup `/no/such`");
        assert!(refusal("/etc").starts_with("`/etc` is no cgroup directory: "));
    }
}
