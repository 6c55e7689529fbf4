// SPDX-License-Identifier: Apache-2.0
//! A small template tree to change at will.
#![allow(dead_code, reason = "each test binary uses a part")]

use pilus_codegen::{Clang, EndpointConfig, Features, Templates};
use std::fs;
use std::path::{Path, PathBuf};

/// A directory with a copy of `tests/tree`, gone when dropped.
pub struct Tree(tempfile::TempDir);

impl Tree {
    pub fn new() -> Tree {
        let dir = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tree"), dir.path());
        Tree(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, file: &str, text: &str) -> &Self {
        let path = self.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Replaces `from`, which must be there.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> &Self {
        let text = fs::read_to_string(self.path().join(file)).unwrap();
        assert!(text.contains(from), "{file} has no `{from}`");
        self.write(file, &text.replace(from, to))
    }

    pub fn load(&self) -> Templates {
        Templates::load(self.path()).unwrap_or_else(|e| panic!("{e}"))
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

pub fn endpoint() -> EndpointConfig {
    EndpointConfig {
        name: "default/web".to_owned(),
        slot: 7,
        id: 12,
        ifindex: 42,
        mac: [0x02, 0, 0x5e, 0x10, 0xff, 1],
        host_mac: [0x02, 0, 0x5e, 0x10, 0xff, 2],
        ipv4: Some("10.0.0.1".parse().unwrap()),
        ipv6: "fd00::1".parse().unwrap(),
        mtu: 1450,
        features: Features::default(),
    }
}

/// The installed compiler.
pub fn clang() -> Clang {
    let found = Clang::find();
    assert!(found.path.is_some(), "these tests need clang: make deps");
    found
}

/// A compiler of `tests/fake`.
pub fn fake(name: &str) -> Clang {
    Clang::at(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fake").join(name))
}
