// SPDX-License-Identifier: Apache-2.0
//! One rule, field by field.

use super::cursor::{Cursor, Fields, shorten};
use super::object::object_name;
use crate::label::{Label, LabelError, Labels, Source, check_value};
use crate::policy::rule::{Entity, ObjectKind, ObjectRef, Origin, PortProtocol, PortRule, Protocol, Rule, SectionParts};
use crate::selector::{Expression, Operator, SelectorKey, SelectorSpec};
use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

const RULE: &[&str] = &["endpointSelector", "ingress", "ingressDeny", "egress", "egressDeny", "labels", "description"];
const RULE_LATER: &[&str] = &["nodeSelector", "enableDefaultDeny", "log"];

/// A section's field names: peers, and what comes later.
struct Names {
    endpoints: &'static str,
    entities: &'static str,
    later: &'static [&'static str],
}

const INGRESS: Names = Names {
    endpoints: "fromEndpoints",
    entities: "fromEntities",
    later: &["fromRequires", "fromCIDR", "fromCIDRSet", "fromNodes", "fromGroups", "icmps", "authentication"],
};
const EGRESS: Names = Names {
    endpoints: "toEndpoints",
    entities: "toEntities",
    later: &["toRequires", "toCIDR", "toCIDRSet", "toServices", "toFQDNs", "toNodes", "toGroups", "icmps", "authentication"],
};
const PORT_RULE_LATER: &[&str] = &["terminatingTLS", "originatingTLS", "serverNames", "listener"];
const L7: &[&str] = &["http", "kafka", "dns", "l7", "l7proto"];
const ENTITIES_LATER: &[&str] = &["kube-apiserver", "ingress", "world-ipv4", "world-ipv6"];

/// A rule of a plain list. It may say which object it belongs to (`origin`), as printed rules do.
pub fn bare_rule(at: &Cursor<'_>) -> Option<Rule> {
    let fields = at.map("a rule")?;
    let object = match fields.value("origin") {
        Some(o) => origin_object(&o.map("an origin")?)?,
        None => None,
    };
    rule(at, Some(object))
}

fn origin_object(origin: &Fields<'_>) -> Option<Option<ObjectRef>> {
    origin.allow(&["file", "line", "index", "object"], &[])?;
    let Some(object) = origin.value("object") else { return Some(None) };
    let fields = object.map("a policy object")?;
    fields.allow(&["kind", "namespace", "name"], &[])?;
    let kind = one_of(fields.required("kind", "a kind of policy")?, "kind", &ObjectKind::ALL, ObjectKind::as_str, false)?;
    let name = object_name(fields.required("name", "the policy's name")?, "the policy's name")?;
    let namespace = match kind {
        ObjectKind::CiliumNetworkPolicy => Some(object_name(fields.required("namespace", "a namespace")?, "a namespace")?),
        ObjectKind::CiliumClusterwideNetworkPolicy => {
            fields.allow(&["kind", "name"], &[])?;
            None
        }
    };
    Some(Some(ObjectRef { kind, namespace, name }))
}

/// A rule. `origin`: an `origin` field is allowed and was read already.
pub fn rule(at: &Cursor<'_>, origin: Option<Option<ObjectRef>>) -> Option<Rule> {
    let fields = at.map("a rule")?;
    let known: Vec<&str> = RULE.iter().copied().chain(origin.is_some().then_some("origin")).collect();
    let allowed = fields.allow(&known, RULE_LATER);
    let endpoint_selector = fields.required("endpointSelector", "a selector (`{}` selects every endpoint)").and_then(selector);
    let ingress = sections(&fields, "ingress", &INGRESS);
    let ingress_deny = sections(&fields, "ingressDeny", &INGRESS);
    let egress = sections(&fields, "egress", &EGRESS);
    let egress_deny = sections(&fields, "egressDeny", &EGRESS);
    let labels = fields.value("labels").map_or(Some(Labels::new()), rule_labels);
    let description = match fields.value("description") {
        Some(d) => Some(d.text("a description")?.to_owned()),
        None => None,
    };
    allowed?;
    let origin = Origin { file: at.sink.file.clone(), line: at.at().line, index: 0, object: origin.flatten() };
    Some(Rule {
        endpoint_selector: endpoint_selector?,
        ingress: ingress?.into_iter().map(Into::into).collect(),
        ingress_deny: ingress_deny?.into_iter().map(Into::into).collect(),
        egress: egress?.into_iter().map(Into::into).collect(),
        egress_deny: egress_deny?.into_iter().map(Into::into).collect(),
        labels: labels?,
        description,
        origin: Arc::new(origin),
    })
}

/// Reads every item, so that every mistake is noted; `None` if one had any.
fn all<'a, T>(items: Vec<Cursor<'a>>, mut read: impl FnMut(&Cursor<'a>) -> Option<T>) -> Option<Vec<T>> {
    let count = items.len();
    let good: Vec<T> = items.iter().filter_map(&mut read).collect();
    (good.len() == count).then_some(good)
}

/// A list that narrows what a rule allows. Null is refused: it would read as "absent", which allows more.
fn narrowing_list<'a>(fields: &Fields<'a>, name: &str, what: &str) -> Option<Option<Vec<Cursor<'a>>>> {
    let Some(field) = fields.get(name) else { return Some(None) };
    if field.value.is_null() {
        field.error(format!("expected a list of {what}, found nothing (null): leave the field out or write a list"));
        return None;
    }
    field.value.list(what).map(Some)
}

fn sections(fields: &Fields<'_>, name: &str, names: &Names) -> Option<Vec<SectionParts>> {
    let Some(list) = fields.value(name) else { return Some(Vec::new()) };
    all(list.list("rules")?, |item| section(item, names))
}

fn section(at: &Cursor<'_>, names: &Names) -> Option<SectionParts> {
    let fields = at.map("peers and ports")?;
    let allowed = fields.allow(&[names.endpoints, names.entities, "toPorts"], names.later);
    let endpoints = optional(narrowing_list(&fields, names.endpoints, "selectors"), |i| all(i, selector));
    let entities = optional(narrowing_list(&fields, names.entities, "entities"), |i| all(i, entity));
    let to_ports = optional(narrowing_list(&fields, "toPorts", "port rules"), |i| all(i, port_rule));
    allowed?;
    Some(SectionParts { endpoints: endpoints?, entities: entities?, to_ports: to_ports?.unwrap_or_default() })
}

fn optional<'a, T>(list: Option<Option<Vec<Cursor<'a>>>>, read: impl FnOnce(Vec<Cursor<'a>>) -> Option<Vec<T>>) -> Option<Option<Vec<T>>> {
    match list? {
        Some(items) => read(items).map(Some),
        None => Some(None),
    }
}

fn entity(at: &Cursor<'_>) -> Option<Entity> {
    let text = at.text("an entity")?;
    if ENTITIES_LATER.contains(&text) {
        at.error(format!("entity `{text}` is not supported by this version"));
        return None;
    }
    one_of(at, "entity", &Entity::ALL, Entity::as_str, false)
}

/// One of a set of names.
fn one_of<T: Copy>(at: &Cursor<'_>, what: &str, all: &[T], name: impl Fn(T) -> &'static str, any_case: bool) -> Option<T> {
    let names: Vec<&str> = all.iter().map(|t| name(*t)).collect();
    let text = at.text(what)?;
    let found = names.iter().position(|n| *n == text || (any_case && n.eq_ignore_ascii_case(text)));
    if found.is_none() {
        at.error(format!("unknown {what} `{}` (expected {})", shorten(text), names.join(", ")));
    }
    found.map(|n| all[n])
}

fn port_rule(at: &Cursor<'_>) -> Option<PortRule> {
    let fields = at.map("a port rule")?;
    let known = ["ports", "rules"];
    let allowed = fields.allow(&known, PORT_RULE_LATER);
    let l7 = fields.get("rules").map(|rules| match rules.value.map("L7 rules") {
        Some(kinds) if kinds.fields.is_empty() => rules.error("is not supported by this version"),
        Some(kinds) => drop(kinds.allow(&[], L7)),
        None => {}
    });
    let items = fields.required("ports", "a list of ports")?.list("ports")?;
    if items.is_empty() {
        fields.fields.iter().filter(|f| f.name == "ports").for_each(|f| f.error("expected at least one port, found an empty list"));
        return None;
    }
    if items.len() > PortRule::MAX_PORTS {
        items[PortRule::MAX_PORTS].error(format!("{} ports in one list are too many (at most {})", items.len(), PortRule::MAX_PORTS));
        return None;
    }
    let ports = all(items, port_protocol);
    allowed?;
    if l7.is_some() { None } else { Some(PortRule { ports: ports? }) }
}

fn port_protocol(at: &Cursor<'_>) -> Option<PortProtocol> {
    let fields = at.map("a port")?;
    let allowed = fields.allow(&["port", "endPort", "protocol"], &[]);
    let port = fields.required("port", "a number from 1 to 65535").and_then(port_number);
    let end_port = match fields.value("endPort") {
        Some(end) => port_number(end).map(|n| Some((n, end))),
        None => Some(None),
    };
    let protocol = match fields.value("protocol") {
        Some(p) => one_of(p, "protocol", &Protocol::ALL, Protocol::as_str, true),
        None => Some(Protocol::Any),
    };
    allowed?;
    let (port, end_port) = (port?, end_port?);
    if let Some((end, cursor)) = end_port
        && end < port
    {
        cursor.error(format!("the range ends at {end}, before it begins at {port}"));
        return None;
    }
    Some(PortProtocol { port, end_port: end_port.map(|(end, _)| end), protocol: protocol? })
}

/// A number or its text, decimal or with `0x`.
fn port_number(at: &Cursor<'_>) -> Option<NonZeroU16> {
    let text = at.scalar("a port number from 1 to 65535")?;
    let digits = |t: &str, radix| t.chars().all(|c| c.is_digit(radix));
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if digits(hex, 16) => u16::from_str_radix(hex, 16).ok(),
        // A leading zero means octal to some readers.
        None if digits(text, 10) && !text.starts_with('0') => text.parse().ok(),
        Some(_) | None => None,
    };
    if let Some(port) = parsed.and_then(NonZeroU16::new) {
        return Some(port);
    }
    let named = text.len() <= 15 && text.starts_with(|c: char| c.is_ascii_alphabetic());
    if named && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        at.error(format!("named port `{text}` is not supported by this version (expected a number from 1 to 65535)"));
    } else {
        at.error(format!("expected a port number from 1 to 65535, found {:?}", shorten(text)));
    }
    None
}

fn selector(at: &Cursor<'_>) -> Option<SelectorSpec> {
    let fields = at.map("a selector")?;
    let allowed = fields.allow(&["matchLabels", "matchExpressions"], &[]);
    let match_labels = fields.get("matchLabels").map_or(Some(Default::default()), |f| match_labels(&f.value));
    let match_expressions = narrowing_list(&fields, "matchExpressions", "expressions");
    let match_expressions = optional(match_expressions, |items| all(items, expression));
    allowed?;
    Some(SelectorSpec { match_labels: match_labels?, match_expressions: match_expressions?.unwrap_or_default() })
}

fn match_labels(at: &Cursor<'_>) -> Option<BTreeMap<SelectorKey, String>> {
    let fields = at.map("labels")?;
    let mut labels = BTreeMap::new();
    for field in &fields.fields {
        let key = field.name.parse::<SelectorKey>().map_err(|e| field.error(e.to_string())).ok();
        // `key:` without a value is the empty value, as in `reserved:host:`.
        let value = if field.value.is_null() { Some(String::new()) } else { label_value(&field.value) };
        let (Some(key), Some(value)) = (key, value) else { continue };
        let text = key.to_string();
        if labels.insert(key, value).is_some() {
            field.error(format!("label `{text}` is given twice"));
        }
    }
    (labels.len() == fields.fields.len()).then_some(labels)
}

fn label_value(at: &Cursor<'_>) -> Option<String> {
    let text = at.text("a label value")?;
    check_value(text).map_err(|e| at.error(e.to_string())).ok()?;
    Some(text.to_owned())
}

fn expression(at: &Cursor<'_>) -> Option<Expression> {
    let fields = at.map("an expression")?;
    let allowed = fields.allow(&["key", "operator", "values"], &[]);
    let key = fields.required("key", "a label key").and_then(selector_key);
    let operator = fields.required("operator", "In, NotIn, Exists or DoesNotExist");
    let operator = operator.and_then(|o| one_of(o, "operator", &Operator::ALL, Operator::as_str, false))?;
    let values = match fields.value("values") {
        Some(list) => all(list.list("label values")?, label_value)?,
        None => Vec::new(),
    };
    if operator.takes_values() == values.is_empty() {
        let rule = if operator.takes_values() { "needs at least one value" } else { "takes no values" };
        fields.get("values").map_or(at, |f| &f.value).error(format!("operator {} {rule}", operator.as_str()));
        return None;
    }
    allowed?;
    Some(Expression { key: key?, operator, values })
}

fn selector_key(at: &Cursor<'_>) -> Option<SelectorKey> {
    at.text("a label key")?.parse().map_err(|e: crate::selector::KeyError| at.error(e.to_string())).ok()
}

/// Labels of a rule: texts, or mappings with `key`, `value` and `source`.
fn rule_labels(at: &Cursor<'_>) -> Option<Labels> {
    let mut labels = Labels::new();
    let items = all(at.list("labels")?, |item| Some((item.clone(), rule_label(item)?)))?;
    for (item, label) in items {
        labels.add(label).map_err(|e| item.error(e.to_string())).ok()?;
    }
    Some(labels)
}

fn rule_label(at: &Cursor<'_>) -> Option<Label> {
    if !at.is_map() {
        return at.text("a label")?.parse().map_err(|e: LabelError| at.error(e.to_string())).ok();
    }
    let fields = at.map("a label")?;
    fields.allow(&["key", "value", "source"], &[])?;
    let key = fields.required("key", "a label key")?.text("a label key")?;
    let value = fields.value("value").map_or(Some(String::new()), label_value)?;
    let source = match fields.value("source") {
        Some(s) => one_of(s, "label source", &Source::ALL, Source::as_str, false)?,
        None => Source::Unspec,
    };
    Label::new(source, key, value).map_err(|e| at.error(e.to_string())).ok()
}
