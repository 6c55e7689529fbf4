// SPDX-License-Identifier: Apache-2.0
//! Rules on disk: a key for each, in their order, and what earlier agents left.

use super::*;
use crate::kvstore::Embedded;
use pilus_model::policy::input;
use std::sync::Mutex;

fn rules(names: &[&str]) -> Vec<Arc<Rule>> {
    let text: String =
        names.iter().map(|n| format!("- {{endpointSelector: {{matchLabels: {{app: '{n}'}}}}, description: '{n}'}}\n")).collect();
    input::parse("test", &text).expect("rules").into_iter().map(Arc::new).collect()
}

fn names(set: &RuleSet) -> Vec<String> {
    set.rules.iter().map(|r| r.description.clone().unwrap_or_default()).collect()
}

/// A store that tells what was written, each transaction by itself, and can lose power before one.
struct Spied {
    inner: Arc<Embedded>,
    batches: Mutex<Vec<[usize; 2]>>,
    broken: bool,
}

impl Store for Spied {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(key)
    }
    fn create_only(&self, key: &str, value: &[u8]) -> Result<bool, StoreError> {
        self.inner.create_only(key, value)
    }
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        if self.broken {
            return Err(bad("write", "no power"));
        }
        self.batches.lock().expect("lock").push([batch.put.len(), batch.delete.len()]);
        self.inner.write(batch)
    }
    fn list(&self, prefix: &str) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        self.inner.list(prefix)
    }
}

fn spied(inner: &Arc<Embedded>, broken: bool) -> Spied {
    Spied { inner: Arc::clone(inner), batches: Mutex::default(), broken }
}

/// As agents wrote it that kept all rules in one value.
fn one_value(store: &dyn Store, revision: u64, rules: &[Arc<Rule>]) {
    let value = serde_json::json!({"revision": revision, "rules": rules.iter().map(|r| &**r).collect::<Vec<_>>()});
    store.write(Batch { put: vec![(ALL_RULES.into(), value.to_string().into_bytes())], delete: Vec::new() }).expect("write");
}

#[test]
fn rules_in_one_value_get_keys_in_one_step() {
    let dir = tempfile::tempdir().expect("temp dir");
    let store = Embedded::open(dir.path()).expect("open");
    one_value(&*store, 7, &rules(&["a", "b", "c"]));
    assert!(load(&spied(&store, true)).is_err(), "what cannot be kept is not taken over");
    assert!(store.get(ALL_RULES).expect("get").is_some() && store.list(RULES).expect("list").is_empty(), "half done");
    let spy = spied(&store, false);
    let loaded = load(&spy).expect("load");
    assert_eq!((loaded.rules.revision, names(&loaded.rules)), (7, vec!["a".into(), "b".into(), "c".into()]));
    assert_eq!(spy.batches.lock().expect("lock").as_slice(), [[4, 1]], "one transaction");
    assert_eq!(store.get(ALL_RULES).expect("get"), None);
    // From then on it is as if it had always been so.
    let again = load(&spy).expect("load");
    assert_eq!((again.rules.revision, again.rules.rules), (7, loaded.rules.rules));
    assert_eq!(spy.batches.lock().expect("lock").len(), 1);
    // An agent of before ran in between: what it wrote is what counts.
    one_value(&*store, 9, &rules(&["d"]));
    let last = load(&spy).expect("load");
    assert_eq!((last.rules.revision, names(&last.rules)), (9, vec!["d".into()]));
    assert_eq!(store.list(RULES).expect("list").len(), 1);
}

#[test]
fn an_unreadable_value_is_not_thrown_away() {
    let dir = tempfile::tempdir().expect("temp dir");
    let store = Embedded::open(dir.path()).expect("open");
    for key in [ALL_RULES, REVISION, "rule/0000000000000001", "rule/x"] {
        store.write(Batch { put: vec![(key.into(), b"{".to_vec())], delete: Vec::new() }).expect("write");
        let refused = load(&*store).map(drop).expect_err("taken").to_string();
        assert!(refused.contains(key), "{refused}");
        assert_eq!(store.get(key).expect("get").as_deref(), Some(&b"{"[..]));
        store.write(Batch { put: Vec::new(), delete: vec![key.into()] }).expect("write");
    }
}

#[test]
fn a_change_writes_what_it_brings_and_keeps_the_order() {
    let dir = tempfile::tempdir().expect("temp dir");
    let store = Embedded::open(dir.path()).expect("open");
    let mut numbers = RuleNumbers::default();
    let mut change = |rules: &[Arc<Rule>]| {
        let mut batch = Batch::default();
        numbers = numbers.follow(rules, &mut batch);
        let size = [batch.put.len(), batch.delete.len()];
        store.write(batch).expect("write");
        let (set, loaded) = load_rules(&*store).expect("load");
        assert_eq!(names(&set), names(&RuleSet { revision: 0, rules: Arc::new(rules.to_vec()) }));
        assert_eq!(loaded.0.iter().map(|(n, _)| n).collect::<Vec<_>>(), numbers.0.iter().map(|(n, _)| n).collect::<Vec<_>>());
        size
    };
    let many: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let mut all = rules(&many.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(change(&all), [40, 0]);
    assert_eq!(change(&all), [0, 0]);
    all.extend(rules(&["new"]));
    assert_eq!(change(&all), [1, 0]);
    // An object is replaced: its rules go, and come at the end.
    all.drain(3..6);
    all.extend(rules(&["3", "4"]));
    assert_eq!(change(&all), [2, 3]);
    all.pop();
    all.push(rules(&["other"]).remove(0));
    assert_eq!(change(&all), [1, 1]);
    all.swap(0, 1);
    change(&all);
    all.clear();
    assert_eq!(change(&all)[0], 0);
}
