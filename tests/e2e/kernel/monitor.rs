// SPDX-License-Identifier: Apache-2.0
//! Events as listeners get them: what they ask for, told in full, and counted where they could not keep up.

use crate::support::{Talk, policy, until};
use pilus_api::FlowFilter;
use pilus_api::types::FlowEvent;
use pilus_e2e::container::PATIENCE;
use pilus_e2e::node::{Events, command};
use pilus_e2e::traffic::ClosedLoop;
use pilus_e2e::{Container, Family, Node, NodeOptions};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

fn trace(node: &Node, name: &str, options: &[(&str, &str)]) {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
    node.block_on(node.client().set_endpoint_config(&format!("name:{name}"), &options)).expect("options");
}

/// `pilus monitor` that follows already.
fn monitor(node: &Node, args: &[&str]) -> Child {
    let mut child = command("pilus")
        .arg("--socket")
        .arg(node.socket())
        .args(["monitor", "-v"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pilus");
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().expect("stderr")).read_line(&mut line).expect("first line");
    assert_eq!(line, "Following events; interrupt to end\n");
    child
}

/// What it printed, once it has ended by itself.
fn end(mut child: Child) -> std::process::Output {
    let since = Instant::now();
    while child.try_wait().expect("wait").is_none() {
        if since.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("pilus monitor does not end");
        }
        std::thread::yield_now();
    }
    child.wait_with_output().expect("wait")
}

fn syn(from: &Container, to: &Container, family: Family, port: u16) {
    drop(from.connect_start(SocketAddr::new(to.ip(family), port)).expect("connect"));
}

#[test]
fn an_event_tells_everything() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let web = node.add("web", &["app=web"]).expect("web");
    let client = node.add("client", &["app=client"]).expect("client");
    let rule = "  endpointSelector: {matchLabels: {app: web}}\n  ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]\n  \
                ingressDeny: [{toPorts: [{ports: [{port: '82', protocol: TCP}]}]}]\n";
    node.import(&policy("web", rule)).expect("policy");
    trace(&node, "web", &[("Trace", "all"), ("PolicyVerdict", "true")]);
    for family in Family::BOTH {
        let mut events = node.events(&["drop", "trace", "policy-verdict"]).expect("events");
        for (port, reason) in [(81, "Policy denied"), (82, "Policy denied by denylist")] {
            syn(&client, &web, family, port);
            let e = events.wait("drop", |e| e.kind == "drop" && e.summary.contains(&format!(".{port} tcp"))).expect("drop");
            assert_eq!((e.reason.as_str(), e.verdict.as_str(), e.direction.as_str()), (reason, "deny", "ingress"));
            let (from, to) = (e.source.clone().expect("source"), e.destination.clone().expect("destination"));
            assert_eq!((from.name.as_str(), from.endpoint, from.labels), ("client", client.id, vec!["unspec:app=client".to_owned()]));
            assert_eq!((to.name.as_str(), to.endpoint, to.labels), ("web", web.id, vec!["unspec:app=web".to_owned()]));
            assert_eq!(e.rule.contains("default/web"), port == 82, "{e:?}");
            let start = format!("{}.", client.ip(family));
            let middle = format!(" > {}.{port} tcp SYN seq ", web.ip(family));
            assert!(e.summary.starts_with(&start) && e.summary.contains(&middle) && e.summary.contains(" mss "), "{e:?}");
            assert!(e.summary.ends_with(" length 0"), "{e:?}");
            let header = if family == Family::V4 { "type 0x0800, IPv4 ttl 64 " } else { "type 0x86dd, IPv6 hlim 64 " };
            assert!(e.headers.contains(header), "{e:?}");
            assert_eq!(e.packet.len(), 2 * e.length.min(128) as usize, "{e:?}");
        }
        let mut talk = Talk::tcp(&client, &web, family, 80);
        talk.exchange(7).expect("exchange");
        let allowed =
            events.wait("verdict", |e| e.kind == "policy-verdict" && e.verdict == "allow" && e.direction == "ingress").expect("verdict");
        assert!(allowed.rule.contains("default/web"), "{allowed:?}");
        let data =
            events.wait("data", |e| e.kind == "trace" && e.summary.contains("PSH,ACK") && e.summary.ends_with("length 4")).expect("data");
        assert_eq!((data.reason.as_str(), data.state.as_str()), ("to-endpoint", "established"), "{data:?}");
    }
}

#[test]
fn filters_take_what_they_say() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let a = node.add("a", &[]).expect("a");
    let b = node.add("b", &[]).expect("b");
    let c = node.add("c", &[]).expect("c");
    for name in ["a", "b", "c"] {
        trace(&node, name, &[("Trace", "all")]);
    }
    let by_address = format!("ipv6:{}", b.ipv6);
    type Row<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], &'a [(&'a Container, &'a Container)]);
    let rows: [Row<'_>; 5] = [
        (&["name:a"], &[], &[], &[(&a, &b), (&a, &c)]),
        (&[], &[&by_address], &[], &[(&a, &b), (&c, &b)]),
        (&["name:a", "name:c"], &["name:b"], &[], &[(&a, &b), (&c, &b)]),
        (&[], &[], &["name:c"], &[(&a, &c), (&c, &a), (&c, &b), (&b, &c)]),
        (&["name:c"], &[], &["name:a"], &[(&c, &a)]),
    ];
    let pairs = [(&a, &b), (&b, &a), (&a, &c), (&c, &a), (&b, &c), (&c, &b)];
    let own = |list: &[&str]| list.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>();
    for (from, to, related, expected) in rows {
        for family in Family::BOTH {
            let types = own(&["trace", "drop"]);
            let filter = FlowFilter { types, from: own(from), to: own(to), related: own(related) };
            let mut flows = node.block_on(node.client().flows(&filter)).expect("flows");
            for (n, (from, to)) in pairs.iter().enumerate() {
                let at = to.udp(family, 0).expect("bind");
                from.udp(family, 0).expect("bind").send_to(&[n as u8], at.local_addr().expect("address")).expect("send");
                at.recv(&mut [0; 8]).expect("arrives");
            }
            let mut seen: Vec<(String, String)> = Vec::new();
            while seen.len() < expected.len() {
                let next = node.block_on(async { tokio::time::timeout(PATIENCE, flows.next()).await });
                let e = next.unwrap_or_else(|_| panic!("{filter:?}: only {seen:?}")).expect("event").expect("stream");
                // Neighbours are asked for in between.
                if e.summary.ends_with("udp length 1") {
                    seen.push((e.source.expect("source").name, e.destination.expect("destination").name));
                }
            }
            let mut expected: Vec<(String, String)> = expected.iter().map(|(f, t)| (f.name.clone(), t.name.clone())).collect();
            seen.sort();
            expected.sort();
            assert_eq!(seen, expected, "{filter:?} {family:?}");
        }
    }
    let (code, _, err) = node.pilus(&["monitor", "--from", "nobody"]).expect("pilus");
    assert_eq!((code, err.as_str()), (1, "error: no endpoint name:nobody\n"));
    assert_eq!(node.pilus(&["monitor", "-t", "gossip"]).expect("pilus").0, 2);
}

/// What was written is read by another program, and is what was sent.
#[test]
fn a_packet_file_is_read_by_others() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let a = node.add("a", &[]).expect("a");
    let b = node.add("b", &[]).expect("b");
    trace(&node, "a", &[("Trace", "all")]);
    let file = node.path("a.pcap").display().to_string();
    let child = monitor(&node, &["-t", "trace", "--from", "a", "--to", "b", "-n", "4", "--pcap", &file]);
    for family in Family::BOTH {
        let at = b.udp(family, 9100).expect("bind");
        let from = a.udp(family, 9101).expect("bind");
        for payload in [&b"pilus"[..], &[b'x'; 400]] {
            from.send_to(payload, at.local_addr().expect("address")).expect("send");
            at.recv(&mut [0; 500]).expect("arrives");
        }
    }
    let output = end(child);
    assert_eq!(
        (output.status.code(), String::from_utf8_lossy(&output.stdout).lines().filter(|l| l.contains("TRACE")).count()),
        (Some(0), 4)
    );
    let bytes = std::fs::read(&file).expect("file");
    let mut reader = pcap_file::pcap::PcapReader::new(&bytes[..]).expect("pcap");
    let mut lengths = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.expect("packet");
        lengths.push((packet.orig_len, packet.data.len()));
    }
    assert_eq!(lengths, [(67, 67), (462, 128), (47, 47), (442, 128)]);
    #[expect(clippy::disallowed_methods, reason = "another program's opinion")]
    let read = std::process::Command::new("tcpdump").args(["-n", "-t", "-r", &file]).output().expect("tcpdump");
    let text = String::from_utf8(read.stdout).expect("text");
    let expected: Vec<String> = Family::BOTH
        .iter()
        .flat_map(|f| [5, 400].map(|n| (f, n)))
        .map(|(f, n)| {
            let ip = if *f == Family::V4 { "IP" } else { "IP6" };
            format!("{ip} {}.9101 > {}.9100: UDP, length {n}", a.ip(*f), b.ip(*f))
        })
        .collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

/// A listener that does not read is told how much it lost; another one beside it gets every event, and traffic loses nothing.
#[test]
fn a_slow_listener_loses_and_nobody_else() {
    let node = Node::start(NodeOptions::default()).expect("node");
    let server = node.add("server", &[]).expect("server");
    let client = node.add("client", &[]).expect("client");
    trace(&node, "client", &[("Trace", "all")]);
    let mut slow = UnixStream::connect(node.socket()).expect("connect");
    slow.set_read_timeout(Some(PATIENCE)).expect("timeout");
    write!(slow, "GET /v1/flows?type=trace HTTP/1.1\r\nhost: pilus\r\n\r\n").expect("send");
    let mut slow = BufReader::new(slow);
    let mut head = String::new();
    slow.read_line(&mut head).expect("head");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let other = node.add("other", &[]).expect("other");
    let filter = FlowFilter { types: vec!["trace".into()], to: vec!["name:other".into()], ..FlowFilter::default() };
    let mut quick = node.block_on(node.client().flows(&filter)).expect("flows");
    let (packets, few) = (20_000, 200);
    let traffic = ClosedLoop::start(&client, &server, Family::V6, packets).expect("traffic");
    let at = other.udp(Family::V4, 9200).expect("bind");
    let from = client.udp(Family::V4, 0).expect("bind");
    for _ in 0..few {
        from.send_to(b"few", at.local_addr().expect("address")).expect("send");
        at.recv(&mut [0; 8]).expect("arrives");
    }
    let result = traffic.join();
    assert_eq!((result.sent, result.received), (packets, packets));
    let mut seen = 0;
    while seen < few {
        let next = node.block_on(async { tokio::time::timeout(PATIENCE, quick.next()).await });
        let event = next.expect("in time").expect("event").expect("stream");
        assert_ne!(event.kind, "lost", "{event:?}");
        seen += u64::from(event.summary.contains(".9200 udp"));
    }
    let counted = || {
        let all = node.block_on(node.client().metrics()).expect("metrics");
        let counter = all.into_iter().find(|m| m.name == "pilus_events_lost_total" && m.labels["where"] == "listener");
        counter.expect("metric").value
    };
    assert!(counted() > 1000.0, "{}", counted());
    // What it is told adds up to what was counted.
    let mut told = 0;
    let mut complete = false;
    while !complete {
        let mut line = String::new();
        slow.read_line(&mut line).expect("line");
        let event = if line.starts_with('{') { serde_json::from_str::<FlowEvent>(&line).ok() } else { None };
        if let Some(event) = event.filter(|e| e.kind == "lost") {
            assert_eq!(event.reason, "the listener is too slow");
            told += event.count;
            let counter = until("losses are counted", || if counted() >= told as f64 { Ok(counted()) } else { Err(told.to_string()) });
            complete = told as f64 == counter;
        }
    }
}

/// `Trace=flow` tells a flow's beginning, its answer and its end, not what is between; the interval and the sample are live.
#[test]
fn aggregated_traces_tell_what_is_new() {
    let node = Node::start(NodeOptions { args: vec!["--trace-interval".into(), "0".into()], ..NodeOptions::default() }).expect("node");
    let server = node.add("server", &[]).expect("server");
    let client = node.add("client", &[]).expect("client");
    let set = |option: &str| {
        let (code, out, err) = node.pilus(&["config", option]).expect("pilus");
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
    };
    for family in Family::BOTH {
        let mut events = node.events(&["trace"]).expect("events");
        // What this family's flow to a port reported until a packet of `mark` bytes.
        let told = |events: &mut Events<'_>, port: u16, mark: u16| {
            let seen = RefCell::new(Vec::new());
            let ends = format!("udp length {mark}");
            events
                .wait("the mark", |e| {
                    if e.summary.contains(&format!(".{port} ")) {
                        seen.borrow_mut().push((e.state.clone(), e.summary.clone()));
                    }
                    e.summary.ends_with(&ends)
                })
                .expect("the mark");
            seen.into_inner()
        };
        let mark = |n: u16| {
            let at = server.udp(family, 0).expect("bind");
            client.udp(family, 0).expect("bind").send_to(&vec![0; n.into()], at.local_addr().expect("address")).expect("send");
            at.recv(&mut [0; 900]).expect("arrives");
        };
        trace(&node, "client", &[("Trace", "flow")]);
        let mut talk = Talk::tcp(&client, &server, family, 80);
        for n in 0..200 {
            talk.exchange(n).expect("exchange");
        }
        mark(701);
        let seen = told(&mut events, 80, 701);
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(
            seen[0].0 == "new" && seen[0].1.contains("tcp SYN seq") && seen[1].0 == "reply" && seen[1].1.contains("tcp SYN,ACK"),
            "{seen:?}"
        );

        // While it goes on, one packet of each second.
        set("trace-interval=1");
        let stop = AtomicBool::new(false);
        let (mut talk, sent) = std::thread::scope(|scope| {
            let going = scope.spawn(|| {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    talk.exchange(sent).expect("exchange");
                    sent += 1;
                }
                (talk, sent)
            });
            let seen: Vec<_> = (0..2).map(|_| events.wait("an interval", |e| e.summary.contains(".80 ")).map(|e| e.state)).collect();
            stop.store(true, Ordering::Relaxed);
            assert!(seen.iter().flatten().all(|s| s == "established" || s == "reply") && seen.iter().all(Result::is_ok), "{seen:?}");
            going.join().expect("exchange")
        });
        mark(702);
        let more = told(&mut events, 80, 702);
        assert!(sent > 20 && more.len() < 4, "{sent} packets sent, told {more:?}");

        set("trace-interval=0");
        set("trace-sample=50");
        trace(&node, "client", &[("Trace", "all")]);
        for n in 0..200 {
            talk.exchange(n).expect("exchange");
        }
        drop(talk);
        mark(703);
        let seen = told(&mut events, 80, 703);
        let data = seen.iter().filter(|(_, s)| s.contains("PSH,ACK")).count();
        assert!((4..=16).contains(&data), "each 50th of 200 packets with data of each side: {data} of {seen:?}");
        assert!(seen.iter().any(|(_, s)| s.contains("FIN")), "{seen:?}");
        set("trace-sample=1");
        set("trace-interval=0");
        trace(&node, "client", &[("Trace", "off")]);
    }
    for (bad, what) in [("trace-interval=-1", "seconds, 0 (never) to"), ("trace-sample=0", "a number of packets, 1 (all) to")] {
        let (code, _, err) = node.pilus(&["config", "trace-interval=7", bad]).expect("pilus");
        assert!(code == 1 && err.contains(what), "{err}");
    }
    assert!(node.pilus(&["config"]).expect("pilus").1.lines().any(|l| l.starts_with("trace-interval") && l.contains(" 0")));
}
