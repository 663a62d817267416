//! The README's table of what works on which kernel is true of the kernel that this runs on.

use std::path::Path;
use std::process::Command;

use crate::util::mergeable::Mergeable;
use crate::util::tool::{Tool, csv_rows};
use crate::util::{alone, loadgen};

const README: &str = include_str!("../../README.md");
const RUNQLAT: &str = env!("CARGO_BIN_EXE_runqlat");
const KVMEXITS: &str = env!("CARGO_BIN_EXE_kvmexits");
const KSMSTAT: &str = env!("CARGO_BIN_EXE_ksmstat");
const VCPULAG: &str = env!("CARGO_BIN_EXE_vcpulag");

/// What a tool prints in half a second.
fn output(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).args(["-d", "0.5"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// True if each of these columns of its CSV has this value in any row; any at all where none is given.
fn fills(tool: &str, args: &[&str], columns: &[(&str, &str)]) -> bool {
    let rows = csv_rows(&output(tool, &[args, &["--csv"]].concat()));
    columns.iter().all(|(column, value)| {
        rows.iter()
            .any(|row| !row[*column].is_empty() && (value.is_empty() || row[*column] == *value))
    })
}

/// The same of a column of ksmstat's rows of processes, of which there is one.
fn fills_process(args: &[&str], column: &str) -> bool {
    let _memory = Mergeable::start(&[23]);
    fills(KSMSTAT, &[&["--by", "process"], args].concat(), &[(column, "")])
}

fn guests_run(workload: &str) -> bool {
    let guests = ["run", "--vms", "1", "--workload", workload, "--duration", "0.5"];
    Command::new(loadgen()).args(guests).output().unwrap().status.success()
}

/// The guests that tools are asked about.
const WORKLOADS: [&str; 2] = ["idle=100", "exits=pio:1000000@200,mmio:1000000@100"];

/// The table's first cells, and how to find out.
type Probe = (&'static str, fn() -> bool);

const PROBES: [Probe; 16] = [
    ("`runqlat`: waits, of which VM", || {
        fills(RUNQLAT, &["--by", "vm"], &[("vm", "loadgen-0001")])
    }),
    ("`runqlat`: woken or preempted, moved waits whole", || {
        fills(RUNQLAT, &[], &[("preempted", "")])
    }),
    ("`kvmexits`: exits from guest mode", || fills(KVMEXITS, &[], &[("kind", "hardware")])),
    ("`kvmexits`: exits to userspace, by VM and vCPU", || {
        let columns = [("reason", "KVM_EXIT_IO"), ("vm", "loadgen-0001"), ("vcpu", "0")];
        fills(KVMEXITS, &["--by", "vcpu,reason"], &columns)
    }),
    ("`kvmexits --detail`", || {
        let details = ["out port 0xf5", "in port 0xf5", "write 0xd0000000"];
        fills(KVMEXITS, &["--detail"], &details.map(|detail| ("detail", detail)))
    }),
    ("`kvmexits --slower`", || output(KVMEXITS, &["--slower", "0.1"]).contains("loadgen-0001/0")),
    ("`kvmexits --stacks`", || output(KVMEXITS, &["--stacks"]).contains("ioctl;KVM_EXIT_IO ")),
    ("`vcpulag`: where vCPUs' time goes, and who ran instead", || {
        fills(VCPULAG, &[], &[("vcpu", "0"), ("culprit", "")])
    }),
    ("`ksmstat`: what is saved, and ksmd's time", || {
        fills(KSMSTAT, &[], &[("profit_bytes", ""), ("scan_ns", "")])
    }),
    ("`ksmstat`: merged pages of processes", || fills_process(&[], "merging_pages")),
    ("`ksmstat`: merges and failures, by process", || {
        fills(KSMSTAT, &[], &[("merged", "")]) && fills_process(&[], "merged")
    }),
    ("`ksmstat --why`: what hinders merging", || {
        output(KSMSTAT, &["--why", "--json"]).contains("{\"cause\":")
    }),
    ("`ksmstat --cow`, `--stacks`", || fills_process(&["--cow"], "cow_breaks")),
    ("`loadgen`: spin, idle, duty", || ["spin", "idle", "duty=30"].into_iter().all(guests_run)),
    ("`loadgen`: memory that KSM merges", || guests_run("memory=1M,duplicate=50,rewrite=100/s")),
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
    let guests = WORKLOADS.map(|workload| {
        let args = ["run", "--vms", "1", "--workload", workload, "--duration", "300"];
        // Guests spin between exits: they would take from the tools half of the time in which these load their programs.
        Tool::start(&loadgen(), &[&args[..], &["--nice", "19"]].concat())
    });
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
    }
    guests.into_iter().for_each(|guests| drop(guests.end(libc::SIGTERM)));
}
