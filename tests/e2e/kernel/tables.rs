// SPDX-License-Identifier: Apache-2.0
//! What rules refer to by name: services, other nodes, names of ports. Told through the client, shown by packets.

use crate::support::{Talk, policy, request, until};
use pilus_api::types::PolicyQuestion;
use pilus_e2e::{Container, Family, Node, NodeOptions, outside};
use std::net::SocketAddr;

fn node() -> (Node, Container) {
    let args = ["--ipv6-range", "fd00:7::/64", "--ipv4-range", "10.77.0.0/16", "--node-name", "here"];
    let mut node = Node::prepare(NodeOptions { args: args.map(str::to_owned).into(), ..NodeOptions::default() }).expect("node");
    let world = outside::connect(&node, 0, 1500, true).expect("world");
    node.start_agent().expect("agent");
    (node, world)
}

fn pilus(node: &Node, args: &[&str]) -> String {
    let (code, out, errors) = node.pilus(args).expect("pilus");
    assert_eq!(code, 0, "{args:?}: {errors}");
    out
}

fn fails(node: &Node, args: &[&str], code: i32, part: &str) {
    let (found, out, errors) = node.pilus(args).expect("pilus");
    assert!(found == code && errors.contains(part) && errors.lines().count() == 1, "{args:?}: {found}, {out}{errors}");
}

/// A datagram in both families: let in or not, seen by packets and said by rules and tables alike.
fn passes(node: &Node, from: &Container, to: &Container, port: u16, wanted: bool, what: &str) {
    for family in Family::BOTH {
        let far = to.udp(family, port).expect("socket");
        let near = from.udp(family, 0).expect("socket");
        let mut drops = node.events(&["drop"]).expect("events");
        near.send_to(b"x", SocketAddr::new(to.ip(family), port)).expect("send");
        if wanted {
            far.recv(&mut [0]).unwrap_or_else(|e| panic!("{what} {family:?}: {e}"));
        } else {
            let one = from.id.max(to.id);
            let is = |p: &Option<pilus_api::types::PeerModel>| p.as_ref().is_some_and(|p| p.endpoint == one);
            drops.wait(what, |e| e.reason.starts_with("Policy") && (is(&e.source) || is(&e.destination))).expect("a drop");
            far.set_nonblocking(true).expect("socket");
            assert!(far.recv(&mut [0]).is_err(), "{what} {family:?}: let in");
        }
        let end = |c: &Container| c.ip(family).to_string();
        let question = PolicyQuestion { from: end(from), to: end(to), dport: format!("{port}/udp") };
        let answer = node.block_on(node.client().explain_policy(&question)).expect("explain");
        assert_eq!((answer.allowed, answer.agrees), (wanted, true), "{what} {family:?}: {answer:?}");
    }
}

/// What was open is dropped from now on.
fn ended(node: &Node, open: &mut [Talk], what: &str) {
    for talk in open {
        let Talk::Udp(near, far) = talk else { unreachable!() };
        let mut drops = node.events(&["drop"]).expect("events");
        near.send(b"more").expect("send");
        let seen = drops.wait(what, |e| e.reason == "Flow no longer allowed by policy");
        seen.unwrap_or_else(|e| panic!("an open flow goes on, {what}: {e}"));
        far.set_nonblocking(true).expect("socket");
        assert!(far.recv(&mut [0; 4]).is_err(), "an open flow goes on, {what}");
    }
}

fn both(c: &Container) -> [String; 2] {
    [c.ip(Family::V4).to_string(), c.ip(Family::V6).to_string()]
}

#[test]
fn services_open_the_way() {
    let (mut node, world) = node();
    let client = node.add("client", &["k8s:app=client"]).expect("client");
    let server = node.add("server", &["k8s:app=server"]).expect("server");
    node.import(&policy(
        "p",
        "  endpointSelector: {matchLabels: {app: client}}\n  egress:\n  - toServices: [{k8sService: {serviceName: billing}}, {k8sServiceSelector: \
         {selector: {matchLabels: {kind: db}}}}]\n",
    ))
    .expect("policy");
    passes(&node, &client, &world, 7000, false, "an unknown service");
    let [v4, v6] = both(&world);
    let out = pilus(&node, &["service", "update", "billing", "--backend", &v4, "--backend", &v6]);
    assert!(out.contains("default/billing") && out.contains(&v4), "{out}");
    passes(&node, &client, &world, 7000, true, "a known service");
    passes(&node, &client, &server, 7000, false, "no service");
    pilus(&node, &["service", "update", "default/db", "--selector", "app=server", "--label", "k8s:kind=db"]);
    passes(&node, &client, &server, 7000, true, "a service by selector");
    // It is known again after a restart.
    node.stop_agent().expect("stop");
    node.start_agent().expect("agent");
    crate::support::ready(&node);
    let listed = pilus(&node, &["service", "list", "--no-headers"]);
    assert!(listed.contains("default/billing") && listed.contains("default/db"), "{listed}");
    passes(&node, &client, &world, 7000, true, "after a restart");
    let mut open = Family::BOTH.map(|f| Talk::udp(&client, &world, f, 7001));
    open.iter_mut().for_each(|t| t.exchange(1).expect("exchange"));
    // An address that went is denied, what was open with it too.
    let (elsewhere4, elsewhere6) = ("198.51.100.7", "2001:db8:ffff::7");
    pilus(&node, &["service", "update", "billing", "--backend", elsewhere4, "--backend", elsewhere6]);
    passes(&node, &client, &world, 7000, false, "another address");
    ended(&node, &mut open, "a service's former address");
    pilus(&node, &["service", "delete", "billing", "db"]);
    passes(&node, &client, &server, 7000, false, "a service that is no more");
    fails(&node, &["service", "delete", "billing"], 1, "no service default/billing");
    fails(&node, &["service", "get", "x/y"], 1, "no service x/y");
    fails(&node, &["service", "update", "a b", "--backend", &v4], 1, "`a b` is no service");
    fails(&node, &["service", "update", "a", "--selector", "=x"], 2, "KEY=VALUE");
    let (_, out, errors) = node.pilus(&["service", "update", "inside", "--backend", &both(&server)[0]]).expect("pilus");
    assert!(out.contains("default/inside") && errors.contains("is an address of containers"), "{out}{errors}");
    let json = Some("application/json");
    request(&node, "PUT", "/v1/service/a", json, r#"{"selector": {}}"#).refused(400, "invalid", Some("selector"));
    request(&node, "PUT", "/v1/service/a", json, r#"{"backend": []}"#).refused(400, "invalid", Some("body"));
    request(&node, "PUT", "/v1/service/a", json, r#"{"selector": {"a": "b"}, "backends": [{"address": "192.0.2.9"}]}"#).refused(
        400,
        "invalid",
        Some("backends"),
    );
}

#[test]
fn nodes_are_told_apart() {
    let (mut node, world) = node();
    let server = node.add("server", &["app=server"]).expect("server");
    let [v4, v6] = both(&world);
    node.import(&policy(
        "p",
        "  endpointSelector: {matchLabels: {app: server}}\n  ingress:\n  - fromNodes: [{matchLabels: {role: db}}]\n    toPorts: [{ports: [{port: \
         \"7000\", protocol: ANY}]}]\n  - fromEntities: [remote-node]\n    toPorts: [{ports: [{port: \"7001\", protocol: ANY}]}]\n  - \
         fromEntities: [world]\n    toPorts: [{ports: [{port: \"7002\", protocol: ANY}]}]\n",
    ))
    .expect("policy");
    passes(&node, &world, &server, 7000, false, "the world");
    let update = |labels: &[&str]| {
        let mut args = vec!["node", "update", "far", "--address", &v4, "--address", &v6];
        args.extend(labels.iter().flat_map(|l| ["--label", l]));
        pilus(&node, &args)
    };
    let mut open = Family::BOTH.map(|f| Talk::udp(&world, &server, f, 7002));
    open.iter_mut().for_each(|t| t.exchange(1).expect("exchange"));
    update(&[]);
    // No policy changed: who is behind the address did.
    ended(&node, &mut open, "the world's, which is a node now");
    passes(&node, &world, &server, 7000, false, "a node without labels");
    passes(&node, &world, &server, 7001, true, "a remote node");
    let out = update(&["role=db"]);
    assert!(out.contains("node:role=db") && out.contains("reserved:remote-node"), "{out}");
    passes(&node, &world, &server, 7000, true, "a node by its label");
    passes(&node, &world, &server, 7001, true, "a remote node with a label");
    let listed = pilus(&node, &["node", "list", "--no-headers"]);
    assert!(listed.lines().count() == 2 && listed.contains("here") && listed.contains("far"), "{listed}");
    node.stop_agent().expect("stop");
    node.start_agent().expect("agent");
    crate::support::ready(&node);
    passes(&node, &world, &server, 7000, true, "after a restart");
    let mut open = Family::BOTH.map(|f| Talk::udp(&world, &server, f, 7001));
    open.iter_mut().for_each(|t| t.exchange(1).expect("exchange"));
    pilus(&node, &["node", "delete", "far"]);
    passes(&node, &world, &server, 7000, false, "the world again");
    ended(&node, &mut open, "a former node's");
    until("nothing of it is left", || {
        let labels = node.block_on(node.client().identities()).map_err(|e| e.to_string())?;
        let rows = node.rows("ipcache").map_err(|e| e.to_string())?;
        let left = labels.iter().any(|i| i.labels.contains(&"node:role=db".to_owned())) || rows.iter().any(|r| r[0] == v4 || r[0] == v6);
        if left { Err(format!("{labels:?} {rows:?}")) } else { Ok(()) }
    });
    fails(&node, &["node", "delete", "far"], 1, "no node far");
    fails(&node, &["node", "update", "here", "--address", &v4], 1, "is this node");
    fails(&node, &["node", "update", "x", "--address", &both(&server)[1]], 1, "range of this node's containers");
    fails(&node, &["node", "update", "x", "--address", "192.0.2.1"], 1, "belongs to this node");
    fails(&node, &["node", "update", "x", "--address", "198.51.100.1", "--label", "k8s:a=b"], 1, "source `node`");
    pilus(&node, &["node", "update", "x", "--address", "198.51.100.1"]);
    fails(&node, &["node", "update", "y", "--address", "198.51.100.1"], 1, "belongs to node x");
    request(&node, "PUT", "/v1/node/z", Some("application/json"), r#"{"addresses": []}"#).refused(400, "invalid", Some("addresses"));
}

#[test]
fn ports_have_names() {
    let (node, _world) = node();
    let client = node.add("client", &["k8s:app=client"]).expect("client");
    let mut server = Container::new("server").expect("server");
    pilus(&node, &["endpoint", "add", "server", "--netns", &server.path(), "--label", "k8s:app=server", "--port", "web=7000/udp"]);
    server.learn(&node.block_on(node.client().endpoint("name:server")).expect("server"));
    let rule = |side: &str, name: &str| {
        let peers = if side == "ingress" { "server" } else { "client" };
        let spec = format!(
            "  endpointSelector: {{matchLabels: {{app: {peers}}}}}\n  {side}:\n  - toPorts: [{{ports: [{{port: {name}, protocol: UDP}}]}}]\n"
        );
        policy("p", &spec)
    };
    for side in ["ingress", "egress"] {
        pilus(&node, &["endpoint", "ports", "server", "web=7000/udp"]);
        node.import(&rule(side, "web")).expect("policy");
        passes(&node, &client, &server, 7000, true, side);
        passes(&node, &client, &server, 7001, false, side);
        pilus(&node, &["endpoint", "ports", "server", "web=7001/udp", "old=7000/udp"]);
        passes(&node, &client, &server, 7001, true, side);
        passes(&node, &client, &server, 7000, false, side);
        pilus(&node, &["endpoint", "ports", "server", "--clear"]);
        passes(&node, &client, &server, 7001, false, side);
    }
    assert_eq!(pilus(&node, &["endpoint", "ports", "server", "--no-headers"]), "");
    fails(&node, &["endpoint", "ports", "server", "Web=1/udp"], 1, "no name of a port");
    fails(&node, &["endpoint", "ports", "server", "web=0/udp"], 1, "1 to 65535");
    fails(&node, &["endpoint", "ports", "server", "web=1/icmp"], 1, "tcp, udp or sctp");
}
