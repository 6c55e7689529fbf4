// SPDX-License-Identifier: Apache-2.0
//! Policies, endpoints and the verdicts they get. Each row is judged by `explain` and by the blocks as written.

use pilus_model::identity::NumericIdentity;
use pilus_model::label::Labels;
use pilus_model::policy::block::{self, BlockVerdict};
use pilus_model::policy::{
    Direction, DirectionPolicy, EndpointPolicy, EnforcementMode, Repository, SelectorCache, Verdict, input, resolve, verdict,
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;

/// Identities that the rows talk about; fixed ones by their number.
const KNOWN: &[(u32, &[&str])] = &[
    (256, &["k8s:app=web", "k8s:io.kubernetes.pod.namespace=default"]),
    (257, &["k8s:app=db", "k8s:io.kubernetes.pod.namespace=default"]),
    (258, &["k8s:app=web", "k8s:io.kubernetes.pod.namespace=other", "k8s:io.cilium.k8s.namespace.labels.team=x"]),
    (259, &["container:app=web", "container:tier=front"]),
];
const WEB: u32 = 256;
const DB: u32 = 257;
const OTHER: u32 = 258;
const PLAIN: u32 = 259;
const HOST: u32 = 1;
const WORLD: u32 = 2;
const UNMANAGED: u32 = 3;
const HEALTH: u32 = 4;
const INIT: u32 = 5;
const REMOTE: u32 = 6;
const APISERVER: u32 = 7;
const WORLD6: u32 = 10;
const UNKNOWN: u32 = 0;
const EVERYONE: [u32; 13] = [UNKNOWN, HOST, WORLD, UNMANAGED, HEALTH, INIT, REMOTE, APISERVER, 9, WORLD6, WEB, DB, OTHER];

fn cache() -> SelectorCache {
    let mut cache = SelectorCache::new();
    for (id, labels) in KNOWN {
        cache.insert(NumericIdentity(*id), &Labels::parse(*labels).unwrap());
    }
    cache
}

fn labels_of(id: u32) -> Labels {
    cache().labels(NumericIdentity(id)).unwrap().clone()
}

fn repo(text: &str) -> Repository {
    let mut repo = Repository::new();
    repo.import(input::parse("t", text).unwrap_or_else(|e| panic!("{e:?}\n{text}")));
    repo
}

fn policy(text: &str, subject: u32, mode: EnforcementMode) -> EndpointPolicy {
    resolve(&repo(text), &mut cache(), &labels_of(subject), mode, false)
}

/// The verdict, after making sure that blocks agree.
fn judge(p: &DirectionPolicy, direction: Direction, peer: u32, port: u16, proto: u8) -> Verdict {
    let peer = NumericIdentity(peer);
    let told = verdict(p, peer, port, proto);
    if *p == DirectionPolicy::Open {
        assert_eq!(told, Verdict::OpenAllow);
        assert_eq!(block::blocks(2, direction, p, &mut |_| 1), Ok(vec![]));
        return told;
    }
    let mut origins = Vec::new();
    let blocks = block::blocks(77, direction, p, &mut |rule| {
        let at = origins.iter().position(|o| o == rule).unwrap_or(origins.len());
        if at == origins.len() {
            origins.push(rule.clone());
        }
        u16::try_from(at + 1).unwrap()
    });
    let blocks = blocks.unwrap().into_iter().collect();
    let name = |idx: u16| origins[usize::from(idx) - 1].clone();
    let found = match block::lookup(&blocks, 77, direction, peer, port, proto) {
        BlockVerdict::Allow(idx) | BlockVerdict::Redirect(idx) => Verdict::Allow(name(idx)),
        BlockVerdict::Deny(idx) => Verdict::Deny(idx.map(name)),
    };
    assert_eq!(found, told, "blocks disagree on {peer} {port}/{proto}");
    told
}

fn cnp(name: &str, spec: &str) -> String {
    format!("---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn ccnp(name: &str, spec: &str) -> String {
    cnp(name, spec).replace("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy")
}

fn bare(rules: &str) -> String {
    format!("---\n[{rules}]\n")
}

/// Peers of EVERYONE and PLAIN that may connect to (ingress) or be reached from (egress) `subject` at port and protocol.
fn allowed(text: &str, subject: u32, direction: Direction, port: u16, proto: u8) -> Vec<u32> {
    let p = policy(text, subject, EnforcementMode::Default);
    let p = p.direction(direction);
    EVERYONE.into_iter().chain([PLAIN]).filter(|peer| judge(p, direction, *peer, port, proto).allowed()).collect()
}

fn all_peers() -> Vec<u32> {
    EVERYONE.into_iter().chain([PLAIN]).collect()
}

#[test]
fn peers_of_a_rule() {
    let endpoints = vec![HEALTH, INIT, WEB, DB, OTHER, PLAIN];
    let cluster = vec![HOST, UNMANAGED, HEALTH, INIT, REMOTE, WEB, DB, OTHER, PLAIN];
    let no_ports = [
        // S2, S4: without a section nothing is enforced.
        (bare("{endpointSelector: {}}"), all_peers()),
        (bare("{endpointSelector: {}, ingress: [], egress: [{}]}"), all_peers()),
        (bare("{endpointSelector: {matchLabels: {app: nobody}}, ingress: [{}]}"), all_peers()),
        // S3, S10: a section that says nothing allows nobody.
        (bare("{endpointSelector: {}, ingress: [{}]}"), vec![]),
        (bare("{endpointSelector: {}, ingressDeny: [{}]}"), vec![]),
        (bare("{endpointSelector: {}, ingress: [{fromEndpoints: []}]}"), vec![]),
        (bare("{endpointSelector: {}, ingress: [{fromEntities: []}]}"), vec![]),
        (bare("{endpointSelector: {}, ingress: [{fromEntities: [none]}]}"), vec![]),
        // S8, S23: the rule's scope.
        (bare("{endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}"), endpoints.clone()),
        (ccnp("p", "{endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}"), endpoints),
        // An endpoint without a namespace is in `default`.
        (cnp("p", "{endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}"), vec![WEB, DB, PLAIN]),
        (cnp("p", "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]}"), vec![WEB, PLAIN]),
        (
            cnp(
                "p",
                "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: web, 'k8s:io.kubernetes.pod.namespace': other}}]}]}",
            ),
            vec![OTHER],
        ),
        (
            cnp(
                "p",
                "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: Exists}]}]}]}",
            ),
            vec![WEB, DB, OTHER],
        ),
        (
            cnp("p", "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.team': x}}]}]}"),
            vec![OTHER],
        ),
        (cnp("p", "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {'reserved:host': ''}}]}]}"), vec![HOST]),
        (cnp("p", "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {reserved.world: }}]}]}"), vec![WORLD, 9, WORLD6]),
        (ccnp("p", "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]}"), vec![WEB, OTHER, PLAIN]),
        (bare("{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {'container:app': web}}]}]}"), vec![PLAIN]),
        // What is not named as reserved is not host or world, whatever is excluded.
        (
            bare("{endpointSelector: {}, ingress: [{fromEndpoints: [{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}]}]}"),
            vec![HEALTH, INIT, DB],
        ),
        (bare("{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {'reserved:all': ''}}]}]}"), all_peers()),
        (bare("{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {'reserved:cluster': ''}}]}]}"), cluster.clone()),
        // Entities (S19 to S21); several kinds are a union.
        (bare("{endpointSelector: {}, ingress: [{fromEntities: [all]}]}"), all_peers()),
        (bare("{endpointSelector: {}, ingress: [{fromEntities: [world]}]}"), vec![WORLD, 9, WORLD6]),
        (bare("{endpointSelector: {}, ingress: [{fromEntities: [cluster]}]}"), cluster),
        (bare("{endpointSelector: {}, ingress: [{fromEntities: [host]}]}"), vec![HOST]),
        (bare("{endpointSelector: {}, ingress: [{fromEntities: [remote-node]}]}"), vec![REMOTE]),
        (bare("{endpointSelector: {}, ingress: [{fromEntities: [health, init, unmanaged]}]}"), vec![UNMANAGED, HEALTH, INIT]),
        (cnp("p", "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: db}}], fromEntities: [host]}]}"), vec![HOST, DB]),
        (bare("{endpointSelector: {}, ingress: [{fromEndpoints: [], fromEntities: [host]}]}"), vec![HOST]),
        // S6: union of rules.
        (
            bare(
                "{endpointSelector: {}, ingress: [{fromEntities: [host]}]}, {endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEntities: [init]}]}, {endpointSelector: {matchLabels: {app: x}}, ingress: [{fromEntities: [all]}]}",
            ),
            vec![HOST, INIT],
        ),
        // Deny beats allow, whoever is more specific.
        (bare("{endpointSelector: {}, ingress: [{fromEntities: [all]}], ingressDeny: [{fromEntities: [host, world]}]}"), {
            all_peers().into_iter().filter(|p| ![HOST, WORLD, 9, WORLD6].contains(p)).collect()
        }),
        (bare("{endpointSelector: {}, ingress: [{fromEntities: [host]}], ingressDeny: [{fromEntities: [all]}]}"), vec![]),
        (bare("{endpointSelector: {}, ingressDeny: [{fromEntities: [host]}]}"), vec![]),
    ];
    for (text, want) in no_ports {
        // S11: without ports every port of every protocol, ICMP too.
        for (port, proto) in [(80, TCP), (0, ICMP), (8, ICMP), (65535, UDP), (0, 47)] {
            assert_eq!(allowed(&text, WEB, Direction::Ingress, port, proto), want, "{port}/{proto} {text}");
        }
        let mirror =
            text.replace("egress: [{}]", "x: 1").replace("ingress", "egress").replace("from", "to").replace("x: 1", "ingress: [{}]");
        assert_eq!(allowed(&mirror, WEB, Direction::Egress, 80, TCP), want, "{mirror}");
    }
}

#[test]
fn a_namespaced_policy_selects_in_its_namespace() {
    let text = cnp("p", "{endpointSelector: {}, ingress: [{}]}");
    let p = |subject| policy(&text, subject, EnforcementMode::Default);
    assert_ne!(*p(WEB).ingress, DirectionPolicy::Open);
    assert_eq!(*p(OTHER).ingress, DirectionPolicy::Open);
    assert_ne!(*p(PLAIN).ingress, DirectionPolicy::Open);
    let text = text.replace("name: p", "name: p, namespace: other");
    let p = |subject| policy(&text, subject, EnforcementMode::Default);
    assert_eq!(*p(WEB).ingress, DirectionPolicy::Open);
    assert_ne!(*p(OTHER).ingress, DirectionPolicy::Open);
    let text = ccnp("p", "{endpointSelector: {}, ingress: [{}]}");
    assert_ne!(*policy(&text, PLAIN, EnforcementMode::Default).ingress, DirectionPolicy::Open);
}

#[test]
fn ports_and_protocols() {
    let rule = |section: &str| bare(&format!("{{endpointSelector: {{}}, {section}}}"));
    let port = |ports: &str| rule(&format!("ingress: [{{toPorts: [{{ports: [{ports}]}}]}}]"));
    // (policy, port, protocol, whether the world may come in)
    let rows = [
        // S9: no peers, ports: everybody. S12: no ICMP under ports.
        (port("{port: 80, protocol: TCP}"), 80, TCP, true),
        (port("{port: 80, protocol: TCP}"), 81, TCP, false),
        (port("{port: 80, protocol: TCP}"), 79, TCP, false),
        (port("{port: 80, protocol: TCP}"), 80, UDP, false),
        (port("{port: 80}"), 80, TCP, true),
        (port("{port: 80}"), 80, UDP, true),
        (port("{port: 80, protocol: ANY}"), 80, SCTP, true),
        (port("{port: 80, protocol: ANY}"), 80, ICMP, false),
        (port("{port: 8}"), 8, ICMP, false),
        (port("{port: 80, endPort: 90, protocol: UDP}"), 80, UDP, true),
        (port("{port: 80, endPort: 90, protocol: UDP}"), 90, UDP, true),
        (port("{port: 80, endPort: 90, protocol: UDP}"), 91, UDP, false),
        (port("{port: 80, endPort: 90, protocol: UDP}"), 79, UDP, false),
        (port("{port: 1, endPort: 65535}"), 65535, TCP, true),
        (port("{port: 1, endPort: 65535}"), 0, 58, false),
        (port("{port: 1}, {port: 2}"), 2, TCP, true),
        (rule("ingress: [{fromEndpoints: [], toPorts: [{ports: [{port: 80}]}]}]"), 80, TCP, false),
        (rule("ingress: [{fromEntities: [world], toPorts: [{ports: [{port: 80}]}, {ports: [{port: 81}]}]}]"), 81, TCP, true),
        (rule("ingress: [{fromEntities: [host], toPorts: [{ports: [{port: 80}]}]}]"), 80, TCP, false),
        (rule("ingress: [{fromEntities: [world], toPorts: []}]"), 80, TCP, true),
        // Deny of a part, allow of the whole, and the reverse.
        (rule("ingress: [{fromEntities: [all]}], ingressDeny: [{toPorts: [{ports: [{port: 22}]}]}]"), 22, TCP, false),
        (rule("ingress: [{fromEntities: [all]}], ingressDeny: [{toPorts: [{ports: [{port: 22}]}]}]"), 23, TCP, true),
        (rule("ingress: [{fromEntities: [all]}], ingressDeny: [{toPorts: [{ports: [{port: 22}]}]}]"), 22, ICMP, true),
        (
            rule("ingress: [{toPorts: [{ports: [{port: 22}]}]}], ingressDeny: [{toPorts: [{ports: [{port: 1, endPort: 100}]}]}]"),
            22,
            TCP,
            false,
        ),
        (rule("ingress: [{fromEntities: [world]}], ingressDeny: [{toPorts: [{ports: [{port: 22, protocol: UDP}]}]}]"), 22, TCP, true),
        (rule("ingress: [{fromEntities: [world]}], ingressDeny: [{fromEntities: [host]}]"), 22, TCP, true),
    ];
    for (text, port, proto, want) in rows {
        assert_eq!(allowed(&text, WEB, Direction::Ingress, port, proto).contains(&WORLD), want, "{port}/{proto} {text}");
    }
    // S27: the unknown has no labels to be selected by, but what is allowed to everybody is allowed to it.
    assert!(!allowed(&rule("ingress: [{fromEntities: [world, cluster]}]"), WEB, Direction::Ingress, 80, TCP).contains(&UNKNOWN));
}

#[test]
fn modes_of_enforcement() {
    let text = bare("{endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEntities: [world]}]}");
    let open = |p: &EndpointPolicy| (*p.ingress == DirectionPolicy::Open, *p.egress == DirectionPolicy::Open);
    assert_eq!(open(&policy(&text, DB, EnforcementMode::Default)), (false, true));
    assert_eq!(open(&policy(&text, WEB, EnforcementMode::Default)), (true, true));
    assert_eq!(open(&policy(&text, WEB, EnforcementMode::Always)), (false, false));
    assert_eq!(open(&policy(&text, DB, EnforcementMode::Never)), (true, true));
    assert!(!judge(&policy(&text, WEB, EnforcementMode::Always).egress, Direction::Egress, WORLD, 80, TCP).allowed());
    assert!(judge(&policy(&text, DB, EnforcementMode::Always).ingress, Direction::Ingress, WORLD, 80, TCP).allowed());
    // S14: both ends decide for themselves.
    let text = bare(
        "{endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]}, {endpointSelector: {matchLabels: {app: web}}, egress: [{}]}",
    );
    assert!(judge(&policy(&text, DB, EnforcementMode::Default).ingress, Direction::Ingress, WEB, 80, TCP).allowed());
    assert!(!judge(&policy(&text, WEB, EnforcementMode::Default).egress, Direction::Egress, DB, 80, TCP).allowed());
}

#[test]
fn the_local_host_may_always_come_in_if_so_configured() {
    for text in [
        bare("{endpointSelector: {}, ingress: [{}], egress: [{}]}"),
        bare("{endpointSelector: {}, ingressDeny: [{fromEntities: [all]}], egress: [{}]}"),
    ] {
        let p = resolve(&repo(&text), &mut cache(), &labels_of(WEB), EnforcementMode::Default, true);
        let Verdict::Allow(rule) = judge(&p.ingress, Direction::Ingress, HOST, 22, TCP) else { panic!("denied") };
        assert_eq!(rule.to_string(), "allow-localhost");
        assert!(!judge(&p.ingress, Direction::Ingress, REMOTE, 22, TCP).allowed());
        assert!(!judge(&p.egress, Direction::Egress, HOST, 22, TCP).allowed());
    }
    let open = resolve(&Repository::new(), &mut cache(), &labels_of(WEB), EnforcementMode::Default, true);
    assert_eq!(*open.ingress, DirectionPolicy::Open);
}

#[test]
fn the_deciding_rule_is_named() {
    let text = "- endpointSelector: {}\n  ingress: [{fromEntities: [all]}]\n- endpointSelector: {}\n  ingress: [{fromEntities: [host], toPorts: [{ports: [{port: 80}]}]}]\n- endpointSelector: {}\n  ingressDeny: [{fromEntities: [host], toPorts: [{ports: [{port: 22}]}]}]\n- endpointSelector: {}\n  ingress: [{fromEntities: [all]}]\n";
    let p = policy(text, WEB, EnforcementMode::Default);
    let line = |peer, port| match judge(&p.ingress, Direction::Ingress, peer, port, TCP) {
        Verdict::Allow(rule) => rule.0.line,
        Verdict::Deny(rule) => 100 + rule.map_or(0, |r| r.0.line),
        Verdict::Redirect(..) | Verdict::OpenAllow => 0,
    };
    assert_eq!([line(HOST, 80), line(HOST, 22), line(HOST, 443), line(WORLD, 80)], [3, 105, 1, 1]);
    let DirectionPolicy::Rules(lists) = &*p.ingress else { panic!("open") };
    assert_eq!(lists.keys().map(|k| k.get()).collect::<Vec<_>>(), [0, HOST], "only peers that differ have a list");
}

#[test]
fn peers_that_are_as_any_other_have_no_list() {
    let keys = |text: &str| match &*policy(&bare(text), WEB, EnforcementMode::Default).ingress {
        DirectionPolicy::Rules(lists) => lists.iter().map(|(peer, list)| (peer.get(), list.len())).collect::<Vec<_>>(),
        DirectionPolicy::Open => panic!("open"),
    };
    assert_eq!(keys("{endpointSelector: {}, ingress: [{fromEntities: [all]}, {fromEntities: [host]}]}"), [(0, 1)]);
    assert_eq!(keys("{endpointSelector: {}, ingress: [{fromEntities: [host]}], ingressDeny: [{fromEntities: [all]}]}"), [(0, 1)]);
    assert_eq!(keys("{endpointSelector: {}, ingress: [{}]}"), []);
    assert_eq!(keys("{endpointSelector: {}, ingress: [{fromEntities: [host]}]}"), [(HOST, 1)]);
}

#[test]
fn chains_of_blocks() {
    for count in [1u16, 7, 8, 9, 16, 17, 64] {
        let rules: Vec<String> = (0..count)
            .map(|n| {
                format!("{{endpointSelector: {{}}, ingress: [{{toPorts: [{{ports: [{{port: {}, protocol: TCP}}]}}]}}]}}", 1000 + 2 * n)
            })
            .collect();
        let p = policy(&bare(&rules.join(", ")), WEB, EnforcementMode::Default);
        let blocks = block::blocks(5, Direction::Ingress, &p.ingress, &mut |_| 9).unwrap();
        assert_eq!(blocks.len(), usize::from(count).div_ceil(8));
        for (chain, (key, block)) in blocks.iter().enumerate() {
            assert_eq!((key.policy, key.identity), (5 << 5 | 1 << 4 | chain as u32, 0));
            let more = block.rules.map(|r| r.flags & 64 != 0);
            assert_eq!(more, [false, false, false, false, false, false, false, chain + 1 < blocks.len()]);
            assert_eq!(block.rules.iter().filter(|r| r.flags & 128 != 0).count(), usize::from(count - chain as u16 * 8).min(8));
        }
        for n in 0..count {
            assert!(judge(&p.ingress, Direction::Ingress, WORLD, 1000 + 2 * n, TCP).allowed());
            assert!(!judge(&p.ingress, Direction::Ingress, WORLD, 1001 + 2 * n, TCP).allowed());
        }
    }
    let list = |from: u16| (0..40).map(|n| format!("{{port: {}}}", from + 2 * n)).collect::<Vec<_>>().join(",");
    let text = bare(&format!(
        "{{endpointSelector: {{}}, ingress: [{{fromEntities: [host], toPorts: [{{ports: [{}]}}, {{ports: [{}]}}]}}]}}",
        list(1000),
        list(2000)
    ));
    let p = policy(&text, WEB, EnforcementMode::Default);
    let err = block::blocks(5, Direction::Ingress, &p.ingress, &mut |_| 9).unwrap_err();
    assert_eq!((err.peer.get(), err.rules), (HOST, 240));
    assert!(err.to_string().contains("128"), "{err}");
}

#[test]
fn long_lists_are_compacted_without_changing_a_verdict() {
    let ports: Vec<String> = (0..40).map(|n| format!("{{port: {}}}", 1000 + n)).collect();
    let section = format!("fromEntities: [world], toPorts: [{{ports: [{}]}}]", ports.join(","));
    let text = bare(&format!(
        "{{endpointSelector: {{}}, ingress: [{{{section}}}, {{toPorts: [{{ports: [{{port: 1, endPort: 500}}]}}]}}], ingressDeny: [{{toPorts: [{{ports: [{{port: 1010}}, {{port: 300}}]}}]}}]}}"
    ));
    let p = policy(&text, WEB, EnforcementMode::Default);
    for (port, want) in [
        (999, false),
        (1000, true),
        (1009, true),
        (1010, false),
        (1011, true),
        (1039, true),
        (1040, false),
        (299, true),
        (300, false),
        (301, true),
        (500, true),
        (501, false),
    ] {
        for proto in [TCP, UDP, SCTP] {
            assert_eq!(judge(&p.ingress, Direction::Ingress, WORLD, port, proto).allowed(), want, "{port}");
        }
        assert!(!judge(&p.ingress, Direction::Ingress, WORLD, port, ICMP).allowed());
    }
}

#[test]
fn compacting_keeps_a_deny_apart_from_allows() {
    let ports: Vec<String> = (0..70).map(|n| format!("{{ports: [{{port: {}, protocol: TCP}}]}}", 1000 + n)).collect();
    let deny = "ingressDeny: [{toPorts: [{ports: [{port: 900, endPort: 905, protocol: TCP}]}]}]";
    let p = policy(
        &bare(&format!("{{endpointSelector: {{}}, ingress: [{{toPorts: [{}]}}], {deny}}}", ports.join(","))),
        WEB,
        EnforcementMode::Default,
    );
    assert_eq!(judge(&p.ingress, Direction::Ingress, WORLD, 950, TCP), Verdict::Deny(None));
    assert!(matches!(judge(&p.ingress, Direction::Ingress, WORLD, 903, TCP), Verdict::Deny(Some(_))));
    assert!(judge(&p.ingress, Direction::Ingress, WORLD, 1069, TCP).allowed());
}

#[test]
fn the_repository_replaces_and_deletes() {
    let rules = |text: &str| input::parse("t", text).unwrap();
    let mut repo = Repository::new();
    assert_eq!(repo.import(vec![]).0, 0);
    assert_eq!(repo.import(rules(&bare("{endpointSelector: {}}"))).0, 1);
    repo.import(rules(&bare("{endpointSelector: {}}")));
    assert_eq!(repo.rules().count(), 2, "rules without labels are added");
    let labelled = bare("{endpointSelector: {}, labels: [a=1]}, {endpointSelector: {}, labels: [a=1]}");
    repo.import(rules(&labelled));
    assert_eq!(repo.rules().count(), 4, "rules of one import do not replace each other");
    repo.import(rules(&labelled));
    assert_eq!(repo.rules().count(), 4, "the same labels replace");
    repo.import(rules(&bare("{endpointSelector: {}, labels: [a=1, b=2]}")));
    assert_eq!(repo.rules().count(), 5, "other labels do not");
    repo.import(rules(
        &cnp("p", "{endpointSelector: {}}")
            .replace("spec: {endpointSelector: {}}", "specs: [{endpointSelector: {}}, {endpointSelector: {}}]"),
    ));
    repo.import(rules(&ccnp("p", "{endpointSelector: {}}")));
    assert_eq!(repo.rules().count(), 8);
    assert_eq!(repo.import(rules(&cnp("p", "{endpointSelector: {}}"))).0, 8);
    assert_eq!(repo.rules().count(), 7, "an object replaces all that it was");
    let labels = |text: &str| Labels::parse([text]).unwrap();
    assert_eq!(repo.delete_by_labels(&labels("a=7")), (0, repo.revision()));
    assert_eq!(repo.delete_by_labels(&Labels::new()).0, 0);
    assert_eq!(repo.delete_by_labels(&labels("a=1")).0, 3);
    assert_eq!(repo.delete_by_labels(&labels("k8s:io.cilium.k8s.policy.name=p")).0, 2);
    assert_eq!(repo.revision().0, 10);
    let restored = Repository::restore(repo.rules().cloned().collect(), repo.revision());
    assert_eq!((restored.rules().count(), restored.revision().0), (2, 10));
    assert_eq!(repo.delete_all(), (2, repo.revision()));
    assert_eq!((repo.delete_all().0, repo.revision().0), (0, 11));
}

#[test]
fn selections_follow_identities() {
    let repo = repo(&bare("{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}, {fromEntities: [cluster]}]}"));
    let mut live = SelectorCache::new();
    let ask = |cache: &mut SelectorCache| resolve(&repo, cache, &Labels::new(), EnforcementMode::Default, false);
    ask(&mut live);
    assert_eq!(live.registered(), 2);
    for (id, labels) in KNOWN {
        assert!(live.insert(NumericIdentity(*id), &Labels::parse(*labels).unwrap()));
        assert!(!live.insert(NumericIdentity(*id), &Labels::parse(*labels).unwrap()));
    }
    assert_eq!(ask(&mut live), ask(&mut cache()), "incremental and fresh agree");
    assert!(live.insert(NumericIdentity(DB), &Labels::parse(["k8s:app=web"]).unwrap()));
    assert!(live.remove(NumericIdentity(WEB)) && !live.remove(NumericIdentity(WEB)));
    assert!(!live.remove(NumericIdentity(HOST)), "fixed identities stay");
    let p = ask(&mut live);
    assert!(judge(&p.ingress, Direction::Ingress, DB, 1, TCP).allowed());
    assert!(!judge(&p.ingress, Direction::Ingress, WEB, 1, TCP).allowed());
    assert!(live.insert(NumericIdentity(DB), &Labels::parse(["k8s:app=none"]).unwrap()));
    let web = &input::parse("t", &bare("{endpointSelector: {matchLabels: {app: web}}}")).unwrap()[0].endpoint_selector;
    assert_eq!(live.selections(&web.selector()).iter().map(|id| id.get()).collect::<Vec<_>>(), [OTHER, PLAIN]);
    let in_use = Repository::new();
    live.retain(|s| in_use.selectors().contains(s));
    assert_eq!(live.registered(), 0);
}
