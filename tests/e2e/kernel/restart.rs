// SPDX-License-Identifier: Apache-2.0
//! The agent is killed at any moment; a new one takes over, and the kernel is what was asked for.

use crate::support::{Talk, policy, ready, rounds, settled, shapes, until};
use pilus_api::client::Client;
use pilus_api::error::ClientError;
use pilus_api::types::{EndpointRequest, LabelsRequest, PolicyDocument, PolicyImport};
use pilus_e2e::{Container, Family, Node, NodeOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

const SEED: u64 = 0x9115;
const PORT: u16 = 7000;

/// The long-lived pair: the client may reach the server at one port, and sometimes at a second one that nobody uses.
fn long_lived(extra: u16) -> String {
    let port = |p: u16| format!("{{port: \"{p}\", protocol: TCP}}, {{port: \"{p}\", protocol: UDP}}");
    policy(
        "server",
        &format!(
            "  endpointSelector: {{matchLabels: {{app: server}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {{app: client}}}}]\n    \
             toPorts: [{{ports: [{}, {}]}}]\n",
            port(PORT),
            port(extra)
        ),
    )
}

fn churning(group: usize, peer: u32, port: u16) -> String {
    policy(
        &format!("churn-{group}"),
        &format!(
            "  endpointSelector: {{matchLabels: {{group: g{group}}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {{tier: t{peer}}}}}]\n    \
             toPorts: [{{ports: [{{port: \"{port}\", protocol: TCP}}]}}]\n  egress:\n  - toEndpoints: [{{matchLabels: {{tier: t{peer}}}}}]\n"
        ),
    )
}

/// Lets drivers run, and stops them between two requests.
struct Gate {
    open: AtomicBool,
    ended: AtomicBool,
    parked: Mutex<usize>,
    changed: Condvar,
    done: AtomicU64,
}

impl Gate {
    fn new() -> Self {
        let (open, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { open, ended, parked: Mutex::new(0), changed: Condvar::new(), done: AtomicU64::new(0) }
    }

    fn set(&self, open: bool) {
        let _parked = self.parked.lock().expect("lock");
        self.open.store(open, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Between two requests. False: the test is over.
    fn pass(&self) -> bool {
        let mut parked = self.parked.lock().expect("lock");
        *parked += 1;
        self.changed.notify_all();
        while !self.open.load(Ordering::Relaxed) && !self.ended.load(Ordering::Relaxed) {
            parked = self.changed.wait(parked).expect("lock");
        }
        *parked -= 1;
        !self.ended.load(Ordering::Relaxed)
    }

    /// Closes, and waits until every driver has its answer. False: one of them failed.
    fn quiet(&self, drivers: usize) -> bool {
        self.set(false);
        let mut parked = self.parked.lock().expect("lock");
        while *parked < drivers && !self.ended.load(Ordering::Relaxed) {
            parked = self.changed.wait(parked).expect("lock");
        }
        !self.ended.load(Ordering::Relaxed)
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.set(false);
    }
}

/// A driver that fails ends the test.
struct Alarm<'a>(&'a Gate);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Name to labels: what the agent acknowledged.
type Known = BTreeMap<String, Vec<String>>;

/// Changes its own group of containers and their policy, over and over. A request that got no answer is repeated.
struct Driver {
    group: usize,
    client: Client,
    runtime: tokio::runtime::Runtime,
    random: StdRng,
    containers: Vec<Container>,
    known: Known,
}

impl Driver {
    fn new(group: usize, socket: PathBuf) -> Self {
        let containers = (0..3).map(|n| Container::new(&format!("churn-{group}-{n}")).expect("container")).collect();
        Self {
            group,
            client: Client::new(socket),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime"),
            random: StdRng::seed_from_u64(SEED + 1 + group as u64),
            containers,
            known: Known::new(),
        }
    }

    /// Repeats until the agent answers. What it then says must be a success.
    fn insist<T, F: Future<Output = Result<T, ClientError>>>(&self, what: &str, call: impl Fn() -> F) -> T {
        until(what, || match self.runtime.block_on(call()) {
            Ok(answer) => Ok(answer),
            Err(ClientError::Api { status, error }) => panic!("{what}: {status} {error:?}"),
            Err(e) => Err(e.to_string()),
        })
    }

    fn labels(&mut self) -> Vec<String> {
        vec![format!("group=g{}", self.group), format!("tier=t{}", self.random.random_range(0..3))]
    }

    fn step(&mut self) {
        let container = self.containers[self.random.random_range(0..self.containers.len())].clone();
        let name = container.name.clone();
        let reference = format!("name:{name}");
        match (self.random.random_range(0..10), self.known.contains_key(&name)) {
            (0..6, false) => {
                let request =
                    EndpointRequest { name: name.clone(), netns: container.path(), labels: self.labels(), ..EndpointRequest::default() };
                self.insist("add", || self.client.put_endpoint(&request, true));
                self.known.insert(name, request.labels);
            }
            (0..3, true) => {
                self.insist("delete", || self.client.delete_endpoint(&reference, true));
                self.known.remove(&name);
            }
            (3..6, true) => {
                let labels = self.labels();
                let change = LabelsRequest { add: labels.clone(), delete: Vec::new() };
                self.insist("relabel", || self.client.change_labels(&reference, &change));
                self.known.insert(name, labels);
            }
            (6, true) => drop(self.insist("regenerate", || self.client.regenerate(&reference))),
            _ => {
                let (peer, port) = (self.random.random_range(0..3), self.random.random_range(1..100));
                let mut documents = vec![PolicyDocument { name: "churn.yaml".into(), text: churning(self.group, peer, port) }];
                if self.group == 0 {
                    documents.push(PolicyDocument { name: "server.yaml".into(), text: long_lived(PORT + port) });
                }
                let import = PolicyImport { documents };
                self.insist("import", || self.client.import_policy(&import));
            }
        }
    }

    fn run(mut self, gate: &Gate, known: &Mutex<Known>) {
        let _alarm = Alarm(gate);
        while gate.pass() {
            self.step();
            *known.lock().expect("lock") = self.known.clone();
            gate.done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn conversations(client: &Container, server: &Container) -> Vec<Talk> {
    let both = |family| [Talk::tcp(client, server, family, PORT), Talk::udp(client, server, family, PORT)];
    Family::BOTH.into_iter().flat_map(both).collect()
}

/// Talks on every conversation for as long as `work` lasts, and a little more. Fails on the first message that is lost.
fn while_talking<T>(talks: &mut [Talk], work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let talking = scope.spawn(|| {
            let mut mark = 0;
            loop {
                let last = over.load(Ordering::Relaxed);
                for talk in talks.iter_mut() {
                    mark += 1;
                    talk.exchange(mark)?;
                }
                if last {
                    return Ok::<_, String>(mark);
                }
                std::thread::yield_now();
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        talking.join().expect("talking").expect("established flows go on");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn killed_at_any_moment() {
    const GROUPS: usize = 2;
    let mut node = Node::start(NodeOptions::default()).expect("node");
    let server = node.add("server", &["app=server"]).expect("server");
    let client = node.add("client", &["app=client"]).expect("client");
    node.import(&long_lived(PORT + 200)).expect("policy");
    let mut talks = conversations(&client, &server);
    let loaded = shapes(&node).expect("objects");
    let mut random = StdRng::seed_from_u64(SEED);
    let gate = Gate::new();
    let known: Vec<Mutex<Known>> = (0..GROUPS).map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        let drivers: Vec<_> = known
            .iter()
            .enumerate()
            .map(|(group, known)| {
                let driver = Driver::new(group, node.socket());
                let gate = &gate;
                scope.spawn(move || driver.run(gate, known))
            })
            .collect();
        let mut all_rounds = || {
            for round in 0..rounds(12, 100) {
                let goal = gate.done.load(Ordering::Relaxed) + random.random_range(2..12);
                let spin = random.random_range(0..400);
                gate.set(true);
                while gate.done.load(Ordering::Relaxed) < goal && !drivers.iter().any(|d| d.is_finished()) {
                    std::thread::yield_now();
                }
                (0..spin).for_each(|_| std::thread::yield_now());
                while_talking(&mut talks, || {
                    node.kill_agent().expect("kill");
                    node.start_agent().expect("start");
                });
                if !gate.quiet(GROUPS) {
                    return;
                }
                let mut wanted: Known = known.iter().flat_map(|k| k.lock().expect("lock").clone()).collect();
                wanted.extend([("server".into(), vec!["app=server".into()]), ("client".into(), vec!["app=client".into()])]);
                ready(&node);
                let endpoints = settled(&node);
                let short = |l: &String| l.strip_prefix("unspec:").or(l.strip_prefix("pilus:")).unwrap_or(l).to_owned();
                let there: Known = endpoints.iter().map(|e| (e.name.clone(), e.labels.iter().map(short).collect())).collect();
                assert_eq!(there, wanted, "round {round}: what was acknowledged is there, and nothing else");
                assert_eq!(shapes(&node).expect("objects"), loaded, "round {round}");
                let status = node.block_on(node.client().status()).expect("status");
                assert_eq!(status.objects.builds, 0, "round {round}: nothing is compiled");
            }
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut all_rounds));
        gate.end();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    assert_eq!(node.metric("Missed tail call").expect("metrics"), 0);
    for talk in &mut talks {
        talk.exchange(0).expect("flows at the end");
    }
}

/// With nothing going on, a new agent leaves no mark on traffic, and comes to the same state.
#[test]
fn a_restart_at_rest_changes_nothing() {
    let mut node = Node::start(NodeOptions::default()).expect("node");
    let server = node.add("server", &["app=server"]).expect("server");
    let client = node.add("client", &["app=client"]).expect("client");
    node.import(&long_lived(PORT + 1)).expect("policy");
    let mut talks = conversations(&client, &server);
    let dropped = |node: &Node| node.metric("Flow no longer allowed by policy").expect("metrics");
    let (before, revoked) = (settled(&node), dropped(&node));
    let policies = node.block_on(node.client().policy(&[])).expect("policy");
    for stop in ["kill", "term", "kill"] {
        while_talking(&mut talks, || {
            match stop {
                "term" => assert_eq!(node.stop_agent().expect("stop"), 0),
                _ => node.kill_agent().expect("kill"),
            }
            node.start_agent().expect("start");
            ready(&node);
        });
        let after = settled(&node);
        for (old, new) in before.iter().zip(&after) {
            assert_eq!((old.id, &old.name, &old.labels, &old.identity), (new.id, &new.name, &new.labels, &new.identity));
            assert_eq!((old.ipv6, old.ipv4, &old.interface), (new.ipv6, new.ipv4, &new.interface));
            assert_eq!(old.policy, new.policy);
            assert_eq!(old.datapath.programs, new.datapath.programs, "no program is loaded again");
        }
        let now = node.block_on(node.client().policy(&[])).expect("policy");
        assert_eq!((now.revision, now.rules), (policies.revision, policies.rules.clone()));
    }
    assert_eq!(dropped(&node), revoked);
    assert_eq!(node.block_on(node.client().status()).expect("status").objects.builds, 0);
}

/// Rules have a place each on disk, and come and go together: whenever the agent is killed, the next one has all rules of one
/// import and none of another, the last that was acknowledged or the one under way, in the order in which they were written.
#[test]
fn imports_are_kept_whole() {
    const RULES: usize = 40;
    let set = |generation: u64| -> String {
        let rule = |n: usize| {
            let (count, spec) =
                (n + 1, format!("  description: \"{generation} {n}\"\n  endpointSelector: {{matchLabels: {{app: a{n}}}}}\n"));
            format!(
                "{}---\n",
                policy(
                    &format!("p{:02}", (n * 7) % RULES),
                    &format!("{spec}  ingress: [{{toPorts: [{{ports: [{{port: \"{count}\"}}]}}]}}]\n")
                )
            )
        };
        (0..RULES).map(rule).collect()
    };
    let mut node = Node::start(NodeOptions::default()).expect("node");
    let mut random = StdRng::seed_from_u64(SEED);
    let (mut generation, mut revision) = (0, 0);
    for round in 0..rounds(12, 100) {
        let (client, last, acknowledged) = (node.client(), AtomicU64::new(generation), AtomicU64::new(revision));
        let goal = generation + random.random_range(1..6);
        let spin = random.random_range(0..4000);
        let begun = std::thread::scope(|scope| {
            let importing = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
                for next in last.load(Ordering::Relaxed) + 1.. {
                    let documents = vec![PolicyDocument { name: "all.yaml".into(), text: set(next) }];
                    match runtime.block_on(client.import_policy(&PolicyImport { documents })) {
                        Ok(answer) => {
                            acknowledged.store(answer.revision, Ordering::Relaxed);
                            last.store(next, Ordering::Relaxed);
                        }
                        // Killed: this one is there or not.
                        Err(_) => return next,
                    }
                }
                unreachable!("it ends by an error")
            });
            while last.load(Ordering::Relaxed) < goal && !importing.is_finished() {
                std::thread::yield_now();
            }
            (0..spin).for_each(|_| std::thread::yield_now());
            node.kill_agent().expect("kill");
            importing.join().expect("importing")
        });
        node.start_agent().expect("start");
        let model = node.block_on(node.client().policy(&[])).expect("policy");
        let told: Vec<&str> = model.rules.iter().filter_map(|r| r["description"].as_str()).collect();
        let there = told.first().and_then(|t| t.split(' ').next()?.parse().ok()).unwrap_or_default();
        let last = last.into_inner();
        assert!(there == last || there == begun, "round {round}: {there} is there; {last} was acknowledged, {begun} begun");
        let whole: Vec<String> = (0..RULES).map(|n| format!("{there} {n}")).collect();
        assert_eq!(told, whole, "round {round}");
        let acknowledged = acknowledged.into_inner();
        assert_eq!(model.revision, acknowledged + u64::from(there != last), "round {round}");
        (generation, revision) = (there, model.revision);
    }
    node.forget_policy().expect("forget");
    node.kill_agent().expect("kill");
    node.start_agent().expect("start");
    let left = node.block_on(node.client().policy(&[])).expect("policy");
    assert_eq!((left.rules.len(), left.revision), (0, revision + 1));
}
