// SPDX-License-Identifier: Apache-2.0
//! One rule, field by field.

use super::cursor::{Cursor, Fields, all, one_of};
use super::object::object_name;
use super::sections::{EGRESS, INGRESS, sections};
use super::selectors::{label_value, selector};
use crate::label::{Label, LabelError, Labels, Source};
use crate::policy::rule::{DefaultDeny, ObjectKind, ObjectRef, Origin, Rule};
use std::sync::Arc;

const RULE: &[&str] = &["endpointSelector", "ingress", "ingressDeny", "egress", "egressDeny", "enableDefaultDeny", "labels", "description"];
const RULE_LATER: &[&str] = &["nodeSelector", "log"];

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
    let namespace = if kind.namespaced() {
        Some(object_name(fields.required("namespace", "a namespace")?, "a namespace")?)
    } else {
        fields.allow(&["kind", "name"], &[])?;
        None
    };
    Some(Some(ObjectRef { kind, namespace, name }))
}

/// A rule. `origin`: an `origin` field is allowed and was read already.
pub fn rule(at: &Cursor<'_>, origin: Option<Option<ObjectRef>>) -> Option<Rule> {
    let fields = at.map("a rule")?;
    let known: Vec<&str> = RULE.iter().copied().chain(origin.is_some().then_some("origin")).collect();
    let allowed = fields.allow(&known, RULE_LATER);
    let endpoint_selector = fields.required("endpointSelector", "a selector (`{}` selects every endpoint)").and_then(selector);
    let ingress = sections(&fields, "ingress", &INGRESS, false);
    let ingress_deny = sections(&fields, "ingressDeny", &INGRESS, true);
    let egress = sections(&fields, "egress", &EGRESS, false);
    let egress_deny = sections(&fields, "egressDeny", &EGRESS, true);
    let enable_default_deny = fields.value("enableDefaultDeny").map_or(Some(DefaultDeny::default()), default_deny);
    let labels = fields.value("labels").map_or(Some(Labels::new()), rule_labels);
    let description = match fields.value("description") {
        Some(d) => Some(d.text("a description")?.to_owned()),
        None => None,
    };
    allowed?;
    let origin = Origin { file: at.sink.file.clone(), line: at.at().line, index: 0, object: origin.flatten() };
    Some(Rule {
        endpoint_selector: endpoint_selector?,
        ingress: ingress?,
        ingress_deny: ingress_deny?,
        egress: egress?,
        egress_deny: egress_deny?,
        enable_default_deny: enable_default_deny?,
        labels: labels?,
        description,
        origin: Arc::new(origin),
    })
}

fn default_deny(at: &Cursor<'_>) -> Option<DefaultDeny> {
    let fields = at.map("ingress and egress")?;
    fields.allow(&["ingress", "egress"], &[])?;
    let read = |name| fields.value(name).map_or(Some(None), |v| v.truth().map(Some));
    let (ingress, egress) = (read("ingress"), read("egress"));
    Some(DefaultDeny { ingress: ingress?, egress: egress? })
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
