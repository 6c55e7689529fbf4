// SPDX-License-Identifier: Apache-2.0
//! What a packet did: verdict, bytes, events, counters, flow.

use pilus_model::abi::{DropReason, Event, EventKind, FLOW_FIN_A, FLOW_FIN_B, FLOW_OPENER_B, Flow, FlowState, TracePoint};
use std::collections::BTreeMap;
use zerocopy::FromBytes;

pub const TC_ACT_UNSPEC: u32 = u32::MAX;
pub const TC_ACT_OK: u32 = 0;
pub const TC_ACT_SHOT: u32 = 2;
pub const TC_ACT_REDIRECT: u32 = 7;

/// An event as the ring buffer gave it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub event: Event,
    pub payload: Vec<u8>,
}

impl Seen {
    /// Reads a record; panics on one that is none.
    pub fn read(record: &[u8]) -> Seen {
        let (event, payload) = Event::read_from_prefix(record).expect("a whole event");
        Seen { payload: payload[..event.cap as usize].to_vec(), event }
    }

    pub fn kind(&self) -> EventKind {
        EventKind::from_raw(self.event.kind).expect("a known kind of event")
    }

    pub fn state(&self) -> FlowState {
        FlowState::from_raw(self.event.state).expect("a known state")
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let e = &self.event;
        let reason = match self.kind() {
            EventKind::Trace => TracePoint::from_raw(e.reason).map(|p| p.text()),
            _ => DropReason::from_raw(e.reason).map(|r| r.text()),
        };
        let reason = reason.map_or(e.reason.to_string(), str::to_owned);
        write!(f, "{} ({reason}) {} dir {} flags {:#x}", self.kind(), self.state(), e.dir, e.flags)?;
        write!(f, " {}({}) -> {}({}) port {} rule {}", e.src_slot, e.src_id, e.dst_slot, e.dst_id, e.dport, e.rule)
    }
}

/// Packets and bytes by (reason, direction); reason 0 is forwarded.
pub type Counts = BTreeMap<(u8, u8), (u64, u64)>;

/// All that one packet changed.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub retval: u32,
    /// The packet afterwards.
    pub out: Vec<u8>,
    /// The packet's mark afterwards.
    pub mark: u32,
    pub events: Vec<Seen>,
    /// Counters that moved, by how much.
    pub counts: Counts,
    /// Packets counted for having no flow, which are counted for what became of them as well.
    pub without_flow: u64,
}

impl Outcome {
    pub fn of_kind(&self, kind: EventKind) -> impl Iterator<Item = &Seen> {
        self.events.iter().filter(move |e| e.kind() == kind)
    }

    /// Drops that were counted.
    pub fn drops(&self) -> Vec<DropReason> {
        self.counts.keys().filter(|(r, _)| *r != 0).filter_map(|(r, _)| DropReason::from_raw(*r)).collect()
    }

    /// Packets counted for a reason, both directions.
    pub fn packets(&self, reason: u8) -> u64 {
        self.counts.iter().filter(|((r, _), _)| *r == reason).map(|(_, (packets, _))| packets).sum()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "returned {}, dropped {:?}, counted {:?}", self.retval, self.drops(), self.counts)?;
        self.events.iter().try_for_each(|e| write!(f, "\n      event {e}"))
    }
}

/// A flow entry seen from its opener: `FLOW_FIN_A` means that the opener sent FIN, `FLOW_FIN_B` the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowView {
    pub flags: u16,
    /// Slot of the opener, and of the other side.
    pub opener: u16,
    pub other: u16,
    /// Packets of the opener, and of the other side.
    pub packets: (u32, u32),
    pub epoch: u32,
}

impl FlowView {
    pub fn of(f: &Flow) -> FlowView {
        let b = f.flags & FLOW_OPENER_B != 0;
        let mut flags = f.flags & !(FLOW_OPENER_B | FLOW_FIN_A | FLOW_FIN_B);
        let (a_fin, b_fin) = if b { (FLOW_FIN_B, FLOW_FIN_A) } else { (FLOW_FIN_A, FLOW_FIN_B) };
        flags |= if f.flags & FLOW_FIN_A != 0 { a_fin } else { 0 };
        flags |= if f.flags & FLOW_FIN_B != 0 { b_fin } else { 0 };
        // Direction 0 goes from A to B, so ep[0] is B's slot.
        let (opener, other) = if b { (f.ep[0], f.ep[1]) } else { (f.ep[1], f.ep[0]) };
        let packets = if b { (f.packets[1], f.packets[0]) } else { (f.packets[0], f.packets[1]) };
        FlowView { flags, opener, other, packets, epoch: f.epoch }
    }
}
