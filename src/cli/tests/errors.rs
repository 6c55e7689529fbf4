// SPDX-License-Identifier: Apache-2.0
//! How the client fails: one line, the right exit status.

mod fake;

use fake::{Agent, finish, pilus};
use serde_json::json;
use std::io::Read;
use std::process::Stdio;

#[test]
fn no_agent() {
    let agent = Agent::new();
    let dir = agent.dir.path().join("absent.sock");
    let socket = dir.to_str().unwrap();
    let expected = "cannot reach the agent at SOCK: No such file or directory; is pilus-agent running? (--socket or PILUS_SOCKET names another socket)";
    for args in [&["status"][..], &["endpoint", "list"], &["monitor"], &["endpoint", "delete", "web"], &["version"]] {
        let mut command = pilus();
        command.env("PILUS_SOCKET", socket).args(args);
        let ran = finish(command, "");
        assert_eq!(ran.status, Some(1), "{args:?}");
        assert_eq!(ran.err.replace(socket, "SOCK"), format!("error: {expected}\n"), "{args:?}");
        assert_eq!(ran.out.is_empty(), args != ["version"], "only the version needs no agent: {ran:?}");
    }
    let mut command = pilus();
    command.env("PILUS_SOCKET", socket).args(["cleanup", "--yes"]);
    let ran = finish(command, "");
    assert_eq!(ran.status, Some(1));
    assert!(ran.err.ends_with("; without an agent run: pilus-agent --cleanup\n"), "{}", ran.err);
}

#[test]
fn refusals_and_garbage() {
    let agent = Agent::new();
    let invalid = json!({"code": "invalid", "message": "Trace: expected off, flow or all, not loud", "field": "options.Trace"});
    agent
        .on("GET /v1/endpoint/name:web", 404, json!({"code": "not-found", "message": "no endpoint name:web; see: pilus endpoint list"}))
        .on("PATCH /v1/endpoint/name:web/config", 400, invalid)
        .on("GET /v1/identity", 200, "surprise\nme")
        .on("GET /v1/config", 500, "")
        .on("GET /v1/flows?type=drop", 400, json!({"code": "invalid", "message": "no such type", "field": "type"}));
    assert_eq!(agent.fails(1, &["endpoint", "get", "web"]), "no endpoint name:web; see: pilus endpoint list");
    let field = agent.fails(1, &["endpoint", "config", "web", "Trace=loud"]);
    assert_eq!(field, "Trace: expected off, flow or all, not loud (field options.Trace)");
    let garbage = agent.fails(1, &["identity", "list"]);
    assert!(garbage.starts_with("GET /v1/identity at DIR/pilus.sock: unexpected answer with status 200 OK"), "{garbage}");
    let empty = agent.fails(1, &["config"]);
    assert!(empty.contains("refused with status 500 Internal Server Error and no reason"), "{empty}");
    assert_eq!(agent.fails(1, &["monitor", "-t", "drop"]), "no such type");
}

#[test]
fn wrong_usage_is_one_line_and_exits_2() {
    let agent = Agent::new();
    for args in [
        &["bogus"][..],
        &["endpoint", "get"],
        &["endpoint", "get", ""],
        &["status", "--brief", "--verbose"],
        &["-o", "xml", "status"],
        &["identity", "get", "web"],
        &["monitor", "-n", "0"],
        &["monitor", "-t", "nothing"],
        &["policy", "import", "x", "--timeout", "3"],
    ] {
        let line = agent.fails(2, args);
        assert!(line.ends_with("(--help shows the usage)"), "{line}");
    }
    assert!(agent.requests().is_empty());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let agent = Agent::new();
    let rows: Vec<_> = (0..20_000).map(|n| vec![n.to_string(), "some text that fills the pipe".to_owned()]).collect();
    agent.on("GET /v1/map/policy", 200, json!({"name": "policy", "columns": ["a", "b"], "rows": rows}));
    let socket = agent.socket();
    let mut command = pilus();
    command.arg("--socket").arg(socket).args(["bpf", "policy", "list"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}
