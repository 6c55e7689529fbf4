// SPDX-License-Identifier: Apache-2.0
//! Packets and bytes by rule: those of flows that are open, and of flows that are over.

use crate::support::{Talk, until};
use pilus_api::types::{FlowCount, PolicyQuestion};
use pilus_e2e::{Container, Family, Node, NodeOptions, icmp};
use std::net::SocketAddr;

const RULES: &str = "
- endpointSelector: {matchLabels: {app: server}}
  ingress: [{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: 7000, protocol: ANY}]}]}]
- endpointSelector: {matchLabels: {app: server}}
  ingressDeny: [{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: 7001, protocol: UDP}]}]}]
- endpointSelector: {matchLabels: {app: client}}
  egress: [{toEndpoints: [{matchLabels: {app: server}}]}]
- endpointSelector: {matchLabels: {app: server}}
  ingress: [{icmps: [{fields: [{type: 8}, {family: IPv6, type: 128}]}]}]
";

fn counters(node: &Node) -> Vec<FlowCount> {
    let (code, out, errors) = node.pilus(&["policy", "get", "-o", "json"]).expect("pilus");
    assert_eq!(code, 0, "{errors}");
    let policy: pilus_api::types::PolicyModel = serde_json::from_str(&out).expect("JSON");
    policy.counters
}

fn expect(node: &Node, what: &str, wanted: [(u64, u64); 4]) {
    let wanted = wanted.map(|(packets, bytes)| FlowCount { packets, bytes });
    assert_eq!(counters(node), wanted, "{what}; {:?}", node.rows("flows"));
    // The entries of a rule show what it counts.
    let rows = node.rows("policy").expect("policy");
    let by = |verdict: &str, direction: &str, proto: &str| {
        let row = rows.iter().find(|r| r[1] == direction && r[5] == verdict && r[4] == proto).expect("an entry");
        FlowCount { packets: row[7].parse().expect("packets"), bytes: row[8].parse().expect("bytes") }
    };
    let found = [by("allow", "ingress", "udp"), by("deny", "ingress", "udp"), by("allow", "egress", "any"), by("allow", "ingress", "icmp")];
    assert_eq!(found, wanted, "{what}");
}

#[test]
fn rules_count_what_they_decide() {
    let node = Node::start(NodeOptions { attach: "tc", ..NodeOptions::default() }).expect("node");
    let add = |name: &str| -> Container { node.add(name, &[&format!("app={name}")]).expect(name) };
    let (client, server) = (add("client"), add("server"));
    node.import(RULES).expect("policy");
    expect(&node, "nothing yet", [(0, 0); 4]);
    // Ethernet, IP, UDP, four bytes: 46 and 66 in all.
    let both = |per_family: u64| per_family * (46 + 66);
    let mut talks = Family::BOTH.map(|f| Talk::udp(&client, &server, f, 7000));
    for mark in 0..50 {
        talks.iter_mut().for_each(|t| t.exchange(mark).expect("exchange"));
    }
    expect(&node, "open flows", [(200, both(100)), (0, 0), (200, both(100)), (0, 0)]);
    node.block_on(node.client().flush_flow_table(None)).expect("flush");
    expect(&node, "flows that were", [(200, both(100)), (0, 0), (200, both(100)), (0, 0)]);
    talks.iter_mut().for_each(|t| t.exchange(99).expect("exchange"));
    expect(&node, "both", [(204, both(102)), (0, 0), (204, both(102)), (0, 0)]);
    let mut drops = node.events(&["drop"]).expect("events");
    for family in Family::BOTH {
        for _ in 0..5 {
            let near = client.udp(family, 0).expect("socket");
            near.send_to(b"xxxx", SocketAddr::new(server.ip(family), 7001)).expect("send");
            drops.wait_drop(&client, &server).expect("a drop");
        }
    }
    // The sender's policy let them out.
    expect(&node, "denied", [(204, both(102)), (10, both(5)), (214, both(107)), (0, 0)]);
    // Echo: Ethernet, IP, eight bytes and five; there and back.
    for family in Family::BOTH {
        let raw = icmp::Raw::new(&client, family).expect("socket");
        for n in 0..3 {
            raw.echo(server.ip(family), 7, n).expect("echo");
            raw.receive(|m| m.kind == icmp::echo_types(family).1).expect("a reply");
        }
    }
    let echo = 6 * (14 + 20 + 13) + 6 * (14 + 40 + 13);
    expect(&node, "echo", [(204, both(102)), (10, both(5)), (226, both(107) + echo), (12, echo)]);
    let question = PolicyQuestion { from: "name:client".into(), to: "name:server".into(), dport: "7000/udp".into() };
    let told = node.block_on(node.client().explain_policy(&question)).expect("explain");
    assert_eq!(told.ingress.expect("a verdict").count.packets, 204);
    // A flow that is over goes to its rules by itself.
    let options = [("flow-timeout-udp-reply".to_owned(), "1".to_owned()), ("flow-timeout-icmp".to_owned(), "1".to_owned())];
    node.block_on(node.client().set_config(options.into())).expect("timeouts");
    until("flows expire", || match node.rows("flows").map_err(|e| e.to_string())?.len() {
        0 => Ok(()),
        n => Err(format!("{n} flows")),
    });
    expect(&node, "expired", [(204, both(102)), (10, both(5)), (226, both(107) + echo), (12, echo)]);
    // Another rule in its place begins at nothing.
    node.forget_policy().expect("policy");
    node.import(RULES).expect("policy");
    expect(&node, "new rules", [(0, 0); 4]);
}
