// SPDX-License-Identifier: Apache-2.0
//! What must happen to a frame, thought through once more: from its bytes, the policies as the model evaluates them, and the
//! flows so far. It knows no table of the kernel.

use pilus_model::abi::DropReason::{self, *};
use pilus_model::abi::FlowState::{self, Established, New, Related, Reopened, Reply};
use pilus_model::abi::{FLOW_DENY, FLOW_FIN_A, FLOW_FIN_B, FLOW_MIDSTREAM, FLOW_REPLY, FLOW_RST};
use pilus_model::identity::NumericIdentity;
use pilus_model::policy::{Direction, EndpointPolicy, Verdict, verdict};
use pilus_tests::wire::*;
use pilus_tests::world::Who;
use std::collections::{BTreeMap, btree_map::Entry};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// What a frame is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Drop(DropReason),
    /// `routed`: a hop less to live.
    Pass {
        to: Who,
        state: FlowState,
        routed: bool,
    },
    /// The gateway, or the node's router address, answers.
    Answer,
    /// None of ours.
    Leave,
}
use Expect::{Answer, Drop, Leave, Pass};

const MTU: usize = 1420;

/// One end: address, and port or what stands for it.
type End = (IpAddr, u16);
/// Protocol and both ends, the smaller first.
pub type Key = (u8, End, End);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowModel {
    /// The opener's end.
    pub opener: End,
    pub who: [Who; 2],
    /// As `FlowView` has them: A is the opener.
    pub flags: u16,
    pub packets: (u32, u32),
    /// Epochs of both when it was judged.
    epoch: (u32, u32),
}

/// A packet as far as it could be read.
#[derive(Clone, Copy, Debug)]
struct Read {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    sport: u16,
    dport: u16,
    /// What policy compares.
    port: u16,
    tcp: u8,
    kind: Kind,
    icmp: (u8, u8),
    hops: u8,
    l4: usize,
    frag: Frag,
    id: u32,
    whole: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flow,
    Error,
    Neighbour,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frag {
    None,
    First,
    Later,
}

/// Who brings a packet that was refused for having no flow, its key, and its sender's end.
pub type Refusal = (Who, Key, End);

/// A refusal that the fast path may repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// Epochs of sender and receiver.
    epoch: (u32, u32),
    /// Drops that were not reported since the last that was.
    untold: u32,
}

type FragKey = (IpAddr, IpAddr, u32, u8);

pub struct Model {
    /// Of A, B and C.
    pub policies: [Arc<EndpointPolicy>; 3],
    pub flows: BTreeMap<Key, FlowModel>,
    /// TCP packets that opened nothing and found no flow.
    pub without_flow: u64,
    /// Of the last packet, if it is one.
    pub refused: Option<Refusal>,
    known: BTreeMap<Refusal, Known>,
    frags: BTreeMap<FragKey, (u8, u16, u16, u16)>,
    epochs: [u32; 3],
}

fn be16(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*b.get(at)?, *b.get(at + 1)?]))
}

fn at4(b: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(b.get(at..at + 4)?).ok()?).into())
}

fn at6(b: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(b.get(at..at + 16)?).ok()?).into())
}

fn is_extension(kind: u8) -> bool {
    matches!(kind, HOPOPTS | ROUTING | DSTOPTS | AH | FRAGMENT)
}

/// ICMP of the packet's own family.
fn is_icmp(ip: IpAddr, proto: u8) -> bool {
    proto == if ip.is_ipv4() { ICMP } else { ICMPV6 }
}

fn is_error(ip: IpAddr, kind: u8) -> bool {
    if ip.is_ipv4() { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { matches!(kind, 1..=4) }
}

fn echo(ip: IpAddr) -> (u8, u8) {
    if ip.is_ipv4() { (8, 0) } else { (128, 129) }
}

fn is_echo(ip: IpAddr, kind: u8) -> bool {
    echo(ip).0 == kind || echo(ip).1 == kind
}

fn is_group(ip: IpAddr) -> bool {
    ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn gateway(ip: IpAddr) -> bool {
    ip == IpAddr::V4(GATEWAY4) || ip == IpAddr::V6(GATEWAY6)
}

/// Of no use as sender or receiver of what is routed.
fn unroutable(ip: IpAddr) -> bool {
    is_group(ip)
        || match ip {
            IpAddr::V4(a) => a.octets()[0] == 0 || a.is_loopback() || a.is_link_local(),
            IpAddr::V6(a) => a.is_unspecified() || a.is_loopback() || a.is_unicast_link_local(),
        }
}

fn who(ip: IpAddr) -> Who {
    Who::ALL.into_iter().find(|w| *w != Who::World && (ip == w.ip4() || ip == w.ip6())).unwrap_or(Who::World)
}

fn key(proto: u8, a: End, b: End) -> Key {
    if a < b { (proto, a, b) } else { (proto, b, a) }
}

impl Read {
    fn ends(&self) -> (End, End) {
        ((self.src, self.sport), (self.dst, self.dport))
    }

    fn key(&self) -> Key {
        key(self.proto, self.ends().0, self.ends().1)
    }

    fn frag_key(&self) -> FragKey {
        (self.src, self.dst, self.id, if self.src.is_ipv4() { self.proto } else { 0 })
    }

    /// The transport header, which begins at `l4`; the packet ends at `end`.
    fn transport(&mut self, f: &[u8], end: usize) -> Result<(), DropReason> {
        let l4 = self.l4;
        let room = |n: usize| if l4 + n > end || l4 + n > f.len() { Err(TruncatedL4) } else { Ok(()) };
        let ports = |at| (be16(f, at).unwrap_or(0), be16(f, at + 2).unwrap_or(0));
        match self.proto {
            TCP => {
                room(20)?;
                let words = usize::from(f[l4 + 12] >> 4);
                if words < 5 {
                    return Err(TruncatedL4);
                }
                room(words * 4)?;
                (self.sport, self.dport) = ports(l4);
                self.tcp = f[l4 + 13];
                self.port = self.dport;
            }
            UDP | SCTP => {
                room(if self.proto == UDP { 8 } else { 12 })?;
                (self.sport, self.dport) = ports(l4);
                self.port = self.dport;
            }
            proto if is_icmp(self.src, proto) => {
                room(8)?;
                let kind = f[l4];
                self.icmp = (kind, f[l4 + 1]);
                self.port = kind.into();
                self.dport = 0x100 | u16::from(kind);
                if is_echo(self.src, kind) {
                    (self.sport, self.dport) = (ports(l4 + 4).0, ports(l4 + 4).0);
                } else if is_error(self.src, kind) {
                    self.kind = Kind::Error;
                } else if self.src.is_ipv6() && matches!(kind, 130..=137 | 143) {
                    self.kind = Kind::Neighbour;
                    if matches!(kind, 135 | 136) {
                        room(24)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whose packet is asked about, and what is asked.
struct Question {
    from: Who,
    to: Who,
    port: u16,
    proto: u8,
}

impl Model {
    pub fn new(policies: [Arc<EndpointPolicy>; 3]) -> Self {
        Self {
            policies,
            flows: BTreeMap::new(),
            without_flow: 0,
            refused: None,
            known: BTreeMap::new(),
            frags: BTreeMap::new(),
            epochs: [0; 3],
        }
    }

    /// Another policy, which also makes flows be judged anew.
    pub fn repolicy(&mut self, n: usize, policy: Arc<EndpointPolicy>) {
        self.policies[n] = policy;
        self.epochs[n] += 1;
    }

    /// The last packet was dropped, and an event told of so many others like it; or there was none.
    pub fn dropped(&mut self, told: Option<u32>) -> Result<(), String> {
        let Some(refusal) = self.refused else {
            return if told == Some(0) { Ok(()) } else { Err(format!("the event is {told:?}, expected one drop by itself")) };
        };
        let epoch = (self.epoch(who(refusal.2.0)), self.epoch(who(if refusal.1.1 == refusal.2 { refusal.1.2.0 } else { refusal.1.1.0 })));
        let known = self.known.entry(refusal);
        match (told, known) {
            (None, Entry::Occupied(mut k)) if k.get().epoch == epoch => k.get_mut().untold += 1,
            (None, k) => return Err(format!("no event of a refusal that is {k:?}, under {epoch:?}")),
            (Some(told), k) => {
                let k = k.or_insert(Known { epoch, untold: 0 });
                if k.untold != told {
                    return Err(format!("the event tells of {told} more drops, expected {}", k.untold));
                }
                *k = Known { epoch, untold: 0 };
            }
        }
        Ok(())
    }

    /// Drops that no event has told of.
    pub fn untold(&self) -> u64 {
        self.known.values().map(|k| u64::from(k.untold)).sum()
    }

    fn epoch(&self, who: Who) -> u32 {
        Who::CONTAINERS.iter().position(|w| *w == who).map_or(0, |n| self.epochs[n])
    }

    fn one(&self, whose: Who, dir: Direction, peer: Who, q: &Question) -> Result<(), DropReason> {
        let Some(n) = Who::CONTAINERS.iter().position(|w| *w == whose) else { return Ok(()) };
        match verdict(self.policies[n].direction(dir), NumericIdentity(peer.identity()), q.port, q.proto) {
            Verdict::Deny(None) => Err(PolicyDenied),
            Verdict::Deny(Some(_)) => Err(PolicyDeny),
            Verdict::Redirect(..) => Err(PolicyL7),
            Verdict::Allow(_) | Verdict::OpenAllow => Ok(()),
        }
    }

    fn judge(&self, q: &Question) -> Result<(), DropReason> {
        self.one(q.from, Direction::Egress, q.to, q)?;
        self.one(q.to, Direction::Ingress, q.from, q)
    }

    /// The packet, or that which it answers.
    fn question(p: &Read, reply: bool) -> Question {
        let (from, to) = (who(p.src), who(p.dst));
        if !reply {
            return Question { from, to, port: p.port, proto: p.proto };
        }
        let port = match () {
            () if is_icmp(p.src, p.proto) && p.port == u16::from(echo(p.src).1) => echo(p.src).0.into(),
            () if is_icmp(p.src, p.proto) => p.port,
            () => p.sport,
        };
        Question { from: to, to: from, port, proto: p.proto }
    }

    fn part(&self, mut p: Read, f: &[u8], end: usize, offset: usize, more: bool) -> (Read, Result<(), DropReason>) {
        if offset > 0 {
            p.frag = Frag::Later;
            let Some(&(proto, sport, dport, port)) = self.frags.get(&p.frag_key()) else { return (p, Err(FragmentUnknown)) };
            if offset < if proto == TCP { 20 } else { 8 } {
                return (p, Err(Fragment));
            }
            (p.proto, p.sport, p.dport, p.port, p.tcp) = (proto, sport, dport, port, ACK);
            return (p, Ok(()));
        }
        let read = p.transport(f, end);
        if read.is_ok() && more {
            p.frag = Frag::First;
            if p.kind != Kind::Flow {
                return (p, Err(Fragment));
            }
        }
        (p, read)
    }

    fn read(&self, f: &[u8]) -> Result<Read, DropReason> {
        let blank = |src, dst| Read {
            src,
            dst,
            proto: 0,
            sport: 0,
            dport: 0,
            port: 0,
            tcp: 0,
            kind: Kind::Flow,
            icmp: (0, 0),
            hops: 0,
            l4: 0,
            frag: Frag::None,
            id: 0,
            whole: true,
        };
        match be16(f, 12) {
            Some(ETH_IP) => {
                let (Some(src), Some(dst)) = (at4(f, ETH + 12), at4(f, ETH + 16)) else { return Err(InvalidPacket) };
                let header = usize::from(f[ETH] & 15) * 4;
                let end = ETH + usize::from(be16(f, ETH + 2).ok_or(InvalidPacket)?);
                if f[ETH] >> 4 != 4 || header < 20 || end > f.len() || ETH + header > end {
                    return Err(InvalidPacket);
                }
                let word = be16(f, ETH + 6).ok_or(InvalidPacket)?;
                let id = be16(f, ETH + 4).ok_or(InvalidPacket)?.into();
                let p = Read { proto: f[ETH + 9], hops: f[ETH + 8], l4: ETH + header, id, whole: word & 0x4000 != 0, ..blank(src, dst) };
                let (p, read) = self.part(p, f, end, usize::from(word & 0x1fff) * 8, word & 0x2000 != 0);
                read.map(|()| p)
            }
            Some(ETH_IPV6) => {
                let (Some(src), Some(dst)) = (at6(f, ETH + 8), at6(f, ETH + 24)) else { return Err(InvalidPacket) };
                let end = ETH + 40 + usize::from(be16(f, ETH + 4).ok_or(InvalidPacket)?);
                if f[ETH] >> 4 != 6 || end > f.len() {
                    return Err(InvalidPacket);
                }
                let (mut next, mut at, mut walked) = (f[ETH + 6], ETH + 40, 0);
                while is_extension(next) && next != FRAGMENT {
                    if walked == 6 || (next == HOPOPTS && walked > 0) || at + 8 > end {
                        return Err(InvalidExtensionHeader);
                    }
                    let units = usize::from(f[at + 1]);
                    (next, at, walked) = (f[at], at + if next == AH { (units + 2) * 4 } else { (units + 1) * 8 }, walked + 1);
                }
                let (mut offset, mut more, mut id, cut) = (0, false, 0, next == FRAGMENT);
                if cut {
                    if at + 8 > end {
                        return Err(InvalidExtensionHeader);
                    }
                    let word = be16(f, at + 2).unwrap_or(0);
                    (offset, more) = (usize::from(word & !7), word & 1 != 0);
                    id = u32::from_be_bytes([f[at + 4], f[at + 5], f[at + 6], f[at + 7]]);
                    (next, at) = (f[at], at + 8);
                    if is_extension(next) && offset == 0 {
                        return Err(InvalidExtensionHeader);
                    }
                }
                if at > end {
                    return Err(InvalidExtensionHeader);
                }
                let p = Read { proto: next, hops: f[ETH + 7], l4: at, id, ..blank(src, dst) };
                let (p, read) = self.part(p, f, end, offset, more);
                // Neighbours never cut their messages.
                if p.kind == Kind::Neighbour && cut { Err(Fragment) } else { read.map(|()| p) }
            }
            _ => Err(UnsupportedL3),
        }
    }

    /// What a frame does, and the flow that it belongs to, if it came so far.
    pub fn step(&mut self, via: Who, f: &[u8]) -> (Expect, Option<Key>) {
        self.refused = None;
        let early = match via {
            Who::Host | Who::World => self.outside(via, f),
            container => self.container(container, f),
        };
        match early {
            Err(expect) => (expect, None),
            Ok(p) => {
                let expect = self.decide(via, &p, f);
                (expect, (p.kind == Kind::Flow).then(|| p.key()))
            }
        }
    }

    /// Up to flow and policy: the packet, or what became of it before.
    fn container(&self, own: Who, f: &[u8]) -> Result<Read, Expect> {
        if f[6..12] != own.mac() {
            return Err(Drop(InvalidSourceMac));
        }
        let group = f[0] & 1 == 1;
        if !group && f[..6] != own.host_mac() {
            return Err(Drop(InvalidDestinationMac));
        }
        if be16(f, 12) == Some(ETH_ARP) {
            return Err(Self::arp(own, f));
        }
        let p = self.read(f).map_err(Drop)?;
        let icmp = p.icmp.0;
        if p.kind == Kind::Neighbour && p.src == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            if !matches!(icmp, 133 | 135 | 143) {
                return Err(Drop(InvalidSourceIp));
            }
        } else if p.src != own.ip4() && p.src != own.ip6() && p.src != own.link_local() {
            return Err(Drop(InvalidSourceIp));
        }
        if p.kind == Kind::Neighbour {
            return Err(Self::neighbour(own, &p, f));
        }
        if is_group(p.dst) {
            return Err(Drop(Multicast));
        }
        if group {
            return Err(Drop(InvalidDestinationMac));
        }
        if gateway(p.dst) {
            let asks = is_icmp(p.src, p.proto) && p.icmp == (echo(p.src).0, 0);
            return Err(match p.frag {
                Frag::None if asks => Answer,
                Frag::None => Drop(UnknownTarget),
                _ => Drop(Fragment),
            });
        }
        if unroutable(p.dst) {
            return Err(Drop(InvalidDestination));
        }
        if p.src == own.link_local() {
            return Err(Drop(InvalidSourceIp));
        }
        if p.hops <= 1 && who(p.dst).is_container() {
            return Err(Self::error(&p, f, TtlExceeded));
        }
        Ok(p)
    }

    fn arp(own: Who, f: &[u8]) -> Expect {
        let Some(a) = f.get(ETH..ETH + 28) else { return Drop(InvalidPacket) };
        let unset = a[14..18] == [0; 4];
        match () {
            () if a[..6] != [0, 1, 8, 0, 6, 4] => Drop(InvalidPacket),
            () if a[8..14] != own.mac() => Drop(InvalidSourceMac),
            () if a[6..8] != [0, 1] || unset || a[24..28] != GATEWAY4.octets() => Drop(Neighbour),
            () if a[14..18] != own.ip4().octets() => Drop(InvalidSourceIp),
            () => Answer,
        }
    }

    fn neighbour(own: Who, p: &Read, f: &[u8]) -> Expect {
        let target = at6(f, p.l4 + 8);
        match p.icmp {
            (136, _) if p.hops == 255 && who(p.dst) == Who::Host => {
                if target == Some(own.ip6().into()) || target == Some(own.link_local().into()) {
                    Pass { to: Who::Host, state: FlowState::None, routed: false }
                } else {
                    Drop(Neighbour)
                }
            }
            (134 | 136 | 137, _) => Drop(Neighbour),
            (133 | 135, code) if p.hops != 255 || code != 0 => Drop(InvalidPacket),
            (133, _) => Answer,
            (135, _) if target == Some(GATEWAY6.into()) => Answer,
            (135, _) => Drop(Neighbour),
            _ => Drop(Multicast),
        }
    }

    /// Told to the sender, unless the packet is an error itself, a later part of an IPv4 datagram, or too short to quote.
    fn error(p: &Read, f: &[u8], why: DropReason) -> Expect {
        if p.kind == Kind::Flow && (p.frag != Frag::Later || p.src.is_ipv6()) && f.len() >= ETH + 28 { Answer } else { Drop(why) }
    }

    fn outside(&self, via: Who, f: &[u8]) -> Result<Read, Expect> {
        if via == Who::World {
            let to = match be16(f, 12) {
                Some(ETH_IP) => at4(f, ETH + 16),
                Some(ETH_IPV6) => at6(f, ETH + 24),
                _ => None,
            };
            if !to.is_some_and(|ip| who(ip).is_container()) {
                return Err(Leave);
            }
        }
        let p = self.read(f).map_err(Drop)?;
        let from = who(p.src);
        if from.is_container() || (via == Who::World && (from == Who::Host || unroutable(p.src))) {
            return Err(Drop(InvalidSourceIp));
        }
        if is_group(p.dst) {
            return Err(Drop(Multicast));
        }
        if !who(p.dst).is_container() {
            return Err(Drop(UnknownTarget));
        }
        if p.kind == Kind::Neighbour {
            let probes = from == Who::Host && p.icmp.0 == 135 && p.hops == 255;
            return Err(if probes { Pass { to: who(p.dst), state: FlowState::None, routed: false } } else { Drop(Neighbour) });
        }
        if via == Who::World && p.hops <= 1 {
            return Err(Self::error(&p, f, TtlExceeded));
        }
        Ok(p)
    }

    fn decide(&mut self, via: Who, p: &Read, f: &[u8]) -> Expect {
        let decided = if p.kind == Kind::Error { self.related(p, f) } else { self.flow(via, p) };
        let (state, to) = match decided {
            Ok(state) => (state, who(p.dst)),
            Err(why) => return Drop(why),
        };
        if p.frag == Frag::First {
            self.frags.insert(p.frag_key(), (p.proto, p.sport, p.dport, p.port));
        }
        if to.is_container() && f.len() - ETH > MTU && p.whole {
            return Self::error(p, f, TooBig);
        }
        Pass { to, state, routed: via != Who::Host && to.is_container() }
    }

    fn flow(&mut self, via: Who, p: &Read) -> Result<FlowState, DropReason> {
        let (from, to) = (who(p.src), who(p.dst));
        if from == to {
            return Err(NoEndpoint);
        }
        let (near, far) = p.ends();
        let epoch = (self.epoch(from), self.epoch(to));
        let syn = p.proto == TCP && p.tcp & (SYN | ACK | RST) == SYN;
        let old = self.flows.get(&p.key()).copied();
        let opens = |h: &FlowModel| h.opener == near;
        // Of the opener's side first.
        let of = |h: &FlowModel| if opens(h) { epoch } else { (epoch.1, epoch.0) };
        let fin = |opener| if p.proto == TCP && p.tcp & FIN != 0 { if opener { FLOW_FIN_A } else { FLOW_FIN_B } } else { 0 };
        let rst = if p.proto == TCP && p.tcp & RST != 0 { FLOW_RST } else { 0 };
        let seen = |h: &mut FlowModel| {
            let opener = opens(h);
            h.flags |= fin(opener) | rst | if !opener && !syn { FLOW_REPLY } else { 0 };
            if opener {
                h.packets.0 += 1
            } else {
                h.packets.1 += 1
            };
        };
        let judge = |this: &Self, reply| this.judge(&Self::question(p, reply));
        if let Some(mut h) = old.filter(|_| !syn) {
            if h.epoch != of(&h) {
                let denied = judge(self, !opens(&h)).is_err();
                h.flags = h.flags & !FLOW_DENY | if denied { FLOW_DENY } else { 0 };
                h.epoch = of(&h);
            }
            let denied = h.flags & FLOW_DENY != 0;
            if !denied {
                seen(&mut h);
            }
            self.flows.insert(p.key(), h);
            return if denied { Err(Revoked) } else { Ok(if opens(&h) { Established } else { Reply }) };
        }
        self.without_flow += u64::from(p.proto == TCP && !syn);
        let judged = judge(self, false);
        if judged.is_err() && old.is_none() && !syn {
            self.refused = Some((via, p.key(), near));
        }
        if let Some(mut h) = old {
            let closing = h.flags & FLOW_RST != 0 || h.flags & (FLOW_FIN_A | FLOW_FIN_B) == FLOW_FIN_A | FLOW_FIN_B;
            if judged.is_err() || (h.flags & FLOW_DENY == 0 && !closing) {
                if opens(&h) {
                    h.flags = h.flags & !FLOW_DENY | if judged.is_err() { FLOW_DENY } else { 0 };
                    h.epoch = of(&h);
                }
                if judged.is_ok() {
                    seen(&mut h);
                }
                self.flows.insert(p.key(), h);
                return judged.map(|()| New);
            }
        }
        if judged.is_ok() || syn {
            let kind = if judged.is_err() { FLOW_DENY } else { 0 } | if p.proto == TCP && !syn { FLOW_MIDSTREAM } else { 0 };
            let flags = kind | fin(true) | rst;
            self.flows.insert(p.key(), FlowModel { opener: near, who: [from, to], flags, packets: (1, 0), epoch });
        }
        let _ = far;
        judged.map(|()| if old.is_some() { Reopened } else { New })
    }

    /// An error about a packet of a flow.
    fn related(&self, p: &Read, f: &[u8]) -> Result<FlowState, DropReason> {
        let q = self.quote(p, f)?;
        let Some(h) = self.flows.get(&q.key()).filter(|_| q.src == p.dst) else { return Err(NoFlow) };
        let (speaker, receiver) = (who(p.src), who(p.dst));
        let (sender, other) = (who(q.src), who(q.dst));
        if sender != receiver || (speaker.is_container() && other != speaker) {
            return Err(NoFlow);
        }
        let opener = h.opener == (q.src, q.sport);
        let epoch = (self.epoch(sender), self.epoch(other));
        if h.epoch != if opener { epoch } else { (epoch.1, epoch.0) } {
            self.judge(&Self::question(&q, !opener))?;
        } else if h.flags & FLOW_DENY != 0 {
            return Err(Revoked);
        }
        Ok(Related)
    }

    fn quote(&self, p: &Read, f: &[u8]) -> Result<Read, DropReason> {
        let b = f.get(p.l4 + 8..).unwrap_or_default();
        let (src, dst, mut proto, mut at);
        if p.src.is_ipv4() {
            (src, dst) = match (at4(b, 12), at4(b, 16)) {
                (Some(src), Some(dst)) => (src, dst),
                _ => return Err(TruncatedL4),
            };
            if b[0] >> 4 != 4 || b[0] & 15 < 5 {
                return Err(TruncatedL4);
            }
            if be16(b, 6).unwrap_or(0) & 0x1fff != 0 {
                return Err(Fragment);
            }
            (proto, at) = (b[9], usize::from(b[0] & 15) * 4);
        } else {
            (src, dst) = match (at6(b, 8), at6(b, 24)) {
                (Some(src), Some(dst)) => (src, dst),
                _ => return Err(TruncatedL4),
            };
            if b[0] >> 4 != 6 {
                return Err(TruncatedL4);
            }
            (proto, at) = (b[6], 40);
            for _ in 0..2 {
                if !is_extension(proto) || proto == AH {
                    break;
                }
                let Some(e) = b.get(at..at + 8) else { return Err(TruncatedL4) };
                if proto == FRAGMENT && u16::from_be_bytes([e[2], e[3]]) & !7 != 0 {
                    return Err(Fragment);
                }
                at += if proto == FRAGMENT { 8 } else { (usize::from(e[1]) + 1) * 8 };
                proto = e[0];
            }
        }
        let mut q = Read { src, dst, proto, sport: 0, dport: 0, port: 0, icmp: (0, 0), kind: Kind::Flow, ..*p };
        let l4 = b.get(at..at + 8);
        if matches!(proto, TCP | UDP | SCTP) {
            let l4 = l4.ok_or(TruncatedL4)?;
            (q.sport, q.dport) = (be16(l4, 0).unwrap_or(0), be16(l4, 2).unwrap_or(0));
            q.port = q.dport;
        } else if proto == p.proto {
            let l4 = l4.ok_or(TruncatedL4)?;
            if is_error(src, l4[0]) {
                return Err(InvalidPacket);
            }
            (q.port, q.dport) = (l4[0].into(), 0x100 | u16::from(l4[0]));
            if is_echo(src, l4[0]) {
                let id = be16(l4, 4).unwrap_or(0);
                (q.sport, q.dport) = (id, id);
            }
        }
        Ok(q)
    }
}
