// SPDX-License-Identifier: Apache-2.0
//! Labels change under traffic.

use crate::support::{policy, rounds, settled};
use pilus_api::types::LabelsRequest;
use pilus_e2e::traffic::ClosedLoop;
use pilus_e2e::{Family, Node, NodeOptions};
use std::sync::atomic::Ordering;

const PACKETS: u64 = 20_000;

/// What the policy admits before and after a change of labels passes in between too: at no moment has an endpoint an identity
/// that the other one's policy does not know.
#[test]
fn relabelling_loses_nothing() {
    let flips = rounds(60, 1000);
    for attach in ["tc", "auto"] {
        let node = Node::start(NodeOptions { attach, keep_log: true, ..NodeOptions::default() }).expect("node");
        let web = node.add("web", &["app=web"]).expect("web");
        let client = node.add("client", &["app=client"]).expect("client");
        // Each end's policy names the other one's labels, in both directions.
        let rule = |subject: &str, peer: &str| {
            let peer = format!("Endpoints: [{{matchLabels: {{app: {peer}}}}}]");
            policy(
                subject,
                &format!("  endpointSelector: {{matchLabels: {{app: {subject}}}}}\n  ingress:\n  - from{peer}\n  egress:\n  - to{peer}\n"),
            )
        };
        node.import(&format!("{}---\n{}", rule("web", "client"), rule("client", "web"))).expect("policy");
        let relabel = |name: &str, label: String| {
            let change = LabelsRequest { add: vec![label], delete: Vec::new() };
            node.block_on(node.client().change_labels(&format!("name:{name}"), &change)).expect("labels").identity.id
        };
        let mut done = 0;
        while done < flips {
            let traffic = Family::BOTH.map(|f| ClosedLoop::start(&client, &web, f, PACKETS).expect("traffic"));
            while traffic.iter().any(|t| t.running().load(Ordering::Relaxed)) {
                let name = ["client", "web"][done % 2];
                let ids: Vec<u32> = (0..2).map(|n| relabel(name, format!("rev={}", done + n))).collect();
                assert_ne!(ids[0], ids[1], "the identity stays");
                done += 1;
            }
            for (family, traffic) in Family::BOTH.into_iter().zip(traffic) {
                let seen = traffic.join();
                assert_eq!(seen.sent, seen.received, "{attach} {family:?}: lost after {done} changes");
            }
        }
        assert_eq!(node.metric("Policy denied").expect("metrics"), 0);
        settled(&node);
        // Policies that rows still name are waited for, not tried again and again.
        assert_eq!(node.complaints().expect("log"), Vec::<String>::new());
    }
}
