//! What a host must have for a fleet: looked for before anything is created, and told in a sentence with the remedy.

use std::io;
use std::path::Path;

use anyhow::Result;
use common::session::host_cannot;
use kvm_ioctls::{Cap, Kvm};

use crate::exits::ExitKind;
use crate::fleet::Spec;
use crate::ksm;
use crate::room::{Each, Room};
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
        KVM_API_VERSION if kvm.check_extension(Cap::UserMemory) => Ok(kvm),
        KVM_API_VERSION => Err(host_cannot("KVM has no KVM_CAP_USER_MEMORY: use a newer kernel")),
        version => Err(host_cannot(format!(
            "`/dev/kvm` has API version {version}, not {KVM_API_VERSION}: this kernel is too old, use a newer one"
        ))),
    }
}

/// Refuses what this host could only fail at halfway; too little memory only if all guests are to come at once.
pub(crate) fn host(kvm: &Kvm, spec: &Spec, at_once: bool) -> Result<()> {
    check_limits(kvm, spec, at_once)?;
    check_merging(spec)?;
    check_kinds(spec)
}

fn check_limits(kvm: &Kvm, spec: &Spec, at_once: bool) -> Result<()> {
    let most_vcpus = kvm.get_max_vcpus();
    if spec.vcpus as usize > most_vcpus {
        return Err(host_cannot(format!(
            "KVM allows {most_vcpus} vCPUs in a guest here, not {}: ask for fewer",
            spec.vcpus
        )));
    }
    let room = Room::read(Each::of(spec));
    let room = if at_once { room } else { room.but_for_memory() };
    match room.refuses(spec.vms.into()) {
        Some(sentence) => Err(host_cannot(sentence)),
        None => Ok(()),
    }
}

/// Refuses merging without KSM.
fn check_merging(spec: &Spec) -> Result<()> {
    let has_any = spec.memory.is_some() || spec.linux.is_some();
    if has_any && spec.mem_merge && !ksm::exists() {
        return Err(host_cannot(
            "this kernel has no KSM (CONFIG_KSM), which is to merge memory: use --mem-merge off",
        ));
    }
    Ok(())
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
