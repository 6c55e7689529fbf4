// SPDX-License-Identifier: Apache-2.0
//! A text as a tree of nodes that know where they stand, with bounds on size, depth and what aliases unfold to.

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, Span, Tag};
use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

/// Longest text, bytes.
const MAX_TEXT: usize = 16 << 20;
/// Most nodes of a text, each alias counted with everything that it stands for.
const MAX_NODES: u64 = 1_000_000;
/// Deepest nesting, which also bounds recursion.
const MAX_DEPTH: usize = 64;

/// A place in the text; both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

#[derive(Debug)]
pub struct Node {
    pub at: Position,
    pub value: Value,
    /// Nodes below and including this one, aliases unfolded.
    weight: u64,
}

#[derive(Debug)]
pub struct Key {
    pub at: Position,
    pub text: String,
}

#[derive(Debug)]
pub enum Value {
    Null,
    /// `plain`: not quoted, so it may be a number or a truth value.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Rc<Node>>),
    Map(Vec<(Key, Rc<Node>)>),
}

/// The text is not YAML, or more than we read.
#[derive(Debug)]
pub struct ReadError {
    pub at: Position,
    /// Field, as far as it was known.
    pub path: String,
    pub message: String,
}

fn position(marker: &granit_parser::Marker) -> Position {
    let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: clamp(marker.line()), column: clamp(marker.col() + 1) }
}

fn fail<T>(at: Position, message: impl Into<String>) -> Result<T, ReadError> {
    Err(ReadError { at, path: String::new(), message: message.into() })
}

/// An open list or mapping.
struct Frame {
    at: Position,
    anchor: usize,
    value: Value,
    /// A key that waits for its value.
    key: Option<Key>,
    /// Lines of the fields so far.
    names: HashMap<String, u32>,
    weight: u64,
}

#[derive(Default)]
struct Builder {
    frames: Vec<Frame>,
    anchors: HashMap<usize, Rc<Node>>,
    documents: Vec<Rc<Node>>,
    /// Nodes so far, aliases unfolded.
    total: u64,
}

/// All documents of a text.
pub fn read(text: &str) -> Result<Vec<Rc<Node>>, ReadError> {
    let start = Position { line: 1, column: 1 };
    if text.len() > MAX_TEXT {
        return fail(start, format!("the text has {} bytes, more than {MAX_TEXT}", text.len()));
    }
    let mut builder = Builder::default();
    let options = granit_parser::options! { emit_comments: false };
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => builder.take(event, &span).map_err(|e| ReadError { path: builder.path(), ..e })?,
            Err(e) => return fail(position(e.marker()), format!("not valid YAML: {}", e.info().replace('\n', " "))),
        }
    }
    Ok(builder.documents)
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), ReadError> {
        let at = position(&span.start);
        match event {
            Event::DocumentStart(..) => self.anchors.clear(),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = check_tag(tag, at)? && style == ScalarStyle::Plain;
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null && !self.wants_key() { Value::Null } else { Value::Scalar { text: text.into_owned(), plain } };
                self.count(1, at)?;
                self.place(Rc::new(Node { at, value, weight: 1 }), anchor)?;
            }
            Event::SequenceStart(_, anchor, tag) => self.open(at, anchor, tag, Value::List(Vec::new()))?,
            Event::MappingStart(_, anchor, tag) => self.open(at, anchor, tag, Value::Map(Vec::new()))?,
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.frames.pop() else { return fail(at, "not valid YAML: end without a start") };
                self.place(Rc::new(Node { at: frame.at, value: frame.value, weight: frame.weight }), frame.anchor)?;
            }
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else { return fail(at, "an alias stands inside of what it names") };
                self.count(node.weight, at)?;
                self.place(node, 0)?;
            }
            Event::UnresolvedAlias(name) => return fail(at, format!("unknown alias `{name}`")),
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Anchor(..) | Event::Comment(..) => {}
            _ => return fail(at, "this part of YAML is not supported"),
        }
        Ok(())
    }

    fn open(&mut self, at: Position, anchor: usize, tag: Option<Cow<'_, Tag>>, value: Value) -> Result<(), ReadError> {
        check_tag(tag, at)?;
        if self.wants_key() {
            return fail(at, "a field name must be text");
        }
        if self.frames.len() >= MAX_DEPTH {
            return fail(at, format!("nested deeper than {MAX_DEPTH} levels"));
        }
        self.count(1, at)?;
        self.frames.push(Frame { at, anchor, value, key: None, names: HashMap::new(), weight: 1 });
        Ok(())
    }

    /// Path of the value that is being read.
    fn path(&self) -> String {
        let mut path = String::new();
        for frame in &self.frames {
            match (&frame.value, &frame.key) {
                (Value::List(items), _) => path += &format!("[{}]", items.len()),
                (_, Some(key)) if path.is_empty() => path += &key.text,
                (_, Some(key)) => path += &format!(".{}", key.text),
                (_, None) => {}
            }
        }
        path
    }

    fn wants_key(&self) -> bool {
        self.frames.last().is_some_and(|f| f.key.is_none() && matches!(f.value, Value::Map(_)))
    }

    fn count(&mut self, nodes: u64, at: Position) -> Result<(), ReadError> {
        self.total = self.total.saturating_add(nodes);
        if self.total > MAX_NODES { fail(at, format!("more than {MAX_NODES} values, aliases unfolded")) } else { Ok(()) }
    }

    fn place(&mut self, node: Rc<Node>, anchor: usize) -> Result<(), ReadError> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(frame) = self.frames.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        frame.weight = frame.weight.saturating_add(node.weight);
        match (&mut frame.value, frame.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(fields), Some(key)) => fields.push((key, node)),
            (Value::Map(_), None) => {
                let Value::Scalar { text, plain } = &node.value else { return fail(node.at, "a field name must be text") };
                if *plain && text == "<<" {
                    return fail(node.at, "merge keys (`<<`) are not supported");
                }
                let first = frame.names.insert(text.clone(), node.at.line);
                frame.key = Some(Key { at: node.at, text: text.clone() });
                if let Some(first) = first {
                    return fail(node.at, format!("field `{text}` is given twice (first in line {first})"));
                }
            }
            (Value::Null | Value::Scalar { .. }, _) => return fail(node.at, "not valid YAML: a value inside of a scalar"),
        }
        Ok(())
    }
}

/// Whether a scalar is still plain under its tag. Only the tags of plain YAML are known.
fn check_tag(tag: Option<Cow<'_, Tag>>, at: Position) -> Result<bool, ReadError> {
    match tag {
        None => Ok(true),
        Some(tag) if tag.is_yaml_core_schema() => Ok(!tag.is_yaml_core_schema_tag("str")),
        Some(tag) => fail(at, format!("tag `{}` is not supported", tag.original())),
    }
}
