// SPDX-License-Identifier: Apache-2.0
//! Which identities each selector in use selects, kept up to date as identities come and go.

use crate::identity::{NumericIdentity, reserved_identities};
use crate::label::Labels;
use crate::selector::Selector;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Known identities and the selections of all registered selectors. Fixed identities are known from the start.
#[derive(Clone, Debug)]
pub struct SelectorCache {
    identities: BTreeMap<NumericIdentity, Labels>,
    selections: HashMap<Selector, BTreeSet<NumericIdentity>>,
}

impl Default for SelectorCache {
    fn default() -> Self {
        Self::new()
    }
}

impl SelectorCache {
    pub fn new() -> Self {
        let identities = reserved_identities().map(|i| (i.id, (*i.labels).clone())).collect();
        Self { identities, selections: HashMap::new() }
    }

    /// Makes an identity known, or changes its labels. True if some registered selection changed.
    pub fn insert(&mut self, id: NumericIdentity, labels: &Labels) -> bool {
        if self.identities.get(&id) == Some(labels) {
            return false;
        }
        self.identities.insert(id, labels.clone());
        let mut changed = false;
        for (selector, ids) in &mut self.selections {
            changed |= if selector.matches(labels) { ids.insert(id) } else { ids.remove(&id) };
        }
        changed
    }

    /// Forgets an identity; fixed ones stay. True if some registered selection changed.
    pub fn remove(&mut self, id: NumericIdentity) -> bool {
        if id.is_reserved() || self.identities.remove(&id).is_none() {
            return false;
        }
        let mut changed = false;
        for ids in self.selections.values_mut() {
            changed |= ids.remove(&id);
        }
        changed
    }

    /// Identities that the selector matches. The first question registers it.
    pub fn selections(&mut self, selector: &Selector) -> &BTreeSet<NumericIdentity> {
        let identities = &self.identities;
        self.selections
            .entry(selector.clone())
            .or_insert_with(|| identities.iter().filter(|(_, labels)| selector.matches(labels)).map(|(id, _)| *id).collect())
    }

    /// Keeps only the registered selectors that are still in use.
    pub fn retain(&mut self, mut in_use: impl FnMut(&Selector) -> bool) {
        self.selections.retain(|selector, _| in_use(selector));
    }

    /// Labels of a known identity.
    pub fn labels(&self, id: NumericIdentity) -> Option<&Labels> {
        self.identities.get(&id)
    }
    /// Known identities by number.
    pub fn identities(&self) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        self.identities.iter().map(|(id, labels)| (*id, labels))
    }
    /// Number of registered selectors.
    pub fn registered(&self) -> usize {
        self.selections.len()
    }
}
