// SPDX-License-Identifier: Apache-2.0
//! Audit: what policy denies is reported with the rule and let through, for one endpoint or for all.

use crate::support::{policy, request};
use pilus_api::types::FlowEvent;
use pilus_e2e::icmp::Raw;
use pilus_e2e::{Container, Family, Node, NodeOptions, icmp};
use std::collections::BTreeMap;
use std::net::SocketAddr;

const RULES: &str = "  endpointSelector: {matchLabels: {app: server}}\n  ingress: [{}]\n  ingressDeny:\n  - fromEndpoints: [{matchLabels: {app: \
                     client}}]\n    toPorts: [{ports: [{port: \"7001\", protocol: ANY}]}]\n";

struct Stage {
    node: Node,
    client: Container,
    server: Container,
    other: Container,
}

fn stage(args: &[&str]) -> Stage {
    let args = args.iter().map(|a| (*a).to_owned()).collect();
    let node = Node::start(NodeOptions { args, ..NodeOptions::default() }).expect("node");
    let add = |name: &str| node.add(name, &[&format!("app={name}")]).expect(name);
    let (client, server, other) = (add("client"), add("server"), add("other"));
    node.import(&policy("p", RULES)).expect("policy");
    // Another endpoint with the same rules.
    node.import(&policy("q", &RULES.replace("app: server", "app: other"))).expect("policy");
    Stage { node, client, server, other }
}

impl Stage {
    fn is(&self, event: &FlowEvent, to: &Container) -> bool {
        let is = |p: &Option<pilus_api::types::PeerModel>, c: &Container| p.as_ref().is_some_and(|p| p.endpoint == c.id);
        is(&event.source, &self.client) && is(&event.destination, to)
    }

    /// Sends what policy denies, by every protocol and in both families.
    fn check(&self, to: &Container, audited: bool) {
        let mut events = self.node.events(&["drop", "policy-verdict"]).expect("events");
        for (family, port) in Family::BOTH.into_iter().flat_map(|f| [7000, 7001].map(|p| (f, p))) {
            let at = SocketAddr::new(to.ip(family), port);
            let listener = to.listen(family, port).expect("listen");
            let far = to.udp(family, port).expect("socket");
            let near = self.client.udp(family, 0).expect("socket");
            let rule = if port == 7001 { "test.yaml" } else { "" };
            let told = |event: &FlowEvent| event.rule.contains(rule) && rule.is_empty() == event.rule.is_empty();
            near.send_to(b"x", at).expect("send");
            if audited {
                far.recv(&mut [0]).unwrap_or_else(|e| panic!("{} {family:?}: {e}", to.name));
                let seen = events.wait("an audited verdict", |e| self.is(e, to)).expect("an event");
                assert!(seen.kind == "policy-verdict" && seen.verdict == "audit" && told(&seen), "{seen:?}");
                let stream = self.client.connect(at).expect("connect");
                listener.accept().expect("accept");
                let seen = events.wait("an audited verdict", |e| self.is(e, to)).expect("an event");
                assert!(seen.kind == "policy-verdict" && seen.verdict == "audit" && told(&seen), "{seen:?}");
                drop(stream);
            } else {
                let seen = events.wait("a drop", |e| self.is(e, to)).expect("an event");
                assert!(seen.kind == "drop" && told(&seen), "{seen:?}");
                far.set_nonblocking(true).expect("socket");
                assert!(far.recv(&mut [0]).is_err(), "let in");
            }
        }
        for family in Family::BOTH {
            let raw = Raw::new(&self.client, family).expect("socket");
            raw.echo(to.ip(family), 9, 1).expect("echo");
            if audited {
                raw.receive(|m| m.kind == icmp::echo_types(family).1).expect("a reply");
            }
            let seen = events.wait("a verdict", |e| self.is(e, to)).expect("an event");
            assert_eq!(seen.kind, if audited { "policy-verdict" } else { "drop" }, "{seen:?}");
        }
        self.node.block_on(self.node.client().flush_flow_table(None)).expect("flush");
    }

    fn shown(&self, name: &str) -> String {
        self.node.block_on(self.node.client().endpoint(&format!("name:{name}"))).expect("endpoint").policy.ingress
    }

    fn config(&self, value: &str) {
        let (code, _, errors) = self.node.pilus(&["config", &format!("policy-audit-mode={value}")]).expect("pilus");
        assert_eq!(code, 0, "{errors}");
    }
}

#[test]
fn audit_of_one_endpoint() {
    let stage = stage(&[]);
    stage.check(&stage.server, false);
    let options = BTreeMap::from([("PolicyAudit".to_owned(), "true".to_owned())]);
    stage.node.block_on(stage.node.client().set_endpoint_config("name:server", &options)).expect("option");
    assert_eq!((stage.shown("server").as_str(), stage.shown("other").as_str()), ("audit", "enforced"));
    stage.check(&stage.server, true);
    stage.check(&stage.other, false);
}

#[test]
fn audit_of_all() {
    let mut stage = stage(&["--policy-audit-mode=true"]);
    assert_eq!(stage.shown("server"), "audit");
    stage.check(&stage.server, true);
    stage.check(&stage.other, true);
    // Live, both ways; what was let through is denied at once.
    let mut open = Family::BOTH.map(|f| crate::support::Talk::udp(&stage.client, &stage.server, f, 7002));
    open.iter_mut().for_each(|t| t.exchange(1).expect("exchange"));
    stage.config("false");
    assert_eq!(stage.shown("server"), "enforced");
    for talk in &mut open {
        let crate::support::Talk::Udp(near, far) = talk else { unreachable!() };
        let mut events = stage.node.events(&["drop"]).expect("events");
        near.send(b"more").expect("send");
        events.wait("a drop", |e| stage.is(e, &stage.server)).expect("a drop");
        far.set_nonblocking(true).expect("socket");
        assert!(far.recv(&mut [0; 4]).is_err(), "let in");
    }
    drop(open);
    stage.check(&stage.server, false);
    stage.config("true");
    stage.check(&stage.server, true);
    // An option of the start, as the agent was started.
    stage.config("false");
    stage.node.stop_agent().expect("stop");
    stage.node.start_agent().expect("agent");
    crate::support::ready(&stage.node);
    stage.check(&stage.other, true);
    let body = r#"{"options": {"policy-audit-mode": "maybe"}}"#;
    request(&stage.node, "PATCH", "/v1/config", Some("application/json"), body).refused(400, "invalid", Some("policy-audit-mode"));
}
