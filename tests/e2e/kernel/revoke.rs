// SPDX-License-Identifier: Apache-2.0
//! A policy is revoked while data streams: once the revision is realised, no packet arrives, in either direction.

use pilus_e2e::container::PATIENCE;
use pilus_e2e::{Container, Family, Node, NodeOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ALLOW: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n  \
                     endpointSelector: {matchLabels: {app: server}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n";
const DENY: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n  \
                    endpointSelector: {matchLabels: {app: server}}\n  ingress: [{}]\n";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sender {
    Client,
    Server,
}

struct Pair<'a> {
    node: &'a Node,
    server: &'a Container,
    client: &'a Container,
    family: Family,
}

/// Packets that were dropped because their flow was revoked.
fn revoked(node: &Node) -> u64 {
    node.metric("Flow no longer allowed by policy").expect("metrics")
}

impl Pair<'_> {
    /// Revokes while `stream` runs; `received` reads what waits at the far end without blocking. Returns when the stream's
    /// packets were seen to be dropped and none of them to arrive, and when it goes on after the policy is back.
    fn check(&self, what: &str, mut received: impl FnMut() -> usize, mut arrives: impl FnMut()) {
        arrives();
        self.node.import(DENY).expect("revoke");
        while received() > 0 {}
        // From here on the stream goes on against a closed door: drops are counted, nothing arrives.
        let before = revoked(self.node);
        while revoked(self.node) < before + 3 {
            std::thread::yield_now();
        }
        assert_eq!(received(), 0, "{what}: packets arrive after the revision is realised");
        self.node.import(ALLOW).expect("allow again");
        arrives();
    }

    fn udp(&self, sender: Sender) {
        let far = self.server.udp(self.family, 9100).expect("server");
        let near = self.client.udp(self.family, 0).expect("client");
        let to = SocketAddr::new(self.server.ip(self.family), 9100);
        near.connect(to).expect("connect");
        near.send(b"open").expect("send");
        let (_, back) = far.recv_from(&mut [0; 16]).expect("the first packet");
        far.connect(back).expect("connect");
        let (from, at): (UdpSocket, UdpSocket) = if sender == Sender::Client { (near, far) } else { (far, near) };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let stream = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = from.send(&[0; 100]);
            }
        });
        let quiet = at.try_clone().expect("clone");
        let received = || {
            quiet.set_nonblocking(true).expect("nonblocking");
            let mut n = 0;
            while quiet.recv(&mut [0; 128]).is_ok() {
                n += 1;
            }
            quiet.set_nonblocking(false).expect("blocking");
            n
        };
        let arrives = || assert!(at.recv(&mut [0; 128]).expect("a packet arrives") > 0);
        self.check(&format!("{:?} UDP {sender:?}", self.family), received, arrives);
        stop.store(true, Ordering::Relaxed);
        stream.join().expect("stream");
    }

    fn tcp(&self, sender: Sender) {
        let listener = self.server.listen(self.family, 9200).expect("listen");
        let near = self.client.connect(SocketAddr::new(self.server.ip(self.family), 9200)).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        let (mut from, at): (TcpStream, TcpStream) = if sender == Sender::Client { (near, far) } else { (far, near) };
        at.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let end = from.try_clone().expect("clone");
        let stream = std::thread::spawn(move || while from.write_all(&[0; 1000]).is_ok() {});
        let quiet = at.try_clone().expect("clone");
        let received = || {
            quiet.set_nonblocking(true).expect("nonblocking");
            let mut buffer = [0; 65536];
            let n = match (&quiet).read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
                Err(e) => panic!("the connection broke: {e}"),
            };
            quiet.set_nonblocking(false).expect("blocking");
            n
        };
        let arrives = || assert!((&at).read(&mut [0; 4096]).expect("data arrives") > 0);
        self.check(&format!("{:?} TCP {sender:?}", self.family), received, arrives);
        // The writer may wait in a full buffer.
        end.shutdown(std::net::Shutdown::Both).expect("shutdown");
        stream.join().expect("stream");
    }
}

#[test]
fn nothing_arrives_after_a_revocation() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let server = node.add("server", &["app=server"]).expect("server");
    let client = node.add("client", &["app=client"]).expect("client");
    node.import(ALLOW).expect("policy");
    for family in Family::BOTH {
        let pair = Pair { node: &node, server: &server, client: &client, family };
        for sender in [Sender::Client, Sender::Server] {
            pair.udp(sender);
            pair.tcp(sender);
        }
    }
}
