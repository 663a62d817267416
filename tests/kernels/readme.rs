//! The README's table of what works on which kernel is true of the kernel that this runs on.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::util::tool::{Tool, csv_rows};
use crate::util::{alone, loadgen};

const README: &str = include_str!("../../README.md");
const RUNQLAT: &str = env!("CARGO_BIN_EXE_runqlat");
const KVMEXITS: &str = env!("CARGO_BIN_EXE_kvmexits");

/// What a tool prints about guests of this workload.
fn output(tool: &str, args: &[&str], workload: &str) -> String {
    let guests = ["run", "--vms", "1", "--workload", workload, "--duration", "20"];
    let guests = Tool::start(&loadgen(), &guests);
    let output = Command::new(tool).args(args).args(["-d", "1"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    drop(guests.end(libc::SIGTERM));
    String::from_utf8(output.stdout).unwrap()
}

/// True if a column of its CSV has a value in any row.
fn fills(tool: &str, args: &[&str], workload: &str, column: &str, value: &str) -> bool {
    let args = [args, &["--csv"]].concat();
    let rows = csv_rows(&output(tool, &args, workload));
    rows.iter().any(|row| !row[column].is_empty() && (value.is_empty() || row[column] == value))
}

fn guests_run(workload: &str) -> bool {
    let guests = ["run", "--vms", "1", "--workload", workload, "--duration", "0.5"];
    Command::new(loadgen()).args(guests).output().unwrap().status.success()
}

const STORM: &str = "exits=pio:1000000@200,mmio:1000000@100";

/// The table's first cells, and how to find out.
type Probe = (&'static str, fn() -> bool);

const PROBES: [Probe; 9] = [
    ("`runqlat`: waits, of which VM", || {
        fills(RUNQLAT, &["--by", "vm"], "idle=100", "vm", "loadgen-0001")
    }),
    ("`runqlat`: woken or preempted, moved waits whole", || {
        fills(RUNQLAT, &[], "idle=100", "preempted", "")
    }),
    ("`kvmexits`: exits from guest mode", || fills(KVMEXITS, &[], STORM, "kind", "hardware")),
    ("`kvmexits`: exits to userspace, by VM and vCPU", || {
        fills(KVMEXITS, &["--by", "vcpu,reason"], STORM, "reason", "KVM_EXIT_IO")
            && fills(KVMEXITS, &["--by", "vcpu"], STORM, "vcpu", "0")
    }),
    ("`kvmexits --detail`", || {
        fills(KVMEXITS, &["--detail"], STORM, "detail", "out port 0xf5")
            && fills(KVMEXITS, &["--detail"], STORM, "detail", "in port 0xf5")
            && fills(KVMEXITS, &["--detail"], STORM, "detail", "write 0xd0000000")
    }),
    ("`kvmexits --slower`", || {
        output(KVMEXITS, &["--slower", "0.1"], STORM).contains("loadgen-0001/0")
    }),
    ("`kvmexits --stacks`", || {
        output(KVMEXITS, &["--stacks"], STORM).contains("ioctl;KVM_EXIT_IO ")
    }),
    ("`loadgen`: spin, idle, duty", || ["spin", "idle", "duty=30"].into_iter().all(guests_run)),
    ("`loadgen`: all kinds of exits", || {
        guests_run("exits=pio:3,mmio:3,cpuid:3,msr:3,hypercall:3,hlt:3,pagefault:3")
    }),
];

/// The cells of the table that begins with `on Linux`: its header first.
fn table() -> Vec<Vec<&'static str>> {
    let lines = README.lines().skip_while(|line| !line.starts_with("| on Linux |"));
    let rows = lines.take_while(|line| line.starts_with('|')).filter(|line| !line.contains("|---"));
    rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn the_readme_says_what_this_kernel_can_do() {
    let _alone = alone();
    let column = match Path::new("/sys/module/kvm_pvm").exists() {
        true => "PVM".to_owned(),
        false => {
            let (major, minor) = crate::kernel();
            format!("{major}.{minor}")
        }
    };
    let table = table();
    let column = table[0].iter().position(|cell| *cell == column);
    let column = column.expect("the README has a column for every kernel that is tested");
    assert_eq!(table.len(), 1 + PROBES.len(), "a row for each probe");
    for row in &table[1..] {
        let probe = PROBES.iter().find(|(name, _)| *name == row[0]);
        let (name, works) = probe.unwrap_or_else(|| panic!("nothing tests {}", row[0]));
        let says = match row[column] {
            "yes" => true,
            "no" => false,
            other => panic!("{name}: {other} is neither yes nor no"),
        };
        assert_eq!(works(), says, "{name}");
        // The next tool must not see the last guests' end.
        thread::sleep(Duration::from_millis(100));
    }
}
