// SPDX-License-Identifier: Apache-2.0
//! A container without IPv4 among those who have nothing else (RFC 7915).

use crate::fragments::part;
use crate::mtu::told;
use pilus_codegen::Features;
use pilus_model::abi::DropReason::*;
use pilus_model::abi::*;
use pilus_tests::check::view;
use pilus_tests::outcome::{Outcome, TC_ACT_REDIRECT, TC_ACT_SHOT};
use pilus_tests::packet::{Ext, L4, Packet};
use pilus_tests::scenario::{delivered, each_build_of};
use pilus_tests::who::words;
use pilus_tests::wire::*;
use pilus_tests::world::Family::{V4, V6};
use pilus_tests::world::Who::{self, A, B, C, World as Outside};
use pilus_tests::world::World;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Reasons that this page asserts.
pub const REASONS: [DropReason; 2] = [Nat46Fragment, Nat46Unsupported];

const PREFIX: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0);

/// Stands for an IPv4 address.
fn six(ip: Ipv4Addr) -> IpAddr {
    Ipv6Addr::from(u128::from(PREFIX) | u128::from(u32::from(ip))).into()
}

/// A without IPv4, as it sees `to`.
fn up(to: Who) -> Packet {
    Packet::ip(A.ip6().into(), six(to.ip4()))
}

fn back_up(from: Who) -> Packet {
    Packet::ip(six(from.ip4()), A.ip6().into())
}

/// The same as others see it: an IPv4 packet that nobody may cut.
fn down(from: Who, to: Who) -> Packet {
    V4.ip(from, to).with(|p| p.v4(|ip| (ip.id, ip.frag) = (0, 0x4000)))
}

fn each(test: impl Fn(&World<'_>) + Sync) {
    each_build_of(&Features::default().with("nat46", true), |world| {
        for traced in [0, EP_TRACE_ALL | EP_REMOTE] {
            world.reset(EP_DROPS | traced);
            let [a, b, c, _] = words(PREFIX.into());
            world.nat46.put(&0, &Nat46Range { prefix: [a, b, c], pad: 0 }).expect("nat46");
            world.change(A, |row| row.flags |= EP_NAT46);
            test(world);
        }
    });
}

fn arrives(world: &World<'_>, via: Who, packet: &Packet, to: Who, wanted: &Packet) {
    let o = world.send(via, packet.clone());
    assert_eq!((o.retval, o.drops()), (TC_ACT_REDIRECT, vec![]), "{packet:?}: {o}");
    let wanted = delivered(&World::frame(via, wanted.clone()), via, to);
    assert_eq!(o.out, wanted, "{packet:?}: {o}");
    for event in o.of_kind(EventKind::Trace).filter(|_| to != C) {
        assert_eq!(event.payload, o.out[..event.payload.len()], "the event shows what left");
    }
}

fn refused(world: &World<'_>, via: Who, packet: &Packet, why: DropReason) -> Outcome {
    let o = world.send(via, packet.clone());
    assert_eq!((o.retval, o.drops()), (TC_ACT_SHOT, vec![why]), "{packet:?}: {o}");
    o
}

#[test]
fn both_ways() {
    each(|world| {
        for flags in [SYN, ACK, ACK | FIN] {
            arrives(world, A, &up(B).tcp(40000, 80, flags).filled(5), B, &down(A, B).tcp(40000, 80, flags).filled(5));
            let answer = if flags == SYN { SYN | ACK } else { flags };
            arrives(world, B, &V4.ip(B, A).tcp(80, 40000, answer).filled(9), A, &back_up(B).tcp(80, 40000, answer).filled(9));
        }
        arrives(world, A, &up(B).udp(7, 53).filled(8), B, &down(A, B).udp(7, 53).filled(8));
        arrives(world, B, &V4.ip(B, A).udp(53, 7).filled(1), A, &back_up(B).udp(53, 7).filled(1));
        arrives(world, A, &up(B).echo(false, 77).filled(8), B, &down(A, B).echo(false, 77).filled(8));
        arrives(world, B, &V4.ip(B, A).echo(true, 77).filled(8), A, &back_up(B).echo(true, 77).filled(8));
        // To one with a program of its own, and to the world by the stack.
        arrives(world, A, &up(C).udp(7, 53), C, &down(A, C).udp(7, 53));
        let o = world.send(A, up(Outside).tcp(1, 443, SYN));
        assert_eq!((o.retval, &o.out[ETH..]), (TC_ACT_REDIRECT, &down(A, Outside).tcp(1, 443, SYN).build()[ETH..]), "{o}");
        // Opened from outside, where policy lets it.
        let syn = V4.ip(Outside, A).tcp(9, 80, SYN);
        assert_eq!(world.send(Outside, syn.clone()).drops(), [PolicyDenied]);
        world.repolicy(A, |row| row.policy_in = POLICY_OPEN);
        arrives(world, Outside, &syn, A, &back_up(Outside).tcp(9, 80, SYN));
        let o = world.send(A, up(Outside).tcp(80, 9, SYN | ACK));
        assert_eq!((o.retval, &o.out[ETH..]), (TC_ACT_REDIRECT, &down(A, Outside).tcp(80, 9, SYN | ACK).build()[ETH..]), "{o}");
        // Traffic class and type of service.
        let marked = up(B).udp(7, 53).with(|p| p.v6(|ip| ip.flow = 0xb8 << 20));
        arrives(world, A, &marked, B, &down(A, B).udp(7, 53).with(|p| p.v4(|ip| ip.tos = 0xb8)));
        let marked = V4.ip(B, A).udp(53, 7).with(|p| p.v4(|ip| ip.tos = 0xb8));
        arrives(world, B, &marked, A, &back_up(B).udp(53, 7).with(|p| p.v6(|ip| ip.flow = 0xb8 << 20)));
        // Its own IPv6 is as ever.
        arrives(world, A, &V6.ip(A, B).udp(7, 53), B, &V6.ip(A, B).udp(7, 53));
    });
}

#[test]
fn policy_and_flow_see_ipv4() {
    each(|world| {
        let o = refused(world, A, &up(B).tcp(40000, 81, SYN), PolicyDenied);
        let seen = o.of_kind(EventKind::Drop).next().expect("an event").event;
        assert_eq!((u32::from(seen.src_slot), u32::from(seen.dst_slot)), (A.slot(), B.slot()));
        assert_eq!((seen.src_id, seen.dst_id, seen.flags & EVENT_IPV6), (A.identity(), B.identity(), 0));
        arrives(world, A, &up(B).tcp(40000, 80, SYN), B, &down(A, B).tcp(40000, 80, SYN));
        assert!(world.flow(&V4.ip(A, B).tcp(40000, 80, SYN)).is_some());
        assert!(world.flow(&up(B).tcp(40000, 80, SYN)).is_none());
        // A prefix of IPv4 is who the world is.
        world.announce_prefix("198.51.100.0".parse().expect("address"), 24, 0x0100_0001, SLOT_WORLD);
        world.rules(21, DIR_EGRESS, 0x0100_0001, &[pilus_tests::world::rule(0, 65535, 0, RULE_DENY, 3)]);
        world.repolicy(A, |row| row.policy_out = 21);
        refused(world, A, &up(Outside).tcp(1, 443, SYN), PolicyDeny);
    });
}

#[test]
fn what_cannot_be_translated() {
    each(|world| {
        world.repolicy(A, |row| row.policy_in = POLICY_OPEN);
        world.repolicy(B, |row| row.policy_out = POLICY_OPEN);
        refused(world, A, &part(up(B).udp(7, 53).filled(56), 7, 0, true), Nat46Fragment);
        refused(world, A, &up(B).udp(7, 53).ext(&[Ext::options(DSTOPTS, 0)]), Nat46Unsupported);
        refused(world, A, &up(B).sctp(7, 99), Nat46Unsupported);
        refused(world, A, &up(B).icmp(42, 0, [0; 4]), Nat46Unsupported);
        refused(world, B, &part(V4.ip(B, A).udp(53, 7).filled(56), 7, 0, true), Nat46Fragment);
        refused(world, B, &V4.ip(B, A).udp(53, 7).with(|p| p.v4(|ip| ip.options = vec![1; 4])), Nat46Unsupported);
        refused(world, B, &V4.ip(B, A).sctp(9, 7), Nat46Unsupported);
        let bare = V4.ip(B, A).udp(53, 7).with(|p| {
            if let L4::Udp { checksum, .. } = &mut p.l4 {
                *checksum = Some(0)
            }
        });
        refused(world, B, &bare, Nat46Unsupported);
        // It has no IPv4 of its own, whatever it says; and there are addresses that stand for nobody.
        refused(world, A, &V4.ip(A, B).udp(7, 53), InvalidSourceIp);
        for nobody in ["127.0.0.1", "224.0.0.1", "169.254.1.1", "0.0.0.0", "255.255.255.255"] {
            refused(world, A, &Packet::ip(A.ip6().into(), six(nobody.parse().expect("address"))).udp(7, 53), InvalidDestination);
        }
        // With IPv4 of its own, a container has no use for the prefix: it leads to the world as any.
        assert_eq!(&world.send(C, Packet::ip(C.ip6().into(), six(B.ip4())).udp(7, 53)).out[12..14], [0x86, 0xdd]);
    });
}

#[test]
fn the_longer_header_counts() {
    each(|world| {
        world.repolicy(A, |row| row.policy_in = POLICY_OPEN);
        world.repolicy(B, |row| row.policy_out = POLICY_OPEN);
        world.change(B, |row| row.mtu = 1280);
        let long = |size: usize| up(B).tcp(40000, 80, SYN).filled(size - 60);
        arrives(world, A, &long(1300), B, &down(A, B).tcp(40000, 80, SYN).filled(1240));
        let question = World::frame(A, long(1301));
        let o = world.send(A, long(1301));
        assert_eq!(o.retval, TC_ACT_REDIRECT, "{o}");
        told(1300)(&question, &o.out, V6).unwrap_or_else(|e| panic!("{e}: {o}"));
        let reply = |size: usize, frag| V4.ip(B, A).udp(53, 7).filled(size - 28).with(|p| p.v4(|ip| ip.frag = frag));
        arrives(world, B, &reply(1400, 0x4000), A, &back_up(B).udp(53, 7).filled(1372));
        let question = World::frame(B, reply(1401, 0x4000));
        let o = world.send(B, reply(1401, 0x4000));
        told(1400)(&question, &o.out, V4).unwrap_or_else(|e| panic!("{e}: {o}"));
        refused(world, B, &reply(1401, 0), TooBig);
    });
}

/// Kind, code and word of the error, as sent and as received.
type Kind = (u8, u8, u32);

#[test]
fn errors_and_what_they_quote() {
    each(|world| {
        let open = [
            (up(B).tcp(40000, 80, SYN).filled(3), down(A, B).tcp(40000, 80, SYN).filled(3)),
            (up(B).udp(7, 53).filled(90), down(A, B).udp(7, 53).filled(90)),
            (up(B).echo(false, 77).filled(8), down(A, B).echo(false, 77).filled(8)),
        ];
        for (six, four) in &open {
            arrives(world, A, six, B, four);
        }
        let to_a: [(Kind, Kind); 7] = [
            ((3, 3, 0), (1, 4, 0)),
            ((3, 1, 0), (1, 0, 0)),
            ((3, 13, 0), (1, 1, 0)),
            ((3, 2, 0), (4, 1, 6)),
            ((3, 4, 1400), (2, 0, 1420)),
            ((3, 4, 600), (2, 0, 1280)),
            ((11, 0, 0), (3, 0, 0)),
        ];
        let error = |packet: Packet, (kind, code, word): Kind, quote: &[u8]| packet.icmp(kind, code, word.to_be_bytes()).payload(quote);
        // A quote keeps the checksum that its sender saw; its receiver looks at ports.
        let with_l4 = |header: &Packet, at: usize, l4: &[u8], echo: Option<u8>| {
            let mut l4 = l4[..l4.len().min(64) / 4 * 4].to_vec();
            echo.into_iter().for_each(|kind| l4[0] = kind);
            [&header.quote()[..at], &l4].concat()
        };
        for (six, four) in &open {
            let (q4, q6) = (four.quote(), six.quote());
            let echo = matches!(six.l4, L4::Icmp { .. });
            for (sent, received) in to_a {
                let packet = error(V4.ip(B, A), sent, &q4);
                let wanted = error(back_up(B), received, &with_l4(six, 40, &q4[20..], echo.then_some(128)));
                arrives(world, B, &packet, A, &wanted);
            }
            // From a router that nobody knows.
            let router = Ipv4Addr::new(203, 0, 113, 1);
            let packet = error(Packet::ip(router.into(), A.ip4().into()), (11, 0, 0), &q4);
            let wanted = error(Packet::ip(self::six(router), A.ip6().into()), (3, 0, 0), &with_l4(six, 40, &q4[20..], echo.then_some(128)));
            arrives(world, Outside, &packet, A, &wanted);
            refused(world, B, &error(V4.ip(B, A), (12, 0, 0), &q4), Nat46Unsupported);
            // Of the container, about an answer.
            let (a4, a6) = match four.l4 {
                L4::Tcp { .. } => (V4.ip(B, A).tcp(80, 40000, SYN | ACK), back_up(B).tcp(80, 40000, SYN | ACK)),
                L4::Udp { .. } => (V4.ip(B, A).udp(53, 7).filled(90), back_up(B).udp(53, 7).filled(90)),
                _ => (V4.ip(B, A).echo(true, 77), back_up(B).echo(true, 77)),
            };
            arrives(world, B, &a4, A, &a6);
            let header = a4.clone().with(|p| p.v4(|ip| (ip.id, ip.frag) = (0, 0x4000)));
            let to_b: [(Kind, Kind); 5] = [
                ((1, 4, 0), (3, 3, 0)),
                ((1, 1, 0), (3, 10, 0)),
                ((2, 0, 1300), (3, 4, 1280)),
                ((3, 0, 0), (11, 0, 0)),
                ((4, 1, 6), (3, 2, 0)),
            ];
            for (sent, received) in to_b {
                let q6 = a6.quote();
                let wanted = error(down(A, B), received, &with_l4(&header, 20, &q6[40..], echo.then_some(0)));
                arrives(world, A, &error(up(B), sent, &q6), B, &wanted);
            }
            refused(world, A, &error(up(B), (4, 0, 0), &a6.quote()), Nat46Unsupported);
            refused(world, A, &error(up(B), (1, 4, 0), &q6), Nat46Unsupported);
        }
        // Whatever was made of them has right checksums.
        let o = world.send(B, error(V4.ip(B, A), (3, 3, 0), &open[1].1.quote()));
        view(&o.out).expect("checksums");
    });
}

/// Segments are told to be smaller or larger by nobody: the bundle stays what it was.
#[test]
fn bundles_stay_whole() {
    each(|world| {
        arrives(world, A, &up(B).tcp(40000, 80, SYN), B, &down(A, B).tcp(40000, 80, SYN));
        arrives(world, B, &V4.ip(B, A).tcp(80, 40000, SYN | ACK), A, &back_up(B).tcp(80, 40000, SYN | ACK));
        for (via, packet, wanted, segment) in [
            (A, up(B).tcp(40000, 80, ACK).filled(3000), down(A, B).tcp(40000, 80, ACK).filled(3000), 1360),
            (B, V4.ip(B, A).tcp(80, 40000, ACK).filled(3000), back_up(B).tcp(80, 40000, ACK).filled(3000), 1360),
        ] {
            let frame = World::frame(via, packet);
            let mut ctx = World::context_of(via);
            ctx[164..168].copy_from_slice(&3u32.to_ne_bytes());
            ctx[176..180].copy_from_slice(&(segment as u32).to_ne_bytes());
            let o = world.run(world.entry(via), &ctx, &frame);
            let to = if via == A { B } else { A };
            assert_eq!((o.retval, o.out), (TC_ACT_REDIRECT, delivered(&World::frame(via, wanted), via, to)));
        }
    });
}
