// SPDX-License-Identifier: Apache-2.0
//! `networking.k8s.io/v1` NetworkPolicy, as a rule that means the same.

use super::cursor::{Cursor, Fields, all, one_of};
use super::ports::{port, port_number, range_end};
use super::sections::{exceptions, prefix};
use super::selectors::selector;
use crate::label::{Labels, Source};
use crate::policy::rule::{DefaultDeny, Entity, Origin, Rule};
use crate::policy::section::{CidrRule, Port, PortProtocol, PortRule, Protocol, Section};
use crate::selector::{Expression, NAMESPACE, NAMESPACE_LABELS, Operator, SelectorKey, SelectorSpec};
use std::num::NonZeroU16;
use std::sync::Arc;

/// The label that every namespace has: its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Ingress,
    Egress,
}

impl Type {
    const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }
}

pub fn rule(at: &Cursor<'_>) -> Option<Rule> {
    let fields = at.map("a policy")?;
    let allowed = fields.allow(&["podSelector", "ingress", "egress", "policyTypes"], &[]);
    // An absent selector is an empty one there.
    let subject = match fields.get("podSelector") {
        Some(f) if !f.value.is_null() => pods(&f.value),
        Some(_) | None => Some(SelectorSpec::default()),
    };
    let types = match fields.value("policyTypes") {
        Some(list) => all(list.list("Ingress and Egress")?, |t| one_of(t, "policy type", &Type::ALL, Type::as_str, false)),
        None => Some(Vec::new()),
    };
    let (ingress, egress) = (sections(&fields, "ingress", "from"), sections(&fields, "egress", "to"));
    allowed?;
    let (mut types, ingress, egress) = (types?, ingress?, egress?);
    if types.is_empty() {
        types.push(Type::Ingress);
        if !egress.is_empty() {
            types.push(Type::Egress);
        }
    }
    // A section that says nothing denies what no other allows. What is of no listed type means nothing.
    let enforced = |kind, list: Vec<Section>| match (types.contains(&kind), list.is_empty()) {
        (false, _) => Vec::new(),
        (true, true) => vec![Section::default()],
        (true, false) => list,
    };
    Some(Rule {
        endpoint_selector: subject?,
        ingress: enforced(Type::Ingress, ingress),
        ingress_deny: Vec::new(),
        egress: enforced(Type::Egress, egress),
        egress_deny: Vec::new(),
        enable_default_deny: DefaultDeny::default(),
        labels: Labels::new(),
        description: None,
        origin: Arc::new(Origin { file: at.sink.file.clone(), line: at.at().line, index: 0, object: None }),
    })
}

/// A selector of pods: its keys are label keys as they stand, without a source.
fn pods(at: &Cursor<'_>) -> Option<SelectorSpec> {
    let spec = selector(at)?;
    renamed(at, &spec, |key| Some(key.to_owned()))
}

fn renamed(at: &Cursor<'_>, spec: &SelectorSpec, rename: impl Fn(&str) -> Option<String>) -> Option<SelectorSpec> {
    let key = |k: &SelectorKey| {
        let text = k.to_string();
        if text.contains(':') {
            at.error(format!("`{text}` is no key of a Kubernetes label"));
            return None;
        }
        match SelectorKey::new(None, rename(&text)?) {
            Ok(key) => Some(key),
            Err(e) => {
                at.error(e.to_string());
                None
            }
        }
    };
    let labels = spec.match_labels.iter().map(|(k, v)| Some((key(k)?, v.clone()))).collect::<Option<_>>();
    let expressions = spec.match_expressions.iter().map(|e| Some(Expression { key: key(&e.key)?, ..e.clone() })).collect::<Option<_>>();
    Some(SelectorSpec { match_labels: labels?, match_expressions: expressions? })
}

/// A selector of namespaces, as one of the pods in them.
fn namespaces(at: &Cursor<'_>) -> Option<SelectorSpec> {
    let spec = selector(at)?;
    let mut spec =
        renamed(at, &spec, |key| Some(if key == NAMESPACE_NAME { NAMESPACE.to_owned() } else { format!("{NAMESPACE_LABELS}.{key}") }))?;
    if spec.match_labels.is_empty() && spec.match_expressions.is_empty() {
        // In whatever namespace: names the key, so that the selector is not confined to the policy's own, and demands nothing.
        let key = SelectorKey::new(Some(Source::K8s), NAMESPACE).ok()?;
        spec.match_expressions.push(Expression { key, operator: Operator::NotIn, values: vec![String::new()] });
    }
    Some(spec)
}

fn sections(fields: &Fields<'_>, name: &str, peers: &str) -> Option<Vec<Section>> {
    let Some(list) = fields.value(name) else { return Some(Vec::new()) };
    all(list.list("rules")?, |item| section(item, peers))
}

/// Items of a list; absent, null and empty are one there, and mean everything.
fn items<'a>(fields: &Fields<'a>, name: &str, what: &str) -> Option<Vec<Cursor<'a>>> {
    fields.value(name).map_or(Some(Vec::new()), |v| v.list(what))
}

fn section(at: &Cursor<'_>, peers: &str) -> Option<Section> {
    let fields = at.map("peers and ports")?;
    let allowed = fields.allow(&[peers, "ports"], &[]);
    let from = items(&fields, peers, "peers").and_then(|i| all(i, peer));
    let ports = items(&fields, "ports", "ports").and_then(|i| all(i, port_protocol));
    allowed?;
    let (from, ports) = (from?, ports?);
    let mut section = Section {
        // The other API bounds a list; this one does not.
        to_ports: ports.chunks(PortRule::MAX_PORTS).map(|p| PortRule { ports: p.to_vec(), rules: None }).collect(),
        ..Section::default()
    };
    if from.is_empty() {
        section.entities = Some(vec![Entity::All]);
    }
    for peer in from {
        match peer {
            Peer::Pods(spec) => section.endpoints.get_or_insert_default().push(spec),
            Peer::Block(block) => section.cidr_set.get_or_insert_default().push(block),
        }
    }
    Some(section)
}

enum Peer {
    Pods(SelectorSpec),
    Block(CidrRule),
}

fn peer(at: &Cursor<'_>) -> Option<Peer> {
    let fields = at.map("a peer")?;
    fields.allow(&["podSelector", "namespaceSelector", "ipBlock"], &[])?;
    let [pod, namespace, block] = ["podSelector", "namespaceSelector", "ipBlock"].map(|name| fields.value(name));
    match (pod, namespace, block) {
        (None, None, Some(block)) => ip_block(block).map(Peer::Block),
        (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
            at.error("ipBlock cannot stand with podSelector or namespaceSelector");
            None
        }
        (None, None, None) => {
            at.error("expected podSelector, namespaceSelector or ipBlock");
            None
        }
        (pod, namespace, None) => {
            let mut spec = namespace.map_or(Some(SelectorSpec::default()), namespaces)?;
            let pods = pod.map_or(Some(SelectorSpec::default()), pods)?;
            spec.match_expressions.extend(pods.match_expressions);
            for (key, value) in pods.match_labels {
                // The same key in both would otherwise lose one of the demands.
                spec.match_expressions.push(Expression { key, operator: Operator::In, values: vec![value] });
            }
            Some(Peer::Pods(spec))
        }
    }
}

fn ip_block(at: &Cursor<'_>) -> Option<CidrRule> {
    let fields = at.map("a block of addresses")?;
    fields.allow(&["cidr", "except"], &[])?;
    let cidr = fields.required("cidr", "a prefix such as 10.0.0.0/8").and_then(prefix)?;
    let except = items(&fields, "except", "prefixes").and_then(|i| exceptions(cidr, i))?;
    Some(CidrRule { cidr, except })
}

fn port_protocol(at: &Cursor<'_>) -> Option<PortProtocol> {
    let fields = at.map("a port")?;
    let allowed = fields.allow(&["port", "endPort", "protocol"], &[]);
    let first = fields.value("port").map_or(Some(None), |p| port(p).map(Some));
    let end = fields.value("endPort").map_or(Some(None), |e| port_number(e).map(|n| Some((n, e))));
    let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocol = fields.value("protocol").map_or(Some(Protocol::Tcp), |p| one_of(p, "protocol", &known, Protocol::as_str, false));
    allowed?;
    let (first, end, protocol) = (first?, end?, protocol?);
    let Some(first) = first else {
        if let Some((_, at)) = end {
            at.error("a range needs the port that it begins with");
            return None;
        }
        return Some(PortProtocol { port: Port::Number(NonZeroU16::MIN), end_port: Some(NonZeroU16::MAX), protocol });
    };
    Some(PortProtocol { end_port: range_end(&first, end)?, port: first, protocol })
}
