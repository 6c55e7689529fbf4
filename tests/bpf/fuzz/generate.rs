// SPDX-License-Identifier: Apache-2.0
//! Random packets: mostly good ones between a few ends, so that flows meet again, and damage on top.

use pilus_tests::packet::{Ext, L4, Packet};
use pilus_tests::wire::*;
use pilus_tests::world::Who::{self, A, B, C, Host, World as Outside};
use pilus_tests::world::{Family, World};
use std::net::{IpAddr, Ipv6Addr};

/// Two who talk all through an episode.
#[derive(Clone, Copy, Debug)]
struct Talk {
    family: Family,
    ends: [Who; 2],
    proto: u8,
    port: u16,
}

/// xorshift64*: the same for the same seed.
pub struct Random(u64, Vec<Talk>);

impl Random {
    pub fn new(seed: u64, part: u64) -> Self {
        let mut random = Self((seed ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1, Vec::new());
        for _ in 0..8 {
            random.next();
        }
        for _ in 0..4 {
            let near = random.of(&Who::CONTAINERS);
            let far = random.of(&Who::ALL);
            if near != far {
                let (proto, port) = random.of(&[(TCP, 80), (TCP, 80), (TCP, 8080), (UDP, 53), (UDP, 5005), (SCTP, 99), (ICMP, 1)]);
                let ends = if random.once_in(2) { [near, far] } else { [far, near] };
                let family = random.of(Family::BOTH);
                random.1.push(Talk { family, ends, proto, port });
            }
        }
        random
    }

    /// What one of both ends says.
    fn said(&mut self, talk: Talk, back: bool) -> Packet {
        let f = talk.family;
        let [near, far] = talk.ends;
        let (from, to) = if back { (far, near) } else { (near, far) };
        let ports = if back { (talk.port, 40000) } else { (40000, talk.port) };
        let (n, ip) = (self.below(40), f.ip(from, to));
        match talk.proto {
            TCP => {
                let opens = if back { SYN | ACK } else { SYN };
                let flags = match self.below(16) {
                    0 | 1 => opens,
                    2 => self.flags(),
                    _ => ACK,
                };
                ip.tcp(ports.0, ports.1, flags)
            }
            UDP => ip.udp(ports.0, ports.1),
            SCTP => ip.sctp(ports.0, ports.1),
            _ => ip.echo(back, talk.port),
        }
        .filled(n)
    }

    /// A packet of a talk and who sends it, which is not always who says it.
    fn talked(&mut self) -> Option<(Who, Packet)> {
        let all = self.1.clone();
        let talk = *all.get(self.below(all.len().max(1)))?;
        let back = self.once_in(2);
        let [near, far] = talk.ends;
        let (from, to) = if back { (far, near) } else { (near, far) };
        let mut p = self.said(talk, back);
        if self.once_in(8) {
            // Somebody's error about it, to its sender or to another.
            let kind = if talk.family == Family::V4 { self.of(&[3, 4, 11]) } else { self.of(&[1, 2, 3]) };
            let speaker = if self.once_in(3) { self.of(&Who::ALL) } else { to };
            let receiver = if self.once_in(3) { self.of(&Who::ALL) } else { from };
            p = talk.family.ip(speaker, receiver).icmp(kind, 0, [0, 0, 5, 0]).payload(&p.quote());
            return Some((speaker, p));
        }
        if self.once_in(6) {
            p = self.extras(talk.family, p);
        }
        Some((if self.once_in(10) { self.of(&Who::ALL) } else { from }, p))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Once in so many times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub fn damage(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            // Mostly in the headers.
            let span = if self.below(4) > 0 { frame.len().min(74) } else { frame.len() };
            let at = self.below(span);
            match self.below(6) {
                0 => frame[at] = self.next() as u8,
                1 => frame[at] ^= 1 << self.below(8),
                2 => frame[at] = [0, 1, 6, 0x7f, 0x80, 0xff][self.below(6)],
                3 => frame.truncate(at.max(ETH)),
                4 => frame.resize(frame.len() + self.below(64), self.0 as u8),
                _ => {
                    let (from, len) = (self.below(frame.len()), self.below(16));
                    let copied: Vec<u8> = frame[from..(from + len).min(frame.len())].to_vec();
                    let room = copied.len().min(frame.len() - at);
                    frame[at..at + room].copy_from_slice(&copied[..room]);
                }
            }
        }
        if !World::testable(frame) {
            frame.resize(World::shortest([frame[12], frame[13]]), 0);
        }
    }

    fn flags(&mut self) -> u8 {
        match self.below(8) {
            0 | 1 => SYN,
            2 => SYN | ACK,
            3 | 4 => ACK,
            5 => ACK | self.of(&[FIN, RST]),
            _ => self.next() as u8,
        }
    }

    fn stranger(&mut self, f: Family) -> IpAddr {
        let all: &[&str] = match f {
            Family::V4 => {
                &["198.51.100.8", "203.0.113.1", "169.254.7.7", "127.0.0.1", "0.0.0.0", "224.0.0.5", "255.255.255.255", "10.7.0.99"]
            }
            Family::V6 => &["2001:db8::8", "2001:db8:1::1", "fe80::77", "::1", "::", "ff02::1", "ff02::fb", "fd00:7::99"],
        };
        self.of(all).parse().expect("an address")
    }

    fn address(&mut self, who: Who, f: Family, unlikely: usize) -> IpAddr {
        if !self.once_in(unlikely) {
            return who.ip(f);
        }
        match self.below(4) {
            0 if f == Family::V6 => who.link_local().into(),
            0 => GATEWAY4.into(),
            1 => self.of(&Who::ALL).ip(f),
            _ => self.stranger(f),
        }
    }

    /// A packet of a flow between the two, or of one of few others.
    fn flow(&mut self, f: Family, from: Who, to: Who) -> Packet {
        let ip = Packet::ip(self.address(from, f, 25), self.address(to, f, 25));
        // Answers turn the ports around.
        let (near, far) = (40000 + self.of(&[0, 0, 0, 1, 2]), self.of(&[80, 80, 80, 53, 53, 99, 8080, 5000, 5005, 7]));
        let (sport, dport) = if self.once_in(2) { (near, far) } else { (far, near) };
        let n = self.below(40);
        match self.below(10) {
            0..=3 => {
                let flags = self.flags();
                let options = if self.once_in(6) { vec![1; 4 * self.below(11)] } else { Vec::new() };
                ip.tcp(sport, dport, flags).filled(n).with(|p| {
                    if let L4::Tcp { options: o, .. } = &mut p.l4 {
                        *o = options;
                    }
                })
            }
            4 | 5 => ip.udp(sport, dport).filled(n),
            6 => ip.sctp(sport, dport).filled(n),
            7 => ip.echo(self.once_in(2), 1 + self.below(2) as u16).filled(n),
            8 => {
                let kind = if f == Family::V4 { self.of(&[8, 13, 14, 17, 30, 255]) } else { self.of(&[128, 139, 140, 144, 200, 127, 5]) };
                ip.icmp(kind, self.of(&[0, 0, 1]), [0; 4]).filled(n)
            }
            _ => {
                let (proto, bytes) = (self.of(&[GRE, 2, 50, 1, 58, 89, 255]), vec![self.next() as u8; self.below(24)]);
                ip.raw_l4(proto, &bytes)
            }
        }
    }

    fn extras(&mut self, f: Family, mut p: Packet) -> Packet {
        if self.once_in(12) {
            p = p.hops(self.of(&[0, 1, 2, 255]));
        }
        if self.once_in(40) {
            p = p.filled(1300 + self.below(200));
        }
        let (id, offset, more) = (self.below(3) as u16, self.of(&[0, 0, 1, 2, 3, 100]), self.once_in(2));
        if f == Family::V4 {
            let whole = self.once_in(3);
            let options = if self.once_in(10) { vec![1; 4 * self.below(11)] } else { Vec::new() };
            let cut = self.once_in(8);
            p.v4(|ip| {
                ip.options = options;
                ip.id = id;
                ip.frag = match cut {
                    true => offset | if more { 0x2000 } else { 0 },
                    false if whole => 0x4000,
                    false => 0,
                };
            });
            return p;
        }
        let mut ext = Vec::new();
        while self.once_in(6) && ext.len() < 8 {
            ext.push(match self.below(5) {
                0 => Ext::Auth,
                n => Ext::options([HOPOPTS, DSTOPTS, ROUTING, DSTOPTS][n - 1], self.below(3)),
            });
        }
        if self.once_in(8) {
            ext.push(Ext::Fragment { offset, more, id: id.into() });
        }
        p.ext(&ext)
    }

    /// An error about a packet between the two, told to its sender.
    fn error(&mut self, f: Family, from: Who, to: Who) -> Packet {
        let about = self.flow(f, to, from);
        let about = self.extras(f, about);
        let mut quote = about.quote();
        if self.once_in(4) {
            quote.truncate(self.below(quote.len().max(1)));
        }
        let kind = if f == Family::V4 { self.of(&[3, 4, 5, 11, 12]) } else { self.of(&[1, 2, 3, 4]) };
        let speaker = self.address(from, f, 10);
        Packet::ip(speaker, self.address(to, f, 20)).icmp(kind, self.of(&[0, 1, 4]), [0, 0, 5, 0]).payload(&quote)
    }

    fn neighbour(&mut self, from: Who, to: Who) -> Packet {
        let six = |ip: IpAddr| if let IpAddr::V6(ip) = ip { ip } else { Ipv6Addr::UNSPECIFIED };
        let own = six(self.address(from, Family::V6, 4));
        let target = [GATEWAY6, own, from.link_local(), to.ip6(), Host.ip6()][self.below(5)];
        let receiver = [solicited_node(target), GATEWAY6, to.ip6(), Host.ip6(), six(self.stranger(Family::V6))][self.below(5)];
        let mut p = Packet::solicit(from.mac(), if self.once_in(4) { Ipv6Addr::UNSPECIFIED } else { own }, receiver, target);
        if from == Host {
            p.eth_src = Host.host_mac();
        }
        if self.once_in(2) {
            let (kind, code) = (self.of(&[130, 131, 132, 133, 134, 135, 136, 136, 137, 143]), self.of(&[0, 0, 0, 1]));
            if let L4::Icmp { kind: k, code: c, .. } = &mut p.l4 {
                (*k, *c) = (kind, code);
            }
        }
        if self.once_in(6) {
            p = p.hops(self.of(&[1, 64, 254]));
        }
        if self.once_in(10) { p.ext(&[self.of_ext()]) } else { p }
    }

    fn of_ext(&mut self) -> Ext {
        if self.once_in(2) { Ext::options(HOPOPTS, 0) } else { Ext::Fragment { offset: 0, more: false, id: 1 } }
    }

    fn arp(&mut self, from: Who) -> Packet {
        let mut p = Packet::arp(from.mac(), from.ip4(), self.of(&[GATEWAY4, GATEWAY4, B.ip4(), from.ip4()]));
        if let pilus_tests::packet::Net::Arp(a) = &mut p.net {
            match self.below(8) {
                0 => a.op = 2,
                1 => a.spa = B.ip4(),
                2 => a.spa = std::net::Ipv4Addr::UNSPECIFIED,
                3 => a.sha[5] ^= 1,
                4 => a.htype = 6,
                _ => {}
            }
        }
        p
    }

    /// Who sends a frame, and the frame.
    pub fn frame(&mut self) -> (Who, Vec<u8>) {
        if !self.once_in(3)
            && let Some((from, p)) = self.talked()
        {
            let mut frame = World::frame(from, p);
            if self.once_in(30) {
                self.damage(&mut frame);
            }
            return (from, frame);
        }
        let f = self.of(Family::BOTH);
        let from = self.of(&[A, A, B, B, C, Host, Outside]);
        let to = if from.is_container() { self.of(&[A, B, C, Host, Outside]) } else { self.of(&[A, B, C]) };
        let mut p = match self.below(20) {
            0 => self.neighbour(from, to),
            1 => self.arp(from),
            2..=4 => self.error(f, from, to),
            5 => {
                let own = from.ip(f);
                let gateway = if f == Family::V4 { GATEWAY4.into() } else { GATEWAY6.into() };
                let p = Packet::ip(own, gateway);
                if self.once_in(2) { p.echo(self.once_in(4), 3) } else { p.udp(1, 53) }
            }
            6 if self.once_in(8) => Packet::raw(self.of(&[0x88cc, 0x0842, 0x0600]), &[7; 40]),
            _ => {
                // Now and then in another's name, all of it.
                let claimed = if self.once_in(12) { self.of(&Who::ALL) } else { from };
                self.flow(f, claimed, to)
            }
        };
        if matches!(p.net, pilus_tests::packet::Net::V4(_) | pilus_tests::packet::Net::V6(_)) && !self.once_in(3) && p.eth_src == [0; 6] {
            p = self.extras(f, p);
        }
        if self.once_in(60) {
            p.eth_src = self.of(&[A.mac(), B.mac(), [2; 6]]);
        }
        if self.once_in(60) {
            p.eth_dst = self.of(&[BROADCAST, B.mac(), [0x33, 0x33, 0, 0, 0, 1], [2; 6]]);
        }
        if self.once_in(200) {
            p.vlan = Some(7);
        }
        if self.once_in(12) {
            p.trailer = vec![0; self.below(30)];
        }
        let mut frame = World::frame(from, p);
        if self.once_in(5) {
            self.damage(&mut frame);
        }
        if !World::testable(&frame) {
            frame.resize(World::shortest([frame[12], frame[13]]), 0);
        }
        (from, frame)
    }
}
