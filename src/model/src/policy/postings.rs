// SPDX-License-Identifier: Apache-2.0
//! Sets of labels by what is in them, so that a selector looks at few.

use crate::label::Labels;
use crate::prefix::Prefix;
use crate::selector::Selector;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Who has which label: by key, then by value.
type ByLabel<K> = HashMap<String, HashMap<String, BTreeSet<K>>>;

/// Named sets of labels.
#[derive(Clone, Debug)]
pub(super) struct Postings<K> {
    all: BTreeMap<K, Labels>,
    by_label: ByLabel<K>,
    by_prefix: BTreeMap<Prefix, K>,
}

impl<K> Default for Postings<K> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), by_label: HashMap::new(), by_prefix: BTreeMap::new() }
    }
}

impl<K: Copy + Ord> Postings<K> {
    /// What was there before.
    pub fn insert(&mut self, key: K, labels: Labels) -> Option<Labels> {
        let old = self.remove(key);
        for label in &labels {
            self.by_label.entry(label.key().to_owned()).or_default().entry(label.value().to_owned()).or_default().insert(key);
        }
        if let Some(prefix) = labels.prefix() {
            self.by_prefix.insert(prefix, key);
        }
        self.all.insert(key, labels);
        old
    }

    pub fn remove(&mut self, key: K) -> Option<Labels> {
        let old = self.all.remove(&key)?;
        for label in &old {
            let Some(values) = self.by_label.get_mut(label.key()) else { continue };
            if let Some(keys) = values.get_mut(label.value()) {
                keys.remove(&key);
                if keys.is_empty() {
                    values.remove(label.value());
                }
            }
            if values.is_empty() {
                self.by_label.remove(label.key());
            }
        }
        if let Some(prefix) = old.prefix() {
            self.by_prefix.remove(&prefix);
        }
        Some(old)
    }

    pub fn get(&self, key: K) -> Option<&Labels> {
        self.all.get(&key)
    }
    pub fn iter(&self) -> impl Iterator<Item = (K, &Labels)> {
        self.all.iter().map(|(key, labels)| (*key, labels))
    }

    /// Who is selected.
    pub fn select(&self, selector: &Selector) -> BTreeSet<K> {
        let hit = |key: &K| self.all.get(key).is_some_and(|labels| selector.matches(labels));
        if let Some(prefix) = selector.within() {
            let from = self.by_prefix.range(Prefix::first(prefix)..);
            return from.take_while(|(p, _)| prefix.contains(p.ip())).map(|(_, key)| *key).filter(hit).collect();
        }
        if let Some((key, values)) = selector.literals() {
            let Some(of) = self.by_label.get(key) else { return BTreeSet::new() };
            return values.iter().filter_map(|v| of.get(v)).flatten().copied().filter(hit).collect();
        }
        self.all.iter().filter(|(_, labels)| selector.matches(labels)).map(|(key, _)| *key).collect()
    }
}
