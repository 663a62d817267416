//! What a host must have for a fleet: looked for before anything is created, and told in a sentence with the remedy.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Result;
use common::host;
use common::session::host_cannot;
use kvm_ioctls::{Cap, Kvm};

use crate::exits::ExitKind;
use crate::fleet::Spec;
use crate::ksm;
use crate::size::size_text;
use crate::workload::Workload;

/// `KVM_API_VERSION`: it will never be another.
const KVM_API_VERSION: i32 = 12;

/// Opens /dev/kvm, or says what this host lacks.
pub(crate) fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|e| {
        let cause = io::Error::from(e);
        match cause.kind() {
            io::ErrorKind::NotFound => host_cannot(
                "`/dev/kvm` does not exist: load kvm_intel or kvm_amd, and see that virtualization is on in \
                 the firmware (in a virtual machine: nested virtualization)",
            ),
            io::ErrorKind::PermissionDenied => host_cannot(
                "not allowed to open `/dev/kvm`: run as root, or as a member of the group that owns it (kvm)",
            ),
            _ => host_cannot(format!(
                "failed to open `/dev/kvm`: {cause}: see whether a KVM module for this processor is loaded"
            )),
        }
    })?;
    match kvm.get_api_version() {
        KVM_API_VERSION => Ok(kvm),
        version => Err(host_cannot(format!(
            "`/dev/kvm` has API version {version}, not {KVM_API_VERSION}: this kernel is too old, use a newer one"
        ))),
    }
}

/// Refuses what this host could only fail at halfway.
pub(crate) fn host(kvm: &Kvm, spec: &Spec) -> Result<()> {
    check_limits(kvm, spec)?;
    check_memory(spec)?;
    check_kinds(spec)
}

fn check_limits(kvm: &Kvm, spec: &Spec) -> Result<()> {
    if !kvm.check_extension(Cap::UserMemory) {
        return Err(host_cannot("KVM has no KVM_CAP_USER_MEMORY: use a newer kernel"));
    }
    let most_vcpus = kvm.get_max_vcpus();
    if spec.vcpus as usize > most_vcpus {
        return Err(host_cannot(format!(
            "KVM allows {most_vcpus} vCPUs in a guest here, not {}: ask for fewer",
            spec.vcpus
        )));
    }
    let tasks = u64::from(spec.vms) * u64::from(spec.threads()) + host::threads()?;
    for limit in ["pid_max", "threads-max"] {
        let path = format!("/proc/sys/kernel/{limit}");
        let most = fs::read_to_string(path).unwrap_or_default();
        // What else the host starts meanwhile is not known: leave a little room.
        let needed = tasks + 100;
        if most.trim().parse().is_ok_and(|most: u64| most < needed) {
            return Err(host_cannot(format!(
                "too many guests: kernel.{limit} is {}, and {needed} are needed: \
                 sysctl -w kernel.{limit}={}",
                most.trim(),
                needed.next_multiple_of(1024)
            )));
        }
    }
    Ok(())
}

/// Refuses memory that would have to be swapped out or killed for, and merging without KSM.
fn check_memory(spec: &Spec) -> Result<()> {
    let Some(memory) = &spec.memory else { return Ok(()) };
    if spec.mem_merge && !ksm::exists() {
        return Err(host_cannot(
            "this kernel has no KSM (CONFIG_KSM), which is to merge memory: use --mem-merge off",
        ));
    }
    let needed_bytes = u64::from(spec.vms) * memory.bytes;
    let available_bytes = available_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    match available_bytes {
        Some(available_bytes) if available_bytes < needed_bytes => Err(host_cannot(format!(
            "too much memory: {} guests with {} each need {}, and this host has {} available: ask for fewer or for less",
            spec.vms,
            size_text(memory.bytes),
            size_text(needed_bytes),
            size_text(available_bytes >> 20 << 20) // whole MiB
        ))),
        _ => Ok(()),
    }
}

/// `MemAvailable` of /proc/meminfo.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// Refuses the exits that this KVM cannot make.
fn check_kinds(spec: &Spec) -> Result<()> {
    let hypercalls =
        matches!(spec.workload, Workload::Exits(e) if e.count(ExitKind::Hypercall) > 0);
    // It runs ring 0 in the kernel's emulator, which replaces the instruction by itself and starts over, for ever.
    if hypercalls && Path::new("/sys/module/kvm_pvm").exists() {
        return Err(host_cannot(
            "KVM without hardware (kvm_pvm) has no end of emulating a hypercall: leave out `hypercall`, or use \
             a host with kvm_intel or kvm_amd",
        ));
    }
    Ok(())
}
