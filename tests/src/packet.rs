// SPDX-License-Identifier: Apache-2.0
//! Packets from their parts. Lengths and checksums are right unless a test says otherwise.

use crate::wire::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A frame to be. Every field may be changed before [`Packet::build`].
#[derive(Clone, Debug)]
pub struct Packet {
    pub eth_dst: Mac,
    pub eth_src: Mac,
    /// None: that of `net`.
    pub ether_type: Option<u16>,
    /// An 802.1Q tag.
    pub vlan: Option<u16>,
    pub net: Net,
    pub l4: L4,
    pub payload: Vec<u8>,
    /// Bytes behind the IP packet, as Ethernet pads short frames.
    pub trailer: Vec<u8>,
    /// Cut or filled after all else to this length.
    pub cut: Option<usize>,
}

#[derive(Clone, Debug)]
pub enum Net {
    Arp(Arp),
    V4(V4),
    V6(V6),
    /// Nothing between Ethernet and `l4`.
    None,
}

#[derive(Clone, Debug)]
pub struct Arp {
    pub op: u16,
    pub htype: u16,
    pub hlen: u8,
    pub sha: Mac,
    pub spa: Ipv4Addr,
    pub tha: Mac,
    pub tpa: Ipv4Addr,
}

/// IPv4 header; None fields are computed.
#[derive(Clone, Debug)]
pub struct V4 {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    /// Flags and offset word.
    pub frag: u16,
    /// Padded with zero to four bytes.
    pub options: Vec<u8>,
    pub version: u8,
    pub ihl: Option<u8>,
    pub total_len: Option<u16>,
    pub proto: Option<u8>,
    pub checksum: Option<u16>,
}

/// IPv6 header; None fields are computed.
#[derive(Clone, Debug)]
pub struct V6 {
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    pub hops: u8,
    /// Traffic class and flow label.
    pub flow: u32,
    pub ext: Vec<Ext>,
    pub version: u8,
    pub payload_len: Option<u16>,
    /// Overrides the first next header.
    pub next: Option<u8>,
}

/// An extension header: its kind and the bytes behind next header (and length, where it has one).
#[derive(Clone, Debug)]
pub enum Ext {
    /// Hop-by-hop, routing, destination options: `6 + 8 n` bytes of body; `len` overrides n.
    Options {
        kind: u8,
        body: Vec<u8>,
        len: Option<u8>,
    },
    Fragment {
        offset: u16,
        more: bool,
        id: u32,
    },
    /// Authentication header with 12 bytes behind its first word.
    Auth,
}

impl Ext {
    /// Hop-by-hop, routing or destination options filled with padding, `8 * (1 + more)` bytes long.
    pub fn options(kind: u8, more: usize) -> Ext {
        let len = 4 + 8 * more;
        Ext::Options { kind, body: [vec![1, len as u8], vec![0; len]].concat(), len: None }
    }

    fn kind(&self) -> u8 {
        match self {
            Ext::Options { kind, .. } => *kind,
            Ext::Fragment { .. } => FRAGMENT,
            Ext::Auth => AH,
        }
    }

    fn bytes(&self, next: u8) -> Vec<u8> {
        match self {
            Ext::Options { body, len, .. } => [vec![next, len.unwrap_or((body.len().saturating_sub(6) / 8) as u8)], body.clone()].concat(),
            Ext::Fragment { offset, more, id } => {
                let word = offset << 3 | u16::from(*more);
                [vec![next, 0], word.to_be_bytes().to_vec(), id.to_be_bytes().to_vec()].concat()
            }
            Ext::Auth => [vec![next, 2, 0, 0], vec![7; 12]].concat(),
        }
    }
}

/// What IP carries; None checksums are computed.
#[derive(Clone, Debug)]
pub enum L4 {
    None,
    Tcp { sport: u16, dport: u16, seq: u32, ack: u32, flags: u8, doff: Option<u8>, options: Vec<u8>, checksum: Option<u16> },
    Udp { sport: u16, dport: u16, len: Option<u16>, checksum: Option<u16> },
    Icmp { kind: u8, code: u8, rest: [u8; 4], checksum: Option<u16> },
    Sctp { sport: u16, dport: u16, tag: u32 },
    Raw { proto: u8, bytes: Vec<u8> },
}

impl Packet {
    fn with_net(net: Net) -> Packet {
        let none = [0; 6];
        let (l4, payload, trailer) = (L4::None, Vec::new(), Vec::new());
        Packet { eth_dst: none, eth_src: none, ether_type: None, vlan: None, net, l4, payload, trailer, cut: None }
    }

    /// An IP packet; both addresses are of one family. Groups get their Ethernet address.
    pub fn ip(src: IpAddr, dst: IpAddr) -> Packet {
        let mut p = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Self::with_net(Net::V4(V4 {
                src,
                dst,
                ttl: 64,
                tos: 0,
                id: 0x1234,
                frag: 0x4000,
                options: Vec::new(),
                version: 4,
                ihl: None,
                total_len: None,
                proto: None,
                checksum: None,
            })),
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                Self::with_net(Net::V6(V6 { src, dst, hops: 64, flow: 0, ext: Vec::new(), version: 6, payload_len: None, next: None }))
            }
            _ => panic!("{src} and {dst} are of two families"),
        };
        if dst.is_multicast() || dst == IpAddr::V4(Ipv4Addr::BROADCAST) {
            p.eth_dst = group_mac(dst);
        }
        p
    }

    /// An ARP request, to everybody.
    pub fn arp(sha: Mac, spa: Ipv4Addr, tpa: Ipv4Addr) -> Packet {
        let arp = Arp { op: 1, htype: 1, hlen: 6, sha, spa, tha: [0; 6], tpa };
        Self::with_net(Net::Arp(arp)).eth(sha, BROADCAST)
    }

    /// A frame that is no IP.
    pub fn raw(ether_type: u16, payload: &[u8]) -> Packet {
        let mut p = Self::with_net(Net::None).payload(payload);
        p.ether_type = Some(ether_type);
        p
    }

    pub fn eth(mut self, src: Mac, dst: Mac) -> Packet {
        self.eth_src = src;
        self.eth_dst = dst;
        self
    }

    pub fn tcp(mut self, sport: u16, dport: u16, flags: u8) -> Packet {
        self.l4 = L4::Tcp { sport, dport, seq: 1000, ack: 0, flags, doff: None, options: Vec::new(), checksum: None };
        self
    }

    pub fn udp(mut self, sport: u16, dport: u16) -> Packet {
        self.l4 = L4::Udp { sport, dport, len: None, checksum: None };
        self
    }

    pub fn sctp(mut self, sport: u16, dport: u16) -> Packet {
        self.l4 = L4::Sctp { sport, dport, tag: 0x11223344 };
        self
    }

    pub fn icmp(mut self, kind: u8, code: u8, rest: [u8; 4]) -> Packet {
        self.l4 = L4::Icmp { kind, code, rest, checksum: None };
        self
    }

    /// Echo request or reply of the family.
    pub fn echo(self, reply: bool, id: u16) -> Packet {
        let kind = match (&self.net, reply) {
            (Net::V6(_), false) => 128,
            (Net::V6(_), true) => 129,
            (_, false) => 8,
            (_, true) => 0,
        };
        let [a, b] = id.to_be_bytes();
        self.icmp(kind, 0, [a, b, 0, 1])
    }

    /// Neighbour solicitation, with the source link-layer option unless `src` is unspecified.
    pub fn solicit(mac: Mac, src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr) -> Packet {
        let option = if src.is_unspecified() { Vec::new() } else { [vec![1, 1], mac.to_vec()].concat() };
        let mut p = Self::ip(src.into(), dst.into()).hops(255).icmp(135, 0, [0; 4]);
        p.payload = [target.octets().to_vec(), option].concat();
        p.eth_src = mac;
        p
    }

    pub fn raw_l4(mut self, proto: u8, bytes: &[u8]) -> Packet {
        self.l4 = L4::Raw { proto, bytes: bytes.to_vec() };
        self
    }

    pub fn payload(mut self, bytes: &[u8]) -> Packet {
        self.payload = bytes.to_vec();
        self
    }

    /// `n` bytes of payload.
    pub fn filled(mut self, n: usize) -> Packet {
        self.payload = (0..n).map(|i| i as u8).collect();
        self
    }

    pub fn hops(mut self, n: u8) -> Packet {
        match &mut self.net {
            Net::V4(ip) => ip.ttl = n,
            Net::V6(ip) => ip.hops = n,
            _ => {}
        }
        self
    }

    pub fn ext(mut self, ext: &[Ext]) -> Packet {
        self.v6(|ip| ip.ext = ext.to_vec());
        self
    }

    pub fn with(mut self, f: impl FnOnce(&mut Packet)) -> Packet {
        f(&mut self);
        self
    }

    pub fn v4(&mut self, f: impl FnOnce(&mut V4)) {
        if let Net::V4(ip) = &mut self.net {
            f(ip);
        }
    }

    pub fn v6(&mut self, f: impl FnOnce(&mut V6)) {
        if let Net::V6(ip) = &mut self.net {
            f(ip);
        }
    }

    /// Cut to `n` bytes, or filled up with zero.
    pub fn cut(mut self, n: usize) -> Packet {
        self.cut = Some(n);
        self
    }

    /// The bytes from the IP header on: what an ICMP error quotes.
    pub fn quote(&self) -> Vec<u8> {
        self.build()[ETH..].to_vec()
    }

    fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        match &self.net {
            Net::V4(ip) => Some((ip.src.into(), ip.dst.into())),
            Net::V6(ip) => Some((ip.src.into(), ip.dst.into())),
            _ => None,
        }
    }

    fn proto(&self) -> u8 {
        match &self.l4 {
            L4::None => NO_NEXT,
            L4::Tcp { .. } => TCP,
            L4::Udp { .. } => UDP,
            L4::Icmp { .. } => {
                if matches!(self.net, Net::V6(_)) {
                    ICMPV6
                } else {
                    ICMP
                }
            }
            L4::Sctp { .. } => SCTP,
            L4::Raw { proto, .. } => *proto,
        }
    }

    fn l4_bytes(&self) -> Vec<u8> {
        let be = u16::to_be_bytes;
        let (mut bytes, at, wanted) = match &self.l4 {
            L4::None => (Vec::new(), 0, Some(0)),
            L4::Raw { bytes, .. } => (bytes.clone(), 0, Some(0)),
            L4::Tcp { sport, dport, seq, ack, flags, doff, options, checksum } => {
                let doff = doff.unwrap_or(5 + options.len().div_ceil(4) as u8);
                let mut b = [be(*sport), be(*dport)].concat();
                b.extend(seq.to_be_bytes());
                b.extend(ack.to_be_bytes());
                b.extend([doff << 4, *flags, 0x20, 0, 0, 0, 0, 0]);
                b.extend(options);
                b.resize(b.len().next_multiple_of(4), 0);
                (b, 16, *checksum)
            }
            L4::Udp { sport, dport, len, checksum } => {
                let len = len.unwrap_or((8 + self.payload.len()) as u16);
                ([be(*sport), be(*dport), be(len), [0, 0]].concat(), 6, *checksum)
            }
            L4::Icmp { kind, code, rest, checksum } => ([vec![*kind, *code, 0, 0], rest.to_vec()].concat(), 2, *checksum),
            L4::Sctp { sport, dport, tag } => {
                let mut b = [be(*sport), be(*dport)].concat();
                b.extend(tag.to_be_bytes());
                b.extend([0; 4]);
                (b, 0, Some(0))
            }
        };
        bytes.extend(&self.payload);
        if let L4::Sctp { .. } = self.l4 {
            let crc = crc32c(&bytes);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        if at > 0 {
            let over = match self.addresses() {
                Some((src, dst)) if self.proto() != ICMP => pseudo(src, dst, self.proto(), bytes.len()),
                _ => 0,
            };
            let check = wanted.unwrap_or(!fold(over + sum(&bytes)));
            bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
        }
        bytes
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let l4 = self.l4_bytes();
        let (ether_type, net) = match &self.net {
            Net::None => (0, Vec::new()),
            Net::Arp(a) => (ETH_ARP, a.bytes()),
            Net::V4(ip) => (ETH_IP, ip.bytes(self.proto(), l4.len())),
            Net::V6(ip) => (ETH_IPV6, ip.bytes(self.proto(), l4.len())),
        };
        let mut out = [self.eth_dst, self.eth_src].concat();
        if let Some(tag) = self.vlan {
            out.extend(ETH_VLAN.to_be_bytes());
            out.extend(tag.to_be_bytes());
        }
        out.extend(self.ether_type.unwrap_or(ether_type).to_be_bytes());
        out.extend(net);
        out.extend(l4);
        out.extend(&self.trailer);
        if let Some(n) = self.cut {
            out.resize(n, 0);
        }
        out
    }
}

impl Arp {
    fn bytes(&self) -> Vec<u8> {
        let mut b = self.htype.to_be_bytes().to_vec();
        b.extend([8, 0, self.hlen, 4]);
        b.extend(self.op.to_be_bytes());
        b.extend(self.sha);
        b.extend(self.spa.octets());
        b.extend(self.tha);
        b.extend(self.tpa.octets());
        b
    }
}

impl V4 {
    fn bytes(&self, proto: u8, carried: usize) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let header = 20 + options.len();
        let mut b = vec![self.version << 4 | self.ihl.unwrap_or((header / 4) as u8), self.tos];
        b.extend(self.total_len.unwrap_or((header + carried) as u16).to_be_bytes());
        b.extend(self.id.to_be_bytes());
        b.extend(self.frag.to_be_bytes());
        b.extend([self.ttl, self.proto.unwrap_or(proto), 0, 0]);
        b.extend(self.src.octets());
        b.extend(self.dst.octets());
        b.extend(options);
        let check = self.checksum.unwrap_or(!fold(sum(&b)));
        b[10..12].copy_from_slice(&check.to_be_bytes());
        b
    }
}

impl V6 {
    fn bytes(&self, proto: u8, carried: usize) -> Vec<u8> {
        let kinds: Vec<u8> = self.ext.iter().map(Ext::kind).chain([proto]).collect();
        let ext: Vec<u8> = self.ext.iter().zip(&kinds[1..]).flat_map(|(e, next)| e.bytes(*next)).collect();
        let mut b = (u32::from(self.version) << 28 | self.flow).to_be_bytes().to_vec();
        b.extend(self.payload_len.unwrap_or((ext.len() + carried) as u16).to_be_bytes());
        b.extend([self.next.unwrap_or(kinds[0]), self.hops]);
        b.extend(self.src.octets());
        b.extend(self.dst.octets());
        b.extend(ext);
        b
    }
}
