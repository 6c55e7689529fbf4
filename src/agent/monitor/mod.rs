// SPDX-License-Identifier: Apache-2.0
//! Events: from the kernel's ring buffer to everyone who listens. One thread reads and sorts, by the numbers in the event;
//! each listener decodes what it takes. A slow listener loses events, never slows traffic or other listeners.

mod dissect;
mod queue;

pub use queue::Filter;

use crate::clock;
use crate::control::Readers;
use crate::datapath::Tables;
use crate::datapath::policies::PolicyReconciler;
use pilus_api::types::{FlowEvent, MonitorCounts, PeerModel};
use pilus_loader::bpffs::BpfFs;
use pilus_loader::events;
use pilus_model::abi::{self, DropReason, EVENT_ALLOW, EVENT_AUDIT, Event, EventKind, FlowState, TracePoint, map};
use pilus_model::endpoint::EndpointId;
use pilus_model::identity::NumericIdentity;
use queue::{Listener, STRIDE, Spread};
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// The kernel wakes the reader only when much has gathered, so it also looks by itself: often while somebody listens.
const SWEEP: Duration = Duration::from_millis(25);
const IDLE_SWEEP: Duration = Duration::from_millis(200);
/// How often losses in the kernel's buffer are looked for while somebody listens.
const LOSSES: Duration = Duration::from_millis(200);
/// Events that a listener decodes at once.
const PORTION: usize = 128;

type Listeners = Arc<Vec<Arc<Listener>>>;

/// What listeners receive.
#[derive(Clone)]
pub struct Monitor {
    shared: Arc<Shared>,
}

struct Shared {
    listeners: Mutex<Listeners>,
    /// Changes with `listeners`, so that the reader sees who came before an event happened.
    version: AtomicU64,
    seen: AtomicU64,
    /// Lost by slow listeners, and in the kernel's buffer when last looked.
    slow: AtomicU64,
    missed: AtomicU64,
    stop: AtomicBool,
    tables: Arc<Tables>,
    readers: Readers,
    policies: Arc<PolicyReconciler>,
}

impl Monitor {
    /// Starts the thread that reads the ring buffer.
    pub fn start(fs: &BpfFs, tables: Arc<Tables>, readers: Readers, policies: Arc<PolicyReconciler>) -> Result<Self, pilus_loader::Error> {
        let reader = events::Reader::open(fs, map::EVENTS)?;
        let shared = Arc::new(Shared {
            listeners: Mutex::default(),
            version: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            tables,
            readers,
            policies,
        });
        let this = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("events".into())
            .spawn(move || {
                if let Err(e) = this.read(reader) {
                    tracing::error!(error = %e, "events cannot be read");
                }
            })
            .map_err(|_| pilus_loader::Error::Invalid { field: "thread", reason: "cannot be started" })?;
        Ok(Self { shared })
    }

    /// From now on. The subscription ends when it is dropped.
    pub fn listen(&self, filter: Filter) -> Subscription {
        let listener = Arc::new(Listener::new(filter, clock::monotonic_ns()));
        let told = self.shared.kernel_lost();
        self.shared.change(|all| all.push(Arc::clone(&listener)));
        Subscription { shared: Arc::clone(&self.shared), listener, taken: Vec::new(), at: 0, told }
    }

    /// The agent itself has something to say.
    pub fn announce(&self, what: &str) {
        let words = agent_event("agent", what, 0);
        self.shared.now().iter().for_each(|l| l.say(&words));
    }

    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Events that slow listeners lost so far.
    pub fn lost_by_listeners(&self) -> u64 {
        self.shared.slow.load(Ordering::Relaxed)
    }

    pub fn counts(&self) -> MonitorCounts {
        MonitorCounts {
            events: self.shared.seen.load(Ordering::Relaxed),
            lost: self.shared.kernel_lost(),
            listeners: self.shared.now().len(),
        }
    }
}

impl Shared {
    fn now(&self) -> Listeners {
        Arc::clone(&self.listeners.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Listener>>)) {
        let mut held = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = (**held).clone();
        change(&mut all);
        *held = Arc::new(all);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Events for which the kernel's buffer had no room.
    fn kernel_lost(&self) -> u64 {
        let lost = (0..2).filter_map(|dir| self.tables.metrics.get(abi::REASON_EVENT_LOST << 1 | dir).ok());
        lost.flatten().map(|c| c.packets).sum()
    }

    fn read(&self, mut reader: events::Reader) -> Result<(), pilus_loader::Error> {
        let mut spread = Spread::new();
        let mut looked = Instant::now();
        let mut version = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let wait = if spread.anybody() { SWEEP } else { IDLE_SWEEP };
            let mut take = |bytes: &[u8]| {
                let now = self.version.load(Ordering::Acquire);
                if now != version {
                    version = now;
                    spread.flush();
                    spread.to(self.now());
                }
                spread.record(bytes);
            };
            reader.poll(wait, &mut take)?;
            spread.flush();
            spread.settle(&self.seen, &self.slow);
            if version != self.version.load(Ordering::Acquire) {
                version = self.version.load(Ordering::Acquire);
                spread.to(self.now());
            }
            if spread.anybody() && looked.elapsed() >= LOSSES {
                looked = Instant::now();
                let lost = self.kernel_lost();
                if self.missed.swap(lost, Ordering::Relaxed) != lost {
                    self.now().iter().for_each(|l| l.notify.notify_one());
                }
            }
        }
        Ok(())
    }
}

/// One listener's end.
pub struct Subscription {
    shared: Arc<Shared>,
    listener: Arc<Listener>,
    /// Whole events that were taken from the queue, decoded up to `at`.
    taken: Vec<u8>,
    at: usize,
    /// Losses in the kernel's buffer that this listener was told of.
    told: u64,
}

impl Subscription {
    /// The next events, at least one. What was lost meanwhile stands before what came after it.
    pub async fn next(&mut self) -> Vec<FlowEvent> {
        loop {
            let mut events = Vec::new();
            if self.at >= self.taken.len() {
                let mut spare = std::mem::take(&mut self.taken);
                spare.clear();
                let waiting = self.listener.take(spare);
                (self.taken, self.at) = (waiting.records, 0);
                events.extend(waiting.words);
                let missed = self.shared.missed.load(Ordering::Relaxed);
                if missed > self.told {
                    events.push(agent_event("lost", "the kernel's buffer was full", missed - std::mem::replace(&mut self.told, missed)));
                }
                if waiting.lost > 0 {
                    events.push(agent_event("lost", "the listener is too slow", waiting.lost));
                }
            }
            let portion = &self.taken[self.at..self.taken.len().min(self.at + PORTION * STRIDE)];
            self.at += portion.len();
            events.extend(portion.chunks_exact(STRIDE).filter_map(|record| self.shared.decode(record)));
            if !events.is_empty() {
                return events;
            }
            if self.at >= self.taken.len() {
                self.listener.notify.notified().await;
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.change(|all| all.retain(|l| !Arc::ptr_eq(l, &self.listener)));
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
        headers: String::new(),
        packet: String::new(),
        count,
    }
}

impl Shared {
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

    /// One whole event of a queue.
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
        let dissected = dissect::dissect(packet);
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
            summary: dissected.summary,
            headers: dissected.headers,
            packet: hex,
            count: if kind == EventKind::Drop { u64::from(e.untold) + 1 } else { 0 },
        })
    }
}

fn reason_text(raw: u8) -> String {
    DropReason::from_raw(raw).map_or_else(|| format!("reason {raw}"), |r| r.text().to_owned())
}
