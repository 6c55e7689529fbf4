// SPDX-License-Identifier: Apache-2.0
//! Documents: policy objects and plain lists.

use super::cursor::{Cursor, Fields, shorten};
use super::network_policy;
use super::rules::{bare_rule, rule};
use crate::label::{Label, Source};
use crate::policy::rule::{ObjectKind, ObjectRef, Rule};
use crate::selector::NAMESPACE;
use crate::selector::SelectorKey;
use std::collections::BTreeSet;

const CILIUM: &str = "cilium.io/v2";
const NETWORKING: &str = "networking.k8s.io/v1";
const KINDS: &str = "CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy or NetworkPolicy";
const POLICY_NAME: &str = "io.cilium.k8s.policy.name";
const POLICY_NAMESPACE: &str = "io.cilium.k8s.policy.namespace";

/// The rules of one document; mistakes go to the sink. `objects`: those of the text so far.
pub fn document(doc: &Cursor<'_>, objects: &mut BTreeSet<ObjectRef>) -> Vec<Rule> {
    if doc.is_null() {
        return Vec::new();
    }
    if doc.is_list() {
        let items = doc.list("rules").unwrap_or_default();
        return items.iter().filter_map(bare_rule).collect();
    }
    let Some(fields) = doc.map("a list of rules, or an object with apiVersion and kind") else { return Vec::new() };
    if fields.get("apiVersion").is_none() && fields.get("kind").is_none() && fields.get("endpointSelector").is_some() {
        doc.error("a single rule must stand in a list (`- endpointSelector: ...`)");
        return Vec::new();
    }
    object(&fields, objects).unwrap_or_default()
}

fn object(fields: &Fields<'_>, objects: &mut BTreeSet<ObjectRef>) -> Option<Vec<Rule>> {
    let version = fields.required("apiVersion", &format!("{CILIUM} or {NETWORKING}"))?;
    let kind = fields.required("kind", KINDS)?;
    let (version_text, kind_text) = (version.text("a version")?, kind.text("a kind of policy")?);
    if kind_text == "List" || kind_text.strip_suffix("List").is_some_and(|k| ObjectKind::ALL.iter().any(|o| o.as_str() == k)) {
        fields.allow(&["apiVersion", "kind", "metadata", "items"], &[])?;
        let items = fields.required("items", "a list of objects")?.list("objects")?;
        return Some(items.iter().filter_map(|item| object(&item.map("an object")?, objects)).flatten().collect());
    }
    let Some(known) = ObjectKind::ALL.into_iter().find(|k| k.as_str() == kind_text) else {
        kind.error(format!("`{}` is no kind of policy (expected {KINDS})", shorten(kind_text)));
        return None;
    };
    let wanted = if known == ObjectKind::NetworkPolicy { NETWORKING } else { CILIUM };
    if version_text != wanted {
        version.error(format!("unknown version `{}` of {kind_text} (expected {wanted})", shorten(version_text)));
        return None;
    }
    let of_cilium: &[&str] = &["apiVersion", "kind", "metadata", "spec", "specs", "description", "status"];
    let allowed = fields
        .allow(if known == ObjectKind::NetworkPolicy { &["apiVersion", "kind", "metadata", "spec", "status"] } else { of_cilium }, &[]);
    let object = metadata(fields, known);
    let description = match fields.value("description") {
        Some(d) => Some(d.text("a description")?.to_owned()),
        None => None,
    };
    let specs =
        if known == ObjectKind::NetworkPolicy { vec![fields.required("spec", "what the policy says")?.clone()] } else { specs(fields)? };
    let read = |s: &Cursor<'_>| if known == ObjectKind::NetworkPolicy { network_policy::rule(s) } else { rule(s, None) };
    let mut rules: Vec<(&Cursor<'_>, Rule)> = Vec::new();
    let mut whole = Some(());
    for spec in &specs {
        match read(spec) {
            Some(rule) => rules.push((spec, rule)),
            None => whole = None,
        }
    }
    let object = object?;
    allowed?;
    whole?;
    if !objects.insert(object.clone()) {
        let metadata = fields.value("metadata")?.map("metadata")?;
        metadata.value("name")?.error(format!("{object} is given twice in this text"));
        return None;
    }
    rules.iter().for_each(|(at, rule)| check_namespace(at, rule, &object));
    Some(rules.into_iter().map(|(_, r)| belongs(r, &object, description.as_deref())).collect())
}

/// The rules that an object holds, unread.
fn specs<'a>(fields: &Fields<'a>) -> Option<Vec<Cursor<'a>>> {
    let mut out: Vec<Cursor<'a>> = fields.value("spec").into_iter().cloned().collect();
    if let Some(list) = fields.value("specs") {
        out.extend(list.list("rules")?);
    }
    if out.is_empty() {
        fields.required("spec", "a rule, or rules in `specs`");
        return None;
    }
    Some(out)
}

fn metadata(fields: &Fields<'_>, kind: ObjectKind) -> Option<ObjectRef> {
    let metadata = fields.required("metadata", "the object's metadata with its name")?.map("metadata")?;
    let name = metadata.required("name", "the policy's name").and_then(|n| object_name(n, "the policy's name"));
    let namespace = match metadata.value("namespace") {
        Some(n) if !kind.namespaced() => {
            n.error("a CiliumClusterwideNetworkPolicy belongs to no namespace");
            return None;
        }
        _ if !kind.namespaced() => None,
        None => Some("default".to_owned()),
        Some(n) if n.scalar("a namespace") == Some("") => Some("default".to_owned()),
        Some(n) => Some(object_name(n, "a namespace")?),
    };
    Some(ObjectRef { kind, namespace, name: name? })
}

/// A name as Kubernetes has them: lower case letters, digits, `-` and `.`, at most 253.
pub fn object_name(value: &Cursor<'_>, what: &str) -> Option<String> {
    let text = value.text(what)?;
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if text.is_empty() || text.len() > 253 || !text.chars().all(inner) || !text.starts_with(ends) || !text.ends_with(ends) {
        value.error(format!("expected {what} (lower case letters, digits, `-` and `.`), found {:?}", shorten(text)));
        return None;
    }
    Some(text.to_owned())
}

/// A selector that asks for another namespace than the object's would select nothing.
fn check_namespace(at: &Cursor<'_>, rule: &Rule, object: &ObjectRef) {
    let asks =
        |(key, _): &(&SelectorKey, &String)| key.key() == NAMESPACE && matches!(key.source(), None | Some(Source::K8s | Source::Any));
    let asked = rule.endpoint_selector.match_labels.iter().find(asks).map(|(_, value)| value);
    if let (Some(asked), Some(own)) = (asked, &object.namespace)
        && asked != own
        && let Some(selector) = at.map("a rule").and_then(|f| f.value("endpointSelector").cloned())
    {
        selector.error(format!("selects namespace `{}`, but the policy belongs to `{own}`", shorten(asked)));
    }
}

/// Ties a rule to its object, with the labels that every rule of an object has.
fn belongs(mut rule: Rule, object: &ObjectRef, description: Option<&str>) -> Rule {
    let given = [(POLICY_NAME, Some(&object.name)), (POLICY_NAMESPACE, object.namespace.as_ref())];
    for (key, value) in given {
        if let Some(Ok(label)) = value.map(|v| Label::new(Source::K8s, key, v)) {
            rule.labels.insert(label);
        }
    }
    if rule.description.is_none() {
        rule.description = description.map(str::to_owned);
    }
    std::sync::Arc::make_mut(&mut rule.origin).object = Some(object.clone());
    rule
}
