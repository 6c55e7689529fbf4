// SPDX-License-Identifier: Apache-2.0
//! Sections of a rule: who, and on which ports or ICMP types.

use super::cursor::{Cursor, Field, Fields, all, narrowing_list, one_of, optional};
use super::ports::{icmp_rule, port_rule};
use super::selectors::selector;
use crate::policy::rule::Entity;
use crate::policy::section::{CidrRule, Section, ServiceRef};
use crate::prefix::Prefix;

/// A section's field names.
pub struct Names {
    endpoints: &'static str,
    requires: &'static str,
    cidr: &'static str,
    cidr_set: &'static str,
    entities: &'static str,
    nodes: &'static str,
    services: Option<&'static str>,
    later: &'static [&'static str],
}

pub const INGRESS: Names = Names {
    endpoints: "fromEndpoints",
    requires: "fromRequires",
    cidr: "fromCIDR",
    cidr_set: "fromCIDRSet",
    entities: "fromEntities",
    nodes: "fromNodes",
    services: None,
    later: &["fromGroups", "authentication"],
};
pub const EGRESS: Names = Names {
    endpoints: "toEndpoints",
    requires: "toRequires",
    cidr: "toCIDR",
    cidr_set: "toCIDRSet",
    entities: "toEntities",
    nodes: "toNodes",
    services: Some("toServices"),
    later: &["toFQDNs", "toGroups", "authentication"],
};

/// A list of sections. Null counts as absent, which enforces nothing for `ingress`; of a deny list it would take the
/// denial away, so it is refused there.
pub fn sections(fields: &Fields<'_>, name: &str, names: &Names, deny: bool) -> Option<Vec<Section>> {
    let Some(field) = fields.get(name) else { return Some(Vec::new()) };
    if field.value.is_null() {
        if deny {
            field.error("expected a list of rules, found nothing (null): leave the field out or write a list");
            return None;
        }
        return Some(Vec::new());
    }
    all(field.value.list("rules")?, |item| section(item, names, deny))
}

fn section(at: &Cursor<'_>, names: &Names, deny: bool) -> Option<Section> {
    let fields = at.map("peers and ports")?;
    let known = [names.endpoints, names.requires, names.cidr, names.cidr_set, names.entities, names.nodes, "toPorts", "icmps"];
    let known: Vec<&str> = known.into_iter().chain(names.services).collect();
    let allowed = fields.allow(&known, names.later);
    let endpoints = optional(narrowing_list(&fields, names.endpoints, "selectors"), |i| all(i, selector));
    let requires = optional(narrowing_list(&fields, names.requires, "selectors"), |i| all(i, selector));
    let cidr = optional(narrowing_list(&fields, names.cidr, "prefixes"), |i| all(i, cidr));
    let cidr_set = optional(narrowing_list(&fields, names.cidr_set, "prefixes with exceptions"), |i| all(i, cidr_rule));
    let entities = optional(narrowing_list(&fields, names.entities, "entities"), |i| all(i, entity));
    let nodes = optional(narrowing_list(&fields, names.nodes, "selectors"), |i| all(i, selector));
    let services = match names.services {
        Some(name) => optional(narrowing_list(&fields, name, "services"), |i| all(i, service)),
        None => Some(None),
    };
    let to_ports = optional(narrowing_list(&fields, "toPorts", "port rules"), |i| all(i, |p| port_rule(p, deny)));
    let icmps = optional(narrowing_list(&fields, "icmps", "ICMP rules"), |i| all(i, icmp_rule));
    if deny && let Some(field) = fields.get(names.requires) {
        field.error("a requirement stands in an allowing rule: it denies everybody who does not meet it");
        return None;
    }
    if let (Some(_), Some(field)) = (fields.get("toPorts"), fields.get("icmps")) {
        field.error("ports and ICMP types cannot stand in one rule: write two rules");
        return None;
    }
    allowed?;
    let no_selector = |f: &Field<'_>, items: &[_]| {
        let bad = items.is_empty();
        if bad {
            f.error("expected at least one selector, found an empty list");
        }
        !bad
    };
    let requires = requires?;
    if let (Some(field), Some(items)) = (fields.get(names.requires), &requires)
        && !no_selector(field, items)
    {
        return None;
    }
    Some(Section {
        endpoints: endpoints?,
        requires: requires.unwrap_or_default(),
        cidr: cidr?,
        cidr_set: cidr_set?,
        entities: entities?,
        nodes: nodes?,
        services: services?,
        to_ports: to_ports?.unwrap_or_default(),
        icmps: icmps?.unwrap_or_default(),
    })
}

fn entity(at: &Cursor<'_>) -> Option<Entity> {
    one_of(at, "entity", &Entity::ALL, Entity::as_str, false)
}

/// A prefix or one address, but not every address.
fn cidr(at: &Cursor<'_>) -> Option<Prefix> {
    let text = at.text("a prefix such as 10.0.0.0/8")?;
    let prefix: Prefix = text.parse().map_err(|e: crate::prefix::PrefixError| at.error(e.to_string())).ok()?;
    if prefix.length() == 0 {
        let entity = if prefix.ip().is_ipv4() { "world-ipv4" } else { "world-ipv6" };
        at.error(format!("{prefix} is every address: write entity `{entity}`, `world` or `all`, or a CIDRSet with exceptions"));
        return None;
    }
    Some(prefix)
}

/// A prefix that must be written with its length.
pub fn prefix(at: &Cursor<'_>) -> Option<Prefix> {
    let text = at.text("a prefix such as 10.0.0.0/8")?;
    Prefix::with_length(text).map_err(|e| at.error(e.to_string())).ok()
}

/// Exceptions lie inside of the prefix and leave some of it.
pub fn exceptions(cidr: Prefix, items: Vec<Cursor<'_>>) -> Option<Vec<Prefix>> {
    all(items, |item| {
        let except = prefix(item)?;
        if !cidr.covers(except) {
            item.error(format!("exception {except} does not lie inside of {cidr}"));
            return None;
        }
        if cidr == except {
            item.error(format!("exception {except} leaves nothing of {cidr}"));
            return None;
        }
        Some(except)
    })
}

fn cidr_rule(at: &Cursor<'_>) -> Option<CidrRule> {
    let fields = at.map("a prefix with exceptions")?;
    let allowed = fields.allow(&["cidr", "except"], &["cidrGroupRef", "cidrGroupSelector"]);
    allowed?;
    let cidr = fields.required("cidr", "a prefix such as 10.0.0.0/8").and_then(prefix)?;
    let except = optional(narrowing_list(&fields, "except", "prefixes"), |items| exceptions(cidr, items))?;
    Some(CidrRule { cidr, except: except.unwrap_or_default() })
}

fn service(at: &Cursor<'_>) -> Option<ServiceRef> {
    let fields = at.map("a service")?;
    fields.allow(&["k8sService", "k8sServiceSelector"], &[])?;
    let (name, by_labels) = (fields.value("k8sService"), fields.value("k8sServiceSelector"));
    let namespace = |fields: &Fields<'_>| match fields.value("namespace") {
        Some(n) => super::object::object_name(n, "a namespace").map(Some),
        None => Some(None),
    };
    match (name, by_labels) {
        (Some(service), None) => {
            let fields = service.map("a service's name and namespace")?;
            let allowed = fields.allow(&["serviceName", "namespace"], &[]);
            let name = fields.required("serviceName", "a service's name")?;
            let service_name = super::object::object_name(name, "a service's name");
            let namespace = namespace(&fields);
            allowed?;
            Some(ServiceRef::K8sService { service_name: service_name?, namespace: namespace? })
        }
        (None, Some(service)) => {
            let fields = service.map("a selector and namespace")?;
            let allowed = fields.allow(&["selector", "namespace"], &[]);
            let selector = fields.required("selector", "a selector of services' labels").and_then(selector);
            let namespace = namespace(&fields);
            allowed?;
            Some(ServiceRef::K8sServiceSelector { selector: selector?, namespace: namespace? })
        }
        (Some(_), Some(_)) | (None, None) => {
            at.error("expected exactly one of k8sService and k8sServiceSelector");
            None
        }
    }
}

/// The items of a mandatory list: at least one, and at most so many.
pub fn bounded<'a>(fields: &Fields<'a>, name: &str, what: &str, most: usize) -> Option<Vec<Cursor<'a>>> {
    let items = fields.required(name, &format!("a list of {what}s"))?.list(&format!("{what}s"))?;
    if items.is_empty() {
        if let Some(field) = fields.get(name) {
            field.error(format!("expected at least one {what}, found an empty list"));
        }
        return None;
    }
    if items.len() > most {
        items[most].error(format!("{} {what}s in one list are too many (at most {most})", items.len()));
        return None;
    }
    Some(items)
}
