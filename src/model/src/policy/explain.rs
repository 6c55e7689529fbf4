// SPDX-License-Identifier: Apache-2.0
//! What would happen to a connection, and which rule says so.

use super::engine::{Engine, Subject};
use super::entry::{Action, Entry, RuleRef};
use super::l7::L7Rules;
use super::resolve::{DirectionPolicy, Peer};
use crate::identity::NumericIdentity;
use std::sync::Arc;

/// A verdict and the rule that gave it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Allow(RuleRef),
    /// Allowed as far as these rules allow what is said.
    Redirect(RuleRef, Arc<L7Rules>),
    /// By a deny rule, or because no rule allows it.
    Deny(Option<RuleRef>),
    /// Policy is not enforced.
    OpenAllow,
}

impl Verdict {
    pub fn allowed(&self) -> bool {
        match self {
            Self::Allow(_) | Self::Redirect(..) | Self::OpenAllow => true,
            Self::Deny(_) => false,
        }
    }
}

/// The verdict on a connection to destination port `dport` (host order; ICMP: the type) of IP protocol `proto`, with the
/// other side's identity, as the kernel would take it.
pub fn verdict(policy: &DirectionPolicy, peer: Peer, dport: u16, proto: u8) -> Verdict {
    let lists = match policy {
        DirectionPolicy::Open => return Verdict::OpenAllow,
        DirectionPolicy::Rules(lists) => lists,
    };
    let list = lists.get(&peer).or_else(|| lists.get(&Peer::ANY));
    let Some(entry) = list.and_then(|list| list.iter().find(|entry| entry.matches(dport, proto))) else { return Verdict::Deny(None) };
    let rule = entry.rule.clone();
    match (entry.precedence.action, &entry.l7) {
        (Action::Deny, _) => Verdict::Deny(Some(rule)),
        (Action::Redirect, Some(l7)) => Verdict::Redirect(rule, Arc::clone(l7)),
        (Action::Allow | Action::Redirect, _) => Verdict::Allow(rule),
    }
}

/// What is sent: destination port (host order; ICMP: the type) and IP protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    pub dport: u16,
    pub proto: u8,
}

/// Where the kernel finds the entry that decides: a list, and the place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryKey {
    /// Whose list; any if the peer has none of its own.
    pub peer: Peer,
    /// Block of the chain, and rule of the block.
    pub chain: usize,
    pub slot: usize,
    pub lo: u16,
    pub hi: u16,
    /// 0 any.
    pub proto: u8,
}

/// One side's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    pub verdict: Verdict,
    /// None if no entry decides.
    pub key: Option<EntryKey>,
}

/// The answer of one side's policy, with the entry that gives it.
pub fn half(policy: &DirectionPolicy, peer: Peer, traffic: Traffic) -> Half {
    let verdict = verdict(policy, peer, traffic.dport, traffic.proto);
    let DirectionPolicy::Rules(lists) = policy else { return Half { verdict, key: None } };
    let of = if lists.contains_key(&peer) { peer } else { Peer::ANY };
    let list = lists.get(&of).map_or(&[][..], |list| list);
    let place = list.iter().position(|e| e.matches(traffic.dport, traffic.proto));
    let per_block = crate::abi::POLICY_BLOCK_RULES as usize;
    let key = place.map(|n| {
        let Entry { lo, hi, proto, .. } = list[n];
        EntryKey { peer: of, chain: n / per_block, slot: n % per_block, lo, hi, proto }
    });
    Half { verdict, key }
}

/// One end of a connection. Without a subject it is no endpoint of this node, and has no policy here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    pub identity: NumericIdentity,
    pub subject: Option<Subject>,
}

/// What becomes of a connection: the sender's egress policy, then the receiver's ingress policy. None for an end that has
/// no policy here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub egress: Option<Half>,
    pub ingress: Option<Half>,
}

impl Explanation {
    pub fn allowed(&self) -> bool {
        [&self.egress, &self.ingress].into_iter().flatten().all(|half| half.verdict.allowed())
    }
}

impl Engine {
    /// What becomes of a connection. Endpoints that were not added get the policy that they would have.
    pub fn explain(&self, from: &Party, to: &Party, traffic: Traffic) -> Explanation {
        let policy = |party: &Party| party.subject.as_ref().map(|s| self.policy(s).unwrap_or_else(|| self.would_be(s)));
        Explanation {
            egress: policy(from).map(|p| half(&p.egress, to.identity, traffic)),
            ingress: policy(to).map(|p| half(&p.ingress, from.identity, traffic)),
        }
    }
}
