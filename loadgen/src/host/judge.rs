//! From facts to verdicts, with a remedy for each that is not as it should be. Pure.

use serde_json::{Value, json};

use super::facts::{Controller, Device, Facts};
use super::hardware;
use super::{Finding, Verdict};
use crate::hierarchy::Version;
use crate::record::PAGE_SIZE;

/// KVM's own default on x86 (KVM_HALT_POLL_NS_DEFAULT).
const DEFAULT_HALT_POLL_NS: u64 = 200_000;

impl Finding {
    pub(super) fn new(
        key: &'static str,
        what: &'static str,
        verdict: Verdict,
        value: impl Into<String>,
        details: Value,
    ) -> Self {
        Self { key, what, verdict, value: value.into(), remedy: None, details }
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// All that do not concern the number of guests.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![device(facts), module(facts), cpu(facts)];
    findings.extend(hardware::all(facts));
    findings.extend([
        halt_polling(facts),
        steal(facts),
        ksm(facts),
        huge_pages(facts),
        cgroup(facts),
    ]);
    findings
}

fn device(facts: &Facts) -> Finding {
    let finding = |verdict, value: String, details| {
        Finding::new("dev_kvm", "/dev/kvm", verdict, value, details)
    };
    let Some(Device { mode, owner, group, works }) = &facts.device else {
        let details = json!({"mode": null, "owner": null, "group": null, "usable": false});
        return finding(Verdict::Fail, "does not exist".into(), details).remedy(load_kvm(facts));
    };
    let details =
        json!({"mode": format!("{mode:04o}"), "owner": owner, "group": group, "usable": works});
    let value = format!("mode {mode:04o}, owner {owner}, group {group}");
    if *works {
        return finding(Verdict::Ok, value + ": we may open it", details);
    }
    let for_group = mode & 0o060 == 0o060 && group != "root";
    finding(Verdict::Fail, value + ": we cannot use it", details).remedy(match for_group {
        true => format!("run as root, or: usermod -aG {group} USER, and log in again"),
        false => "run as root".to_owned(),
    })
}

/// How to get a /dev/kvm.
fn load_kvm(facts: &Facts) -> &'static str {
    if facts.has_flag("vmx") {
        "modprobe kvm_intel"
    } else if facts.has_flag("svm") {
        "modprobe kvm_amd"
    } else {
        "turn virtualization on in the firmware (in a VM: nested)"
    }
}

fn module(facts: &Facts) -> Finding {
    let module = facts.module.as_deref();
    let of = |verdict, value: String, software: Option<bool>| {
        let details = json!({"module": module, "software": software});
        Finding::new("kvm_module", "KVM module", verdict, value, details)
    };
    match module {
        Some(name @ ("kvm_intel" | "kvm_amd")) => of(Verdict::Ok, name.to_owned(), Some(false)),
        Some("kvm") => of(Verdict::Unknown, "kvm, without one for this processor".into(), None)
            .remedy(load_kvm(facts)),
        Some(name) => of(Verdict::Warn, format!("{name}: virtualization by software"), Some(true))
            .remedy("for hypercalls and kvm_exit: a host with kvm_intel or kvm_amd"),
        None => of(Verdict::Fail, "none".into(), None).remedy(load_kvm(facts)),
    }
}

fn cpu(facts: &Facts) -> Finding {
    let flag = ["vmx", "svm"].into_iter().find(|flag| facts.has_flag(flag));
    let of = |verdict, value: &str| {
        Finding::new("cpu_flag", "CPU flag", verdict, value, json!({"flag": flag}))
    };
    match flag {
        Some(flag) => of(Verdict::Ok, flag),
        // Somebody has found another way.
        None if facts.works() => of(Verdict::Warn, "neither vmx nor svm").remedy(load_kvm(facts)),
        None => of(Verdict::Fail, "neither vmx nor svm").remedy(load_kvm(facts)),
    }
}

fn halt_polling(facts: &Facts) -> Finding {
    let halt_poll_ns: Option<u64> =
        facts.kvm_parameters.get("halt_poll_ns").and_then(|value| value.parse().ok());
    let of = |verdict, value: String| {
        let details = json!({"halt_poll_ns": halt_poll_ns});
        Finding::new("halt_polling", "halt polling", verdict, value, details)
    };
    match halt_poll_ns {
        None => of(Verdict::Unknown, "not told".into()),
        Some(0) => of(Verdict::Ok, "off".into()),
        Some(ns) if ns <= DEFAULT_HALT_POLL_NS => of(Verdict::Ok, format!("up to {ns} ns")),
        Some(ns) => of(Verdict::Warn, format!("up to {ns} ns: costs CPU time")).remedy(format!(
            "echo {DEFAULT_HALT_POLL_NS} >/sys/module/kvm/parameters/halt_poll_ns"
        )),
    }
}

fn steal(facts: &Facts) -> Finding {
    let of = |verdict, value: &str| {
        let details = json!({"available": facts.steal});
        Finding::new("steal_time", "steal time", verdict, value, details)
    };
    match facts.steal {
        Some(true) => of(Verdict::Ok, "guests see it"),
        // `sched_info_on` of KVM's KVM_CAP_STEAL_TIME.
        Some(false) => of(Verdict::Warn, "guests cannot see it")
            .remedy("boot a kernel with CONFIG_SCHED_INFO=y"),
        None => of(Verdict::Unknown, "KVM cannot be asked"),
    }
}

fn ksm(facts: &Facts) -> Finding {
    let number = |name: &str| -> Option<u64> { facts.ksm.get(name)?.parse().ok() };
    let run = number("run");
    let (pages, sleep_ms) = (number("pages_to_scan"), number("sleep_millisecs"));
    // At most: a scan takes time, too.
    let rate = pages.zip(sleep_ms).and_then(|(pages, ms)| (pages * 1_000).checked_div(ms));
    let scan_bytes_per_s = rate.map(|pages| pages * PAGE_SIZE as u64);
    let of = |verdict, value: String| {
        let details = json!({
            "run": run, "pages_to_scan": pages, "sleep_ms": sleep_ms,
            "scan_bytes_per_s": scan_bytes_per_s,
        });
        Finding::new("ksm", "KSM", verdict, value, details)
    };
    let speed = scan_bytes_per_s.map_or_else(
        || "as fast as it can".to_owned(),
        |bytes| format!("up to {} MiB/s", bytes >> 20),
    );
    match run {
        None => of(Verdict::Warn, "not in this kernel: --mem-merge off".into())
            .remedy("boot a kernel with CONFIG_KSM=y"),
        Some(1) => of(Verdict::Ok, format!("merges, {speed}")),
        Some(run) => of(Verdict::Warn, format!("merges nothing (run is {run})"))
            .remedy("echo 1 >/sys/kernel/mm/ksm/run"),
    }
}

fn huge_pages(facts: &Facts) -> Finding {
    let enabled = facts.huge_pages.as_deref().and_then(chosen);
    let of = |verdict, value: &str| {
        Finding::new("huge_pages", "huge pages", verdict, value, json!({"enabled": enabled}))
    };
    match enabled {
        Some("never") => of(Verdict::Warn, "never: guests' memory is in 4 KiB pages")
            .remedy("echo madvise >/sys/kernel/mm/transparent_hugepage/enabled"),
        Some(setting) => of(Verdict::Ok, setting),
        None => of(Verdict::Warn, "not in this kernel")
            .remedy("boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE=y"),
    }
}

/// The word in brackets.
fn chosen(setting: &str) -> Option<&str> {
    setting.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

fn cgroup(facts: &Facts) -> Finding {
    let version = |controller: Option<Controller>| {
        controller.map(|controller| match controller.version {
            Version::V1 => 1,
            Version::V2 => 2,
        })
    };
    let (cpu, memory) = (version(facts.cpu_controller), version(facts.memory_controller));
    let delegated = facts.cpu_controller.is_some_and(|controller| controller.delegated);
    let of = |verdict, value: String| {
        let details =
            json!({"cpu_version": cpu, "memory_version": memory, "cpu_delegated": delegated});
        Finding::new("cgroup", "cgroups", verdict, value, details)
    };
    let text = |version: Option<i32>| version.map_or("none".to_owned(), |v| format!("v{v}"));
    let value = format!("cpu {}, memory {}", text(cpu), text(memory));
    match (cpu, delegated) {
        (Some(_), true) => of(Verdict::Ok, value),
        (Some(_), false) => of(Verdict::Warn, value + ", not for us: guests run at nice 19")
            .remedy("run as root, or in a delegated cgroup: systemd-run -p Delegate=yes"),
        (None, _) => of(Verdict::Warn, value + ": guests run at nice 19")
            .remedy("mount cgroup2 with the cpu controller (CONFIG_CGROUP_SCHED)"),
    }
}

impl Facts {
    pub(super) fn has_flag(&self, flag: &str) -> bool {
        self.cpu_flags.iter().any(|found| found == flag)
    }

    fn works(&self) -> bool {
        self.device.as_ref().is_some_and(|device| device.works)
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Fail, Ok, Unknown, Warn};
    use super::*;

    /// Verdict, value and remedy.
    fn told(finding: Finding) -> (Verdict, String, String) {
        (finding.verdict, finding.value, finding.remedy.unwrap_or_default())
    }

    fn told_as(verdict: Verdict, value: &str, remedy: &str) -> (Verdict, String, String) {
        (verdict, value.to_owned(), remedy.to_owned())
    }

    fn with_device(mode: u32, group: &str, works: bool) -> Facts {
        let (owner, group) = ("root".to_owned(), group.to_owned());
        Facts { device: Some(Device { mode, owner, group, works }), ..Facts::default() }
    }

    #[test]
    fn who_may_open_the_device() {
        let ok = device(&with_device(0o660, "kvm", true));
        assert_eq!(ok.details["mode"], "0660");
        assert_eq!(told(ok), told_as(Ok, "mode 0660, owner root, group kvm: we may open it", ""));
        let (verdict, _, remedy) = told(device(&with_device(0o660, "kvm", false)));
        assert_eq!(verdict, Fail);
        assert_eq!(remedy, "run as root, or: usermod -aG kvm USER, and log in again");
        let (_, value, remedy) = told(device(&with_device(0o600, "root", false)));
        assert_eq!(value, "mode 0600, owner root, group root: we cannot use it");
        assert_eq!(remedy, "run as root");
    }

    #[test]
    fn what_makes_a_device() {
        let remedy = |flags: &[&str]| {
            let cpu_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
            device(&Facts { cpu_flags, ..Facts::default() }).remedy.unwrap()
        };
        assert_eq!(remedy(&["fpu", "vmx"]), "modprobe kvm_intel");
        assert_eq!(remedy(&["svm"]), "modprobe kvm_amd");
        assert!(remedy(&["fpu"]).starts_with("turn virtualization on in the firmware"));
    }

    #[test]
    fn modules() {
        let verdict = |module: Option<&str>| {
            let facts = Facts { module: module.map(str::to_owned), ..Facts::default() };
            super::module(&facts).verdict
        };
        assert_eq!(
            [Some("kvm_intel"), Some("kvm_amd"), Some("kvm_pvm"), Some("kvm"), None].map(verdict),
            [Ok, Ok, Warn, Unknown, Fail]
        );
    }

    #[test]
    fn the_processors_flag() {
        let facts = |flag: &str, works| Facts {
            cpu_flags: vec![flag.to_owned()],
            ..with_device(0o600, "root", works)
        };
        assert_eq!(told(cpu(&facts("svm", false))), told_as(Ok, "svm", ""));
        assert_eq!(cpu(&facts("vmx", true)).details["flag"], "vmx");
        assert_eq!(cpu(&facts("fpu", true)).verdict, Warn);
        assert_eq!(cpu(&facts("fpu", false)).verdict, Fail);
    }

    #[test]
    fn halt_polling_longer_than_by_default() {
        let of = |value: &str| {
            let kvm_parameters = [("halt_poll_ns".to_owned(), value.to_owned())].into();
            told(halt_polling(&Facts { kvm_parameters, ..Facts::default() }))
        };
        assert_eq!(of("0"), told_as(Ok, "off", ""));
        assert_eq!(of("200000"), told_as(Ok, "up to 200000 ns", ""));
        let remedy = "echo 200000 >/sys/module/kvm/parameters/halt_poll_ns";
        assert_eq!(of("200001"), told_as(Warn, "up to 200001 ns: costs CPU time", remedy));
        assert_eq!(of("").0, Unknown);
    }

    #[test]
    fn steal_time() {
        let verdict = |steal| super::steal(&Facts { steal, ..Facts::default() }).verdict;
        assert_eq!([Some(true), Some(false), None].map(verdict), [Ok, Warn, Unknown]);
    }

    #[test]
    fn merging() {
        let of = |values: &[(&str, &str)]| {
            let values = values.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            ksm(&Facts { ksm: values.collect(), ..Facts::default() })
        };
        let rate = [("pages_to_scan", "100"), ("sleep_millisecs", "20")];
        let merges = of(&[("run", "1"), rate[0], rate[1]]);
        assert_eq!(merges.details["scan_bytes_per_s"], 20_480_000);
        assert_eq!(told(merges), told_as(Ok, "merges, up to 19 MiB/s", ""));
        let unresting = of(&[("run", "1"), rate[0], ("sleep_millisecs", "0")]);
        assert_eq!(unresting.value, "merges, as fast as it can");
        let remedy = "echo 1 >/sys/kernel/mm/ksm/run";
        assert_eq!(told(of(&[("run", "0")])), told_as(Warn, "merges nothing (run is 0)", remedy));
        assert_eq!(of(&[("run", "2")]).verdict, Warn);
        let remedy = "boot a kernel with CONFIG_KSM=y";
        assert_eq!(told(of(&[])), told_as(Warn, "not in this kernel: --mem-merge off", remedy));
    }

    #[test]
    fn transparent_huge_pages() {
        let of = |setting: Option<&str>| {
            huge_pages(&Facts { huge_pages: setting.map(str::to_owned), ..Facts::default() })
        };
        assert_eq!(of(Some("always [madvise] never\n")).details["enabled"], "madvise");
        assert_eq!(of(Some("[always] madvise never\n")).verdict, Ok);
        assert_eq!(of(Some("always madvise [never]\n")).verdict, Warn);
        assert_eq!(of(None).verdict, Warn);
    }

    #[test]
    fn cgroups_that_may_be_made() {
        let of = |cpu_controller, memory_controller| {
            cgroup(&Facts { cpu_controller, memory_controller, ..Facts::default() })
        };
        let controller = |version, delegated| Some(Controller { version, delegated });
        let v1 = of(controller(Version::V1, true), controller(Version::V1, true));
        assert_eq!(told(v1), told_as(Ok, "cpu v1, memory v1", ""));
        let v2 = of(controller(Version::V2, false), None);
        assert_eq!((v2.verdict, v2.details["cpu_version"].as_u64()), (Warn, Some(2)));
        assert_eq!(v2.value, "cpu v2, memory none, not for us: guests run at nice 19");
        assert_eq!(of(None, None).verdict, Warn);
    }
}
