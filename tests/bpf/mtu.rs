// SPDX-License-Identifier: Apache-2.0
//! Packets that are too long for their receiver.

use crate::flow::after_talk;
use crate::gateway::same;
use pilus_model::abi::DropReason::*;
use pilus_model::abi::FlowState::{Established, New};
use pilus_model::abi::*;
use pilus_tests::check::view;
use pilus_tests::outcome::TC_ACT_REDIRECT;
use pilus_tests::packet::Packet;
use pilus_tests::scenario::*;
use pilus_tests::wire::*;
use pilus_tests::world::Family::{self, V4};
use pilus_tests::world::Who::{A, B, Host, World as Outside};
use pilus_tests::world::World;

/// Routers may not cut it.
fn whole(packet: Packet) -> Packet {
    packet.with(|p| {
        if let pilus_tests::packet::Net::V4(_) = p.net {
            p.v4(|ip| ip.frag = 0x4000);
        }
    })
}

/// An IP packet of that length.
fn long(f: Family, len: usize) -> Packet {
    whole(f.ip(A, B).tcp(40000, 80, ACK).filled(len - 20 - if f == V4 { 20 } else { 40 }))
}

/// Fragmentation needed, or packet too big: from the router, with the MTU, quoting the packet.
pub fn told(mtu: u16) -> impl Fn(&[u8], &[u8], Family) -> Result<(), String> {
    move |question, answer, f| {
        let seen = view(answer)?;
        let (macs, wanted) = ((seen.eth_dst, seen.eth_src), (question[6..12].to_vec(), question[..6].to_vec()));
        same("MACs", (macs.0.to_vec(), macs.1.to_vec()), wanted)?;
        same("source", seen.src, Host.ip(f))?;
        let (proto, kind, code) = if f == V4 { (ICMP, 3, 4) } else { (ICMPV6, 2, 0) };
        same("kind", (seen.proto, seen.l4[0], seen.l4[1]), (proto, kind, code))?;
        same("MTU", &seen.l4[4..8], &u32::from(mtu).to_be_bytes())?;
        let quote = &question[ETH..];
        same("quote", &seen.l4[8..], &quote[..(seen.l4.len() - 8).min(quote.len())])?;
        if seen.l4.len() < 8 + 28 { Err("the quote is too short".into()) } else { Ok(()) }
    }
}

pub fn table() -> Vec<Scenario> {
    vec![
        row(
            "as long as it may be",
            after_talk(vec![
                send(A, |f| long(f, 1420)).pass(B, Established).packets(3, 1),
                send(A, |f| long(f, 1421)).answer(told(1420)),
                act(|w, _| w.change(B, |row| row.mtu = 1280)),
                send(A, |f| long(f, 1280)).pass(B, Established),
                send(A, |f| long(f, 1281)).answer(told(1280)),
            ]),
        ),
        row("a first packet", vec![send(A, |f| whole(f.ip(A, B).udp(1, 53).filled(1500))).answer(told(1420))]),
        row("one that policy refuses is not answered", vec![send(A, |f| whole(f.ip(A, B).udp(1, 54).filled(1500))).drop(PolicyDenied)]),
        row("from the host", vec![send(Host, |f| whole(f.ip(Host, A).tcp(50000, 8080, SYN).filled(1500))).answer(told(1420))]),
        row4(
            "one that may be cut arrives",
            vec![send(A, |f| f.ip(A, B).udp(1, 53).filled(1500).with(|p| p.v4(|ip| ip.frag = 0))).pass(B, New)],
        ),
        row(
            "the stack refuses for itself",
            vec![
                send(A, |f| whole(f.ip(A, Host).udp(1, 53).filled(1500))).pass(Host, New),
                send(A, |f| whole(f.ip(A, Outside).udp(1, 53).filled(1500))).pass(Outside, New),
            ],
        ),
        row(
            "an error is not answered",
            after_talk(vec![
                send(B, |f| {
                    let quoted = crate::flow::there(ACK)(f).quote();
                    whole(f.ip(B, A).icmp(if f == V4 { 3 } else { 1 }, 1, [0; 4]).payload(&[quoted, vec![0; 1500]].concat()))
                })
                .drop(TooBig),
            ]),
        ),
    ]
}

#[test]
fn too_long_packets_are_answered() {
    run(table);
}

/// Segments count, not the bundle that they travel in; it stays whole.
#[test]
fn bundles_stay_whole() {
    each_build(|world| {
        for (f, headers) in [(V4, 40), (Family::V6, 60)] {
            for traced in [0, EP_TRACE_ALL | EP_REMOTE] {
                world.reset(EP_DROPS | traced);
                assert_eq!(world.send(A, f.ip(A, B).tcp(40000, 80, SYN)).retval, TC_ACT_REDIRECT);
                assert_eq!(world.send(B, f.ip(B, A).tcp(80, 40000, SYN | ACK)).retval, TC_ACT_REDIRECT);
                for (segment, fits) in [(1420 - headers, true), (1421 - headers, false)] {
                    let frame = World::frame(A, long(f, 3000));
                    let mut ctx = World::context_of(A);
                    ctx[164..168].copy_from_slice(&3u32.to_ne_bytes());
                    ctx[176..180].copy_from_slice(&(segment as u32).to_ne_bytes());
                    let o = world.run(world.entry(A), &ctx, &frame);
                    assert_eq!((o.retval, o.out.len() == frame.len()), (TC_ACT_REDIRECT, fits), "{f:?} {segment}: {o}");
                    assert!(fits || told(1420)(&frame, &o.out, f).is_ok(), "{o}");
                }
            }
        }
    });
}
