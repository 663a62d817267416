//! `ksmstat --why` names what hinders merging: each cause is made, alone and with others, on every kernel.

mod causes;
mod regions;

use std::fs;

use serde_json::Value;

use crate::util::ksm::Ksm;
use crate::util::tool::{json_lines, run};

const KSMSTAT: &str = env!("CARGO_BIN_EXE_ksmstat");

/// Lets ksmd scan so many times, and on.
fn scan(ksm: &Ksm, times: u64) {
    ksm.scan(times);
    ksm.set("run", 1);
}

/// An answer.
#[derive(Debug)]
struct Answer(Value);

/// Asks why, of what happens in half a second if `args` do not say otherwise.
fn why(args: &[&str]) -> Answer {
    let output = run(KSMSTAT, &[&["--why", "--json", "-d", "0.5"], args].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    assert_eq!(stderr, "", "{args:?}");
    let mut lines = json_lines(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(lines.len(), 1, "{lines:?}");
    Answer(lines.remove(0))
}

impl Answer {
    fn list(&self, name: &str) -> &[Value] {
        self.0[name].as_array().unwrap()
    }

    /// The causes' names, in their order.
    fn ids(&self) -> Vec<&str> {
        self.list("causes").iter().map(|cause| cause["cause"].as_str().unwrap()).collect()
    }

    fn remarks(&self) -> Vec<&str> {
        self.list("remarks").iter().map(|remark| remark["remark"].as_str().unwrap()).collect()
    }

    /// A fact of a cause that must be there.
    fn fact(&self, cause: &str, fact: &str) -> &Value {
        let found = self.list("causes").iter().find(|found| found["cause"] == cause);
        let facts = &found.unwrap_or_else(|| panic!("no {cause}: {}", self.0))["facts"];
        facts.get(fact).unwrap_or_else(|| panic!("no {fact} of {cause}: {}", self.0))
    }

    fn number(&self, cause: &str, fact: &str) -> u64 {
        let value = self.fact(cause, fact);
        value.as_u64().unwrap_or_else(|| panic!("{fact} of {cause}: {}", self.0))
    }
}

/// Huge pages of hugetlbfs, 2 MiB each, until the end of the test.
struct HugePages(String);

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    fn reserve(number: u64) -> Self {
        let before = fs::read_to_string(NR_HUGEPAGES).unwrap();
        let pages = Self(before);
        fs::write(NR_HUGEPAGES, number.to_string()).unwrap();
        let got = fs::read_to_string(NR_HUGEPAGES).unwrap();
        assert!(got.trim().parse::<u64>().unwrap() >= number, "not enough memory: {got}");
        pages
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        _ = fs::write(NR_HUGEPAGES, self.0.trim());
    }
}
