//! The cgroup that keeps guests from starving the host: one name in every hierarchy where it is of use, v1
//! `cpu` and v2 alike, with a low weight.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::cgroup::{Mount, mounts};

/// `cpu.shares` of all guests together; one ordinary task of nice 0 has 1,024.
const CPU_SHARES: u32 = 64;
/// The same as a v2 `cpu.weight`, where an ordinary task has 100.
const CPU_WEIGHT: u32 = 6;
/// What guests get instead, where there is no cgroup with a weight.
const NICE: i32 = 19;

/// The directories of one cgroup, and the files by which a process joins it.
#[derive(Default)]
pub(crate) struct Cgroup {
    dirs: Vec<PathBuf>,
    procs: Vec<PathBuf>,
    /// Where the cpu controller was switched on for this cgroup.
    switched_on: Option<PathBuf>,
    has_weight: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// A v1 hierarchy with the cpu controller.
    V1,
    /// The v2 hierarchy, with or without controllers.
    V2,
}

impl Cgroup {
    /// Makes the cgroup wherever it can be made.
    pub(crate) fn create(name: &str) -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut cgroup = Self::default();
        for version in [Version::V1, Version::V2] {
            for mount in mounts(&mountinfo).filter(|mount| version.is_of(mount)).take(1) {
                // The top of the tree is right for root; next to its own cgroup is where others may be
                // allowed to.
                let beside = own_path(&own, version)
                    .and_then(|path| path.strip_prefix(&mount.root).ok()?.parent())
                    .map(|path| mount.point.join(path));
                let parents = [Some(mount.point), beside];
                let mut parents = parents.into_iter().flatten();
                _ = parents.any(|parent| cgroup.add(&parent, name, version).is_ok());
            }
        }
        cgroup
    }

    /// One directory.
    fn add(&mut self, parent: &Path, name: &str, version: Version) -> io::Result<()> {
        if version == Version::V2 && !self.has_weight && switch_on_cpu(parent) {
            self.switched_on = Some(parent.to_owned());
        }
        let dir = parent.join(name);
        fs::create_dir(&dir)?;
        self.dirs.push(dir.clone());
        self.procs.push(dir.join("cgroup.procs"));
        let (file, weight) = match version {
            Version::V1 => ("cpu.shares", CPU_SHARES),
            Version::V2 => ("cpu.weight", CPU_WEIGHT),
        };
        // A v2 tree whose controllers are mounted as v1 has no weights: the v1 cgroup has it then.
        let weighed = fs::write(dir.join(file), weight.to_string());
        self.has_weight |= weighed.is_ok();
        Ok(())
    }

    /// A sentence about what is missing, if anything is.
    pub(crate) fn warning(&self) -> Option<String> {
        (!self.has_weight).then(|| {
            format!(
                "no cgroup with a cpu weight could be made (not root, or no cpu controller): \
                 guests run at nice {NICE} instead"
            )
        })
    }

    /// The calling process joins it, or is nice instead.
    pub(crate) fn join(&self) -> io::Result<()> {
        for procs in &self.procs {
            // Opened by each guest anew: one file inherited by all would make them queue for its position.
            File::options().write(true).open(procs)?.write_all(b"0")?;
        }
        if !self.has_weight {
            // SAFETY: setpriority has no memory to go wrong with.
            let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Kills whatever is in the cgroup, removes it, and undoes what making it has changed. Gives up after
    /// `patience`.
    pub(crate) fn remove(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        for dir in &self.dirs {
            loop {
                match fs::remove_dir(dir) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                    Err(e) if Instant::now() >= deadline => return Err(e),
                    Err(_) => kill_all(dir),
                    Ok(()) => break,
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        if let Some(parent) = &self.switched_on
            && !has_fleet(parent)
        {
            _ = fs::write(parent.join("cgroup.subtree_control"), "-cpu");
        }
        Ok(())
    }
}

/// Kills every process in a cgroup directory: by the kernel's own means where it has them (v2 since 5.14).
fn kill_all(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines().filter_map(|pid| pid.parse().ok()) {
        // SAFETY: kill has no memory to go wrong with.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Lets children of a v2 cgroup have a cpu weight; true if that was necessary and possible.
fn switch_on_cpu(parent: &Path) -> bool {
    let lists_cpu = |file: &str| {
        let list = fs::read_to_string(parent.join(file)).unwrap_or_default();
        list.split_whitespace().any(|controller| controller == "cpu")
    };
    lists_cpu("cgroup.controllers")
        && !lists_cpu("cgroup.subtree_control")
        && fs::write(parent.join("cgroup.subtree_control"), "+cpu").is_ok()
}

/// True if another fleet has its cgroup in this directory, and needs the cpu controller as we did.
fn has_fleet(parent: &Path) -> bool {
    fs::read_dir(parent).is_ok_and(|entries| {
        let mut names = entries.flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().starts_with("loadgen-"))
    })
}

impl Version {
    fn is_of(self, mount: &Mount) -> bool {
        match self {
            Self::V1 => mount.kind == "cgroup" && mount.options.split(',').any(|o| o == "cpu"),
            Self::V2 => mount.kind == "cgroup2",
        }
    }
}

/// This process's own cgroup, from /proc/self/cgroup.
fn own_path(own: &str, version: Version) -> Option<&Path> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let found = match version {
            Version::V1 => controllers.split(',').any(|c| c == "cpu"),
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
33 24 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
30 23 0:26 /docker/1 /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw,nsdelegate
22 1 8:1 / / rw - ext4 /dev/sda1 rw
";
        let points = |version: Version| -> Vec<PathBuf> {
            mounts(mountinfo).filter(|m| version.is_of(m)).map(|m| m.point).collect()
        };
        assert_eq!(points(Version::V1), [Path::new("/sys/fs/cgroup/cpu,cpuacct")]);
        assert_eq!(points(Version::V2), [Path::new("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn its_own_cgroup_is_found_in_both_versions() {
        let own = "3:cpuset:/a\n1:cpu,cpuacct:/b/c\n0::/d\n";
        assert_eq!(own_path(own, Version::V1), Some(Path::new("/b/c")));
        assert_eq!(own_path(own, Version::V2), Some(Path::new("/d")));
        assert_eq!(own_path("1:cpu:/\n", Version::V2), None);
    }
}
