// SPDX-License-Identifier: Apache-2.0
//! `/v1/policy`.

use super::endpoint::rows_written;
use super::preview::ranges;
use super::{App, Body, Failure, ask, persisted};
use crate::agent::Agent;
use crate::control::Event;
use crate::reconcile::caught_up;
use crate::state::RuleSet;
use axum::Json;
use axum::extract::{Query, State};
use pilus_api::types::*;
use pilus_model::label::Labels;
use pilus_model::policy::input::{self, Options};
use pilus_model::policy::{Rule, RuleRef, shadowed};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

fn labels(text: &str) -> Result<Labels, Failure> {
    Labels::parse(text.split(',').filter(|t| !t.is_empty())).map_err(|e| Failure::invalid("labels", e))
}

#[derive(Deserialize)]
pub struct Which {
    labels: Option<String>,
    all: Option<bool>,
}

fn current(agent: &Agent) -> RuleSet {
    agent.readers.rules.snapshot().rows.get(&()).cloned().unwrap_or_default()
}

/// Waits until the rules are on disk. If they cannot be, what is on disk is in force again.
async fn kept(agent: &Agent, revision: u64) -> Result<(), Failure> {
    let result = persisted(agent, |p| p.rules >= revision).await;
    if result.is_err() {
        let before = agent.persisted.borrow().rule_set.clone();
        ask(agent, |reply| Event::RestoreRules(before, reply)).await?;
    }
    result
}

pub async fn show(State(agent): State<App>, Query(which): Query<Which>) -> Result<Json<PolicyModel>, Failure> {
    let set = current(&agent);
    let asked = Arc::clone(&agent);
    let counts = tokio::task::spawn_blocking(move || asked.policies.counts_by_rule()).await;
    let counts = counts.map_err(Failure::failed)?.map_err(Failure::failed)?;
    let wanted = which.labels.as_deref().map(labels).transpose()?.unwrap_or_default();
    let rules: Vec<_> = set.rules.iter().filter(|r| r.labels.contains_all(&wanted)).collect();
    let count = |r: &&Arc<Rule>| counts.get(&RuleRef(Arc::clone(&r.origin))).copied().unwrap_or_default();
    let counters = rules.iter().map(count).map(|c| FlowCount { packets: c.packets, bytes: c.bytes }).collect();
    let rules = rules.into_iter().map(serde_json::to_value).collect::<Result<_, _>>().map_err(Failure::failed)?;
    Ok(Json(PolicyModel { revision: set.revision, rules, counters }))
}

/// The rules of all documents.
pub fn rules(body: &PolicyImport) -> Result<Vec<Rule>, Failure> {
    let texts = body.documents.iter().map(|d| (d.name.as_str(), d.text.as_str()));
    let rules = input::parse_all(texts, Options::default()).map_err(|errors| {
        let first = errors.first().map(|e| e.path.clone()).unwrap_or_default();
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Failure::invalid(&first, all.join("\n"))
    })?;
    if rules.is_empty() {
        return Err(Failure::invalid("documents", "there is no rule in what was given"));
    }
    Ok(rules)
}

pub async fn import(State(agent): State<App>, Body(body): Body<PolicyImport>) -> Result<Json<PolicyRevision>, Failure> {
    let rules = rules(&body)?;
    let warnings = shadowed(&rules, &ranges(&agent));
    let set = announce_and_import(&agent, rules).await?;
    kept(&agent, set.revision).await?;
    Ok(Json(PolicyRevision { revision: set.revision, rules: set.rules.len(), deleted: 0, warnings }))
}

/// How long an import waits until the prefixes of its rules are told apart: an endpoint that cannot follow holds nobody up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Imports rules when their addresses are told apart: what was allowed before and is after is allowed in between.
async fn announce_and_import(agent: &App, rules: Vec<Rule>) -> Result<RuleSet, Failure> {
    let agent = Arc::clone(agent);
    // A client that does not wait for the answer leaves nothing half done.
    let work = tokio::spawn(async move {
        let announced = ask(&agent, |reply| Event::Announce(rules.clone(), reply)).await?;
        if !announced.prefixes.is_empty() {
            let written = async {
                rows_written(&agent, announced.endpoints).await?;
                addresses_told_apart(&agent).await;
                Ok::<_, Failure>(())
            };
            if !matches!(tokio::time::timeout(PATIENCE, written).await, Ok(Ok(()))) {
                tracing::warn!("the kernel does not tell the addresses of new rules apart yet; they come nevertheless");
            }
        }
        let set = ask(&agent, |reply| Event::Import(rules, reply)).await;
        ask(&agent, |reply| Event::Unannounce(announced.prefixes, reply)).await?;
        Ok(set?)
    });
    work.await.map_err(Failure::failed)?
}

pub async fn delete(State(agent): State<App>, Query(which): Query<Which>) -> Result<Json<PolicyRevision>, Failure> {
    let chosen = match (&which.labels, which.all.unwrap_or(false)) {
        (Some(_), true) => return Err(Failure::invalid("all", "takes either labels or all=true")),
        (Some(text), false) => Some(labels(text)?),
        (None, true) => None,
        (None, false) => return Err(Failure::invalid("labels", "say which rules: labels=KEY=VALUE,… or all=true")),
    };
    let (deleted, set) = ask(&agent, |reply| Event::DeletePolicy(chosen, reply)).await?;
    kept(&agent, set.revision).await?;
    Ok(Json(PolicyRevision { revision: set.revision, rules: set.rules.len(), deleted, warnings: Vec::new() }))
}

#[derive(Deserialize)]
pub struct WaitFor {
    revision: u64,
    /// Seconds.
    timeout: Option<u64>,
}

/// Endpoints that do not enforce the revision yet: all, as long as it is not worked out what it says.
fn waiting(agent: &Agent, revision: u64) -> Vec<String> {
    let settled = agent.settled();
    let status = agent.endpoint_status.borrow().clone();
    let endpoints = agent.readers.endpoints.snapshot().rows;
    let behind = |id| settled.rules < revision || !status.get(id).is_some_and(|s| s.done(settled.endpoints));
    endpoints.iter().filter(|(id, _)| behind(id)).map(|(id, s)| format!("{id} ({})", s.record.name)).collect()
}

/// Waits until the kernel has every address and prefix that is known now, and no other.
pub async fn addresses_told_apart(agent: &Agent) {
    caught_up(agent.readers.ipcache.clone(), agent.ipcache_status.clone()).await;
}

pub async fn wait(State(agent): State<App>, Query(want): Query<WaitFor>) -> Result<Json<PolicyWait>, Failure> {
    let known = current(&agent).revision;
    if want.revision > known {
        return Err(Failure::invalid("revision", format!("there is no revision {} yet; the newest is {known}", want.revision)));
    }
    let (mut settled, mut statuses) = (agent.readers.settled.clone(), agent.endpoint_status.clone());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(want.timeout.unwrap_or(60).min(3600));
    loop {
        settled.take();
        statuses.mark_unchanged();
        let behind = waiting(&agent, want.revision);
        if behind.is_empty() && agent.settled().rules >= want.revision {
            // Prefixes are told apart when every policy knows them.
            let realised = tokio::time::timeout_at(deadline, addresses_told_apart(&agent)).await.is_ok();
            let waiting = if realised { behind } else { vec!["addresses".to_owned()] };
            return Ok(Json(PolicyWait { revision: want.revision, realised, waiting }));
        }
        let changed = async {
            tokio::select! {
                more = settled.changed() => more,
                more = statuses.changed() => more.is_ok(),
            }
        };
        if !matches!(tokio::time::timeout_at(deadline, changed).await, Ok(true)) {
            return Ok(Json(PolicyWait { revision: want.revision, realised: false, waiting: waiting(&agent, want.revision) }));
        }
    }
}
