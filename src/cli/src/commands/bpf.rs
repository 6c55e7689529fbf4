// SPDX-License-Identifier: Apache-2.0
//! `pilus bpf`.

use crate::args::node::CtCommand;
use crate::args::{BpfCommand, MetricsCommand};
use crate::failure::Failure;
use crate::output::{Output, counted};
use pilus_api::Client;
use pilus_api::types::{FlowCount, FlowEnd, FlowEntry, MetricModel};

/// Runs one of the commands.
pub async fn run(client: &Client, out: &mut Output, command: &BpfCommand) -> Result<(), Failure> {
    let map = match command {
        BpfCommand::Ct(CtCommand::Flush(of)) => {
            let flushed = client.flush_flow_table(of.endpoint.as_deref()).await?;
            return out.show(&flushed, |out, f| out.line(&format!("Forgot {}", counted(f.removed, "connection"))));
        }
        BpfCommand::Ct(CtCommand::List(of)) => {
            let entries = client.flow_table(of.endpoint.as_deref()).await?;
            return out.show(&entries, |out, entries| out.table(&COLUMNS, &entries.iter().map(row).collect::<Vec<_>>()));
        }
        BpfCommand::Policy(_) => "policy",
        BpfCommand::Ipcache(_) => "ipcache",
        BpfCommand::Endpoint(_) => "endpoint",
        BpfCommand::Nat(_) => "nat",
        BpfCommand::Metrics(_) => "metrics",
    };
    out.show(&client.map(map).await?, |out, map| out.table(&map.columns, &map.rows))
}

/// Lists samples. In JSON and YAML the zeros stay: who reads those wants to find every name.
pub async fn metrics(client: &Client, out: &mut Output, command: &MetricsCommand) -> Result<(), Failure> {
    let MetricsCommand::List { name, all } = command;
    let mut samples = client.metrics().await?;
    samples.retain(|s| name.as_ref().is_none_or(|n| s.name.contains(n)));
    out.show(&samples, |out, samples| {
        let shown = samples.iter().filter(|s| *all || s.value != 0.0);
        let rows: Vec<_> = shown.map(|s| vec![s.name.clone(), labels(s), s.value.to_string()]).collect();
        out.table(&["name", "labels", "value"], &rows)
    })
}

fn labels(sample: &MetricModel) -> String {
    let pairs: Vec<String> = sample.labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
    pairs.join(" ")
}

const COLUMNS: [&str; 11] = ["proto", "from", "to", "source", "destination", "state", "verdict", "idle", "expires", "sent", "received"];

fn row(e: &FlowEntry) -> Vec<String> {
    let name = |end: &FlowEnd| if end.name.is_empty() { format!("slot {}", end.slot) } else { end.name.clone() };
    let address = |end: &FlowEnd| match end.address {
        std::net::IpAddr::V4(ip) => format!("{ip}:{}", end.port),
        std::net::IpAddr::V6(ip) => format!("[{ip}]:{}", end.port),
    };
    let count = |c: &FlowCount| format!("{}/{}", c.packets, c.bytes);
    let state = std::iter::once(e.state.as_str()).chain(e.flags.iter().map(String::as_str)).collect::<Vec<_>>().join(",");
    vec![
        e.protocol.clone(),
        name(&e.source),
        name(&e.destination),
        address(&e.source),
        address(&e.destination),
        state,
        e.verdict.clone(),
        format!("{}s", e.idle),
        format!("{}s", e.expires),
        count(&e.sent),
        count(&e.received),
    ]
}
