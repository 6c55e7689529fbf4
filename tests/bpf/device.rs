// SPDX-License-Identifier: Apache-2.0
//! What a device of the node receives.

use crate::mtu::told;
use pilus_model::abi::DropReason::*;
use pilus_model::abi::FlowState::{Established, New, Reply};
use pilus_model::abi::*;
use pilus_tests::outcome::TC_ACT_UNSPEC;
use pilus_tests::packet::Packet;
use pilus_tests::scenario::*;
use pilus_tests::wire::{ACK, SYN};
use pilus_tests::world::Family::{V4, V6};
use pilus_tests::world::Who::{A, B, C, Host, World as Outside};
use pilus_tests::world::World;
use std::net::IpAddr;

fn open() -> Step {
    act(|w, _| w.repolicy(A, |row| row.policy_in = POLICY_OPEN))
}

/// A row in which A hears from one that it cannot be.
fn from(name: &'static str, source: &'static str) -> Scenario {
    let ip: IpAddr = source.parse().expect("an address");
    let step = send(Outside, move |f| Packet::ip(ip, A.ip(f)).udp(1, 53)).drop(InvalidSourceIp).dir(DIR_INGRESS);
    let steps = vec![open(), step];
    if ip.is_ipv4() { row4(name, steps) } else { row6(name, steps) }
}

pub fn table() -> Vec<Scenario> {
    vec![
        row(
            "the world opens, by a device",
            vec![
                send(Outside, |f| f.ip(Outside, A).tcp(50001, 80, SYN)).drop(PolicyDenied).dir(DIR_INGRESS),
                open(),
                send(Outside, |f| f.ip(Outside, A).tcp(50000, 80, SYN)).pass(A, New),
                send(A, |f| f.ip(A, Outside).tcp(80, 50000, SYN | ACK)).pass(Outside, Reply),
                send(Outside, |f| f.ip(Outside, A).tcp(50000, 80, ACK)).pass(A, Established).packets(2, 1),
                send(Outside, |f| f.ip(Outside, A).tcp(50000, 80, ACK).filled(1421)).answer(told(1420)),
            ],
        ),
        row("a receiver with a program of its own, by a device", vec![send(Outside, |f| f.ip(Outside, C).udp(1, 2)).pass(C, New)]),
        row(
            "the host's address from outside",
            vec![
                send(Host, |f| f.ip(Host, A).tcp(50000, 8080, SYN)).pass(A, New),
                send(A, |f| f.ip(A, Host).tcp(8080, 50000, SYN | ACK)).pass(Host, Reply),
                // Neither an open flow nor a rule is for who only says to be the host.
                send(Outside, |f| f.ip(Host, A).tcp(50000, 8080, ACK)).drop(InvalidSourceIp),
                send(Outside, |f| f.ip(Host, A).tcp(50001, 8080, SYN)).drop(InvalidSourceIp),
                send(Host, |f| f.ip(Host, A).tcp(50000, 8080, ACK)).pass(A, Established).packets(2, 1),
            ],
        ),
        row("a container's address from outside", vec![open(), send(Outside, |f| f.ip(B, A).udp(1, 53)).drop(InvalidSourceIp)]),
        from("loopback", "127.0.0.1"),
        from("loopback, IPv6", "::1"),
        from("no address", "0.0.0.0"),
        from("no address, IPv6", "::"),
        from("link-local", "169.254.1.1"),
        from("link-local, IPv6", "fe80::1"),
        from("multicast", "224.0.0.1"),
        from("broadcast", "255.255.255.255"),
        from("multicast, IPv6", "ff02::1"),
        row(
            "an address that nobody has",
            vec![
                act(|w, _| {
                    w.announce_prefix("10.7.0.0".parse().expect("address"), 16, 0, 0);
                    w.announce_prefix("fd00:7::".parse().expect("address"), 64, 0, 0);
                }),
                send(Outside, |f| {
                    let nobody: IpAddr = if f == V4 { "10.7.0.99" } else { "fd00:7::99" }.parse().expect("address");
                    Packet::ip(Outside.ip(f), nobody).udp(1, 53)
                })
                .drop(UnknownTarget),
            ],
        ),
        row(
            "hop count 1 from outside",
            vec![
                open(),
                send(Outside, |f| f.ip(Outside, A).udp(1, 53).filled(12).hops(1))
                    .answer(|question, answer, _| if answer[..6] == question[6..12] { Ok(()) } else { Err("not to who sent it".into()) }),
            ],
        ),
    ]
}

#[test]
fn devices() {
    run(table);
}

/// What is not for containers goes on to the host as it came, and is counted nowhere.
#[test]
fn the_hosts_own_traffic_is_left_alone() {
    each_build(|world| {
        for family in [V4, V6] {
            world.reset(EP_DROPS | EP_TRACE_ALL);
            let elsewhere: IpAddr = if family == V4 { "203.0.113.9" } else { "2001:db8:9::9" }.parse().expect("address");
            for to in [Host.ip(family), elsewhere] {
                for packet in [Packet::ip(Outside.ip(family), to).tcp(1, 22, SYN), Packet::ip(Outside.ip(family), to).udp(1, 53)] {
                    let frame = World::frame(Outside, packet);
                    let o = world.run(world.entry(Outside), &World::context_of(Outside), &frame);
                    assert_eq!((o.retval, o.out == frame, o.events.len(), o.counts.len()), (TC_ACT_UNSPEC, true, 0, 0), "{to}: {o}");
                }
            }
        }
        let arp = World::frame(Outside, Packet::arp([2; 6], Outside.ip4(), Host.ip4()));
        assert_eq!(world.run(world.entry(Outside), &World::context_of(Outside), &arp).retval, TC_ACT_UNSPEC);
    });
}
