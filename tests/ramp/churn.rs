//! Guests that come and go while all tools look: each is seen to its end, and then forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::Duration;

use libbpf_rs::{MapCore as _, MapHandle, MapType};
use serde_json::Value;

use crate::util::guests::Guests;
use crate::util::tool::{CsvRow, Tool, json_lines, number, total};
use crate::util::{TempDir, alone, loadgen};

const KVMEXITS: &str = env!("CARGO_BIN_EXE_kvmexits");
const RUNQLAT: &str = env!("CARGO_BIN_EXE_runqlat");
const VCPULAG: &str = env!("CARGO_BIN_EXE_vcpulag");

/// Keys of a process's hash tables that have one of these numbers in them, by table.
fn keys_of(process: u32, numbers: &BTreeSet<u32>) -> BTreeMap<String, usize> {
    let infos = fs::read_dir(format!("/proc/{process}/fdinfo")).unwrap();
    let infos = infos.filter_map(|file| fs::read_to_string(file.unwrap().path()).ok());
    let id = |info: String| {
        let line = info.lines().find_map(|line| line.strip_prefix("map_id:")).map(str::trim);
        line.map(|id| id.parse::<u32>().unwrap())
    };
    let ids: BTreeSet<u32> = infos.filter_map(id).collect();
    assert!(!ids.is_empty(), "a tracing tool has maps");
    let maps = ids.into_iter().map(|id| MapHandle::from_map_id(id).unwrap());
    let tables = maps.filter(|map| map.map_type() == MapType::Hash);
    let has_one = |key: &Vec<u8>| {
        let mut words =
            key.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
        words.any(|word| numbers.contains(&word))
    };
    tables
        .map(|map| {
            let keys = map.keys().filter(has_one).count();
            (map.name().to_string_lossy().into_owned(), keys)
        })
        .collect()
}

/// The sum of a column for each VM, by PID.
fn sums<'a>(rows: impl Iterator<Item = &'a CsvRow>, column: &str) -> BTreeMap<u32, u64> {
    let mut sums = BTreeMap::new();
    for row in rows {
        *sums.entry(number(row, "pid") as u32).or_default() += number(row, column);
    }
    sums
}

#[test]
fn guests_that_come_and_go_are_seen_to_their_end_and_forgotten() {
    let _alone = alone();
    let dir = TempDir::new("churn");
    let truth = dir.join("truth.json");
    let by_vm = ["--by", "vm", "--csv", "0.5"];
    let kvmexits = Tool::start(KVMEXITS, &["--by", "vm,reason", "--csv", "0.5"]);
    let (runqlat, vcpulag) = (Tool::start(RUNQLAT, &by_vm), Tool::start(VCPULAG, &by_vm));
    // Somebody stays, and waits for all of them.
    let stays = Guests::start(&["--vms", "2"]);
    let args = "run --vms 11 --weight 100 --workload exits=pio:1000000@211,mmio:1000000@101 --churn 23/s --duration 5";
    let args: Vec<_> = args.split(' ').chain(["--truth", truth.to_str().unwrap()]).collect();
    let ended = Tool::start(&loadgen(), &args).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let truth: Vec<Value> = json_lines(&fs::read_to_string(&truth).unwrap());
    let of = |vcpu: &Value, name: &str| vcpu[name].as_u64().unwrap();
    let pids: BTreeSet<u32> = truth.iter().map(|vcpu| of(vcpu, "pid") as u32).collect();
    assert_eq!(pids.len(), truth.len(), "no PID came back");
    assert!(truth.len() >= 3 * 11, "{}", truth.len());

    // Two intervals later nobody knows them any more.
    thread::sleep(Duration::from_millis(1_500));
    for tool in [&kvmexits, &runqlat, &vcpulag] {
        let keys = keys_of(tool.pid(), &pids);
        assert!(!keys.is_empty() && keys.values().all(|keys| *keys == 0), "{keys:?}");
    }
    let [kvmexits, runqlat, vcpulag] =
        [kvmexits, runqlat, vcpulag].map(|tool| tool.end(libc::SIGINT).rows());
    stays.end();
    for rows in [&kvmexits, &runqlat, &vcpulag] {
        assert_eq!(total(rows, "lost"), 0);
    }

    let exits = |reason: &str| {
        let rows =
            kvmexits.iter().filter(|row| row["reason"] == reason && row["kind"] == "userspace");
        sums(rows, "count")
    };
    let (io, mmio, shutdown) =
        (exits("KVM_EXIT_IO"), exits("KVM_EXIT_MMIO"), exits("KVM_EXIT_SHUTDOWN"));
    let names: BTreeMap<u64, &str> =
        kvmexits.iter().map(|row| (number(row, "pid"), row["vm"].as_str())).collect();
    let (waited, lagged) = (sums(runqlat.iter(), "sum_ns"), sums(vcpulag.iter(), "wait_ns"));
    // Who came at the very end has not run.
    for vcpu in truth.iter().filter(|vcpu| of(vcpu, "iterations") > 0) {
        let pid = of(vcpu, "pid") as u32;
        let seen = |sums: &BTreeMap<u32, u64>| sums.get(&pid).copied().unwrap_or(0);
        assert_eq!(names[&u64::from(pid)], vcpu["vm"], "{vcpu}");
        assert_eq!(seen(&io), of(&vcpu["exits"], "pio"), "{vcpu}");
        assert_eq!(seen(&mmio), of(&vcpu["exits"], "mmio"), "{vcpu}");
        assert_eq!(seen(&shutdown), 1, "{vcpu}");
        // Whoever leaves waits a last time, when the guest looks no more.
        let steal_ns = of(vcpu, "steal_ns");
        for wait_ns in [seen(&waited), seen(&lagged)] {
            let near = steal_ns.saturating_sub(steal_ns / 20 + 5_000_000)..=steal_ns + 200_000_000;
            assert!(near.contains(&wait_ns), "{wait_ns}: {vcpu}");
        }
    }
}
