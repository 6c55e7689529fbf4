// SPDX-License-Identifier: Apache-2.0
//! Labels: where they come from, how they are written, and sorted sets of them.

use crate::prefix::Prefix;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Who gave a label. Ordered by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// Only for matching: every source.
    Any,
    /// An address prefix of a node-local identity; the key is the prefix.
    Cidr,
    CiliumGenerated,
    /// The container runtime.
    Container,
    K8s,
    Mesos,
    /// Labels of a node.
    Node,
    /// Identities with a fixed number.
    Reserved,
    /// Written without a source.
    Unspec,
}

impl Source {
    pub const ALL: [Self; 9] =
        [Self::Any, Self::Cidr, Self::CiliumGenerated, Self::Container, Self::K8s, Self::Mesos, Self::Node, Self::Reserved, Self::Unspec];

    /// The prefix as written before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Cidr => "cidr",
            Self::CiliumGenerated => "cilium-generated",
            Self::Container => "container",
            Self::K8s => "k8s",
            Self::Mesos => "mesos",
            Self::Node => "node",
            Self::Reserved => "reserved",
            Self::Unspec => "unspec",
        }
    }

    fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Source {
    type Err = LabelError;
    fn from_str(text: &str) -> Result<Self, LabelError> {
        Self::find(text).ok_or_else(|| LabelError::UnknownSource(text.to_owned()))
    }
}

/// Why a text is no label.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LabelError {
    #[error("label `{0}` has no key")]
    NoKey(String),
    #[error("unknown label source `{0}` (expected k8s, container, reserved, any, unspec, mesos or cilium-generated)")]
    UnknownSource(String),
    #[error("label key {0:?} contains a control character, a space or `=`")]
    BadKey(String),
    #[error("label value {0:?} contains a control character")]
    BadValue(String),
    #[error("label `{source_}:{key}` is given twice with different values", source_ = .0, key = .1)]
    Conflict(Source, String),
}

/// Checks a key: not empty; no control character, white space or `=`, which would not survive printing and parsing.
pub(crate) fn check_key(key: &str) -> Result<(), LabelError> {
    if key.is_empty() {
        return Err(LabelError::NoKey(key.to_owned()));
    }
    if key.chars().any(|c| c.is_control() || c.is_whitespace() || c == '=') {
        return Err(LabelError::BadKey(key.to_owned()));
    }
    Ok(())
}

/// Checks a value: no control character. Empty is fine.
pub(crate) fn check_value(value: &str) -> Result<(), LabelError> {
    if value.chars().any(char::is_control) { Err(LabelError::BadValue(value.to_owned())) } else { Ok(()) }
}

/// `source:key=value`. Without a value the value is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    source: Source,
    key: String,
    value: String,
}

impl Label {
    /// # Errors
    /// `NoKey`, `BadKey` or `BadValue`.
    pub fn new(source: Source, key: impl Into<String>, value: impl Into<String>) -> Result<Self, LabelError> {
        let (key, value) = (key.into(), value.into());
        check_key(&key)?;
        check_value(&value)?;
        Ok(Self { source, key, value })
    }

    /// Of the node-local identity of a prefix.
    pub(crate) fn prefix(prefix: Prefix) -> Self {
        Self { source: Source::Cidr, key: prefix.to_string(), value: String::new() }
    }

    /// Of a fixed identity, whose names are known to be good keys.
    pub(crate) fn reserved(name: &'static str) -> Self {
        Self { source: Source::Reserved, key: name.to_owned(), value: String::new() }
    }

    pub fn source(&self) -> Source {
        self.source
    }
    pub fn key(&self) -> &str {
        &self.key
    }
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.key)?;
        if self.value.is_empty() { Ok(()) } else { write!(f, "={}", self.value) }
    }
}

impl FromStr for Label {
    type Err = LabelError;

    /// `source:key=value`, `source:key`, `key=value`, `key` (source `unspec`), `$host` and `reserved.host`
    /// (both `reserved:…`). The source ends at the first colon of what stands before `=`.
    fn from_str(text: &str) -> Result<Self, LabelError> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let (source, key) = match name.split_once(':') {
            Some((source, key)) => (source.parse()?, key),
            None => reserved_spelling(name).map_or((Source::Unspec, name), |key| (Source::Reserved, key)),
        };
        if key.is_empty() {
            return Err(LabelError::NoKey(text.to_owned()));
        }
        Self::new(source, key, value)
    }
}

/// `$host` and `reserved.host` are old spellings of `reserved:host`.
pub(crate) fn reserved_spelling(name: &str) -> Option<&str> {
    name.strip_prefix('$').or_else(|| name.strip_prefix("reserved."))
}

impl Serialize for Label {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A set of labels, sorted by (source, key), one value for each. Serialised as a list of strings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Vec<Label>);

impl Labels {
    pub fn new() -> Self {
        Self::default()
    }

    /// From texts as [`Label`] reads them.
    ///
    /// # Errors
    /// The first bad label, or `Conflict` if a key comes twice with different values.
    pub fn parse<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<Self, LabelError> {
        let mut labels = Self::default();
        for text in texts {
            labels.add(text.as_ref().parse()?)?;
        }
        Ok(labels)
    }

    /// Adds a label; one that is there already with another value is a `Conflict`.
    pub fn add(&mut self, label: Label) -> Result<(), LabelError> {
        match self.find(label.source, &label.key) {
            Ok(at) if self.0[at].value != label.value => return Err(LabelError::Conflict(label.source, label.key)),
            Ok(_) => {}
            Err(at) => self.0.insert(at, label),
        }
        Ok(())
    }

    /// Adds a label, or replaces the value of the one with the same source and key.
    pub fn insert(&mut self, label: Label) {
        match self.find(label.source, &label.key) {
            Ok(at) => self.0[at] = label,
            Err(at) => self.0.insert(at, label),
        }
    }

    /// The value of a label, if it is there.
    pub fn get(&self, source: Source, key: &str) -> Option<&str> {
        self.find(source, key).ok().map(|at| self.0[at].value.as_str())
    }

    /// All labels, sorted by (source, key).
    pub fn iter(&self) -> std::slice::Iter<'_, Label> {
        self.0.iter()
    }
    pub fn len(&self) -> usize {
        self.0.len()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every label of `part` is here; source `any` in `part` stands for every source.
    pub fn contains_all(&self, part: &Self) -> bool {
        part.iter().all(|p| match p.source {
            Source::Any => self.iter().any(|l| l.key == p.key && l.value == p.value),
            source => self.get(source, &p.key) == Some(p.value.as_str()),
        })
    }

    /// The prefix of a node-local identity.
    pub fn prefix(&self) -> Option<Prefix> {
        self.iter().find(|l| l.source == Source::Cidr).and_then(|l| l.key.parse().ok())
    }

    /// The first label with source `reserved`; a container must not have one that the agent did not give it.
    pub fn reserved(&self) -> Option<&Label> {
        self.iter().find(|l| l.source == Source::Reserved)
    }

    fn find(&self, source: Source, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|l| (l.source, l.key.as_str()).cmp(&(source, key)))
    }
}

impl FromIterator<Label> for Labels {
    /// Of several values for one key the last stays.
    fn from_iter<I: IntoIterator<Item = Label>>(labels: I) -> Self {
        let mut out = Self::default();
        labels.into_iter().for_each(|l| out.insert(l));
        out
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = &'a Label;
    type IntoIter = std::slice::Iter<'a, Label>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Labels {
    /// Comma separated, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, label) in self.iter().enumerate() {
            write!(f, "{}{label}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(Vec::<String>::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_and_printed() {
        let rows = [
            ("k8s:app=web", "k8s:app=web"),
            ("app=web", "unspec:app=web"),
            ("app", "unspec:app"),
            ("app=", "unspec:app"),
            ("container:a=b=c", "container:a=b=c"),
            ("container:com:x=y", "container:com:x=y"),
            ("url=http://x", "unspec:url=http://x"),
            ("reserved:host", "reserved:host"),
            ("reserved.world", "reserved:world"),
            ("$host", "reserved:host"),
            ("mesos:a", "mesos:a"),
            ("cilium-generated:a", "cilium-generated:a"),
            ("any:a=1", "any:a=1"),
            ("unspec:a=1", "unspec:a=1"),
        ];
        for (text, want) in rows {
            let label: Label = text.parse().unwrap();
            assert_eq!(label.to_string(), want);
            assert_eq!(want.parse::<Label>().unwrap(), label);
        }
    }

    #[test]
    fn bad_labels_are_refused() {
        for text in ["", "=x", "k8s:", "k8s:=x", "foo:bar=x", ":a", "a b=c", "a\n=c", "a=c\n", "$"] {
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
        assert_eq!("foo:bar".parse::<Label>(), Err(LabelError::UnknownSource("foo".into())));
    }

    #[test]
    fn sets_are_sorted_and_hold_one_value_a_key() {
        let labels = Labels::parse(["unspec:b=1", "k8s:z", "k8s:a=2", "k8s:a=2"]).unwrap();
        assert_eq!(labels.to_string(), "k8s:a=2,k8s:z,unspec:b=1");
        assert_eq!(Labels::parse(["k8s:a=1", "k8s:a=2"]), Err(LabelError::Conflict(Source::K8s, "a".into())));
        let json = serde_json::to_string(&labels).unwrap();
        assert_eq!(json, r#"["k8s:a=2","k8s:z","unspec:b=1"]"#);
        assert_eq!(serde_json::from_str::<Labels>(&json).unwrap(), labels);
        assert!(labels.contains_all(&Labels::parse(["any:b=1", "k8s:z"]).unwrap()));
        assert!(!labels.contains_all(&Labels::parse(["k8s:b=1"]).unwrap()));
        assert!(!labels.contains_all(&Labels::parse(["any:b=2"]).unwrap()));
    }
}
