// SPDX-License-Identifier: Apache-2.0
//! What every kernel that we promise to serve must do: load every object of every shape, carry traffic, deny it, and swap
//! programs under it. Small, because it also runs in emulated machines.

mod hooked;
mod netkit;

use pilus_api::types::Build;
use pilus_e2e::icmp::{self, Raw};
use pilus_e2e::traffic::{ClosedLoop, kernel_drops};
use pilus_e2e::{Container, Family, Node, NodeOptions, until};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

fn ping(from: &Container, to: &Container, family: Family) {
    let raw = Raw::new(from, family).expect("raw socket");
    raw.echo(to.ip(family), 7, 7).expect("send");
    raw.receive(|m| m.kind == icmp::echo_types(family).1).expect("answer");
}

/// One at a time: an emulated machine has little to share, and each test compiles.
static ONE: Mutex<()> = Mutex::new(());

/// Emulated machines share few processors: beside one with a newer kernel, an older one runs what each kernel must show.
fn left_to_newer() -> bool {
    let Some(newer) = std::env::var("PILUS_TEST_NEWER").ok().filter(|_| std::env::var_os("PILUS_TEST_LONG").is_none_or(|v| v != "1"))
    else {
        return false;
    };
    println!("skipped: left to Linux {newer}, which runs beside this one (PILUS_TEST_LONG=1 runs it here too)");
    true
}

const DENY: &str = "- endpointSelector: {matchLabels: {app: web}}\n  ingress: [{}]\n";

/// What a node's agents are asked for.
struct Setting {
    options: NodeOptions,
    ipv4: bool,
    /// The same again after a restart with this attach mode.
    then: Option<&'static str>,
}

fn ping_deny_swap(setting: Setting) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Setting { options, ipv4, then } = setting;
    let args = vec!["--enable-ipv4".to_owned(), ipv4.to_string()];
    let (devices, attach) = (options.devices, options.attach);
    let mut node = Node::start(NodeOptions { args: args.clone(), ..options }).expect("node");
    // Both builds in one node: a shared sender delivers to an own receiver and the reverse.
    let web = node.add_built("web", &["app=web"], Some(Build::Own)).expect("web");
    let client = node.add("client", &["app=client"]).expect("client");
    let families: &[Family] = if ipv4 { &Family::BOTH } else { &[Family::V6] };
    hooked::give(&node, hooked::shape(ipv4, devices == "netkit"));
    let builds = exercise(&node, [&client, &web], families);
    assert_eq!(builds, 2, "only web's own, without the hook and with it");
    println!("{devices} {attach}");
    let Some(then) = then else { return };
    assert_eq!(node.stop_agent().expect("stop"), 0);
    node.set_args([args, vec!["--attach-mode".to_owned(), then.to_owned()]].concat());
    node.start_agent().expect("start");
    until("programs move", || {
        let endpoints = node.block_on(node.client().endpoints()).map_err(|e| e.to_string())?;
        endpoints.iter().all(|e| e.datapath.attach == then).then_some(()).ok_or_else(|| format!("{endpoints:?}"))
    });
    // Containers and their programs are those of before: another compiler's run would say nothing more.
    assert_eq!(exercise(&node, [&client, &web], families), 0, "compiled again");
}

/// Ping, deny and swap; how often the agent compiled.
fn exercise(node: &Node, [client, web]: [&Container; 2], families: &[Family]) -> u64 {
    for family in families {
        ping(client, web, *family);
        ping(web, client, *family);
    }
    node.import(DENY).expect("import");
    let mut drops = node.events(&["drop"]).expect("events");
    for family in families {
        Raw::new(client, *family).expect("raw socket").echo(web.ip(*family), 8, 8).expect("send");
        drops.wait_drop(client, web).expect("a drop");
    }
    node.forget_policy().expect("policy");
    // Under traffic of all families: the front end's look at a new tree takes longest in an emulated machine.
    let start = |family: &Family| ClosedLoop::start(client, web, *family, 3000).expect("traffic");
    let traffic: Vec<_> = families.iter().map(|f| (f, start(f))).collect();
    let hook = node.path("state/templates").join(hooked::HOOK_FILE);
    let mut swaps = 0;
    while swaps < 2 || traffic.iter().any(|(_, t)| t.running().load(Ordering::Relaxed)) {
        if u32::is_multiple_of(swaps, 2) {
            std::fs::write(&hook, hooked::HOOK).expect("hook");
        } else {
            std::fs::remove_file(&hook).expect("hook");
        }
        let applied = node.block_on(node.client().apply_template()).expect("apply");
        assert!(applied.ok && applied.swapped == 2, "{applied:?}");
        swaps += 1;
    }
    let _ = std::fs::remove_file(&hook);
    for (family, traffic) in traffic {
        let result = traffic.join();
        println!("{family:?}: {swaps} swaps, {result:?}");
        let dropped = kernel_drops(node).expect("counters");
        assert_eq!(result.sent, result.received, "dropped by devices and queues: {dropped:?}");
    }
    assert_eq!(node.metric("Missed tail call").expect("metrics"), 0);
    node.block_on(node.client().status()).expect("status").objects.builds
}

fn by(attach: &'static str) -> NodeOptions {
    NodeOptions { attach, ..NodeOptions::default() }
}

#[test]
fn ping_deny_swap_tc_then_tcx() {
    let tcx = pilus_loader::probe::Features::probe().expect("probe").tcx;
    ping_deny_swap(Setting { options: by("tc"), ipv4: true, then: tcx.then_some("tcx") });
    if !tcx {
        println!("skipped: this kernel has no tcx, only tc was tested");
    }
}

#[test]
fn ping_deny_swap_tc_without_ipv4() {
    ping_deny_swap(Setting { options: by("tc"), ipv4: false, then: None });
}
