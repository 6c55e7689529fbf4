// SPDX-License-Identifier: Apache-2.0
//! Connecting containers, until they answer.

use super::probe::{Pinger, settled};
use super::{Plan, Row, median, progress, quantile};
use crate::{Container, Node, NodeOptions};
use anyhow::{Context, Result, ensure};
use pilus_api::types::{Build, EndpointRequest};
use std::time::Instant;
use tokio::task::JoinSet;

pub const ONE_ROWS: &[&str] = &["endpoint_add_p50_ms", "endpoint_add_p99_ms"];
pub const OWN_ROWS: &[&str] = &["endpoint_add_own_p50_ms"];
pub const MANY_ROWS: &[&str] = &["endpoint_add_250_s", "agent_rss_250_mb"];

const ONE: usize = 100;
const OWN: usize = 15;
const MANY: usize = 250;

struct Bench {
    node: Node,
    pinger: Pinger,
    _prober: Container,
}

/// Containers added one after the other: ms of each until it answered, the API call's share of that, and who had to be asked
/// more than once.
struct Sequence {
    whole: Vec<f64>,
    call: Vec<f64>,
    late: Vec<String>,
    _all: Vec<Container>,
}

impl Bench {
    fn new() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        let prober = node.add("prober", &["app=prober"])?;
        let pinger = Pinger::new(&prober)?;
        Ok(Self { node, pinger, _prober: prober })
    }

    fn sequence(&self, count: usize, build: Option<Build>) -> Result<Sequence> {
        let (mut whole, mut call, mut all, mut late) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for n in 0..count {
            let mut container = Container::new(&format!("c{n}"))?;
            let since = Instant::now();
            self.node.connect(&mut container, &["app=web"], build)?;
            call.push(since.elapsed().as_secs_f64() * 1000.0);
            let again = self.pinger.all_answer(&[&container])?;
            whole.push(since.elapsed().as_secs_f64() * 1000.0);
            late.extend(again);
            all.push(container);
        }
        Ok(Sequence { whole, call, late, _all: all })
    }
}

pub fn one_by_one(_: &Plan) -> Result<Vec<Row>> {
    let bench = Bench::new()?;
    let Sequence { whole, call, late, _all } = bench.sequence(ONE, None)?;
    let note = format!("{ONE} in sequence; the API call alone: p50 {:.1}, p99 {:.1}", median(&call), quantile(&call, 0.99));
    let p99 = quantile(&whole, 0.99);
    let slow: Vec<String> =
        whole.iter().enumerate().filter(|(_, v)| **v > 2.0 * median(&whole)).map(|(n, v)| format!("#{n} {v:.0}")).take(6).collect();
    Ok(vec![
        Row { samples: vec![median(&whole)], ..Row::new(ONE_ROWS[0], "ms", Vec::new()).note(note) },
        Row::new(ONE_ROWS[1], "ms", vec![p99]).note(format!(
            "above twice the median: [{}]; asked again: [{}]",
            slow.join(", "),
            late.join(", ")
        )),
    ])
}

pub fn own(_: &Plan) -> Result<Vec<Row>> {
    let bench = Bench::new()?;
    let before = bench.node.block_on(bench.node.client().status())?.objects.builds;
    let Sequence { whole, call, late, _all } = bench.sequence(OWN, Some(Build::Own))?;
    let built = bench.node.block_on(bench.node.client().status())?.objects.builds - before;
    ensure!(built == OWN as u64, "{built} builds for {OWN} containers: the cache was not cold");
    Ok(vec![Row::new(OWN_ROWS[0], "ms", whole).note(format!(
        "compiled and loaded each; the API call alone: p50 {:.1}; asked again: [{}]",
        median(&call),
        late.join(", ")
    ))])
}

fn resident_mb(pid: u32) -> Result<(f64, String)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)?.split_whitespace().next()?.parse::<f64>().ok());
    let mb = |key| kib(key).map(|k| k / 1024.0).with_context(|| key.to_owned());
    let detail = format!("anonymous {:.1}, files {:.1}, peak {:.1}", mb("RssAnon:")?, mb("RssFile:")?, mb("VmHWM:")?);
    Ok((mb("VmRSS:")?, detail))
}

pub fn many(_: &Plan) -> Result<Vec<Row>> {
    let bench = Bench::new()?;
    let node = &bench.node;
    let (empty, _) = resident_mb(node.agent_pid().context("agent")?)?;
    let mut containers: Vec<Container> = (0..MANY).map(|n| Container::new(&format!("c{n}"))).collect::<Result<_>>()?;
    let requests: Vec<EndpointRequest> = containers
        .iter()
        .map(|c| EndpointRequest { name: c.name.clone(), netns: c.path(), labels: vec!["app=web".into()], ..EndpointRequest::default() })
        .collect();
    let since = Instant::now();
    let models = node.block_on(async {
        let mut calls = JoinSet::new();
        for (n, request) in requests.into_iter().enumerate() {
            let client = node.client();
            calls.spawn(async move { (n, client.put_endpoint(&request, true).await) });
        }
        calls.join_all().await
    });
    for (n, put) in models {
        containers[n].learn(&put?.endpoint);
    }
    let called = since.elapsed().as_secs_f64();
    let again = bench.pinger.all_answer(&containers.iter().collect::<Vec<_>>())?;
    let took = since.elapsed().as_secs_f64();
    progress("  waiting until all are promoted to tcx");
    let names: Vec<&str> = containers.iter().map(|c| c.name.as_str()).collect();
    let settling = settled(node, &names)?;
    let (mb, detail) = resident_mb(node.agent_pid().context("agent")?)?;
    let answered =
        format!("API calls {called:.2} s; {} pings asked again; promoted after another {:.1} s", again.len(), settling.as_secs_f64());
    Ok(vec![
        Row::new(MANY_ROWS[0], "s", vec![took]).note(answered),
        Row::new(MANY_ROWS[1], "MB", vec![mb]).note(format!("{detail}; with one endpoint {empty:.1}")),
    ])
}
