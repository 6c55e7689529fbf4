// SPDX-License-Identifier: Apache-2.0
//! Objects on disk: `<key>.o`, and beside it `<key>.json` with a checksum and where the object came from.

use crate::error::BuildError;
use crate::key::ObjectKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What is known of an object beside its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sidecar {
    pub program: String,
    pub build: String,
    pub sha256: String,
    pub toolchain: Option<String>,
    pub compile_us: u64,
}

pub(crate) struct Store {
    pub dir: PathBuf,
}

impl Store {
    fn object(&self, key: &ObjectKey) -> PathBuf {
        self.dir.join(format!("{key}.o"))
    }

    fn sidecar(&self, key: &ObjectKey) -> PathBuf {
        self.dir.join(format!("{key}.json"))
    }

    /// The object if it is there whole. Whatever is torn or altered counts as absent: a build replaces it.
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<(Vec<u8>, Sidecar)> {
        let sidecar: Sidecar = serde_json::from_slice(&fs::read(self.sidecar(key)).ok()?).ok()?;
        let bytes = fs::read(self.object(key)).ok()?;
        (checksum(&bytes) == sidecar.sha256).then_some((bytes, sidecar))
    }

    /// The object before its sidecar: a sidecar vouches for what is already there.
    pub(crate) fn put(&self, key: &ObjectKey, bytes: &[u8], sidecar: &Sidecar) -> Result<(), BuildError> {
        fs::create_dir_all(&self.dir).map_err(BuildError::io(&self.dir))?;
        write_whole(&self.object(key), bytes)?;
        let text = serde_json::to_vec_pretty(sidecar).expect("strings and numbers serialise");
        write_whole(&self.sidecar(key), &text)
    }

    /// Removes every object that `keep` does not want, and says how many.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) -> Result<usize, BuildError> {
        let mut removed = 0;
        for path in self.entries()? {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if let Some(key) = name.strip_suffix(".o").filter(|key| is_key(key) && !keep(key)) {
                // The sidecar first: an object without one is no object.
                for gone in [self.dir.join(format!("{key}.json")), path.clone()] {
                    match fs::remove_file(&gone) {
                        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(BuildError::io(&gone)(e)),
                        _ => {}
                    }
                }
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes build directories that a killed process left behind. Failing to is harmless.
    pub(crate) fn sweep(&self) {
        for path in self.entries().unwrap_or_default() {
            if path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(crate::clang::BUILD_PREFIX)) {
                let _ = fs::remove_dir_all(path);
            }
        }
    }

    fn entries(&self) -> Result<Vec<PathBuf>, BuildError> {
        match fs::read_dir(&self.dir) {
            Ok(entries) => Ok(entries.filter_map(|e| e.ok().map(|e| e.path())).collect()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(BuildError::io(&self.dir)(e)),
        }
    }
}

pub(crate) fn checksum(bytes: &[u8]) -> String {
    crate::hex(&Sha256::digest(bytes))
}

fn is_key(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Writes beside `path` and renames, so that a reader sees the old file or the new one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir).map_err(BuildError::io(dir))?;
    file.write_all(bytes).map_err(BuildError::io(path))?;
    file.persist(path).map_err(|e| BuildError::io(path)(e.error))?;
    Ok(())
}
