// SPDX-License-Identifier: Apache-2.0
//! Routes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::address::family;
use super::{Netlink, unless, what};
use crate::error::{Error, Result};

/// Origin that our routes carry (`ip route show proto 80`), so that people and cleanup know them.
pub const ROUTE_PROTOCOL: u8 = 80;

/// What a route does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouteKind {
    /// Sends packets on.
    #[default]
    Unicast,
    /// Delivers packets here, whatever their address (transparent proxying).
    Local,
    /// Refuses packets.
    Unreachable,
}

/// A route to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    pub dst: IpAddr,
    /// Prefix length.
    pub plen: u8,
    /// Device; 0 with [`RouteKind::Unreachable`].
    pub oif: u32,
    pub gateway: Option<IpAddr>,
    /// The gateway is behind the device though no address says so.
    pub onlink: bool,
    pub pref_source: Option<IpAddr>,
    /// Routing table, 254 is main.
    pub table: u32,
    /// Destinations are neighbours (IPv4 scope link).
    pub scope_link: bool,
    /// Largest packet on this route, bytes.
    pub mtu: Option<u32>,
    pub kind: RouteKind,
}

impl RouteSpec {
    /// A route of the main table to `dst/plen` by a device.
    pub fn new(dst: IpAddr, plen: u8, oif: u32) -> Self {
        let table = RouteHeader::RT_TABLE_MAIN.into();
        Self {
            dst,
            plen,
            oif,
            gateway: None,
            onlink: false,
            pref_source: None,
            table,
            scope_link: false,
            mtu: None,
            kind: RouteKind::Unicast,
        }
    }

    fn name(&self) -> String {
        format!("{}/{} by interface {} in table {}", self.dst, self.plen, self.oif, self.table)
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(self.dst);
        header.destination_prefix_length = self.plen;
        // Tables beyond 255 only fit into the attribute.
        header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        header.kind = match self.kind {
            RouteKind::Unicast => RouteType::Unicast,
            RouteKind::Local => RouteType::Local,
            RouteKind::Unreachable => RouteType::Unreachable,
        };
        header.scope = match self.kind {
            RouteKind::Local => RouteScope::Host,
            _ if self.scope_link => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if self.onlink {
            header.flags |= RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(self.table));
        if self.plen > 0 {
            attributes.push(RouteAttribute::Destination(self.dst.into()));
        }
        if self.oif != 0 {
            attributes.push(RouteAttribute::Oif(self.oif));
        }
        attributes.extend(self.gateway.map(|g| RouteAttribute::Gateway(g.into())));
        attributes.extend(self.pref_source.map(|s| RouteAttribute::PrefSource(s.into())));
        attributes.extend(self.mtu.map(|m| RouteAttribute::Metrics(vec![RouteMetric::Mtu(m)])));
        message
    }
}

/// A route as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub dst: IpAddr,
    pub plen: u8,
    /// Device (of the first next hop), 0 if there is none.
    pub oif: u32,
    pub gateway: Option<IpAddr>,
    pub pref_source: Option<IpAddr>,
    pub table: u32,
    pub scope_link: bool,
    /// Largest packet on this route, bytes.
    pub mtu: Option<u32>,
    /// Smaller wins.
    pub priority: u32,
    /// Origin; [`ROUTE_PROTOCOL`] is ours.
    pub protocol: u8,
    /// RTN_UNICAST 1, RTN_LOCAL 2, ...
    pub kind: u8,
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn parse(message: &RouteMessage) -> Route {
    let v6 = family(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) == message.header.address_family;
    let any = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let mut route = Route {
        dst: any,
        plen: message.header.destination_prefix_length,
        oif: 0,
        gateway: None,
        pref_source: None,
        table: message.header.table.into(),
        scope_link: message.header.scope == RouteScope::Link,
        mtu: None,
        priority: 0,
        protocol: message.header.protocol.into(),
        kind: message.header.kind.into(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => route.dst = ip(a).unwrap_or(any),
            RouteAttribute::Oif(oif) => route.oif = *oif,
            RouteAttribute::Gateway(a) => route.gateway = ip(a),
            RouteAttribute::PrefSource(a) => route.pref_source = ip(a),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(priority) => route.priority = *priority,
            RouteAttribute::MultiPath(hops) => {
                if let Some(hop) = hops.first() {
                    route.oif = hop.interface_index;
                    route.gateway = hop.attributes.iter().find_map(|a| match a {
                        RouteAttribute::Gateway(g) => ip(g),
                        _ => None,
                    });
                }
            }
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|m| match m {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    route
}

impl Netlink {
    /// Sets a route, in place of one with the same destination, table and priority.
    pub async fn route_replace(&self, spec: &RouteSpec) -> Result<()> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.execute(RouteNetlinkMessage::NewRoute(spec.message()), flags, &what("set route", &spec.name())).await
    }

    /// Removes a route; Ok(false) if it, its table or its device is not there.
    pub async fn route_delete(&self, spec: &RouteSpec) -> Result<bool> {
        let mut message = spec.message();
        // What the kernel compares beyond destination and device must not keep a route that another version of us made.
        message.header.protocol = RouteProtocol::Unspec;
        message.header.scope = RouteScope::NoWhere;
        message.attributes.retain(|a| !matches!(a, RouteAttribute::Metrics(_) | RouteAttribute::PrefSource(_)));
        let result = self.execute(RouteNetlinkMessage::DelRoute(message), 0, &what("delete route", &spec.name())).await;
        unless(result, &[libc::ESRCH, libc::ENODEV, libc::ENOENT])
    }

    /// Gateways that routes of any table name, each with its device. A route may have several, and one of the other family.
    pub async fn gateways(&self) -> Result<BTreeSet<(u32, IpAddr)>> {
        let gateway = |a: &RouteAttribute| match a {
            RouteAttribute::Gateway(a) => ip(a),
            RouteAttribute::Via(RouteVia::Inet(a)) => Some((*a).into()),
            RouteAttribute::Via(RouteVia::Inet6(a)) => Some((*a).into()),
            _ => None,
        };
        let mut gateways = BTreeSet::new();
        for message in self.route_messages().await? {
            let oif = message.attributes.iter().find_map(|a| if let RouteAttribute::Oif(oif) = a { Some(*oif) } else { None });
            gateways.extend(oif.zip(message.attributes.iter().find_map(gateway)));
            let hops = message.attributes.iter().filter_map(|a| if let RouteAttribute::MultiPath(hops) = a { Some(hops) } else { None });
            gateways.extend(hops.flatten().filter_map(|h| Some((h.interface_index, h.attributes.iter().find_map(gateway)?))));
        }
        Ok(gateways)
    }

    /// All routes, of both families and every table. Cached ones are left out.
    pub async fn all_routes(&self) -> Result<Vec<Route>> {
        Ok(self.route_messages().await?.iter().map(parse).collect())
    }

    async fn route_messages(&self) -> Result<Vec<RouteMessage>> {
        let mut routes = Vec::new();
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let mut message = RouteMessage::default();
            message.header.address_family = family(any);
            for answer in self.dump(RouteNetlinkMessage::GetRoute(message), &what("list", "routes")).await? {
                if let RouteNetlinkMessage::NewRoute(m) = answer
                    && !m.header.flags.contains(RouteFlags::Cloned)
                {
                    routes.push(m);
                }
            }
        }
        Ok(routes)
    }

    /// Whether packets for an address end here. Those that a rule takes elsewhere do not.
    pub(super) async fn is_local(&self, ip: IpAddr) -> Result<bool> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(ip);
        message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(ip.into()));
        match self.get(RouteNetlinkMessage::GetRoute(message), &what("look up", &ip.to_string())).await {
            Ok(answers) => Ok(answers.iter().any(|a| matches!(a, RouteNetlinkMessage::NewRoute(m) if m.header.kind == RouteType::Local))),
            // Unreachable, as an error, is an answer too.
            Err(Error::Netlink { errno: libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL, .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The routes by a device.
    pub async fn routes(&self, oif: u32) -> Result<Vec<Route>> {
        let mut routes = self.all_routes().await?;
        routes.retain(|r| r.oif == oif);
        Ok(routes)
    }

    /// Device of the default route in the main table with the smallest priority, IPv4 before IPv6.
    pub async fn default_route_device(&self) -> Result<Option<u32>> {
        let main = u32::from(RouteHeader::RT_TABLE_MAIN);
        let unicast = u8::from(RouteType::Unicast);
        let routes = self.all_routes().await?;
        let defaults = routes.iter().filter(|r| r.plen == 0 && r.table == main && r.kind == unicast && r.oif != 0);
        Ok(defaults.min_by_key(|r| (r.dst.is_ipv6(), r.priority)).map(|r| r.oif))
    }
}
