// SPDX-License-Identifier: Apache-2.0
//! What is outside of the node: another network namespace behind one of its devices.

use crate::{Container, Node};
use anyhow::{Context, Result};
use pilus_loader::netlink::{Netlink, PairSpec, RouteSpec};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node's own addresses on its `n`th device; its neighbour there has the next ones.
pub fn node_addresses(n: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(192, 0, 2, 16 * n + 1), Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(n), 0, 0, 0, 1))
}

fn run<T: Send>(node: Option<&Node>, at: &Container, work: impl AsyncFnOnce(&Netlink) -> Result<T> + Send) -> Result<T> {
    let go = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { work(&Netlink::new()?).await })
    };
    match node {
        Some(node) => node.run(go),
        None => at.run(go),
    }
}

/// Puts a neighbour behind a new device `eth<n>` of the node, on a /28 and a /64 of their own. It routes everything to the node;
/// the node routes the rest of the world to it, if it is to be the way there.
pub fn connect(node: &Node, n: u8, mtu: u32, default: bool) -> Result<Container> {
    let mut world = Container::new(&format!("world{n}"))?;
    let (v4, v6) = node_addresses(n);
    let (world4, world6) = (Ipv4Addr::from(u32::from(v4) + 1), Ipv6Addr::from(u128::from(v6) + 1));
    world.ipv4 = Some(world4);
    world.ipv6 = world6;
    world.mac = [2, 0, 0, 1, 0, n];
    world.host_mac = [2, 0, 0, 1, 1, n];
    let netns = std::fs::File::open(world.path())?;
    let name = format!("eth{n}");
    run(Some(node), &world, async |netlink| {
        let spec = PairSpec {
            name: &name,
            ifindex: None,
            mac: [2, 0, 0, 1, 1, n],
            mtu,
            peer_name: "eth0",
            peer_mac: [2, 0, 0, 1, 0, n],
            peer_netns: std::os::fd::AsFd::as_fd(&netns),
            up: true,
            no_autoconf: false,
        };
        let index = netlink.create_veth(spec).await?;
        netlink.add_address(index, v4.into(), 28).await?;
        netlink.add_address(index, v6.into(), 64).await?;
        Ok(())
    })?;
    run(None, &world, async |netlink| {
        let link = netlink.link_by_name("eth0").await?.context("no eth0")?;
        netlink.set_up(link.index).await?;
        netlink.add_address(link.index, world4.into(), 28).await?;
        netlink.add_address(link.index, world6.into(), 64).await?;
        for (gateway, any) in [(IpAddr::from(v4), IpAddr::from(Ipv4Addr::UNSPECIFIED)), (v6.into(), Ipv6Addr::UNSPECIFIED.into())] {
            netlink.route_replace(&RouteSpec { gateway: Some(gateway), ..RouteSpec::new(any, 0, link.index) }).await?;
        }
        Ok(())
    })?;
    // The node's end was up before the other: the kernel notices its carrier late when it is busy, and drops what is sent
    // meanwhile; asking makes it look.
    run(Some(node), &world, async |netlink| netlink.link_by_name(&name).await.map(drop).map_err(Into::into))?;
    if default {
        route_by(node, &world, n)?;
    }
    Ok(world)
}

/// Makes a neighbour the node's way to everything.
pub fn route_by(node: &Node, world: &Container, n: u8) -> Result<()> {
    let gateways = [
        (IpAddr::from(world.ipv4.context("has an IPv4 address")?), IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        (world.ipv6.into(), Ipv6Addr::UNSPECIFIED.into()),
    ];
    run(Some(node), world, async |netlink| {
        let link = netlink.link_by_name(&format!("eth{n}")).await?.context("no such device")?;
        for (gateway, any) in gateways {
            netlink.route_replace(&RouteSpec { gateway: Some(gateway), ..RouteSpec::new(any, 0, link.index) }).await?;
        }
        Ok(())
    })
}
