// SPDX-License-Identifier: Apache-2.0
//! Programs by shape: from a template tree to a loaded collection, once per shape.

use pilus_api::types::ProgramModel;
use pilus_codegen::{Build, BuildError, EmbeddedObject, ObjectCache, ObjectKey, Rendered, Templates, shape_key};
use pilus_loader::{Error, bpffs::BpfFs, collection::Collection, collection::LoadOptions, collection::Program};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Objects of the default shapes, built with the project.
pub fn embedded() -> Vec<EmbeddedObject> {
    EMBEDDED.to_vec()
}

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("{0}")]
    Build(Arc<BuildError>),
    #[error("{}", load_text(.0))]
    Load(Error),
    #[error("object {key} has no program {name}")]
    Missing { key: String, name: &'static str },
    #[error("{0}")]
    Task(String),
}

/// The verifier's own last words belong to the message.
fn load_text(error: &Error) -> String {
    match error {
        Error::Load { log, .. } if !log.is_empty() => {
            let lines: Vec<&str> = log.lines().filter(|l| !l.trim().is_empty()).collect();
            let last = lines[lines.len().saturating_sub(6)..].join(" | ");
            format!("{error}: {last}")
        }
        _ => error.to_string(),
    }
}

impl ProgramError {
    /// Lines for people: clang's or the verifier's words.
    pub fn diagnostics(&self) -> Vec<String> {
        match self {
            Self::Build(e) if !e.diagnostics().is_empty() => e.diagnostics().iter().map(ToString::to_string).collect(),
            Self::Load(Error::Load { log, .. }) if !log.is_empty() => {
                std::iter::once(self.to_string()).chain(log.lines().map(str::to_owned)).collect()
            }
            _ => vec![self.to_string()],
        }
    }
}

/// A loaded object under its key.
#[derive(Debug)]
pub struct Shape {
    pub key: ObjectKey,
    pub build: Build,
    pub programs: Collection,
}

impl Shape {
    pub fn program(&self, name: &'static str) -> Result<&Program, ProgramError> {
        self.programs.program(name).ok_or_else(|| ProgramError::Missing { key: self.key.short(), name })
    }

    pub fn models(&self) -> Vec<ProgramModel> {
        self.programs
            .programs
            .iter()
            .map(|p| ProgramModel {
                name: p.name.clone(),
                id: p.id,
                tag: p.tag.iter().map(|b| format!("{b:02x}")).collect(),
                instructions: p.insns,
                jited_bytes: p.jited,
                verified_instructions: p.verified_insns,
            })
            .collect()
    }
}

/// Loads each shape once and keeps it pinned under `objects/<key>`.
pub struct Programs {
    fs: BpfFs,
    cache: ObjectCache,
    loaded: Mutex<BTreeMap<ObjectKey, Arc<Shape>>>,
    loading: tokio::sync::Mutex<()>,
}

impl Programs {
    pub fn new(fs: BpfFs, cache: ObjectCache) -> Self {
        Self { fs, cache, loaded: Mutex::default(), loading: tokio::sync::Mutex::new(()) }
    }

    pub fn cache(&self) -> &ObjectCache {
        &self.cache
    }

    fn known(&self, key: ObjectKey) -> Option<Arc<Shape>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    pub fn is_loaded(&self, key: ObjectKey) -> bool {
        self.known(key).is_some()
    }

    /// The shape of a rendered header: loaded already, pinned by an earlier agent, or compiled and loaded now.
    pub async fn get(&self, templates: &Templates, rendered: &Rendered, build: Build) -> Result<Arc<Shape>, ProgramError> {
        let key = shape_key(templates, rendered, build);
        if let Some(shape) = self.known(key) {
            return Ok(shape);
        }
        let pin = self.fs.objects().join(key.short());
        if !pin.exists() {
            // Compiled outside of the lock: other shapes go on meanwhile.
            self.cache.get_or_build(templates, rendered, build).await.map_err(ProgramError::Build)?;
        }
        let _one = self.loading.lock().await;
        if let Some(shape) = self.known(key) {
            return Ok(shape);
        }
        let fs = self.fs.clone();
        let programs = match Collection::open_pinned(&fs, &pin).map_err(ProgramError::Load)? {
            Some(programs) => programs,
            None => {
                let object = self.cache.get_or_build(templates, rendered, build).await.map_err(ProgramError::Build)?;
                tokio::task::spawn_blocking(move || {
                    let name = object.program.as_str();
                    Collection::load(&fs, &object.bytes, &LoadOptions { name, max_entries: &[], pin: Some(pin) })
                })
                .await
                .map_err(|e| ProgramError::Task(e.to_string()))?
                .map_err(ProgramError::Load)?
            }
        };
        let shape = Arc::new(Shape { key, build, programs });
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&shape));
        Ok(shape)
    }

    /// Unpins every shape that is not in use. Called only after every publication point was switched and a grace period
    /// passed.
    pub fn retain(&self, in_use: &BTreeSet<String>) -> Vec<String> {
        let mut removed = Vec::new();
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).retain(|k, _| in_use.contains(&k.short()));
        for name in self.fs.names(&self.fs.objects()).unwrap_or_default() {
            if !in_use.contains(&name) && self.fs.remove_object(&name).unwrap_or(false) {
                removed.push(name);
            }
        }
        removed
    }
}
