// SPDX-License-Identifier: Apache-2.0
//! `/v1/template`: what runs, what was edited, check and apply.

use super::{App, Failure, ask};
use crate::agent::Agent;
use crate::control::Event;
use crate::datapath::rows::endpoint_row;
use crate::reconcile::Status;
use axum::Json;
use axum::extract::State;
use pilus_api::types::{TemplateResult, TemplateStatus};
use pilus_codegen::{Build, NodeConfig, Severity, Templates, shape_key, syntax_check};
use std::collections::BTreeMap;
use std::time::Duration;

/// After a swap no processor runs the old program for longer than this.
const GRACE: Duration = Duration::from_secs(5);

pub async fn status(State(agent): State<App>) -> Json<TemplateStatus> {
    let applied = agent.templates.current().tree_hash().to_owned();
    let edited = match agent.templates.edited() {
        Ok(t) => t.tree_hash().to_owned(),
        Err(e) => e.to_string(),
    };
    let mut shapes: BTreeMap<String, usize> = BTreeMap::new();
    for facts in agent.facts.snapshot().rows.values() {
        *shapes.entry(facts.shape_key.clone()).or_default() += 1;
    }
    let directory = agent.templates.directory().display().to_string();
    Json(TemplateStatus { directory, differs: applied != edited, applied, edited, shapes })
}

fn result(ok: bool, hash: &str, swapped: usize, diagnostics: Vec<String>) -> TemplateResult {
    TemplateResult { ok, hash: hash.to_owned(), swapped, diagnostics }
}

/// Syntax of all programs, as far as the front end can tell.
async fn syntax(agent: &Agent, templates: &Templates) -> Vec<String> {
    let clang = agent.programs.cache().clang().clone();
    let node = NodeConfig { features: agent.endpoints.features.clone() };
    let rendered = [
        (templates.render_container(&agent.sample()), Build::Shared),
        (templates.render_container(&agent.sample()), Build::Own),
        (templates.render_netdev(&node), Build::Shared),
        (templates.render_slow(&node), Build::Shared),
    ];
    let mut lines = Vec::new();
    for (rendered, build) in rendered {
        match rendered {
            Ok(r) => match syntax_check(&clang, templates, &r, build).await {
                Ok(found) => {
                    lines.extend(found.iter().filter(|d| d.severity != Severity::Note).map(ToString::to_string));
                }
                Err(e) => lines.push(e.to_string()),
            },
            Err(e) => lines.push(e.to_string()),
        }
    }
    lines.sort();
    lines.dedup();
    lines
}

/// Whether both programs of the tree are in the kernel.
fn loaded(agent: &Agent, templates: &Templates) -> bool {
    let node = NodeConfig { features: agent.endpoints.features.clone() };
    [templates.render_container(&agent.sample()), templates.render_netdev(&node)]
        .iter()
        .all(|r| r.as_ref().is_ok_and(|r| agent.programs.is_loaded(shape_key(templates, r, Build::Shared))))
}

/// Compiles and loads (so that the verifier has its say) everything that the tree would put in place; attaches nothing.
async fn load_all(agent: &Agent, templates: &Templates) -> Result<(), Vec<String>> {
    let config = NodeConfig { features: agent.endpoints.features.clone() };
    let host = templates.render_netdev(&config).map_err(|e| vec![e.to_string()])?;
    agent.programs.get(templates, &host, Build::Shared).await.map_err(|e| e.diagnostics())?;
    let shared = templates.render_container(&agent.sample()).map_err(|e| vec![e.to_string()])?;
    agent.programs.get(templates, &shared, Build::Shared).await.map_err(|e| e.diagnostics())?;
    for spec in agent.readers.endpoints.snapshot().rows.values() {
        let rendered = templates.render_container(&agent.endpoints.config(&spec.record)).map_err(|e| vec![e.to_string()])?;
        endpoint_row(spec, &rendered).map_err(|e| vec![e.to_string()])?;
        agent.programs.get(templates, &rendered, spec.record.build()).await.map_err(|e| e.diagnostics())?;
    }
    Ok(())
}

async fn examine(agent: &Agent) -> Result<Templates, TemplateResult> {
    let templates = agent.templates.edited().map_err(|e| result(false, "", 0, vec![e.to_string()]))?;
    let hash = templates.tree_hash().to_owned();
    if hash == agent.templates.current().tree_hash() {
        return Ok(templates);
    }
    // What is loaded already was accepted before; the front end's quick answer is for what is new.
    if !loaded(agent, &templates) {
        let diagnostics = syntax(agent, &templates).await;
        if !diagnostics.is_empty() {
            return Err(result(false, &hash, 0, diagnostics));
        }
    }
    load_all(agent, &templates).await.map_err(|d| result(false, &hash, 0, d))?;
    Ok(templates)
}

pub async fn check(State(agent): State<App>) -> Json<TemplateResult> {
    let _one = agent.template_lock.lock().await;
    let answer = match examine(&agent).await {
        Ok(templates) => result(true, templates.tree_hash(), 0, Vec::new()),
        Err(answer) => answer,
    };
    clean(&agent).await;
    Json(answer)
}

/// Every endpoint runs the edited tree afterwards, or none does.
pub async fn apply(State(agent): State<App>) -> Result<Json<TemplateResult>, Failure> {
    let _one = agent.template_lock.lock().await;
    let templates = match examine(&agent).await {
        Ok(templates) => templates,
        Err(answer) => return Ok(Json(answer)),
    };
    let hash = templates.tree_hash().to_owned();
    agent.templates.apply(&templates).map_err(Failure::failed)?;
    let host = agent.host_shape(&templates).await.map_err(Failure::failed)?;
    agent.set_up_host(&agent.endpoints.fs, &host).await.map_err(Failure::failed)?;
    let revision = ask(&agent, |reply| Event::Tree(hash.as_str().into(), reply)).await?;
    let mut statuses = agent.endpoint_status.clone();
    let rows = agent.readers.endpoints.snapshot().rows;
    let settled = statuses.wait_for(|s| {
        rows.keys().all(|id| match s.get(id) {
            Some(status) => status.tried(revision),
            None => !agent.readers.endpoints.snapshot().rows.contains_key(id),
        })
    });
    let seen = tokio::time::timeout(Duration::from_secs(60), settled)
        .await
        .map_err(|_| Failure::timeout("not every endpoint runs the new tree after 60 s; the agent goes on trying"))?
        .map_err(|_| Failure::failed("the agent is stopping"))?
        .clone();
    let failed: Vec<String> = seen
        .iter()
        .filter_map(|(id, s)| match s {
            Status::Failed(_, why) => Some(format!("endpoint {id}: {why}")),
            Status::Done(_) | Status::Begun => None,
        })
        .collect();
    agent.monitor.announce(&format!("templates {} applied to {} endpoints", &hash[..12], rows.len() - failed.len()));
    let later = std::sync::Arc::clone(&agent);
    tokio::spawn(async move {
        tokio::time::sleep(GRACE).await;
        let _one = later.template_lock.lock().await;
        clean(&later).await;
    });
    Ok(Json(result(failed.is_empty(), &hash, rows.len() - failed.len(), failed)))
}

/// Unpins shapes that nothing runs.
async fn clean(agent: &Agent) {
    if let Ok(host) = agent.host_shape(&agent.templates.current()).await {
        let mut used = agent.shapes_in_use(&host);
        // The shape of the next container.
        if let Ok(rendered) = agent.templates.current().render_container(&agent.sample()) {
            used.insert(shape_key(&agent.templates.current(), &rendered, Build::Shared).short());
        }
        // A program that waits for its endpoint's turn is in use too.
        let pending = agent.readers.status.snapshot().rows.values().any(|s| s.state != pilus_model::endpoint::EndpointState::Ready);
        if !pending {
            for name in agent.programs.retain(&used) {
                tracing::debug!(shape = name, "unpinned");
            }
        }
    }
}
