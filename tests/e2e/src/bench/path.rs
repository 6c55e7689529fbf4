// SPDX-License-Identifier: Apache-2.0
//! The three ways from a client to a server, side by side.

use crate::container::enter;
use crate::{Container, Family, Node, NodeOptions};
use anyhow::{Context, Result, ensure};
use pilus_loader::netlink::{Netlink, PairSpec, RouteSpec};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

/// Where frames enter that the client seems to have sent.
pub struct Entry {
    pub netns: File,
    pub ifindex: u32,
    /// Of the client.
    pub source: [u8; 6],
    /// Of whom it sends to.
    pub destination: [u8; 6],
}

pub struct Path {
    pub name: &'static str,
    pub client: Container,
    pub server: Container,
    pub entry: Entry,
}

pub(super) fn block<T>(f: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(f)
}

pub(super) fn netns() -> Result<File> {
    Ok(File::open("/proc/thread-self/ns/net")?)
}

pub(super) fn mac(net: u8, host: u8) -> [u8; 6] {
    [2, 0x62, 0, 0, net, host]
}

pub(super) fn ip4(net: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 254, net, host)
}

pub(super) fn ip6(net: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd62, 0, 0, net.into(), 0, 0, 0, host.into())
}

/// One end's `eth0`, with addresses, and a default route if there is a router.
pub(super) fn set_up(container: &mut Container, net: u8, host: u8, router: Option<u8>) -> Result<u32> {
    container.ipv4 = Some(ip4(net, host));
    container.ipv6 = ip6(net, host);
    container.mac = mac(net, host);
    container.run(|| {
        block(async {
            let netlink = Netlink::new()?;
            let index = netlink.link_by_name("eth0").await?.context("eth0")?.index;
            netlink.set_up(index).await?;
            addresses(&netlink, index, net, host).await?;
            for gateway in router.into_iter().flat_map(|r| [IpAddr::V4(ip4(net, r)), IpAddr::V6(ip6(net, r))]) {
                let any = if gateway.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                netlink.route_replace(&RouteSpec { gateway: Some(gateway), ..RouteSpec::new(any, 0, index) }).await?;
            }
            Ok(index)
        })
    })
}

pub(super) async fn addresses(netlink: &Netlink, index: u32, net: u8, host: u8) -> Result<()> {
    netlink.add_address(index, ip4(net, host).into(), 24).await?;
    netlink.add_address(index, ip6(net, host).into(), 64).await?;
    Ok(())
}

/// A pair whose first end is in the calling thread's namespace.
pub(super) async fn pair(netlink: &Netlink, name: &str, ours: [u8; 6], peer: [u8; 6], other: &File) -> Result<u32> {
    let spec = PairSpec {
        name,
        ifindex: None,
        mac: ours,
        mtu: 1500,
        peer_name: "eth0",
        peer_mac: peer,
        peer_netns: other.as_fd(),
        up: true,
        no_autoconf: false,
    };
    Ok(netlink.create_veth(spec).await?)
}

/// A bare veth pair between two namespaces.
pub fn direct() -> Result<Path> {
    const NET: u8 = 1;
    let (mut client, mut server) = (Container::new("f-client")?, Container::new("f-server")?);
    let far = server.run(netns)?;
    client.run(|| block(async { pair(&Netlink::new()?, "eth0", mac(NET, 1), mac(NET, 2), &far).await }))?;
    set_up(&mut client, NET, 1, None)?;
    let ifindex = set_up(&mut server, NET, 2, None)?;
    let entry = Entry { netns: far, ifindex, source: mac(NET, 1), destination: mac(NET, 2) };
    Ok(Path { name: "f", client, server, entry })
}

/// Last part of the addresses that [`routed`]'s namespace has on either side.
pub const ROUTER: u8 = 9;

/// Two pairs and a namespace between them that forwards.
pub fn routed() -> Result<Path> {
    let (mut client, mut server) = (Container::new("r-client")?, Container::new("r-server")?);
    let router = crate::container::new_netns()?;
    let ends = [client.run(netns)?, server.run(netns)?];
    let ifindex = enter(&router, || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        block(async {
            let netlink = Netlink::new()?;
            let mut first = 0;
            for (n, end) in ends.iter().enumerate() {
                let net = 2 + n as u8;
                let index = pair(&netlink, &format!("r{n}"), mac(net, ROUTER), mac(net, 1), end).await?;
                addresses(&netlink, index, net, ROUTER).await?;
                first = if n == 0 { index } else { first };
            }
            Ok(first)
        })
    })?;
    set_up(&mut client, 2, 1, Some(ROUTER))?;
    set_up(&mut server, 3, 1, Some(ROUTER))?;
    let entry = Entry { netns: router, ifindex, source: mac(2, 1), destination: mac(2, ROUTER) };
    Ok(Path { name: "routed", client, server, entry })
}

pub const TCP_PORT: u16 = 7000;
pub const STREAM_PORT: u16 = 7001;
pub const UDP_PORT: u16 = 7002;

/// Exactly what the benchmark sends, at both ends; nothing else.
const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bench-server}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: \"7000\", protocol: TCP}, {port: \"7001\", protocol: TCP}, {port: \"7002\", protocol: UDP}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bench-client}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {app: server}}]
    toPorts:
    - ports: [{port: \"7000\", protocol: TCP}, {port: \"7001\", protocol: TCP}, {port: \"7002\", protocol: UDP}]
";

/// Two containers of an agent, with policy in force.
pub fn pilus() -> Result<(Node, Path)> {
    let node = Node::start(NodeOptions::default())?;
    let server = node.add("server", &["app=server"])?;
    let client = node.add("client", &["app=client"])?;
    node.import(POLICY)?;
    let ifindex = node.block_on(node.client().endpoint("name:client"))?.interface.index;
    let entry = Entry { netns: node.run(netns)?, ifindex, source: client.mac, destination: client.host_mac };
    // What a quiet node does: the faster hook.
    super::probe::settled(&node, &["client", "server"])?;
    Ok((node, Path { name: "pilus", client, server, entry }))
}

fn sum(data: &[u8], from: u32) -> u32 {
    data.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))).fold(from, |a, b| a + b)
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Path {
    /// A UDP frame of the client with so many bytes of payload.
    pub fn frame(&self, family: Family, from: u16, to: u16, payload: usize) -> Result<Vec<u8>> {
        udp_frame(&self.entry, (self.client.ip(family), from), (self.server.ip(family), to), &vec![0x62; payload])
    }
}

/// A UDP frame as it enters.
pub fn udp_frame(entry: &Entry, from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Result<Vec<u8>> {
    let len = (8 + payload.len()) as u16;
    let mut udp = Vec::new();
    for word in [from.1, to.1, len, 0] {
        udp.extend(word.to_be_bytes());
    }
    udp.extend(payload);
    let mut frame = entry.destination.to_vec();
    frame.extend(entry.source);
    let (pseudo, header) = match (from.0, to.0) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let addresses = [src.octets(), dst.octets()].concat();
            let mut ip = vec![0x45, 0];
            ip.extend((20 + len).to_be_bytes());
            ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
            ip.extend(&addresses);
            let check = fold(sum(&ip, 0));
            ip[10..12].copy_from_slice(&check.to_be_bytes());
            frame.extend([8, 0]);
            (addresses, ip)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let addresses = [src.octets(), dst.octets()].concat();
            let mut ip = vec![0x60, 0, 0, 0];
            ip.extend(len.to_be_bytes());
            ip.extend([17, 64]);
            ip.extend(&addresses);
            frame.extend([0x86, 0xdd]);
            (addresses, ip)
        }
        _ => anyhow::bail!("one family"),
    };
    let check = fold(sum(&udp, sum(&pseudo, 17 + u32::from(len))));
    udp[6..8].copy_from_slice(&check.to_be_bytes());
    frame.extend(header);
    frame.extend(udp);
    ensure!(frame.len() >= 60, "shorter than Ethernet's least");
    Ok(frame)
}
