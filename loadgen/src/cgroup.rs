//! The cgroup that keeps guests from starving the host: one name in every hierarchy where it is of use, v1
//! `cpu` and v2 alike, with a low weight. Guests with a CPU quota have one each, below it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::cgroup::{Mount, mounts};
use common::session::host_cannot;

use crate::guest;
use crate::quota;

/// `cpu.shares` of all guests together; one ordinary task of nice 0 has 1,024.
const CPU_SHARES: u32 = 64;
/// The same as a v2 `cpu.weight`, where an ordinary task has 100.
const CPU_WEIGHT: u32 = 6;
/// What guests get instead, where there is no cgroup with a weight.
const NICE: i32 = 19;

/// The directories of one cgroup.
#[derive(Default)]
pub(crate) struct Cgroup {
    dirs: Vec<Dir>,
    /// Where the cpu controller was switched on for this cgroup.
    switched_on: Option<PathBuf>,
    has_weight: bool,
    /// What each guest may have, in per cent of a CPU.
    quota_percent: Option<u32>,
}

/// The cgroup's directory in one hierarchy.
struct Dir {
    path: PathBuf,
    /// The file by which a process joins it: a guest that had to put the path together would pay with memory.
    procs: PathBuf,
    version: Version,
    /// Whether the guests' cgroups below it have their quota here.
    has_quotas: bool,
}

/// The kinds of hierarchies that it is made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
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
            for mount in mounts(&mountinfo).filter(|mount| version.is_of(mount, "cpu")).take(1) {
                // The top of the tree is right for root; next to its own cgroup is where others may be
                // allowed to.
                let beside = own_path(&own, version, "cpu")
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
        let (file, weight) = match version {
            Version::V1 => ("cpu.shares", CPU_SHARES),
            Version::V2 => ("cpu.weight", CPU_WEIGHT),
        };
        // A v2 tree whose controllers are mounted as v1 has no weights: the v1 cgroup has it then.
        let weighed = fs::write(dir.join(file), weight.to_string());
        self.has_weight |= weighed.is_ok();
        let procs = dir.join("cgroup.procs");
        self.dirs.push(Dir { path: dir, procs, version, has_quotas: false });
        Ok(())
    }

    /// Guests that are added from now on have a quota. [`host_cannot`] if they cannot have one.
    pub(crate) fn limit_guests(&mut self, percent: u32) -> Result<()> {
        for dir in &mut self.dirs {
            dir.has_quotas = quota::enable_below(&dir.path, dir.version);
        }
        if !self.dirs.iter().any(|dir| dir.has_quotas) {
            return Err(host_cannot(
                "no cgroup with a CPU quota can be made: run as root or in a delegated cgroup with the cpu controller, \
                 on a kernel with CONFIG_CFS_BANDWIDTH, or leave out --cpu-max",
            ));
        }
        self.quota_percent = Some(percent);
        Ok(())
    }

    /// Makes a guest's own cgroup, if guests have one.
    pub(crate) fn add_guest(&self, index: u32) -> Result<()> {
        let Some(percent) = self.quota_percent else { return Ok(()) };
        for dir in &self.dirs {
            let path = dir.path.join(guest::name(index));
            let mut made = fs::create_dir(&path);
            if dir.has_quotas {
                made = made.and_then(|()| quota::set(&path, dir.version, percent));
            }
            made.map_err(|e| {
                host_cannot(format!(
                    "failed to make the cgroup `{}` with a quota of {percent} % of a CPU: {e}: see the limits of \
                     those above it (cgroup.max.descendants, cpu.cfs_quota_us)",
                    path.display()
                ))
            })?;
        }
        Ok(())
    }

    /// Lets a guest leave as if it had no quota: leaving is no part of the load. If that fails it takes longer.
    pub(crate) fn lift_quota(&self, index: u32) {
        for dir in self.dirs.iter().filter(|dir| dir.has_quotas) {
            _ = quota::lift(&dir.path.join(guest::name(index)), dir.version);
        }
    }

    /// How long a guest has been out of quota, on all CPUs together; none if it has no quota.
    pub(crate) fn throttled_ns(&self, index: u32) -> Option<u64> {
        let dir = self.dirs.iter().find(|dir| dir.has_quotas)?;
        quota::throttled_ns(&dir.path.join(guest::name(index)))
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

    /// Where there is no cgroup with a weight, the calling thread and those it starts are nice instead.
    pub(crate) fn or_nice(&self) -> io::Result<()> {
        if self.has_weight {
            return Ok(());
        }
        // SAFETY: setpriority has no memory to go wrong with.
        match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The calling process, which is this guest, joins it or its own below it.
    pub(crate) fn join(&self, index: u32) -> io::Result<()> {
        for dir in &self.dirs {
            // Opened by each guest anew: one file inherited by all would make them queue for its position.
            let mut options = File::options();
            let mut procs = match self.quota_percent {
                None => options.write(true).open(&dir.procs)?,
                Some(_) => {
                    let own = dir.path.join(guest::name(index));
                    options.write(true).open(own.join("cgroup.procs"))?
                }
            };
            procs.write_all(b"0")?;
        }
        Ok(())
    }

    /// Kills whatever is in the cgroup, removes it, and undoes what making it has changed. Gives up after
    /// `patience`.
    pub(crate) fn remove(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        for Dir { path, version, .. } in &self.dirs {
            loop {
                // Those below it must go first. The dying need CPU, too: nobody waits until they have a quota again.
                for own in children(path) {
                    if fs::remove_dir(&own).is_err() {
                        _ = quota::lift(&own, *version);
                        kill_all(&own);
                    }
                }
                match fs::remove_dir(path) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                    Err(e) if Instant::now() >= deadline => return Err(e),
                    Err(_) => kill_all(path),
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

/// The cgroups right below this one.
fn children(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())).map(|entry| entry.path())
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
    /// Whether this is a hierarchy of the version, and of the controller where that has its own.
    pub(crate) fn is_of(self, mount: &Mount, controller: &str) -> bool {
        match self {
            Self::V1 => mount.kind == "cgroup" && mount.options.split(',').any(|o| o == controller),
            Self::V2 => mount.kind == "cgroup2",
        }
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
33 24 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
30 23 0:26 /docker/1 /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw,nsdelegate
22 1 8:1 / / rw - ext4 /dev/sda1 rw
";
        let points = |version: Version| -> Vec<PathBuf> {
            mounts(mountinfo).filter(|m| version.is_of(m, "cpu")).map(|m| m.point).collect()
        };
        assert_eq!(points(Version::V1), [Path::new("/sys/fs/cgroup/cpu,cpuacct")]);
        assert_eq!(points(Version::V2), [Path::new("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn its_own_cgroup_is_found_in_both_versions() {
        let own = "3:cpuset:/a\n1:cpu,cpuacct:/b/c\n0::/d\n";
        assert_eq!(own_path(own, Version::V1, "cpu"), Some(Path::new("/b/c")));
        assert_eq!(own_path(own, Version::V2, "cpu"), Some(Path::new("/d")));
        assert_eq!(own_path("1:cpu:/\n", Version::V2, "cpu"), None);
    }
}
