//! loadgen's guests boot a real kernel, the host's own, and are guests like others to the tools. In a VM that tests/vm/linux
//! makes for it: under PVM a kernel does not boot, and QEMU's emulation of AMD-V has a fault with more than one CPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../util/mod.rs"]
mod util;

use std::fs;

use util::tool::{Tool, json_lines, number};
use util::{TempDir, alone, loadgen};

const KVMEXITS: &str = env!("CARGO_BIN_EXE_kvmexits");
const VCPULAG: &str = env!("CARGO_BIN_EXE_vcpulag");

/// What tests/vm/guest-init.S writes.
const READY: &str = "init burns CPU";
/// The default without what takes long in a VM: messages, and mitigations. Nor with XSAVE: QEMU 7.2 lets a guest's XSETBV
/// pass the host by, whose CPUID then contradicts it.
const CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 pci=off quiet mitigations=off noxsave";
const NAMES: [&str; 2] = ["loadgen-0001", "loadgen-0002"];

#[test]
fn guests_boot_linux() {
    let _alone = alone();
    let dir = TempDir::new("linux");
    let [consoles, truth] = ["consoles", "truth"].map(|name| dir.join(name));
    let mut guests = Tool::start(
        &loadgen(),
        &[
            &["run", "--vms", "2", "--linux", "/vmlinuz", "--initrd", "/initrd"],
            &["--cmdline", CMDLINE, "--ready", READY][..],
            &["--console", consoles.to_str().unwrap(), "--truth", truth.to_str().unwrap()],
        ]
        .concat(),
    );
    let ready = guests.line();
    if !ready.starts_with("2 of 2 guests ready, booted in ") {
        panic!("{ready}{}", guests.wait().stderr);
    }
    for name in NAMES {
        let console = fs::read_to_string(consoles.join(format!("{name}.log"))).unwrap();
        assert!(console.ends_with(&format!("{READY}\r\n")), "{console}");
    }

    // They burn CPU, and their timer ticks: who looks at them from outside sees both.
    let exits = Tool::start_at_once(KVMEXITS, &["--by", "vm,reason", "--csv", "-d", "3"]);
    let time = Tool::start_at_once(VCPULAG, &["--csv", "-d", "3"]);
    let (exits, time) = (exits.wait().rows(), time.wait().rows());
    for name in NAMES {
        let of = |rows: &[_], reason: &str| -> u64 {
            let rows = rows.iter().filter(|row: &&util::tool::CsvRow| {
                row["vm"] == name && row["kind"] == "hardware" && row["reason"] == reason
            });
            rows.map(|row| number(row, "count")).sum()
        };
        assert!(of(&exits, "msr") > 23, "{name} sets its timer: {exits:#?}");
        let vcpu = time.iter().find(|row| row["vm"] == name);
        let vcpu = vcpu.unwrap_or_else(|| panic!("{name}: {time:#?}"));
        assert!(number(vcpu, "run_ns") > 300_000_000, "{vcpu:?}");
    }

    let ended = guests.end(libc::SIGTERM);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(ended.stdout.contains(" s: 2 of 2 guests ready, booted in "), "{}", ended.stdout);
    let truth = json_lines(&fs::read_to_string(truth).unwrap());
    for (vm, name) in truth.iter().zip(NAMES) {
        assert_eq!((&vm["vm"], &vm["workload"]), (&name.into(), &"linux".into()), "{vm}");
        assert!(vm["boot_ns"].as_u64().unwrap() > 0, "{vm}");
    }
}
