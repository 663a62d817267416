//! What cannot be done is refused in one sentence, before anything is created.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use support::{TempDir, loadgen};

/// Runs it; returns the exit status and the sentence.
fn refused(command: &mut Command) -> (i32, String) {
    let output = command.output().expect("loadgen");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.stdout.is_empty(), "{command:?}");
    assert_eq!(stderr.lines().count(), 1, "{command:?}: {stderr}");
    assert!(stderr.starts_with("loadgen: "), "{command:?}: {stderr}");
    (output.status.code().expect("an exit status"), stderr)
}

#[test]
fn bad_arguments() {
    for args in [
        "run",
        "run --vms 0",
        "run --vms -1",
        "run --vms abc",
        "run --vms 1 --vcpus 0",
        "run --vms 1 --vcpus 256",
        "run --vms 1 --memory 1.5K",
        "run --vms 1 --memory 61G",
        "run --vms 1 --workload dance",
        "run --vms 1 --workload idle=0",
        "run --vms 1 --workload duty=101",
        "run --vms 1 --workload exits",
        "run --vms 1 --workload exits=nmi:1",
        "run --vms 1 --workload exits=pio",
        "run --vms 1 --workload exits=pio:0",
        "run --vms 1 --workload exits=pio:5@0",
        "run --vms 1 --workload exits=pio:5,pio:7",
        "run --vms 1 --workload exits=pagefault:262145",
        "run --vms 1 --vcpus 2 --workload exits=pagefault:131073",
        "run --vms 1 --workload exits=pio:5 --vmm-sleep 0",
        "run --vms 1 --workload exits=pio:5 --vmm-sleep 1001",
        "run --vms 1 --workload exits=cpuid:5 --vmm-sleep 1",
        "run --vms 1 --vmm-sleep 1",
        "run --vms 1 --workload memory",
        "run --vms 1 --workload memory=",
        "run --vms 1 --workload memory=0",
        "run --vms 1 --workload memory=5000",
        "run --vms 1 --workload memory=1028M",
        "run --vms 1 --workload memory=16MB",
        "run --vms 1 --workload memory=16M,",
        "run --vms 1 --workload memory=16M,half=50",
        "run --vms 1 --workload memory=16M,duplicate=101",
        "run --vms 1 --workload memory=16M,duplicate=0.5",
        "run --vms 1 --workload memory=16M,duplicate=67,zero=34",
        "run --vms 1 --workload memory=16M,zero=1,zero=1",
        "run --vms 1 --workload memory=16M,rewrite=10",
        "run --vms 1 --workload memory=16M,rewrite=0/s",
        "run --vms 1 --workload memory=16M,rewrite=1001/s",
        "run --vms 1 --workload memory=16M,rewrite=10/m",
        "run --vms 1 --workload memory=16K,rewrite=24/signal",
        "run --vms 1 --workload memory=16M --workload memory=16M",
        "run --vms 1 --workload memory=16M --workload spin --workload idle",
        "run --vms 1 --workload memory=1G --workload exits=pagefault:1",
        "run --vms 1 --workload memory=16M --mem-merge yes",
        "run --vms 1 --mem-merge on",
        "run --vms 1 --memory 16M --mem-merge off",
        "run --vms 1 --io-thread 0",
        "run --vms 1 --io-thread 101",
        "run --vms 1 --io-thread 5%",
        "run --vms 1 --cpu-max 0",
        "run --vms 1 --cpu-max 25601",
        "run --vms 1 --cpu-max 12.5",
        "run --vms 1 --cpus",
        "run --vms 1 --cpus first",
        "run --vms 1 --cpus 1-0",
        "run --vms 1 --cpus 0,60000",
        "run --vms 1 --duration 0",
        "run --vms 1 --duration -3",
        "run --vms 1 --duration soon",
        "run --vms 1 --truth /nonexistent/truth",
        "run --vms 1 --truth /dev/null",
        "run --vms 1 --truth /tmp",
        "run --vms 1 more",
        "walk",
    ] {
        let (status, sentence) = refused(loadgen().args(args.split(' ')));
        assert_eq!(status, 2, "{args}: {sentence}");
    }
}

#[test]
fn more_guests_than_the_host_has_pids() {
    let args = ["run", "--vms", "1000000", "--vcpus", "3", "--duration", "1"];
    let (status, sentence) = refused(loadgen().args(args));
    assert_eq!(status, 3, "{sentence}");
    assert!(sentence.contains("sysctl -w kernel."), "{sentence}");
}

#[test]
fn more_memory_than_there_is() {
    let args = ["run", "--vms", "9973", "--workload", "memory=1G", "--duration", "1"];
    let (status, sentence) = refused(loadgen().args(args));
    assert_eq!(status, 3, "{sentence}");
    assert!(
        sentence.contains("9973 guests with 1049408K (1G of it filled) each need "),
        "{sentence}"
    );
    assert!(sentence.contains("M: ask for fewer or for less"), "{sentence}");
}

/// Seen without /sys/kernel/mm/ksm: in a mount namespace of its own.
#[test]
fn merging_without_ksm() {
    let with = |switch| {
        let mut unshare = Command::new("unshare");
        let hide = r#"mount -t tmpfs none /sys/kernel/mm && exec "$@""#;
        unshare.args(["--mount", "sh", "-c", hide, "sh"]).arg(loadgen().get_program());
        unshare.args(["run", "--vms", "1", "--workload", "memory=4K", "--duration", "0.5"]);
        unshare.args(["--mem-merge", switch]);
        unshare
    };
    let (status, sentence) = refused(&mut with("on"));
    assert_eq!(status, 3, "{sentence}");
    assert!(sentence.contains("has no KSM (CONFIG_KSM)"), "{sentence}");
    assert!(sentence.contains("--mem-merge off"), "{sentence}");
    assert!(with("off").output().expect("loadgen").status.success());
}

#[test]
fn hypercalls_that_this_kvm_cannot_make() {
    let pvm = Path::new("/sys/module/kvm_pvm").exists();
    let args = ["run", "--vms", "1", "--workload", "exits=cpuid:1,hypercall:1", "--duration", "5"];
    if pvm {
        let (status, sentence) = refused(loadgen().args(args));
        assert_eq!(status, 3, "{sentence}");
        assert!(sentence.contains("leave out `hypercall`"), "{sentence}");
    } else {
        assert!(loadgen().args(args).status().expect("loadgen").success());
    }
}

/// Seen without any cgroup hierarchy: in a mount namespace of its own.
#[test]
fn quotas_without_a_cpu_controller() {
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--mount",
        "sh",
        "-c",
        r#"umount --recursive /sys/fs/cgroup && exec "$@""#,
        "sh",
    ]);
    unshare.arg(loadgen().get_program()).args(["run", "--vms", "1", "--cpu-max", "50"]);
    let (status, sentence) = refused(&mut unshare);
    assert_eq!(status, 3, "{sentence}");
    assert!(sentence.contains("run as root or in a delegated cgroup"), "{sentence}");
}

#[test]
fn dev_kvm_that_may_not_be_opened() {
    // SAFETY: geteuid has no preconditions.
    let user = unsafe { libc::geteuid() };
    assert_eq!(user, 0, "this test needs root, to become nobody");
    // The build directory may be out of nobody's reach.
    let dir = TempDir::new("nobody");
    let copy = dir.file("loadgen");
    // Not written by this process: what it forks meanwhile would hold the file open, and it could not be run.
    let mut install = Command::new("install");
    let status = install.args(["-m", "755"]).arg(loadgen().get_program()).arg(&copy).status();
    assert!(status.expect("install").success());
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o755)).expect("permissions");
    let mut nobody = Command::new(&copy);
    nobody.args(["run", "--vms", "1", "--duration", "1"]).uid(65534).gid(65534);
    let (status, sentence) = refused(&mut nobody);
    assert_eq!(status, 3, "{sentence}");
    assert!(sentence.contains("not allowed to open `/dev/kvm`: run as root"), "{sentence}");
}
