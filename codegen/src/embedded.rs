// SPDX-License-Identifier: Apache-2.0
//! Objects that are built with the project, by the same code and under the same keys as on a node.

use crate::clang::Clang;
use crate::config::{EndpointConfig, Features, NodeConfig};
use crate::error::BuildError;
use crate::key::{Build, ObjectKey, Program, shape_key};
use crate::store::write_whole;
use crate::templates::Templates;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// An object linked into the program.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedObject {
    /// Its [`ObjectKey`] in hexadecimal.
    pub key_hex: &'static str,
    /// The ELF object.
    pub bytes: &'static [u8],
    /// Version of the compiler that made it.
    pub toolchain: &'static str,
}

/// What [`build_embedded`] made.
#[derive(Debug)]
pub struct Embedded {
    /// The file to `include!`: `pub static EMBEDDED: &[EmbeddedObject]`.
    pub source: PathBuf,
    /// Every object: its program, key and file.
    pub objects: Vec<(Program, ObjectKey, PathBuf)>,
}

/// Compiles the default shapes of the templates in `tree` and writes them with an `embedded.rs` to `out_dir`. For a build
/// script: `include!(concat!(env!("OUT_DIR"), "/embedded.rs"))` then declares `EMBEDDED`. Prints nothing.
pub fn build_embedded(tree: &Path, out_dir: &Path) -> Result<Embedded, BuildError> {
    build_embedded_with(&Clang::find(), tree, out_dir)
}

pub(crate) fn build_embedded_with(clang: &Clang, tree: &Path, out_dir: &Path) -> Result<Embedded, BuildError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BuildError::io(out_dir))?;
    runtime.block_on(build_all(clang, tree, out_dir)).map_err(|e| match e {
        BuildError::NoCompiler { reason } => {
            BuildError::NoCompiler { reason: format!("{reason}, and building Pilus compiles its BPF programs: run `make deps`") }
        }
        other => other,
    })
}

async fn build_all(clang: &Clang, tree: &Path, out_dir: &Path) -> Result<Embedded, BuildError> {
    std::fs::create_dir_all(out_dir).map_err(BuildError::io(out_dir))?;
    let templates = Templates::load(tree)?;
    templates.check()?;
    // By key: shapes in which a program has no part give it the same object.
    let mut wanted = BTreeMap::new();
    for features in Features::embedded_shapes() {
        let container = templates.render_container(&EndpointConfig::sample(features.clone()))?;
        let node = NodeConfig { features };
        for rendered in [container, templates.render_netdev(&node)?, templates.render_slow(&node)?] {
            wanted.insert(shape_key(&templates, &rendered, Build::Shared), rendered);
        }
    }
    let toolchain = clang.version().await?;
    let turns = Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)));
    let mut builds = JoinSet::new();
    for (key, rendered) in wanted {
        let (clang, templates, turns, work) = (clang.clone(), templates.clone(), turns.clone(), out_dir.to_owned());
        builds.spawn(async move {
            let program = rendered.program;
            let _turn = turns.acquire().await.map_err(|_| BuildError::Abandoned { program })?;
            let compiled = clang.compile(&templates, &rendered, Build::Shared, &work).await?;
            let path = work.join(format!("{program}-{}.o", key.short()));
            write_whole(&path, &compiled.bytes)?;
            Ok((program, key, path))
        });
    }
    let mut objects = Vec::new();
    while let Some(done) = builds.join_next().await {
        objects.push(done.unwrap_or(Err(BuildError::Abandoned { program: Program::Container }))?);
    }
    objects.sort();
    let source = out_dir.join("embedded.rs");
    write_whole(&source, source_text(&objects, &toolchain).as_bytes())?;
    Ok(Embedded { source, objects })
}

fn source_text(objects: &[(Program, ObjectKey, PathBuf)], toolchain: &str) -> String {
    let mut out = String::from("// SPDX-License-Identifier: Apache-2.0\n");
    out.push_str("/// The default shapes, compiled with the project.\n");
    out.push_str("pub static EMBEDDED: &[pilus_codegen::EmbeddedObject] = &[\n");
    for (program, key, _) in objects {
        // Relative to this file, so that it reads the same wherever the build ran.
        let file = format!("{program}-{}.o", key.short());
        writeln!(
            out,
            "    pilus_codegen::EmbeddedObject {{ key_hex: \"{key}\", bytes: include_bytes!({file:?}), toolchain: {toolchain:?} }},"
        )
        .expect("write to String");
    }
    out.push_str("];\n");
    out
}
