// SPDX-License-Identifier: Apache-2.0
//! Masquerading: what containers open with the world leaves under the node's address, and what comes back finds them.

use crate::fragments::part;
use pilus_model::abi::DropReason::*;
use pilus_model::abi::*;
use pilus_tests::outcome::{Outcome, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use pilus_tests::packet::{L4, Net, Packet};
use pilus_tests::scenario::{delivered, each_build};
use pilus_tests::tuple::Tuple;
use pilus_tests::wire::*;
use pilus_tests::world::Family::{self, V4, V6};
use pilus_tests::world::Who::{self, A, B, World as Outside};
use pilus_tests::world::{OUTER, World, node_ip};
use std::net::IpAddr;

/// Reasons that this page asserts.
pub const REASONS: [DropReason; 2] = [NatNoMapping, NatUnsupported];

fn with_ports(mut packet: Packet, sport: u16, dport: u16) -> Packet {
    match &mut packet.l4 {
        L4::Tcp { sport: s, dport: d, .. } | L4::Udp { sport: s, dport: d, .. } => (*s, *d) = (sport, dport),
        L4::Icmp { rest, .. } => rest[..2].copy_from_slice(&sport.to_be_bytes()),
        _ => {}
    }
    packet
}

/// The same packet under the node's address and `port` in place of the sender's.
fn masked(f: Family, packet: &Packet, port: u16) -> Packet {
    let dport = if let L4::Tcp { dport, .. } | L4::Udp { dport, .. } = packet.l4 { dport } else { 0 };
    let mut out = with_ports(packet.clone(), port, dport);
    set_source(&mut out, node_ip(f));
    out
}

fn set_source(packet: &mut Packet, to: IpAddr) {
    match (&mut packet.net, to) {
        (Net::V4(ip), IpAddr::V4(to)) => ip.src = to,
        (Net::V6(ip), IpAddr::V6(to)) => ip.src = to,
        _ => panic!("{to} is of the other family"),
    }
}

/// From the world to the node.
fn inward(f: Family) -> Packet {
    Packet::ip(Outside.ip(f), node_ip(f))
}

/// Behind the Ethernet header.
fn ip_of(frame: &[u8]) -> &[u8] {
    &frame[ETH..]
}

/// Sends a container's packet on its way, up to the egress of the device. What it returned there, and the frame.
fn leave(world: &World<'_>, from: Who, packet: Packet) -> Outcome {
    let inner = world.send(from, packet);
    assert_eq!(inner.retval, TC_ACT_REDIRECT, "{inner}");
    outward(world, &inner)
}

fn outward(world: &World<'_>, inner: &Outcome) -> Outcome {
    let mut ctx = World::context(OUTER);
    ctx[8..12].copy_from_slice(&inner.mark.to_ne_bytes());
    let mut o = world.run(world.of_device("to_netdev"), &ctx, &inner.out);
    assert_eq!(o.mark & MARK_MASQUERADE, 0, "the mark stays: {o}");
    // Whether the container's program asked for it.
    o.mark = inner.mark;
    o
}

/// The port that a frame leaves by.
fn port_of(f: Family, frame: &[u8]) -> u16 {
    let l4 = ETH + if f == V4 { 20 } else { 40 };
    let icmp = matches!((f, frame[ETH + if f == V4 { 9 } else { 6 }]), (V4, ICMP) | (V6, ICMPV6));
    let at = l4 + if icmp { 4 } else { 0 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// Leaves, and is in every byte what the node would have sent. The port.
fn leaves(world: &World<'_>, f: Family, from: Who, packet: &Packet) -> u16 {
    let o = leave(world, from, packet.clone());
    assert_eq!((o.retval, o.mark, o.events.len(), o.counts.len()), (TC_ACT_UNSPEC, MARK_MASQUERADE, 0, 0), "{f:?}: {o}");
    let port = port_of(f, &o.out);
    assert!(u32::from(port) >= NAT_FIRST, "{f:?}: port {port}");
    assert_eq!(ip_of(&o.out), ip_of(&World::frame(from, masked(f, packet, port))), "{f:?}");
    port
}

/// What the world sends to the node reaches `to`, as `inner` from the world would have.
fn returns(world: &World<'_>, outer: &Packet, to: Who, inner: &Packet) {
    let frame = World::frame(Outside, outer.clone());
    let o = world.run(world.entry(Outside), &World::context_of(Outside), &frame);
    assert_eq!((o.retval, o.drops()), (TC_ACT_REDIRECT, vec![]), "{o}");
    let wanted = delivered(&World::frame(Outside, inner.clone()), Outside, to);
    assert_eq!(o.out, wanted, "{o}");
    // The stack finds the same, before it counts the hop.
    let o = world.run(world.of_device("from_netdev_stack"), &World::context_of(Outside), &frame);
    assert_eq!((o.retval, ip_of(&o.out) == ip_of(&World::frame(Outside, inner.clone()))), (TC_ACT_UNSPEC, true), "{o}");
}

/// Goes on to the node itself, as it came.
fn is_the_nodes(world: &World<'_>, packet: Packet) {
    let frame = World::frame(Outside, packet);
    for program in ["from_netdev", "from_netdev_stack"] {
        let o = world.run(world.of_device(program), &World::context_of(Outside), &frame);
        assert_eq!((o.retval, o.out == frame, o.counts.len()), (TC_ACT_UNSPEC, true, 0), "{program}: {o}");
    }
}

/// In both builds and families, with and without traces.
fn each(test: impl Fn(&World<'_>, Family) + Sync) {
    each_build(|world| {
        for (f, traced) in [(V4, 0), (V6, 0), (V4, EP_TRACE_ALL | EP_REMOTE), (V6, EP_TRACE_ALL | EP_REMOTE)] {
            world.reset(EP_DROPS | traced);
            world.masquerade();
            test(world, f);
        }
    });
}

#[test]
fn tcp_leaves_and_returns() {
    each(|world, f| {
        let out = |flags| f.ip(A, Outside).tcp(40000, 80, flags).filled(13);
        let port = leaves(world, f, A, &out(SYN));
        let back = |flags| (inward(f).tcp(80, port, flags).filled(7), f.ip(Outside, A).tcp(80, 40000, flags).filled(7));
        for (there, flags) in [(SYN | ACK, ACK), (ACK, ACK), (ACK | FIN, ACK | FIN)] {
            let (outer, inner) = back(there);
            returns(world, &outer, A, &inner);
            assert_eq!(leaves(world, f, A, &out(flags)), port, "one flow, one port");
        }
        // Another flow is another port, and the same port of another container too.
        let others = [leaves(world, f, A, &f.ip(A, Outside).tcp(40001, 80, SYN)), {
            world.repolicy(B, |row| row.policy_out = POLICY_OPEN);
            leaves(world, f, B, &f.ip(B, Outside).tcp(40000, 80, SYN))
        }];
        assert!(!others.contains(&port) && others[0] != others[1], "{port} {others:?}");
        returns(world, &inward(f).tcp(80, others[1], SYN | ACK), B, &f.ip(Outside, B).tcp(80, 40000, SYN | ACK));
        // Nor does an entry that names another's port make it its own.
        assert!(world.edit_flow(&out(SYN), |flow| Some(Flow { aux: Be16::new(others[1]), ..flow })));
        assert_ne!(leaves(world, f, A, &out(ACK)), others[1]);
    });
}

#[test]
fn udp_and_echo_leave_and_return() {
    each(|world, f| {
        let udp = f.ip(A, Outside).udp(5353, 53).filled(9);
        let port = leaves(world, f, A, &udp);
        returns(world, &inward(f).udp(53, port).filled(5), A, &f.ip(Outside, A).udp(53, 5353).filled(5));
        assert_eq!(leaves(world, f, A, &udp), port);
        let echo = f.ip(A, Outside).echo(false, 77).filled(9);
        let id = leaves(world, f, A, &echo);
        returns(world, &inward(f).echo(true, id).filled(9), A, &f.ip(Outside, A).echo(true, 77).filled(9));
        if f == V4 {
            // A datagram without a checksum gets none.
            let none = |p: Packet| {
                p.with(|p| {
                    if let L4::Udp { checksum, .. } = &mut p.l4 {
                        *checksum = Some(0)
                    }
                })
            };
            let port = leaves(world, f, A, &none(f.ip(A, Outside).udp(5354, 53)));
            returns(world, &none(inward(f).udp(53, port)), A, &none(f.ip(Outside, A).udp(53, 5354)));
        }
    });
}

#[test]
fn what_is_not_masqueraded() {
    each(|world, f| {
        let prefix = if f == V4 { ("198.51.100.0", 24) } else { ("2001:db8::", 64) };
        let key = pilus_model::ipcache::lpm_key(prefix.0.parse().expect("address"), prefix.1).expect("a prefix");
        world.direct.put(&key, &DirectEntry::default()).expect("direct");
        let packet = f.ip(A, Outside).tcp(40000, 80, SYN);
        let o = leave(world, A, packet.clone());
        assert_eq!((o.retval, o.mark, ip_of(&o.out)), (TC_ACT_UNSPEC, 0, ip_of(&World::frame(A, packet))), "a direct prefix: {o}");
        world.direct.delete(&key).expect("direct");
        // Who was opened from outside answers under the address that was asked.
        world.repolicy(A, |row| row.policy_in = POLICY_OPEN);
        assert_eq!(world.send(Outside, f.ip(Outside, A).tcp(9, 80, SYN)).retval, TC_ACT_REDIRECT);
        let answer = f.ip(A, Outside).tcp(80, 9, SYN | ACK);
        let o = leave(world, A, answer.clone());
        assert_eq!((o.retval, o.mark, ip_of(&o.out)), (TC_ACT_UNSPEC, 0, ip_of(&World::frame(A, answer))), "{o}");
        // Containers and the host know each other.
        for (to, dport) in [(B, 80), (Who::Host, 80)] {
            assert_eq!(world.send(A, f.ip(A, to).tcp(40000, dport, SYN)).mark, 0);
        }
        // The node's own traffic passes as it is, whatever it looks like.
        let own = World::frame(A, Packet::ip(node_ip(f), Outside.ip(f)).tcp(61000, 80, SYN));
        let o = world.run(world.of_device("to_netdev"), &World::context(OUTER), &own);
        assert_eq!((o.retval, o.out == own, o.counts.len()), (TC_ACT_UNSPEC, true, 0), "{o}");
    });
}

#[test]
fn the_nodes_own_packets_stay_its_own() {
    each(|world, f| {
        let port = leaves(world, f, A, &f.ip(A, Outside).udp(1, 53));
        let elsewhere = if f == V4 { "203.0.113.9" } else { "2001:db8:9::9" }.parse().expect("address");
        is_the_nodes(world, inward(f).udp(53, if port == 65535 { 65534 } else { port + 1 }));
        is_the_nodes(world, inward(f).udp(54, port));
        is_the_nodes(world, inward(f).tcp(53, port, ACK));
        is_the_nodes(world, Packet::ip(elsewhere, node_ip(f)).udp(53, port));
        is_the_nodes(world, inward(f).echo(true, port));
        is_the_nodes(world, inward(f).tcp(53, 22, SYN));
        // An error about what the node did not send, and one that came to another than it quotes.
        let about = |quoted: &Packet| inward(f).icmp(if f == V4 { 3 } else { 1 }, 1, [0; 4]).payload(&quoted.quote());
        is_the_nodes(world, about(&Packet::ip(node_ip(f), Outside.ip(f)).udp(port, 54)));
        is_the_nodes(world, about(&inward(f).udp(53, port)));
        is_the_nodes(world, about(&Packet::ip(elsewhere, Outside.ip(f)).udp(port, 53)));
        let quote = Packet::ip(node_ip(f), Outside.ip(f)).udp(port, 53).quote();
        is_the_nodes(world, Packet::ip(Outside.ip(f), Who::Host.ip(f)).icmp(if f == V4 { 3 } else { 1 }, 1, [0; 4]).payload(&quote));
        // What goes the other way, where only answers come.
        let quote = inward(f).udp(53, port).quote();
        is_the_nodes(world, Packet::ip(elsewhere, Outside.ip(f)).icmp(if f == V4 { 3 } else { 1 }, 1, [0; 4]).payload(&quote));
        let id = leaves(world, f, A, &f.ip(A, Outside).echo(false, 77));
        is_the_nodes(world, Packet::ip(node_ip(f), Outside.ip(f)).echo(false, id));
    });
}

/// Each kind of quote: whole, cut behind the ports, of UDP, TCP and echo.
#[test]
fn errors_are_translated_with_what_they_quote() {
    each(|world, f| {
        world.repolicy(A, |row| row.policy_in = POLICY_OPEN);
        let kind = if f == V4 { 3 } else { 1 };
        let flows = [
            (
                f.ip(A, Outside).udp(5000, 33434).filled(40),
                inward(f).udp(33434, 0).filled(20),
                f.ip(Outside, A).udp(33434, 5000).filled(20),
            ),
            (f.ip(A, Outside).tcp(5000, 80, SYN), inward(f).tcp(80, 0, SYN | ACK), f.ip(Outside, A).tcp(80, 5000, SYN | ACK)),
            (f.ip(A, Outside).echo(false, 9).filled(8), inward(f).echo(true, 0).filled(8), f.ip(Outside, A).echo(true, 9).filled(8)),
        ];
        for (sent, answer, received) in flows {
            let port = leaves(world, f, A, &sent);
            for cut in [8, usize::MAX] {
                let header = if f == V4 { 20 } else { 40 };
                let quote = |p: &Packet| {
                    let mut bytes = p.quote();
                    bytes.truncate(header + cut.min(bytes.len() - header));
                    bytes
                };
                let error = |p: Packet, quoted: &Packet| p.icmp(kind, 3, [0; 4]).payload(&quote(quoted));
                // From a router on the way, about what left.
                let router = if f == V4 { "203.0.113.1" } else { "2001:db8:77::1" }.parse().expect("address");
                let outer = error(Packet::ip(router, node_ip(f)), &masked(f, &sent, port));
                let inner = error(Packet::ip(router, A.ip(f)), &sent);
                returns(world, &outer, A, &inner);
                // From the container, about what came back.
                let answer = match answer.l4 {
                    L4::Icmp { .. } => with_ports(answer.clone(), port, 0),
                    L4::Tcp { sport, .. } | L4::Udp { sport, .. } => with_ports(answer.clone(), sport, port),
                    _ => unreachable!(),
                };
                returns(world, &answer, A, &received);
                let o = leave(world, A, error(f.ip(A, Outside), &received));
                assert_eq!((o.retval, o.mark), (TC_ACT_UNSPEC, MARK_MASQUERADE), "{o}");
                let wanted = error(Packet::ip(node_ip(f), Outside.ip(f)), &answer);
                assert_eq!(ip_of(&o.out), ip_of(&World::frame(A, wanted)), "{f:?} {cut}: {:?}", sent.l4);
            }
        }
    });
}

#[test]
fn parts_of_datagrams_leave_and_return() {
    each(|world, f| {
        let cut = |p: Packet, offset, more| part(p, 7, offset, more);
        let first = cut(f.ip(A, Outside).udp(5000, 53).filled(56), 0, true);
        let o = leave(world, A, first.clone());
        let behind = if f == V4 { 20 } else { 48 };
        let port = u16::from_be_bytes([o.out[ETH + behind], o.out[ETH + behind + 1]]);
        assert_eq!(ip_of(&o.out), ip_of(&World::frame(A, masked(f, &first, port))), "{f:?} {o}");
        let rest = cut(f.ip(A, Outside).raw_l4(UDP, &[0xee; 64]), 64, false);
        let o = leave(world, A, rest.clone());
        let mut wanted = rest;
        set_source(&mut wanted, node_ip(f));
        assert_eq!((o.retval, ip_of(&o.out)), (TC_ACT_UNSPEC, ip_of(&World::frame(A, wanted))), "{f:?} {o}");
        let outer = cut(inward(f).udp(53, port).filled(56), 0, true);
        returns(world, &outer, A, &cut(f.ip(Outside, A).udp(53, 5000).filled(56), 0, true));
        let outer = cut(inward(f).raw_l4(UDP, &[0xdd; 64]), 64, false);
        returns(world, &outer, A, &cut(f.ip(Outside, A).raw_l4(UDP, &[0xdd; 64]), 64, false));
        // A part of what is the node's own.
        is_the_nodes(world, part(inward(f).raw_l4(UDP, &[0xdd; 64]), 8, 64, false));
    });
}

/// Who sent to the node is told by the node, in terms of what it sent.
#[test]
fn answers_come_from_the_node() {
    each(|world, f| {
        let port = leaves(world, f, A, &f.ip(A, Outside).udp(5000, 53));
        let whole = |p: Packet| p.with(|p| p.v4(|ip| ip.frag = 0x4000));
        for (packet, kind) in [
            (whole(inward(f).udp(53, port).filled(40)).hops(1), if f == V4 { 11 } else { 3 }),
            (whole(inward(f).udp(53, port).filled(1500)), if f == V4 { 3 } else { 2 }),
        ] {
            let frame = World::frame(Outside, packet);
            let o = world.run(world.entry(Outside), &World::context_of(Outside), &frame);
            assert_eq!(o.retval, TC_ACT_REDIRECT, "{o}");
            let seen = pilus_tests::check::view(&o.out).expect("an error whose checksums are right");
            assert_eq!((seen.src, seen.dst, seen.l4[0]), (node_ip(f), Outside.ip(f), kind), "{o}");
            let quote = &seen.l4[8..];
            assert_eq!(quote, &frame[ETH..ETH + quote.len()], "quotes what came");
        }
    });
}

#[test]
fn what_cannot_leave_is_dropped() {
    each(|world, f| {
        let dropped = |o: Outcome, why: DropReason| {
            assert_eq!((o.retval, o.drops()), (TC_ACT_SHOT, vec![why]), "{f:?} {o}");
            let seen = o.events.last().unwrap_or_else(|| panic!("no event: {o}")).event;
            assert_eq!((u32::from(seen.src_slot), seen.src_id, seen.dst_id), (A.slot(), A.identity(), Outside.identity()), "{o}");
        };
        // No ports, or a checksum that only the whole packet gives.
        for packet in [f.ip(A, Outside).raw_l4(GRE, &[0; 8]), f.ip(A, Outside).sctp(5, 99), f.ip(A, Outside).icmp(42, 0, [0; 4])] {
            dropped(leave(world, A, packet), NatUnsupported);
        }
        // The flow went between the container and the device.
        let packet = f.ip(A, Outside).udp(1, 53);
        let inner = world.send(A, packet.clone());
        assert!(world.edit_flow(&packet, |_| None));
        dropped(outward(world, &inner), NatNoMapping);
        // Nor does an error leave about a flow that never did.
        world.repolicy(A, |row| row.policy_in = POLICY_OPEN);
        assert_eq!(world.send(A, packet.clone()).retval, TC_ACT_REDIRECT);
        let quote = f.ip(Outside, A).udp(53, 1).quote();
        let error = f.ip(A, Outside).icmp(if f == V4 { 3 } else { 1 }, if f == V4 { 3 } else { 4 }, [0; 4]).payload(&quote);
        dropped(leave(world, A, error), NatNoMapping);
        // Every port towards a peer is in use.
        let taken = Flow { flags: FLOW_NAT, aux: Be16::new(9), ..Flow::default() };
        for port in NAT_FIRST..=65535 {
            let tuple = Tuple::of(&Packet::ip(node_ip(f), Outside.ip(f)).udp(port as u16, 53));
            match f {
                V4 => world.flow4.put(&tuple.key4(), &Flow4 { h: taken, ..Flow4::default() }).expect("flow4"),
                V6 => world.flow6.put(&tuple.key6(), &Flow6 { h: taken }).expect("flow6"),
            }
        }
        dropped(leave(world, A, packet), NatNoMapping);
        leaves(world, f, A, &f.ip(A, Outside).udp(1, 54));
        // The device has no address.
        let row = world.endpoint.get(&SLOT_DEVICES).expect("row").expect("row");
        world.endpoint.put(&SLOT_DEVICES, &Endpoint { ip4: Be32::default(), ip6: [Be32::default(); 4], ..row }).expect("row");
        dropped(leave(world, A, f.ip(A, Outside).udp(1, 55)), NatNoMapping);
        // The device no longer masquerades.
        world.endpoint.put(&SLOT_DEVICES, &Endpoint { flags: row.flags & !EP_MASQUERADE, ..row }).expect("row");
        assert_eq!(leave(world, A, f.ip(A, Outside).udp(1, 56)).retval, TC_ACT_UNSPEC);
    });
}

#[test]
fn a_lost_entry_is_made_again() {
    each(|world, f| {
        let packet = f.ip(A, Outside).udp(1, 53);
        let port = leaves(world, f, A, &packet);
        assert!(world.edit_flow(&masked(f, &packet, port), |_| None), "the entry of what the world sees");
        is_the_nodes(world, inward(f).udp(53, port));
        assert_eq!(leaves(world, f, A, &packet), port, "the peer knows this port");
        returns(world, &inward(f).udp(53, port), A, &f.ip(Outside, A).udp(53, 1));
        // The container is gone: its answers are nobody's.
        world.change(A, |row| row.flags &= !EP_VALID);
        let o = world.send(Outside, inward(f).udp(53, port));
        assert_eq!((o.retval, o.drops()), (TC_ACT_SHOT, vec![NoEndpoint]), "{o}");
    });
}
