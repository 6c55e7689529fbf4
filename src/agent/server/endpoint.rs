// SPDX-License-Identifier: Apache-2.0
//! `/v1/endpoint`.

use super::{App, Body, Failure, ask, persisted};
use crate::agent::Agent;
use crate::control::{Accepted, AddEndpoint, Change, ControlError, Event, Planned, Reply, find_endpoint};
use crate::ipam::Wish;
use crate::reconcile::Status;
use crate::state::{EndpointRecord, EndpointSpec, IpcachePrefix, Trace};
use crate::table::Revision;
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pilus_api::types::*;
use pilus_model::endpoint::{EndpointId, EndpointRef, EndpointState};
use pilus_model::label::{Labels, Source};
use pilus_model::policy::{Port, PortNames};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a request waits for an endpoint to be realised: longer than the compiler may take.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// RFC 8200, section 5.
const MIN_MTU: u16 = 1280;
/// The label of a container whose labels are not known yet.
const INIT: &str = "reserved:init";

fn mac(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

fn options(record: &EndpointRecord) -> BTreeMap<String, String> {
    let o = &record.options;
    let trace = match o.trace {
        Trace::Off => "off",
        Trace::Flow => "flow",
        Trace::All => "all",
    };
    [
        ("Trace", trace.to_owned()),
        ("DropNotification", o.drops.to_string()),
        ("PolicyVerdict", o.verdicts.to_string()),
        ("PolicyAudit", o.audit.to_string()),
        ("Build", record.build().as_str().to_owned()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v))
    .collect()
}

/// One option of an endpoint. The error says what it takes.
fn set_option(record: &mut EndpointRecord, key: &str, value: &str) -> Result<(), Failure> {
    let flag = || match value {
        "true" | "on" => Ok(true),
        "false" | "off" => Ok(false),
        _ => Err(Failure::invalid(key, format!("option {key} takes true or false, not `{value}`"))),
    };
    match key {
        "Trace" => {
            record.options.trace = match value {
                "off" => Trace::Off,
                "flow" => Trace::Flow,
                "all" => Trace::All,
                _ => return Err(Failure::invalid(key, format!("option Trace takes off, flow or all, not `{value}`"))),
            }
        }
        "DropNotification" => record.options.drops = flag()?,
        "PolicyVerdict" => record.options.verdicts = flag()?,
        "PolicyAudit" => record.options.audit = flag()?,
        "Build" => {
            record.own = match value {
                "own" => true,
                "shared" => false,
                _ => return Err(Failure::invalid(key, format!("option Build takes shared or own, not `{value}`"))),
            }
        }
        _ => {
            return Err(Failure::invalid(
                key,
                format!("no endpoint option `{key}`; there are Trace, DropNotification, PolicyVerdict, PolicyAudit, Build"),
            ));
        }
    }
    Ok(())
}

/// The endpoint as the tables have it.
pub fn model(agent: &Agent, spec: &EndpointSpec) -> EndpointModel {
    let r = &spec.record;
    let status = agent.readers.status.snapshot().rows.get(&r.id).cloned();
    let facts = agent.facts.snapshot().rows.get(&r.id).cloned().unwrap_or_default();
    let state = status.as_ref().map_or(EndpointState::Creating, |s| s.state);
    let mode = |of: fn(&crate::state::EndpointStatus) -> crate::state::PolicyMode| {
        status.as_ref().map(|s| of(s).as_str().to_owned()).unwrap_or_default()
    };
    let health = match (&status, state) {
        (Some(s), EndpointState::NotReady) => s.problem.as_deref().unwrap_or("not ready").to_owned(),
        (_, EndpointState::Ready) => "ok".into(),
        (_, other) => other.to_string(),
    };
    let labels: Vec<String> = r.labels.iter().map(ToString::to_string).collect();
    let settled = agent.settled();
    let current = agent.endpoint_status.borrow().get(&r.id).is_some_and(|s| s.done(settled.endpoints));
    let revision = if current { settled.rules } else { facts.policy_revision };
    EndpointModel {
        id: r.id.0,
        name: r.name.clone(),
        state: state.to_string(),
        identity: IdentityModel { id: r.identity.get(), labels: labels.clone() },
        labels,
        ports: named_ports(&r.ports),
        ipv6: r.told_ipv6(),
        ipv4: r.ipv4,
        nat46: r.nat46,
        interface: InterfaceModel {
            name: r.device(),
            index: facts.ifindex,
            mac: mac(r.mac),
            host_mac: mac(r.host_mac),
            container_name: r.ifname.clone(),
            mtu: r.mtu,
        },
        netns: r.netns.display().to_string(),
        container_id: r.container_id.clone(),
        policy: EndpointPolicyModel { revision, ingress: mode(|s| s.ingress), egress: mode(|s| s.egress) },
        datapath: DatapathModel {
            shape_key: facts.shape_key,
            build: r.build().as_str().into(),
            programs: facts.programs,
            attach: facts.attach,
        },
        health,
        options: options(r),
        log: status.map(|s| (*s.log).clone()).unwrap_or_default(),
    }
}

fn reference(text: &str) -> Result<EndpointRef, Failure> {
    text.parse().map_err(|e| Failure::invalid("id", e))
}

fn find(agent: &Agent, text: &str) -> Result<EndpointSpec, Failure> {
    let endpoint = reference(text)?;
    let rows = agent.readers.endpoints.snapshot().rows;
    find_endpoint(&rows, &endpoint).cloned().ok_or_else(|| Failure::not_found(format!("no endpoint {endpoint}")))
}

pub async fn list(State(agent): State<App>) -> Json<Vec<EndpointModel>> {
    let rows = agent.readers.endpoints.snapshot().rows;
    Json(rows.values().map(|s| model(&agent, s)).collect())
}

pub async fn show(State(agent): State<App>, Path(id): Path<String>) -> Result<Json<EndpointModel>, Failure> {
    Ok(Json(model(&agent, &find(&agent, &id)?)))
}

pub async fn config(State(agent): State<App>, Path(id): Path<String>) -> Result<Json<BTreeMap<String, String>>, Failure> {
    Ok(Json(options(&find(&agent, &id)?.record)))
}

pub async fn labels(State(agent): State<App>, Path(id): Path<String>) -> Result<Json<Vec<String>>, Failure> {
    Ok(Json(find(&agent, &id)?.record.labels.iter().map(ToString::to_string).collect()))
}

pub async fn log(State(agent): State<App>, Path(id): Path<String>) -> Result<Json<Vec<LogEntry>>, Failure> {
    Ok(Json(model(&agent, &find(&agent, &id)?).log))
}

pub async fn health(State(agent): State<App>, Path(id): Path<String>) -> Result<Json<serde_json::Value>, Failure> {
    let m = model(&agent, &find(&agent, &id)?);
    Ok(Json(serde_json::json!({ "health": m.health, "state": m.state })))
}

pub async fn header(State(agent): State<App>, Path(id): Path<String>) -> Result<Json<HeaderModel>, Failure> {
    let spec = find(&agent, &id)?;
    let path = agent.endpoints.header_path(spec.record.id);
    let text = std::fs::read_to_string(&path).map_err(|e| Failure::not_found(format!("{}: {e}", path.display())))?;
    let shape_key = model(&agent, &spec).datapath.shape_key;
    Ok(Json(HeaderModel { path: path.display().to_string(), text, shape_key }))
}

#[derive(Deserialize)]
pub struct Wait {
    wait: Option<bool>,
}

/// Labels as users write them; `reserved:` is ours.
fn user_labels(texts: &[String], field: &str) -> Result<Labels, Failure> {
    let labels = Labels::parse(texts).map_err(|e| Failure::invalid(field, e))?;
    match labels.iter().find(|l| l.source() == Source::Reserved) {
        Some(l) => Err(Failure::invalid(field, format!("label {l}: the source `reserved` is not for containers"))),
        None => Ok(labels),
    }
}

/// Protocols whose ports have names.
const NAMED: [(&str, u8); 3] = [("tcp", 6), ("udp", 17), ("sctp", 132)];

fn named_ports(names: &PortNames) -> Vec<NamedPort> {
    let text = |proto: u8| NAMED.iter().find(|(_, n)| *n == proto).map_or_else(|| proto.to_string(), |(name, _)| (*name).to_owned());
    let one = |(name, ports): (&String, &BTreeSet<(u16, u8)>)| -> Vec<NamedPort> {
        ports.iter().map(|(port, proto)| NamedPort { name: name.clone(), port: *port, protocol: text(*proto) }).collect()
    };
    names.iter().flat_map(one).collect()
}

fn port_names(ports: &[NamedPort]) -> Result<PortNames, Failure> {
    let mut names = PortNames::new();
    for (n, port) in ports.iter().enumerate() {
        let bad = |field: &str, what: String| Err(Failure::invalid(&format!("ports[{n}].{field}"), what));
        if !Port::good_name(&port.name) {
            return bad("name", format!("`{}` is no name of a port: 1 to 15 of a-z, 0-9 and `-`, with a letter", port.name));
        }
        if port.port == 0 {
            return bad("port", "takes 1 to 65535".into());
        }
        let Some((_, proto)) = NAMED.iter().find(|(name, _)| name.eq_ignore_ascii_case(&port.protocol)) else {
            return bad("protocol", format!("`{}`: takes tcp, udp or sctp", port.protocol));
        };
        names.entry(port.name.clone()).or_default().insert((port.port, *proto));
    }
    Ok(names)
}

fn parse(id: &str, request: EndpointRequest) -> Result<AddEndpoint, Failure> {
    match reference(id)? {
        EndpointRef::Name(name) if name == request.name => {}
        _ => return Err(Failure::invalid("name", format!("the path names {id}, the body {}", request.name))),
    }
    if !request.netns.starts_with('/') {
        return Err(Failure::invalid("netns", format!("`{}`: takes the absolute path of a network namespace", request.netns)));
    }
    let ifname = request.ifname.unwrap_or_else(|| "eth0".into());
    let good = !ifname.is_empty()
        && ifname.len() <= 15
        && !ifname.contains(['/', ':'])
        && !ifname.chars().any(|c| c.is_whitespace() || c.is_control());
    if !good || ifname == "." || ifname == ".." || ifname == "lo" || ifname == "all" || ifname == "default" {
        return Err(Failure::invalid("ifname", format!("`{ifname}` is no interface name (1 to 15 characters, no `/`, `:` or space)")));
    }
    let ipv4 = match request.ipv4.as_deref() {
        None | Some("auto") => Wish::Auto,
        Some("none") => Wish::None,
        Some(text) => {
            Wish::Exact(text.parse().map_err(|_| Failure::invalid("ipv4", format!("`{text}`: takes auto, none or an IPv4 address")))?)
        }
    };
    let ipv6 = match request.ipv6.as_deref() {
        None | Some("auto" | "none") => None,
        Some(text) => Some(text.parse().map_err(|_| Failure::invalid("ipv6", format!("`{text}`: takes auto, none or an IPv6 address")))?),
    };
    let ipv4_alone = request.ipv6.as_deref() == Some("none");
    if ipv4_alone && ipv4 == Wish::None {
        return Err(Failure::invalid("ipv6", "an endpoint has an address of one family at least"));
    }
    // Whoever connects a container before its labels are known says so, and changes them when they are.
    let labels = match request.labels.as_slice() {
        [init] if init == INIT => Labels::parse([INIT]).map_err(|e| Failure::invalid("labels", e))?,
        labels => user_labels(labels, "labels")?,
    };
    let mac = match request.mac.as_deref().map(str::parse::<pilus_plugins::netns::Mac>) {
        None => None,
        Some(Ok(mac)) if mac.0[0] & 1 == 0 && mac.0 != [0; 6] => Some(mac.0),
        Some(_) => return Err(Failure::invalid("mac", "takes the Ethernet address of one device, as 02:00:00:00:00:01")),
    };
    if let Some(mtu) = request.mtu.filter(|mtu| *mtu < MIN_MTU) {
        return Err(Failure::invalid("mtu", format!("{mtu}: IPv6 needs {MIN_MTU} bytes or more")));
    }
    Ok(AddEndpoint {
        name: request.name,
        container_id: request.container_id,
        netns: PathBuf::from(request.netns),
        ifname,
        labels,
        ipv6,
        ipv4,
        ipv4_alone,
        mac,
        mtu: request.mtu,
        own: request.build.map(|b| b == Build::Own),
        ports: port_names(&request.ports)?,
    })
}

fn check_netns(path: &std::path::Path) -> Result<(), Failure> {
    let bad = |what: &dyn std::fmt::Display| Failure::invalid("netns", format!("{}: {what}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| bad(&e))?;
    let none = &"is no network namespace";
    let kind = nix::sys::statfs::fstatfs(&file).map_err(|e| bad(&e))?.filesystem_type();
    if kind != nix::sys::statfs::NSFS_MAGIC {
        return Err(bad(none));
    }
    let fd = file.as_raw_fd();
    let name = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    // A namespace says what it is, unless it is mounted somewhere; then its mount does.
    let kind = if name.is_absolute() { mounted_namespace(fd) } else { name.to_str().map(str::to_owned) };
    match kind {
        Some(kind) if !kind.starts_with("net:[") => Err(bad(none)),
        _ => Ok(()),
    }
}

/// What the mount of an open file shows of its file system: `KIND:[NUMBER]` for a namespace. None for a mount that only others
/// see.
fn mounted_namespace(fd: i32) -> Option<String> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let mount = info.lines().find_map(|l| l.strip_prefix("mnt_id:"))?.trim();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    // Number, parent, device, root.
    let columns = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|c| c.first() == Some(&mount))?;
    columns.get(3).map(|root| (*root).to_owned())
}

/// Waits until the kernel has what was accepted. An error says why it has not.
async fn realised(agent: &Agent, accepted: &Accepted) -> Result<(), Failure> {
    let mut statuses = agent.endpoint_status.clone();
    let id = accepted.record.id;
    let settled = statuses.wait_for(|s| s.get(&id).is_some_and(|s| s.tried(accepted.revision)));
    let late = |_| Failure::timeout(format!("endpoint {id} is not ready after {PATIENCE:?}; see `pilus endpoint log {id}`"));
    let failure = {
        let seen = tokio::time::timeout(PATIENCE, settled).await.map_err(late)?;
        match seen.map_err(|_| Failure::failed("the agent is stopping"))?.get(&id) {
            Some(Status::Failed(_, why)) => Some(Arc::clone(why)),
            _ => None,
        }
    };
    if let Some(why) = failure {
        return Err(Failure::failed(format!("endpoint {} ({}): {why}", id, accepted.record.name)));
    }
    let others = tokio::time::timeout(PATIENCE, known_to_all(agent, accepted));
    others.await.map_err(|_| Failure::timeout(format!("not every endpoint knows endpoint {id} after {PATIENCE:?}; see `pilus status`")))?
}

/// Waits until the endpoint's addresses are announced and every other one's policy knows its identity: then traffic flows.
async fn known_to_all(agent: &Agent, accepted: &Accepted) -> Result<(), Failure> {
    let stopping = |_| Failure::failed("the agent is stopping");
    let record = &accepted.record;
    let addresses: Vec<IpcachePrefix> = record.addresses().map(IpcachePrefix::address).collect();
    let mut ipcache = agent.ipcache_status.clone();
    let announced = |status: Option<&Status>| matches!(status, Some(Status::Done(at)) if *at >= accepted.ipcache);
    drop(ipcache.wait_for(|s| addresses.iter().all(|a| announced(s.get(a)))).await.map_err(stopping)?);
    rows_written(agent, accepted.revision).await
}

/// Waits until every endpoint that can has the row of this revision.
pub async fn rows_written(agent: &Agent, revision: Revision) -> Result<(), Failure> {
    let live: Vec<_> = agent.facts.snapshot().rows.keys().copied().collect();
    let mut statuses = agent.endpoint_status.clone();
    let settled = statuses.wait_for(|s| live.iter().all(|id| s.get(id).is_none_or(|s| s.tried(revision))));
    drop(settled.await.map_err(|_| Failure::failed("the agent is stopping"))?);
    Ok(())
}

async fn answer(agent: &Agent, accepted: &Accepted) -> Result<EndpointModel, Failure> {
    let rows = agent.readers.endpoints.snapshot().rows;
    let spec = rows.get(&accepted.record.id).ok_or_else(|| Failure::not_found("the endpoint was deleted meanwhile"))?;
    Ok(model(agent, spec))
}

pub async fn add(
    State(agent): State<App>,
    Path(id): Path<String>,
    Query(wait): Query<Wait>,
    Body(request): Body<EndpointRequest>,
) -> Result<Response, Failure> {
    let add = parse(&id, request)?;
    // A path that is no namespace is the caller's mistake: say so before anything is allocated.
    check_netns(&add.netns)?;
    if agent.devices.lock().await.is_none() {
        return Err(Failure::failed("everything is being removed from this node; start the agent again"));
    }
    let accepted = ask_for_place(&agent, |reply| Event::Add(add.clone(), reply)).await?;
    let mut done = persisted(&agent, |p| p.endpoints >= accepted.revision).await;
    if done.is_ok() && wait.wait.unwrap_or(true) {
        done = realised(&agent, &accepted).await;
    }
    if let Err(why) = done {
        // Undone by ownership: what this request made, this request removes.
        if !accepted.existed {
            let id = accepted.record.id;
            let _ = ask(&agent, |reply| Event::Delete(EndpointRef::Id(id), reply)).await;
            let _ = gone(&agent, id).await;
        }
        return Err(why);
    }
    let status = if accepted.existed { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(answer(&agent, &accepted).await?)).into_response())
}

/// Asks for a place on the node. Where one who was deleted has not quite left it, the request waits.
pub async fn ask_for_place<T>(agent: &Agent, event: impl Fn(Reply<T>) -> Event) -> Result<T, ControlError> {
    let end = Instant::now() + PATIENCE;
    let mut leaving = agent.readers.leaving.clone();
    loop {
        leaving.take();
        match ask(agent, &event).await {
            Err(ControlError::Leaving(why)) => match tokio::time::timeout_at(end, leaving.changed()).await {
                // Where everything is removed, all leave and nobody comes.
                Ok(true) if agent.devices.lock().await.is_none() => return Err(*why),
                Ok(true) => {}
                Ok(false) => return Err(ControlError::Stopping),
                Err(_) => return Err(*why),
            },
            answer => return answer,
        }
    }
}

/// Waits until nothing of a deleted endpoint is left. Another one may have its slot already: where that one is done, nothing
/// is left of this one either.
async fn gone(agent: &Agent, id: EndpointId) -> Result<(), Failure> {
    let deleted = agent.readers.endpoints.snapshot().revision;
    let mut statuses = agent.endpoint_status.clone();
    let gone = statuses.wait_for(|s| match s.get(&id) {
        None => true,
        Some(Status::Done(at)) => *at >= deleted,
        Some(Status::Begun | Status::Failed(..)) => false,
    });
    tokio::time::timeout(PATIENCE, gone)
        .await
        .map_err(|_| Failure::timeout(format!("endpoint {id} is not gone after {PATIENCE:?}; the agent goes on trying")))?
        .map_err(|_| Failure::failed("the agent is stopping"))?;
    Ok(())
}

/// Changes an endpoint, all or nothing: what cannot be kept is not done. From the moment that the change is made, packets may
/// be judged by the endpoint's new identity, and until it is whole by the old one: every policy knows both meanwhile.
async fn change(agent: &App, endpoint: EndpointRef, change: Change) -> Result<Accepted, Failure> {
    let agent = Arc::clone(agent);
    // A client that does not wait for the answer leaves nothing half done.
    let work = tokio::spawn(async move {
        let deletes = matches!(change, Change::Delete);
        let planned = ask(&agent, |reply| Event::Plan { endpoint, change, reply }).await?;
        let result = make(&agent, planned, deletes).await;
        ask(&agent, |reply| Event::Close(planned.id, reply)).await?;
        result
    });
    work.await.map_err(Failure::failed)?
}

async fn make(agent: &Agent, planned: Planned, deletes: bool) -> Result<Accepted, Failure> {
    let id = planned.id;
    persisted(agent, |p| p.planned >= planned.planned).await?;
    if let Some(revision) = planned.endpoints {
        let known = tokio::time::timeout(PATIENCE, rows_written(agent, revision));
        let late = |_| Failure::timeout(format!("not every endpoint knows the new labels after {PATIENCE:?}; see `pilus status`"));
        known.await.map_err(late)??;
    }
    let accepted = ask(agent, |reply| Event::Make(id, reply)).await?;
    if !deletes {
        realised(agent, &accepted).await?;
    }
    Ok(accepted)
}

pub async fn delete(State(agent): State<App>, Path(id): Path<String>, Query(wait): Query<Wait>) -> Result<Response, Failure> {
    let deleted = match change(&agent, reference(&id)?, Change::Delete).await {
        Ok(accepted) => accepted.record.id,
        Err(Failure(StatusCode::NOT_FOUND, _)) => return Ok((StatusCode::NO_CONTENT, [("pilus-deleted", "false")]).into_response()),
        Err(e) => return Err(e),
    };
    if wait.wait.unwrap_or(true) {
        gone(&agent, deleted).await?;
    }
    Ok((StatusCode::NO_CONTENT, [("pilus-deleted", "true")]).into_response())
}

async fn change_options(agent: &App, id: &str, changes: BTreeMap<String, String>) -> Result<Accepted, Failure> {
    let endpoint = reference(id)?;
    // Every key is checked before any is applied.
    let mut probe = (*find(agent, id)?.record).clone();
    changes.iter().try_for_each(|(k, v)| set_option(&mut probe, k, v))?;
    let apply = Box::new(move |record: &mut EndpointRecord| {
        for (k, v) in &changes {
            let _ = set_option(record, k, v);
        }
    });
    change(agent, endpoint, Change::Options(apply)).await
}

pub async fn patch_options(
    State(agent): State<App>,
    Path(id): Path<String>,
    Body(changes): Body<BTreeMap<String, String>>,
) -> Result<Json<BTreeMap<String, String>>, Failure> {
    let accepted = change_options(&agent, &id, changes).await?;
    Ok(Json(answer(&agent, &accepted).await?.options))
}

pub async fn patch_labels(
    State(agent): State<App>,
    Path(id): Path<String>,
    Body(request): Body<LabelsRequest>,
) -> Result<Json<EndpointModel>, Failure> {
    let add = user_labels(&request.add, "add")?;
    let accepted = change(&agent, reference(&id)?, Change::Labels { add, delete: request.delete }).await?;
    Ok(Json(answer(&agent, &accepted).await?))
}

pub async fn ports(State(agent): State<App>, Path(id): Path<String>) -> Result<Json<Vec<NamedPort>>, Failure> {
    Ok(Json(named_ports(&find(&agent, &id)?.record.ports)))
}

pub async fn put_ports(
    State(agent): State<App>,
    Path(id): Path<String>,
    Body(request): Body<Vec<NamedPort>>,
) -> Result<Json<Vec<NamedPort>>, Failure> {
    let names = port_names(&request)?;
    let apply = Box::new(move |record: &mut EndpointRecord| record.ports = names);
    let accepted = change(&agent, reference(&id)?, Change::Options(apply)).await?;
    rows_written(&agent, accepted.revision).await?;
    Ok(Json(named_ports(&accepted.record.ports)))
}

pub async fn regenerate(State(agent): State<App>, Path(id): Path<String>) -> Result<Json<EndpointModel>, Failure> {
    let spec = find(&agent, &id)?;
    let endpoint = EndpointRef::Id(spec.record.id);
    let revision = ask(&agent, |reply| Event::Regenerate(Some(endpoint), reply)).await?;
    let ipcache = agent.readers.ipcache.snapshot().revision;
    let accepted = Accepted { record: spec.record, revision, ipcache, existed: true };
    realised(&agent, &accepted).await?;
    Ok(Json(answer(&agent, &accepted).await?))
}
