// SPDX-License-Identifier: Apache-2.0
//! Address prefixes.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use thiserror::Error;

/// Why a text is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PrefixError {
    #[error("expected an address with a prefix length such as 10.0.0.0/8 or fd00::/8, found {0:?}")]
    Malformed(String),
    #[error("`{0}` has no prefix length (write {0}/{1} for one address)")]
    NoLength(IpAddr, u8),
    #[error("a prefix of {0} has at most {1} bits, not {2}")]
    TooLong(IpAddr, u8, u32),
    #[error("`{0}/{1}` has bits set behind its length: write {2}")]
    HostBits(IpAddr, u8, Prefix),
}

/// An address and a length in bits; no bit is set behind the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    ip: IpAddr,
    len: u8,
}

const fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn masked(ip: IpAddr, len: u8) -> IpAddr {
    match ip {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)).into(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)).into(),
    }
}

impl Prefix {
    /// Every IPv4 address.
    pub const ALL4: Self = Self { ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED), len: 0 };
    /// Every IPv6 address.
    pub const ALL6: Self = Self { ip: IpAddr::V6(Ipv6Addr::UNSPECIFIED), len: 0 };

    /// # Errors
    /// A length beyond the address, or bits set behind it.
    pub fn new(ip: IpAddr, len: u8) -> Result<Self, PrefixError> {
        if len > bits(ip) {
            return Err(PrefixError::TooLong(ip, bits(ip), u32::from(len)));
        }
        let prefix = Self { ip: masked(ip, len), len };
        if prefix.ip == ip { Ok(prefix) } else { Err(PrefixError::HostBits(ip, len, prefix)) }
    }
    /// Exactly one address.
    pub const fn address(ip: IpAddr) -> Self {
        Self { ip, len: bits(ip) }
    }
    /// The first in order that such a prefix's addresses can have.
    pub(crate) const fn first(of: Self) -> Self {
        Self { ip: of.ip, len: 0 }
    }
    pub const fn ip(self) -> IpAddr {
        self.ip
    }
    /// Length in bits.
    pub const fn length(self) -> u8 {
        self.len
    }
    /// Whether every address of `other` is one of these.
    pub fn covers(self, other: Self) -> bool {
        self.ip.is_ipv4() == other.ip.is_ipv4() && self.len <= other.len && masked(other.ip, self.len) == self.ip
    }
    pub fn contains(self, ip: IpAddr) -> bool {
        self.covers(Self::address(ip))
    }
    /// The prefix and every shorter one that covers it, longest first.
    pub fn covering(self) -> impl Iterator<Item = Self> {
        (0..=self.len).rev().map(move |len| Self { ip: masked(self.ip, len), len })
    }
    /// Reads `ADDRESS/LENGTH`; a bare address is refused.
    ///
    /// # Errors
    /// As [`PrefixError`] says.
    pub fn with_length(text: &str) -> Result<Self, PrefixError> {
        match text.parse::<IpAddr>() {
            Ok(ip) => Err(PrefixError::NoLength(ip, bits(ip))),
            Err(_) => text.parse(),
        }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// `10.0.0.0/8`, `fd00::/8`, or one address.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let malformed = || PrefixError::Malformed(text.chars().take(60).collect());
        let Some((ip, len)) = text.split_once('/') else { return text.parse().map(Self::address).map_err(|_| malformed()) };
        let ip: IpAddr = ip.parse().map_err(|_| malformed())?;
        if len.is_empty() || len.len() > 3 || !len.bytes().all(|b| b.is_ascii_digit()) || (len.len() > 1 && len.starts_with('0')) {
            return Err(malformed());
        }
        let len: u32 = len.parse().map_err(|_| malformed())?;
        match u8::try_from(len) {
            Ok(short) => Self::new(ip, short),
            Err(_) => Err(PrefixError::TooLong(ip, bits(ip), len)),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.len)
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;
    fn try_from(text: String) -> Result<Self, PrefixError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read() {
        for (text, want) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("fd00::/8", "fd00::/8"),
            ("FD00::1", "fd00::1/128"),
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), want);
        }
        for text in ["", "10.0.0.0/", "10.0.0/8", "10.0.0.0/33", "fd00::/129", "10.0.0.0/08", "10.0.0.0/+8", "10.0.0.1/8", "x/8", "::/999"]
        {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        assert!(Prefix::with_length("10.0.0.1").unwrap_err().to_string().contains("10.0.0.1/32"));
        assert!("10.0.0.1/8".parse::<Prefix>().unwrap_err().to_string().contains("write 10.0.0.0/8"));
    }

    #[test]
    fn covering() {
        let p = |t: &str| t.parse::<Prefix>().unwrap();
        assert!(p("10.0.0.0/8").covers(p("10.1.0.0/16")) && p("10.0.0.0/8").covers(p("10.0.0.0/8")));
        assert!(!p("10.1.0.0/16").covers(p("10.0.0.0/8")) && !p("10.0.0.0/8").covers(p("11.0.0.0/8")));
        assert!(!Prefix::ALL4.covers(p("::/0")) && Prefix::ALL6.covers(p("fd00::1")));
        let all: Vec<String> = p("128.0.0.0/2").covering().map(|p| p.to_string()).collect();
        assert_eq!(all, ["128.0.0.0/2", "128.0.0.0/1", "0.0.0.0/0"]);
    }
}
