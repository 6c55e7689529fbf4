// SPDX-License-Identifier: Apache-2.0
//! All rules of the node, and the revision that counts their changes.

use super::resolve::Compiled;
use super::rule::{ObjectRef, Rule};
use crate::label::Labels;
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

/// Rules in order of import.
#[derive(Clone, Debug, Default)]
pub struct Repository {
    rules: Vec<(Arc<Rule>, Arc<Compiled>)>,
    revision: Revision,
}

fn stored(rule: Rule) -> (Arc<Rule>, Arc<Compiled>) {
    let compiled = Compiled::new(&rule);
    (Arc::new(rule), Arc::new(compiled))
}

impl Repository {
    pub fn new() -> Self {
        Self::default()
    }

    /// What the agent knew before a restart.
    pub fn restore(rules: Vec<Rule>, revision: Revision) -> Self {
        Self { rules: rules.into_iter().map(stored).collect(), revision }
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
        self.rules.retain(|(old, _)| match &old.origin.object {
            Some(object) => !objects.contains(object),
            None => !labels.contains(&old.labels),
        });
        self.rules.extend(rules.into_iter().map(stored));
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
        self.rules.iter().map(|(rule, _)| rule)
    }

    /// Every selector that a peer is selected with, for `SelectorCache::retain`.
    pub fn selectors(&self) -> BTreeSet<&Selector> {
        self.rules.iter().flat_map(|(_, compiled)| compiled.selectors()).collect()
    }

    /// Rules that select these labels.
    pub fn selecting(&self, subject: &Labels) -> impl Iterator<Item = &Arc<Rule>> {
        self.rules.iter().filter(|(_, compiled)| compiled.subject.matches(subject)).map(|(rule, _)| rule)
    }

    pub(super) fn compiled(&self) -> impl Iterator<Item = (&Arc<Rule>, &Compiled)> {
        self.rules.iter().map(|(rule, compiled)| (rule, &**compiled))
    }

    fn delete(&mut self, hit: impl Fn(&Rule) -> bool) -> (usize, Revision) {
        let before = self.rules.len();
        self.rules.retain(|(rule, _)| !hit(rule));
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
