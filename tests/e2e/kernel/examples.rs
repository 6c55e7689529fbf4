// SPDX-License-Identifier: Apache-2.0
//! The hooks of examples/templates do what they say.

use crate::support::policy;
use pilus_e2e::{Container, Family, Node, NodeOptions};
use pilus_loader::maps::PinnedMap;
use pilus_model::abi::Counter;
use std::net::SocketAddr;

/// A node whose two containers run a hook.
fn hooked(hook: &str) -> (Node, Container, Container) {
    let node = Node::start(NodeOptions::default()).expect("node");
    let server = node.add("server", &["app=server"]).expect("server");
    let client = node.add("client", &["app=client"]).expect("client");
    node.import(&policy("all", "  endpointSelector: {}\n  ingress: [{fromEntities: [all]}]\n  egress: [{toEntities: [all]}]\n"))
        .expect("policy");
    std::fs::write(node.path("state/templates/custom/container.c"), hook).expect("hook");
    let applied = node.block_on(node.client().apply_template()).expect("apply");
    assert!(applied.ok, "{applied:?}");
    (node, server, client)
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
struct ProtoKey {
    slot: u32,
    proto: u32,
}

#[test]
fn a_table_of_ones_own_counts() {
    let (node, server, client) = hooked(include_str!("../../../examples/templates/protocol-counter.c"));
    for family in Family::BOTH {
        let (far, near) = (server.udp(family, 7).expect("server"), client.udp(family, 0).expect("client"));
        for _ in 0..5 {
            near.send_to(b"x", SocketAddr::new(server.ip(family), 7)).expect("send");
            far.recv(&mut [0]).expect("receive");
        }
    }
    let fs = pilus_e2e::bench::pins(&node).expect("pins");
    let counts: PinnedMap<ProtoKey, Counter> = PinnedMap::open(&fs, "proto_count").expect("the hook's table");
    let sent = counts.get(&ProtoKey { slot: client.id.into(), proto: 17 }).expect("look").expect("counted");
    assert_eq!(sent.packets, 10, "both families, the fast path too");
    assert!(counts.get(&ProtoKey { slot: server.id.into(), proto: 17 }).expect("look").is_none(), "the server sent none");
}

#[test]
fn a_payload_is_refused_with_a_reason() {
    let (node, server, client) = hooked(include_str!("../../../examples/templates/payload-drop.c"));
    for family in Family::BOTH {
        let (far, near) = (server.udp(family, 7).expect("server"), client.udp(family, 0).expect("client"));
        let mut drops = node.events(&["drop"]).expect("events");
        let to = SocketAddr::new(server.ip(family), 7);
        for payload in [&b"BLOCKED"[..], b"BLOC", b"passes"] {
            near.send_to(payload, to).expect("send");
        }
        let dropped = drops.wait_drop(&client, &server).expect("a drop");
        assert!(dropped.reason.contains("custom"), "{dropped:?}");
        let mut seen = [0; 16];
        let n = far.recv(&mut seen).expect("receive");
        assert_eq!(&seen[..n], b"BLOC", "{family:?}: the first that passes");
    }
    assert_eq!(node.metric("Dropped by custom program").expect("metrics"), 2);
}

#[test]
fn packets_are_marked() {
    let (_node, server, client) = hooked(include_str!("../../../examples/templates/dscp.c"));
    let frames = server.packet_socket().expect("packet socket");
    for family in Family::BOTH {
        let (far, near) = (server.udp(family, 7).expect("server"), client.udp(family, 0).expect("client"));
        near.send_to(b"x", SocketAddr::new(server.ip(family), 7)).expect("send");
        far.recv(&mut [0]).expect("a packet whose checksum is right");
        let class = loop {
            let mut buffer = [0; 2048];
            let n = std::io::Read::read(&mut &frames, &mut buffer).expect("a frame");
            let frame = &buffer[..n];
            match (family, &frame[12..14]) {
                (Family::V4, [8, 0]) if frame[23] == 17 => break frame[15],
                (Family::V6, [0x86, 0xdd]) if frame[20] == 17 => break frame[14] << 4 | frame[15] >> 4,
                _ => {}
            }
        };
        assert_eq!(class, 46 << 2, "{family:?}");
    }
}
