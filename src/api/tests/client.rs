// SPDX-License-Identifier: Apache-2.0
//! The client against a server on a real socket.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use pilus_api::client::PolicyScope;
use pilus_api::types::{EndpointRequest, LabelsRequest, NodeRequest, PolicyImport, PolicyQuestion, ServiceRequest};
use pilus_api::{Client, ClientError, FlowFilter};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// Serves whatever `answer` makes of a request's method and path with query.
fn serve(answer: impl Fn(&str) -> Response + Clone + Send + Sync + 'static) -> (Client, TempDir) {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("pilus.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let router = Router::new().fallback(move |request: Request| {
        let answer = answer.clone();
        async move { answer(&format!("{} {}", request.method(), request.uri())) }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    (Client::new(socket), dir)
}

fn answer(status: u16, body: impl Into<Body>) -> Response {
    Response::builder().status(status).body(body.into()).unwrap()
}

#[tokio::test]
async fn client_and_document_know_the_same_operations() {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let record = seen.clone();
    let (c, _dir) = serve(move |request| {
        record.lock().unwrap().insert(request.to_owned());
        answer(404, r#"{"code":"not-found","message":"nothing here"}"#)
    });
    let options = BTreeMap::from([("Trace".to_owned(), "off".to_owned())]);
    let request = EndpointRequest { name: "web".into(), netns: "/run/netns/web".into(), ..EndpointRequest::default() };
    let ip = "10.1.2.3".parse().unwrap();
    let mut failures = 0;
    macro_rules! call {
        ($($call:expr),* $(,)?) => {$(
            let error = $call.await.map(drop).unwrap_err();
            assert!(error.is_not_found(), "{error}");
            assert_eq!(error.to_string(), "nothing here");
            failures += 1;
        )*};
    }
    call! {
        c.status(), c.config(), c.set_config(options.clone()), c.endpoints(), c.endpoint("1"), c.put_endpoint(&request, true),
        c.patch_endpoint("1", &options), c.delete_endpoint("1", false), c.endpoint_config("1"), c.set_endpoint_config("1", &options),
        c.endpoint_labels("1"), c.change_labels("1", &LabelsRequest { add: vec![], delete: vec![] }), c.endpoint_log("1"),
        c.endpoint_health("1"), c.endpoint_header("1"), c.regenerate("1"), c.identities(), c.identity(1),
        c.allocate_address(true, false), c.claim_address(ip), c.release_address(ip), c.policy(&[]),
        c.import_policy(&PolicyImport { documents: vec![] }), c.delete_policy(&PolicyScope::All),
        c.wait_policy(3, Duration::from_secs(1)), c.validate_policy(&PolicyImport { documents: vec![] }),
        c.diff_policy(&PolicyImport { documents: vec![] }),
        c.explain_policy(&PolicyQuestion { from: "a".into(), to: "b".into(), dport: "80/tcp".into() }), c.services(), c.service("a"),
        c.put_service("a", &ServiceRequest::default()), c.delete_service("a"), c.nodes(), c.node("a"),
        c.put_node("a", &NodeRequest::default()), c.delete_node("a"), c.endpoint_ports("1"), c.set_endpoint_ports("1", &[]),
        c.maps(), c.map("policy"), c.metrics(), c.flow_table(None), c.flush_flow_table(Some("257")), c.flows(&FlowFilter::default()),
        c.template_status(), c.check_template(), c.apply_template(), c.debuginfo(), c.cleanup(), c.openapi(),
    }
    let document = pilus_api::openapi::document();
    let mut known = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        known.extend(methods.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())));
    }
    let called: BTreeSet<String> = seen.lock().unwrap().iter().map(|request| template(request)).collect();
    assert_eq!(called, known);
    assert_eq!(failures, known.len());
}

/// `PUT /v1/endpoint/name:web?wait=true` as the document names it.
fn template(request: &str) -> String {
    let (method, target) = request.split_once(' ').unwrap();
    let parts: Vec<&str> = target.split('?').next().unwrap().split('/').collect();
    let path: Vec<&str> = parts
        .iter()
        .enumerate()
        .map(|(n, part)| match (parts[2], n, *part) {
            ("endpoint" | "identity" | "service", 3, _) => "{id}",
            ("node" | "map", 3, _) => "{name}",
            ("ipam", 3, _) => "{ip}",
            (_, _, part) => part,
        })
        .collect();
    format!("{method} {}", path.join("/"))
}

#[tokio::test]
async fn a_stream_is_cut_at_newlines_wherever_the_chunks_end() {
    let event = |n: u64| format!(r#"{{"time":"2026-01-02T03:04:05Z","type":"lost","reason":"","count":{n},"later":"field"}}"#);
    let text = format!("{}\n\n{}\r\n{}", event(1), event(2), event(3));
    for size in [1, 7, 1000] {
        let text = text.clone();
        let (client, _dir) = serve(move |request| {
            assert_eq!(request, "GET /v1/flows?type=drop,lost&from=name:web");
            let chunks: Vec<_> = text.as_bytes().chunks(size).map(|c| Ok::<_, std::io::Error>(c.to_vec())).collect();
            answer(200, Body::from_stream(futures::stream::iter(chunks)))
        });
        let filter = FlowFilter { types: vec!["drop".into(), "lost".into()], from: vec!["name:web".into()], ..FlowFilter::default() };
        let mut flows = client.flows(&filter).await.unwrap();
        for n in 1..=3 {
            assert_eq!(flows.next().await.unwrap().unwrap().count, n);
        }
        assert_eq!(flows.next().await.unwrap(), None);
        assert_eq!(flows.next().await.unwrap(), None);
    }
}

#[tokio::test]
async fn delete_says_whether_there_was_one() {
    let (client, _dir) = serve(|request| match request {
        "DELETE /v1/endpoint/name:gone?wait=true" | "DELETE /v1/endpoint/name:gone?wait=false" => {
            Response::builder().status(204).header("pilus-deleted", "false").body(Body::empty()).unwrap()
        }
        _ => answer(204, Body::empty()),
    });
    assert!(!client.delete_endpoint("name:gone", true).await.unwrap());
    assert!(!client.delete_endpoint("name:gone", false).await.unwrap());
    assert!(client.delete_endpoint("name:web", true).await.unwrap());
}

#[tokio::test]
async fn errors_are_one_line_that_helps() {
    let (client, dir) = serve(|request| match request {
        "GET /v1/config" => answer(400, r#"{"code":"invalid","message":"bad\nvalue","field":"options.Trace"}"#),
        "GET /v1/endpoint" => answer(200, "<html>\nno"),
        "GET /v1/identity" => answer(502, ""),
        _ => answer(200, "[]"),
    });
    let socket = dir.path().join("pilus.sock").display().to_string();
    let text = |e: ClientError| {
        let line = e.to_string();
        assert!(!line.contains('\n'), "{line}");
        line.replace(&socket, "SOCK")
    };
    assert_eq!(text(client.config().await.unwrap_err()), "bad; value (field options.Trace)");
    let garbage = text(client.endpoints().await.unwrap_err());
    assert!(garbage.starts_with("GET /v1/endpoint at SOCK: unexpected answer with status 200 OK"), "{garbage}");
    assert!(garbage.contains("<html>; no"), "{garbage}");
    let bare = text(client.identities().await.unwrap_err());
    assert!(bare.contains("refused with status 502 Bad Gateway and no reason"), "{bare}");

    let absent = Client::new(dir.path().join("absent"));
    let error = absent.status().await.unwrap_err();
    assert!(error.is_connect());
    assert_eq!(
        text(error).replace(&dir.path().display().to_string(), "DIR"),
        "cannot reach the agent at DIR/absent: No such file or directory; is pilus-agent running? (--socket or PILUS_SOCKET names another socket)"
    );
}

#[tokio::test]
async fn an_agent_that_says_nothing_is_given_up_on() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("pilus.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = Client::new(socket).with_timeout(Duration::from_millis(10)).status().await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
}
