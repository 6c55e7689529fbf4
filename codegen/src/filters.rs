// SPDX-License-Identifier: Apache-2.0
//! Tera filters that print C initialisers.

use std::net::{Ipv4Addr, Ipv6Addr};
use tera::{Error, Kwargs, State, Tera, TeraResult};

/// Registers `flag`, `mac`, `be32` and `in6`.
pub(crate) fn register(tera: &mut Tera) {
    tera.register_filter("flag", |on: bool, _: Kwargs, _: &State| -> TeraResult<String> { Ok(u8::from(on).to_string()) });
    tera.register_filter("mac", |text: &str, _: Kwargs, _: &State| -> TeraResult<String> { mac(text).map_err(Error::message) });
    tera.register_filter("be32", |text: &str, _: Kwargs, _: &State| -> TeraResult<String> { be32(text).map_err(Error::message) });
    tera.register_filter("in6", |text: &str, _: Kwargs, _: &State| -> TeraResult<String> { in6(text).map_err(Error::message) });
}

fn mac(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is no MAC address");
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| match part.len() {
            1 | 2 if part.bytes().all(|b| b.is_ascii_hexdigit()) => u8::from_str_radix(part, 16).map_err(|_| wrong()),
            _ => Err(wrong()),
        })
        .collect::<Result<_, _>>()?;
    if bytes.len() == 6 { Ok(initialiser(&bytes)) } else { Err(wrong()) }
}

/// A number whose bytes in this host's memory are the address in network order; no address is 0.
fn be32(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok("0x00000000".to_owned());
    }
    let address: Ipv4Addr = text.parse().map_err(|_| format!("`{text}` is no IPv4 address"))?;
    Ok(format!("{:#010x}", u32::from_ne_bytes(address.octets())))
}

fn in6(text: &str) -> Result<String, String> {
    let address: Ipv6Addr = text.parse().map_err(|_| format!("`{text}` is no IPv6 address"))?;
    Ok(initialiser(&address.octets()))
}

fn initialiser(bytes: &[u8]) -> String {
    let list: Vec<String> = bytes.iter().map(|b| format!("{b:#04x}")).collect();
    format!("{{ {} }}", list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_initialisers() {
        assert_eq!(mac("02:00:5e:10:ff:1").unwrap(), "{ 0x02, 0x00, 0x5e, 0x10, 0xff, 0x01 }");
        assert!(mac("02:00:5e:10:ff").is_err());
        assert!(mac("02:00:5e:10:ff:+1").is_err());
        assert_eq!(be32("").unwrap(), "0x00000000");
        let literal = be32("10.0.0.1").unwrap();
        assert_eq!(u32::from_str_radix(&literal[2..], 16).unwrap().to_ne_bytes(), [10, 0, 0, 1]);
        assert!(in6("fd00::1").unwrap().starts_with("{ 0xfd, 0x00, 0x00, "));
        assert!(in6("10.0.0.1").is_err());
    }
}
