// SPDX-License-Identifier: Apache-2.0
//! What is wrong gets one clear answer and changes nothing.

use crate::support::request;
use pilus_api::ClientError;
use pilus_api::types::{EndpointRequest, LONGEST_BODY, PolicyDocument, PolicyImport};
use pilus_e2e::icmp::{self, Raw};
use pilus_e2e::{Container, Family, Node, NodeOptions};

fn import(node: &Node, documents: &[(&str, &str)]) -> Result<u64, ClientError> {
    let documents = documents.iter().map(|(name, text)| PolicyDocument { name: (*name).into(), text: (*text).into() }).collect();
    node.block_on(node.client().import_policy(&PolicyImport { documents })).map(|r| r.revision)
}

/// Status, field and message of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, String, String) {
    match result {
        Err(ClientError::Api { status, error }) => (status, error.field.unwrap_or_default(), error.message),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_wrong_policy_is_refused_whole() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let _web = node.add("web", &["app=web"]).expect("web");
    let good = include_str!("../../../examples/policies/web-from-client.yaml");
    assert_eq!(import(&node, &[("good.yaml", good)]).expect("import"), 1);
    let before = node.block_on(node.client().policy(&[])).expect("policy");
    let rule = |text: &str| format!("- endpointSelector: {{}}\n  {text}\n");
    let rows = [
        ("ingres: []".to_owned(), "ingres"),
        ("ingress: [{toPorts: [{ports: [{port: \"0\"}]}]}]".to_owned(), "port"),
        ("ingress: [{toPorts: [{ports: [{port: \"80\", protocol: TCQ}]}]}]".to_owned(), "protocol"),
        ("ingress: [{fromEntities: [moon]}]".to_owned(), "moon"),
        ("egress: [{toFQDNs: [{matchName: a.example}]}]".to_owned(), "toFQDNs"),
        ("ingress: {}".to_owned(), "ingress"),
    ];
    for (text, named) in rows {
        let (status, field, message) = refusal(import(&node, &[("good.yaml", good), ("bad.yaml", &rule(&text))]));
        assert_eq!(status, 400, "{message}");
        assert!(message.starts_with("bad.yaml:2:"), "{message}");
        assert!(format!("{field} {message}").contains(named), "{field}: {message}");
    }
    for (name, text) in [("kind.yaml", "kind: Pod\nmetadata: {name: x}\n"), ("broken.yaml", "a: [\n"), ("empty.yaml", "\n")] {
        let (status, _, message) = refusal(import(&node, &[(name, text)]));
        assert_eq!(status, 400, "{name}: {message}");
    }
    assert_eq!(node.block_on(node.client().policy(&[])).expect("policy"), before);
}

#[test]
fn wrong_requests_are_refused_and_leave_nothing() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let web = node.add("web", &["app=web"]).expect("web");
    let put = |change: &dyn Fn(&mut EndpointRequest)| {
        let mut request = EndpointRequest { name: "new".into(), netns: web.path(), ifname: Some("eth7".into()), ..Default::default() };
        change(&mut request);
        refusal(node.block_on(node.client().put_endpoint(&request, true)))
    };
    let plain = node.path("plain");
    std::fs::write(&plain, "").expect("file");
    let rows: Vec<((u16, String, String), u16, &str)> = vec![
        (put(&|r| r.netns = "/nowhere".into()), 400, "/nowhere"),
        (put(&|r| r.netns = "relative".into()), 400, "relative"),
        (put(&|r| r.netns = plain.display().to_string()), 400, "is no network namespace"),
        (put(&|r| r.ifname = Some("a/b".into())), 400, "a/b"),
        (put(&|r| r.ifname = Some("sixteen-letters-".into())), 400, "sixteen"),
        (put(&|r| r.ifname = Some("eth0".into())), 409, "eth0"),
        (put(&|r| r.name = "web".into()), 409, "web"),
        (put(&|r| r.labels = vec!["reserved:host".into()]), 400, "reserved"),
        (put(&|r| r.ipv4 = Some("1.2.3.4".into())), 409, "1.2.3.4"),
        (put(&|r| r.ipv4 = Some(web.ip(Family::V4).to_string())), 409, "taken"),
        (put(&|r| r.ipv6 = Some("nonsense".into())), 400, "nonsense"),
    ];
    for ((status, field, message), wanted, named) in rows {
        assert_eq!(status, wanted, "{field}: {message}");
        assert!(message.contains(named), "{field}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
    let names: Vec<String> = node.block_on(node.client().endpoints()).expect("endpoints").into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["web"]);
    let links: Vec<String> = node.links().expect("links").into_iter().filter(|l| l.starts_with("plx")).collect();
    assert_eq!(links, ["plx00000100"]);
    // The very same request again is no conflict.
    let mut again = Container::new("web").expect("container");
    again.name = "web".into();
    let request = EndpointRequest { name: "web".into(), netns: web.path(), labels: vec!["app=web".into()], ..Default::default() };
    let put = node.block_on(node.client().put_endpoint(&request, true)).expect("again");
    assert!(!put.created);
    let broken = |id: &str, body: &[(&str, &str)]| {
        let options = body.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        refusal(node.block_on(node.client().set_endpoint_config(id, &options)))
    };
    assert_eq!(broken("name:web", &[("Trace", "loud")]).0, 400);
    assert_eq!(broken("name:web", &[("Volume", "1")]).0, 400);
    assert_eq!(broken("name:nobody", &[("Trace", "off")]).0, 404);
}

/// Bytes that no client library would send.
#[test]
fn wrong_http_gets_an_error_of_ours() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let _web = node.add("web", &["app=web"]).expect("web");
    let json = Some("application/json");
    request(&node, "PUT", "/v1/policy", json, "{").refused(400, "invalid", Some("body"));
    request(&node, "PUT", "/v1/policy", json, "[]").refused(400, "invalid", Some("body"));
    let long = request(&node, "PUT", "/v1/policy", json, &" ".repeat(LONGEST_BODY + 1)).refused(400, "invalid", Some("body"));
    assert!(long.contains("64 MiB"), "{long}");
    request(&node, "PUT", "/v1/policy", json, "{\"documents\":[],\"more\":1}").refused(400, "invalid", Some("body"));
    request(&node, "PUT", "/v1/policy", None, "{\"documents\":[]}").refused(400, "invalid", Some("body"));
    request(&node, "PUT", "/v1/endpoint/name:x", json, "{\"name\":7}").refused(400, "invalid", Some("body"));
    request(&node, "DELETE", "/v1/policy", None, "").refused(400, "invalid", Some("labels"));
    request(&node, "PATCH", "/v1/config", json, "{\"options\":{\"mtu\":\"9000\"}}").refused(400, "invalid", Some("mtu"));
    request(&node, "GET", "/v1/map/nothing", None, "").refused(404, "not-found", None);
    request(&node, "DELETE", "/v1/map/policy", None, "").refused(405, "invalid", None);
    request(&node, "GET", "/v1/flows?type=loud", None, "").refused(400, "invalid", Some("type"));
    request(&node, "GET", "/v1/flows?from=nobody", None, "").refused(404, "not-found", None);
    request(&node, "POST", "/v1/cleanup", None, "").refused(400, "invalid", Some("confirm"));
    request(&node, "GET", "/v2/endpoint", None, "").refused(404, "not-found", None);
    request(&node, "POST", "/v1/endpoint", json, "{}").refused(405, "invalid", None);
    assert_eq!(request(&node, "DELETE", "/v1/endpoint/name:nobody", None, "").status, 204);
}

fn ping(from: &Container, to: &Container) {
    let raw = Raw::new(from, Family::V6).expect("raw socket");
    raw.echo(to.ip(Family::V6), 7, 7).expect("send");
    raw.receive(|m| m.kind == icmp::echo_types(Family::V6).1).expect("answer");
}

/// Clang, the verifier and the row each have their say; every container keeps its program.
#[test]
fn a_wrong_template_changes_nothing() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let a = node.add("a", &[]).expect("a");
    let b = node.add("b", &[]).expect("b");
    let programs = || {
        let all = node.block_on(node.client().endpoints()).expect("endpoints");
        all.iter().flat_map(|e| e.datapath.programs.iter().map(|p| p.id)).collect::<Vec<_>>()
    };
    let before = programs();
    let hook = node.path("state/templates/custom/container.c");
    let header = node.path("state/templates/container_config.h.tera");
    let original = std::fs::read_to_string(&header).expect("template");
    let hooks = |from: &str| {
        format!(
            "static __always_inline int custom_from_container(struct __sk_buff *ctx)\n{{\n\t{from}\n}}\n\
             static __always_inline int custom_to_container(struct __sk_buff *ctx)\n{{\n\treturn 0;\n}}\n"
        )
    };
    let rows = [
        (Some(hooks("return nothing;")), original.clone(), "custom/container.c:3:"),
        (Some(hooks("char *p = CTXP(ctx, data);\n\n\treturn p[9] ? -1 : 0;")), original.clone(), "invalid access to packet"),
        (None, original.replace("EP_MTU, ", "EP_MTU, 99999"), "container_config.h.tera:"),
        (None, original.replace("{{ mtu }}", "{{ mtuu }}"), "container_config.h.tera:"),
        (None, format!("{original}VALUE(u16, EP_NEW, 1)\n"), "EP_NEW"),
        (None, format!("{original}int x;\n"), "container_config.h.tera:"),
    ];
    for (custom, template, named) in rows {
        if let Some(text) = &custom {
            std::fs::write(&hook, text).expect("hook");
        }
        std::fs::write(&header, &template).expect("template");
        let applied = node.block_on(node.client().apply_template()).expect("answer");
        assert!(!applied.ok && applied.swapped == 0, "{named}: {applied:?}");
        assert!(applied.diagnostics.iter().any(|d| d.contains(named)), "{named}: {:?}", applied.diagnostics);
        assert_eq!(programs(), before, "{named}");
        ping(&a, &b);
        let _ = std::fs::remove_file(&hook);
        std::fs::write(&header, &original).expect("template");
    }
    // An own build may have values of its own.
    let applied = node.block_on(node.client().apply_template()).expect("answer");
    assert!(applied.ok, "{applied:?}");
}
