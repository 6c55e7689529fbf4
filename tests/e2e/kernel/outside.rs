// SPDX-License-Identifier: Apache-2.0
//! Containers and the rest of the world, through the node's devices.

use crate::support::{Talk, policy, until};
use pilus_api::types::PolicyQuestion;
use pilus_e2e::icmp::{Raw, echo_types};
use pilus_e2e::{Container, Family, Node, NodeOptions, outside};
use std::net::SocketAddr;

const RANGES: [&str; 4] = ["--ipv6-range", "fd00:7::/64", "--ipv4-range", "10.77.0.0/16"];

fn node(attach: &'static str, more: &[&str]) -> Node {
    // The world routes to containers here.
    let args = RANGES.iter().chain(&["--masquerade", "false"]).chain(more).map(|a| (*a).to_owned()).collect();
    Node::prepare(NodeOptions { attach, args, ..NodeOptions::default() }).expect("node")
}

/// Packets that the node's stack forwarded, both families.
fn forwarded(node: &Node) -> u64 {
    let field = |text: &str, name: &str| -> u64 {
        let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        match rows.iter().find(|r| r.first() == Some(&"Ip:")) {
            Some(head) => {
                let at = head.iter().position(|c| *c == name).expect("a column");
                rows.iter().filter(|r| r.first() == Some(&"Ip:")).nth(1).expect("values")[at].parse().expect("a number")
            }
            None => rows.iter().find(|r| r.first() == Some(&name)).expect("a row")[1].parse().expect("a number"),
        }
    };
    node.run(|| {
        // A thread's own view: that of the process would be another namespace's.
        let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).expect("counters");
        field(&read("snmp"), "ForwDatagrams") + field(&read("snmp6"), "Ip6OutForwDatagrams")
    })
}

fn world_policy(node: &Node) {
    node.import(&policy(
        "server",
        "  endpointSelector: {matchLabels: {app: server}}\n  ingress:\n  - fromEntities: [world]\n    toPorts: [{ports: [{port: \
         \"7000\", protocol: ANY}]}]\n",
    ))
    .expect("policy");
}

fn ping(from: &Container, to: &Container) {
    for family in Family::BOTH {
        let raw = Raw::new(from, family).expect("raw socket");
        raw.echo(to.ip(family), 7, 1).expect("echo");
        let (_, reply) = echo_types(family);
        raw.receive(|m| m.kind == reply).unwrap_or_else(|e| panic!("{} to {} {family:?}: {e}", from.name, to.name));
    }
}

fn talks(client: &Container, server: &Container) -> Vec<Talk> {
    let both = |f| [Talk::tcp(client, server, f, 7000), Talk::udp(client, server, f, 7000)];
    let mut talks: Vec<Talk> = Family::BOTH.into_iter().flat_map(both).collect();
    for mark in 0..20 {
        talks.iter_mut().for_each(|t| t.exchange(mark).unwrap_or_else(|e| panic!("{} to {}: {e}", client.name, server.name)));
    }
    talks
}

fn both_ways(attach: &'static str, routing: &'static str) {
    let mut node = node(attach, &["--host-routing", routing]);
    let world = outside::connect(&node, 0, 1500, true).expect("world");
    node.start_agent().expect("agent");
    let server = node.add("server", &["app=server"]).expect("server");
    let client = node.add("client", &["app=client"]).expect("client");
    world_policy(&node);
    let before = forwarded(&node);
    let out = talks(&client, &world);
    let mut come_in = talks(&world, &server);
    ping(&client, &world);
    // What policy does not let in is refused, and told of.
    let mut drops = node.events(&["drop"]).expect("events");
    for family in Family::BOTH {
        let near = world.udp(family, 0).expect("socket");
        near.send_to(b"x", SocketAddr::new(server.ip(family), 7001)).expect("send");
        let seen = drops.wait("drop", |e| e.destination.as_ref().is_some_and(|d| d.endpoint == server.id)).expect("a drop");
        assert_eq!(seen.source.map(|s| s.identity), Some(2), "{family:?}: the world's identity");
    }
    let passed = forwarded(&node) - before;
    match routing {
        // Neighbours of new connections may be resolved by the stack.
        "bpf" => assert!(passed < 20, "{passed} packets went through the node's stack"),
        _ => assert!(passed > 200, "{passed} packets went through the node's stack"),
    }
    // A revoked rule ends what came in, and nothing else.
    node.import(&policy("server", "  endpointSelector: {matchLabels: {app: server}}\n  ingress:\n  - fromEndpoints: []\n"))
        .expect("policy");
    for talk in &mut come_in {
        if let Talk::Udp(near, far) = talk {
            near.send(b"xxxx").expect("send");
            far.set_nonblocking(true).expect("socket");
            assert!(far.recv(&mut [0; 4]).is_err(), "a revoked flow goes on");
        }
    }
    drop(out);
    assert_eq!(node.metric("Missed tail call").expect("metrics"), 0);
}

#[test]
fn world_by_bpf_tc() {
    both_ways("tc", "bpf");
}

#[test]
fn world_by_bpf_tcx() {
    if !pilus_loader::probe::Features::probe().expect("probe").tcx {
        return println!("skipped: this kernel has no tcx");
    }
    both_ways("tcx", "bpf");
}

#[test]
fn world_by_the_stack() {
    both_ways("auto", "stack");
}

/// The route to the world moves to another device: what was open goes on there.
#[test]
fn connections_follow_the_route() {
    let mut node = node("auto", &["--device", "eth0", "--device", "eth1"]);
    let first = outside::connect(&node, 0, 1500, true).expect("first");
    let second = outside::connect(&node, 1, 1500, false).expect("second");
    node.start_agent().expect("agent");
    let client = node.add("client", &["app=client"]).expect("client");
    // A server that both neighbours lead to: an address of its own on each.
    let (v4, v6) = ("198.51.100.9".parse().expect("address"), "2001:db8:ffff::9".parse().expect("address"));
    for world in [&first, &second] {
        world.run(|| {
            crate::support::netlink(async |n| {
                n.add_address(1, std::net::IpAddr::V4(v4), 32).await.expect("address");
                n.add_address(1, std::net::IpAddr::V6(v6), 128).await.expect("address");
            })
        });
    }
    let at = |world: &Container| {
        let mut server = world.clone();
        (server.ipv4, server.ipv6) = (Some(v4), v6);
        server
    };
    let servers = [at(&first), at(&second)];
    for family in Family::BOTH {
        let near = client.udp(family, 0).expect("socket");
        let fars = servers.each_ref().map(|s| s.udp(family, 9).expect("server"));
        near.connect(SocketAddr::new(servers[0].ip(family), 9)).expect("connect");
        for (n, turn) in [0, 1, 0].into_iter().enumerate() {
            outside::route_by(&node, [&first, &second][turn], turn as u8).expect("route");
            fars.iter().for_each(|f| f.set_nonblocking(true).expect("socket"));
            until("the packet takes the new way", || {
                near.send(&[n as u8]).map_err(|e| e.to_string())?;
                let mut seen = [0];
                fars[turn].recv_from(&mut seen).map_err(|e| e.to_string())?;
                if seen[0] == n as u8 { Ok(()) } else { Err("an older one".into()) }
            });
        }
    }
}

/// A device with a smaller MTU than the container's: the sender is told, by whoever routes.
#[test]
fn the_way_out_is_narrower() {
    for routing in ["bpf", "stack"] {
        let mut node = node("auto", &["--host-routing", routing, "--mtu", "1500"]);
        let world = outside::connect(&node, 0, 1400, true).expect("world");
        node.start_agent().expect("agent");
        let client = node.add("client", &["app=client"]).expect("client");
        for family in Family::BOTH {
            let listener = world.listen(family, 80).expect("listen");
            let mut stream = client.connect(SocketAddr::new(world.ip(family), 80)).expect("connect");
            let (mut far, _) = listener.accept().expect("accept");
            far.set_read_timeout(Some(pilus_e2e::container::PATIENCE)).expect("timeout");
            let bytes = vec![5; 400_000];
            std::thread::scope(|scope| {
                scope.spawn(|| std::io::Write::write_all(&mut stream, &bytes).expect("write"));
                let mut seen = vec![0; bytes.len()];
                std::io::Read::read_exact(&mut far, &mut seen).unwrap_or_else(|e| panic!("{routing} {family:?}: {e}"));
                assert!(seen == bytes);
            });
            // Datagrams that may be cut arrive whole.
            let far = world.udp(family, 81).expect("server");
            let near = client.udp(family, 0).expect("client");
            let sent = vec![6; 3000];
            let mut seen = vec![0; 4096];
            far.set_nonblocking(true).expect("socket");
            until("a long datagram", || {
                near.send_to(&sent, SocketAddr::new(world.ip(family), 81)).map_err(|e| e.to_string())?;
                let n = far.recv(&mut seen).map_err(|e| format!("{routing} {family:?}: {e}; {:?}", node.rows("metrics")))?;
                if seen[..n] == sent { Ok(()) } else { Err(format!("{n} bytes")) }
            });
        }
    }
}

/// Rules for prefixes: the longest that a rule names is who somebody outside is; the kernel and the evaluator agree.
#[test]
fn prefixes_decide() {
    let mut node = node("auto", &[]);
    let world = outside::connect(&node, 0, 1500, true).expect("world");
    node.start_agent().expect("agent");
    let server = node.add("server", &["app=server"]).expect("server");
    let rules = |ingress: &str| policy("server", &format!("  endpointSelector: {{matchLabels: {{app: server}}}}\n{ingress}"));
    let asked = |wanted: bool, what: &str| {
        for family in Family::BOTH {
            let far = server.udp(family, 7000).expect("socket");
            let near = world.udp(family, 0).expect("socket");
            let mut drops = node.events(&["drop"]).expect("events");
            near.send_to(b"x", SocketAddr::new(server.ip(family), 7000)).expect("send");
            if wanted {
                far.recv(&mut [0]).unwrap_or_else(|e| panic!("{what} {family:?}: {e}"));
            } else {
                drops.wait("drop", |e| e.destination.as_ref().is_some_and(|d| d.endpoint == server.id)).expect("a drop");
                far.set_nonblocking(true).expect("socket");
                assert!(far.recv(&mut [0]).is_err(), "{what} {family:?}: let in");
            }
            let question = PolicyQuestion { from: world.ip(family).to_string(), to: "name:server".into(), dport: "7000/udp".into() };
            let answer = node.block_on(node.client().explain_policy(&question)).expect("explain");
            assert_eq!((answer.allowed, answer.agrees), (wanted, true), "{what} {family:?}: {answer:?}");
        }
    };
    let both = |v4: &str, v6: &str| format!("[{v4}, \"{v6}\"]");
    node.import(&rules(&format!("  ingress:\n  - fromCIDR: {}\n", both("192.0.2.0/24", "2001:db8::/32")))).expect("policy");
    asked(true, "a prefix");
    node.import(&rules(&format!("  ingress:\n  - fromCIDR: {}\n", both("198.51.100.0/24", "2001:db9::/32")))).expect("policy");
    asked(false, "another prefix");
    let narrow = both(&format!("{}/32", world.ip(Family::V4)), &format!("{}/128", world.ip(Family::V6)));
    node.import(&rules(&format!(
        "  ingress:\n  - fromCIDR: {}\n  ingressDeny:\n  - fromCIDR: {narrow}\n",
        both("192.0.2.0/24", "2001:db8::/32")
    )))
    .expect("policy");
    asked(false, "denied inside of what is allowed");
    node.import(&rules(&format!(
        "  ingress:\n  - fromEntities: [world]\n  ingressDeny:\n  - fromCIDR: {}\n",
        both("198.51.100.0/24", "2001:db9::/32")
    )))
    .expect("policy");
    asked(true, "the world but for others");
}

#[test]
fn an_unknown_device_is_refused() {
    let node = node("auto", &[]);
    let (code, _, errors) = node.agent_once(&["--device", "nosuch0"]).expect("agent");
    assert_eq!(code, 2, "{errors}");
    assert!(errors.contains("device") && errors.contains("nosuch0"), "{errors}");
}

/// tc, which knows more kinds of filters than we do.
#[expect(clippy::disallowed_methods, reason = "others' filters are made by another tool")]
fn tc(node: &Node, args: &[&str]) {
    let status = node.run(|| std::process::Command::new("tc").args(args).status().expect("tc"));
    assert!(status.success(), "tc {args:?}");
}

/// Of the device's qdisc for filters, None if there is none: whether it has any.
fn qdisc(node: &Node) -> Option<bool> {
    node.run(|| {
        crate::support::netlink(async |n| {
            let index = n.link_by_name("eth0").await.expect("list").expect("eth0").index;
            n.clsact_used(index).await.expect("qdisc")
        })
    })
}

/// The qdisc that our filters hang on goes with them, unless somebody else uses it.
#[test]
fn a_qdisc_goes_with_its_last_filter() {
    let mut node = node("tc", &["--device", "eth0"]);
    let _world = outside::connect(&node, 0, 1500, true).expect("world");
    assert_eq!(qdisc(&node), None);
    node.start_agent().expect("agent");
    assert_eq!(qdisc(&node), Some(true));
    tc(&node, &["filter", "add", "dev", "eth0", "egress", "prio", "7", "bpf", "bytecode", "1,6 0 0 4294967295,", "classid", "1:1"]);
    let cleanup = |node: &Node| {
        let (code, out, err) = node.pilus(&["cleanup", "--yes"]).expect("cleanup");
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("removed filter of eth0"), "{out}");
    };
    cleanup(&node);
    assert_eq!(qdisc(&node), Some(true), "another's filter");
    node.kill_agent().expect("kill");
    node.start_agent().expect("agent");
    tc(&node, &["filter", "del", "dev", "eth0", "egress", "prio", "7"]);
    assert_eq!(qdisc(&node), Some(true), "our own");
    cleanup(&node);
    assert_eq!(qdisc(&node), None);
}
