// SPDX-License-Identifier: Apache-2.0
//! The first packets.

use pilus_e2e::{Family, Node, NodeOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;

#[test]
fn containers_and_host_talk() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let web = node.add("web", &["app=web"]).expect("web");
    let client = node.add("client", &["app=client"]).expect("client");
    for family in Family::BOTH {
        let server = web.listen(family, 8080).expect("listen");
        let to = SocketAddr::new(web.ip(family), 8080);
        for from in ["container", "host"] {
            let mut stream = match from {
                "container" => client.connect(to).expect("connect"),
                _ => node.run(|| std::net::TcpStream::connect_timeout(&to, pilus_e2e::container::PATIENCE)).expect("connect"),
            };
            let (mut peer, _) = server.accept().expect("accept");
            stream.write_all(b"ping").expect("write");
            let mut buffer = [0; 4];
            peer.read_exact(&mut buffer).expect("read");
            peer.write_all(b"pong").expect("write");
            stream.read_exact(&mut buffer).expect("read");
            assert_eq!(&buffer, b"pong");
        }
    }
    assert!(node.delete("web").expect("delete"));
    assert!(!node.delete("web").expect("delete again"));
}
