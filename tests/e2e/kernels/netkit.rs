// SPDX-License-Identifier: Apache-2.0
//! Containers with netkit devices, where the kernel has them; and what is said where it has not.

use crate::{ONE, Setting, hooked, left_to_newer, ping, ping_deny_swap};
use pilus_e2e::traffic::ClosedLoop;
use pilus_e2e::verdicts::table;
use pilus_e2e::{Container, Family, Node, NodeOptions, outside};
use pilus_loader::probe::Features;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::PoisonError;

fn options(build: &'static str) -> NodeOptions {
    NodeOptions { devices: "netkit", build, ..NodeOptions::default() }
}

fn has_netkit() -> bool {
    let has = Features::probe().expect("probe").netkit;
    if !has {
        println!("skipped: this kernel has no netkit");
    }
    has
}

#[test]
fn netkit_is_refused_where_the_kernel_has_none() {
    let kernel = Features::probe().expect("probe");
    if kernel.netkit {
        return println!("skipped: this kernel has netkit");
    }
    let node = Node::prepare(options("shared")).expect("node");
    let (code, out, errors) = node.agent_once(&[]).expect("agent");
    let (major, minor) = kernel.kernel;
    let said = format!(
        "pilus-agent: option `datapath-mode`: kernel {major}.{minor} has no netkit (6.7 and later have, if built with CONFIG_NETKIT); \
         use veth, or such a kernel\n"
    );
    assert_eq!((code, out.as_str(), errors), (2, "", said));
    assert!(node.links().expect("links").is_empty());
}

#[test]
fn ping_deny_swap_netkit() {
    if has_netkit() {
        ping_deny_swap(Setting { options: options("shared"), ipv4: true, then: None });
    }
}

#[test]
fn verdicts_shared_netkit() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if has_netkit() && !left_to_newer() {
        table(options("shared"));
    }
}

#[test]
fn verdicts_own_netkit() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if has_netkit() && !left_to_newer() {
        table(options("own"));
    }
}

/// A connection from the node itself.
fn from_host(node: &Node, to: &Container, family: Family) {
    let listener = to.listen(family, 8080).expect("listen");
    let at = SocketAddr::new(to.ip(family), 8080);
    let mut near = node.run(|| std::net::TcpStream::connect_timeout(&at, pilus_e2e::container::PATIENCE)).expect("connect");
    let (mut far, _) = listener.accept().expect("accept");
    let mut buffer = [0; 4];
    near.write_all(b"ping").expect("write");
    far.read_exact(&mut buffer).expect("read");
    far.write_all(b"pong").expect("write");
    near.read_exact(&mut buffer).expect("read");
    assert_eq!(&buffer, b"pong");
}

/// Every one reaches every other one, the node each of them, and each what is outside.
fn all_talk(node: &Node, containers: &[&Container], world: &Container) {
    for family in Family::BOTH {
        for from in containers {
            for to in containers.iter().filter(|to| to.id != from.id) {
                ping(from, to, family);
            }
            from_host(node, from, family);
            let listener = world.listen(family, 8080).expect("listen");
            let mut near = from.connect(SocketAddr::new(world.ip(family), 8080)).expect("connect");
            let (mut far, _) = listener.accept().expect("accept");
            near.write_all(b"x").expect("write");
            far.read_exact(&mut [0]).expect("read");
            far.write_all(b"y").expect("write");
            near.read_exact(&mut [0]).expect("read");
        }
    }
}

fn device(container: &Container) -> String {
    format!("plx{:08x}", container.id)
}

/// How a container's program is attached, and the link and the program themselves; none of a filter.
fn attached(node: &Node, container: &Container) -> (String, Option<(u32, u32)>) {
    let model = node.block_on(node.client().endpoint(&container.id.to_string())).expect("endpoint");
    let pin = node.path("bpf/pilus/v1/links").join(device(container));
    let link = node.run_inside(move || pilus_loader::hook::link_info(&pin)).expect("node").expect("link");
    (model.datapath.attach, link.map(|l| (l.link_id, l.prog_id)))
}

/// The agent is killed under traffic; then the option changes, twice, while containers are there; then all of it goes.
#[test]
fn netkit_survives_restarts_and_another_mode() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_netkit() || left_to_newer() {
        return;
    }
    let mut node = Node::start(NodeOptions { attach: "tc", ..options("shared") }).expect("node");
    let world = outside::connect(&node, 1, 1500, true).expect("world");
    let a = node.add("a", &["app=a"]).expect("a");
    let b = node.add_built("b", &["app=b"], Some(pilus_api::types::Build::Own)).expect("b");
    all_talk(&node, &[&a, &b], &world);
    let before = [&a, &b].map(|c| attached(&node, c));
    assert!(before.iter().all(|(how, link)| how == "netkit" && link.is_some()), "{before:?}");
    let traffic = ClosedLoop::start(&a, &b, Family::V6, 1000).expect("traffic");
    let result = traffic.join_under_restarts(&mut node, 2);
    assert_eq!(result.sent, result.received);
    assert_eq!([&a, &b].map(|c| attached(&node, c)), before, "what was attached is left alone");

    // What is there stays what it is, beside devices of the other kind.
    assert_eq!(node.stop_agent().expect("stop"), 0);
    node.set_args(vec!["--datapath-mode".into(), "veth".into()]);
    node.start_agent().expect("start");
    let c = node.add("c", &["app=c"]).expect("c");
    assert_eq!([&a, &b, &c].map(|c| attached(&node, c).0), ["netkit", "netkit", "tc"]);
    all_talk(&node, &[&a, &b, &c], &world);
    hooked::give(&node, hooked::shape(true, true));
    std::fs::write(node.path("state/templates").join(hooked::HOOK_FILE), hooked::HOOK).expect("hook");
    let applied = node.block_on(node.client().apply_template()).expect("apply");
    assert!(applied.ok && applied.swapped == 3, "{applied:?}");
    all_talk(&node, &[&a, &b, &c], &world);
    assert_eq!(node.stop_agent().expect("stop"), 0);
    node.set_args(Vec::new());
    node.start_agent().expect("start");
    assert_eq!([&a, &b, &c].map(|c| attached(&node, c).0), ["netkit", "netkit", "tc"]);
    all_talk(&node, &[&a, &b, &c], &world);
    assert_eq!(node.metric("Missed tail call").expect("metrics"), 0);

    assert!(node.delete("a").expect("delete"));
    let pins = |node: &Node| {
        let read = node.path("bpf/pilus/v1/links");
        let mut names: Vec<_> = node
            .run_inside(move || std::fs::read_dir(read).into_iter().flatten().flatten().map(|e| e.file_name().into_string()).collect())
            .map(|names: Vec<_>| names.into_iter().flatten().filter(|n| n.starts_with("plx")).collect())
            .expect("pins");
        names.sort();
        names
    };
    assert_eq!(pins(&node), [device(&b)]);
    let links = node.links().expect("links");
    assert!(!links.contains(&device(&a)) && links.contains(&device(&b)), "{links:?}");
    assert_eq!(node.stop_agent().expect("stop"), 0);
    let (code, said, errors) = node.agent_once(&["--cleanup"]).expect("cleanup");
    assert_eq!((code, errors.as_str()), (0, ""), "{said}");
    assert!(said.contains(&format!("removed link {}", device(&b))), "{said}");
    assert_eq!((node.links().expect("links"), pins(&node)), (vec![], vec![]));
}

/// A raw socket says itself what protocol its frame is of. Where the two differ, nobody knows which of them the receiver
/// would believe: our programs read the one, a device that receives the frame the other.
#[test]
fn a_frame_that_is_not_what_its_sender_says_is_dropped() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_netkit() || left_to_newer() {
        return;
    }
    let node = Node::start(options("shared")).expect("node");
    let (a, b) = (node.add("a", &[]).expect("a"), node.add("b", &[]).expect("b"));
    ping(&a, &b, Family::V4);
    let mut drops = node.events(&["drop"]).expect("events");
    let (Some(here), Some(there)) = (a.ipv4, b.ipv4) else { panic!("no IPv4") };
    let mut frame = Vec::new();
    let packet = etherparse::PacketBuilder::ethernet2(a.mac, a.host_mac).ipv4(here.octets(), there.octets(), 64).udp(1000, 2000);
    packet.write(&mut frame, b"hello").expect("packet");
    // LLDP, which the host would take for its own.
    frame[12..14].copy_from_slice(&[0x88, 0xcc]);
    let socket = a.packet_socket_of(nix::libc::ETH_P_IP as u16).expect("socket");
    // netkit tells the sender.
    assert_eq!(socket.send(&frame).expect_err("it was sent").raw_os_error(), Some(nix::libc::ENOBUFS));
    drops.wait("a drop", |e| e.reason == "Unsupported L3 protocol" && e.source.as_ref().is_some_and(|p| p.endpoint == a.id)).expect("drop");
}
