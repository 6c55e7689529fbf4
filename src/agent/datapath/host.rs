// SPDX-License-Identifier: Apache-2.0
//! The host's own side: the pair `pilus_host`/`pilus_net`, the router addresses, the routes of the node's ranges.

use super::Tables;
use super::hooks::{Hook, attach};
use super::rows::RowWriter;
use crate::options::{AttachMode, Prefix};
use pilus_loader::Error;
use pilus_loader::bpffs::BpfFs;
use pilus_loader::collection::Program;
use pilus_loader::hook::Dir;
use pilus_loader::netlink::{LocalPair, Netlink, RouteSpec};
use pilus_model::abi::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const HOST_DEVICE: &str = "pilus_host";
pub const NET_DEVICE: &str = "pilus_net";
const HOST_PIN: &str = "host";

/// What the host side is made of.
pub struct HostSide {
    pub v6_range: Prefix<Ipv6Addr>,
    pub v4_range: Option<Prefix<Ipv4Addr>>,
    pub router_v6: Ipv6Addr,
    pub router_v4: Ipv4Addr,
    pub mtu: u16,
    pub attach_mode: AttachMode,
    pub tcx: bool,
}

impl HostSide {
    /// Makes what is missing and swaps in `from_netdev`. Idempotent; nothing that carries traffic is taken away first.
    pub async fn set_up(
        &self,
        fs: &BpfFs,
        tables: &Tables,
        rows: &RowWriter,
        netlink: &Netlink,
        from_netdev: &Program,
    ) -> Result<u32, Error> {
        let (host, net, mac) = self.devices(netlink).await?;
        self.rows(tables, rows, host, mac)?;
        let pin = fs.links().join(HOST_PIN);
        attach(Hook { pin: &pin, ifindex: net, dir: Dir::Ingress, ours: true }, from_netdev, self.attach_mode, self.tcx)?;
        netlink.set_up(net).await?;
        netlink.set_up(host).await?;
        netlink.add_address(host, IpAddr::V6(self.router_v6), 128).await?;
        let mut route = RouteSpec::new(IpAddr::V6(self.v6_range.base), self.v6_range.len, host);
        route.pref_source = Some(IpAddr::V6(self.router_v6));
        netlink.route_replace(&route).await?;
        if let Some(range) = self.v4_range {
            netlink.add_address(host, IpAddr::V4(self.router_v4), 32).await?;
            let mut route = RouteSpec::new(IpAddr::V4(range.base), range.len, host);
            route.pref_source = Some(IpAddr::V4(self.router_v4));
            route.scope_link = true;
            netlink.route_replace(&route).await?;
        }
        Ok(host)
    }

    /// Indices of both ends, and the MAC that both have: the host's stack addresses its frames to itself (no ARP on the
    /// pair), and they must not look like another host's at the far end.
    async fn devices(&self, netlink: &Netlink) -> Result<(u32, u32, [u8; 6]), Error> {
        if let (Some(host), Some(net)) = (netlink.link_by_name(HOST_DEVICE).await?, netlink.link_by_name(NET_DEVICE).await?) {
            if host.peer_index == Some(net.index) && net.index == IFINDEX_NET && host.noarp && host.mac == net.mac {
                for link in [&host, &net] {
                    if link.mtu != u32::from(self.mtu) {
                        netlink.set_mtu(link.index, u32::from(self.mtu)).await?;
                    }
                }
                return Ok((host.index, net.index, host.mac.unwrap_or_default()));
            }
            netlink.delete_link(host.index).await?;
        }
        let mut mac: [u8; 6] = rand::random();
        mac[0] = (mac[0] & 0xfc) | 0x02;
        let pair = LocalPair {
            name: NET_DEVICE,
            ifindex: Some(IFINDEX_NET),
            peer_name: HOST_DEVICE,
            mac,
            peer_mac: mac,
            mtu: u32::from(self.mtu),
            noarp: true,
            no_autoconf: true,
        };
        let (net, host) = netlink.create_veth_local(pair).await?;
        Ok((host, net, mac))
    }

    fn rows(&self, tables: &Tables, rows: &RowWriter, ifindex: u32, mac: [u8; 6]) -> Result<(), Error> {
        let ip6 = self.router_v6.octets();
        let host = Endpoint {
            ifindex,
            mac,
            host_mac: mac,
            identity: Reserved::Host.raw(),
            policy_in: POLICY_OPEN,
            policy_out: POLICY_OPEN,
            flags: EP_VALID | EP_STACK | EP_DROPS,
            ip4: Be32::from_wire(self.router_v4.octets()),
            ip6: std::array::from_fn(|i| Be32::from_wire([ip6[4 * i], ip6[4 * i + 1], ip6[4 * i + 2], ip6[4 * i + 3]])),
            mtu: self.mtu,
            ..Endpoint::default()
        };
        rows.write(&tables.endpoint, SLOT_HOST, host)?;
        // Who asks for routes is decided with the devices.
        let routed = tables.endpoint.get(&SLOT_WORLD)?.map_or(0, |w| w.flags & (EP_ROUTE | EP_MASQUERADE));
        let world = Endpoint { identity: Reserved::World.raw(), flags: host.flags | routed, ..host };
        rows.write(&tables.endpoint, SLOT_WORLD, world)?;
        Ok(())
    }
}
