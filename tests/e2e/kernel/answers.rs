// SPDX-License-Identifier: Apache-2.0
//! What the gateway answers to real kernels, and what a container cannot do with frames of its own making.

use crate::support::{settled, talk, until};
use etherparse::PacketBuilder;
use pilus_e2e::container::PATIENCE;
use pilus_e2e::icmp::{self, Raw};
use pilus_e2e::{Container, Family, Node, NodeOptions};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

/// A UDP packet that may make one hop only draws a "time exceeded" from the router.
#[test]
fn the_router_answers_when_hops_run_out() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let a = node.add("a", &[]).expect("a");
    let b = node.add("b", &[]).expect("b");
    let status = node.block_on(node.client().status()).expect("status");
    for family in Family::BOTH {
        let (domain, protocol) = match family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
        };
        let listener = a.run(|| Socket::new(domain, Type::RAW, Some(protocol))).expect("raw socket");
        listener.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let probe = a.run(|| Socket::new(domain, Type::DGRAM, None)).expect("socket");
        match family {
            Family::V4 => probe.set_ttl_v4(1),
            Family::V6 => probe.set_unicast_hops_v6(1),
        }
        .expect("hops");
        probe.send_to(b"probe", &SockAddr::from(SocketAddr::new(b.ip(family), 33434))).expect("send");
        let (kind, router) = match family {
            Family::V4 => (11, &status.router_ipv4),
            Family::V6 => (3, &status.router_ipv6),
        };
        loop {
            let mut data = [0; 2048];
            let n = (&listener).read(&mut data).expect("time exceeded");
            let skip = if family == Family::V4 { 20 } else { 0 };
            assert!(n > skip);
            if data[skip] == kind {
                if family == Family::V4 {
                    let from = std::net::Ipv4Addr::new(data[12], data[13], data[14], data[15]);
                    assert_eq!(from.to_string(), *router);
                }
                // What is quoted is the probe.
                let ports = data[..n].windows(2).any(|w| w == 33434u16.to_be_bytes());
                assert!(ports, "{:?}", &data[..n]);
                break;
            }
        }
    }
}

#[test]
fn the_gateway_and_the_host_answer_echo() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let a = node.add("a", &[]).expect("a");
    let status = node.block_on(node.client().status()).expect("status");
    for (family, gateway, router) in [(Family::V4, "169.254.1.1", &status.router_ipv4), (Family::V6, "", &status.router_ipv6)] {
        let raw = Raw::new(&a, family).expect("raw socket");
        let targets = [gateway, router.as_str()];
        for to in targets.iter().filter(|t| !t.is_empty()) {
            raw.echo(to.parse().expect("address"), 9, 9).expect("send");
            raw.receive(|m| m.kind == icmp::echo_types(family).1 && m.body.starts_with(&[0, 9])).expect("answer");
        }
    }
}

/// The host's own servers are reached at the router address, under policy like anyone else.
#[test]
fn the_host_is_reached_under_policy() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let a = node.add("a", &["app=a"]).expect("a");
    let status = node.block_on(node.client().status()).expect("status");
    for router in [&status.router_ipv4, &status.router_ipv6] {
        let at = SocketAddr::new(router.parse().expect("address"), 7001);
        let listener = node.run(|| std::net::TcpListener::bind(at)).expect("listen on the host");
        let mut stream = a.connect(at).expect("connect to the host");
        let (mut peer, _) = listener.accept().expect("accept");
        stream.write_all(b"x").expect("write");
        peer.read_exact(&mut [0; 1]).expect("read");
    }
    node.import("- endpointSelector: {matchLabels: {app: a}}\n  egress: [{}]\n").expect("policy");
    let mut drops = node.events(&["drop"]).expect("events");
    let to = SocketAddr::new(status.router_ipv6.parse().expect("address"), 7001);
    let _refused: Socket = a.connect_start(to).expect("connect");
    let drop = drops.wait("drop to the host", |e| e.kind == "drop" && e.source.as_ref().is_some_and(|p| p.endpoint == a.id)).expect("drop");
    assert_eq!((drop.reason.as_str(), drop.direction.as_str()), ("Policy denied", "egress"));
    assert_eq!(drop.destination.expect("destination").labels, ["reserved:host"]);
    node.import("- endpointSelector: {matchLabels: {app: a}}\n  egress: [{toEntities: [host]}]\n").expect("policy");
    let listener = node.run(|| std::net::TcpListener::bind(to));
    let _stream: TcpStream = a.connect(to).expect("connect to the host");
    std::mem::drop(listener);
}

fn frame(from: &Container, source_mac: [u8; 6], source_ip: [u8; 16], to: &Container) -> Vec<u8> {
    let mut f = from.host_mac.to_vec();
    f.extend(source_mac);
    f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 12, 17, 64]);
    f.extend(source_ip);
    f.extend(to.ipv6.octets());
    f.extend([0x30, 0x39, 0x30, 0x39, 0, 12, 0xff, 0xff, 1, 2, 3, 4]);
    f
}

#[test]
fn frames_of_ones_own_making_are_judged() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let a = node.add("a", &[]).expect("a");
    let b = node.add("b", &[]).expect("b");
    let socket = a.packet_socket().expect("packet socket");
    let mut drops = node.events(&["drop"]).expect("events");
    let own = a.ipv6.octets();
    let rows = [
        (frame(&a, [2, 9, 9, 9, 9, 9], own, &b), "Invalid source mac"),
        (frame(&a, a.mac, b.ipv6.octets(), &b), "Invalid source ip"),
        (frame(&a, a.mac, [0xfd; 16], &b), "Invalid source ip"),
        ([&[2, 1, 1, 1, 1, 1][..], &frame(&a, a.mac, own, &b)[6..]].concat(), "Invalid destination mac"),
        ([&frame(&a, a.mac, own, &b)[..12], &[0x88, 0xb5], &[0; 46]].concat(), "Unsupported L3 protocol"),
        (frame(&a, a.mac, own, &b)[..40].to_vec(), "Invalid packet"),
        (frame(&a, a.mac, own, &b)[..58].to_vec(), "Invalid packet"),
    ];
    for (bytes, reason) in rows {
        socket.send(&bytes).expect("send");
        let drop = drops.wait(reason, |e| e.kind == "drop" && e.source.as_ref().is_some_and(|p| p.endpoint == a.id));
        // Neighbour discovery of the container itself may be dropped in between.
        let mut drop = drop.expect("drop");
        while matches!(drop.reason.as_str(), "Multicast or broadcast not forwarded" | "Neighbour discovery not for the gateway") {
            drop = drops.wait(reason, |e| e.kind == "drop").expect("drop");
        }
        assert_eq!(drop.reason, reason);
    }
    // Frames below an Ethernet header are refused by the kernel or dropped; nothing falls over.
    for length in 1..14 {
        let _ = socket.send(&frame(&a, a.mac, own, &b)[..length]);
    }
    // An honest frame passes.
    let receiver = b.udp(Family::V6, 12345).expect("socket");
    let sender = a.udp(Family::V6, 0).expect("socket");
    sender.send_to(b"honest", SocketAddr::new(b.ip(Family::V6), 12345)).expect("send");
    receiver.recv(&mut [0; 16]).expect("arrives");
}

/// Packets of each kind, whole: TCP, UDP and echo of one family.
fn whole(from: &Container, to: &Container, family: Family) -> Vec<Vec<u8>> {
    let link = || PacketBuilder::ethernet2(from.mac, from.host_mac);
    let mut all = Vec::new();
    let mut add = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = Vec::new();
        write(&mut frame);
        all.push(frame);
    };
    match (from.ip(family), to.ip(family)) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let ip = || link().ipv4(a.octets(), b.octets(), 64);
            add(&|f| ip().tcp(3000, 3001, 1, 1000).syn().write(f, b"").expect("packet"));
            add(&|f| ip().udp(3000, 3001).write(f, b"data").expect("packet"));
            add(&|f| ip().icmpv4_echo_request(3, 1).write(f, b"data").expect("packet"));
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let ip = || link().ipv6(a.octets(), b.octets(), 64);
            add(&|f| ip().tcp(3000, 3001, 1, 1000).syn().write(f, b"").expect("packet"));
            add(&|f| ip().udp(3000, 3001).write(f, b"data").expect("packet"));
            add(&|f| ip().icmpv6_echo_request(3, 1).write(f, b"data").expect("packet"));
        }
        _ => unreachable!("one family"),
    }
    all
}

/// Every beginning of a packet, before there is a flow that it could belong to and after: none of them gets anywhere, and each
/// is counted.
#[test]
fn beginnings_of_packets_go_nowhere() {
    const HEADER: usize = 14;
    let node = Node::start(NodeOptions::default()).expect("node");
    let a = node.add("a", &[]).expect("a");
    let b = node.add("b", &[]).expect("b");
    let _open = Family::BOTH.map(|f| (b.udp(f, 3001).expect("socket"), b.listen(f, 3001).expect("socket")));
    let near = a.packet_socket().expect("packet socket");
    let far = b.packet_socket().expect("packet socket");
    let dropped = || {
        let rows = node.rows("metrics").expect("metrics");
        rows.iter().filter(|r| r[0] != "Forwarded").filter_map(|r| r[2].parse::<u64>().ok()).sum::<u64>()
    };
    // The receiver gets what the sender wrote, under another link header.
    let next = || {
        let mut buffer = [0; 2048];
        (&far).read(&mut buffer).map(|n| buffer[HEADER..n].to_vec())
    };
    // From the addresses on; hop limit and the checksum over it come before.
    let behind =
        |packet: &[u8]| packet.get(if packet.first().is_some_and(|v| v >> 4 == 4) { 12 } else { 8 }..).unwrap_or_default().to_vec();
    for family in Family::BOTH {
        for frame in whole(&a, &b, family) {
            for flow in ["new", "known"] {
                let before = dropped();
                let mut accepted = 0;
                for length in 1..frame.len() {
                    // The kernel may refuse what is shorter than a link header.
                    let sent = near.send(&frame[..length]).is_ok();
                    accepted += u64::from(sent && length >= HEADER);
                    assert!(sent || length < HEADER, "{family:?} {length}");
                }
                until("every one is counted as dropped", || {
                    let now = dropped() - before;
                    if now >= accepted { Ok(()) } else { Err(format!("{family:?} {flow}: {now} of {accepted}")) }
                });
                // The whole packet is the first that arrives, other traffic of both kernels apart.
                near.send(&frame).expect("send");
                let whole = behind(&frame[HEADER..]);
                loop {
                    let seen = behind(&next().expect("the whole packet"));
                    if seen == whole {
                        break;
                    }
                    assert!(seen.is_empty() || !whole.starts_with(&seen), "{family:?} {flow}: a beginning arrived: {seen:?}");
                }
            }
        }
    }
    // Programs and agent are what they were.
    talk(&a, &b, 5000);
    settled(&node);
}
