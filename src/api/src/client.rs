// SPDX-License-Identifier: Apache-2.0
//! The agent's API as typed calls. Each call opens a connection of its own, so that a client survives restarts of the agent.

use crate::error::{ClientError, one_line};
use crate::flows::{FlowFilter, Flows};
use crate::types::{
    ApiError, ConfigModel, ConfigPatch, EndpointHealth, EndpointModel, EndpointRequest, FlowEntry, FlushResult, HeaderModel, IdentityModel,
    IpamModel, LabelsRequest, Lines, LogEntry, MapInfo, MapModel, MetricModel, NamedPort, NodeModel, NodeRequest, PolicyAnswer, PolicyDiff,
    PolicyImport, PolicyModel, PolicyQuestion, PolicyRevision, PolicyValidation, PolicyWait, ServiceModel, ServiceRequest, StatusModel,
    TemplateResult, TemplateStatus,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// Socket of an agent that was started without `socket`.
pub const DEFAULT_SOCKET: &str = "/run/pilus/pilus.sock";
/// Header of the answer to DELETE that says whether there was anything to delete.
pub const DELETED_HEADER: &str = "pilus-deleted";

/// Options by name.
pub type Options = BTreeMap<String, String>;

/// Answer of [`Client::put_endpoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutEndpoint {
    /// The endpoint as it is now.
    pub endpoint: EndpointModel,
    /// False if it existed so.
    pub created: bool,
}

/// Which rules [`Client::delete_policy`] removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyScope {
    /// Every rule.
    All,
    /// Those that carry all these labels.
    Labels(Vec<String>),
}

/// Talks to the agent behind one socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Option<Duration>,
}

/// Drives one connection for as long as its answer is read.
#[derive(Debug)]
pub(crate) struct Connection {
    driver: tokio::task::JoinHandle<hyper::Result<()>>,
    socket: PathBuf,
    request: String,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub(crate) fn protocol(&self, what: String) -> ClientError {
        ClientError::Protocol { socket: self.socket.clone(), request: self.request.clone(), what }
    }
}

impl Client {
    /// A client of the agent that listens on `socket`. Connects at the first call.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into(), timeout: None }
    }

    /// Gives up on any call but [`Client::flows`] after this time.
    pub fn with_timeout(mut self, timeout: Duration) -> Client {
        self.timeout = Some(timeout);
        self
    }

    /// Where the agent is expected.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET /v1/healthz`.
    pub async fn status(&self) -> Result<StatusModel, ClientError> {
        self.get("/v1/healthz").await
    }

    /// `GET /v1/config`.
    pub async fn config(&self) -> Result<ConfigModel, ClientError> {
        self.get("/v1/config").await
    }

    /// `PATCH /v1/config`.
    pub async fn set_config(&self, options: Options) -> Result<ConfigModel, ClientError> {
        self.call(Method::PATCH, "/v1/config", Some(&ConfigPatch { options })).await
    }

    /// `GET /v1/endpoint`.
    pub async fn endpoints(&self) -> Result<Vec<EndpointModel>, ClientError> {
        self.get("/v1/endpoint").await
    }

    /// `GET /v1/endpoint/{id}`; `id` is a reference such as `257` or `name:web`.
    pub async fn endpoint(&self, id: &str) -> Result<EndpointModel, ClientError> {
        self.get(&endpoint_path(id, "")).await
    }

    /// `PUT /v1/endpoint/name:NAME`: connects a namespace; with `wait`, answers when traffic flows.
    pub async fn put_endpoint(&self, request: &EndpointRequest, wait: bool) -> Result<PutEndpoint, ClientError> {
        let path = endpoint_path(&format!("name:{}", request.name), "");
        let target = query(&path, &[("wait", wait.to_string())]);
        let (status, _, endpoint) = self.exchange(Method::PUT, &target, Some(request)).await?;
        Ok(PutEndpoint { endpoint, created: status == StatusCode::CREATED })
    }

    /// `PATCH /v1/endpoint/{id}`: the same as [`Client::set_endpoint_config`].
    pub async fn patch_endpoint(&self, id: &str, options: &Options) -> Result<Options, ClientError> {
        self.call(Method::PATCH, &endpoint_path(id, ""), Some(options)).await
    }

    /// `DELETE /v1/endpoint/{id}`: whether there was one; with `wait`, answers when nothing is left of it.
    pub async fn delete_endpoint(&self, id: &str, wait: bool) -> Result<bool, ClientError> {
        let target = query(&endpoint_path(id, ""), &[("wait", wait.to_string())]);
        let headers = self.call_empty(Method::DELETE, &target).await?;
        Ok(headers.get(DELETED_HEADER).is_none_or(|value| value != "false"))
    }

    /// `GET /v1/endpoint/{id}/config`.
    pub async fn endpoint_config(&self, id: &str) -> Result<Options, ClientError> {
        self.get(&endpoint_path(id, "/config")).await
    }

    /// `PATCH /v1/endpoint/{id}/config`: answers all options.
    pub async fn set_endpoint_config(&self, id: &str, options: &Options) -> Result<Options, ClientError> {
        self.call(Method::PATCH, &endpoint_path(id, "/config"), Some(options)).await
    }

    /// `GET /v1/endpoint/{id}/labels`.
    pub async fn endpoint_labels(&self, id: &str) -> Result<Vec<String>, ClientError> {
        self.get(&endpoint_path(id, "/labels")).await
    }

    /// `PATCH /v1/endpoint/{id}/labels`.
    pub async fn change_labels(&self, id: &str, change: &LabelsRequest) -> Result<EndpointModel, ClientError> {
        self.call(Method::PATCH, &endpoint_path(id, "/labels"), Some(change)).await
    }

    /// `GET /v1/endpoint/{id}/ports`.
    pub async fn endpoint_ports(&self, id: &str) -> Result<Vec<NamedPort>, ClientError> {
        self.get(&endpoint_path(id, "/ports")).await
    }

    /// `PUT /v1/endpoint/{id}/ports`: all of them.
    pub async fn set_endpoint_ports(&self, id: &str, ports: &[NamedPort]) -> Result<Vec<NamedPort>, ClientError> {
        self.call(Method::PUT, &endpoint_path(id, "/ports"), Some(&ports)).await
    }

    /// `GET /v1/service`.
    pub async fn services(&self) -> Result<Vec<ServiceModel>, ClientError> {
        self.get("/v1/service").await
    }

    /// `GET /v1/service/{id}`; `id` is `NAMESPACE/NAME`.
    pub async fn service(&self, id: &str) -> Result<ServiceModel, ClientError> {
        self.get(&format!("/v1/service/{}", encode(id))).await
    }

    /// `PUT /v1/service/{id}`: answers when rules follow it.
    pub async fn put_service(&self, id: &str, service: &ServiceRequest) -> Result<ServiceModel, ClientError> {
        self.call(Method::PUT, &format!("/v1/service/{}", encode(id)), Some(service)).await
    }

    /// `DELETE /v1/service/{id}`.
    pub async fn delete_service(&self, id: &str) -> Result<(), ClientError> {
        self.call_empty(Method::DELETE, &format!("/v1/service/{}", encode(id))).await.map(drop)
    }

    /// `GET /v1/node`.
    pub async fn nodes(&self) -> Result<Vec<NodeModel>, ClientError> {
        self.get("/v1/node").await
    }

    /// `GET /v1/node/{name}`.
    pub async fn node(&self, name: &str) -> Result<NodeModel, ClientError> {
        self.get(&format!("/v1/node/{}", encode(name))).await
    }

    /// `PUT /v1/node/{name}`: answers when its addresses are told apart.
    pub async fn put_node(&self, name: &str, node: &NodeRequest) -> Result<NodeModel, ClientError> {
        self.call(Method::PUT, &format!("/v1/node/{}", encode(name)), Some(node)).await
    }

    /// `DELETE /v1/node/{name}`.
    pub async fn delete_node(&self, name: &str) -> Result<(), ClientError> {
        self.call_empty(Method::DELETE, &format!("/v1/node/{}", encode(name))).await.map(drop)
    }

    /// `GET /v1/endpoint/{id}/log`.
    pub async fn endpoint_log(&self, id: &str) -> Result<Vec<LogEntry>, ClientError> {
        self.get(&endpoint_path(id, "/log")).await
    }

    /// `GET /v1/endpoint/{id}/healthz`.
    pub async fn endpoint_health(&self, id: &str) -> Result<EndpointHealth, ClientError> {
        self.get(&endpoint_path(id, "/healthz")).await
    }

    /// `GET /v1/endpoint/{id}/header`.
    pub async fn endpoint_header(&self, id: &str) -> Result<HeaderModel, ClientError> {
        self.get(&endpoint_path(id, "/header")).await
    }

    /// `POST /v1/endpoint/{id}/regenerate`.
    pub async fn regenerate(&self, id: &str) -> Result<EndpointModel, ClientError> {
        self.call(Method::POST, &endpoint_path(id, "/regenerate"), NO_BODY).await
    }

    /// `GET /v1/identity`.
    pub async fn identities(&self) -> Result<Vec<IdentityModel>, ClientError> {
        self.get("/v1/identity").await
    }

    /// `GET /v1/identity/{id}`.
    pub async fn identity(&self, id: u32) -> Result<IdentityModel, ClientError> {
        self.get(&format!("/v1/identity/{id}")).await
    }

    /// `POST /v1/ipam`: takes free addresses of the families asked for.
    pub async fn allocate_address(&self, v6: bool, v4: bool) -> Result<IpamModel, ClientError> {
        self.call(Method::POST, &query("/v1/ipam", &[("v6", v6.to_string()), ("v4", v4.to_string())]), NO_BODY).await
    }

    /// `POST /v1/ipam/{ip}`: takes this address.
    pub async fn claim_address(&self, ip: IpAddr) -> Result<IpamModel, ClientError> {
        self.call(Method::POST, &format!("/v1/ipam/{ip}"), NO_BODY).await
    }

    /// `DELETE /v1/ipam/{ip}`: gives it back.
    pub async fn release_address(&self, ip: IpAddr) -> Result<(), ClientError> {
        self.call_empty(Method::DELETE, &format!("/v1/ipam/{ip}")).await.map(drop)
    }

    /// `GET /v1/policy`: the rules that carry all of `labels`.
    pub async fn policy(&self, labels: &[String]) -> Result<PolicyModel, ClientError> {
        self.get(&labelled(labels)).await
    }

    /// `PUT /v1/policy`: all documents or nothing.
    pub async fn import_policy(&self, import: &PolicyImport) -> Result<PolicyRevision, ClientError> {
        self.call(Method::PUT, "/v1/policy", Some(import)).await
    }

    /// `DELETE /v1/policy`.
    pub async fn delete_policy(&self, scope: &PolicyScope) -> Result<PolicyRevision, ClientError> {
        let target = match scope {
            PolicyScope::All => query("/v1/policy", &[("all", "true".to_owned())]),
            PolicyScope::Labels(labels) => labelled(labels),
        };
        self.call(Method::DELETE, &target, NO_BODY).await
    }

    /// `GET /v1/policy/wait`: answers when every endpoint has realised the revision, or after `timeout`.
    pub async fn wait_policy(&self, revision: u64, timeout: Duration) -> Result<PolicyWait, ClientError> {
        let pairs = [("revision", revision.to_string()), ("timeout", timeout.as_secs().to_string())];
        self.get(&query("/v1/policy/wait", &pairs)).await
    }

    /// `POST /v1/policy/validate`: what an import would say.
    pub async fn validate_policy(&self, import: &PolicyImport) -> Result<PolicyValidation, ClientError> {
        self.call(Method::POST, "/v1/policy/validate", Some(import)).await
    }

    /// `POST /v1/policy/explain`: what becomes of a connection.
    pub async fn explain_policy(&self, question: &PolicyQuestion) -> Result<PolicyAnswer, ClientError> {
        self.call(Method::POST, "/v1/policy/explain", Some(question)).await
    }

    /// `POST /v1/policy/diff`: which verdicts an import would change.
    pub async fn diff_policy(&self, import: &PolicyImport) -> Result<PolicyDiff, ClientError> {
        self.call(Method::POST, "/v1/policy/diff", Some(import)).await
    }

    /// `GET /v1/map`.
    pub async fn maps(&self) -> Result<Vec<MapInfo>, ClientError> {
        self.get("/v1/map").await
    }

    /// `GET /v1/map/{name}`.
    pub async fn map(&self, name: &str) -> Result<MapModel, ClientError> {
        self.get(&format!("/v1/map/{}", encode(name))).await
    }

    /// `GET /v1/metrics`.
    pub async fn metrics(&self) -> Result<Vec<MetricModel>, ClientError> {
        self.get("/v1/metrics").await
    }

    /// `GET /v1/flowtable`: connections, of one endpoint or all.
    pub async fn flow_table(&self, endpoint: Option<&str>) -> Result<Vec<FlowEntry>, ClientError> {
        self.get(&flow_table(endpoint)).await
    }

    /// `DELETE /v1/flowtable`: forgets connections, of one endpoint or all.
    pub async fn flush_flow_table(&self, endpoint: Option<&str>) -> Result<FlushResult, ClientError> {
        self.call(Method::DELETE, &flow_table(endpoint), NO_BODY).await
    }

    /// `GET /v1/flows`: subscribes to events.
    pub async fn flows(&self, filter: &FlowFilter) -> Result<Flows, ClientError> {
        let (connection, response) = self.send(Method::GET, &filter.target(), Bytes::new()).await?;
        if !response.status().is_success() {
            let status = response.status();
            let body = collect(&connection, response).await?;
            return Err(refused(&connection, status, &body));
        }
        Ok(Flows::new(connection, response.into_body()))
    }

    /// `GET /v1/template`.
    pub async fn template_status(&self) -> Result<TemplateStatus, ClientError> {
        self.get("/v1/template").await
    }

    /// `POST /v1/template/check`: builds and verifies the edited templates; changes nothing.
    pub async fn check_template(&self) -> Result<TemplateResult, ClientError> {
        self.call(Method::POST, "/v1/template/check", NO_BODY).await
    }

    /// `POST /v1/template/apply`: builds the edited templates and swaps them in.
    pub async fn apply_template(&self) -> Result<TemplateResult, ClientError> {
        self.call(Method::POST, "/v1/template/apply", NO_BODY).await
    }

    /// `GET /v1/debuginfo`.
    pub async fn debuginfo(&self) -> Result<Lines, ClientError> {
        self.get("/v1/debuginfo").await
    }

    /// `POST /v1/cleanup?confirm=true`: removes everything that Pilus made on the node, and says what.
    pub async fn cleanup(&self) -> Result<Lines, ClientError> {
        self.call(Method::POST, "/v1/cleanup?confirm=true", NO_BODY).await
    }

    /// `GET /v1/openapi.json`, as the agent serves it.
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.get("/v1/openapi.json").await
    }

    async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        self.call(Method::GET, target, NO_BODY).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, target: &str, body: Option<&impl Serialize>) -> Result<T, ClientError> {
        self.exchange(method, target, body).await.map(|(_, _, value)| value)
    }

    async fn call_empty(&self, method: Method, target: &str) -> Result<HeaderMap, ClientError> {
        let (_, _, headers, _) = self.request(method, target, Bytes::new()).await?;
        Ok(headers)
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(StatusCode, HeaderMap, T), ClientError> {
        let sent = match body {
            Some(body) => Bytes::from(serde_json::to_vec(body).map_err(|e| ClientError::Protocol {
                socket: self.socket.clone(),
                request: format!("{method} {target}"),
                what: format!("the request is no JSON: {e}"),
            })?),
            None => Bytes::new(),
        };
        let (connection, status, headers, answer) = self.request(method, target, sent).await?;
        let value = serde_json::from_slice(&answer)
            .map_err(|e| connection.protocol(format!("unexpected answer with status {status} ({e}){}", excerpt(&answer))))?;
        Ok((status, headers, value))
    }

    /// Sends and reads the whole answer, which must be a success.
    async fn request(&self, method: Method, target: &str, body: Bytes) -> Result<(Connection, StatusCode, HeaderMap, Bytes), ClientError> {
        let request = path_of(&method, target);
        let exchange = async {
            let (connection, mut response) = self.send(method, target, body).await?;
            let status = response.status();
            let headers = std::mem::take(response.headers_mut());
            let answer = collect(&connection, response).await?;
            if status.is_success() { Ok((connection, status, headers, answer)) } else { Err(refused(&connection, status, &answer)) }
        };
        match self.timeout {
            None => exchange.await,
            Some(limit) => tokio::time::timeout(limit, exchange)
                .await
                .unwrap_or_else(|_| Err(ClientError::Timeout { socket: self.socket.clone(), request, seconds: limit.as_secs() })),
        }
    }

    async fn send(&self, method: Method, target: &str, body: Bytes) -> Result<(Connection, Response<Incoming>), ClientError> {
        let name = path_of(&method, target);
        let protocol = |what: String| ClientError::Protocol { socket: self.socket.clone(), request: name.clone(), what };
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|source| ClientError::Connect { socket: self.socket.clone(), source })?;
        let (mut sender, driver) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| protocol(e.to_string()))?;
        let connection = Connection { driver: tokio::spawn(driver), socket: self.socket.clone(), request: name.clone() };
        let mut request = Request::builder().method(method).uri(target).header(HOST, "pilus").header(ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|e| protocol(format!("the request cannot be written: {e}")))?;
        sender.ready().await.map_err(|e| protocol(format!("no answer: {e}")))?;
        let response = sender.send_request(request).await.map_err(|e| protocol(format!("no answer: {}", chain(&e))))?;
        Ok((connection, response))
    }
}

const NO_BODY: Option<&()> = None;

async fn collect(connection: &Connection, response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = response.into_body().collect().await;
    body.map(|b| b.to_bytes()).map_err(|e| connection.protocol(format!("the answer broke off: {}", chain(&e))))
}

fn refused(connection: &Connection, status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ApiError>(body) {
        Ok(error) => ClientError::Api { status: status.as_u16(), error },
        Err(_) => connection.protocol(format!("refused with status {status} and no reason{}", excerpt(body))),
    }
}

/// The beginning of a body that was not understood.
fn excerpt(body: &[u8]) -> String {
    let text = one_line(&String::from_utf8_lossy(&body[..body.len().min(400)]));
    if text.is_empty() {
        return String::new();
    }
    let start: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
    format!(": {start}")
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let _ = write!(text, ": {source}");
        next = source.source();
    }
    text
}

/// Method and path, without the query, for messages.
fn path_of(method: &Method, target: &str) -> String {
    format!("{method} {}", target.split('?').next().unwrap_or(target))
}

fn endpoint_path(id: &str, rest: &str) -> String {
    format!("/v1/endpoint/{}{rest}", encode(id))
}

fn flow_table(endpoint: Option<&str>) -> String {
    let pairs: Vec<(&str, String)> = endpoint.map(|e| ("endpoint", e.to_owned())).into_iter().collect();
    query("/v1/flowtable", &pairs)
}

fn labelled(labels: &[String]) -> String {
    if labels.is_empty() { "/v1/policy".to_owned() } else { query("/v1/policy", &[("labels", labels.join(","))]) }
}

pub(crate) fn query(path: &str, pairs: &[(&str, String)]) -> String {
    let mut target = path.to_owned();
    for (n, (key, value)) in pairs.iter().enumerate() {
        let _ = write!(target, "{}{key}={}", if n == 0 { '?' } else { '&' }, encode(value));
    }
    target
}

/// Percent-encodes all but unreserved characters and those that readers expect to see in a reference or list.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:,".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_encoded() {
        assert_eq!(endpoint_path("name:web", "/log"), "/v1/endpoint/name:web/log");
        assert_eq!(endpoint_path("pod-name:ns/a b?", ""), "/v1/endpoint/pod-name:ns%2Fa%20b%3F");
        assert_eq!(labelled(&["k8s:a=b".into(), "c&d".into()]), "/v1/policy?labels=k8s:a%3Db,c%26d");
        assert_eq!(labelled(&[]), "/v1/policy");
    }
}
