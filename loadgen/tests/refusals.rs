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

/// One guest where something is hidden: in a mount namespace of its own.
fn without(hide: &str, args: &[&str]) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", &format!(r#"{hide} && exec "$@""#), "sh"]);
    unshare.arg(loadgen().get_program()).args(["run", "--vms", "1"]).args(args);
    unshare
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
        "run --vms 1 --churn",
        "run --vms 1 --churn 50",
        "run --vms 1 --churn 0/s",
        "run --vms 1 --churn 10001/s",
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
        "run --vms 1 --nice 20",
        "run --vms 1 --nice -21",
        "run --vms 1 --nice low",
        "run --vms 1 --sched fifo",
        "run --vms 1 --sched idle --nice 3",
        "run --vms 1 --sched idle --weight 100",
        "run --vms 1 --pin 1",
        "run --vms 1 --numa-node -1",
        "run --vms 1 --numa-node 1023",
        "run --vms 1 --numa-node 1024",
        "run --vms 1 --weight 0",
        "run --vms 1 --weight 10001",
        "run --vms 1 --fleet-cpu-max 0",
        "run --vms 1 --fleet-cpu-max 1000001",
        "run --vms 1 --cpu-max 51 --fleet-cpu-max 50",
        "run --vms 1 --memory-max 0",
        "run --vms 1 --memory-max 4097",
        "run --vms 1 --memory-max 16MB",
        "run --vms 1 --fleet-memory-max lots",
        "run --vms 1 --memory-max 20M --fleet-memory-max 16M",
        "run --vms 1 --initrd /etc/passwd",
        "run --vms 1 --cmdline quiet",
        "run --vms 1 --console /tmp",
        "run --vms 1 --ready login:",
        "run --vms 1 --linux /nonexistent",
        "run --vms 1 --linux /tmp",
        "run --vms 1 --linux /dev/zero",
        "run --vms 1 --linux /proc/version",
        "run --vms 1 --linux /etc/passwd",
        "run --vms 1 --linux /proc/self/exe",
        "run --vms 1 --linux /proc/self/exe --workload spin",
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

/// Seen without /sys/kernel/mm/ksm.
#[test]
fn merging_without_ksm() {
    let with = |switch| {
        let args = ["--workload", "memory=4K", "--duration", "0.5", "--mem-merge", switch];
        without("mount -t tmpfs none /sys/kernel/mm", &args)
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

#[test]
fn limits_without_a_cgroup() {
    const UMOUNT: &str = "umount --recursive /sys/fs/cgroup";
    for (args, what) in [
        (["--cpu-max", "50"], "a CPU quota"),
        (["--fleet-cpu-max", "50"], "a CPU quota"),
        (["--weight", "100"], "a CPU weight"),
        (["--memory-max", "16M"], "a memory limit"),
        (["--fleet-memory-max", "16M"], "a memory limit"),
    ] {
        let (status, sentence) = refused(&mut without(UMOUNT, &args));
        assert_eq!(status, 3, "{sentence}");
        assert!(sentence.contains(&format!("no cgroup with {what} can be made")), "{sentence}");
        assert!(sentence.contains("run as root or in a delegated cgroup"), "{sentence}");
        assert!(
            sentence.split("leave out").nth(1).is_some_and(|s| s.contains(args[0])),
            "{sentence}"
        );
    }
    // Where guests would be nice instead they are as nice as asked for, and nothing is said.
    let args = ["--nice", "3", "--duration", "0.2"];
    let output = without(UMOUNT, &args).output().expect("loadgen");
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{output:?}");
}

#[test]
fn nodes_without_numa() {
    let hide = "mount -t tmpfs none /sys/devices/system/node";
    let (status, sentence) = refused(&mut without(hide, &["--numa-node", "0"]));
    assert_eq!(status, 3, "{sentence}");
    assert!(sentence.contains("knows no NUMA nodes (CONFIG_NUMA)"), "{sentence}");
}

/// A machine with one node has no other CPUs: files say what there is instead.
#[test]
fn cpus_that_the_node_does_not_have() {
    let hide = "mount -t tmpfs none /sys/devices/system/node && mkdir /sys/devices/system/node/node0 && \
                echo 0 >/sys/devices/system/node/online && echo 1 >/sys/devices/system/node/node0/cpulist";
    let (status, sentence) = refused(&mut without(hide, &["--numa-node", "0", "--cpus", "0-1"]));
    assert_eq!(status, 2, "{sentence}");
    assert!(sentence.contains("CPU 0 of --cpus is not on NUMA node 0"), "{sentence}");
    let hide = hide.replace("echo 1 >", "echo 60000 >");
    let (status, sentence) = refused(&mut without(&hide, &["--numa-node", "0"]));
    assert_eq!(status, 3, "{sentence}");
    assert!(sentence.contains("NUMA node 0 has no CPU that this process may run on"), "{sentence}");
}

/// Root without the right to lower nice values.
#[test]
fn nice_values_that_are_not_allowed() {
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice"]);
    setpriv.arg(loadgen().get_program()).args(["run", "--vms", "1", "--nice", "-1"]);
    let (status, sentence) = refused(&mut setpriv);
    assert_eq!(status, 3, "{sentence}");
    assert!(sentence.contains("not allowed to run guests with nice -1"), "{sentence}");
    assert!(sentence.contains("ulimit -e 21"), "{sentence}");
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
