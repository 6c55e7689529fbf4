// SPDX-License-Identifier: Apache-2.0
//! Fragments: the first one is judged, the others follow it.

use crate::flow::{after_talk, there};
use pilus_model::abi::DropReason::*;
use pilus_model::abi::FlowState::{Established, New};
use pilus_model::abi::*;
use pilus_tests::packet::{Ext, Packet};
use pilus_tests::scenario::*;
use pilus_tests::wire::*;
use pilus_tests::world::Family::{self, V4};
use pilus_tests::world::Who::{self, A, B, C, Host};

/// A part of datagram `id`, `offset` bytes (a multiple of 8) into it.
pub fn part(packet: Packet, id: u16, offset: u16, more: bool) -> Packet {
    packet.with(|p| match &p.net {
        pilus_tests::packet::Net::V4(_) => p.v4(|ip| (ip.id, ip.frag) = (id, (offset / 8) | if more { 0x2000 } else { 0 })),
        _ => p.v6(|ip| ip.ext.push(Ext::Fragment { offset: offset / 8, more, id: u32::from(id) })),
    })
}

/// What comes behind the ports.
fn rest(f: Family, src: Who, dst: Who, proto: u8, id: u16, offset: u16, more: bool) -> Packet {
    part(f.ip(src, dst).raw_l4(proto, &[0xee; 64]), id, offset, more)
}

fn first(f: Family, dport: u16, id: u16) -> Packet {
    part(f.ip(A, B).udp(4000, dport).filled(56), id, 0, true)
}

pub fn table() -> Vec<Scenario> {
    let ext = |offset, more| move |f: Family| there(ACK)(f).ext(&[Ext::Fragment { offset, more, id: 5 }]);
    vec![
        row(
            "a datagram in parts",
            vec![
                send(A, |f| first(f, 53, 7)).pass(B, New).flow(A, 0).packets(1, 0),
                send(A, |f| rest(f, A, B, UDP, 7, 64, true)).pass(B, Established),
                send(A, |f| rest(f, A, B, UDP, 7, 1480, true)).pass(B, Established),
                send(A, |f| rest(f, A, B, UDP, 7, 65512, false)).pass(B, Established),
                // All of them are the flow's.
                send(A, |f| f.ip(A, B).udp(4000, 53)).pass(B, Established).packets(5, 0),
            ],
        ),
        row(
            "parts of a refused datagram",
            vec![send(A, |f| first(f, 54, 7)).drop(PolicyDenied), send(A, |f| rest(f, A, B, UDP, 7, 64, false)).drop(FragmentUnknown)],
        ),
        row(
            "parts without a first",
            vec![
                send(A, |f| rest(f, A, B, UDP, 7, 64, false)).drop(FragmentUnknown),
                send(A, |f| first(f, 53, 7)).pass(B, New),
                send(A, |f| rest(f, A, B, UDP, 8, 64, false)).drop(FragmentUnknown),
                send(A, |f| rest(f, A, C, UDP, 7, 64, false)).drop(FragmentUnknown),
                send(Host, |f| rest(f, Host, B, UDP, 7, 64, false)).drop(FragmentUnknown),
            ],
        ),
        row4(
            "datagrams of two protocols with one number",
            vec![send(A, |f| first(f, 53, 7)).pass(B, New), send(A, |f| rest(f, A, B, SCTP, 7, 64, false)).drop(FragmentUnknown)],
        ),
        row(
            "a part too late",
            vec![
                send(A, |f| first(f, 53, 7)).pass(B, New),
                act(|w, _| {
                    for (key, entry) in w.frag.entries().expect("frag") {
                        w.frag.put(&key, &FragEntry { time: entry.time - 30_000_000_001, ..entry }).expect("frag");
                    }
                }),
                send(A, |f| rest(f, A, B, UDP, 7, 64, false)).drop(FragmentUnknown),
            ],
        ),
        row(
            "policy changes between the parts",
            vec![
                send(A, |f| first(f, 53, 7)).pass(B, New),
                act(|w, _| w.repolicy(B, |row| row.policy_in = POLICY_NONE)),
                send(A, |f| rest(f, A, B, UDP, 7, 64, false)).drop(Revoked),
            ],
        ),
        row(
            "a part over the judged header",
            vec![
                send(A, |f| first(f, 53, 7)).pass(B, New),
                send(A, |f| rest(f, A, B, UDP, 7, 8, false)).pass(B, Established),
                send(A, |f| part(f.ip(A, B).tcp(4000, 80, SYN).filled(60), 9, 0, true)).pass(B, New),
                send(A, |f| rest(f, A, B, TCP, 9, 8, false)).drop(Fragment),
                send(A, |f| rest(f, A, B, TCP, 9, 16, true)).drop(Fragment),
                send(A, |f| rest(f, A, B, TCP, 9, 24, false)).pass(B, Established),
            ],
        ),
        row(
            "a first part without the whole header",
            vec![
                send(A, |f| part(f.ip(A, B).raw_l4(TCP, &[0, 9, 0, 80, 0, 0, 0, 0]), 9, 0, true)).drop(TruncatedL4),
                send(A, |f| rest(f, A, B, TCP, 9, 24, false)).drop(FragmentUnknown),
            ],
        ),
        row(
            "a big ping",
            vec![
                send(A, |f| part(f.ip(A, B).echo(false, 3).filled(56), 4, 0, true)).pass(B, New),
                send(A, |f| rest(f, A, B, f.icmp(), 4, 64, false)).pass(B, Established),
                send(A, |f| part(f.ip(A, Host).echo(false, 3).filled(56), 5, 0, true)).pass(Host, New),
                send(A, |f| rest(f, A, Host, f.icmp(), 5, 64, false)).pass(Host, Established),
            ],
        ),
        row(
            "parts of an established flow",
            after_talk(vec![
                send(A, |f| part(there(ACK)(f).filled(60), 4, 0, true)).pass(B, Established).packets(3, 1),
                send(A, |f| rest(f, A, B, TCP, 4, 80, false)).pass(B, Established),
                send(A, |f| there(ACK)(f)).pass(B, Established).packets(5, 1),
            ]),
        ),
        row(
            "an error in parts",
            vec![
                send(A, |f| part(f.ip(A, B).icmp(if f == V4 { 3 } else { 1 }, 1, [0; 4]).filled(60), 4, 0, true)).drop(Fragment),
                send(A, |f| rest(f, A, B, f.icmp(), 4, 64, false)).drop(FragmentUnknown),
            ],
        ),
        row6(
            "one part that is the whole",
            after_talk(vec![
                send(A, ext(0, false)).pass(B, Established),
                send(A, ext(3, false)).drop(FragmentUnknown),
                send(A, |f| there(ACK)(f).ext(&[Ext::options(HOPOPTS, 0), Ext::Fragment { offset: 1, more: false, id: 5 }]))
                    .drop(FragmentUnknown),
                // What stands behind the fragment header is not walked over.
                send(A, |f| there(ACK)(f).ext(&[Ext::Fragment { offset: 0, more: true, id: 5 }, Ext::options(DSTOPTS, 0)]))
                    .drop(InvalidExtensionHeader),
                send(A, |f| {
                    there(ACK)(f).ext(&[Ext::Fragment { offset: 0, more: false, id: 5 }, Ext::Fragment { offset: 0, more: false, id: 5 }])
                })
                .drop(InvalidExtensionHeader),
            ]),
        ),
    ]
}

#[test]
fn fragments_follow_the_first() {
    run(table);
}
