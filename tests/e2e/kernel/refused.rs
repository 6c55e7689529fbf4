// SPDX-License-Identifier: Apache-2.0
//! Somebody sends on and on what policy refuses: what is allowed meanwhile arrives from its first packet on, what is revoked ends
//! with the import's answer, and reports tell of every drop.

use crate::support::until;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use pilus_e2e::node::Events;
use pilus_e2e::{Container, Family, Node, NodeOptions};
use pilus_model::abi::DropReason;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const PORT: u16 = 9300;
const REASONS: [&str; 2] = ["Policy denied", "Flow no longer allowed by policy"];

fn policy(ports: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p}}\nspec:\n  endpointSelector: {{matchLabels: {{app: server}}}}\n  \
         ingress:\n  - fromEndpoints: [{{matchLabels: {{app: client}}}}]\n    toPorts: [{{ports: [{ports}]}}]\n"
    )
}

/// Events tell of what each processor has dropped, so all is sent by one.
fn on_first_processor() {
    let mut set = CpuSet::new();
    set.set(0).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &set).expect("a processor");
}

/// Ends what goes on beside a test, also when that fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Numbered packets, sent on and on.
#[derive(Default)]
struct Flood {
    /// Packets up to this one have left.
    sent: AtomicU64,
    stop: AtomicBool,
}

impl Flood {
    fn run(&self, socket: &UdpSocket) {
        on_first_processor();
        while !self.stop.load(Ordering::SeqCst) {
            let n = self.sent.load(Ordering::SeqCst) + 1;
            socket.send(&n.to_be_bytes()).expect("send");
            self.sent.store(n, Ordering::SeqCst);
        }
    }

    fn so_far(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

fn receive(at: &UdpSocket) -> Option<u64> {
    let mut bytes = [0; 8];
    at.recv(&mut bytes).ok().map(|_| u64::from_be_bytes(bytes))
}

/// The highest number that waits.
fn drain(at: &UdpSocket) -> Option<u64> {
    at.set_nonblocking(true).expect("nonblocking");
    let highest = std::iter::from_fn(|| receive(at)).max();
    at.set_nonblocking(false).expect("blocking");
    highest
}

/// Drops for any reason: a listener that was too slow is not told which of them it has lost.
fn dropped(node: &Node) -> u64 {
    let is_drop = |row: &[String]| DropReason::ALL.iter().any(|r| r.text() == row[0]);
    let rows = node.rows("metrics").expect("metrics");
    rows.iter().filter(|row| is_drop(row)).map(|row| row[2].parse::<u64>().expect("packets")).sum()
}

/// Adds what events tell of, for as long as it takes.
fn listen(mut events: Events<'_>, told: &AtomicU64, done: &AtomicBool) {
    while !done.load(Ordering::SeqCst) {
        while let Some(e) = events.poll().expect("events") {
            if e.kind == "lost" || e.kind == "drop" {
                assert!(e.count > 0, "{e:?}");
                told.fetch_add(e.count, Ordering::SeqCst);
            }
        }
    }
}

/// One change to and fro while the flood goes on. The socket that it came from.
fn round(node: &Node, client: &Container, server: &Container, family: Family) -> UdpSocket {
    let at = server.udp(family, PORT).expect("server");
    let from = client.udp(family, 0).expect("client");
    from.connect(SocketAddr::new(server.ip(family), PORT)).expect("connect");
    let flood = Flood::default();
    std::thread::scope(|scope| {
        scope.spawn(|| flood.run(&from));
        let _stop = Ends(&flood.stop);
        let grows = |reason: &str, by: u64| {
            let before = node.metric(reason).expect("metrics");
            while node.metric(reason).expect("metrics") < before + by {
                std::thread::yield_now();
            }
        };
        grows(REASONS[0], 2000);
        assert_eq!(drain(&at), None, "{family:?}: refused");
        node.import(&policy("{port: \"9100\"}, {port: \"9300\"}")).expect("allow");
        let after = flood.so_far();
        let first = receive(&at).expect("a packet arrives");
        assert!(first <= after + 2, "{family:?}: {first} is the first to arrive, {after} were sent before it was allowed");
        node.import(&policy("{port: \"9100\"}")).expect("revoke");
        let last = flood.so_far();
        let until_now = drain(&at);
        grows(REASONS[1], 50);
        let late = until_now.max(drain(&at));
        assert!(late.is_none_or(|n| n <= last + 1), "{family:?}: {late:?} arrived, it was revoked after {last}");
    });
    from
}

#[test]
fn changes_are_exact_in_a_flood_of_refused_packets_and_every_drop_is_told_of() {
    let node = Node::start(NodeOptions::default()).expect("node");
    // Before there is anybody whose packets are dropped.
    let events = node.events(&["drop"]).expect("events");
    assert_eq!(dropped(&node), 0);
    let server = node.add("server", &["app=server"]).expect("server");
    let client = node.add("client", &["app=client"]).expect("client");
    node.import(&policy("{port: \"9100\"}")).expect("policy");
    let (told, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| listen(events, &told, &done));
        let _done = Ends(&done);
        let rounds = (0..3).flat_map(|_| Family::BOTH);
        let sockets: Vec<_> = rounds.map(|family| round(&node, &client, &server, family)).collect();
        // Without its flow, and with no interval, each tells of those before it.
        let (code, _, err) = node.pilus(&["config", "drop-interval=0"]).expect("pilus");
        assert_eq!((code, err.as_str()), (0, ""));
        node.block_on(node.client().flush_flow_table(None)).expect("flush");
        let last = scope.spawn(move || {
            on_first_processor();
            for from in &sockets {
                from.send(b"last").expect("send");
            }
        });
        last.join().expect("send");
        let all = until("every drop is told of", || match dropped(&node) {
            all if all == told.load(Ordering::SeqCst) => Ok(all),
            all => Err(format!("{told:?} told of {all}")),
        });
        assert!(all > 6 * 2000, "{all}");
    });
    let (_, out, _) = node.pilus(&["config"]).expect("pilus");
    assert!(out.lines().any(|l| l.starts_with("drop-interval") && l.contains(" 0")), "{out}");
    let (code, _, err) = node.pilus(&["config", "drop-interval=3601"]).expect("pilus");
    assert!(code == 1 && err.contains("seconds, 0 (every drop) to 3600"), "{err}");
}
