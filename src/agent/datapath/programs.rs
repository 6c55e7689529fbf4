// SPDX-License-Identifier: Apache-2.0
//! Programs by shape: from a template tree to a loaded collection, once per shape.

use pilus_api::types::ProgramModel;
use pilus_codegen::{Build, BuildError, EmbeddedObject, Features, NodeConfig, ObjectCache, ObjectKey, Rendered, Templates, shape_key};
use pilus_loader::collection::{Collection, LoadOptions, Program};
use pilus_loader::{Error, bpffs::BpfFs, stages::Stages};
use pilus_model::abi::{STAGES_APART, STAGES_OF_SLOW};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OnceCell;

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

/// The slow path of a generation, and the array by which its programs reach it.
#[derive(Debug)]
struct Slow {
    key: ObjectKey,
    stages: Stages,
    programs: OnceCell<Collection>,
}

/// A loaded object under its key, with the slow path that it ends in.
#[derive(Debug)]
pub struct Shape {
    pub key: ObjectKey,
    pub build: Build,
    pub programs: Collection,
    slow: Arc<Slow>,
}

/// By name: a restart, which finds them by their pins, shows them in no other order.
fn models(programs: &Collection) -> Vec<ProgramModel> {
    let model = |p: &Program| ProgramModel {
        name: p.name.clone(),
        id: p.id,
        tag: p.tag.iter().map(|b| format!("{b:02x}")).collect(),
        instructions: p.insns,
        jited_bytes: p.jited,
        verified_instructions: p.verified_insns,
    };
    let mut all: Vec<_> = programs.programs.iter().map(model).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

impl Shape {
    pub fn program(&self, name: &'static str) -> Result<&Program, ProgramError> {
        self.programs.program(name).ok_or_else(|| ProgramError::Missing { key: self.key.short(), name })
    }

    /// Its own programs, then the slow path's.
    pub fn models(&self) -> Vec<ProgramModel> {
        [Some(&self.programs), self.slow.programs.get()].into_iter().flatten().flat_map(models).collect()
    }
}

/// A shape that is loaded, or on its way.
#[derive(Clone)]
struct Place {
    slow: Arc<Slow>,
    shape: Arc<OnceCell<Arc<Shape>>>,
}

/// Loads each shape once and keeps it pinned under `objects/<key>`; different ones side by side.
pub struct Programs {
    fs: BpfFs,
    cache: ObjectCache,
    node: NodeConfig,
    places: Mutex<BTreeMap<ObjectKey, Place>>,
}

impl Programs {
    pub fn new(fs: BpfFs, cache: ObjectCache, features: Features) -> Self {
        Self { fs, cache, node: NodeConfig { features }, places: Mutex::default() }
    }

    pub fn cache(&self) -> &ObjectCache {
        &self.cache
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_loaded(&self, key: ObjectKey) -> bool {
        self.places().get(&key).is_some_and(|p| p.shape.initialized())
    }

    fn pin(&self, key: ObjectKey) -> PathBuf {
        self.fs.objects().join(key.short())
    }

    /// Where a shape is, or will be. The stages that it needs are there at once, though maybe empty still.
    fn place(&self, key: ObjectKey, slow_key: ObjectKey) -> Result<Place, Error> {
        let mut places = self.places();
        if let Some(place) = places.get(&key).filter(|p| p.slow.key == slow_key) {
            return Ok(place.clone());
        }
        let slow = match places.values().find(|p| p.slow.key == slow_key) {
            Some(place) => Arc::clone(&place.slow),
            None => {
                let stages = Stages::pinned(&self.pin(slow_key))?.map_or_else(Stages::make, Ok)?;
                Arc::new(Slow { key: slow_key, stages, programs: OnceCell::new() })
            }
        };
        let place = Place { slow, shape: Arc::default() };
        places.insert(key, place.clone());
        Ok(place)
    }

    /// The shape of a rendered header: loaded already, pinned by an earlier agent, or compiled and loaded now.
    pub async fn get(&self, templates: &Templates, rendered: &Rendered, build: Build) -> Result<Arc<Shape>, ProgramError> {
        let slow_path = templates.render_slow(&self.node).map_err(|e| ProgramError::Build(Arc::new(e)))?;
        let key = shape_key(templates, rendered, build);
        let slow_key = shape_key(templates, &slow_path, Build::Shared);
        let Place { slow, shape } = self.place(key, slow_key).map_err(ProgramError::Load)?;
        // Nobody sees a program before the stages that it calls are there.
        let (stage, programs) = tokio::join!(
            slow.programs.get_or_try_init(|| self.open_or_load(templates, &slow_path, Build::Shared, slow_key, &slow, STAGES_OF_SLOW)),
            shape.get_or_try_init(|| async {
                let programs = self.open_or_load(templates, rendered, build, key, &slow, &[]).await?;
                Ok(Arc::new(Shape { key, build, programs, slow: Arc::clone(&slow) }))
            })
        );
        stage?;
        programs.cloned()
    }

    async fn open_or_load(
        &self,
        templates: &Templates,
        rendered: &Rendered,
        build: Build,
        key: ObjectKey,
        slow: &Arc<Slow>,
        stage: &'static [(u32, &'static str)],
    ) -> Result<Collection, ProgramError> {
        let pin = self.pin(key);
        if let Some(found) = Collection::open_pinned(&self.fs, &pin, Some(&slow.stages)).map_err(ProgramError::Load)? {
            return Ok(found);
        }
        let object = self.cache.get_or_build(templates, rendered, build).await.map_err(ProgramError::Build)?;
        let (fs, slow) = (self.fs.clone(), Arc::clone(slow));
        tokio::task::spawn_blocking(move || {
            let name = object.program.as_str();
            let apart = if stage.is_empty() { &[] } else { STAGES_APART };
            let options = LoadOptions { name, pin: Some(pin), stages: Some(&slow.stages), stage, apart, ..LoadOptions::default() };
            Collection::load(&fs, &object.bytes, &options)
        })
        .await
        .map_err(|e| ProgramError::Task(e.to_string()))?
        .map_err(ProgramError::Load)
    }

    /// Unpins every shape that is not in use, and the slow paths that are then nobody's. Called only after every publication
    /// point was switched and a grace period passed.
    pub fn retain(&self, in_use: &BTreeSet<String>) -> Vec<String> {
        let mut places = self.places();
        // One that is on its way is somebody's.
        places.retain(|k, p| in_use.contains(&k.short()) || !p.shape.initialized());
        let mut kept: BTreeSet<String> = in_use.clone();
        kept.extend(places.iter().flat_map(|(k, p)| [k.short(), p.slow.key.short()]));
        let mut removed = Vec::new();
        for name in self.fs.names(&self.fs.objects()).unwrap_or_default() {
            if !kept.contains(&name) && self.fs.remove_object(&name).unwrap_or(false) {
                removed.push(name);
            }
        }
        removed
    }
}
