//! The cgroup that keeps guests from starving the host: one name in every hierarchy where it is of use, v1 and v2
//! alike, with a low weight unless another is asked for. Guests with limits of their own have one each, below it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use common::session::host_cannot;

use crate::controls::Controls;
use crate::guest;
use crate::hierarchy::{Controller, Version};
use crate::memory_max;
use crate::quota;
use crate::size::size_text;
use crate::weight::Weight;

/// The directories of one cgroup.
pub(crate) struct Cgroup {
    dirs: Vec<Dir>,
    /// The controllers that were switched on for this cgroup, and where.
    switched_on: Vec<(Controller, PathBuf)>,
    /// What it holds guests to.
    controls: Controls,
}

/// The cgroup's directory in one hierarchy.
struct Dir {
    path: PathBuf,
    /// The file by which a process joins it: a guest that had to put the path together would pay with memory.
    procs: PathBuf,
    version: Version,
    /// Whether it is here that guests have their share of the CPUs.
    has_cpu: bool,
    /// Whether it is here that guests have their memory limits.
    has_memory: bool,
}

impl Cgroup {
    /// Makes the cgroup wherever it can be made and is of use.
    pub(crate) fn create(name: &str, controls: &Controls) -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut cgroup =
            Self { dirs: Vec::new(), switched_on: Vec::new(), controls: controls.clone() };
        for (version, controller) in [
            (Version::V1, Controller::Cpu),
            (Version::V1, Controller::Memory),
            (Version::V2, Controller::Cpu),
        ] {
            // Nobody who has no memory limit is counted; nor is one hierarchy with both controllers used twice.
            if controller == Controller::Memory && !cgroup.lacks(controller) {
                continue;
            }
            let mut parents = version.parents(controller, &mountinfo, &own);
            _ = parents.any(|parent| cgroup.add(&parent, name, version).is_ok());
        }
        cgroup
    }

    /// One directory.
    fn add(&mut self, parent: &Path, name: &str, version: Version) -> io::Result<()> {
        // A v2 tree whose controllers are mounted as v1 has none: the v1 cgroup has them then.
        for controller in [Controller::Cpu, Controller::Memory] {
            if version == Version::V2 && self.lacks(controller) && controller.switch_on(parent) {
                self.switched_on.push((controller, parent.to_owned()));
            }
        }
        let path = parent.join(name);
        fs::create_dir(&path)?;
        let has_cpu = self.lacks(Controller::Cpu) && Weight::exists(&path, version);
        let has_memory = self.lacks(Controller::Memory) && memory_max::exists(&path, version);
        let procs = path.join("cgroup.procs");
        self.dirs.push(Dir { path, procs, version, has_cpu, has_memory });
        Ok(())
    }

    /// True if there is use for a controller, and no directory with it.
    fn lacks(&self, controller: Controller) -> bool {
        match controller {
            Controller::Cpu => !self.has_weight(),
            Controller::Memory => {
                self.controls.have_memory_max() && !self.dirs.iter().any(|dir| dir.has_memory)
            }
        }
    }

    /// True if guests together have a weight.
    pub(crate) fn has_weight(&self) -> bool {
        self.dirs.iter().any(|dir| dir.has_cpu)
    }

    /// Makes it ready for guests to be added: [`host_cannot`] if they cannot be held to what is asked for.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        let Controls { cpu_max_percent, memory_max_bytes, .. } = self.controls;
        if self.controls.weight.is_some() && !self.has_weight() {
            return Err(host_cannot(
                "no cgroup with a CPU weight can be made: run as root or in a delegated cgroup with the cpu \
                 controller, or leave out --weight",
            ));
        }
        let has_quota = |dir: &Dir| {
            dir.has_cpu
                && quota::exists(&dir.path, dir.version)
                && (cpu_max_percent.is_none() || dir.enable_below(Controller::Cpu))
        };
        if self.controls.have_quota() && !self.dirs.iter().any(has_quota) {
            return Err(host_cannot(
                "no cgroup with a CPU quota can be made: run as root or in a delegated cgroup with the cpu controller, \
                 on a kernel with CONFIG_CFS_BANDWIDTH, or leave out --cpu-max and --fleet-cpu-max",
            ));
        }
        let has_limit = |dir: &Dir| {
            dir.has_memory && (memory_max_bytes.is_none() || dir.enable_below(Controller::Memory))
        };
        if self.controls.have_memory_max() && !self.dirs.iter().any(has_limit) {
            return Err(host_cannot(
                "no cgroup with a memory limit can be made: run as root or in a delegated cgroup with the memory \
                 controller, on a kernel with CONFIG_MEMCG, or leave out --memory-max and --fleet-memory-max",
            ));
        }
        let Some(bytes) = self.controls.fleet_memory_max_bytes else { return Ok(()) };
        for dir in self.dirs.iter().filter(|dir| dir.has_memory) {
            memory_max::set(&dir.path, dir.version, bytes)
                .map_err(|e| refused(&dir.path, &memory_text(bytes), &e))?;
        }
        Ok(())
    }

    /// Makes a guest's own cgroup, if guests have one.
    pub(crate) fn add_guest(&self, number: u32) -> Result<()> {
        if !self.controls.hold_each_guest() {
            return Ok(());
        }
        for dir in &self.dirs {
            let path = dir.of_guest(number);
            fs::create_dir(&path).map_err(|e| refused(&path, "limits", &e))?;
            if let Some(bytes) = self.controls.memory_max_bytes
                && dir.has_memory
            {
                memory_max::set(&path, dir.version, bytes)
                    .map_err(|e| refused(&path, &memory_text(bytes), &e))?;
            }
        }
        Ok(())
    }

    /// Gives the fleet its share of the CPUs, when guests have been created. Not before: at so low a weight, and with a
    /// quota, creation would starve as soon as the host has anything else to do.
    pub(crate) fn limit_cpu(&self) -> Result<()> {
        for dir in self.dirs.iter().filter(|dir| dir.has_cpu) {
            Weight::of(&self.controls)
                .set(&dir.path, dir.version)
                .map_err(|e| refused(&dir.path, "a CPU weight", &e))?;
            if let Some(percent) = self.controls.fleet_cpu_max_percent {
                set_quota(&dir.path, dir.version, percent)?;
            }
        }
        Ok(())
    }

    /// The same for a guest; after the fleet, as in v1 nobody's quota may be above its parent's
    /// (tg_cfs_schedulable_down of the kernel).
    pub(crate) fn limit_cpu_of(&self, number: u32) -> Result<()> {
        let Some(percent) = self.controls.cpu_max_percent else { return Ok(()) };
        let mut dirs = self.dirs.iter().filter(|dir| dir.has_cpu);
        dirs.try_for_each(|dir| set_quota(&dir.of_guest(number), dir.version, percent))
    }

    /// Lets guests leave as if the fleet had no quota, and was not idle: leaving is no part of the load. If that fails it
    /// takes longer.
    pub(crate) fn lift_cpu(&self) {
        self.dirs.iter().filter(|dir| dir.has_cpu).for_each(|dir| lift(&dir.path, dir.version));
    }

    /// The same for the quota of a guest.
    pub(crate) fn lift_cpu_of(&self, number: u32) {
        if self.controls.cpu_max_percent.is_some() {
            let dirs = self.dirs.iter().filter(|dir| dir.has_cpu);
            dirs.for_each(|dir| lift(&dir.of_guest(number), dir.version));
        }
    }

    /// How long a guest has been out of quota, on all CPUs together; none if it has no quota of its own.
    pub(crate) fn throttled_ns(&self, number: u32) -> Option<u64> {
        self.controls.cpu_max_percent?;
        let dir = self.dirs.iter().find(|dir| dir.has_cpu)?;
        quota::throttled_ns(&dir.of_guest(number))
    }

    /// Removes a guest's own cgroup, if it had one; false if the kernel is not done with it yet, as with the thread that
    /// KVM had for the guest.
    pub(crate) fn remove_guest(&self, number: u32) -> bool {
        let is_gone = |dir: &Dir| match fs::remove_dir(dir.of_guest(number)) {
            Err(e) => e.kind() == io::ErrorKind::NotFound,
            Ok(()) => true,
        };
        !self.controls.hold_each_guest()
            || self.dirs.iter().filter(|dir| !is_gone(dir)).count() == 0
    }

    /// The memory limit for which the kernel has killed a guest, in words; none if it has not. Of a guest without a
    /// cgroup of its own it is known only that it was this one or another.
    pub(crate) fn memory_kill(&self, number: u32) -> Option<String> {
        let dir = self.dirs.iter().find(|dir| dir.has_memory)?;
        let own = dir.of_guest(number);
        let kills = memory_max::kills(&own, dir.version)
            .or_else(|| memory_max::kills(&dir.path, dir.version));
        if kills? == 0 {
            return None;
        }
        let Controls { memory_max_bytes, fleet_memory_max_bytes, .. } = self.controls;
        match memory_max_bytes.filter(|_| memory_max::was_reached(&own, dir.version)) {
            Some(bytes) => {
                Some(format!("it reached its memory limit (--memory-max {})", size_text(bytes)))
            }
            None => fleet_memory_max_bytes.map(|bytes| {
                format!(
                    "the guests together reached their memory limit (--fleet-memory-max {})",
                    size_text(bytes)
                )
            }),
        }
    }

    /// The calling process, which is this guest, joins what has memory limits, before it allocates anything: memory
    /// belongs to where one is at that moment. For all else see [`Cgroup::admit`].
    pub(crate) fn join_for_memory(&self, number: u32) -> io::Result<()> {
        for dir in self.dirs.iter().filter(|dir| dir.has_memory) {
            dir.open_procs(self.guest_of(number))?.write_all(b"0")?;
        }
        Ok(())
    }

    /// Takes guests, given by number and PID, to where they are to be when they have been created: the cgroup, or their
    /// own below it. Not before: creation at so low a weight would starve as soon as the host has anything else to do,
    /// other guests for one.
    pub(crate) fn admit(&self, guests: impl Iterator<Item = (u32, u32)> + Clone) -> Result<()> {
        for dir in self.dirs.iter().filter(|dir| !dir.has_memory) {
            let failed = |e| anyhow!("failed to move guests to `{}`: {e}", dir.path.display());
            let mut procs = dir.open_procs(None).map_err(failed)?;
            for (index, pid) in guests.clone() {
                if let own @ Some(_) = self.guest_of(index) {
                    procs = dir.open_procs(own).map_err(failed)?;
                }
                match procs.write_all(pid.to_string().as_bytes()) {
                    // Whoever has died is missed elsewhere.
                    Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(failed(e)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The guest with this number, if guests have cgroups of their own.
    fn guest_of(&self, index: u32) -> Option<u32> {
        self.controls.hold_each_guest().then_some(index)
    }

    /// Kills whatever is in the cgroup, removes it, and undoes what making it has changed. Gives up after
    /// `patience`.
    pub(crate) fn remove(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        for Dir { path, version, .. } in &self.dirs {
            // The dying need CPU, too: nobody waits until they have a quota again.
            lift(path, *version);
            loop {
                // Those below it must go first.
                for own in children(path) {
                    if fs::remove_dir(&own).is_err() {
                        lift(&own, *version);
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
        self.switched_on.iter().for_each(|(controller, parent)| controller.switch_off(parent));
        Ok(())
    }
}

impl Dir {
    /// The file by which a process joins the directory, or that of a guest.
    fn open_procs(&self, guest: Option<u32>) -> io::Result<File> {
        let mut options = File::options();
        match guest {
            None => options.write(true).open(&self.procs),
            Some(index) => options.write(true).open(self.of_guest(index).join("cgroup.procs")),
        }
    }

    /// The guest's own directory, if guests have one.
    fn of_guest(&self, number: u32) -> PathBuf {
        self.path.join(guest::name(number))
    }

    /// Lets guests' own cgroups have a controller that the fleet's has; false if they cannot.
    fn enable_below(&self, controller: Controller) -> bool {
        self.version == Version::V1 || controller.switch_on(&self.path)
    }
}

fn set_quota(dir: &Path, version: Version, percent: u32) -> Result<()> {
    quota::set(dir, version, percent)
        .map_err(|e| refused(dir, &format!("a quota of {percent} % of a CPU"), &e))
}

/// Takes away what keeps those in a cgroup from running, if it has anything of that kind.
fn lift(dir: &Path, version: Version) {
    _ = quota::lift(dir, version);
    _ = Weight::lift_idle(dir);
}

fn memory_text(bytes: u64) -> String {
    format!("a memory limit of {}", size_text(bytes))
}

fn refused(dir: &Path, limit: &str, cause: &io::Error) -> anyhow::Error {
    host_cannot(format!(
        "failed to make the cgroup `{}` with {limit}: {cause}: see the limits of those above it \
         (cgroup.max.descendants, cpu.cfs_quota_us)",
        dir.display()
    ))
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
