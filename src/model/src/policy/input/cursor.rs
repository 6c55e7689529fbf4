// SPDX-License-Identifier: Apache-2.0
//! Walking the tree: a node with its path, and the list of mistakes. Reading gives `None` once a mistake was noted.

use super::tree::{Node, Position, Value};
use super::{InputError, Options};
use std::cell::RefCell;
use std::sync::Arc;

pub const MAX_ERRORS: usize = 100;

/// Collects mistakes.
pub struct Sink {
    pub file: Arc<str>,
    pub options: Options,
    errors: RefCell<Vec<InputError>>,
}

impl Sink {
    pub fn new(file: &str, options: Options) -> Self {
        Self { file: file.into(), options, errors: RefCell::default() }
    }

    pub fn push(&self, at: Position, path: String, message: String) {
        let mut errors = self.errors.borrow_mut();
        if errors.len() < MAX_ERRORS {
            errors.push(InputError { file: self.file.to_string(), line: at.line, column: at.column, path, message });
        }
    }

    pub fn into_errors(self) -> Vec<InputError> {
        self.errors.into_inner()
    }
}

/// A node and the path to it.
#[derive(Clone)]
pub struct Cursor<'a> {
    pub sink: &'a Sink,
    node: &'a Node,
    path: String,
}

impl<'a> Cursor<'a> {
    pub fn document(sink: &'a Sink, node: &'a Node) -> Self {
        Self { sink, node, path: String::new() }
    }

    pub fn at(&self) -> Position {
        self.node.at
    }

    /// Notes a mistake at this node.
    pub fn error(&self, message: impl Into<String>) {
        self.sink.push(self.node.at, self.path.clone(), message.into());
    }

    fn expected(&self, what: &str) {
        self.error(format!("expected {what}, found {}", self.found()));
    }

    fn found(&self) -> String {
        match &self.node.value {
            Value::Null => "nothing (null)".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
            Value::Scalar { text, plain: true } if is_bool(text) => format!("the truth value {text}"),
            Value::Scalar { text, plain: true } if is_number(text) => format!("the number {text}"),
            Value::Scalar { text, .. } => format!("{:?}", shorten(text)),
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }
    pub fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    pub fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// The items of a list.
    pub fn list(&self, what: &str) -> Option<Vec<Cursor<'a>>> {
        let Value::List(items) = &self.node.value else {
            self.expected(&format!("a list of {what}"));
            return None;
        };
        let item = |(n, node): (usize, &'a std::rc::Rc<Node>)| Self { sink: self.sink, node, path: format!("{}[{n}]", self.path) };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// The fields of a mapping.
    pub fn map(&self, what: &str) -> Option<Fields<'a>> {
        let Value::Map(fields) = &self.node.value else {
            self.expected(&format!("{what} (a mapping)"));
            return None;
        };
        let dot = if self.path.is_empty() { "" } else { "." };
        let field = |(key, node): &'a (super::tree::Key, std::rc::Rc<Node>)| Field {
            name: &key.text,
            at: key.at,
            value: Self { sink: self.sink, node, path: format!("{}{dot}{}", self.path, key.text) },
        };
        Some(Fields { owner: self.clone(), fields: fields.iter().map(field).collect() })
    }

    /// Text. Numbers and truth values must be quoted.
    pub fn text(&self, what: &str) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, plain } if !(*plain && (is_number(text) || is_bool(text))) => Some(text),
            Value::Scalar { text, .. } => {
                self.error(format!("expected {what} (text), found {}: write \"{text}\"", self.found()));
                None
            }
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.expected(what);
                None
            }
        }
    }

    /// A truth value, not quoted.
    pub fn truth(&self) -> Option<bool> {
        match &self.node.value {
            Value::Scalar { text, plain: true } if is_bool(text) => Some(text.eq_ignore_ascii_case("true")),
            _ => {
                self.expected("true or false");
                None
            }
        }
    }

    /// A number of a type, quoted or not.
    pub fn number<T: std::str::FromStr>(&self, what: &str) -> Option<T> {
        let text = self.scalar(what)?;
        let number = text.parse().ok();
        if number.is_none() {
            self.error(format!("expected {what}, found {:?}", shorten(text)));
        }
        number
    }

    /// A scalar's text, quoted or not.
    pub fn scalar(&self, what: &str) -> Option<&'a str> {
        if let Value::Scalar { text, .. } = &self.node.value {
            return Some(text);
        }
        self.expected(what);
        None
    }
}

/// One field of a mapping.
pub struct Field<'a> {
    pub name: &'a str,
    pub at: Position,
    pub value: Cursor<'a>,
}

impl Field<'_> {
    /// Notes a mistake at the field's name.
    pub fn error(&self, message: impl Into<String>) {
        self.value.sink.push(self.at, self.value.path.clone(), message.into());
    }
}

/// The fields of a mapping.
pub struct Fields<'a> {
    owner: Cursor<'a>,
    pub fields: Vec<Field<'a>>,
}

impl<'a> Fields<'a> {
    pub fn get(&self, name: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|f| f.name == name)
    }

    /// A field that is there and not null.
    pub fn value(&self, name: &str) -> Option<&Cursor<'a>> {
        self.get(name).map(|f| &f.value).filter(|v| !v.is_null())
    }

    /// A field that must be there.
    pub fn required(&self, name: &str, what: &str) -> Option<&Cursor<'a>> {
        if let Some(value) = self.value(name) {
            return Some(value);
        }
        match self.get(name) {
            Some(field) => field.error(format!("is mandatory: expected {what}, found nothing (null)")),
            None => {
                let dot = if self.owner.path.is_empty() { "" } else { "." };
                let path = format!("{}{dot}{name}", self.owner.path);
                self.owner.sink.push(self.owner.at(), path, format!("is mandatory: expected {what}"));
            }
        }
        None
    }

    /// Refuses every field that is not `known`: those of `later` as not supported, others as unknown.
    pub fn allow(&self, known: &[&str], later: &[&str]) -> Option<()> {
        let mut good = Some(());
        for field in self.fields.iter().filter(|f| !known.contains(&f.name)) {
            good = None;
            if later.contains(&field.name) {
                field.error("is not supported by this version");
            } else if let Some(meant) = known.iter().chain(later).find(|k| k.eq_ignore_ascii_case(field.name)) {
                field.error(format!("unknown field `{}` (did you mean `{meant}`?)", field.name));
            } else {
                field.error(format!("unknown field `{}` (expected {})", field.name, known.join(", ")));
            }
        }
        good
    }
}

fn is_bool(text: &str) -> bool {
    ["true", "True", "TRUE", "false", "False", "FALSE"].contains(&text)
}

/// Whether plain text is a number in YAML 1.2 (core schema).
fn is_number(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    let radix = |prefix, radix| digits.strip_prefix(prefix).is_some_and(|d: &str| !d.is_empty() && d.chars().all(|c| c.is_digit(radix)));
    radix("0x", 16)
        || radix("0o", 8)
        || (digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && digits.parse::<f64>().is_ok())
        || [".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN"].contains(&digits)
}

/// Reads every item, so that every mistake is noted; `None` if one had any.
pub fn all<'a, T>(items: Vec<Cursor<'a>>, mut read: impl FnMut(&Cursor<'a>) -> Option<T>) -> Option<Vec<T>> {
    let count = items.len();
    let good: Vec<T> = items.iter().filter_map(&mut read).collect();
    (good.len() == count).then_some(good)
}

/// A list that narrows what a rule allows. Null is refused: it would read as "absent", which allows more.
pub fn narrowing_list<'a>(fields: &Fields<'a>, name: &str, what: &str) -> Option<Option<Vec<Cursor<'a>>>> {
    let Some(field) = fields.get(name) else { return Some(None) };
    if field.value.is_null() {
        field.error(format!("expected a list of {what}, found nothing (null): leave the field out or write a list"));
        return None;
    }
    field.value.list(what).map(Some)
}

pub fn optional<'a, T>(
    list: Option<Option<Vec<Cursor<'a>>>>,
    read: impl FnOnce(Vec<Cursor<'a>>) -> Option<Vec<T>>,
) -> Option<Option<Vec<T>>> {
    match list? {
        Some(items) => read(items).map(Some),
        None => Some(None),
    }
}

/// One of a set of names.
pub fn one_of<T: Copy>(at: &Cursor<'_>, what: &str, all: &[T], name: impl Fn(T) -> &'static str, any_case: bool) -> Option<T> {
    let names: Vec<&str> = all.iter().map(|t| name(*t)).collect();
    let text = at.text(what)?;
    let found = names.iter().position(|n| *n == text || (any_case && n.eq_ignore_ascii_case(text)));
    if found.is_none() {
        at.error(format!("unknown {what} `{}` (expected {})", shorten(text), names.join(", ")));
    }
    found.map(|n| all[n])
}

/// Text for a message of one line.
pub fn shorten(text: &str) -> String {
    if text.chars().count() <= 60 { text.to_owned() } else { text.chars().take(57).collect::<String>() + "..." }
}
