// SPDX-License-Identifier: Apache-2.0
//! Rules about the code that no compiler knows: which crate may need which, what a file may hold and what not.
//! Each rule brings samples of what it refuses and what it lets pass; a test feeds them to it.

pub mod code;
pub mod edges;
pub mod rules;

use std::fmt;
use std::path::{Path, PathBuf};

/// A place where a rule is broken.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub rule: &'static str,
    pub path: String,
    /// From 1; 0 for the file as a whole.
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {} [{}]", self.path, self.what, self.rule),
            line => write!(f, "{}:{line}: {} [{}]", self.path, self.what, self.rule),
        }
    }
}

/// The project's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the project's directory")
}

/// Every file of the project, by path below its root: what git tracks or would track, or in a tree without git all but what
/// was built.
pub fn files(root: &Path) -> Vec<String> {
    #[expect(clippy::disallowed_methods, reason = "a test asks git")]
    let listed = std::process::Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .ok()
        .filter(|out| out.status.success() && !out.stdout.is_empty());
    let mut files: Vec<String> = match listed {
        Some(out) => String::from_utf8_lossy(&out.stdout).split_terminator('\0').map(str::to_owned).collect(),
        None => walk(root),
    };
    // Deleted and not yet staged; generated and vendored text is not ours to shape.
    files.retain(|f| root.join(f).is_file() && !f.split('/').any(|part| matches!(part, "vendor" | "node_modules")));
    files.sort();
    files.dedup();
    files
}

fn walk(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("list a directory").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("type of a file"));
            if kind.is_dir() && !matches!(entry.file_name().to_str(), Some("target" | ".git")) {
                dirs.push(path);
            } else if kind.is_file() {
                files.push(path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned());
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_without_git_is_walked() {
        let walked = walk(&root());
        for file in files(&root()) {
            assert!(walked.contains(&file), "{file}");
        }
    }
}
