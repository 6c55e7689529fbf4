// SPDX-License-Identifier: Apache-2.0
//! Whole frames at a container's interface, whose own stack is silent.

use pilus_e2e::Container;
use pilus_tests::packet::Packet;
use pilus_tests::wire::{ETH, ICMPV6};
use socket2::Socket;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::process::{Command, Stdio};

/// Loads rules in the calling thread's namespace.
#[expect(clippy::disallowed_methods, reason = "the kernel's own translation is set up by its own tool")]
pub fn nft(rules: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    child.stdin.take().expect("stdin").write_all(rules.as_bytes()).expect("rules");
    assert!(child.wait().expect("nft").success(), "nft refuses:\n{rules}");
}

/// A container's own stack says nothing to what comes.
pub fn silence(at: &Container) {
    at.run(|| {
        nft("table inet quiet {\n chain out {\n  type filter hook output priority 0\n  icmpv6 type { nd-neighbor-solicit, \
             nd-neighbor-advert } accept\n  drop\n }\n}\n");
    });
}

/// A raw view of one side: frames that come to it.
pub struct Wire<'a> {
    at: &'a Container,
    socket: Socket,
}

impl<'a> Wire<'a> {
    pub fn new(at: &'a Container) -> Self {
        silence(at);
        Self { socket: at.packet_socket().expect("packet socket"), at }
    }

    pub fn send(&self, packet: &Packet) {
        let to = if packet.eth_dst[0] & 1 == 1 { packet.eth_dst } else { self.at.host_mac };
        let frame = packet.clone().eth(self.at.mac, to).build();
        self.socket.send(&frame).expect("send");
    }

    /// The next IP packet that comes in, but of neighbours about themselves: its protocol, its sender, and itself.
    fn next(&self, what: &str) -> (u8, IpAddr, Vec<u8>) {
        loop {
            let mut buffer = [0; 4096];
            let n = (&self.socket).read(&mut buffer).unwrap_or_else(|e| panic!("{what}: {e}"));
            let Some(ip) = buffer[..n].get(ETH..) else { continue };
            let (source, proto) = match (ip.first().map(|b| b >> 4), ip.len()) {
                (Some(4), 20..) => (IpAddr::from(<[u8; 4]>::try_from(&ip[12..16]).expect("four")), ip[9]),
                (Some(6), 40..) => (IpAddr::from(<[u8; 16]>::try_from(&ip[8..24]).expect("sixteen")), ip[6]),
                _ => continue,
            };
            let neighbours = proto == ICMPV6 && ip.get(40).is_some_and(|kind| (133..=137).contains(kind));
            if buffer[..6] == self.at.mac && !neighbours {
                return (proto, source, ip.to_vec());
            }
        }
    }

    /// The next packet of this protocol that comes in from there, from the IP header on.
    pub fn receive(&self, what: &str, proto: u8, from: IpAddr) -> Vec<u8> {
        loop {
            match self.next(what) {
                (found, source, ip) if found == proto && source == from => return ip,
                _ => {}
            }
        }
    }

    /// What comes in before the packet that `ends`, from the IP header on.
    pub fn until(&self, what: &str, ends: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        std::iter::repeat_with(|| self.next(what).2).take_while(|ip| !ends(ip)).collect()
    }
}
