// SPDX-License-Identifier: Apache-2.0
//! What would happen to a connection, and which rule says so.

use super::resolve::{DirectionPolicy, Peer, RuleRef};

/// A verdict and the rule that gave it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Allow(RuleRef),
    /// By a deny rule, or because no rule allows it.
    Deny(Option<RuleRef>),
    /// Policy is not enforced.
    OpenAllow,
}

impl Verdict {
    pub fn allowed(&self) -> bool {
        match self {
            Self::Allow(_) | Self::OpenAllow => true,
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
    match list.into_iter().flatten().find(|entry| entry.matches(dport, proto)) {
        Some(entry) if entry.deny => Verdict::Deny(Some(entry.rule.clone())),
        Some(entry) => Verdict::Allow(entry.rule.clone()),
        None => Verdict::Deny(None),
    }
}
