// SPDX-License-Identifier: Apache-2.0
//! Makes the world equal to a table: the only place with retry, backoff, pruning and resync.

use crate::table::{Reader, Revision, Snapshot, side_by_side};
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Something that can be brought to a desired value, key by key. Every operation is idempotent; deleting the absent is Ok.
pub trait Reconcile: Send + Sync + 'static {
    type Key: Ord + Clone + Send + Sync + fmt::Debug + 'static;
    type Value: PartialEq + Clone + Send + Sync + 'static;
    type Error: fmt::Display + Send;

    const NAME: &'static str;

    fn update(&self, key: &Self::Key, value: &Self::Value) -> impl Future<Output = Result<(), Self::Error>> + Send;
    fn delete(&self, key: &Self::Key) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// Keys that exist now, wanted or not.
    fn realised(&self) -> impl Future<Output = Result<Vec<Self::Key>, Self::Error>> + Send;
}

/// How far one object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Something of it may exist; nothing is known yet.
    Begun,
    /// Realised as of this table revision.
    Done(Revision),
    /// The last attempt failed; another follows.
    Failed(Revision, Arc<str>),
}

/// Status of every key, for waiting.
impl Status {
    /// It is realised as of this table revision, or a later one.
    pub fn done(&self, revision: Revision) -> bool {
        matches!(self, Self::Done(at) if *at >= revision)
    }

    /// It was tried as of this table revision, and is done or failed.
    pub fn tried(&self, revision: Revision) -> bool {
        match self {
            Self::Begun => false,
            Self::Done(at) | Self::Failed(at, _) => *at >= revision,
        }
    }
}

pub type Statuses<K> = watch::Receiver<Arc<BTreeMap<K, Status>>>;

/// Waits until the world has every key that `table` has, and no other, and each was tried as of the revision of now. What
/// changes meanwhile is waited for too: the keys of now may never be all of them at once.
pub async fn caught_up<K: Ord + Clone, V>(mut table: Reader<K, V>, mut statuses: Statuses<K>) {
    let now = table.take().revision;
    loop {
        let wanted = table.take();
        let there = Arc::clone(&statuses.borrow_and_update());
        // Both are in order.
        let same = there.iter().zip(wanted.rows.keys()).all(|((key, status), want)| key == want && status.tried(now));
        if same && there.len() == wanted.rows.len() {
            return;
        }
        // Either ends with the agent.
        let more = tokio::select! {
            more = table.changed() => more,
            more = statuses.changed() => more.is_ok(),
        };
        if !more {
            return;
        }
    }
}

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const LAST_BACKOFF: Duration = Duration::from_secs(10);

struct Retry {
    at: Instant,
    backoff: Duration,
}

enum Work<K, V> {
    Update(K, V, Revision),
    Delete(K, Revision),
}

/// Follows `reader` for ever (until the writer is gone). At most `parallel` operations at once, one per key. Keys that have
/// a status at the beginning are taken to exist. A key has one for as long as anything of it may exist.
pub async fn drive<R: Reconcile>(
    reconcile: Arc<R>,
    mut reader: Reader<R::Key, R::Value>,
    parallel: usize,
    status: watch::Sender<Arc<BTreeMap<R::Key, Status>>>,
) {
    let mut done: BTreeMap<R::Key, R::Value> = BTreeMap::new();
    let mut busy: BTreeSet<R::Key> = BTreeSet::new();
    // Whatever was begun may exist, whether or not it succeeded.
    let mut begun: BTreeSet<R::Key> = status.borrow().keys().cloned().collect();
    let mut gone: BTreeSet<R::Key> = BTreeSet::new();
    let mut retries: BTreeMap<R::Key, Retry> = BTreeMap::new();
    let mut listed: Option<BTreeSet<R::Key>> = None;
    let mut running = FuturesUnordered::new();
    let mut snapshot = reader.take();
    // Keys that there may be something to do about.
    let mut open = unequal(&snapshot, &done, &begun);
    loop {
        if snapshot.initialised && listed.is_none() {
            // Nothing is pruned before every source has listed in full.
            match reconcile.realised().await {
                Ok(keys) => listed = Some(keys.into_iter().filter(|k| !snapshot.rows.contains_key(k)).collect()),
                Err(e) => tracing::warn!(reconciler = R::NAME, error = %e, "cannot list what exists"),
            }
        }
        if let Some(stale) = &mut listed {
            open.extend(stale.iter().cloned());
            gone.append(stale);
        }
        let now = Instant::now();
        for work in due(&snapshot, &done, &begun, &busy, &mut gone, &retries, now, &mut open) {
            if running.len() >= parallel {
                break;
            }
            let reconcile = Arc::clone(&reconcile);
            match work {
                Work::Update(key, value, revision) => {
                    busy.insert(key.clone());
                    if begun.insert(key.clone()) {
                        status.send_modify(|s| {
                            Arc::make_mut(s).insert(key.clone(), Status::Begun);
                        });
                    }
                    running.push(futures::future::Either::Left(async move {
                        let result = reconcile.update(&key, &value).await.map_err(|e| e.to_string());
                        (key, Some(value), revision, result)
                    }));
                }
                Work::Delete(key, revision) => {
                    busy.insert(key.clone());
                    running.push(futures::future::Either::Right(async move {
                        let result = reconcile.delete(&key).await.map_err(|e| e.to_string());
                        (key, None, revision, result)
                    }));
                }
            }
        }
        let wake = retries.iter().filter(|(k, _)| !busy.contains(*k)).map(|(_, r)| r.at).filter(|at| *at > now).min();
        tokio::select! {
            changed = reader.changed() => {
                if !changed {
                    return;
                }
                snapshot = reader.take();
                open = unequal(&snapshot, &done, &begun).into_iter().chain(gone.iter().cloned()).collect();
                confirm(&snapshot, &done, &busy, &status);
                // The change may be what a failed object was waiting for.
                retries.values_mut().for_each(|r| r.at = Instant::now());
            }
            Some((key, value, revision, result)) = running.next(), if !running.is_empty() => {
                busy.remove(&key);
                open.insert(key.clone());
                match result {
                    Ok(()) => {
                        retries.remove(&key);
                        match value {
                            Some(value) => {
                                let revision = if snapshot.rows.get(&key) == Some(&value) { snapshot.revision } else { revision };
                                done.insert(key.clone(), value);
                                status.send_modify(|s| { Arc::make_mut(s).insert(key, Status::Done(revision)); });
                            }
                            None => {
                                done.remove(&key);
                                begun.remove(&key);
                                gone.remove(&key);
                                status.send_modify(|s| { Arc::make_mut(s).remove(&key); });
                            }
                        }
                    }
                    Err(message) => {
                        // What half happened is unknown: the next attempt starts from scratch.
                        done.remove(&key);
                        snapshot = reader.take();
                        open = unequal(&snapshot, &done, &begun).into_iter().chain(gone.iter().cloned()).collect();
                        confirm(&snapshot, &done, &busy, &status);
                        if value.is_some() && snapshot.rows.get(&key) != value.as_ref() {
                            // It failed at something that is no longer wanted: no failure to show, nothing to wait for.
                            continue;
                        }
                        let backoff = retries.get(&key).map_or(FIRST_BACKOFF, |r| (r.backoff * 2).min(LAST_BACKOFF));
                        if backoff > FIRST_BACKOFF {
                            tracing::warn!(reconciler = R::NAME, ?key, error = %message, retry_ms = backoff.as_millis() as u64, "failed");
                        }
                        retries.insert(key.clone(), Retry { at: Instant::now() + backoff, backoff });
                        if value.is_none() {
                            gone.insert(key.clone());
                        }
                        status.send_modify(|s| { Arc::make_mut(s).insert(key, Status::Failed(revision, message.into())); });
                    }
                }
            }
            () = async { match wake { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {}
        }
    }
}

/// What a new snapshot leaves as it was is done as of that snapshot too.
fn confirm<K: Ord + Clone, V: PartialEq>(
    snapshot: &Snapshot<K, V>,
    done: &BTreeMap<K, V>,
    busy: &BTreeSet<K>,
    status: &watch::Sender<Arc<BTreeMap<K, Status>>>,
) {
    status.send_if_modified(|s| {
        let same = side_by_side(done, &*snapshot.rows).filter(|(k, done, want)| done.is_some() && done == want && !busy.contains(*k));
        let same: Vec<&K> = same.map(|(k, ..)| k).collect();
        let changed = !same.is_empty();
        if changed {
            let mut same = same.into_iter().peekable();
            for (key, status) in Arc::make_mut(s).iter_mut() {
                if same.next_if_eq(&key).is_some() {
                    *status = Status::Done(snapshot.revision);
                }
            }
        }
        changed
    });
}

/// Keys that are not done as they should be, or begun and not wanted.
fn unequal<K: Ord + Clone, V: PartialEq>(snapshot: &Snapshot<K, V>, done: &BTreeMap<K, V>, begun: &BTreeSet<K>) -> BTreeSet<K> {
    let changed = side_by_side(done, &*snapshot.rows).filter(|(_, done, want)| want.is_some() && done != want).map(|(k, ..)| k);
    let left = side_by_side(begun.iter().map(|k| (k, ())), snapshot.rows.keys().map(|k| (k, ())));
    let left = left.filter(|(_, begun, want)| begun.is_some() && want.is_none()).map(|(k, ..)| k);
    changed.chain(left).cloned().collect()
}

/// What is to be done now, about keys that are open; those that need nothing are closed.
#[expect(clippy::too_many_arguments, reason = "the state of one loop")]
fn due<K: Ord + Clone, V: PartialEq + Clone>(
    snapshot: &Snapshot<K, V>,
    done: &BTreeMap<K, V>,
    begun: &BTreeSet<K>,
    busy: &BTreeSet<K>,
    gone: &mut BTreeSet<K>,
    retries: &BTreeMap<K, Retry>,
    now: Instant,
    open: &mut BTreeSet<K>,
) -> Vec<Work<K, V>> {
    let ready = |k: &K| !busy.contains(k) && retries.get(k).is_none_or(|r| r.at <= now);
    let (mut deletes, mut updates) = (Vec::new(), Vec::new());
    open.retain(|key| match snapshot.rows.get(key) {
        Some(value) => {
            gone.remove(key);
            let differs = done.get(key) != Some(value);
            if differs && ready(key) {
                updates.push(Work::Update(key.clone(), value.clone(), snapshot.revision));
            }
            differs
        }
        None => {
            if begun.contains(key) {
                gone.insert(key.clone());
            }
            let exists = gone.contains(key);
            if exists && ready(key) {
                deletes.push(Work::Delete(key.clone(), snapshot.revision));
            }
            exists
        }
    });
    deletes.append(&mut updates);
    deletes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::table;
    use std::sync::Mutex;

    /// A world of numbers in which chosen operations fail a given number of times.
    #[derive(Default)]
    struct Fake {
        rows: Mutex<BTreeMap<u32, u32>>,
        failures: Mutex<BTreeMap<u32, u32>>,
        calls: Mutex<Vec<String>>,
        /// Updates wait here, if there is one.
        gate: Mutex<Option<Arc<tokio::sync::Semaphore>>>,
    }

    impl Fake {
        fn fails(&self, key: u32) -> bool {
            let mut failures = self.failures.lock().expect("lock");
            match failures.get_mut(&key) {
                Some(0) | None => false,
                Some(left) => {
                    *left -= 1;
                    true
                }
            }
        }
        fn rows(&self) -> Vec<(u32, u32)> {
            self.rows.lock().expect("lock").iter().map(|(k, v)| (*k, *v)).collect()
        }
    }

    impl Reconcile for Fake {
        type Key = u32;
        type Value = u32;
        type Error = String;
        const NAME: &'static str = "fake";
        async fn update(&self, key: &u32, value: &u32) -> Result<(), String> {
            self.calls.lock().expect("lock").push(format!("update {key}={value}"));
            let gate = self.gate.lock().expect("lock").clone();
            if let Some(gate) = gate {
                gate.acquire().await.expect("open").forget();
            }
            if self.fails(*key) {
                return Err("injected".into());
            }
            self.rows.lock().expect("lock").insert(*key, *value);
            Ok(())
        }
        async fn delete(&self, key: &u32) -> Result<(), String> {
            self.calls.lock().expect("lock").push(format!("delete {key}"));
            if self.fails(*key) {
                return Err("injected".into());
            }
            self.rows.lock().expect("lock").remove(key);
            Ok(())
        }
        async fn realised(&self) -> Result<Vec<u32>, String> {
            Ok(self.rows.lock().expect("lock").keys().copied().collect())
        }
    }

    async fn until(mut status: Statuses<u32>, wanted: impl Fn(&BTreeMap<u32, Status>) -> bool) {
        status.wait_for(|s| wanted(s)).await.expect("driven");
    }

    fn start(fake: &Arc<Fake>) -> (crate::table::Writer<u32, u32>, Statuses<u32>) {
        let (writer, reader) = table();
        let (tx, rx) = watch::channel(Arc::default());
        tokio::spawn(drive(Arc::clone(fake), reader, 4, tx));
        (writer, rx)
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_retried_and_shown() {
        let fake = Arc::new(Fake::default());
        fake.failures.lock().expect("lock").insert(2, 3);
        let (mut writer, status) = start(&fake);
        writer.upsert(1, 10);
        let revision = writer.upsert(2, 20);
        until(status.clone(), |s| matches!(s.get(&2), Some(Status::Failed(_, why)) if &**why == "injected")).await;
        until(status.clone(), |s| s.get(&2) == Some(&Status::Done(revision))).await;
        // What did not change is done as of the newest revision too.
        until(status, |s| s.get(&1) == Some(&Status::Done(revision))).await;
        assert_eq!(fake.rows(), [(1, 10), (2, 20)]);
        assert_eq!(fake.calls.lock().expect("lock").iter().filter(|c| c.starts_with("update 2")).count(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn failing_at_what_is_no_longer_wanted_is_no_failure() {
        let fake = Arc::new(Fake::default());
        fake.failures.lock().expect("lock").insert(1, 1);
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        *fake.gate.lock().expect("lock") = Some(Arc::clone(&gate));
        let (mut writer, mut status) = start(&fake);
        writer.upsert(1, 10);
        while fake.calls.lock().expect("lock").is_empty() {
            tokio::task::yield_now().await;
        }
        // The first attempt is under way; meanwhile another value is wanted.
        let revision = writer.upsert(1, 11);
        gate.add_permits(10);
        let first = status.wait_for(|s| s.get(&1).is_some_and(|s| *s != Status::Begun)).await.expect("driven").clone();
        assert_eq!(first.get(&1), Some(&Status::Done(revision)), "the failure is shown");
        assert_eq!(fake.rows(), [(1, 11)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_meanwhile_is_waited_for_too() {
        let fake = Arc::new(Fake::default());
        let (mut writer, status) = start(&fake);
        writer.upsert(1, 10);
        caught_up(writer.reader(), status.clone()).await;
        assert_eq!(fake.rows(), [(1, 10)]);
        // The row of the moment at which the wait begins goes before it is there.
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        *fake.gate.lock().expect("lock") = Some(Arc::clone(&gate));
        writer.upsert(2, 20);
        let waiting = tokio::spawn(caught_up(writer.reader(), status.clone()));
        while fake.calls.lock().expect("lock").len() < 2 {
            tokio::task::yield_now().await;
        }
        writer.remove(&2);
        writer.upsert(3, 30);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        gate.add_permits(10);
        tokio::time::timeout(LAST_BACKOFF, waiting).await.expect("an end").expect("no panic");
        assert_eq!(fake.rows(), [(1, 10), (3, 30)]);
        // What cannot be done is not waited for.
        writer.upsert(4, 40);
        fake.failures.lock().expect("lock").insert(4, 1000);
        caught_up(writer.reader(), status).await;
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_pruned_before_the_table_is_complete() {
        let fake = Arc::new(Fake::default());
        fake.rows.lock().expect("lock").extend([(7, 70), (8, 80)]);
        let (mut writer, status) = start(&fake);
        writer.upsert(8, 81);
        until(status.clone(), |s| matches!(s.get(&8), Some(Status::Done(_)))).await;
        assert_eq!(fake.rows(), [(7, 70), (8, 81)]);
        fake.failures.lock().expect("lock").insert(7, 2);
        writer.set_initialised();
        until(status.clone(), |s| matches!(s.get(&7), Some(Status::Failed(..)))).await;
        until(status, |s| !s.contains_key(&7)).await;
        assert_eq!(fake.rows(), [(8, 81)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_half_way_is_deleted_too() {
        let fake = Arc::new(Fake::default());
        fake.failures.lock().expect("lock").insert(1, 1000);
        let (mut writer, status) = start(&fake);
        writer.upsert(1, 10);
        until(status.clone(), |s| matches!(s.get(&1), Some(Status::Failed(..)))).await;
        fake.failures.lock().expect("lock").clear();
        fake.rows.lock().expect("lock").insert(1, 9);
        writer.remove(&1);
        until(status, |s| !s.contains_key(&1)).await;
        assert_eq!(fake.rows(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_row_is_deleted_and_may_come_back() {
        let fake = Arc::new(Fake::default());
        let (mut writer, status) = start(&fake);
        writer.upsert(1, 10);
        until(status.clone(), |s| matches!(s.get(&1), Some(Status::Done(_)))).await;
        writer.remove(&1);
        until(status.clone(), |s| !s.contains_key(&1)).await;
        assert_eq!(fake.rows(), []);
        writer.upsert(1, 11);
        until(status, |s| matches!(s.get(&1), Some(Status::Done(_)))).await;
        assert_eq!(fake.rows(), [(1, 11)]);
    }
}
