// SPDX-License-Identifier: Apache-2.0
//! All rules of the node, and the revision that counts their changes.

use super::compile::Compiled;
use super::rule::{ObjectRef, Rule};
use super::tables::Services;
use crate::label::Labels;
use crate::prefix::Prefix;
use crate::selector::Selector;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// Counts changes of the repository; grows by one with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A rule, and its number: later rules have higher ones.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub seq: u64,
    pub rule: Arc<Rule>,
    pub compiled: Arc<Compiled>,
}

/// What a change of the repository did.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    pub removed: Vec<Stored>,
    pub added: Vec<Stored>,
}

/// Rules in order of import.
#[derive(Clone, Debug, Default)]
pub struct Repository {
    rules: Vec<Stored>,
    revision: Revision,
    next: u64,
    services: Arc<Services>,
    changes: Changes,
}

impl Repository {
    pub fn new() -> Self {
        Self::default()
    }

    /// What the agent knew before a restart.
    pub fn restore(rules: Vec<Arc<Rule>>, revision: Revision) -> Self {
        let mut new = Self { revision, ..Self::default() };
        new.extend(rules);
        new
    }

    /// Exactly these rules from now on.
    pub(super) fn replace(&mut self, rules: Vec<Arc<Rule>>, revision: Revision) {
        self.retain(|_| false);
        self.extend(rules);
        self.revision = revision;
    }

    fn extend(&mut self, rules: Vec<Arc<Rule>>) {
        for rule in rules {
            let compiled = Arc::new(Compiled::new(&rule, &self.services));
            let stored = Stored { seq: self.next, rule, compiled };
            self.next += 1;
            self.changes.added.push(stored.clone());
            self.rules.push(stored);
        }
    }

    fn retain(&mut self, keep: impl Fn(&Rule) -> bool) {
        let Changes { removed, .. } = &mut self.changes;
        self.rules.retain(|stored| {
            let keep = keep(&stored.rule);
            if !keep {
                removed.push(stored.clone());
            }
            keep
        });
    }

    /// Gives the known services. Rules that ask for some are made ready anew, in their old places.
    pub(super) fn set_services(&mut self, services: Services) {
        self.services = Arc::new(services);
        for stored in self.rules.iter_mut().filter(|s| s.compiled.services) {
            self.changes.removed.push(stored.clone());
            stored.compiled = Arc::new(Compiled::new(&stored.rule, &self.services));
            self.changes.added.push(stored.clone());
        }
    }

    /// Prefixes that a rule would name here.
    pub(super) fn prefixes_of(&self, rule: &Rule) -> Vec<Prefix> {
        Compiled::new(rule, &self.services).prefixes().collect()
    }

    /// What was changed since this was asked last.
    pub(super) fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Adds rules. They replace all former rules of the same objects and, without an object, all former ones with the
    /// same labels if there are labels; rules of one call do not replace each other. No rules are no change.
    pub fn import(&mut self, rules: Vec<Rule>) -> Revision {
        if rules.is_empty() {
            return self.revision;
        }
        let objects: BTreeSet<&ObjectRef> = rules.iter().filter_map(|r| r.origin.object.as_ref()).collect();
        let labels: BTreeSet<&Labels> =
            rules.iter().filter(|r| r.origin.object.is_none() && !r.labels.is_empty()).map(|r| &r.labels).collect();
        self.retain(|old| match &old.origin.object {
            Some(object) => !objects.contains(object),
            None => !labels.contains(&old.labels),
        });
        self.extend(rules.into_iter().map(Arc::new).collect());
        self.changed()
    }

    /// Removes the rules that have all these labels (source `any` stands for every source) and says how many. No labels
    /// remove nothing: see [`Self::delete_all`].
    pub fn delete_by_labels(&mut self, labels: &Labels) -> (usize, Revision) {
        self.delete(|rule| !labels.is_empty() && rule.labels.contains_all(labels))
    }

    /// Removes the rules of an object and says how many.
    pub fn delete_object(&mut self, object: &ObjectRef) -> (usize, Revision) {
        self.delete(|rule| rule.origin.object.as_ref() == Some(object))
    }

    /// Removes every rule and says how many.
    pub fn delete_all(&mut self) -> (usize, Revision) {
        self.delete(|_| true)
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// All rules, in order of import.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.rules.iter().map(|s| &s.rule)
    }

    /// Every selector that a peer is selected with, for `SelectorCache::retain`.
    pub fn selectors(&self) -> BTreeSet<&Selector> {
        self.rules.iter().flat_map(|s| s.compiled.selectors()).collect()
    }

    /// Rules that select these labels.
    pub fn selecting(&self, subject: &Labels) -> impl Iterator<Item = &Arc<Rule>> {
        self.rules.iter().filter(|s| s.compiled.subject.matches(subject)).map(|s| &s.rule)
    }

    pub(super) fn compiled(&self) -> impl Iterator<Item = (u64, &Compiled)> {
        self.rules.iter().map(|s| (s.seq, &*s.compiled))
    }

    fn delete(&mut self, hit: impl Fn(&Rule) -> bool) -> (usize, Revision) {
        let before = self.rules.len();
        self.retain(|rule| !hit(rule));
        let removed = before - self.rules.len();
        if removed > 0 {
            self.changed();
        }
        (removed, self.revision)
    }

    fn changed(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }
}
