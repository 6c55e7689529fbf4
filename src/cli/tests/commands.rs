// SPDX-License-Identifier: Apache-2.0
//! What each command sends and prints.

mod fake;

use fake::{Agent, endpoint, status};
use serde_json::{Value, json};

#[test]
fn status_and_version() {
    let agent = Agent::new();
    agent.on("GET /v1/healthz", 200, status("ok"));
    assert_eq!(agent.ok(&["status", "--brief"]), "ok\n");
    let table = "\
State:           ok
Node:            node1
Version:         0.1.0
Uptime:          1h2m
Endpoints:       2 ready
Identities:      12
Policy revision: 3
Ranges:          fd00::/64 10.5.0.0/16
Router:          fd00::1 10.5.0.1
Warning: the clock is odd
";
    assert_eq!(agent.ok(&["status"]), table);
    let verbose = agent.ok(&["status", "--verbose"]);
    assert!(verbose.contains("Kernel:          6.18.0\n") && verbose.contains("10 events, 1 lost"), "{verbose}");
    assert!(agent.ok(&["--color", "always", "status"]).contains("\x1b[33mWarning:\x1b[0m the clock"));
    assert_eq!(agent.json(&["status"]), status("ok"));
    assert_eq!(agent.ok(&["version"]), format!("Client: {0}\nAgent:  0.1.0\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(agent.json(&["version"])["agent"], "0.1.0");
    assert!(agent.ok(&["version", "-o", "yaml"]).contains("agent: \"0.1.0\"\n"));
}

#[test]
fn status_tells_by_its_exit_and_waits() {
    let agent = Agent::new();
    for state in ["starting", "starting", "ok"] {
        agent.on("GET /v1/healthz", 200, status(state));
    }
    let ran = agent.run(&["status", "--brief"]);
    assert_eq!(
        (ran.status, ran.out.as_str(), ran.err.as_str()),
        (Some(1), "starting\n", "error: the agent is not well: starting (the clock is odd)\n")
    );
    assert_eq!(agent.ok(&["status", "--wait", "--brief", "--timeout", "30"]), "ok\n");
    assert_eq!(agent.ok(&["status", "--wait", "--brief"]), "ok\n");
    assert_eq!(agent.requests().len(), 4, "{:?}", agent.requests());
}

#[test]
fn endpoints_are_shown() {
    let agent = Agent::new();
    agent
        .on("GET /v1/endpoint", 200, json!([endpoint(257, "web"), endpoint(258, "evil\u{1b}[2J")]))
        .on("GET /v1/endpoint/name:web", 200, endpoint(257, "web"))
        .on("GET /v1/endpoint/257/log", 200, json!([{"time": "2026-01-02T03:04:05Z", "state": "ready", "message": "attached"}]))
        .on("GET /v1/endpoint/ipv4:10.5.0.3/healthz", 200, json!({"health": "ok", "state": "ready"}))
        .on("GET /v1/endpoint/name:sick/healthz", 200, json!({"health": "no program", "state": "not-ready"}))
        .on("GET /v1/endpoint/name:web/header", 200, json!({"path": "/x.h", "text": "#define A 1\n\n#define B 2\n", "shapeKey": "k"}))
        .on("POST /v1/endpoint/name:web/regenerate", 200, endpoint(257, "web"));
    let table = "\
ID   NAME           STATE  IDENTITY  INGRESS   EGRESS  IPV6       IPV4      LABELS
257  web            ready  4711      enforced  open    fd00::101  10.5.0.3  unspec:app=web
258  evil\\u{1b}[2J  ready  4711      enforced  open    fd00::102  10.5.0.3  unspec:app=evil\\u{1b}[2J
";
    assert_eq!(agent.ok(&["endpoint", "list"]), table);
    assert!(agent.ok(&["endpoint", "list", "--no-headers"]).starts_with("257  web "));
    assert_eq!(agent.json(&["endpoint", "list"])[0], endpoint(257, "web"));
    let details = agent.ok(&["endpoint", "get", "web"]);
    for line in
        ["Addresses: fd00::101 10.5.0.3\n", "Container: c0ffee\n", "Program from_container id 41", "Identity:  4711 [unspec:app=web]\n"]
    {
        assert!(details.contains(line), "{line} in {details}");
    }
    assert_eq!(agent.json(&["endpoint", "get", "web"]), endpoint(257, "web"));
    assert_eq!(agent.ok(&["endpoint", "log", "257"]), "TIME                  STATE  MESSAGE\n2026-01-02T03:04:05Z  ready  attached\n");
    assert_eq!(agent.json(&["endpoint", "log", "257"])[0]["message"], "attached");
    assert_eq!(agent.ok(&["endpoint", "health", "ipv4:10.5.0.3"]), "Health: ok\nState:  ready\n");
    assert_eq!(agent.fails(1, &["endpoint", "health", "sick"]), "endpoint sick is not well: no program");
    assert_eq!(agent.ok(&["endpoint", "header", "web"]), "#define A 1\n\n#define B 2\n");
    assert_eq!(agent.json(&["endpoint", "header", "web"])["shapeKey"], "k");
    assert_eq!(agent.ok(&["endpoint", "regenerate", "web"]), "Endpoint 257 (web): ready\n");
    assert_eq!(agent.json(&["endpoint", "regenerate", "web"])["id"], 257);
}

#[test]
fn endpoints_are_added() {
    let agent = Agent::new();
    agent.on("PUT /v1/endpoint/name:web?wait=true", 201, endpoint(257, "web")).on(
        "PUT /v1/endpoint/name:db?wait=false",
        200,
        endpoint(258, "db"),
    );
    let args = ["endpoint", "add", "web", "--netns", "web", "--label", "app=web", "--label", "k8s:tier=front", "--ipv4", "none"];
    assert_eq!(agent.ok(&args), "Endpoint 257 (web): fd00::101 10.5.0.3\n");
    let sent = json!({"name": "web", "netns": "/run/netns/web", "labels": ["app=web", "k8s:tier=front"], "ifname": null, "ipv4": "none",
        "ipv6": null, "containerId": null, "build": null, "mac": null, "mtu": null});
    assert_eq!(agent.bodies("PUT /v1/endpoint/name:web?wait=true"), [sent]);
    assert_eq!(agent.json(&["endpoint", "add", "web", "--netns", "web", "--wait"]), endpoint(257, "web"));

    let ran =
        agent.run(&["endpoint", "add", "db", "--pid", "42", "--no-wait", "--build", "own", "--ifname", "net1", "--container-id", "c1"]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(0), "Endpoint 258 (db): fd00::102 10.5.0.3\n"));
    assert_eq!(ran.err, "note: endpoint db existed already\n");
    let sent = &agent.bodies("PUT /v1/endpoint/name:db?wait=false")[0];
    assert_eq!((&sent["netns"], &sent["build"], &sent["ifname"]), (&json!("/proc/42/ns/net"), &json!("own"), &json!("net1")));

    for wrong in [
        &["endpoint", "add", "web"][..],
        &["endpoint", "add", "web", "--netns", "a", "--pid", "1"],
        &["endpoint", "add", "web", "--pid", "0"],
        &["endpoint", "add", "web", "--netns", "a", "--ipv4", "fd00::1"],
        &["endpoint", "add", "web", "--netns", "a", "--ipv6", "10.0.0.1"],
    ] {
        agent.fails(2, wrong);
    }
}

#[test]
fn endpoints_are_deleted() {
    let agent = Agent::new();
    agent
        .on("DELETE /v1/endpoint/name:web?wait=true", 204, "")
        .on("DELETE /v1/endpoint/name:gone?wait=true", 204, "absent")
        .on("DELETE /v1/endpoint/257?wait=true", 204, "")
        .on("DELETE /v1/endpoint/258?wait=true", 409, json!({"code": "conflict", "message": "it is being made"}))
        .on("DELETE /v1/endpoint/257?wait=false", 204, "")
        .on("GET /v1/endpoint", 200, json!([endpoint(257, "web"), endpoint(258, "db")]));
    let ran = agent.run(&["endpoint", "delete", "gone", "web"]);
    assert_eq!((ran.status, ran.out.as_str(), ran.err.as_str()), (Some(0), "Deleted endpoint web\n", "note: there is no endpoint gone\n"));
    assert_eq!(agent.json(&["endpoint", "delete", "web"]), json!([{"endpoint": "web", "deleted": true}]));
    let endless = u64::MAX.to_string();
    for command in [&["status", "--wait"][..], &["policy", "wait", "1"], &["policy", "import", "-", "--wait"]] {
        let refused = agent.fails(2, &[command, &["--timeout", &endless]].concat());
        assert!(refused.contains("--timeout") && refused.contains("3600"), "{refused}");
    }
    let refused = agent.fails(2, &["endpoint", "delete", "--all"]);
    assert_eq!(refused, "this would disconnect every endpoint of this node; give --yes to do it");
    let ran = agent.run(&["endpoint", "delete", "--all", "--yes"]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(1), "Deleted endpoint 257\n"));
    assert_eq!(ran.err, "error: endpoint 258: it is being made\n");
    agent.fails(2, &["endpoint", "delete"]);
    assert_eq!(agent.ok(&["endpoint", "delete", "257", "--no-wait"]), "Deleted endpoint 257\n");
    assert_eq!(agent.requests().last().unwrap(), "DELETE /v1/endpoint/257?wait=false");
}

#[test]
fn labels_and_options_change() {
    let agent = Agent::new();
    agent
        .on("GET /v1/endpoint/name:web/labels", 200, json!(["unspec:app=web"]))
        .on("PATCH /v1/endpoint/name:web/labels", 200, endpoint(257, "new"))
        .on("GET /v1/endpoint/name:web/config", 200, json!({"Trace": "off", "Build": "own"}))
        .on("PATCH /v1/endpoint/name:web/config", 200, json!({"Trace": "all", "Build": "own"}));
    assert_eq!(agent.ok(&["endpoint", "labels", "web"]), "unspec:app=web\n");
    assert_eq!(agent.json(&["endpoint", "labels", "web"]), json!(["unspec:app=web"]));
    assert_eq!(agent.ok(&["endpoint", "labels", "web", "-a", "a=1", "-a", "b", "-d", "c"]), "unspec:app=new\n");
    assert_eq!(agent.bodies("PATCH /v1/endpoint/name:web/labels"), [json!({"add": ["a=1", "b"], "delete": ["c"]})]);
    assert_eq!(agent.ok(&["endpoint", "config", "web"]), "OPTION  VALUE\nBuild   own\nTrace   off\n");
    assert_eq!(agent.json(&["endpoint", "config", "web", "Trace=all"])["Trace"], "all");
    assert_eq!(agent.bodies("PATCH /v1/endpoint/name:web/config"), [json!({"Trace": "all"})]);
    assert!(agent.fails(2, &["endpoint", "config", "web", "Trace"]).contains("expected KEY=VALUE"));
}

#[test]
fn identities_and_maps() {
    let agent = Agent::new();
    let web = json!({"id": 4711, "labels": ["k8s:app=web", "k8s:tier=front"]});
    agent.on("GET /v1/identity", 200, json!([{"id": 1, "labels": ["reserved:host"]}, web])).on("GET /v1/identity/4711", 200, &web);
    assert_eq!(agent.ok(&["identity", "list"]), "ID    LABELS\n1     reserved:host\n4711  k8s:app=web,k8s:tier=front\n");
    assert_eq!(agent.json(&["identity", "list"])[1], web);
    assert_eq!(agent.ok(&["identity", "get", "4711"]), "ID:     4711\nLabels: k8s:app=web k8s:tier=front\n");
    assert_eq!(agent.json(&["identity", "get", "4711"]), web);
    for (command, map) in [("policy", "policy"), ("ipcache", "ipcache"), ("endpoint", "endpoint"), ("nat", "nat"), ("metrics", "metrics")] {
        let model = json!({"name": map, "columns": ["key", "packets in"], "rows": [["a", "1"], ["", "22"]]});
        agent.on(&format!("GET /v1/map/{map}"), 200, &model);
        assert_eq!(agent.ok(&["bpf", command, "list"]), "KEY  PACKETS IN\na    1\n-    22\n");
        assert_eq!(agent.json(&["bpf", command, "list"]), model);
    }
    agent.fails(2, &["bpf", "policy", "flush"]);
}

#[test]
fn connections_are_listed_and_forgotten() {
    let agent = Agent::new();
    let end = |address, port, slot, name| json!({"address": address, "port": port, "slot": slot, "name": name});
    let count = |packets, bytes| json!({"packets": packets, "bytes": bytes});
    let flows = json!([
        {"family": 4, "protocol": "tcp", "source": end("10.5.0.3", 41000, 257, "client"), "destination": end("10.5.0.4", 80, 258, "web"),
         "state": "established", "verdict": "allow", "idle": 3, "expires": 21597, "age": 9, "sent": count(4, 400), "received": count(3, 9000),
         "flags": ["midstream"]},
        {"family": 6, "protocol": "udp", "source": end("fd00::3", 5000, 257, ""), "destination": end("fd00::1", 53, 1, "host"),
         "state": "denied", "verdict": "deny", "idle": 0, "expires": 60, "sent": count(1, 70), "received": count(0, 0), "flags": []},
    ]);
    agent
        .on("GET /v1/flowtable", 200, &flows)
        .on("GET /v1/flowtable?endpoint=name:web", 200, json!([]))
        .on("DELETE /v1/flowtable", 200, json!({"removed": 2}))
        .on("DELETE /v1/flowtable?endpoint=257", 404, json!({"code": "not-found", "message": "no endpoint 257"}));
    let table = "\
PROTO  FROM      TO    SOURCE          DESTINATION   STATE                  VERDICT  IDLE  EXPIRES  SENT   RECEIVED
tcp    client    web   10.5.0.3:41000  10.5.0.4:80   established,midstream  allow    3s    21597s   4/400  3/9000
udp    slot 257  host  [fd00::3]:5000  [fd00::1]:53  denied                 deny     0s    60s      1/70   0/0
";
    assert_eq!(agent.ok(&["bpf", "ct", "list"]), table);
    assert_eq!(agent.json(&["bpf", "ct", "list"]), flows);
    assert_eq!(agent.ok(&["bpf", "ct", "list", "--endpoint", "web", "--no-headers"]), "");
    assert_eq!(agent.ok(&["bpf", "ct", "flush"]), "Forgot 2 connections\n");
    assert_eq!(agent.json(&["bpf", "ct", "flush"]), json!({"removed": 2}));
    assert_eq!(agent.fails(1, &["bpf", "ct", "flush", "--endpoint", "257"]), "no endpoint 257");
}

#[test]
fn metrics_are_listed() {
    let agent = Agent::new();
    let sample = |name, labels: Value, value| json!({"name": name, "help": "h", "labels": labels, "value": value});
    let samples = json!([
        sample("pilus_dropped_packets_total", json!({"reason": "Policy denied", "direction": "egress"}), 3.0),
        sample("pilus_dropped_packets_total", json!({"reason": "Invalid packet", "direction": "egress"}), 0.0),
        sample("pilus_policy_revision", json!({}), 7.0),
    ]);
    agent.on("GET /v1/metrics", 200, &samples);
    let table = "\
NAME                         LABELS                                     VALUE
pilus_dropped_packets_total  direction=\"egress\" reason=\"Policy denied\"  3
pilus_policy_revision        -                                          7
";
    assert_eq!(agent.ok(&["metrics", "list"]), table);
    assert_eq!(agent.ok(&["metrics", "list", "revision", "--no-headers"]), "pilus_policy_revision  -  7\n");
    assert_eq!(agent.ok(&["metrics", "list", "--all"]).lines().count(), 4);
    assert_eq!(agent.json(&["metrics", "list"]), samples);
}

#[test]
fn policy_is_imported_and_deleted() {
    let agent = Agent::new();
    let revision = json!({"revision": 7, "rules": 2, "deleted": 0});
    agent
        .on("PUT /v1/policy", 200, &revision)
        .on("GET /v1/policy/wait?revision=7&timeout=5", 200, json!({"revision": 7, "realised": true, "waiting": []}))
        .on(
            "GET /v1/policy/wait?revision=8&timeout=60",
            200,
            json!({"revision": 7, "realised": false, "waiting": ["257 (web)", "258 (db)"]}),
        )
        .on("DELETE /v1/policy?labels=app%3Dweb,b", 200, json!({"revision": 9, "rules": 0, "deleted": 2}))
        .on("DELETE /v1/policy?all=true", 200, json!({"revision": 10, "rules": 0}));
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("b.yaml"), "b").unwrap();
    std::fs::write(dir.path().join("a.json"), "a").unwrap();
    let path = dir.path().display().to_string();
    let ran = agent.run_with(&["policy", "import", &path, "-", "--wait", "--timeout", "5"], "c");
    assert_eq!((ran.status, ran.out.as_str(), ran.err.as_str()), (Some(0), "Revision: 7\n", ""));
    let sent = json!({"documents": [{"name": format!("{path}/a.json"), "text": "a"}, {"name": format!("{path}/b.yaml"), "text": "b"},
        {"name": "stdin", "text": "c"}]});
    assert_eq!(agent.bodies("PUT /v1/policy"), [sent]);
    assert_eq!(agent.json(&["policy", "import", &path]), revision);
    let warned = Agent::new();
    warned.on("PUT /v1/policy", 200, json!({"revision": 1, "rules": 1, "warnings": ["a.yaml:1: 10.5.0.0/16 covers addresses"]}));
    let ran = warned.run_with(&["policy", "import", "-"], "c");
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("Revision: 1\n", "note: a.yaml:1: 10.5.0.0/16 covers addresses\n"));
    assert_eq!(agent.ok(&["policy", "delete", "app=web", "b"]), "Revision: 9\n");
    let ran = agent.run(&["policy", "delete", "--all"]);
    assert_eq!((ran.status, ran.out.as_str(), ran.err.as_str()), (Some(0), "Revision: 10\n", "note: no rule was removed\n"));
    assert_eq!(agent.ok(&["policy", "wait", "7", "--timeout", "5"]), "Revision: 7\n");
    let late = agent.fails(1, &["policy", "wait", "8"]);
    assert_eq!(late, "revision 8 is not yet realised by 257 (web), 258 (db); see: pilus endpoint log");

    assert_eq!(agent.fails(2, &["policy", "import", "-", "-"]), "standard input (-) can be read only once");
    let absent = agent.fails(1, &["policy", "import", "/nowhere/x.yaml"]);
    assert_eq!(absent, "cannot read /nowhere/x.yaml: No such file or directory (os error 2)");
    agent.fails(2, &["policy", "import"]);
    agent.fails(2, &["policy", "delete"]);
    agent.fails(2, &["policy", "delete", "a", "--all"]);
}

#[test]
fn policy_is_validated_compared_and_explained() {
    let agent = Agent::new();
    let good = json!({"valid": true, "rules": 2, "errors": [], "warnings": ["a.yaml:1: 10.5.0.0/16 covers addresses of containers"]});
    let mistake = json!({"file": "stdin", "line": 3, "column": 5, "path": "[0].ingres", "message": "unknown field `ingres`"});
    let change = json!({"endpoints": ["257 (web)"], "direction": "ingress", "peer": 0, "labels": [], "protocol": "tcp", "first": 80, "last": 90,
        "before": "open", "after": "deny", "rule": ""});
    let verdict = json!({"verdict": "deny", "rule": "a.yaml:3", "entry": "identity any, block 0, rule 1: 80-80/tcp", "kernel": "deny",
        "kernel_rule": "a.yaml:3"});
    let peer = |id: u16, name: &str| json!({"endpoint": id, "name": name, "identity": 4711, "labels": ["k8s:app=web"]});
    let answer = json!({"allowed": false, "agrees": true, "from": peer(257, "web"), "to": peer(0, ""), "egress": verdict});
    let mut other = answer.clone();
    other["agrees"] = json!(false);
    agent
        .on("POST /v1/policy/validate", 200, &good)
        .on("POST /v1/policy/validate", 200, json!({"valid": false, "rules": 0, "errors": [mistake], "warnings": []}))
        .on("POST /v1/policy/diff", 200, json!({"changes": [change]}))
        .on("POST /v1/policy/diff", 200, json!({"changes": []}))
        .on("POST /v1/policy/explain", 200, &answer)
        .on("POST /v1/policy/explain", 200, &answer)
        .on("POST /v1/policy/explain", 200, &other);
    let ran = agent.run_with(&["policy", "validate", "-"], "text");
    assert_eq!(
        (ran.status, ran.out.as_str()),
        (Some(0), "warning: a.yaml:1: 10.5.0.0/16 covers addresses of containers\n2 rules, no mistake\n")
    );
    assert_eq!(agent.bodies("POST /v1/policy/validate"), [json!({"documents": [{"name": "stdin", "text": "text"}]})]);
    let ran = agent.run_with(&["policy", "validate", "-"], "text");
    assert_eq!((ran.status, ran.out.as_str()), (Some(1), "stdin:3:5: [0].ingres: unknown field `ingres`\n"));
    let ran = agent.run_with(&["policy", "diff", "-"], "text");
    let table = "ENDPOINTS  DIRECTION  PEER    PORTS      VERDICT       RULE\n257 (web)  ingress    others  80-90/tcp  open -> deny  -\n";
    assert_eq!((ran.status, ran.out.as_str()), (Some(0), table));
    assert_eq!(agent.run_with(&["policy", "diff", "-"], "text").out, "No verdict changes.\n");
    let ask = ["policy", "explain", "--from", "web", "--to", "192.0.2.7", "--dport", "80/tcp"];
    let out = agent.ok(&ask);
    assert!(out.starts_with("From: 257 (web), identity 4711 [k8s:app=web]\n") && out.ends_with("DENIED\n"), "{out}");
    assert!(out.contains("a.yaml:3") && out.contains("ingress  no policy here"), "{out}");
    assert_eq!(agent.bodies("POST /v1/policy/explain")[0], json!({"from": "web", "to": "192.0.2.7", "dport": "80/tcp"}));
    assert_eq!(agent.json(&ask)["agrees"], json!(true));
    assert!(agent.fails(1, &ask).contains("the kernel's tables say something else"));
    agent.fails(2, &["policy", "explain", "--from", "web"]);
    agent.fails(2, &["policy", "validate"]);
}

#[test]
fn policy_is_shown() {
    let agent = Agent::new();
    let policy = json!({"revision": 4, "rules": [
        {"endpointSelector": {"matchLabels": {"app": "web"}}, "ingress": [{}, {}], "labels": ["k8s:a=b"], "description": "front"},
        {"endpointSelector": {}, "egress": []},
    ], "counters": [{"packets": 7, "bytes": 460}, {"packets": 0, "bytes": 0}]});
    agent.on("GET /v1/policy", 200, &policy).on("GET /v1/policy?labels=k8s:a%3Db", 200, json!({"revision": 4, "rules": []}));
    let table = "\
SELECTOR  INGRESS  EGRESS  PACKETS  BYTES  LABELS   DESCRIPTION
app=web   2        -       7        460    k8s:a=b  front
all       -        0       0        0      -        -
Revision: 4 (2 rules; -o yaml shows them whole)
";
    assert_eq!(agent.ok(&["policy", "get"]), table);
    assert_eq!(agent.json(&["policy", "get"]), policy);
    assert!(agent.ok(&["policy", "get", "-o", "yaml"]).contains("description: front\n"));
    assert!(agent.ok(&["policy", "get", "--label", "k8s:a=b"]).ends_with("Revision: 4 (0 rules; -o yaml shows them whole)\n"));
}

#[test]
fn options_templates_and_cleanup() {
    let agent = Agent::new();
    let config = json!({"options": {"PolicyEnforcement": "always", "mtu": "1500"}, "changeable": ["PolicyEnforcement"]});
    let result = |ok: bool| json!({"ok": ok, "hash": "abc", "swapped": if ok { 3 } else { 0 }, "diagnostics": if ok { vec![] } else { vec!["a.c:1:2: error: no"] }});
    let template = json!({"directory": "/t", "applied": "a", "edited": "b", "differs": true, "shapes": {"k1": 2}});
    agent
        .on("GET /v1/config", 200, &config)
        .on("PATCH /v1/config", 200, &config)
        .on("GET /v1/template", 200, &template)
        .on("POST /v1/template/check", 200, result(false))
        .on("POST /v1/template/apply", 200, result(true))
        .on("POST /v1/cleanup?confirm=true", 200, json!({"lines": ["removed link a", "removed map b"]}));
    let table = "OPTION             VALUE   CHANGEABLE\nPolicyEnforcement  always  yes\nmtu                1500    no\n";
    assert_eq!(agent.ok(&["config"]), table);
    assert_eq!(agent.json(&["config", "PolicyEnforcement=always"]), config);
    assert_eq!(agent.bodies("PATCH /v1/config"), [json!({"options": {"PolicyEnforcement": "always"}})]);

    let status = agent.ok(&["template", "status"]);
    assert!(status.contains("Differs:   yes") && status.ends_with("SHAPE  ENDPOINTS\nk1     2\n"), "{status}");
    assert_eq!(agent.json(&["template", "status"]), template);
    let ran = agent.run(&["template", "check"]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(1), "a.c:1:2: error: no\n"));
    assert_eq!(ran.err, "error: the edited templates do not pass (1 diagnostic); what runs is unchanged\n");
    assert_eq!(agent.ok(&["template", "apply"]), "Templates abc run on 3 endpoints\n");
    assert_eq!(agent.json(&["template", "apply"]), result(true));

    assert!(agent.fails(2, &["cleanup"]).ends_with("give --yes to do it"));
    assert_eq!(agent.ok(&["cleanup", "--yes"]), "removed link a\nremoved map b\n");
    assert_eq!(agent.json(&["cleanup", "--yes"])["lines"][1], "removed map b");
}

#[test]
fn services_nodes_and_ports() {
    let agent = Agent::new();
    let billing = json!({"id": "default/billing", "namespace": "default", "name": "billing", "labels": ["k8s:kind=outside"],
        "backends": [{"address": "192.0.2.10"}, {"address": "2001:db8::10"}], "warnings": ["mind this"]});
    let web = json!({"id": "shop/web", "namespace": "shop", "name": "web", "labels": [], "selector": {"app": "web"}, "backends": []});
    let far = json!({"name": "far", "local": false, "addresses": ["192.0.2.20"], "labels": ["reserved:remote-node"], "identity": 6});
    agent
        .on("GET /v1/service", 200, json!([billing, web]))
        .on("PUT /v1/service/billing", 201, billing)
        .on("PUT /v1/service/shop%2Fweb", 201, web)
        .on("DELETE /v1/service/shop%2Fweb", 204, Value::Null)
        .on("GET /v1/node", 200, json!([far]))
        .on("PUT /v1/node/far", 201, far)
        .on("DELETE /v1/node/far", 204, Value::Null)
        .on("GET /v1/endpoint/name:web/ports", 200, json!([{"name": "http", "port": 80, "protocol": "tcp"}]))
        .on("PUT /v1/endpoint/name:web/ports", 200, json!([]));
    let table = "\
SERVICE          BY        BEHIND                   LABELS
default/billing  backends  192.0.2.10,2001:db8::10  k8s:kind=outside
shop/web         selector  app=web                  -
";
    assert_eq!(agent.ok(&["service", "list"]), table);
    let ran = agent.run(&["service", "update", "billing", "--backend", "192.0.2.10", "--backend", "2001:db8::10"]);
    assert!(ran.status == Some(0) && ran.err.contains("mind this") && ran.out.contains("Backends"), "{ran:?}");
    assert!(agent.ok(&["service", "update", "shop/web", "--selector", "app=web"]).contains("app=web"));
    assert_eq!(agent.ok(&["service", "delete", "shop/web"]), "Deleted service shop/web\n");
    assert!(
        agent.ok(&["node", "list"]).contains("far")
            && agent.ok(&["node", "update", "far", "--address", "192.0.2.20"]).contains("192.0.2.20")
    );
    assert_eq!(agent.ok(&["node", "delete", "far"]), "Deleted node far\n");
    assert!(agent.ok(&["endpoint", "ports", "web"]).contains("http"));
    agent.ok(&["endpoint", "ports", "web", "--clear"]);
    for bad in [&["service", "update", "a"] as &[&str], &["node", "update", "a"], &["service", "update", "a", "--backend", "x"]] {
        assert_eq!(agent.run(bad).status, Some(2), "{bad:?}");
    }
    assert_eq!(agent.bodies("PUT /v1/service/shop%2Fweb"), [json!({"labels": [], "selector": {"app": "web"}, "backends": []})]);
    assert_eq!(agent.bodies("PUT /v1/endpoint/name:web/ports"), [json!([])]);
}
