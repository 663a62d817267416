//! Virtual machines as people know them: a process and a name. The name is what the VMM was told on its command
//! line, or the libvirt scope it runs in, or else the process's name.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::{fs, mem};

use anyhow::Result;

use crate::session::usage;

/// A process that runs a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// The process ID.
    pub pid: i32,
    /// The VM's name.
    pub name: String,
}

/// Finds a running VM by name or PID. A usage error if there is none, or more than one.
pub fn find(wanted: &str) -> Result<Vm> {
    if let Ok(pid) = wanted.parse() {
        if runs_vm(pid) {
            return Ok(Vm { pid, name: name_of(pid).unwrap_or_default() });
        }
        return Err(usage(format!("process {pid} runs no VM")));
    }
    let named = |pid| name_of(pid).map(|name| Vm { pid, name }).filter(|vm| vm.name == wanted);
    let mut found = processes().filter_map(named).filter(|vm| runs_vm(vm.pid));
    let Some(vm) = found.next() else {
        return Err(usage(format!("no VM is named `{wanted}`")));
    };
    match found.next() {
        None => Ok(vm),
        Some(twin) => Err(usage(format!(
            "more than one VM is named `{wanted}`: name it by PID ({}, {}, ...)",
            vm.pid, twin.pid
        ))),
    }
}

/// All processes, by PID.
pub fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// True if the process holds a VM's file descriptor (virt/kvm/kvm_main.c names it `kvm-vm`).
fn runs_vm(pid: i32) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|target| target == Path::new("anon_inode:kvm-vm"))
}

/// The name of the VM that a process runs; `None` if the process is gone.
fn name_of(pid: i32) -> Option<String> {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let args: Vec<_> = cmdline.split(|&b| b == 0).map(String::from_utf8_lossy).collect();
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    // Bytes: a process may call itself what it likes, UTF-8 or not.
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let comm = String::from_utf8_lossy(&comm);
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let name = name_from_args(&args).map(str::to_owned).or_else(|| name_from_cgroup(&cgroups));
    Some(name.unwrap_or_else(|| comm.trim_end().to_owned()))
}

/// The name given on the command line of QEMU (`-name guest=vm7,…`, `-name vm7`) or Firecracker (`--id vm7`).
fn name_from_args<'a>(args: &[&'a str]) -> Option<&'a str> {
    let vmm = Path::new(args.first()?).file_name()?.to_str()?;
    let value_of = |option: &str| {
        let mut args = args.iter().skip(1);
        args.find_map(|arg| match arg.strip_prefix(option) {
            Some("") => Some(None),
            Some(rest) => rest.strip_prefix('=').map(Some),
            None => None,
        })
        .and_then(|inline| inline.or_else(|| args.next().copied()))
    };
    if vmm.starts_with("qemu") || vmm == "kvm" {
        let value = value_of("-name").or_else(|| value_of("--name"))?;
        let guest = value.split(',').find_map(|part| part.strip_prefix("guest="));
        return guest.or_else(|| value.split(',').next()).filter(|name| !name.is_empty());
    }
    if vmm.starts_with("firecracker") {
        return value_of("--id");
    }
    None
}

/// The name in a libvirt (systemd-machined) scope: `machine-qemu\x2d3\x2dweb.scope` is `web`. It serves VMMs that
/// are told no name, cloud-hypervisor for one.
fn name_from_cgroup(cgroups: &str) -> Option<String> {
    let scope = cgroups.lines().flat_map(|line| line.split('/')).find_map(|part| {
        part.strip_prefix("machine-")?
            .strip_suffix(".scope")
            .map(|scope| scope.replace("\\x2d", "-"))
    })?;
    // DRIVER-ID-NAME
    let mut parts = scope.splitn(3, '-').skip(1);
    let numbered = parts.next()?.parse::<u32>().is_ok();
    parts.next().filter(|_| numbered).map(str::to_owned)
}

/// When a process was started, in clock ticks since boot; `None` if it is gone. The kernel rounds
/// `task->start_boottime` down (fs/proc/array.c: `do_task_stat`).
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name is in parentheses and may itself have some, and spaces. After it: field 3; the start is field 22.
    stat.rsplit_once(')')?.1.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// The length of a clock tick of /proc (`USER_HZ`).
fn tick_ns() -> u64 {
    // SAFETY: sysconf only returns a number.
    let hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    1_000_000_000 / u64::try_from(hz).ok().filter(|hz| *hz > 0).unwrap_or(100)
}

/// True if `pid` is now the process that was started then, give or take a tick, or if its start is not known.
fn is_still(pid: i32, start_boottime_ns: u64) -> bool {
    let started = |ticks: u64| ticks.abs_diff(start_boottime_ns / tick_ns()) <= 1;
    start_boottime_ns == 0 || start_ticks(pid).is_some_and(started)
}

/// Names of VMs by PID and start time. A VM that is gone keeps the name it had, until nobody has asked for it for an
/// interval: if its start is not known, its PID may be another's then.
#[derive(Default)]
pub struct Names {
    names: HashMap<(i32, u64), String>,
    asked: HashSet<(i32, u64)>,
}

impl Names {
    /// The name of the VM of process `pid`, or `comm` if the process is gone already. It was started at
    /// `start_boottime_ns`, the kernel's `task->group_leader->start_boottime`: another that has its PID now does not
    /// give its name. 0 if the start is not known.
    pub fn name(&mut self, pid: i32, start_boottime_ns: u64, comm: &str) -> &str {
        let key = (pid, start_boottime_ns);
        self.asked.insert(key);
        self.names.entry(key).or_insert_with(|| {
            // In this order: who has the PID after its files were read had it all the time.
            let name = name_of(pid).filter(|_| is_still(pid, start_boottime_ns));
            name.unwrap_or_else(|| comm.to_owned())
        })
    }

    /// The same, of a process that may run no VM: `None` then.
    pub fn vm(&mut self, pid: i32, start_boottime_ns: u64, comm: &str) -> Option<&str> {
        let known = self.names.contains_key(&(pid, start_boottime_ns));
        (known || runs_vm(pid)).then(|| self.name(pid, start_boottime_ns, comm))
    }

    /// Forgets who has not been asked for since the last interval's end.
    pub fn end_interval(&mut self) {
        let asked = mem::take(&mut self.asked);
        self.names.retain(|key, _| asked.contains(key));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};
    use std::thread;

    use super::*;

    #[test]
    fn qemu_is_told_its_guests_name() {
        let qemu = "/usr/bin/qemu-system-x86_64";
        let name = |args: &[&'static str]| name_from_args(&[&[qemu], args].concat());
        assert_eq!(name(&["-name", "guest=web,debug-threads=on", "-smp", "2"]), Some("web"));
        assert_eq!(name(&["-name", "debug-threads=on,guest=web"]), Some("web"));
        assert_eq!(name(&["-m", "512", "-name", "db,process=x"]), Some("db"));
        assert_eq!(name(&["-m", "512"]), None);
        assert_eq!(name(&["-name"]), None);
    }

    #[test]
    fn firecracker_has_an_id() {
        assert_eq!(name_from_args(&["firecracker", "--id", "vm-7"]), Some("vm-7"));
        assert_eq!(name_from_args(&["/opt/firecracker-v1.9", "--id=vm-8"]), Some("vm-8"));
        assert_eq!(name_from_args(&["sleep", "--id", "vm-7"]), None);
        assert_eq!(name_from_args(&[""]), None);
    }

    #[test]
    fn libvirts_scope_names_the_rest() {
        let scope = "0::/machine.slice/machine-ch\\x2d3\\x2dmy\\x2dvm.scope/emulator\n";
        assert_eq!(name_from_cgroup(scope).as_deref(), Some("my-vm"));
        assert_eq!(name_from_cgroup("0::/user.slice\n"), None);
        assert_eq!(name_from_cgroup("0::/machine.slice/machine-x.scope\n"), None);
    }

    #[test]
    fn a_process_that_is_gone_keeps_its_comm() {
        let mut names = Names::default();
        assert_eq!(names.name(i32::MAX, 0, "loadgen-0001"), "loadgen-0001");
        assert_eq!(names.name(i32::MAX, 0, "other"), "loadgen-0001");
        names.end_interval();
        assert_eq!(names.name(i32::MAX, 0, "other"), "loadgen-0001");
        names.end_interval();
        names.end_interval();
        assert_eq!(names.name(i32::MAX, 0, "other"), "other");
    }

    /// A process whose command line is that of a Firecracker, until it is dropped.
    struct Firecracker(Child);

    impl Firecracker {
        fn start(id: &str) -> Self {
            let mut command = Command::new("/bin/sh");
            command.arg0("firecracker").args(["-c", "read _", "sh", "--id", id]);
            let vm = Self(command.stdin(Stdio::piped()).spawn().unwrap());
            // execve lets the parent go on before the new command line can be read (fs/exec.c: `begin_new_exec`).
            while fs::read(format!("/proc/{}/cmdline", vm.pid())).unwrap().is_empty() {
                thread::yield_now();
            }
            vm
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }
    }

    impl Drop for Firecracker {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn boottime_ns() -> u64 {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is there to be written to.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) }, 0);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    #[test]
    fn starts_are_ticks_of_the_boot_clock() {
        let before = boottime_ns();
        let vm = Firecracker::start("vm-7");
        let after = boottime_ns();
        let ticks = start_ticks(vm.pid()).unwrap();
        assert!((before / tick_ns()..=after / tick_ns()).contains(&ticks));
        assert_eq!(start_ticks(i32::MAX), None);
    }

    #[test]
    fn another_process_of_the_same_pid_does_not_give_its_name() {
        let vm = Firecracker::start("vm-7");
        let (pid, start) = (vm.pid(), start_ticks(vm.pid()).unwrap() * tick_ns());
        let mut names = Names::default();
        assert_eq!(names.name(pid, start - 1_000_000_000, "earlier"), "earlier");
        assert_eq!(names.name(pid, start + 1_000_000_000, "later"), "later");
        assert_eq!(names.name(pid, start, "right"), "vm-7");
        assert_eq!(names.name(pid, start + tick_ns() - 1, "right"), "vm-7");
        assert_eq!(names.name(pid, 0, "unknown"), "vm-7");
        drop(vm);
        assert_eq!(names.name(pid, start, "gone"), "vm-7");
        assert_eq!(names.name(pid, start + 1, "gone"), "gone");
        names.end_interval();
        names.end_interval();
        assert_eq!(names.name(pid, start, "gone"), "gone");
    }

    #[test]
    fn this_process_runs_no_vm() {
        let pid = std::process::id() as i32;
        assert_eq!(
            find(&pid.to_string()).unwrap_err().to_string(),
            format!("process {pid} runs no VM")
        );
        assert!(find("no such VM").is_err());
    }
}
