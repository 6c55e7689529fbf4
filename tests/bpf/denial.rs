// SPDX-License-Identifier: Apache-2.0
//! Refusals that the fast path repeats: what it drops, what it counts, what it leaves to the slow path, and that reports tell of
//! every drop.

use pilus_model::abi::DropReason::{self, *};
use pilus_model::abi::FlowState::{New, Reply};
use pilus_model::abi::*;
use pilus_tests::outcome::{Counts, Outcome, TC_ACT_REDIRECT, TC_ACT_SHOT};
use pilus_tests::packet::Packet;
use pilus_tests::scenario::each_build;
use pilus_tests::wire::{ACK, SYN, UDP};
use pilus_tests::world::Who::{A, B, C, Host, World as Outside};
use pilus_tests::world::{Family, POLICY_FREE, Who, World, rule};

type Make = fn(Family) -> Packet;

/// An interval that does not end while a test runs.
const LONG: u32 = DENIAL_LONGEST;

/// What B refuses; A may send it.
fn udp(f: Family) -> Packet {
    f.ip(A, B).udp(5, 54).filled(20)
}

/// What each drop's event says that it stands for besides itself.
fn told(o: &Outcome) -> Vec<u32> {
    o.of_kind(EventKind::Drop).map(|e| e.event.untold).collect()
}

fn dropped(w: &World<'_>, via: Who, packet: Packet, reason: DropReason, reports: &[u32], what: &str) -> Counts {
    let o = w.send(via, packet);
    let name = w.build.as_str();
    assert_eq!((o.retval, o.drops(), o.packets(reason.raw())), (TC_ACT_SHOT, vec![reason], 1), "{what}, {name}: {o}");
    assert_eq!(told(&o), reports, "{what}, {name}: {o}");
    o.counts
}

fn passes(w: &World<'_>, via: Who, packet: Packet, what: &str) {
    let o = w.send(via, packet);
    assert_eq!((o.retval, o.drops()), (TC_ACT_REDIRECT, vec![]), "{what}, {}: {o}", w.build.as_str());
}

/// A world in which refusals are repeated.
fn reset(w: &World<'_>, drops: u32) {
    w.reset(EP_DROPS);
    w.report_drops(drops);
}

fn counted(w: &World<'_>) -> u64 {
    w.metrics.all().expect("metrics")[2 * 128..].iter().flatten().map(|c| c.packets).sum()
}

fn lost(w: &World<'_>) -> u64 {
    (0..2).flat_map(|d| w.metrics.get(REASON_EVENT_LOST << 1 | d).expect("metrics")).map(|c| c.packets).sum()
}

/// Every way into a container and out of it, TCP in the middle, with rules and without: the same counters as the slow path, and no
/// event. When somebody asks for every packet, the next one tells how many there were.
#[test]
fn what_is_refused_again_is_counted_and_not_reported() {
    each_build(|w| {
        let refused: [(Who, Make); 6] = [
            (A, udp),
            (A, |f| f.ip(A, B).tcp(5, 81, ACK).filled(20)),
            (B, |f| f.ip(B, A).udp(54, 5)),
            (C, |f| f.ip(C, B).udp(5, 54)),
            (Host, |f| f.ip(Host, B).udp(5, 54)),
            (Outside, |f| f.ip(Outside, B).tcp(5, 54, ACK)),
        ];
        for f in Family::BOTH.iter().copied() {
            for rules in [false, true] {
                for (via, packet) in refused {
                    reset(w, LONG);
                    let mut reason = PolicyDenied;
                    if rules && via != B {
                        let peer = if via.is_container() { via.identity() } else { 0 };
                        w.rules(POLICY_FREE, DIR_INGRESS, peer, &[rule(54, 81, 0, RULE_DENY, 21)]);
                        w.rules(POLICY_FREE, DIR_EGRESS, 0, &[rule(0, 65535, 0, 0, 22)]);
                        w.repolicy(B, |row| row.policy_in = POLICY_FREE);
                        w.repolicy(A, |row| row.policy_out = POLICY_FREE);
                        reason = PolicyDeny;
                    }
                    let what = format!("{via:?}, rules {rules}");
                    let bytes = |n: u32| w.rule_count.get(n).expect("rule_count").iter().map(|c| c.bytes).sum::<u64>();
                    let asked = || [21, 22].map(|n| (w.rule_packets(n), bytes(n)));
                    let before = asked();
                    let first = w.send(via, packet(f));
                    assert_eq!((first.drops(), told(&first)), (vec![reason], vec![0]), "{what}: {first}");
                    let once = asked();
                    for n in 1..=5 {
                        let o = w.send(via, packet(f));
                        assert_eq!((o.retval, told(&o)), (TC_ACT_SHOT, vec![]), "{what}, {n}: {o}");
                        assert_eq!((&o.counts, o.without_flow), (&first.counts, first.without_flow), "{what}, {n}");
                    }
                    let by = |n: usize| (once[n].0 - before[n].0, once[n].1 - before[n].1);
                    let wanted = [0, 1].map(|n| (once[n].0 + 5 * by(n).0, once[n].1 + 5 * by(n).1));
                    assert_eq!((asked(), by(0).0), (wanted, u64::from(reason == PolicyDeny)), "{what}");
                    assert_eq!((w.untold(), w.flows()), (5, 0), "{what}");
                    w.change(B, |row| row.flags |= EP_TRACE_ALL);
                    let counts = dropped(w, via, packet(f), reason, &[5], &what);
                    assert_eq!((counts, w.untold()), (first.counts, 0), "{what}");
                }
            }
        }
    });
}

/// Whoever is to be asked about each packet is, on either side, and each is reported.
#[test]
fn wishes_of_either_side_are_kept() {
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            for who in [A, B] {
                for flag in [EP_TRACE_ALL, EP_VERDICT, EP_REMOTE] {
                    reset(w, LONG);
                    dropped(w, A, udp(f), PolicyDenied, &[0], "first");
                    dropped(w, A, udp(f), PolicyDenied, &[], "second");
                    w.change(who, |row| row.flags |= flag);
                    for reports in [[1], [0], [0]] {
                        let o = w.send(A, udp(f));
                        assert_eq!((o.drops(), told(&o)), (vec![PolicyDenied], reports.to_vec()), "{who:?} {flag:#x}: {o}");
                        let verdicts = o.of_kind(EventKind::Verdict).count();
                        assert_eq!(verdicts, usize::from(flag == EP_VERDICT), "{who:?} {flag:#x}: {o}");
                    }
                }
            }
            // By one write, not by an epoch.
            reset(w, LONG);
            dropped(w, A, udp(f), PolicyDenied, &[0], "enforced");
            w.change(B, |row| row.flags |= EP_AUDIT_IN);
            passes(w, A, udp(f), "audited");
        }
    });
}

#[test]
fn an_epoch_ends_it_at_once() {
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            for who in [A, B] {
                reset(w, LONG);
                w.change(B, |row| row.policy_in = POLICY_FREE);
                w.rules(POLICY_FREE, DIR_INGRESS, A.identity(), &[rule(55, 55, UDP, 0, 1)]);
                for n in 0..3 {
                    dropped(w, A, udp(f), PolicyDenied, if n == 0 { &[0] } else { &[] }, "refused");
                }
                w.rules(POLICY_FREE, DIR_INGRESS, A.identity(), &[rule(54, 54, UDP, 0, 1)]);
                w.repolicy(who, |_| {});
                passes(w, A, udp(f), "allowed");
                // And back, in whatever order: its flow is refused now, which is another reason.
                w.rules(POLICY_FREE, DIR_INGRESS, A.identity(), &[rule(55, 55, UDP, 0, 1)]);
                w.repolicy(who, |_| {});
                dropped(w, A, udp(f), Revoked, &[0], "judged anew");
                dropped(w, A, udp(f), Revoked, &[0], "by its entry");
                w.rules(POLICY_FREE, DIR_INGRESS, A.identity(), &[rule(54, 54, UDP, 0, 1)]);
                w.repolicy(who, |_| {});
                passes(w, A, udp(f), "allowed again");
            }
            // A row that is gone has another reason.
            reset(w, LONG);
            dropped(w, A, udp(f), PolicyDenied, &[0], "refused");
            w.change(B, |row| row.flags &= !EP_VALID);
            dropped(w, A, udp(f), NoEndpoint, &[0], "gone");
        }
    });
}

/// A's packet has been refused three times, twice in silence; B may open the flow to which it belongs.
fn refused_but_may_answer(w: &World<'_>, f: Family) {
    reset(w, LONG);
    w.change(B, |row| row.policy_out = POLICY_OPEN);
    w.change(A, |row| row.policy_in = POLICY_OPEN);
    for n in 0..3 {
        dropped(w, A, udp(f), PolicyDenied, if n == 0 { &[0] } else { &[] }, "refused");
    }
}

/// A flow decides for its packets, whatever was refused before it was.
#[test]
fn a_flow_goes_before() {
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            refused_but_may_answer(w, f);
            let states = [(B, f.ip(B, A).udp(54, 5), New), (A, udp(f), Reply)];
            for (via, packet, state) in states {
                w.change(A, |row| row.flags |= EP_TRACE_FLOW);
                let o = w.send(via, packet);
                assert_eq!((o.retval, o.events.iter().map(|e| e.state()).collect()), (TC_ACT_REDIRECT, vec![state]), "{o}");
            }
            passes(w, A, udp(f), "the flow's");
            // Its entry denies, then it is gone: each has its reason.
            w.repolicy(A, |row| row.policy_in = POLICY_NONE);
            for _ in 0..3 {
                dropped(w, A, udp(f), Revoked, &[0], "revoked");
            }
            assert!(w.edit_flow(&udp(f), |_| None));
            for reports in [&[2][..], &[], &[]] {
                dropped(w, A, udp(f), PolicyDenied, reports, "without its flow");
            }
            // A SYN makes an entry, which gives the reason from then on.
            for reports in [&[0][..], &[], &[]] {
                dropped(w, A, f.ip(A, B).tcp(5, 81, ACK), PolicyDenied, reports, "before a SYN");
            }
            for _ in 0..2 {
                dropped(w, A, f.ip(A, B).tcp(5, 81, SYN), PolicyDenied, &[0], "SYN");
                dropped(w, A, f.ip(A, B).tcp(5, 81, ACK), Revoked, &[0], "after a SYN");
            }
        }
    });
}

/// What was refused before its flow was there is carried by the fast path once it is, and nobody forgets what is to be told.
#[test]
fn a_flow_is_not_slow_for_having_been_refused() {
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            refused_but_may_answer(w, f);
            passes(w, B, f.ip(B, A).udp(54, 5), "opens the flow");
            passes(w, A, udp(f), "its first answer");
            let aside = |w: &World<'_>| w.denials().values().flatten().map(|d| d.what & DENIAL_ASIDE).collect::<Vec<_>>();
            assert_eq!((aside(w), w.untold()), (vec![DENIAL_ASIDE], 2));
            // The slow path would ask who has the receiver's address, and find nobody.
            w.withdraw(B.ip(f));
            let o = w.send(A, udp(f));
            assert_eq!((o.retval, &o.out[..6]), (TC_ACT_REDIRECT, &B.mac()[..]), "{o}");
            // Without its flow it is refused as before.
            assert!(w.edit_flow(&udp(f), |_| None));
            w.announce(B.ip(f), B.identity(), B.slot());
            dropped(w, A, udp(f), PolicyDenied, &[2], "without its flow");
            assert_eq!((aside(w), w.untold()), (vec![0], 0));
            dropped(w, A, udp(f), PolicyDenied, &[], "again");
        }
    });
}

/// Another's source address, or the host's from outside, is refused for that; and nobody else's refusal is anybody's.
#[test]
fn who_sends_is_compared() {
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            reset(w, LONG);
            // Epochs of different rows are alike, as they may be.
            Who::ALL.into_iter().for_each(|who| w.change(who, |row| row.epoch = 3));
            let from_host = || f.ip(Host, B).udp(5, 54);
            for reports in [&[0][..], &[]] {
                dropped(w, A, udp(f), PolicyDenied, reports, "A");
                dropped(w, Host, from_host(), PolicyDenied, reports, "the host");
            }
            for _ in 0..3 {
                dropped(w, C, udp(f), InvalidSourceIp, &[0], "C with A's address");
                dropped(w, Host, udp(f), InvalidSourceIp, &[0], "the host with A's address");
                dropped(w, Outside, from_host(), InvalidSourceIp, &[0], "from outside with the host's");
                dropped(w, A, udp(f).with(|p| p.eth_dst = C.host_mac()), InvalidDestinationMac, &[0], "to another's MAC");
            }
            dropped(w, A, udp(f), PolicyDenied, &[], "A again");
        }
    });
}

/// Every place is taken: what may pass passes, and what may not is refused for its own reason.
#[test]
fn a_full_table_refuses_nobody_else() {
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            reset(w, LONG);
            let strangers = |n: u32| f.ip(A, B).udp(1000 + (n % 50_000) as u16, 54 + (n / 50_000) as u16);
            for n in 0..60_000 {
                let frame = World::frame(A, strangers(n));
                w.entry(A).test_run(&frame, Some(&World::context_of(A)), 1).expect("test run");
                if n % 1000 == 0 {
                    w.drain();
                }
            }
            let places = w.denials();
            assert!(places.len() as u32 > DENIAL_PLACES * 99 / 100, "{} places", places.len());
            assert!(places.values().all(|cpus| cpus.len() == 1), "one processor's");
            for port in 2000..2300 {
                passes(w, A, f.ip(A, B).udp(port, 53), "allowed");
                dropped(w, C, f.ip(C, B).udp(port, 53), PolicyDenied, &[0], "another's");
            }
        }
    });
}

/// Whose place is wanted keeps it while it has drops to tell of; afterwards they are counted as lost. In all this, and when an
/// event finds no room, every drop is in an event, counted as lost, or waits in its place.
#[test]
fn every_drop_is_told_of() {
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            reset(w, LONG);
            let (counts, missing) = (counted(w), lost(w));
            let mut events = 0;
            let read = || w.drain().iter().filter(|e| e.kind() == EventKind::Drop).map(|e| u64::from(e.event.untold) + 1).sum::<u64>();
            let run = |frame: &[u8], times| {
                w.entry(A).test_run(frame, Some(&World::context_of(A)), times).expect("test run");
            };
            // Nobody reads: an event that stands for others is lost with them.
            let alone = World::frame(A, f.ip(A, B).udp(1, 55));
            run(&alone, 4);
            w.change(A, |row| row.flags |= EP_REMOTE);
            run(&World::frame(A, f.ip(A, B).udp(9, 55)), 8000);
            let full = lost(w);
            run(&alone, 1);
            assert_eq!(lost(w) - full, 4, "the event, and the three that it stood for");
            w.change(A, |row| row.flags &= !EP_REMOTE);
            events += read();
            // More than there are places.
            let frames: Vec<_> = (0..6000).map(|n| World::frame(A, f.ip(A, B).udp(n, 54))).collect();
            let mut pass = |interval: u32, times: u32| {
                w.report_drops(interval);
                for frame in &frames {
                    run(frame, times);
                    events += read();
                }
            };
            let before = lost(w);
            pass(LONG, 3);
            let kept = w.denials().len() as u64;
            assert!(kept > 3000 && w.untold() <= 2 * kept && w.untold() > kept && lost(w) == before, "{} wait in {kept}", w.untold());
            // Each is judged anew once more, under other epochs, and none is known any more.
            w.repolicy(B, |_| {});
            pass(0, 1);
            assert_eq!(lost(w), before);
            pass(2, 3);
            let over = lost(w);
            assert!(over > before, "places whose time was over were taken");
            let (counted, lost) = (counted(w) - counts, lost(w) - missing);
            assert!(lost > 0 && events + lost + w.untold() == counted, "{events} told, {lost} lost, {} wait, of {counted}", w.untold());
        }
    });
}

/// The interval is over: one packet is judged and reported, with the number of those that were not.
#[test]
fn a_refusal_is_reported_once_in_an_interval() {
    each_build(|w| {
        for f in Family::BOTH.iter().copied() {
            reset(w, 2);
            let (mut silent, mut reports) = (0, 0);
            for _ in 0..10_000_000 {
                let o = w.send(A, udp(f));
                match told(&o)[..] {
                    [] => silent += 1,
                    [untold] => {
                        assert_eq!(untold, silent, "{o}");
                        (silent, reports) = (0, reports + 1);
                    }
                    _ => panic!("{o}"),
                }
                if reports == 4 && silent > 0 {
                    break;
                }
            }
            assert_eq!(reports, 4);
            // None at all: each by itself.
            reset(w, 0);
            for _ in 0..5 {
                dropped(w, A, udp(f), PolicyDenied, &[0], "each");
            }
        }
    });
}
