// SPDX-License-Identifier: Apache-2.0
//! Truth tables of policy: `tests/truth/*.yaml`, read once for whoever judges their rows: the evaluator, or packets.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One story: policies come and go, and rows say what becomes of connections after each step.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    #[serde(rename = "case")]
    pub name: String,
    /// `always`: the local host is let in whatever the rules say.
    #[serde(default)]
    pub host: Option<String>,
    /// Holds rules about what is said on a port: for the evaluator only, as long as there is no proxy.
    #[serde(default)]
    pub l7: bool,
    /// Names of ports by endpoint: `NUMBER/PROTOCOL`.
    #[serde(default)]
    pub ports: BTreeMap<String, BTreeMap<String, String>>,
    /// By `namespace/name`.
    #[serde(default)]
    pub services: BTreeMap<String, ServiceFields>,
    /// Labels of the other node, which is `remote-node`.
    #[serde(default)]
    pub node: Vec<String>,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceFields {
    #[serde(default)]
    pub selector: Option<pilus_model::selector::SelectorSpec>,
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    #[serde(default)]
    pub labels: Vec<String>,
}

/// In this order: mode, what is removed, what is imported, and the rows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// `default`, `always` or `never`, from now on.
    #[serde(default)]
    pub mode: Option<String>,
    /// `all`, or a label of rules.
    #[serde(default)]
    pub delete: Option<String>,
    #[serde(default)]
    pub import: Option<String>,
    /// `FROM,… -> TO,… PORT/PROTOCOL,… [METHOD PATH] allow|deny [reply]`, each of these with each. An address has its
    /// family's `:` in quotes. `reply`: an answer must come back too.
    pub rows: Vec<String>,
}

/// Who stands at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Endpoint(&'static str),
    /// A fixed identity by its name.
    Fixed(String),
    Address(IpAddr),
}

/// One connection and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub from: End,
    pub to: End,
    /// Host order; ICMP: the type.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Method and path of an HTTP request.
    pub http: Option<(String, String)>,
    pub allowed: bool,
    pub reply: bool,
}

/// Endpoints and their labels.
pub const ENDPOINTS: [(&str, &[&str]); 4] = [
    ("a", &["k8s:app=a", "k8s:io.kubernetes.pod.namespace=default"]),
    ("b", &["k8s:app=b", "k8s:io.kubernetes.pod.namespace=default"]),
    ("c", &["k8s:app=c", "k8s:io.kubernetes.pod.namespace=other", "k8s:io.cilium.k8s.namespace.labels.team=x"]),
    ("d", &["container:app=d", "container:tier=front"]),
];

/// Every case.
pub fn cases() -> Vec<Case> {
    let text = include_str!("../truth/semantics.yaml");
    serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("semantics.yaml: {e}"))
}

/// Number of a protocol by name, or of its number.
pub fn protocol(name: &str) -> u8 {
    match name {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "icmpv6" => 58,
        "sctp" => 132,
        other => other.parse().unwrap_or_else(|_| panic!("protocol {other}")),
    }
}

fn end(text: &str) -> End {
    let text = text.trim_matches('"');
    if let Some((name, _)) = ENDPOINTS.iter().find(|(name, _)| *name == text) {
        return End::Endpoint(name);
    }
    text.parse().map_or_else(|_| End::Fixed(text.to_owned()), End::Address)
}

impl Step {
    /// The rows, one connection each.
    pub fn connections(&self) -> Vec<Row> {
        self.rows.iter().flat_map(|row| connections(row)).collect()
    }
}

/// The connections of one row.
pub fn connections(row: &str) -> Vec<Row> {
    let words: Vec<&str> = row.split_whitespace().collect();
    let verdict = words.iter().rposition(|w| ["allow", "deny"].contains(w)).unwrap_or_else(|| panic!("no verdict: {row}"));
    assert!(words.get(1) == Some(&"->") && verdict >= 4, "{row}");
    let http = match &words[4..verdict] {
        [] => None,
        [method, path] => Some(((*method).to_owned(), (*path).to_owned())),
        other => panic!("{other:?}: {row}"),
    };
    let mut out = Vec::new();
    for from in words[0].split(',') {
        for to in words[2].split(',') {
            for what in words[3].split(',') {
                let (dport, proto) = what.split_once('/').unwrap_or_else(|| panic!("{row}"));
                out.push(Row {
                    from: end(from),
                    to: end(to),
                    dport: dport.parse().unwrap_or_else(|_| panic!("{row}")),
                    proto: protocol(proto),
                    http: http.clone(),
                    allowed: words[verdict] == "allow",
                    reply: words.get(verdict + 1) == Some(&"reply"),
                });
            }
        }
    }
    out
}
