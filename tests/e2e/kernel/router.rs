// SPDX-License-Identifier: Apache-2.0
//! A node is its containers' router: the same packets through it and through a router that is the kernel alone.

use crate::support::netlink;
use crate::wire::Wire;
use pilus_e2e::bench::path;
use pilus_e2e::container::enter;
use pilus_e2e::{Container, Family, Node, NodeOptions};
use pilus_tests::packet::{Ext, Packet};
use pilus_tests::wire::{ACK, DSTOPTS, ETH, HOPOPTS};
use std::net::IpAddr;

const MTU: usize = 1500;
/// Ports of the packets that tell where the answers to a row end.
const FENCE: u16 = 9999;

struct Setup {
    /// Lives as long as packets are to go through it.
    _between: Box<dyn std::any::Any>,
    near: Container,
    far: Container,
    router: [IpAddr; 2],
}

impl Setup {
    fn kernel() -> Self {
        let path = path::routed().expect("a router");
        enter(&path.entry.netns, || {
            // It is to answer each time.
            for name in ["ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"] {
                std::fs::write(format!("/proc/sys/net/{name}"), "0").expect(name);
            }
        });
        let mut near = path.client;
        near.host_mac = path.entry.destination;
        let router = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => IpAddr::from([ip.octets()[0], ip.octets()[1], ip.octets()[2], path::ROUTER]),
            IpAddr::V6(ip) => IpAddr::from(std::net::Ipv6Addr::from((u128::from(ip) & !0xffff) | u128::from(path::ROUTER))),
        };
        Self { _between: Box::new(path.entry.netns), router: Family::BOTH.map(|f| router(near.ip(f))), near, far: path.server }
    }

    fn ours(build: &'static str) -> Self {
        let node = Node::start(NodeOptions { build, ..NodeOptions::default() }).expect("node");
        let (near, far) = (node.add("near", &["app=near"]).expect("near"), node.add("far", &["app=far"]).expect("far"));
        let status = node.block_on(node.client().status()).expect("status");
        let address = |text: &str| text.parse().expect("the router's address");
        let router = Family::BOTH.map(|f| address(if f == Family::V4 { &status.router_ipv4 } else { &status.router_ipv6 }));
        Self { _between: Box::new(node), near, far, router }
    }
}

/// What becomes of a row's packets.
enum Fate {
    /// They arrive, one hop older.
    Pass,
    /// The first is answered: kind, code and the last two bytes of the word behind.
    Error(u8, u8, u16),
    Nothing,
}

type Row = (&'static str, Vec<Packet>, Fate);

fn rows(family: Family, a: IpAddr, b: IpAddr) -> Vec<Row> {
    let v4 = family == Family::V4;
    let ip = || Packet::ip(a, b);
    let of_length = |n: usize| ip().tcp(5001, 80, ACK).filled(n - if v4 { 40 } else { 60 });
    let over = || if v4 { Fate::Error(11, 0, 0) } else { Fate::Error(3, 0, 0) };
    let too_big = || if v4 { Fate::Error(3, 4, MTU as u16) } else { Fate::Error(2, 0, MTU as u16) };
    // A datagram in parts: the first with the ports, others of bytes only.
    let part = |n: u16, id: u16, last: bool| {
        let first = n == 0;
        let packet = if first { ip().udp(5002, 53).filled(72) } else { ip().raw_l4(17, &[7; 80]) };
        packet.with(|p| {
            p.v4(|h| (h.frag, h.id) = ((n * 10) | if last { 0 } else { 0x2000 }, id));
            p.v6(|h| h.ext = vec![Ext::Fragment { offset: n * 10, more: !last, id: id.into() }]);
        })
    };
    let parts = |id| vec![part(0, id, false), part(1, id, false), part(2, id, true)];
    let echo = |reply| ip().echo(reply, 77).filled(20);
    let unreachable = |to: IpAddr| {
        let quoted = Packet::ip(b, to).udp(53, 5000).filled(20).quote();
        ip().icmp(if v4 { 3 } else { 1 }, if v4 { 3 } else { 4 }, [0; 4]).payload(&quoted)
    };
    let group: IpAddr = if v4 { "224.0.0.251" } else { "ff02::fb" }.parse().expect("a group");
    let mut rows = vec![
        ("a datagram", vec![ip().udp(5000, 53).filled(20)], Fate::Pass),
        ("a segment", vec![ip().tcp(5000, 80, ACK).filled(20)], Fate::Pass),
        ("an echo request", vec![echo(false)], Fate::Pass),
        ("another protocol with ports", vec![ip().sctp(5000, 80).filled(16)], Fate::Pass),
        ("as long as it may be", vec![of_length(MTU)], Fate::Pass),
        ("too long", vec![of_length(MTU + 1)], too_big()),
        ("the last hop but one", vec![ip().udp(5000, 53).filled(20).hops(2)], Fate::Pass),
        ("the last hop", vec![ip().udp(5000, 53).filled(20).hops(1)], over()),
        ("no hop left", vec![ip().udp(5000, 53).filled(20).hops(0)], over()),
        ("too long, at its last hop", vec![of_length(MTU + 1).hops(1)], over()),
        ("an echo request at its last hop", vec![echo(false).hops(1)], over()),
        ("an error at its last hop", vec![unreachable(a).hops(1)], Fate::Nothing),
        ("in parts", parts(7), Fate::Pass),
        ("its first part at its last hop", vec![part(0, 8, false).hops(1)], over()),
        ("the first of others", vec![part(0, 9, false)], Fate::Pass),
        ("to a group", vec![Packet::ip(a, group).udp(5353, 5353).filled(20)], Fate::Nothing),
    ];
    if v4 {
        let nops = |n| move |p: &mut Packet| p.v4(|h| h.options = vec![1; n]);
        rows.extend([
            ("options", vec![ip().udp(5000, 53).filled(20).with(nops(8))], Fate::Pass),
            ("options at the last hop", vec![ip().udp(5000, 53).filled(20).hops(1).with(nops(40))], over()),
            ("a later part at its last hop", vec![part(1, 9, true).hops(1)], Fate::Nothing),
        ]);
    } else {
        let extended = |kind| ip().ext(&[Ext::options(kind, 0)]).udp(5000, 53).filled(20);
        rows.extend([
            ("hop-by-hop options", vec![extended(HOPOPTS)], Fate::Pass),
            ("options for the receiver", vec![extended(DSTOPTS)], Fate::Pass),
            ("options at the last hop", vec![extended(HOPOPTS).hops(1)], over()),
            ("a later part at its last hop", vec![part(1, 9, true).hops(1)], over()),
        ]);
    }
    rows
}

/// The one answer that there is, but for what RFC 1812 and 4443 leave to the router: identification, class, how much it quotes.
fn answered(what: &str, seen: &[Vec<u8>], from: IpAddr, to: IpAddr, about: &Packet, kind: (u8, u8, u16)) {
    let [answer] = seen else { panic!("{what}: {seen:02x?}") };
    let (v4, sent) = (from.is_ipv4(), about.quote());
    let head = if v4 { 20 } else { 40 };
    let quoted = answer.len() - head - 8;
    assert!((head + 8..=sent.len()).contains(&quoted), "{what}: quotes {quoted} bytes");
    let [high, low] = kind.2.to_be_bytes();
    let wanted = Packet::ip(from, to).icmp(kind.0, kind.1, [0, 0, high, low]).payload(&sent[..quoted]).quote();
    assert_eq!(answer[head..], wanted[head..], "{what}");
    if v4 {
        assert_eq!(
            (answer[0], &answer[2..4], &answer[8..10], &answer[12..20]),
            (0x45, &wanted[2..4], &wanted[8..10], &wanted[12..20]),
            "{what}"
        );
    } else {
        assert_eq!(answer[4..40], wanted[4..40], "{what}");
    }
}

fn play(what: &str, setup: &Setup) {
    // Longer than what comes behind takes.
    setup.near.run(|| {
        netlink(async |n| {
            let link = n.link_by_name("eth0").await.expect("link").expect("eth0");
            n.set_mtu(link.index, link.mtu + 1000).await.expect("MTU");
        })
    });
    let (near, far) = (Wire::new(&setup.near), Wire::new(&setup.far));
    for (family, router) in Family::BOTH.into_iter().zip(setup.router) {
        let (a, b) = (setup.near.ip(family), setup.far.ip(family));
        for (name, packets, fate) in rows(family, a, b) {
            let what = format!("{what} {family:?} {name}");
            packets.iter().for_each(|p| near.send(p));
            // Packets keep their order: what comes before the answer to the last ones answers the row.
            near.send(&Packet::ip(a, b).udp(FENCE, FENCE));
            near.send(&Packet::ip(a, b).udp(FENCE, FENCE).hops(1));
            let (mark, l4) = ([FENCE.to_be_bytes(); 2].concat(), if family == Family::V4 { 20 } else { 40 });
            let is_fence = |at: usize| {
                let mark = mark.clone();
                move |ip: &[u8]| ip.get(at..at + 4) == Some(&mark[..])
            };
            let arrived = far.until(&what, is_fence(l4));
            let answers = near.until(&what, is_fence(l4 + 8 + l4));
            match fate {
                Fate::Pass => {
                    let wanted: Vec<_> = packets.iter().map(aged).collect();
                    assert_eq!((arrived, answers), (wanted, vec![]), "{what}");
                }
                Fate::Error(kind, code, rest) => {
                    assert_eq!(arrived, Vec::<Vec<u8>>::new(), "{what}");
                    answered(&what, &answers, router, a, &packets[0], (kind, code, rest));
                }
                Fate::Nothing => assert_eq!((arrived, answers), (vec![], vec![]), "{what}"),
            }
        }
    }
}

/// The packet behind the router, from the IP header on.
fn aged(packet: &Packet) -> Vec<u8> {
    let frame = packet.build();
    let hops = frame[ETH + if frame[ETH] >> 4 == 4 { 8 } else { 7 }];
    packet.clone().hops(hops - 1).quote()
}

#[test]
fn as_the_kernel_routes() {
    play("kernel", &Setup::kernel());
}

#[test]
fn as_our_programs_route() {
    for build in ["shared", "own"] {
        play(build, &Setup::ours(build));
    }
}
