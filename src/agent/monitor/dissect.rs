// SPDX-License-Identifier: Apache-2.0
//! Packets as a packet tool prints them. A packet that is cut short is shown as far as it goes.

use etherparse::{ArpPacketSlice, LaxNetSlice, LaxSlicedPacket, TcpOptionElement, TcpSlice, TransportSlice};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One line about what the packet is, and one about its lower headers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dissected {
    pub summary: String,
    pub headers: String,
}

fn mac(b: &[u8]) -> String {
    let parts: Vec<String> = b.iter().map(|b| format!("{b:02x}")).collect();
    parts.join(":")
}

fn v6(b: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(b.get(..16)?).ok().map(Ipv6Addr::from)
}

fn be16(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*b.get(at)?, *b.get(at + 1)?]))
}

fn be32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(be16(b, at)?) << 16 | u32::from(be16(b, at + 2)?))
}

/// What IP says, of either family.
struct Ip<'a> {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    /// Bytes above IP, as the header has it, and those that were captured.
    length: usize,
    payload: &'a [u8],
    /// Offset in bytes, identification, more to come.
    fragment: Option<(u16, u32, bool)>,
}

fn distance(from: &[u8], to: &[u8]) -> usize {
    (to.as_ptr() as usize).saturating_sub(from.as_ptr() as usize)
}

fn ip<'a>(net: &LaxNetSlice<'a>, headers: &mut String) -> Option<Ip<'a>> {
    match net {
        LaxNetSlice::Ipv4(ip) => {
            let h = ip.header();
            let offset = h.fragments_offset().value() * 8;
            let fragment = (offset > 0 || h.more_fragments()).then(|| (offset, u32::from(h.identification()), h.more_fragments()));
            let df = if h.dont_fragment() { " DF" } else { "" };
            let tos = h.slice()[1];
            let _ = write!(headers, ", IPv4 ttl {} tos {tos:#x} id {}{df} length {}", h.ttl(), h.identification(), h.total_len());
            let skipped = distance(h.slice(), ip.payload().payload);
            Some(Ip {
                src: h.source_addr().into(),
                dst: h.destination_addr().into(),
                proto: ip.payload_ip_number().0,
                length: usize::from(h.total_len()).saturating_sub(skipped),
                payload: ip.payload().payload,
                fragment,
            })
        }
        LaxNetSlice::Ipv6(ip) => {
            let h = ip.header();
            let skipped = distance(h.slice(), ip.payload().payload);
            let _ = write!(headers, ", IPv6 hlim {} class {:#x} flow {:#x}", h.hop_limit(), h.traffic_class(), h.flow_label().value());
            let _ = write!(headers, " length {}", h.payload_length());
            if skipped > 40 {
                let _ = write!(headers, ", extension headers {} bytes", skipped - 40);
            }
            let fragment = ip.extensions().clone().into_iter().find_map(|e| match e {
                etherparse::Ipv6ExtensionSlice::Fragment(f) => {
                    Some((f.fragment_offset().value() * 8, f.identification(), f.more_fragments()))
                }
                _ => None,
            });
            Some(Ip {
                src: h.source_addr().into(),
                dst: h.destination_addr().into(),
                proto: ip.payload().ip_number.0,
                length: (40 + usize::from(h.payload_length())).saturating_sub(skipped),
                payload: ip.payload().payload,
                fragment,
            })
        }
        LaxNetSlice::Arp(_) => None,
    }
}

fn arp(a: &ArpPacketSlice<'_>) -> String {
    let addr = |b: &[u8]| <[u8; 4]>::try_from(b).map(|a| Ipv4Addr::from(a).to_string()).unwrap_or_default();
    let (target, sender) = (addr(a.target_protocol_addr()), addr(a.sender_protocol_addr()));
    match a.operation().0 {
        1 => format!("arp request who-has {target} tell {sender}"),
        2 => format!("arp reply {sender} is-at {}", mac(a.sender_hw_addr())),
        other => format!("arp operation {other} {sender} -> {target}"),
    }
}

fn tcp(t: &TcpSlice<'_>, length: usize) -> String {
    let flags = [
        (t.syn(), "SYN"),
        (t.fin(), "FIN"),
        (t.rst(), "RST"),
        (t.psh(), "PSH"),
        (t.ack(), "ACK"),
        (t.urg(), "URG"),
        (t.ece(), "ECE"),
        (t.cwr(), "CWR"),
    ];
    let names: Vec<&str> = flags.iter().filter(|(on, _)| *on).map(|(_, n)| *n).collect();
    let mut text = format!("tcp {} seq {}", if names.is_empty() { "none".to_owned() } else { names.join(",") }, t.sequence_number());
    if t.ack() {
        let _ = write!(text, " ack {}", t.acknowledgment_number());
    }
    let _ = write!(text, " win {}", t.window_size());
    for option in t.options_iterator().flatten() {
        match option {
            TcpOptionElement::MaximumSegmentSize(mss) => drop(write!(text, " mss {mss}")),
            TcpOptionElement::WindowScale(scale) => drop(write!(text, " wscale {scale}")),
            TcpOptionElement::SelectiveAcknowledgementPermitted => text.push_str(" sackOK"),
            _ => {}
        }
    }
    let header = usize::from(t.data_offset()) * 4;
    let _ = write!(text, " length {}", length.saturating_sub(header));
    text
}

fn icmp4(kind: u8, code: u8, b: &[u8]) -> String {
    let name = match (kind, code) {
        (0 | 8, _) => {
            let what = if kind == 8 { "request" } else { "reply" };
            return format!("icmp echo {what} id {} seq {}", be16(b, 4).unwrap_or(0), be16(b, 6).unwrap_or(0));
        }
        (3, 4) => return format!("icmp unreachable, need to fragment, mtu {}{}", be16(b, 6).unwrap_or(0), quoted4(b)),
        (3, 0) => "unreachable, network",
        (3, 1) => "unreachable, host",
        (3, 2) => "unreachable, protocol",
        (3, 3) => "unreachable, port",
        (3, 9 | 10 | 13) => "unreachable, prohibited",
        (3, _) => "unreachable",
        (5, _) => "redirect",
        (11, 0) => "time exceeded in transit",
        (11, _) => "time exceeded in reassembly",
        (12, _) => "parameter problem",
        (13, _) => "timestamp request",
        (14, _) => "timestamp reply",
        _ => return format!("icmp type {kind} code {code}"),
    };
    format!("icmp {name}{}", if matches!(kind, 3 | 5 | 11 | 12) { quoted4(b) } else { String::new() })
}

/// ` for A > B`: the packet that an error quotes.
fn quoted4(b: &[u8]) -> String {
    let addr = |at: usize| b.get(at..at + 4).and_then(|s| <[u8; 4]>::try_from(s).ok()).map(Ipv4Addr::from);
    let (Some(src), Some(dst), Some(proto)) = (addr(20), addr(24), b.get(17)) else { return String::new() };
    let header = 8 + usize::from(b[8] & 15) * 4;
    format!(" for {}", ends(src.into(), dst.into(), *proto, b.get(header..).unwrap_or_default()))
}

fn quoted6(b: &[u8]) -> String {
    let (Some(src), Some(dst), Some(proto)) = (b.get(16..).and_then(v6), b.get(32..).and_then(v6), b.get(14)) else { return String::new() };
    format!(" for {}", ends(src.into(), dst.into(), *proto, b.get(48..).unwrap_or_default()))
}

/// Both ends with their ports, and the protocol.
fn ends(src: IpAddr, dst: IpAddr, proto: u8, l4: &[u8]) -> String {
    match (proto, be16(l4, 0), be16(l4, 2)) {
        (6 | 17 | 132, Some(sport), Some(dport)) => format!("{src}.{sport} > {dst}.{dport} {}", protocol(proto)),
        _ => format!("{src} > {dst} {}", protocol(proto)),
    }
}

/// The value of a neighbour discovery option.
fn nd_option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [kind, units, ..] = options {
        let length = usize::from(*units) * 8;
        let option = options.get(..length).filter(|o| !o.is_empty())?;
        if *kind == wanted {
            return option.get(2..);
        }
        options = &options[length..];
    }
    None
}

fn icmp6(kind: u8, code: u8, b: &[u8]) -> String {
    let link = |at: usize, wanted| nd_option(b.get(at..).unwrap_or_default(), wanted).and_then(|o| o.get(..6)).map(mac);
    let target = || b.get(8..).and_then(v6).map_or_else(|| "?".to_owned(), |a| a.to_string());
    match (kind, code) {
        (128 | 129, _) => {
            let what = if kind == 128 { "request" } else { "reply" };
            format!("icmp6 echo {what} id {} seq {}", be16(b, 4).unwrap_or(0), be16(b, 6).unwrap_or(0))
        }
        (1, code) => {
            let why = ["no route", "prohibited", "beyond scope", "address", "port", "source failed policy", "reject route"];
            format!("icmp6 unreachable, {}{}", why.get(usize::from(code)).unwrap_or(&"?"), quoted6(b))
        }
        (2, _) => format!("icmp6 packet too big, mtu {}{}", be32(b, 4).unwrap_or(0), quoted6(b)),
        (3, 0) => format!("icmp6 time exceeded in transit{}", quoted6(b)),
        (3, _) => format!("icmp6 time exceeded in reassembly{}", quoted6(b)),
        (4, _) => format!("icmp6 parameter problem at {}{}", be32(b, 4).unwrap_or(0), quoted6(b)),
        (130, _) => "icmp6 multicast listener query".into(),
        (131 | 143, _) => "icmp6 multicast listener report".into(),
        (132, _) => "icmp6 multicast listener done".into(),
        (133, _) => format!("icmp6 router solicitation{}", link(8, 1).map(|m| format!(" from {m}")).unwrap_or_default()),
        (134, _) => {
            let mtu = nd_option(b.get(16..).unwrap_or_default(), 5).and_then(|o| be32(o, 2)).map(|m| format!(" mtu {m}"));
            format!("icmp6 router advertisement lifetime {}s{}", be16(b, 6).unwrap_or(0), mtu.unwrap_or_default())
        }
        (135, _) => {
            format!("icmp6 neighbour solicitation who-has {}{}", target(), link(24, 1).map(|m| format!(" from {m}")).unwrap_or_default())
        }
        (136, _) => {
            let flags = b.get(4).copied().unwrap_or(0);
            let set: String =
                [(128, " router"), (64, " solicited"), (32, " override")].iter().filter(|(f, _)| flags & f != 0).map(|(_, n)| *n).collect();
            format!("icmp6 neighbour advertisement {}{}{set}", target(), link(24, 2).map(|m| format!(" is-at {m}")).unwrap_or_default())
        }
        (137, _) => "icmp6 redirect".into(),
        _ => format!("icmp6 type {kind} code {code}"),
    }
}

/// The first question of a DNS message, without following pointers: questions have none.
fn dns(b: &[u8]) -> Option<String> {
    let flags = be16(b, 2)?;
    if be16(b, 4)? == 0 || be16(b, 4)? > 8 {
        return None;
    }
    let mut at = 12;
    let mut name = String::new();
    loop {
        let length = usize::from(*b.get(at)?);
        if length == 0 {
            break;
        }
        let label = b.get(at + 1..at + 1 + length).filter(|_| length < 64)?;
        name.extend(label.iter().map(|c| if c.is_ascii_graphic() { char::from(*c) } else { '?' }));
        name.push('.');
        at += 1 + length;
    }
    let kind = match be16(b, at + 1)? {
        1 => "A".to_owned(),
        5 => "CNAME".into(),
        12 => "PTR".into(),
        15 => "MX".into(),
        16 => "TXT".into(),
        28 => "AAAA".into(),
        33 => "SRV".into(),
        other => format!("TYPE{other}"),
    };
    let name = if name.is_empty() { "." } else { &name };
    Some(match (flags & 0x8000 != 0, flags & 15) {
        (false, _) => format!("query {kind} {name}"),
        (true, 0) => format!("answer {kind} {name} {} records", be16(b, 6)?),
        (true, 3) => format!("answer {kind} {name} no such name"),
        (true, code) => format!("answer {kind} {name} error {code}"),
    })
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        2 => "igmp".into(),
        4 => "ipip".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        41 => "ipv6".into(),
        47 => "gre".into(),
        50 => "esp".into(),
        51 => "ah".into(),
        58 => "icmp6".into(),
        132 => "sctp".into(),
        other => format!("protocol {other}"),
    }
}

fn summary(ip: &Ip<'_>, transport: Option<&TransportSlice<'_>>) -> String {
    let (src, dst) = (ip.src, ip.dst);
    if let Some((offset, id, more)) = ip.fragment {
        let text = if offset == 0 { ends(src, dst, ip.proto, ip.payload) } else { format!("{src} > {dst} {}", protocol(ip.proto)) };
        return format!("{text} fragment id {id} offset {offset}{} length {}", if more { "+" } else { "" }, ip.length);
    }
    match transport {
        Some(TransportSlice::Tcp(t)) => {
            format!("{src}.{} > {dst}.{} {}", t.source_port(), t.destination_port(), tcp(t, ip.length))
        }
        Some(TransportSlice::Udp(u)) => {
            let (sport, dport) = (u.source_port(), u.destination_port());
            let named = |port| matches!(port, 53 | 5353);
            let name = if named(sport) || named(dport) { dns(u.payload()) } else { None };
            let name = name.map(|n| format!(" dns {n}")).unwrap_or_default();
            format!("{src}.{sport} > {dst}.{dport} udp{name} length {}", u.length().saturating_sub(8))
        }
        Some(TransportSlice::Icmpv4(i)) => format!("{src} > {dst} {} length {}", icmp4(i.type_u8(), i.code_u8(), i.slice()), ip.length),
        Some(TransportSlice::Icmpv6(i)) => format!("{src} > {dst} {} length {}", icmp6(i.type_u8(), i.code_u8(), i.slice()), ip.length),
        None => format!("{} length {}", ends(src, dst, ip.proto, ip.payload), ip.length),
    }
}

/// Reads from the Ethernet header.
pub fn dissect(packet: &[u8]) -> Dissected {
    let Ok(p) = LaxSlicedPacket::from_ethernet(packet) else {
        return Dissected { summary: format!("{} bytes, no Ethernet header", packet.len()), headers: String::new() };
    };
    let ether_type = be16(packet, 12).unwrap_or_default();
    let mut headers = format!("{} > {} type {ether_type:#06x}", mac(&packet[6..12]), mac(&packet[..6]));
    let summary = match &p.net {
        Some(LaxNetSlice::Arp(a)) => arp(a),
        Some(net) => match ip(net, &mut headers) {
            Some(ip) => summary(&ip, p.transport.as_ref()),
            None => String::new(),
        },
        None => format!("ethertype {ether_type:#06x}"),
    };
    Dissected { summary, headers }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, PacketBuilder};

    type Step = etherparse::PacketBuilderStep<etherparse::IpHeaders>;

    fn line(packet: &[u8]) -> String {
        dissect(packet).summary
    }

    fn both() -> [(Step, &'static str, &'static str); 2] {
        let eth = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let (a, b) = ([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        [(eth().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64), "10.0.0.1", "10.0.0.2"), (eth().ipv6(a, b, 64), "fd00::1", "fd00::2")]
    }

    #[test]
    fn tcp_tells_flags_numbers_and_options() {
        for (ip, a, b) in both() {
            let mut p = Vec::new();
            let options = [
                TcpOptionElement::MaximumSegmentSize(1460),
                TcpOptionElement::SelectiveAcknowledgementPermitted,
                TcpOptionElement::WindowScale(7),
            ];
            ip.tcp(40000, 80, 7, 64240).syn().ack(9).options(&options).expect("options").write(&mut p, b"data").expect("packet");
            assert_eq!(line(&p), format!("{a}.40000 > {b}.80 tcp SYN,ACK seq 7 ack 9 win 64240 mss 1460 sackOK wscale 7 length 4"));
            let headers = dissect(&p).headers;
            assert!(headers.starts_with("02:02:02:02:02:02 > 04:04:04:04:04:04 type 0x"), "{headers}");
            assert!(
                headers.contains(if a.contains(':') {
                    ", IPv6 hlim 64 class 0x0 flow 0x0 length 36"
                } else {
                    ", IPv4 ttl 64 tos 0x0 id 0 DF length 56"
                }),
                "{headers}"
            );
        }
    }

    #[test]
    fn lengths_are_those_of_the_packet_not_of_what_was_captured() {
        for (ip, a, b) in both() {
            let mut p = Vec::new();
            ip.udp(5, 7).write(&mut p, &[1; 400]).expect("packet");
            assert_eq!(line(&p[..128]), format!("{a}.5 > {b}.7 udp length 400"));
        }
        for (ip, a, b) in both() {
            let mut p = Vec::new();
            ip.tcp(5, 7, 1, 1).write(&mut p, &[1; 400]).expect("packet");
            assert_eq!(line(&p[..128]), format!("{a}.5 > {b}.7 tcp none seq 1 win 1 length 400"));
        }
        for (ip, a, b) in both() {
            let mut p = Vec::new();
            ip.write(&mut p, IpNumber(132), &[0x10, 0, 0x20, 0, 0, 0, 0, 0]).expect("packet");
            assert_eq!(line(&p), format!("{a}.4096 > {b}.8192 sctp length 8"));
        }
    }

    #[test]
    fn dns_tells_the_question() {
        let message = |flags: u16, kind: u16| {
            let mut m = vec![0, 1, (flags >> 8) as u8, flags as u8, 0, 1, 0, 2, 0, 0, 0, 0];
            m.extend(b"\x03www\x07example\x00");
            m.extend([0, kind as u8, 0, 1]);
            m
        };
        for (flags, kind, sport, dport, expected) in [
            (0x0100, 28, 4000, 53, "dns query AAAA www.example."),
            (0x8180, 1, 53, 4000, "dns answer A www.example. 2 records"),
            (0x8183, 1, 53, 4000, "dns answer A www.example. no such name"),
        ] {
            for (ip, a, b) in both() {
                let mut p = Vec::new();
                ip.udp(sport, dport).write(&mut p, &message(flags, kind)).expect("packet");
                assert_eq!(line(&p), format!("{a}.{sport} > {b}.{dport} udp {expected} length 29"));
            }
        }
        assert_eq!(dns(&message(0, 1)[..20]), None);
        assert_eq!(dns(&[0xff; 40]), None);
    }

    #[test]
    fn icmp_is_told_by_name() {
        let v4 = |bytes: &[u8]| {
            let mut p = Vec::new();
            let [(ip, ..), _] = both();
            ip.write(&mut p, IpNumber(1), bytes).expect("packet");
            line(&p).replace("10.0.0.1 > 10.0.0.2 ", "")
        };
        let v6 = |bytes: &[u8]| {
            let mut p = Vec::new();
            let [_, (ip, ..)] = both();
            ip.write(&mut p, IpNumber(58), bytes).expect("packet");
            line(&p).replace("fd00::1 > fd00::2 ", "")
        };
        assert_eq!(v4(&[8, 0, 0, 0, 0, 5, 0, 6]), "icmp echo request id 5 seq 6 length 8");
        assert_eq!(v6(&[129, 0, 0, 0, 0, 5, 0, 6]), "icmp6 echo reply id 5 seq 6 length 8");
        let mut quote4 = vec![3, 4, 0, 0, 0, 0, 5, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
        quote4.extend([0, 53, 0x10, 0]);
        assert_eq!(v4(&quote4), "icmp unreachable, need to fragment, mtu 1280 for 10.0.0.2.53 > 10.0.0.1.4096 udp length 32");
        let mut quote6 = vec![2, 0, 0, 0, 0, 0, 5, 0, 0x60, 0, 0, 0, 0, 8, 6, 64];
        quote6.extend([[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]].concat());
        quote6.extend([0, 80, 0x10, 0]);
        assert_eq!(v6(&quote6), "icmp6 packet too big, mtu 1280 for fd00::2.80 > fd00::1.4096 tcp length 52");
        assert_eq!(v6(&[1, 4, 0, 0, 0, 0, 0, 0]), "icmp6 unreachable, port length 8");
        let mut ns = vec![135, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(v6(&ns), "icmp6 neighbour solicitation who-has fe80::1 length 24");
        ns.extend([1, 1, 2, 2, 2, 2, 2, 2]);
        assert_eq!(v6(&ns), "icmp6 neighbour solicitation who-has fe80::1 from 02:02:02:02:02:02 length 32");
        (ns[0], ns[4], ns[24]) = (136, 0xe0, 2);
        assert_eq!(v6(&ns), "icmp6 neighbour advertisement fe80::1 is-at 02:02:02:02:02:02 router solicited override length 32");
        let ra = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 5, 1, 0, 0, 0, 0, 5, 0xdc];
        assert_eq!(v6(&ra), "icmp6 router advertisement lifetime 1800s mtu 1500 length 24");
        assert_eq!(v6(&[143, 0, 0, 0, 0, 0, 0, 0]), "icmp6 multicast listener report length 8");
    }

    #[test]
    fn arp_fragments_and_broken_packets() {
        let arp = |operation| {
            let mut p = [[4; 6], [2; 6]].concat();
            p.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation, 2, 2, 2, 2, 2, 2, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
            line(&p)
        };
        assert_eq!(arp(1), "arp request who-has 10.0.0.2 tell 10.0.0.1");
        assert_eq!(arp(2), "arp reply 10.0.0.1 is-at 02:02:02:02:02:02");
        let mut p = Vec::new();
        let [(ip, ..), _] = both();
        ip.udp(5, 7).write(&mut p, &[1; 40]).expect("packet");
        p[20] = 0x20;
        assert_eq!(line(&p), "10.0.0.1.5 > 10.0.0.2.7 udp fragment id 0 offset 0+ length 48");
        p[21] = 3;
        assert_eq!(line(&p), "10.0.0.1 > 10.0.0.2 udp fragment id 0 offset 24+ length 48");
        assert_eq!(line(&p[..10]), "10 bytes, no Ethernet header");
        assert_eq!(line(&[0xff; 14]), "ethertype 0xffff");
        // Nothing that can be cut off makes it fall over.
        let mut all = vec![p];
        for (ip, ..) in both() {
            let mut p = Vec::new();
            ip.write(&mut p, IpNumber(58), &[135; 60]).expect("packet");
            all.push(p);
        }
        for p in &all {
            (0..p.len()).for_each(|n| drop(dissect(&p[..n])));
            for at in 12..p.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    let mut broken = p.clone();
                    broken[at] = value;
                    dissect(&broken);
                }
            }
        }
    }
}
