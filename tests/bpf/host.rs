// SPDX-License-Identifier: Apache-2.0
//! What the host's stack sends to containers.

use pilus_model::abi::DropReason::*;
use pilus_model::abi::FlowState::{self, Established, New, Reply};
use pilus_model::abi::*;
use pilus_tests::packet::{L4, Packet};
use pilus_tests::scenario::*;
use pilus_tests::wire::{ACK, SYN, solicited_node};
use pilus_tests::world::Who::{A, B, C, Host, World};

fn ns(dst: std::net::Ipv6Addr) -> Packet {
    Packet::solicit(Host.host_mac(), Host.ip6(), dst, A.ip6())
}

pub fn table() -> Vec<Scenario> {
    vec![
        row(
            "the host opens",
            vec![
                send(Host, |f| f.ip(Host, A).tcp(50000, 8080, SYN)).pass(A, New).flow(Host, 0).dir(DIR_INGRESS),
                send(A, |f| f.ip(A, Host).tcp(8080, 50000, SYN | ACK)).pass(Host, Reply).flow(Host, FLOW_REPLY),
                send(Host, |f| f.ip(Host, A).tcp(50000, 8080, ACK)).pass(A, Established).flow(Host, FLOW_REPLY).packets(2, 1),
                send(Host, |f| f.ip(Host, A).tcp(50000, 8080, ACK).filled(1300)).pass(A, Established).packets(3, 1).flow(Host, FLOW_REPLY),
                send(Host, |f| f.ip(Host, A).tcp(50000, 8081, SYN)).drop(PolicyDenied).flow(Host, FLOW_DENY),
            ],
        ),
        row(
            "the host pings",
            vec![
                send(Host, |f| f.ip(Host, A).echo(false, 1)).pass(A, New).flow(Host, 0),
                send(A, |f| f.ip(A, Host).echo(true, 1)).pass(Host, Reply).flow(Host, FLOW_REPLY),
                send(Host, |f| f.ip(Host, B).echo(false, 1)).drop(PolicyDenied),
            ],
        ),
        row(
            "the world is not the host",
            vec![
                send(Host, |f| f.ip(World, A).tcp(50000, 8080, SYN)).drop(PolicyDenied).flow(World, FLOW_DENY),
                send(Host, |f| f.ip(World, A).tcp(50001, 8080, ACK)).drop(PolicyDenied).no_flow(),
                send(Host, |f| f.ip(World, A).udp(1, 53)).drop(PolicyDenied).no_flow(),
            ],
        ),
        row(
            "the world opens",
            vec![
                act(|w, _| w.repolicy(A, |row| row.policy_in = POLICY_OPEN)),
                send(Host, |f| f.ip(World, A).tcp(50000, 80, SYN)).pass(A, New).flow(World, 0),
                send(A, |f| f.ip(A, World).tcp(80, 50000, SYN | ACK)).pass(World, Reply),
                send(Host, |f| f.ip(World, A).tcp(50000, 80, ACK)).pass(A, Established).flow(World, FLOW_REPLY).packets(2, 1),
                act(|w, _| w.repolicy(A, |row| row.policy_in = POLICY_NONE)),
                send(Host, |f| f.ip(World, A).tcp(50000, 80, ACK)).drop(Revoked),
                send(A, |f| f.ip(A, World).tcp(80, 50000, ACK)).drop(Revoked).flow(World, FLOW_REPLY | FLOW_DENY),
            ],
        ),
        row(
            "a receiver with a program of its own",
            vec![
                send(Host, |f| f.ip(Host, C).tcp(50000, 80, SYN)).pass(C, New).flow(Host, 0),
                send(C, |f| f.ip(C, Host).tcp(80, 50000, SYN | ACK)).pass(Host, Reply),
                send(Host, |f| f.ip(Host, C).tcp(50000, 80, ACK)).pass(C, Established).flow(Host, FLOW_REPLY),
                act(|w, _| assert!(w.receive.clear(C.slot()).unwrap())),
                send(Host, |f| f.ip(Host, C).tcp(50000, 80, ACK)).drop(MissedTailCall),
            ],
        ),
        row(
            "nobody but a container speaks with its address",
            crate::flow::after_talk(vec![
                send(Host, |f| f.ip(A, B).tcp(40000, 80, ACK)).drop(InvalidSourceIp),
                send(Host, |f| f.ip(B, A).tcp(80, 40000, ACK)).drop(InvalidSourceIp),
                send(Host, |f| f.ip(A, B).tcp(40000, 80, SYN)).drop(InvalidSourceIp),
                send(Host, |f| f.ip(C, B).udp(1, 53)).drop(InvalidSourceIp),
            ]),
        ),
        row(
            "targets that are no container",
            vec![
                send(Host, |f| f.ip(Host, World).udp(1, 53)).drop(UnknownTarget),
                send(Host, |f| f.ip(World, Host).udp(1, 53)).drop(UnknownTarget),
                act(|w, _| w.change(A, |row| row.flags &= !EP_VALID)),
                send(Host, |f| f.ip(Host, A).tcp(50000, 8080, SYN)).drop(UnknownTarget),
            ],
        ),
        row(
            "groups",
            vec![
                send(Host, |f| {
                    let group = if f == pilus_tests::world::Family::V4 { "224.0.0.1" } else { "ff02::1" };
                    Packet::ip(Host.ip(f), group.parse().unwrap()).udp(1, 53)
                })
                .drop(Multicast),
            ],
        ),
        row6(
            "the host's solicitation reaches the container",
            vec![
                send(Host, |_| ns(A.ip6())).pass(A, FlowState::None),
                send(Host, |_| ns(solicited_node(A.ip6()))).drop(Multicast),
                send(Host, |_| ns(A.ip6()).hops(254)).drop(Neighbour),
                send(Host, |_| ns(A.ip6()).with(|p| p.l4 = L4::Icmp { kind: 136, code: 0, rest: [0; 4], checksum: Option::None }))
                    .drop(Neighbour),
                send(Host, |_| Packet::solicit(Host.host_mac(), World.ip6(), A.ip6(), A.ip6())).drop(Neighbour),
            ],
        ),
        row(
            "nobody takes over the world's flow",
            vec![
                send(A, |f| f.ip(A, World).udp(1000, 53)).pass(World, New),
                send(Host, |f| f.ip(World, A).udp(53, 1000)).pass(A, Reply).flow(A, FLOW_REPLY),
                act(|w, f| w.announce(World.ip(f), Host.identity(), Host.slot())),
                send(Host, |f| f.ip(World, B).udp(53, 1000)).drop(PolicyDenied),
            ],
        ),
    ]
}

#[test]
fn from_the_host() {
    run(table);
}
