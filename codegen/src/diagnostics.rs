// SPDX-License-Identifier: Apache-2.0
//! Clang's complaints, in the terms of the template tree.

use crate::key::Program;
use crate::templates::{RENDERED, Templates};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Explains the diagnostic before it.
    Note,
    /// Would not stop a build.
    Warning,
    /// Stops the build.
    Error,
}

/// One complaint and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// File relative to the template tree; a line of the rendered header is given as the line of its template.
    pub file: String,
    /// Line from 1; 0 when clang named no place.
    pub line: u32,
    /// Column from 1; 0 when clang named none.
    pub column: u32,
    /// How bad it is.
    pub severity: Severity,
    /// Clang's words.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if self.column > 0 {
                write!(f, ":{}", self.column)?;
            }
        }
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, ": {severity}: {}", self.message)
    }
}

/// Maps places of a build's copy of the tree to the tree.
pub(crate) struct Mapper<'a> {
    pub templates: &'a Templates,
    pub program: Program,
}

impl Mapper<'_> {
    /// `file` is relative to the build's copy.
    pub(crate) fn map(&self, file: &str, line: u32, column: u32, severity: Severity, message: &str) -> Diagnostic {
        let message = message.trim().to_owned();
        let mut file = file;
        while let Some(rest) = file.strip_prefix("./") {
            file = rest;
        }
        // `lib/../include/x.h` and the like: an include relative to its includer.
        let mut parts: Vec<&str> = Vec::new();
        for part in file.split('/') {
            match part {
                "." => {}
                ".." if parts.last().is_some_and(|p| *p != "..") => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let file = parts.join("/");
        if file.is_empty() || file == "<unknown>" {
            return Diagnostic { file: self.program.file().to_owned(), line: 0, column: 0, severity, message };
        }
        if file.strip_prefix(RENDERED).is_some_and(|rest| rest.strip_prefix('/') == Some(self.program.header())) {
            return Diagnostic {
                file: self.program.template().to_owned(),
                line,
                column: self.template_column(line, column),
                severity,
                message,
            };
        }
        Diagnostic { file, line, column, severity, message }
    }

    /// Columns agree up to the first expression of the line; whatever lies behind is put down to that expression.
    fn template_column(&self, line: u32, column: u32) -> u32 {
        let expression = self.templates.template_line(self.program, line).and_then(|text| text.find("{{"));
        match expression {
            Some(at) if column > at as u32 => at as u32 + 1,
            _ => column,
        }
    }

    /// Reads what clang wrote to its error output.
    pub(crate) fn parse(&self, raw: &str) -> Vec<Diagnostic> {
        raw.lines().filter_map(|line| self.parse_line(line)).collect()
    }

    fn parse_line(&self, text: &str) -> Option<Diagnostic> {
        const MARKS: [(&str, Severity); 4] = [
            ("fatal error: ", Severity::Error),
            ("error: ", Severity::Error),
            ("warning: ", Severity::Warning),
            ("note: ", Severity::Note),
        ];
        let (at, mark, severity) =
            MARKS.iter().filter_map(|(mark, severity)| text.find(mark).map(|at| (at, *mark, *severity))).min_by_key(|(at, _, _)| *at)?;
        let message = &text[at + mark.len()..];
        let place = text[..at].trim_end();
        if place.is_empty() || place == "clang:" {
            return Some(self.map("", 0, 0, severity, message));
        }
        // `file:line:column:`; source excerpts, which may contain anything, have no such beginning.
        let mut parts = place.strip_suffix(':')?.rsplitn(3, ':');
        let column = parts.next()?.parse().ok()?;
        let line = parts.next()?.parse().ok()?;
        let file = parts.next()?;
        (!file.contains(['|', '"'])).then(|| self.map(file, line, column, severity, message))
    }
}
