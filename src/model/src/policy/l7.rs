// SPDX-License-Identifier: Apache-2.0
//! What may be said on a port: rules for HTTP, Kafka and DNS, and whether a request meets them.

use regex::RegexBuilder;
use serde::{Deserialize, Serialize};

/// Rules of one protocol. A request passes if one of them allows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum L7Rules {
    Http(Vec<HttpRule>),
    Kafka(Vec<KafkaRule>),
    Dns(Vec<DnsRule>),
}

/// A condition on an HTTP request; all fields must hold, an absent one always does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpRule {
    /// Expression for the whole path with its query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Expression for the whole method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Expression for the whole authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
}

/// A header that must be there, with exactly this value if one is given. Written `Name: value` or `Name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HeaderMatch {
    name: String,
    value: Option<String>,
}

impl TryFrom<String> for HeaderMatch {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let (name, value) = match text.split_once(':') {
            Some((name, value)) => (name.trim_end(), Some(value.trim().to_owned())),
            None => (text.trim_end(), None),
        };
        let good = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(good) {
            return Err(format!("{name:?} is no header name (write `Name: value` or `Name`)"));
        }
        if value.as_deref().is_some_and(|v| v.chars().any(char::is_control)) {
            return Err(format!("the value of header `{name}` contains a control character"));
        }
        Ok(Self { name: name.to_owned(), value })
    }
}

impl From<HeaderMatch> for String {
    fn from(h: HeaderMatch) -> Self {
        h.value.map_or(h.name.clone(), |value| format!("{}: {value}", h.name))
    }
}

/// An HTTP request, as far as rules look at it.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpRequest<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub host: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
}

/// Longest expression, bytes, and most memory that it may take when compiled.
const MAX_EXPRESSION: usize = 4096;
const MAX_COMPILED: usize = 1 << 20;

fn expression(text: &str) -> Result<regex::Regex, String> {
    if text.len() > MAX_EXPRESSION {
        return Err(format!("an expression has at most {MAX_EXPRESSION} bytes, not {}", text.len()));
    }
    let whole = |text: &str| RegexBuilder::new(text).size_limit(MAX_COMPILED).nest_limit(100).build();
    // Alone first: what closes a group that it did not open must not become valid in ours.
    whole(text).and_then(|_| whole(&format!("^(?:{text})$"))).map_err(|e| match e {
        regex::Error::CompiledTooBig(_) => "the expression is too big".to_owned(),
        e => e.to_string().lines().last().unwrap_or("not a regular expression").trim_start_matches("error: ").to_owned(),
    })
}

/// Whether a text is an expression that rules may use.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn check_expression(text: &str) -> Result<(), String> {
    expression(text).map(drop)
}

impl HttpRule {
    /// Whether the request meets every condition. An expression that cannot be read is met by nothing.
    pub fn allows(&self, request: &HttpRequest<'_>) -> bool {
        let whole = |rule: &Option<String>, text| rule.as_ref().is_none_or(|r| expression(r).is_ok_and(|r| r.is_match(text)));
        let header = |h: &HeaderMatch| {
            request.headers.iter().any(|(name, value)| name.eq_ignore_ascii_case(&h.name) && h.value.as_ref().is_none_or(|v| v == value))
        };
        whole(&self.path, request.path)
            && whole(&self.method, request.method)
            && whole(&self.host, request.host)
            && self.headers.iter().all(header)
    }
}

/// What a Kafka client does, as a set of kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KafkaRole {
    Produce,
    Consume,
}

impl KafkaRole {
    pub const ALL: [Self; 2] = [Self::Produce, Self::Consume];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Produce => "produce",
            Self::Consume => "consume",
        }
    }
    /// Kinds of request, by number.
    pub const fn keys(self) -> &'static [u16] {
        match self {
            Self::Produce => &[0, 3, 18],
            Self::Consume => &[1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 18],
        }
    }
}

/// Kinds of Kafka request; the place is the number.
pub const KAFKA_KEYS: [&str; 34] = [
    "produce",
    "fetch",
    "offsets",
    "metadata",
    "leaderandisr",
    "stopreplica",
    "updatemetadata",
    "controlledshutdown",
    "offsetcommit",
    "offsetfetch",
    "findcoordinator",
    "joingroup",
    "heartbeat",
    "leavegroup",
    "syncgroup",
    "describegroups",
    "listgroups",
    "saslhandshake",
    "apiversions",
    "createtopics",
    "deletetopics",
    "deleterecords",
    "initproducerid",
    "offsetforleaderepoch",
    "addpartitionstotxn",
    "addoffsetstotxn",
    "endtxn",
    "writetxnmarkers",
    "txnoffsetcommit",
    "describeacls",
    "createacls",
    "deleteacls",
    "describeconfigs",
    "alterconfigs",
];

/// A condition on a Kafka request; all fields must hold, an absent one always does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KafkaRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<KafkaRole>,
    /// One of [`KAFKA_KEYS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<i16>,
    #[serde(rename = "clientID", default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
}

/// A Kafka request, as far as rules look at it.
#[derive(Clone, Copy, Debug)]
pub struct KafkaRequest<'a> {
    pub key: u16,
    pub version: i16,
    pub client_id: &'a str,
    /// Empty for kinds that name none.
    pub topics: &'a [&'a str],
}

impl KafkaRule {
    /// Whether the conditions other than the topic hold.
    fn applies(&self, request: &KafkaRequest<'_>) -> bool {
        let named = |name: &String| KAFKA_KEYS.get(usize::from(request.key)).is_some_and(|k| k == name);
        self.role.is_none_or(|role| role.keys().contains(&request.key))
            && self.api_key.as_ref().is_none_or(named)
            && self.api_version.is_none_or(|v| v == request.version)
            && self.client_id.as_ref().is_none_or(|id| id == request.client_id)
    }
}

/// A name, or a pattern of names in which `*` stands for any part of a label, and alone for every name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DnsRule {
    MatchName(String),
    MatchPattern(String),
}

impl DnsRule {
    /// Whether a name is asked for that the rule allows. Case and a final dot do not matter.
    pub fn allows(&self, name: &str) -> bool {
        let plain = |text: &str| text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match self {
            Self::MatchName(wanted) => plain(wanted) == plain(name),
            Self::MatchPattern(pattern) if pattern == "*" => true,
            Self::MatchPattern(pattern) => {
                let parts: Vec<String> = plain(pattern).split('*').map(regex::escape).collect();
                expression(&parts.join("[-a-z0-9_]*")).is_ok_and(|r| r.is_match(&plain(name)))
            }
        }
    }
}

impl L7Rules {
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Kafka(_) => "kafka",
            Self::Dns(_) => "dns",
        }
    }

    /// Whether it has no rule, which restricts nothing.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Http(rules) => rules.is_empty(),
            Self::Kafka(rules) => rules.is_empty(),
            Self::Dns(rules) => rules.is_empty(),
        }
    }

    /// Takes what another list of the same protocol allows as well; of another protocol it takes nothing.
    pub fn merge(&mut self, other: &Self) {
        fn add<T: Clone + Ord>(to: &mut Vec<T>, from: &[T]) {
            to.extend(from.iter().cloned());
            to.sort();
            to.dedup();
        }
        match (self, other) {
            (Self::Http(a), Self::Http(b)) => add(a, b),
            (Self::Kafka(a), Self::Kafka(b)) => add(a, b),
            (Self::Dns(a), Self::Dns(b)) => add(a, b),
            _ => {}
        }
    }

    /// The same protocol, everything allowed.
    #[must_use]
    pub fn anything(&self) -> Self {
        match self {
            Self::Http(_) => Self::Http(vec![HttpRule::default()]),
            Self::Kafka(_) => Self::Kafka(vec![KafkaRule::default()]),
            Self::Dns(_) => Self::Dns(vec![DnsRule::MatchPattern("*".to_owned())]),
        }
    }

    /// Whether an HTTP request passes. Rules of other protocols let none pass.
    pub fn allows_http(&self, request: &HttpRequest<'_>) -> bool {
        matches!(self, Self::Http(rules) if rules.iter().any(|r| r.allows(request)))
    }

    /// Whether a Kafka request passes: each of its topics must be allowed by some rule.
    pub fn allows_kafka(&self, request: &KafkaRequest<'_>) -> bool {
        let Self::Kafka(rules) = self else { return false };
        let rules: Vec<&KafkaRule> = rules.iter().filter(|r| r.applies(request)).collect();
        !rules.is_empty() && request.topics.iter().all(|t| rules.iter().any(|r| r.topic.as_ref().is_none_or(|of| of == t)))
    }

    /// Whether a question for a name passes.
    pub fn allows_dns(&self, name: &str) -> bool {
        matches!(self, Self::Dns(rules) if rules.iter().any(|r| r.allows(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_matched_whole() {
        let get = |path| HttpRequest { method: "GET", path, host: "a.b", headers: &[("X-Token", "1")] };
        let rule = |json: &str| serde_json::from_str::<HttpRule>(json).unwrap();
        assert!(rule(r#"{"method": "GET", "path": "/a|/b/.*"}"#).allows(&get("/b/c")));
        assert!(!rule(r#"{"path": "/a|/b"}"#).allows(&get("/ab")) && !rule(r#"{"path": "/a"}"#).allows(&get("/x/a")));
        assert!(rule(r#"{"headers": ["x-token: 1", "X-Token"]}"#).allows(&get("/")));
        assert!(!rule(r#"{"headers": ["x-token: 2"]}"#).allows(&get("/")) && !rule(r#"{"headers": ["Other"]}"#).allows(&get("/")));
        assert!(rule("{}").allows(&get("/")) && !rule(r#"{"host": "a\\.c"}"#).allows(&get("/")));
        for bad in ["(", "a)|(b", "[z-a]", "(?:a{1000}){1000}", "*"] {
            let e = check_expression(bad).unwrap_err();
            assert!(!e.contains('\n') && !e.is_empty(), "{e}");
        }
    }

    #[test]
    fn every_topic_must_be_allowed() {
        let rules = L7Rules::Kafka(vec![
            KafkaRule { role: Some(KafkaRole::Produce), topic: Some("a".into()), ..KafkaRule::default() },
            KafkaRule { api_key: Some("fetch".into()), ..KafkaRule::default() },
        ]);
        let ask = |key, topics| rules.allows_kafka(&KafkaRequest { key, version: 1, client_id: "c", topics });
        assert!(ask(0, &["a"]) && !ask(0, &["a", "b"]) && ask(1, &["b"]) && ask(18, &[]) && !ask(2, &[]) && !ask(99, &[]));
    }

    #[test]
    fn names_and_patterns() {
        let p = |pattern: &str, name: &str| DnsRule::MatchPattern(pattern.into()).allows(name);
        assert!(p("*.example.com", "www.Example.com.") && !p("*.example.com", "a.b.example.com") && !p("*.example.com", "example.com"));
        assert!(p("*", "any.thing") && p("a*c.x", "abbc.x") && !p("a.c", "abc"));
        assert!(DnsRule::MatchName("a.b.".into()).allows("A.b") && !DnsRule::MatchName("a.b".into()).allows("x.a.b"));
    }
}
