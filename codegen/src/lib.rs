// SPDX-License-Identifier: Apache-2.0
//! From an endpoint's configuration to a BPF object: templates are rendered to a C header, clang compiles the program
//! that includes it, and the object is kept under the hash of everything that went in.
//!
//! The order of use is [`Templates::load`], [`Templates::render_container`], [`ObjectCache::get_or_build`]. Nothing here
//! knows how an object is loaded into the kernel.

mod cache;
mod clang;
mod config;
mod diagnostics;
mod embedded;
mod error;
mod filters;
mod key;
pub mod libclang;
mod render;
mod store;
mod templates;

pub use cache::{CacheStats, Object, ObjectCache, Origin};
pub use clang::{Clang, Compiled};
pub use config::{EndpointConfig, Features, NodeConfig};
pub use diagnostics::{Diagnostic, Severity};
pub use embedded::{Embedded, EmbeddedObject, build_embedded};
pub use error::BuildError;
pub use key::{Build, ObjectKey, Program, shape_key};
pub use render::{Rendered, Value, ValueKind};
pub use templates::Templates;

use std::sync::Arc;

/// Checks the syntax of a rendered program: through libclang where it is installed, else by `clang -fsyntax-only`.
/// An empty list means that it compiles as far as the front end can tell.
pub async fn syntax_check(
    clang: &Clang,
    templates: &Templates,
    rendered: &Rendered,
    build: Build,
) -> Result<Vec<Diagnostic>, Arc<BuildError>> {
    let (t, r) = (templates.clone(), rendered.clone());
    // A thread that dies inside libclang leaves the question open; the compiler process can still answer it.
    match tokio::task::spawn_blocking(move || libclang::check(&t, &r, build)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(_)) | Err(_) => clang.syntax(templates, rendered, build).await.map_err(Arc::new),
    }
}

/// Lower-case hexadecimal of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        write!(out, "{b:02x}").expect("write to String");
        out
    })
}
