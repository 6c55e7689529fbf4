// SPDX-License-Identifier: Apache-2.0
//! `/v1/service` and `/v1/node`: what rules refer to by name.

use super::endpoint::{PATIENCE, rows_written};
use super::policy::addresses_told_apart;
use super::preview::ranges;
use super::{App, Body, Failure, ask, persisted};
use crate::agent::Agent;
use crate::control::{Event, Known};
use crate::state::NodeRecord;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pilus_api::types::*;
use pilus_model::abi::Reserved;
use pilus_model::identity::NodeIdentities;
use pilus_model::label::Labels;
use pilus_model::policy::{Service, ServiceName};
use pilus_model::selector::{SelectorKey, SelectorSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

const DEFAULT_NAMESPACE: &str = "default";

/// A name as objects have it: nothing in it means anything to a path or a key.
fn good_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !text.is_empty() && text.len() <= 253 && text.chars().all(good) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// `NAMESPACE/NAME`; a name alone is in `default`.
fn service_name(id: &str) -> Result<ServiceName, Failure> {
    let (namespace, name) = id.split_once('/').unwrap_or((DEFAULT_NAMESPACE, id));
    if !good_name(namespace) || !good_name(name) {
        return Err(Failure::invalid(
            "id",
            format!("`{id}` is no service: takes NAME or NAMESPACE/NAME of letters, digits, `-`, `_`, `.`"),
        ));
    }
    Ok((namespace.to_owned(), name.to_owned()))
}

fn service_model(agent: &Agent, (namespace, name): &ServiceName, service: &Service) -> ServiceModel {
    let ranges = ranges(agent);
    let own = |ip: &&IpAddr| ranges.iter().any(|r| r.covers(pilus_model::prefix::Prefix::address(**ip)));
    let warning = |ip: &IpAddr| format!("{ip} is an address of containers: rules will not match it by this service; give it a selector");
    ServiceModel {
        id: format!("{namespace}/{name}"),
        namespace: namespace.clone(),
        name: name.clone(),
        labels: service.labels.iter().map(ToString::to_string).collect(),
        selector: service.selector.as_ref().map(|s| s.match_labels.iter().map(|(k, v)| (k.to_string(), v.clone())).collect()),
        backends: service.addresses.iter().map(|address| ServiceBackend { address: *address }).collect(),
        warnings: service.addresses.iter().filter(own).map(warning).collect(),
    }
}

fn service(request: ServiceRequest) -> Result<Service, Failure> {
    let selector = match request.selector {
        None => None,
        Some(labels) if labels.is_empty() => {
            return Err(Failure::invalid("selector", "selects nothing; leave it out for a service of addresses"));
        }
        Some(labels) => {
            let key = |(key, value): (String, String)| match key.parse::<SelectorKey>() {
                Ok(key) => Ok((key, value)),
                Err(e) => Err(Failure::invalid("selector", format!("`{key}`: {e}"))),
            };
            Some(SelectorSpec { match_labels: labels.into_iter().map(key).collect::<Result<_, _>>()?, ..SelectorSpec::default() })
        }
    };
    if selector.is_some() && !request.backends.is_empty() {
        return Err(Failure::invalid("backends", "a service has either a selector or backends"));
    }
    Ok(Service {
        labels: Labels::parse(&request.labels).map_err(|e| Failure::invalid("labels", e))?,
        selector,
        addresses: request.backends.iter().map(|b| b.address).collect(),
    })
}

/// Waits until the disk has a change, and the kernel what follows from it.
async fn in_force<T>(agent: &Agent, known: &Known<T>, kept: impl Fn(&crate::persist::Persisted) -> bool) -> Result<(), Failure> {
    persisted(agent, kept).await?;
    let written = async {
        rows_written(agent, known.endpoints).await?;
        addresses_told_apart(agent).await;
        Ok(())
    };
    let late = |_| Failure::timeout(format!("the kernel has not all of it after {PATIENCE:?}: nothing is changed; see `pilus status`"));
    tokio::time::timeout(PATIENCE, written).await.map_err(late)?
}

async fn set_service(agent: &App, name: ServiceName, service: Option<Service>) -> Result<Known<Service>, Failure> {
    let agent = Arc::clone(agent);
    // A client that does not wait for the answer leaves nothing half done.
    let work = tokio::spawn(async move {
        let known = ask(&agent, |reply| Event::Service(name.clone(), service, reply)).await?;
        let done = in_force(&agent, &known, |p| p.services >= known.table).await;
        if let Err(why) = done {
            ask(&agent, |reply| Event::Service(name, known.before, reply)).await?;
            return Err(why);
        }
        Ok(known)
    });
    work.await.map_err(Failure::failed)?
}

pub async fn services(State(agent): State<App>) -> Json<Vec<ServiceModel>> {
    let rows = agent.readers.services.snapshot().rows;
    Json(rows.iter().map(|(name, service)| service_model(&agent, name, service)).collect())
}

pub async fn show_service(State(agent): State<App>, Path(id): Path<String>) -> Result<Json<ServiceModel>, Failure> {
    let name = service_name(&id)?;
    let rows = agent.readers.services.snapshot().rows;
    let service = rows.get(&name).ok_or_else(|| Failure::not_found(format!("no service {}/{}", name.0, name.1)))?;
    Ok(Json(service_model(&agent, &name, service)))
}

pub async fn put_service(
    State(agent): State<App>,
    Path(id): Path<String>,
    Body(request): Body<ServiceRequest>,
) -> Result<Response, Failure> {
    let (name, service) = (service_name(&id)?, service(request)?);
    let known = set_service(&agent, name.clone(), Some(service.clone())).await?;
    let status = if known.before.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(service_model(&agent, &name, &service))).into_response())
}

pub async fn delete_service(State(agent): State<App>, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    let name = service_name(&id)?;
    let known = set_service(&agent, name.clone(), None).await?;
    match known.before {
        Some(_) => Ok(StatusCode::NO_CONTENT),
        None => Err(Failure::not_found(format!("no service {}/{}", name.0, name.1))),
    }
}

fn node_model(agent: &Agent, name: &str, node: &NodeRecord) -> NodeModel {
    let identities = agent.readers.identities.snapshot().rows;
    let identity = identities.iter().find(|(_, labels)| **labels == node.labels).map_or(0, |(id, _)| id.get());
    NodeModel {
        name: name.to_owned(),
        local: false,
        addresses: node.addresses.iter().copied().collect(),
        labels: node.labels.iter().map(ToString::to_string).collect(),
        identity,
    }
}

/// This node: what the host's stack has.
fn local(agent: &Agent) -> NodeModel {
    let rows = agent.readers.ipcache.snapshot().rows;
    let host = Reserved::Host;
    NodeModel {
        name: agent.options.node_name.clone(),
        local: true,
        addresses: rows.iter().filter(|(_, spec)| spec.identity == host.into()).map(|(row, _)| row.ip).collect(),
        labels: vec![format!("reserved:{}", host.text())],
        identity: host.raw(),
    }
}

fn node(agent: &Agent, request: &NodeRequest) -> Result<NodeRecord, Failure> {
    let addresses: BTreeSet<IpAddr> = request.addresses.iter().copied().collect();
    if addresses.is_empty() {
        return Err(Failure::invalid("addresses", "a node has at least one"));
    }
    let ranges = ranges(agent);
    let rows = agent.readers.ipcache.snapshot().rows;
    for ip in &addresses {
        let bad = |why: &str| Err(Failure::invalid("addresses", format!("{ip} {why}")));
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
            return bad("is no address of another node");
        }
        if ranges.iter().any(|r| r.covers(pilus_model::prefix::Prefix::address(*ip))) {
            return bad("lies in the range of this node's containers");
        }
        if rows.get(&crate::state::IpcachePrefix::address(*ip)).is_some_and(|spec| spec.identity == Reserved::Host.into()) {
            return bad("belongs to this node");
        }
    }
    let labels = NodeIdentities::labels(&request.labels).map_err(|e| Failure::invalid("labels", e))?;
    Ok(NodeRecord { addresses, labels: Arc::new(labels) })
}

/// The name of another node.
fn other(agent: &Agent, name: &str) -> Result<(), Failure> {
    if !good_name(name) {
        return Err(Failure::invalid("name", format!("`{name}` is no name of a node: takes letters, digits, `-`, `_`, `.`")));
    }
    if name == agent.options.node_name {
        return Err(Failure::invalid("name", format!("{name} is this node: it says itself what it is")));
    }
    Ok(())
}

async fn set_node(agent: &App, name: String, node: Option<NodeRecord>) -> Result<Known<NodeRecord>, Failure> {
    let agent = Arc::clone(agent);
    let work = tokio::spawn(async move {
        let known = ask(&agent, |reply| Event::Node(name.clone(), node, reply)).await?;
        let done = in_force(&agent, &known, |p| p.nodes >= known.table).await;
        if let Err(why) = done {
            ask(&agent, |reply| Event::Node(name, known.before, reply)).await?;
            return Err(why);
        }
        Ok(known)
    });
    work.await.map_err(Failure::failed)?
}

pub async fn nodes(State(agent): State<App>) -> Json<Vec<NodeModel>> {
    let rows: Arc<BTreeMap<String, NodeRecord>> = agent.readers.nodes.snapshot().rows;
    Json(std::iter::once(local(&agent)).chain(rows.iter().map(|(name, node)| node_model(&agent, name, node))).collect())
}

pub async fn show_node(State(agent): State<App>, Path(name): Path<String>) -> Result<Json<NodeModel>, Failure> {
    if name == agent.options.node_name {
        return Ok(Json(local(&agent)));
    }
    let rows = agent.readers.nodes.snapshot().rows;
    let node = rows.get(&name).ok_or_else(|| Failure::not_found(format!("no node {name}")))?;
    Ok(Json(node_model(&agent, &name, node)))
}

pub async fn put_node(State(agent): State<App>, Path(name): Path<String>, Body(request): Body<NodeRequest>) -> Result<Response, Failure> {
    other(&agent, &name)?;
    let node = node(&agent, &request)?;
    let known = set_node(&agent, name.clone(), Some(node.clone())).await?;
    let status = if known.before.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(node_model(&agent, &name, &node))).into_response())
}

pub async fn delete_node(State(agent): State<App>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    other(&agent, &name)?;
    let known = set_node(&agent, name.clone(), None).await?;
    match known.before {
        Some(_) => Ok(StatusCode::NO_CONTENT),
        None => Err(Failure::not_found(format!("no node {name}"))),
    }
}
