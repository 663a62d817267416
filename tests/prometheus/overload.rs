//! A real overload: what Prometheus knows of it is what the tools know, and an alert fires as long as it lasts.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use crate::producer::Place;
use crate::server::Prometheus;
use crate::shipped::dashboard_queries;
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::tool::json_lines;
use crate::{TOOLS, assert_clean, families, shipped};

/// What takes minutes in earnest takes seconds.
fn shortened(rules: &str) -> String {
    let lines = rules.lines().map(|line| match line.split_once("for: ") {
        Some((indent, _)) => format!("{indent}for: 1s\n"),
        None => format!("{line}\n").replace("[5m]", "[5s]").replace("[15m]", "[15s]"),
    });
    lines.collect()
}

/// The 99th percentile of all waits in JSON rows: the bucket, of 32 in each power of two, that holds it.
fn p99_ns(rows: &str) -> (f64, f64) {
    let mut buckets: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for row in json_lines(rows) {
        for bucket in row["buckets"].as_array().unwrap() {
            let [lo, hi, count] = [0, 1, 2].map(|i| bucket[i].as_u64().unwrap());
            buckets.entry(lo).or_insert((hi, 0)).1 += count;
        }
    }
    let all: u64 = buckets.values().map(|(_, count)| count).sum();
    let mut below = 0;
    for (lo, (hi, count)) in buckets {
        below += count;
        if below * 100 >= all * 99 {
            return (lo as f64, hi as f64);
        }
    }
    panic!("no waits");
}

#[test]
fn an_overload_is_seen_through_prometheus_and_alarms() {
    let _alone = alone();
    let place = Place::new("prometheus");
    let [runqlat, kvmexits, vcpulag, ksmstat] = TOOLS.map(|(tool, _)| tool);
    let rows = place.start(runqlat, &["--by", "vm", "--json"]);
    let others = [
        place.start(kvmexits, &["--json"]),
        place.start(vcpulag, &["--by", "vm", "--json"]),
        place.start(ksmstat, &["--by", "process", "--json"]),
    ];
    let rules =
        fs::read_to_string(shipped("packaging/prometheus/kvm-bpf-tools.rules.yml")).unwrap();
    let prometheus = Prometheus::start(&place.join(""), &place.metrics(), &shortened(&rules));
    prometheus.until("all files are read", |prometheus| {
        prometheus.query("node_textfile_mtime_seconds").len() == TOOLS.len()
    });
    let alerts = ["KvmRunQueueWaitsLong", "KvmVcpusWait"];
    for alert in alerts {
        assert_eq!(prometheus.firing(alert), None, "nothing is wrong yet");
    }

    // On one CPU, so that the other is left for those who look.
    let last = thread::available_parallelism().unwrap().get() - 1;
    let overload = Guests::on_cpu(last, &["--vms", "37", "--workload", "spin", "--duration", "60"]);
    let io = ["--vms", "1", "--workload", "exits=pio:10007@101", "--duration", "60"];
    let io = Guests::start(&io);
    for alert in alerts {
        prometheus
            .until(&format!("{alert} fires"), |prometheus| prometheus.firing(alert).is_some());
        println!("{alert}: {}", prometheus.firing(alert).unwrap());
    }
    prometheus.until("most guests wait at the same time", |prometheus| {
        prometheus.query("runqlat_waiting_tasks{vm=~\"loadgen-.*\"} > 0").len() > 30
    });
    for query in dashboard_queries() {
        let query = query.replace("$__rate_interval", "5s");
        assert!(!prometheus.query(&query).is_empty(), "nothing found: {query}");
    }
    let kinds = prometheus.kinds();
    for (tool, page) in TOOLS {
        let text = fs::read_to_string(place.file(tool)).unwrap();
        assert_clean(&text);
        let documented = families::documented(page);
        for (family, (kind, _)) in families::written(&text) {
            assert_eq!(documented.get(&family).map(|(kind, _)| kind), Some(&kind), "{family}");
            assert_eq!(kinds.get(&family), Some(&kind), "{family}");
        }
    }
    assert!(prometheus.exported().contains("node_textfile_scrape_error 0\n"));

    overload.end();
    io.end();
    for alert in alerts {
        prometheus
            .until(&format!("{alert} is over"), |prometheus| prometheus.firing(alert).is_none());
    }
    let rows = rows.end(libc::SIGINT);
    assert!(rows.status.success() && rows.stderr.is_empty(), "{}", rows.stderr);
    let text = fs::read_to_string(place.file(runqlat)).unwrap();
    let count = |line: &str| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    let lines = text.lines().filter(|line| line.starts_with("runqlat_wait_seconds_count"));
    let all: u64 = lines.map(count).sum();
    prometheus.until("all that runqlat has written is read", |prometheus| {
        prometheus.value("sum(runqlat_wait_seconds_count)") == all as f64
    });
    let told: u64 = json_lines(&rows.stdout).iter().map(|r| r["count"].as_u64().unwrap()).sum();
    assert_eq!(told, all, "JSON rows and metrics are the same waits");
    let (lo_ns, hi_ns) = p99_ns(&rows.stdout);
    let query = "histogram_quantile(0.99, sum by (le) (runqlat_wait_seconds_bucket))";
    let p99_s = prometheus.value(query);
    println!("{query} = {p99_s} s; of JSON rows: {lo_ns}-{hi_ns} ns");
    // Prometheus' bucket is a power of two of microseconds; ours, of nanoseconds, may lie across one of its bounds.
    let micros = |ns: f64| (ns / 1e3).log2();
    let (lo_s, hi_s) = (micros(lo_ns).floor().exp2() / 1e6, micros(hi_ns).ceil().exp2() / 1e6);
    assert!((lo_s..=hi_s).contains(&p99_s), "{p99_s} is not in {lo_s}-{hi_s} s");

    for tool in others {
        let ended = tool.end(libc::SIGTERM);
        assert!(ended.status.success(), "{}", ended.stderr);
    }
}
