// SPDX-License-Identifier: Apache-2.0
//! The node as its administrator sees it: start, stop, clean-up, clients, a host without a compiler.

use crate::support::netlink;
use etherparse::PacketBuilder;
use pilus_api::types::FlowEvent;
use pilus_e2e::icmp::{self, Raw};
use pilus_e2e::traffic::ClosedLoop;
use pilus_e2e::{Container, Family, Node, NodeOptions};
use std::io::Read;

fn ping(from: &Container, to: &Container, family: Family) {
    let raw = Raw::new(from, family).expect("raw socket");
    raw.echo(to.ip(family), 7, 7).expect("send");
    raw.receive(|m| m.kind == icmp::echo_types(family).1 && m.body.starts_with(&7u16.to_be_bytes())).expect("answer");
}

fn with_args(args: &[&str]) -> NodeOptions {
    NodeOptions { args: args.iter().map(|a| (*a).to_owned()).collect(), ..NodeOptions::default() }
}

#[test]
fn stopping_leaves_the_datapath_and_cleanup_takes_everything() {
    let mut node = Node::start(NodeOptions::default()).expect("node");
    let a = node.add("a", &["app=a"]).expect("a");
    let b = node.add("b", &["app=b"]).expect("b");
    assert_eq!(node.stop_agent().expect("stop"), 0);
    assert!(!node.socket().exists(), "the socket of a stopped agent is left");
    for family in Family::BOTH {
        ping(&a, &b, family);
    }
    let (code, out, err) = node.agent_once(&["--cleanup"]).expect("cleanup");
    assert_eq!(code, 0, "{out}{err}");
    for what in ["removed link plx", "removed link pilus_", "maps/flow6", "removed directory"] {
        assert!(out.contains(what), "{what} is not told: {out}");
    }
    assert_eq!(node.links().expect("links"), Vec::<String>::new());
    assert_eq!(node.pins().expect("pins"), Vec::<String>::new());
    assert_eq!(node.routes().expect("routes"), Vec::<String>::new());
    assert!(!node.path("state").exists() && !node.path("run").exists());
    let (code, out, _) = node.agent_once(&["--cleanup"]).expect("cleanup");
    assert_eq!((code, out.trim()), (0, "nothing to remove"));
}

#[test]
fn the_default_shapes_need_no_compiler() {
    let mut node = Node::prepare(NodeOptions::default()).expect("node");
    node.without_compiler();
    node.start_agent().expect("agent");
    let a = node.add("a", &[]).expect("a");
    let b = node.add("b", &[]).expect("b");
    for family in Family::BOTH {
        ping(&a, &b, family);
    }
    let status = node.block_on(node.client().status()).expect("status");
    assert!(status.clang.contains("not installed"), "{}", status.clang);
    assert_eq!((status.objects.builds, status.state.as_str()), (0, "ok"));
    std::fs::write(node.path("state/templates/custom/container.c"), include_str!("../../../examples/templates/pass.c")).expect("hook");
    let applied = node.block_on(node.client().apply_template()).expect("answer");
    assert!(!applied.ok);
    assert!(applied.diagnostics.iter().any(|d| d.contains("install clang")), "{:?}", applied.diagnostics);
    ping(&a, &b, Family::V6);
}

/// The client's way to the same end, with containers connected and traffic about.
#[test]
fn the_client_cleans_up_a_running_node() {
    let mut node = Node::start(NodeOptions::default()).expect("node");
    let a = node.add("a", &["app=a"]).expect("a");
    let b = node.add("b", &["app=b"]).expect("b");
    node.import("- endpointSelector: {matchLabels: {app: b}}\n  ingress: [{}]\n").expect("policy");
    let (code, _, err) = node.pilus(&["cleanup"]).expect("pilus");
    assert!(code != 0 && err.contains("--yes"), "{code} {err}");
    let ids: Vec<u16> = node.block_on(node.client().endpoints()).expect("endpoints").iter().map(|e| e.id).collect();
    assert_eq!(ids, [a.id, b.id], "a cleanup that was not confirmed removes");
    let (code, out, err) = node.pilus(&["cleanup", "--yes"]).expect("pilus");
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for what in ["disconnected endpoint 256", "disconnected endpoint 257", "removed link pilus_", "maps/flow6", "removed directory"] {
        assert!(out.contains(what), "{what} is not told: {out}");
    }
    assert_eq!(node.wait_agent().expect("agent"), 0, "the agent has nothing left to run");
    assert_eq!(node.links().expect("links"), Vec::<String>::new());
    assert_eq!(node.pins().expect("pins"), Vec::<String>::new());
    assert_eq!(node.routes().expect("routes"), Vec::<String>::new());
    assert!(!node.path("state").exists() && !node.path("run").exists());
    for container in [&a, &b] {
        let inside = container.run(|| netlink(async |n| n.links().await)).expect("links");
        assert!(inside.iter().all(|l| l.name == "lo"), "{}: {inside:?}", container.name);
    }
    node.start_agent().expect("a new start");
    let again = node.add("a", &[]).expect("a");
    assert_eq!(again.id, a.id);
}

/// A node's settings are its administrator's.
#[test]
fn no_setting_of_the_network_is_changed() {
    let mut node = Node::prepare(NodeOptions::default()).expect("node");
    let before = node.all_sysctls();
    assert!(before.len() > 100, "{}", before.len());
    node.start_agent().expect("agent");
    let a = node.add("a", &[]).expect("a");
    let b = node.add("b", &[]).expect("b");
    for family in Family::BOTH {
        ping(&a, &b, family);
    }
    // Devices have settings of their own; of what was there before nothing is other.
    let mut meanwhile = node.all_sysctls();
    meanwhile.retain(|name, _| before.contains_key(name));
    assert_eq!(meanwhile, before);
    assert_eq!(node.stop_agent().expect("stop"), 0);
    assert_eq!(node.agent_once(&["--cleanup"]).expect("cleanup").0, 0);
    assert_eq!(node.all_sysctls(), before);
}

#[test]
fn an_agent_keeps_others_out() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let (code, _, err) = node.agent_once(&[]).expect("second agent");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("state directory") && err.contains("in use by another pilus-agent"), "{err}");
    let other = node.path("other");
    let (code, _, err) = node.agent_once(&["--state-dir", other.to_str().expect("path")]).expect("second agent");
    assert_eq!(code, 1);
    assert!(err.contains("bpffs directory"), "{err}");
    // With every directory its own it would still be in the other one's network.
    let (run, bpf) = (node.path("other-run"), node.path("other-bpf"));
    let mountpoint = bpf.clone();
    node.run_inside(move || {
        std::fs::create_dir(&mountpoint).expect("dir");
        pilus_loader::bpffs::mount(&mountpoint).expect("bpffs");
    })
    .expect("node");
    let links = node.links().expect("links");
    let path = |p: &std::path::Path| p.to_str().expect("path").to_owned();
    let (other, run, bpf) = (path(&other), path(&run), path(&bpf));
    let (code, _, err) = node.agent_once(&["--state-dir", &other, "--run-dir", &run, "--bpf-root", &bpf]).expect("second agent");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("network namespace is in use by another pilus-agent"), "{err}");
    assert_eq!(node.links().expect("links"), links);
    let _late = node.add("late", &[]).expect("the first agent goes on");
}

#[test]
fn bad_options_end_with_2_and_name_the_key() {
    let node = Node::prepare(NodeOptions::default()).expect("node");
    let yaml = node.path("agent.yaml");
    let config = yaml.to_str().expect("path").to_owned();
    let no_bpffs = node.path("plain");
    std::fs::create_dir(&no_bpffs).expect("dir");
    let rows: &[(&str, &[&str], &str)] = &[
        ("", &["--attach-mode", "fast"], "attach-mode"),
        ("", &["--datapath-mode", "macvlan"], "datapath-mode"),
        ("", &["--ipv6-range", "fd00::1/64"], "ipv6-range"),
        ("", &["--ipv4-range", "10.0.0.0/31"], "ipv4-range"),
        ("", &["--mtu", "100"], "mtu"),
        ("", &["--no-such-thing"], "--no-such-thing"),
        ("", &["--tunnel", "vxlan"], "tunnel"),
        ("", &["--bpf-root", no_bpffs.to_str().expect("path")], "bpf-root"),
        ("no-such-key: 1\n", &["--config", &config], "no-such-key"),
        ("enable-ipv4: perhaps\n", &["--config", &config], "enable-ipv4"),
        ("attach-mode: [\n", &["--config", &config], "agent.yaml"),
    ];
    for (text, args, expected) in rows {
        std::fs::write(&yaml, text).expect("yaml");
        let (code, _, err) = node.agent_once(args).expect("agent");
        assert_eq!(code, 2, "{args:?} {text}: {err}");
        assert!(err.contains(expected), "{args:?} {text}: {err}");
    }
}

#[test]
fn without_ipv4_there_is_none() {
    let node = Node::start(with_args(&["--enable-ipv4", "false"])).expect("node");
    let a = node.add("a", &[]).expect("a");
    let b = node.add("b", &[]).expect("b");
    assert_eq!((a.ipv4, b.ipv4), (None, None));
    ping(&a, &b, Family::V6);
    assert!(node.rows("ipcache").expect("ipcache").iter().all(|r| r[0].contains(':')), "an IPv4 address is announced");
    // A container that speaks it all the same is not heard: neither ARP nor IPv4.
    let (here, there, gateway) = ([10, 9, 0, 2], [10, 9, 0, 3], [169, 254, 1, 1]);
    let arp = |target: [u8; 4]| [&[0xff; 6][..], &a.mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &a.mac, &here, &[0; 6], &target].concat();
    let mut ip = Vec::new();
    let packet = PacketBuilder::ethernet2(a.mac, a.host_mac).ipv4(here, there, 64).udp(1000, 2000);
    packet.write(&mut ip, b"hello").expect("packet");
    let (socket, far) = (a.packet_socket().expect("socket"), b.packet_socket().expect("socket"));
    let mut drops = node.events(&["drop"]).expect("events");
    for frame in [arp(gateway), arp(there), ip] {
        socket.send(&frame).expect("send");
        let ours = |e: &FlowEvent| e.reason == "Unsupported L3 protocol" && e.source.as_ref().is_some_and(|p| p.endpoint == a.id);
        drops.wait("a drop", ours).expect("drop");
    }
    for socket in [socket, far] {
        socket.set_nonblocking(true).expect("socket");
        let mut buffer = [0; 2048];
        while let Ok(n) = (&socket).read(&mut buffer) {
            let from_a = buffer[6..12] == a.mac;
            assert!(from_a || !matches!(buffer[12..14], [8, 0 | 6]), "IPv4 or ARP came: {:?}", &buffer[..n]);
        }
    }
}

#[test]
fn promotion_to_tcx_loses_nothing() {
    if !pilus_loader::probe::Features::probe().expect("probe").tcx {
        return println!("skipped: this kernel has no tcx");
    }
    let node = Node::start(NodeOptions::default()).expect("node");
    let a = node.add("a", &[]).expect("a");
    let b = node.add("b", &[]).expect("b");
    let attach = || {
        let all = node.block_on(node.client().endpoints()).expect("endpoints");
        all.into_iter().map(|e| e.datapath.attach).collect::<Vec<_>>()
    };
    assert_eq!(attach(), ["tc", "tc"], "not attached by clsact first");
    let traffic = ClosedLoop::start(&a, &b, Family::V6, 400_000).expect("traffic");
    while attach() != ["tcx", "tcx"] {
        std::thread::yield_now();
    }
    let result = traffic.join();
    assert_eq!(result.sent, result.received);
}

#[test]
fn two_nodes_do_not_see_each_other() {
    let one = Node::start(NodeOptions::default()).expect("node");
    let two = Node::start(NodeOptions::default()).expect("node");
    let a = one.add("same", &["app=a"]).expect("a");
    let b = two.add("same", &["app=b"]).expect("b");
    assert_eq!(a.id, b.id);
    assert_ne!(a.ipv6, b.ipv6);
    let other = one.add("other", &[]).expect("other");
    ping(&a, &other, Family::V6);
    drop(two);
    ping(&a, &other, Family::V4);
}

#[test]
fn the_client_program_shows_a_real_agent() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let _web = node.add("web", &["app=web"]).expect("web");
    node.import(include_str!("../../../examples/policies/web-from-client.yaml")).expect("import");
    let commands: &[&[&str]] = &[
        &["status"],
        &["version"],
        &["endpoint", "list"],
        &["endpoint", "get", "web"],
        &["endpoint", "log", "web"],
        &["endpoint", "health", "web"],
        &["endpoint", "labels", "web"],
        &["endpoint", "config", "web"],
        &["identity", "list"],
        &["identity", "get", "1"],
        &["policy", "get"],
        &["policy", "wait", "1"],
        &["bpf", "ct", "list"],
        &["bpf", "policy", "list"],
        &["bpf", "ipcache", "list"],
        &["bpf", "endpoint", "list"],
        &["bpf", "metrics", "list"],
        &["config"],
        &["template", "status"],
        &["template", "check"],
    ];
    for args in commands {
        let (code, out, err) = node.pilus(args).expect("pilus");
        assert!(code == 0 && !out.is_empty(), "{args:?}: {code} {out}{err}");
        let json: Vec<&str> = ["-o", "json"].iter().chain(args.iter()).copied().collect();
        let (code, out, err) = node.pilus(&json).expect("pilus");
        assert_eq!(code, 0, "{args:?}: {err}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"));
    }
    let (code, _, err) = node.pilus(&["endpoint", "get", "nobody"]).expect("pilus");
    assert_eq!(code, 1);
    assert!(err.contains("nobody"), "{err}");
    let (code, _, _) = node.pilus(&["endpoint", "delete", "nobody"]).expect("pilus");
    assert_eq!(code, 0, "deleting what is not there succeeds");
    let served = node.block_on(node.client().openapi()).expect("openapi");
    assert_eq!(served, pilus_api::openapi::document());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(node.socket()).expect("socket").permissions());
    assert_eq!(mode & 0o777, 0o660);
}
