// SPDX-License-Identifier: Apache-2.0
//! Health, configuration, identities, addresses, clean-up.

use super::endpoint::ask_for_place;
use super::{App, Body, Failure, ask};
use crate::agent::Agent;
use crate::cleanup;
use crate::control::Event;
use crate::ipam::Wish;
use crate::options::EnablePolicy;
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use pilus_api::types::*;
use pilus_model::endpoint::{EndpointRef, EndpointState};
use pilus_model::identity::NumericIdentity;
use pilus_model::policy::EnforcementMode;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

pub async fn healthz(State(agent): State<App>) -> Json<StatusModel> {
    let mut endpoints: BTreeMap<String, usize> = BTreeMap::new();
    let mut warnings = Vec::new();
    let status = agent.readers.status.snapshot().rows;
    for (id, s) in status.iter() {
        *endpoints.entry(s.state.to_string()).or_default() += 1;
        if s.state == EndpointState::NotReady {
            warnings.push(format!("endpoint {id}: {}", s.problem.as_deref().unwrap_or("not ready")));
        }
    }
    if agent.persisted.borrow().failing {
        warnings.push(format!("state directory {} cannot be written", agent.options.state_dir.display()));
    }
    let clang = agent.programs.cache().clang();
    let stats = agent.programs.cache().stats();
    let starting = status.values().any(|s| matches!(s.state, EndpointState::Restoring | EndpointState::Regenerating));
    let router = &agent.host;
    Json(StatusModel {
        state: if !warnings.is_empty() {
            "degraded"
        } else if starting {
            "starting"
        } else {
            "ok"
        }
        .into(),
        version: env!("CARGO_PKG_VERSION").into(),
        node_name: agent.options.node_name.clone(),
        uptime_seconds: agent.started.elapsed().as_secs(),
        kernel: format!("{}.{}", agent.kernel.0, agent.kernel.1),
        attach_mode: agent.options.attach_mode.to_string(),
        ipv6_range: agent.v6_range.to_string(),
        ipv4_range: if agent.options.enable_ipv4 { agent.v4_range.to_string() } else { String::new() },
        router_ipv6: router.router_v6.to_string(),
        router_ipv4: if agent.options.enable_ipv4 { router.router_v4.to_string() } else { String::new() },
        clang: match &clang.path {
            Some(path) => clang.version().await.unwrap_or_else(|e| format!("{}: {e}", path.display())),
            None => "not installed (only the default shapes can run)".into(),
        },
        template_hash: agent.templates.current().tree_hash().to_owned(),
        policy_revision: agent.readers.rules.snapshot().rows.get(&()).map_or(0, |r| r.revision),
        endpoints,
        identities: agent.readers.identities.snapshot().rows.len(),
        objects: ObjectCounts { builds: stats.builds, embedded: stats.embedded_hits, disk: stats.disk_hits, shared: stats.shared_waits },
        monitor: agent.monitor.counts(),
        warnings,
    })
}

const ENFORCEMENT: &str = "PolicyEnforcement";
const AUDIT: &str = "policy-audit-mode";

fn config_model(agent: &Agent) -> ConfigModel {
    let o = &agent.options;
    let (mode, audit) = *agent.enforcement.borrow();
    let mode = match mode {
        EnforcementMode::Default => "default",
        EnforcementMode::Always => "always",
        EnforcementMode::Never => "never",
    };
    let numbers: Vec<_> = agent.flows.timeouts().list().into_iter().chain(agent.reporting.settings().list()).collect();
    let fixed = [
        (ENFORCEMENT, mode.to_owned()),
        (AUDIT, audit.to_string()),
        ("node-name", o.node_name.clone()),
        ("state-dir", o.state_dir.display().to_string()),
        ("run-dir", o.run_dir.display().to_string()),
        ("socket", o.socket.display().to_string()),
        ("bpf-root", o.bpf_root.display().to_string()),
        ("template-dir", agent.templates.directory().display().to_string()),
        ("ipv6-range", agent.v6_range.to_string()),
        ("ipv4-range", agent.v4_range.to_string()),
        ("enable-ipv4", o.enable_ipv4.to_string()),
        ("host-routing", o.host_routing.to_string()),
        ("device", o.devices.join(",")),
        ("masquerade", o.masquerade.to_string()),
        ("masquerade-exclude", o.masquerade_exclude.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
        ("nat46-range", o.nat46_range.map(|r| r.to_string()).unwrap_or_default()),
        ("mtu", agent.host.mtu.to_string()),
        ("datapath-mode", o.datapath_mode.to_string()),
        ("endpoint-build", o.endpoint_build.to_string()),
        ("attach-mode", o.attach_mode.to_string()),
        ("allow-localhost", o.allow_localhost.to_string()),
        ("flow-table-size", agent.tables.flow4.max_entries().to_string()),
        ("metrics-addr", o.metrics_addr.map(|a| a.to_string()).unwrap_or_default()),
    ];
    let changeable = [ENFORCEMENT, AUDIT].into_iter().chain(numbers.iter().map(|(key, _)| *key)).map(str::to_owned).collect();
    let numbers = numbers.into_iter().map(|(key, number)| (key, number.to_string()));
    ConfigModel { options: fixed.into_iter().chain(numbers).map(|(k, v)| (k.to_owned(), v)).collect(), changeable }
}

pub async fn config(State(agent): State<App>) -> Json<ConfigModel> {
    Json(config_model(&agent))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigChange {
    options: BTreeMap<String, String>,
}

pub async fn patch_config(State(agent): State<App>, Body(change): Body<ConfigChange>) -> Result<Json<ConfigModel>, Failure> {
    let known = config_model(&agent);
    let before = *agent.enforcement.borrow();
    let (mut mode, mut audit) = before;
    let old = agent.flows.timeouts();
    let mut timeouts = old;
    let was = agent.reporting.settings();
    let mut reporting = was;
    // All are checked before one is changed.
    for (key, value) in &change.options {
        if let Some(set) = timeouts.set(key, value).or_else(|| reporting.set(key, value)) {
            set.map_err(|e| Failure::invalid(key, format!("{key} {e}")))?;
            continue;
        }
        if key == AUDIT {
            let bad = |_| Failure::invalid(key, format!("{key} takes true or false, not `{value}`"));
            audit = value.parse().map_err(bad)?;
            continue;
        }
        if key != ENFORCEMENT {
            let why = if known.options.contains_key(key) { "can only be set at start" } else { "is no option" };
            return Err(Failure::invalid(key, format!("`{key}` {why}; changeable: {}", known.changeable.join(", "))));
        }
        let wanted: EnablePolicy = value.parse().map_err(|e| Failure::invalid(key, e))?;
        mode = crate::agent::enforcement(wanted);
    }
    if timeouts != old {
        agent.flows.set_timeouts(timeouts).map_err(Failure::failed)?;
    }
    if reporting != was {
        agent.reporting.set(reporting).map_err(Failure::failed)?;
    }
    if (mode, audit) != before {
        let revision = ask(&agent, |reply| Event::Enforcement(mode, audit, reply)).await?;
        agent.enforcement.send_replace((mode, audit));
        super::endpoint::rows_written(&agent, revision).await?;
    }
    Ok(Json(config_model(&agent)))
}

pub async fn identities(State(agent): State<App>) -> Json<Vec<IdentityModel>> {
    let rows = agent.readers.identities.snapshot().rows;
    let model = |(id, labels): (&NumericIdentity, &std::sync::Arc<pilus_model::label::Labels>)| IdentityModel {
        id: id.get(),
        labels: labels.iter().map(ToString::to_string).collect(),
    };
    Json(rows.iter().map(model).collect())
}

pub async fn identity(State(agent): State<App>, Path(id): Path<String>) -> Result<Json<IdentityModel>, Failure> {
    let number: u32 = id.parse().map_err(|_| Failure::invalid("id", format!("`{id}` is no identity number")))?;
    let rows = agent.readers.identities.snapshot().rows;
    let labels = rows.get(&NumericIdentity(number)).ok_or_else(|| Failure::not_found(format!("no identity {number}")))?;
    Ok(Json(IdentityModel { id: number, labels: labels.iter().map(ToString::to_string).collect() }))
}

#[derive(Deserialize)]
pub struct Families {
    /// `auto` or `none`.
    v6: Option<String>,
    v4: Option<String>,
}

pub async fn ipam_any(State(agent): State<App>, Query(f): Query<Families>) -> Result<(StatusCode, Json<IpamModel>), Failure> {
    let v4 = match f.v4.as_deref() {
        None | Some("auto" | "true") => Wish::Auto,
        Some("none" | "false") => Wish::None,
        Some(other) => return Err(Failure::invalid("v4", format!("`{other}`: takes auto or none"))),
    };
    if !matches!(f.v6.as_deref(), None | Some("auto" | "true")) {
        return Err(Failure::invalid("v6", "takes auto: every container has an IPv6 address"));
    }
    let (ipv6, ipv4) = ask_for_place(&agent, |reply| Event::ReserveAddress(None, v4, reply)).await?;
    Ok((StatusCode::CREATED, Json(IpamModel { ipv6, ipv4 })))
}

fn address(text: &str) -> Result<IpAddr, Failure> {
    text.parse().map_err(|_| Failure::invalid("ip", format!("`{text}` is no IP address")))
}

pub async fn ipam_exact(State(agent): State<App>, Path(ip): Path<String>) -> Result<(StatusCode, Json<IpamModel>), Failure> {
    let ip = address(&ip)?;
    let model = ask_for_place(&agent, |reply| Event::ReserveExact(ip, reply)).await?;
    Ok((StatusCode::CREATED, Json(IpamModel { ipv6: model.0, ipv4: model.1 })))
}

pub async fn ipam_release(State(agent): State<App>, Path(ip): Path<String>) -> Result<StatusCode, Failure> {
    let ip = address(&ip)?;
    ask(&agent, |reply| Event::ReleaseAddress(ip, reply)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn debuginfo(State(agent): State<App>) -> Json<Lines> {
    let Json(status) = healthz(State(std::sync::Arc::clone(&agent))).await;
    let mut lines: Vec<String> = serde_json::to_string_pretty(&status).unwrap_or_default().lines().map(str::to_owned).collect();
    for spec in agent.readers.endpoints.snapshot().rows.values() {
        lines.push(serde_json::to_string(&super::endpoint::model(&agent, spec)).unwrap_or_default());
    }
    let policies = agent.readers.policies.snapshot().rows;
    lines.extend(policies.iter().map(|(id, p)| format!("policy {id} {}: {:?}", p.direction.as_str(), p.policy)));
    Json(Lines { lines })
}

pub async fn metrics(State(agent): State<App>) -> Result<Json<Vec<MetricModel>>, Failure> {
    let listed = tokio::task::spawn_blocking(move || crate::metrics::list(&agent)).await;
    Ok(Json(listed.map_err(Failure::failed)?.map_err(Failure::failed)?))
}

#[derive(Deserialize)]
pub struct Confirm {
    confirm: Option<bool>,
}

/// Disconnects every container, removes what is in the kernel, and stops the agent.
pub async fn cleanup(State(agent): State<App>, Query(c): Query<Confirm>) -> Result<Json<Lines>, Failure> {
    if c.confirm != Some(true) {
        return Err(Failure::invalid("confirm", "disconnects every container of this node; say confirm=true"));
    }
    // What is removed does not come back because something else changed.
    drop(agent.devices.lock().await.take());
    let ids: Vec<_> = agent.readers.endpoints.snapshot().rows.keys().copied().collect();
    let mut lines = Vec::new();
    for id in &ids {
        ask(&agent, |reply| Event::Delete(EndpointRef::Id(*id), reply)).await?;
        lines.push(format!("disconnected endpoint {id}"));
    }
    let mut statuses = agent.endpoint_status.clone();
    let gone = statuses.wait_for(|s| ids.iter().all(|id| !s.contains_key(id)));
    let _ = tokio::time::timeout(std::time::Duration::from_secs(30), gone).await;
    let (done, failed) = cleanup::all(&agent.options).await;
    lines.extend(done);
    let stop = agent.stop.clone();
    tokio::spawn(async move {
        // The answer goes out first.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        stop.send_replace(true);
    });
    if failed.is_empty() { Ok(Json(Lines { lines })) } else { Err(Failure::failed(failed.join("; "))) }
}
