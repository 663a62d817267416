//! The facts, as the kernel has them: files of /proc and /sys, and what KVM says of itself.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use kvm_bindings::{KVM_CAP_STEAL_TIME, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;

use crate::chain::{self, may_write};
use crate::checks;
use crate::hierarchy::Version;

/// Of a module's parameters and of KSM's: values by name.
pub(super) type Values = BTreeMap<String, String>;

/// What is judged.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) device: Option<Device>,
    /// `kvm_intel`, `kvm_amd` or another; `kvm` if that cannot be told; none without KVM.
    pub(super) module: Option<String>,
    /// Parameters of that module.
    pub(super) parameters: Values,
    /// Those of kvm.
    pub(super) kvm_parameters: Values,
    /// The processor's, with those of VMX.
    pub(super) cpu_flags: Vec<String>,
    /// Whether guests can have steal time, if KVM can be asked.
    pub(super) steal: Option<bool>,
    /// The files of /sys/kernel/mm/ksm; empty without KSM.
    pub(super) ksm: Values,
    /// `enabled` of transparent huge pages, as the kernel writes it.
    pub(super) huge_pages: Option<String>,
    /// Where the controllers that matter to guests are.
    pub(super) cpu_controller: Option<Controller>,
    pub(super) memory_controller: Option<Controller>,
}

/// /dev/kvm.
#[derive(Debug)]
pub(super) struct Device {
    /// Permission bits.
    pub(super) mode: u32,
    pub(super) owner: String,
    pub(super) group: String,
    /// Whether we could open it, and KVM is one that guests run on.
    pub(super) works: bool,
}

/// A controller of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Controller {
    pub(super) version: Version,
    /// Whether we may make cgroups that it is for.
    pub(super) delegated: bool,
}

impl Facts {
    /// Reads them all; with what keeps KVM from running any guest.
    pub(super) fn read() -> (Self, Option<anyhow::Error>) {
        let (kvm, fails) = match checks::open_kvm() {
            Ok(kvm) => (Some(kvm), None),
            Err(e) => (None, Some(e)),
        };
        let module = module();
        let parameters = |module: &str| values(&format!("/sys/module/{module}/parameters"));
        let facts = Self {
            device: device(kvm.is_some()),
            parameters: module.as_deref().map(parameters).unwrap_or_default(),
            kvm_parameters: parameters("kvm"),
            module,
            cpu_flags: cpu_flags(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            steal: kvm.as_ref().map(has_steal),
            ksm: values("/sys/kernel/mm/ksm"),
            huge_pages: fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok(),
            cpu_controller: controller("cpu"),
            memory_controller: controller("memory"),
        };
        (facts, fails)
    }
}

fn module() -> Option<String> {
    Path::new("/sys/module/kvm").exists().then(common::kvm::vendor)
}

/// All small files of a directory.
fn values(dir: &str) -> Values {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let value = |path: &Path| Some(fs::read_to_string(path).ok()?.trim().to_owned());
    let named = |name: std::ffi::OsString| name.into_string().ok();
    entries.filter_map(|e| Some((named(e.file_name())?, value(&e.path())?))).collect()
}

fn device(works: bool) -> Option<Device> {
    let metadata = fs::metadata("/dev/kvm").ok()?;
    let name = |file: &str, id| name_of(&fs::read_to_string(file).unwrap_or_default(), id);
    Some(Device {
        mode: metadata.mode() & 0o7777,
        owner: name("/etc/passwd", metadata.uid()),
        group: name("/etc/group", metadata.gid()),
        works,
    })
}

/// The name that /etc/passwd or /etc/group has for a number, or else the number.
fn name_of(file: &str, id: u32) -> String {
    let id = id.to_string();
    let found = file.lines().find(|line| line.split(':').nth(2) == Some(&id));
    found.and_then(|line| line.split(':').next()).unwrap_or(&id).to_owned()
}

/// Of the first processor. What VMX can do is in a line of its own (since 5.8).
fn cpu_flags(cpuinfo: &str) -> Vec<String> {
    let first = cpuinfo.split("\n\n").next().unwrap_or_default().lines();
    let lines = first.filter_map(|line| line.split_once(':'));
    let flags = lines.filter(|(name, _)| ["flags", "vmx flags"].contains(&name.trim()));
    flags.flat_map(|(_, flags)| flags.split_whitespace()).map(str::to_owned).collect()
}

/// KVM says it twice: as a capability, and as the feature bit that guests see.
fn has_steal(kvm: &Kvm) -> bool {
    const KVM_CPUID_FEATURES: u32 = 0x4000_0001;
    const KVM_FEATURE_STEAL_TIME: u32 = 5;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let features = cpuid.ok().and_then(|cpuid| {
        cpuid
            .as_slice()
            .iter()
            .find(|leaf| leaf.function == KVM_CPUID_FEATURES)
            .map(|leaf| leaf.eax)
    });
    kvm.check_extension_raw(KVM_CAP_STEAL_TIME.into()) > 0
        && features.is_some_and(|eax| eax >> KVM_FEATURE_STEAL_TIME & 1 == 1)
}

fn controller(name: &str) -> Option<Controller> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (mount, version) = chain::mount_of(&mountinfo, name)?;
    let own = chain::of_own_cgroup(name);
    // Beside our own, or at the top: as `Cgroup::create` does.
    let mut parents = own.get(1).into_iter().chain([&mount.point]);
    let has = |dir: &Path| {
        let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        version == Version::V1 || controllers.split_whitespace().any(|found| found == name)
    };
    has(&mount.point)
        .then(|| Controller { version, delegated: parents.any(|dir| has(dir) && may_write(dir)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_of_the_first_processor() {
        let cpuinfo = "processor\t: 0\nflags\t\t: fpu vmx\nvmx flags\t: ept ple\n\n\
                       processor\t: 1\nflags\t\t: fpu svm\n";
        assert_eq!(cpu_flags(cpuinfo), ["fpu", "vmx", "ept", "ple"]);
        assert!(cpu_flags("").is_empty());
    }

    #[test]
    fn numbers_have_names() {
        let group = "root:x:0:\nkvm:x:106:ada\n";
        assert_eq!(name_of(group, 106), "kvm");
        assert_eq!(name_of(group, 10), "10");
        assert_eq!(name_of("", 0), "0");
    }
}
