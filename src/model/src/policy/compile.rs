// SPDX-License-Identifier: Apache-2.0
//! Rules made ready: selectors in normal form, ports as spans.

use super::entry::{Action, Entry, Precedence, RuleRef, Tier};
use super::l7::L7Rules;
use super::resolve::Direction;
use super::rule::{Entity, ObjectRef, Rule};
use super::section::{Port, Section};
use super::tables::{Behind, PortNames, Services, behind};
use crate::label::Source;
use crate::prefix::Prefix;
use crate::selector::{NAMESPACE, NAMESPACE_LABELS, Selector, SelectorSpec};
use std::sync::Arc;

/// Confines a peer selector to the object's namespace, unless it says itself which namespaces it means or asks for a
/// fixed identity, which has none. Without asking for one it selects endpoints only, whatever it excludes.
fn peer_selector(spec: &SelectorSpec, object: Option<&ObjectRef>) -> Selector {
    let reserved = spec.keys().any(|key| key.source() == Some(Source::Reserved));
    let named = spec.keys().any(|key| {
        matches!(key.source(), None | Some(Source::K8s | Source::Any))
            && (key.key() == NAMESPACE || key.key().starts_with(NAMESPACE_LABELS))
    });
    match object.and_then(|o| o.namespace.as_deref()) {
        _ if reserved => spec.selector(),
        Some(namespace) if !named => spec.selector_within(namespace).endpoints_only(),
        _ => spec.selector().endpoints_only(),
    }
}

#[derive(Clone, Debug)]
pub(super) enum Peers {
    Any,
    Selected(Vec<Selector>),
}

/// Ports of one item; a name becomes numbers when it is known whose ports are meant.
#[derive(Clone, Debug)]
enum Ports {
    Span(u16, u16),
    Name(String),
}

#[derive(Clone, Debug)]
struct Span {
    ports: Ports,
    /// IP protocol, 0 any.
    proto: u8,
    l7: Option<Arc<L7Rules>>,
}

/// A section made ready.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub action: Action,
    pub peers: Peers,
    /// Every peer must match all of them.
    pub requires: Vec<Selector>,
    spans: Vec<Span>,
    pub named: bool,
}

impl Part {
    fn new(action: Action, section: &Section, object: Option<&ObjectRef>, services: &Services) -> Self {
        let mut selectors: Vec<Selector> = section.endpoints.iter().flatten().map(|s| peer_selector(s, object)).collect();
        selectors.extend(section.cidr.iter().flatten().map(|p| Selector::prefix(*p, [])));
        selectors.extend(section.cidr_set.iter().flatten().map(|c| Selector::prefix(c.cidr, c.except.iter().copied())));
        selectors.extend(section.nodes.iter().flatten().map(SelectorSpec::node_selector));
        for service in section.services.iter().flatten() {
            for who in behind(services, service, object.and_then(|o| o.namespace.as_deref())) {
                match who {
                    Behind::Endpoints { namespace, selector } => selectors.push(selector.selector_within(namespace).endpoints_only()),
                    Behind::Addresses(list) => selectors.extend(list.into_iter().map(|p| Selector::prefix(p, []))),
                }
            }
        }
        let spans = spans(section);
        // A section without any peer list is about every peer if it names ports, and about nobody if it is empty.
        let says_what = !section.to_ports.is_empty() || !section.icmps.is_empty();
        let mut any = says_what && !section.names_peers();
        for entity in section.entities.iter().flatten() {
            match (entity, entity.reserved()) {
                (Entity::All, _) => any = true,
                (Entity::Cluster, _) => selectors.push(Selector::cluster()),
                (_, Some(reserved)) => selectors.push(Selector::reserved(reserved)),
                (_, None) => {}
            }
        }
        any |= selectors.iter().any(Selector::is_everything);
        selectors.sort();
        selectors.dedup();
        // Everybody meets a demand for everybody, also who has no identity.
        let requires = section.requires.iter().map(|s| peer_selector(s, object)).filter(|s| !s.is_everything()).collect();
        let named = spans.iter().any(|s| matches!(s.ports, Ports::Name(_)));
        Self { action, peers: if any { Peers::Any } else { Peers::Selected(selectors) }, requires, spans, named }
    }

    /// Every selector that decides about a peer.
    pub fn selectors(&self) -> impl Iterator<Item = &Selector> {
        let peers = match &self.peers {
            Peers::Any => &[][..],
            Peers::Selected(selectors) => selectors,
        };
        peers.iter().chain(&self.requires)
    }

    /// What it says about a peer; `names`: of the endpoint whose ports are meant.
    pub fn entries(&self, rule: &RuleRef, names: Option<&PortNames>) -> Vec<Entry> {
        let mut out = Vec::with_capacity(self.spans.len());
        for span in &self.spans {
            let action = if span.l7.is_some() { Action::Redirect } else { self.action };
            let precedence = Precedence { tier: Tier::Policy, action };
            let mut add = |lo, hi, proto| out.push(Entry { lo, hi, proto, precedence, rule: rule.clone(), l7: span.l7.clone() });
            match &span.ports {
                Ports::Span(lo, hi) => add(*lo, *hi, span.proto),
                Ports::Name(name) => {
                    let known = names.and_then(|n| n.get(name)).into_iter().flatten();
                    known.filter(|(_, proto)| *proto == span.proto).for_each(|(port, proto)| add(*port, *port, *proto));
                }
            }
        }
        out
    }

    /// Ports and protocols with the kind of L7 rules on them.
    pub fn l7_kinds(&self) -> impl Iterator<Item = (String, u8, &'static str)> {
        let text = |s: &Span| match &s.ports {
            Ports::Span(lo, _) => lo.to_string(),
            Ports::Name(name) => name.clone(),
        };
        self.spans.iter().filter_map(move |s| Some((text(s), s.proto, s.l7.as_ref()?.kind())))
    }
}

fn spans(section: &Section) -> Vec<Span> {
    if section.to_ports.is_empty() && section.icmps.is_empty() {
        return vec![Span { ports: Ports::Span(0, u16::MAX), proto: 0, l7: None }];
    }
    let mut out = Vec::new();
    for rule in &section.to_ports {
        let l7 = rule.rules.as_ref().filter(|r| !r.is_empty()).map(|r| Arc::new(r.clone()));
        for port in &rule.ports {
            let ports = match &port.port {
                Port::Number(first) => Ports::Span(first.get(), port.end_port.unwrap_or(*first).get()),
                Port::Name(name) => Ports::Name(name.clone()),
            };
            // A proxy for DNS serves TCP and UDP.
            let numbers = port.protocol.numbers().iter().filter(|n| l7.is_none() || **n != 132);
            out.extend(numbers.map(|n| Span { ports: ports.clone(), proto: *n, l7: l7.clone() }));
        }
    }
    for field in section.icmps.iter().flat_map(|rule| &rule.fields) {
        let kind = u16::from(field.kind);
        out.push(Span { ports: Ports::Span(kind, kind), proto: field.family.protocol(), l7: None });
    }
    out
}

/// A rule made ready.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    pub subject: Selector,
    ingress: Vec<Part>,
    egress: Vec<Part>,
    default_deny: [bool; 2],
    pub rule: RuleRef,
    pub services: bool,
}

impl Compiled {
    pub fn new(rule: &Rule, services: &Services) -> Self {
        let object = rule.origin.object.as_ref();
        let subject = match object.and_then(|o| o.namespace.as_deref()) {
            Some(namespace) => rule.endpoint_selector.selector_within(namespace),
            None => rule.endpoint_selector.selector(),
        };
        let parts = |allow: &[Section], deny: &[Section]| -> Vec<Part> {
            let part = |action, s: &Section| Part::new(action, s, object, services);
            allow.iter().map(|s| part(Action::Allow, s)).chain(deny.iter().map(|s| part(Action::Deny, s))).collect()
        };
        let (ingress, egress) = (parts(&rule.ingress, &rule.ingress_deny), parts(&rule.egress, &rule.egress_deny));
        let deny = rule.enable_default_deny;
        Self {
            subject,
            default_deny: [deny.egress.unwrap_or(!egress.is_empty()), deny.ingress.unwrap_or(!ingress.is_empty())],
            ingress,
            egress,
            rule: RuleRef(rule.origin.clone()),
            services: rule.egress.iter().chain(&rule.egress_deny).any(|s| s.services.is_some()),
        }
    }

    /// Selectors of peers.
    pub fn selectors(&self) -> impl Iterator<Item = &Selector> {
        self.ingress.iter().chain(&self.egress).flat_map(Part::selectors)
    }

    pub fn parts(&self, direction: Direction) -> &[Part] {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }

    /// Whether what no rule allows is denied.
    pub fn default_deny(&self, direction: Direction) -> bool {
        self.default_deny[direction as usize]
    }

    /// Whether it has anything to say in a direction.
    pub fn speaks(&self, direction: Direction) -> bool {
        self.default_deny(direction) || !self.parts(direction).is_empty()
    }

    /// Prefixes that its addresses must be told apart by, each as often as it is written.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.selectors().flat_map(Selector::prefixes)
    }
}
