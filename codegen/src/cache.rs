// SPDX-License-Identifier: Apache-2.0
//! Objects by key: built into the program, on disk, or compiled now. However many ask for one key, it is compiled once.

use crate::clang::Clang;
use crate::embedded::EmbeddedObject;
use crate::error::BuildError;
use crate::key::{Build, ObjectKey, Program, shape_key};
use crate::render::Rendered;
use crate::store::{Sidecar, Store, checksum};
use crate::templates::Templates;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore, watch};

/// Where an object came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Built with the project.
    Embedded,
    /// Found on disk.
    Disk,
    /// Compiled for this request.
    Built,
}

/// A compiled program.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its name.
    pub key: ObjectKey,
    /// What it is.
    pub program: Program,
    /// The ELF object.
    pub bytes: Arc<[u8]>,
    /// Where it came from.
    pub origin: Origin,
    /// The compiler's own words about its version, where known.
    pub toolchain: Option<String>,
    /// Time that clang took, then or now.
    pub compile: Option<Duration>,
}

/// What a cache has done since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Objects compiled.
    pub builds: u64,
    /// Compilations that failed.
    pub build_failures: u64,
    /// Requests met by an object built with the project.
    pub embedded_hits: u64,
    /// Requests met by an object on disk.
    pub disk_hits: u64,
    /// Requests that waited for another's look-up or build.
    pub shared_waits: u64,
    /// Objects that were compiled and used but could not be written to disk.
    pub store_failures: u64,
}

type Outcome = Result<Arc<Object>, Arc<BuildError>>;
type Waiting = watch::Receiver<Option<Outcome>>;

/// The cache; clones share it. Its directory belongs to it alone.
#[derive(Clone)]
pub struct ObjectCache(Arc<Inner>);

struct Inner {
    store: Store,
    embedded: HashMap<&'static str, EmbeddedObject>,
    clang: Clang,
    toolchain: OnceCell<Option<String>>,
    running: Semaphore,
    in_flight: Mutex<HashMap<ObjectKey, Waiting>>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    builds: AtomicU64,
    build_failures: AtomicU64,
    embedded_hits: AtomicU64,
    disk_hits: AtomicU64,
    shared_waits: AtomicU64,
    store_failures: AtomicU64,
}

impl ObjectCache {
    /// A cache in `dir` that runs at most `jobs` compilers at once; 0 means one for each core.
    pub fn new(dir: PathBuf, embedded: Vec<EmbeddedObject>, clang: Clang, jobs: usize) -> ObjectCache {
        let jobs = if jobs == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { jobs };
        let store = Store { dir };
        store.sweep();
        ObjectCache(Arc::new(Inner {
            store,
            embedded: embedded.into_iter().map(|o| (o.key_hex, o)).collect(),
            clang,
            toolchain: OnceCell::new(),
            running: Semaphore::new(jobs),
            in_flight: Mutex::default(),
            counters: Counters::default(),
        }))
    }

    /// The object of `rendered`: embedded, from disk, or built. Askers of one key share the work, and it goes on when one
    /// of them (or each) is cancelled. A failure is told to those who waited for it; who asks next starts anew.
    pub async fn get_or_build(&self, templates: &Templates, rendered: &Rendered, build: Build) -> Outcome {
        let key = shape_key(templates, rendered, build);
        if let Some(object) = self.0.embedded_object(key, rendered.program) {
            self.0.counters.embedded_hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::new(object));
        }
        let mut waiting = self.join_or_start(key, templates, rendered, build);
        let abandoned = || Err(Arc::new(BuildError::Abandoned { program: rendered.program }));
        match waiting.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(abandoned),
            Err(_) => abandoned(),
        }
    }

    /// What the cache has done so far.
    pub fn stats(&self) -> CacheStats {
        let c = &self.0.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            builds: read(&c.builds),
            build_failures: read(&c.build_failures),
            embedded_hits: read(&c.embedded_hits),
            disk_hits: read(&c.disk_hits),
            shared_waits: read(&c.shared_waits),
            store_failures: read(&c.store_failures),
        }
    }

    /// Removes objects from disk that `keep` does not want (it gets the key in hexadecimal), and says how many.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) -> Result<usize, BuildError> {
        self.0.store.retain(keep)
    }

    /// The directory of the objects.
    pub fn dir(&self) -> &Path {
        &self.0.store.dir
    }

    /// The compiler in use.
    pub fn clang(&self) -> &Clang {
        &self.0.clang
    }

    fn join_or_start(&self, key: ObjectKey, templates: &Templates, rendered: &Rendered, build: Build) -> Waiting {
        let mut in_flight = self.0.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = in_flight.get(&key) {
            self.0.counters.shared_waits.fetch_add(1, Ordering::Relaxed);
            return waiting.clone();
        }
        let (told, waiting) = watch::channel(None);
        in_flight.insert(key, waiting.clone());
        let entry = InFlight { cache: self.0.clone(), key };
        let (templates, rendered) = (templates.clone(), rendered.clone());
        tokio::spawn(async move {
            let outcome = entry.cache.obtain(key, &templates, &rendered, build).await.map(Arc::new).map_err(Arc::new);
            // Off the list before the news: who asks after a failure must not be handed that failure.
            drop(entry);
            told.send_replace(Some(outcome));
        });
        waiting
    }
}

/// A build on the list; leaves it however the build ends.
struct InFlight {
    cache: Arc<Inner>,
    key: ObjectKey,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.cache.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Inner {
    fn embedded_object(&self, key: ObjectKey, program: Program) -> Option<Object> {
        let found = self.embedded.get(key.to_string().as_str())?;
        let toolchain = Some(found.toolchain.to_owned());
        Some(Object { key, program, bytes: found.bytes.into(), origin: Origin::Embedded, toolchain, compile: None })
    }

    async fn obtain(
        self: &Arc<Self>,
        key: ObjectKey,
        templates: &Templates,
        rendered: &Rendered,
        build: Build,
    ) -> Result<Object, BuildError> {
        let program = rendered.program;
        let this = self.clone();
        let abandoned = move |_| BuildError::Abandoned { program };
        if let Some((bytes, sidecar)) = tokio::task::spawn_blocking(move || this.store.get(&key)).await.map_err(abandoned)? {
            self.counters.disk_hits.fetch_add(1, Ordering::Relaxed);
            let compile = Some(Duration::from_micros(sidecar.compile_us));
            return Ok(Object { key, program, bytes: bytes.into(), origin: Origin::Disk, toolchain: sidecar.toolchain, compile });
        }
        let compiled = {
            let _turn = self.running.acquire().await.map_err(|_| BuildError::Abandoned { program })?;
            self.clang.compile(templates, rendered, build, &self.store.dir).await
        };
        let counter = if compiled.is_ok() { &self.counters.builds } else { &self.counters.build_failures };
        counter.fetch_add(1, Ordering::Relaxed);
        let compiled = compiled?;
        // Worth knowing, not worth failing for.
        let toolchain = self.toolchain.get_or_init(|| async { self.clang.version().await.ok() }).await.clone();
        let bytes: Arc<[u8]> = compiled.bytes.into();
        let sidecar = Sidecar {
            program: program.as_str().to_owned(),
            build: build.as_str().to_owned(),
            sha256: checksum(&bytes),
            toolchain: toolchain.clone(),
            compile_us: u64::try_from(compiled.took.as_micros()).unwrap_or(u64::MAX),
        };
        let (this, stored) = (self.clone(), bytes.clone());
        // A full disk must not keep a container from its program: the object is used and compiled again next time.
        if tokio::task::spawn_blocking(move || this.store.put(&key, &stored, &sidecar)).await.map_err(abandoned)?.is_err() {
            self.counters.store_failures.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Object { key, program, bytes, origin: Origin::Built, toolchain, compile: Some(compiled.took) })
    }
}
