// SPDX-License-Identifier: Apache-2.0
//! The cache: one build for however many ask, and nothing torn is ever served.

mod common;

use common::{Tree, clang, endpoint, fake};
use pilus_codegen::{
    Build, BuildError, CacheStats, Clang, EmbeddedObject, EndpointConfig, ObjectCache, Origin, Rendered, Templates, shape_key,
};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A tree whose compiler is `tests/fake/counts`, which writes to `log` and waits at `gate`.
struct Fake {
    tree: Tree,
    dir: tempfile::TempDir,
}

impl Fake {
    fn new() -> Fake {
        let (tree, dir) = (Tree::new(), tempfile::tempdir().unwrap());
        tree.write("log", dir.path().join("log").to_str().unwrap());
        Fake { tree, dir }
    }

    fn gated() -> Fake {
        let fake = Fake::new();
        let gate = fake.gate();
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        fake.tree.write("gate", gate.to_str().unwrap());
        fake
    }

    fn gate(&self) -> PathBuf {
        self.dir.path().join("gate")
    }

    fn cache(&self, clang: Clang, jobs: usize) -> ObjectCache {
        ObjectCache::new(self.dir.path().join("cache"), Vec::new(), clang, jobs)
    }

    fn log(&self) -> Vec<String> {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

/// Opening the pipe for writing succeeds once the compiler stands at it; closing it lets it go on.
async fn at_the_gate(gate: &Path) -> fs::File {
    let gate = gate.to_owned();
    tokio::task::spawn_blocking(move || fs::OpenOptions::new().write(true).open(gate).unwrap()).await.unwrap()
}

fn rendered(templates: &Templates, id: u16) -> Rendered {
    templates.render_container(&EndpointConfig { id, ..endpoint() }).unwrap()
}

#[tokio::test]
async fn many_askers_share_one_build_and_outlive_the_first() {
    let fake_clang = Fake::gated();
    let templates = fake_clang.tree.load();
    let cache = fake_clang.cache(fake("counts"), 1);
    let ask = |id| {
        let (cache, templates) = (cache.clone(), templates.clone());
        tokio::spawn(async move { cache.get_or_build(&templates, &rendered(&templates, id), Build::Shared).await })
    };
    let first = ask(1);
    let gate = at_the_gate(&fake_clang.gate()).await;
    let others: Vec<_> = (2..10).map(ask).collect();
    while cache.stats().shared_waits < 8 {
        tokio::task::yield_now().await;
    }
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    drop(gate);
    for other in others {
        let object = other.await.unwrap().unwrap();
        assert_eq!(object.origin, Origin::Built);
        assert_eq!(object.toolchain.as_deref(), Some("fake clang version 1.0"));
        assert!(object.compile.is_some());
    }
    assert_eq!(fake_clang.log(), ["start", "end"]);
    assert_eq!(cache.stats(), CacheStats { builds: 1, shared_waits: 8, ..CacheStats::default() });
}

#[tokio::test]
async fn no_more_compilers_than_jobs() {
    let fake_clang = Fake::new();
    let templates = fake_clang.tree.load();
    let cache = fake_clang.cache(fake("counts"), 2);
    let asked: Vec<_> = (0..8)
        .map(|id| {
            let (cache, templates) = (cache.clone(), templates.clone());
            tokio::spawn(async move { cache.get_or_build(&templates, &rendered(&templates, id), Build::Own).await.unwrap().key })
        })
        .collect();
    let mut keys = std::collections::BTreeSet::new();
    for asked in asked {
        keys.insert(asked.await.unwrap());
    }
    assert_eq!(keys.len(), 8);
    let mut running = 0;
    for line in fake_clang.log() {
        running += if line == "start" { 1 } else { -1 };
        assert!((0..=2).contains(&running), "{:?}", fake_clang.log());
    }
    assert_eq!((running, cache.stats().builds), (0, 8));
}

#[tokio::test]
async fn from_memory_then_disk_then_compiler() {
    let (tree, dir) = (Tree::new(), tempfile::tempdir().unwrap());
    let templates = tree.load();
    let one = rendered(&templates, 1);
    let built = ObjectCache::new(dir.path().join("a"), Vec::new(), clang(), 0).get_or_build(&templates, &one, Build::Shared).await.unwrap();
    assert_eq!(built.origin, Origin::Built);
    assert_eq!(built.key, shape_key(&templates, &one, Build::Shared));

    // Another process, and no compiler: the disk is enough, for any endpoint of the shape.
    let cache = ObjectCache::new(dir.path().join("a"), Vec::new(), Clang::default(), 0);
    let found = cache.get_or_build(&templates, &rendered(&templates, 2), Build::Shared).await.unwrap();
    assert_eq!((found.origin, &found.bytes, &found.toolchain), (Origin::Disk, &built.bytes, &built.toolchain));
    assert_eq!(cache.stats(), CacheStats { disk_hits: 1, ..CacheStats::default() });
    let error = cache.get_or_build(&templates, &rendered(&templates, 2), Build::Own).await.unwrap_err();
    assert!(matches!(*error, BuildError::NoCompiler { .. }));

    let embedded = EmbeddedObject {
        key_hex: Box::leak(built.key.to_string().into_boxed_str()),
        bytes: b"\x7fELF embedded",
        toolchain: "the project's clang",
    };
    let cache = ObjectCache::new(dir.path().join("a"), vec![embedded], Clang::default(), 0);
    let found = cache.get_or_build(&templates, &one, Build::Shared).await.unwrap();
    assert_eq!(
        (found.origin, found.bytes.as_ref(), found.toolchain.as_deref()),
        (Origin::Embedded, embedded.bytes, Some(embedded.toolchain))
    );
    assert_eq!(cache.stats(), CacheStats { embedded_hits: 1, ..CacheStats::default() });
}

#[tokio::test]
async fn a_torn_or_altered_object_is_built_again() {
    let fake_clang = Fake::new();
    let templates = fake_clang.tree.load();
    let cache = fake_clang.cache(fake("counts"), 0);
    let one = rendered(&templates, 1);
    let whole = cache.get_or_build(&templates, &one, Build::Shared).await.unwrap();
    let object = cache.dir().join(format!("{}.o", whole.key));
    let sidecar = cache.dir().join(format!("{}.json", whole.key));
    let damage: [&dyn Fn(); 4] = [
        &|| fs::write(&object, &whole.bytes[..8]).unwrap(),
        &|| fs::write(&sidecar, "{").unwrap(),
        &|| fs::remove_file(&sidecar).unwrap(),
        &|| fs::remove_file(&object).unwrap(),
    ];
    for (n, damage) in damage.iter().enumerate() {
        damage();
        let again = cache.get_or_build(&templates, &one, Build::Shared).await.unwrap();
        assert_eq!((again.origin, &again.bytes), (Origin::Built, &whole.bytes), "damage {n}");
        assert_eq!(cache.get_or_build(&templates, &one, Build::Shared).await.unwrap().origin, Origin::Disk);
    }
}

#[tokio::test]
async fn a_failure_is_not_remembered() {
    let fake_clang = Fake::new();
    fake_clang.tree.write("fails", "");
    let templates = fake_clang.tree.load();
    let cache = fake_clang.cache(fake("counts"), 0);
    for _ in 0..2 {
        let error = cache.get_or_build(&templates, &rendered(&templates, 1), Build::Shared).await.unwrap_err();
        assert_eq!(error.to_string(), "container.c:3:1: error: as told");
    }
    assert_eq!(fake_clang.log(), ["start", "end", "start", "end"]);
    assert_eq!(cache.stats(), CacheStats { build_failures: 2, ..CacheStats::default() });
}

#[tokio::test]
async fn an_edit_during_a_build_does_not_reach_it() {
    let fake_clang = Fake::gated();
    let templates = fake_clang.tree.load();
    let cache = fake_clang.cache(fake("counts"), 0);
    fake_clang.tree.write("fails", "");
    let (t, c) = (templates.clone(), cache.clone());
    let asked = tokio::spawn(async move { c.get_or_build(&t, &rendered(&t, 1), Build::Shared).await });
    drop(at_the_gate(&fake_clang.gate()).await);
    assert_eq!(asked.await.unwrap().unwrap().key, shape_key(&templates, &rendered(&templates, 1), Build::Shared));
}

/// The clock is paused and runs on only when nothing else does: the wait at the gate holds it until the compiler is surely there.
#[tokio::test(start_paused = true)]
async fn a_compiler_that_hangs_is_stopped() {
    let fake_clang = Fake::gated();
    let templates = fake_clang.tree.load();
    let cache = fake_clang.cache(Clang { timeout: Duration::from_secs(60), ..fake("counts") }, 0);
    let (t, c) = (templates.clone(), cache.clone());
    let asked = tokio::spawn(async move { c.get_or_build(&t, &rendered(&t, 1), Build::Shared).await });
    let mut gate = at_the_gate(&fake_clang.gate()).await;
    let error = asked.await.unwrap().unwrap_err();
    assert!(matches!(*error, BuildError::Timeout { .. }), "{error:?}");
    assert!(error.is_retryable());
    // `cat`, a child of the compiler, is gone as well: nobody reads any more.
    loop {
        match gate.write_all(b"x") {
            Ok(()) => tokio::task::yield_now().await,
            Err(e) => break assert_eq!(e.kind(), std::io::ErrorKind::BrokenPipe),
        }
    }
    assert_eq!(fake_clang.log(), ["start"]);
}

#[tokio::test]
async fn only_wanted_objects_are_kept() {
    let fake_clang = Fake::new();
    let templates = fake_clang.tree.load();
    let cache = fake_clang.cache(fake("counts"), 0);
    let keep = cache.get_or_build(&templates, &rendered(&templates, 1), Build::Own).await.unwrap().key.to_string();
    cache.get_or_build(&templates, &rendered(&templates, 2), Build::Own).await.unwrap();
    fs::write(cache.dir().join("not-ours.o"), "").unwrap();
    assert_eq!(cache.retain(|key| key == keep).unwrap(), 1);
    let mut left: Vec<_> = fs::read_dir(cache.dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    let mut expected = vec![format!("{keep}.json"), format!("{keep}.o"), "not-ours.o".to_owned()];
    expected.sort();
    assert_eq!(left, expected);
}
