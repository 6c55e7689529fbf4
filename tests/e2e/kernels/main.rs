// SPDX-License-Identifier: Apache-2.0
//! What every kernel that we promise to serve must do: load every object of every shape, carry traffic, deny it, and swap
//! programs under it. Small, because it also runs in emulated machines.

mod netkit;

use pilus_api::types::Build;
use pilus_e2e::icmp::{self, Raw};
use pilus_e2e::traffic::{ClosedLoop, kernel_drops};
use pilus_e2e::{Container, Family, Node, NodeOptions};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

fn ping(from: &Container, to: &Container, family: Family) {
    let raw = Raw::new(from, family).expect("raw socket");
    raw.echo(to.ip(family), 7, 7).expect("send");
    raw.receive(|m| m.kind == icmp::echo_types(family).1).expect("answer");
}

/// One at a time: an emulated machine has little to share, and each test compiles.
static ONE: Mutex<()> = Mutex::new(());

const DENY: &str = "- endpointSelector: {matchLabels: {app: web}}\n  ingress: [{}]\n";

fn ping_deny_swap(options: NodeOptions, ipv4: bool) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let args = vec!["--enable-ipv4".to_owned(), ipv4.to_string()];
    let (devices, attach) = (options.devices, options.attach);
    let node = Node::start(NodeOptions { args, ..options }).expect("node");
    // Both builds in one node: a shared sender delivers to an own receiver and the reverse.
    let web = node.add_built("web", &["app=web"], Some(Build::Own)).expect("web");
    let client = node.add("client", &["app=client"]).expect("client");
    let families: &[Family] = if ipv4 { &Family::BOTH } else { &[Family::V6] };
    for family in families {
        ping(&client, &web, *family);
        ping(&web, &client, *family);
    }
    node.import(DENY).expect("import");
    let mut drops = node.events(&["drop"]).expect("events");
    for family in families {
        Raw::new(&client, *family).expect("raw socket").echo(web.ip(*family), 8, 8).expect("send");
        drops.wait_drop(&client, &web).expect("a drop");
    }
    node.forget_policy().expect("policy");
    for family in families {
        let traffic = ClosedLoop::start(&client, &web, *family, 3000).expect("traffic");
        let hook = node.path("state/templates/custom/container.c");
        let mut swaps = 0;
        while swaps < 2 || traffic.running().load(Ordering::Relaxed) {
            if u32::is_multiple_of(swaps, 2) {
                std::fs::write(&hook, include_str!("../../../examples/templates/pass.c")).expect("hook");
            } else {
                std::fs::remove_file(&hook).expect("hook");
            }
            let applied = node.block_on(node.client().apply_template()).expect("apply");
            assert!(applied.ok && applied.swapped == 2, "{applied:?}");
            swaps += 1;
        }
        let _ = std::fs::remove_file(&hook);
        let result = traffic.join();
        println!("{devices} {attach} {family:?}: {swaps} swaps, {result:?}");
        let dropped = kernel_drops(&node).expect("counters");
        assert_eq!(result.sent, result.received, "dropped by devices and queues: {dropped:?}");
    }
    assert_eq!(node.metric("Missed tail call").expect("metrics"), 0);
}

fn by(attach: &'static str) -> NodeOptions {
    NodeOptions { attach, ..NodeOptions::default() }
}

#[test]
fn ping_deny_swap_tc() {
    ping_deny_swap(by("tc"), true);
}

#[test]
fn ping_deny_swap_tc_without_ipv4() {
    ping_deny_swap(by("tc"), false);
}

#[test]
fn ping_deny_swap_tcx() {
    if !pilus_loader::probe::Features::probe().expect("probe").tcx {
        return println!("skipped: this kernel has no tcx");
    }
    ping_deny_swap(by("tcx"), true);
}
