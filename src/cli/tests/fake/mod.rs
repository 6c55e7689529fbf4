// SPDX-License-Identifier: Apache-2.0
//! An agent that gives canned answers on a real socket, and the client that asks it.

#![allow(dead_code, reason = "each test program uses a part")]

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// Answers by `METHOD target`; the last one given for a target is repeated for ever.
type Answers = Vec<(String, VecDeque<(u16, String)>)>;

pub struct Agent {
    pub dir: TempDir,
    answers: Arc<Mutex<Answers>>,
    requests: Arc<Mutex<Vec<(String, String)>>>,
    _runtime: tokio::runtime::Runtime,
}

/// What a run of the client left.
#[derive(Debug)]
pub struct Ran {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Agent {
    pub fn new() -> Agent {
        let dir = TempDir::new().unwrap();
        let answers = Arc::new(Mutex::new(Answers::new()));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (known, seen, socket) = (answers.clone(), requests.clone(), dir.path().join("pilus.sock"));
        let listener = runtime.block_on(async { tokio::net::UnixListener::bind(socket).unwrap() });
        let router = Router::new().fallback(move |request: Request| answer(known.clone(), seen.clone(), request));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Agent { dir, answers, requests, _runtime: runtime }
    }

    /// Gives `body` to `METHOD target`; given again, after the answers given before.
    pub fn on(&self, request: &str, status: u16, body: impl ToString) -> &Agent {
        let mut answers = self.answers.lock().unwrap();
        let answer = (status, body.to_string());
        match answers.iter_mut().find(|(known, _)| known == request) {
            Some((_, queue)) => queue.push_back(answer),
            None => answers.push((request.to_owned(), VecDeque::from([answer]))),
        }
        self
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("pilus.sock")
    }

    /// Bodies that came with `METHOD target`.
    pub fn bodies(&self, request: &str) -> Vec<Value> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|(r, _)| r == request).map(|(_, b)| serde_json::from_str(b).unwrap_or(Value::Null)).collect()
    }

    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|(r, _)| r.clone()).collect()
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, "")
    }

    /// The client with this standard input.
    pub fn run_with(&self, args: &[&str], stdin: &str) -> Ran {
        let socket = self.socket();
        let mut command = pilus();
        command.arg("--socket").arg(socket).args(args);
        let mut ran = finish(command, stdin);
        ran.err = ran.err.replace(&self.dir.path().display().to_string(), "DIR");
        ran
    }

    /// A run that succeeds and says nothing on stderr.
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!((ran.status, ran.err.as_str()), (Some(0), ""), "{args:?}: {ran:?}");
        ran.out
    }

    /// The same with `-o json`, parsed.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[&["-o", "json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
    }

    /// A run that prints one error line, which is returned without `error: `.
    pub fn fails(&self, status: i32, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.status, Some(status), "{args:?}: {ran:?}");
        let line = ran.err.strip_suffix('\n').unwrap_or(&ran.err);
        assert!(!line.contains('\n'), "{args:?}: more than a line: {line}");
        line.strip_prefix("error: ").unwrap_or_else(|| panic!("{args:?}: {ran:?}")).to_owned()
    }
}

#[expect(clippy::disallowed_methods, reason = "a test of the program starts it")]
pub fn pilus() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilus"));
    command.env_remove("PILUS_SOCKET").env_remove("NO_COLOR");
    command
}

pub fn finish(mut command: Command, stdin: &str) -> Ran {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

async fn answer(answers: Arc<Mutex<Answers>>, requests: Arc<Mutex<Vec<(String, String)>>>, request: Request) -> Response {
    let name = format!("{} {}", request.method(), request.uri());
    let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
    requests.lock().unwrap().push((name.clone(), String::from_utf8_lossy(&body).into_owned()));
    let mut answers = answers.lock().unwrap();
    let queue = answers.iter_mut().find(|(known, _)| *known == name).map(|(_, queue)| queue);
    let (status, body) = match queue {
        Some(queue) if queue.len() > 1 => queue.pop_front().unwrap(),
        Some(queue) => queue[0].clone(),
        None => (404, json!({"code": "not-found", "message": format!("no answer to {name}")}).to_string()),
    };
    let mut response = Response::builder().status(status);
    if status == 204 {
        response = response.header("pilus-deleted", if body.is_empty() { "true" } else { "false" });
        return response.body(Body::empty()).unwrap();
    }
    // A stream that stays open after its lines, as the agent's does.
    if let Some(lines) = body.strip_prefix("STREAM ") {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(1);
        let _ = sender.try_send(Ok(lines.to_owned()));
        tokio::spawn(async move { sender.closed().await });
        let stream = futures::stream::unfold(receiver, |mut r| async move { r.recv().await.map(|item| (item, r)) });
        return response.body(Body::from_stream(stream)).unwrap();
    }
    response.body(Body::from(body)).unwrap()
}

/// An endpoint as the agent shows it.
pub fn endpoint(id: u16, name: &str) -> Value {
    json!({
        "id": id, "name": name, "state": "ready",
        "identity": {"id": 4711, "labels": [format!("unspec:app={name}")]},
        "labels": [format!("unspec:app={name}")],
        "ipv6": format!("fd00::{id:x}"), "ipv4": "10.5.0.3",
        "interface": {"name": "plx0000aaaa", "index": 7, "mac": "02:00:00:00:00:01", "hostMac": "02:00:00:00:00:02",
            "containerName": "eth0", "mtu": 1500},
        "netns": format!("/run/netns/{name}"), "containerId": "c0ffee",
        "policy": {"revision": 3, "ingress": "enforced", "egress": "open"},
        "datapath": {"shapeKey": "abc123", "build": "shared", "attach": "tcx",
            "programs": [{"name": "from_container", "id": 41, "tag": "0011223344556677", "instructions": 900, "jitedBytes": 5000,
                "verifiedInstructions": 12000}]},
        "health": "ok", "options": {"Trace": "off"}, "log": [],
    })
}

/// A status with this state.
pub fn status(state: &str) -> Value {
    json!({
        "state": state, "version": "0.1.0", "nodeName": "node1", "uptimeSeconds": 3725, "kernel": "6.18.0", "attachMode": "auto",
        "ipv6Range": "fd00::/64", "ipv4Range": "10.5.0.0/16", "routerIpv6": "fd00::1", "routerIpv4": "10.5.0.1",
        "clang": "18.1.3", "templateHash": "abc", "policyRevision": 3, "endpoints": {"ready": 2}, "identities": 12,
        "objects": {"builds": 1, "embedded": 2, "disk": 3, "shared": 4}, "monitor": {"events": 10, "lost": 1, "listeners": 0},
        "warnings": ["the clock is odd"],
    })
}
