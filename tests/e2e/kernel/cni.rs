// SPDX-License-Identifier: Apache-2.0
//! The CNI plugin as a runtime drives it: command in the environment, configuration on stdin, an agent behind it. After every
//! test nothing may be left of its containers.

use crate::support::{netlink, policy, ready, rounds, settled, talk, until};
use pilus_e2e::node::command;
use pilus_e2e::{Container, Family, Node, NodeOptions};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Stdio};

/// The standard's error codes, and those of our own.
const UNSUPPORTED: u64 = 2;
const UNKNOWN: u64 = 3;
const ENVIRONMENT: u64 = 4;
const DECODE: u64 = 6;
const CONFIG: u64 = 7;
const TRY_AGAIN: u64 = 11;
const NOT_AVAILABLE: u64 = 50;
const REFUSED: u64 = 100;
const DIFFERENT: u64 = 101;

/// One run of the plugin.
struct Call {
    env: Vec<(&'static str, String)>,
    conf: Value,
}

impl Call {
    fn new(node: &Node, verb: &str) -> Self {
        let conf = json!({ "cniVersion": "1.1.0", "name": "pilus", "type": "pilus-cni", "socket": node.socket() });
        Self { env: vec![("CNI_COMMAND", verb.into()), ("CNI_PATH", "/opt/cni/bin".into())], conf }
    }

    fn of(node: &Node, verb: &str, container: &Container) -> Self {
        let call = Self::new(node, verb).env("CNI_CONTAINERID", &container.name).env("CNI_IFNAME", "eth0");
        call.env("CNI_NETNS", &container.path())
    }

    fn env(mut self, key: &'static str, value: &str) -> Self {
        self.env.retain(|(k, _)| *k != key);
        self.env.push((key, value.into()));
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.env.retain(|(k, _)| *k != key);
        self
    }

    fn conf(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.conf[key] = value.into();
        self
    }

    fn start(&self, input: &str) -> Child {
        let mut program = command("pilus-cni");
        program.env_clear().envs(self.env.iter().map(|(k, v)| (k, v)));
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start pilus-cni");
        child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("configuration");
        child
    }

    /// Whether it succeeded, and what it says; nothing at all is null.
    fn with_input(&self, input: &str) -> (bool, Value) {
        let output = self.start(input).wait_with_output().expect("pilus-cni");
        let text = String::from_utf8(output.stdout).expect("text");
        let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")) };
        (output.status.success(), value)
    }

    fn run(&self) -> (bool, Value) {
        self.with_input(&self.conf.to_string())
    }

    fn ok(&self) -> Value {
        let (ok, value) = self.run();
        assert!(ok, "{:?}: {value}", self.env);
        value
    }

    /// An error in the standard's shape with this code, and its text.
    fn refused(&self, code: u64) -> String {
        Self::is_refusal(self.run(), code)
    }

    fn is_refusal((ok, value): (bool, Value), code: u64) -> String {
        assert!(!ok && value["code"] == code, "wanted code {code}: {value}");
        assert!(value["cniVersion"].is_string() && value["msg"].as_str().is_some_and(|m| !m.is_empty()), "{value}");
        format!("{} {}", value["msg"].as_str().unwrap_or_default(), value["details"].as_str().unwrap_or_default())
    }
}

/// Connects, and tells the container what it has.
fn learn(node: &Node, container: &mut Container) {
    let name = format!("name:cni:pilus:{}:eth0", container.name);
    container.learn(&node.block_on(node.client().endpoint(&name)).expect("endpoint"));
}

fn connected(node: &Node, name: &str, change: impl Fn(Call) -> Call) -> (Container, Value) {
    let mut container = Container::new(name).expect("container");
    let result = change(Call::of(node, "ADD", &container)).ok();
    learn(node, &mut container);
    (container, result)
}

/// Links, addresses, pins, rows, files and identities: nothing is left.
fn nothing_left(node: &Node) {
    assert_eq!(settled(node).iter().map(|e| &e.name).collect::<Vec<_>>(), Vec::<&String>::new());
}

/// Names of all interfaces in a container.
fn interfaces(container: &Container) -> Vec<String> {
    container.run(|| netlink(async |n| n.links().await.expect("links").into_iter().map(|l| l.name).collect()))
}

#[test]
fn every_version_connects_checks_and_disconnects() {
    let node = Node::start(NodeOptions::default()).expect("node");
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (a, result) = connected(&node, "a", |c| c.conf("cniVersion", version));
        let (b, _) = connected(&node, "b", |c| c.conf("cniVersion", version));
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["address"], format!("{}/128", a.ip(Family::V6)));
        assert_eq!(result["ips"][1]["address"], format!("{}/32", a.ip(Family::V4)));
        talk(&a, &b, 8080);
        let check = || Call::of(&node, "CHECK", &a).conf("cniVersion", version).conf("prevResult", result.clone());
        if version == "0.3.1" {
            check().refused(1);
        } else {
            assert_eq!(check().ok(), Value::Null);
        }
        for container in [&a, &b] {
            assert_eq!(Call::of(&node, "DEL", container).conf("cniVersion", version).ok(), Value::Null);
            assert_eq!(interfaces(container), ["lo"]);
            // Again, as runtimes do: with the namespace, and with none.
            Call::of(&node, "DEL", container).conf("cniVersion", version).conf("prevResult", result.clone()).ok();
            Call::of(&node, "DEL", container).conf("cniVersion", version).env("CNI_NETNS", "").ok();
            Call::of(&node, "DEL", container).conf("cniVersion", version).without("CNI_NETNS").ok();
        }
        nothing_left(&node);
    }
    let versions = Call::new(&node, "VERSION").with_input("{\"cniVersion\":\"1.0.0\"}");
    assert_eq!(versions, (true, json!({ "cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] })));
}

#[test]
fn check_sees_what_changed() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let (web, result) = connected(&node, "web", |c| c);
    let check = || Call::of(&node, "CHECK", &web).conf("prevResult", result.clone());
    check().ok();
    Call::of(&node, "CHECK", &web).refused(CONFIG);
    let mut other = result.clone();
    other["ips"][1]["address"] = "10.0.0.1/32".into();
    let why = Call::of(&node, "CHECK", &web).conf("prevResult", other).refused(DIFFERENT);
    assert!(why.contains(&web.ip(Family::V4).to_string()), "{why}");
    check().env("CNI_CONTAINERID", "nobody").refused(UNKNOWN);
    let set = |up: bool| {
        web.run(|| {
            netlink(async |n| {
                let index = n.link_by_name("eth0").await.expect("links").expect("eth0").index;
                if up { n.set_up(index).await } else { n.set_down(index).await }.expect("set");
            });
        });
    };
    set(false);
    let why = check().refused(DIFFERENT);
    assert!(why.contains("down"), "{why}");
    // IPv6 addresses go when an interface goes down.
    set(true);
    let why = check().refused(DIFFERENT);
    assert!(why.contains(&web.ip(Family::V6).to_string()), "{why}");
    Call::of(&node, "DEL", &web).ok();
    nothing_left(&node);
}

/// After another plugin in a chain, and for one container twice.
#[test]
fn results_are_passed_on_and_interfaces_add_up() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let prev = json!({ "cniVersion": "1.1.0", "interfaces": [{ "name": "lo", "sandbox": "/n" }],
        "ips": [{ "address": "127.0.0.1/8", "interface": 0 }], "dns": { "search": ["example"] } });
    let (web, result) = connected(&node, "web", |c| c.conf("prevResult", prev.clone()));
    assert_eq!(result["interfaces"][0], prev["interfaces"][0]);
    assert_eq!((&result["interfaces"][2]["name"], &result["ips"][1]["interface"]), (&json!("eth0"), &json!(2)));
    assert_eq!(result["dns"], prev["dns"]);
    let second = Call::of(&node, "ADD", &web).env("CNI_IFNAME", "net1").conf("mtu", 1400).conf("prevResult", result).ok();
    assert_eq!((&second["interfaces"][4]["name"], &second["ips"][4]["interface"]), (&json!("net1"), &json!(4)));
    assert_eq!(second["interfaces"][4]["mtu"], 1400);
    let mtu = web.run(|| netlink(async |n| n.link_by_name("net1").await.expect("links").expect("net1").mtu));
    assert_eq!(mtu, 1400);
    let (peer, _) = connected(&node, "peer", |c| c);
    talk(&peer, &web, 8080);
    Call::of(&node, "DEL", &web).env("CNI_IFNAME", "net1").ok();
    assert_eq!(interfaces(&web), ["lo", "eth0"]);
    talk(&peer, &web, 8081);
    Call::of(&node, "DEL", &web).ok();
    Call::of(&node, "DEL", &peer).ok();
    nothing_left(&node);
}

#[test]
fn labels_of_every_source_decide() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let label = |key: &str, value: &str| json!({ "key": key, "value": value });
    let mesos = |value: &str| json!({ "org.apache.mesos": { "network_info": { "labels": { "labels": [label("role", value)] } } } });
    let (web, _) = connected(&node, "web", |c| c.conf("args", json!({ "labels": [label("app", "web")] })));
    let (good, _) = connected(&node, "good", |c| {
        c.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=good;K8S_POD_INFRA_CONTAINER_ID=1;K8S_POD_UID=2")
    });
    let (friend, _) = connected(&node, "friend", |c| c.conf("args", mesos("friend")));
    let (other, _) = connected(&node, "other", |c| c.conf("args", mesos("other")));
    let labels = |reference: &str| node.block_on(node.client().endpoint(reference)).expect("endpoint").labels;
    assert_eq!(labels("container-id:web"), ["container:app=web"]);
    assert_eq!(labels("pod-name:default/good"), ["k8s:io.kubernetes.pod.name=good", "k8s:io.kubernetes.pod.namespace=default"]);
    assert_eq!(labels("container-id:friend"), ["mesos:role=friend"]);
    let peers = "[{matchLabels: {\"k8s:io.kubernetes.pod.name\": good}}, {matchLabels: {\"mesos:role\": friend}}]";
    let rule = format!("  endpointSelector: {{matchLabels: {{\"container:app\": web}}}}\n  ingress:\n  - fromEndpoints: {peers}\n");
    node.import(&policy("web", &rule)).expect("policy");
    talk(&good, &web, 8080);
    talk(&friend, &web, 8081);
    for family in Family::BOTH {
        let mut events = node.events(&["drop"]).expect("events");
        let _attempt = other.connect_start(SocketAddr::new(web.ip(family), 8080)).expect("socket");
        events.wait_drop(&other, &web).expect("drop");
    }
    for container in [&web, &good, &friend, &other] {
        Call::of(&node, "DEL", container).ok();
    }
    nothing_left(&node);
}

/// Every refusal has its code, changes nothing, and keeps no address: there are few.
#[test]
fn wrong_input_is_refused_and_leaves_nothing() {
    let options = NodeOptions { args: vec!["--ipv4-range".into(), "10.200.0.0/28".into()], ..NodeOptions::default() };
    let node = Node::start(options).expect("node");
    let (web, _) = connected(&node, "web", |c| c);
    let new = Container::new("new").expect("container");
    let add = || Call::of(&node, "ADD", &new);
    let plain = node.path("plain");
    std::fs::write(&plain, "").expect("file");
    let long = "sixteen-letters-";
    let ports = json!({ "portMappings": [{ "HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp" }] });
    let ips = |ip: String| json!({ "ips": [ip] });
    let outside = "192.0.2.1".to_owned();
    // More rounds than there are addresses.
    for _ in 0..14 {
        let rows: Vec<(Call, u64, &str)> = vec![
            (add().conf("cniVersion", "0.2.0"), 1, "0.2.0"),
            (add().conf("cniVersion", "9.9.9"), 1, "9.9.9"),
            (add().conf("cniVersion", Value::Null), 1, "missing"),
            (add().conf("name", ""), CONFIG, "name"),
            (add().conf("socket", "here"), CONFIG, "here"),
            (add().conf("mtu", "big"), DECODE, "mtu"),
            (add().conf("mtu", 576), CONFIG, "576"),
            (add().conf("ipv4", "maybe"), CONFIG, "maybe"),
            (add().conf("ipv6", "perhaps"), CONFIG, "perhaps"),
            (add().conf("ipv4", "none").conf("ipv6", "none"), CONFIG, "one family"),
            (add().conf("ipam", json!({ "type": "host-local" })), UNSUPPORTED, "ipam"),
            (add().conf("runtimeConfig", ports.clone()), UNSUPPORTED, "portMappings"),
            (add().conf("runtimeConfig", ips(web.ip(Family::V4).to_string())), REFUSED, "taken"),
            (add().conf("runtimeConfig", ips(web.ip(Family::V6).to_string())), REFUSED, "taken"),
            (add().conf("runtimeConfig", ips(outside.clone())), REFUSED, "192.0.2.1"),
            (add().conf("runtimeConfig", ips("nonsense".into())), CONFIG, "nonsense"),
            (add().conf("runtimeConfig", json!({ "mac": "ff:ff:ff:ff:ff:ff" })), CONFIG, "mac"),
            (add().conf("args", json!({ "labels": [{ "key": "a b" }] })), CONFIG, "a b"),
            (add().without("CNI_CONTAINERID"), ENVIRONMENT, "CNI_CONTAINERID"),
            (add().without("CNI_NETNS"), ENVIRONMENT, "CNI_NETNS"),
            (add().without("CNI_IFNAME"), ENVIRONMENT, "CNI_IFNAME"),
            (add().without("CNI_COMMAND"), ENVIRONMENT, "CNI_COMMAND"),
            (add().env("CNI_COMMAND", "DANCE"), ENVIRONMENT, "DANCE"),
            (add().env("CNI_ARGS", "nonsense"), ENVIRONMENT, "nonsense"),
            (add().env("CNI_IFNAME", long), ENVIRONMENT, long),
            (add().env("CNI_IFNAME", "a/b"), ENVIRONMENT, "a/b"),
            (add().env("CNI_IFNAME", "lo"), ENVIRONMENT, "lo"),
            (add().env("CNI_NETNS", "/nowhere"), UNKNOWN, "/nowhere"),
            (add().env("CNI_NETNS", plain.to_str().expect("text")), ENVIRONMENT, "plain"),
            // The name is taken: by an endpoint, and by who is no endpoint of ours.
            (add().env("CNI_NETNS", &web.path()), REFUSED, "eth0"),
            (Call::of(&node, "ADD", &web), REFUSED, "already"),
            (Call::of(&node, "ADD", &web).env("CNI_ARGS", "K8S_POD_NAME=x"), REFUSED, "taken"),
            (Call::new(&node, "GC"), CONFIG, "valid-attachments"),
            (Call::new(&node, "GC").conf("cniVersion", "1.0.0"), 1, "GC"),
            (Call::new(&node, "STATUS").conf("cniVersion", "1.0.0"), 1, "STATUS"),
        ];
        for (call, code, named) in rows {
            let why = call.refused(code);
            assert!(why.contains(named), "{why}");
            assert!(!why.contains('\n'), "{why}");
        }
        for broken in ["", "{", "[]", "7", "{\"cniVersion\":\"1.0.0\",\"name\":7}"] {
            let (ok, value) = add().with_input(broken);
            assert!(!ok && (value["code"] == DECODE || value["code"] == 1), "{broken}: {value}");
        }
    }
    assert_eq!(interfaces(&new), ["lo"]);
    assert_eq!(settled(&node).len(), 1);
    // Every address but web's is still there.
    let containers: Vec<Container> = (0..12).map(|n| connected(&node, &format!("c{n}"), |c| c).0).collect();
    let why = add().refused(REFUSED);
    assert!(why.contains("no free IPv4"), "{why}");
    for container in containers.iter().chain([&web]) {
        Call::of(&node, "DEL", container).ok();
    }
    nothing_left(&node);
}

/// A name that the container uses itself.
#[test]
fn an_interface_that_is_there_already_stays() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let (web, _) = connected(&node, "web", |c| c);
    // The same namespace by another path: the agent cannot know before it looks.
    let path = node.path("again");
    std::os::unix::fs::symlink(web.path(), &path).expect("link");
    let before = web.run(|| netlink(async |n| n.link_by_name("eth0").await.expect("links").expect("eth0").index));
    let call = Call::of(&node, "ADD", &web).env("CNI_CONTAINERID", "other").env("CNI_NETNS", path.to_str().expect("text"));
    let why = call.refused(REFUSED);
    assert!(why.contains("eth0"), "{why}");
    assert_eq!(web.run(|| netlink(async |n| n.link_by_name("eth0").await.expect("links").expect("eth0").index)), before);
    assert_eq!(interfaces(&web), ["lo", "eth0"]);
    Call::of(&node, "DEL", &web).ok();
    nothing_left(&node);
}

#[test]
fn addresses_as_asked() {
    let node =
        Node::start(NodeOptions { args: vec!["--ipv4-range".into(), "10.201.0.0/24".into()], ..NodeOptions::default() }).expect("node");
    let range = node.block_on(node.client().status()).expect("status").ipv6_range;
    let wanted6 = format!("{}77", range.split('/').next().expect("range"));
    let config = json!({ "ips": ["10.201.0.77/24", format!("{wanted6}/64")], "mac": "02:11:22:33:44:55" });
    let (web, result) = connected(&node, "web", |c| c.conf("runtimeConfig", config.clone()));
    assert_eq!((web.ip(Family::V4).to_string(), web.ip(Family::V6).to_string()), ("10.201.0.77".into(), wanted6));
    assert_eq!(result["interfaces"][1]["mac"], "02:11:22:33:44:55");
    let mac = web.run(|| netlink(async |n| n.link_by_name("eth0").await.expect("links").expect("eth0").mac));
    assert_eq!(mac, Some([2, 0x11, 0x22, 0x33, 0x44, 0x55]));
    let (client, _) = connected(&node, "client", |c| c);
    talk(&client, &web, 8080);
    let (six, result) = connected(&node, "six", |c| c.conf("ipv4", "none"));
    assert!(six.ipv4.is_none() && result["ips"].as_array().is_some_and(|l| l.len() == 1), "{result}");
    let mut server = crate::support::Talk::tcp(&client, &six, Family::V6, 8080);
    server.exchange(1).expect("IPv6 alone");
    for container in [&web, &client, &six] {
        Call::of(&node, "DEL", container).ok();
    }
    nothing_left(&node);
}

/// A node without IPv4.
#[test]
fn containers_with_ipv6_alone() {
    let node = Node::start(NodeOptions { args: vec!["--enable-ipv4".into(), "false".into()], ..NodeOptions::default() }).expect("node");
    let [a, b] = ["a", "b"].map(|name| connected(&node, name, |c| c).0);
    crate::support::Talk::tcp(&a, &b, Family::V6, 8080).exchange(1).expect("traffic");
    let c = Container::new("c").expect("container");
    Call::of(&node, "ADD", &c).conf("runtimeConfig", json!({ "ips": ["10.0.0.9"] })).refused(REFUSED);
    let why = Call::of(&node, "ADD", &c).conf("ipv6", "none").refused(REFUSED);
    assert!(why.contains("no IPv4 on this node"), "{why}");
    for container in [&a, &b] {
        Call::of(&node, "DEL", container).ok();
    }
    nothing_left(&node);
}

/// Nothing of IPv6 but what the kernel makes of itself; over a restart too.
#[test]
fn containers_with_ipv4_alone() {
    let mut node = Node::start(NodeOptions::default()).expect("node");
    let (both, _) = connected(&node, "both", |c| c);
    let (four, result) = connected(&node, "four", |c| c.conf("ipv6", "none"));
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(1), "{result}");
    assert_eq!(result["ips"][0]["address"], format!("{}/32", four.ip(Family::V4)));
    assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }]));
    let why = std::net::UdpSocket::connect(&four.run(|| std::net::UdpSocket::bind("[::]:0")).expect("socket"), (both.ip(Family::V6), 9));
    assert_eq!(why.map_err(|e| e.raw_os_error()), Err(Some(libc::ENETUNREACH)));
    let told = node.block_on(node.client().endpoint("name:cni:pilus:four:eth0")).expect("endpoint");
    assert_eq!((told.ipv6, told.ipv4), (None, four.ipv4));
    let slot = four.id.to_string();
    let addresses = node.rows("ipcache").expect("rows").into_iter().filter(|row| row.contains(&slot)).count();
    assert_eq!(addresses, 1, "nobody is told of another address");
    for _ in 0..2 {
        crate::support::Talk::tcp(&both, &four, Family::V4, 8080).exchange(1).expect("in");
        crate::support::Talk::tcp(&four, &both, Family::V4, 8081).exchange(1).expect("out");
        Call::of(&node, "CHECK", &four).conf("prevResult", result.clone()).ok();
        node.kill_agent().expect("kill");
        node.start_agent().expect("agent");
        ready(&node);
    }
    for container in [&both, &four] {
        Call::of(&node, "DEL", container).ok();
    }
    nothing_left(&node);
}

#[test]
fn many_at_a_time() {
    let node = Node::start(NodeOptions::default()).expect("node");
    for _ in 0..rounds(2, 16) {
        let containers: Vec<Container> = (0..32).map(|n| Container::new(&format!("c{n}")).expect("container")).collect();
        let all = |verb: &str| -> Vec<Value> {
            let batch = |half: &[Container]| -> Vec<Value> {
                let calls: Vec<Call> = half.iter().map(|c| Call::of(&node, verb, c)).collect();
                let running: Vec<Child> = calls.iter().map(|c| c.start(&c.conf.to_string())).collect();
                let ended = running.into_iter().map(|c| c.wait_with_output().expect("pilus-cni"));
                ended
                    .map(|o| {
                        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stdout));
                        serde_json::from_slice(&o.stdout).unwrap_or_default()
                    })
                    .collect()
            };
            containers.chunks(16).flat_map(batch).collect()
        };
        let results = all("ADD");
        let addresses: BTreeSet<String> =
            results.iter().flat_map(|r| r["ips"].as_array().expect("ips").clone()).map(|ip| ip["address"].to_string()).collect();
        assert_eq!(addresses.len(), 64);
        assert_eq!(settled(&node).len(), 32);
        let [a, b] = [0, 31].map(|n| {
            let mut container = containers[n].clone();
            learn(&node, &mut container);
            container
        });
        talk(&a, &b, 8080);
        all("DEL");
        nothing_left(&node);
    }
}

#[test]
fn what_the_runtime_forgot_is_collected() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let hand = node.add("hand-made", &[]).expect("container");
    let (keep, _) = connected(&node, "keep", |c| c);
    let (lost, _) = connected(&node, "lost", |c| c);
    let net2 = Container::new("keep2").expect("container");
    Call::of(&node, "ADD", &net2).conf("name", "pilus2").ok();
    Call::of(&node, "ADD", &keep).env("CNI_IFNAME", "eth1").ok();
    let valid = json!([{ "containerID": "keep", "ifname": "eth0" }]);
    assert_eq!(Call::new(&node, "GC").conf("cni.dev/valid-attachments", valid.clone()).ok(), Value::Null);
    let names = || settled(&node).into_iter().map(|e| e.name).collect::<BTreeSet<_>>();
    let wanted = ["hand-made", "cni:pilus:keep:eth0", "cni:pilus2:keep2:eth0"].map(str::to_owned);
    assert_eq!(names(), wanted.into());
    assert_eq!((interfaces(&lost), interfaces(&keep)), (vec!["lo".to_owned()], vec!["lo".to_owned(), "eth0".to_owned()]));
    talk(&hand, &keep, 8080);
    Call::new(&node, "GC").conf("cni.dev/valid-attachments", valid).ok();
    Call::new(&node, "GC").conf("cni.dev/valid-attachments", json!([])).ok();
    Call::new(&node, "GC").conf("name", "pilus2").conf("cni.dev/valid-attachments", Value::Null).ok();
    assert_eq!(names(), ["hand-made".to_owned()].into());
    node.delete("hand-made").expect("delete");
    nothing_left(&node);
}

/// An agent that is not there is waited for; after the stated time the runtime is told to try again.
#[test]
fn agents_that_restart_are_waited_for() {
    let mut node = Node::start(NodeOptions::default()).expect("node");
    Call::new(&node, "STATUS").ok();
    let (first, _) = connected(&node, "first", |c| c);
    node.kill_agent().expect("kill");
    let mut second = Container::new("second").expect("container");
    for call in [Call::of(&node, "ADD", &second), Call::of(&node, "DEL", &first)] {
        call.conf("waitSeconds", 0).refused(TRY_AGAIN);
    }
    Call::new(&node, "STATUS").refused(NOT_AVAILABLE);
    let calls = [Call::of(&node, "ADD", &second), Call::of(&node, "DEL", &first)];
    let running = calls.each_ref().map(|c| c.start(&c.conf.to_string()));
    node.start_agent().expect("agent");
    for child in running {
        let output = child.wait_with_output().expect("pilus-cni");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    learn(&node, &mut second);
    let (third, _) = connected(&node, "third", |c| c);
    talk(&second, &third, 8080);
    // Killed in the middle: the request is repeated, and is the same.
    for round in 0..rounds(8, 100) {
        let mut victim = Container::new(&format!("victim{round}")).expect("container");
        for verb in ["ADD", "DEL"] {
            let before = settled(&node).len();
            let call = Call::of(&node, verb, &victim);
            let child = call.start(&call.conf.to_string());
            // By turns at once, and when it is about to be done.
            if round % 2 == 0 {
                until("the endpoint comes or goes", || match node.block_on(node.client().endpoints()) {
                    Ok(endpoints) if endpoints.len() == before => Err("not yet".into()),
                    _ => Ok(()),
                });
            }
            node.kill_agent().expect("kill");
            node.start_agent().expect("agent");
            let output = child.wait_with_output().expect("pilus-cni");
            assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
            ready(&node);
            if verb == "ADD" {
                learn(&node, &mut victim);
                talk(&victim, &third, 9000);
            }
        }
        assert_eq!(interfaces(&victim), ["lo"]);
    }
    for container in [&second, &third] {
        Call::of(&node, "DEL", container).ok();
    }
    nothing_left(&node);
}

/// What the documentation shows.
#[test]
fn examples_work() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/cni");
    let programs = pilus_e2e::node::program("pilus-cni").parent().expect("directory").to_owned();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let socket = node.socket();
    // What was there before stays.
    node.import(&policy("web", "  endpointSelector: {matchLabels: {app: own}}\n  ingress: [{}]\n")).expect("policy");
    let before = node.block_on(node.client().policy(&[])).expect("policy").rules;
    let output = node
        .run_inside(move || {
            #[expect(clippy::disallowed_methods, reason = "a test runs an example")]
            let mut script = std::process::Command::new(format!("{examples}/quickstart.sh"));
            script.env("PATH", path).env("PILUS_SOCKET", socket).stdin(Stdio::null()).output()
        })
        .expect("node")
        .expect("start quickstart.sh");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((text.matches("client reaches").count(), text.matches("stranger does not").count()), (2, 2), "{text}");
    assert_eq!(node.block_on(node.client().policy(&[])).expect("policy").rules, before);
    nothing_left(&node);
    // The configurations, with this node's socket.
    let read =
        |name: &str| -> Value { serde_json::from_str(&std::fs::read_to_string(format!("{examples}/{name}")).expect(name)).expect(name) };
    let list = read("10-pilus.conflist");
    let mut listed = list["plugins"][0].clone();
    for key in ["cniVersion", "name"] {
        listed[key] = list[key].clone();
    }
    for (name, mut conf, labels) in [("listed", listed, vec![]), ("mesos", read("mesos.json"), vec!["mesos:app=web"])] {
        conf["socket"] = json!(node.socket());
        let container = Container::new(name).expect("container");
        let add = Call { conf: conf.clone(), ..Call::of(&node, "ADD", &container) };
        assert_eq!(add.ok()["cniVersion"], conf["cniVersion"]);
        assert_eq!(node.block_on(node.client().endpoint(&format!("container-id:{name}"))).expect("endpoint").labels, labels);
        Call { conf, ..Call::of(&node, "DEL", &container) }.ok();
    }
    nothing_left(&node);
}
