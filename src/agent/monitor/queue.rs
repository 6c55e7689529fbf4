// SPDX-License-Identifier: Apache-2.0
//! Who listens, to what, and what waits for them. A full queue loses events and counts them; it never makes the reader wait.

use pilus_api::types::FlowEvent;
use pilus_model::abi::{EVENT_PAYLOAD, Event};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use zerocopy::FromBytes;

/// Events that wait for a listener before it loses some.
pub const QUEUE: usize = 8192;
/// Bytes of one event in a queue.
pub const STRIDE: usize = size_of::<Event>() + EVENT_PAYLOAD as usize;

/// What a listener wants, in the numbers that events carry, so that nothing is decoded in vain. An empty list does not restrict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Bit n: events of kind n.
    pub kinds: u32,
    /// What the agent says.
    pub agent: bool,
    pub from: Vec<u16>,
    pub to: Vec<u16>,
    pub related: Vec<u16>,
}

impl Default for Filter {
    fn default() -> Self {
        Self { kinds: u32::MAX, agent: true, from: Vec::new(), to: Vec::new(), related: Vec::new() }
    }
}

impl Filter {
    pub fn passes(&self, e: &Event) -> bool {
        let is = |wanted: &[u16], slots: &[u16]| wanted.is_empty() || slots.iter().any(|s| wanted.contains(s));
        self.kinds >> (e.kind & 31) & 1 == 1
            && is(&self.from, &[e.src_slot])
            && is(&self.to, &[e.dst_slot])
            && is(&self.related, &[e.src_slot, e.dst_slot])
    }

    /// The agent's words are about no packet.
    fn takes_words(&self) -> bool {
        self.agent && self.from.is_empty() && self.to.is_empty() && self.related.is_empty()
    }
}

/// What waits for a listener.
#[derive(Default, Debug)]
pub struct Waiting {
    /// Whole events, `STRIDE` bytes each.
    pub records: Vec<u8>,
    pub words: Vec<FlowEvent>,
    /// Events that found no room here, and the drops that they told of besides their own.
    pub lost: u64,
}

#[derive(Debug)]
pub struct Listener {
    pub filter: Filter,
    /// Only events of this time (`CLOCK_MONOTONIC`, ns) or later.
    since: u64,
    waiting: Mutex<Waiting>,
    pub notify: Notify,
}

impl Listener {
    pub fn new(filter: Filter, since: u64) -> Self {
        Self { filter, since, waiting: Mutex::default(), notify: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes everything that waits; `spare` is the buffer that events gather in from now on.
    pub fn take(&self, spare: Vec<u8>) -> Waiting {
        std::mem::replace(&mut *self.lock(), Waiting { records: spare, ..Waiting::default() })
    }

    /// Adds events. How many found no room.
    fn push(&self, records: &[u8]) -> u64 {
        let lost = {
            let mut waiting = self.lock();
            let room = (QUEUE * STRIDE).saturating_sub(waiting.records.len()).min(records.len());
            waiting.records.extend_from_slice(&records[..room]);
            let lost = records[room..].chunks_exact(STRIDE);
            let count = lost.len() as u64;
            let untold = lost.filter_map(|r| Some(u64::from(Event::ref_from_prefix(r).ok()?.0.untold)));
            waiting.lost += count + untold.sum::<u64>();
            count
        };
        self.notify.notify_one();
        lost
    }

    pub fn say(&self, words: &FlowEvent) {
        if self.filter.takes_words() {
            let mut waiting = self.lock();
            if waiting.words.len() < QUEUE {
                waiting.words.push(words.clone());
            } else {
                waiting.lost += 1;
            }
            drop(waiting);
            self.notify.notify_one();
        }
    }
}

/// Events on their way from the ring to listeners: gathered, so that a queue is locked once for many.
pub struct Spread {
    listeners: Arc<Vec<Arc<Listener>>>,
    gathered: Vec<Vec<u8>>,
    /// Events seen, and those that slow listeners lost.
    pub seen: u64,
    pub lost: u64,
}

/// Bytes gathered for one listener before they are handed over.
const GATHER: usize = 256 * STRIDE;

impl Spread {
    pub fn new() -> Self {
        Self { listeners: Arc::default(), gathered: Vec::new(), seen: 0, lost: 0 }
    }

    /// Listens for others from now on.
    pub fn to(&mut self, listeners: Arc<Vec<Arc<Listener>>>) {
        if !Arc::ptr_eq(&self.listeners, &listeners) {
            self.gathered.resize_with(listeners.len(), Vec::new);
            self.listeners = listeners;
        }
    }

    pub fn anybody(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// One record as the ring has it.
    pub fn record(&mut self, bytes: &[u8]) {
        self.seen += 1;
        if self.listeners.is_empty() {
            return;
        }
        let Ok((e, payload)) = Event::ref_from_prefix(bytes) else { return };
        for (listener, gathered) in self.listeners.iter().zip(&mut self.gathered) {
            if e.time < listener.since || !listener.filter.passes(e) {
                continue;
            }
            let length = (size_of::<Event>() + payload.len()).min(STRIDE);
            gathered.extend_from_slice(&bytes[..length]);
            gathered.resize(gathered.len() + STRIDE - length, 0);
            if gathered.len() >= GATHER {
                self.lost += listener.push(gathered);
                gathered.clear();
            }
        }
    }

    /// Hands over what has gathered.
    pub fn flush(&mut self) {
        for (listener, gathered) in self.listeners.iter().zip(&mut self.gathered) {
            if !gathered.is_empty() {
                self.lost += listener.push(gathered);
                gathered.clear();
            }
        }
    }

    /// Adds what was counted to `seen` and `lost`, and counts anew.
    pub fn settle(&mut self, seen: &AtomicU64, lost: &AtomicU64) {
        seen.fetch_add(std::mem::take(&mut self.seen), Ordering::Relaxed);
        lost.fetch_add(std::mem::take(&mut self.lost), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilus_model::abi::EventKind;
    use zerocopy::IntoBytes;

    fn event(kind: EventKind, src_slot: u16, dst_slot: u16, time: u64) -> Vec<u8> {
        let e = Event { kind: kind.raw(), src_slot, dst_slot, time, cap: 4, len: 4, ..Event::default() };
        [e.as_bytes(), &[7; EVENT_PAYLOAD as usize]].concat()
    }

    fn spread(filters: &[Filter]) -> (Spread, Vec<Arc<Listener>>) {
        let listeners: Vec<_> = filters.iter().map(|f| Arc::new(Listener::new(f.clone(), 10))).collect();
        let mut spread = Spread::new();
        spread.to(Arc::new(listeners.clone()));
        (spread, listeners)
    }

    #[test]
    fn each_gets_what_it_wants() {
        let only = |kind: EventKind| Filter { kinds: 1 << kind.raw(), ..Filter::default() };
        let filters = [
            Filter::default(),
            only(EventKind::Drop),
            Filter { from: vec![1, 9], ..Filter::default() },
            Filter { to: vec![1], ..Filter::default() },
            Filter { related: vec![1], ..only(EventKind::Trace) },
        ];
        let (mut spread, listeners) = spread(&filters);
        for (kind, from, to) in [(EventKind::Drop, 1, 2), (EventKind::Trace, 2, 1), (EventKind::Trace, 2, 3), (EventKind::Drop, 9, 1)] {
            spread.record(&event(kind, from, to, 10));
        }
        spread.record(&event(EventKind::Drop, 1, 1, 9));
        spread.flush();
        let counts: Vec<usize> = listeners.iter().map(|l| l.take(Vec::new()).records.len() / STRIDE).collect();
        assert_eq!(counts, [4, 2, 2, 2, 1], "and nothing that happened before");
        assert_eq!((spread.seen, spread.lost), (5, 0));
    }

    #[test]
    fn a_slow_listener_loses_and_a_quick_one_does_not() {
        let (mut spread, listeners) = spread(&[Filter::default(), Filter::default()]);
        let record = event(EventKind::Trace, 1, 2, 10);
        let mut quick = 0;
        for n in 0..QUEUE + 1000 {
            spread.record(&record);
            if n % 500 == 0 {
                quick += listeners[1].take(Vec::new()).records.len() / STRIDE;
            }
        }
        spread.flush();
        let rest = listeners[1].take(Vec::new());
        let slow = listeners[0].take(Vec::new());
        assert_eq!((quick + rest.records.len() / STRIDE, rest.lost), (QUEUE + 1000, 0));
        assert_eq!((slow.records.len() / STRIDE, slow.lost), (QUEUE, 1000));
        assert_eq!(spread.lost, 1000);
        assert_eq!(&slow.records[STRIDE..2 * STRIDE], &record[..], "whole events");
        let after = {
            spread.record(&record);
            spread.flush();
            listeners[0].take(Vec::new())
        };
        assert_eq!((after.records.len() / STRIDE, after.lost), (1, 0), "what was lost is told once");
    }

    /// A report that stands for other drops takes those along.
    #[test]
    fn what_a_lost_report_stands_for_is_lost() {
        let (mut spread, listeners) = spread(&[Filter::default()]);
        for n in 0..QUEUE as u32 + 3 {
            let mut record = event(EventKind::Drop, 1, 2, 10);
            let (e, _) = Event::mut_from_prefix(&mut record).expect("an event");
            e.untold = n;
            spread.record(&record);
        }
        spread.flush();
        let untold: u64 = (QUEUE as u64..).take(3).sum();
        assert_eq!((listeners[0].take(Vec::new()).lost, spread.lost), (3 + untold, 3));
    }

    #[test]
    fn words_go_to_who_asks_for_no_endpoint() {
        let (_, listeners) =
            spread(&[Filter::default(), Filter { agent: false, ..Filter::default() }, Filter { to: vec![1], ..Filter::default() }]);
        let said = super::super::agent_event("agent", "hello", 0);
        listeners.iter().for_each(|l| l.say(&said));
        assert_eq!(listeners.iter().map(|l| l.take(Vec::new()).words.len()).collect::<Vec<_>>(), [1, 0, 0]);
    }
}
