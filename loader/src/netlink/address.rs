// SPDX-License-Identifier: Apache-2.0
//! Addresses of devices.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use tokio::time::Instant;

use super::{Netlink, unless, what};
use crate::error::Result;

/// How long the kernel may take to put an address into use.
const IN_USE: Duration = Duration::from_secs(10);

/// Interface index, address, prefix length.
pub type Address = (u32, IpAddr, u8);

pub(super) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(super) fn parse(message: &AddressMessage) -> Option<Address> {
    // For IPv4 `Address` is the other end of a point-to-point link where that differs; `Local` is ours.
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    Some((message.header.index, local.or(address)?, message.header.prefix_len))
}

fn lasts(message: &AddressMessage) -> bool {
    let flags = message.attributes.iter().find_map(|a| if let AddressAttribute::Flags(f) = a { Some(*f) } else { None });
    let flags = flags.unwrap_or(AddressFlags::from_bits_retain(message.header.flags.bits().into()));
    // For IPv6 the kernel calls temporary addresses secondary (RFC 8981).
    let passing = AddressFlags::Secondary | AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    message.header.scope == AddressScope::Universe && !flags.intersects(passing)
}

fn message(index: u32, ip: IpAddr, plen: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = plen;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

impl Netlink {
    /// All addresses of all devices.
    pub async fn addresses(&self) -> Result<Vec<Address>> {
        let all = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), &what("list", "addresses")).await?;
        Ok(all
            .iter()
            .filter_map(|a| match a {
                RouteNetlinkMessage::NewAddress(m) => parse(m),
                _ => None,
            })
            .collect())
    }

    /// Those that a device may speak to the world by for long: of global scope, known to be nobody else's, neither secondary,
    /// temporary nor deprecated.
    pub async fn lasting_addresses(&self) -> Result<Vec<Address>> {
        let all = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), &what("list", "addresses")).await?;
        let of = |m: &RouteNetlinkMessage| match m {
            RouteNetlinkMessage::NewAddress(m) if lasts(m) => parse(m),
            _ => None,
        };
        Ok(all.iter().filter_map(of).collect())
    }

    /// Gives a device that is up an address, and returns when packets for it are taken; Ok(false) if the device had it. Nobody is
    /// asked whether an IPv6 address is used elsewhere.
    pub async fn add_address(&self, index: u32, ip: IpAddr, plen: u8) -> Result<bool> {
        let mut m = message(index, ip, plen);
        if ip.is_ipv6() {
            m.header.flags |= AddressHeaderFlags::Nodad;
            m.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let object = format!("{ip}/{plen} of interface {index}");
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let result = self.execute(RouteNetlinkMessage::NewAddress(m), flags, &what("add address", &object)).await;
        let added = unless(result, &[libc::EEXIST])?;
        if added && ip.is_ipv6() {
            self.until_in_use(ip).await?;
        }
        Ok(added)
    }

    /// The kernel puts a new IPv6 address into use from a work queue, and forwards, that is drops, what comes for it before. If
    /// rules of the host send packets for it elsewhere, that is said in the log.
    async fn until_in_use(&self, ip: IpAddr) -> Result<()> {
        let deadline = Instant::now() + IN_USE;
        while !self.is_local(ip).await? {
            if Instant::now() > deadline {
                tracing::warn!("packets for {ip} do not come to this host: look at its routes and rules (ip rule)");
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Takes an address from a device; Ok(false) if it, or the device, is not there.
    pub async fn delete_address(&self, index: u32, ip: IpAddr, plen: u8) -> Result<bool> {
        let object = format!("{ip}/{plen} of interface {index}");
        let result = self.execute(RouteNetlinkMessage::DelAddress(message(index, ip, plen)), 0, &what("delete address", &object)).await;
        unless(result, &[libc::EADDRNOTAVAIL, libc::ENODEV])
    }
}
