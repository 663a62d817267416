//! Guests that run on while tools look at them, in a cgroup of their own: somebody else may have guests, too.

use std::fs;
use std::path::PathBuf;

use super::loadgen;
use super::tool::Tool;

/// Running guests, which end when dropped.
pub struct Guests(Option<Tool>);

impl Guests {
    /// As `loadgen run` starts them.
    pub fn start(args: &[&str]) -> Self {
        Self(Some(Tool::start(&loadgen(), &[&["run"], args].concat())))
    }

    /// All of them on one CPU.
    pub fn on_cpu(cpu: usize, args: &[&str]) -> Self {
        let (cpu, loadgen) = (cpu.to_string(), loadgen());
        let command = ["-c", &cpu, &loadgen, "run"];
        Self(Some(Tool::start("taskset", &[&command, args].concat())))
    }

    /// The cgroup of version 2 that they are in.
    pub fn cgroup(&self) -> String {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let point = mount.expect("a cgroup2 mount").split(' ').nth(1).unwrap();
        format!("{point}/loadgen-{}", self.0.as_ref().unwrap().pid())
    }

    /// Their processes, in the order of their names.
    pub fn pids(&self) -> Vec<u32> {
        let procs = fs::read_to_string(PathBuf::from(self.cgroup()).join("cgroup.procs")).unwrap();
        let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        let mut pids: Vec<u32> = procs.lines().map(|pid| pid.parse().unwrap()).collect();
        pids.sort_by_key(|&pid| name(pid));
        pids
    }

    /// Ends them well.
    pub fn end(mut self) {
        let ended = self.0.take().unwrap().end(libc::SIGTERM);
        assert!(ended.status.success(), "{}", ended.stderr);
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        if let Some(tool) = self.0.take() {
            // SAFETY: a plain system call; the child has not been waited for, so the PID is its own.
            unsafe { libc::kill(tool.pid() as i32, libc::SIGTERM) };
        }
    }
}
