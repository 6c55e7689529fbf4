// SPDX-License-Identifier: Apache-2.0
//! The programs under test, compiled from the tree as it stands, each once a process.

use crate::sandbox::Sandbox;
use pilus_codegen::{Build, Clang, EndpointConfig, Features, NodeConfig, Rendered, Templates};
use pilus_loader::collection::{Collection, LoadOptions};
use pilus_loader::stages::Stages;
use pilus_model::abi::STAGES_OF_SLOW;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The template tree under test: the repository's own, or the one that `PILUS_TEST_TREE` names (a damaged copy, to see tests
/// fail).
pub fn tree() -> PathBuf {
    std::env::var_os("PILUS_TEST_TREE").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../bpf-templates"), PathBuf::from)
}

/// An object of the tree in `dir`. Panics with the compiler's words.
pub fn compile(templates: &Templates, rendered: &Rendered, build: Build) -> Vec<u8> {
    let work = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let compiled = runtime.block_on(Clang::find().compile(templates, rendered, build, work.path()));
    compiled.unwrap_or_else(|e| panic!("{} does not compile: {e}", rendered.program)).bytes
}

fn cached(name: String, make: impl FnOnce(&Templates) -> Vec<u8>) -> Arc<[u8]> {
    static MADE: Mutex<Option<HashMap<String, Arc<[u8]>>>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let made = made.get_or_insert_default();
    if let Some(object) = made.get(&name) {
        return object.clone();
    }
    let templates = Templates::load(tree()).expect("the template tree");
    let object: Arc<[u8]> = make(&templates).into();
    made.insert(name, object.clone());
    object
}

/// The program of a container. A shared build is the same for all of the same features.
pub fn container(config: &EndpointConfig, build: Build) -> Arc<[u8]> {
    let name = match build {
        Build::Shared => format!("container {:?}", config.features),
        Build::Own => format!("{config:?}"),
    };
    cached(name, |t| compile(t, &t.render_container(config).expect("container_config.h.tera"), build))
}

/// The program of the node's own devices.
pub fn netdev(features: &Features) -> Arc<[u8]> {
    let config = NodeConfig { features: features.clone() };
    cached(format!("netdev {features:?}"), |t| compile(t, &t.render_netdev(&config).expect("netdev_config.h.tera"), Build::Shared))
}

/// The slow path that both share.
pub fn slow(features: &Features) -> Arc<[u8]> {
    let config = NodeConfig { features: features.clone() };
    cached(format!("slow {features:?}"), |t| compile(t, &t.render_slow(&config).expect("slow_config.h.tera"), Build::Shared))
}

/// Loads an object whose rare stages are in `stages`. Panics with the verifier's words.
pub fn load(sandbox: &Sandbox, stages: &Stages, elf: &[u8], name: &str) -> Collection {
    let stage: &[_] = if name == "slow" { STAGES_OF_SLOW } else { &[] };
    let options = LoadOptions { name, stages: Some(stages), stage, ..LoadOptions::default() };
    Collection::load(sandbox.fs(), elf, &options).unwrap_or_else(|e| match e {
        pilus_loader::Error::Load { log, .. } => panic!("the verifier refuses {name}:\n{log}"),
        other => panic!("{name}: {other}"),
    })
}
