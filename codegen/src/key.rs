// SPDX-License-Identifier: Apache-2.0
//! Everything compiled is named by the hash of everything that went in.

use crate::clang;
use crate::render::Rendered;
use crate::templates::Templates;
use sha2::{Digest, Sha256};
use std::fmt;

/// A program that the agent compiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Program {
    /// On the host side of a container's device.
    Container,
    /// On a physical device and on the host's own.
    Netdev,
    /// What both leave to a program that they share.
    Slow,
}

impl Program {
    /// Every program.
    pub const ALL: [Program; 3] = [Program::Container, Program::Netdev, Program::Slow];

    /// Short name.
    pub fn as_str(self) -> &'static str {
        match self {
            Program::Container => "container",
            Program::Netdev => "netdev",
            Program::Slow => "slow",
        }
    }

    /// The C file, relative to the template tree.
    pub fn file(self) -> &'static str {
        match self {
            Program::Container => "container.c",
            Program::Netdev => "netdev.c",
            Program::Slow => "slow.c",
        }
    }

    /// The template of its configuration header, relative to the template tree.
    pub fn template(self) -> &'static str {
        match self {
            Program::Container => "container_config.h.tera",
            Program::Netdev => "netdev_config.h.tera",
            Program::Slow => "slow_config.h.tera",
        }
    }

    /// The header that the template becomes, as the C file includes it.
    pub fn header(self) -> &'static str {
        match self {
            Program::Container => "container_config.h",
            Program::Netdev => "netdev_config.h",
            Program::Slow => "slow_config.h",
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the values of a header are read from the endpoint's row or compiled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Build {
    /// One object for all of the same features.
    Shared,
    /// An object for this endpoint alone.
    Own,
}

impl Build {
    /// `shared` or `own`.
    pub fn as_str(self) -> &'static str {
        match self {
            Build::Shared => "shared",
            Build::Own => "own",
        }
    }
}

/// Name of an object: a hash over all that decides its bytes, the compiler's version excepted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(pub [u8; 32]);

impl ObjectKey {
    /// The first 16 hexadecimal digits, for people and for file names with little room.
    pub fn short(&self) -> String {
        crate::hex(&self.0[..8])
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hex(&self.0))
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectKey({})", self.short())
    }
}

/// The key of the object that `rendered` becomes. Text that the compiler does not see (the endpoint's name in a comment)
/// has no part in it; neither have values in a shared build.
pub fn shape_key(templates: &Templates, rendered: &Rendered, build: Build) -> ObjectKey {
    let mut h = Hasher::new("pilus object 1");
    h.add(rendered.program.as_str().as_bytes());
    h.add(build.as_str().as_bytes());
    for flag in clang::FLAGS {
        h.add(flag.as_bytes());
    }
    h.count(rendered.features.len());
    for (name, on) in &rendered.features {
        h.add(name.as_bytes());
        h.add(&[u8::from(*on)]);
    }
    if build == Build::Own {
        h.count(rendered.values.len());
        for v in &rendered.values {
            h.add(v.name.as_bytes());
            h.add(v.kind.as_str().as_bytes());
            h.add(&v.bytes);
        }
    }
    h.add(templates.tree_hash().as_bytes());
    for (name, text) in templates.generated() {
        h.add(name.as_bytes());
        h.add(text.as_bytes());
    }
    ObjectKey(h.finish())
}

/// Sha256 over a sequence of strings; lengths go in too, so that no two sequences run together.
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn new(domain: &str) -> Self {
        let mut h = Hasher(Sha256::new());
        h.add(domain.as_bytes());
        h
    }

    pub(crate) fn count(&mut self, n: usize) {
        self.0.update((n as u64).to_le_bytes());
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
