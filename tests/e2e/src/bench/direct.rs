// SPDX-License-Identifier: Apache-2.0
//! Two nodes without a tunnel: two agents, each in a network namespace of its own, a pair of devices between them, routes set by
//! hand, policy at both ends; against two namespaces that only forward.

use super::path::{self, Entry, Path, addresses, block, ip4, ip6, mac, netns, pair, set_up};
use super::probe::settled;
use super::traffic::{Kind, compare, single_packets, suffix};
use super::{Plan, Row, on_own_processor};
use crate::container::{enter, new_netns};
use crate::{Container, Family, Node, NodeOptions};
use anyhow::{Context, Result};
use pilus_loader::netlink::{Netlink, RouteSpec};
use std::fs::File;
use std::net::IpAddr;

pub const ROWS: &[&str] =
    &["direct_rr_over_kernel_v4", "direct_rr_over_kernel_v6", "direct_stream1448_over_kernel_v4", "direct_stream1448_over_kernel_v6"];

/// Networks of the clients, the servers, and between both nodes.
const CLIENTS: u8 = 20;
const SERVERS: u8 = 21;
const BETWEEN: u8 = 22;

/// Reaches a prefix through a neighbour.
async fn route(netlink: &Netlink, to: IpAddr, len: u8, via: IpAddr, device: &str) -> Result<()> {
    let index = netlink.link_by_name(device).await?.context("a device")?.index;
    netlink.route_replace(&RouteSpec { gateway: Some(via), ..RouteSpec::new(to, len, index) }).await?;
    Ok(())
}

/// The first end is `eth0` of the calling thread's namespace, the other that of `far`.
fn underlay(near: impl FnOnce(&(dyn Fn() -> Result<()> + Sync)) -> Result<()>, far: &File, name: &str) -> Result<()> {
    near(&|| {
        block(async {
            let netlink = Netlink::new()?;
            let index = pair(&netlink, name, mac(BETWEEN, 1), mac(BETWEEN, 2), far).await?;
            addresses(&netlink, index, BETWEEN, 1).await
        })
    })?;
    enter(far, || {
        block(async {
            let netlink = Netlink::new()?;
            let index = netlink.link_by_name("eth0").await?.context("eth0")?.index;
            netlink.set_up(index).await?;
            addresses(&netlink, index, BETWEEN, 2).await
        })
    })
}

/// A namespace that forwards, with a container behind `c0`.
fn router(net: u8, name: &str) -> Result<(File, Container)> {
    let (router, mut container) = (new_netns()?, Container::new(name)?);
    let end = container.run(netns)?;
    enter(&router, || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        block(async {
            let netlink = Netlink::new()?;
            let index = pair(&netlink, "c0", mac(net, 9), mac(net, 1), &end).await?;
            addresses(&netlink, index, net, 9).await
        })
    })?;
    set_up(&mut container, net, 1, Some(9))?;
    Ok((router, container))
}

/// Also the server's router, which lives as long as its file.
fn kernel() -> Result<(Path, File)> {
    let (near, client) = router(CLIENTS, "k-client")?;
    let (far, server) = router(SERVERS, "k-server")?;
    underlay(|make| enter(&near, make), &far, "eth0")?;
    for (at, to, via) in [(&near, SERVERS, 2), (&far, CLIENTS, 1)] {
        enter(at, || {
            block(async {
                let netlink = Netlink::new()?;
                route(&netlink, ip4(to, 0).into(), 24, ip4(BETWEEN, via).into(), "eth0").await?;
                route(&netlink, ip6(to, 0).into(), 64, ip6(BETWEEN, via).into(), "eth0").await
            })
        })?;
    }
    let entry = Entry { netns: near, ifindex: 0, source: [0; 6], destination: [0; 6] };
    Ok((Path { name: "kernel", client, server, entry }, far))
}

fn node(n: u8) -> Result<Node> {
    let other = 3 - n;
    let (v4, v6) = (format!("10.{}.0.0/16", 100 + n), format!("fd00:{n}::/64"));
    // Nodes know each other's containers by their own addresses.
    let direct = [format!("10.{}.0.0/16", 100 + other), format!("fd00:{other}::/64")];
    let mut args = vec!["--device".into(), "eth0".into(), "--ipv4-range".into(), v4, "--ipv6-range".into(), v6];
    args.extend(direct.into_iter().flat_map(|range| ["--masquerade-exclude".to_owned(), range]));
    Node::prepare(NodeOptions { args, ..NodeOptions::default() })
}

fn policy(name: &str, section: &str, peers: u8) -> String {
    let (tcp, stream, udp) = (path::TCP_PORT, path::STREAM_PORT, path::UDP_PORT);
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\nspec:\n  endpointSelector: {{matchLabels: {{app: \
         {name}}}}}\n  {section}: [\"10.{}.0.0/16\", \"fd00:{peers}::/64\"]\n    toPorts:\n    - ports: [{{port: \"{tcp}\", protocol: TCP}}, {{port: \
         \"{stream}\", protocol: TCP}}, {{port: \"{udp}\", protocol: UDP}}]\n",
        100 + peers
    )
}

/// Both nodes, the way between them, and that of the client to the server.
fn pilus() -> Result<(Node, Node, Path)> {
    let (mut near, mut far) = (node(1)?, node(2)?);
    let far_netns = far.run(netns)?;
    underlay(|make| near.run(make), &far_netns, "eth0")?;
    for (node, to, via) in [(&mut near, 2, 2), (&mut far, 1, 1)] {
        node.run(|| {
            block(async {
                let netlink = Netlink::new()?;
                let (v4, v6): (IpAddr, IpAddr) = (format!("10.{}.0.0", 100 + to).parse()?, format!("fd00:{to}::").parse()?);
                route(&netlink, v4, 16, ip4(BETWEEN, via).into(), "eth0").await?;
                route(&netlink, v6, 64, ip6(BETWEEN, via).into(), "eth0").await
            })
        })?;
        node.start_agent()?;
    }
    let client = near.add("client", &["app=client"])?;
    let server = far.add("server", &["app=server"])?;
    near.import(&policy("client", "egress:\n  - toCIDR", 2))?;
    far.import(&policy("server", "ingress:\n  - fromCIDR", 1))?;
    settled(&near, &["client"])?;
    settled(&far, &["server"])?;
    let entry = Entry { netns: near.run(netns)?, ifindex: 0, source: [0; 6], destination: [0; 6] };
    Ok((near, far, Path { name: "pilus", client, server, entry }))
}

pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let (near, far, path) = pilus()?;
    let (plain, _far) = kernel()?;
    let paths = [plain, path];
    on_own_processor(|cpu| {
        single_packets(&paths)?;
        let mut rows = Vec::new();
        for (kind, base) in [(Kind::Rr, "direct_rr_over_kernel"), (Kind::Stream, "direct_stream1448_over_kernel")] {
            for family in [Family::V4, Family::V6] {
                let name = format!("{base}_{}", suffix(family));
                if !plan.wants(&name) {
                    continue;
                }
                let sent = near.metric("Forwarded")?;
                let (values, counted) = compare(plan, kind, family, &paths, &far)?;
                let sent = near.metric("Forwarded")? - sent;
                anyhow::ensure!(sent >= counted, "{name}: {counted} packets at the server's node, {sent} at the client's");
                let note = format!("cpu {cpu}, {counted} packets counted by the server's node, {sent} by the client's");
                rows.push(Row { baseline: values[0].clone(), ..Row::new(&name, kind.unit(), values[1].clone()).note(note) });
            }
        }
        Ok(rows)
    })
}
