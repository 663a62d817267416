//! Guests that boot what `--linux` says: kernels of a few instructions, which any KVM runs, show how a guest starts and
//! how it ends. A real one is booted by tests/vm/linux.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use support::{TempDir, alone, loadgen, number, read_truth};

/// What kernels do after they have written a text to the console.
const SPIN: &[u8] = &[0xeb, 0xfe];
/// Writes 0xfe to the keyboard controller.
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
/// Writes 0x3400 to ACPI's control register.
const SWITCH_OFF: &[u8] = &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xeb, 0xfe];
/// Executes an illegal instruction, without a handler for it.
const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b];

/// A vmlinux that writes a text to the console.
fn kernel(text: &str, then: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x20_0000;
    const HEADERS: u64 = 64 + 56;
    let text_at = u8::try_from(4 + 8 + then.len()).expect("a short offset");
    let code = [
        &[0x48, 0x8d, 0x35, text_at, 0, 0, 0][..], // lea rsi, [rip + text_at]
        &[0x66, 0xba, 0xf8, 0x03],                 // mov dx, 0x3f8
        &[0xac],                                   // 0: lodsb
        &[0x84, 0xc0],                             // test al, al
        &[0x74, 0x03],                             // jz 1f
        &[0xee],                                   // out dx, al
        &[0xeb, 0xf8],                             // jmp 0b
        then,                                      // 1:
        text.as_bytes(),
        &[0],
    ]
    .concat();
    let bytes = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for number in [ADDRESS + HEADERS, 64, 0] {
        elf.extend(u64::to_le_bytes(number)); // entry, program headers, no sections
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD
    for number in [0, ADDRESS, ADDRESS, bytes, bytes, 4096] {
        elf.extend(u64::to_le_bytes(number));
    }
    elf.extend(code);
    elf
}

/// A directory with a kernel in it.
fn with_kernel(name: &str, text: &str, then: &[u8]) -> (TempDir, PathBuf) {
    let dir = TempDir::new(name);
    let path = dir.file("vmlinux");
    fs::write(&path, kernel(text, then)).expect("a kernel");
    (dir, path)
}

fn booting(kernel: &PathBuf, args: &[&str]) -> Command {
    let mut command = loadgen();
    command.args(["run", "--linux"]).arg(kernel).args(args);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn guests_are_ready_when_a_line_appears() {
    let _alone = alone();
    let (dir, kernel) = with_kernel("ready", "one\r\ntwo three\r\n", SPIN);
    let (consoles, truth) = (dir.file("consoles"), dir.file("truth"));
    let mut command = booting(&kernel, &["--vms", "3", "--ready", "o th", "--duration", "3"]);
    let output = command.arg("--console").arg(&consoles).arg("--truth").arg(&truth).output();
    let output = output.expect("loadgen");
    assert!(output.status.success(), "{}", stderr(&output));
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<_> = stdout.lines().collect();
    assert!(lines[0].starts_with("3 guests (3 vCPUs) running: "), "{stdout}");
    assert!(lines[1].starts_with("3 of 3 guests ready, booted in "), "{stdout}");
    assert!(lines[2].contains(" s: 3 of 3 guests ready, booted in "), "{stdout}");
    assert_eq!(lines.len(), 3, "{stdout}");
    for name in ["loadgen-0001", "loadgen-0002", "loadgen-0003"] {
        let console = fs::read_to_string(consoles.join(format!("{name}.log"))).expect(name);
        assert_eq!(console, "one\r\ntwo three\r\n");
    }
    for line in read_truth(&truth) {
        assert_eq!((&line["workload"], &line["steal_ns"]), (&"linux".into(), &().into()), "{line}");
        assert!((1..3_000_000_000).contains(&number(&line, "boot_ns")), "{line}");
        assert!(line.get("iterations").is_none() && line.get("exits").is_none(), "{line}");
    }
}

#[test]
fn guests_that_are_not_ready_are_told_as_such() {
    let _alone = alone();
    let (_dir, kernel) = with_kernel("unready", "one", SPIN);
    // With what guests of ours can be held to, too.
    let args = ["--vms", "2", "--duration", "1", "--json", "--io-thread", "5", "--pin"];
    let output = booting(&kernel, &args).output().expect("loadgen");
    assert!(output.status.success(), "{}", stderr(&output));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let none = serde_json::json!({"ready": 0, "boot_p50_ns": null, "boot_p99_ns": null});
    assert_eq!(summary["linux"], none);
    assert_eq!((&summary["workload"], &summary["killed"]), (&"linux".into(), &0.into()));
    assert!(summary.get("iterations").is_none(), "{summary}");
}

#[test]
fn guests_come_and_go() {
    let _alone = alone();
    let (dir, kernel) = with_kernel("churn", "here\r\n", SPIN);
    let (consoles, truth) = (dir.file("consoles"), dir.file("truth"));
    let args = ["--vms", "2", "--ready", "here", "--duration", "2", "--churn", "5/s", "--json"];
    let mut command = booting(&kernel, &args);
    let output = command.arg("--console").arg(&consoles).arg("--truth").arg(&truth).output();
    let output = output.expect("loadgen");
    assert!(output.status.success(), "{}", stderr(&output));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let guests = read_truth(&truth).len();
    assert!(guests > 4 && summary["killed"] == 0, "{summary}");
    assert!(summary["linux"]["ready"].as_u64() > Some(4), "{summary}");
    for number in 1..=guests {
        let console = consoles.join(format!("loadgen-{number:04}.log"));
        assert!(console.exists(), "{}", console.display());
    }
}

#[test]
fn a_guest_that_ends_is_told_with_the_end_of_its_console() {
    let _alone = alone();
    let text = "before\r\nKernel panic - not syncing: why\r\nlast\r\n";
    for (then, how) in [
        (RESET, "reset itself"),
        (SWITCH_OFF, "switched itself off"),
        (TRIPLE_FAULT, "KVM_EXIT_SHUTDOWN (triple fault)"),
    ] {
        let (_dir, kernel) = with_kernel("ends", text, then);
        let output = booting(&kernel, &["--vms", "1", "--duration", "20"]).output();
        let output = output.expect("loadgen");
        assert_eq!(output.status.code(), Some(1), "{how}");
        assert_eq!(
            stderr(&output),
            format!(
                "loadgen: guest failed: `loadgen-0001` vCPU 0: {how}; the end of its console:\n    \
                 before\n    Kernel panic - not syncing: why\n    last\n"
            )
        );
    }
}

#[test]
fn what_cannot_be_booted_is_refused() {
    let (dir, kernel) = with_kernel("refused", "here", SPIN);
    let long = "x".repeat(2048);
    let truncated = dir.file("truncated");
    let bytes = fs::read(&kernel).expect("a kernel");
    fs::write(&truncated, &bytes[..bytes.len() - 1]).expect("a file");
    let initrd = dir.file("initrd");
    fs::write(&initrd, [1; 4097]).expect("a file");
    let initrd = initrd.to_str().expect("a path");
    let in_file = format!("{initrd}/consoles");
    let cases: [(&[&str], &str); 9] = [
        (&["--vcpus", "2"], "have one vCPU"),
        (&["--memory", "2M"], "needs at least 3M, not 2M (--memory)"),
        (&["--initrd", "/nonexistent"], "cannot boot `/nonexistent`: No such file"),
        (&["--initrd", "/tmp"], "it is not a regular file"),
        (&["--initrd", "/proc/version"], "it is empty"),
        (&["--cmdline", &long], "its command line may have 2047 bytes, not 2048"),
        (&["--ready", ""], "--ready is a part of a line"),
        (&["--console", initrd], "cannot write consoles to"),
        (&["--console", &in_file], "cannot write consoles to"),
    ];
    for (args, why) in cases {
        let output = booting(&kernel, &[&["--vms", "1"], args].concat()).output();
        let output = output.expect("loadgen");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(why), "{args:?}: {}", stderr(&output));
    }
    let output = booting(&truncated, &["--vms", "1"]).output().expect("loadgen");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("it is no Linux kernel"), "{}", stderr(&output));
    assert!(!dir.file("consoles").exists());
}
