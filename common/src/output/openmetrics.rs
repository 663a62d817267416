//! Metrics for Prometheus: everything since the start, written anew after each interval through the
//! prometheus-client crate, for node_exporter's textfile collector.
//!
//! That collector, like `promtool check metrics`, reads the text format that was there before OpenMetrics (Prometheus'
//! `expfmt.TextParser`). It takes OpenMetrics' own `# UNIT` and `# EOF` for comments, refuses a whole file for a type
//! that it does not know (`info`, `unknown`), and wants TYPE and HELP to name a counter as its sample is named:
//! `x_total`, where OpenMetrics has `x`. So counters are declared by their whole name, and facts about the build are a
//! gauge; the rest is OpenMetrics. Prometheus itself reads the result as either; strict parsers of OpenMetrics do not.

mod buckets;
mod series;
mod target;

use std::borrow::Borrow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

pub use buckets::{Buckets, SERIES_PER_HISTOGRAM};
pub use series::Series;
pub use target::Target;

use super::Interval;

/// What tells a family's series apart.
pub type Labels = Vec<(&'static str, String)>;

/// These labels and one more.
pub fn and(labels: &Labels, name: &'static str, value: &str) -> Labels {
    let more = [(name, value.to_owned())];
    labels.iter().cloned().chain(more).collect()
}

/// The only series of a family, which has no labels.
pub fn only<V>(value: V) -> Option<(Labels, V)> {
    Some((Labels::new(), value))
}

/// Nanoseconds in the unit of all times here.
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// What a tool has counted since its start.
pub trait Metrics: fmt::Debug + Send + 'static {
    /// Hands out all there is, family by family.
    fn encode(&self, families: &mut Families<'_>) -> fmt::Result;
}

/// Takes families of metrics. One without series is left out: what is not known is not 0.
pub struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    /// What only grows; its name ends with `_total`.
    pub fn counter<L: Borrow<Labels>, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        // As a counter's, the library would name the sample `NAME_total`.
        self.family(name, help, MetricType::Counter, samples, |sample, n| sample.encode_gauge(n))
    }

    /// What goes up and down.
    pub fn gauge<L: Borrow<Labels>, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, samples, |sample, n| sample.encode_gauge(n))
    }

    /// How long things took.
    pub fn histogram<'b, L: Borrow<Labels>>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, &'b Buckets)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Histogram, samples, |sample, times| {
            let (sum, count, buckets) = (seconds(times.sum_ns()), times.count(), times.buckets());
            sample.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        })
    }

    fn family<L: Borrow<Labels>, V>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        samples: impl IntoIterator<Item = (L, V)>,
        encode: impl Fn(&mut MetricEncoder<'_>, &V) -> fmt::Result,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            match labels.borrow() {
                none if none.is_empty() => encode(&mut family, &value)?,
                labels => encode(&mut family.encode_family(labels)?, &value)?,
            }
        }
        Ok(())
    }
}

/// A tool's metrics, and where they go.
pub struct OpenMetrics<M> {
    state: Shared<M>,
    registry: Registry,
    target: Target,
}

#[derive(Debug)]
struct State<M> {
    tool: &'static str,
    interval: Duration,
    metrics: M,
}

/// The registry wants to own what it collects from.
#[derive(Debug)]
struct Shared<M>(Arc<Mutex<State<M>>>);

impl<M> Shared<M> {
    fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Metrics> Collector for Shared<M> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = self.lock();
        let mut families = Families(encoder);
        let name = |name| format!("{}_{name}", state.tool);
        let version: Labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        families.gauge(&name("build_info"), "The version of the tool.", [(version, 1_u32)])?;
        families.gauge(
            &name("interval_seconds"),
            "Length of the last interval; 0 before the first has ended.",
            only(state.interval.as_secs_f64()),
        )?;
        state.metrics.encode(&mut families)
    }
}

fn register<M: Metrics>(tool: &'static str, metrics: M) -> (Shared<M>, Registry) {
    let state = Arc::new(Mutex::new(State { tool, interval: Duration::ZERO, metrics }));
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Shared(Arc::clone(&state))));
    (Shared(state), registry)
}

fn encode(registry: &Registry) -> Result<String> {
    let mut text = String::new();
    text::encode(&mut text, registry).context("failed to encode metrics")?;
    Ok(text)
}

/// What would be written of metrics, for tests.
pub fn encoded(tool: &'static str, metrics: impl Metrics) -> Result<String> {
    encode(&register(tool, metrics).1)
}

impl<M: Metrics> OpenMetrics<M> {
    /// Writes metrics as they are at first, so that what a counter has at the end of the first interval is an increase.
    pub fn begin(target: Target, tool: &'static str, metrics: M) -> Result<Self> {
        let (state, registry) = register(tool, metrics);
        target.write(&encode(&registry)?)?;
        Ok(Self { state, registry, target })
    }

    /// Adds an interval that has ended, and writes.
    pub fn interval(&mut self, interval: &Interval, add: impl FnOnce(&mut M)) -> Result<()> {
        let mut state = self.state.lock();
        state.interval = interval.length;
        add(&mut state.metrics);
        drop(state);
        self.target.write(&encode(&self.registry)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hist::Hist;

    #[derive(Debug, Default)]
    struct Waits {
        waits: Buckets,
        late: u64,
    }

    impl Metrics for Waits {
        fn encode(&self, families: &mut Families<'_>) -> fmt::Result {
            let web: Labels = vec![("vm", "we\"b\n".to_owned())];
            let both = [(and(&web, "cause", "quota"), seconds(self.late)), (web, 0.5)];
            families.counter("x_late_seconds_total", "Time.", both)?;
            families.gauge("x_unknown", "Not known here.", None::<(Labels, u64)>)?;
            families.histogram("x_wait_seconds", "Waits.", only(&self.waits))
        }
    }

    fn metrics() -> Waits {
        let mut metrics = Waits { late: 2_500_000_000, ..Waits::default() };
        metrics.waits.add(&Hist::of([0, 1_999, 2_000, 7_000_000]));
        metrics
    }

    #[test]
    fn the_text_is_what_both_parsers_read() {
        let text = encoded("x", metrics()).unwrap();
        let but_middle =
            text.lines().filter(|line| !line.contains("le=\"") || line.contains("Inf"));
        let version = env!("CARGO_PKG_VERSION");
        let short = but_middle.collect::<Vec<_>>().join("\n").replace(version, "VERSION");
        insta::assert_snapshot!(short, @r#"
        # HELP x_build_info The version of the tool.
        # TYPE x_build_info gauge
        x_build_info{version="VERSION"} 1
        # HELP x_interval_seconds Length of the last interval; 0 before the first has ended.
        # TYPE x_interval_seconds gauge
        x_interval_seconds 0.0
        # HELP x_late_seconds_total Time.
        # TYPE x_late_seconds_total counter
        x_late_seconds_total{vm="we\"b\n",cause="quota"} 2.5
        x_late_seconds_total{vm="we\"b\n"} 0.5
        # HELP x_wait_seconds Waits.
        # TYPE x_wait_seconds histogram
        x_wait_seconds_sum 0.007003999
        x_wait_seconds_count 4
        x_wait_seconds_bucket{le="+Inf"} 4
        # EOF
        "#);
        let buckets = text.lines().filter(|line| line.starts_with("x_wait_seconds_bucket"));
        assert_eq!(buckets.count() + 2, SERIES_PER_HISTOGRAM);
        assert!(text.contains("x_wait_seconds_bucket{le=\"0.000004\"} 3\n"), "{text}");
    }

    #[test]
    fn a_file_is_replaced_by_a_whole_one() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.prom");
        let target = Target::find(&path).unwrap();
        let mut openmetrics = OpenMetrics::begin(target, "x", metrics()).unwrap();
        let reader = std::fs::File::open(&path).unwrap();
        let interval = Interval {
            end: "2026-11-23T04:42:10Z".parse().unwrap(),
            length: Duration::from_millis(1_500),
        };
        openmetrics.interval(&interval, |metrics| metrics.late += 1_500_000_000).unwrap();
        let before = std::io::read_to_string(reader).unwrap();
        let after = std::fs::read_to_string(&path).unwrap();
        assert!(before.contains("cause=\"quota\"} 2.5\n") && before.ends_with("# EOF\n"));
        assert!(after.contains("cause=\"quota\"} 4.0\n") && after.ends_with("# EOF\n"));
        assert!(after.contains("x_interval_seconds 1.5\n"), "{after}");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["x.prom"]);
    }
}
