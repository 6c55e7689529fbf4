// SPDX-License-Identifier: Apache-2.0
//! A container without IPv4 and the IPv4 world: real sockets on both sides.

use crate::support::{policy, until};
use pilus_api::types::{EndpointModel, EndpointRequest};
use pilus_e2e::container::PATIENCE;
use pilus_e2e::icmp::{Raw, echo_types};
use pilus_e2e::{Container, Family, Node, NodeOptions, outside};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

const RANGE: &str = "64:ff9b:1::/96";

/// Stands for an IPv4 address.
fn six(ip: Ipv4Addr) -> IpAddr {
    let base: Ipv6Addr = "64:ff9b:1::".parse().expect("address");
    Ipv6Addr::from(u128::from(base) | u128::from(u32::from(ip))).into()
}

fn args(more: &[&str]) -> Vec<String> {
    ["--ipv6-range", "fd00:7::/64", "--ipv4-range", "10.77.0.0/16", "--mtu", "1500"].iter().chain(more).map(|a| (*a).to_owned()).collect()
}

fn without_ipv4(node: &Node, name: &str) -> (Container, EndpointModel) {
    let mut container = Container::new(name).expect("container");
    let (netns, labels) = (container.path(), vec![format!("app={name}")]);
    let request = EndpointRequest { name: name.into(), netns, labels, ipv4: Some("none".into()), ..EndpointRequest::default() };
    let model = node.block_on(node.client().put_endpoint(&request, true)).expect("endpoint").endpoint;
    container.learn(&model);
    (container, model)
}

/// A long stream each way.
fn stream(near: &mut TcpStream, far: &mut TcpStream, what: &str) {
    let bytes: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
    for turn in 0..2 {
        let mut seen = vec![0; bytes.len()];
        let (sender, receiver) = if turn == 0 { (&mut *near, &mut *far) } else { (&mut *far, &mut *near) };
        receiver.set_read_timeout(Some(PATIENCE)).expect("timeout");
        std::thread::scope(|scope| {
            scope.spawn(|| sender.write_all(&bytes).expect("write"));
            receiver.read_exact(&mut seen).unwrap_or_else(|e| panic!("{what}, turn {turn}: {e}"));
        });
        assert!(seen == bytes, "{what}, turn {turn}");
    }
}

/// `seen`: the address by which `server` knows `client`.
fn six_to_four(client: &Container, server: &Container, seen: Ipv4Addr) {
    let what = format!("{} to {}", client.name, server.name);
    let to = six(server.ipv4.expect("IPv4"));
    let listener = server.listen(Family::V4, 7000).expect("listen");
    let mut near = client.connect(SocketAddr::new(to, 7000)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (mut far, from) = listener.accept().expect("accept");
    assert_eq!(from.ip(), IpAddr::from(seen), "{what}");
    stream(&mut near, &mut far, &what);
    let (near, far) = (client.udp(Family::V6, 0).expect("socket"), server.udp(Family::V4, 7001).expect("socket"));
    near.send_to(b"ask", SocketAddr::new(to, 7001)).expect("send");
    let mut buffer = [0; 16];
    let (n, from) = far.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((&buffer[..n], from.ip()), (&b"ask"[..], IpAddr::from(seen)), "{what}");
    far.send_to(b"tell", from).expect("send");
    let (n, from) = near.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((&buffer[..n], from), (&b"tell"[..], SocketAddr::new(to, 7001)), "{what}");
    near.connect(SocketAddr::new(to, 7002)).expect("connect");
    near.send(b"x").expect("send");
    assert_eq!(near.recv(&mut buffer).expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused, "{what}");
    let raw = Raw::new(client, Family::V6).expect("raw socket");
    raw.echo(to, 7, 1).expect("echo");
    raw.receive(|m| m.kind == echo_types(Family::V6).1).unwrap_or_else(|e| panic!("{what}: {e}"));
}

fn four_to_six(client: &Container, server: &Container, at: Ipv4Addr) {
    let what = format!("{} to {}", client.name, server.name);
    let seen = six(client.ipv4.expect("IPv4"));
    let listener = server.listen(Family::V6, 7000).expect("listen");
    let mut near = client.connect(SocketAddr::new(at.into(), 7000)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (mut far, from) = listener.accept().expect("accept");
    assert_eq!(from.ip(), seen, "{what}");
    stream(&mut near, &mut far, &what);
    let near = client.udp(Family::V4, 0).expect("socket");
    near.connect(SocketAddr::new(at.into(), 7002)).expect("connect");
    near.send(b"x").expect("send");
    assert_eq!(near.recv(&mut [0]).expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused, "{what}");
    let raw = Raw::new(client, Family::V4).expect("raw socket");
    raw.echo(at.into(), 7, 1).expect("echo");
    raw.receive(|m| m.kind == echo_types(Family::V4).1).unwrap_or_else(|e| panic!("{what}: {e}"));
}

fn both_ways(routing: &'static str) {
    let options = NodeOptions { args: args(&["--nat46-range", RANGE, "--host-routing", routing]), ..NodeOptions::default() };
    let mut node = Node::prepare(options).expect("node");
    // Narrower than the container's link.
    let world = outside::connect(&node, 0, 1400, true).expect("world");
    node.start_agent().expect("agent");
    let (alone, model) = without_ipv4(&node, "alone");
    let four = node.add("four", &["app=four"]).expect("four");
    let own = model.nat46.expect("an address that stands for it");
    assert_eq!(model.ipv4, None);
    let named = node.block_on(node.client().endpoint(&format!("ipv4:{own}"))).expect("endpoint");
    assert_eq!((named.name.as_str(), named.nat46), ("alone", Some(own)));
    let (_, shown, _) = node.pilus(&["endpoint", "get", "alone"]).expect("pilus");
    assert!(shown.contains(&own.to_string()), "{shown}");
    six_to_four(&alone, &four, own);
    four_to_six(&four, &alone, own);
    // Out of the node it leaves under the node's address.
    six_to_four(&alone, &world, outside::node_addresses(0).0);
    four_to_six(&world, &alone, own);
    // Fragments are refused, and it is said why.
    let mut drops = node.events(&["drop"]).expect("events");
    let near = alone.udp(Family::V6, 0).expect("socket");
    near.send_to(&[0; 3000], SocketAddr::new(six(four.ipv4.expect("IPv4")), 7001)).expect("send");
    let drop = drops.wait("drop", |e| e.source.as_ref().is_some_and(|s| s.endpoint == alone.id)).expect("a drop");
    assert!(drop.reason.contains("Fragment"), "{drop:?}");
    // Policy knows the world by its IPv4 addresses.
    node.import(&policy("alone", "  endpointSelector: {matchLabels: {app: alone}}\n  egress:\n  - toCIDR: [198.51.100.0/24]\n"))
        .expect("policy");
    let mut drops = node.events(&["drop"]).expect("events");
    near.send_to(b"x", SocketAddr::new(six(world.ipv4.expect("IPv4")), 7001)).expect("send");
    let drop = drops.wait("drop", |e| e.source.as_ref().is_some_and(|s| s.endpoint == alone.id)).expect("a drop");
    assert_eq!(drop.reason, "Policy denied");
    node.import(&policy("alone", "  endpointSelector: {matchLabels: {app: alone}}\n  egress:\n  - toCIDR: [192.0.2.0/24]\n"))
        .expect("policy");
    six_to_four(&alone, &world, outside::node_addresses(0).0);
    node.forget_policy().expect("policy");
    // The next agent does not translate; the one after it does, for who was there too.
    node.stop_agent().expect("stop");
    node.set_args(args(&["--host-routing", routing]));
    node.start_agent().expect("agent");
    let model = node.block_on(node.client().endpoint("name:alone")).expect("endpoint");
    assert_eq!((model.nat46, model.ipv6), (None, Some(alone.ipv6)));
    node.stop_agent().expect("stop");
    node.set_args(args(&["--host-routing", routing, "--nat46-range", RANGE]));
    node.start_agent().expect("agent");
    let own = until("it has an address again", || {
        let model = node.block_on(node.client().endpoint("name:alone")).map_err(|e| e.to_string())?;
        if model.state == "ready" { model.nat46.ok_or("none".to_owned()) } else { Err(model.state) }
    });
    six_to_four(&alone, &four, own);
    four_to_six(&four, &alone, own);
    assert_eq!(node.metric("Missed tail call").expect("metrics"), 0);
}

#[test]
fn by_bpf() {
    both_ways("bpf");
}

#[test]
fn by_the_stack() {
    both_ways("stack");
}

#[test]
fn ranges_that_cannot_be() {
    let node = Node::prepare(NodeOptions { args: args(&[]), ..NodeOptions::default() }).expect("node");
    for (range, says) in [
        ("64:ff9b:1::/64", "96 bits"),
        ("64:ff9b:1::1/96", "bits set"),
        ("fd00:7::/96", "overlaps"),
        ("ff02::/96", "96 bits"),
        ("fe80::/96", "96 bits"),
        ("::/96", "96 bits"),
    ] {
        let (code, _, errors) = node.agent_once(&["--nat46-range", range]).expect("agent");
        assert!(code == 2 && errors.contains("nat46-range") && errors.contains(says), "{range}: {code} {errors}");
    }
    let (code, _, errors) = node.agent_once(&["--nat46-range", RANGE, "--enable-ipv4", "false"]).expect("agent");
    assert!(code == 2 && errors.contains("enable-ipv4"), "{code} {errors}");
}
