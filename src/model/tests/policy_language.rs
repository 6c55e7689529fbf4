// SPDX-License-Identifier: Apache-2.0
//! Peers beyond selectors, ports beyond numbers, rules about what is said, and NetworkPolicy: what is taken, and that the
//! rest is refused with its line and field.

use pilus_model::identity::NumericIdentity;
use pilus_model::label::Labels;
use pilus_model::policy::input::{Options, parse, parse_all, parse_with};
use pilus_model::policy::{EnforcementMode, Engine, InputError, Port, Refused, Rule, Subject, shadowed};

const L7: Options = Options::ALL;

fn rules(text: &str) -> Vec<Rule> {
    parse_with("t.yaml", text, L7).unwrap_or_else(|e| panic!("{e:?}\n{text}"))
}

fn errors(text: &str) -> Vec<InputError> {
    parse_with("t.yaml", text, L7).expect_err(text)
}

/// A rule whose line 3 is this section.
fn section(direction: &str, fields: &str) -> String {
    format!("- endpointSelector: {{}}\n  {direction}:\n  - {fields}\n")
}

fn check(text: &str, line: u32, path: &str, part: &str) {
    let found = errors(text);
    let e = &found[0];
    assert!(e.line == line && e.path == path && e.message.contains(part), "{found:#?}\nwanted line {line}, {path}: {part}\n{text}");
    assert!(!e.to_string().contains('\n') && e.message.len() < 600, "{e}");
    // Never taken with the mistake left out, whoever asks.
    assert!(parse("t.yaml", text).is_err());
}

#[test]
fn bad_prefixes_and_peers_are_refused() {
    let rows = [
        ("fromCIDR: [10.0.0.1/8]", "fromCIDR[0]", "write 10.0.0.0/8"),
        ("fromCIDR: ['::/0']", "fromCIDR[0]", "every address"),
        ("fromCIDR: [10.0.0.0/33]", "fromCIDR[0]", "at most 32 bits"),
        ("fromCIDR: [example.com]", "fromCIDR[0]", "found \"example.com\""),
        ("fromCIDR: [10]", "fromCIDR[0]", "the number 10"),
        ("fromCIDR: 10.0.0.0/8", "fromCIDR", "expected a list of prefixes"),
        ("fromCIDR:", "fromCIDR", "found nothing"),
        ("fromCIDRSet: [{cidr: 10.0.0.1}]", "fromCIDRSet[0].cidr", "no prefix length"),
        ("fromCIDRSet: [{}]", "fromCIDRSet[0].cidr", "is mandatory"),
        ("fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]", "fromCIDRSet[0].except[0]", "does not lie inside"),
        ("fromCIDRSet: [{cidr: 10.0.0.0/8, except: ['fd00::/16']}]", "fromCIDRSet[0].except[0]", "does not lie inside"),
        ("fromCIDRSet: [{cidr: 10.0.0.0/8, except: [0.0.0.0/0]}]", "fromCIDRSet[0].except[0]", "does not lie inside"),
        ("fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}]", "fromCIDRSet[0].except[0]", "leaves nothing"),
        ("fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.1]}]", "fromCIDRSet[0].except[0]", "no prefix length"),
        ("fromCIDRSet: [{cidr: 10.0.0.0/8, except: }]", "fromCIDRSet[0].except", "found nothing"),
        ("fromCIDRSet: [{cidrGroupRef: x}]", "fromCIDRSet[0].cidrGroupRef", "not supported"),
        ("fromEndpoints: [{matchLabels: {'cidr:10.0.0.0/8': ''}}]", "fromEndpoints[0].matchLabels.cidr:10.0.0.0/8", "fromCIDR"),
        ("fromRequires: [x]", "fromRequires[0]", "expected a selector"),
        ("fromRequires:", "fromRequires", "found nothing"),
        ("icmps: [{fields: [{type: 256}]}]", "icmps[0].fields[0].type", "unknown ICMP type"),
        ("icmps: [{fields: [{type: Echo, family: IPv6}]}]", "icmps[0].fields[0].type", "unknown ICMP type"),
        ("icmps: [{fields: [{type: -1}]}]", "icmps[0].fields[0].type", "unknown ICMP type"),
        ("icmps: [{fields: [{family: IPv4}]}]", "icmps[0].fields[0].type", "is mandatory"),
        ("icmps: [{fields: [{type: 8, family: ipv4}]}]", "icmps[0].fields[0].family", "unknown family"),
        ("icmps: [{}]", "icmps[0].fields", "is mandatory"),
        ("icmps:", "icmps", "found nothing"),
        ("{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: 80}]}]}", "icmps", "write two rules"),
    ];
    for (fields, path, part) in rows {
        check(&section("ingress", fields), 3, &format!("[0].ingress[0].{path}"), part);
    }
    let many = "{type: 8}, ".repeat(41);
    check(&section("ingress", &format!("icmps: [{{fields: [{many}]}}]")), 3, "[0].ingress[0].icmps[0].fields[40]", "too many");
    let rows = [
        ("toServices: [{k8sService: {namespace: x}}]", "toServices[0].k8sService.serviceName", "is mandatory"),
        ("toServices: [{k8sService: {serviceName: X_}}]", "toServices[0].k8sService.serviceName", "lower case"),
        ("toServices: [{k8sServiceSelector: {namespace: x}}]", "toServices[0].k8sServiceSelector.selector", "is mandatory"),
        ("toServices: [{k8sService: {serviceName: a}, k8sServiceSelector: {selector: {}}}]", "toServices[0]", "exactly one"),
        ("toServices: [{aws: {}}]", "toServices[0].aws", "unknown field"),
    ];
    for (fields, path, part) in rows {
        check(&section("egress", fields), 3, &format!("[0].egress[0].{path}"), part);
    }
}

#[test]
fn bad_rules_about_what_is_said_are_refused() {
    let http = |rule: &str| format!("toPorts: [{{ports: [{{port: 80, protocol: TCP}}], rules: {{http: [{rule}]}}}}]");
    let kafka = |rule: &str| format!("toPorts: [{{ports: [{{port: 80, protocol: TCP}}], rules: {{kafka: [{rule}]}}}}]");
    let dns = |rule: &str| format!("toPorts: [{{ports: [{{port: 53}}], rules: {{dns: [{rule}]}}}}]");
    let rows = [
        (http("{path: '('}"), "rules.http[0].path", "no regular expression"),
        (http("{method: '[z-a]'}"), "rules.http[0].method", "no regular expression"),
        (http("{path: '(a{1000}){1000}'}"), "rules.http[0].path", "too big"),
        (http("{path: 5}"), "rules.http[0].path", "the number 5"),
        (http("{paht: /}"), "rules.http[0].paht", "unknown field"),
        (http("{headers: ['Bad Name: x']}"), "rules.http[0].headers[0]", "no header name"),
        (http("{headers: [':x']}"), "rules.http[0].headers[0]", "no header name"),
        (http("{headerMatches: []}"), "rules.http[0].headerMatches", "not supported"),
        (http("x"), "rules.http[0]", "an HTTP rule"),
        (kafka("{role: produce, apiKey: fetch}"), "rules.kafka[0]", "cannot stand together"),
        (kafka("{role: both}"), "rules.kafka[0].role", "unknown role"),
        (kafka("{apiKey: nothing}"), "rules.kafka[0].apiKey", "unknown apiKey"),
        (kafka("{apiVersion: 32768}"), "rules.kafka[0].apiVersion", "0 to 32767"),
        (kafka("{apiVersion: -1}"), "rules.kafka[0].apiVersion", "0 to 32767"),
        (kafka("{topic: 'a b'}"), "rules.kafka[0].topic", "1 to 255 letters"),
        (kafka("{topic: ''}"), "rules.kafka[0].topic", "1 to 255 letters"),
        (kafka(&format!("{{topic: {}}}", "a".repeat(256))), "rules.kafka[0].topic", "1 to 255 letters"),
        (dns("{}"), "rules.dns[0]", "exactly one"),
        (dns("{matchName: a, matchPattern: b}"), "rules.dns[0]", "exactly one"),
        (dns("{matchName: '*.a'}"), "rules.dns[0].matchName", "expected a name"),
        (dns("{matchPattern: 'a b'}"), "rules.dns[0].matchPattern", "expected a name"),
        (
            "toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: [{}], kafka: [{}]}}]".into(),
            "rules.kafka",
            "cannot stand on one port",
        ),
        ("toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: }}]".into(), "rules.http", "found nothing"),
        ("toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {l7proto: x}}]".into(), "rules.l7proto", "not supported"),
        ("toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {htpp: []}}]".into(), "rules.htpp", "unknown field"),
        ("toPorts: [{ports: [{port: 80}], rules: {http: [{}]}}]".into(), "rules", "protocol TCP, not 80 ANY"),
        ("toPorts: [{ports: [{port: 80, protocol: UDP}], rules: {kafka: [{}]}}]".into(), "rules", "protocol TCP"),
        ("toPorts: [{ports: [{port: 53, protocol: SCTP}], rules: {dns: [{matchName: a}]}}]".into(), "rules", "TCP, UDP or ANY"),
        ("toPorts: [{ports: [{port: 80, endPort: 90, protocol: TCP}], rules: {http: [{}]}}]".into(), "rules", "single ports"),
        ("toPorts: [{ports: [], rules: {http: [{}]}}]".into(), "ports", "at least one port"),
    ];
    for (fields, path, part) in rows {
        check(&section("ingress", &fields), 3, &format!("[0].ingress[0].toPorts[0].{path}"), part);
    }
    check(&section("ingressDeny", &http("{}")), 3, "[0].ingressDeny[0].toPorts[0].rules", "denies whole ports");
}

#[test]
fn rules_about_what_is_said_need_a_proxy() {
    let text = section("ingress", "toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: [{path: /a}]}}]");
    let found = parse("t.yaml", &text).unwrap_err();
    assert_eq!((found.len(), found[0].path.as_str()), (1, "[0].ingress[0].toPorts[0].rules"));
    assert!(found[0].message.contains("no proxy"), "{}", found[0]);
    // One that restricts nothing is a plain rule.
    assert!(parse("t.yaml", &text.replace("[{path: /a}]", "[]")).unwrap()[0].ingress[0].to_ports[0].rules.is_none());
    let mut engine = Engine::new(EnforcementMode::Default, false);
    engine.add_subject(Subject::from(Labels::new()));
    engine.import(rules(&text), None).unwrap();
    let before: Vec<_> = engine.policies().map(|(_, p)| p).collect();
    let other = text.replace("http: [{path: /a}]", "kafka: [{topic: x}]");
    let refused = engine.import(rules(&other), None).unwrap_err();
    assert!(
        matches!(&refused, Refused::Conflict { .. }) && refused.to_string().contains("http rules (t.yaml:1) and kafka rules"),
        "{refused}"
    );
    assert_eq!((engine.policies().map(|(_, p)| p).collect::<Vec<_>>(), engine.repository().revision().0), (before, 1));
}

#[test]
fn bad_network_policies_are_refused() {
    let np = |spec: &str| format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n");
    let rows = [
        ("[]", "spec", "a mapping"),
        ("{podSelectr: {}}", "spec.podSelectr", "unknown field"),
        ("{policyTypes: [ingress]}", "spec.policyTypes[0]", "unknown policy type"),
        ("{podSelector: {matchLabels: {'k8s:app': x}}}", "spec.podSelector", "no key of a Kubernetes label"),
        ("{ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]", "expected podSelector"),
        ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}", "spec.ingress[0].from[0]", "cannot stand with"),
        ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/8}}]}]}", "spec.ingress[0].from[0].ipBlock.cidr", "write 10.0.0.0/8"),
        (
            "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]}",
            "spec.ingress[0].from[0].ipBlock.except[0]",
            "inside",
        ),
        ("{ingress: [{to: []}]}", "spec.ingress[0].to", "unknown field"),
        ("{egress: [{from: []}]}", "spec.egress[0].from", "unknown field"),
        ("{ingress: [{ports: [{endPort: 5}]}]}", "spec.ingress[0].ports[0].endPort", "needs the port"),
        ("{ingress: [{ports: [{port: 0}]}]}", "spec.ingress[0].ports[0].port", "1 to 65535"),
        ("{ingress: [{ports: [{port: 9, endPort: 5}]}]}", "spec.ingress[0].ports[0].endPort", "before it begins"),
        ("{ingress: [{ports: [{port: http, endPort: 5}]}]}", "spec.ingress[0].ports[0].endPort", "named port"),
        ("{ingress: [{ports: [{port: 5, protocol: ANY}]}]}", "spec.ingress[0].ports[0].protocol", "unknown protocol"),
        ("{ingress: {}}", "spec.ingress", "expected a list"),
    ];
    for (spec, path, part) in rows {
        check(&np(spec), 4, path, part);
    }
    check(&np("{}").replace("networking.k8s.io/v1", "extensions/v1beta1"), 1, "apiVersion", "expected networking.k8s.io/v1");
    check(&format!("{}specs: []\n", np("{}")), 5, "specs", "unknown field");
    let found = rules(&np("{ingress: [{ports: [{port: http}, {protocol: UDP}]}]}"));
    let ports = &found[0].ingress[0].to_ports[0].ports;
    assert_eq!((&ports[0].port, ports[1].end_port.map(|e| e.get())), (&Port::Name("http".into()), Some(65535)));
    assert_eq!(found[0].origin.object.as_ref().unwrap().to_string(), "NetworkPolicy default/p");
}

#[test]
fn lists_of_objects_and_several_texts() {
    let item = |name: &str| {
        format!("- {{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: {name}}}, spec: {{endpointSelector: {{}}}}}}\n")
    };
    let list = format!("apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: ''}}\nitems:\n{}{}", item("a"), item("b"));
    assert_eq!(rules(&list).len(), 2);
    let bad = list.replace("name: b}, spec: {", "name: b}, spec: {x: 1, ");
    check(&bad, 6, "items[1].spec.x", "unknown field");
    check(&list.replace("name: b", "name: a"), 6, "items[1].metadata.name", "twice");
    check("apiVersion: v1\nkind: PodList\nitems: []\n", 2, "kind", "no kind of policy");
    let one = item("a").trim_start_matches("- ").to_owned();
    let twice = parse_all([("x.yaml", one.as_str()), ("y.yaml", one.as_str())], L7).unwrap_err();
    assert_eq!((twice[0].file.as_str(), twice[0].path.as_str()), ("y.yaml", "metadata.name"));
    assert_eq!(parse_all([("x.yaml", one.as_str()), ("y.yaml", list.replace("name: a", "name: c").as_str())], L7).unwrap().len(), 3);
}

#[test]
fn everything_printed_reads_back_the_same() {
    let text = "- endpointSelector: {}\n  enableDefaultDeny: {ingress: false}\n  ingress:\n  - fromCIDR: [10.0.0.1, 'fd00::/8']\n    fromCIDRSet: [{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}]\n    fromNodes: [{matchLabels: {role: x}}]\n    fromEntities: [world-ipv4, kube-apiserver, ingress]\n    fromRequires: [{matchLabels: {a: b}}]\n    toPorts:\n    - {ports: [{port: http}], rules: {}}\n    - {ports: [{port: 80, protocol: TCP}], rules: {HTTP: [{path: /a, headers: ['X: y', Z]}]}}\n    - {ports: [{port: 92, protocol: TCP}], rules: {kafka: [{role: Produce, topic: t, clientID: c, apiVersion: 3}, {apiKey: FETCH}]}}\n    - {ports: [{port: 53}], rules: {dns: [{matchPattern: '*.x'}]}}\n  - icmps: [{fields: [{type: EchoRequest, family: IPv6}, {type: 3}]}]\n  egress:\n  - toServices: [{k8sService: {serviceName: a, namespace: b}}, {k8sServiceSelector: {selector: {matchLabels: {x: y}}}}]\n    toCIDR: []\n";
    let first = rules(text);
    let json = serde_json::to_string_pretty(&first).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Rule>>(&json).unwrap(), first);
    let second = rules(&json);
    assert_eq!((&second[0].ingress, &second[0].egress), (&first[0].ingress, &first[0].egress), "{json}");
    assert_eq!(second[0].enable_default_deny, first[0].enable_default_deny);
    for name in
        ["\"fromCIDR\"", "\"fromCIDRSet\"", "\"10.0.0.1/32\"", "\"toServices\"", "\"serviceName\"", "\"clientID\"", "\"matchPattern\""]
    {
        assert!(json.contains(name), "{name}: {json}");
    }
}

#[test]
fn prefixes_of_containers_are_told() {
    let found = rules(
        "- endpointSelector: {}\n  ingress: [{fromCIDR: [10.5.0.0/24, 192.0.2.0/24]}]\n  egressDeny: [{toCIDRSet: [{cidr: 10.0.0.0/8}, {cidr: 0.0.0.0/0}]}]\n",
    );
    let told = shadowed(&found, &["10.5.0.0/16".parse().unwrap()]);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("t.yaml:1: 10.0.0.0/8 ") && told[1].contains("10.5.0.0/24") && told[1].contains("will not match them"),
        "{told:?}"
    );
}

#[test]
fn a_preview_names_the_verdicts_that_change() {
    let labels = |app: &str| Labels::parse([format!("k8s:app={app}")]).unwrap();
    let mut engine = Engine::new(EnforcementMode::Default, false);
    for (n, app) in ["a", "b"].iter().enumerate() {
        engine.set_identity(NumericIdentity(256 + n as u32), Some(&labels(app)));
        engine.add_subject(Subject::from(labels(app)));
    }
    let text = |fields: &str| format!("- endpointSelector: {{matchLabels: {{app: b}}}}\n  labels: [n=1]\n  {fields}\n");
    let changes = |engine: &Engine, fields: &str| -> Vec<String> {
        let changes = engine.diff(rules(&text(fields))).unwrap();
        let line = |c: &pilus_model::policy::Change| {
            let verdicts = [&c.before, &c.after].map(|v| v.allowed());
            format!("{} {} {} {}/{}-{} {verdicts:?}", c.subject.labels, c.direction, c.peer, c.proto, c.lo, c.hi)
        };
        changes.iter().map(line).collect()
    };
    let first = "ingress: [{fromEndpoints: [{matchLabels: {app: a}}], toPorts: [{ports: [{port: 80, protocol: TCP}]}]}]";
    let told = changes(&engine, first);
    let others: Vec<&String> = told.iter().filter(|l| l.starts_with("k8s:app=b ingress 0 ")).collect();
    assert_eq!(others.len(), 6, "every protocol is denied to others: {told:#?}");
    let mut of_a: Vec<&str> = told.iter().filter_map(|l| l.strip_prefix("k8s:app=b ingress 256 ")).collect();
    of_a.retain(|l| l.starts_with("6/"));
    assert_eq!(of_a, ["6/0-79 [true, false]", "6/81-65535 [true, false]"], "{told:#?}");
    assert_eq!(told.len(), 6 + 2 + 5, "{told:#?}");
    assert_eq!(engine.repository().rules().count(), 0, "nothing was changed");

    engine.import(rules(&text(first)), None).unwrap();
    assert!(changes(&engine, first).is_empty(), "the same rules again change nothing");
    // Other addresses told apart, the same verdicts: no change; then one that is denied.
    assert_eq!(
        changes(&engine, &first.replace("ingress: [", "ingress: [{fromCIDR: [192.0.2.0/24], toPorts: [{ports: [{port: 1}]}]}, ")).len(),
        3
    );
    let wider = first.replace("port: 80", "port: 79, endPort: 90");
    assert_eq!(changes(&engine, &wider), ["k8s:app=b ingress 256 6/79-79 [false, true]", "k8s:app=b ingress 256 6/81-90 [false, true]"]);
}
