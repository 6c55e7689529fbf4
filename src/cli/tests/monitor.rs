// SPDX-License-Identifier: Apache-2.0
//! The stream of events.

mod fake;

use fake::{Agent, finish, pilus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

fn drop_event() -> Value {
    json!({
        "time": "2026-01-02T10:32:07.123456Z", "type": "drop", "reason": "Policy denied", "verdict": "deny", "direction": "egress",
        "state": "new", "source": {"endpoint": 257, "name": "client", "identity": 4711, "labels": ["unspec:app=client"]},
        "destination": {"endpoint": 258, "name": "web", "identity": 4712, "labels": ["unspec:app=web"]}, "rule": "", "ifindex": 9,
        "length": 78, "headers": "", "summary": "fd00::3.41000 > fd00::4.80 tcp SYN", "packet": "020000000001020000000002 86dd 60", "count": 0,
    })
}

fn stream(events: &[Value]) -> String {
    let lines: String = events.iter().map(|e| format!("{e}\n")).collect();
    format!("STREAM {lines}")
}

const DROP: &str = "10:32:07.123 DROP (Policy denied) egress new client(257) -> web(258) identity 4711 [unspec:app=client] \
    -> 4712 [unspec:app=web] rule none: fd00::3.41000 > fd00::4.80 tcp SYN length 78\n";

#[test]
fn events_are_lines() {
    let agent = Agent::new();
    let trace = json!({"time": "2026-01-02T10:32:08Z", "type": "trace", "reason": "to-endpoint", "direction": "ingress", "state": "established",
        "source": {"endpoint": 0, "identity": 2, "labels": ["reserved:world"]},
        "destination": {"endpoint": 258, "name": "web", "identity": 4712, "labels": ["unspec:app=web"]}, "summary": "a > b udp length 5", "length": 9});
    let verdict = json!({"time": "2026-01-02T10:32:08Z", "type": "policy-verdict", "reason": "", "verdict": "allow", "direction": "egress",
        "rule": "web.yaml:3 default/web", "summary": "a > b tcp"});
    let agent_says = json!({"time": "2026-01-02T10:32:09.5Z", "type": "agent", "reason": "endpoint 257 is ready\u{1b}[31m"});
    let lost = json!({"time": "2026-01-02T10:32:09Z", "type": "lost", "reason": "", "count": 12});
    agent.on("GET /v1/flows", 200, stream(&[drop_event(), lost, trace, verdict, agent_says]));
    let expected = format!(
        "{DROP}10:32:09 LOST 12 events\n\
         10:32:08 TRACE (to-endpoint) ingress established world -> web(258) identity 2 [reserved:world] -> 4712 [unspec:app=web]: a > b udp length 5\n\
         10:32:08 POLICY-VERDICT allow egress rule web.yaml:3 default/web: a > b tcp\n\
         10:32:09.5 AGENT endpoint 257 is ready\\u{{1b}}[31m\n"
    );
    // Lost events are not counted.
    assert_eq!(agent.ok(&["monitor", "-n", "4"]), expected);
    let coloured = agent.ok(&["--color", "always", "monitor", "-n", "1"]);
    assert!(coloured.starts_with("10:32:07.123 \x1b[31mDROP\x1b[0m (Policy"), "{coloured}");
}

#[test]
fn filters_hex_and_summary() {
    let agent = Agent::new();
    let target = "GET /v1/flows?type=drop,policy-verdict&from=name:client,257&to=ipv6:fd00::4&related=name:x";
    agent.on(target, 200, stream(&[drop_event()]));
    let args = ["monitor", "-t", "drop", "-t", "policy-verdict", "--from", "client", "--from", "257", "--to", "ipv6:fd00::4"];
    let args = [&args[..], &["--related-to", "x", "--hex", "-v", "-n", "1"]].concat();
    let ran = agent.run(&args);
    assert_eq!(ran.status, Some(0), "{ran:?}");
    let line = DROP.replace("rule none", "rule none ifindex 9");
    assert_eq!(ran.out, format!("{line}  0000  0200 0000 0001 0200 0000 0002 86dd 60    ..............`\n"));
    assert_eq!(ran.err, "Following events; interrupt to end\n1 events, 0 lost\n");
}

#[test]
fn a_drop_says_how_many_it_stands_for() {
    let agent = Agent::new();
    let of = |count: u64| {
        let mut event = drop_event();
        event["count"] = count.into();
        event
    };
    agent.on("GET /v1/flows", 200, stream(&[of(1), of(118)]));
    let more = DROP.replace("length 78", "length 78 (118 packets)");
    assert_eq!(agent.ok(&["monitor", "-n", "2"]), format!("{DROP}{more}"));
}

#[test]
fn json_is_an_object_a_line() {
    let agent = Agent::new();
    agent.on("GET /v1/flows", 200, stream(&[drop_event(), drop_event()]));
    let text = agent.ok(&["monitor", "-o", "json", "-n", "2"]);
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events, [drop_event(), drop_event()]);
    assert!(agent.ok(&["monitor", "-o", "yaml", "-n", "1"]).starts_with("---\ntime: "));
}

#[test]
fn packets_go_into_a_file_that_others_read() {
    let agent = Agent::new();
    let words = json!({"time": "2026-01-02T10:32:09.5Z", "type": "agent", "reason": "endpoint 257 is ready"});
    let mut second = drop_event();
    second["time"] = json!("2026-01-02T10:32:08.000000001Z");
    second["packet"] = json!("ffff");
    second["headers"] = json!("a > b type 0x86dd");
    agent.on("GET /v1/flows?type=drop,trace,agent", 200, stream(&[drop_event(), words, second]));
    let path = agent.dir.path().join("a.pcap");
    let file = path.display().to_string();
    let base = ["monitor", "-t", "drop,trace", "-t", "agent", "-n", "3", "--pcap"];
    let out = agent.run(&[&base[..], &[&file, "-v"]].concat()).out;
    assert_eq!(out.lines().count(), 4, "lines are printed too: {out}");
    assert!(out.ends_with("\n  a > b type 0x86dd\n"), "{out}");
    let bytes = std::fs::read(&path).unwrap();
    let mut reader = pcap_file::pcap::PcapReader::new(&bytes[..]).unwrap();
    assert_eq!(reader.header().datalink, pcap_file::DataLink::ETHERNET);
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.unwrap();
        packets.push((packet.timestamp.as_nanos(), packet.orig_len, packet.data.to_vec()));
    }
    let first = (1_767_349_927_123_456_000, 78, vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60]);
    assert_eq!(packets, [first, (1_767_349_928_000_000_001, 78, vec![0xff, 0xff])]);

    let mut command = pilus();
    command.arg("--socket").arg(agent.socket()).args(base).arg("-").stdin(Stdio::null());
    let piped = command.output().unwrap();
    assert_eq!((piped.status.code(), piped.stdout), (Some(0), bytes), "standard output holds the packets alone");
    let nowhere = agent.fails(1, &["monitor", "--pcap", "/nowhere/a.pcap"]);
    assert_eq!(nowhere, "cannot write /nowhere/a.pcap: No such file or directory (os error 2)");
}

#[test]
fn an_agent_that_stops_is_told() {
    let agent = Agent::new();
    agent.on("GET /v1/flows", 200, format!("{}\n", drop_event()));
    let ran = agent.run(&["monitor", "-n", "2"]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(1), DROP));
    assert_eq!(ran.err, "error: the agent at DIR/pilus.sock ended the stream; it is stopping or restarting\n");
    agent.on("GET /v1/flows", 200, "{}\n");
    agent.run(&["monitor", "-n", "1"]);
    assert!(agent.fails(1, &["monitor"]).contains("a line of the stream is no event"));
}

#[test]
fn an_interrupt_ends_it_well() {
    let agent = Agent::new();
    agent.on("GET /v1/flows", 200, stream(&[drop_event()]));
    let socket = agent.socket();
    let mut command = pilus();
    command.arg("--socket").arg(socket).arg("monitor");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, DROP, "events are printed as they come");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), rest.as_str(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), "", ""));
}

#[test]
fn monitor_needs_no_terminal_and_no_input() {
    let agent = Agent::new();
    agent.on("GET /v1/flows", 200, stream(&[drop_event()]));
    let mut command = pilus();
    command.env("PILUS_SOCKET", agent.socket()).args(["monitor", "-n", "1"]);
    assert_eq!(finish(command, "ignored").out, DROP);
}
