// SPDX-License-Identifier: Apache-2.0
//! A state directory that cannot be written: what cannot be kept is refused, and is not done.

use crate::support::{Talk, policy, ready, settled, talk, until};
use pilus_api::error::ClientError;
use pilus_api::types::{EndpointModel, EndpointRequest, LabelsRequest, PolicyDocument, PolicyImport};
use pilus_e2e::{Container, Family, Node, NodeOptions};
use std::path::PathBuf;

const SIZE: &str = "size=8m";

/// A state directory of its own, and of that size.
fn node_with_disk() -> Node {
    let mut node = Node::prepare(NodeOptions { attach: "tc", ..NodeOptions::default() }).expect("node");
    let state = node.path("state");
    node.run_inside(move || {
        std::fs::create_dir(&state).expect("dir");
        nix::mount::mount(Some("tmpfs"), &state, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(SIZE)).expect("tmpfs");
    })
    .expect("node");
    node.start_agent().expect("agent");
    node
}

fn writable(node: &Node, writable: bool) {
    let state = node.path("state");
    let access = if writable { nix::mount::MsFlags::empty() } else { nix::mount::MsFlags::MS_RDONLY };
    let flags = nix::mount::MsFlags::MS_REMOUNT | access;
    let remounted = node.run_inside(move || nix::mount::mount(None::<&str>, &state, None::<&str>, flags, Some(SIZE)));
    remounted.expect("node").expect("remount");
}

fn fill(node: &Node) -> PathBuf {
    let file = node.path("state/filler");
    let path = file.clone();
    node.run_inside(move || {
        let mut f = std::fs::File::create(path).expect("file");
        while std::io::Write::write_all(&mut f, &[1; 4096]).is_ok() {}
    })
    .expect("fill");
    file
}

fn refused<T: std::fmt::Debug>(what: &str, result: Result<T, ClientError>) {
    match result {
        Err(ClientError::Api { status: 500, error }) if error.message.contains("state directory") => {}
        other => panic!("{what}: {other:?}"),
    }
}

fn labels(add: Vec<String>) -> LabelsRequest {
    LabelsRequest { add, delete: Vec::new() }
}

fn option(key: &str, value: &str) -> std::collections::BTreeMap<String, String> {
    [(key.to_owned(), value.to_owned())].into()
}

/// More than the store has room for inside its file.
fn large() -> Vec<String> {
    (0..4000).map(|n| format!("a-label-that-takes-room-{n:0>200}")).collect()
}

const WEB: &str = "  endpointSelector: {matchLabels: {app: web}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n";

/// What of endpoints may not change; their logs may.
fn shown(node: &Node) -> Vec<EndpointModel> {
    let quiet = |e: EndpointModel| EndpointModel { log: Vec::new(), ..e };
    settled(node).into_iter().map(quiet).collect()
}

#[test]
fn what_cannot_be_kept_is_not_done() {
    let mut node = node_with_disk();
    let web = node.add("web", &["app=web"]).expect("web");
    let client = node.add("client", &["app=client"]).expect("client");
    let stranger = node.add("stranger", &["app=stranger"]).expect("stranger");
    node.import(&policy("web", WEB)).expect("policy");
    let mut talks: Vec<Talk> =
        Family::BOTH.into_iter().flat_map(|f| [Talk::tcp(&client, &web, f, 5000), Talk::udp(&client, &web, f, 5000)]).collect();
    let (before, rules) = (shown(&node), node.block_on(node.client().policy(&[])).expect("policy").rules);
    let mut unchanged = |what: &str| {
        // The agent saw that what is on disk is what it has: the next request finds out for itself.
        ready(&node);
        assert_eq!(shown(&node), before, "{what}");
        assert_eq!(node.block_on(node.client().policy(&[])).expect("policy").rules, rules, "{what}");
        talks.iter_mut().for_each(|t| t.exchange(1).unwrap_or_else(|e| panic!("{what}: {e}")));
        let mut drops = node.events(&["drop"]).expect("events");
        let _denied = stranger.connect_start(std::net::SocketAddr::new(web.ip(Family::V6), 5000)).expect("connect");
        drops.wait_drop(&stranger, &web).expect("the stranger is let in");
    };
    unchanged("before");
    let api = node.client();
    let filler = fill(&node);
    refused("labels on a full disk", node.block_on(api.change_labels("name:client", &labels(large()))));
    unchanged("labels on a full disk");
    // The agent let go of its file: only now can the disk become read-only, as one does that is broken.
    writable(&node, false);
    let late = Container::new("late").expect("container");
    let import = PolicyImport {
        documents: vec![PolicyDocument { name: "all.yaml".into(), text: policy("all", "  endpointSelector: {}\n  ingress: [{}]\n") }],
    };
    let request = EndpointRequest { name: "late".into(), netns: late.path(), ..EndpointRequest::default() };
    refused("labels", node.block_on(api.change_labels("name:client", &labels(vec!["app=stranger".into()]))));
    unchanged("labels");
    refused("an option", node.block_on(api.set_endpoint_config("name:web", &option("PolicyAudit", "true"))));
    unchanged("an option");
    refused("another build", node.block_on(api.set_endpoint_config("name:client", &option("Build", "own"))));
    unchanged("another build");
    refused("delete", node.block_on(api.delete_endpoint("name:client", false)));
    unchanged("delete");
    refused("add", node.block_on(api.put_endpoint(&request, true)));
    unchanged("add");
    refused("import", node.block_on(api.import_policy(&import)));
    unchanged("import");
    writable(&node, true);
    node.run_inside(move || std::fs::remove_file(filler)).expect("node").expect("remove");
    until("there is room again", || {
        node.block_on(api.change_labels("name:client", &labels(vec!["rev=2".into()]))).map_err(|e| e.to_string())
    });
    node.block_on(api.set_endpoint_config("name:web", &option("Trace", "flow"))).expect("option");
    assert!(node.delete("stranger").expect("delete"));
    talk(&client, &web, 6000);
    let changed = shown(&node);
    node.kill_agent().expect("kill");
    node.start_agent().expect("start");
    let kept = |all: Vec<EndpointModel>| all.into_iter().map(|e| (e.id, e.labels, e.options, e.ipv6)).collect::<Vec<_>>();
    assert_eq!(kept(shown(&node)), kept(changed));
}

/// An agent that can keep nothing does not start, and says what to mend.
#[test]
fn a_read_only_state_directory_ends_the_start() {
    let node = Node::prepare(NodeOptions::default()).expect("node");
    let state = node.path("state");
    let mountpoint = state.clone();
    node.run_inside(move || {
        std::fs::create_dir(&mountpoint).expect("dir");
        nix::mount::mount(Some("tmpfs"), &mountpoint, Some("tmpfs"), nix::mount::MsFlags::MS_RDONLY, None::<&str>).expect("tmpfs");
    })
    .expect("node");
    let below = state.join("below");
    for args in [&[][..], &["--state-dir", below.to_str().expect("path")]] {
        let (code, out, err) = node.agent_once(args).expect("agent");
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{args:?}: {err}");
        assert!(err.contains(state.to_str().expect("path")) && err.contains("Read-only file system"), "{args:?}: {err}");
        assert_eq!(node.links().expect("links"), Vec::<String>::new(), "{args:?}");
    }
    writable(&node, true);
    let mut node = node;
    node.start_agent().expect("agent");
    settled(&node);
}
