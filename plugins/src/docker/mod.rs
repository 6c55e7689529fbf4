// SPDX-License-Identifier: Apache-2.0
//! `pilus-docker`: Docker's remote network and IPAM drivers. It keeps nothing: what a request needs is in the request, in the
//! agent or in Docker, so that a restart of any of the three is no event.

mod follow;
mod runtime;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use pilus_api::types::{EndpointModel, EndpointRequest, LabelsRequest};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::labels::{self, Source, label};
pub use follow::follow;
pub use runtime::Docker;

/// What every answer is called, whatever the request.
const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
/// What starts the names of endpoints that this plugin made.
pub(crate) const PREFIX: &str = "docker:";
/// The agent's own namespace: Docker looks for the interface there, and takes it away.
const OWN_NETNS: &str = "/proc/self/ns/net";
/// The label of a container whose labels are not known yet.
const INIT: &str = "reserved:init";
/// How long a container waits for its labels. Docker does not answer while it starts or holds the container.
const LABELS: Duration = Duration::from_millis(300);
/// Gateways that every container has (the node's program answers for them).
const GATEWAY6: &str = "fe80::1";
const GATEWAY4: &str = "169.254.1.1";
/// The range that Docker is told where it did not name the node's.
const ANY4: &str = "0.0.0.0/0";

/// How the driver reaches its neighbours.
#[derive(Clone, Debug)]
pub struct Options {
    pub agent_socket: PathBuf,
    pub docker_socket: PathBuf,
    /// How long a request waits for an agent that restarts.
    pub wait: Duration,
}

/// The driver. What it remembers it can do without.
pub struct Driver {
    pub(crate) agent: Agent,
    pub(crate) docker: Docker,
    /// Endpoints that Docker asked this process for, and has not given back.
    pub(crate) made: Mutex<HashSet<String>>,
    /// Sandboxes by the endpoint that joined them.
    joined: Mutex<HashMap<String, Joined>>,
    /// Addresses that went with their endpoints, and that Docker has not given back yet: they may be others' by now.
    left: Mutex<HashSet<IpAddr>>,
}

struct Joined {
    sandbox: String,
    addresses: Vec<IpAddr>,
}

type Result<T> = std::result::Result<T, String>;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The agent's name for one of Docker's endpoints.
fn reference(endpoint: &str) -> String {
    format!("name:{PREFIX}{endpoint}")
}

/// A text of a request; absent is empty.
fn text<'a>(request: &'a Value, key: &str) -> &'a str {
    request[key].as_str().unwrap_or_default()
}

/// A text that must be there.
fn needed<'a>(request: &'a Value, key: &str) -> Result<&'a str> {
    if request.is_null() {
        // So it does when the driver goes away with the first one.
        return Err("Docker repeated its request without what was in it: try again".into());
    }
    request[key].as_str().filter(|v| !v.is_empty()).ok_or_else(|| format!("the request has no {key}"))
}

fn address(text: &str) -> Result<IpAddr> {
    text.split('/').next().unwrap_or(text).parse().map_err(|_| format!("`{text}` is no IP address"))
}

/// Whether a field holds anything.
fn any(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::String(text) => !text.is_empty() && text != "false",
        _ => true,
    }
}

impl Driver {
    pub fn new(options: &Options) -> Arc<Self> {
        Arc::new(Self {
            agent: Agent::new(&options.agent_socket, options.wait),
            docker: Docker::new(&options.docker_socket),
            made: Mutex::default(),
            joined: Mutex::default(),
            left: Mutex::default(),
        })
    }

    /// What Docker talks to.
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new().fallback(handle).with_state(Arc::clone(self))
    }

    /// One request; None if there is no such call.
    async fn call(&self, method: &str, request: &Value) -> Option<Result<Value>> {
        Some(match method {
            "Plugin.Activate" => {
                // A Docker that has just begun. What another one asked for and did not live to note down nobody gives back.
                lock(&self.made).clear();
                lock(&self.left).clear();
                Ok(json!({ "Implements": ["NetworkDriver", "IpamDriver"] }))
            }
            "NetworkDriver.GetCapabilities" => Ok(json!({ "Scope": "local", "ConnectivityScope": "local" })),
            "NetworkDriver.CreateNetwork" => self.create_network(request).await,
            "NetworkDriver.CreateEndpoint" => self.create_endpoint(request).await,
            "NetworkDriver.Join" => self.join(request).await,
            "NetworkDriver.Leave" => self.leave(request).await,
            "NetworkDriver.DeleteEndpoint" => self.delete_endpoint(request).await,
            "NetworkDriver.EndpointOperInfo" => Ok(json!({ "Value": {} })),
            "NetworkDriver.DeleteNetwork" | "IpamDriver.ReleasePool" => Ok(json!({})),
            "IpamDriver.GetCapabilities" => Ok(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false })),
            "IpamDriver.GetDefaultAddressSpaces" => {
                Ok(json!({ "LocalDefaultAddressSpace": "pilus-local", "GlobalDefaultAddressSpace": "pilus-global" }))
            }
            "IpamDriver.RequestPool" => self.request_pool(request).await,
            "IpamDriver.RequestAddress" => self.request_address(request).await,
            "IpamDriver.ReleaseAddress" => self.release_address(request).await,
            _ => return None,
        })
    }

    /// The node's range of a family, and the router's address in it.
    async fn range(&self, v6: bool) -> Result<(String, String)> {
        let (status, _) = self.agent.call(|| self.agent.client.status()).await.map_err(|e| e.to_string())?;
        let (range, router) = if v6 { (status.ipv6_range, status.router_ipv6) } else { (status.ipv4_range, status.router_ipv4) };
        if range.is_empty() {
            return Err("Docker gives every container an IPv4 address, and the agent runs with enable-ipv4 false".into());
        }
        Ok((range, router))
    }

    async fn request_pool(&self, request: &Value) -> Result<Value> {
        let v6 = request["V6"] == true;
        let (range, router) = self.range(v6).await?;
        let pool = text(request, "Pool");
        if !pool.is_empty() && pool != range {
            return Err(format!("subnet {pool} is not this node's range: leave --subnet out, or give {range}"));
        }
        if !text(request, "SubPool").is_empty() {
            return Err("--ip-range is not supported: addresses come from the node's whole range".into());
        }
        let length = range.split('/').nth(1).unwrap_or_default();
        let id = if v6 { "pilus-ipv6" } else { "pilus-ipv4" };
        // Docker goes on asking until a range that it did not choose is none that the node has a route to. This one it does not
        // look at.
        let pool = if v6 || !pool.is_empty() { &range } else { ANY4 };
        Ok(json!({ "PoolID": id, "Pool": pool, "Data": { "com.docker.network.gateway": format!("{router}/{length}") } }))
    }

    async fn request_address(&self, request: &Value) -> Result<Value> {
        let v6 = needed(request, "PoolID")?.ends_with("6");
        let wanted = text(request, "Address");
        let length = if v6 { 128 } else { 32 };
        let answer = |ip: IpAddr| json!({ "Address": format!("{ip}/{length}"), "Data": {} });
        if request["Options"]["RequestAddressType"] == "com.docker.network.gateway" {
            let (_, router) = self.range(v6).await?;
            let router = address(&router)?;
            return match wanted {
                "" => Ok(answer(router)),
                text if address(text)? == router => Ok(answer(router)),
                text => Err(format!("gateway {text} is not the node's: leave --gateway out, or give {router}")),
            };
        }
        if !wanted.is_empty() {
            let ip = address(wanted)?;
            let claimed = self.agent.call(|| self.agent.client.claim_address(ip)).await;
            return claimed.map(|_| answer(ip)).map_err(|e| e.to_string());
        }
        let (taken, _) = self.agent.call(|| self.agent.client.allocate_address(true, !v6)).await.map_err(|e| e.to_string())?;
        if v6 {
            return taken.ipv6.map(|ip| answer(ip.into())).ok_or_else(|| "the agent gave no IPv6 address".into());
        }
        // Addresses are given out in pairs or IPv6 alone; Docker asks for one of them.
        if let Some(ip) = taken.ipv6 {
            let _ = self.agent.call(|| self.agent.client.release_address(ip.into())).await;
        }
        taken.ipv4.map(|ip| answer(ip.into())).ok_or_else(|| "the agent gave no IPv4 address".into())
    }

    /// Gives back what no endpoint took; that of an endpoint goes with it.
    async fn release_address(&self, request: &Value) -> Result<Value> {
        let ip = address(needed(request, "Address")?)?;
        if lock(&self.left).remove(&ip) {
            return Ok(json!({}));
        }
        self.agent.call(|| self.agent.client.release_address(ip)).await.map_err(|e| e.to_string())?;
        Ok(json!({}))
    }

    async fn create_network(&self, request: &Value) -> Result<Value> {
        let options = &request["Options"];
        if options["com.docker.network.enable_ipv6"] != true {
            return Err("every container has an IPv6 address: create the network with --ipv6".into());
        }
        if any(&options["com.docker.network.internal"]) {
            return Err("--internal is not supported: say in a policy who may reach the containers".into());
        }
        if let Some(option) = options["com.docker.network.generic"].as_object().and_then(|o| o.keys().next()) {
            return Err(format!("network option {option} is not supported"));
        }
        for (key, v6) in [("IPv4Data", false), ("IPv6Data", true)] {
            let (range, _) = self.range(v6).await?;
            for pool in request[key].as_array().into_iter().flatten() {
                if text(pool, "Pool") != range && text(pool, "Pool") != ANY4 {
                    return Err(format!("subnet {} is not this node's range {range}: add --ipam-driver pilus", text(pool, "Pool")));
                }
            }
        }
        Ok(json!({}))
    }

    async fn create_endpoint(&self, request: &Value) -> Result<Value> {
        let endpoint = needed(request, "EndpointID")?;
        if any(&request["Options"]["com.docker.network.portmap"]) {
            return Err("published ports are not supported yet: leave -p and -P out and reach the container at its own address".into());
        }
        let interface = &request["Interface"];
        let ip = |key| Some(text(interface, key)).filter(|t| !t.is_empty()).map(|t| address(t).map(|ip| ip.to_string())).transpose();
        let given = Some(text(interface, "MacAddress")).filter(|m| !m.is_empty());
        let wish = EndpointRequest {
            name: format!("{PREFIX}{endpoint}"),
            netns: OWN_NETNS.into(),
            labels: vec![INIT.into()],
            ifname: Some(interface_name(endpoint)),
            ipv4: Some(ip("Address")?.unwrap_or_else(|| "none".into())),
            ipv6: ip("AddressIPv6")?,
            mac: given.map(str::to_owned),
            ..EndpointRequest::default()
        };
        lock(&self.made).insert(endpoint.to_owned());
        let put = self.agent.call(|| self.agent.client.put_endpoint(&wish, true)).await;
        let (put, _) = put.map_err(|e| {
            lock(&self.made).remove(endpoint);
            e.to_string()
        })?;
        // Docker refuses to be told what it said itself.
        Ok(match given {
            Some(_) => json!({ "Interface": {} }),
            None => json!({ "Interface": { "MacAddress": put.endpoint.interface.mac } }),
        })
    }

    async fn join(&self, request: &Value) -> Result<Value> {
        let endpoint = needed(request, "EndpointID")?;
        let network = needed(request, "NetworkID")?;
        let sandbox = text(request, "SandboxKey");
        if lock(&self.joined).iter().any(|(other, j)| j.sandbox == sandbox && !sandbox.is_empty() && other != endpoint) {
            return Err("the container is in a network of Pilus already; one is enough: policy says whom it reaches".into());
        }
        let name = reference(endpoint);
        let found = self.agent.call(|| self.agent.client.endpoint(&name)).await;
        let (model, _) = found.map_err(|e| e.to_string())?;
        // A container is never refused because of its labels; who knows them later says so later.
        match tokio::time::timeout(LABELS, self.docker.labels_of(network, endpoint)).await {
            Ok(Ok(Some(known))) => {
                if let Err(e) = self.set_labels(&model, &known).await {
                    tracing::warn!(endpoint, error = %e, "labels are not set yet");
                }
            }
            Ok(Ok(None)) => tracing::info!(endpoint, "Docker does not name the container yet"),
            Ok(Err(e)) => tracing::info!(endpoint, error = %e, "Docker does not tell labels yet"),
            Err(_) => tracing::info!(endpoint, "Docker does not tell labels in time"),
        }
        let addresses = model.ipv6.map(IpAddr::from).into_iter().chain(model.ipv4.map(IpAddr::from)).collect();
        lock(&self.joined).insert(endpoint.to_owned(), Joined { sandbox: sandbox.to_owned(), addresses });
        let mut routes = vec![json!({ "Destination": format!("{GATEWAY6}/128"), "RouteType": 1, "NextHop": "" })];
        let mut gateway = "";
        if model.ipv4.is_some() {
            gateway = GATEWAY4;
            routes.push(json!({ "Destination": format!("{GATEWAY4}/32"), "RouteType": 1, "NextHop": "" }));
        }
        Ok(json!({
            "InterfaceName": { "SrcName": interface_name(endpoint), "DstPrefix": "eth" },
            "Gateway": gateway,
            "GatewayIPv6": GATEWAY6,
            "StaticRoutes": routes,
            "DisableGatewayService": true,
        }))
    }

    /// Docker deletes what has left; nobody comes back. Before, it would take the interface down, rename it and take it out of
    /// the sandbox, and the kernel waits for each of these (50 ms): so it goes at once. What that does not achieve, the
    /// deletion will.
    async fn leave(&self, request: &Value) -> Result<Value> {
        let endpoint = needed(request, "EndpointID")?;
        let joined = lock(&self.joined).remove(endpoint);
        match self.agent.client.delete_endpoint(&reference(endpoint), true).await {
            Ok(_) => lock(&self.left).extend(joined.into_iter().flat_map(|j| j.addresses)),
            Err(e) => tracing::info!(endpoint, error = %e, "not removed yet"),
        }
        Ok(json!({}))
    }

    async fn delete_endpoint(&self, request: &Value) -> Result<Value> {
        let endpoint = needed(request, "EndpointID")?;
        let name = reference(endpoint);
        // What is left to do the agent does; nobody gets the container's addresses before.
        let deleted = self.agent.call(|| self.agent.client.delete_endpoint(&name, false)).await;
        deleted.map_err(|e| e.to_string())?;
        lock(&self.made).remove(endpoint);
        lock(&self.joined).remove(endpoint);
        Ok(json!({}))
    }

    /// Makes the labels that come from Docker these; those of others stay.
    pub(crate) async fn set_labels(&self, model: &EndpointModel, known: &labels::Map) -> Result<()> {
        let (wanted, bad): (Vec<_>, Vec<_>) = known.iter().partition(|(key, value)| labels::usable(key, value));
        for (key, _) in bad {
            tracing::warn!(
                endpoint = model.name,
                label = key,
                "not a label of ours: a key has no space or `=`, and no text a control character"
            );
        }
        let wanted: Vec<String> = wanted.into_iter().map(|(key, value)| label(Source::Container, key, value)).collect();
        let key = |text: &str| text.split('=').next().unwrap_or(text).to_owned();
        let kept: HashSet<String> = wanted.iter().map(|l| key(l)).collect();
        let ours = |l: &&String| *l == INIT || l.starts_with("container:");
        let delete: Vec<String> = model.labels.iter().filter(ours).map(|l| key(l)).filter(|k| !kept.contains(k)).collect();
        let add: Vec<String> = wanted.into_iter().filter(|l| !model.labels.contains(l)).collect();
        if add.is_empty() && delete.is_empty() {
            return Ok(());
        }
        let change = LabelsRequest { add, delete };
        let id = model.id.to_string();
        let changed = self.agent.call(|| self.agent.client.change_labels(&id, &change)).await;
        changed.map(drop).map_err(|e| e.to_string())
    }
}

/// The interface between its making and its container.
fn interface_name(endpoint: &str) -> String {
    format!("pd{}", endpoint.chars().take(13).collect::<String>())
}

async fn handle(State(driver): State<Arc<Driver>>, uri: Uri, body: Bytes) -> Response {
    let method = uri.path().trim_start_matches('/').to_owned();
    let request = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body).map_err(|e| e.to_string()) };
    // Docker does not wait for ever, but what it began is ended: it will ask for it to be undone.
    let work = tokio::spawn(async move {
        let since = Instant::now();
        let answer = match &request {
            Ok(request) => driver.call(&method, request).await,
            Err(e) => Some(Err(format!("the request is no JSON: {e}"))),
        };
        tracing::debug!(method, took = ?since.elapsed(), ?request, ?answer, "request");
        if let Some(Err(e)) = &answer {
            tracing::warn!(method, error = e, "refused");
        }
        answer
    });
    let (status, body) = match work.await {
        Ok(Some(Ok(answer))) => (StatusCode::OK, answer),
        // The one key is read of network drivers, the other one of IPAM drivers.
        Ok(Some(Err(e))) => (StatusCode::OK, json!({ "Err": e, "Error": e })),
        Ok(None) => (StatusCode::NOT_FOUND, json!({ "Err": "no such call" })),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, json!({ "Err": e.to_string(), "Error": e.to_string() })),
    };
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body.to_string()).into_response()
}
