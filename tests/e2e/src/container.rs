// SPDX-License-Identifier: Apache-2.0
//! A network namespace and sockets in it.

use crate::Family;
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

/// Only so that a broken test ends; what is waited for is an event.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An open namespace and the link that leads to it. The link goes first: whoever looks for the namespace later finds nothing,
/// and not what has the number of the open file by then.
struct Netns {
    link: tempfile::TempDir,
    file: File,
}

/// A network namespace that lives as long as this value (and what is open in it).
#[derive(Clone)]
pub struct Container {
    pub name: String,
    netns: Arc<Netns>,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Ipv6Addr,
    pub id: u16,
    pub mac: [u8; 6],
    pub host_mac: [u8; 6],
}

fn mac(text: &str) -> [u8; 6] {
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(text.split(':')) {
        *to = u8::from_str_radix(from, 16).unwrap_or_default();
    }
    mac
}

/// Runs `f` in a thread of its own inside a namespace. What it returns (sockets, mostly) can be used anywhere.
pub fn enter<T: Send>(netns: &File, f: impl FnOnce() -> T + Send) -> T {
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                #[expect(clippy::disallowed_methods, reason = "tests look at containers from inside")]
                setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                f()
            })
            .join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A new network namespace with its loopback up.
pub fn new_netns() -> Result<File> {
    std::thread::spawn(|| -> Result<File> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { pilus_loader::netlink::Netlink::new()?.set_up(1).await })?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Container {
    pub fn new(name: &str) -> Result<Self> {
        Self::of(name, new_netns()?)
    }

    /// A namespace that somebody else made.
    pub fn of(name: &str, file: File) -> Result<Self> {
        let link = tempfile::Builder::new().prefix("pilus-container-").tempdir()?;
        std::os::unix::fs::symlink(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()), link.path().join("net"))?;
        Ok(Self {
            name: name.into(),
            netns: Arc::new(Netns { link, file }),
            ipv4: None,
            ipv6: Ipv6Addr::UNSPECIFIED,
            id: 0,
            mac: [0; 6],
            host_mac: [0; 6],
        })
    }

    /// Path that any process may open.
    pub fn path(&self) -> String {
        self.netns.link.path().join("net").display().to_string()
    }

    /// Takes over what the agent gave it.
    pub fn learn(&mut self, model: &pilus_api::types::EndpointModel) {
        self.id = model.id;
        self.ipv4 = model.ipv4;
        self.ipv6 = model.ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED);
        self.mac = mac(&model.interface.mac);
        self.host_mac = mac(&model.interface.host_mac);
    }

    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ipv4.expect("has an IPv4 address").into(),
            Family::V6 => self.ipv6.into(),
        }
    }

    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        enter(&self.netns.file, f)
    }

    /// A bound UDP socket whose reads end after [`PATIENCE`].
    pub fn udp(&self, family: Family, port: u16) -> Result<UdpSocket> {
        let at = SocketAddr::new(self.ip(family), port);
        let socket = self.run(|| UdpSocket::bind(at)).with_context(|| format!("bind {at}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    pub fn listen(&self, family: Family, port: u16) -> Result<TcpListener> {
        let at = SocketAddr::new(self.ip(family), port);
        self.run(|| TcpListener::bind(at)).with_context(|| format!("listen at {at}"))
    }

    pub fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        let stream = self.run(|| TcpStream::connect_timeout(&to, PATIENCE)).with_context(|| format!("{} connects to {to}", self.name))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Starts to connect and does not wait: the SYN is on its way when this returns.
    pub fn connect_start(&self, to: SocketAddr) -> Result<Socket> {
        self.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            match socket.connect(&SockAddr::from(to)) {
                Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
                Ok(()) => Ok(socket),
                Err(e) => Err(e.into()),
            }
        })
    }

    /// A packet socket on the container's interface: sends and receives whole frames.
    pub fn packet_socket(&self) -> Result<Socket> {
        self.packet_socket_of(libc::ETH_P_ALL as u16)
    }

    /// The same of one protocol (`ETH_P_*`): what it sends is said to be of that, whatever is in the frame.
    pub fn packet_socket_of(&self, protocol: u16) -> Result<Socket> {
        self.run(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(protocol.to_be()))))?;
            let index = nix::net::if_::if_nametoindex("eth0")?;
            crate::icmp::bind_packet(&socket, index, protocol)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        })
    }
}
