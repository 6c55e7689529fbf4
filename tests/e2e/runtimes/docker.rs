// SPDX-License-Identifier: Apache-2.0
//! A dockerd of its own in the node, and its containers.

use crate::support::{Talk, compare, policy, rounds, settled, talk, until};
use nix::sys::signal::Signal;
use pilus_e2e::node::program;
use pilus_e2e::runtime::{
    Cgroup, Daemon, IMAGE, container, containerd, docker, docker_plugin, dockerd, done, image, private_places, refused, skipped, tool,
    wait_dockerd,
};
use pilus_e2e::{Container, Family, Node, NodeOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Identity of a container whose labels are not known yet.
const INIT: u32 = 5;

struct Docker {
    // Ended in this order.
    plugin: Option<Daemon>,
    daemon: Option<Daemon>,
    _containerd: Daemon,
    containerd_socket: PathBuf,
    node: Node,
    cgroup: Cgroup,
    live_restore: bool,
}

impl Docker {
    fn start() -> Self {
        Self::start_with(true, NodeOptions::default())
    }

    fn start_with(live_restore: bool, options: NodeOptions) -> Self {
        let node = Node::start(options).expect("node");
        private_places(&node);
        let (daemon, containerd_socket) = containerd(&node, None);
        let cgroup = Cgroup::of(&node);
        let mut docker = Self { plugin: None, daemon: None, _containerd: daemon, containerd_socket, node, cgroup, live_restore };
        docker.start_plugin("docker.sock");
        docker.start_daemon();
        let archive = image(&docker.node);
        done(docker.cli(&["load", "-q", "-i"]).arg(archive));
        docker
    }

    /// It logs every request: tests wait for them.
    fn start_plugin(&mut self, docker_socket: &str) {
        self.plugin = Some(docker_plugin(&self.node, docker_socket, "debug"));
    }

    fn start_daemon(&mut self) {
        self.begin_daemon();
        wait_dockerd(&self.node);
    }

    fn begin_daemon(&mut self) {
        let more = ["--bridge=none", &format!("--live-restore={}", self.live_restore)];
        self.daemon = Some(dockerd(&self.node, &self.containerd_socket, &self.cgroup, &more));
    }

    fn cli(&self, args: &[&str]) -> Command {
        docker(&self.node, args)
    }

    fn network(&self, name: &str) {
        done(&mut self.cli(&["network", "create", "-d", "pilus", "--ipam-driver", "pilus", "--ipv6", name]));
    }

    fn inspect(&self, name: &str) -> Value {
        let text = done(&mut self.cli(&["inspect", name]));
        serde_json::from_str::<Value>(&text).expect("JSON")[0].take()
    }

    /// A running container, as Docker shows it.
    fn running(&self, name: &str) -> Container {
        let seen = self.inspect(name);
        let settings = &seen["NetworkSettings"]["Networks"]["net"];
        let mut found =
            container(name, seen["State"]["Pid"].as_u64().expect("pid"), &settings["IPAddress"], &settings["GlobalIPv6Address"]);
        found.learn(&self.endpoint(name));
        assert_eq!(settings["IPAddress"], found.ip(Family::V4).to_string());
        assert_eq!(settings["GlobalIPv6Address"], found.ip(Family::V6).to_string());
        found
    }

    fn run(&self, name: &str, more: &[&str]) -> Container {
        done(self.cli(&["run", "-d", "--name", name, "--net", "net"]).args(more).arg(IMAGE));
        self.running(name)
    }

    fn endpoint(&self, name: &str) -> pilus_api::types::EndpointModel {
        let id = self.inspect(name)["NetworkSettings"]["Networks"]["net"]["EndpointID"].as_str().expect("endpoint").to_owned();
        self.node.block_on(self.node.client().endpoint(&format!("name:docker:{id}"))).expect("endpoint")
    }

    /// How many requests of Docker the plugin has answered.
    fn requests(&self) -> usize {
        std::fs::read_to_string(self.node.path("plugin.log")).map_or(0, |log| log.matches("request method=").count())
    }

    fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Agent => self.node.kill_agent().expect("kill"),
            Victim::Plugin => self.plugin.take().expect("plugin").signal(Signal::SIGKILL),
            Victim::Daemon => self.daemon.take().expect("dockerd").signal(Signal::SIGKILL),
        }
    }

    fn start_again(&mut self, victim: Victim) {
        match victim {
            Victim::Agent => self.node.start_agent().expect("agent"),
            Victim::Plugin => self.start_plugin("docker.sock"),
            Victim::Daemon => self.start_daemon(),
        }
    }

    /// Docker does this while one of the three dies, after so many requests to the plugin. What it says if it fails.
    fn disturbed(&mut self, mut command: Command, victim: Victim, after: usize) -> Result<(), String> {
        let goal = self.requests() + after;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("docker");
        until("the moment comes", || {
            let ended = child.try_wait().map_err(|e| e.to_string())?.is_some();
            if ended || self.requests() >= goal { Ok(()) } else { Err(format!("{} requests of {goal}", self.requests())) }
        });
        self.kill(victim);
        self.start_again(victim);
        let output = child.wait_with_output().expect("docker");
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
    }

    fn labels(&self, name: &str) -> Vec<String> {
        self.endpoint(name).labels
    }

    fn remove_all(&self) {
        let ids = done(&mut self.cli(&["ps", "-aq"]));
        for id in ids.split_whitespace() {
            done(&mut self.cli(&["rm", "-f", id]));
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["plugin.log", "dockerd.log"] {
                let text = std::fs::read_to_string(self.node.path(log)).unwrap_or_default();
                let lines: Vec<&str> = text.lines().rev().take(40).collect();
                eprintln!("{log}:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        // A container outlives its daemon: none is left behind.
        if self.daemon.is_some()
            && let Ok(out) = self.cli(&["ps", "-aq"]).output()
        {
            for id in String::from_utf8_lossy(&out.stdout).split_whitespace() {
                let _ = self.cli(&["rm", "-f", id]).output();
            }
        }
        // Nor one that Docker itself has forgotten.
        let ctr = |args: &[&str]| tool("ctr").arg("-a").arg(&self.containerd_socket).args(["-n", "moby", "tasks"]).args(args).output();
        if let Ok(out) = ctr(&["ls", "-q"]) {
            for id in String::from_utf8_lossy(&out.stdout).split_whitespace() {
                let _ = ctr(&["delete", "-f", id]);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Agent,
    Plugin,
    Daemon,
}

const NEEDED: &[&str] = &["dockerd", "docker", "containerd", "runc", "ctr", "busybox"];

const WEB_FROM_CLIENT: &str = "  endpointSelector: {matchLabels: {\"container:app\": web}}\n  ingress:\n  - fromEndpoints: \
     [{matchLabels: {\"container:app\": client}}]\n";

#[test]
fn containers_talk_as_policy_says() {
    if skipped(NEEDED) {
        return;
    }
    let docker = Docker::start();
    docker.network("net");
    let web = docker.run("web", &["--label", "app=web", "--label", "text=two\nlines"]);
    let client = docker.run("client", &["--label", "app=client", "--network-alias", "friend"]);
    let stranger = docker.run("stranger", &[]);
    assert_eq!(docker.labels("web"), ["container:app=web"]);
    assert_eq!(docker.labels("stranger"), Vec::<String>::new());
    assert_ne!(docker.endpoint("stranger").identity.id, INIT);
    docker.node.import(&policy("web", WEB_FROM_CLIENT)).expect("policy");
    talk(&client, &web, 8080);
    for family in Family::BOTH {
        let mut events = docker.node.events(&["drop"]).expect("events");
        let _attempt = stranger.connect_start(SocketAddr::new(web.ip(family), 8080)).expect("socket");
        events.wait_drop(&stranger, &web).expect("drop");
    }
    // Docker's own names.
    for name in ["web", "friend"] {
        let seen = done(&mut docker.cli(&["exec", "stranger", "nslookup", name, "127.0.0.11"]));
        let of = if name == "web" { &web } else { &client };
        assert!(seen.contains(&of.ip(Family::V4).to_string()), "{seen}");
    }
    // Stopped and started again: another endpoint, the same labels.
    let before = docker.endpoint("client").name;
    done(&mut docker.cli(&["stop", "-t", "0", "client"]));
    done(&mut docker.cli(&["start", "client"]));
    let client = docker.running("client");
    assert_ne!(docker.endpoint("client").name, before);
    talk(&client, &web, 8081);
    done(&mut docker.cli(&["network", "disconnect", "net", "client"]));
    assert_eq!(settled(&docker.node).len(), 2);
    done(&mut docker.cli(&["network", "connect", "net", "client"]));
    talk(&docker.running("client"), &web, 8082);
    docker.remove_all();
    done(&mut docker.cli(&["network", "rm", "net"]));
    assert_eq!(settled(&docker.node), []);
}

#[test]
fn what_is_asked_for_is_done_or_refused() {
    if skipped(NEEDED) {
        return;
    }
    let docker = Docker::start();
    let status = docker.node.block_on(docker.node.client().status()).expect("status");
    let create = |args: &[&str]| refused(docker.cli(&["network", "create", "-d", "pilus"]).args(args).arg("bad"));
    for (args, named) in [
        (&["--ipam-driver", "pilus"][..], "--ipv6"),
        (&["--ipv6", "--subnet", "fd00:1::/64", "--subnet", "10.99.0.0/24"], "--ipam-driver pilus"),
        (&["--ipam-driver", "pilus", "--ipv6", "--subnet", "10.99.0.0/24"], "10.99.0.0/24"),
        (&["--ipam-driver", "pilus", "--ipv6", "--internal"], "--internal"),
        (&["--ipam-driver", "pilus", "--ipv6", "-o", "color=red"], "color"),
        (&["--ipam-driver", "pilus", "--ipv6", "--subnet", &status.ipv4_range, "--gateway", "10.99.0.9"], "10.99.0.9"),
    ] {
        let why = create(args);
        assert!(why.contains(named), "{args:?}: {why}");
    }
    // Addresses of one's own choice: Docker wants to be told the ranges for that.
    let ranges = ["--subnet", &status.ipv4_range, "--subnet", &status.ipv6_range];
    done(docker.cli(&["network", "create", "-d", "pilus", "--ipam-driver", "pilus", "--ipv6"]).args(ranges).arg("net"));
    let base = |range: &str| range.split('/').next().expect("range").to_owned();
    let ip = base(&status.ipv4_range).replace(".0.0", ".7.7");
    let ip6 = format!("{}77", base(&status.ipv6_range));
    let web = docker.run("web", &["--ip", &ip, "--ip6", &ip6]);
    assert_eq!((web.ip(Family::V4).to_string(), web.ip(Family::V6).to_string()), (ip.clone(), ip6));
    let mac = docker.inspect("web")["NetworkSettings"]["Networks"]["net"]["MacAddress"].clone();
    assert_eq!(mac, docker.endpoint("web").interface.mac);
    let run = |args: &[&str]| refused(docker.cli(&["run", "-d", "--name", "bad", "--net", "net"]).args(args).arg(IMAGE));
    let bad = |args: &[&str], named: &str| {
        let why = run(args);
        assert!(why.contains(named), "{args:?}: {why}");
        done(&mut docker.cli(&["rm", "bad"]));
    };
    // More than once: what is refused keeps no address.
    for _ in 0..3 {
        bad(&["-p", "8080:80"], "published ports are not supported");
        bad(&["--ip", &ip], "taken");
        bad(&["--ip", &status.router_ipv4], "reserved");
    }
    assert_eq!(settled(&docker.node).len(), 1);
    // Newer clients do not offer it for this daemon's networks; the one that came with it does.
    if std::path::Path::new("/usr/bin/docker").exists() {
        let mut old = tool("/usr/bin/docker");
        old.args(docker.cli(&["run", "-d", "--name", "mac", "--net", "net", "--mac-address", "02:11:22:33:44:55", IMAGE]).get_args());
        done(&mut old);
        assert_eq!(docker.endpoint("mac").interface.mac, "02:11:22:33:44:55");
        talk(&docker.running("mac"), &web, 8079);
        done(&mut docker.cli(&["rm", "-f", "mac"]));
    }
    // One network is enough.
    docker.network("net2");
    let why = refused(&mut docker.cli(&["network", "connect", "net2", "web"]));
    assert!(why.contains("already"), "{why}");
    let client = docker.run("client", &[]);
    talk(&client, &web, 8080);
    docker.remove_all();
    done(&mut docker.cli(&["network", "rm", "net", "net2"]));
    assert_eq!(settled(&docker.node), []);
}

/// Whatever restarts, connections stay, and what was missed is made up for.
#[test]
fn restarts_are_no_event() {
    if skipped(NEEDED) {
        return;
    }
    let mut docker = Docker::start();
    docker.network("net");
    let web = docker.run("web", &["--label", "app=web"]);
    let client = docker.run("client", &["--label", "app=client"]);
    docker.node.import(&policy("web", WEB_FROM_CLIENT)).expect("policy");
    let mut talks: Vec<Talk> = Family::BOTH.into_iter().map(|f| Talk::tcp(&client, &web, f, 8080)).collect();
    let mut go_on = |what: &str| talks.iter_mut().for_each(|t| t.exchange(7).unwrap_or_else(|e| panic!("{what}: {e}")));
    go_on("nothing");
    docker.plugin.take().expect("plugin").signal(Signal::SIGKILL);
    docker.start_plugin("docker.sock");
    go_on("plugin");
    docker.node.kill_agent().expect("kill");
    docker.node.start_agent().expect("agent");
    go_on("agent");
    docker.daemon.take().expect("dockerd").signal(Signal::SIGKILL);
    docker.start_daemon();
    go_on("dockerd");
    // Labels that cannot be known in time: connected all the same, under the policy of such containers, until they are known.
    docker.plugin.take().expect("plugin").signal(Signal::SIGTERM);
    docker.start_plugin("nowhere.sock");
    let late = docker.run("late", &["--label", "app=client"]);
    let model = docker.endpoint("late");
    assert_eq!((model.identity.id, &model.labels), (INIT, &vec!["reserved:init".to_owned()]));
    let mut events = docker.node.events(&["drop"]).expect("events");
    let _attempt = late.connect_start(SocketAddr::new(web.ip(Family::V6), 8081)).expect("socket");
    events.wait_drop(&late, &web).expect("drop");
    drop(events);
    docker.plugin.take().expect("plugin").signal(Signal::SIGKILL);
    docker.start_plugin("docker.sock");
    until("labels are known", || if docker.labels("late") == ["container:app=client"] { Ok(()) } else { Err("not yet".into()) });
    talk(&late, &web, 8090);
    go_on("labels");
    // A Docker that forgot everything: what it had goes. A container that is made by hand stays.
    let hand = docker.node.add("hand-made", &[]).expect("container");
    docker.remove_all();
    let gone = docker.run("gone", &[]);
    let seen = docker.inspect("gone")["State"]["Pid"].as_i64().expect("pid");
    docker.plugin.take().expect("plugin").signal(Signal::SIGKILL);
    docker.daemon.take().expect("dockerd").signal(Signal::SIGKILL);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(seen as i32), Signal::SIGKILL).expect("kill");
    drop(gone);
    std::fs::rename(docker.node.path("docker"), docker.node.path("docker-old")).expect("rename");
    docker.start_plugin("docker.sock");
    docker.start_daemon();
    until("what Docker forgot goes", || {
        let endpoints = docker.node.block_on(docker.node.client().endpoints()).map_err(|e| e.to_string())?;
        if endpoints.len() == 1 { Ok(()) } else { Err(format!("{} endpoints", endpoints.len())) }
    });
    assert_eq!(settled(&docker.node)[0].name, hand.name);
}

/// A daemon that takes its containers along starts them again before it answers anybody: they are not refused, and get their
/// labels when it does.
#[test]
fn containers_start_with_the_daemon() {
    if skipped(NEEDED) {
        return;
    }
    let mut docker = Docker::start_with(false, NodeOptions::default());
    docker.network("net");
    docker.run("web", &["--restart", "always", "--stop-timeout", "1", "--label", "app=web"]);
    for (signal, with_agent) in [(Signal::SIGTERM, false), (Signal::SIGKILL, false), (Signal::SIGKILL, true)] {
        let before = docker.endpoint("web").name;
        docker.daemon.take().expect("dockerd").signal(signal);
        let goal = docker.requests() + 6;
        docker.begin_daemon();
        if with_agent {
            // Who the driver is comes first, then what the container needs.
            until("the container is being started", || if docker.requests() >= goal { Ok(()) } else { Err("not yet".into()) });
            docker.kill(Victim::Agent);
            docker.start_again(Victim::Agent);
        }
        wait_dockerd(&docker.node);
        until("the container is back", || {
            let seen = docker.inspect("web");
            let id = seen["NetworkSettings"]["Networks"]["net"]["EndpointID"].as_str().unwrap_or_default().to_owned();
            let model = docker.node.block_on(docker.node.client().endpoint(&format!("name:docker:{id}"))).map_err(|e| e.to_string())?;
            let back = seen["State"]["Running"] == true && model.labels == ["container:app=web"] && model.name != before;
            if back { Ok(()) } else { Err(format!("{:?} {}", model.labels, seen["State"])) }
        });
        let client = docker.run("client", &[]);
        talk(&client, &docker.running("web"), 8080);
        done(&mut docker.cli(&["rm", "-f", "client"]));
        assert_eq!(settled(&docker.node).len(), 1);
    }
    docker.remove_all();
    assert_eq!(settled(&docker.node), []);
}

/// Agent, driver and dockerd die in the middle of what Docker does. Connections of other containers stay; what was asked for is
/// done, or fails with a reason; and nothing is left of it. What died between an address and its endpoint may have kept the
/// address, for a time.
#[test]
fn killed_at_any_moment() {
    const SEED: u64 = 11;
    if skipped(NEEDED) {
        return;
    }
    let options = NodeOptions { args: vec!["--ipv4-range".into(), "10.203.0.0/24".into()], ..NodeOptions::default() };
    let mut docker = Docker::start_with(true, options);
    docker.network("net");
    let web = docker.run("web", &["--label", "app=web"]);
    let client = docker.run("client", &["--label", "app=client"]);
    docker.node.import(&policy("web", WEB_FROM_CLIENT)).expect("policy");
    let mut talks: Vec<Talk> = Family::BOTH.into_iter().map(|f| Talk::tcp(&client, &web, f, 8080)).collect();
    let mut random = StdRng::seed_from_u64(SEED);
    let (mut done_ones, mut failed) = (0, 0);
    for round in 0..rounds(12, 120) {
        // Two requests for addresses, endpoint, join, twice the state; leave, endpoint, two addresses.
        let victim = [Victim::Agent, Victim::Plugin, Victim::Daemon][round % 3];
        let (starting, after) = (random.random_range(0..3) > 0, random.random_range(0..6));
        let what = format!("round {round}: {victim:?} dies while one is {}, after {after}", if starting { "started" } else { "removed" });
        let run = docker.cli(&["run", "-d", "--name", "guest", "--net", "net", "--label", "app=client", IMAGE]);
        let ended = if starting {
            docker.disturbed(run, victim, after)
        } else {
            docker.run("guest", &["--label", "app=client"]);
            let remove = docker.cli(&["rm", "-f", "guest"]);
            docker.disturbed(remove, victim, after)
        };
        for talk in &mut talks {
            talk.exchange(round as u32).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        match &ended {
            Ok(()) => done_ones += 1,
            Err(why) => {
                failed += 1;
                assert!(!why.is_empty(), "{what}: failed without a word");
                println!("{what}: {}", why.replace('\n', " "));
            }
        }
        if starting && ended.is_ok() {
            until(&what, || match docker.labels("guest") {
                labels if labels == ["container:app=client"] => Ok(()),
                labels => Err(format!("{labels:?}")),
            });
            talk(&docker.running("guest"), &web, 9000);
        }
        if !done(&mut docker.cli(&["ps", "-aq", "--filter", "name=^guest$"])).is_empty() {
            done(&mut docker.cli(&["rm", "-f", "guest"]));
        }
        until(&what, || match compare(&docker.node)?.len() {
            2 => Ok(()),
            n => Err(format!("{n} endpoints")),
        });
    }
    println!("{done_ones} done, {failed} failed with a reason");
    let take = || docker.node.block_on(docker.node.client().allocate_address(true, true)).is_ok();
    let free = (0..256).take_while(|_| take()).count();
    assert!(free + failed >= 253 - 2 && free <= 253 - 2, "{free} addresses are free");
}

/// What the driver answers to one of Docker's requests.
fn ask(node: &Node, method: &str, request: Value) -> Value {
    let body = request.to_string();
    let text = format!("POST /{method} HTTP/1.1\r\nHost: plugin\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let exchange = move || -> std::io::Result<String> {
        let mut stream = UnixStream::connect("/run/docker/plugins/pilus.sock")?;
        stream.write_all(text.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = node.run_inside(exchange).expect("node").expect("the driver");
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let answer: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(answer["Err"], Value::Null, "{method}");
    answer
}

/// The interface goes when its container leaves, and the addresses with it; Docker gives them back a while later. Somebody
/// else who has one of them by then keeps it.
#[test]
fn who_leaves_takes_nothing_from_others() {
    let node = Node::start(NodeOptions::default()).expect("node");
    private_places(&node);
    let _plugin = docker_plugin(&node, "docker.sock", "debug");
    until("the driver listens", || match node.run_inside(|| UnixStream::connect("/run/docker/plugins/pilus.sock")) {
        Ok(Ok(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let links = node.links().expect("links");
    let [v6, v4] =
        ["pilus-ipv6", "pilus-ipv4"].map(|pool| ask(&node, "IpamDriver.RequestAddress", json!({ "PoolID": pool }))["Address"].clone());
    let endpoint = json!({ "EndpointID": "e1", "NetworkID": "n", "SandboxKey": "/sandbox",
        "Interface": { "Address": v4, "AddressIPv6": v6, "MacAddress": "" } });
    ask(&node, "NetworkDriver.CreateEndpoint", endpoint.clone());
    ask(&node, "NetworkDriver.Join", endpoint.clone());
    assert_eq!(node.block_on(node.client().endpoints()).expect("endpoints").len(), 1);
    ask(&node, "NetworkDriver.Leave", endpoint.clone());
    assert_eq!((compare(&node), node.links().expect("links")), (Ok(vec![]), links), "gone when Leave is answered");
    for address in [v6, v4] {
        let ip = address.as_str().and_then(|a| a.split('/').next()?.parse().ok()).expect("an address");
        let claim = || node.block_on(node.client().claim_address(ip));
        claim().expect("it is free");
        ask(&node, "IpamDriver.ReleaseAddress", json!({ "PoolID": "pilus", "Address": address }));
        assert!(claim().is_err(), "{ip} was taken from who has it");
    }
    ask(&node, "NetworkDriver.DeleteEndpoint", endpoint);
}

/// What the documentation shows.
#[test]
fn the_example_works() {
    if skipped(NEEDED) {
        return;
    }
    let docker = Docker::start();
    let programs = program("pilus").parent().expect("directory").to_owned();
    let mut script = tool(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/docker/quickstart.sh"));
    script.env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default())).env("IMAGE", IMAGE);
    script.env("PILUS_SOCKET", docker.node.socket()).env("DOCKER_CONFIG", docker.node.path("docker-config"));
    script.env("DOCKER_HOST", format!("unix://{}", docker.node.path("docker.sock").display()));
    let text = done(&mut script);
    assert_eq!((text.matches("client reaches").count(), text.matches("stranger does not").count()), (2, 2), "{text}");
    assert_eq!(settled(&docker.node), []);
}
