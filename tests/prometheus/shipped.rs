//! What is shipped around the tools: units, alerts, a dashboard.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::util::TempDir;
use crate::{TOOLS, families, name, shipped};

/// A program has nothing to complain about.
fn assert_content(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}{complaint}");
    said + &complaint
}

#[test]
fn alerts_are_set_off_by_what_they_are_about() {
    let rules = shipped("packaging/prometheus/kvm-bpf-tools.rules.yml");
    assert_content("promtool", &["check", "rules", &rules]);
    assert_content("promtool", &["test", "rules", &shipped("tests/prometheus/rules.test.yml")]);
}

/// The metrics that a text names.
fn named(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let prefixes = TOOLS.map(|(tool, _)| format!("{}_", name(tool)));
    let ours = words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)));
    ours.map(str::to_owned).collect()
}

#[test]
fn alerts_dashboard_and_pages_name_metrics_that_there_are() {
    let documented: Vec<String> =
        TOOLS.iter().flat_map(|(_, page)| families::documented(page).into_keys()).collect();
    let is_known = |name: &String| {
        let suffixes = ["_bucket", "_sum", "_count"];
        let stem = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
        documented.contains(name) || stem.is_some_and(|stem| documented.iter().any(|d| d == stem))
    };
    let files = ["prometheus/kvm-bpf-tools.rules.yml", "grafana/kvm-hosts.json"];
    let texts =
        files.map(|file| fs::read_to_string(shipped(&format!("packaging/{file}"))).unwrap());
    let sections = TOOLS.map(|(_, page)| families::section(page));
    for text in texts.iter().map(String::as_str).chain(sections) {
        let names = named(text);
        assert!(!names.is_empty());
        let unknown: Vec<_> = names.iter().filter(|name| !is_known(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}

/// Each query of the dashboard, for all hosts.
pub fn dashboard_queries() -> Vec<String> {
    let text = fs::read_to_string(shipped("packaging/grafana/kvm-hosts.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let query = |target: &Value| target["expr"].as_str().unwrap().replace("$instance", ".*");
    targets.map(query).collect()
}

#[test]
fn panels_do_not_overlap_and_have_numbers_of_their_own() {
    let text = fs::read_to_string(shipped("packaging/grafana/kvm-hosts.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut taken = Vec::new();
    let mut ids = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|k| panel["gridPos"][k].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        let cells = (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y)));
        for cell in cells {
            assert!(!taken.contains(&cell), "{}", panel["title"]);
            taken.push(cell);
        }
        assert!(!ids.contains(&panel["id"]), "{}", panel["id"]);
        ids.push(panel["id"].clone());
    }
}

#[test]
fn units_are_sound_and_hardened() {
    let dir = TempDir::new("units");
    let units = dir.join("systemd");
    assert_content("cp", &["-r", &shipped("packaging/systemd"), units.to_str().unwrap()]);
    let template = units.join("kvm-bpf-tools@.service");
    let text = fs::read_to_string(&template).unwrap();
    for (tool, _) in TOOLS {
        let name = name(tool);
        // Not installed yet.
        fs::write(&template, text.replace("/usr/bin/%i", tool)).unwrap();
        let unit = format!("kvm-bpf-tools@{name}.service");
        let mut verify = Command::new("systemd-analyze");
        verify.env("SYSTEMD_UNIT_PATH", format!("{}:", units.display()));
        let output = verify.args(["verify", "--man=no", &unit]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("kvm-bpf-tools"), "{said}");
    }
    let security = ["security", "--offline=true", "--threshold=15", template.to_str().unwrap()];
    assert_content("systemd-analyze", &security);
}
