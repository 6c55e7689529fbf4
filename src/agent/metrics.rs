// SPDX-License-Identifier: Apache-2.0
//! What the agent counts, gathered when somebody asks: for Prometheus on `metrics-addr`, for `pilus metrics list` as JSON.

use crate::agent::Agent;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use pilus_api::types::MetricModel;
use pilus_model::abi::{Counter, DIR_EGRESS, DropReason, REASON_EVENT_LOST, REASON_NO_FLOW};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;

/// Upper ends of the classes of answering times, seconds.
const CLASSES: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];

/// Times that fell into each class, the last one being above all ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    classes: [u64; CLASSES.len() + 1],
    sum: f64,
}

impl Times {
    fn count(&self) -> u64 {
        self.classes.iter().sum()
    }
}

/// Method, route and status of an answer.
type Kind = (String, String, u16);

/// Answers of the API.
#[derive(Debug, Default)]
pub struct ApiStats(Mutex<BTreeMap<Kind, Times>>);

impl ApiStats {
    /// `route` as the router has it, so that their number is limited.
    pub fn answered(&self, method: &str, route: &str, code: u16, took: Duration) {
        let seconds = took.as_secs_f64();
        let class = CLASSES.iter().position(|end| seconds <= *end).unwrap_or(CLASSES.len());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let times = all.entry((method.to_owned(), route.to_owned(), code)).or_default();
        times.classes[class] += 1;
        times.sum += seconds;
    }

    fn snapshot(&self) -> BTreeMap<Kind, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
enum Samples {
    Counter(Vec<(Labels, f64)>),
    Gauge(Vec<(Labels, f64)>),
    Histogram(Vec<(Labels, Times)>),
}

/// One name with all of its samples.
#[derive(Debug)]
struct Family {
    /// Without the `_total` of counters.
    name: &'static str,
    help: &'static str,
    samples: Samples,
}

#[derive(Debug, Default)]
struct Families(Vec<Family>);

impl Families {
    fn counter(&mut self, name: &'static str, help: &'static str, samples: Vec<(Labels, f64)>) {
        self.0.push(Family { name, help, samples: Samples::Counter(samples) });
    }
    fn gauge(&mut self, name: &'static str, help: &'static str, samples: Vec<(Labels, f64)>) {
        self.0.push(Family { name, help, samples: Samples::Gauge(samples) });
    }
}

/// The library writes values as they are.
fn escaped(labels: &Labels) -> Labels {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    labels.iter().map(|(key, value)| (*key, escape(value))).collect()
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for family in &self.0 {
            let kind = match family.samples {
                Samples::Counter(_) => MetricType::Counter,
                Samples::Gauge(_) => MetricType::Gauge,
                Samples::Histogram(_) => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            match &family.samples {
                Samples::Counter(samples) => {
                    for (labels, value) in samples {
                        if labels.is_empty() {
                            metric.encode_counter::<NoLabelSet, _, f64>(value, None)?;
                        } else {
                            metric.encode_family(&escaped(labels))?.encode_counter::<NoLabelSet, _, f64>(value, None)?;
                        }
                    }
                }
                Samples::Gauge(samples) => {
                    for (labels, value) in samples {
                        if labels.is_empty() {
                            metric.encode_gauge(value)?;
                        } else {
                            metric.encode_family(&escaped(labels))?.encode_gauge(value)?;
                        }
                    }
                }
                Samples::Histogram(samples) => {
                    for (labels, t) in samples {
                        let ends = CLASSES.iter().copied().chain([f64::MAX]);
                        let classes: Vec<(f64, u64)> = ends.zip(t.classes).collect();
                        metric.encode_family(&escaped(labels))?.encode_histogram::<NoLabelSet>(t.sum, t.count(), &classes, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn one(value: impl Into<f64>) -> Vec<(Labels, f64)> {
    vec![(Vec::new(), value.into())]
}

fn by(label: &'static str, samples: impl IntoIterator<Item = (&'static str, u64)>) -> Vec<(Labels, f64)> {
    samples.into_iter().map(|(text, value)| (vec![(label, text.to_owned())], value as f64)).collect()
}

fn direction(dir: usize) -> String {
    if dir == usize::from(DIR_EGRESS) { "egress" } else { "ingress" }.into()
}

fn sum(cpus: &[Counter]) -> (f64, f64) {
    let (packets, bytes) = cpus.iter().fold((0, 0), |(p, b), c| (p + c.packets, b + c.bytes));
    (packets as f64, bytes as f64)
}

/// Packets and bytes, from the programs' own counters. Every reason is there from the start, so that a first drop is an increase.
fn packets(agent: &Agent, to: &mut Families) -> Result<(), pilus_loader::Error> {
    let all = agent.tables.metrics.all()?;
    let (mut forwarded, mut dropped) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for dir in 0..2 {
        let count = |reason: usize| all.get(reason << 1 | dir).map(|cpus| sum(cpus)).unwrap_or_default();
        let (packets, bytes) = count(0);
        forwarded[0].push((vec![("direction", direction(dir))], packets));
        forwarded[1].push((vec![("direction", direction(dir))], bytes));
        for reason in DropReason::ALL {
            let (packets, bytes) = count(usize::from(reason.raw()));
            let labels = || vec![("reason", reason.text().to_owned()), ("direction", direction(dir))];
            dropped[0].push((labels(), packets));
            dropped[1].push((labels(), bytes));
        }
    }
    let [p, b] = forwarded;
    to.counter("pilus_forwarded_packets", "Packets let through, as seen from the container", p);
    to.counter("pilus_forwarded_bytes", "Bytes let through, as seen from the container", b);
    let [p, b] = dropped;
    to.counter("pilus_dropped_packets", "Packets dropped by reason, as seen from the container", p);
    to.counter("pilus_dropped_bytes", "Bytes dropped by reason, as seen from the container", b);
    let both = |reason: u32| -> f64 { (0..2).filter_map(|dir| all.get((reason << 1) as usize | dir)).map(|cpus| sum(cpus).0).sum() };
    let failed = both(u32::from(DropReason::FlowInsertFailed.raw()));
    to.counter("pilus_flow_insert_failures", "Packets dropped because the flow table took no new entry", one(failed));
    let homeless = "TCP packets that open no connection and belong to none of the flow table, allowed or not";
    to.counter("pilus_tcp_packets_without_flow", homeless, one(both(REASON_NO_FLOW)));
    let lost = both(REASON_EVENT_LOST);
    let slow = agent.monitor.lost_by_listeners() as f64;
    let at = |place: &str| vec![("where", place.to_owned())];
    to.counter(
        "pilus_events_lost",
        "Events that found no room: in the kernel's buffer, or at a listener",
        vec![(at("buffer"), lost), (at("listener"), slow)],
    );
    Ok(())
}

fn flows(agent: &Agent, to: &mut Families) {
    let s = agent.flows.stats();
    to.gauge(
        "pilus_flow_table_entries",
        "Entries of the flow table after the last sweep",
        by("family", [("ipv4", s.present[0]), ("ipv6", s.present[1])]),
    );
    to.gauge(
        "pilus_flow_table_capacity",
        "Entries that the flow table has room for",
        by("family", [("ipv4", s.capacity[0]), ("ipv6", s.capacity[1])]),
    );
    let removed = [("expired", s.expired), ("closed", s.closed), ("pressure", s.early), ("request", s.flushed)];
    to.counter(
        "pilus_flow_table_removed",
        "Entries removed by the agent: idle, closed, early as the table was nearly full, on request",
        by("why", removed),
    );
    to.counter("pilus_flow_table_sweeps", "Sweeps over the flow table", one(s.sweeps as f64));
    to.gauge("pilus_flow_table_sweep_seconds", "Duration of the last sweep", one(s.took.as_secs_f64()));
}

fn control(agent: &Agent, to: &mut Families) {
    let mut states: BTreeMap<String, u64> = BTreeMap::new();
    for status in agent.readers.status.snapshot().rows.values() {
        *states.entry(status.state.to_string()).or_default() += 1;
    }
    let states = states.into_iter().map(|(state, n)| (vec![("state", state)], n as f64)).collect();
    to.gauge("pilus_endpoints", "Endpoints by state", states);
    to.counter("pilus_endpoint_regenerations", "Endpoints brought up to what is wanted", one(agent.endpoints.regenerations() as f64));
    let objects = agent.programs.cache().stats();
    to.counter(
        "pilus_objects",
        "Requests for a compiled object, by how they were met",
        by(
            "from",
            [("build", objects.builds), ("embedded", objects.embedded_hits), ("disk", objects.disk_hits), ("shared", objects.shared_waits)],
        ),
    );
    to.counter("pilus_object_build_failures", "Objects that did not compile", one(objects.build_failures as f64));
    let rules = agent.readers.rules.snapshot().rows.get(&()).cloned().unwrap_or_default();
    to.gauge("pilus_policy_revision", "Revision of the rules in force", one(rules.revision as f64));
    to.gauge("pilus_policy_rules", "Rules in force", one(rules.rules.len() as f64));
    to.gauge("pilus_identities", "Identities known", one(agent.readers.identities.snapshot().rows.len() as f64));
    let counts = agent.monitor.counts();
    to.counter("pilus_events_read", "Events read from the kernel's buffer", one(counts.events as f64));
    to.gauge("pilus_event_listeners", "Clients that follow events", one(counts.listeners as f64));
    let api = agent.api_stats.snapshot();
    let imports = |accepted: bool| {
        let is = |(m, r, code): &&Kind| m == "PUT" && r == "/v1/policy" && (*code < 400) == accepted;
        api.iter().filter(|(kind, _)| is(kind)).map(|(_, t)| t.count()).sum::<u64>()
    };
    to.counter(
        "pilus_policy_imports",
        "Imports of rules by outcome",
        by("outcome", [("accepted", imports(true)), ("refused", imports(false))]),
    );
    let times =
        api.into_iter().map(|((method, route, code), t)| (vec![("method", method), ("route", route), ("code", code.to_string())], t));
    to.0.push(Family {
        name: "pilus_api_request_duration_seconds",
        help: "Time until an answer of the API began",
        samples: Samples::Histogram(times.collect()),
    });
}

fn process(agent: &Agent, to: &mut Families) {
    let (major, minor) = agent.kernel;
    let labels = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("kernel", format!("{major}.{minor}")),
        ("templates", agent.templates.current().tree_hash().to_owned()),
    ];
    to.gauge("pilus_agent_build", "Version of the agent, its kernel and the templates that run; always 1", vec![(labels, 1.0)]);
    to.gauge("pilus_agent_uptime_seconds", "Time since the agent started", one(agent.started.elapsed().as_secs_f64()));
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        to.counter("process_cpu_seconds", "User and system time of the agent", one(micros as f64 / 1e6));
    }
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    if let (Some(pages), Some(page)) = (pages, page) {
        to.gauge("process_resident_memory_bytes", "Memory of the agent", one((pages * page as u64) as f64));
    }
}

fn gather(agent: &Agent) -> Result<Families, pilus_loader::Error> {
    let mut all = Families::default();
    packets(agent, &mut all)?;
    flows(agent, &mut all);
    control(agent, &mut all);
    process(agent, &mut all);
    Ok(all)
}

/// All samples by the names that Prometheus gives them; a histogram as its count and its sum.
pub fn list(agent: &Agent) -> Result<Vec<MetricModel>, pilus_loader::Error> {
    let mut models = Vec::new();
    let mut push = |family: &Family, suffix: &str, labels: &Labels, value: f64| {
        models.push(MetricModel {
            name: format!("{}{suffix}", family.name),
            help: family.help.into(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
            value,
        });
    };
    for family in gather(agent)?.0 {
        match &family.samples {
            Samples::Counter(samples) => samples.iter().for_each(|(labels, v)| push(&family, "_total", labels, *v)),
            Samples::Gauge(samples) => samples.iter().for_each(|(labels, v)| push(&family, "", labels, *v)),
            Samples::Histogram(samples) => {
                for (labels, t) in samples {
                    push(&family, "_count", labels, t.count() as f64);
                    push(&family, "_sum", labels, t.sum);
                }
            }
        }
    }
    Ok(models)
}

/// All samples in the text form of OpenMetrics.
pub fn text(agent: &Agent) -> Result<String, String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(gather(agent).map_err(|e| e.to_string())?));
    let mut text = String::new();
    text::encode(&mut text, &registry).map_err(|e| e.to_string())?;
    Ok(text)
}

async fn scrape(State(agent): State<Arc<Agent>>) -> Response {
    match tokio::task::spawn_blocking(move || text(&agent)).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
        Ok(Err(e)) => (StatusCode::INTERNAL_SERVER_ERROR, e).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

/// Serves `/metrics` for as long as the agent runs.
pub async fn serve(agent: Arc<Agent>, listener: TcpListener) {
    let router = Router::new().route("/metrics", get(scrape)).with_state(agent);
    if let Err(e) = axum::serve(listener, router).await {
        tracing::error!(error = %e, "metrics are not served any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_classes_that_add_up() {
        let stats = ApiStats::default();
        for ms in [0, 1, 2, 400, 100_000] {
            stats.answered("GET", "/v1/policy", 200, Duration::from_millis(ms));
        }
        let all = stats.snapshot();
        let times = &all[&("GET".to_owned(), "/v1/policy".to_owned(), 200)];
        assert_eq!(times.classes, [2, 1, 0, 0, 1, 0, 0, 0, 1]);
        let mut families = Families::default();
        families.counter("a_b", "Help", vec![(vec![("l", "x\"y\n".to_owned())], 3.0)]);
        let samples = Samples::Histogram(vec![(vec![("code", "200".to_owned())], times.clone())]);
        families.0.push(Family { name: "t_seconds", help: "Times", samples });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(families));
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("encode");
        assert!(text.contains("# TYPE a_b counter\na_b_total{l=\"x\\\"y\\n\"} 3"), "{text}");
        for line in [
            "t_seconds_count{code=\"200\"} 5",
            "t_seconds_bucket{le=\"0.005\",code=\"200\"} 3",
            "t_seconds_bucket{le=\"+Inf\",code=\"200\"} 5",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
