// SPDX-License-Identifier: Apache-2.0
//! ICMP errors: allowed as part of the flow that they quote.

use crate::flow::{back, talking, there};
use pilus_model::abi::DropReason::*;
use pilus_model::abi::FlowState::{New, Related};
use pilus_model::abi::*;
use pilus_tests::packet::{Ext, Packet};
use pilus_tests::scenario::*;
use pilus_tests::wire::{ACK, DSTOPTS, GRE, HOPOPTS};
use pilus_tests::world::Who::{self, A, B, C, Host, World};
use pilus_tests::world::{Family, POLICY_B_IN};

/// Types of ICMP errors.
const KINDS4: [u8; 5] = [3, 4, 5, 11, 12];
const KINDS6: [u8; 4] = [1, 2, 3, 4];

fn unreachable(f: Family) -> u8 {
    if f == Family::V4 { 3 } else { 1 }
}

/// An error of `from` to `to` about `quoted`.
fn about(kind: u8, from: Who, to: Who, quoted: impl Fn(Family) -> Packet) -> impl Fn(Family) -> Packet {
    move |f| f.ip(from, to).icmp(kind, 1, [0, 0, 5, 0]).payload(&quoted(f).quote())
}

fn refused(from: Who, to: Who, quoted: impl Fn(Family) -> Packet) -> impl Fn(Family) -> Packet {
    move |f| about(unreachable(f), from, to, &quoted)(f)
}

fn with_talk(more: Vec<Step>) -> Vec<Step> {
    talking().into_iter().chain(more).collect()
}

fn kinds(f: Family) -> &'static [u8] {
    if f == Family::V4 { &KINDS4 } else { &KINDS6 }
}

fn each_kind(name: &'static str, families: &'static [Family]) -> Scenario {
    let mut steps = talking();
    for kind in kinds(families[0]) {
        steps.push(send(B, about(*kind, B, A, there(ACK))).pass(A, Related));
        steps.push(send(A, about(*kind, A, B, back(ACK))).pass(B, Related));
        steps.push(send(Host, about(*kind, Host, A, there(ACK))).pass(A, Related));
        steps.push(send(Host, about(*kind, World, A, there(ACK))).pass(A, Related));
        steps.push(send(B, about(*kind, B, A, |f| f.ip(A, B).tcp(40009, 80, ACK))).drop(NoFlow));
    }
    Scenario { name, families, steps }
}

fn udp(f: Family) -> Packet {
    f.ip(A, B).udp(5000, 53).filled(40)
}

fn echo(f: Family) -> Packet {
    f.ip(A, B).echo(false, 5).filled(40)
}

fn outside(f: Family) -> Packet {
    f.ip(A, World).udp(5000, 33434).filled(40)
}

pub fn table() -> Vec<Scenario> {
    vec![
        each_kind("every kind of error, IPv4", Family::ONLY4),
        each_kind("every kind of error, IPv6", Family::ONLY6),
        row(
            "about UDP",
            vec![
                send(B, refused(B, A, udp)).drop(NoFlow),
                send(A, udp).pass(B, New),
                send(B, refused(B, A, udp)).pass(A, Related),
                send(B, refused(B, A, |f| f.ip(A, B).udp(5001, 53).filled(40))).drop(NoFlow),
            ],
        ),
        row(
            "about echo",
            vec![
                send(A, echo).pass(B, New),
                send(B, refused(B, A, echo)).pass(A, Related),
                send(B, refused(B, A, |f| f.ip(A, B).echo(false, 6))).drop(NoFlow),
            ],
        ),
        row(
            "about SCTP and what has no ports",
            vec![
                send(A, |f| f.ip(A, B).sctp(5, 99)).pass(B, New),
                send(B, refused(B, A, |f| f.ip(A, B).sctp(5, 99))).pass(A, Related),
                send(B, refused(B, A, |f| f.ip(A, B).raw_l4(GRE, &[0; 8]))).drop(NoFlow),
                send(A, |f| f.ip(A, B).raw_l4(GRE, &[0; 8])).pass(B, New),
                send(B, refused(B, A, |f| f.ip(A, B).raw_l4(GRE, &[0; 8]))).pass(A, Related),
            ],
        ),
        row(
            "from a router of the world",
            vec![
                send(A, outside).pass(World, New),
                send(Host, refused(World, A, outside)).pass(A, Related),
                send(Host, refused(Host, A, outside)).pass(A, Related),
                send(Host, refused(World, B, outside)).drop(NoFlow),
            ],
        ),
        row(
            "a container speaks only of what it was sent",
            with_talk(vec![
                act(|w, _| w.change(C, |row| row.flags &= !EP_RECEIVE)),
                send(C, refused(C, A, there(ACK))).drop(NoFlow),
                send(C, refused(C, B, back(ACK))).drop(NoFlow),
                send(B, refused(B, A, back(ACK))).drop(NoFlow),
                send(B, refused(B, C, there(ACK))).drop(NoFlow),
                send(A, refused(A, B, there(ACK))).drop(NoFlow),
            ]),
        ),
        row(
            "of a revoked flow",
            with_talk(vec![
                act(|w, _| w.repolicy(B, |row| row.policy_in = POLICY_NONE)),
                send(B, refused(B, A, there(ACK))).drop(PolicyDenied),
                send(A, there(ACK)).drop(Revoked),
                send(B, refused(B, A, there(ACK))).drop(Revoked),
                send(A, refused(A, B, back(ACK))).drop(Revoked),
                act(|w, _| w.repolicy(B, |row| row.policy_in = POLICY_B_IN)),
                send(A, refused(A, B, back(ACK))).pass(B, Related),
                send(B, refused(B, A, there(ACK))).pass(A, Related),
            ]),
        ),
        row(
            "a quote cut short",
            with_talk(
                // From 28 (48) bytes on the ports are there.
                [0, 4, 20, 27, 47]
                    .into_iter()
                    .map(|n: usize| {
                        send(B, move |f| {
                            let whole = there(ACK)(f).quote();
                            let n = if f == Family::V4 { n.min(27) } else { n };
                            f.ip(B, A).icmp(unreachable(f), 0, [0; 4]).payload(&whole[..n])
                        })
                        .drop(TruncatedL4)
                    })
                    .collect(),
            ),
        ),
        row(
            "as much as an error must quote",
            with_talk(vec![
                send(B, |f| {
                    let n = if f == Family::V4 { 28 } else { 48 };
                    f.ip(B, A).icmp(unreachable(f), 0, [0; 4]).payload(&there(ACK)(f).quote()[..n])
                })
                .pass(A, Related),
            ]),
        ),
        row("an error about an error", vec![send(A, udp).pass(B, New), send(A, refused(A, B, refused(B, A, udp))).drop(InvalidPacket)]),
        row(
            "a quote of another version",
            with_talk(vec![
                send(B, |f| {
                    let mut quote = there(ACK)(f).quote();
                    quote[0] ^= 0x20;
                    f.ip(B, A).icmp(unreachable(f), 0, [0; 4]).payload(&quote)
                })
                .drop(TruncatedL4),
            ]),
        ),
        row4(
            "a quoted fragment",
            with_talk(vec![
                send(B, refused(B, A, |f| there(ACK)(f).with(|p| p.v4(|ip| ip.frag = 0x2000)))).pass(A, Related),
                send(B, refused(B, A, |f| there(ACK)(f).with(|p| p.v4(|ip| ip.frag = 7)))).drop(Fragment),
            ]),
        ),
        row6(
            "quoted extension headers",
            with_talk(vec![
                send(B, refused(B, A, |f| there(ACK)(f).ext(&[Ext::options(HOPOPTS, 1), Ext::options(DSTOPTS, 0)]))).pass(A, Related),
                send(B, |f| {
                    let quote = there(ACK)(f).ext(&[Ext::options(HOPOPTS, 1)]).quote();
                    f.ip(B, A).icmp(1, 0, [0; 4]).payload(&quote[..40])
                })
                .drop(TruncatedL4),
            ]),
        ),
        row6(
            "a quoted IPv6 fragment",
            with_talk(vec![
                send(B, refused(B, A, |f| there(ACK)(f).ext(&[Ext::Fragment { offset: 0, more: true, id: 9 }]))).pass(A, Related),
                send(B, refused(B, A, |f| there(ACK)(f).ext(&[Ext::Fragment { offset: 9, more: true, id: 9 }]))).drop(Fragment),
            ]),
        ),
        row4(
            "quoted options",
            with_talk(vec![send(B, refused(B, A, |f| there(ACK)(f).with(|p| p.v4(|ip| ip.options = vec![1; 8])))).pass(A, Related)]),
        ),
        row(
            "the quoted endpoint is gone",
            vec![
                send(A, outside).pass(World, New),
                act(|w, _| w.repolicy(A, |row| row.flags &= !EP_VALID)),
                send(Host, refused(World, A, outside)).drop(UnknownTarget),
            ],
        ),
    ]
}

#[test]
fn icmp_errors() {
    run(table);
}
