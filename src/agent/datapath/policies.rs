// SPDX-License-Identifier: Apache-2.0
//! Policies in the kernel: blocks of rules, written beside the old ones and removed when no row refers to them.

use super::Tables;
use super::counts::{self, Counts, RuleCounts};
use super::rows::RowWriter;
use crate::reconcile::Reconcile;
use crate::state::PolicySpec;
use pilus_loader::Error;
use pilus_model::abi::*;
use pilus_model::policy::{Direction, DirectionPolicy, RuleRef, TooLarge, blocks};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error(transparent)]
    Kernel(#[from] Error),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error("more than {} different rules on this node", RULE_RECORDS - 1)]
    TooManyRules,
    #[error("policy table is full: {needed} blocks needed, {free} free")]
    Full { needed: usize, free: usize },
}

#[derive(Default)]
struct Rules {
    by_rule: HashMap<RuleRef, u16>,
    by_index: BTreeMap<u16, RuleRef>,
    /// Policies and the rules that they use.
    used: HashMap<u32, BTreeSet<u16>>,
    next: u16,
    /// Blocks written, by policy.
    blocks: HashMap<u32, Vec<PolicyKey>>,
}

impl Rules {
    fn index(&mut self, rule: &RuleRef) -> Option<u16> {
        if let Some(index) = self.by_rule.get(rule) {
            return Some(*index);
        }
        for _ in 1..RULE_RECORDS {
            self.next = self.next.checked_add(1).unwrap_or(1).max(1);
            if !self.by_index.contains_key(&self.next) {
                self.by_rule.insert(rule.clone(), self.next);
                self.by_index.insert(self.next, rule.clone());
                return Some(self.next);
            }
        }
        None
    }

    fn sweep(&mut self) {
        let live: BTreeSet<u16> = self.used.values().flatten().copied().collect();
        self.by_index.retain(|i, _| live.contains(i));
        self.by_rule.retain(|_, i| live.contains(i));
    }
}

/// Owns the policy table and the rule records.
pub struct PolicyReconciler {
    tables: Arc<Tables>,
    rows: Arc<RowWriter>,
    counts: Arc<RuleCounts>,
    rules: Mutex<Rules>,
}

impl PolicyReconciler {
    pub fn new(tables: Arc<Tables>, rows: Arc<RowWriter>, counts: Arc<RuleCounts>) -> Self {
        Self { tables, rows, counts, rules: Mutex::default() }
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rule behind a record index, for people.
    pub fn rule_text(&self, index: u32) -> Option<String> {
        u16::try_from(index).ok().and_then(|i| self.rules().by_index.get(&i).map(ToString::to_string))
    }

    /// What each rule decided so far.
    pub fn counts(&self) -> Result<Counts, Error> {
        let rules: Vec<u16> = self.rules().by_index.keys().copied().collect();
        counts::all(&self.tables, &self.counts, &rules)
    }

    /// The same, by rule.
    pub fn counts_by_rule(&self) -> Result<HashMap<RuleRef, Counter>, Error> {
        let counts = self.counts()?;
        let rules = self.rules();
        Ok(rules.by_index.iter().filter_map(|(index, rule)| Some((rule.clone(), *counts.get(index)?))).collect())
    }

    /// First policy id that neither the policy table nor any endpoint row knows.
    pub fn first_free(tables: &Tables) -> Result<u32, Error> {
        let mut last = POLICY_FIRST - 1;
        for (key, _) in tables.policy.entries()? {
            last = last.max(key.policy >> 5);
        }
        for (_, row) in tables.endpoint.entries()? {
            last = last.max(row.policy_in).max(row.policy_out);
        }
        Ok(last + 1)
    }

    fn write(&self, id: u32, direction: Direction, policy: &DirectionPolicy) -> Result<(), PolicyError> {
        let mut rules = self.rules();
        let mut missing = false;
        let mut used = BTreeSet::new();
        let rows = blocks(id, direction, policy, &mut |rule| {
            let index = rules.index(rule).unwrap_or_else(|| {
                missing = true;
                0
            });
            used.insert(index);
            index
        })?;
        if missing {
            rules.sweep();
            return Err(PolicyError::TooManyRules);
        }
        let taken: usize = rules.blocks.iter().filter(|(k, _)| **k != id).map(|(_, b)| b.len()).sum();
        let free = (self.tables.policy.max_entries() as usize).saturating_sub(taken);
        if rows.len() > free {
            rules.sweep();
            return Err(PolicyError::Full { needed: rows.len(), free });
        }
        for index in &used {
            let known = rules.used.values().any(|u| u.contains(index));
            if !known {
                self.tables.rule_record.put(&u32::from(*index), &RuleRecord { cookie: u32::from(*index), ..RuleRecord::default() })?;
                self.tables.rule_count.reset(u32::from(*index))?;
                self.counts.reset(*index);
            }
        }
        self.tables.policy.put_batch(&rows)?;
        rules.used.insert(id, used);
        rules.blocks.insert(id, rows.into_iter().map(|(k, _)| k).collect());
        Ok(())
    }

    /// Runs `f`, which makes a row name these policies, while both are written and stay so. None if one is not.
    pub fn while_written<T>(&self, ids: [u32; 2], f: impl FnOnce() -> T) -> Option<T> {
        let rules = self.rules();
        ids.iter().all(|id| *id < POLICY_FIRST || rules.blocks.contains_key(id)).then(f)
    }

    /// `false`: a row names it, so it stays.
    fn remove(&self, id: u32) -> Result<bool, PolicyError> {
        // Rows are flipped by another reconciler, under this lock.
        let mut rules = self.rules();
        if self.rows.names(id) {
            return Ok(false);
        }
        let keys = match rules.blocks.remove(&id) {
            Some(keys) => keys,
            None => self.tables.policy.entries()?.into_iter().map(|(k, _)| k).filter(|k| k.policy >> 5 == id).collect(),
        };
        self.tables.policy.delete_batch(&keys)?;
        rules.used.remove(&id);
        rules.sweep();
        Ok(true)
    }
}

impl Reconcile for PolicyReconciler {
    type Key = u32;
    type Value = PolicySpec;
    type Error = PolicyError;
    const NAME: &'static str = "policy";

    async fn update(&self, id: &u32, spec: &PolicySpec) -> Result<(), PolicyError> {
        self.write(*id, spec.direction, &spec.policy)
    }

    async fn delete(&self, id: &u32) -> Result<(), PolicyError> {
        // A container that cannot be brought up to date keeps its policy for as long as that takes.
        while !self.remove(*id)? {
            self.rows.unnamed(*id).await;
        }
        Ok(())
    }

    async fn realised(&self) -> Result<Vec<u32>, PolicyError> {
        let ids: BTreeSet<u32> = self.tables.policy.entries()?.into_iter().map(|(k, _)| k.policy >> 5).collect();
        Ok(ids.into_iter().collect())
    }
}
