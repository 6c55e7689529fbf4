// SPDX-License-Identifier: Apache-2.0
//! The rendered header: which lines it may hold, and the values in it as bytes.

use crate::error::BuildError;
use crate::key::Program;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A rendered header and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The program that includes it.
    pub program: Program,
    /// The text, for the compiler and for people.
    pub header: String,
    /// Every `FEATURE`.
    pub features: BTreeMap<String, bool>,
    /// Every `VALUE`, in the order of the template.
    pub values: Vec<Value>,
}

impl Rendered {
    /// The value called `name`.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.values.iter().find(|v| v.name == name)
    }
}

/// One `VALUE` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Its name in C.
    pub name: String,
    /// Its type.
    pub kind: ValueKind,
    /// Its bytes as they stand in this host's memory.
    pub bytes: Vec<u8>,
    /// The literal as rendered.
    pub text: String,
}

/// Type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ValueKind {
    /// 16-bit number.
    U16,
    /// 32-bit number.
    U32,
    /// 32 bits in network order.
    Be32,
    /// MAC address.
    Mac,
    /// IPv6 address.
    In6,
}

impl ValueKind {
    const ALL: [ValueKind; 5] = [ValueKind::U16, ValueKind::U32, ValueKind::Be32, ValueKind::Mac, ValueKind::In6];

    /// Its name in a template.
    pub fn as_str(self) -> &'static str {
        match self {
            ValueKind::U16 => "u16",
            ValueKind::U32 => "u32",
            ValueKind::Be32 => "be32",
            ValueKind::Mac => "mac",
            ValueKind::In6 => "in6",
        }
    }

    /// Size in bytes.
    pub fn size(self) -> usize {
        match self {
            ValueKind::U16 => 2,
            ValueKind::U32 | ValueKind::Be32 => 4,
            ValueKind::Mac => 6,
            ValueKind::In6 => 16,
        }
    }

    fn expected(self) -> &'static str {
        match self {
            ValueKind::U16 => "a number from 0 to 65535",
            ValueKind::U32 => "a number from 0 to 4294967295",
            ValueKind::Be32 => "a number from 0 to 4294967295 (filter `be32` makes one of an address)",
            ValueKind::Mac => "`{ … }` with 6 bytes (filter `mac` makes it of an address)",
            ValueKind::In6 => "`{ … }` with 16 bytes (filter `in6` makes it of an address)",
        }
    }

    fn bytes(self, text: &str) -> Option<Vec<u8>> {
        match self {
            ValueKind::U16 => u16::try_from(number(text)?).ok().map(|n| n.to_ne_bytes().to_vec()),
            ValueKind::U32 | ValueKind::Be32 => u32::try_from(number(text)?).ok().map(|n| n.to_ne_bytes().to_vec()),
            ValueKind::Mac | ValueKind::In6 => byte_list(text, self.size()),
        }
    }
}

impl fmt::Display for ValueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads rendered lines; the first that is none of the four kinds is an error at that line of the template.
pub(crate) fn parse(program: Program, lines: &[String]) -> Result<Rendered, BuildError> {
    let file = program.template();
    let mut header = String::new();
    let mut features = BTreeMap::new();
    let mut values = Vec::new();
    let mut names = BTreeSet::new();
    let mut comment_from = None;
    for (index, line) in lines.iter().enumerate() {
        let number = index as u32 + 1;
        let wrong = |message: String| BuildError::template(file, number, message);
        // Both would move the lines that follow away from their lines in the template.
        if line.contains(['\n', '\r']) || line.ends_with('\\') {
            return Err(wrong("a line may neither contain a line break nor be continued on the next".to_owned()));
        }
        header.push_str(line);
        header.push('\n');
        let was_open = comment_from.is_some();
        let mut open = was_open;
        let code = strip_comments(line, &mut open);
        comment_from = if !open {
            None
        } else if was_open {
            comment_from
        } else {
            Some(number)
        };
        let code = code.trim();
        if code.is_empty() {
            continue;
        }
        let name = if let Some(arguments) = call(code, "FEATURE") {
            let (name, on) = feature(arguments).map_err(wrong)?;
            features.insert(name.clone(), on);
            name
        } else if let Some(arguments) = call(code, "VALUE") {
            let value = value(arguments).map_err(wrong)?;
            values.push(value.clone());
            value.name
        } else {
            return Err(wrong(format!("expected a comment, FEATURE(NAME, 0|1) or VALUE(type, NAME, literal), found `{code}`")));
        };
        if !names.insert(name.clone()) {
            return Err(wrong(format!("{name} is defined twice")));
        }
    }
    if let Some(number) = comment_from {
        return Err(BuildError::template(file, number, "this comment is never closed"));
    }
    Ok(Rendered { program, header, features, values })
}

/// The text between the parentheses of `NAME( … )`, if that is all there is.
fn call<'a>(code: &'a str, name: &str) -> Option<&'a str> {
    code.strip_prefix(name)?.trim_start().strip_prefix('(')?.strip_suffix(')')
}

fn feature(arguments: &str) -> Result<(String, bool), String> {
    let (name, text) = arguments.split_once(',').ok_or("expected FEATURE(NAME, 0|1)")?;
    let name = identifier(name)?;
    match text.trim() {
        "0" => Ok((name, false)),
        "1" => Ok((name, true)),
        other => Err(format!("{name}: expected 0 or 1, found `{other}`")),
    }
}

fn value(arguments: &str) -> Result<Value, String> {
    let mut parts = arguments.splitn(3, ',');
    let (Some(kind), Some(name), Some(text)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("expected VALUE(type, NAME, literal)".to_owned());
    };
    let name = identifier(name)?;
    let kind = ValueKind::ALL.into_iter().find(|k| k.as_str() == kind.trim()).ok_or_else(|| {
        let known = ValueKind::ALL.map(ValueKind::as_str).join(", ");
        format!("{name}: unknown type `{}`, expected one of {known}", kind.trim())
    })?;
    let text = text.trim();
    let bytes = kind.bytes(text).ok_or_else(|| format!("{name}: expected {}, found `{text}`", kind.expected()))?;
    Ok(Value { name, kind, bytes, text: text.to_owned() })
}

fn identifier(text: &str) -> Result<String, String> {
    let text = text.trim();
    let starts = text.starts_with(|c: char| c.is_ascii_uppercase());
    if starts && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no name: capital letters, digits and `_` make one"))
    }
}

/// Decimal or hexadecimal, as both languages read it; a leading zero would make it octal in C only.
fn number(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let fits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
        return fits.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    }
    let fits = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    fits.then(|| text.parse().ok()).flatten()
}

fn byte_list(text: &str, len: usize) -> Option<Vec<u8>> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let bytes = inner.split(',').map(|b| u8::try_from(number(b.trim())?).ok()).collect::<Option<Vec<u8>>>()?;
    (bytes.len() == len).then_some(bytes)
}

/// The line without comments; `open` says whether a block comment runs in from the line before and on to the next.
fn strip_comments(line: &str, open: &mut bool) -> String {
    let mut out = String::new();
    let mut rest = line;
    loop {
        if *open {
            let Some((_, after)) = rest.split_once("*/") else { return out };
            *open = false;
            out.push(' ');
            rest = after;
            continue;
        }
        let Some(at) = rest.find("/*").into_iter().chain(rest.find("//")).min() else {
            out.push_str(rest);
            return out;
        };
        out.push_str(&rest[..at]);
        if rest[at..].starts_with("//") {
            return out;
        }
        *open = true;
        rest = &rest[at + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Result<Rendered, String> {
        parse(Program::Container, &text.lines().map(str::to_owned).collect::<Vec<_>>()).map_err(|e| e.to_string())
    }

    #[test]
    fn every_kind_of_line_is_read() {
        let r =
            lines("/* one\n   two */ FEATURE(A, 1) // tail\n\nVALUE(mac, M, { 1, 0x2, 3, 4, 5, 255 })\nVALUE ( u16 , P , 0x1F )").unwrap();
        assert_eq!(r.features, BTreeMap::from([("A".to_owned(), true)]));
        assert_eq!(r.value("M").unwrap().bytes, [1, 2, 3, 4, 5, 255]);
        assert_eq!(r.value("P").unwrap().bytes, 31u16.to_ne_bytes());
        assert_eq!(r.value("P").unwrap().text, "0x1F");
    }

    #[test]
    fn a_wrong_line_is_named() {
        let place = "container_config.h.tera";
        for (text, expected) in [
            ("\nint x;", "2: expected a comment, FEATURE(NAME, 0|1) or VALUE(type, NAME, literal), found `int x;`"),
            ("FEATURE(A, 2)", "1: A: expected 0 or 1, found `2`"),
            ("FEATURE(A, 1);", "1: expected a comment, FEATURE(NAME, 0|1) or VALUE(type, NAME, literal), found `FEATURE(A, 1);`"),
            ("FEATURE(a, 1)", "1: `a` is no name: capital letters, digits and `_` make one"),
            ("FEATURE(A, 1)\nVALUE(u16, A, 1)", "2: A is defined twice"),
            ("VALUE(u16, A, 65536)", "1: A: expected a number from 0 to 65535, found `65536`"),
            ("VALUE(u16, A, -1)", "1: A: expected a number from 0 to 65535, found `-1`"),
            ("VALUE(u16, A, )", "1: A: expected a number from 0 to 65535, found ``"),
            ("VALUE(u32, A, 010)", "1: A: expected a number from 0 to 4294967295, found `010`"),
            ("VALUE(u32, A, 1 + 1)", "1: A: expected a number from 0 to 4294967295, found `1 + 1`"),
            ("VALUE(u8, A, 1)", "1: A: unknown type `u8`, expected one of u16, u32, be32, mac, in6"),
            ("VALUE(mac, A, { 1, 2 })", "1: A: expected `{ … }` with 6 bytes (filter `mac` makes it of an address), found `{ 1, 2 }`"),
            ("\n/* open\nFEATURE(A, 1)", "2: this comment is never closed"),
            ("FEATURE(A, 1) \\", "1: a line may neither contain a line break nor be continued on the next"),
        ] {
            assert_eq!(lines(text).unwrap_err(), format!("{place}:{expected}"), "for {text:?}");
        }
    }
}
