//! The notebooks on what the tools have just recorded, and what pandas makes of the tools' CSV by itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../util/mod.rs"]
mod util;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use util::ksm::Ksm;
use util::tool::{CsvRow, Tool, csv_rows, json_lines, total};
use util::{TempDir, alone, loadgen};

const NOTEBOOKS: [&str; 2] = ["incident", "oblivion"];

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/notebooks")
}

fn rows(path: &Path) -> Vec<CsvRow> {
    csv_rows(&fs::read_to_string(path).unwrap())
}

fn python(script: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/notebooks").join(script);
    let mut command = Command::new("timeout");
    // The kernel would warn of what only who debugs it needs to know.
    command.args(["120", "/usr/bin/python3"]).arg(path).env("PYDEVD_DISABLE_FILE_VALIDATION", "1");
    command
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A short incident and a short ramp.
fn record(dir: &Path) {
    let _ksm = Ksm::take();
    let tools = Path::new(env!("CARGO_BIN_EXE_runqlat")).parent().unwrap();
    assert!(Path::new(&loadgen()).exists());
    let ramp = ["2", "--to", "23", "--step", "10", "--hold", "2"];
    let mut command = Command::new("timeout");
    command.arg("120").arg(packaging().join("record")).args([tools, dir]).args(ramp);
    let steps = succeeded(&command.output().unwrap());
    assert!(steps.contains("stopped at 23 guests"), "{steps}");
}

#[test]
fn notebooks_show_what_was_just_recorded() {
    let _alone = alone();
    let dir = TempDir::new("notebooks");
    record(&dir.0);
    let (incident, ramp) = (dir.join("incident"), dir.join("ramp"));

    let picture = dir.join("ramp.svg");
    let mut draw = Command::new(packaging().join("picture"));
    let drawing = draw.args([&ramp, &picture]).stdout(Stdio::null()).spawn().unwrap();
    let mut execute = python("execute.py");
    execute.args(NOTEBOOKS.map(|name| packaging().join(name).with_extension("ipynb")));
    execute.env("INCIDENT", &incident).env("RAMP", &ramp);
    let shown = json_lines(&succeeded(&execute.output().unwrap()));

    let of = |file: &str, column| total(&rows(&incident.join(file)), column);
    let [waits, wait_ns, exits] =
        [("runqlat.csv", "count"), ("vcpulag.csv", "wait_ns"), ("kvmexits.csv", "count")]
            .map(|(file, column)| of(file, column));
    assert!(waits > 0 && wait_ns > 0 && exits > 0, "{waits} {wait_ns} {exits}");
    let told = format!("waits {waits} wait_ns {wait_ns} exits {exits} lost 0\n");
    assert_eq!((shown[0]["text"].as_str(), &shown[0]["pictures"]), (Some(&*told), &5.into()));

    let steps: Vec<u64> =
        rows(&ramp.join("ramp.csv")).iter().map(|row| row["guests"].parse().unwrap()).collect();
    assert_eq!(steps, [10, 20, 23]);
    let waits = total(&rows(&ramp.join("runqlat-buckets.csv")), "count");
    let vms = rows(&ramp.join("vcpulag.csv")).len();
    // A guest that had no CPU yet has not been seen by vcpulag.
    assert!(waits > 0 && vms >= 23, "{waits} {vms}");
    let text = shown[1]["text"].as_str().unwrap();
    let (first, told) = text.split_once('\n').unwrap();
    assert!(first.starts_with("23 guests on "), "{text}");
    assert_eq!(told, format!("steps 3 waits {waits} vms {vms}\n"));
    assert_eq!(shown[1]["pictures"], 2);

    wait(drawing);
    let svg = fs::read_to_string(picture).unwrap();
    assert!(svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>"), "{svg:.100}");

    pandas_finds_the_types(&dir.0);
}

fn wait(mut child: Child) {
    assert!(child.wait().unwrap().success());
}

/// Of all that was recorded, and where names look like figures.
fn pandas_finds_the_types(dir: &Path) {
    // Two that wait for each other.
    let busy = ["101", "null"].map(|name| {
        let program = dir.join(name);
        fs::copy("/bin/sh", &program).unwrap();
        let program = program.to_str().unwrap();
        Tool::start_at_once("taskset", &["-c", "0", program, "-c", "while :; do :; done"])
    });
    let named = dir.join("runqlat.csv");
    let ended = Tool::start(env!("CARGO_BIN_EXE_runqlat"), &["-P", "--csv", "0.5", "2"]).wait();
    fs::write(&named, ended.stdout).unwrap();
    drop(busy);

    let recorded = [
        "incident/kvmexits",
        "incident/vcpulag",
        "ramp/ksmstat",
        "ramp/ramp",
        "ramp/runqlat",
        "ramp/runqlat-buckets",
        "ramp/vcpulag",
    ];
    let recorded = recorded.map(|name| dir.join(name).with_extension("csv"));
    let paths: Vec<_> = [named].into_iter().chain(recorded).collect();
    let told = succeeded(&python("types.py").args(&paths).output().unwrap());
    let told: Vec<Vec<&str>> = told.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(told.len(), paths.len());
    for (path, told) in paths.iter().zip(&told) {
        assert_eq!(told[0], rows(path).len().to_string(), "{}", path.display());
    }
    for name in ["\"101\"", "\"null\""] {
        assert!(told[0].contains(&name), "{name}: {told:?}");
    }
}

/// What they show is made anew by whoever looks.
#[test]
fn notebooks_have_no_outputs() {
    for name in NOTEBOOKS {
        let text = fs::read_to_string(packaging().join(name).with_extension("ipynb")).unwrap();
        let notebook: Value = serde_json::from_str(&text).unwrap();
        for cell in notebook["cells"].as_array().unwrap() {
            let code = cell["cell_type"] == "code";
            assert_eq!(cell.get("outputs"), code.then_some(&Value::Array(vec![])), "{cell}");
            assert_eq!(cell.get("execution_count"), code.then_some(&Value::Null), "{cell}");
        }
    }
}
