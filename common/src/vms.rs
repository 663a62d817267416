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

fn processes() -> impl Iterator<Item = i32> {
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

/// Names of VMs by PID. A VM that is gone keeps the name it had, until nobody has asked for it for an interval: its
/// PID may be another's then.
#[derive(Default)]
pub struct Names {
    names: HashMap<i32, String>,
    asked: HashSet<i32>,
}

impl Names {
    /// The name of the VM of process `pid`, or `comm` if the process is gone already.
    pub fn name(&mut self, pid: i32, comm: &str) -> &str {
        self.asked.insert(pid);
        self.names.entry(pid).or_insert_with(|| name_of(pid).unwrap_or_else(|| comm.to_owned()))
    }

    /// Forgets who has not been asked for since the last interval's end.
    pub fn end_interval(&mut self) {
        let asked = mem::take(&mut self.asked);
        self.names.retain(|pid, _| asked.contains(pid));
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(names.name(i32::MAX, "loadgen-0001"), "loadgen-0001");
        assert_eq!(names.name(i32::MAX, "other"), "loadgen-0001");
        names.end_interval();
        assert_eq!(names.name(i32::MAX, "other"), "loadgen-0001");
        names.end_interval();
        names.end_interval();
        assert_eq!(names.name(i32::MAX, "other"), "other");
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
