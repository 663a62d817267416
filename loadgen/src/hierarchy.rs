//! Where a cgroup can be made: the hierarchies that are mounted, v1 and v2, and the controllers they have.

use std::fs;
use std::path::{Path, PathBuf};

use common::cgroup::{Mount, mounts};

/// The versions of hierarchies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// A hierarchy for a few controllers.
    V1,
    /// The one for all that no v1 hierarchy has, if any.
    V2,
}

/// What holds processes to a share of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Controller {
    /// Of CPU time.
    Cpu,
    /// Of memory.
    Memory,
}

impl Controller {
    /// Its name in files and mount options.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }

    /// Lets children of a v2 cgroup have it; true if that was necessary and possible.
    pub(crate) fn switch_on(self, parent: &Path) -> bool {
        let lists_it = |file: &str| {
            let list = fs::read_to_string(parent.join(file)).unwrap_or_default();
            list.split_whitespace().any(|controller| controller == self.name())
        };
        lists_it("cgroup.controllers")
            && !lists_it("cgroup.subtree_control")
            && fs::write(parent.join("cgroup.subtree_control"), format!("+{}", self.name())).is_ok()
    }

    /// Undoes that, if no other fleet is there, which may need it as we did.
    pub(crate) fn switch_off(self, parent: &Path) {
        if !has_fleet(parent) {
            _ = fs::write(parent.join("cgroup.subtree_control"), format!("-{}", self.name()));
        }
    }
}

fn has_fleet(parent: &Path) -> bool {
    fs::read_dir(parent).is_ok_and(|entries| {
        let mut names = entries.flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().starts_with("loadgen-"))
    })
}

impl Version {
    /// Whether this is a hierarchy of the version, and of the controller where that has its own.
    pub(crate) fn is_of(self, mount: &Mount, controller: &str) -> bool {
        match self {
            Self::V1 => mount.kind == "cgroup" && mount.options.split(',').any(|o| o == controller),
            Self::V2 => mount.kind == "cgroup2",
        }
    }

    /// Where in the hierarchy a cgroup may be made, the best first; nowhere if it is not mounted. From the text of
    /// /proc/self/mountinfo and of /proc/self/cgroup.
    pub(crate) fn parents(
        self,
        controller: Controller,
        mountinfo: &str,
        own: &str,
    ) -> impl Iterator<Item = PathBuf> {
        let mount = mounts(mountinfo).find(|mount| self.is_of(mount, controller.name()));
        // The top of the tree is right for root; next to its own cgroup is where others may be allowed to.
        let beside = mount.as_ref().and_then(|mount| {
            let path = own_path(own, self, controller.name())?;
            Some(mount.point.join(path.strip_prefix(&mount.root).ok()?.parent()?))
        });
        [mount.map(|mount| mount.point), beside].into_iter().flatten()
    }
}

/// This process's own cgroup, from /proc/self/cgroup.
pub(crate) fn own_path<'a>(own: &'a str, version: Version, controller: &str) -> Option<&'a Path> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let found = match version {
            Version::V1 => controllers.split(',').any(|c| c == controller),
            Version::V2 => controllers.is_empty(),
        };
        found.then(|| Path::new(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_by_what_they_are() {
        let mountinfo = "\
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 24 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
30 23 0:26 /docker/1 /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw,nsdelegate
22 1 8:1 / / rw - ext4 /dev/sda1 rw
";
        let own = "3:memory:/a\n1:cpu,cpuacct:/b/c\n0::/docker/1/d/e\n";
        for (version, controller, point, beside) in [
            (Version::V1, Controller::Cpu, "/sys/fs/cgroup/cpu,cpuacct", "b"),
            (Version::V1, Controller::Memory, "/sys/fs/cgroup/memory", ""),
            (Version::V2, Controller::Cpu, "/sys/fs/cgroup/unified", "d"),
        ] {
            let parents: Vec<PathBuf> = version.parents(controller, mountinfo, own).collect();
            assert_eq!(parents, [Path::new(point).to_owned(), Path::new(point).join(beside)]);
            assert_eq!(version.parents(controller, "", own).count(), 0);
        }
    }

    #[test]
    fn its_own_cgroup_is_found_in_both_versions() {
        let own = "3:cpuset:/a\n1:cpu,cpuacct:/b/c\n0::/d\n";
        assert_eq!(own_path(own, Version::V1, "cpu"), Some(Path::new("/b/c")));
        assert_eq!(own_path(own, Version::V2, "cpu"), Some(Path::new("/d")));
        assert_eq!(own_path("1:cpu:/\n", Version::V2, "cpu"), None);
    }
}
