// SPDX-License-Identifier: Apache-2.0
//! Datagrams in parts, and packets that are too long: what the kernel's own stacks make of our answers.

use crate::support::{netlink, policy, settled};
use pilus_e2e::{Container, Family, Node, NodeOptions};
use std::net::SocketAddr;

const PORT: u16 = 5300;

fn served() -> (Node, Container, Container) {
    let node = Node::start(NodeOptions::default()).expect("node");
    let server = node.add("server", &["app=server"]).expect("server");
    let client = node.add("client", &["app=client"]).expect("client");
    node.import(&policy(
        "server",
        &format!(
            "  endpointSelector: {{matchLabels: {{app: server}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {{app: client}}}}]\n    \
             toPorts: [{{ports: [{{port: \"{PORT}\", protocol: ANY}}]}}]\n"
        ),
    ))
    .expect("policy");
    (node, server, client)
}

/// A datagram of many frames arrives whole where policy lets it, and not at all where it does not.
#[test]
fn datagrams_in_parts_arrive_whole() {
    let (node, server, client) = served();
    for family in Family::BOTH {
        let near = client.udp(family, 0).expect("client");
        let far = server.udp(family, PORT).expect("server");
        let refused = server.udp(family, PORT + 1).expect("server");
        for length in [1473, 4000, 60_000] {
            let sent: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let mut seen = vec![0; 65_536];
            near.send_to(&sent, SocketAddr::new(server.ip(family), PORT + 1)).expect("send");
            near.send_to(&sent, SocketAddr::new(server.ip(family), PORT)).expect("send");
            let (n, from) = far.recv_from(&mut seen).expect("a datagram");
            assert!(seen[..n] == sent, "{family:?}: {n} bytes of {length}");
            // And back.
            far.send_to(&sent, from).expect("answer");
            let n = near.recv(&mut seen).expect("an answer");
            assert!(seen[..n] == sent, "{family:?}: {n} bytes of {length} came back");
        }
        refused.set_nonblocking(true).expect("socket");
        assert!(refused.recv(&mut [0; 16]).is_err(), "{family:?}: a datagram in parts came where none may");
    }
    assert!(node.metric("Policy denied").expect("metrics") >= 6);
    assert!(node.metric("First fragment not found").expect("metrics") >= 6);
}

/// A container believes in a longer MTU than its peer's side has: it is told, by our answer alone, and sends shorter packets.
#[test]
fn a_sender_is_told_what_fits() {
    let (node, server, client) = served();
    let mtu = client.run(|| netlink(async |n| n.link_by_name("eth0").await.expect("link").expect("eth0").mtu));
    for container in [&server, &client] {
        container.run(|| {
            netlink(async |n| {
                let link = n.link_by_name("eth0").await.expect("link").expect("eth0");
                n.set_mtu(link.index, mtu + 1000).await.expect("MTU");
            })
        });
    }
    for family in Family::BOTH {
        let headers = if family == Family::V4 { 28 } else { 48 };
        let near = client.udp(family, 0).expect("client");
        let far = server.udp(family, PORT).expect("server");
        near.connect(SocketAddr::new(server.ip(family), PORT)).expect("connect");
        // The first is lost; what the sender is told makes it cut the next ones itself.
        let length = mtu as usize - headers + 1;
        far.set_nonblocking(true).expect("socket");
        let mut sent = 0u8;
        let arrived = crate::support::until("a datagram arrives", || {
            near.send(&vec![sent; length]).map_err(|e| e.to_string())?;
            sent += 1;
            let mut seen = vec![0; 4096];
            let n = far.recv(&mut seen).map_err(|e| e.to_string())?;
            Ok(seen[..n].to_vec())
        });
        assert_eq!(arrived.len(), length);
        assert!(arrived[0] > 0, "{family:?}: the first was not too long");
        // TCP learns it too, with a stream that fills its segments.
        let listener = server.listen(family, PORT).expect("listen");
        let mut stream = client.connect(SocketAddr::new(server.ip(family), PORT)).expect("connect");
        let (mut accepted, _) = listener.accept().expect("accept");
        let bytes = vec![9; 300_000];
        std::thread::scope(|scope| {
            scope.spawn(|| std::io::Write::write_all(&mut stream, &bytes).expect("write"));
            let mut seen = vec![0; bytes.len()];
            std::io::Read::read_exact(&mut accepted, &mut seen).expect("read");
            assert!(seen == bytes);
        });
    }
    settled(&node);
}
