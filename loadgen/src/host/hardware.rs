//! What the processor does for guests, as far as the vendor's module uses it: its parameters, judged. Pure.

use serde_json::json;

use super::facts::Facts;
use super::{Finding, Verdict};

/// One ability of the processor: on Intel and on AMD it has a parameter, and a CPU flag without which it cannot be had.
struct Ability {
    key: &'static str,
    what: &'static str,
    /// Parameter of kvm_intel; flag of the line `vmx flags` of /proc/cpuinfo.
    intel: (&'static str, &'static str),
    /// Parameter of kvm_amd; flag.
    amd: (&'static str, &'static str),
    /// Why it is missed, if it is.
    without: Option<&'static str>,
}

const NESTED_SHADOWING: &str = "nested_shadowing";

const ABILITIES: [Ability; 4] = [
    Ability {
        key: "nested_paging",
        what: "EPT/NPT",
        intel: ("ept", "ept"),
        amd: ("npt", "npt"),
        without: Some("page tables are shadowed"),
    },
    Ability {
        key: "nested",
        what: "nested guests",
        intel: ("nested", "vmx"),
        amd: ("nested", "svm"),
        without: None,
    },
    // VMCS shadowing, and AMD's virtual VMLOAD and VMSAVE.
    Ability {
        key: NESTED_SHADOWING,
        what: "VMCS shadow/VLS",
        intel: ("enable_shadow_vmcs", "shadow_vmcs"),
        amd: ("vls", "v_vmsave_vmload"),
        without: Some("nested guests exit more"),
    },
    // Posted interrupts are a part of enable_apicv.
    Ability {
        key: "posted_interrupts",
        what: "APICv/AVIC",
        intel: ("enable_apicv", "posted_intr"),
        amd: ("avic", "avic"),
        without: Some("interrupts cause exits"),
    },
];

/// All of them, and what stops vCPUs that spin on a lock.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<_> = ABILITIES.iter().map(|ability| ability.judge(facts)).collect();
    findings.push(pause_loops(facts));
    findings
}

/// As the kernel writes what is on or off: Y and N if the parameter is a bool, 1 and 0 if it is an int.
fn switch(value: &str) -> Option<bool> {
    match value {
        "Y" | "1" => Some(true),
        "N" | "0" => Some(false),
        _ => None,
    }
}

/// Whether guests can have guests: both modules have the parameter.
fn has_nested(facts: &Facts) -> bool {
    facts.parameters.get("nested").and_then(|value| switch(value)) == Some(true)
}

impl Ability {
    fn judge(&self, facts: &Facts) -> Finding {
        let module = facts.module.as_deref();
        let (parameter, flag) = match module {
            Some("kvm_intel") => self.intel,
            Some("kvm_amd") => self.amd,
            _ => return self.finding(Verdict::Unknown, not_of(module), None, None),
        };
        let module = module.unwrap_or_default();
        let on = facts.parameters.get(parameter).and_then(|value| switch(value));
        let of = |verdict, value: String| self.finding(verdict, value, Some(parameter), on);
        match (on, self.without) {
            (None, _) => of(Verdict::Unknown, format!("{module} does not tell of {parameter}")),
            (Some(true), _) => of(Verdict::Ok, format!("{parameter} is on")),
            (Some(false), None) => of(Verdict::Ok, format!("{parameter} is off")),
            // What only nested guests miss nobody misses.
            (Some(false), _) if self.key == NESTED_SHADOWING && !has_nested(facts) => {
                of(Verdict::Ok, format!("{parameter} is off, as is nested"))
            }
            (Some(false), Some(why)) => {
                let off = of(Verdict::Warn, format!("{parameter} is off: {why}"));
                off.remedy(match facts.has_flag(flag) {
                    true => reload(module, &format!("{parameter}=1")),
                    false => format!("a processor that has it ({flag})"),
                })
            }
        }
    }

    fn finding(
        &self,
        verdict: Verdict,
        value: String,
        parameter: Option<&str>,
        on: Option<bool>,
    ) -> Finding {
        let details = json!({"parameter": parameter, "on": on});
        Finding::new(self.key, self.what, verdict, value, details)
    }
}

/// Pause-loop exiting: a vCPU that spins for a lock lets the holder have the CPU. Intel counts PAUSEs that are at most
/// `ple_gap` cycles apart; AMD counts up to `pause_filter_count`.
fn pause_loops(facts: &Facts) -> Finding {
    let module = facts.module.as_deref();
    let number = |name: &str| -> Option<u64> { facts.parameters.get(name)?.parse().ok() };
    let ple = match module {
        Some("kvm_intel") => Some(("ple_gap", "ple_window", "ple")),
        Some("kvm_amd") => Some(("pause_filter_count", "pause_filter_thresh", "pausefilter")),
        _ => None,
    };
    let (first, second) = ple.map_or((None, None), |(a, b, _)| (number(a), number(b)));
    let of = |verdict, value: String| {
        let mut details = json!({
            "ple_gap": null, "ple_window": null,
            "pause_filter_count": null, "pause_filter_thresh": null,
        });
        if let Some((first_name, second_name, _)) = ple {
            details[first_name] = first.into();
            details[second_name] = second.into();
        }
        Finding::new("pause_loops", "PLE", verdict, value, details)
    };
    let Some((first_name, second_name, flag)) = ple else {
        return of(Verdict::Unknown, not_of(module));
    };
    match (first, second) {
        (Some(0), _) => {
            let off = of(Verdict::Warn, format!("{first_name} is 0: vCPUs spin on locks"));
            let module = module.unwrap_or_default();
            off.remedy(match facts.has_flag(flag) {
                true => {
                    format!("modprobe -r {module} && modprobe {module}, without {first_name}=0")
                }
                false => format!("a processor that has it ({flag})"),
            })
        }
        (Some(first), Some(second)) => {
            of(Verdict::Ok, format!("{first_name} {first}, {second_name} {second}"))
        }
        _ => of(Verdict::Unknown, format!("not told of {first_name}")),
    }
}

fn not_of(module: Option<&str>) -> String {
    match module {
        Some(module) => format!("no parameter of {module}"),
        None => "no KVM module".to_owned(),
    }
}

/// Parameters of these modules are read when they are loaded.
fn reload(module: &str, parameter: &str) -> String {
    format!("modprobe -r {module} && modprobe {module} {parameter}")
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Ok, Unknown, Warn};
    use super::*;

    fn facts(module: &str, parameters: &[(&str, &str)], flags: &[&str]) -> Facts {
        let parameters = parameters.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Facts {
            module: Some(module.to_owned()),
            parameters: parameters.collect(),
            cpu_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..Facts::default()
        }
    }

    fn verdicts(facts: &Facts) -> Vec<Verdict> {
        all(facts).into_iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn intel_writes_y_and_n() {
        let parameters = [
            ("ept", "Y"),
            ("nested", "Y"),
            ("enable_shadow_vmcs", "N"),
            ("enable_apicv", "Y"),
            ("ple_gap", "128"),
            ("ple_window", "4096"),
        ];
        let intel = facts("kvm_intel", &parameters, &["vmx", "shadow_vmcs"]);
        assert_eq!(verdicts(&intel), [Ok, Ok, Warn, Ok, Ok]);
        let found = all(&intel);
        assert_eq!(found[2].value, "enable_shadow_vmcs is off: nested guests exit more");
        let remedy = "modprobe -r kvm_intel && modprobe kvm_intel enable_shadow_vmcs=1";
        assert_eq!(found[2].remedy.as_deref(), Some(remedy));
        assert_eq!(found[2].details, json!({"parameter": "enable_shadow_vmcs", "on": false}));
        assert_eq!(found[4].value, "ple_gap 128, ple_window 4096");
        assert_eq!(found[4].details["ple_window"], 4_096);
    }

    #[test]
    fn shadowing_is_for_nested_guests_only() {
        let parameters = [("nested", "0"), ("enable_shadow_vmcs", "N")];
        let found = all(&facts("kvm_intel", &parameters, &["shadow_vmcs"]));
        assert_eq!((found[1].verdict, found[1].value.as_str()), (Ok, "nested is off"));
        assert_eq!(found[2].value, "enable_shadow_vmcs is off, as is nested");
        assert_eq!((found[2].verdict, &found[2].remedy), (Ok, &None));
    }

    #[test]
    fn amd_writes_numbers_too() {
        let parameters = [
            ("npt", "Y"),
            ("nested", "1"),
            ("vls", "1"),
            ("avic", "N"),
            ("pause_filter_count", "3000"),
            ("pause_filter_thresh", "128"),
        ];
        let amd = facts("kvm_amd", &parameters, &["svm", "npt"]);
        assert_eq!(verdicts(&amd), [Ok, Ok, Ok, Warn, Ok]);
        let found = all(&amd);
        assert_eq!(found[1].details["on"], true);
        assert_eq!(found[3].remedy.as_deref(), Some("a processor that has it (avic)"));
        assert_eq!(found[4].details["pause_filter_count"], 3_000);
        let with_avic = facts("kvm_amd", &[("avic", "0")], &["avic"]);
        let remedy = "modprobe -r kvm_amd && modprobe kvm_amd avic=1";
        assert_eq!(all(&with_avic)[3].remedy.as_deref(), Some(remedy));
    }

    #[test]
    fn without_paging_or_pause_loops_there_is_a_remedy() {
        let intel = facts("kvm_intel", &[("ept", "0"), ("ple_gap", "0")], &["ept", "ple"]);
        let found = all(&intel);
        assert_eq!((found[0].verdict, found[4].verdict), (Warn, Warn));
        assert_eq!(
            found[0].remedy.as_deref(),
            Some("modprobe -r kvm_intel && modprobe kvm_intel ept=1")
        );
        assert_eq!(found[4].value, "ple_gap is 0: vCPUs spin on locks");
    }

    #[test]
    fn what_is_not_told_is_unknown() {
        let pvm = facts("kvm_pvm", &[("npt", "Y")], &[]);
        assert_eq!(verdicts(&pvm), [Unknown; 5]);
        assert_eq!(all(&pvm)[0].value, "no parameter of kvm_pvm");
        assert_eq!(verdicts(&facts("kvm_amd", &[("npt", "-1")], &[])), [Unknown; 5]);
        assert_eq!(verdicts(&Facts::default()), [Unknown; 5]);
    }
}
