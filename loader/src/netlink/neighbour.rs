// SPDX-License-Identifier: Apache-2.0
//! Neighbours.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::address::family;
use super::{Netlink, unless, what};
use crate::error::Result;

fn message(index: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }));
    message
}

impl Netlink {
    /// Sets a permanent neighbour, in place of what is known about that address.
    pub async fn neighbour_replace(&self, index: u32, ip: IpAddr, mac: [u8; 6]) -> Result<()> {
        let mut m = message(index, ip);
        m.header.state = NeighbourState::Permanent;
        m.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let object = format!("{ip} of interface {index}");
        self.execute(RouteNetlinkMessage::NewNeighbour(m), NLM_F_CREATE | NLM_F_REPLACE, &what("set neighbour", &object)).await
    }

    /// Removes a neighbour; Ok(false) if it, or the device, is not there.
    pub async fn neighbour_delete(&self, index: u32, ip: IpAddr) -> Result<bool> {
        let object = format!("{ip} of interface {index}");
        let result = self.execute(RouteNetlinkMessage::DelNeighbour(message(index, ip)), 0, &what("delete neighbour", &object)).await;
        unless(result, &[libc::ENOENT, libc::ENODEV])
    }

    /// The neighbours of a device with their Ethernet address, where that is known.
    pub async fn neighbours(&self, index: u32) -> Result<Vec<(IpAddr, Option<[u8; 6]>)>> {
        let all = self.dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), &what("list", "neighbours")).await?;
        let of_device = all.iter().filter_map(|a| match a {
            RouteNetlinkMessage::NewNeighbour(m) if m.header.ifindex == index => Some(m),
            _ => None,
        });
        Ok(of_device
            .filter_map(|m| {
                let ip = m.attributes.iter().find_map(|a| match a {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                    _ => None,
                })?;
                let mac = m.attributes.iter().find_map(|a| match a {
                    NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
                    _ => None,
                });
                Some((ip, mac))
            })
            .collect())
    }
}
