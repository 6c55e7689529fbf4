// SPDX-License-Identifier: Apache-2.0
//! Random packets through every entry of the test world, each compared with what a model of the node says: what is returned, every
//! byte, the event, the flow's entry, and at the end of an episode all counters and the number of entries.
//!
//! `PILUS_FUZZ_ROUNDS` packets (for each build; 50 000 without it) in episodes of [`EPISODE`]. What fails names its seed and episode:
//! `PILUS_FUZZ_SEED` and `PILUS_FUZZ_EPISODE` run that one again.

mod generate;
mod model;

use generate::Random;
use model::{Expect, FlowModel, Key, Model};
use pilus_model::abi::*;
use pilus_model::identity::NumericIdentity;
use pilus_model::label::Labels;
use pilus_model::policy::{Direction, EndpointPolicy, EnforcementMode, Repository, SelectorCache, blocks, input, resolve};
use pilus_tests::check::view;
use pilus_tests::outcome::{FlowView, Seen, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use pilus_tests::scenario::each_build;
use pilus_tests::tuple::sorted;
use pilus_tests::wire::{ETH, fold, sum};
use pilus_tests::world::{POLICY_FREE, Who, World, words};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

const EPISODE: u64 = 400;
const ROUNDS: u64 = 50_000;
const SEED: u64 = 0x5eed_0001;

/// What users might write; each container's policy is one of these, or changes to it.
const RULES: [&str; 4] = [
    "[]",
    r#"
- endpointSelector: {}
  ingress:
  - fromEndpoints: [{}]
    toPorts: [{ports: [{port: "80", protocol: TCP}, {port: "5000", endPort: 5010, protocol: UDP}, {port: "99", protocol: SCTP}]}]
  - fromEntities: [host]
    toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
  - icmps: [{fields: [{family: IPv4, type: 8}, {family: IPv6, type: 128}]}]
  ingressDeny:
  - fromEndpoints: [{}]
    toPorts: [{ports: [{port: "5005", protocol: UDP}]}]
"#,
    r#"
- endpointSelector: {}
  ingress:
  - fromEntities: [world]
    toPorts: [{ports: [{port: "53", protocol: UDP}, {port: "80", protocol: TCP}]}]
  - fromEndpoints: [{matchLabels: {app: a}}]
  egress:
  - toEndpoints: [{matchLabels: {app: b}}]
  - toEntities: [world]
    toPorts: [{ports: [{port: "53", protocol: ANY}]}]
  egressDeny:
  - toEntities: [host]
"#,
    r#"
- endpointSelector: {}
  ingress: []
  egress:
  - toEntities: [all]
- endpointSelector: {}
  ingressDeny:
  - fromEndpoints: [{matchLabels: {app: c}}]
  ingress:
  - fromEntities: [cluster, host]
    toPorts: [{ports: [{port: "40000", endPort: 40002, protocol: TCP}, {port: "7", protocol: UDP}]}]
"#,
];

fn labels(app: &str) -> Labels {
    Labels::parse([format!("k8s:app={app}").as_str()]).unwrap_or_else(|e| panic!("label of {app}: {e:?}"))
}

/// The policies of each container under each set of rules.
fn policies() -> Vec<[Arc<EndpointPolicy>; 3]> {
    let of = |text: &&str| {
        let mut repository = Repository::new();
        repository.import(input::parse("fuzz", text).unwrap_or_else(|e| panic!("{text}: {e:?}")));
        let mut cache = SelectorCache::new();
        let name = |who: Who| labels(&format!("{who:?}").to_lowercase());
        for who in Who::CONTAINERS {
            cache.insert(NumericIdentity(who.identity()), &name(who));
        }
        Who::CONTAINERS.map(|who| Arc::new(resolve(&repository, &mut cache, &name(who), EnforcementMode::Default, false)))
    };
    RULES.iter().map(of).collect()
}

/// Ids of a container's policy under a set: POLICY_OPEN where nothing is enforced.
fn policy_id(policy: &EndpointPolicy, dir: Direction, set: usize, container: usize) -> u32 {
    match &**policy.direction(dir) {
        pilus_model::policy::DirectionPolicy::Open => POLICY_OPEN,
        pilus_model::policy::DirectionPolicy::Rules(_) => POLICY_FREE + (set * 3 + container) as u32,
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    Some(parsed.unwrap_or_else(|_| panic!("{name}: `{text}` is no number")))
}

struct Fuzz<'a> {
    world: &'a World<'a>,
    sets: Vec<[Arc<EndpointPolicy>; 3]>,
    /// Frames dropped, passed, answered, left alone; without those that came again.
    tally: [u64; 4],
    /// Frames dropped without an event.
    silent: u64,
}

/// What happened to one frame.
struct Seeing {
    retval: u32,
    out: Vec<u8>,
    events: Vec<Seen>,
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what} is {found:?}, expected {wanted:?}")) }
}

/// The frame as `to` is to see it.
fn delivered(frame: &[u8], to: Who, routed: bool) -> Vec<u8> {
    let mut out = frame.to_vec();
    out[..6].copy_from_slice(&to.mac());
    out[6..12].copy_from_slice(&to.host_mac());
    if !routed {
        return out;
    }
    if frame[12] != 8 {
        out[ETH + 7] = out[ETH + 7].wrapping_sub(1);
        return out;
    }
    let header = ETH..ETH + usize::from(out[ETH] & 15) * 4;
    let right = fold(sum(&out[header.clone()])) == 0xffff;
    out[ETH + 8] = out[ETH + 8].wrapping_sub(1);
    let old = u32::from(u16::from_be_bytes([out[ETH + 10], out[ETH + 11]]));
    // A wrong sum stays as wrong as it was (RFC 1624).
    let mut check = old + 0x0100;
    check += u32::from(check >= 0xffff);
    if right {
        out[ETH + 10..ETH + 12].fill(0);
        check = u32::from(!fold(sum(&out[header])));
    }
    out[ETH + 10..ETH + 12].copy_from_slice(&(check as u16).to_be_bytes());
    out
}

impl<'a> Fuzz<'a> {
    fn new(world: &'a World<'a>) -> Self {
        Self { world, sets: policies(), tally: [0; 4], silent: 0 }
    }

    fn write(&self, container: usize, set: usize, again: bool) {
        let who = Who::CONTAINERS[container];
        let policy = &self.sets[set][container];
        let id = |dir| policy_id(policy, dir, set, container);
        for dir in [Direction::Ingress, Direction::Egress] {
            let laid = blocks(id(dir), dir, policy.direction(dir), &mut |_| 70).expect("room");
            self.world.policy.put_batch(&laid).expect("policy");
        }
        self.world.change(who, |row| {
            (row.policy_in, row.policy_out) = (id(Direction::Ingress), id(Direction::Egress));
            row.epoch += u32::from(again);
        });
    }

    fn counters(&self) -> BTreeMap<usize, u64> {
        let sums = self.world.metrics.all().expect("metrics").into_iter().map(|cpus| cpus.iter().map(|c| c.packets).sum());
        sums.enumerate().filter(|(_, n)| *n > 0).collect()
    }

    fn flow(&self, key: &Key) -> Option<FlowView> {
        let (proto, a, b) = *key;
        let [(a, ap), (b, bp)] = sorted([a, b]);
        let found = if a.is_ipv4() {
            let key = FlowKey4 { a: words(a)[0], b: words(b)[0], ap, bp, proto, ..FlowKey4::default() };
            self.world.flow4.get(&key).expect("flow4").map(|f| f.h)
        } else {
            let key = FlowKey6 { a: words(a), b: words(b), ap, bp, proto, ..FlowKey6::default() };
            self.world.flow6.get(&key).expect("flow6").map(|f| f.h)
        };
        found.map(|h| FlowView::of(&h))
    }

    fn same_flow(&self, found: Option<FlowView>, model: Option<&FlowModel>) -> Result<(), String> {
        let seen = found.map(|f| (u32::from(f.opener), u32::from(f.other), f.flags, f.packets));
        let wanted = model.map(|m| (m.who[0].slot(), m.who[1].slot(), m.flags, m.packets));
        expect("the flow (opener, other, flags, packets)", &seen, &wanted)
    }

    fn judge(&self, via: Who, frame: &[u8], traced: bool, repeats: bool, wanted: Expect, s: &Seeing) -> Result<(), String> {
        let kinds: Vec<_> = s.events.iter().map(|e| (e.kind(), e.event.reason)).collect();
        let trace = |point: TracePoint| if traced { vec![(EventKind::Trace, point.raw())] } else { vec![] };
        match wanted {
            Expect::Drop(reason) => {
                expect("what is returned", &s.retval, &TC_ACT_SHOT)?;
                // Whether one may be missing is asked of the model.
                let told = vec![(EventKind::Drop, reason.raw())];
                expect("events", &kinds, if kinds.is_empty() && repeats && !traced { &kinds } else { &told })?;
                expect("the frame", &s.out, &frame.to_vec())?;
            }
            Expect::Pass { to, state, routed } => {
                expect("what is returned", &s.retval, &TC_ACT_REDIRECT)?;
                expect("the frame", &s.out, &delivered(frame, to, routed))?;
                let point = match to {
                    Who::Host => TracePoint::ToHost,
                    Who::World => TracePoint::ToStack,
                    _ => TracePoint::ToEndpoint,
                };
                expect("events", &kinds, &trace(point))?;
                for e in &s.events {
                    expect("the event's state", &e.state(), &state)?;
                    expect("the event's receiver", &u32::from(e.event.dst_slot), &to.slot())?;
                }
            }
            Expect::Answer => {
                expect("what is returned", &s.retval, &TC_ACT_REDIRECT)?;
                expect("events", &kinds, &trace(TracePoint::Reply))?;
                expect("who is answered", &s.out[..6].to_vec(), &frame[6..12].to_vec())?;
                if let Ok(question) = view(frame) {
                    let answer = view(&s.out).map_err(|e| format!("the answer: {e}: {:02x?}", s.out))?;
                    let asked = question.src;
                    let unset = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
                    expect("the answer's receiver", &(answer.dst == asked || asked == unset), &true)?;
                }
            }
            Expect::Leave => {
                expect("what is returned", &s.retval, &TC_ACT_UNSPEC)?;
                expect("events", &kinds, &vec![])?;
                expect("the frame", &s.out, &frame.to_vec())?;
            }
        }
        if via.is_container() {
            for e in &s.events {
                expect("the event's sender", &u32::from(e.event.src_slot), &via.slot())?;
            }
        }
        Ok(())
    }

    /// `sabotage` changes the world, but not the model.
    fn episode(&mut self, seed: u64, episode: u64, packets: u64, sabotage: &dyn Fn(&World<'_>)) -> Result<(), String> {
        let mut random = Random::new(seed, episode);
        // By the fast path where it may, in silence and not; by the slow one alone.
        let flags = EP_DROPS | [0, EP_TRACE_ALL, EP_TRACE_ALL | EP_REMOTE][(episode % 3) as usize];
        let traced = flags & EP_TRACE_ALL != 0;
        self.world.reset(flags);
        let repeats = !random.once_in(4);
        self.world.report_drops(if repeats { DENIAL_LONGEST } else { 0 });
        // Epochs of different rows are alike, as they may be.
        Who::ALL.into_iter().for_each(|who| self.world.change(who, |row| row.epoch = 3));
        let sets = [0; 3].map(|_| random.below(self.sets.len()));
        (0..3).for_each(|n| self.write(n, sets[n], false));
        sabotage(self.world);
        let mut model = Model::new([0, 1, 2].map(|n| Arc::clone(&self.sets[sets[n]][n])));
        let before = self.counters();
        let mut counted: BTreeMap<u8, u64> = BTreeMap::new();
        let mut again = None;
        for round in 0..packets {
            if random.once_in(50) {
                let (n, set) = (random.below(3), random.below(self.sets.len()));
                self.write(n, set, true);
                model.repolicy(n, Arc::clone(&self.sets[set][n]));
            }
            // What is refused often comes again.
            let same = again.take().filter(|_| !random.once_in(4));
            let new = same.is_none();
            let (via, frame) = same.unwrap_or_else(|| random.frame());
            let (wanted, key) = model.step(via, &frame);
            again = model.refused.map(|_| (via, frame.clone()));
            let run = self.world.entry(via).test_run(&frame, Some(&World::context_of(via)), 1).expect("test run");
            let seen = Seeing { retval: run.retval, out: run.data_out, events: self.world.drain() };
            let judged = self.judge(via, &frame, traced, repeats, wanted, &seen).and_then(|()| match key {
                Some(key) => self.same_flow(self.flow(&key), model.flows.get(&key)),
                None => Ok(()),
            });
            let judged = judged.and_then(|()| match wanted {
                Expect::Drop(_) => model.dropped(seen.events.first().map(|e| e.event.untold)),
                _ => Ok(()),
            });
            self.silent += u64::from(matches!(wanted, Expect::Drop(_)) && seen.events.is_empty());
            judged.map_err(|e| {
                let events: Vec<String> = seen.events.iter().map(ToString::to_string).collect();
                let frame: String = frame.iter().map(|b| format!("{b:02x}")).collect();
                format!(
                    "{e}\n  PILUS_FUZZ_SEED={seed:#x} PILUS_FUZZ_EPISODE={episode}: packet {round} of it, {}, traced {traced}, policies {sets:?} at \
                     first\n  via {via:?}: {frame}\n  wanted {wanted:?}, returned {}, {events:?}",
                    self.world.build.as_str(),
                    seen.retval
                )
            })?;
            let (n, reason) = match wanted {
                Expect::Drop(reason) => (0, Some(reason.raw())),
                Expect::Pass { .. } => (1, Some(0)),
                Expect::Answer => (2, Some(0)),
                Expect::Leave => (3, None),
            };
            self.tally[n] += u64::from(new);
            reason.into_iter().for_each(|r| *counted.entry(r).or_default() += 1);
        }
        let mut moved: BTreeMap<u8, u64> = BTreeMap::new();
        for (index, now) in self.counters() {
            let by = now - before.get(&index).copied().unwrap_or(0);
            if by > 0 {
                *moved.entry((index >> 1) as u8).or_default() += by;
            }
        }
        if model.without_flow > 0 {
            counted.insert(REASON_NO_FLOW as u8, model.without_flow);
        }
        let tell = |e| format!("{e}\n  PILUS_FUZZ_SEED={seed:#x} PILUS_FUZZ_EPISODE={episode}, {}", self.world.build.as_str());
        expect("counters by reason", &moved, &counted).map_err(tell)?;
        expect("drops that wait for being told", &self.world.untold(), &model.untold()).map_err(tell)?;
        expect("entries of both flow tables", &self.world.flows(), &model.flows.len()).map_err(tell)
    }
}

#[test]
fn fuzz_random_packets_do_what_the_model_says() {
    let (seed, rounds) = (number("PILUS_FUZZ_SEED").unwrap_or(SEED), number("PILUS_FUZZ_ROUNDS").unwrap_or(ROUNDS));
    each_build(|world| {
        let mut fuzz = Fuzz::new(world);
        let episodes = match number("PILUS_FUZZ_EPISODE") {
            Some(episode) => episode..episode + 1,
            None => 0..rounds.div_ceil(EPISODE),
        };
        for episode in episodes {
            fuzz.episode(seed, episode, EPISODE, &|_| {}).unwrap_or_else(|e| panic!("{e}"));
        }
        let [dropped, passed, answered, left] = fuzz.tally;
        let silent = fuzz.silent;
        println!(
            "{}, seed {seed:#x}: {dropped} dropped ({silent} of them known), {passed} passed, {answered} answered, {left} left alone",
            world.build.as_str()
        );
        let all: u64 = fuzz.tally.iter().sum();
        let enough = all < 20_000 || (fuzz.tally.iter().all(|n| *n > all / 100) && silent > all / 100);
        assert!(enough, "too much of one kind: {:?}", fuzz.tally);
    });
}

/// Holes in the kernel's tables that the model knows nothing of.
#[test]
fn fuzz_finds_what_was_planted() {
    each_build(|world| {
        type Plant = (&'static str, fn(&World<'_>));
        let planted: [Plant; 4] = [
            ("an open policy", |w| w.change(Who::B, |row| row.policy_in = POLICY_OPEN)),
            ("another's identity", |w| w.announce(Who::World.ip4().into(), Who::A.identity(), Who::World.slot())),
            ("another hop", |w| w.change(Who::B, |row| row.mac[5] ^= 1)),
            ("a smaller MTU", |w| w.change(Who::A, |row| row.mtu = 1300)),
        ];
        for (what, plant) in planted {
            let mut fuzz = Fuzz::new(world);
            let found = (0..40).find_map(|episode| fuzz.episode(SEED, episode, EPISODE, &plant).err());
            assert!(found.is_some(), "{what}: not found in {} packets, {}", 40 * EPISODE, world.build.as_str());
        }
    });
}
