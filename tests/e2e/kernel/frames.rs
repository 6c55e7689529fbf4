// SPDX-License-Identifier: Apache-2.0
//! Random frames as containers may write them: tiny ones, damaged ones, and such as the kernel keeps in several pieces.

use crate::support::policy;
use pilus_e2e::{Container, Family, Node, NodeOptions};
use pilus_tests::packet::Packet;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::io::Read;

const SEED: u64 = 0x5eed_0003;
/// Of each family, in portions: nothing is lost in a socket that is too full.
const PORTIONS: u64 = 60;
const PORTION: u64 = 25;

fn frame(from: &Container, to: &Container, family: Family, port: u16, mark: u64, length: usize) -> Vec<u8> {
    let mut payload = mark.to_be_bytes().to_vec();
    payload.resize(8 + length, mark as u8);
    Packet::ip(from.ip(family), to.ip(family)).udp(40000, port).payload(&payload).eth(from.mac, from.host_mac).build()
}

/// Port, mark and the rest of a UDP frame that came from `from`; other frames are none.
fn received(frame: &[u8], from: &Container, family: Family) -> Option<(u16, u64, Vec<u8>)> {
    let (header, proto, source) = match (family, frame.get(12..14)?) {
        (Family::V4, [8, 0]) => (20, frame.get(23)?, frame.get(26..30)? == from.ipv4?.octets()),
        (Family::V6, [0x86, 0xdd]) => (40, frame.get(20)?, frame.get(22..38)? == from.ipv6.octets()),
        _ => return None,
    };
    let udp = frame.get(14 + header..).filter(|_| *proto == 17 && source)?;
    let mark = u64::from_be_bytes(udp.get(8..16)?.try_into().ok()?);
    Some((u16::from_be_bytes([udp[2], udp[3]]), mark, udp[16..].to_vec()))
}

#[test]
fn random_frames_do_what_policy_says() {
    let node = Node::start(NodeOptions { args: vec!["--mtu".into(), "9000".into()], ..NodeOptions::default() }).expect("node");
    let [server, client, stranger] = ["server", "client", "stranger"].map(|n| node.add(n, &[&format!("app={n}")]).expect(n));
    let rule = "  endpointSelector: {matchLabels: {app: server}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n    toPorts: \
                [{ports: [{port: '53', protocol: UDP}]}]\n";
    node.import(&policy("server", rule)).expect("policy");
    let inbox = server.packet_socket().expect("packet socket");
    let outbox = [&client, &stranger].map(|c| c.packet_socket().expect("packet socket"));
    let mut random = StdRng::seed_from_u64(SEED);
    let mut buffer = vec![0; 65_536];
    for family in Family::BOTH {
        let mut mark = 0;
        for portion in 0..PORTIONS {
            let mut wanted = BTreeSet::new();
            for _ in 0..PORTION {
                mark += 1;
                let who = random.random_range(0..2);
                let port = [53, 53, 54][random.random_range(0..3)];
                // More than a page is kept in pieces.
                let length =
                    [random.random_range(0..60), random.random_range(0..1400), random.random_range(4096..8900)][random.random_range(0..3)];
                let mut bytes = frame([&client, &stranger][who], &server, family, port, mark, length);
                match random.random_range(0..6) {
                    0 => bytes.truncate(random.random_range(14..bytes.len())),
                    1 => {
                        let at = random.random_range(0..bytes.len().min(62));
                        bytes[at] ^= 1 << random.random_range(0..8);
                    }
                    _ if who == 0 && port == 53 => drop(wanted.insert((mark, length))),
                    _ => {}
                }
                // Some the kernel itself refuses to send.
                let _ = outbox[who].send(&bytes);
            }
            mark += 1;
            let last = mark;
            outbox[0].send(&frame(&client, &server, family, 53, last, 0)).expect("send");
            let told = || format!("seed {SEED:#x}, {family:?}, portion {portion}");
            loop {
                let n = (&inbox).read(&mut buffer).unwrap_or_else(|e| panic!("{}: {e}; still missing {wanted:?}", told()));
                assert_eq!(received(&buffer[..n], &stranger, family), None, "{}: a stranger's packet", told());
                let Some((port, seen, rest)) = received(&buffer[..n], &client, family) else { continue };
                if seen == last {
                    break;
                }
                // Of a damaged packet it is enough that it goes where it may.
                assert_eq!(port, 53, "{}: a packet to a port that is closed", told());
                if wanted.remove(&(seen, rest.len())) {
                    assert!(rest.iter().all(|b| *b == seen as u8), "{}: bytes of packet {seen} changed", told());
                }
            }
            assert!(wanted.is_empty(), "{}: lost {wanted:?}", told());
        }
    }
    assert!(node.metric("Policy denied").expect("metrics") > 100);
    assert!(node.metric("Invalid packet").expect("metrics") > 10);
}
