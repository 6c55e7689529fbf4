// SPDX-License-Identifier: Apache-2.0
//! What Prometheus reads, read as it does: over TCP, in the text form.

use crate::support::{Talk, until};
use pilus_e2e::container::PATIENCE;
use pilus_e2e::{Family, Node, NodeOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

const AT: &str = "127.0.0.1:9780";

fn get(node: &Node, at: &str, path: &str) -> (String, String) {
    let at: SocketAddr = at.parse().expect("address");
    let answer = node.run(|| {
        let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    });
    let answer = answer.expect("answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head");
    (head.to_lowercase(), body.to_owned())
}

/// Samples by name and labels as they stand. Every sample belongs to a family whose help and type were told before.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let (mut helped, mut types) = (BTreeSet::new(), BTreeMap::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" {
            assert_eq!(lines.next(), None, "nothing follows the end");
            return samples;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("help");
            assert!(!help.is_empty() && helped.insert(name), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("type");
            assert!(helped.contains(name) && types.insert(name, kind).is_none(), "{line}");
        } else {
            let (key, value) = line.rsplit_once(' ').expect("sample");
            let name = key.split('{').next().expect("name");
            let known = types.iter().any(|(family, kind)| match (name.strip_prefix(*family), *kind) {
                (Some("_total"), "counter") | (Some(""), "gauge") => true,
                (Some(suffix), "histogram") => ["_count", "_sum", "_bucket"].contains(&suffix),
                _ => false,
            });
            assert!(known, "{line}: of no family");
            assert!(key == name || key.ends_with('}'), "{line}");
            assert!(samples.insert(key.to_owned(), value.parse().expect("number")).is_none(), "{line}: twice");
        }
    }
    panic!("no end: {text}");
}

#[test]
fn prometheus_reads_what_happened() {
    let args = vec!["--metrics-addr".to_owned(), AT.to_owned(), "--node-name".into(), "n1".into()];
    let node = Node::start(NodeOptions { args, ..NodeOptions::default() }).expect("node");
    let web = node.add("web", &["app=web"]).expect("web");
    let client = node.add("client", &["app=client"]).expect("client");
    let revision = node
        .import("- endpointSelector: {matchLabels: {app: web}}\n  ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]\n")
        .expect("policy");
    let scrape = || parse(&get(&node, AT, "/metrics").1);
    let dropped = "pilus_dropped_packets_total{reason=\"Policy denied\",direction=\"ingress\"}";
    let before = scrape();
    assert_eq!(before[dropped], 0.0, "a reason is there before its first drop");
    for family in Family::BOTH {
        let mut talk = Talk::tcp(&client, &web, family, 80);
        talk.exchange(1).expect("exchange");
        let _refused = client.connect_start(SocketAddr::new(web.ip(family), 81)).expect("connect");
        drop(talk);
    }
    until("drops are counted", || match scrape()[dropped] {
        n if n >= 2.0 => Ok(()),
        n => Err(format!("{n}")),
    });
    until("entries are counted", || {
        let now = scrape();
        let of = |family: &str| now[&format!("pilus_flow_table_entries{{family=\"{family}\"}}")];
        if of("ipv4") >= 1.0 && of("ipv6") >= 1.0 { Ok(()) } else { Err(format!("{} {}", of("ipv4"), of("ipv6"))) }
    });
    let refused = crate::support::request(&node, "PUT", "/v1/policy", Some("application/json"), "{}");
    assert_eq!(refused.status, 400);
    node.block_on(node.client().flush_flow_table(None)).expect("flush");
    let (head, text) = get(&node, AT, "/metrics");
    assert!(head.starts_with("http/1.1 200") && head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    let now = parse(&text);
    let grown = |key: &str| now[key] - before[key];
    for dir in ["egress", "ingress"] {
        let key = format!("pilus_forwarded_packets_total{{direction=\"{dir}\"}}");
        assert!(now.contains_key(&key), "{key}");
    }
    assert!(grown("pilus_forwarded_packets_total{direction=\"egress\"}") >= 10.0);
    assert!(grown("pilus_forwarded_bytes_total{direction=\"egress\"}") >= 600.0);
    for (key, value) in [
        ("pilus_endpoints{state=\"ready\"}", 2.0),
        ("pilus_flow_table_capacity{family=\"ipv4\"}", 16384.0),
        ("pilus_policy_revision", revision as f64),
        ("pilus_policy_rules", 1.0),
        ("pilus_policy_imports_total{outcome=\"accepted\"}", 1.0),
        ("pilus_policy_imports_total{outcome=\"refused\"}", 1.0),
        ("pilus_api_request_duration_seconds_count{method=\"PUT\",route=\"/v1/policy\",code=\"200\"}", 1.0),
        ("pilus_api_request_duration_seconds_bucket{le=\"+Inf\",method=\"PUT\",route=\"/v1/policy\",code=\"200\"}", 1.0),
        ("pilus_api_request_duration_seconds_count{method=\"PUT\",route=\"/v1/endpoint/{id}\",code=\"201\"}", 2.0),
        ("pilus_objects_total{from=\"build\"}", 0.0),
        ("pilus_flow_insert_failures_total", 0.0),
        ("pilus_tcp_packets_without_flow_total", 0.0),
        ("pilus_events_lost_total{where=\"buffer\"}", 0.0),
    ] {
        assert_eq!(now.get(key), Some(&value), "{key} in {text}");
    }
    for key in [
        "pilus_endpoint_regenerations_total",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "pilus_flow_table_removed_total{why=\"request\"}",
    ] {
        assert!(now[key] > 0.0, "{key} in {text}");
    }
    let version = node.block_on(node.client().status()).expect("status").version;
    assert!(now.keys().any(|k| k.starts_with("pilus_agent_build{") && k.contains(&format!("version=\"{version}\""))), "{text}");
    // The client shows the same, and the kernel's own table agrees.
    let (code, out, _) = node.pilus(&["metrics", "list", "-o", "json"]).expect("pilus");
    let listed: Vec<pilus_api::types::MetricModel> = serde_json::from_str(&out).expect("json");
    let names: BTreeSet<&str> = listed.iter().map(|m| m.name.as_str()).collect();
    let scraped: BTreeSet<&str> = now.keys().map(|k| k.split('{').next().expect("name")).filter(|n| !n.ends_with("_bucket")).collect();
    assert_eq!((code, names), (0, scraped));
    let denied = listed
        .iter()
        .find(|m| m.name == "pilus_dropped_packets_total" && m.labels["reason"] == "Policy denied" && m.labels["direction"] == "ingress");
    assert!(denied.expect("listed").value >= now[dropped]);
    let (code, out, _) = node.pilus(&["bpf", "metrics", "list"]).expect("pilus");
    assert!(code == 0 && out.lines().any(|l| l.starts_with("Policy denied") && l.contains("ingress")), "{out}");
    assert!(get(&node, AT, "/").0.starts_with("http/1.1 404"));
}

#[test]
fn a_bad_or_taken_address_is_told() {
    let node = Node::prepare(NodeOptions::default()).expect("node");
    for bad in ["nowhere", "127.0.0.1", ":9780", "127.0.0.1:99999"] {
        let (code, _, err) = node.agent_once(&["--metrics-addr", bad]).expect("agent");
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("option `metrics-addr`") && err.contains(bad) && err.contains("ADDRESS:PORT"), "{err}");
    }
    for at in [AT, "[::1]:9780"] {
        let _taken = node.run(|| TcpListener::bind(at)).expect("listen");
        let (code, _, err) = node.agent_once(&["--metrics-addr", at]).expect("agent");
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("option `metrics-addr`: cannot listen at") && err.contains(at) && err.contains("in use"), "{err}");
    }
    assert!(node.pins().expect("pins").is_empty(), "nothing was touched");
}
