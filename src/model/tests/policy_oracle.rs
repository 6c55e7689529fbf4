// SPDX-License-Identifier: Apache-2.0
//! A slow and obvious evaluator over the rules as written, against what was resolved and against the written blocks, for
//! random rules and identities from a fixed seed.

use pilus_model::identity::NumericIdentity;
use pilus_model::label::{Label, Labels, Source};
use pilus_model::policy::block::{self, BlockVerdict};
use pilus_model::policy::{
    Direction, DirectionPolicy, EnforcementMode, Entity, Origin, PortRule, Repository, Rule, SelectorCache, Verdict, input, resolve,
    verdict,
};
use pilus_model::selector::{Operator, SelectorKey, SelectorSpec};
use std::collections::HashMap;
use std::sync::Arc;

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
    fn some(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> String) -> String {
        let count = self.below(most + 1);
        (0..count).map(|_| make(self)).collect::<Vec<_>>().join(", ")
    }
}

const NAMESPACE: &str = "io.kubernetes.pod.namespace";

fn random_labels(r: &mut Random) -> Labels {
    let mut labels = Labels::new();
    labels.insert(Label::new(Source::K8s, NAMESPACE, r.one(&["default", "other"])).unwrap());
    for key in ["app", "tier", "env"] {
        if r.below(3) > 0 {
            labels.insert(Label::new([Source::K8s, Source::Container][r.below(2)], key, r.one(&["a", "b", ""])).unwrap());
        }
    }
    if r.below(4) == 0 { labels.iter().filter(|l| l.key() != NAMESPACE).cloned().collect() } else { labels }
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

fn random_port(r: &mut Random) -> String {
    let port = 1 + r.below(12);
    let end = if r.below(3) == 0 { format!(", endPort: {}", port + r.below(5)) } else { String::new() };
    let proto = r.one(&["", ", protocol: TCP", ", protocol: UDP", ", protocol: ANY", ", protocol: TCP"]);
    format!("{{port: {port}{end}{proto}}}")
}

fn random_section(r: &mut Random, from: &str) -> String {
    let mut fields = Vec::new();
    if r.below(2) == 0 {
        fields.push(format!("{from}Endpoints: [{}]", r.some(2, random_selector)));
    }
    if r.below(4) == 0 {
        let entities =
            r.some(2, |r| r.one(&["all", "world", "cluster", "host", "remote-node", "health", "init", "unmanaged", "none"]).to_owned());
        fields.push(format!("{from}Entities: [{entities}]"));
    }
    if r.below(2) == 0 {
        let ports = [random_port(r), r.some(3, random_port)].into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(", ");
        fields.push(format!("toPorts: [{{ports: [{ports}]}}]"));
    }
    format!("{{{}}}", fields.join(", "))
}

fn random_document(r: &mut Random, n: usize) -> String {
    let mut fields = vec![format!("endpointSelector: {}", if r.below(3) == 0 { "{}".to_owned() } else { random_selector(r) })];
    for (name, from, often) in [("ingress", "from", 2), ("egress", "to", 2), ("ingressDeny", "from", 5), ("egressDeny", "to", 5)] {
        if r.below(often) == 0 {
            fields.push(format!("{name}: [{}]", r.some(3, |r| random_section(r, from))));
        }
    }
    let rule = format!("{{{}}}", fields.join(", "));
    match r.below(3) {
        0 => format!("---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p{n}}}\nspec: {rule}\n"),
        1 => format!("---\napiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: p{n}}}\nspec: {rule}\n"),
        _ => format!("---\n- {rule}\n"),
    }
}

/// Who is asked about: number and labels; none for the unknown.
struct Who {
    id: u32,
    labels: Labels,
}

impl Who {
    fn endpoint(&self) -> bool {
        self.id >= 256 || [4, 5].contains(&self.id)
    }
    fn in_cluster(&self) -> bool {
        self.id >= 256 || [1, 3, 4, 5, 6].contains(&self.id)
    }

    /// Values of the labels that a key means.
    fn values(&self, key: &SelectorKey) -> Vec<&str> {
        if key.source() == Some(Source::Reserved) {
            let hit = match key.key() {
                "all" => self.id != 0,
                "cluster" => self.in_cluster(),
                "world" => [2, 9, 10].contains(&self.id),
                name => self.labels.iter().any(|l| l.source() == Source::Reserved && l.key() == name),
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
            return reserved && spec.match_labels.len() == 1 && keys[0].key() == "all";
        }
        let scoped = !reserved && !keys.iter().any(|k| k.key() == NAMESPACE);
        self.is(spec) && (reserved || self.endpoint()) && (!scoped || namespace.is_none_or(|n| self.in_namespace(n)))
    }

    fn is_entity(&self, entity: Entity) -> bool {
        match entity {
            Entity::All => true,
            Entity::World => [2, 9, 10].contains(&self.id),
            Entity::Cluster => self.in_cluster(),
            Entity::Host => self.id == 1,
            Entity::RemoteNode => self.id == 6,
            Entity::Health => self.id == 4,
            Entity::Init => self.id == 5,
            Entity::Unmanaged => self.id == 3,
            Entity::None => false,
        }
    }
}

type Section<'a> = (bool, Option<&'a Vec<SelectorSpec>>, Option<&'a Vec<Entity>>, &'a [PortRule]);

fn sections(rule: &Rule, direction: Direction) -> Vec<Section<'_>> {
    match direction {
        Direction::Ingress => {
            let allow = rule.ingress.iter().map(|s| (false, s));
            let deny = rule.ingress_deny.iter().map(|s| (true, s));
            allow.chain(deny).map(|(d, s)| (d, s.from_endpoints.as_ref(), s.from_entities.as_ref(), &s.to_ports[..])).collect()
        }
        Direction::Egress => {
            let allow = rule.egress.iter().map(|s| (false, s));
            let deny = rule.egress_deny.iter().map(|s| (true, s));
            allow.chain(deny).map(|(d, s)| (d, s.to_endpoints.as_ref(), s.to_entities.as_ref(), &s.to_ports[..])).collect()
        }
    }
}

fn applies(section: &Section<'_>, namespace: Option<&str>, peer: &Who, port: u16, proto: u8) -> bool {
    let (_, endpoints, entities, ports) = section;
    let peer_hit = match (endpoints, entities) {
        (None, None) => !ports.is_empty(),
        _ => {
            endpoints.is_some_and(|list| list.iter().any(|s| peer.is_peer(s, namespace)))
                || entities.is_some_and(|list| list.iter().any(|e| peer.is_entity(*e)))
        }
    };
    let port_hit = ports.is_empty()
        || ports
            .iter()
            .flat_map(|p| &p.ports)
            .any(|p| p.protocol.numbers().contains(&proto) && p.port.get() <= port && port <= p.end_port.unwrap_or(p.port).get());
    peer_hit && port_hit
}

/// What the rules say: open, or allowed and the rules that allow, or denied and the rules that deny.
enum Told {
    Open,
    Allow(Vec<Arc<Origin>>),
    Deny(Vec<Arc<Origin>>),
}

fn oracle(rules: &[Rule], subject: &Who, mode: EnforcementMode, direction: Direction, peer: &Who, port: u16, proto: u8) -> Told {
    let namespace = |r: &Rule| r.origin.object.as_ref().and_then(|o| o.namespace.clone());
    let selecting: Vec<&Rule> =
        rules.iter().filter(|r| subject.is(&r.endpoint_selector) && namespace(r).is_none_or(|n| subject.in_namespace(&n))).collect();
    let enforced = match mode {
        EnforcementMode::Never => false,
        EnforcementMode::Always => true,
        EnforcementMode::Default => selecting.iter().any(|r| !sections(r, direction).is_empty()),
    };
    if !enforced {
        return Told::Open;
    }
    let hits = |deny: bool| -> Vec<Arc<Origin>> {
        let hit = |r: &&&Rule| sections(r, direction).iter().any(|s| s.0 == deny && applies(s, namespace(r).as_deref(), peer, port, proto));
        selecting.iter().filter(hit).map(|r| r.origin.clone()).collect()
    };
    let (denies, allows) = (hits(true), hits(false));
    if !denies.is_empty() || allows.is_empty() { Told::Deny(denies) } else { Told::Allow(allows) }
}

#[test]
fn resolved_policy_and_blocks_say_what_the_rules_say() {
    let mut r = Random(0x0123_4567_89ab_cdef);
    let (mut cases, mut allowed, mut denied, mut by_rule, mut open) = (0u32, 0u32, 0u32, 0u32, 0u32);
    for round in 0..400 {
        let documents = 1 + r.below(5);
        let text: String = (0..documents).map(|n| random_document(&mut r, n)).collect();
        let rules = input::parse("random", &text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
        let mut repo = Repository::new();
        repo.import(rules.clone());
        let mut cache = SelectorCache::new();
        let mut who: Vec<Who> = cache.identities().map(|(id, labels)| Who { id: id.get(), labels: labels.clone() }).collect();
        who.push(Who { id: 0, labels: Labels::new() });
        for id in 256..262 {
            who.push(Who { id, labels: random_labels(&mut r) });
        }
        for w in &who[who.len() - 6..] {
            cache.insert(NumericIdentity(w.id), &w.labels);
        }
        let mode = [EnforcementMode::Default, EnforcementMode::Default, EnforcementMode::Always, EnforcementMode::Never][r.below(4)];
        let host_always = r.below(4) == 0;
        let subject = &who[who.len() - 1 - r.below(6)];
        let policy = resolve(&repo, &mut cache, &subject.labels, mode, host_always);
        for direction in Direction::ALL {
            let p = policy.direction(direction);
            let mut origins = Vec::new();
            let blocks = block::blocks(9, direction, p, &mut |rule| {
                origins.push(rule.clone());
                u16::try_from(origins.len()).unwrap()
            });
            let blocks: HashMap<_, _> = blocks.unwrap().into_iter().collect();
            for peer in &who {
                let (port, proto) = ([0u16, 1, 4, 8, 12, 16, 80][r.below(7)], [6u8, 17, 132, 1, 58][r.below(5)]);
                let what = || format!("round {round}: {direction} {} peer {} {port}/{proto} {mode:?}\n{text}", subject.labels, peer.id);
                let found = verdict(p, NumericIdentity(peer.id), port, proto);
                if **p != DirectionPolicy::Open {
                    let written = match block::lookup(&blocks, 9, direction, NumericIdentity(peer.id), port, proto) {
                        BlockVerdict::Allow(idx) => Verdict::Allow(origins[usize::from(idx) - 1].clone()),
                        BlockVerdict::Deny(idx) => Verdict::Deny(idx.map(|idx| origins[usize::from(idx) - 1].clone())),
                    };
                    assert_eq!(written, found, "blocks: {}", what());
                }
                cases += 1;
                match (oracle(&rules, subject, mode, direction, peer, port, proto), &found) {
                    (Told::Open, Verdict::OpenAllow) => open += 1,
                    (Told::Allow(_) | Told::Deny(_), Verdict::Allow(_))
                        if host_always && direction == Direction::Ingress && peer.id == 1 => {}
                    (Told::Allow(by), Verdict::Allow(rule)) => {
                        allowed += 1;
                        assert!(by.contains(&rule.0), "{rule} does not allow: {}", what());
                    }
                    (Told::Deny(by), Verdict::Deny(Some(rule))) => {
                        by_rule += 1;
                        assert!(by.contains(&rule.0), "{rule} does not deny: {}", what());
                    }
                    (Told::Deny(by), Verdict::Deny(None)) if by.is_empty() => denied += 1,
                    (_, found) => panic!("{found:?}: {}", what()),
                }
            }
        }
    }
    assert!(
        cases >= 2000 && [allowed, denied, by_rule, open].into_iter().all(|n| n > cases / 40),
        "{cases}: {allowed} {denied} {by_rule} {open}"
    );
}
