// SPDX-License-Identifier: Apache-2.0
//! Reads policy documents: YAML or JSON, several documents in one text, policy objects or plain lists of rules.
//!
//! All or nothing: a text with one mistake gives no rules. What this version cannot enforce is refused, never ignored.

mod cursor;
mod object;
mod rules;
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

/// Reads every rule of a text, in order. Empty documents are skipped; a text without any gives no rules.
///
/// # Errors
/// Every mistake found, in order of documents, at most 100; never an empty list.
pub fn parse(source_name: &str, text: &str) -> Result<Vec<Rule>, Vec<InputError>> {
    let sink = Sink::new(source_name);
    let mut rules: Vec<Rule> = Vec::new();
    let mut objects = BTreeSet::new();
    match tree::read(text) {
        Ok(documents) => documents.iter().for_each(|d| rules.extend(object::document(&Cursor::document(&sink, d), &mut objects))),
        Err(e) => sink.push(e.at, e.path, e.message),
    }
    for (index, rule) in rules.iter_mut().enumerate() {
        let origin = Arc::make_mut(&mut rule.origin);
        *origin = Origin { index: u32::try_from(index).unwrap_or(u32::MAX), ..origin.clone() };
    }
    let errors = sink.into_errors();
    if errors.is_empty() { Ok(rules) } else { Err(errors) }
}
