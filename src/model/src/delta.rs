// SPDX-License-Identifier: Apache-2.0
//! The difference between what is and what should be.

use std::collections::BTreeMap;

/// What has to happen to a table: rows to write (new or different) and keys to remove. Both in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<K, V> {
    pub upsert: Vec<(K, V)>,
    pub delete: Vec<K>,
}

impl<K, V> Delta<K, V> {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.upsert.is_empty() && self.delete.is_empty()
    }
}

/// Steps that turn `current` into `desired`. Equal rows are left alone.
pub fn delta<K: Ord + Clone, V: PartialEq + Clone>(current: &BTreeMap<K, V>, desired: &BTreeMap<K, V>) -> Delta<K, V> {
    Delta {
        upsert: desired.iter().filter(|(k, v)| current.get(k) != Some(v)).map(|(k, v)| (k.clone(), v.clone())).collect(),
        delete: current.keys().filter(|k| !desired.contains_key(k)).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applying_a_delta_gives_the_desired_table() {
        let current = BTreeMap::from([(1, "a"), (2, "b"), (3, "c")]);
        let desired = BTreeMap::from([(2, "b"), (3, "x"), (4, "d")]);
        let d = delta(&current, &desired);
        assert_eq!(d, Delta { upsert: vec![(3, "x"), (4, "d")], delete: vec![1] });
        let mut applied = current;
        applied.retain(|k, _| !d.delete.contains(k));
        applied.extend(d.upsert);
        assert_eq!(applied, desired);
        assert!(delta(&desired, &desired).is_empty());
    }
}
