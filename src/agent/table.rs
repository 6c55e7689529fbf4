// SPDX-License-Identifier: Apache-2.0
//! Desired state as values: one writer, many readers.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Counts the changes of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// A table at one moment. Cheap to clone; never changes.
#[derive(Debug)]
pub struct Snapshot<K, V> {
    pub revision: Revision,
    /// Every source has listed in full: what is absent here is not wanted.
    pub initialised: bool,
    pub rows: Arc<BTreeMap<K, V>>,
}

impl<K, V> Clone for Snapshot<K, V> {
    fn clone(&self) -> Self {
        Self { revision: self.revision, initialised: self.initialised, rows: Arc::clone(&self.rows) }
    }
}

/// The only way to change a table. Not `Clone`.
#[derive(Debug)]
pub struct Writer<K, V> {
    sender: watch::Sender<Snapshot<K, V>>,
}

/// Sees the newest snapshot, and waits for newer ones.
#[derive(Debug)]
pub struct Reader<K, V> {
    receiver: watch::Receiver<Snapshot<K, V>>,
}

impl<K, V> Clone for Reader<K, V> {
    fn clone(&self) -> Self {
        Self { receiver: self.receiver.clone() }
    }
}

/// An empty table.
pub fn table<K: Ord + Clone, V: PartialEq + Clone>() -> (Writer<K, V>, Reader<K, V>) {
    let (sender, receiver) =
        watch::channel(Snapshot { revision: Revision::default(), initialised: false, rows: Arc::new(BTreeMap::new()) });
    (Writer { sender }, Reader { receiver })
}

impl<K: Ord + Clone, V: PartialEq + Clone> Writer<K, V> {
    /// Sets one row. An equal value is not a change.
    pub fn upsert(&mut self, key: K, value: V) -> Revision {
        self.change(|rows| {
            if rows.get(&key) == Some(&value) {
                return false;
            }
            Arc::make_mut(rows).insert(key, value);
            true
        })
    }

    /// Removes one row; an absent one is no change.
    pub fn remove(&mut self, key: &K) -> Revision {
        self.change(|rows| rows.contains_key(key) && Arc::make_mut(rows).remove(key).is_some())
    }

    /// Several changes that readers see as one.
    pub fn batch(&mut self, upserts: Vec<(K, V)>, deletes: &[K]) -> Revision {
        self.change(|rows| {
            let upserts: Vec<_> = upserts.into_iter().filter(|(k, v)| rows.get(k) != Some(v)).collect();
            let deletes: Vec<_> = deletes.iter().filter(|k| rows.contains_key(k)).collect();
            if upserts.is_empty() && deletes.is_empty() {
                return false;
            }
            let map = Arc::make_mut(rows);
            for key in deletes {
                map.remove(key);
            }
            map.extend(upserts);
            true
        })
    }

    /// All sources have listed: from now on, what is absent may be pruned.
    pub fn set_initialised(&mut self) {
        self.sender.send_modify(|s| s.initialised = true);
    }

    /// Looks at the rows.
    pub fn rows(&self) -> Arc<BTreeMap<K, V>> {
        Arc::clone(&self.sender.borrow().rows)
    }

    pub fn reader(&self) -> Reader<K, V> {
        Reader { receiver: self.sender.subscribe() }
    }

    fn change(&mut self, f: impl FnOnce(&mut Arc<BTreeMap<K, V>>) -> bool) -> Revision {
        let mut now = Revision::default();
        self.sender.send_if_modified(|s| {
            let changed = f(&mut s.rows);
            if changed {
                s.revision.0 += 1;
            }
            now = s.revision;
            changed
        });
        now
    }
}

impl<K, V> Reader<K, V> {
    pub fn snapshot(&self) -> Snapshot<K, V> {
        self.receiver.borrow().clone()
    }

    /// The newest snapshot, now marked as seen.
    pub fn take(&mut self) -> Snapshot<K, V> {
        self.receiver.borrow_and_update().clone()
    }

    /// Waits until the table changes after the last [`Self::take`]. `false`: the writer is gone.
    pub async fn changed(&mut self) -> bool {
        self.receiver.changed().await.is_ok()
    }
}

/// Rows of two tables side by side, by key: one walk through both, which are in order.
pub fn side_by_side<'a, K: Ord + 'a, A: Copy, B: Copy>(
    a: impl IntoIterator<Item = (&'a K, A)>,
    b: impl IntoIterator<Item = (&'a K, B)>,
) -> impl Iterator<Item = (&'a K, Option<A>, Option<B>)> {
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    std::iter::from_fn(move || {
        let order = match (a.peek(), b.peek()) {
            (Some((x, _)), Some((y, _))) => x.cmp(y),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let left = if order.is_le() { a.next() } else { None };
        let right = if order.is_ge() { b.next() } else { None };
        let key = left.map(|(key, _)| key).or(right.map(|(key, _)| key))?;
        Some((key, left.map(|(_, v)| v), right.map(|(_, v)| v)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_value_is_not_a_change() {
        let (mut w, mut r) = table::<u32, &str>();
        assert_eq!(w.upsert(1, "a"), Revision(1));
        assert_eq!(w.upsert(1, "a"), Revision(1));
        assert_eq!(w.upsert(1, "b"), Revision(2));
        assert_eq!(w.remove(&2), Revision(2));
        assert_eq!(w.batch(vec![(1, "b"), (3, "c")], &[7]), Revision(3));
        let s = r.take();
        assert_eq!(s.rows.iter().collect::<Vec<_>>(), [(&1, &"b"), (&3, &"c")]);
        assert!(!s.initialised);
        w.set_initialised();
        assert!(r.snapshot().initialised);
    }

    #[test]
    fn every_key_is_seen_once() {
        let (a, b) = (BTreeMap::from([(1, 'a'), (2, 'b'), (5, 'c')]), BTreeMap::from([(0, 'w'), (2, 'x'), (5, 'y'), (7, 'z')]));
        let seen: Vec<_> = side_by_side(&a, &b).map(|(k, a, b)| (*k, a.copied(), b.copied())).collect();
        let (none, some) = (None, Some);
        let all = [(0, none, some('w')), (1, some('a'), none), (2, some('b'), some('x')), (5, some('c'), some('y')), (7, none, some('z'))];
        assert_eq!(seen, all);
        assert_eq!(side_by_side(&a, &BTreeMap::<i32, char>::new()).count(), 3);
    }

    #[tokio::test]
    async fn a_snapshot_does_not_move() {
        let (mut w, mut r) = table::<u32, u32>();
        w.upsert(1, 1);
        let old = r.take();
        w.upsert(1, 2);
        assert!(r.changed().await);
        assert_eq!((old.rows[&1], r.take().rows[&1]), (1, 2));
        drop(w);
        assert!(!r.changed().await);
    }
}
