// SPDX-License-Identifier: Apache-2.0
//! ICMP through raw sockets, and errors that quote a packet.

use crate::{Container, Family};
use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};

/// A raw ICMP socket of a container. It receives every ICMP message of its family.
pub struct Raw {
    socket: Socket,
    family: Family,
}

/// What was received.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    pub code: u8,
    /// Behind the first four bytes.
    pub body: Vec<u8>,
}

/// Echo request and reply types.
pub fn echo_types(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (8, 0),
        Family::V6 => (128, 129),
    }
}

/// Destination unreachable, port: type and code.
pub fn unreachable(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (3, 3),
        Family::V6 => (1, 4),
    }
}

/// The Internet's checksum.
pub fn checksum(data: &[u8]) -> u16 {
    let mut sum: u32 = data.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Raw {
    pub fn new(container: &Container, family: Family) -> Result<Self> {
        let (domain, protocol) = match family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = container.run(|| Socket::new(domain, Type::RAW, Some(protocol)))?;
        let at = SocketAddr::new(container.ip(family), 0);
        container.run(|| socket.bind(&SockAddr::from(at)))?;
        socket.set_read_timeout(Some(crate::container::PATIENCE))?;
        Ok(Self { socket, family })
    }

    /// The kernel completes the checksum of ICMPv6, not of ICMP. What the container's program drops is sent as well: a netkit
    /// device says so to the sender (ENOBUFS), a veth does not.
    pub fn send(&self, to: IpAddr, kind: u8, code: u8, body: &[u8]) -> Result<()> {
        let mut message = vec![kind, code, 0, 0];
        message.extend_from_slice(body);
        if self.family == Family::V4 {
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        match self.socket.send_to(&message, &SockAddr::from(SocketAddr::new(to, 0))) {
            Err(e) if e.raw_os_error() != Some(libc::ENOBUFS) => Err(e).with_context(|| format!("send to {to}")),
            _ => Ok(()),
        }
    }

    pub fn echo(&self, to: IpAddr, id: u16, seq: u16) -> Result<()> {
        let mut body = id.to_be_bytes().to_vec();
        body.extend_from_slice(&seq.to_be_bytes());
        body.extend_from_slice(b"pilus");
        self.send(to, echo_types(self.family).0, 0, &body)
    }

    /// The next message that `wanted` accepts; others are passed over.
    pub fn receive(&self, wanted: impl Fn(&Message) -> bool) -> Result<Message> {
        loop {
            let mut buffer = [0; 2048];
            let n = (&self.socket).read(&mut buffer).context("no ICMP message came")?;
            if let Some(message) = self.parse(&buffer[..n])
                && wanted(&message)
            {
                return Ok(message);
            }
        }
    }

    /// Whatever waits in the socket now.
    pub fn drain(&self) -> Result<Vec<Message>> {
        self.socket.set_nonblocking(true)?;
        let mut all = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok(n) = (&self.socket).read(&mut buffer) {
            all.extend(self.parse(&buffer[..n]));
        }
        self.socket.set_nonblocking(false)?;
        Ok(all)
    }

    fn parse(&self, data: &[u8]) -> Option<Message> {
        let data = match self.family {
            Family::V4 => data.get(usize::from(data.first()? & 15) * 4..)?,
            Family::V6 => data,
        };
        Some(Message { kind: *data.first()?, code: *data.get(1)?, body: data.get(4..)?.to_vec() })
    }
}

/// An IP header with eight bytes behind it, as an ICMP error quotes them.
pub fn quote(from: SocketAddr, to: SocketAddr, proto: u8) -> Vec<u8> {
    let mut l4 = [0; 8];
    l4[..2].copy_from_slice(&from.port().to_be_bytes());
    l4[2..4].copy_from_slice(&to.port().to_be_bytes());
    quote_l4(from.ip(), to.ip(), proto, &l4)
}

/// The same for an echo request.
pub fn quote_echo(from: IpAddr, to: IpAddr, family: Family, id: u16) -> Vec<u8> {
    let mut l4 = [0; 8];
    l4[0] = echo_types(family).0;
    l4[4..6].copy_from_slice(&id.to_be_bytes());
    quote_l4(from, to, if family == Family::V4 { 1 } else { 58 }, &l4)
}

fn quote_l4(from: IpAddr, to: IpAddr, proto: u8, l4: &[u8; 8]) -> Vec<u8> {
    // Four unused bytes of the error come first.
    let mut q = vec![0; 4];
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            q.extend([0x45, 0, 0, 28, 0, 1, 0, 0, 64, proto, 0, 0]);
            q.extend(from.octets());
            q.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            q.extend([0x60, 0, 0, 0, 0, 8, proto, 64]);
            q.extend(from.octets());
            q.extend(to.octets());
        }
        _ => unreachable!("one family"),
    }
    q.extend(l4);
    q
}

/// Binds a packet socket to an interface and a protocol (`ETH_P_*`), which its frames are then said to be of.
pub fn bind_packet(socket: &Socket, index: u32, protocol: u16) -> std::io::Result<()> {
    use nix::sys::socket::{LinkAddr, SockaddrLike, bind};
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `raw` is a whole sockaddr_ll and outlives the call.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(size_of::<libc::sockaddr_ll>() as u32)) };
    let address = address.ok_or_else(|| std::io::Error::from_raw_os_error(libc::EINVAL))?;
    bind(std::os::fd::AsRawFd::as_raw_fd(socket), &address).map_err(Into::into)
}

/// Frames of a packet socket begin with a `virtio_net_hdr` from now on, which tells of checksums to complete and segments to cut
/// (packet(7)).
pub fn with_virtio_headers(socket: &Socket) -> std::io::Result<()> {
    let on: libc::c_int = 1;
    let (fd, size) = (std::os::fd::AsRawFd::as_raw_fd(socket), size_of::<libc::c_int>() as u32);
    // SAFETY: `on` is an int and outlives the call.
    let failed = unsafe { libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const on).cast(), size) };
    if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
