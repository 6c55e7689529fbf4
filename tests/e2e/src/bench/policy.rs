// SPDX-License-Identifier: Apache-2.0
//! How long it takes until policies are resolved, written, and seen by packets.

use super::{Plan, Row, median, progress, quantile, scale};
use crate::{Container, Family, Node, NodeOptions, node};
use anyhow::{Context, Result, ensure};
use pilus_api::types::{NodeRequest, PolicyDocument, PolicyImport};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

pub const RESOLVE_ROWS: &[&str] = &["resolve_full_s", "resolve_full_mb"];
pub const ONE_ROWS: &[&str] = &["enforced_one_p50_ms"];
pub const MANY_ROWS: &[&str] = &["enforced_250_p99_ms", "add_one_rule_ms", "add_one_identity_ms"];

const PORT: u16 = 7000;
const ONE: usize = 50;
const MANY: usize = 250;

/// The engine alone, in a process of its own.
pub fn resolve(_: &Plan) -> Result<Vec<Row>> {
    let (mut seconds, mut mb, mut notes) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..3 {
        let output = node::command("pilus-bench").arg("--policy-scale").output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let value = |name: &str| -> Result<f64> {
            let line = text.lines().find_map(|l| l.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.split_whitespace().next().context("no value")?.parse()?)
        };
        seconds.push(value("resolve_full_s ")?);
        mb.push(value("resolve_full_mb ")?);
        notes = format!(
            "{} policies, {} blocks; then one rule {:.2} ms, one for all {:.2} ms, one identity {:.2} ms",
            value("policies ")?,
            value("blocks ")?,
            value("add_one_rule_ms ")?,
            value("add_one_rule_for_all_ms ")?,
            value("add_one_identity_ms ")?
        );
    }
    Ok(vec![Row::new(RESOLVE_ROWS[0], "s", seconds).note(notes), Row::new(RESOLVE_ROWS[1], "MB", mb)])
}

fn document(text: String) -> PolicyImport {
    PolicyImport { documents: vec![PolicyDocument { name: "bench.yaml".into(), text }] }
}

/// A rule for the servers: from the prober on a port, or on another one.
fn rule(port: u16) -> PolicyImport {
    document(format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: bench}}\nspec:\n  endpointSelector: {{matchLabels: {{role: server}}}}\n  \
         ingress:\n  - fromEndpoints: [{{matchLabels: {{role: prober}}}}]\n    toPorts: [{{ports: [{{port: \"{port}\", protocol: UDP}}]}}]\n"
    ))
}

struct Bench {
    node: Node,
    prober: Container,
    /// One for each server, bound there.
    servers: Vec<(Container, UdpSocket)>,
}

impl Bench {
    fn new(count: usize) -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        let prober = node.add("prober", &["k8s:role=prober"])?;
        let mut servers = Vec::new();
        for n in 0..count {
            let server = node.add(&format!("server{n}"), &["k8s:role=server", &format!("k8s:app={n}")])?;
            let socket = server.udp(Family::V6, PORT)?;
            socket.set_nonblocking(true)?;
            servers.push((server, socket));
        }
        Ok(Self { node, prober, servers })
    }

    fn realised(&self, import: &PolicyImport) -> Result<()> {
        let revision = self.node.block_on(self.node.client().import_policy(import))?.revision;
        self.node.wait_policy(revision)
    }

    /// Tells of another node, which has an identity of its own: the agent answers when policies and address are written.
    fn remote(&self, name: &str, n: usize, labels: Vec<String>) -> Result<()> {
        let request = NodeRequest { addresses: vec![format!("2001:db8::{n:x}").parse()?], labels };
        self.node.block_on(self.node.client().put_node(name, &request))?;
        Ok(())
    }

    /// From the call on, ms until each server gets a packet that was denied before.
    fn enforced(&self) -> Result<Vec<f64>> {
        self.realised(&rule(PORT + 1))?;
        let near = self.prober.udp(Family::V6, 0)?;
        let mut buffer = [0; 8];
        for (server, socket) in &self.servers {
            near.send_to(b"x", SocketAddr::new(server.ip(Family::V6), PORT))?;
            ensure!(socket.recv(&mut buffer).is_err(), "let in before the rule is there");
        }
        let client = self.node.client();
        let import = rule(PORT);
        std::thread::scope(|scope| {
            let since = Instant::now();
            let call = scope.spawn(|| self.node.block_on(client.import_policy(&import)));
            let mut seen: Vec<Option<f64>> = vec![None; self.servers.len()];
            while seen.iter().any(Option::is_none) {
                ensure!(since.elapsed() < Duration::from_secs(60), "the rule is not enforced");
                for (n, (server, socket)) in self.servers.iter().enumerate().filter(|(n, _)| seen[*n].is_none()).collect::<Vec<_>>() {
                    near.send_to(b"x", SocketAddr::new(server.ip(Family::V6), PORT))?;
                    if socket.recv(&mut buffer).is_ok() {
                        seen[n] = Some(since.elapsed().as_secs_f64() * 1000.0);
                    }
                }
            }
            call.join().expect("import")?;
            Ok(seen.into_iter().flatten().collect())
        })
    }
}

/// One endpoint, few rules.
pub fn one(_: &Plan) -> Result<Vec<Row>> {
    let bench = Bench::new(1)?;
    let mut all = Vec::new();
    for _ in 0..ONE {
        all.extend(bench.enforced()?);
    }
    let note = format!("{ONE} imports, from the call until a packet arrives; p99 {:.1}", quantile(&all, 0.99));
    Ok(vec![Row::new(ONE_ROWS[0], "ms", vec![median(&all)]).note(note)])
}

/// As many endpoints as a full node has; then all the rules.
pub fn many(_: &Plan) -> Result<Vec<Row>> {
    let bench = Bench::new(MANY)?;
    let (mut p99, mut p50) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        let all = bench.enforced()?;
        p99.push(quantile(&all, 0.99));
        p50.push(median(&all));
    }
    let mut rows =
        vec![Row::new(MANY_ROWS[0], "ms", p99).note(format!("one rule that all {MANY} endpoints have; p50 {:.1}", median(&p50)))];
    progress("  importing all rules");
    let since = Instant::now();
    bench.realised(&document((0..scale::RULES).map(scale::rule).collect()))?;
    let whole = since.elapsed().as_secs_f64();
    progress("  telling of other nodes");
    let known = bench.node.block_on(bench.node.client().identities())?.len();
    for n in 0..scale::IDENTITIES.saturating_sub(known) {
        bench.remote(&format!("many{n}"), n + 0x1000, scale::labels(n).iter().map(|l| format!("{}={}", l.key(), l.value())).collect())?;
    }
    let identities = bench.node.block_on(bench.node.client().identities())?.len();
    ensure!(identities >= scale::IDENTITIES, "{identities} identities");
    let written = bench.node.rows("policy")?.len();
    let note = format!(
        "call and wait, disk included; {} rules (imported in {whole:.1} s), {identities} identities, {MANY} endpoints, {written} entries written",
        scale::RULES
    );
    let mut ms = Vec::new();
    for n in 0..21 {
        let more = document(scale::rule(scale::RULES + 11 * n + 1));
        let since = Instant::now();
        bench.realised(&more)?;
        ms.push(since.elapsed().as_secs_f64() * 1000.0);
    }
    rows.push(Row::new(MANY_ROWS[1], "ms", ms).note(note));
    // Somebody new whom rules of one policy select: another node, told of by one call.
    bench.realised(&document(
        "- {endpointSelector: {matchLabels: {app: '7'}}, ingress: [{fromNodes: [{matchLabels: {role: new}}]}]}\n".into(),
    ))?;
    let mut ms = Vec::new();
    for n in 0..21 {
        let since = Instant::now();
        bench.remote(&format!("n{n}"), n + 1, vec!["role=new".into(), format!("n={n}")])?;
        ms.push(since.elapsed().as_secs_f64() * 1000.0);
    }
    rows.push(Row::new(MANY_ROWS[2], "ms", ms).note("one call until policies and address are written, disk included"));
    Ok(rows)
}
