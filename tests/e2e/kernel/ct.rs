// SPDX-License-Identifier: Apache-2.0
//! The flow table as people see it, and what leaves it.

use crate::support::{Talk, policy, until};
use pilus_api::types::FlowEntry;
use pilus_e2e::container::PATIENCE;
use pilus_e2e::icmp::{Raw, echo_types};
use pilus_e2e::{Container, Family, Node, NodeOptions};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

fn node(args: &[&str]) -> Node {
    Node::start(NodeOptions { args: args.iter().map(|a| (*a).to_owned()).collect(), ..NodeOptions::default() }).expect("node")
}

fn table(node: &Node, endpoint: Option<&str>) -> Vec<FlowEntry> {
    node.block_on(node.client().flow_table(endpoint)).expect("flow table")
}

fn configure(node: &Node, key: &str, value: &str) {
    let options = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let config = node.block_on(node.client().set_config(options)).expect("config");
    assert_eq!(config.options[key], value);
}

fn echo(from: &Container, to: &Container, family: Family) {
    let raw = Raw::new(from, family).expect("raw socket");
    raw.echo(to.ip(family), 77, 1).expect("send");
    raw.receive(|m| m.kind == echo_types(family).1 && m.body.starts_with(&[0, 77])).expect("answer");
}

fn domain(family: Family) -> Domain {
    if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 }
}

#[test]
fn flows_are_listed_and_forgotten() {
    let node = node(&[]);
    let web = node.add("web", &[]).expect("web");
    let client = node.add("client", &[]).expect("client");
    let other = node.add("other", &[]).expect("other");
    let mut talks = Vec::new();
    for family in Family::BOTH {
        for mut talk in [Talk::tcp(&client, &web, family, 8080), Talk::udp(&client, &web, family, 8081)] {
            (0..3).for_each(|n| talk.exchange(n).expect("exchange"));
            talks.push(talk);
        }
        Talk::udp(&other, &web, family, 8082).exchange(1).expect("exchange");
        echo(&client, &web, family);
    }
    let flows = table(&node, Some("name:client"));
    for family in Family::BOTH {
        for (protocol, port, state) in
            [("tcp", 8080, "established"), ("udp", 8081, "replied"), (["icmp", "icmpv6"][family as usize], 77, "replied")]
        {
            let found: Vec<_> = flows.iter().filter(|f| f.protocol == protocol && f.source.address == client.ip(family)).collect();
            let [f] = found.as_slice() else { panic!("{protocol}: {found:?} in {flows:?}") };
            assert_eq!((f.source.name.as_str(), f.source.slot), ("client", client.id));
            assert_eq!((f.destination.name.as_str(), f.destination.slot, f.destination.port), ("web", web.id, port));
            assert_eq!((f.destination.address, f.state.as_str(), f.verdict.as_str()), (web.ip(family), state, "allow"));
            assert_eq!(f.family, if family == Family::V4 { 4 } else { 6 });
            assert_eq!(f.age.is_some(), family == Family::V4);
            let (sent, received) = (f.sent.packets, f.received.packets);
            match protocol {
                // SYN, ACK and three questions at least; SYN-ACK and three answers.
                "tcp" => assert!(sent >= 5 && received >= 4, "{f:?}"),
                "udp" => assert_eq!((sent, received), (3, 3), "{f:?}"),
                _ => assert_eq!((sent, received), (1, 1), "{f:?}"),
            }
            assert!(f.sent.bytes >= f.sent.packets * 42 && f.received.bytes >= f.received.packets * 42, "{f:?}");
        }
    }
    assert_eq!(flows.len(), 6, "{flows:?}");
    let (code, out, _) = node.pilus(&["bpf", "ct", "list", "--endpoint", "other"]).expect("pilus");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((code, lines.len()), (0, 3), "{out}");
    assert!(
        lines[0].starts_with("PROTO") && lines[1..].iter().all(|l| l.contains("udp") && l.contains("other") && l.contains(":8082")),
        "{out}"
    );
    let (code, out, _) = node.pilus(&["bpf", "ct", "flush", "--endpoint", "client", "-o", "json"]).expect("pilus");
    assert_eq!((code, serde_json::from_str::<serde_json::Value>(&out).expect("json")), (0, serde_json::json!({"removed": 6})));
    // A late acknowledgement of an open connection makes its entry again.
    let left = |endpoint| table(&node, endpoint).into_iter().filter(|f| f.protocol != "tcp").count();
    assert_eq!(left(Some("name:client")), 0);
    assert_eq!(left(None), 2, "those of others stay");
    // What policy admits goes on.
    talks.iter_mut().for_each(|talk| talk.exchange(9).expect("exchange"));
    assert_eq!(table(&node, Some("name:client")).len(), 4);
    assert_eq!(node.pilus(&["bpf", "ct", "flush"]).expect("pilus").0, 0);
    assert_eq!(left(None), 0);
    let (code, _, err) = node.pilus(&["bpf", "ct", "list", "--endpoint", "nobody"]).expect("pilus");
    assert_eq!((code, err.as_str()), (1, "error: no endpoint name:nobody\n"));
}

/// One flow of every kind, whose entries stay until an option is lowered; each option takes its own kind and no other.
#[test]
fn every_kind_of_flow_expires_by_its_own_option() {
    let kinds = ["tcp", "tcp-open", "tcp-closing", "udp", "udp-reply", "icmp", "other", "deny"];
    let options: Vec<String> = kinds.iter().flat_map(|k| [format!("--flow-timeout-{k}"), "100000".into()]).collect();
    let node = node(&options.iter().map(String::as_str).collect::<Vec<_>>());
    let a = node.add("a", &["app=a"]).expect("a");
    let b = node.add("b", &["app=b"]).expect("b");
    let mut held: Vec<Box<dyn std::any::Any>> = Vec::new();
    for family in Family::BOTH {
        let mut revoked = Talk::udp(&a, &b, family, 9000);
        revoked.exchange(1).expect("exchange");
        node.import("- endpointSelector: {matchLabels: {app: b}}\n  ingressDeny: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '9000', protocol: UDP}]}]}]\n  ingress: [{}]\n")
            .map(drop)
            .unwrap_or_else(|e| panic!("policy: {e:#}"));
        let Talk::Udp(near, _) = &revoked else { unreachable!() };
        near.send(b"again").expect("send");
        until("the flow is denied", || match table(&node, None).iter().any(|f| f.state == "denied" && f.source.address == a.ip(family)) {
            true => Ok(()),
            false => Err(format!("{:?}", table(&node, None))),
        });
        node.forget_policy().expect("policy");
        echo(&a, &b, family);
        let mut replied = Talk::udp(&a, &b, family, 9001);
        replied.exchange(1).expect("exchange");
        let silent = b.udp(family, 9002).expect("bind");
        let near = a.udp(family, 0).expect("bind");
        near.send_to(b"x", silent.local_addr().expect("address")).expect("send");
        silent.recv(&mut [0; 8]).expect("arrives");
        let raw = a.run(|| Socket::new(domain(family), Type::RAW, Some(Protocol::from(253)))).expect("raw socket");
        raw.send_to(b"experiment", &SockAddr::from(SocketAddr::new(b.ip(family), 0))).expect("send");
        let mut open = Talk::tcp(&a, &b, family, 9003);
        open.exchange(1).expect("exchange");
        drop(Talk::tcp(&a, &b, family, 9004));
        // Room for one connection that nobody accepts: the second one's SYN gets no answer.
        let full = b.run(|| Socket::new(domain(family), Type::STREAM, None)).expect("socket");
        let at = SocketAddr::new(b.ip(family), 9005);
        full.bind(&SockAddr::from(at)).expect("bind");
        full.listen(0).expect("listen");
        let taken = a.connect(at).expect("connect");
        let waiting = a.connect_start(at).expect("connect");
        held.push(Box::new((replied, silent, near, raw, open, full, taken, waiting)));
    }
    let rows = [
        ("flow-timeout-deny", "udp", "denied"),
        ("flow-timeout-udp", "udp", "unreplied"),
        ("flow-timeout-udp-reply", "udp", "replied"),
        ("flow-timeout-icmp", "icmp", "replied"),
        ("flow-timeout-other", "253", "unreplied"),
        ("flow-timeout-tcp-closing", "tcp", "closing"),
        ("flow-timeout-tcp-open", "tcp", "opening"),
        ("flow-timeout-tcp", "tcp", "established"),
    ];
    let is = |f: &FlowEntry, protocol: &str, state: &str| f.state == state && f.protocol.trim_end_matches("v6") == protocol;
    let families = |flows: &[FlowEntry], protocol: &str, state: &str| {
        [4, 6].map(|family| flows.iter().filter(|f| f.family == family && is(f, protocol, state)).count() > 0)
    };
    until("a flow of each kind is there", || {
        let flows = table(&node, None);
        let missing: Vec<_> = rows.iter().filter(|(_, p, s)| families(&flows, p, s) != [true; 2]).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} of {flows:?}")) }
    });
    for (n, (option, protocol, state)) in rows.iter().enumerate() {
        let entry = table(&node, None).into_iter().find(|f| is(f, protocol, state)).expect("still there");
        assert!(entry.expires > 1000, "{entry:?}");
        configure(&node, option, "1");
        until(&format!("{protocol} {state} expires"), || match families(&table(&node, None), protocol, state) {
            [false, false] => Ok(()),
            left => Err(format!("{left:?}")),
        });
        configure(&node, option, "100000");
        let flows = table(&node, None);
        for (other, protocol, state) in &rows[n + 1..] {
            assert_eq!(families(&flows, protocol, state), [true; 2], "{other} after {option}: {flows:?}");
        }
    }
    let refused = node.pilus(&["config", "flow-timeout-udp=5", "flow-timeout-tcp=0"]).expect("pilus");
    assert_eq!(refused.0, 1);
    assert!(refused.2.contains("flow-timeout-tcp") && refused.2.contains("takes seconds, 1 to 1000000"), "{}", refused.2);
    let config = node.block_on(node.client().config()).expect("config");
    assert_eq!(config.options["flow-timeout-udp"], "100000", "all or nothing");
    drop(held);
}

/// Three times as many flows in use as the table has room for. Whatever the kernel evicts: who may talk is answered, who may not
/// is not, and only what nobody but a live connection admits can break.
#[test]
fn too_many_flows_break_no_verdict() {
    const ENTRIES: usize = 4096;
    let node = node(&["--flow-table-size", &ENTRIES.to_string()]);
    let web = node.add("web", &["app=web"]).expect("web");
    let client = node.add("client", &["app=client"]).expect("client");
    node.import(&policy(
        "p",
        "  endpointSelector: {matchLabels: {app: web}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n    toPorts: [{ports: \
         [{port: \"8000\", endPort: 8999, protocol: ANY}]}]\n  egress:\n  - {}\n",
    ))
    .expect("policy");
    let numbers = |count: usize| (0..count).map(|n| n as u16);
    for family in Family::BOTH {
        let without = || metric(&node, "pilus_tcp_packets_without_flow_total");
        let before = without();
        let mut streams: Vec<Talk> = numbers(64).map(|n| Talk::tcp(&client, &web, family, 8800 + n)).collect();
        streams.iter_mut().for_each(|t| t.exchange(1).expect("exchange"));
        assert_eq!(without(), before, "{family:?}: each has an entry");
        let far: Vec<_> = numbers(96).map(|n| web.udp(family, 8000 + n).expect("bind")).collect();
        let shut = web.udp(family, 9000).expect("bind");
        let near: Vec<_> = numbers(3 * ENTRIES / 96).map(|_| client.udp(family, 0).expect("bind")).collect();
        let mut buffer = [0; 16];
        // Twice: what was evicted is judged anew.
        for turn in [1, 2] {
            for (n, socket) in near.iter().enumerate() {
                for (m, peer) in far.iter().enumerate() {
                    let what = [turn, n as u8, m as u8];
                    socket.send_to(&what, peer.local_addr().expect("address")).expect("send");
                    let (len, from) = peer.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{family:?} {what:?}: {e}"));
                    assert_eq!((&buffer[..len], from.port()), (&what[..], socket.local_addr().expect("address").port()));
                    peer.send_to(&what, from).expect("answer");
                    let len = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{family:?} answer to {what:?}: {e}"));
                    assert_eq!(buffer[..len], what);
                }
                socket.send_to(b"no", SocketAddr::new(web.ip(family), 9000)).expect("send");
            }
        }
        // What the client may open goes on, whether or not its entry is there. What comes from the server first cannot.
        let (asked, told) = streams.split_at_mut(32);
        asked.iter_mut().for_each(|t| t.exchange(2).expect("an evicted connection goes on"));
        let evicted = without() - before;
        for talk in told.iter_mut() {
            let Talk::Tcp(_, far) = talk else { unreachable!() };
            far.write_all(b"late").expect("write");
        }
        let answers = |m: usize| near.iter().map(move |s| (m, s.local_addr().expect("address")));
        let stale: Vec<_> = (0..far.len()).flat_map(answers).collect();
        for (m, to) in &stale {
            // The sender is told of a drop by nothing, or by an error of its own stack.
            let _ = far[*m].send_to(b"late", to);
        }
        // Behind all of these.
        Talk::udp(&client, &web, family, 8700).exchange(3).expect("exchange");
        let broken = told.iter().filter(|t| !has_come(t)).count();
        let heard: usize = near.iter().map(drain).sum();
        println!(
            "{family:?}: {ENTRIES} entries, {} flows: {evicted} of {} idle TCP connections evicted; of those whose server spoke first {broken} of {} \
             broken; {} of {} late answers dropped",
            stale.len() + 64,
            asked.len(),
            told.len(),
            stale.len() - heard,
            stale.len()
        );
        assert!((1..=ENTRIES).contains(&heard), "{family:?}: {heard} late answers came by {ENTRIES} entries");
        assert_eq!(drain(&shut), 0, "{family:?}: what is denied came");
        node.block_on(node.client().flush_flow_table(None)).expect("flush");
        let before = without();
        asked.iter_mut().for_each(|t| t.exchange(4).expect("a forgotten connection goes on"));
        assert!(without() - before >= asked.len() as f64, "{family:?}: connections without an entry are counted");
    }
}

/// Datagrams that wait to be read.
fn drain(socket: &UdpSocket) -> usize {
    socket.set_nonblocking(true).expect("socket");
    std::iter::from_fn(|| socket.recv(&mut [0; 16]).ok()).count()
}

/// Whether what the server said has come.
fn has_come(talk: &Talk) -> bool {
    let Talk::Tcp(near, _) = talk else { unreachable!() };
    near.set_nonblocking(true).expect("socket");
    near.peek(&mut [0]).is_ok_and(|n| n > 0)
}

fn metric(node: &Node, name: &str) -> f64 {
    let all = node.block_on(node.client().metrics()).expect("metrics");
    all.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("no {name}")).value
}

/// Three fifths of the table are flows in use; connections that come and go would fill it more than twice over. The keeper
/// removes what is closed before the kernel evicts what is in use. Closed flows have no other reason to go: their idle time is
/// long. New connections wait while there is no room, as the measure is what goes, not how fast this machine is.
#[test]
fn closed_flows_go_before_live_ones_are_evicted() {
    const ENTRIES: usize = 8192;
    let node = node(&["--flow-table-size", &ENTRIES.to_string(), "--flow-timeout-tcp-closing", "100000"]);
    let web = node.add("web", &[]).expect("web");
    let client = node.add("client", &[]).expect("client");
    for family in Family::BOTH {
        let far: Vec<_> = (0..70).map(|n| web.udp(family, 10_000 + n).expect("bind")).collect();
        let near: Vec<_> = (0..70).map(|_| client.udp(family, 0).expect("bind")).collect();
        let mut buffer = [0; 8];
        for socket in &near {
            for peer in &far {
                socket.send_to(b"?", peer.local_addr().expect("address")).expect("send");
                let (n, from) = peer.recv_from(&mut buffer).expect("question");
                peer.send_to(&buffer[..n], from).expect("send");
                socket.recv(&mut buffer).expect("answer");
            }
        }
        let listener: TcpListener = web.listen(family, 8080).expect("listen");
        let to = listener.local_addr().expect("address");
        let (burst, bursts) = (512, 16);
        let server = std::thread::spawn(move || (0..burst * bursts).try_for_each(|_| listener.accept().map(drop)));
        for _ in 0..bursts {
            client.run(|| {
                for _ in 0..burst {
                    let stream = TcpStream::connect_timeout(&to, PATIENCE).expect("connect");
                    // Ends with RST: no port waits.
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
                }
            });
            until("closed flows go", || match table(&node, None).len() {
                n if n * 100 <= ENTRIES * 85 => Ok(()),
                n => Err(format!("{n} entries of {ENTRIES}")),
            });
        }
        server.join().expect("server").expect("accept");
        let live = table(&node, None).iter().filter(|f| f.protocol == "udp" && f.source.address == client.ip(family)).count();
        assert_eq!(live, far.len() * near.len(), "live flows of {family:?}");
        node.block_on(node.client().flush_flow_table(None)).expect("flush");
    }
}
