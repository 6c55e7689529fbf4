// SPDX-License-Identifier: Apache-2.0
//! The template tree that users edit, and the checked copy of it that runs.

use crate::options::Options;
use pilus_codegen::{BuildError, Templates};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

include!(concat!(env!("OUT_DIR"), "/tree.rs"));

const INSTALLED: &str = "/usr/share/pilus/bpf-templates";
const APPLIED: &str = "applied";
/// Which agent wrote an applied copy. Hidden, so that it is no part of the tree.
const STAMP: &str = ".agent";

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("templates in {}: {source}", dir.display())]
    Tree { dir: PathBuf, source: BuildError },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TemplateError + use<> {
    let path = path.to_owned();
    move |source| TemplateError::Io { path, source }
}

/// Names the tree that this agent was built with.
fn stamp() -> String {
    let mut h = DefaultHasher::new();
    TREE.hash(&mut h);
    format!("{} {:016x}", env!("CARGO_PKG_VERSION"), h.finish())
}

fn write_tree<'a>(dir: &Path, files: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<(), TemplateError> {
    for (name, content) in files {
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io(parent))?;
        }
        std::fs::write(&path, content).map_err(io(&path))?;
    }
    Ok(())
}

pub struct TemplateStore {
    directory: PathBuf,
    state_dir: PathBuf,
    current: RwLock<Templates>,
}

impl TemplateStore {
    /// Opens the copy that ran last. Where there is none, or another version of the agent made it, what is in the template
    /// directory is taken.
    pub fn open(options: &Options) -> Result<Self, TemplateError> {
        let directory = match &options.template_dir {
            Some(dir) => dir.clone(),
            None if Path::new(INSTALLED).is_dir() => INSTALLED.into(),
            None => Self::carried(&options.state_dir)?,
        };
        let applied = options.state_dir.join(APPLIED);
        let same_agent = std::fs::read_to_string(applied.join(STAMP)).is_ok_and(|s| s == stamp());
        let source = if same_agent { &applied } else { &directory };
        let load = |dir: &Path| Templates::load(dir).map_err(|source| TemplateError::Tree { dir: dir.to_owned(), source });
        let templates = load(source)?;
        let store = Self { directory, state_dir: options.state_dir.clone(), current: RwLock::new(templates.clone()) };
        if !same_agent {
            store.keep(&templates)?;
        }
        Ok(store)
    }

    /// The tree that the agent carries, laid out below the state directory for people to edit.
    fn carried(state_dir: &Path) -> Result<PathBuf, TemplateError> {
        let dir = state_dir.join("templates");
        if !dir.is_dir() {
            let next = state_dir.join("templates.new");
            let _ = std::fs::remove_dir_all(&next);
            write_tree(&next, TREE.iter().map(|(name, text)| (*name, text.as_bytes())))?;
            std::fs::rename(&next, &dir).map_err(io(&dir))?;
        }
        Ok(dir)
    }

    pub fn current(&self) -> Templates {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where edits are made.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The tree as it is in the directory now.
    pub fn edited(&self) -> Result<Templates, TemplateError> {
        Templates::load(&self.directory).map_err(|source| TemplateError::Tree { dir: self.directory.clone(), source })
    }

    /// From now on this tree is the one that runs, also after a restart.
    pub fn apply(&self, templates: &Templates) -> Result<(), TemplateError> {
        self.keep(templates)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = templates.clone();
        Ok(())
    }

    /// `applied` is a link that is replaced in one step; a killed agent leaves the old or the new copy.
    fn keep(&self, templates: &Templates) -> Result<(), TemplateError> {
        let link = self.state_dir.join(APPLIED);
        let old = std::fs::read_link(&link).ok();
        let name = format!("{APPLIED}-{}", &templates.tree_hash()[..16]);
        let dir = self.state_dir.join(&name);
        let _ = std::fs::remove_dir_all(self.state_dir.join("applied.new"));
        let next = self.state_dir.join("applied.new");
        write_tree(&next, templates.files())?;
        std::fs::write(next.join(STAMP), stamp()).map_err(io(&next))?;
        if old.as_deref() != Some(Path::new(&name)) {
            let _ = std::fs::remove_dir_all(&dir);
        }
        if dir.exists() {
            std::fs::write(dir.join(STAMP), stamp()).map_err(io(&dir))?;
        } else {
            std::fs::rename(&next, &dir).map_err(io(&dir))?;
        }
        let _ = std::fs::remove_dir_all(&next);
        let next_link = self.state_dir.join("applied.link");
        let _ = std::fs::remove_file(&next_link);
        std::os::unix::fs::symlink(&name, &next_link).map_err(io(&next_link))?;
        std::fs::rename(&next_link, &link).map_err(io(&link))?;
        if let Some(old) = old.filter(|o| o != Path::new(&name)) {
            let _ = std::fs::remove_dir_all(self.state_dir.join(old));
        }
        Ok(())
    }
}
