// SPDX-License-Identifier: Apache-2.0
//! A template tree, read once. What was hashed is what is compiled: every build gets its own copy of these very bytes,
//! so an edit during a build belongs to the next tree and never to an object with this tree's name.

use crate::config::{EndpointConfig, Features, NodeConfig};
use crate::error::BuildError;
use crate::filters;
use crate::key::{Hasher, Program};
use crate::render::{self, Rendered};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tera::Tera;

const MAX_FILE: u64 = 4 << 20;
const MAX_FILES: usize = 2000;
const MAX_DEPTH: usize = 8;

/// Directory of the printed headers. The tree's own copy is for people and editors: the agent's is laid in its place.
const GENERATED: &str = "generated";
/// Directory of the rendered header, in a build's copy of the tree.
pub(crate) const RENDERED: &str = "rendered";

/// A loaded template tree; cheap to clone.
#[derive(Debug, Clone)]
pub struct Templates(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    files: BTreeMap<String, Vec<u8>>,
    hash: String,
    tera: Tera,
    sources: BTreeMap<Program, Vec<String>>,
    generated: [(&'static str, String); 2],
}

impl Templates {
    /// Reads the tree under `dir`, `custom/` included. Hidden files, editors' leftovers and `*.md` are not part of it;
    /// nor is `generated/`.
    pub fn load(dir: impl AsRef<Path>) -> Result<Templates, BuildError> {
        let dir = dir.as_ref();
        let mut files = BTreeMap::new();
        read_tree(dir, "", 0, &mut files)?;

        let mut hasher = Hasher::new("pilus template tree 1");
        for (path, content) in &files {
            hasher.add(path.as_bytes());
            hasher.add(content);
        }
        let mut tera = Tera::new();
        filters::register(&mut tera);
        let mut sources = BTreeMap::new();
        for program in Program::ALL {
            sources.insert(program, parse_template(&mut tera, program, &files)?);
        }
        let generated = [("abi.h", pilus_model::abi::print::abi_h()), ("maps.h", pilus_model::abi::print::maps_h())];
        let hash = crate::hex(&hasher.finish());
        Ok(Templates(Arc::new(Inner { dir: dir.to_owned(), files, hash, tera, sources, generated })))
    }

    /// Hash over the paths and contents of the tree.
    pub fn tree_hash(&self) -> &str {
        &self.0.hash
    }

    /// Where the tree was read from.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The files of the tree as they were read, by path relative to it.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.files.iter().map(|(path, content)| (path.as_str(), content.as_slice()))
    }

    /// Renders the header of one container.
    pub fn render_container(&self, config: &EndpointConfig) -> Result<Rendered, BuildError> {
        self.render(Program::Container, config.context())
    }

    /// Renders the header of the node's devices.
    pub fn render_netdev(&self, config: &NodeConfig) -> Result<Rendered, BuildError> {
        self.render(Program::Netdev, config.context())
    }

    /// Renders the header of the slow path that the node's programs share.
    pub fn render_slow(&self, config: &NodeConfig) -> Result<Rendered, BuildError> {
        self.render(Program::Slow, config.context())
    }

    /// Renders every template for sample endpoints, with each feature on and off. Runs no compiler.
    pub fn check(&self) -> Result<(), BuildError> {
        for program in Program::ALL {
            self.source(program)?;
        }
        let defaults = Features::default();
        let flipped = defaults.0.iter().map(|(name, on)| defaults.clone().with(name, !on));
        for features in std::iter::once(defaults.clone()).chain(flipped) {
            self.render_container(&EndpointConfig::sample(features.clone()))?;
            let node = NodeConfig { features };
            self.render_netdev(&node)?;
            self.render_slow(&node)?;
        }
        Ok(())
    }

    /// Text of a template line (from 1), for mapping places back.
    pub(crate) fn template_line(&self, program: Program, line: u32) -> Option<&str> {
        self.0.sources.get(&program)?.get(line.checked_sub(1)? as usize).map(String::as_str)
    }

    /// The printed headers: name and text.
    pub(crate) fn generated(&self) -> &[(&'static str, String)] {
        &self.0.generated
    }

    /// Writes the copy of the tree that a build compiles into the empty directory `into`.
    pub(crate) fn lay_out(&self, into: &Path, rendered: &Rendered) -> Result<(), BuildError> {
        let put = |relative: &str, content: &[u8]| {
            let path = into.join(relative);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(BuildError::io(parent))?;
            }
            fs::write(&path, content).map_err(BuildError::io(&path))
        };
        for (path, content) in &self.0.files {
            put(path, content)?;
        }
        for (name, text) in &self.0.generated {
            put(&format!("{GENERATED}/{name}"), text.as_bytes())?;
        }
        put(&format!("{RENDERED}/{}", rendered.program.header()), rendered.header.as_bytes())
    }

    /// A missing program is an error of the program, not of the tree: a user's tree may hold only what they run.
    fn source(&self, program: Program) -> Result<(), BuildError> {
        if self.0.files.contains_key(program.file()) {
            Ok(())
        } else {
            Err(BuildError::template(program.file(), 0, "missing from the template tree"))
        }
    }

    fn render(&self, program: Program, context: tera::TeraResult<tera::Context>) -> Result<Rendered, BuildError> {
        self.source(program)?;
        let context = context.map_err(|e| BuildError::template(program.template(), 0, tera_text(&e)))?;
        let lines = self.0.sources.get(&program).map(Vec::len).unwrap_or_default();
        let mut rendered = Vec::with_capacity(lines);
        for number in 1..=lines {
            let line = self
                .0
                .tera
                .render(&line_name(program, number), &context)
                .map_err(|e| BuildError::template(program.template(), number as u32, tera_text(&e)))?;
            rendered.push(line);
        }
        render::parse(program, &rendered)
    }
}

/// Each line is a template of its own: an error has its line for certain, and a line of the header is a line of the template.
fn parse_template(tera: &mut Tera, program: Program, files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<String>, BuildError> {
    let file = program.template();
    let content = files.get(file).ok_or_else(|| BuildError::template(file, 0, "missing from the template tree"))?;
    let text = std::str::from_utf8(content).map_err(|_| BuildError::template(file, 0, "not UTF-8"))?;
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (index, line) in lines.iter().enumerate() {
        let number = index + 1;
        if line.contains("{%") {
            return Err(BuildError::template(
                file,
                number as u32,
                "a template holds no statements (`{%`): decide in C with `if (CONFIG_…)`",
            ));
        }
        tera.add_raw_template(&line_name(program, number), line).map_err(|e| BuildError::template(file, number as u32, tera_text(&e)))?;
    }
    Ok(lines)
}

fn line_name(program: Program, number: usize) -> String {
    format!("{}:{number}", program.template())
}

fn tera_text(error: &tera::Error) -> String {
    use std::error::Error;
    let mut text = match error.kind() {
        tera::ErrorKind::SyntaxError(report) | tera::ErrorKind::RenderingError(report) => report.message().to_owned(),
        _ => error.to_string(),
    };
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn read_tree(dir: &Path, prefix: &str, depth: usize, files: &mut BTreeMap<String, Vec<u8>>) -> Result<(), BuildError> {
    if depth > MAX_DEPTH {
        return Err(BuildError::template(prefix, 0, format!("directories are nested more than {MAX_DEPTH} deep")));
    }
    for entry in fs::read_dir(dir).map_err(BuildError::io(dir))? {
        let path = entry.map_err(BuildError::io(dir))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
            return Err(BuildError::template(path.display().to_string(), 0, "file name is not UTF-8"));
        };
        if is_leftover(name) || (prefix.is_empty() && name == GENERATED) {
            continue;
        }
        let relative = format!("{prefix}{name}");
        // Links are followed: a tree mounted from a Kubernetes ConfigMap consists of them.
        let meta = fs::metadata(&path).map_err(BuildError::io(&path))?;
        if meta.is_dir() {
            read_tree(&path, &format!("{relative}/"), depth + 1, files)?;
            continue;
        }
        if !meta.is_file() {
            continue;
        }
        if Program::ALL.iter().any(|p| p.header() == name) {
            let hint = "this name belongs to the rendered header and would hide it; edit its .tera instead";
            return Err(BuildError::template(relative, 0, hint));
        }
        if meta.len() > MAX_FILE || files.len() >= MAX_FILES {
            return Err(BuildError::template(relative, 0, format!("a tree has at most {MAX_FILES} files of {MAX_FILE} bytes")));
        }
        files.insert(relative, fs::read(&path).map_err(BuildError::io(&path))?);
    }
    Ok(())
}

/// Files that tools leave behind, and prose: they change no program.
fn is_leftover(name: &str) -> bool {
    const ENDS: &[&str] = &["~", ".swp", ".swo", ".swx", ".bak", ".tmp", ".orig", ".rej", ".o", ".md"];
    name.starts_with('.') || name.starts_with('#') || name == "4913" || ENDS.iter().any(|end| name.ends_with(end))
}
