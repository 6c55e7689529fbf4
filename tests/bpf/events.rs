// SPDX-License-Identifier: Apache-2.0
//! Traces of established flows: what is reported, what is left out, and that nothing is lost without being counted.

use crate::flow::{back, there};
use pilus_loader::events::Reader;
use pilus_model::abi::*;
use pilus_tests::outcome::Outcome;
use pilus_tests::packet::Packet;
use pilus_tests::scenario::each_build;
use pilus_tests::wire::{ACK, FIN, RST, SYN};
use pilus_tests::world::Who::{A, B, C, Host, World as Outside};
use pilus_tests::world::{Family, IDLE, Who, World};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// How long what must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn traces(o: &Outcome) -> Vec<FlowState> {
    o.of_kind(EventKind::Trace).map(|e| e.state()).collect()
}

/// What a packet is to be reported as.
fn told(w: &World<'_>, via: Who, packet: Packet, wanted: &[FlowState], what: &str) {
    let o = w.send(via, packet);
    assert_eq!((o.retval, o.drops()), (7, vec![]), "{what}, {}: {o}", w.build.as_str());
    assert_eq!(traces(&o), wanted, "{what}, {}: {o}", w.build.as_str());
}

/// An interval, in jiffies, that does not end while a test runs, and in which no flow gets too old.
fn interval(w: &World<'_>) -> u32 {
    let now = w.jiffies();
    (IDLE / 4..IDLE / 2).step_by(1000).find(|i| now % i < i - i / 8).expect("an interval")
}

#[test]
fn aggregated_traces_tell_what_is_new() {
    use FlowState::{Established, New, Reply};
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            w.reset(EP_DROPS | EP_TRACE_FLOW);
            let interval = interval(w);
            w.reporting.put(&0, &Reporting { interval, sample: 1, drops: 0 }).expect("reporting");
            told(w, A, there(SYN)(f), &[New], "SYN");
            told(w, A, there(SYN)(f), &[], "the same SYN again");
            told(w, B, back(SYN | ACK)(f), &[Reply], "the first answer");
            for _ in 0..3 {
                told(w, A, there(ACK)(f), &[], "data");
                told(w, B, back(ACK)(f), &[], "data back");
            }
            let last = w.jiffies().wrapping_sub(interval);
            assert!(w.edit_flow(&there(ACK)(f), |h| Some(Flow { last, ..h })));
            told(w, A, there(ACK)(f), &[Established], "the first of an interval");
            told(w, B, back(ACK)(f), &[], "the second of an interval");
            told(w, A, there(FIN | ACK)(f), &[Established], "FIN");
            told(w, A, there(FIN | ACK)(f), &[], "the same FIN again");
            told(w, B, back(ACK)(f), &[], "data after FIN");
            told(w, B, back(FIN | ACK)(f), &[Reply], "FIN of the other side");
            told(w, A, there(ACK)(f), &[], "the last ACK");
            told(w, A, there(RST)(f), &[Established], "RST");
            told(w, A, there(RST)(f), &[], "the same RST again");
            // No interval: age alone is no news. A receiver with a program of its own is no other.
            w.reporting.put(&0, &Reporting { interval: u32::MAX, sample: 1, drops: 0 }).expect("reporting");
            let udp = || f.ip(A, C).udp(7, 9);
            told(w, A, udp(), &[New], "UDP");
            assert!(w.edit_flow(&udp(), |h| Some(Flow { last, ..h })));
            told(w, A, udp(), &[], "after an interval, without one");
            told(w, C, f.ip(C, A).udp(9, 7), &[Reply], "the answer");
            told(w, C, f.ip(C, A).udp(9, 7), &[], "the second answer");
        }
    });
}

#[test]
fn one_of_so_many_packets_is_told_and_whatever_is_new() {
    use FlowState::{Established, New, Reply};
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            w.reset(EP_DROPS | EP_TRACE_ALL);
            w.reporting.put(&0, &Reporting { interval: interval(w), sample: 4, drops: 0 }).expect("reporting");
            told(w, A, there(SYN)(f), &[New], "SYN");
            told(w, B, back(SYN | ACK)(f), &[Reply], "the first answer");
            for n in 1..=12 {
                let wanted: &[_] = if n % 4 == 0 { &[Established] } else { &[] };
                told(w, A, there(ACK)(f), wanted, &format!("packet {n}"));
            }
            told(w, B, back(ACK)(f), &[], "each side is counted for itself");
            told(w, A, there(FIN | ACK)(f), &[Established], "FIN");
        }
    });
}

#[test]
fn one_write_switches_traces_on_and_off() {
    use FlowState::{Established, New};
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            for (who, flag) in [(A, EP_TRACE_FLOW), (B, EP_TRACE_FLOW), (A, EP_TRACE_ALL), (B, EP_TRACE_ALL)] {
                w.reset(EP_DROPS);
                told(w, A, f.ip(A, B).udp(5, 53), &[], "off");
                told(w, B, f.ip(B, A).udp(53, 5), &[], "off");
                w.change(who, |row| row.flags |= flag);
                let all = flag == EP_TRACE_ALL;
                told(w, A, f.ip(A, B).udp(5, 53), if all { &[Established] } else { &[] }, "a flow that is there");
                told(w, A, f.ip(A, B).udp(6, 53), &[New], "a new flow");
                w.change(who, |row| row.flags &= !flag);
                told(w, A, f.ip(A, B).udp(5, 53), &[], "off again");
                told(w, A, f.ip(A, B).udp(7, 53), &[], "off again, a new flow");
            }
        }
    });
}

/// Nobody reads: what finds no room is counted, to the last one.
#[test]
fn every_event_is_there_or_counted_as_lost() {
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            w.reset(EP_DROPS);
            let lost = || (0..2).flat_map(|d| w.metrics.get(REASON_EVENT_LOST << 1 | d).expect("metrics")).map(|c| c.packets).sum::<u64>();
            let before = lost();
            let frame = World::frame(A, f.ip(A, B).udp(5, 54));
            let (packets, refused) = (8000, World::context_of(A));
            w.entry(A).test_run(&frame, Some(&refused), packets).expect("test run");
            let (seen, lost) = (w.drain().len() as u64, lost() - before);
            assert!(seen > 1000 && lost > 1000, "{seen} seen, {lost} lost");
            assert_eq!(seen + lost, u64::from(packets));
        }
    });
}

/// The programs wake nobody for single events, but a reader that sleeps through a flood would lose the most of it.
#[test]
fn a_flood_wakes_the_reader() {
    each_build(|w| {
        w.reset(EP_DROPS);
        let mut reader = Reader::open(w.sandbox.fs(), map::EVENTS).expect("events");
        let ready = Arc::new(Barrier::new(2));
        let begun = Arc::clone(&ready);
        let waiting = std::thread::spawn(move || {
            begun.wait();
            reader.poll(Duration::MAX, &mut |_| {}).expect("poll")
        });
        ready.wait();
        let frame = World::frame(A, Family::V6.ip(A, B).udp(5, 54));
        let send = |packets| w.entry(A).test_run(&frame, Some(&World::context_of(A)), packets).expect("test run");
        send(10);
        for _ in 0..1000 {
            assert!(!waiting.is_finished(), "woken for a few");
            std::thread::yield_now();
        }
        // As many as there is room for.
        send(8000);
        let since = Instant::now();
        while !waiting.is_finished() {
            assert!(since.elapsed() < PATIENCE, "nobody wakes the reader");
            std::thread::yield_now();
        }
        assert!(waiting.join().expect("the reader") > 10);
    });
}

/// Packets of every length about the least that is copied by itself, and the most that an event holds.
#[test]
fn an_event_holds_the_packets_beginning() {
    let beginning = |bytes: &[u8]| bytes[..bytes.len().min(EVENT_PAYLOAD as usize)].to_vec();
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            w.reset(EP_DROPS | EP_TRACE_ALL);
            for length in (0..26).chain(62..90).chain([1000]) {
                let denied = f.ip(A, B).udp(5, 54).filled(length);
                let frame = World::frame(A, denied.clone());
                let o = w.send(A, denied);
                let e = o.of_kind(EventKind::Drop).next().expect("a drop");
                assert_eq!((e.event.len as usize, &e.payload), (frame.len(), &beginning(&frame)), "{length} bytes, denied");
                let flow = || f.ip(A, B).udp(6, 53).filled(length);
                let there = w.send(A, flow());
                w.send(B, f.ip(B, A).udp(53, 6));
                let fast = w.send(A, flow());
                for o in [there, fast] {
                    let e = o.of_kind(EventKind::Trace).next().expect("a trace");
                    assert_eq!((e.event.len as usize, &e.payload), (frame.len(), &beginning(&o.out)), "{length} bytes, {}", e.state());
                }
            }
        }
    });
}

/// Whoever watches cannot tell by which path a packet went: same event, same bytes, same counters, for every way and both sides.
#[test]
fn both_paths_report_alike() {
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            w.reset(EP_DROPS | EP_TRACE_ALL);
            w.repolicy(A, |row| row.policy_in = POLICY_OPEN);
            w.announce(Outside.ip(f), 1 << 24 | 7, SLOT_WORLD);
            for (opener, other) in [(A, B), (A, C), (C, A), (Host, A), (A, Host), (A, Outside), (Outside, A)] {
                let way =
                    |there: bool| if there { (opener, f.ip(opener, other).udp(5, 53)) } else { (other, f.ip(other, opener).udp(53, 5)) };
                for there in [true, false] {
                    let (via, packet) = way(there);
                    assert_eq!(w.send(via, packet).retval, 7, "{opener:?} {other:?} {there}");
                }
                for there in [true, false] {
                    let send = |slow: u32| {
                        Who::ALL.into_iter().for_each(|who| w.change(who, |row| row.flags = row.flags & !EP_REMOTE | slow));
                        let (via, packet) = way(there);
                        let mut o = w.send(via, packet);
                        o.events.iter_mut().for_each(|e| e.event.time = 0);
                        o
                    };
                    let (slow, fast) = (send(EP_REMOTE), send(0));
                    assert_eq!(traces(&fast).len(), 1, "{fast}");
                    assert_eq!(format!("{slow:?}"), format!("{fast:?}"), "{opener:?} {other:?} {there}\n{slow}\n{fast}");
                }
            }
        }
    });
}

/// The slow path would ask who has the receiver's address.
#[test]
fn watched_packets_take_the_fast_path() {
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            for flag in [EP_TRACE_ALL, EP_TRACE_FLOW] {
                for to in [B, C] {
                    w.reset(EP_DROPS | flag);
                    w.reporting.put(&0, &Reporting { interval: 1, sample: 1, drops: 0 }).expect("reporting");
                    told(w, A, f.ip(A, to).udp(5, 53), &[FlowState::New], "the first");
                    told(w, to, f.ip(to, A).udp(53, 5), &[FlowState::Reply], "the answer");
                    w.withdraw(to.ip(f));
                    let last = w.jiffies().wrapping_sub(2);
                    assert!(w.edit_flow(&f.ip(A, to).udp(5, 53), |h| Some(Flow { last, ..h })));
                    told(w, A, f.ip(A, to).udp(5, 53), &[FlowState::Established], "by the fast path");
                }
            }
        }
    });
}
