// SPDX-License-Identifier: Apache-2.0
//! Whose addresses a container may use, and which destinations are nobody's.

use crate::flow::{after_talk, there};
use pilus_model::abi::DropReason::*;
use pilus_model::abi::FlowState::New;
use pilus_model::abi::*;
use pilus_tests::packet::Packet;
use pilus_tests::scenario::*;
use pilus_tests::wire::{ACK, BROADCAST, ETH_IP, GATEWAY4, GATEWAY6, SYN, link_local};
use pilus_tests::world::Family;
use pilus_tests::world::Who::{A, B, C, Host, World};
use std::net::IpAddr;

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// UDP from `src` to B, of the family of `src`.
fn from(src: &'static str) -> impl Fn(Family) -> Packet {
    move |f| Packet::ip(addr(src), B.ip(f)).udp(5353, 53).filled(20)
}

fn to(dst: &'static str) -> impl Fn(Family) -> Packet {
    move |f| Packet::ip(A.ip(f), addr(dst)).udp(5353, 53).filled(20)
}

fn sources() -> Vec<Scenario> {
    vec![
        row(
            "source MAC",
            after_talk(vec![
                send(A, |f| there(SYN)(f).eth(B.mac(), A.host_mac())).drop(InvalidSourceMac),
                send(A, |f| there(ACK)(f).eth(B.mac(), A.host_mac())).drop(InvalidSourceMac),
                send(A, |f| there(ACK)(f).eth(A.host_mac(), A.host_mac())).drop(InvalidSourceMac),
                send(A, |f| there(ACK)(f).eth([2, 0, 0, 0, 0xaa, 0x2d], A.host_mac())).drop(InvalidSourceMac),
            ]),
        ),
        row(
            "destination MAC",
            after_talk(vec![
                send(A, |f| there(ACK)(f).eth(A.mac(), B.host_mac())).drop(InvalidDestinationMac),
                send(A, |f| there(ACK)(f).eth(A.mac(), B.mac())).drop(InvalidDestinationMac),
                send(A, |f| there(ACK)(f).eth(A.mac(), BROADCAST)).drop(InvalidDestinationMac),
                send(A, |f| there(ACK)(f).eth(A.mac(), [0x33, 0x33, 0, 0, 0, 1])).drop(InvalidDestinationMac),
            ]),
        ),
        row(
            "source of another container",
            after_talk(vec![
                send(A, |f| Packet::ip(C.ip(f), B.ip(f)).tcp(40000, 80, SYN)).drop(InvalidSourceIp).dir(DIR_EGRESS),
                send(A, |f| Packet::ip(B.ip(f), A.ip(f)).tcp(80, 40000, ACK)).drop(InvalidSourceIp),
                send(C, |f| there(ACK)(f)).drop(InvalidSourceIp),
                send(C, |f| Packet::ip(B.ip(f), A.ip(f)).tcp(80, 40000, ACK)).drop(InvalidSourceIp),
                send(A, |f| Packet::ip(Host.ip(f), B.ip(f)).tcp(40000, 80, SYN)).drop(InvalidSourceIp),
                send(A, |f| Packet::ip(World.ip(f), B.ip(f)).tcp(40000, 80, SYN)).drop(InvalidSourceIp),
            ]),
        ),
        row4(
            "sources that are nobody's, IPv4",
            vec![
                send(A, from("0.0.0.0")).drop(InvalidSourceIp),
                send(A, from("127.0.0.1")).drop(InvalidSourceIp),
                send(A, from("169.254.1.1")).drop(InvalidSourceIp),
                send(A, from("224.0.0.1")).drop(InvalidSourceIp),
                send(A, from("255.255.255.255")).drop(InvalidSourceIp),
                send(A, |_| Packet::ip(addr("0.0.0.0"), addr("255.255.255.255")).udp(68, 67).filled(240)).drop(InvalidSourceIp),
            ],
        ),
        row4(
            "an endpoint without IPv4 has no address 0.0.0.0",
            vec![act(|w, _| w.change(A, |row| row.ip4 = Be32::default())), send(A, from("0.0.0.0")).drop(InvalidSourceIp)],
        ),
        row6(
            "sources that are nobody's, IPv6",
            vec![
                send(A, from("::")).drop(InvalidSourceIp),
                send(A, from("::1")).drop(InvalidSourceIp),
                send(A, from("fe80::1")).drop(InvalidSourceIp),
                send(A, from("fe80::1234")).drop(InvalidSourceIp),
                send(A, from("ff02::1")).drop(InvalidSourceIp),
                send(A, |_| Packet::ip(link_local(B.mac()).into(), B.ip6().into()).udp(1, 53)).drop(InvalidSourceIp),
                send(A, |_| Packet::ip(addr("::"), addr("ff02::1:2")).udp(546, 547)).drop(InvalidSourceIp),
            ],
        ),
        row6(
            "a link-local source is not routed",
            vec![
                send(A, |_| Packet::ip(A.link_local().into(), B.ip6().into()).udp(1, 53)).drop(InvalidSourceIp),
                send(A, |_| Packet::ip(A.link_local().into(), Host.ip6().into()).udp(1, 53)).drop(InvalidSourceIp),
                send(A, |_| Packet::ip(A.link_local().into(), World.ip6().into()).udp(1, 53)).drop(InvalidSourceIp),
                send(A, |_| Packet::ip(A.link_local().into(), B.ip6().into()).udp(1, 53).hops(1)).drop(InvalidSourceIp),
                send(A, |_| Packet::ip(A.link_local().into(), addr("ff02::fb")).udp(5353, 5353)).drop(Multicast),
            ],
        ),
    ]
}

fn destinations() -> Vec<Scenario> {
    vec![
        row4(
            "groups and broadcast, IPv4",
            vec![
                send(A, to("224.0.0.251")).drop(Multicast),
                send(A, to("239.1.2.3")).drop(Multicast),
                send(A, to("255.255.255.255")).drop(Multicast),
                send(A, |f| to("224.0.0.251")(f).with(|p| p.eth_dst = A.host_mac())).drop(Multicast),
            ],
        ),
        row6(
            "groups, IPv6",
            vec![
                send(A, to("ff02::1")).drop(Multicast),
                send(A, to("ff05::2")).drop(Multicast),
                send(A, to("ff0e::1")).drop(Multicast),
                send(A, |f| to("ff02::fb")(f).with(|p| p.eth_dst = A.host_mac())).drop(Multicast),
                send(A, |_| Packet::ip(A.ip6().into(), addr("ff02::1")).echo(false, 1)).drop(Multicast),
            ],
        ),
        row4(
            "destinations that nobody routes, IPv4",
            vec![
                send(A, to("0.0.0.0")).drop(InvalidDestination),
                send(A, to("0.1.2.3")).drop(InvalidDestination),
                send(A, to("127.0.0.1")).drop(InvalidDestination),
                send(A, to("169.254.1.2")).drop(InvalidDestination),
                send(A, to("169.254.169.254")).drop(InvalidDestination),
            ],
        ),
        row6(
            "destinations that nobody routes, IPv6",
            vec![
                send(A, to("::")).drop(InvalidDestination),
                send(A, to("::1")).drop(InvalidDestination),
                send(A, to("fe80::2")).drop(InvalidDestination),
                send(A, |_| Packet::ip(A.ip6().into(), B.link_local().into()).udp(1, 53)).drop(InvalidDestination),
                send(A, to("febf::1")).drop(InvalidDestination),
            ],
        ),
        row4(
            "neighbours of those ranges are the world's, IPv4",
            vec![
                send(A, to("1.0.0.0")).pass(World, New),
                send(A, to("126.255.255.255")).pass(World, New),
                send(A, to("128.0.0.0")).pass(World, New),
                send(A, to("169.253.1.1")).pass(World, New),
                send(A, to("169.255.1.1")).pass(World, New),
                send(A, to("223.255.255.255")).pass(World, New),
            ],
        ),
        row6(
            "neighbours of those ranges are the world's, IPv6",
            vec![send(A, to("::2")).pass(World, New), send(A, to("fec0::1")).pass(World, New), send(A, to("fe7f::1")).pass(World, New)],
        ),
        row(
            "a prefix knows what the exact table does not",
            vec![
                act(|w, f| {
                    let (net, bits) = if f == Family::V4 { (addr("192.0.2.0"), 24) } else { (addr("2001:db8:1::"), 48) };
                    w.announce_prefix(net, bits, 7777, SLOT_WORLD);
                    w.announce_prefix(B.ip(f), if f == Family::V4 { 8 } else { 16 }, 1, SLOT_WORLD);
                    let rules = [pilus_tests::world::rule(53, 53, pilus_tests::wire::UDP, 0, 1)];
                    w.rules(pilus_tests::world::POLICY_FREE, DIR_EGRESS, 7777, &rules);
                    w.rules(pilus_tests::world::POLICY_FREE, DIR_EGRESS, B.identity(), &rules);
                    w.change(A, |row| row.policy_out = pilus_tests::world::POLICY_FREE);
                }),
                send(A, |f| Packet::ip(A.ip(f), addr(if f == Family::V4 { "192.0.2.5" } else { "2001:db8:1::5" })).udp(1, 53))
                    .pass(World, New),
                send(A, |f| Packet::ip(A.ip(f), addr(if f == Family::V4 { "192.0.3.5" } else { "2001:db8:2::5" })).udp(1, 53))
                    .drop(PolicyDenied),
                send(A, |f| f.ip(A, B).udp(1, 53)).pass(B, New),
            ],
        ),
    ]
}

fn interfaces() -> Vec<Scenario> {
    vec![
        row(
            "an interface that is no container's",
            vec![
                send(A, there(SYN)).on(1).drop(NoEndpoint),
                act(|w, _| w.change(C, |row| row.ifindex = 1)),
                send(C, |f| f.ip(C, A).tcp(1, 2, SYN)).drop(NoEndpoint),
            ],
        ),
        row(
            "a row that is not in use",
            vec![
                act(|w, _| w.change(A, |row| row.flags &= !EP_VALID)),
                send(A, there(SYN)).drop(NoEndpoint),
                // Nobody asks for its report, nor is the packet for anybody who does.
                act(|w, _| w.change(A, |row| row.flags = 0)),
                send(A, |_| Packet::raw(0x88cc, &[0; 50])).drop(NoEndpoint),
            ],
        ),
        row(
            "frames that are no IP",
            vec![
                send(A, |_| Packet::raw(0x88cc, &[0; 50])).drop(UnsupportedL3),
                send(A, |_| Packet::raw(100, &[0; 100])).drop(UnsupportedL3),
                send(A, |f| there(SYN)(f).with(|p| p.vlan = Some(5))).drop(UnsupportedL3),
                send(A, |f| there(SYN)(f).with(|p| p.ether_type = Some(0x8864))).drop(UnsupportedL3),
                send(Host, |_| Packet::raw(0x88cc, &[0; 50])).drop(UnsupportedL3),
                send(Host, |_| Packet::arp(Host.mac(), Host.ip4(), A.ip4())).drop(UnsupportedL3),
            ],
        ),
        row4(
            "the header's version is the frame's",
            vec![
                send(A, |_| Packet::ip(A.ip6().into(), B.ip6().into()).udp(1, 53).filled(20).with(|p| p.ether_type = Some(ETH_IP)))
                    .drop(InvalidPacket),
            ],
        ),
    ]
}

pub fn table() -> Vec<Scenario> {
    assert!(GATEWAY4.is_link_local() && GATEWAY6.is_unicast_link_local());
    [sources(), destinations(), interfaces()].into_iter().flatten().collect()
}

#[test]
fn sources_and_destinations() {
    run(table);
}
