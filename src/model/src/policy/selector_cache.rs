// SPDX-License-Identifier: Apache-2.0
//! Which identities each selector in use selects, kept up to date as identities come and go.

use super::postings::Postings;
use crate::identity::{NumericIdentity, reserved_identities};
use crate::label::Labels;
use crate::prefix::Prefix;
use crate::selector::Selector;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Names a rule that uses a selector.
pub(super) type User = u64;

#[derive(Clone, Debug)]
struct Row {
    selector: Selector,
    selected: BTreeSet<NumericIdentity>,
    /// Rules, with how often they use it.
    users: BTreeMap<User, u32>,
}

/// What the change of an identity did.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched {
    /// Some selection changed.
    pub any: bool,
    /// Rules that use a selection that changed.
    pub users: BTreeSet<User>,
}

/// Known identities and the selections of all registered selectors. Fixed identities are known from the start.
#[derive(Clone, Debug)]
pub struct SelectorCache {
    identities: Postings<NumericIdentity>,
    rows: HashMap<u64, Row>,
    by_selector: HashMap<Selector, u64>,
    next: u64,
    /// Selectors that may select an identity with this label; with a prefix inside of this one; or with any labels.
    by_label: HashMap<String, HashMap<String, BTreeSet<u64>>>,
    by_prefix: HashMap<Prefix, BTreeSet<u64>>,
    others: BTreeSet<u64>,
}

impl Default for SelectorCache {
    fn default() -> Self {
        Self::new()
    }
}

impl SelectorCache {
    pub fn new() -> Self {
        let mut identities = Postings::default();
        reserved_identities().for_each(|i| drop(identities.insert(i.id, (*i.labels).clone())));
        Self {
            identities,
            rows: HashMap::new(),
            by_selector: HashMap::new(),
            next: 0,
            by_label: HashMap::new(),
            by_prefix: HashMap::new(),
            others: BTreeSet::new(),
        }
    }

    /// Makes an identity known, or changes its labels. True if some registered selection changed.
    pub fn insert(&mut self, id: NumericIdentity, labels: &Labels) -> bool {
        self.update(id, Some(labels)).any
    }

    /// Forgets an identity; fixed ones stay. True if some registered selection changed.
    pub fn remove(&mut self, id: NumericIdentity) -> bool {
        !id.is_reserved() && self.update(id, None).any
    }

    /// Sets or removes the labels of an identity.
    pub(super) fn update(&mut self, id: NumericIdentity, labels: Option<&Labels>) -> Touched {
        if self.identities.get(id) == labels {
            return Touched::default();
        }
        let old = match labels {
            Some(labels) => self.identities.insert(id, labels.clone()),
            None => self.identities.remove(id),
        };
        let mut candidates = self.others.clone();
        for labels in old.iter().chain(labels) {
            for label in labels {
                candidates.extend(self.by_label.get(label.key()).and_then(|v| v.get(label.value())).into_iter().flatten());
            }
            let covering = labels.prefix().into_iter().flat_map(Prefix::covering);
            candidates.extend(covering.filter_map(|p| self.by_prefix.get(&p)).flatten());
        }
        let mut touched = Touched::default();
        for n in candidates {
            let Some(row) = self.rows.get_mut(&n) else { continue };
            let selected = labels.is_some_and(|labels| row.selector.matches(labels));
            if if selected { row.selected.insert(id) } else { row.selected.remove(&id) } {
                touched.any = true;
                touched.users.extend(row.users.keys());
            }
        }
        touched
    }

    /// Identities that the selector matches. The first question registers it.
    pub fn selections(&mut self, selector: &Selector) -> &BTreeSet<NumericIdentity> {
        let n = self.register(selector);
        self.rows.get(&n).map_or(&NOBODY, |row| &row.selected)
    }

    fn register(&mut self, selector: &Selector) -> u64 {
        if let Some(n) = self.by_selector.get(selector) {
            return *n;
        }
        let n = self.next;
        self.next += 1;
        let selected = self.identities.select(selector);
        self.index(selector, |set| {
            set.insert(n);
        });
        self.by_selector.insert(selector.clone(), n);
        self.rows.insert(n, Row { selector: selector.clone(), selected, users: BTreeMap::new() });
        n
    }

    /// Every set of the index that a selector stands in.
    fn index(&mut self, selector: &Selector, mut f: impl FnMut(&mut BTreeSet<u64>)) {
        if let Some(prefix) = selector.within() {
            let set = self.by_prefix.entry(prefix).or_default();
            f(set);
            if set.is_empty() {
                self.by_prefix.remove(&prefix);
            }
        } else if let Some((key, values)) = selector.literals() {
            let of = self.by_label.entry(key.to_owned()).or_default();
            for value in values {
                let set = of.entry(value.clone()).or_default();
                f(set);
                if set.is_empty() {
                    of.remove(value);
                }
            }
            if of.is_empty() {
                self.by_label.remove(key);
            }
        } else {
            f(&mut self.others);
        }
    }

    fn forget(&mut self, n: u64) {
        if let Some(row) = self.rows.remove(&n) {
            self.by_selector.remove(&row.selector);
            self.index(&row.selector, |set| {
                set.remove(&n);
            });
        }
    }

    /// Registers a selector for a rule.
    pub(super) fn acquire(&mut self, selector: &Selector, user: User) {
        let n = self.register(selector);
        if let Some(row) = self.rows.get_mut(&n) {
            *row.users.entry(user).or_default() += 1;
        }
    }

    /// Takes back one registration; the last one forgets the selector.
    pub(super) fn release(&mut self, selector: &Selector, user: User) {
        let Some(&n) = self.by_selector.get(selector) else { return };
        let Some(row) = self.rows.get_mut(&n) else { return };
        if let Some(count) = row.users.get_mut(&user) {
            *count -= 1;
            if *count == 0 {
                row.users.remove(&user);
            }
        }
        if row.users.is_empty() {
            self.forget(n);
        }
    }

    /// Identities that a registered selector matches.
    pub(super) fn selected(&self, selector: &Selector) -> &BTreeSet<NumericIdentity> {
        self.by_selector.get(selector).and_then(|n| self.rows.get(n)).map_or(&NOBODY, |row| &row.selected)
    }

    pub(super) fn knows(&self, selector: &Selector) -> bool {
        self.by_selector.contains_key(selector)
    }
    /// Identities that any selector matches.
    pub(super) fn select(&self, selector: &Selector) -> BTreeSet<NumericIdentity> {
        self.identities.select(selector)
    }

    /// Keeps only the registered selectors that are still in use.
    pub fn retain(&mut self, mut in_use: impl FnMut(&Selector) -> bool) {
        let gone: Vec<u64> = self.rows.iter().filter(|(_, row)| !in_use(&row.selector)).map(|(n, _)| *n).collect();
        gone.into_iter().for_each(|n| self.forget(n));
    }

    /// Labels of a known identity.
    pub fn labels(&self, id: NumericIdentity) -> Option<&Labels> {
        self.identities.get(id)
    }
    /// Known identities by number.
    pub fn identities(&self) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        self.identities.iter()
    }
    /// Number of registered selectors.
    pub fn registered(&self) -> usize {
        self.rows.len()
    }
}

static NOBODY: BTreeSet<NumericIdentity> = BTreeSet::new();
