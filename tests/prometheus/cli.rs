//! The option as each tool has it.

use std::fs;
use std::process::Command;

use crate::util::TempDir;
use crate::util::tool::{assert_refused, run};
use crate::{TOOLS, assert_clean, name};

#[test]
fn what_cannot_be_written_is_refused_before_anything_is_loaded() {
    for (tool, _) in TOOLS {
        for (args, words) in [
            (["--openmetrics", "-", "--json"].as_slice(), "with --csv or --json name a file"),
            (&["--openmetrics", "-", "--csv"], "with --csv or --json name a file"),
            (&["--openmetrics", "/dev/null"], "cannot write `/dev/null`: it is not a file"),
            (&["--openmetrics", "/no/such/x.prom"], "cannot write `/no/such/x.prom`: No such file"),
            (&["--max-series", "7"], "--openmetrics"),
        ] {
            assert_refused(name(tool), &run(tool, args), 2, words);
        }
    }
}

#[test]
fn standard_output_has_metrics_and_nothing_else() {
    for (tool, _) in TOOLS {
        let output = run(tool, &["--openmetrics", "-", "-T", "0.1", "2"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{}: {stderr}", name(tool));
        let text = String::from_utf8(output.stdout).unwrap();
        let texts: Vec<&str> = text.split_inclusive("# EOF\n").collect();
        assert_eq!(texts.len(), 3, "at the start, and after each interval: {text}");
        texts.iter().for_each(|text| assert_clean(text));
        let length = |text: &str| {
            let begin = format!("{}_interval_seconds ", name(tool));
            let line = text.lines().find_map(|line| line.strip_prefix(&begin)).unwrap();
            line.parse::<f64>().unwrap()
        };
        assert_eq!(length(texts[0]), 0.0);
        assert!(length(texts[1]) > 0.0);
    }
}

#[test]
fn a_file_is_written_beside_other_formats() {
    let dir = TempDir::new("beside");
    for (tool, _) in TOOLS {
        let path = dir.join("x.prom");
        let args = ["--openmetrics", path.to_str().unwrap(), "--csv", "0.1", "1"];
        let output = run(tool, &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.starts_with(b"time,interval_s,"), "{}", name(tool));
        assert_clean(&fs::read_to_string(&path).unwrap());
    }
}

#[test]
fn a_reader_that_leaves_ends_the_run_quietly() {
    for (tool, _) in TOOLS {
        let script = format!("{tool} --openmetrics - 0.1 | head -1; echo ${{PIPESTATUS[0]}}");
        let output = Command::new("timeout").args(["20", "bash", "-c", &script]).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.ends_with("\n0\n"), "{stdout}");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
