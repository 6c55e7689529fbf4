// SPDX-License-Identifier: Apache-2.0
//! Packets that are cut short or lie about themselves. None is forwarded that cannot be read to the end of its headers.

use crate::flow::{after_talk, back, there};
use pilus_model::abi::DropReason::{self, *};
use pilus_model::abi::FlowState::{Established, New};
use pilus_tests::outcome::{TC_ACT_REDIRECT, TC_ACT_SHOT};
use pilus_tests::packet::{Ext, L4, Packet};
use pilus_tests::scenario::*;
use pilus_tests::wire::*;
use pilus_tests::world::Who::{A, B, Host};
use pilus_tests::world::{Family, World};

fn syn(f: Family) -> Packet {
    f.ip(A, B).tcp(40000, 80, SYN)
}

fn ack(f: Family) -> Packet {
    there(ACK)(f)
}

fn doff(f: Family, n: u8) -> Packet {
    ack(f).with(|p| {
        if let L4::Tcp { doff, .. } = &mut p.l4 {
            *doff = Some(n);
        }
    })
}

/// The IP header announces `n` bytes behind itself, whatever there is.
fn announcing(packet: Packet, n: u16) -> Packet {
    packet.with(|p| {
        p.v4(|ip| ip.total_len = Some(20 + n));
        p.v6(|ip| ip.payload_len = Some(n));
    })
}

fn v4(packet: Packet, f: impl FnOnce(&mut pilus_tests::packet::V4)) -> Packet {
    packet.with(|p| p.v4(f))
}

fn chain(kinds: &[u8]) -> impl Fn(Family) -> Packet + use<> {
    let ext: Vec<Ext> = kinds.iter().map(|k| Ext::options(*k, 0)).collect();
    move |f| ack(f).ext(&ext)
}

fn headers() -> Vec<Scenario> {
    vec![
        row4(
            "IPv4 header",
            after_talk(vec![
                send(A, |f| v4(ack(f), |ip| ip.version = 6)).drop(InvalidPacket),
                send(A, |f| v4(ack(f), |ip| ip.version = 0)).drop(InvalidPacket),
                send(A, |f| v4(ack(f), |ip| ip.ihl = Some(4))).drop(InvalidPacket),
                send(A, |f| v4(ack(f), |ip| ip.ihl = Some(0))).drop(InvalidPacket),
                send(A, |f| v4(ack(f).filled(0), |ip| ip.ihl = Some(15))).drop(InvalidPacket),
                send(A, |f| v4(ack(f), |ip| ip.total_len = Some(0))).drop(InvalidPacket),
                send(A, |f| v4(ack(f), |ip| ip.total_len = Some(19))).drop(InvalidPacket),
                send(A, |f| v4(ack(f), |ip| ip.total_len = Some(20))).drop(TruncatedL4),
                send(A, |f| v4(ack(f), |ip| ip.total_len = Some(52))).drop(InvalidPacket),
                send(A, |f| v4(ack(f), |ip| ip.total_len = Some(65535))).drop(InvalidPacket),
            ]),
        ),
        row6(
            "IPv6 header",
            after_talk(vec![
                send(A, |f| ack(f).with(|p| p.v6(|ip| ip.version = 4))).drop(InvalidPacket),
                send(A, |f| ack(f).with(|p| p.v6(|ip| ip.payload_len = Some(32)))).drop(InvalidPacket),
                send(A, |f| ack(f).with(|p| p.v6(|ip| ip.payload_len = Some(65535)))).drop(InvalidPacket),
                send(A, |f| ack(f).with(|p| p.v6(|ip| ip.payload_len = Some(0)))).drop(TruncatedL4),
                send(A, |f| ack(f).with(|p| p.v6(|ip| ip.flow = 0x0fff_ffff))).pass(B, Established),
            ]),
        ),
        row(
            "TCP header",
            after_talk(vec![
                send(A, |f| doff(f, 0)).drop(TruncatedL4),
                send(A, |f| doff(f, 4)).drop(TruncatedL4),
                send(A, |f| doff(f, 7)).pass(B, Established),
                send(A, |f| doff(f, 8)).drop(TruncatedL4),
                send(A, |f| doff(f, 15)).drop(TruncatedL4),
                send(A, |f| announcing(ack(f), 19)).drop(TruncatedL4),
                send(A, |f| announcing(ack(f), 4)).drop(TruncatedL4),
                send(A, |f| announcing(ack(f), 20)).pass(B, Established),
                send(A, |f| announcing(doff(f, 6), 20)).drop(TruncatedL4),
                send(B, |f| announcing(back(ACK)(f), 19)).drop(TruncatedL4),
            ]),
        ),
        row(
            "TCP header, from the host",
            vec![
                send(Host, |f| f.ip(Host, A).tcp(50000, 8080, SYN)).pass(A, New),
                send(Host, |f| announcing(f.ip(Host, A).tcp(50000, 8080, ACK), 19)).drop(TruncatedL4),
            ],
        ),
        row(
            "UDP, SCTP and ICMP headers",
            vec![
                send(A, |f| f.ip(A, B).udp(1, 53).filled(9)).pass(B, New),
                send(A, |f| announcing(f.ip(A, B).udp(1, 53).filled(9), 7)).drop(TruncatedL4),
                send(A, |f| announcing(f.ip(A, B).udp(1, 53).filled(9), 0)).drop(TruncatedL4),
                send(A, |f| announcing(f.ip(A, B).udp(1, 53).filled(9), 8)).pass(B, Established),
                send(A, |f| announcing(f.ip(A, B).sctp(1, 99).filled(9), 11)).drop(TruncatedL4),
                send(A, |f| announcing(f.ip(A, B).sctp(1, 99).filled(9), 12)).pass(B, New),
                send(A, |f| announcing(f.ip(A, B).echo(false, 1).filled(9), 7)).drop(TruncatedL4),
                send(A, |f| announcing(f.ip(A, B).echo(false, 1).filled(9), 8)).pass(B, New),
            ],
        ),
    ]
}

fn extensions() -> Vec<Scenario> {
    vec![
        row6(
            "extension headers",
            after_talk(vec![
                send(A, chain(&[HOPOPTS])).pass(B, Established),
                send(A, chain(&[DSTOPTS])).pass(B, Established),
                send(A, chain(&[ROUTING])).pass(B, Established),
                send(A, |f| ack(f).ext(&[Ext::Auth])).pass(B, Established),
                send(A, |f| ack(f).ext(&[Ext::options(HOPOPTS, 5), Ext::options(ROUTING, 2), Ext::Auth])).pass(B, Established),
                send(A, chain(&[HOPOPTS, DSTOPTS, DSTOPTS, ROUTING, DSTOPTS, DSTOPTS])).pass(B, Established),
                send(A, chain(&[DSTOPTS; 7])).drop(InvalidExtensionHeader),
                send(A, chain(&[DSTOPTS; 20])).drop(InvalidExtensionHeader),
                send(A, chain(&[DSTOPTS, HOPOPTS])).drop(InvalidExtensionHeader),
                send(A, chain(&[HOPOPTS, HOPOPTS])).drop(InvalidExtensionHeader),
            ]),
        ),
        row6(
            "extension headers cut short",
            after_talk(vec![
                send(A, |f| {
                    let long = Ext::Options { kind: DSTOPTS, body: vec![1, 4, 0, 0, 0, 0], len: Some(255) };
                    ack(f).ext(&[long])
                })
                .drop(InvalidExtensionHeader),
                send(A, |f| announcing(ack(f).ext(&[Ext::options(DSTOPTS, 0)]), 7)).drop(InvalidExtensionHeader),
                send(A, |f| announcing(ack(f).ext(&[Ext::options(DSTOPTS, 1)]), 8)).drop(InvalidExtensionHeader),
                send(A, |f| announcing(ack(f).ext(&[Ext::options(DSTOPTS, 0)]), 8)).drop(TruncatedL4),
                send(A, |f| ack(f).filled(0).with(|p| p.v6(|ip| ip.next = Some(DSTOPTS)))).drop(InvalidExtensionHeader),
            ]),
        ),
        row6(
            "solicitations behind extension headers",
            vec![
                send(A, |_| Packet::solicit(A.mac(), A.ip6(), GATEWAY6, GATEWAY6).ext(&[Ext::options(HOPOPTS, 0)]))
                    .answer(|_, _, _| Ok(())),
                send(A, |_| Packet::solicit(A.mac(), A.ip6(), GATEWAY6, GATEWAY6).ext(&[Ext::Fragment { offset: 0, more: false, id: 1 }]))
                    .drop(Fragment),
            ],
        ),
    ]
}

pub fn table() -> Vec<Scenario> {
    [headers(), extensions()].into_iter().flatten().collect()
}

#[test]
fn malformed_packets() {
    run(table);
}

/// Packets that pass or are answered, each with its name.
pub fn good(f: Family) -> Vec<(&'static str, Packet)> {
    let gateway = if f == Family::V4 { GATEWAY4.into() } else { GATEWAY6.into() };
    let mut all = vec![
        ("TCP SYN", syn(f)),
        ("TCP established", ack(f)),
        (
            "TCP with options",
            ack(f).with(|p| {
                if let L4::Tcp { options, .. } = &mut p.l4 {
                    *options = vec![1; 12];
                }
            }),
        ),
        ("UDP", f.ip(A, B).udp(1, 53).filled(3)),
        ("SCTP", f.ip(A, B).sctp(1, 99).filled(3)),
        ("echo", f.ip(A, B).echo(false, 1).filled(3)),
        ("echo to the gateway", Packet::ip(A.ip(f), gateway).echo(false, 1).filled(3)),
        ("GRE", f.ip(A, B).raw_l4(GRE, &[0; 4])),
        ("hop count 1", ack(f).hops(1)),
        ("ICMP error", f.ip(A, B).icmp(if f == Family::V4 { 3 } else { 1 }, 0, [0; 4]).payload(&back(ACK)(f).quote())),
    ];
    match f {
        Family::V4 => {
            all.push(("ARP", Packet::arp(A.mac(), A.ip4(), GATEWAY4)));
            all.push(("options", v4(ack(f), |ip| ip.options = vec![1; 8])));
        }
        Family::V6 => {
            let routers = std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2).into();
            all.push(("solicitation", Packet::solicit(A.mac(), A.ip6(), GATEWAY6, GATEWAY6)));
            all.push(("router solicitation", Packet::ip(A.link_local().into(), routers).hops(255).icmp(133, 0, [0; 4])));
            all.push(("extension headers", ack(f).ext(&[Ext::options(HOPOPTS, 1), Ext::options(DSTOPTS, 0), Ext::Auth])));
        }
    }
    all
}

/// A talks to B, so that the fast path and ICMP errors find their flow.
pub fn set_talking(world: &World<'_>, f: Family) {
    world.reset(0);
    for (via, packet) in [(A, syn(f)), (B, back(SYN | ACK)(f)), (A, ack(f)), (B, back(ACK)(f))] {
        let outcome = world.send(via, packet);
        assert_eq!(outcome.retval, TC_ACT_REDIRECT, "{outcome}");
    }
}

/// Reasons for which a packet may be dropped that is cut short.
const CUT: [DropReason; 6] = [InvalidPacket, TruncatedL4, InvalidExtensionHeader, UnsupportedL3, TtlExceeded, Neighbour];

#[test]
fn every_length() {
    each_build(|world| {
        for f in Family::BOTH {
            set_talking(world, *f);
            for (name, packet) in good(*f) {
                let frame = World::frame(A, packet);
                for n in World::shortest([frame[12], frame[13]])..=frame.len() {
                    let o = world.run(world.entry(A), &World::context_of(A), &frame[..n]);
                    let drops = o.drops();
                    if n == frame.len() {
                        assert_eq!(o.retval, TC_ACT_REDIRECT, "{name} {f:?}, whole: {o}");
                    } else {
                        assert_eq!(o.retval, TC_ACT_SHOT, "{name} {f:?}, {n} bytes: {o}");
                        assert!(drops.len() == 1 && CUT.contains(&drops[0]), "{name} {f:?}, {n} bytes: {o}");
                    }
                    // Announced as short as it is, no header is read from behind the end either.
                    // (Of the packet that an ICMP error quotes, the receiver finds the end.)
                    if name == "ICMP error" {
                        continue;
                    }
                    if n >= 14 + 40 && n < frame.len() && frame[12] != 8 {
                        let mut honest = frame.clone();
                        honest[18..20].copy_from_slice(&((n - 54) as u16).to_be_bytes());
                        judge_honest(world, name, *f, n, &honest);
                    } else if n >= 14 + 20 && n < frame.len() && frame[12..14] == [8, 0] {
                        let mut honest = frame.clone();
                        honest[16..18].copy_from_slice(&((n - 14) as u16).to_be_bytes());
                        judge_honest(world, name, *f, n, &honest);
                    }
                }
            }
        }
    });
}

/// `n` bytes are the packet's, the rest is padding: the verdict is that of the `n` bytes alone.
fn judge_honest(world: &World<'_>, name: &str, f: Family, n: usize, padded: &[u8]) {
    let ctx = World::context_of(A);
    let alone = world.run(world.entry(A), &ctx, &padded[..n]);
    let with = world.run(world.entry(A), &ctx, padded);
    assert_ne!(alone.retval, 0, "{name} {f:?} of {n} bytes: {alone}");
    assert_eq!((alone.retval, alone.drops()), (with.retval, with.drops()), "{name} {f:?} of {n} bytes, then with padding: {alone}\n{with}");
}
