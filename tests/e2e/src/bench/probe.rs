// SPDX-License-Identifier: Apache-2.0
//! Looks at the world from outside: answers to pings, and what the agent's tables saw.

use crate::container::PATIENCE;
use crate::icmp::echo_types;
use crate::{Container, Family, Node};
use anyhow::{Context, Result, ensure};
use nix::sys::socket::SockaddrStorage;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// After this long without an answer a ping is sent again.
const AGAIN: Duration = Duration::from_millis(20);

/// Asks others for echoes, in both families.
pub struct Pinger {
    sockets: [(Family, Socket); 2],
}

impl Pinger {
    pub fn new(from: &Container) -> Result<Self> {
        let open = |family| -> Result<(Family, Socket)> {
            let (domain, protocol) = match family {
                Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
                Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
            };
            let socket = from.run(|| Socket::new(domain, Type::RAW, Some(protocol)))?;
            from.run(|| socket.bind(&SockAddr::from(SocketAddr::new(from.ip(family), 0))))?;
            socket.set_recv_buffer_size(4 << 20)?;
            socket.set_read_timeout(Some(AGAIN))?;
            Ok((family, socket))
        };
        Ok(Self { sockets: [open(Family::V6)?, open(Family::V4)?] })
    }

    /// Returns when each of them has answered in both families; names those that had to be asked more than once, and when they
    /// answered.
    pub fn all_answer(&self, them: &[&Container]) -> Result<Vec<String>> {
        let mut late = Vec::new();
        for (family, socket) in &self.sockets {
            let mut waiting: BTreeMap<IpAddr, &str> = them.iter().map(|c| (c.ip(*family), c.name.as_str())).collect();
            let since = Instant::now();
            let mut first = true;
            while !waiting.is_empty() {
                for ip in waiting.keys() {
                    socket.send_to(&request(*family), &SockAddr::from(SocketAddr::new(*ip, 0))).with_context(|| ip.to_string())?;
                }
                let mut buffer = [0; 256];
                let asked = Instant::now();
                while !waiting.is_empty() && asked.elapsed() < AGAIN {
                    let Ok((n, from)) = nix::sys::socket::recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) else { break };
                    if is_reply(*family, &buffer[..n])
                        && let Some(name) = from.as_ref().and_then(address).and_then(|from| waiting.remove(&from))
                        && !first
                    {
                        late.push(format!("{name} {family:?} {} ms", since.elapsed().as_millis()));
                    }
                }
                first = false;
                ensure!(since.elapsed() < PATIENCE, "no answer from {waiting:?}");
            }
        }
        Ok(late)
    }
}

fn address(of: &SockaddrStorage) -> Option<IpAddr> {
    of.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())).or_else(|| of.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

fn request(family: Family) -> Vec<u8> {
    let mut message = vec![echo_types(family).0, 0, 0, 0, 0x62, 0x62, 0, 1];
    if family == Family::V4 {
        let sum = message.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum::<u32>();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

fn is_reply(family: Family, data: &[u8]) -> bool {
    let header = if family == Family::V4 { data.first().map_or(0, |b| usize::from(b & 15) * 4) } else { 0 };
    data.get(header) == Some(&echo_types(family).1) && data.get(header + 4..header + 6) == Some(&[0x62, 0x62])
}

/// Waits until these containers hang where they stay (a quiet node promotes them to tcx, where there is any).
pub fn settled(node: &Node, names: &[&str]) -> Result<Duration> {
    let since = Instant::now();
    if !pilus_loader::probe::Features::probe()?.tcx {
        return Ok(Duration::ZERO);
    }
    for name in names {
        while node.block_on(node.client().endpoint(&format!("name:{name}")))?.datapath.attach != "tcx" {
            ensure!(since.elapsed() < 3 * PATIENCE, "{name} is not promoted to tcx");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
    Ok(since.elapsed())
}

/// Packets that the agent's tables have seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub flow: u64,
    pub forwarded: u64,
    pub rules: u64,
}

/// What the tables say about flows to a port between two containers; rules are those that name the port.
pub fn seen(node: &Node, family: Family, proto: &str, server: &Container, port: u16) -> Result<Seen> {
    let end = format!("{} {port}", server.ip(family));
    let mut flow = 0;
    for row in node.rows("flows")?.iter().filter(|r| r[0] == proto && (r[1] == end || r[2] == end)) {
        for column in [4, 5] {
            flow += row[column].split_once('/').and_then(|(p, _)| p.parse::<u64>().ok()).context("flow row")?;
        }
    }
    let ports = format!("{port}-{port}");
    let rules = node.rows("policy")?.iter().filter(|r| r[3] == ports && r[4] == proto).filter_map(|r| r[7].parse::<u64>().ok()).sum();
    Ok(Seen { flow, forwarded: node.metric("Forwarded")?, rules })
}
