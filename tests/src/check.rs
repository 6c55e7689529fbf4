// SPDX-License-Identifier: Apache-2.0
//! Reads packets back, with eyes of its own: nothing here is shared with the builder but the checksum.

use crate::wire::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a whole, unfragmented packet says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub eth_dst: Mac,
    pub eth_src: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub hops: u8,
    pub proto: u8,
    /// From the transport header on, without trailer.
    pub l4: Vec<u8>,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    bytes.get(at..at + N).and_then(|b| b.try_into().ok()).ok_or_else(|| format!("cut short at {at}"))
}

/// Reads a frame and verifies lengths and every checksum in it (of a quoted packet none).
pub fn view(frame: &[u8]) -> Result<View, String> {
    let ether_type = u16::from_be_bytes(array(frame, 12)?);
    let ip = &frame[ETH..];
    let (src, dst, hops, proto, l4): (IpAddr, IpAddr, u8, u8, &[u8]) = match ether_type {
        ETH_IP => {
            let header: [u8; 20] = array(ip, 0)?;
            let ihl = usize::from(header[0] & 15) * 4;
            let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
            if header[0] >> 4 != 4 || ihl < 20 || total < ihl || total > ip.len() {
                return Err(format!("IPv4 header {header:02x?} of {} bytes", ip.len()));
            }
            if fold(sum(&ip[..ihl])) != 0xffff {
                return Err("IPv4 header checksum is wrong".to_owned());
            }
            let (src, dst): ([u8; 4], [u8; 4]) = (array(ip, 12)?, array(ip, 16)?);
            (Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into(), header[8], header[9], &ip[ihl..total])
        }
        ETH_IPV6 => {
            let header: [u8; 40] = array(ip, 0)?;
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            if header[0] >> 4 != 6 || len + 40 > ip.len() {
                return Err(format!("IPv6 header {header:02x?} of {} bytes", ip.len()));
            }
            let (src, dst): ([u8; 16], [u8; 16]) = (array(ip, 8)?, array(ip, 24)?);
            (Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into(), header[7], header[6], &ip[40..40 + len])
        }
        other => return Err(format!("ether type {other:#06x}")),
    };
    let over = match proto {
        ICMP => Some(0),
        TCP | UDP | ICMPV6 => Some(pseudo(src, dst, proto, l4.len())),
        _ => None,
    };
    if let Some(over) = over
        && fold(over + sum(l4)) != 0xffff
    {
        return Err(format!("checksum of protocol {proto} is wrong"));
    }
    Ok(View { eth_dst: array(frame, 0)?, eth_src: array(frame, 6)?, src, dst, hops, proto, l4: l4.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Ext, Packet};

    fn both() -> [(IpAddr, IpAddr); 2] {
        let six = |n: u16| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n));
        [([10, 0, 0, 1].into(), [10, 0, 0, 2].into()), (six(1), six(2))]
    }

    #[test]
    fn built_packets_read_back() {
        for (src, dst) in both() {
            for (packet, proto, len) in [
                (Packet::ip(src, dst).tcp(1, 2, SYN).filled(5), TCP, 25),
                (Packet::ip(src, dst).udp(1, 2).filled(5), UDP, 13),
                (Packet::ip(src, dst).echo(false, 7).filled(5), if src.is_ipv4() { ICMP } else { ICMPV6 }, 13),
            ] {
                let seen = view(&packet.build()).unwrap();
                assert_eq!((seen.src, seen.dst, seen.proto, seen.l4.len(), seen.hops), (src, dst, proto, len, 64));
            }
        }
    }

    #[test]
    fn wrong_checksums_are_seen() {
        for (src, dst) in both() {
            let mut frame = Packet::ip(src, dst).udp(1, 2).filled(8).build();
            *frame.last_mut().unwrap() ^= 1;
            assert_eq!(view(&frame).unwrap_err(), "checksum of protocol 17 is wrong");
        }
        let mut frame = Packet::ip(both()[0].0, both()[0].1).udp(1, 2).build();
        frame[ETH + 8] -= 1;
        assert_eq!(view(&frame).unwrap_err(), "IPv4 header checksum is wrong");
    }

    #[test]
    fn extension_headers_and_sctp_have_known_bytes() {
        let (src, dst) = both()[1];
        let frame = Packet::ip(src, dst).ext(&[Ext::options(HOPOPTS, 1), Ext::options(DSTOPTS, 0)]).udp(1, 2).build();
        assert_eq!(frame.len(), ETH + 40 + 16 + 8 + 8);
        assert_eq!((frame[20], frame[54], frame[55], frame[70], frame[71]), (HOPOPTS, DSTOPTS, 1, UDP, 0));
        // RFC 3720, B.4: 32 bytes of zero.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
