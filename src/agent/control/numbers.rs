// SPDX-License-Identifier: Apache-2.0
//! Numbers by which endpoints' rows name policies: one for each content, never given twice.

use pilus_model::abi::{POLICY_FIRST, POLICY_OPEN};
use pilus_model::policy::{Direction, DirectionPolicy};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

pub(super) struct PolicyNumbers {
    next: u32,
    by_content: HashMap<(Direction, Arc<DirectionPolicy>), u32>,
    /// The same by address: what did not change is not read again. Each is kept, so that no other comes to its address.
    by_address: HashMap<(Direction, usize), (Arc<DirectionPolicy>, u32)>,
}

impl PolicyNumbers {
    /// `first`: no row and no block of the kernel uses it or a higher one.
    pub fn new(first: u32) -> Self {
        Self { next: first.max(POLICY_FIRST), by_content: HashMap::new(), by_address: HashMap::new() }
    }

    /// The number of a policy, and whether it is new.
    pub fn of(&mut self, direction: Direction, policy: &Arc<DirectionPolicy>) -> (u32, bool) {
        if matches!(**policy, DirectionPolicy::Open) {
            return (POLICY_OPEN, false);
        }
        let address = (direction, Arc::as_ptr(policy) as usize);
        if let Some((_, id)) = self.by_address.get(&address) {
            return (*id, false);
        }
        let mut new = false;
        let id = *self.by_content.entry((direction, Arc::clone(policy))).or_insert_with(|| {
            new = true;
            self.next += 1;
            self.next - 1
        });
        self.by_address.insert(address, (Arc::clone(policy), id));
        (id, new)
    }

    /// Forgets all but these; gives what is forgotten.
    pub fn retain(&mut self, used: &BTreeSet<u32>) -> Vec<u32> {
        let gone = self.by_content.extract_if(|_, id| !used.contains(id)).map(|(_, id)| id).collect();
        self.by_address.retain(|_, (policy, id)| used.contains(id) && Arc::strong_count(policy) > 1);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn none() -> Arc<DirectionPolicy> {
        Arc::new(DirectionPolicy::Rules(BTreeMap::new()))
    }

    #[test]
    fn equal_policies_share_a_number_for_as_long_as_it_is_used() {
        let mut numbers = PolicyNumbers::new(7);
        let (one, other) = (none(), none());
        assert_eq!(numbers.of(Direction::Ingress, &one), (7, true));
        assert_eq!(numbers.of(Direction::Ingress, &one), (7, false));
        assert_eq!(numbers.of(Direction::Ingress, &other), (7, false));
        assert_eq!(numbers.of(Direction::Egress, &other), (8, true));
        assert_eq!(numbers.of(Direction::Egress, &Arc::new(DirectionPolicy::Open)), (POLICY_OPEN, false));
        assert_eq!(numbers.retain(&BTreeSet::from([7])), [8]);
        assert_eq!(numbers.of(Direction::Egress, &other), (9, true), "a number is not given twice");
    }

    #[test]
    fn what_nobody_else_holds_is_not_kept() {
        let mut numbers = PolicyNumbers::new(7);
        let (kept, passing) = (none(), none());
        numbers.of(Direction::Ingress, &kept);
        numbers.of(Direction::Ingress, &passing);
        let weak = Arc::downgrade(&passing);
        drop(passing);
        numbers.retain(&BTreeSet::from([7]));
        assert!(weak.upgrade().is_none());
        assert_eq!(numbers.of(Direction::Ingress, &kept), (7, false));
    }
}
