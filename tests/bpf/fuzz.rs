// SPDX-License-Identifier: Apache-2.0
//! Good packets with random damage. Whatever comes, a packet is dropped or sent on, never handed to the stack as it is, and
//! what is sent on has a source of the sender's own.

use crate::malformed::{good, set_talking};
use pilus_tests::outcome::{TC_ACT_REDIRECT, TC_ACT_SHOT};
use pilus_tests::scenario::each_build;
use pilus_tests::wire::{ETH, ETH_ARP, ETH_IP, ETH_IPV6, ICMPV6};
use pilus_tests::world::Who::{A, Host};
use pilus_tests::world::{Family, Who, World};

const ROUNDS: usize = 20_000;

/// xorshift64*: the same damage in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    fn damage(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            // Mostly in the headers.
            let span = if self.below(4) > 0 { frame.len().min(74) } else { frame.len() };
            let at = self.below(span);
            match self.below(6) {
                0 => frame[at] = self.next() as u8,
                1 => frame[at] ^= 1 << self.below(8),
                2 => frame[at] = [0, 1, 6, 0x7f, 0x80, 0xff][self.below(6)],
                3 => frame.truncate(at.max(ETH)),
                4 => frame.resize(frame.len() + self.below(64), self.0 as u8),
                _ => {
                    let (from, len) = (self.below(frame.len()), self.below(16));
                    let copied: Vec<u8> = frame[from..(from + len).min(frame.len())].to_vec();
                    let room = copied.len().min(frame.len() - at);
                    frame[at..at + room].copy_from_slice(&copied[..room]);
                }
            }
        }
        if !World::testable(frame) {
            frame.resize(World::shortest([frame[12], frame[13]]), 0);
        }
    }
}

/// Whether the frame says to come from `who` itself. The unspecified address counts for ICMPv6, as duplicate address detection uses it.
fn own_source(frame: &[u8], who: Who) -> bool {
    let kind = u16::from_be_bytes([frame[12], frame[13]]);
    if frame[6..12] != who.mac() {
        return false;
    }
    match kind {
        ETH_ARP => frame.get(ETH + 8..ETH + 18) == Some(&[&who.mac()[..], &who.ip4().octets()].concat()[..]),
        ETH_IP => frame.get(ETH + 12..ETH + 16) == Some(&who.ip4().octets()[..]),
        ETH_IPV6 => {
            let src = frame.get(ETH + 8..ETH + 24);
            let nobody = src == Some(&[0; 16]) && last_header_is_icmp(frame);
            nobody || src == Some(&who.ip6().octets()[..]) || src == Some(&who.link_local().octets()[..])
        }
        _ => false,
    }
}

/// A rough look, enough for packets from the unspecified address: no transport but ICMPv6, maybe behind options.
fn last_header_is_icmp(frame: &[u8]) -> bool {
    frame[ETH + 6] == ICMPV6 || matches!(frame[ETH + 6], 0 | 43 | 51 | 60)
}

#[test]
fn damaged_packets_of_a_container() {
    each_build(|world| {
        let mut random = Random(0x5eed_0001);
        let mut verdicts = [0u32; 2];
        for round in 0..ROUNDS {
            if round % 500 == 0 {
                set_talking(world, if round % 1000 == 0 { Family::V4 } else { Family::V6 });
                world.drain();
            }
            let all = good(if random.below(2) == 0 { Family::V4 } else { Family::V6 });
            let mut frame = World::frame(A, all[random.below(all.len())].1.clone());
            let whole = frame.clone();
            random.damage(&mut frame);
            let run = world.entry(A).test_run(&frame, Some(&World::context_of(A)), 1).expect("test run");
            let told = || format!("round {round}: {frame:02x?}, damaged from {whole:02x?}");
            match run.retval {
                TC_ACT_SHOT => verdicts[0] += 1,
                TC_ACT_REDIRECT => {
                    verdicts[1] += 1;
                    assert!(own_source(&frame, A), "sent on with another's source: {}", told());
                    assert!(frame[0] & 1 == 1 || frame[..6] == A.host_mac(), "sent on to another's MAC: {}", told());
                }
                other => panic!("returned {other}: {}", told()),
            }
        }
        println!("{} dropped, {} sent on", verdicts[0], verdicts[1]);
        assert!(verdicts.iter().all(|n| *n as usize > ROUNDS / 20), "the damage is too little or too much: {verdicts:?}");
    });
}

#[test]
fn damaged_packets_of_the_host() {
    each_build(|world| {
        let mut random = Random(0x5eed_0002);
        world.reset(0);
        for round in 0..ROUNDS {
            let f = if random.below(2) == 0 { Family::V4 } else { Family::V6 };
            let packet = match random.below(4) {
                0 => f.ip(Host, A).tcp(50000, 8080, if random.below(2) == 0 { 2 } else { 16 }).filled(9),
                1 => f.ip(Host, A).echo(false, 3).filled(9),
                2 => f.ip(Who::World, A).udp(1, 2).filled(9),
                _ => {
                    f.ip(Who::World, A).icmp(if f == Family::V4 { 3 } else { 1 }, 0, [0; 4]).payload(&f.ip(A, Who::World).udp(2, 1).quote())
                }
            };
            let mut frame = World::frame(Host, packet);
            random.damage(&mut frame);
            let run = world.entry(Host).test_run(&frame, Some(&World::context_of(Host)), 1).expect("test run");
            match run.retval {
                TC_ACT_SHOT => {}
                TC_ACT_REDIRECT => {
                    let containers = Who::CONTAINERS.iter().filter(|who| own_address(&frame, **who)).count();
                    assert_eq!(containers, 0, "round {round}: sent on with a container's source: {frame:02x?}");
                }
                other => panic!("round {round} returned {other}: {frame:02x?}"),
            }
        }
    });
}

fn own_address(frame: &[u8], who: Who) -> bool {
    match u16::from_be_bytes([frame[12], frame[13]]) {
        ETH_IP => frame.get(ETH + 12..ETH + 16) == Some(&who.ip4().octets()[..]),
        ETH_IPV6 => frame.get(ETH + 8..ETH + 24) == Some(&who.ip6().octets()[..]),
        _ => false,
    }
}
