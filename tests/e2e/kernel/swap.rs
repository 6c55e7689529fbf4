// SPDX-License-Identifier: Apache-2.0
//! Programs are swapped under traffic and nothing is lost.

use pilus_e2e::traffic::{ClosedLoop, Result as Traffic};
use pilus_e2e::{Family, Node, NodeOptions};
use std::sync::atomic::{AtomicBool, Ordering};

/// Swaps between two trees for as long as the traffic runs; counts the swaps.
fn swap_while(node: &Node, running: &AtomicBool, at_least: usize) -> usize {
    let config = node.path("state/templates/container_config.h.tera");
    let original = std::fs::read_to_string(&config).expect("template");
    let hooked = node.path("state/templates/custom/container.c");
    let hook = "/* SPDX-License-Identifier: GPL-2.0 */\n\
                static __always_inline int custom_from_container(struct __sk_buff *ctx) { return 0; }\n\
                static __always_inline int custom_to_container(struct __sk_buff *ctx) { return 0; }\n";
    let mut swaps = 0;
    while running.load(Ordering::Relaxed) || swaps < at_least {
        if usize::is_multiple_of(swaps, 2) {
            std::fs::write(&hooked, hook).expect("hook");
        } else {
            std::fs::remove_file(&hooked).expect("hook");
        }
        let applied = node.block_on(node.client().apply_template()).expect("apply");
        assert!(applied.ok, "{applied:?}");
        assert_eq!(applied.swapped, 2, "{applied:?}");
        swaps += 1;
    }
    assert_eq!(std::fs::read_to_string(&config).expect("template"), original);
    swaps
}

fn swaps_lose_nothing(attach: &'static str) {
    let node = Node::start(NodeOptions { attach, ..NodeOptions::default() }).expect("node");
    let server = node.add("server", &["app=server"]).expect("server");
    let client = node.add("client", &["app=client"]).expect("client");
    for family in Family::BOTH {
        let traffic = ClosedLoop::start(&client, &server, family, 200_000).expect("traffic");
        let swaps = swap_while(&node, traffic.running(), 20);
        let Traffic { sent, received, .. } = traffic.join();
        println!("{attach} {family:?}: {swaps} swaps, {sent} sent, {received} received");
        assert_eq!(sent, received, "{swaps} swaps");
    }
    assert_eq!(node.metric("Missed tail call").expect("metrics"), 0);
}

#[test]
fn swaps_lose_nothing_tc() {
    swaps_lose_nothing("tc");
}

#[test]
fn swaps_lose_nothing_tcx() {
    if !pilus_loader::probe::Features::probe().expect("probe").tcx {
        return println!("skipped: this kernel has no tcx");
    }
    swaps_lose_nothing("tcx");
}

/// The measurement can fail: without a program, packets are lost.
#[test]
fn a_detached_program_is_seen_to_lose() {
    let node = Node::start(NodeOptions { attach: "tc", ..NodeOptions::default() }).expect("node");
    let server = node.add("server", &["app=server"]).expect("server");
    let client = node.add("client", &["app=client"]).expect("client");
    let traffic = ClosedLoop::start(&client, &server, Family::V6, 20_000).expect("traffic");
    let ifindex = node.block_on(node.client().endpoint("name:client")).expect("client").interface.index;
    node.run(|| pilus_loader::hook::detach_tc(ifindex, pilus_loader::hook::Dir::Ingress, true)).expect("detach");
    traffic.wait_lost();
    node.block_on(node.client().regenerate("name:client")).expect("regenerate attaches again");
    let result = traffic.join();
    println!("{result:?}");
    assert!(result.received < result.sent, "{result:?}");
}

/// The agent is killed and started again under traffic.
#[test]
fn a_restart_loses_nothing() {
    let mut node = Node::start(NodeOptions::default()).expect("node");
    let server = node.add("server", &["app=server"]).expect("server");
    let client = node.add("client", &["app=client"]).expect("client");
    let traffic = ClosedLoop::start(&client, &server, Family::V6, 300_000).expect("traffic");
    let result = traffic.join_under_restarts(&mut node, 3);
    assert_eq!(result.sent, result.received);
    let status = node.block_on(node.client().status()).expect("status");
    assert_eq!(status.objects.builds, 0, "nothing is compiled");
}
