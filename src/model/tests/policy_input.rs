// SPDX-License-Identifier: Apache-2.0
//! What the parser takes, and that it refuses the rest with the right line and field.

use pilus_model::label::Labels;
use pilus_model::policy::input;
use pilus_model::policy::{Entity, InputError, ObjectKind, Protocol, Rule};

fn parse(text: &str) -> Result<Vec<Rule>, Vec<InputError>> {
    input::parse("t.yaml", text)
}

fn rules(text: &str) -> Vec<Rule> {
    parse(text).unwrap_or_else(|e| panic!("{e:?}\n{text}"))
}

fn errors(text: &str) -> Vec<InputError> {
    parse(text).expect_err(text)
}

fn cnp(spec: &str) -> String {
    format!("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata:\n  name: p\nspec:\n{spec}")
}

/// (spec below line 5, line, column, path, part of the message)
#[test]
fn mistakes_are_named_with_line_and_field() {
    let sel = "  endpointSelector: {}\n";
    let rows: &[(String, u32, &str, &str)] = &[
        ("  ingress: [{}]\n".into(), 6, "spec.endpointSelector", "is mandatory"),
        ("  endpointSelector:\n  ingress: [{}]\n".into(), 6, "spec.endpointSelector", "is mandatory"),
        ("  endpointSelector: []\n".into(), 6, "spec.endpointSelector", "expected a selector (a mapping), found a list"),
        (format!("{sel}  egress: {{}}\n"), 7, "spec.egress", "expected a list of rules, found a mapping"),
        (format!("{sel}  ingres: []\n"), 7, "spec.ingres", "unknown field `ingres`"),
        (format!("{sel}  Ingress: []\n"), 7, "spec.Ingress", "did you mean `ingress`?"),
        (format!("{sel}  nodeSelector: {{}}\n"), 7, "spec.nodeSelector", "not supported by this version"),
        (format!("{sel}  enableDefaultDeny: {{ingress: no}}\n"), 7, "spec.enableDefaultDeny.ingress", "expected true or false"),
        (format!("{sel}  enableDefaultDeny: {{ingres: true}}\n"), 7, "spec.enableDefaultDeny.ingres", "unknown field"),
        (format!("{sel}  origin: {{}}\n"), 7, "spec.origin", "unknown field"),
        (format!("{sel}  ingress:\n  - fromCIDR: [10.0.0.0/33]\n"), 8, "spec.ingress[0].fromCIDR[0]", "at most 32 bits"),
        (
            format!("{sel}  ingress:\n  - {{}}\n  - fromCIDRSet: [{{cidr: 10.0.0.1}}]\n"),
            9,
            "spec.ingress[1].fromCIDRSet[0].cidr",
            "write 10.0.0.1/32",
        ),
        (format!("{sel}  ingress:\n  - fromRequires: []\n"), 8, "spec.ingress[0].fromRequires", "at least one selector"),
        (format!("{sel}  ingressDeny:\n  - fromRequires: [{{}}]\n"), 8, "spec.ingressDeny[0].fromRequires", "an allowing rule"),
        (format!("{sel}  ingressDeny:\n"), 7, "spec.ingressDeny", "found nothing"),
        (format!("{sel}  ingress:\n  - fromGroups: []\n"), 8, "spec.ingress[0].fromGroups", "not supported"),
        (format!("{sel}  ingress:\n  - icmps: [{{fields: []}}]\n"), 8, "spec.ingress[0].icmps[0].fields", "at least one ICMP type"),
        (format!("{sel}  ingress:\n  - authentication: {{}}\n"), 8, "spec.ingress[0].authentication", "not supported"),
        (format!("{sel}  ingress:\n  - toEndpoints: []\n"), 8, "spec.ingress[0].toEndpoints", "unknown field"),
        (format!("{sel}  ingress:\n  - fromEndpoints:\n"), 8, "spec.ingress[0].fromEndpoints", "found nothing"),
        (format!("{sel}  ingress:\n  - fromEntities: ~\n"), 8, "spec.ingress[0].fromEntities", "found nothing"),
        (format!("{sel}  ingress:\n  - toPorts:\n"), 8, "spec.ingress[0].toPorts", "found nothing"),
        (format!("{sel}  ingress:\n  - fromEntities: [world, mars]\n"), 8, "spec.ingress[0].fromEntities[1]", "unknown entity `mars`"),
        (format!("{sel}  ingress:\n  - fromEntities: [World]\n"), 8, "spec.ingress[0].fromEntities[0]", "unknown entity `World`"),
        (format!("{sel}  egress:\n  - toFQDNs: []\n"), 8, "spec.egress[0].toFQDNs", "not supported"),
        (format!("{sel}  egress:\n  - toServices: [{{}}]\n"), 8, "spec.egress[0].toServices[0]", "exactly one of"),
        (format!("{sel}  ingress:\n  - toServices: []\n"), 8, "spec.ingress[0].toServices", "unknown field"),
        (format!("{sel}  egress:\n  - toNodes: {{}}\n"), 8, "spec.egress[0].toNodes", "expected a list of selectors"),
        (format!("{sel}  egressDeny:\n  - toCIDR: [0.0.0.0/0]\n"), 8, "spec.egressDeny[0].toCIDR[0]", "every address"),
        (format!("{sel}  labels: web\n"), 7, "spec.labels", "expected a list of labels"),
        (format!("{sel}  labels: [foo:bar=x]\n"), 7, "spec.labels[0]", "unknown label source `foo`"),
        (format!("{sel}  labels: [a=1, a=2]\n"), 7, "spec.labels[1]", "twice"),
        (format!("{sel}  description: [x]\n"), 7, "spec.description", "expected a description, found a list"),
        (
            "  endpointSelector: {matchLabels: {foo:bar: x}}\n".into(),
            6,
            "spec.endpointSelector.matchLabels.foo:bar",
            "unknown label source",
        ),
        (
            "  endpointSelector:\n    matchLabels:\n      app: 1\n".into(),
            8,
            "spec.endpointSelector.matchLabels.app",
            "the number 1: write \"1\"",
        ),
        ("  endpointSelector:\n    matchLabels:\n      app: true\n".into(), 8, "spec.endpointSelector.matchLabels.app", "truth value"),
        ("  endpointSelector:\n    matchLabels:\n".into(), 7, "spec.endpointSelector.matchLabels", "found nothing"),
        (
            "  endpointSelector:\n    matchLabels: {app: a}\n    matchLabel: {app: a}\n".into(),
            8,
            "spec.endpointSelector.matchLabel",
            "unknown",
        ),
        (
            "  endpointSelector: {matchLabels: {reserved:mars: ''}}\n".into(),
            6,
            "spec.endpointSelector.matchLabels.reserved:mars",
            "unknown reserved",
        ),
        (
            "  endpointSelector:\n    matchExpressions:\n    - {key: a, operator: Has}\n".into(),
            8,
            "spec.endpointSelector.matchExpressions[0].operator",
            "unknown operator `Has` (expected In, NotIn, Exists, DoesNotExist)",
        ),
        (
            "  endpointSelector:\n    matchExpressions:\n    - {key: a, operator: In}\n".into(),
            8,
            "spec.endpointSelector.matchExpressions[0]",
            "needs at least one value",
        ),
        (
            "  endpointSelector:\n    matchExpressions:\n    - {key: a, operator: Exists, values: [x]}\n".into(),
            8,
            "spec.endpointSelector.matchExpressions[0].values",
            "takes no values",
        ),
        (
            "  endpointSelector:\n    matchExpressions:\n    - {operator: Exists}\n".into(),
            8,
            "spec.endpointSelector.matchExpressions[0].key",
            "is mandatory",
        ),
        (
            "  endpointSelector:\n    matchLabels: {'k8s:io.kubernetes.pod.namespace': other}\n".into(),
            7,
            "spec.endpointSelector",
            "selects namespace `other`, but the policy belongs to `default`",
        ),
        ("  endpointSelector: *nothing\n".into(), 6, "", "not valid YAML"),
        ("  endpointSelector: {}\n  endpointSelector: {}\n".into(), 7, "spec.endpointSelector", "given twice (first in line 6)"),
        ("  endpointSelector: !x {}\n".into(), 6, "spec.endpointSelector", "tag `!x` is not supported"),
        ("  <<: {}\n".into(), 6, "spec", "merge keys"),
        ("  ? [a]\n  : x\n".into(), 6, "spec", "field name"),
        ("  endpointSelector: {\n".into(), 6, "", "not valid YAML: "),
    ];
    for (spec, line, path, part) in rows {
        let text = cnp(spec);
        let found = errors(&text);
        let e = &found[0];
        assert!(e.line == *line && e.path == *path && e.message.contains(part), "{found:#?}\nwanted line {line}, {path}: {part}\n{text}");
        assert_eq!(found.len(), 1, "{found:#?}\n{text}");
        assert!(!e.to_string().contains('\n') && e.message.len() < 300, "{e}");
    }
}

#[test]
fn bad_ports_are_refused() {
    let base = "spec.ingress[0].toPorts[0].ports[0]";
    let many = "{port: 1}, ".repeat(41);
    let rows = [
        ("{port: 0}", ".port", "found \"0\""),
        ("{port: '0'}", ".port", "1 to 65535"),
        ("{port: 65536}", ".port", "1 to 65535"),
        ("{port: -1}", ".port", "1 to 65535"),
        ("{port: '080'}", ".port", "1 to 65535"),
        ("{port: 80.5}", ".port", "1 to 65535"),
        ("{port: ''}", ".port", "1 to 65535"),
        ("{port: HTTP}", ".port", "or a port's name, found"),
        ("{port: a--b}", ".port", "or a port's name, found"),
        ("{port: http, endPort: 90}", ".endPort", "not with the named port"),
        ("{port: [80]}", ".port", "found a list"),
        ("{}", ".port", "is mandatory"),
        ("{port: }", ".port", "is mandatory"),
        ("{protocol: TCP}", ".port", "is mandatory"),
        ("{port: 80, protocol: FOO}", ".protocol", "unknown protocol `FOO` (expected TCP, UDP, SCTP, ANY)"),
        ("{port: 80, protocol: ICMP}", ".protocol", "unknown protocol"),
        ("{port: 80, protocol: 6}", ".protocol", "the number 6"),
        ("{port: 80, endPort: 79}", ".endPort", "before it begins"),
        ("{port: 80, endPort: 0}", ".endPort", "1 to 65535"),
        ("{port: 80, endPort: 70000}", ".endPort", "1 to 65535"),
        ("{port: 80, ports: 1}", ".ports", "unknown field `ports`"),
    ];
    for (port, path, part) in rows {
        let text = cnp(&format!("  endpointSelector: {{}}\n  ingress:\n  - toPorts:\n    - ports:\n      - {port}\n"));
        let found = errors(&text);
        assert_eq!(found.len(), 1, "{found:#?}");
        let e = &found[0];
        assert!(e.line == 10 && e.path == format!("{base}{path}") && e.message.contains(part), "{e}\nwanted {path}: {part}");
    }
    let rows = [
        (format!("ports: [{many}]"), "spec.egress[0].toPorts[0].ports[40]", "41 ports in one list are too many"),
        ("ports: []".into(), "spec.egress[0].toPorts[0].ports", "at least one port"),
        ("port: 80".into(), "spec.egress[0].toPorts[0].port", "did you mean"),
        ("{ports: [{port: 80, protocol: TCP}], rules: {http: [{}]}}".into(), "spec.egress[0].toPorts[0].rules", "not supported yet"),
        ("{ports: [{port: 80}], rules: {http: [{}]}}".into(), "spec.egress[0].toPorts[0].rules", "need single ports with protocol TCP"),
        ("{ports: [{port: 80}], rules: {htp: []}}".into(), "spec.egress[0].toPorts[0].rules.htp", "unknown field"),
        ("{ports: [{port: 80}], serverNames: []}".into(), "spec.egress[0].toPorts[0].serverNames", "not supported"),
    ];
    for (rule, path, part) in rows {
        let text = cnp(&format!("  endpointSelector: {{}}\n  egress:\n  - toPorts:\n    - {rule}\n"));
        let found = errors(&text);
        assert!(found.iter().any(|e| e.line == 9 && e.path == path && (e.message.contains(part) || part == "did you mean")), "{found:#?}");
    }
}

#[test]
fn bad_documents_are_refused() {
    let rows = [
        ("just text", 1, "", "found \"just text\""),
        ("endpointSelector: {}", 1, "", "must stand in a list"),
        ("a: 1", 1, "apiVersion", "is mandatory"),
        ("- []", 1, "[0]", "expected a rule"),
        ("[{endpointSelector: {}}, {}]", 1, "[1].endpointSelector", "is mandatory"),
        ("- endpointSelector: {}\n  foo: 1", 2, "[0].foo", "unknown field `foo`"),
        ("apiVersion: v1\nkind: Pod", 2, "kind", "`Pod` is no kind of policy"),
        ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nspec: {}", 1, "metadata", "is mandatory"),
        ("apiVersion: cilium.io/v1\nkind: CiliumNetworkPolicy", 1, "apiVersion", "expected cilium.io/v2"),
        ("apiVersion: cilium.io/v2", 1, "kind", "is mandatory"),
        ("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nspec: {endpointSelector: {}}", 1, "metadata", "is mandatory"),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {}\nspec: {endpointSelector: {}}",
            3,
            "metadata.name",
            "mandatory",
        ),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: ''}\nspec: {endpointSelector: {}}",
            3,
            "metadata.name",
            "found \"\"",
        ),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: 7}\nspec: {endpointSelector: {}}",
            3,
            "metadata.name",
            "number 7",
        ),
        ("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}", 1, "spec", "is mandatory"),
        ("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspecs: []", 1, "spec", "is mandatory"),
        ("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspecs: {}", 4, "specs", "expected a list"),
        ("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec: {endpointSelector: {}}\nx: 1", 5, "x", "unknown"),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspecs:\n- endpointSelector: {}\n- ingress: []",
            6,
            "specs[1].endpointSelector",
            "is mandatory",
        ),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: p, namespace: x}\nspec: {endpointSelector: {}}",
            3,
            "metadata.namespace",
            "belongs to no namespace",
        ),
        ("- endpointSelector: {}\n---\n- endpointSelector: 5\n", 3, "[0].endpointSelector", "found the number 5"),
        ("\u{7}", 1, "", "not valid YAML"),
        ("- a: b: c", 1, "", "not valid YAML"),
    ];
    for (text, line, path, part) in rows {
        let found = errors(text);
        let e = &found[0];
        assert!(e.line == line && e.path == path && e.message.contains(part), "{found:#?}\nwanted line {line}, {path}: {part}\n{text}");
    }
    let all =
        errors("- endpointSelector: {}\n  foo: 1\n  ingress:\n  - toPorts:\n    - ports: [{port: 0}, {port: 66000, protocol: Q}]\n- {}\n");
    assert_eq!(all.len(), 5, "{all:#?}");
    assert_eq!(
        all[0].to_string(),
        "t.yaml:2:3: [0].foo: unknown field `foo` (expected endpointSelector, ingress, ingressDeny, egress, egressDeny, enableDefaultDeny, labels, description, origin)"
    );
}

#[test]
fn an_object_is_read_twice_only_by_mistake() {
    let one = cnp("  endpointSelector: {}\n");
    let found = errors(&format!("{one}---\n{one}"));
    assert_eq!((found[0].line, found[0].path.as_str()), (11, "metadata.name"), "{found:?}");
    assert!(found[0].message.contains("twice"), "{found:?}");
    let other = one.replace("name: p", "name: p\n  namespace: other");
    assert_eq!(rules(&format!("{one}---\n{other}")).len(), 2);
}

#[test]
fn everything_in_scope_is_read() {
    let text = "# comment\n---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata:\n  name: p\n  namespace: prod\n  labels: {a: b}\n  creationTimestamp: null\ndescription: all of it\nspecs:\n- endpointSelector:\n    matchLabels: {app: web, k8s.tier: front}\n    matchExpressions:\n    - {key: env, operator: In, values: [a, b]}\n  ingress:\n  - fromEndpoints:\n    - matchLabels: {reserved:host: }\n    fromEntities: [world, none]\n    toPorts:\n    - ports:\n      - {port: 80, protocol: tcp}\n      - {port: \"0x50\"}\n      - {port: '1000', endPort: 2000, protocol: UDP}\n  egressDeny: [{toEntities: [all]}]\n- endpointSelector: {}\n  description: mine\n  labels: [app=x, {key: k, value: v, source: container}]\nstatus: {nodes: {}}\n---\n---\n[{\"endpointSelector\": {}, \"ingress\": [{}], \"egress\": []}]\n...\n";
    let rules = rules(text);
    assert_eq!(rules.len(), 3);
    let first = &rules[0];
    assert_eq!((first.origin.line, first.origin.index), (12, 0));
    let object = first.origin.object.as_ref().unwrap();
    assert_eq!((object.kind, object.namespace.as_deref(), object.name.as_str()), (ObjectKind::CiliumNetworkPolicy, Some("prod"), "p"));
    assert_eq!(first.labels.to_string(), "k8s:io.cilium.k8s.policy.name=p,k8s:io.cilium.k8s.policy.namespace=prod");
    assert_eq!(first.description.as_deref(), Some("all of it"));
    assert_eq!(first.ingress[0].entities, Some(vec![Entity::World, Entity::None]));
    let ports: Vec<_> =
        first.ingress[0].to_ports[0].ports.iter().map(|p| (p.port.to_string(), p.end_port.map(|e| e.get()), p.protocol)).collect();
    assert_eq!(ports, [("80".into(), None, Protocol::Tcp), ("80".into(), None, Protocol::Any), ("1000".into(), Some(2000), Protocol::Udp)]);
    assert_eq!(rules[1].description.as_deref(), Some("mine"));
    assert!(rules[1].labels.contains_all(&Labels::parse(["unspec:app=x", "container:k=v"]).unwrap()));
    assert_eq!((rules[2].origin.object.is_none(), rules[2].origin.index, rules[2].ingress.len()), (true, 2, 1));
    assert!(parse("").unwrap().is_empty() && parse("# nothing\n---\n").unwrap().is_empty());
}

#[test]
fn printed_rules_read_back_the_same() {
    let text = cnp(
        "  endpointSelector: {matchLabels: {app: web}}\n  labels: [x=y]\n  ingress:\n  - fromEndpoints: []\n  - toPorts: [{ports: [{port: 80, endPort: 90}]}]\n  egressDeny: [{toEntities: [remote-node]}]\n",
    );
    let first = rules(&text);
    let json = serde_json::to_string_pretty(&first).unwrap();
    assert!(json.contains("\"endpointSelector\"") && json.contains("\"port\": \"80\"") && json.contains("\"fromEndpoints\": []"), "{json}");
    assert_eq!(serde_json::from_str::<Vec<Rule>>(&json).unwrap(), first);
    let second = rules(&json);
    assert_eq!(second[0].origin.object, first[0].origin.object);
    assert_eq!((&second[0].ingress, &second[0].labels), (&first[0].ingress, &first[0].labels));
    let bad = errors("[{endpointSelector: {}, origin: {object: {kind: CiliumNetworkPolicy, name: x}}}]");
    assert_eq!(bad[0].path, "[0].origin.object.namespace");
}

#[test]
fn json_is_read_with_tabs_and_escapes() {
    let found = rules(
        "[\n\t{\n\t\t\"endpointSelector\": {\"matchLabels\": {\"app\": \"w\\u0065b\"}},\n\t\t\"ingress\": [\n\t\t\t{}\n\t\t]\n\t}\n]\n",
    );
    assert_eq!(found[0].endpoint_selector.selector().to_string(), "any:app=web");
    assert_eq!(errors("- endpointSelector: {}\r\n  x: 1\r\n")[0].line, 2);
    assert_eq!(rules("\u{feff}- endpointSelector: {}\n").len(), 1);
    let emoji = rules(r#"[{"endpointSelector": {}, "description": "a\/b \ud83d\ude00"}]"#);
    assert_eq!(emoji[0].description.as_deref(), Some("a/b \u{1f600}"));
    assert_eq!(errors("[\n\t{\n\t\t\"endpointSelector\": {},\n\t\t\"x\": 1\n\t}\n]")[0].line, 4);
}

#[test]
fn bombs_are_bounded() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..40 {
        let below = format!("*a{}, ", n - 1).repeat(10);
        text += &format!("a{n}: &a{n} [{below}]\n");
    }
    assert!(errors(&text)[0].message.contains("aliases unfolded"));
    // The same with a valid rule's shape, where every level would be read.
    let mut text = String::from("- &r0 {endpointSelector: {}, ingress: [&i {toPorts: [&p {ports: [&q {port: 1}");
    text += &", *q".repeat(39);
    text += "]}";
    text += &", *p".repeat(500);
    text += "]}";
    text += &", *i".repeat(500);
    text += "]}\n";
    assert!(errors(&text)[0].message.contains("aliases unfolded"));
    assert!(errors(&"[".repeat(100_000))[0].message.len() < 300);
    assert!(errors(&format!("{}{}", "[".repeat(65), "]".repeat(65)))[0].message.contains("deeper than 64"));
    assert!(errors(&"- ".repeat(5000))[0].message.len() < 300);
    assert!(errors("- &a [*a]")[0].message.contains("alias"));
    assert!(errors(&" ".repeat((16 << 20) + 1))[0].message.contains("bytes"));
    assert_eq!(errors(&"- 1\n".repeat(1000)).len(), 100);
    let shared = rules("- endpointSelector: &s {matchLabels: {app: web}}\n- endpointSelector: *s\n");
    assert_eq!(shared[0].endpoint_selector, shared[1].endpoint_selector);
    let comments = "# c\n".repeat(1000) + "- endpointSelector: {}\n";
    assert_eq!(rules(&comments)[0].origin.line, 1001);
}
