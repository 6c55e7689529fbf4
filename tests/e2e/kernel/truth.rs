// SPDX-License-Identifier: Apache-2.0
//! The truth tables of policy by real packets: each row of `tests/truth` that a node can play is a connection between
//! containers, the host and the world, in both families. What is allowed arrives and is answered; what is denied never arrives,
//! and the monitor tells of it. The rest is counted by reason.

use crate::support::until;
use pilus_api::client::PolicyScope;
use pilus_api::types::{FlowEvent, NamedPort, NodeRequest, PolicyDocument, PolicyImport, PolicyQuestion, ServiceBackend, ServiceRequest};
use pilus_e2e::container::PATIENCE;
use pilus_e2e::node::Events;
use pilus_e2e::{Container, Family, Node, NodeOptions, icmp, outside};
use pilus_tests::truth::{self, Case, ENDPOINTS, End, Row};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

/// Connections that only the evaluator judges, and how many there are.
const EVALUATOR_ONLY: &[(&str, usize)] = &[
    ("L7 rules: there is no proxy yet", 21),
    ("health: no endpoint of a node has it", 3),
    ("itself: what a container says to itself never leaves it", 1),
    ("kube-apiserver: there is no Kubernetes", 1),
    ("unknown, where policy lets it in: an address that nobody has is always refused", 6),
    ("unmanaged: a node knows no container but its own", 3),
];

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
/// Addresses of the node's ranges that no endpoint has.
const NOBODY: [&str; 2] = ["10.77.250.250", "fd00:7::fa:fa"];
/// Addresses of another node.
const FAR: [&str; 2] = ["203.0.113.6", "2001:db8:6::6"];
/// Drops that are policy's.
const REASONS: [&str; 3] = ["Policy denied", "Policy denied by denylist", "Flow no longer allowed by policy"];

fn not_by_packets(case: &Case, row: &Row) -> Option<&'static str> {
    let reason = |start: &str| EVALUATOR_ONLY.iter().find(|(r, _)| r.starts_with(start)).map(|(r, _)| *r);
    if case.l7 {
        return reason("L7");
    }
    if row.from == row.to {
        return reason("itself");
    }
    [&row.from, &row.to].into_iter().find_map(|end| match end {
        End::Fixed(name) if name == "unknown" => row.allowed.then(|| reason("unknown")).flatten(),
        End::Fixed(name) => reason(&format!("{name}:")),
        _ => None,
    })
}

/// Families in which a connection can be.
fn families(row: &Row) -> Vec<Family> {
    let of = |end: &End| match end {
        End::Address(IpAddr::V4(_)) => Some(Family::V4),
        End::Address(IpAddr::V6(_)) => Some(Family::V6),
        _ => None,
    };
    let proto = match row.proto {
        1 => Some(Family::V4),
        58 => Some(Family::V6),
        _ => None,
    };
    let fixed: Vec<Family> = [of(&row.from), of(&row.to), proto].into_iter().flatten().collect();
    Family::BOTH.into_iter().filter(|f| fixed.iter().all(|x| x == f)).collect()
}

/// A packet on its way, and where it would arrive.
enum Probe {
    Tcp(Socket, TcpListener),
    Udp(UdpSocket, UdpSocket),
    Raw { near: Socket, far: Socket, echo: bool },
}

/// How a packet is known again: two bytes of its transport header.
struct Mark {
    from: IpAddr,
    to: IpAddr,
    proto: u8,
    at: usize,
    value: [u8; 2],
}

impl Mark {
    fn is(&self, event: &FlowEvent) -> bool {
        let hex: Vec<u8> =
            (0..event.packet.len() / 2).filter_map(|n| u8::from_str_radix(&event.packet[2 * n..2 * n + 2], 16).ok()).collect();
        let (addresses, proto, l4, family) = match self.from {
            IpAddr::V4(_) => (26, 23, 34, [8, 0]),
            IpAddr::V6(_) => (22, 20, 54, [0x86, 0xdd]),
        };
        let mut ends = Vec::new();
        for ip in [self.from, self.to] {
            match ip {
                IpAddr::V4(ip) => ends.extend(ip.octets()),
                IpAddr::V6(ip) => ends.extend(ip.octets()),
            }
        }
        hex.get(12..14) == Some(&family)
            && hex.get(proto) == Some(&self.proto)
            && hex.get(addresses..addresses + ends.len()) == Some(&ends)
            && hex.get(l4 + self.at..l4 + self.at + 2) == Some(&self.value)
    }
}

fn socket(at: &Container, family: Family, kind: Type, proto: u8) -> std::io::Result<Socket> {
    at.run(|| {
        let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, kind, Some(Protocol::from(i32::from(proto))))?;
        socket.bind(&SockAddr::from(SocketAddr::new(at.ip(family), 0)))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })
}

/// Payload of a raw socket, and where its mark is. ICMPv6 is completed by the kernel.
fn raw_packet(row: &Row, family: Family, mark: u16) -> (Vec<u8>, usize) {
    let [high, low] = mark.to_be_bytes();
    match (row.proto, family) {
        (SCTP, _) => {
            let [port, port2] = row.dport.to_be_bytes();
            ([&[high, low, port, port2], [0; 16].as_slice()].concat(), 0)
        }
        (1, Family::V4) | (58, Family::V6) => {
            let mut message = vec![row.dport as u8, 0, 0, 0, high, low, 0, 1];
            message.extend([7; 12]);
            if family == Family::V4 {
                let sum = icmp::checksum(&message).to_be_bytes();
                message[2..4].copy_from_slice(&sum);
            }
            (message, 4)
        }
        _ => (vec![0, 0, high, low, 1, 2, 3, 4], 2),
    }
}

struct Play<'a> {
    node: &'a Node,
    events: Events<'a>,
    ends: HashMap<String, Container>,
    marks: u16,
    /// Open connections whose rows ask for an answer.
    open: HashMap<String, (TcpStream, TcpStream, Mark)>,
}

impl<'a> Play<'a> {
    fn new(node: &'a Node, ends: HashMap<String, Container>) -> Self {
        let events = node.events(&["drop"]).expect("events");
        Self { node, events, ends, marks: 1000, open: HashMap::new() }
    }

    fn end(&self, end: &End) -> Container {
        match end {
            End::Endpoint(name) => self.ends[*name].clone(),
            End::Fixed(name) => self.ends[name].clone(),
            End::Address(ip) => {
                let mut at = self.ends["world"].clone();
                match ip {
                    IpAddr::V4(ip) => at.ipv4 = Some(*ip),
                    IpAddr::V6(ip) => at.ipv6 = *ip,
                }
                at
            }
        }
    }

    /// Sends the first packet of a connection.
    fn send(&mut self, row: &Row, family: Family) -> anyhow::Result<(Probe, Mark)> {
        let (from, to) = (self.end(&row.from), self.end(&row.to));
        let target = SocketAddr::new(to.ip(family), row.dport);
        let mut mark = Mark { from: from.ip(family), to: to.ip(family), proto: row.proto, at: 0, value: [0; 2] };
        let port = |s: &Socket| Ok::<_, std::io::Error>(s.local_addr()?.as_socket().map_or(0, |a| a.port()).to_be_bytes());
        let probe = match row.proto {
            TCP => {
                let far = to.listen(family, row.dport)?;
                far.set_nonblocking(true)?;
                let near = socket(&from, family, Type::STREAM, TCP)?;
                mark.value = port(&near)?;
                match near.connect(&target.into()) {
                    Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e.into()),
                    _ => Probe::Tcp(near, far),
                }
            }
            UDP => {
                let far = to.udp(family, row.dport)?;
                far.set_nonblocking(true)?;
                let near = socket(&from, family, Type::DGRAM, UDP)?;
                mark.value = port(&near)?;
                near.send_to(b"question", &target.into())?;
                Probe::Udp(near.into(), far)
            }
            proto => {
                self.marks += 1;
                mark.value = self.marks.to_be_bytes();
                let far = socket(&to, family, Type::RAW, proto)?;
                let near = socket(&from, family, Type::RAW, proto)?;
                let (bytes, at) = raw_packet(row, family, self.marks);
                mark.at = at;
                near.send_to(&bytes, &SocketAddr::new(target.ip(), 0).into())?;
                Probe::Raw { near, far, echo: row.dport as u8 == icmp::echo_types(family).0 && [1, 58].contains(&proto) }
            }
        };
        Ok((probe, mark))
    }

    /// Sends, and looks where it comes up: at its receiver (and is answered, `true`), or among the drops.
    fn outcome(&mut self, row: &Row, family: Family) -> anyhow::Result<(bool, Option<FlowEvent>)> {
        let (probe, mark) = self.send(row, family)?;
        let since = Instant::now();
        loop {
            if let Some(conversation) = arrived(&probe, &mark, family)? {
                if let (true, Some((near, far))) = (row.reply, conversation) {
                    self.open.insert(name(row, family), (near, far, mark));
                }
                return Ok((true, None));
            }
            if let Some(event) = self.events.poll()?
                && event.kind == "drop"
                && mark.is(&event)
            {
                anyhow::ensure!(arrived(&probe, &mark, family)?.is_none(), "dropped, and arrived: {event:?}");
                return Ok((false, Some(event)));
            }
            anyhow::ensure!(since.elapsed() < PATIENCE, "neither arrived nor dropped");
        }
    }

    /// In each family that it can be in. Gives how many these are.
    fn both(&mut self, row: &Row, what: &str, failed: &mut Vec<String>) -> usize {
        let families = families(row);
        for family in &families {
            if let Err(e) = self.row(row, *family) {
                failed.push(format!("{what}: {row:?} {family:?}: {e:#}"));
            }
        }
        families.len()
    }

    /// The evaluator, the kernel's tables and the packets.
    fn row(&mut self, row: &Row, family: Family) -> anyhow::Result<()> {
        let text = |end: &End, at: &Container| match end {
            End::Address(_) => at.ip(family).to_string(),
            End::Fixed(name) if name == "remote-node" => at.ip(family).to_string(),
            End::Fixed(name) if at.id == 0 => name.clone(),
            _ => format!("name:{}", at.name),
        };
        let (from, to) = (self.end(&row.from), self.end(&row.to));
        let question =
            PolicyQuestion { from: text(&row.from, &from), to: text(&row.to, &to), dport: format!("{}/{}", row.dport, row.proto) };
        let told = until("evaluator and kernel agree", || {
            let told = self.node.block_on(self.node.client().explain_policy(&question)).map_err(|e| e.to_string())?;
            if told.agrees { Ok(told) } else { Err(format!("{told:?}")) }
        });
        anyhow::ensure!(told.allowed == row.allowed, "the evaluator says otherwise: {told:?}");
        let (passed, drop) = self.outcome(row, family)?;
        anyhow::ensure!(passed == row.allowed, "{drop:?}");
        if let Some(drop) = drop {
            anyhow::ensure!(REASONS.contains(&drop.reason.as_str()), "{drop:?}");
            // An address that nobody has is denied as a sender, before the receiver's rules are asked.
            let by = told.egress.iter().chain(&told.ingress).find(|v| v.verdict == "deny");
            let named = row.from == End::Fixed("unknown".into()) || by.is_some_and(|v| v.rule == drop.rule);
            anyhow::ensure!(named, "{told:?}, but {drop:?}");
        }
        // What was open while it was allowed is denied with the rest.
        if let (false, Some((mut near, far, mark))) = (row.allowed, self.open.remove(&name(row, family))) {
            near.write_all(b"more")?;
            self.events.wait("drop of an open connection", |e| e.kind == "drop" && mark.is(e) && e.state == "revoked")?;
            far.set_nonblocking(true)?;
            let read = (&far).read(&mut [0; 4]);
            anyhow::ensure!(read.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "{read:?}");
        }
        Ok(())
    }
}

fn name(row: &Row, family: Family) -> String {
    format!("{:?} {:?} {} {} {family:?}", row.from, row.to, row.dport, row.proto)
}

type Conversation = Option<(TcpStream, TcpStream)>;

fn waits<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        // Who was refused a port hears of it; the packet is what counts.
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether the packet has arrived; if so, its answer comes back too.
fn arrived(probe: &Probe, mark: &Mark, family: Family) -> anyhow::Result<Option<Conversation>> {
    let mut seen = [0; 256];
    match probe {
        Probe::Tcp(near, far) => {
            let Some((mut far, from)) = waits(far.accept())? else { return Ok(None) };
            anyhow::ensure!(from.ip() == mark.from && from.port().to_be_bytes() == mark.value, "{from} came");
            let mut near = TcpStream::from(near.try_clone()?);
            for stream in [&near, &far] {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
            }
            near.write_all(b"question")?;
            far.read_exact(&mut seen[..8])?;
            far.write_all(b"answer!!")?;
            near.read_exact(&mut seen[..8])?;
            Ok(Some(Some((near, far))))
        }
        Probe::Udp(near, far) => {
            let Some((_, from)) = waits(far.recv_from(&mut seen))? else { return Ok(None) };
            anyhow::ensure!(from.ip() == mark.from && from.port().to_be_bytes() == mark.value, "{from} came");
            far.send_to(b"answer", from)?;
            near.set_nonblocking(false)?;
            near.set_read_timeout(Some(PATIENCE))?;
            near.recv(&mut seen)?;
            Ok(Some(None))
        }
        Probe::Raw { near, far, echo } => {
            let find = |socket: &Socket| -> std::io::Result<Option<Vec<u8>>> {
                let mut seen = [0; 256];
                while let Some(n) = waits((&mut &*socket).read(&mut seen))? {
                    let skip = if family == Family::V4 { usize::from(seen[0] & 15) * 4 } else { 0 };
                    let l4 = seen.get(skip..n).unwrap_or_default();
                    if l4.get(mark.at..mark.at + 2) == Some(&mark.value) {
                        return Ok(Some(l4.to_vec()));
                    }
                }
                Ok(None)
            };
            if find(far)?.is_none() {
                return Ok(None);
            }
            if *echo {
                until("an echo reply", || match find(near).map_err(|e| e.to_string())? {
                    Some(l4) if l4[0] == icmp::echo_types(family).1 => Ok(()),
                    other => Err(format!("{other:?}")),
                });
            }
            Ok(Some(None))
        }
    }
}

fn addresses(rows: impl Iterator<Item = Row>) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = rows
        .flat_map(|r| [r.from, r.to])
        .filter_map(|end| match end {
            End::Address(ip) => Some(ip),
            _ => None,
        })
        .chain([NOBODY, FAR].concat().into_iter().map(|ip| ip.parse().expect("address")))
        .collect();
    all.sort();
    all.dedup();
    all
}

/// A node with a world of these addresses, and its ends but for endpoints.
fn stage(localhost: &str, addresses: &[IpAddr]) -> (Node, HashMap<String, Container>) {
    let args = ["--ipv6-range", "fd00:7::/64", "--ipv4-range", "10.77.0.0/16", "--masquerade", "false", "--allow-localhost", localhost];
    let mut node = Node::prepare(NodeOptions { args: args.map(str::to_owned).into(), ..NodeOptions::default() }).expect("node");
    // Its own addresses there are in no row.
    let world = outside::connect(&node, 3, 1500, true).expect("world");
    world.run(|| {
        crate::support::netlink(async |n| {
            for ip in addresses {
                n.add_address(1, *ip, if ip.is_ipv4() { 32 } else { 128 }).await.expect("address");
            }
        })
    });
    node.start_agent().expect("agent");
    let status = node.block_on(node.client().status()).expect("status");
    let mut host = Container::of("host", node.run(|| std::fs::File::open("/proc/thread-self/ns/net")).expect("namespace")).expect("host");
    host.ipv4 = status.router_ipv4.parse().ok();
    host.ipv6 = status.router_ipv6.parse().expect("address");
    let mut nobody = world.clone();
    nobody.ipv4 = NOBODY[0].parse().ok();
    nobody.ipv6 = NOBODY[1].parse().expect("address");
    // Another node, as far as this one knows.
    let mut far = world.clone();
    far.ipv4 = FAR[0].parse().ok();
    far.ipv6 = FAR[1].parse().expect("address");
    put_far(&node, &[]);
    let ends = [("host", host), ("world", world), ("unknown", nobody), ("remote-node", far)].map(|(name, c)| (name.to_owned(), c));
    (node, ends.into())
}

/// The other node, as far as this one knows.
fn put_far(node: &Node, labels: &[String]) {
    let request = NodeRequest { addresses: FAR.map(|ip| ip.parse().expect("address")).into(), labels: labels.to_vec() };
    node.block_on(node.client().put_node("far", &request)).expect("node");
}

/// Plays all cases that `which` takes on one node.
fn play(localhost: &str, which: impl Fn(&Case) -> bool) -> (usize, BTreeMap<&'static str, usize>) {
    let cases: Vec<Case> = truth::cases().into_iter().filter(which).collect();
    let (node, mut ends) = stage(localhost, &addresses(cases.iter().flat_map(|c| &c.steps).flat_map(truth::Step::connections)));
    let endpoints = ENDPOINTS.iter().chain(&[("init", &["reserved:init"] as &[&str])]);
    ends.extend(endpoints.map(|(name, labels)| ((*name).to_owned(), node.add(name, labels).expect("endpoint"))));
    let mut play = Play::new(&node, ends);
    let (mut rows, mut others, mut failed) = (0, BTreeMap::new(), Vec::new());
    for case in &cases {
        tables(&node, case, true);
        for (n, step) in case.steps.iter().enumerate() {
            let connections = step.connections();
            let (played, left): (Vec<_>, Vec<_>) =
                connections.iter().map(|r| (r, not_by_packets(case, r))).partition(|(_, why)| why.is_none());
            left.iter().for_each(|(_, why)| *others.entry(why.expect("a reason")).or_default() += 1);
            if played.is_empty() {
                continue;
            }
            prepare(&node, step, &case.name);
            for (row, _) in played {
                rows += play.both(row, &format!("{}, step {n}", case.name), &mut failed);
            }
        }
        play.open.clear();
        tables(&node, case, false);
        node.forget_policy().expect("policy");
        node.block_on(node.client().flush_flow_table(None)).expect("flush");
    }
    assert_eq!(node.metric("Missed tail call").expect("metrics"), 0);
    assert!(failed.is_empty(), "{} of {rows} failed:\n{}", failed.len(), failed.join("\n"));
    (rows, others)
}

/// What rules refer to by name: told of for a case, taken back after it.
fn tables(node: &Node, case: &Case, there: bool) {
    for (name, ports) in &case.ports {
        let port = |(name, what): (&String, &String)| {
            let (number, protocol) = what.split_once('/').expect("a protocol");
            NamedPort { name: name.clone(), port: number.parse().expect("a port"), protocol: protocol.to_owned() }
        };
        let ports: Vec<NamedPort> = if there { ports.iter().map(port).collect() } else { Vec::new() };
        node.block_on(node.client().set_endpoint_ports(&format!("name:{name}"), &ports)).expect("ports");
    }
    if !case.node.is_empty() {
        put_far(node, if there { &case.node } else { &[] });
    }
    for (name, service) in &case.services {
        let request = ServiceRequest {
            labels: service.labels.clone(),
            selector: service.selector.as_ref().map(|s| s.match_labels.iter().map(|(k, v)| (k.to_string(), v.clone())).collect()),
            backends: service.addresses.iter().map(|address| ServiceBackend { address: *address }).collect(),
        };
        match there {
            true => drop(node.block_on(node.client().put_service(name, &request)).expect("service")),
            false => node.block_on(node.client().delete_service(name)).expect("service"),
        }
    }
}

fn prepare(node: &Node, step: &truth::Step, case: &str) {
    if let Some(mode) = &step.mode {
        let options = BTreeMap::from([("PolicyEnforcement".to_owned(), mode.clone())]);
        node.block_on(node.client().set_config(options)).unwrap_or_else(|e| panic!("{case}: {e}"));
    }
    if let Some(delete) = &step.delete {
        let scope = if delete == "all" { PolicyScope::All } else { PolicyScope::Labels(vec![delete.clone()]) };
        let deleted = node.block_on(node.client().delete_policy(&scope)).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert!(deleted.deleted > 0, "{case}: nothing has {delete}");
        node.wait_policy(deleted.revision).unwrap_or_else(|e| panic!("{case}: {e:#}"));
    }
    if let Some(text) = &step.import {
        node.import(text).unwrap_or_else(|e| panic!("{case}: {e:#}"));
    }
}

#[test]
fn truth_by_packets() {
    let (first, mut others) = play("auto", |case| case.host.is_none());
    let (second, more) = play("always", |case| case.host.is_some());
    more.into_iter().for_each(|(why, n)| *others.entry(why).or_default() += n);
    others.iter().for_each(|(why, n)| println!("by the evaluator only: {n} connections: {why}"));
    assert_eq!(others.into_iter().collect::<Vec<_>>(), EVALUATOR_ONLY);
    assert!(first > 450 && second > 5, "{first} and {second} rows");
}

/// Files that nobody here wrote, and what becomes of connections under all of a directory.
struct Foreign {
    files: &'static [(&'static str, &'static str)],
    endpoints: &'static [(&'static str, &'static [&'static str])],
    rows: &'static [&'static str],
}

macro_rules! files {
    ($dir:literal: $($name:literal)*) => { &[$(($name, include_str!(concat!("../../foreign/", $dir, "/", $name, ".yaml")))),*] };
}

const FOREIGN: [Foreign; 2] = [
    Foreign {
        files: files!("kube-netpol": "01-default-deny" "02-frontend-policy" "03-backend-policy" "04-database-policy" "05-redis-policy"
            "06-monitoring-policy"),
        endpoints: &[
            ("frontend", &["k8s:app=frontend", "k8s:io.kubernetes.pod.namespace=ecommerce"]),
            ("backend", &["k8s:app=backend-api", "k8s:io.kubernetes.pod.namespace=ecommerce"]),
            ("postgres", &["k8s:app=postgres", "k8s:io.kubernetes.pod.namespace=ecommerce"]),
            ("redis", &["k8s:app=redis", "k8s:io.kubernetes.pod.namespace=ecommerce"]),
            ("worker", &["k8s:app=worker", "k8s:io.kubernetes.pod.namespace=ecommerce"]),
            ("prometheus", &["k8s:app=prometheus", "k8s:io.kubernetes.pod.namespace=ecommerce"]),
            ("stranger", &["k8s:app=frontend", "k8s:io.kubernetes.pod.namespace=elsewhere"]),
        ],
        rows: &[
            "worker,stranger,world,198.51.100.1 -> frontend 80/tcp,443/tcp allow",
            "worker,world -> frontend 8080/tcp,80/udp deny",
            "frontend -> backend 8080/tcp allow",
            "frontend -> backend 8081/tcp,8/icmp,128/icmpv6 deny",
            "frontend -> redis,postgres,world 8080/tcp deny",
            "stranger,worker -> backend 8080/tcp allow",
            "host,world -> backend 8080/tcp deny",
            "backend -> postgres 5432/tcp allow",
            "backend -> postgres 5433/tcp,22/tcp deny",
            "backend -> 198.51.100.1 443/tcp allow",
            "backend -> 198.51.100.1 80/tcp deny",
            "backend -> \"2001:db8::1\" 443/tcp deny",
            "backend -> redis,frontend 443/tcp,6379/tcp deny",
            "198.51.100.1 -> postgres 22/tcp allow",
            "\"2001:db8::1\",worker,stranger -> postgres 22/tcp deny",
            "worker,world -> postgres 5432/tcp deny",
            "postgres -> worker 80/tcp deny",
            "postgres -> stranger,world 80/tcp,53/udp allow",
            "frontend,stranger,world,host -> redis,worker 6379/tcp deny",
            "redis -> stranger,world 6379/tcp allow",
            "worker,stranger,world -> prometheus 9090/tcp allow",
            "worker -> prometheus 9091/tcp deny",
            "prometheus -> 198.51.100.1 9090/tcp,443/tcp allow",
            "prometheus -> 198.51.100.1 80/tcp deny",
            "prometheus -> \"2001:db8::1\",stranger 443/tcp deny",
        ],
    },
    Foreign {
        files: files!("hubble-audit2policy": "default-api" "default-frontend" "monitoring-prometheus"),
        endpoints: &[
            ("frontend", &["k8s:app=frontend", "k8s:io.kubernetes.pod.namespace=default"]),
            ("api", &["k8s:app=api", "k8s:io.kubernetes.pod.namespace=default"]),
            ("prometheus", &["k8s:app=prometheus", "k8s:io.kubernetes.pod.namespace=monitoring"]),
            ("other", &["k8s:app=frontend", "k8s:io.kubernetes.pod.namespace=monitoring"]),
        ],
        rows: &[
            "frontend -> api 8080/tcp allow",
            "frontend -> api 8081/tcp,8080/udp,4240/tcp,8/icmp,128/icmpv6 deny",
            "frontend -> prometheus,other,world 8080/tcp deny",
            "other,prometheus,host,world -> api 8080/tcp deny",
            "host -> api 4240/tcp allow",
            "api -> prometheus 9090/tcp allow",
            "api -> prometheus 9091/tcp deny",
            "api -> world 53/udp allow",
            "api -> world 53/tcp deny",
            "frontend,other,world,host -> prometheus 9090/tcp deny",
            "other -> frontend 80/tcp allow",
        ],
    },
];

#[test]
fn foreign_policies_by_packets() {
    for foreign in FOREIGN {
        let rows: Vec<Row> = foreign.rows.iter().flat_map(|r| truth::connections(r)).collect();
        let (node, mut ends) = stage("policy", &addresses(rows.iter().cloned()));
        ends.extend(foreign.endpoints.iter().map(|(name, labels)| ((*name).to_owned(), node.add(name, labels).expect("endpoint"))));
        let documents = foreign.files.iter().map(|(name, text)| PolicyDocument { name: (*name).into(), text: (*text).into() }).collect();
        let imported = node.block_on(node.client().import_policy(&PolicyImport { documents })).expect("import");
        assert_eq!(imported.rules, foreign.files.len());
        node.wait_policy(imported.revision).expect("realised");
        let mut play = Play::new(&node, ends);
        let mut failed = Vec::new();
        let played: usize = rows.iter().map(|row| play.both(row, foreign.files[0].0, &mut failed)).sum();
        assert!(failed.is_empty(), "{} of {played} failed:\n{}", failed.len(), failed.join("\n"));
        assert!(played > 40, "{played} connections");
    }
}
