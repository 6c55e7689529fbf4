// SPDX-License-Identifier: Apache-2.0
//! What changes on devices, addresses and routes.

use std::net::IpAddr;

use futures::{Stream, StreamExt as _};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteAttribute;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;

use super::Netlink;
use super::address;
use super::link::{self, LinkInfo};
use crate::error::{Error, Result};

/// A change of devices, addresses or routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device is new or other than before.
    Link(LinkInfo),
    /// A device is gone (removed or moved to another namespace).
    LinkGone { index: u32, name: String },
    /// A device has an address, new or with other flags than before.
    Address { index: u32, ip: IpAddr, plen: u8 },
    /// A device lost an address.
    AddressGone { index: u32, ip: IpAddr, plen: u8 },
    /// A route by this device (0: by none, or by several) is new, other than before, or gone; the local table is not told of. Or
    /// a routing rule is (0).
    Route { oif: u32 },
    /// Messages were lost: list everything anew.
    Lost,
}

fn change(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    match payload {
        NetlinkPayload::Overrun(_) => Some(Change::Lost),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(m)) => Some(Change::Link(link::info_of(&m))),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(m)) => {
            let LinkInfo { index, name, .. } = link::info_of(&m);
            Some(Change::LinkGone { index, name })
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(m)) => {
            address::parse(&m).map(|(index, ip, plen)| Change::Address { index, ip, plen })
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(m)) => {
            address::parse(&m).map(|(index, ip, plen)| Change::AddressGone { index, ip, plen })
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(m) | RouteNetlinkMessage::DelRoute(m)) => {
            let oif = m.attributes.iter().find_map(|a| if let RouteAttribute::Oif(oif) = a { Some(*oif) } else { None });
            (m.header.table != libc::RT_TABLE_LOCAL).then(|| Change::Route { oif: oif.unwrap_or_default() })
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_)) => Some(Change::Route { oif: 0 }),
        _ => None,
    }
}

impl Netlink {
    /// Changes from now on, in the calling thread's network namespace (not necessarily that of `self`). Watch first and list
    /// then, so that nothing falls between. Must be called inside a tokio runtime; the stream ends only with that.
    pub fn watch(&self) -> Result<impl Stream<Item = Change> + Send + Unpin + 'static> {
        use MulticastGroup::{Ipv4Ifaddr, Ipv4Route, Ipv4Rule, Ipv6Ifaddr, Ipv6Route, Ipv6Rule, Link};
        let groups = [Link, Ipv4Ifaddr, Ipv6Ifaddr, Ipv4Route, Ipv6Route, Ipv4Rule, Ipv6Rule];
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|e| Error::Kernel { action: "open a netlink socket for changes", errno: e.raw_os_error().unwrap_or(libc::EINVAL) })?;
        tokio::spawn(connection);
        Ok(messages
            .filter_map(move |(message, _)| {
                // The connection ends with its last handle.
                let _kept = &handle;
                std::future::ready(change(message.payload))
            })
            .boxed())
    }
}
