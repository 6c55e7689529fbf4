// SPDX-License-Identifier: Apache-2.0
//! {IPv6, IPv4} × {TCP, UDP, ICMP} × {allowed, denied, reply, related, revoked, re-allowed, evicted} with real packets.
//! Both builds, and every kind of device and way of attaching, have the same results.

use crate::icmp::{self, Raw};
use crate::node::Events;
use crate::{Container, Family, Node, NodeOptions};
use anyhow::{Context, Result, ensure};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};

const PORT: u16 = 8080;
const ECHO_ID: u16 = 0x5117;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proto {
    Tcp,
    Udp,
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Allowed,
    Denied,
    Reply,
    Related,
    Revoked,
    ReAllowed,
    Evicted,
}

const CASES: [Case; 7] = [Case::Allowed, Case::Denied, Case::Reply, Case::Related, Case::Revoked, Case::ReAllowed, Case::Evicted];

#[derive(Clone, Copy)]
struct Row {
    family: Family,
    proto: Proto,
    case: Case,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.family, self.proto, self.case)
    }
}

/// The client may reach the web server: by port, or (ICMP has none) as a whole. Nobody else may.
fn policy(proto: Proto) -> String {
    let ports = match proto {
        Proto::Icmp => String::new(),
        Proto::Tcp => format!("\n    toPorts: [{{ports: [{{port: \"{PORT}\", protocol: TCP}}]}}]"),
        Proto::Udp => format!("\n    toPorts: [{{ports: [{{port: \"{PORT}\", protocol: UDP}}]}}]"),
    };
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: web}}\nspec:\n  \
         endpointSelector: {{matchLabels: {{app: web}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {{app: client}}}}]{ports}\n"
    )
}

/// The same object without any rule for the client.
const REVOKED: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web}\nspec:\n  \
                       endpointSelector: {matchLabels: {app: web}}\n  ingress: [{}]\n";

/// One conversation between client and web.
enum Talk {
    Tcp { client: TcpStream, server: TcpStream, _listener: TcpListener },
    Udp { client: UdpSocket, server: UdpSocket },
    Icmp { client: Raw, server: Raw },
}

struct World<'a> {
    node: &'a Node,
    web: &'a Container,
    client: &'a Container,
    stranger: &'a Container,
    family: Family,
}

impl World<'_> {
    fn web_at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.web.ip(self.family), port)
    }

    /// Opens a conversation and sees both directions work.
    fn open(&self, proto: Proto) -> Result<Talk> {
        let mut talk = match proto {
            Proto::Tcp => {
                let listener = self.web.listen(self.family, PORT)?;
                let client = self.client.connect(self.web_at(PORT))?;
                let (server, _) = listener.accept()?;
                server.set_read_timeout(Some(crate::container::PATIENCE))?;
                server.set_nodelay(true)?;
                Talk::Tcp { client, server, _listener: listener }
            }
            Proto::Udp => {
                let server = self.web.udp(self.family, PORT)?;
                let client = self.client.udp(self.family, 0)?;
                client.connect(self.web_at(PORT))?;
                Talk::Udp { client, server }
            }
            Proto::Icmp => {
                // The kernel answers echo requests; the web's raw socket sees them too.
                Talk::Icmp { client: Raw::new(self.client, self.family)?, server: Raw::new(self.web, self.family)? }
            }
        };
        self.forth(&mut talk, 1)?;
        self.back(&mut talk, 1)?;
        Ok(talk)
    }

    fn send_forth(&self, talk: &mut Talk, mark: u8) -> Result<()> {
        match talk {
            Talk::Tcp { client, .. } => client.write_all(&[mark])?,
            Talk::Udp { client, .. } => drop(client.send(&[mark])?),
            Talk::Icmp { client, .. } => client.echo(self.web.ip(self.family), ECHO_ID, mark.into())?,
        }
        Ok(())
    }

    /// A mark from client to web, seen there.
    fn forth(&self, talk: &mut Talk, mark: u8) -> Result<()> {
        self.send_forth(talk, mark)?;
        self.arrives(talk, mark)
    }

    fn arrives(&self, talk: &mut Talk, mark: u8) -> Result<()> {
        let mut buffer = [0; 1];
        match talk {
            Talk::Tcp { server, .. } => server.read_exact(&mut buffer).context("nothing arrives at the server")?,
            Talk::Udp { client, server } => {
                let (_, from) = server.recv_from(&mut buffer).context("nothing arrives at the server")?;
                ensure!(from == client.local_addr()?, "from {from}");
            }
            Talk::Icmp { server, .. } => {
                let want = icmp::echo_types(self.family).0;
                let seen = server.receive(|m| m.kind == want && m.body.starts_with(&ECHO_ID.to_be_bytes()) && m.body[3] == mark)?;
                buffer[0] = seen.body[3];
            }
        }
        ensure!(buffer[0] == mark, "{} arrives, not {mark}", buffer[0]);
        Ok(())
    }

    fn send_back(&self, talk: &mut Talk, mark: u8) -> Result<()> {
        match talk {
            Talk::Tcp { server, .. } => server.write_all(&[mark])?,
            Talk::Udp { client, server } => drop(server.send_to(&[mark], client.local_addr()?)?),
            Talk::Icmp { server, .. } => {
                let mut body = ECHO_ID.to_be_bytes().to_vec();
                body.extend([0, mark]);
                server.send(self.client.ip(self.family), icmp::echo_types(self.family).1, 0, &body)?;
            }
        }
        Ok(())
    }

    /// A mark from web to client, seen there. For ICMP it is the kernel's own answer.
    fn back(&self, talk: &mut Talk, mark: u8) -> Result<()> {
        let mut buffer = [0; 1];
        match talk {
            Talk::Tcp { .. } => {
                self.send_back(talk, mark)?;
                let Talk::Tcp { client, .. } = talk else { unreachable!() };
                client.read_exact(&mut buffer).context("no reply")?;
            }
            Talk::Udp { .. } => {
                self.send_back(talk, mark)?;
                let Talk::Udp { client, .. } = talk else { unreachable!() };
                client.recv(&mut buffer).context("no reply")?;
            }
            Talk::Icmp { client, .. } => {
                let want = icmp::echo_types(self.family).1;
                let seen = client.receive(|m| m.kind == want && m.body.starts_with(&ECHO_ID.to_be_bytes()) && m.body[3] == mark)?;
                buffer[0] = seen.body[3];
            }
        }
        ensure!(buffer[0] == mark, "{} comes back, not {mark}", buffer[0]);
        Ok(())
    }

    /// Nothing waits at either end.
    fn silent(&self, talk: &mut Talk) -> Result<()> {
        fn nothing(what: &str, read: std::io::Result<usize>) -> Result<()> {
            match read {
                Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
                other => anyhow::bail!("{what}: {other:?}"),
            }
        }
        let mut buffer = [0; 64];
        match talk {
            Talk::Tcp { client, server, .. } => {
                for (what, stream) in [("client", client), ("server", server)] {
                    stream.set_nonblocking(true)?;
                    nothing(what, stream.read(&mut buffer))?;
                    stream.set_nonblocking(false)?;
                }
            }
            Talk::Udp { client, server } => {
                for (what, socket) in [("client", client), ("server", server)] {
                    socket.set_nonblocking(true)?;
                    nothing(what, socket.recv(&mut buffer))?;
                    socket.set_nonblocking(false)?;
                }
            }
            Talk::Icmp { client, server } => {
                for (what, raw) in [("client", client), ("server", server)] {
                    let seen = raw.drain()?;
                    let ours = seen.iter().any(|m| m.body.starts_with(&ECHO_ID.to_be_bytes()));
                    ensure!(!ours, "{what}: {seen:?}");
                }
            }
        }
        Ok(())
    }

    /// What waits in raw sockets from before is not what is looked for.
    fn forget(&self, talk: &Talk) -> Result<()> {
        if let Talk::Icmp { client, server } = talk {
            client.drain()?;
            server.drain()?;
        }
        Ok(())
    }

    fn row(&self, row: Row) -> Result<()> {
        let (node, proto) = (self.node, row.proto);
        node.import(&policy(proto))?;
        let mut events: Events<'_> = node.events(&["drop"])?;
        match row.case {
            Case::Allowed | Case::Reply => {
                let mut talk = self.open(proto)?;
                for mark in 2..20 {
                    self.forth(&mut talk, mark)?;
                    self.back(&mut talk, mark)?;
                }
            }
            Case::Denied => self.denied(proto, &mut events)?,
            Case::Related => self.related(proto, &mut events)?,
            Case::Revoked | Case::ReAllowed => {
                let mut talk = self.open(proto)?;
                node.import(REVOKED)?;
                self.forget(&talk)?;
                self.send_forth(&mut talk, 2)?;
                let drop = events.wait_drop(self.client, self.web)?;
                ensure!(drop.state == "revoked", "{drop:?}");
                self.send_back(&mut talk, 3)?;
                events.wait_drop(self.web, self.client)?;
                self.silent(&mut talk)?;
                if row.case == Case::ReAllowed {
                    node.import(&policy(proto))?;
                    match proto {
                        // TCP's own retransmission brings what was lost.
                        Proto::Tcp => {
                            self.arrives(&mut talk, 2)?;
                            let Talk::Tcp { client, .. } = &mut talk else { unreachable!() };
                            let mut buffer = [0; 1];
                            client.read_exact(&mut buffer)?;
                            ensure!(buffer[0] == 3);
                        }
                        _ => {
                            self.forth(&mut talk, 4)?;
                            self.back(&mut talk, 4)?;
                        }
                    }
                }
            }
            Case::Evicted => {
                let mut talk = self.open(proto)?;
                node.block_on(node.client().flush_flow_table(None))?;
                ensure!(node.rows("flows")?.is_empty(), "the flow table is not empty");
                self.forth(&mut talk, 2)?;
                self.back(&mut talk, 2)?;
                let flows = node.rows("flows")?;
                ensure!(flows.len() == 1, "{flows:?}");
                ensure!(proto != Proto::Tcp || flows[0][6].contains("midstream"), "{flows:?}");
            }
        }
        node.block_on(node.client().flush_flow_table(None))?;
        Ok(())
    }

    /// The stranger reaches nothing; neither does the client at a port that is not allowed.
    fn denied(&self, proto: Proto, events: &mut Events<'_>) -> Result<()> {
        match proto {
            Proto::Tcp => {
                let listener = self.web.listen(self.family, PORT)?;
                let other = self.web.listen(self.family, PORT + 1)?;
                let _a = self.stranger.connect_start(self.web_at(PORT))?;
                let drop = events.wait_drop(self.stranger, self.web)?;
                ensure!(drop.reason == "Policy denied" && drop.direction == "ingress" && drop.state == "none", "{drop:?}");
                let _b = self.client.connect_start(self.web_at(PORT + 1))?;
                events.wait_drop(self.client, self.web)?;
                for l in [listener, other] {
                    l.set_nonblocking(true)?;
                    let accepted = l.accept();
                    ensure!(accepted.is_err(), "{accepted:?}");
                }
            }
            Proto::Udp => {
                let server = self.web.udp(self.family, PORT)?;
                let other = self.web.udp(self.family, PORT + 1)?;
                self.stranger.udp(self.family, 0)?.send_to(b"x", self.web_at(PORT))?;
                events.wait_drop(self.stranger, self.web)?;
                self.client.udp(self.family, 0)?.send_to(b"x", self.web_at(PORT + 1))?;
                events.wait_drop(self.client, self.web)?;
                for s in [server, other] {
                    s.set_nonblocking(true)?;
                    let got = s.recv(&mut [0; 8]);
                    ensure!(got.is_err(), "{got:?}");
                }
            }
            Proto::Icmp => {
                let server = Raw::new(self.web, self.family)?;
                Raw::new(self.stranger, self.family)?.echo(self.web.ip(self.family), ECHO_ID, 1)?;
                events.wait_drop(self.stranger, self.web)?;
                let seen = server.drain()?;
                ensure!(!seen.iter().any(|m| m.body.starts_with(&ECHO_ID.to_be_bytes())), "{seen:?}");
            }
        }
        Ok(())
    }

    /// An ICMP error about the flow reaches the client although nothing allows ICMP; one about no flow does not.
    fn related(&self, proto: Proto, events: &mut Events<'_>) -> Result<()> {
        let family = self.family;
        let talk = self.open(proto)?;
        let listener = Raw::new(self.client, family)?;
        let sender = Raw::new(self.web, family)?;
        let (kind, code) = icmp::unreachable(family);
        let (client_ip, web_ip) = (self.client.ip(family), self.web.ip(family));
        let quote = |port: u16| -> Result<Vec<u8>> {
            Ok(match &talk {
                Talk::Tcp { client, .. } => icmp::quote(SocketAddr::new(client_ip, client.local_addr()?.port()), self.web_at(port), 6),
                Talk::Udp { client, .. } => icmp::quote(SocketAddr::new(client_ip, client.local_addr()?.port()), self.web_at(port), 17),
                Talk::Icmp { .. } => icmp::quote_echo(client_ip, web_ip, family, if port == PORT { ECHO_ID } else { ECHO_ID + 1 }),
            })
        };
        sender.send(client_ip, kind, code, &quote(PORT + 7)?)?;
        let drop = events.wait_drop(self.web, self.client)?;
        ensure!(drop.reason == "No flow for this ICMP error", "{drop:?}");
        let seen = listener.drain()?;
        ensure!(!seen.iter().any(|m| m.kind == kind), "{seen:?}");
        sender.send(client_ip, kind, code, &quote(PORT)?)?;
        let seen = listener.receive(|m| m.kind == kind && m.code == code)?;
        ensure!(seen.body == quote(PORT)?, "{seen:?}");
        if let Talk::Tcp { client, .. } = &talk {
            let _ = client.shutdown(Shutdown::Both);
        }
        Ok(())
    }
}

/// Plays the table in a node of its own.
pub fn table(options: NodeOptions) {
    let node = Node::start(options.clone()).expect("node");
    let web = node.add("web", &["app=web"]).expect("web");
    let client = node.add("client", &["app=client"]).expect("client");
    let stranger = node.add("stranger", &["app=stranger"]).expect("stranger");
    let mut failed = Vec::new();
    for family in Family::BOTH {
        let world = World { node: &node, web: &web, client: &client, stranger: &stranger, family };
        for proto in [Proto::Tcp, Proto::Udp, Proto::Icmp] {
            for case in CASES {
                let row = Row { family, proto, case };
                if let Err(e) = world.row(row) {
                    failed.push(format!("{row}: {e:#}"));
                }
            }
        }
    }
    let shown = node.block_on(node.client().endpoints()).expect("endpoints");
    for endpoint in shown {
        assert_eq!(endpoint.datapath.build, options.build);
        if options.devices == "netkit" {
            assert_eq!(endpoint.datapath.attach, "netkit");
        } else if options.attach != "auto" {
            assert_eq!(endpoint.datapath.attach, options.attach);
        }
    }
    assert_eq!(node.metric("Missed tail call").expect("metrics"), 0);
    assert!(failed.is_empty(), "{} rows failed with {options:?}:\n{}", failed.len(), failed.join("\n"));
}
