// SPDX-License-Identifier: Apache-2.0
//! Selectors: how users write them ([`SelectorSpec`]) and the normal form that is compared and evaluated ([`Selector`]).

use crate::abi::Reserved;
use crate::label::{Label, LabelError, Labels, Source, check_key, reserved_spelling};
use crate::prefix::Prefix;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use thiserror::Error;

/// `reserved:` names that are no identity of their own but stand for many.
const EVERYTHING: &str = "all";
const CLUSTER: &str = "cluster";

/// Why a text is no selector key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    #[error(transparent)]
    Label(#[from] LabelError),
    #[error("unknown reserved label `reserved:{0}`")]
    UnknownReserved(String),
    #[error("prefixes are selected by fromCIDR, toCIDR and their sets, not by a label `cidr:{0}`")]
    Prefix(String),
}

/// A key as written in a selector: `k8s:app`, `k8s.app`, `any:app`, or `app`, which matches every source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SelectorKey {
    source: Option<Source>,
    key: String,
}

impl SelectorKey {
    /// # Errors
    /// An empty or malformed key, or a `reserved:` name that does not exist.
    pub fn new(source: Option<Source>, key: impl Into<String>) -> Result<Self, KeyError> {
        let key = key.into();
        check_key(&key)?;
        if source == Some(Source::Reserved) && !is_reserved_name(&key) {
            return Err(KeyError::UnknownReserved(key));
        }
        if source == Some(Source::Cidr) {
            return Err(KeyError::Prefix(key));
        }
        Ok(Self { source, key })
    }
    /// The source as written; `None` matches as `any` does.
    pub fn source(&self) -> Option<Source> {
        self.source
    }
    pub fn key(&self) -> &str {
        &self.key
    }
}

fn is_reserved_name(name: &str) -> bool {
    name == EVERYTHING || name == CLUSTER || Reserved::ALL.iter().any(|r| *r != Reserved::Unknown && r.text() == name)
}

impl FromStr for SelectorKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        if let Some((source, key)) = text.split_once(':') {
            return Self::new(Some(source.parse()?), key);
        }
        if let Some(key) = reserved_spelling(text) {
            return Self::new(Some(Source::Reserved), key);
        }
        // `k8s.io/…` is a domain of its own, not the key `io/…` with a source.
        if !text.starts_with("k8s.io/")
            && let Some((source, key)) = text.split_once('.')
            && let Ok(source) = source.parse()
        {
            return Self::new(Some(source), key);
        }
        Self::new(None, text)
    }
}

impl fmt::Display for SelectorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Some(source) => write!(f, "{source}:{}", self.key),
            None => f.write_str(&self.key),
        }
    }
}

impl TryFrom<String> for SelectorKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<SelectorKey> for String {
    fn from(key: SelectorKey) -> Self {
        key.to_string()
    }
}

/// Key of the label that says which namespace a pod is in.
pub(crate) const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Keys of the labels of a pod's namespace begin with it.
pub(crate) const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels";
const DEFAULT_NAMESPACE: &str = "default";

/// How a key is compared with its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Operator {
    pub const ALL: [Self; 4] = [Self::In, Self::NotIn, Self::Exists, Self::DoesNotExist];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }
    /// Whether it is written with values.
    pub const fn takes_values(self) -> bool {
        matches!(self, Self::In | Self::NotIn)
    }
}

/// One item of `matchExpressions`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expression {
    pub key: SelectorKey,
    pub operator: Operator,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// A selector as users write it. Empty selects everything in its scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SelectorSpec {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<SelectorKey, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Expression>,
}

impl SelectorSpec {
    /// All keys, of labels and expressions.
    pub fn keys(&self) -> impl Iterator<Item = &SelectorKey> {
        self.match_labels.keys().chain(self.match_expressions.iter().map(|e| &e.key))
    }

    /// The normal form.
    pub fn selector(&self) -> Selector {
        Selector::new(self.requirements())
    }

    /// The normal form, with the further demand that the endpoint is in a namespace. An endpoint without one is in `default`,
    /// as an object without one is.
    pub fn selector_within(&self, namespace: &str) -> Selector {
        let values = BTreeSet::from([namespace.to_owned()]);
        let test = if namespace == DEFAULT_NAMESPACE { Test::InOrAbsent(values) } else { Test::In(values) };
        Selector::new(self.requirements().chain([Requirement { source: Source::K8s, key: NAMESPACE.to_owned(), test }]))
    }

    /// The normal form for nodes: a key without a source means a label of a node.
    pub fn node_selector(&self) -> Selector {
        let node = |r: Requirement| if r.source == Source::Any { Requirement { source: Source::Node, ..r } } else { r };
        Selector::new(self.requirements().map(node).chain([Requirement::of_kind(Test::Node)]))
    }

    fn requirements(&self) -> impl Iterator<Item = Requirement> {
        let labels = self.match_labels.iter().map(|(k, v)| Requirement::new(k, Test::In(BTreeSet::from([v.clone()]))));
        let expressions = self.match_expressions.iter().map(|e| {
            let values = e.values.iter().cloned().collect();
            Requirement::new(
                &e.key,
                match e.operator {
                    Operator::In => Test::In(values),
                    Operator::NotIn => Test::NotIn(values),
                    Operator::Exists => Test::Exists,
                    Operator::DoesNotExist => Test::DoesNotExist,
                },
            )
        });
        labels.chain(expressions)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Test {
    In(BTreeSet<String>),
    /// Also holds for an endpoint without the label, but not for a fixed identity.
    InOrAbsent(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
    /// Has an endpoint: no fixed identity but `health` and `init`, and no prefix.
    Endpoint,
    /// The host or another node.
    Node,
    /// A prefix inside of the first and inside of none of the others.
    Within(Prefix, BTreeSet<Prefix>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Requirement {
    /// `Any` matches every source.
    source: Source,
    key: String,
    test: Test,
}

impl Requirement {
    fn new(key: &SelectorKey, test: Test) -> Self {
        Self { source: key.source.unwrap_or(Source::Any), key: key.key.clone(), test }
    }

    /// About the identity as a whole.
    fn of_kind(test: Test) -> Self {
        Self { source: Source::Any, key: String::new(), test }
    }

    fn matches(&self, labels: &Labels) -> bool {
        let fixed = |names: &[Reserved]| names.iter().any(|r| labels.get(Source::Reserved, r.text()).is_some());
        match &self.test {
            Test::Endpoint => labels.reserved().is_none() || fixed(&[Reserved::Health, Reserved::Init]),
            Test::Node => fixed(&[Reserved::Host, Reserved::RemoteNode]),
            Test::Within(prefix, except) => labels.prefix().is_some_and(|p| prefix.covers(p) && !except.iter().any(|e| e.covers(p))),
            Test::In(values) => self.some(labels, |v| values.contains(v)),
            Test::InOrAbsent(values) => {
                self.some(labels, |v| values.contains(v)) || (labels.reserved().is_none() && !self.some(labels, |_| true))
            }
            Test::NotIn(values) => !self.some(labels, |v| values.contains(v)),
            Test::Exists => self.some(labels, |_| true),
            Test::DoesNotExist => !self.some(labels, |_| true),
        }
    }

    /// Whether a label with this key has a value that passes.
    fn some(&self, labels: &Labels, pass: impl Fn(&str) -> bool) -> bool {
        if self.source == Source::Reserved {
            return pass("") && reserved_matches(&self.key, labels);
        }
        labels.iter().any(|l| (self.source == Source::Any || l.source() == self.source) && l.key() == self.key && pass(l.value()))
    }
}

fn reserved_matches(name: &str, labels: &Labels) -> bool {
    let has = |r: Reserved| labels.get(Source::Reserved, r.text()).is_some();
    match name {
        EVERYTHING => true,
        CLUSTER => {
            use Reserved::{Health, Host, Init, RemoteNode, Unmanaged};
            labels.reserved().is_none() || [Host, RemoteNode, Init, Health, Unmanaged].into_iter().any(has)
        }
        _ if name == Reserved::World.text() => [Reserved::World, Reserved::WorldIpv4, Reserved::WorldIpv6].into_iter().any(has),
        _ if name == Reserved::WorldIpv4.text() => has(Reserved::WorldIpv4) || labels.prefix().is_some_and(|p| p.ip().is_ipv4()),
        _ if name == Reserved::WorldIpv6.text() => has(Reserved::WorldIpv6) || labels.prefix().is_some_and(|p| p.ip().is_ipv6()),
        _ => labels.get(Source::Reserved, name).is_some(),
    }
}

/// A selector in normal form: demands sorted and without repetition, all of which must hold. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector(Arc<[Requirement]>);

impl Selector {
    fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let sorted: BTreeSet<Requirement> = requirements.into_iter().collect();
        Self(sorted.into_iter().collect())
    }

    /// Demands exactly one label.
    pub fn label(label: &Label) -> Self {
        let test = Test::In(BTreeSet::from([label.value().to_owned()]));
        Self::new([Requirement { source: label.source(), key: label.key().to_owned(), test }])
    }

    /// Everything that belongs to the cluster: endpoints, host, remote nodes, init, health, unmanaged.
    pub fn cluster() -> Self {
        Self::label(&Label::reserved(CLUSTER))
    }

    /// A fixed identity; `World` includes its IPv4 and IPv6 variants.
    pub fn reserved(identity: Reserved) -> Self {
        Self::label(&Label::reserved(identity.text()))
    }

    /// Addresses of a prefix without some inside of it: identities of prefixes that lie there.
    pub fn prefix(prefix: Prefix, except: impl IntoIterator<Item = Prefix>) -> Self {
        Self::new([Requirement::of_kind(Test::Within(prefix, except.into_iter().collect()))])
    }

    /// The same, but only what has an endpoint.
    #[must_use]
    pub fn endpoints_only(&self) -> Self {
        Self::new(self.0.iter().cloned().chain([Requirement::of_kind(Test::Endpoint)]))
    }

    /// Keys and values of which whoever is selected has one; none if there is no such demand.
    pub(crate) fn literals(&self) -> Option<(&str, &BTreeSet<String>)> {
        let literal = |r: &'_ Requirement| !matches!(r.source, Source::Reserved | Source::Cidr) && matches!(r.test, Test::In(_));
        let found = self.0.iter().filter(|r| literal(r)).min_by_key(|r| if r.key == NAMESPACE { 1 } else { 0 })?;
        match &found.test {
            Test::In(values) => Some((&found.key, values)),
            _ => None,
        }
    }

    /// The prefix that whoever is selected lies in.
    pub(crate) fn within(&self) -> Option<Prefix> {
        self.0.iter().find_map(|r| if let Test::Within(prefix, _) = &r.test { Some(*prefix) } else { None })
    }

    /// Prefixes that addresses must be told apart by.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        let of = |r: &Requirement| match &r.test {
            Test::Within(prefix, except) => except.iter().copied().chain([*prefix]).collect::<Vec<_>>(),
            _ if r.source == Source::Reserved && r.key == Reserved::WorldIpv4.text() => vec![Prefix::ALL4],
            _ if r.source == Source::Reserved && r.key == Reserved::WorldIpv6.text() => vec![Prefix::ALL6],
            _ => Vec::new(),
        };
        self.0.iter().flat_map(of)
    }

    /// Whether all demands hold. `NotIn` and `DoesNotExist` also hold for a label that is not there.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|r| r.matches(labels))
    }

    /// Whether a `reserved:` label is demanded or excluded.
    pub fn names_reserved(&self) -> bool {
        self.0.iter().any(|r| r.source == Source::Reserved)
    }

    /// Whether it is exactly `reserved:all`.
    pub fn is_everything(&self) -> bool {
        matches!(&*self.0, [r] if r.source == Source::Reserved && r.key == EVERYTHING
            && match &r.test { Test::In(v) => v.contains(""), Test::Exists => true, _ => false })
    }
}

impl fmt::Display for Selector {
    /// Comma separated demands, for people; `*` if there are none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = || self.0.iter().filter(|r| !matches!(r.test, Test::Endpoint | Test::Node));
        if shown().next().is_none() {
            return f.write_str("*");
        }
        for (n, r) in shown().enumerate() {
            let list = |v: &BTreeSet<String>| v.iter().cloned().collect::<Vec<_>>().join("|");
            let name = format!("{}{}:{}", if n == 0 { "" } else { "," }, r.source, r.key);
            match &r.test {
                Test::In(v) => write!(f, "{name}={}", list(v))?,
                Test::InOrAbsent(v) => write!(f, "{name}={} or absent", list(v))?,
                Test::NotIn(v) => write!(f, "{name}!={}", list(v))?,
                Test::Exists => f.write_str(&name)?,
                Test::DoesNotExist => write!(f, "{name} absent")?,
                Test::Within(prefix, except) if except.is_empty() => write!(f, "{prefix}")?,
                Test::Within(prefix, except) => {
                    write!(f, "{prefix} except {}", except.iter().map(ToString::to_string).collect::<Vec<_>>().join("|"))?;
                }
                Test::Endpoint | Test::Node => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> SelectorSpec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn keys_are_read() {
        let rows = [
            ("app", "app"),
            ("any:app", "any:app"),
            ("k8s:app", "k8s:app"),
            ("k8s.app", "k8s:app"),
            ("k8s.io.kubernetes.pod.namespace", "k8s:io.kubernetes.pod.namespace"),
            ("k8s.io/role", "k8s.io/role"),
            ("app.kubernetes.io/name", "app.kubernetes.io/name"),
            ("container.x", "container:x"),
            ("reserved.world", "reserved:world"),
            ("$host", "reserved:host"),
            ("reserved:cluster", "reserved:cluster"),
            ("unspec:x", "unspec:x"),
        ];
        for (text, want) in rows {
            let key: SelectorKey = text.parse().unwrap();
            assert_eq!(key.to_string(), want);
            assert_eq!(want.parse::<SelectorKey>().unwrap(), key);
        }
        for text in ["", "foo:bar", "k8s:", "reserved:nobody", "reserved:unknown", "$nobody", "a=b", "a b"] {
            assert!(text.parse::<SelectorKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn selectors_match() {
        let web = ["k8s:app=web", "container:tier=front", "unspec:plain"];
        let rows: &[(&str, &[&str], bool)] = &[
            ("{}", &web, true),
            ("{}", &[], true),
            (r#"{"matchLabels":{"app":"web"}}"#, &web, true),
            (r#"{"matchLabels":{"any:app":"web"}}"#, &web, true),
            (r#"{"matchLabels":{"k8s:app":"web"}}"#, &web, true),
            (r#"{"matchLabels":{"container:app":"web"}}"#, &web, false),
            (r#"{"matchLabels":{"app":""}}"#, &web, false),
            (r#"{"matchLabels":{"plain":""}}"#, &web, true),
            (r#"{"matchLabels":{"app":"web","tier":"back"}}"#, &web, false),
            (r#"{"matchExpressions":[{"key":"app","operator":"In","values":["x","web"]}]}"#, &web, true),
            (r#"{"matchExpressions":[{"key":"app","operator":"In","values":["x"]}]}"#, &web, false),
            (r#"{"matchExpressions":[{"key":"app","operator":"NotIn","values":["x"]}]}"#, &web, true),
            (r#"{"matchExpressions":[{"key":"app","operator":"NotIn","values":["web"]}]}"#, &web, false),
            (r#"{"matchExpressions":[{"key":"none","operator":"NotIn","values":["x"]}]}"#, &web, true),
            (r#"{"matchExpressions":[{"key":"app","operator":"Exists"}]}"#, &web, true),
            (r#"{"matchExpressions":[{"key":"none","operator":"Exists"}]}"#, &web, false),
            (r#"{"matchExpressions":[{"key":"none","operator":"DoesNotExist"}]}"#, &web, true),
            (r#"{"matchExpressions":[{"key":"app","operator":"DoesNotExist"}]}"#, &web, false),
            (r#"{"matchLabels":{"reserved:host":""}}"#, &["reserved:host"], true),
            (r#"{"matchLabels":{"reserved:host":""}}"#, &["k8s:host"], false),
            (r#"{"matchLabels":{"reserved:world":""}}"#, &["reserved:world-ipv6"], true),
            (r#"{"matchLabels":{"reserved:all":""}}"#, &["reserved:world"], true),
            (r#"{"matchLabels":{"reserved:cluster":""}}"#, &["reserved:world"], false),
            (r#"{"matchLabels":{"reserved:cluster":""}}"#, &["reserved:remote-node"], true),
            (r#"{"matchLabels":{"reserved:cluster":""}}"#, &web, true),
            (r#"{"matchExpressions":[{"key":"reserved:world","operator":"DoesNotExist"}]}"#, &["reserved:world-ipv4"], false),
        ];
        for (text, labels, want) in rows {
            let labels = Labels::parse(*labels).unwrap();
            assert_eq!(spec(text).selector().matches(&labels), *want, "{text} on {labels}");
        }
    }

    #[test]
    fn the_normal_form_forgets_order_and_repetition() {
        let a = spec(r#"{"matchLabels":{"b":"1","a":"2"},"matchExpressions":[{"key":"any:a","operator":"In","values":["2","2"]}]}"#);
        let b = spec(r#"{"matchLabels":{"any:a":"2"},"matchExpressions":[{"key":"b","operator":"In","values":["1"]}]}"#);
        assert_eq!(a.selector(), b.selector());
        assert_eq!(a.selector().to_string(), "any:a=2,any:b=1");
        assert!(spec(r#"{"matchLabels":{"reserved:all":""}}"#).selector().is_everything());
        assert!(!SelectorSpec::default().selector().is_everything());
    }
}
