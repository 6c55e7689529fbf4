// SPDX-License-Identifier: Apache-2.0
//! Events: from the kernel's ring buffer to everyone who listens. A slow listener loses events, never slows traffic.

use crate::clock;
use crate::control::Readers;
use crate::datapath::Tables;
use crate::datapath::policies::PolicyReconciler;
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use pilus_api::types::{FlowEvent, MonitorCounts, PeerModel};
use pilus_loader::bpffs::BpfFs;
use pilus_loader::events;
use pilus_model::abi::{self, DropReason, EVENT_ALLOW, EVENT_AUDIT, Event, EventKind, FlowState, TracePoint, map};
use pilus_model::endpoint::EndpointId;
use pilus_model::identity::NumericIdentity;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::broadcast;
use zerocopy::FromBytes;

/// Events that wait for a listener before it loses some.
const QUEUE: usize = 8192;
/// The kernel wakes the reader only when much has gathered, so it also looks by itself.
const SWEEP: Duration = Duration::from_millis(25);

/// What listeners receive.
#[derive(Clone)]
pub struct Monitor {
    sender: broadcast::Sender<Arc<FlowEvent>>,
    seen: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tables: Arc<Tables>,
}

struct Decoder {
    readers: Readers,
    policies: Arc<PolicyReconciler>,
}

impl Monitor {
    /// Starts the thread that reads the ring buffer.
    pub fn start(fs: &BpfFs, tables: Arc<Tables>, readers: Readers, policies: Arc<PolicyReconciler>) -> Result<Self, pilus_loader::Error> {
        let mut reader = events::Reader::open(fs, map::EVENTS)?;
        let (sender, _) = broadcast::channel(QUEUE);
        let monitor = Self { sender, seen: Arc::default(), stop: Arc::default(), tables };
        let this = monitor.clone();
        let decoder = Decoder { readers, policies };
        std::thread::Builder::new()
            .name("events".into())
            .spawn(move || {
                while !this.stop.load(Ordering::Relaxed) {
                    let mut take = |bytes: &[u8]| this.record(&decoder, bytes);
                    let read = reader.poll(SWEEP, &mut take).and_then(|_| reader.consume(usize::MAX >> 1, &mut take));
                    if let Err(e) = read {
                        tracing::error!(error = %e, "events cannot be read");
                        return;
                    }
                }
            })
            .map_err(|_| pilus_loader::Error::Invalid { field: "thread", reason: "cannot be started" })?;
        Ok(monitor)
    }

    fn record(&self, decoder: &Decoder, bytes: &[u8]) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        if self.sender.receiver_count() == 0 {
            return;
        }
        if let Some(event) = decoder.decode(bytes) {
            let _ = self.sender.send(Arc::new(event));
        }
    }

    pub fn listen(&self) -> broadcast::Receiver<Arc<FlowEvent>> {
        self.sender.subscribe()
    }

    /// The agent itself has something to say.
    pub fn announce(&self, what: &str) {
        let _ = self.sender.send(Arc::new(agent_event("agent", what, 0)));
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Events that slow listeners lost so far.
    pub fn lost_by_listeners(&self) -> u64 {
        0
    }

    pub fn counts(&self) -> MonitorCounts {
        let lost = (0..2).filter_map(|dir| self.tables.metrics.get(abi::REASON_EVENT_LOST << 1 | dir).ok());
        MonitorCounts {
            events: self.seen.load(Ordering::Relaxed),
            lost: lost.flatten().map(|c| c.packets).sum(),
            listeners: self.sender.receiver_count(),
        }
    }
}

/// An event that is not about a packet.
pub fn agent_event(kind: &str, reason: &str, count: u64) -> FlowEvent {
    FlowEvent {
        time: clock::now(),
        kind: kind.into(),
        reason: reason.into(),
        verdict: String::new(),
        direction: String::new(),
        state: String::new(),
        source: None,
        destination: None,
        rule: String::new(),
        ifindex: 0,
        length: 0,
        summary: String::new(),
        packet: String::new(),
        count,
    }
}

impl Decoder {
    fn peer(&self, slot: u16, identity: u32) -> PeerModel {
        let endpoints = self.readers.endpoints.snapshot().rows;
        let spec = endpoints.get(&EndpointId(slot));
        let labels = self.readers.identities.snapshot().rows.get(&NumericIdentity(identity)).cloned();
        PeerModel {
            endpoint: spec.map_or(0, |s| s.record.id.0),
            name: spec.map(|s| s.record.name.clone()).unwrap_or_default(),
            identity,
            labels: labels.map(|l| l.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        }
    }

    fn decode(&self, bytes: &[u8]) -> Option<FlowEvent> {
        let (e, payload) = Event::read_from_prefix(bytes).ok()?;
        let packet = payload.get(..e.cap as usize).unwrap_or_default();
        let kind = EventKind::from_raw(e.kind)?;
        let (reason, verdict) = match kind {
            EventKind::Drop => (reason_text(e.reason), "deny"),
            EventKind::Trace => (TracePoint::from_raw(e.reason).map_or_else(|| e.reason.to_string(), |p| p.text().to_owned()), "allow"),
            EventKind::Verdict if e.flags & EVENT_AUDIT != 0 => (reason_text(e.reason), "audit"),
            EventKind::Verdict if e.flags & EVENT_ALLOW != 0 => ("Policy allowed".into(), "allow"),
            _ => (reason_text(e.reason), "deny"),
        };
        let mut hex = String::with_capacity(packet.len() * 2);
        for b in packet {
            let _ = write!(hex, "{b:02x}");
        }
        Some(FlowEvent {
            time: clock::from_monotonic(e.time),
            kind: kind.text().into(),
            reason,
            verdict: verdict.into(),
            direction: if e.dir == abi::DIR_EGRESS { "egress" } else { "ingress" }.into(),
            state: FlowState::from_raw(e.state).map(|s| s.text().to_owned()).unwrap_or_default(),
            source: Some(self.peer(e.src_slot, e.src_id)),
            destination: Some(self.peer(e.dst_slot, e.dst_id)),
            rule: if e.rule == 0 { String::new() } else { self.policies.rule_text(e.rule).unwrap_or_else(|| format!("#{}", e.rule)) },
            ifindex: e.ifindex,
            length: e.len,
            summary: dissect(packet),
            packet: hex,
            count: 0,
        })
    }
}

fn reason_text(raw: u8) -> String {
    DropReason::from_raw(raw).map_or_else(|| format!("reason {raw}"), |r| r.text().to_owned())
}

/// One line as a packet tool would print it. A packet that is cut short is shown as far as it goes.
pub fn dissect(packet: &[u8]) -> String {
    let Ok(p) = LaxSlicedPacket::from_ethernet(packet) else { return format!("{} bytes, no Ethernet header", packet.len()) };
    let (src, dst, proto) = match &p.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let h = ip.header();
            (h.source_addr().to_string(), h.destination_addr().to_string(), h.protocol().0)
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let h = ip.header();
            (h.source_addr().to_string(), h.destination_addr().to_string(), h.next_header().0)
        }
        Some(LaxNetSlice::Arp(arp)) => {
            let addr = |b: &[u8]| <[u8; 4]>::try_from(b).map(|a| std::net::Ipv4Addr::from(a).to_string()).unwrap_or_default();
            return format!(
                "arp {} who-has {} tell {}",
                if arp.operation().0 == 1 { "request" } else { "reply" },
                addr(arp.target_protocol_addr()),
                addr(arp.sender_protocol_addr())
            );
        }
        None => {
            let ether_type = packet.get(12..14).map(|b| u16::from_be_bytes([b[0], b[1]])).unwrap_or_default();
            return format!("ethertype {ether_type:#06x}");
        }
    };
    match &p.transport {
        Some(TransportSlice::Tcp(t)) => {
            let flags = [(t.syn(), "SYN"), (t.fin(), "FIN"), (t.rst(), "RST"), (t.psh(), "PSH"), (t.ack(), "ACK")];
            let names: Vec<&str> = flags.iter().filter(|(on, _)| *on).map(|(_, n)| *n).collect();
            format!("{src}.{} > {dst}.{} tcp {}", t.source_port(), t.destination_port(), names.join(","))
        }
        Some(TransportSlice::Udp(u)) => format!("{src}.{} > {dst}.{} udp", u.source_port(), u.destination_port()),
        Some(TransportSlice::Icmpv4(i)) => format!("{src} > {dst} icmp type {} code {}", i.type_u8(), i.code_u8()),
        Some(TransportSlice::Icmpv6(i)) => format!("{src} > {dst} icmp6 type {} code {}", i.type_u8(), i.code_u8()),
        None => format!("{src} > {dst} protocol {proto}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    #[test]
    fn packets_read_as_a_person_would() {
        let eth = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut b = Vec::new();
        eth().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(40000, 80, 0, 0).syn().write(&mut b, &[]).expect("packet");
        assert_eq!(dissect(&b), "10.0.0.1.40000 > 10.0.0.2.80 tcp SYN");
        let mut b = Vec::new();
        eth().ipv6([0xfd; 16], [0xfe; 16], 64).udp(5, 53).write(&mut b, &[1; 400]).expect("packet");
        assert!(dissect(&b[..128]).ends_with(".53 udp"), "{}", dissect(&b[..128]));
        assert_eq!(dissect(&b[..10]), "10 bytes, no Ethernet header");
        assert_eq!(dissect(&[0xff; 14]), "ethertype 0xffff");
        let mut b = Vec::new();
        eth().ipv6([0xfd; 16], [0xfd; 16], 64).icmpv6_echo_request(1, 2).write(&mut b, &[]).expect("packet");
        assert!(dissect(&b).ends_with("icmp6 type 128 code 0"));
    }
}
