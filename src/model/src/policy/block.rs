// SPDX-License-Identifier: Apache-2.0
//! A resolved direction as the kernel stores it: blocks of eight rules, chained.

use super::entry::{Action, Entry, RuleRef};
use super::explain::Traffic;
use super::resolve::{Direction, DirectionPolicy, Peer};
use crate::abi::{POLICY_BLOCK_RULES, POLICY_CHAIN, PolicyBlock, PolicyKey, PolicyRule, RULE_DENY, RULE_L7, RULE_MORE, RULE_USED};
use std::collections::HashMap;
use std::convert::Infallible;
use thiserror::Error;

const PER_BLOCK: usize = POLICY_BLOCK_RULES as usize;
const PER_PEER: usize = PER_BLOCK * POLICY_CHAIN as usize;

/// More rules for one peer than a chain of blocks holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{rules} rules for peer identity {peer} are too many: one peer may have {PER_PEER}")]
pub struct TooLarge {
    pub peer: Peer,
    pub rules: usize,
}

fn key(policy_id: u32, direction: Direction, chain: usize, peer: Peer) -> PolicyKey {
    PolicyKey { policy: policy_id << 5 | u32::from(direction.raw()) << 4 | chain as u32, identity: peer.get() }
}

/// Rows that [`blocks`] gives, counted without making them.
///
/// # Errors
/// [`TooLarge`].
pub fn count(policy: &DirectionPolicy) -> Result<usize, TooLarge> {
    let DirectionPolicy::Rules(lists) = policy else { return Ok(0) };
    match lists.iter().find(|(_, list)| list.len() > PER_PEER) {
        Some((peer, list)) => Err(TooLarge { peer: *peer, rules: list.len() }),
        None => Ok(lists.values().map(|list| list.len().div_ceil(PER_BLOCK).max(1)).sum()),
    }
}

/// Rows of the policy table for one direction; `rule_index` gives the rule record of a rule. None for `Open`, which has a
/// policy id of its own.
///
/// # Errors
/// [`TooLarge`]; nothing of the policy may be written then.
pub fn blocks(
    policy_id: u32,
    direction: Direction,
    policy: &DirectionPolicy,
    rule_index: &mut dyn FnMut(&RuleRef) -> u16,
) -> Result<Vec<(PolicyKey, PolicyBlock)>, TooLarge> {
    let DirectionPolicy::Rules(lists) = policy else { return Ok(Vec::new()) };
    let mut out = Vec::with_capacity(count(policy)?);
    for (peer, list) in lists {
        if list.is_empty() {
            out.push((key(policy_id, direction, 0, *peer), PolicyBlock::default()));
        }
        let parts = list.chunks(PER_BLOCK);
        let last = parts.len().saturating_sub(1);
        for (chain, part) in parts.enumerate() {
            out.push((key(policy_id, direction, chain, *peer), block(part, chain < last, rule_index)));
        }
    }
    Ok(out)
}

fn block(entries: &[Entry], more: bool, rule_index: &mut dyn FnMut(&RuleRef) -> u16) -> PolicyBlock {
    let mut block = PolicyBlock::default();
    for (n, (rule, e)) in block.rules.iter_mut().zip(entries).enumerate() {
        let action = match e.precedence.action {
            Action::Deny => RULE_DENY,
            Action::Redirect => RULE_L7,
            Action::Allow => 0,
        };
        let more = if more && n == PER_BLOCK - 1 { RULE_MORE } else { 0 };
        *rule = PolicyRule { lo: e.lo, hi: e.hi, proto: e.proto, flags: RULE_USED | action | more, idx: rule_index(&e.rule) };
    }
    block
}

/// What the kernel finds in written blocks: a verdict with the index of a rule record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockVerdict {
    Allow(u16),
    /// Allowed as far as the proxy of the rule allows it.
    Redirect(u16),
    /// By a deny rule, or because nothing matches.
    Deny(Option<u16>),
}

/// Evaluates written blocks as the kernel does: the peer's own chain if it has one, else that of any peer; the first match
/// decides. `dport` in host order.
pub fn lookup(
    blocks: &HashMap<PolicyKey, PolicyBlock>,
    policy_id: u32,
    direction: Direction,
    peer: Peer,
    dport: u16,
    proto: u8,
) -> BlockVerdict {
    let get = |key: &PolicyKey| Ok::<_, Infallible>(blocks.get(key).copied());
    match lookup_with(get, policy_id, direction, peer, Traffic { dport, proto }) {
        Ok(verdict) => verdict,
        Err(never) => match never {},
    }
}

/// As [`lookup`], of blocks wherever they are.
///
/// # Errors
/// Those of `get`.
pub fn lookup_with<E>(
    get: impl Fn(&PolicyKey) -> Result<Option<PolicyBlock>, E>,
    policy_id: u32,
    direction: Direction,
    peer: Peer,
    traffic: Traffic,
) -> Result<BlockVerdict, E> {
    let owner = if get(&key(policy_id, direction, 0, peer))?.is_some() { peer } else { Peer::ANY };
    for chain in 0..POLICY_CHAIN as usize {
        let Some(block) = get(&key(policy_id, direction, chain, owner))? else { break };
        for rule in &block.rules {
            if rule.flags & RULE_USED == 0 {
                return Ok(BlockVerdict::Deny(None));
            }
            if (rule.proto == 0 || rule.proto == traffic.proto) && (rule.lo..=rule.hi).contains(&traffic.dport) {
                return Ok(match rule.flags & (RULE_DENY | RULE_L7) {
                    0 => BlockVerdict::Allow(rule.idx),
                    RULE_L7 => BlockVerdict::Redirect(rule.idx),
                    _ => BlockVerdict::Deny(Some(rule.idx)),
                });
            }
        }
        if block.rules[PER_BLOCK - 1].flags & RULE_MORE == 0 {
            break;
        }
    }
    Ok(BlockVerdict::Deny(None))
}
