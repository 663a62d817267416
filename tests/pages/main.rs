//! FIELDS of each manual against the columns that its tool prints.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn runqlat_8() {
    let kinds = [
        "--csv",
        "--csv --by thread",
        "--csv --by vm",
        "--csv --by cpu",
        "--csv --by pidns",
        "--csv=buckets",
    ];
    assert_fields("runqlat", env!("CARGO_BIN_EXE_runqlat"), &kinds, "");
}

#[test]
fn kvmexits_8() {
    let kinds =
        ["--csv --by vcpu,reason --detail", "--csv=buckets", "--csv --slower 1000 --detail"];
    assert_fields("kvmexits", env!("CARGO_BIN_EXE_kvmexits"), &kinds, "");
}

#[test]
fn vcpulag_8() {
    let kinds =
        ["--csv", "--csv --by vm", "--csv=buckets", "--csv --culprits", "--csv --slower 1000"];
    assert_fields("vcpulag", env!("CARGO_BIN_EXE_vcpulag"), &kinds, "");
}

#[test]
fn ksmstat_8() {
    let kinds = ["--csv", "--csv=processes", "--csv --by vm", "--csv=buckets"];
    assert_fields("ksmstat", env!("CARGO_BIN_EXE_ksmstat"), &kinds, "Counters and settings");
}

/// Every column is in FIELDS of the page, and what is said there to be a column is one. Columns are listed under "CSV
/// and JSON" and under `also`.
fn assert_fields(tool: &str, program: &str, kinds: &[&str], also: &str) {
    let path = format!("{}/man/{tool}.8", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(path).unwrap();
    let (_, fields) = page.split_once("\n.Sh FIELDS\n").unwrap();
    let fields = fields.split("\n.Sh ").next().unwrap();
    let columns: BTreeSet<String> = kinds.iter().flat_map(|kind| header(program, kind)).collect();

    let named: BTreeSet<&str> = fields.lines().flat_map(names).collect();
    let missing: Vec<_> =
        columns.iter().filter(|column| !named.contains(column.as_str())).collect();
    assert!(missing.is_empty(), "{tool}.8 does not name {missing:?}");

    let listed = fields.split(".Ss ").filter(|part| {
        part.starts_with("CSV and JSON\n")
            || !also.is_empty() && part.starts_with(&format!("{also}\n"))
    });
    for item in listed.flat_map(|part| part.split("\n.It ").skip(1)) {
        let (tag, text) = item.split_once('\n').unwrap();
        if text.starts_with("JSON only") || tag.contains("...") {
            continue;
        }
        for name in names(&format!(".{tag}")) {
            assert!(columns.contains(name), "{tool}.8: no row has `{name}`");
        }
    }
}

/// The columns of a kind of rows.
fn header(program: &str, kind: &str) -> Vec<String> {
    let output = Command::new("timeout")
        .args(["20", program, "-d", "0.01"])
        .args(kind.split(' '))
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let header = stdout.lines().next().unwrap_or_else(|| {
        panic!("{kind}: {}", String::from_utf8_lossy(&output.stderr));
    });
    header.split(',').map(str::to_owned).collect()
}

/// What a line of mdoc marks as names of fields.
fn names(line: &str) -> Vec<&str> {
    let marked = line.strip_prefix(".It Va ").or(line.strip_prefix(".Va "));
    let words = marked.unwrap_or_default().split(' ').scan(true, |is_name, word| {
        // `Va a , b No (A) , Va c`, the macros that our pages have in such a line.
        *is_name = match word {
            "Va" => true,
            "No" | "Pq" | "Ns" => false,
            _ => *is_name,
        };
        Some((*is_name, word))
    });
    let names = words
        .filter(|(is_name, word)| *is_name && word.starts_with(|c: char| c.is_ascii_lowercase()));
    names.map(|(_, word)| word).collect()
}
