// SPDX-License-Identifier: Apache-2.0
//! Containers meet the world under the node's address: as by the kernel's own masquerading, packet for packet.

use crate::support::{Talk, netlink, until};
use crate::wire::{Wire, nft};
use pilus_api::types::FlowEntry;
use pilus_e2e::container::PATIENCE;
use pilus_e2e::icmp::{Raw, echo_types};
use pilus_e2e::{Container, Family, Node, NodeOptions, outside};
use pilus_loader::collection::Program;
use pilus_loader::hook::Dir;
use pilus_loader::netlink::RouteSpec;
use pilus_tests::packet::{L4, Net, Packet};
use pilus_tests::wire::{ETH, SYN};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

const RANGES: [&str; 4] = ["--ipv6-range", "fd00:7::/64", "--ipv4-range", "10.77.0.0/16"];

/// Who masquerades.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Ours: how programs are attached, and who routes.
    Pilus(&'static str, &'static str),
    /// nftables, with the stack for a router.
    Kernel,
}

struct Setup {
    node: Node,
    world: Container,
    client: Container,
}

fn args(routing: &str, masquerade: &str, more: &[&str]) -> Vec<String> {
    let all = RANGES.iter().copied().chain(["--host-routing", routing, "--masquerade", masquerade]).chain(more.iter().copied());
    all.map(str::to_owned).collect()
}

impl Setup {
    fn new(by: By, more: &[&str]) -> Self {
        let (attach, routing, masquerade) = match by {
            By::Pilus(attach, routing) => (attach, routing, "true"),
            By::Kernel => ("auto", "stack", "false"),
        };
        let options = NodeOptions { attach, args: args(routing, masquerade, more), ..NodeOptions::default() };
        let mut node = Node::prepare(options).expect("node");
        let world = outside::connect(&node, 0, 1500, true).expect("world");
        // It could not answer a container.
        world.run(|| {
            netlink(async |n| {
                for (ip, len) in nowhere() {
                    n.route_replace(&RouteSpec::new(ip, len, 1)).await.expect("route");
                }
            });
        });
        node.start_agent().expect("agent");
        if by == By::Kernel {
            node.run(|| {
                nft("table inet nat {\n chain post {\n  type nat hook postrouting priority 100\n  oifname \"eth0\" masquerade\n }\n}\n");
            });
        }
        let client = node.add("client", &["app=client"]).expect("client");
        Self { node, world, client }
    }
}

/// The node's ranges, by which the world has no way.
fn nowhere() -> [(IpAddr, u8); 2] {
    [(IpAddr::from([10, 77, 0, 0]), 16), ("fd00:7::".parse().expect("address"), 64)]
}

fn node_ip(family: Family) -> IpAddr {
    let (v4, v6) = outside::node_addresses(0);
    if family == Family::V4 { v4.into() } else { v6.into() }
}

/// A server's own view of a client, after a long stream each way.
fn seen_by_server(setup: &Setup, family: Family) -> IpAddr {
    let listener = setup.world.listen(family, 0).expect("listen");
    let port = listener.local_addr().expect("address").port();
    let mut near = setup.client.connect(SocketAddr::new(setup.world.ip(family), port)).expect("connect");
    let (mut far, from) = listener.accept().expect("accept");
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    for turn in 0..2 {
        let mut seen = vec![0; bytes.len()];
        let (sender, receiver) = if turn == 0 { (&mut near, &mut far) } else { (&mut far, &mut near) };
        receiver.set_read_timeout(Some(PATIENCE)).expect("timeout");
        std::thread::scope(|scope| {
            scope.spawn(|| sender.write_all(&bytes).expect("write"));
            receiver.read_exact(&mut seen).expect("read");
        });
        assert!(seen == bytes, "{family:?}: turn {turn}");
    }
    from.ip()
}

fn connections(by: By) {
    let mut setup = Setup::new(by, &[]);
    let mut talks = Vec::new();
    for family in Family::BOTH {
        assert_eq!(seen_by_server(&setup, family), node_ip(family), "{by:?}");
        let (client, world) = (&setup.client, &setup.world);
        // A datagram in parts, there and back.
        let (near, far) = (client.udp(family, 0).expect("socket"), world.udp(family, 5301).expect("socket"));
        let sent: Vec<u8> = (0..3000u32).map(|n| (n % 251) as u8).collect();
        let mut seen = vec![0; 4096];
        near.send_to(&sent, SocketAddr::new(world.ip(family), 5301)).expect("send");
        let (n, from) = far.recv_from(&mut seen).expect("a datagram");
        assert!(seen[..n] == sent && from.ip() == node_ip(family), "{by:?} {family:?}: {n} bytes from {from}");
        far.send_to(&sent, from).expect("answer");
        let n = near.recv(&mut seen).expect("an answer");
        assert!(seen[..n] == sent, "{by:?} {family:?}: {n} bytes came back");
        // A port where nobody listens.
        near.connect(SocketAddr::new(world.ip(family), 5302)).expect("connect");
        near.send(b"x").expect("send");
        let refused = near.recv(&mut seen).expect_err("nobody answers");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{by:?} {family:?}");
        let raw = Raw::new(client, family).expect("raw socket");
        raw.echo(world.ip(family), 7, 1).expect("echo");
        raw.receive(|m| m.kind == echo_types(family).1).expect("a reply");
        talks.push(Talk::tcp(client, world, family, 7000));
        talks.push(Talk::udp(client, world, family, 7000));
    }
    talks.iter_mut().for_each(|t| t.exchange(1).expect("exchange"));
    let node = &mut setup.node;
    let nat = node.rows("nat").expect("nat");
    let of = |proto: &str, port: &str| nat.iter().filter(|r| r[0] == proto && r[1] == "client" && r[4].ends_with(port)).count();
    assert_eq!((of("tcp", ":7000"), of("udp", ":7000"), of("icmp", ""), of("icmpv6", "")), (2, 2, 1, 1), "{nat:?}");
    let flows: Vec<FlowEntry> = node.block_on(node.client().flow_table(None)).expect("flows");
    let foreign: Vec<_> = flows.iter().filter(|f| Family::BOTH.iter().any(|family| f.source.address == node_ip(*family))).collect();
    assert!(foreign.is_empty(), "what the world sees is no connection of its own: {foreign:?}");
    // Forgotten flows are judged anew and keep their ports; so do those of an agent that was killed.
    node.block_on(node.client().flush_flow_table(None)).expect("flush");
    talks.iter_mut().for_each(|t| t.exchange(2).expect("exchange after a flush"));
    node.kill_agent().expect("kill");
    talks.iter_mut().for_each(|t| t.exchange(3).expect("exchange without an agent"));
    node.start_agent().expect("agent");
    talks.iter_mut().for_each(|t| t.exchange(4).expect("exchange with the next agent"));
    assert_eq!(node.metric("Missed tail call").expect("metrics"), 0);
    drop(talks);
    // Nothing of ours stays on the device.
    let eth0 = node.run(|| netlink(async |n| n.link_by_name("eth0").await.expect("link").expect("eth0").index));
    let (status, _, said) = node.pilus(&["cleanup", "--yes"]).expect("cleanup");
    assert_eq!(status, 0, "{said}");
    for dir in [Dir::Ingress, Dir::Egress] {
        assert_eq!(node.run(|| pilus_loader::hook::tc_info(eth0, dir).expect("filter")), None, "{by:?} {dir:?}");
    }
}

#[test]
fn connections_by_tc() {
    connections(By::Pilus("tc", "bpf"));
}

#[test]
fn connections_by_tcx() {
    if !pilus_loader::probe::Features::probe().expect("probe").tcx {
        return println!("skipped: this kernel has no tcx");
    }
    connections(By::Pilus("tcx", "bpf"));
}

#[test]
fn connections_by_the_stack() {
    connections(By::Pilus("auto", "stack"));
}

/// Prefixes that know containers are met under their own addresses, whoever routes.
#[test]
fn excluded_prefixes() {
    for routing in ["bpf", "stack"] {
        let excluded = ["--masquerade-exclude", "192.0.2.0/28,2001:db8::/64"];
        let mut setup = Setup::new(By::Pilus("auto", routing), &excluded);
        setup.world.run(|| {
            netlink(async |n| {
                for (ip, len) in nowhere() {
                    n.route_delete(&RouteSpec::new(ip, len, 1)).await.expect("route");
                }
            });
        });
        for family in Family::BOTH {
            assert_eq!(seen_by_server(&setup, family), setup.client.ip(family), "{routing}");
        }
        // The next agent is told otherwise.
        setup.node.stop_agent().expect("stop");
        setup.node.set_args(args(routing, "true", &["--masquerade-exclude", "198.51.100.0/24"]));
        setup.node.start_agent().expect("agent");
        for family in Family::BOTH {
            assert_eq!(seen_by_server(&setup, family), node_ip(family), "{routing}");
        }
    }
}

fn of_proto(packet: &Packet) -> u8 {
    let frame = packet.build();
    frame[ETH + if matches!(packet.net, Net::V4(_)) { 9 } else { 6 }]
}

/// The packet with other ports; of an echo the identifier is both.
fn with_ports(mut packet: Packet, source: Option<u16>, destination: Option<u16>) -> Packet {
    match &mut packet.l4 {
        L4::Tcp { sport, dport, .. } | L4::Udp { sport, dport, .. } => {
            *sport = source.unwrap_or(*sport);
            *dport = destination.unwrap_or(*dport);
        }
        L4::Icmp { rest, .. } => rest[..2].copy_from_slice(&source.or(destination).unwrap_or_default().to_be_bytes()),
        _ => {}
    }
    packet
}

/// The same inputs through our programs and through the kernel's own translation: every byte of what comes out is the same, but
/// for the port that was chosen.
fn packet_for_packet(by: By) {
    let setup = Setup::new(by, &[]);
    let (inside, outside) = (Wire::new(&setup.client), Wire::new(&setup.world));
    for family in Family::BOTH {
        let v4 = family == Family::V4;
        let (client, world, node) = (setup.client.ip(family), setup.world.ip(family), node_ip(family));
        let none = move |p: Packet| {
            p.with(|p| {
                if let L4::Udp { checksum, .. } = &mut p.l4 {
                    *checksum = v4.then_some(0)
                }
            })
        };
        let echo = |reply| move |from, to| Packet::ip(from, to).echo(reply, 77).filled(20);
        // As the container sends it, and what the world answers.
        type Make = Box<dyn Fn(IpAddr, IpAddr) -> Packet>;
        let flows: [(&str, Make, Make); 4] = [
            ("udp", Box::new(|a, b| Packet::ip(a, b).udp(5000, 53).filled(20)), Box::new(|a, b| Packet::ip(a, b).udp(53, 5000).filled(9))),
            (
                "udp without a checksum",
                Box::new(move |a, b| none(Packet::ip(a, b).udp(5001, 53).filled(20))),
                Box::new(move |a, b| none(Packet::ip(a, b).udp(53, 5001).filled(9))),
            ),
            ("tcp", Box::new(|a, b| Packet::ip(a, b).tcp(5000, 80, SYN)), Box::new(|a, b| Packet::ip(a, b).tcp(80, 5000, SYN | 16))),
            ("echo", Box::new(echo(false)), Box::new(echo(true))),
        ];
        for (name, ask, answer) in &flows {
            let what = format!("{by:?} {family:?} {name}");
            let asked = ask(client, world);
            let proto = of_proto(&asked);
            inside.send(&asked);
            let out = outside.receive(&what, proto, node);
            let l4 = if v4 { 20 } else { 40 };
            let at = l4 + if *name == "echo" { 4 } else { 0 };
            let port = u16::from_be_bytes([out[at], out[at + 1]]);
            let left = with_ports(ask(node, world), Some(port), None).hops(63);
            assert_eq!(out, left.quote(), "{what}: left");
            let answered = with_ports(answer(world, node), None, Some(port));
            outside.send(&answered);
            let received = answer(world, client).hops(63);
            assert_eq!(inside.receive(&what, proto, world), received.quote(), "{what}: answered");
            for cut in [8, usize::MAX] {
                let error = |from, to, quoted: &Packet| {
                    let mut quote = quoted.quote();
                    quote.truncate(l4 + cut.min(quote.len() - l4));
                    Packet::ip(from, to).icmp(if v4 { 3 } else { 1 }, if v4 { 3 } else { 4 }, [0; 4]).payload(&quote)
                };
                let icmp = if v4 { 1 } else { 58 };
                let what = format!("{what}, {cut} bytes quoted");
                outside.send(&error(world, node, &left));
                let wanted = error(world, client, &asked.clone().hops(63)).hops(63);
                assert_eq!(inside.receive(&what, icmp, world), wanted.quote(), "{what}: error from outside");
                inside.send(&error(client, world, &received));
                let wanted = error(node, world, &answered.clone().hops(63)).hops(63);
                assert_eq!(outside.receive(&what, icmp, node), wanted.quote(), "{what}: error from inside");
            }
        }
    }
}

#[test]
fn packets_by_the_kernel() {
    packet_for_packet(By::Kernel);
}

#[test]
fn packets_by_our_programs() {
    packet_for_packet(By::Pilus("auto", "bpf"));
}

#[test]
fn packets_by_our_programs_and_the_stack() {
    packet_for_packet(By::Pilus("auto", "stack"));
}

/// The entry of what the world sees lives as long as the container's flow, however idle, and no longer.
#[test]
fn entries_go_together() {
    let setup = Setup::new(By::Pilus("auto", "bpf"), &["--flow-timeout-tcp-closing", "1", "--flow-timeout-udp-reply", "1000"]);
    let node = &setup.node;
    let nat = || node.rows("nat").expect("nat").len();
    let mut talks: Vec<Talk> = Family::BOTH.iter().map(|f| Talk::udp(&setup.client, &setup.world, *f, 7000)).collect();
    talks.iter_mut().for_each(|t| t.exchange(1).expect("exchange"));
    until("the flows were idle for longer than what is closed stays", || {
        let flows: Vec<FlowEntry> = node.block_on(node.client().flow_table(None)).map_err(|e| e.to_string())?;
        let idle: Vec<u32> = flows.iter().filter(|f| f.protocol == "udp" && f.destination.port == 7000).map(|f| f.idle).collect();
        if idle.len() == 2 && idle.iter().all(|seconds| *seconds >= 3) { Ok(()) } else { Err(format!("{idle:?}")) }
    });
    assert_eq!(nat(), 2, "{:?}", node.rows("nat"));
    talks.iter_mut().for_each(|t| t.exchange(2).expect("exchange"));
    let options = [("flow-timeout-udp-reply".to_owned(), "1".to_owned())].into();
    node.block_on(node.client().set_config(options)).expect("config");
    until("both are gone", || match nat() {
        0 => Ok(()),
        n => Err(format!("{n} are there")),
    });
}

/// Where we would hang a filter there is another's: it is neither taken away nor replaced.
#[test]
fn filters_of_others_stay() {
    if !pilus_loader::probe::Features::probe().expect("probe").tcx {
        return println!("skipped: this kernel has no tcx");
    }
    let mut setup = Setup::new(By::Pilus("tcx", "bpf"), &[]);
    let node = &mut setup.node;
    let eth0 = node.run(|| netlink(async |n| n.link_by_name("eth0").await.expect("link").expect("eth0").index));
    // One that is not ours there, by its name.
    let pinned = |node: &Node, name: &str| {
        let pin = node.pins().expect("pins").into_iter().find(|p| p.ends_with(name)).expect("a pin");
        node.path("bpf").join(pin)
    };
    let pin = pinned(node, "/flow_clock");
    let program = node.run_inside(move || Program::pinned(&pin)).expect("node").expect("program").expect("flow_clock");
    for dir in [Dir::Ingress, Dir::Egress] {
        node.run(|| pilus_loader::hook::attach_tc(&program, eth0, dir).expect("filter"));
    }
    let there = |node: &Node| [Dir::Ingress, Dir::Egress].map(|dir| node.run(|| pilus_loader::hook::tc_info(eth0, dir).expect("filter")));
    node.stop_agent().expect("stop");
    // Its links are gone, as after a reboot: it attaches anew.
    for name in ["", "-out"] {
        let pin = pinned(node, &format!("/device{eth0}{name}"));
        node.run_inside(move || pilus_loader::hook::detach_link(&pin)).expect("node").expect("detach");
    }
    node.start_agent().expect("agent");
    assert_eq!(there(node), [Some(program.id); 2], "taken away");
    node.stop_agent().expect("stop");
    let (code, _, errors) = node.agent_once(&["--attach-mode", "tc"]).expect("agent");
    assert!(code == 1 && errors.contains("another program's"), "{code} {errors}");
    assert_eq!(there(node), [Some(program.id); 2], "replaced");
    let (code, _, errors) = node.agent_once(&["--cleanup"]).expect("cleanup");
    assert_eq!((code, there(node)), (0, [Some(program.id); 2]), "{errors}");
}
