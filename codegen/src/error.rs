// SPDX-License-Identifier: Apache-2.0
//! What can go wrong between a template and an object.

use crate::diagnostics::{Diagnostic, Severity};
use crate::key::Program;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why there is no object. The text names the file in the template tree's own terms.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A template line, or the tree as a whole (line 0), is not what it must be.
    #[error("{}: {message}", place(file, *line))]
    Template {
        /// File, relative to the template tree.
        file: String,
        /// Line in that file from 1, or 0 when the file as a whole is meant.
        line: u32,
        /// What is wrong and what was expected.
        message: String,
    },
    /// Clang refused the program.
    #[error("{}", compile_text(*program, diagnostics, raw))]
    Compile {
        /// Program that was compiled.
        program: Program,
        /// Clang's complaints, places mapped back to the template tree.
        diagnostics: Vec<Diagnostic>,
        /// Clang's own words, places as clang saw them.
        raw: String,
    },
    /// Clang was stopped because it took too long.
    #[error("{program}: clang did not finish within {after:?} and was stopped")]
    Timeout {
        /// Program that was compiled.
        program: Program,
        /// Time that it was given.
        after: Duration,
    },
    /// Clang needed more memory than it may have.
    #[error("{program}: clang needs more memory than its limit of {} MiB", limit >> 20)]
    Memory {
        /// Program that was compiled.
        program: Program,
        /// The limit in bytes.
        limit: u64,
    },
    /// Clang ended without an object and without saying what is wrong with the program.
    #[error("{program}: clang failed ({status}): {}", first_line(raw))]
    Crashed {
        /// Program that was compiled.
        program: Program,
        /// How the process ended.
        status: String,
        /// What it wrote.
        raw: String,
        /// Whether a signal from outside ended it (out of memory on the node, an operator).
        killed: bool,
    },
    /// There is no clang to run.
    #[error("no compiler: {reason}; install clang-19 or name one in PILUS_CLANG (the default shapes come ready-made and need none)")]
    NoCompiler {
        /// What was looked for.
        reason: String,
    },
    /// A file could not be read or written, or a process not started.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The build that this request shared ended without a result (the runtime is shutting down).
    #[error("{program}: the build ended without a result")]
    Abandoned {
        /// Program that was compiled.
        program: Program,
    },
}

impl BuildError {
    /// Whether the same request may succeed later with nothing edited or installed.
    pub fn is_retryable(&self) -> bool {
        match self {
            BuildError::Timeout { .. } | BuildError::Io { .. } | BuildError::Abandoned { .. } => true,
            BuildError::Crashed { killed, .. } => *killed,
            BuildError::Template { .. } | BuildError::Compile { .. } | BuildError::Memory { .. } | BuildError::NoCompiler { .. } => false,
        }
    }

    /// Clang's complaints, if it was clang that complained.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match self {
            BuildError::Compile { diagnostics, .. } => diagnostics,
            _ => &[],
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> BuildError + use<> {
        let path = path.to_owned();
        move |source| BuildError::Io { path, source }
    }

    pub(crate) fn template(file: impl Into<String>, line: u32, message: impl Into<String>) -> BuildError {
        BuildError::Template { file: file.into(), line, message: message.into() }
    }
}

fn place(file: &str, line: u32) -> String {
    if line == 0 { file.to_owned() } else { format!("{file}:{line}") }
}

fn first_line(raw: &str) -> &str {
    raw.lines().find(|l| !l.trim().is_empty()).unwrap_or("it wrote nothing")
}

fn compile_text(program: Program, diagnostics: &[Diagnostic], raw: &str) -> String {
    let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
    match diagnostics.iter().find(|d| d.severity == Severity::Error) {
        Some(first) if errors > 1 => format!("{first} (and {} more)", errors - 1),
        Some(first) => first.to_string(),
        None => format!("{}: {}", program.file(), first_line(raw)),
    }
}
