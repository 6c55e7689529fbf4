// SPDX-License-Identifier: Apache-2.0
//! Reads policy documents: YAML or JSON, several documents in one text, policy objects or plain lists of rules.
//!
//! All or nothing: a text with one mistake gives no rules. What this version cannot enforce is refused, never ignored.

mod cursor;
mod l7;
mod network_policy;
mod object;
mod ports;
mod rules;
mod sections;
mod selectors;
mod tree;

use super::rule::{Origin, Rule};
use cursor::{Cursor, Sink};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// A mistake in a policy document.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct InputError {
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
    /// Field, such as `spec.ingress[0].toPorts`; empty for the document as a whole.
    pub path: String,
    /// One line: what is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for InputError {}

/// What a reader of documents can do with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Rules about what is said on a port are taken. Without a proxy that enforces them they are refused: to leave them
    /// out would allow more than what is written.
    pub l7: bool,
}

impl Options {
    /// Everything that the language has.
    pub const ALL: Self = Self { l7: true };
}

/// Reads every rule of a text, in order. Empty documents are skipped; a text without any gives no rules.
///
/// # Errors
/// Every mistake found, in order of documents, at most 100; never an empty list.
pub fn parse(source_name: &str, text: &str) -> Result<Vec<Rule>, Vec<InputError>> {
    parse_with(source_name, text, Options::default())
}

/// As [`parse`], with options.
///
/// # Errors
/// As [`parse`].
pub fn parse_with(source_name: &str, text: &str, options: Options) -> Result<Vec<Rule>, Vec<InputError>> {
    parse_all([(source_name, text)], options)
}

/// Reads several texts as one: an object stands in one of them only.
///
/// # Errors
/// As [`parse`], of all texts.
pub fn parse_all<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>, options: Options) -> Result<Vec<Rule>, Vec<InputError>> {
    let (mut rules, mut errors, mut objects) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (name, text) in texts {
        let sink = Sink::new(name, options);
        let mut found: Vec<Rule> = Vec::new();
        match tree::read(text) {
            Ok(documents) => documents.iter().for_each(|d| found.extend(object::document(&Cursor::document(&sink, d), &mut objects))),
            Err(e) => sink.push(e.at, e.path, e.message),
        }
        for (index, rule) in found.iter_mut().enumerate() {
            let origin = Arc::make_mut(&mut rule.origin);
            *origin = Origin { index: u32::try_from(index).unwrap_or(u32::MAX), ..origin.clone() };
        }
        rules.append(&mut found);
        errors.extend(sink.into_errors());
    }
    errors.truncate(cursor::MAX_ERRORS);
    if errors.is_empty() { Ok(rules) } else { Err(errors) }
}
