// SPDX-License-Identifier: Apache-2.0
//! Flows: new, established, answered, revoked, allowed again, evicted, expired.

use pilus_model::abi::DropReason::*;
use pilus_model::abi::FlowState::{Established, New, Reopened, Reply};
use pilus_model::abi::*;
use pilus_tests::outcome::TC_ACT_REDIRECT;
use pilus_tests::packet::Packet;
use pilus_tests::scenario::*;
use pilus_tests::wire::{self, ACK, FIN, RST, SYN};
use pilus_tests::world::Who::{A, B, C, Host, World};
use pilus_tests::world::{Family, words};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A's request to B and B's answer.
pub fn there(flags: u8) -> impl Fn(Family) -> Packet {
    move |f| f.ip(A, B).tcp(40000, 80, flags).filled(11)
}

pub fn back(flags: u8) -> impl Fn(Family) -> Packet {
    move |f| f.ip(B, A).tcp(80, 40000, flags).filled(23)
}

/// The steps after which A and B talk.
pub fn talking() -> Vec<Step> {
    vec![
        send(A, there(SYN)).pass(B, New),
        send(B, back(SYN | ACK)).pass(A, Reply),
        send(A, there(ACK)).pass(B, Established).flow(A, FLOW_REPLY),
    ]
}

pub fn after_talk(more: Vec<Step>) -> Vec<Step> {
    talking().into_iter().chain(more).collect()
}

/// B's policy stops admitting A.
fn revoke() -> Step {
    act(|w, _| w.repolicy(B, |row| row.policy_in = POLICY_NONE))
}

fn admit() -> Step {
    act(|w, _| w.repolicy(B, |row| row.policy_in = pilus_tests::world::POLICY_B_IN))
}

fn evict() -> Step {
    act(|w, f| assert!(w.edit_flow(&there(ACK)(f), |_| None)))
}

/// The flow was last seen long ago.
fn age(packet: impl Fn(Family) -> Packet + 'static) -> Step {
    act(move |w, f| {
        let last = w.jiffies().wrapping_sub(pilus_tests::world::IDLE + 1000);
        assert!(w.edit_flow(&packet(f), |h| Some(Flow { last, ..h })));
    })
}

fn udp(f: Family) -> Packet {
    f.ip(A, B).udp(5353, 53).filled(30)
}

fn udp_back(f: Family) -> Packet {
    f.ip(B, A).udp(53, 5353).filled(300)
}

fn tcp() -> Vec<Scenario> {
    vec![
        row("a connection from its SYN on", {
            let steps = vec![
                send(A, there(SYN)).pass(B, New).flow(A, 0).packets(1, 0).dir(DIR_INGRESS),
                send(A, there(SYN)).pass(B, New).flow(A, 0).packets(2, 0),
                send(B, back(SYN | ACK)).pass(A, Reply).flow(A, FLOW_REPLY).packets(2, 1),
                send(A, there(ACK)).pass(B, Established).flow(A, FLOW_REPLY).packets(3, 1).dir(DIR_EGRESS),
                send(B, back(ACK)).pass(A, Reply).flow(A, FLOW_REPLY).packets(3, 2).dir(DIR_EGRESS),
            ];
            steps
        }),
        row("the answering side opens nothing itself", vec![send(B, back(SYN)).drop(PolicyDenied).dir(DIR_EGRESS).flow(B, FLOW_DENY)]),
        row(
            "other ports are other flows",
            after_talk(vec![
                send(A, |f| f.ip(A, B).tcp(40001, 80, ACK)).pass(B, New).flow(A, FLOW_MIDSTREAM),
                send(A, |f| f.ip(A, B).tcp(40000, 81, ACK)).drop(PolicyDenied).no_flow(),
            ]),
        ),
        row(
            "to the host",
            vec![
                send(A, |f| f.ip(A, Host).tcp(40000, 22, SYN)).pass(Host, New).flow(A, 0),
                send(Host, |f| f.ip(Host, A).tcp(22, 40000, SYN | ACK)).pass(A, Reply).flow(A, FLOW_REPLY),
                send(A, |f| f.ip(A, Host).tcp(40000, 22, ACK)).pass(Host, Established).packets(2, 1).flow(A, FLOW_REPLY),
            ],
        ),
        row(
            "to the world",
            vec![
                send(A, |f| f.ip(A, World).tcp(40000, 443, SYN)).pass(World, New).flow(A, 0),
                send(Host, |f| f.ip(World, A).tcp(443, 40000, SYN | ACK)).pass(A, Reply).flow(A, FLOW_REPLY),
                send(A, |f| f.ip(A, World).tcp(40000, 443, ACK)).pass(World, Established).packets(2, 1).flow(A, FLOW_REPLY),
            ],
        ),
        row(
            "to a receiver with a program of its own",
            vec![
                send(A, |f| f.ip(A, C).tcp(40000, 80, SYN)).pass(C, New).flow(A, 0),
                send(C, |f| f.ip(C, A).tcp(80, 40000, SYN | ACK)).pass(A, Reply),
                send(A, |f| f.ip(A, C).tcp(40000, 80, ACK)).pass(C, Established).flow(A, FLOW_REPLY).packets(2, 1),
            ],
        ),
        row(
            "a receiver whose program is missing",
            vec![act(|w, _| assert!(w.receive.clear(C.slot()).unwrap())), send(A, |f| f.ip(A, C).tcp(40000, 80, SYN)).drop(MissedTailCall)],
        ),
        row(
            "the denied SYN",
            vec![
                send(A, |f| f.ip(A, B).tcp(40000, 81, SYN)).drop(PolicyDenied).flow(A, FLOW_DENY).dir(DIR_INGRESS),
                send(A, |f| f.ip(A, B).tcp(40000, 81, ACK)).drop(Revoked).flow(A, FLOW_DENY),
                send(B, |f| f.ip(B, A).tcp(81, 40000, ACK)).drop(Revoked).flow(A, FLOW_DENY),
                act(|w, _| w.repolicy(B, |row| row.policy_in = POLICY_OPEN)),
                send(A, |f| f.ip(A, B).tcp(40000, 81, SYN)).pass(B, Reopened).flow(A, 0),
            ],
        ),
        row("a denied packet that is no SYN", vec![send(A, |f| f.ip(A, B).tcp(40000, 81, ACK)).drop(PolicyDenied).no_flow()]),
    ]
}

fn changes() -> Vec<Scenario> {
    vec![
        row(
            "revoked: both directions drop and the entry stays",
            after_talk(vec![
                revoke(),
                send(A, there(ACK)).drop(Revoked).flow(A, FLOW_REPLY | FLOW_DENY).packets(2, 1),
                send(B, back(ACK)).drop(Revoked).flow(A, FLOW_REPLY | FLOW_DENY),
                send(A, there(ACK)).drop(Revoked),
            ]),
        ),
        row(
            "revoked: the answering side notices first",
            after_talk(vec![revoke(), send(B, back(ACK)).drop(Revoked).flow(A, FLOW_REPLY | FLOW_DENY), send(A, there(ACK)).drop(Revoked)]),
        ),
        row(
            "revoked by the opener's egress",
            after_talk(vec![
                act(|w, _| w.repolicy(A, |row| row.policy_out = POLICY_NONE)),
                send(B, back(ACK)).drop(Revoked),
                send(A, there(ACK)).drop(Revoked).flow(A, FLOW_REPLY | FLOW_DENY),
            ]),
        ),
        row(
            "revoked by a changed identity",
            after_talk(vec![
                act(|w, _| w.repolicy(A, |row| row.identity = 4999)),
                send(B, back(ACK)).drop(Revoked),
                send(A, there(ACK)).drop(Revoked).flow(A, FLOW_REPLY | FLOW_DENY),
            ]),
        ),
        row(
            "allowed again: the flow goes on",
            after_talk(vec![
                revoke(),
                send(A, there(ACK)).drop(Revoked),
                admit(),
                send(B, back(ACK)).pass(A, Reply).flow(A, FLOW_REPLY),
                send(A, there(ACK)).pass(B, Established).flow(A, FLOW_REPLY).packets(3, 2),
            ]),
        ),
        row(
            "a SYN on a revoked flow is judged anew",
            after_talk(vec![
                revoke(),
                send(A, there(ACK)).drop(Revoked),
                send(A, there(SYN)).drop(PolicyDenied).flow(A, FLOW_REPLY | FLOW_DENY),
                admit(),
                send(A, there(SYN)).pass(B, Reopened).flow(A, 0).packets(1, 0),
            ]),
        ),
        row(
            "a changed policy that still admits",
            after_talk(vec![
                act(|w, _| w.repolicy(B, |row| row.policy_in = POLICY_OPEN)),
                send(A, there(ACK)).pass(B, Established).flow(A, FLOW_REPLY).packets(3, 1),
                act(|w, _| w.repolicy(A, |_| {})),
                send(B, back(ACK)).pass(A, Reply).flow(A, FLOW_REPLY).packets(3, 2),
            ]),
        ),
        row(
            "a flow that others open is not theirs to keep",
            after_talk(vec![
                act(|w, _| w.repolicy(C, |row| row.policy_in = POLICY_NONE)),
                send(A, there(ACK)).pass(B, Established).flow(A, FLOW_REPLY),
            ]),
        ),
        row(
            "evicted: the opener goes on",
            after_talk(vec![
                evict(),
                send(A, there(ACK)).pass(B, New).flow(A, FLOW_MIDSTREAM),
                send(B, back(ACK)).pass(A, Reply).flow(A, FLOW_MIDSTREAM | FLOW_REPLY),
            ]),
        ),
        row(
            "evicted: the answering side cannot bring it back",
            after_talk(vec![
                evict(),
                send(B, back(ACK)).drop(PolicyDenied).no_flow(),
                send(B, back(FIN | ACK)).drop(PolicyDenied).no_flow(),
                send(B, back(RST)).drop(PolicyDenied).no_flow(),
                send(B, back(SYN | ACK)).drop(PolicyDenied).no_flow(),
            ]),
        ),
        row(
            "a stranger's SYN does not touch a live flow",
            after_talk(vec![
                send(B, back(SYN)).drop(PolicyDenied).flow(A, FLOW_REPLY).packets(2, 1),
                send(A, there(ACK)).pass(B, Established).flow(A, FLOW_REPLY),
            ]),
        ),
        row(
            "both sides open at once",
            vec![
                act(|w, _| w.repolicy(B, |row| row.policy_out = POLICY_OPEN)),
                act(|w, _| w.repolicy(A, |row| row.policy_in = POLICY_OPEN)),
                send(A, there(SYN)).pass(B, New).flow(A, 0),
                send(B, back(SYN)).pass(A, New).flow(A, 0).packets(1, 1),
                send(B, back(ACK)).pass(A, Reply).flow(A, FLOW_REPLY),
            ],
        ),
        row(
            "expired: the opener's packet is a new flow",
            after_talk(vec![age(there(ACK)), send(A, there(ACK)).pass(B, New).flow(A, FLOW_MIDSTREAM).packets(1, 0)]),
        ),
        row("expired: the answering side's is a stranger's", after_talk(vec![age(there(ACK)), send(B, back(ACK)).drop(PolicyDenied)])),
        row(
            "expired: a denial is forgotten",
            after_talk(vec![
                revoke(),
                send(A, there(ACK)).drop(Revoked),
                age(there(ACK)),
                admit(),
                send(A, there(ACK)).pass(B, New).flow(A, FLOW_MIDSTREAM),
            ]),
        ),
        row(
            "the receiver's row is gone",
            after_talk(vec![
                act(|w, _| w.repolicy(B, |row| row.flags &= !EP_VALID)),
                send(A, there(ACK)).drop(NoEndpoint),
                send(B, back(ACK)).drop(NoEndpoint),
            ]),
        ),
        row(
            "a slot used again",
            after_talk(vec![
                act(|w, f| {
                    w.withdraw(B.ip(f));
                    w.announce(B.ip(f), C.identity(), C.slot());
                    w.change(C, |row| row.flags &= !EP_RECEIVE);
                }),
                send(A, there(SYN)).pass(C, New).flow(A, 0).packets(1, 0),
            ]),
        ),
        row(
            "no policy yet",
            vec![act(|w, _| w.change(A, |row| row.policy_out = POLICY_NONE)), send(A, there(SYN)).drop(PolicyDenied).dir(DIR_EGRESS)],
        ),
        row("to itself", vec![send(A, |f| f.ip(A, A).tcp(1, 2, SYN)).drop(NoEndpoint)]),
    ]
}

fn others() -> Vec<Scenario> {
    vec![
        row(
            "UDP",
            vec![
                send(A, udp).pass(B, New).flow(A, 0).packets(1, 0),
                send(A, udp).pass(B, Established).flow(A, 0).packets(2, 0),
                send(B, udp_back).pass(A, Reply).flow(A, FLOW_REPLY).packets(2, 1),
                send(B, udp_back).pass(A, Reply).flow(A, FLOW_REPLY).packets(2, 2),
                send(A, |f| f.ip(A, B).udp(5353, 54)).drop(PolicyDenied).no_flow(),
            ],
        ),
        row("UDP, unasked", vec![send(B, udp_back).drop(PolicyDenied).no_flow()]),
        row(
            "UDP, expired",
            vec![
                send(A, udp).pass(B, New),
                send(B, udp_back).pass(A, Reply),
                age(udp),
                send(B, udp_back).drop(PolicyDenied),
                send(A, udp).pass(B, New).flow(A, 0).packets(1, 0),
            ],
        ),
        row(
            "UDP, revoked and allowed again",
            vec![
                send(A, udp).pass(B, New),
                send(B, udp_back).pass(A, Reply),
                revoke(),
                send(B, udp_back).drop(Revoked),
                send(A, udp).drop(Revoked).flow(A, FLOW_REPLY | FLOW_DENY),
                admit(),
                send(A, udp).pass(B, Established).flow(A, FLOW_REPLY),
            ],
        ),
        row("UDP without payload", vec![send(A, |f| f.ip(A, B).udp(5353, 53)).pass(B, New)]),
        row(
            "echo",
            vec![
                send(A, |f| f.ip(A, B).echo(false, 77).filled(56)).pass(B, New).flow(A, 0),
                send(A, |f| f.ip(A, B).echo(false, 77)).pass(B, Established).packets(2, 0).flow(A, 0),
                send(B, |f| f.ip(B, A).echo(true, 77)).pass(A, Reply).flow(A, FLOW_REPLY).packets(2, 1),
                send(B, |f| f.ip(B, A).echo(true, 78)).drop(PolicyDenied).no_flow(),
                send(B, |f| f.ip(B, A).echo(false, 79)).drop(PolicyDenied).no_flow(),
            ],
        ),
        row(
            "echo, allowed again by its answer",
            vec![
                send(A, |f| f.ip(A, B).echo(false, 77)).pass(B, New),
                revoke(),
                send(B, |f| f.ip(B, A).echo(true, 77)).drop(Revoked).flow(A, FLOW_DENY),
                admit(),
                send(B, |f| f.ip(B, A).echo(true, 77)).pass(A, Reply).flow(A, FLOW_REPLY),
            ],
        ),
        row(
            "a verdict on echo is none on other kinds",
            vec![
                send(A, |f| f.ip(A, B).echo(false, 0)).pass(B, New),
                send(A, |f| f.ip(A, B).icmp(if f == Family::V4 { 13 } else { 144 }, 0, [0; 4])).drop(PolicyDenied).no_flow(),
                send(B, |f| f.ip(B, A).icmp(if f == Family::V4 { 14 } else { 145 }, 0, [0; 4])).drop(PolicyDenied).no_flow(),
            ],
        ),
        row4(
            "a verdict on one kind is none on another",
            vec![
                act(|w, _| {
                    let timestamp = [pilus_tests::world::rule(13, 13, wire::ICMP, 0, 1)];
                    w.rules(pilus_tests::world::POLICY_FREE, DIR_INGRESS, A.identity(), &timestamp);
                    w.repolicy(B, |row| row.policy_in = pilus_tests::world::POLICY_FREE);
                }),
                send(A, |f| f.ip(A, B).icmp(13, 0, [0; 4])).pass(B, New).flow(A, 0),
                send(A, |f| f.ip(A, B).icmp(13, 0, [0; 4])).pass(B, Established).flow(A, 0).packets(2, 0),
                send(A, |f| f.ip(A, B).icmp(17, 0, [0; 4])).drop(PolicyDenied).no_flow(),
                send(B, |f| f.ip(B, A).icmp(13, 0, [0; 4])).drop(PolicyDenied),
            ],
        ),
        row(
            "SCTP",
            vec![
                send(A, |f| f.ip(A, B).sctp(7777, 99).filled(20)).pass(B, New).flow(A, 0),
                send(B, |f| f.ip(B, A).sctp(99, 7777).filled(20)).pass(A, Reply).flow(A, FLOW_REPLY).packets(1, 1),
                send(A, |f| f.ip(A, B).sctp(7777, 98)).drop(PolicyDenied).no_flow(),
            ],
        ),
        row(
            "a protocol that is none of ours",
            vec![
                send(A, |f| f.ip(A, B).raw_l4(wire::GRE, &[0, 0, 8, 0])).pass(B, New).flow(A, 0),
                send(B, |f| f.ip(B, A).raw_l4(wire::GRE, &[0, 0, 8, 0])).pass(A, Reply).flow(A, FLOW_REPLY),
                send(A, |f| f.ip(A, B).raw_l4(4, &[0; 20])).drop(PolicyDenied).no_flow(),
                send(A, |f| f.ip(A, B)).drop(PolicyDenied).no_flow(),
            ],
        ),
        row(
            "ICMP of the other family is a protocol like any",
            vec![
                send(A, |f| f.ip(A, B).raw_l4(if f == Family::V4 { wire::ICMPV6 } else { wire::ICMP }, &[135, 0, 0, 0, 0, 0, 0, 0]))
                    .drop(PolicyDenied)
                    .no_flow(),
            ],
        ),
        row4(
            "options are no hindrance",
            vec![
                send(A, |f| f.ip(A, B).tcp(40000, 80, SYN).with(|p| p.v4(|ip| ip.options = vec![1, 1, 1]))).pass(B, New).flow(A, 0),
                send(A, |f| f.ip(A, B).tcp(40000, 80, ACK).with(|p| p.v4(|ip| ip.options = vec![1; 40]))).pass(B, Established),
            ],
        ),
        row("a padded frame", after_talk(vec![send(A, |f| there(ACK)(f).filled(0).with(|p| p.trailer = vec![0; 6])).pass(B, Established)])),
        row("every hop count", {
            let mut steps = talking();
            steps.extend((2..=255).map(|n| send(A, move |f| there(ACK)(f).hops(n)).pass(B, Established)));
            steps
        }),
        row4("any header checksum", {
            let mut steps = talking();
            let corners = [0, 1, 0xff, 0x100, 0xfe00, 0xfefe, 0xfeff, 0xff00, 0xfffe];
            steps.extend(corners.into_iter().chain((0..100).map(|n| n * 653)).map(|check| {
                send(A, move |f| {
                    let with_id = |id| there(ACK)(f).with(|p| p.v4(|ip| ip.id = id));
                    let zero = u16::from_be_bytes([with_id(0).build()[24], with_id(0).build()[25]]);
                    // One's complement: what the identification must add to the sum.
                    let packet = with_id(((u32::from(zero) + 65535 - u32::from(check)) % 65535) as u16);
                    assert_eq!(packet.build()[24..26], u16::to_be_bytes(check));
                    packet
                })
                .pass(B, Established)
            }));
            steps
        }),
    ]
}

pub fn table() -> Vec<Scenario> {
    [tcp(), changes(), others()].into_iter().flatten().collect()
}

#[test]
fn flows() {
    run(table);
}

/// Whatever the addresses, both ends find one entry, and it has the key that user space would make.
#[test]
fn both_directions_have_one_key() {
    each_build(|w| {
        w.reset(0);
        w.change(A, |row| row.policy_out = POLICY_OPEN);
        for n in 1..400u32 {
            let mixed = n.wrapping_mul(0x9e37_79b9);
            let [a, b, c, d] = mixed.to_be_bytes().map(u16::from);
            // Of the world, and not unlike the container's own in any word alone.
            let v6 = Ipv6Addr::new(0xfd00 | a & 1, 7 | b & 8, c & 1, d & 1, a >> 1 & 1, b & 1, c & 2, 0x4000 | d);
            let v4 = Ipv4Addr::new(10, 7 + (mixed >> 8 & 1) as u8, 1 + mixed as u8 % 250, d as u8);
            let (port, other) = (1 + (mixed >> 16) as u16 % 60_000, 1 + mixed as u16 % 60_000);
            for (own, ip) in [(A.ip6().into(), IpAddr::from(v6)), (A.ip4().into(), IpAddr::from(v4))] {
                let before = w.flows();
                let (there, back) = (Packet::ip(own, ip).udp(port, other), Packet::ip(ip, own).udp(other, port));
                for (via, packet) in [(A, &there), (World, &back), (A, &there)] {
                    let o = w.send(via, packet.clone());
                    assert_eq!((o.retval, o.drops()), (TC_ACT_REDIRECT, vec![]), "{ip} {port} {other}: {o}");
                }
                assert_eq!(w.flows() - before, 1, "{ip} {port} {other}");
                let found = match ip {
                    IpAddr::V4(_) => {
                        let key = FlowKey4::between((words(own)[0], Be16::new(port)), (words(ip)[0], Be16::new(other)), wire::UDP);
                        w.flow4.get(&key).expect("flow4").map(|f| f.h)
                    }
                    IpAddr::V6(_) => {
                        let key = FlowKey6::between((words(own), Be16::new(port)), (words(ip), Be16::new(other)), wire::UDP);
                        w.flow6.get(&key).expect("flow6").map(|f| f.h)
                    }
                };
                assert_eq!(found.map(|h| h.packets.iter().sum::<u32>()), Some(3), "{ip} {port} {other}");
            }
        }
    });
}
