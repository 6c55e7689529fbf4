// SPDX-License-Identifier: Apache-2.0
//! Random documents, and a slow and obvious evaluator over the rules as written.

use pilus_model::identity::{NodeIdentities, NumericIdentity};
use pilus_model::label::{Label, Labels, Source};
use pilus_model::policy::{
    Direction, EnforcementMode, Entity, Origin, Port, PortNames, PortProtocol, Rule, Section, Service, ServiceRef, Subject,
};
use pilus_model::prefix::Prefix;
use pilus_model::selector::{Operator, SelectorKey, SelectorSpec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// xorshift64*
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
    pub fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
    pub fn some(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> String) -> String {
        let count = self.below(most + 1);
        (0..count).map(|_| make(self)).collect::<Vec<_>>().join(", ")
    }
}

pub const NAMESPACE: &str = "io.kubernetes.pod.namespace";

pub fn random_labels(r: &mut Random) -> Labels {
    let mut labels = Labels::new();
    labels.insert(Label::new(Source::K8s, NAMESPACE, r.one(&["default", "other"])).unwrap());
    for key in ["app", "tier", "env"] {
        if r.below(3) > 0 {
            labels.insert(Label::new([Source::K8s, Source::Container][r.below(2)], key, r.one(&["a", "b", ""])).unwrap());
        }
    }
    if r.below(4) == 0 { labels.iter().filter(|l| l.key() != NAMESPACE).cloned().collect() } else { labels }
}

/// Of another node.
pub fn random_node_labels(r: &mut Random) -> Labels {
    let own = [&["role=db"][..], &["role=web", "zone=a"], &["role=db", "node:zone=b"]][r.below(3)];
    NodeIdentities::labels(own).unwrap()
}

fn random_key<'a>(r: &mut Random) -> &'a str {
    r.one(&["app", "tier", "env", "k8s:app", "container:tier", "any:env", "app", "tier", "k8s:io.kubernetes.pod.namespace"])
}

fn random_selector(r: &mut Random) -> String {
    if r.below(12) == 0 {
        let name = r.one(&["host", "world", "remote-node", "all", "cluster", "init"]);
        return format!("{{matchLabels: {{'reserved:{name}': ''}}}}");
    }
    let mut labels: Vec<String> = Vec::new();
    if r.below(2) == 0 {
        let (key, value) = (random_key(r), r.one(&["a", "b", ""]));
        // An object may only select in its own namespace.
        let value = if key.ends_with(NAMESPACE) { "default" } else { value };
        labels.push(format!("'{key}': '{value}'"));
    }
    let expressions = r.some(1, |r| {
        let key = random_key(r);
        match r.below(4) {
            0 => format!("{{key: '{key}', operator: In, values: [a, other]}}"),
            1 => format!("{{key: '{key}', operator: NotIn, values: [a, '']}}"),
            2 => format!("{{key: '{key}', operator: Exists}}"),
            _ => format!("{{key: '{key}', operator: DoesNotExist}}"),
        }
    });
    format!("{{matchLabels: {{{}}}, matchExpressions: [{expressions}]}}", labels.join(", "))
}

const PREFIXES: [&str; 8] =
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "192.0.2.0/24", "fd00::/8", "fd00:1::/32", "fd00:1::5/128"];

pub fn random_address<'a>(r: &mut Random) -> &'a str {
    r.one(&["10.1.2.3", "10.9.9.9", "192.0.2.7", "fd00:1::5"])
}

fn random_port(r: &mut Random, names: bool) -> String {
    if names && r.below(6) == 0 {
        return format!("{{port: {}, protocol: {}}}", r.one(&["http", "dns"]), r.one(&["TCP", "UDP", "ANY"]));
    }
    let port = 1 + r.below(12);
    let end = if r.below(3) == 0 { format!(", endPort: {}", port + r.below(5)) } else { String::new() };
    let proto = r.one(&["", ", protocol: TCP", ", protocol: UDP", ", protocol: ANY", ", protocol: TCP"]);
    format!("{{port: {port}{end}{proto}}}")
}

fn random_section(r: &mut Random, from: &str, deny: bool) -> String {
    let mut fields = Vec::new();
    if r.below(2) == 0 {
        fields.push(format!("{from}Endpoints: [{}]", r.some(2, random_selector)));
    }
    if r.below(4) == 0 {
        let names = ["all", "world", "world-ipv4", "world-ipv6", "cluster", "host", "remote-node", "health", "init", "unmanaged", "none"];
        fields.push(format!("{from}Entities: [{}]", r.some(2, |r| r.one(&names).to_owned())));
    }
    if r.below(4) == 0 {
        fields.push(format!("{from}CIDR: [{}]", r.some(2, |r| format!("'{}'", r.one(&PREFIXES)))));
    }
    if r.below(5) == 0 {
        let sets = [
            "{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}",
            "{cidr: 10.0.0.0/8, except: [10.1.2.0/24, 10.64.0.0/10]}",
            "{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}",
            "{cidr: '::/0'}",
            "{cidr: 'fd00::/8', except: ['fd00:1::/32']}",
        ];
        fields.push(format!("{from}CIDRSet: [{}]", r.some(2, |r| r.one(&sets).to_owned())));
    }
    if r.below(8) == 0 {
        let nodes = [
            "{}",
            "{matchLabels: {role: db}}",
            "{matchLabels: {'node:zone': a}, matchExpressions: [{key: role, operator: NotIn, values: [db]}]}",
            "{matchExpressions: [{key: zone, operator: Exists}]}",
            "{matchExpressions: [{key: 'any:zone', operator: DoesNotExist}]}",
            "{matchLabels: {'k8s:role': db}}",
            "{matchLabels: {'reserved:host': ''}}",
        ];
        fields.push(format!("{from}Nodes: [{}]", r.some(2, |r| r.one(&nodes).to_owned())));
    }
    if from == "to" && r.below(6) == 0 {
        let services = [
            "{k8sService: {serviceName: one}}",
            "{k8sService: {serviceName: two, namespace: default}}",
            "{k8sServiceSelector: {selector: {matchLabels: {s: one}}}}",
        ];
        fields.push(format!("toServices: [{}]", r.some(2, |r| r.one(&services).to_owned())));
    }
    if !deny && r.below(12) == 0 {
        fields.push(format!("{from}Requires: [{}]", random_selector(r)));
    }
    match r.below(6) {
        0..=2 => {
            let ports = [random_port(r, true), r.some(3, |r| random_port(r, true))];
            let ports = ports.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(", ");
            fields.push(format!("toPorts: [{{ports: [{ports}]}}]"));
        }
        3 if r.below(2) == 0 => {
            let kinds = ["{type: 8}", "{type: EchoRequest, family: IPv6}", "{type: 0, family: IPv4}", "{type: 3}"];
            fields.push(format!("icmps: [{{fields: [{}]}}]", r.one(&kinds)));
        }
        _ => {}
    }
    format!("{{{}}}", fields.join(", "))
}

pub fn random_document(r: &mut Random) -> String {
    let mut fields = vec![format!("endpointSelector: {}", if r.below(3) == 0 { "{}".to_owned() } else { random_selector(r) })];
    for (name, from, often) in [("ingress", "from", 2), ("egress", "to", 2), ("ingressDeny", "from", 5), ("egressDeny", "to", 5)] {
        if r.below(often) == 0 {
            fields.push(format!("{name}: [{}]", r.some(3, |r| random_section(r, from, name.ends_with("Deny")))));
        }
    }
    if r.below(5) == 0 {
        let which = ["{ingress: false}", "{egress: false, ingress: false}", "{ingress: true}", "{egress: true}"];
        fields.push(format!("enableDefaultDeny: {}", r.one(&which)));
    }
    let n = r.below(6);
    let rule = format!("{{{}}}", fields.join(", "));
    match r.below(3) {
        0 => format!("---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p{n}}}\nspec: {rule}\n"),
        1 => format!("---\napiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: p{n}}}\nspec: {rule}\n"),
        _ => format!("---\n- {}\n", rule.replacen('{', &format!("{{labels: ['k8s:io.cilium.k8s.policy.name=p{n}'], "), 1)),
    }
}

/// Who is asked about: number and labels; none for the unknown.
pub struct Who {
    id: u32,
    labels: Labels,
}

impl Who {
    fn prefix(&self) -> Option<Prefix> {
        self.labels.iter().find(|l| l.source() == Source::Cidr).map(|l| l.key().parse().unwrap())
    }
    fn in_world(&self) -> bool {
        [2, 9, 10].contains(&self.id) || self.prefix().is_some()
    }
    fn has(&self, name: &str) -> bool {
        self.labels.iter().any(|l| l.source() == Source::Reserved && l.key() == name)
    }
    fn endpoint(&self) -> bool {
        (256..65536).contains(&self.id) || [4, 5].contains(&self.id)
    }
    fn in_cluster(&self) -> bool {
        (256..65536).contains(&self.id) || [1, 3, 4, 5].contains(&self.id) || self.has("remote-node")
    }

    /// Values of the labels that a key means.
    fn values(&self, key: &SelectorKey) -> Vec<&str> {
        if key.source() == Some(Source::Reserved) {
            let hit = match key.key() {
                "all" => self.id != 0,
                "cluster" => self.in_cluster(),
                "world" => self.in_world(),
                name => self.has(name),
            };
            return if hit { vec![""] } else { vec![] };
        }
        let source = |l: &Label| match key.source() {
            None | Some(Source::Any) => true,
            Some(source) => l.source() == source,
        };
        self.labels.iter().filter(|l| source(l) && l.key() == key.key()).map(Label::value).collect()
    }

    fn is(&self, spec: &SelectorSpec) -> bool {
        spec.match_labels.iter().all(|(key, value)| self.values(key).contains(&value.as_str()))
            && spec.match_expressions.iter().all(|e| {
                let values = self.values(&e.key);
                let listed = values.iter().any(|v| e.values.iter().any(|w| w == v));
                match e.operator {
                    Operator::In => listed,
                    Operator::NotIn => !listed,
                    Operator::Exists => !values.is_empty(),
                    Operator::DoesNotExist => values.is_empty(),
                }
            })
    }

    fn in_namespace(&self, namespace: &str) -> bool {
        // Without a namespace an endpoint is in `default`; fixed identities are in none.
        match self.labels.get(Source::K8s, NAMESPACE) {
            Some(of) => of == namespace,
            None => namespace == "default" && self.labels.reserved().is_none(),
        }
    }

    fn is_peer(&self, spec: &SelectorSpec, namespace: Option<&str>) -> bool {
        let keys: Vec<&SelectorKey> = spec.match_labels.keys().chain(spec.match_expressions.iter().map(|e| &e.key)).collect();
        let reserved = keys.iter().any(|k| k.source() == Some(Source::Reserved));
        if self.id == 0 {
            // Nothing is known of it; only what speaks of everybody, and of nothing else, means it.
            let label = spec.match_labels.values().all(String::is_empty);
            let expression = spec.match_expressions.iter().all(|e| match e.operator {
                Operator::In => e.values.iter().any(String::is_empty),
                operator => operator == Operator::Exists,
            });
            return reserved && keys.len() == 1 && keys[0].key() == "all" && label && expression;
        }
        let scoped = !reserved && !keys.iter().any(|k| k.key() == NAMESPACE);
        self.is(spec) && (reserved || self.endpoint()) && (!scoped || namespace.is_none_or(|n| self.in_namespace(n)))
    }

    /// Keys without a source are those of nodes' own labels.
    fn is_node(&self, spec: &SelectorSpec) -> bool {
        let own = self.labels.iter().filter(|l| [Source::Node, Source::Reserved].contains(&l.source())).cloned().collect();
        (self.has("host") || self.has("remote-node")) && Self { id: self.id, labels: own }.is(spec)
    }

    fn is_entity(&self, entity: Entity) -> bool {
        match entity {
            Entity::All => true,
            Entity::World => self.in_world(),
            Entity::WorldIpv4 => self.id == 9 || self.prefix().is_some_and(|p| p.ip().is_ipv4()),
            Entity::WorldIpv6 => self.id == 10 || self.prefix().is_some_and(|p| p.ip().is_ipv6()),
            Entity::KubeApiserver => self.id == 7,
            Entity::Ingress => self.id == 8,
            Entity::Cluster => self.in_cluster(),
            Entity::Host => self.id == 1,
            Entity::RemoteNode => self.has("remote-node"),
            Entity::Health => self.id == 4,
            Entity::Init => self.id == 5,
            Entity::Unmanaged => self.id == 3,
            Entity::None => false,
        }
    }
}

/// What a verdict follows from.
pub struct Facts<'a> {
    pub rules: &'a [Rule],
    pub mode: EnforcementMode,
    pub host_always: bool,
    pub services: &'a BTreeMap<(String, String), Service>,
    pub peer_ports: &'a BTreeMap<u32, PortNames>,
}

/// What the rules say: open, or allowed and the rules that allow, or denied and the rules that deny.
#[derive(Debug)]
pub enum Told {
    Open,
    Allow(Vec<Arc<Origin>>),
    Deny(Vec<Arc<Origin>>),
}

fn namespace(rule: &Rule) -> Option<&str> {
    rule.origin.object.as_ref().and_then(|o| o.namespace.as_deref())
}

impl Facts<'_> {
    fn is_service(&self, wanted: &ServiceRef, own: Option<&str>, peer: &Who) -> bool {
        self.services.iter().any(|((of, name), service)| {
            let named = match wanted {
                ServiceRef::K8sService { service_name, namespace } => {
                    name == service_name && of == namespace.as_deref().or(own).unwrap_or("default")
                }
                ServiceRef::K8sServiceSelector { selector, namespace } => {
                    let who = Who { id: 256, labels: service.labels.clone() };
                    who.is(selector) && namespace.as_deref().or(own).is_none_or(|n| n == of)
                }
            };
            named
                && match &service.selector {
                    Some(selector) => peer.endpoint() && peer.in_namespace(of) && peer.is(selector),
                    None => peer.prefix().is_some_and(|p| service.addresses.iter().any(|ip| Prefix::address(*ip) == p)),
                }
        })
    }

    fn is_named(&self, section: &Section, own: Option<&str>, peer: &Who) -> bool {
        if !section.names_peers() {
            return !section.to_ports.is_empty() || !section.icmps.is_empty();
        }
        let lies = |prefix: Prefix| peer.prefix().is_some_and(|p| prefix.covers(p));
        section.endpoints.iter().flatten().any(|s| peer.is_peer(s, own))
            || section.entities.iter().flatten().any(|e| peer.is_entity(*e))
            || section.cidr.iter().flatten().any(|p| lies(*p))
            || section.cidr_set.iter().flatten().any(|c| lies(c.cidr) && !c.except.iter().any(|e| lies(*e)))
            || section.nodes.iter().flatten().any(|s| peer.is_node(s))
            || section.services.iter().flatten().any(|s| self.is_service(s, own, peer))
    }

    fn is_port(p: &PortProtocol, names: Option<&PortNames>, port: u16, proto: u8) -> bool {
        p.protocol.numbers().contains(&proto)
            && match &p.port {
                Port::Number(n) => n.get() <= port && port <= p.end_port.unwrap_or(*n).get(),
                Port::Name(name) => names.and_then(|n| n.get(name)).is_some_and(|known| known.contains(&(port, proto))),
            }
    }

    fn applies(&self, section: &Section, own: Option<&str>, peer: &Who, names: Option<&PortNames>, port: u16, proto: u8) -> bool {
        let everything = section.to_ports.is_empty() && section.icmps.is_empty();
        self.is_named(section, own, peer)
            && (everything
                || section.to_ports.iter().flat_map(|p| &p.ports).any(|p| Self::is_port(p, names, port, proto))
                || section.icmps.iter().flat_map(|i| &i.fields).any(|f| u16::from(f.kind) == port && f.family.protocol() == proto))
    }

    pub fn told(&self, subject: &Subject, direction: Direction, id: NumericIdentity, labels: &Labels, port: u16, proto: u8) -> Told {
        let peer = Who { id: id.get(), labels: labels.clone() };
        let me = Who { id: 256, labels: subject.labels.clone() };
        let selecting: Vec<&Rule> =
            self.rules.iter().filter(|r| me.is(&r.endpoint_selector) && namespace(r).is_none_or(|n| me.in_namespace(n))).collect();
        let sections = |r: &Rule| match direction {
            Direction::Ingress => (r.ingress.clone(), r.ingress_deny.clone(), r.enable_default_deny.ingress),
            Direction::Egress => (r.egress.clone(), r.egress_deny.clone(), r.enable_default_deny.egress),
        };
        let enforced = match self.mode {
            EnforcementMode::Never => return Told::Open,
            EnforcementMode::Always => true,
            EnforcementMode::Default => selecting.iter().any(|r| {
                let (allow, deny, default) = sections(r);
                default.unwrap_or(!allow.is_empty() || !deny.is_empty())
            }),
        };
        let names = if direction == Direction::Ingress { Some(&subject.ports) } else { self.peer_ports.get(&peer.id) };
        let (mut allows, mut denies) = (Vec::new(), Vec::new());
        for rule in &selecting {
            let own = namespace(rule);
            let (allow, deny, _) = sections(rule);
            let hit = |s: &Section| self.applies(s, own, &peer, names, port, proto);
            let unmet = |s: &Section| !s.requires.iter().all(|r| peer.is_peer(r, own));
            if allow.iter().any(hit) {
                allows.push(Arc::clone(&rule.origin));
            }
            if deny.iter().any(hit) || allow.iter().any(unmet) {
                denies.push(Arc::clone(&rule.origin));
            }
        }
        if self.host_always && direction == Direction::Ingress && peer.id == 1 && (enforced || !denies.is_empty()) {
            return Told::Allow(Vec::new());
        }
        match (denies.is_empty(), enforced) {
            (false, _) => Told::Deny(denies),
            (true, false) => Told::Open,
            (true, true) if allows.is_empty() => Told::Deny(Vec::new()),
            (true, true) => Told::Allow(allows),
        }
    }
}
