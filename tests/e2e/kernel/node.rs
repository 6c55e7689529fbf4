// SPDX-License-Identifier: Apache-2.0
//! The node as its administrator sees it: start, stop, clean-up, clients, a host without a compiler.

use pilus_e2e::icmp::{self, Raw};
use pilus_e2e::traffic::ClosedLoop;
use pilus_e2e::{Container, Family, Node, NodeOptions};

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
    node.add("web", &["app=web"]).expect("web");
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
