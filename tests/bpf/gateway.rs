// SPDX-License-Identifier: Apache-2.0
//! What the gateway answers, and what it does not.

use crate::fragments::part;
use pilus_model::abi::DropReason::*;
use pilus_model::abi::FlowState;
use pilus_model::abi::*;
use pilus_tests::check::view;
use pilus_tests::packet::{Arp, Net, Packet};
use pilus_tests::scenario::*;
use pilus_tests::wire::{self, ACK, BROADCAST, ETH, GATEWAY4, GATEWAY6, ICMP, ICMPV6, SYN, solicited_node};
use pilus_tests::world::Family;
use pilus_tests::world::Who::{A, B, C, Host, World};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what} is {found:02x?}, expected {wanted:02x?}")) }
}

fn arp(change: impl Fn(&mut Arp)) -> Packet {
    Packet::arp(A.mac(), A.ip4(), GATEWAY4).with(|p| {
        if let Net::Arp(a) = &mut p.net {
            change(a);
        }
    })
}

fn arp_answer(question: &[u8], answer: &[u8], _: Family) -> Result<(), String> {
    let (mac, host) = (A.mac(), A.host_mac());
    let mut wanted = [&mac[..], &host, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &host, &[169, 254, 1, 1], &mac, &A.ip4().octets()].concat();
    wanted.extend(&question[42..]);
    same("ARP answer", answer, &wanted[..])
}

fn arps() -> Vec<Scenario> {
    vec![
        row4(
            "ARP for the gateway",
            vec![
                send(A, |_| arp(|_| ())).answer(arp_answer),
                send(A, |_| arp(|_| ()).with(|p| p.eth_dst = A.host_mac())).answer(arp_answer),
                send(A, |_| arp(|_| ()).with(|p| p.trailer = vec![0x55; 18])).answer(arp_answer),
            ],
        ),
        row4(
            "ARP that is not answered",
            vec![
                send(A, |_| arp(|a| a.spa = Ipv4Addr::UNSPECIFIED)).drop(Neighbour),
                send(A, |_| arp(|a| (a.spa, a.tpa) = (Ipv4Addr::UNSPECIFIED, A.ip4()))).drop(Neighbour),
                send(A, |_| arp(|a| a.tpa = A.ip4())).drop(Neighbour),
                send(A, |_| arp(|a| a.tpa = B.ip4())).drop(Neighbour),
                send(A, |_| arp(|a| a.tpa = Host.ip4())).drop(Neighbour),
                send(A, |_| arp(|a| a.op = 2)).drop(Neighbour),
            ],
        ),
        row4(
            "ARP with another's address",
            vec![
                send(A, |_| arp(|a| a.spa = B.ip4())).drop(InvalidSourceIp),
                send(A, |_| arp(|a| a.spa = GATEWAY4)).drop(InvalidSourceIp),
                send(A, |_| arp(|a| a.sha = B.mac())).drop(InvalidSourceMac),
                send(A, |_| arp(|_| ()).eth(B.mac(), BROADCAST)).drop(InvalidSourceMac),
                send(A, |_| arp(|_| ()).with(|p| p.eth_dst = B.host_mac())).drop(InvalidDestinationMac),
            ],
        ),
        row4(
            "ARP of another shape",
            vec![
                send(A, |_| arp(|a| a.htype = 6)).drop(InvalidPacket),
                send(A, |_| arp(|a| a.hlen = 8)).drop(InvalidPacket),
                send(A, |_| arp(|_| ()).cut(41)).drop(InvalidPacket),
            ],
        ),
    ]
}

fn solicit(src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr) -> impl Fn(Family) -> Packet {
    move |_| Packet::solicit(A.mac(), src, dst, target)
}

/// An advertisement of the gateway: to `to`, with these flags.
fn advert(to: Ipv6Addr, flags: u8) -> impl Fn(&[u8], &[u8], Family) -> Result<(), String> {
    move |_, answer, _| {
        let seen = view(answer)?;
        same("MACs", (seen.eth_dst, seen.eth_src), (A.mac(), A.host_mac()))?;
        same("addresses", (seen.src, seen.dst), (GATEWAY6.into(), to.into()))?;
        same("hop limit and protocol", (seen.hops, seen.proto), (255, ICMPV6))?;
        same("length", answer.len(), ETH + 40 + 32)?;
        let l4 = [&[136, 0, seen.l4[2], seen.l4[3], flags, 0, 0, 0], &GATEWAY6.octets()[..], &[2, 1], &A.host_mac()].concat();
        same("advertisement", seen.l4, l4)
    }
}

fn router_advert(to: Ipv6Addr) -> impl Fn(&[u8], &[u8], Family) -> Result<(), String> {
    move |_, answer, _| {
        let seen = view(answer)?;
        same("MACs", (seen.eth_dst, seen.eth_src), (A.mac(), A.host_mac()))?;
        same("addresses", (seen.src, seen.dst), (GATEWAY6.into(), to.into()))?;
        same("hop limit and protocol", (seen.hops, seen.proto), (255, ICMPV6))?;
        same("length", answer.len(), ETH + 40 + 32)?;
        let lifetime = 9000u16.to_be_bytes();
        let mut l4 = vec![134, 0, seen.l4[2], seen.l4[3], 64, 0, lifetime[0], lifetime[1], 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        l4.extend(A.host_mac());
        l4.extend([5, 1, 0, 0]);
        l4.extend(1420u32.to_be_bytes());
        same("advertisement", seen.l4, l4)
    }
}

fn rs(src: Ipv6Addr) -> Packet {
    let option = if src.is_unspecified() { vec![] } else { [vec![1, 1], A.mac().to_vec()].concat() };
    Packet::ip(src.into(), ALL_ROUTERS.into()).hops(255).icmp(133, 0, [0; 4]).payload(&option)
}

/// Neighbour discovery message of A.
fn nd(kind: u8, dst: IpAddr, target: Ipv6Addr) -> Packet {
    Packet::ip(A.link_local().into(), dst).hops(255).icmp(kind, 0, [0x60, 0, 0, 0]).payload(&target.octets())
}

fn neighbours() -> Vec<Scenario> {
    let (own, ll) = (A.ip6(), A.link_local());
    vec![
        row6(
            "solicitation of the gateway",
            vec![
                send(A, solicit(ll, solicited_node(GATEWAY6), GATEWAY6)).answer(advert(ll, 0xe0)),
                send(A, solicit(own, solicited_node(GATEWAY6), GATEWAY6)).answer(advert(own, 0xe0)),
                send(A, solicit(ll, GATEWAY6, GATEWAY6)).answer(advert(ll, 0xe0)),
                send(A, solicit(own, GATEWAY6, GATEWAY6)).answer(advert(own, 0xe0)),
                send(A, solicit(NOBODY, solicited_node(GATEWAY6), GATEWAY6)).answer(advert(ALL_NODES, 0xa0)),
                send(A, |_| Packet::solicit(A.mac(), A.ip6(), GATEWAY6, GATEWAY6).with(|p| p.payload.truncate(16)))
                    .answer(advert(own, 0xe0)),
            ],
        ),
        row6(
            "solicitation that is not answered",
            vec![
                send(A, solicit(NOBODY, solicited_node(own), own)).drop(Neighbour),
                send(A, solicit(NOBODY, solicited_node(ll), ll)).drop(Neighbour),
                send(A, solicit(ll, solicited_node(own), own)).drop(Neighbour),
                send(A, solicit(ll, solicited_node(B.ip6()), B.ip6())).drop(Neighbour),
                send(A, solicit(ll, Host.ip6(), Host.ip6())).drop(Neighbour),
                send(A, solicit(ll, B.ip6(), B.ip6())).drop(Neighbour),
            ],
        ),
        row6(
            "solicitation that is none of a neighbour's",
            vec![
                send(A, move |_| Packet::solicit(A.mac(), ll, GATEWAY6, GATEWAY6).hops(254)).drop(InvalidPacket),
                send(A, move |_| Packet::solicit(A.mac(), ll, GATEWAY6, GATEWAY6).hops(1)).drop(InvalidPacket),
                send(A, move |_| Packet::solicit(A.mac(), ll, GATEWAY6, GATEWAY6).icmp(135, 1, [0; 4])).drop(InvalidPacket),
                send(A, move |_| Packet::solicit(A.mac(), ll, GATEWAY6, GATEWAY6).with(|p| p.payload.truncate(15))).drop(TruncatedL4),
                send(A, move |_| Packet::solicit(A.mac(), ll, GATEWAY6, GATEWAY6).with(|p| p.v6(|ip| ip.payload_len = Some(8))))
                    .drop(TruncatedL4),
            ],
        ),
        row6(
            "solicitation with another's address",
            vec![
                send(A, solicit(B.ip6(), GATEWAY6, GATEWAY6)).drop(InvalidSourceIp),
                send(A, solicit(B.link_local(), GATEWAY6, GATEWAY6)).drop(InvalidSourceIp),
                send(A, solicit(GATEWAY6, solicited_node(GATEWAY6), GATEWAY6)).drop(InvalidSourceIp),
            ],
        ),
        row6(
            "router solicitation",
            vec![
                send(A, move |_| rs(ll)).answer(router_advert(ll)),
                send(A, move |_| rs(own)).answer(router_advert(own)),
                send(A, |_| rs(NOBODY)).answer(router_advert(ALL_NODES)),
                send(A, move |_| rs(ll).hops(64)).drop(InvalidPacket),
            ],
        ),
        row6(
            "advertisements and redirects of a container",
            vec![
                send(A, |_| nd(136, ALL_NODES.into(), A.ip6())).drop(Neighbour),
                send(A, |_| nd(134, ALL_NODES.into(), A.ip6())).drop(Neighbour),
                send(A, |_| nd(137, B.ip6().into(), A.ip6())).drop(Neighbour),
                send(A, |_| nd(136, B.ip6().into(), A.ip6())).drop(Neighbour),
                send(A, |_| nd(134, Host.ip6().into(), A.ip6())).drop(Neighbour),
                send(A, |_| nd(137, Host.ip6().into(), A.ip6())).drop(Neighbour),
            ],
        ),
        row6(
            "answer to the host's solicitation",
            vec![
                send(A, |_| nd(136, Host.ip6().into(), A.ip6())).pass(Host, FlowState::None),
                send(A, |_| nd(136, Host.ip6().into(), A.link_local())).pass(Host, FlowState::None),
                send(A, |_| nd(136, Host.ip6().into(), A.ip6()).hops(64)).drop(Neighbour),
                send(A, |_| nd(136, Host.ip6().into(), B.ip6())).drop(Neighbour),
                send(A, |_| nd(136, Host.ip6().into(), GATEWAY6)).drop(Neighbour),
                send(A, |_| nd(136, Host.ip6().into(), A.ip6()).with(|p| p.payload.truncate(15))).drop(TruncatedL4),
            ],
        ),
        row6(
            "listener messages",
            vec![
                send(A, move |_| Packet::ip(NOBODY.into(), "ff02::16".parse().unwrap()).hops(1).icmp(143, 0, [0; 4]).filled(20))
                    .drop(Multicast),
                send(A, move |_| Packet::ip(ll.into(), "ff02::16".parse().unwrap()).hops(1).icmp(143, 0, [0; 4]).filled(20))
                    .drop(Multicast),
                send(A, move |_| Packet::ip(ll.into(), ALL_NODES.into()).hops(1).icmp(131, 0, [0; 4]).filled(16)).drop(Multicast),
                send(A, move |_| Packet::ip(NOBODY.into(), ALL_NODES.into()).hops(1).icmp(130, 0, [0; 4]).filled(16)).drop(InvalidSourceIp),
            ],
        ),
    ]
}

fn gateway(f: Family) -> IpAddr {
    if f == Family::V4 { GATEWAY4.into() } else { GATEWAY6.into() }
}

/// The echo came back whole, from where it was sent to.
fn echoed(question: &[u8], answer: &[u8], f: Family) -> Result<(), String> {
    let (q, a) = (view(question)?, view(answer)?);
    same("MACs", (a.eth_dst, a.eth_src), (A.mac(), A.host_mac()))?;
    same("addresses", (a.src, a.dst), (q.dst, q.src))?;
    let mut l4 = q.l4.clone();
    l4[0] = if f == Family::V4 { 0 } else { 129 };
    l4[2..4].copy_from_slice(&a.l4[2..4]);
    same("message", a.l4, l4)?;
    same("length", answer.len(), question.len())
}

fn echo(f: Family) -> Packet {
    Packet::ip(A.ip(f), gateway(f)).echo(false, 99).filled(56)
}

fn echoes() -> Vec<Scenario> {
    vec![
        row(
            "echo to the gateway",
            vec![
                send(A, echo).answer(echoed),
                send(A, |f| echo(f).filled(1400)).answer(echoed),
                send(A, |f| echo(f).filled(0)).answer(echoed),
                send(A, |f| echo(f).filled(7).hops(1)).answer(echoed),
            ],
        ),
        row(
            "any checksum of an echo",
            (0..300u16).map(|n| send(A, move |f| echo(f).payload(&(n * 219).to_be_bytes())).answer(echoed)).collect(),
        ),
        row4("echo with options", vec![send(A, |f| echo(f).with(|p| p.v4(|ip| ip.options = vec![1; 12]))).answer(echoed)]),
        row6(
            "echo of the link-local address",
            vec![send(A, |_| Packet::ip(A.link_local().into(), GATEWAY6.into()).echo(false, 1).filled(9)).answer(echoed)],
        ),
        row(
            "anything else for the gateway",
            vec![
                send(A, |f| Packet::ip(A.ip(f), gateway(f)).echo(true, 1)).drop(UnknownTarget),
                send(A, |f| Packet::ip(A.ip(f), gateway(f)).tcp(1, 22, SYN)).drop(UnknownTarget),
                send(A, |f| Packet::ip(A.ip(f), gateway(f)).udp(1, 53)).drop(UnknownTarget),
                send(A, |f| Packet::ip(A.ip(f), gateway(f)).icmp(if f == Family::V4 { 8 } else { 128 }, 1, [0; 4])).drop(UnknownTarget),
            ],
        ),
        row(
            "echo to the gateway with another's address",
            vec![send(A, |f| Packet::ip(B.ip(f), gateway(f)).echo(false, 1)).drop(InvalidSourceIp)],
        ),
    ]
}

/// Time exceeded, quoting the packet as it came, as much of it as fits.
fn expired(question: &[u8], answer: &[u8], f: Family) -> Result<(), String> {
    let seen = view(answer)?;
    same("MACs", (seen.eth_dst, seen.eth_src), (A.mac(), A.host_mac()))?;
    same("addresses", (seen.src, seen.dst), (Host.ip(f), A.ip(f)))?;
    let (proto, kind) = if f == Family::V4 { (ICMP, 11) } else { (ICMPV6, 3) };
    same("protocol and kind", (seen.proto, seen.l4[0], seen.l4[1]), (proto, kind, 0))?;
    same("unused", &seen.l4[4..8], &[0; 4])?;
    let quote = &question[ETH..];
    let len = seen.l4.len() - 8;
    // A multiple of four, at most 128.
    if len != quote.len().min(128) & !3 {
        return Err(format!("{len} bytes of {} are quoted", quote.len()));
    }
    same("quote", &seen.l4[8..], &quote[..len])?;
    same("length", answer.len(), ETH + if f == Family::V4 { 20 } else { 40 } + seen.l4.len())
}

fn hops() -> Vec<Scenario> {
    let short = |f: Family| f.ip(A, B).udp(40000, 33434).filled(12);
    vec![
        row(
            "hop count 1",
            vec![
                send(A, move |f| short(f).hops(1)).answer(expired),
                send(A, move |f| short(f).hops(0)).answer(expired),
                send(A, |f| f.ip(A, B).tcp(40000, 80, SYN).hops(1)).answer(expired),
                send(A, |f| f.ip(A, B).tcp(40000, 80, SYN).filled(1400).hops(1)).answer(expired),
                send(A, |f| f.ip(A, B).echo(false, 3).filled(56).hops(1)).answer(expired),
                send(A, |f| f.ip(A, C).sctp(1, 2).filled(30).hops(1)).answer(expired),
            ],
        ),
        row(
            "hop count 1 of an established flow",
            crate::flow::after_talk(vec![
                send(A, |f| crate::flow::there(ACK)(f).hops(1)).answer(expired),
                send(A, |f| crate::flow::there(ACK)(f).hops(2)).pass(B, FlowState::Established).packets(3, 1).flow(A, FLOW_REPLY),
            ]),
        ),
        row("every length", (20..160).map(|n| send(A, move |f| short(f).filled(n).hops(1)).answer(expired)).collect()),
        row(
            "hop count 1 of an error",
            vec![
                send(A, |f| {
                    let quoted = f.ip(B, A).udp(1, 2).quote();
                    f.ip(A, B).icmp(if f == Family::V4 { 3 } else { 1 }, 1, [0; 4]).payload(&quoted).hops(1)
                })
                .drop(TtlExceeded),
            ],
        ),
        row(
            "the host and the world count themselves",
            vec![
                send(A, |f| f.ip(A, Host).udp(1, 2).hops(1)).pass(Host, FlowState::New),
                send(A, |f| f.ip(A, World).udp(1, 2).hops(1)).pass(World, FlowState::New),
            ],
        ),
        row6(
            "a later part of an IPv6 datagram",
            vec![
                send(A, |f| part(f.ip(A, B).udp(1, 53).filled(56), 7, 0, true)).pass(B, FlowState::New),
                send(A, |f| part(f.ip(A, B).raw_l4(wire::UDP, &[7; 64]), 7, 64, false).hops(1)).answer(expired),
            ],
        ),
        row4(
            "a later part of an IPv4 datagram",
            vec![
                send(A, |f| part(f.ip(A, B).udp(1, 53).filled(56), 7, 0, true)).pass(B, FlowState::New),
                send(A, |f| part(f.ip(A, B).raw_l4(wire::UDP, &[7; 64]), 7, 64, false).hops(1)).drop(TtlExceeded),
            ],
        ),
        row("the host counted already", vec![send(Host, |f| f.ip(Host, A).tcp(1, 8080, SYN).hops(1)).pass(A, FlowState::New)]),
        row4(
            "hop count 1 with options",
            vec![send(A, |f| f.ip(A, B).udp(1, 2).with(|p| p.v4(|ip| ip.options = vec![1; 40])).filled(64).hops(1)).answer(expired)],
        ),
        row("hop count 1 with another's address", vec![send(A, |f| Packet::ip(C.ip(f), B.ip(f)).udp(1, 2).hops(1)).drop(InvalidSourceIp)]),
    ]
}

pub fn table() -> Vec<Scenario> {
    [arps(), neighbours(), echoes(), hops()].into_iter().flatten().collect()
}

#[test]
fn gateway_answers() {
    assert_eq!(wire::octets(gateway(Family::V4)), [169, 254, 1, 1]);
    run(table);
}
