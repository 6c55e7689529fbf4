// SPDX-License-Identifier: Apache-2.0
//! What the tests share: waiting for a state, raw requests, a node's kernel beside what the API says.

use pilus_api::types::EndpointModel;
use pilus_e2e::container::PATIENCE;
pub use pilus_e2e::until;
use pilus_e2e::{Container, Family, Node};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;

/// True for the long variants: more rounds of the same.
pub fn rounds(short: usize, long: usize) -> usize {
    if std::env::var_os("PILUS_TEST_LONG").is_some_and(|v| v == "1") { long } else { short }
}

/// An answer of the API as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.body))
    }

    /// An error in the agreed shape: status, code and field; its message.
    pub fn refused(&self, status: u16, code: &str, field: Option<&str>) -> String {
        let json = self.json();
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(json["code"], code, "{self:?}");
        assert_eq!(json["field"].as_str(), field, "{self:?}");
        let known = ["code", "message", "field"];
        assert!(json.as_object().is_some_and(|o| o.keys().all(|k| known.contains(&k.as_str()))), "{self:?}");
        let message = json["message"].as_str().unwrap_or_default().to_owned();
        assert!(!message.is_empty(), "{self:?}");
        message
    }
}

/// One request, byte by byte as given: no client library corrects it.
pub fn request(node: &Node, method: &str, target: &str, content_type: Option<&str>, body: &str) -> Answer {
    let mut stream = UnixStream::connect(node.socket()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let kind = content_type.map(|t| format!("content-type: {t}\r\n")).unwrap_or_default();
    let head = format!("{method} {target} HTTP/1.1\r\nhost: pilus\r\nconnection: close\r\n{kind}content-length: {}\r\n\r\n", body.len());
    // A server that has seen enough answers and closes before all is sent: what it said waits to be read nevertheless.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    assert!(read.is_ok() || !answer.is_empty(), "no answer: {read:?}");
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{head}"));
    Answer { status, body: body.to_owned() }
}

/// Objects of the documents that tests import. `rule`: lines below `spec:`, indented by two.
pub fn policy(name: &str, rule: &str) -> String {
    format!("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\nspec:\n{rule}")
}

pub fn ready(node: &Node) {
    until("the agent is ok", || {
        let status = node.block_on(node.client().status()).map_err(|e| e.to_string())?;
        if status.state == "ok" && status.endpoints.keys().all(|s| s == "ready") { Ok(()) } else { Err(format!("{status:?}")) }
    });
}

/// A conversation that answers once per question: TCP and UDP.
pub enum Talk {
    Tcp(TcpStream, TcpStream),
    Udp(UdpSocket, UdpSocket),
}

impl Talk {
    pub fn tcp(client: &Container, server: &Container, family: Family, port: u16) -> Self {
        let listener = server.listen(family, port).expect("listen");
        let near = client.connect(SocketAddr::new(server.ip(family), port)).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        far.set_read_timeout(Some(PATIENCE)).expect("timeout");
        far.set_nodelay(true).expect("no delay");
        Self::Tcp(near, far)
    }

    pub fn udp(client: &Container, server: &Container, family: Family, port: u16) -> Self {
        let far = server.udp(family, port).expect("bind");
        let near = client.udp(family, 0).expect("bind");
        near.connect(SocketAddr::new(server.ip(family), port)).expect("connect");
        Self::Udp(near, far)
    }

    /// There and back.
    pub fn exchange(&mut self, mark: u32) -> Result<(), String> {
        let (sent, mut seen) = (mark.to_be_bytes(), [0; 4]);
        let fail = |what: &str, e: std::io::Error| format!("{what}: {e}");
        match self {
            Self::Tcp(near, far) => {
                near.write_all(&sent).map_err(|e| fail("send", e))?;
                far.read_exact(&mut seen).map_err(|e| fail("tcp question", e))?;
                far.write_all(&seen).map_err(|e| fail("send", e))?;
                near.read_exact(&mut seen).map_err(|e| fail("tcp answer", e))?;
            }
            Self::Udp(near, far) => {
                near.send(&sent).map_err(|e| fail("send", e))?;
                let (_, from) = far.recv_from(&mut seen).map_err(|e| fail("udp question", e))?;
                far.send_to(&seen, from).map_err(|e| fail("send", e))?;
                near.recv(&mut seen).map_err(|e| fail("udp answer", e))?;
            }
        }
        if seen == sent { Ok(()) } else { Err(format!("{seen:?} came, not {sent:?}")) }
    }
}

/// What is left of a row of a table: its first columns.
fn keyed(rows: Vec<Vec<String>>) -> BTreeMap<String, Vec<String>> {
    rows.into_iter().map(|r| (r[0].clone(), r)).collect()
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, kernel: T, wanted: T) -> Result<(), String> {
    if kernel == wanted { Ok(()) } else { Err(format!("{what}: kernel has {kernel:?}, wanted {wanted:?}")) }
}

/// Directories below `objects`: loaded shapes.
pub fn shapes(node: &Node) -> Result<BTreeSet<String>, String> {
    let pins = node.pins().map_err(|e| e.to_string())?;
    Ok(pins.iter().filter_map(|p| p.split_once("/objects/")?.1.split('/').next().map(str::to_owned)).collect())
}

/// Everything that the kernel and the directories hold, beside what the API says should be there.
pub fn compare(node: &Node) -> Result<Vec<EndpointModel>, String> {
    let text = |e: anyhow::Error| format!("{e:#}");
    let status = node.block_on(node.client().status()).map_err(|e| e.to_string())?;
    let endpoints = node.block_on(node.client().endpoints()).map_err(|e| e.to_string())?;
    for e in &endpoints {
        equal(&format!("state of {}", e.name), (e.state.as_str(), e.health.as_str()), ("ready", "ok"))?;
    }
    // Rows.
    let rows = keyed(node.rows("endpoint").map_err(text)?);
    let (own, slots): (Vec<_>, Vec<_>) = rows.values().partition(|r| r[0].parse::<u32>().is_ok_and(|slot| slot < 256));
    equal("host's rows", own.len(), 2)?;
    equal("rows", slots.len(), endpoints.len())?;
    let mut policies = BTreeSet::new();
    for e in &endpoints {
        let row = rows.get(&e.id.to_string()).ok_or(format!("no row of {}", e.name))?;
        let shown = [&row[1], &row[2], &row[6], &row[7], &row[8]].map(String::as_str);
        let (index, identity) = (e.interface.index.to_string(), e.identity.id.to_string());
        let ipv6 = e.ipv6.map(|ip| ip.to_string()).unwrap_or_default();
        let ipv4 = e.ipv4.map_or("0.0.0.0".into(), |ip| ip.to_string());
        equal(&format!("row of {}", e.name), shown, [&index, &identity, &ipv6, &ipv4, &e.interface.mac])?;
        for (column, mode) in [(3, &e.policy.ingress), (4, &e.policy.egress)] {
            let id: u32 = row[column].parse().map_err(|_| format!("{row:?}"))?;
            // 0 is no policy at all, 1 lets everything through.
            equal(&format!("policy id {id} of {} is {mode}", e.name), id > 1, mode != "open")?;
            if id > 1 {
                policies.insert(id.to_string());
            }
        }
    }
    // A policy that allows nothing has no rule to show; whatever is there must be referred to.
    let written: BTreeSet<String> = node.rows("policy").map_err(text)?.into_iter().map(|r| r[0].clone()).collect();
    equal("unused policies", written.difference(&policies).cloned().collect(), Vec::<String>::new())?;
    // Devices and pins.
    let mut links = node.links().map_err(text)?;
    let mut wanted: Vec<String> = endpoints.iter().map(|e| e.interface.name.clone()).collect();
    wanted.extend(["pilus_host".into(), "pilus_net".into()]);
    links.sort();
    wanted.sort();
    equal("links", links, wanted)?;
    let pins = node.pins().map_err(text)?;
    let pinned: BTreeSet<String> = pins.iter().filter_map(|p| p.strip_prefix("pilus/v1/links/").map(str::to_owned)).collect();
    let mut wanted: BTreeSet<String> = endpoints.iter().filter(|e| e.datapath.attach == "tcx").map(|e| e.interface.name.clone()).collect();
    if status.attach_mode != "tc" && pinned.contains("host") {
        wanted.insert("host".into());
    }
    equal("link pins", pinned, wanted)?;
    // Addresses.
    let mut wanted: BTreeMap<String, [String; 2]> = BTreeMap::new();
    for e in &endpoints {
        for ip in [e.ipv6.map(IpAddr::from), e.ipv4.map(IpAddr::from)].into_iter().flatten() {
            wanted.insert(ip.to_string(), [e.identity.id.to_string(), e.id.to_string()]);
        }
    }
    let entries = keyed(node.rows("ipcache").map_err(text)?);
    let host = |r: &Vec<String>| r[1] == "1";
    let range = |r: &Vec<String>| r[0] == status.ipv6_range || r[0] == status.ipv4_range;
    let others = entries.values().filter(|r| !host(r) && !range(r));
    equal("ipcache", others.map(|r| (r[0].clone(), [r[1].clone(), r[2].clone()])).collect(), wanted)?;
    for router in [&status.router_ipv6, &status.router_ipv4].into_iter().filter(|r| !r.is_empty()) {
        equal("router in ipcache", entries.get(router).is_some_and(host), true)?;
    }
    // Identities of endpoints and headers for people.
    let identities = node.block_on(node.client().identities()).map_err(|e| e.to_string())?;
    let allocated: BTreeSet<u32> = identities.iter().map(|i| i.id).filter(|id| *id >= 256).collect();
    equal("identities", allocated, endpoints.iter().map(|e| e.identity.id).collect())?;
    let ids: BTreeSet<String> = endpoints.iter().map(|e| e.id.to_string()).collect();
    let dirs = std::fs::read_dir(node.path("run/endpoint")).into_iter().flatten().flatten();
    equal("header directories", dirs.map(|d| d.file_name().to_string_lossy().into_owned()).collect(), ids)?;
    Ok(endpoints)
}

/// The same when what goes on in the background is over.
pub fn settled(node: &Node) -> Vec<EndpointModel> {
    until("kernel and desired state are equal", || compare(node))
}

/// Runs a future of rtnetlink in the calling thread's namespace.
pub fn netlink<T>(work: impl AsyncFnOnce(&pilus_loader::netlink::Netlink) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async { work(&pilus_loader::netlink::Netlink::new().expect("netlink")).await })
}

/// Both protocols and both families work once.
pub fn talk(client: &Container, server: &Container, port: u16) {
    for family in Family::BOTH {
        for mut talk in [Talk::tcp(client, server, family, port), Talk::udp(client, server, family, port)] {
            talk.exchange(1).unwrap_or_else(|e| panic!("{} to {} {family:?}: {e}", client.name, server.name));
        }
    }
}
