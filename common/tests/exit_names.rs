//! Our names against those of the kernel that runs here: the format files of its trace events list them all.

use std::fs;
use std::path::Path;
use std::process::Command;

use common::exits::{Reason, msr_name};

const TRACEFS: &str = "/sys/kernel/tracing";

/// The format of one of KVM's trace events; `None` without KVM.
fn format(event: &str) -> Option<String> {
    if !Path::new("/sys/module/kvm").exists() {
        return None;
    }
    let file = format!("{TRACEFS}/events/kvm/{event}/format");
    if !Path::new(TRACEFS).join("events").exists() {
        // Another test may just have done so: the file tells.
        let _ = Command::new("mount").args(["-t", "tracefs", "tracefs", TRACEFS]).status();
    }
    let read = fs::read_to_string(&file);
    Some(read.unwrap_or_else(|error| {
        panic!("KVM is here, but its names cannot be read from {file} (are you root?): {error}")
    }))
}

/// A number as C has it: `0x040 + 1`, `-1`, `12`, `0x80000001ull`.
fn number(expression: &str) -> u32 {
    let term = |term: &str| {
        let term = term.trim().trim_end_matches(['u', 'l', 'U', 'L']);
        let hex = term.strip_prefix("0x").map(|hex| i64::from_str_radix(hex, 16));
        hex.unwrap_or_else(|| term.parse()).unwrap_or_else(|_| panic!("{term} is no number"))
    };
    expression.split('+').map(term).sum::<i64>() as u32
}

/// The pairs of the `nth` list of names in a format.
fn symbols(format: &str, nth: usize) -> Vec<(u32, String)> {
    let list = format.split("__print_symbolic(").nth(nth).expect("a list of names");
    let list = &list[list.find('{').expect("a first name")..];
    let list = &list[..list.find("})").expect("a last name")];
    let pair = |pair: &str| {
        let (code, name) = pair.split_once(',').expect("a number and a name");
        // "KVM_EXIT_" "IO" is one string to C.
        (number(code.trim_matches(['{', ' '])), name.split('"').skip(1).step_by(2).collect())
    };
    list.split("},").map(|one| pair(one.trim())).collect()
}

#[test]
fn numbers_and_names_are_read_as_c_would() {
    let format = r#"x ? __print_symbolic(REC->a & 0xffff, { 0, "A" }, { 0x040 + 1, "B c" }) : __print_symbolic(REC->a,
        { -1, "K_" "D" }, { 0x80000001ull, "E" }), y"#;
    assert_eq!(symbols(format, 1), [(0, "A".to_owned()), (0x41, "B c".to_owned())]);
    assert_eq!(symbols(format, 2), [(u32::MAX, "K_D".to_owned()), (0x8000_0001, "E".to_owned())]);
}

#[test]
fn hardware_exits_have_the_kernels_names() {
    for event in ["kvm_exit", "kvm_nested_vmexit"] {
        let Some(format) = format(event) else { return };
        // Linux 5.10 has more than that.
        for (isa, at_least) in [(1, 50), (2, 80)] {
            let symbols = symbols(&format, isa as usize);
            assert!(symbols.len() >= at_least, "{event} has only {} names", symbols.len());
            for (code, name) in symbols {
                assert_eq!(Reason::hardware(isa, code).name(), name, "isa {isa}, code {code:#x}");
            }
        }
    }
}

#[test]
fn userspace_exits_have_the_kernels_names() {
    let Some(format) = format("kvm_userspace_exit") else { return };
    assert!(format.contains(r#"REC->errno == -4 ? "restart" : "error""#), "{format}");
    let symbols = symbols(&format, 1);
    assert!(symbols.len() >= 25, "only {} names", symbols.len());
    for (code, name) in symbols {
        assert_eq!(Reason::userspace(code, 0).name(), name, "code {code}");
    }
    assert_eq!(Reason::userspace(0, -4).name(), "restart");
}

#[test]
fn x2apic_registers_have_the_kernels_names() {
    let Some(format) = format("kvm_apic") else { return };
    for (register, name) in symbols(&format, 1) {
        let short = name.strip_prefix("APIC_").expect("APIC_");
        // Registers that x2APIC has not: Intel SDM, volume 3, "x2APIC Register Address Space".
        if ["ARBPRI", "RRR", "DFR", "ICR2", "EFEAT", "ECTRL"].contains(&short) {
            continue;
        }
        let first = if ["ISR", "TMR", "IRR"].contains(&short) { "0" } else { "" };
        let ours = format!("X2APIC_{short}{first}");
        assert_eq!(msr_name(0x800 + (register >> 4)), Some(ours.as_str()));
    }
}
