//! The real node_exporter and the real Prometheus, on ports of their own, asked as people ask them.

use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A daemon, which ends when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|err| panic!("{program}: {err}")))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Prometheus, and the node_exporter that it asks.
pub struct Prometheus {
    url: String,
    exporter_url: String,
    _daemons: [Daemon; 2],
}

/// What Debian calls it, or everybody else.
fn node_exporter() -> &'static str {
    let is_there = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let names = ["prometheus-node-exporter", "node_exporter"];
    names.into_iter().find(is_there).expect("node_exporter")
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Prometheus {
    /// Asks every second for what there is in the directory, and looks whether `rules` hold.
    pub fn start(home: &Path, metrics: &Path, rules: &str) -> Self {
        let (address, exporter) = (free_address(), free_address());
        fs::write(home.join("rules.yml"), rules).unwrap();
        let config = home.join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [rules.yml]\n\
             scrape_configs:\n  - job_name: node\n    static_configs: [{{ targets: ['{exporter}'] }}]\n"
        );
        fs::write(&config, text).unwrap();
        let listen = |address| format!("--web.listen-address={address}");
        let daemons = [
            Daemon::start(
                node_exporter(),
                &[
                    "--collector.disable-defaults",
                    "--collector.textfile",
                    &format!("--collector.textfile.directory={}", metrics.display()),
                    &listen(&exporter),
                ],
            ),
            Daemon::start(
                "prometheus",
                &[
                    &format!("--config.file={}", config.display()),
                    &format!("--storage.tsdb.path={}", home.join("data").display()),
                    &listen(&address),
                ],
            ),
        ];
        let url = format!("http://{address}");
        let prometheus =
            Self { url, exporter_url: format!("http://{exporter}"), _daemons: daemons };
        prometheus.until("Prometheus has asked node_exporter", |prometheus| {
            prometheus.try_value("up") == Some(1.0)
        });
        prometheus
    }

    /// Waits until something holds.
    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(40);
        while !holds(self) {
            assert!(Instant::now() < deadline, "in vain: {what}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn curl(&self, path: &str, query: &str) -> Option<Value> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--get", "--data-urlencode", &format!("query={query}")]);
        let output = curl.arg(format!("{}/api/v1/{path}", self.url)).output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    /// The value of each series that a query finds, with its labels.
    pub fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let answer = self.curl("query", query).expect("an answer");
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let series = answer["data"]["result"].as_array().unwrap();
        let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
        series.iter().map(|series| (series["metric"].clone(), value(series))).collect()
    }

    /// The value of the only series that a query finds.
    pub fn value(&self, query: &str) -> f64 {
        self.try_value(query).unwrap_or_else(|| panic!("{query}: {:?}", self.query(query)))
    }

    fn try_value(&self, query: &str) -> Option<f64> {
        let answer = self.curl("query", query)?;
        let [series] = answer["data"]["result"].as_array()?.as_slice() else { return None };
        series["value"][1].as_str()?.parse().ok()
    }

    /// What Prometheus takes each family for.
    pub fn kinds(&self) -> HashMap<String, String> {
        let answer = self.curl("metadata", "").expect("an answer");
        let families = answer["data"].as_object().unwrap().iter();
        let kind = |facts: &Value| facts[0]["type"].as_str().unwrap().to_owned();
        families.map(|(name, facts)| (name.clone(), kind(facts))).collect()
    }

    /// What the annotations of an alert say, if it fires.
    pub fn firing(&self, alert: &str) -> Option<Value> {
        let answer = self.curl("alerts", "").expect("an answer");
        let alerts = answer["data"]["alerts"].as_array().unwrap();
        let mut of_name = alerts.iter().filter(|found| found["labels"]["alertname"] == alert);
        let found = of_name.find(|found| found["state"] == "firing")?;
        Some(found["annotations"].clone())
    }

    /// What node_exporter says itself.
    pub fn exported(&self) -> String {
        let url = format!("{}/metrics", self.exporter_url);
        let output = Command::new("curl").args(["-sS", &url]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}
