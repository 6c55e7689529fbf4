// SPDX-License-Identifier: Apache-2.0
//! Where desired state survives a restart.

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

const ROWS: TableDefinition<&str, &[u8]> = TableDefinition::new("rows");

/// What can go wrong with the store; none of it is worth retrying without a person.
#[derive(Debug, thiserror::Error)]
#[error("state store {path}: {message}")]
pub struct StoreError {
    pub path: PathBuf,
    pub message: String,
}

/// A change of several keys, made durable together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    pub put: Vec<(String, Vec<u8>)>,
    pub delete: Vec<String>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.delete.is_empty()
    }
}

/// Keys are paths (`endpoint/257`), values are bytes. Calls block for a disk write.
pub trait Store: Send + Sync + 'static {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// `false`: the key was there and stays as it was.
    fn create_only(&self, key: &str, value: &[u8]) -> Result<bool, StoreError>;
    fn write(&self, batch: Batch) -> Result<(), StoreError>;
    /// All keys that start with `prefix`.
    fn list(&self, prefix: &str) -> Result<BTreeMap<String, Vec<u8>>, StoreError>;
}

/// One file below the state directory. It belongs to one agent at a time.
pub struct Embedded {
    path: PathBuf,
    /// None after a write that failed: a database that met an error takes no more, and is opened again.
    db: RwLock<Option<Database>>,
}

fn open(path: &Path) -> Result<Database, redb::DatabaseError> {
    Database::builder().set_cache_size(1 << 20).create(path)
}

impl Embedded {
    /// Opens or makes `<state-dir>/state.redb`. An unfinished write of a killed agent is rolled back.
    pub fn open(state_dir: &Path) -> Result<Arc<Self>, StoreError> {
        let path = state_dir.join("state.redb");
        let fail = |m: String| StoreError { path: path.clone(), message: m };
        let db = open(&path).map_err(|e| fail(e.to_string()))?;
        let txn = db.begin_write().map_err(|e| fail(e.to_string()))?;
        txn.open_table(ROWS).map_err(|e| fail(e.to_string()))?;
        txn.commit().map_err(|e| fail(e.to_string()))?;
        Ok(Arc::new(Self { path, db: RwLock::new(Some(db)) }))
    }

    fn fail(&self, e: impl std::fmt::Display) -> StoreError {
        StoreError { path: self.path.clone(), message: e.to_string() }
    }

    fn with<T>(&self, f: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        loop {
            if let Some(db) = &*self.db.read().unwrap_or_else(PoisonError::into_inner) {
                return f(db);
            }
            let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
            if db.is_none() {
                *db = Some(open(&self.path).map_err(|e| self.fail(e))?);
            }
        }
    }

    fn writing<T>(&self, f: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.with(f).inspect_err(|_| *self.db.write().unwrap_or_else(PoisonError::into_inner) = None)
    }
}

impl Store for Embedded {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|db| {
            let txn = db.begin_read().map_err(|e| self.fail(e))?;
            let rows = txn.open_table(ROWS).map_err(|e| self.fail(e))?;
            Ok(rows.get(key).map_err(|e| self.fail(e))?.map(|v| v.value().to_vec()))
        })
    }

    fn create_only(&self, key: &str, value: &[u8]) -> Result<bool, StoreError> {
        self.writing(|db| {
            let txn = db.begin_write().map_err(|e| self.fail(e))?;
            {
                let mut rows = txn.open_table(ROWS).map_err(|e| self.fail(e))?;
                if rows.get(key).map_err(|e| self.fail(e))?.is_some() {
                    return Ok(false);
                }
                rows.insert(key, value).map_err(|e| self.fail(e))?;
            }
            txn.commit().map_err(|e| self.fail(e))?;
            Ok(true)
        })
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.writing(|db| {
            let txn = db.begin_write().map_err(|e| self.fail(e))?;
            {
                let mut rows = txn.open_table(ROWS).map_err(|e| self.fail(e))?;
                for key in &batch.delete {
                    rows.remove(key.as_str()).map_err(|e| self.fail(e))?;
                }
                for (key, value) in &batch.put {
                    rows.insert(key.as_str(), value.as_slice()).map_err(|e| self.fail(e))?;
                }
            }
            txn.commit().map_err(|e| self.fail(e))
        })
    }

    fn list(&self, prefix: &str) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        self.with(|db| {
            let txn = db.begin_read().map_err(|e| self.fail(e))?;
            let rows = txn.open_table(ROWS).map_err(|e| self.fail(e))?;
            let mut found = BTreeMap::new();
            for row in rows.range(prefix..).map_err(|e| self.fail(e))? {
                let (key, value) = row.map_err(|e| self.fail(e))?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                found.insert(key.value().to_owned(), value.value().to_vec());
            }
            Ok(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reopened_store_has_what_was_written() {
        let dir = tempfile::tempdir().expect("temp dir");
        {
            let s = Embedded::open(dir.path()).expect("open");
            assert!(s.create_only("a/1", b"x").expect("create"));
            assert!(!s.create_only("a/1", b"y").expect("create"));
            s.write(Batch { put: vec![("a/2".into(), b"z".to_vec()), ("b/1".into(), vec![])], delete: vec!["a/9".into()] }).expect("write");
        }
        let s = Embedded::open(dir.path()).expect("reopen");
        assert_eq!(s.get("a/1").expect("get").as_deref(), Some(&b"x"[..]));
        assert_eq!(s.list("a/").expect("list").into_keys().collect::<Vec<_>>(), ["a/1", "a/2"]);
        s.write(Batch { put: vec![], delete: vec!["a/1".into()] }).expect("write");
        assert_eq!(s.get("a/1").expect("get"), None);
    }

    #[test]
    fn two_agents_cannot_share_a_store() {
        let dir = tempfile::tempdir().expect("temp dir");
        let _first = Embedded::open(dir.path()).expect("open");
        assert!(Embedded::open(dir.path()).is_err());
    }
}
