// SPDX-License-Identifier: Apache-2.0
//! Addresses as keys of the ipcache tables, and back. Addresses stand in network byte order, IPv4 in the first word.

use crate::abi::{Be32, IpcacheKey, IpcacheLpmKey};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thiserror::Error;

/// A prefix is longer than its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("prefix length {length} is longer than the {max} bits of {address}")]
pub struct PrefixTooLong {
    pub address: IpAddr,
    pub length: u8,
    pub max: u8,
}

/// Bits that stand before the address in the prefix key (family, zone, padding).
const LPM_HEAD_BITS: u32 = 32;

/// How tables hold an address: its family, 4 or 6, and its words, IPv4 in the first.
pub fn words(address: IpAddr) -> (u8, [Be32; 4]) {
    match address {
        IpAddr::V4(a) => (4, [Be32::from_wire(a.octets()), Be32::default(), Be32::default(), Be32::default()]),
        IpAddr::V6(a) => {
            let bits = a.to_bits();
            (6, [96, 64, 32, 0].map(|shift| Be32::new((bits >> shift) as u32)))
        }
    }
}

fn address(family: u8, addr: [Be32; 4]) -> Option<IpAddr> {
    match family {
        4 => Some(Ipv4Addr::from(addr[0].to_wire()).into()),
        6 => Some(Ipv6Addr::from_bits(addr.iter().fold(0u128, |bits, word| bits << 32 | u128::from(word.get()))).into()),
        _ => None,
    }
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)).into(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).into(),
    }
}

/// Key of one address in the exact table.
pub fn exact_key(ip: IpAddr) -> IpcacheKey {
    let (family, addr) = words(ip);
    IpcacheKey { addr, family, ..IpcacheKey::default() }
}

/// The address of an exact key; `None` if the family is not 4 or 6.
pub fn exact_address(key: &IpcacheKey) -> Option<IpAddr> {
    address(key.family, key.addr)
}

/// Key of a prefix of `length` bits; bits behind the prefix are cleared.
pub fn lpm_key(ip: IpAddr, length: u8) -> Result<IpcacheLpmKey, PrefixTooLong> {
    let max = if ip.is_ipv4() { 32 } else { 128 };
    if length > max {
        return Err(PrefixTooLong { address: ip, length, max });
    }
    let (family, addr) = words(masked(ip, length));
    Ok(IpcacheLpmKey { prefixlen: LPM_HEAD_BITS + u32::from(length), family, addr, ..IpcacheLpmKey::default() })
}

/// Address and length in bits of a prefix key; `None` if it is not one of ours.
pub fn lpm_prefix(key: &IpcacheLpmKey) -> Option<(IpAddr, u8)> {
    let ip = address(key.family, key.addr)?;
    let length = u8::try_from(key.prefixlen.checked_sub(LPM_HEAD_BITS)?).ok()?;
    (length <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn bytes_stand_as_in_a_packet() {
        let key = exact_key("10.1.2.3".parse().unwrap());
        assert_eq!(&key.as_bytes()[..4], &[10, 1, 2, 3]);
        assert_eq!((key.family, &key.as_bytes()[4..16]), (4, &[0u8; 12][..]));
        let ip: Ipv6Addr = "fd00:1:2:3:4:5:6:7".parse().unwrap();
        assert_eq!(&exact_key(ip.into()).as_bytes()[..16], &ip.octets());
    }

    #[test]
    fn keys_go_back_to_addresses() {
        for text in ["0.0.0.0", "10.1.2.3", "255.255.255.255", "::", "fd00::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(exact_address(&exact_key(ip)), Some(ip));
        }
        assert_eq!(exact_address(&IpcacheKey::default()), None);
    }

    #[test]
    fn prefixes_are_masked_and_bounded() {
        let rows = [
            ("10.1.2.3", 8, "10.0.0.0"),
            ("10.1.2.3", 0, "0.0.0.0"),
            ("10.1.2.3", 32, "10.1.2.3"),
            ("fd00::ff", 124, "fd00::f0"),
            ("fd00::ff", 0, "::"),
            ("fd00::ff", 128, "fd00::ff"),
        ];
        for (text, length, want) in rows {
            let key = lpm_key(text.parse().unwrap(), length).unwrap();
            assert_eq!(key.prefixlen, 32 + u32::from(length));
            assert_eq!(lpm_prefix(&key), Some((want.parse().unwrap(), length)));
        }
        assert!(lpm_key("10.0.0.0".parse().unwrap(), 33).is_err());
        assert!(lpm_key("::".parse().unwrap(), 129).is_err());
        assert_eq!(lpm_prefix(&IpcacheLpmKey { prefixlen: 65, family: 4, ..Default::default() }), None);
        assert_eq!(lpm_prefix(&IpcacheLpmKey { prefixlen: 31, family: 6, ..Default::default() }), None);
    }
}
