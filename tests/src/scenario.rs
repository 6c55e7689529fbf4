// SPDX-License-Identifier: Apache-2.0
//! Scenarios as rows of a table: packets through a [`World`], and what each is to do.
//!
//! Every row runs for each of its families, with the shared and the own build, and with everything traced or nothing, by the
//! slow path alone or by the fast one where it may: all must agree.

use crate::outcome::{Outcome, TC_ACT_REDIRECT, TC_ACT_SHOT};
use crate::packet::Packet;
use crate::sandbox::Sandbox;
use crate::wire::{ETH, fold, sum};
use crate::world::{Family, Who, World};
use pilus_codegen::{Build, Features};
use pilus_model::abi::*;
use std::sync::Mutex;

type Change = Box<dyn Fn(&World<'_>, Family)>;
type Make = Box<dyn Fn(Family) -> Packet>;
/// Judges an answer: the question's frame, the answer's frame, the family.
type Judge = Box<dyn Fn(&[u8], &[u8], Family) -> Result<(), String>>;

/// One row.
pub struct Scenario {
    pub name: &'static str,
    pub families: &'static [Family],
    pub steps: Vec<Step>,
}

/// A change of the world, or a packet.
pub enum Step {
    Do(Change),
    Send(Box<Send>),
}

/// A packet and what it is to do.
pub struct Send {
    via: Who,
    ifindex: Option<u32>,
    packet: Make,
    want: Want,
    flow: FlowWant,
    packets: Option<(u32, u32)>,
    dir: Option<u8>,
    verdicts: Option<Vec<(u8, u8, Option<DropReason>)>>,
}

enum Want {
    Pass(Who, FlowState),
    Answer(Judge),
    Drop(DropReason),
}

enum FlowWant {
    Any,
    None,
    Is { opener: Who, flags: u16 },
}

/// A row for both families.
pub fn row(name: &'static str, steps: Vec<Step>) -> Scenario {
    Scenario { name, families: Family::BOTH, steps }
}

/// A row for IPv4.
pub fn row4(name: &'static str, steps: Vec<Step>) -> Scenario {
    Scenario { name, families: Family::ONLY4, steps }
}

/// A row for IPv6.
pub fn row6(name: &'static str, steps: Vec<Step>) -> Scenario {
    Scenario { name, families: Family::ONLY6, steps }
}

/// Changes the world between packets.
pub fn act(f: impl Fn(&World<'_>, Family) + 'static) -> Step {
    Step::Do(Box::new(f))
}

/// A packet that `via` sends; say next what it is to do.
pub fn send(via: Who, packet: impl Fn(Family) -> Packet + 'static) -> Unjudged {
    Unjudged { via, ifindex: None, packet: Box::new(packet) }
}

/// A packet without an expectation yet.
pub struct Unjudged {
    via: Who,
    ifindex: Option<u32>,
    packet: Make,
}

impl Unjudged {
    /// Comes in by another interface than the sender's.
    pub fn on(mut self, ifindex: u32) -> Self {
        self.ifindex = Some(ifindex);
        self
    }

    fn want(self, want: Want) -> Step {
        let Unjudged { via, ifindex, packet } = self;
        let flow = FlowWant::Any;
        Step::Send(Box::new(Send { via, ifindex, packet, want, flow, packets: None, dir: None, verdicts: None }))
    }

    /// Delivered to `to`, byte by byte as it was but for MACs and hop count.
    pub fn pass(self, to: Who, state: FlowState) -> Step {
        self.want(Want::Pass(to, state))
    }

    /// Answered by the gateway.
    pub fn answer(self, judge: impl Fn(&[u8], &[u8], Family) -> Result<(), String> + 'static) -> Step {
        self.want(Want::Answer(Box::new(judge)))
    }

    pub fn drop(self, reason: DropReason) -> Step {
        self.want(Want::Drop(reason))
    }
}

impl Step {
    fn change(mut self, f: impl FnOnce(&mut Send)) -> Self {
        match &mut self {
            Step::Send(send) => f(send),
            Step::Do(_) => panic!("a change of the world has no expectation"),
        }
        self
    }

    /// Afterwards the packet's flow has these flags (see [`crate::outcome::FlowView`]), both slots, and today's epoch.
    pub fn flow(self, opener: Who, flags: u16) -> Self {
        self.change(|s| s.flow = FlowWant::Is { opener, flags })
    }

    /// Afterwards there is no entry for the packet's flow.
    pub fn no_flow(self) -> Self {
        self.change(|s| s.flow = FlowWant::None)
    }

    /// Packets that the flow's entry counts, of its opener and of the other side.
    pub fn packets(self, opener: u32, other: u32) -> Self {
        self.change(|s| s.packets = Some((opener, other)))
    }

    /// Direction that is counted.
    pub fn dir(self, dir: u8) -> Self {
        self.change(|s| s.dir = Some(dir))
    }

    /// Policy verdicts reported when everything is traced: direction, `EVENT_ALLOW` and `EVENT_AUDIT`, reason of a denial.
    pub fn verdicts(self, wanted: &[(u8, u8, Option<DropReason>)]) -> Self {
        let wanted = wanted.to_vec();
        self.change(|s| s.verdicts = Some(wanted))
    }
}

impl Scenario {
    /// Drop reasons that the row expects.
    pub fn reasons(&self) -> impl Iterator<Item = DropReason> {
        self.steps.iter().filter_map(|s| match s {
            Step::Send(s) => match s.want {
                Want::Drop(reason) => Some(reason),
                _ => None,
            },
            Step::Do(_) => None,
        })
    }

    /// `drops`: jiffies for which a refusal is repeated without being reported.
    fn run(&self, world: &World<'_>, family: Family, flags: u32, drops: u32) -> Result<(), String> {
        world.reset(flags);
        world.report_drops(drops);
        let reports = Reports { traced: flags & EP_TRACE_ALL != 0, repeats: drops == 0 };
        let (mut dropped, mut told) = (0, 0);
        for (n, step) in self.steps.iter().enumerate() {
            match step {
                Step::Do(f) => f(world, family),
                Step::Send(send) => {
                    let packet = (send.packet)(family);
                    let frame = World::frame(send.via, packet.clone());
                    let ctx = send.ifindex.map_or_else(|| World::context_of(send.via), World::context);
                    let outcome = world.run(world.entry(send.via), &ctx, &frame);
                    let judged = send.judge(world, family, reports, &packet, &frame, &outcome);
                    judged.map_err(|e| format!("step {n}: {e}\n      {outcome}"))?;
                    dropped += u64::from(matches!(send.want, Want::Drop(_)));
                    told += outcome.of_kind(EventKind::Drop).map(|e| u64::from(e.event.untold) + 1).sum::<u64>();
                }
            }
        }
        expect("drops told of, or waiting for it", told + world.untold(), dropped)
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what} is {found:?}, expected {wanted:?}")) }
}

/// The frame as its receiver is to see it.
pub fn delivered(frame: &[u8], via: Who, to: Who) -> Vec<u8> {
    let mut out = frame.to_vec();
    out[..6].copy_from_slice(&to.mac());
    out[6..12].copy_from_slice(&to.host_mac());
    if via != Who::Host && to.is_container() {
        if frame[12] == 8 {
            out[ETH + 8] -= 1;
            out[ETH + 10..ETH + 12].fill(0);
            let check = !fold(sum(&out[ETH..ETH + usize::from(out[ETH] & 15) * 4]));
            out[ETH + 10..ETH + 12].copy_from_slice(&check.to_be_bytes());
        } else {
            out[ETH + 7] -= 1;
        }
    }
    out
}

/// What is reported: every packet that passes (`traced`), every refusal that is repeated.
#[derive(Clone, Copy)]
struct Reports {
    traced: bool,
    repeats: bool,
}

impl Send {
    fn judge(
        &self,
        world: &World<'_>,
        family: Family,
        Reports { traced, repeats }: Reports,
        packet: &Packet,
        frame: &[u8],
        o: &Outcome,
    ) -> Result<(), String> {
        match &self.want {
            Want::Drop(reason) => {
                expect("retval", o.retval, TC_ACT_SHOT)?;
                // A packet whose tail call is missing was forwarded as far as its sender's program knew.
                expect("reasons", o.drops(), vec![*reason])?;
                expect("drops", o.packets(reason.raw()), 1)?;
                if *reason != DropReason::MissedTailCall {
                    expect("forwarded", o.packets(0), 0)?;
                }
                let reported = o.of_kind(EventKind::Drop).map(|e| e.event.reason).collect::<Vec<_>>();
                if repeats || !reported.is_empty() {
                    expect("drop events", reported, vec![reason.raw()])?;
                }
            }
            Want::Pass(to, state) => {
                expect("retval", o.retval, TC_ACT_REDIRECT)?;
                self.forwarded(o)?;
                expect("bytes", o.counts.values().map(|c| c.1).sum::<u64>(), frame.len() as u64)?;
                let wanted = delivered(frame, self.via, *to);
                if o.out != wanted {
                    return Err(format!("packet is\n      {:02x?}, expected\n      {wanted:02x?}", o.out));
                }
                let point = match to {
                    Who::Host => TracePoint::ToHost,
                    Who::World => TracePoint::ToStack,
                    _ => TracePoint::ToEndpoint,
                };
                self.traces(o, traced, point, *state)?;
                if let FlowWant::Is { flags, .. } = &self.flow {
                    let taken_up = flags & FLOW_MIDSTREAM != 0 && *state == FlowState::New;
                    expect("packets without a flow", o.without_flow, u64::from(taken_up))?;
                }
                if traced {
                    let e = &o.of_kind(EventKind::Trace).next().expect("compared").event;
                    expect("receiver", u32::from(e.dst_slot), to.slot())?;
                    expect("family", e.flags & EVENT_IPV6 != 0, family == Family::V6)?;
                }
            }
            Want::Answer(judge) => {
                expect("retval", o.retval, TC_ACT_REDIRECT)?;
                self.forwarded(o)?;
                self.traces(o, traced, TracePoint::Reply, FlowState::None)?;
                judge(frame, &o.out, family).map_err(|e| format!("answer: {e}: {:02x?}", o.out))?;
            }
        }
        for e in &o.events {
            expect("length in event", e.payload.len(), (e.event.len as usize).min(EVENT_PAYLOAD as usize))?;
            expect("interface in event", e.event.ifindex, self.ifindex.unwrap_or_else(|| World::device_of(self.via)))?;
        }
        if let Some(dir) = self.dir {
            expect("directions", o.counts.keys().map(|k| k.1).collect::<Vec<_>>(), vec![dir])?;
        }
        if let (Some(wanted), true) = (&self.verdicts, traced) {
            let told = o
                .of_kind(EventKind::Verdict)
                .map(|e| (e.event.dir, e.event.flags & (EVENT_ALLOW | EVENT_AUDIT), DropReason::from_raw(e.event.reason)));
            expect("verdicts", told.collect::<Vec<_>>(), wanted.clone())?;
        }
        self.judge_flow(world, packet)
    }

    fn forwarded(&self, o: &Outcome) -> Result<(), String> {
        expect("reasons", o.drops(), vec![])?;
        expect("forwarded", o.packets(0), 1)
    }

    fn traces(&self, o: &Outcome, traced: bool, point: TracePoint, state: FlowState) -> Result<(), String> {
        let told = o.of_kind(EventKind::Trace).map(|e| (e.event.reason, e.state())).collect::<Vec<_>>();
        expect("traces", told, if traced { vec![(point.raw(), state)] } else { vec![] })?;
        // The event shows the packet as it leaves, unless another program sends it on its way.
        match o.of_kind(EventKind::Trace).next() {
            Some(e) if !matches!(self.want, Want::Pass(Who::C, _)) => {
                expect("payload of the event", &e.payload[..], &o.out[..e.payload.len()])
            }
            _ => Ok(()),
        }
    }

    fn judge_flow(&self, world: &World<'_>, packet: &Packet) -> Result<(), String> {
        match &self.flow {
            FlowWant::Any => return Ok(()),
            FlowWant::None => return expect("flow", world.flow(packet), None),
            FlowWant::Is { .. } => {}
        }
        let FlowWant::Is { opener, flags } = &self.flow else { return Ok(()) };
        let found = world.flow(packet).ok_or("no flow entry")?;
        expect("flags of the flow", format!("{:#x}", found.flags), format!("{flags:#x}"))?;
        expect("opener", u32::from(found.opener), opener.slot())?;
        let epoch = |slot: u16| world.endpoint.get(&u32::from(slot)).expect("row").expect("row").epoch;
        expect("epoch of the flow", found.epoch, epoch(found.opener) + epoch(found.other))?;
        match self.packets {
            Some(packets) => expect("packets of the flow", found.packets, packets),
            None => Ok(()),
        }
    }
}

/// Runs a world of each build.
pub fn each_build(f: impl Fn(&World<'_>) + Sync) {
    each_build_of(&Features::default(), f);
}

/// The same of another shape.
pub fn each_build_of(features: &Features, f: impl Fn(&World<'_>) + Sync) {
    for build in [Build::Shared, Build::Own] {
        Sandbox::run(|sandbox| f(&World::new(sandbox, build, features)));
    }
}

/// Runs every row in every way and panics with all that went wrong.
pub fn run(table: fn() -> Vec<Scenario>) {
    run_of(&Features::default(), table);
}

/// The same of another shape.
pub fn run_of(features: &Features, table: fn() -> Vec<Scenario>) {
    let all = Mutex::new((Vec::new(), 0));
    each_build_of(features, |world| {
        let mut all = all.lock().expect("no other build runs meanwhile");
        let (failures, ran) = &mut *all;
        for scenario in table() {
            for family in scenario.families {
                let traced = EP_DROPS | EP_TRACE_ALL | EP_VERDICT;
                let modes = [
                    ("slow, traced", traced | EP_REMOTE, 0),
                    ("traced", traced, 0),
                    ("plain", EP_DROPS, 0),
                    ("refusals repeated", EP_DROPS, DENIAL_LONGEST),
                ];
                for (mode, flags, drops) in modes {
                    *ran += 1;
                    if let Err(e) = scenario.run(world, *family, flags, drops) {
                        failures.push(format!("  {} ({family:?}, {}, {mode}) {e}", scenario.name, world.build.as_str()));
                    }
                }
            }
        }
    });
    let (failures, ran) = all.into_inner().expect("no build panicked");
    println!("{ran} runs of rows");
    assert!(failures.is_empty(), "{} of {ran} failed:\n{}", failures.len(), failures.join("\n"));
}
