// SPDX-License-Identifier: Apache-2.0
//! What rules would change before they are imported.

use super::engine::{Engine, Refused, Subject};
use super::explain::{Verdict, verdict};
use super::resolve::{Direction, DirectionPolicy, Peer};
use super::rule::Rule;
use crate::abi::Reserved;
use crate::identity::NumericIdentity;
use std::collections::BTreeSet;
use std::mem::discriminant;
use std::sync::Arc;

/// Protocols that are told apart: TCP, UDP, SCTP, ICMP, ICMPv6, and (0) every other.
const PROTOCOLS: [u8; 6] = [6, 17, 132, 1, 58, 0];
/// A protocol that is none of the others.
const OTHER: u8 = 253;

/// Ports (ICMP: types) for which the verdict between an endpoint and a peer changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub subject: Arc<Subject>,
    pub direction: Direction,
    /// Any: every peer that is not listed for this endpoint and direction.
    pub peer: Peer,
    /// IP protocol; 0: every one but TCP, UDP, SCTP and ICMP.
    pub proto: u8,
    pub lo: u16,
    pub hi: u16,
    pub before: Verdict,
    pub after: Verdict,
}

/// Who has the addresses of a prefix that another engine tells apart.
fn known_as(engine: &Engine, other: &Engine, peer: Peer) -> Peer {
    if peer == Peer::ANY || engine.labels(peer).is_some() && engine.prefixes().prefix(peer) == other.prefixes().prefix(peer) {
        return peer;
    }
    let Some(prefix) = other.prefixes().prefix(peer) else { return peer };
    let shorter = prefix.covering().find_map(|p| engine.prefixes().lookup(p));
    shorter.unwrap_or_else(|| NumericIdentity::from(Reserved::World))
}

fn peers(policy: &DirectionPolicy) -> impl Iterator<Item = Peer> {
    let lists = match policy {
        DirectionPolicy::Open => None,
        DirectionPolicy::Rules(lists) => Some(lists),
    };
    lists.into_iter().flat_map(|lists| lists.keys().copied()).chain([Peer::ANY])
}

/// Where a verdict may change.
fn edges(policy: &DirectionPolicy, peer: Peer, out: &mut BTreeSet<u16>) {
    let DirectionPolicy::Rules(lists) = policy else { return };
    for entry in lists.get(&peer).or_else(|| lists.get(&Peer::ANY)).into_iter().flat_map(|l| l.iter()) {
        out.insert(entry.lo);
        out.extend(entry.hi.checked_add(1));
    }
}

/// The same for whoever sends: allowed, denied, or allowed in part.
fn same(a: &Verdict, b: &Verdict) -> bool {
    match (a, b) {
        (Verdict::Redirect(_, a), Verdict::Redirect(_, b)) => a == b,
        _ => a.allowed() == b.allowed() && (matches!(a, Verdict::Redirect(..)) == matches!(b, Verdict::Redirect(..))),
    }
}

impl Engine {
    /// Which verdicts an import would change, of the endpoints that were added. In order of endpoints, directions, peers,
    /// protocols and ports.
    ///
    /// # Errors
    /// The import would be refused.
    pub fn diff(&self, rules: Vec<Rule>) -> Result<Vec<Change>, Refused> {
        let mut trial = self.clone();
        trial.import(rules, None)?;
        let mut out = Vec::new();
        for (subject, after) in trial.policies() {
            let Some(before) = self.policy(subject) else { continue };
            for direction in Direction::ALL {
                let (old, new) = (before.direction(direction), after.direction(direction));
                if old == new {
                    continue;
                }
                let all: BTreeSet<Peer> = peers(old).chain(peers(new)).collect();
                for peer in all {
                    let (then, now) = (known_as(self, &trial, peer), known_as(&trial, self, peer));
                    compare(subject, direction, (peer, then, now), (old, new), &mut out);
                }
            }
        }
        Ok(out)
    }
}

fn compare(
    subject: &Arc<Subject>,
    direction: Direction,
    (peer, then, now): (Peer, Peer, Peer),
    (old, new): (&DirectionPolicy, &DirectionPolicy),
    out: &mut Vec<Change>,
) {
    let mut starts = BTreeSet::from([0]);
    edges(old, then, &mut starts);
    edges(new, now, &mut starts);
    for proto in PROTOCOLS {
        let asked = if proto == 0 { OTHER } else { proto };
        let most = if matches!(proto, 1 | 58) { 255 } else { u16::MAX };
        let starts: Vec<u16> = starts.iter().copied().filter(|s| *s <= most).collect();
        let mut open: Option<Change> = None;
        for (n, lo) in starts.iter().enumerate() {
            let hi = starts.get(n + 1).map_or(most, |next| next - 1);
            let (before, after) = (verdict(old, then, *lo, asked), verdict(new, now, *lo, asked));
            if same(&before, &after) {
                out.extend(open.take());
                continue;
            }
            match &mut open {
                Some(last) if discriminant(&last.before) == discriminant(&before) && last.after == after => last.hi = hi,
                _ => {
                    out.extend(open.take());
                    open = Some(Change { subject: Arc::clone(subject), direction, peer, proto, lo: *lo, hi, before, after });
                }
            }
        }
        out.extend(open);
    }
}
