// SPDX-License-Identifier: Apache-2.0
//! One line of a peer's list, and how lists are put in order.

use super::l7::L7Rules;
use super::rule::Origin;
use crate::abi::{POLICY_BLOCK_RULES, POLICY_CHAIN};
use std::fmt;
use std::sync::{Arc, LazyLock};

/// The rule that made an entry, by where it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleRef(pub Arc<Origin>);

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Stands for no written rule: the local host is allowed by the option `allow-localhost`.
pub(super) static LOCALHOST: LazyLock<RuleRef> =
    LazyLock::new(|| RuleRef(Arc::new(Origin { file: "allow-localhost".into(), line: 0, index: 0, object: None })));

/// Layers of policy: an earlier one decides before a later one is asked. Rules that users write today are all of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    Admin,
    #[default]
    Policy,
    Baseline,
}

/// What an entry does. Within a tier an earlier one beats a later one, however narrow that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    Deny,
    /// Allow what the L7 rules allow.
    Redirect,
    Allow,
}

/// First by tier, then by action; of two that are equal the narrower entry comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Precedence {
    pub tier: Tier,
    pub action: Action,
}

/// One line of a peer's list. Ports in host order, both included; ICMP: types.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub lo: u16,
    pub hi: u16,
    /// IP protocol, 0 any.
    pub proto: u8,
    pub precedence: Precedence,
    pub rule: RuleRef,
    /// Present exactly for [`Action::Redirect`].
    pub l7: Option<Arc<L7Rules>>,
}

impl Entry {
    pub(super) fn everything(action: Action, rule: RuleRef) -> Self {
        Self { lo: 0, hi: u16::MAX, proto: 0, precedence: Precedence { tier: Tier::Policy, action }, rule, l7: None }
    }

    pub fn deny(&self) -> bool {
        self.precedence.action == Action::Deny
    }

    pub fn matches(&self, dport: u16, proto: u8) -> bool {
        (self.proto == 0 || self.proto == proto) && (self.lo..=self.hi).contains(&dport)
    }

    /// Whether everything that `other` matches is matched here.
    fn covers(&self, other: &Self) -> bool {
        (self.proto == 0 || self.proto == other.proto) && self.lo <= other.lo && other.hi <= self.hi
    }

    /// An entry never sorts behind one of the same precedence that covers it.
    fn order(&self) -> (Precedence, u16, bool, u16, u8) {
        (self.precedence, self.hi - self.lo, self.proto == 0, self.lo, self.proto)
    }
}

/// Sorts into the order of evaluation and drops what an earlier entry keeps from ever being reached. Of equal entries the
/// first rule (`.0` is its place) is named.
pub(super) fn finish(mut entries: Vec<(u64, Entry)>) -> Arc<[Entry]> {
    entries.sort_by_key(|(seq, entry)| (entry.order(), *seq));
    let mut list: Vec<Entry> = Vec::with_capacity(entries.len());
    for (_, entry) in &entries {
        let again = list.last_mut().filter(|last| last.order() == entry.order()).and_then(|last| last.l7.as_mut());
        if let (Some(known), Some(more)) = (again, &entry.l7) {
            if known != more {
                Arc::make_mut(known).merge(more);
            }
        } else if !list.iter().any(|earlier| earlier.covers(entry)) {
            list.push(entry.clone());
        }
    }
    // A rule that allows the port whatever is said on it adds to what the others allow.
    for entry in &mut list {
        if let Some(l7) = &mut entry.l7 {
            let wide = |e: &Entry| e.precedence == Precedence { action: Action::Allow, ..entry.precedence };
            if entries.iter().any(|(_, e)| wide(e) && e.proto_covers(entry.proto) && e.lo <= entry.lo && entry.hi <= e.hi) {
                let anything = l7.anything();
                Arc::make_mut(l7).merge(&anything);
            }
        }
    }
    let list = if list.len() > (POLICY_BLOCK_RULES * POLICY_CHAIN) as usize { compact(list) } else { list };
    list.into()
}

impl Entry {
    fn proto_covers(&self, proto: u8) -> bool {
        self.proto == 0 || self.proto == proto
    }
}

/// Gives up naming the narrowest rule to need fewer entries: what a wider entry of the same verdict says anyway goes, and
/// overlapping or adjoining ranges become one. Precedence stays first, so verdicts stay the same.
fn compact(list: Vec<Entry>) -> Vec<Entry> {
    let same = |a: &Entry, b: &Entry| a.precedence == b.precedence && a.l7.is_none() && b.l7.is_none();
    let redundant = |n: usize, e: &Entry| list[n + 1..].iter().any(|wider| same(wider, e) && wider.covers(e));
    let mut kept: Vec<Entry> = list.iter().enumerate().filter(|(n, e)| !redundant(*n, e)).map(|(_, e)| e.clone()).collect();
    kept.sort_by_key(|e| (e.precedence, e.proto, e.lo));
    let mut merged: Vec<Entry> = Vec::with_capacity(kept.len());
    for entry in kept {
        match merged.last_mut() {
            Some(last) if same(last, &entry) && last.proto == entry.proto && u32::from(entry.lo) <= u32::from(last.hi) + 1 => {
                last.hi = last.hi.max(entry.hi);
            }
            _ => merged.push(entry),
        }
    }
    merged.sort_by_key(Entry::order);
    merged
}
