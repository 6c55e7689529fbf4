// SPDX-License-Identifier: Apache-2.0
//! Random frames as containers may write them: tiny ones, damaged ones, such as the kernel keeps in several pieces, and bundles of
//! segments.

use crate::support::policy;
use crate::wire::silence;
use pilus_e2e::{Container, Family, Node, NodeOptions, icmp};
use pilus_tests::packet::{L4, Packet};
use pilus_tests::wire::{ACK, TCP, fold, pseudo};
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

/// TCP segments of `size` bytes each that travel as one frame.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bundle {
    size: u16,
    mark: u64,
    length: usize,
}

const VIRTIO: usize = 10;

/// `flags, gso_type, hdr_len, gso_size, csum_start, csum_offset`, the machine's byte order from the third on.
fn virtio(family: Family, size: u16) -> [u8; VIRTIO] {
    let ip = if family == Family::V4 { 20 } else { 40 };
    let (kind, start) = (if family == Family::V4 { 1 } else { 4 }, 14 + ip);
    let mut header: [u8; VIRTIO] = [1, kind, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, value) in [(2, start + 20), (4, size), (6, start), (8, 16)] {
        header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    header
}

impl Bundle {
    fn frame(&self, from: &Container, to: &Container, family: Family, port: u16) -> Vec<u8> {
        let mut payload = self.mark.to_be_bytes().to_vec();
        payload.resize(self.length, self.mark as u8);
        let packet = Packet::ip(from.ip(family), to.ip(family)).tcp(40000, port, ACK).payload(&payload);
        // Who sends the segments completes it.
        let partial = fold(pseudo(from.ip(family), to.ip(family), TCP, 20 + self.length));
        let packet = packet.with(|p| {
            if let L4::Tcp { checksum, .. } = &mut p.l4 {
                *checksum = Some(partial);
            }
        });
        [virtio(family, self.size).to_vec(), packet.eth(from.mac, from.host_mac).build()].concat()
    }

    /// The bundle that arrived, with the port that it is for.
    fn read(frame: &[u8], from: &Container, family: Family) -> Option<(u16, Bundle)> {
        let (header, frame) = frame.split_at_checked(VIRTIO)?;
        let l4 = 14 + if family == Family::V4 { 20 } else { 40 };
        let sent = frame.get(6..12)? != from.mac && frame.len() > l4 + 28;
        let source =
            if family == Family::V4 { frame.get(26..30)? == from.ipv4?.octets() } else { frame.get(22..38)? == from.ipv6.octets() };
        if !sent || !source {
            return None;
        }
        let (tcp, payload) = (&frame[l4..], &frame[l4 + 20..]);
        let mark = u64::from_be_bytes(payload[..8].try_into().ok()?);
        assert!(payload[8..].iter().all(|b| *b == mark as u8), "bytes of {mark} changed");
        let size = u16::from_ne_bytes([header[4], header[5]]);
        assert_eq!(header[..2], virtio(family, size)[..2], "{mark} is of another kind");
        Some((u16::from_be_bytes([tcp[2], tcp[3]]), Bundle { size, mark, length: payload.len() }))
    }
}

/// What the sender leaves together arrives together, where policy lets it and each segment fits.
#[test]
fn bundles_of_segments_stay_whole() {
    const MTU: u16 = 1500;
    let node = Node::start(NodeOptions::default()).expect("node");
    let [server, client, stranger] = ["server", "client", "stranger"].map(|n| node.add(n, &[&format!("app={n}")]).expect(n));
    let rule = "  endpointSelector: {matchLabels: {app: server}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n    toPorts: \
                [{ports: [{port: '80', protocol: TCP}]}]\n";
    node.import(&policy("server", rule)).expect("policy");
    let socket = |at: &Container| {
        silence(at);
        let socket = at.packet_socket().expect("packet socket");
        icmp::with_virtio_headers(&socket).expect("virtio headers");
        socket
    };
    let (inbox, outbox) = (socket(&server), [&client, &stranger].map(socket));
    let mut random = StdRng::seed_from_u64(SEED);
    let mut buffer = vec![0; 1 << 17];
    let (mut whole, mut refused) = (0, 0);
    for family in Family::BOTH {
        let fits = MTU - if family == Family::V4 { 40 } else { 60 };
        for mark in 1..=PORTIONS * 5 {
            let (who, port) = (random.random_range(0..2), [80, 80, 81][random.random_range(0..3)]);
            // At times a segment by a byte too long.
            let size = [random.random_range(100..fits), fits, fits + 1][random.random_range(0..3)];
            let bundle = Bundle { size, mark, length: random.random_range(usize::from(size) + 1..60_000) };
            outbox[who].send(&bundle.frame([&client, &stranger][who], &server, family, port)).expect("send");
            let last = Bundle { size: fits, mark: u64::MAX, length: 2000 };
            outbox[0].send(&last.frame(&client, &server, family, 80)).expect("send");
            let mut arrived: Vec<(u16, Bundle)> = Vec::new();
            while arrived.last().is_none_or(|(_, b)| b.mark != last.mark) {
                let n = (&inbox).read(&mut buffer).unwrap_or_else(|e| panic!("{family:?} {bundle:?}: {e}; {arrived:?}"));
                assert_eq!(Bundle::read(&buffer[..n], &stranger, family), None, "a stranger's bundle");
                arrived.extend(Bundle::read(&buffer[..n], &client, family));
            }
            arrived.pop();
            if who == 0 && port == 80 && size <= fits {
                whole += 1;
                assert_eq!(arrived, [(80, bundle)], "{family:?}");
            } else {
                refused += 1;
                assert_eq!(arrived, [], "{family:?}: {bundle:?} to {port}");
            }
        }
    }
    assert!(whole > 50 && refused > 50, "{whole} {refused}");
}
