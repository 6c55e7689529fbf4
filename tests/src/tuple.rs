// SPDX-License-Identifier: Apache-2.0
//! Keys of the flow tables, made from packets.

use crate::packet::{L4, Net, Packet};
use crate::who::words;
use crate::wire::*;
use pilus_model::abi::{Be16, FlowKey4, FlowKey6};
use std::net::IpAddr;

/// Addresses and ports of a packet as the flow tables see them.
pub struct Tuple {
    /// The sender's address.
    pub src: IpAddr,
    dst: IpAddr,
    sport: u16,
    dport: u16,
    proto: u8,
}

/// Both ends of a flow as its key has them: sorted by address and port as they stand in memory, in words of 32 bits (IPv4) or 64.
pub fn sorted(mut ends: [(IpAddr, u16); 2]) -> [(IpAddr, Be16); 2] {
    let word = |bytes: &[u8]| match *bytes {
        [a, b, c, d] => u64::from(u32::from_ne_bytes([a, b, c, d])),
        _ => u64::from_ne_bytes(bytes.try_into().expect("eight")),
    };
    ends.sort_by_key(|(ip, port)| {
        let words: Vec<_> = octets(*ip).chunks_exact(if ip.is_ipv4() { 4 } else { 8 }).map(word).collect();
        (words, port.to_be())
    });
    ends.map(|(ip, port)| (ip, Be16::new(port)))
}

impl Tuple {
    /// Panics on a packet that is no IP.
    pub fn of(packet: &Packet) -> Tuple {
        let (src, dst): (IpAddr, IpAddr) = match &packet.net {
            Net::V4(ip) => (ip.src.into(), ip.dst.into()),
            Net::V6(ip) => (ip.src.into(), ip.dst.into()),
            _ => panic!("no IP packet"),
        };
        let (proto, sport, dport) = match &packet.l4 {
            L4::Tcp { sport, dport, .. } => (TCP, *sport, *dport),
            L4::Udp { sport, dport, .. } => (UDP, *sport, *dport),
            L4::Sctp { sport, dport, .. } => (SCTP, *sport, *dport),
            L4::Icmp { kind, rest, .. } => {
                let id = u16::from_be_bytes([rest[0], rest[1]]);
                let echo = matches!((src.is_ipv4(), kind), (true, 0 | 8) | (false, 128 | 129));
                let (sport, dport) = if echo { (id, id) } else { (0, 0x100 | u16::from(*kind)) };
                (if src.is_ipv4() { ICMP } else { ICMPV6 }, sport, dport)
            }
            L4::Raw { proto, .. } => (*proto, 0, 0),
            L4::None => (NO_NEXT, 0, 0),
        };
        Tuple { src, dst, sport, dport, proto }
    }

    fn sorted(&self) -> [(IpAddr, Be16); 2] {
        sorted([(self.src, self.sport), (self.dst, self.dport)])
    }

    pub fn key4(&self) -> FlowKey4 {
        let [(a, ap), (b, bp)] = self.sorted();
        FlowKey4 { a: words(a)[0], b: words(b)[0], ap, bp, proto: self.proto, ..FlowKey4::default() }
    }

    pub fn key6(&self) -> FlowKey6 {
        let [(a, ap), (b, bp)] = self.sorted();
        FlowKey6 { a: words(a), b: words(b), ap, bp, proto: self.proto, ..FlowKey6::default() }
    }
}
