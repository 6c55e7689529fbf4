// SPDX-License-Identifier: Apache-2.0
//! HTTP/1.1 with JSON over the unix socket. Reads tables, sends events; never touches the kernel.

mod endpoint;
mod flows;
mod flowtable;
mod maps;
mod node;
mod policy;
mod preview;
mod tables;
mod template;

pub use preview::validate_alone;

use crate::agent::Agent;
use crate::control::{ControlError, Event, Reply};
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use pilus_api::types::{ApiError, LONGEST_BODY};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

pub type App = Arc<Agent>;

/// An answer that is an error: status and body.
#[derive(Debug)]
pub struct Failure(StatusCode, ApiError);

impl Failure {
    fn new(status: StatusCode, code: &str, message: impl std::fmt::Display) -> Self {
        Self(status, ApiError { code: code.into(), message: message.to_string(), field: None })
    }
    pub fn invalid(field: &str, message: impl std::fmt::Display) -> Self {
        Self(StatusCode::BAD_REQUEST, ApiError { code: "invalid".into(), message: message.to_string(), field: Some(field.into()) })
    }
    pub fn not_found(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", message)
    }
    pub fn failed(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", message)
    }
    pub fn timeout(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

impl From<ControlError> for Failure {
    fn from(e: ControlError) -> Self {
        match e {
            ControlError::NotFound(_) => Self::not_found(e),
            ControlError::NameTaken { .. } | ControlError::InterfaceTaken { .. } => Self::new(StatusCode::CONFLICT, "conflict", e),
            ControlError::Ipam(_) => Self::new(StatusCode::CONFLICT, "conflict", e),
            ControlError::Labels(_) => Self::invalid("labels", e),
            ControlError::TooLarge(_) => Self::invalid("toPorts", e),
            ControlError::Refused(_) => Self::new(StatusCode::CONFLICT, "conflict", e),
            ControlError::AddressTaken { .. } => {
                Self(StatusCode::CONFLICT, ApiError { code: "conflict".into(), message: e.to_string(), field: Some("addresses".into()) })
            }
            ControlError::Leaving(e) => (*e).into(),
            ControlError::Identity(_) | ControlError::Stopping => Self::failed(e),
        }
    }
}

/// A JSON body whose errors are our errors.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;
    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::MissingJsonContentType(_)) => {
                Err(Failure::invalid("body", "the body must be JSON (content-type: application/json)"))
            }
            Err(e) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(Failure::invalid("body", format!("the body is longer than {} MiB; send it in parts", LONGEST_BODY >> 20)))
            }
            Err(e) => Err(Failure::invalid("body", e.body_text())),
        }
    }
}

/// Sends an event and waits for the control loop's answer.
pub async fn ask<T>(agent: &Agent, event: impl FnOnce(Reply<T>) -> Event) -> Result<T, ControlError> {
    let (reply, answer) = oneshot::channel();
    agent.events.send(event(reply)).await.map_err(|_| ControlError::Stopping)?;
    answer.await.map_err(|_| ControlError::Stopping)?
}

/// Waits until what was changed is on disk.
pub async fn persisted(agent: &Agent, ready: impl Fn(&crate::persist::Persisted) -> bool) -> Result<(), Failure> {
    let mut p = agent.persisted.clone();
    let seen = p.wait_for(|p| p.failing || ready(p)).await.map_err(|_| Failure::failed("the agent is stopping"))?;
    if seen.failing && !ready(&seen) {
        return Err(Failure::failed("the state directory cannot be written; the change is not safe (see the agent's log)"));
    }
    Ok(())
}

pub fn router(agent: App) -> Router {
    Router::new()
        .route("/v1/healthz", get(node::healthz))
        .route("/v1/config", get(node::config).patch(node::patch_config))
        .route("/v1/endpoint", get(endpoint::list))
        .route("/v1/endpoint/{id}", get(endpoint::show).put(endpoint::add).patch(endpoint::patch_options).delete(endpoint::delete))
        .route("/v1/endpoint/{id}/config", get(endpoint::config).patch(endpoint::patch_options))
        .route("/v1/endpoint/{id}/labels", get(endpoint::labels).patch(endpoint::patch_labels))
        .route("/v1/endpoint/{id}/ports", get(endpoint::ports).put(endpoint::put_ports))
        .route("/v1/endpoint/{id}/log", get(endpoint::log))
        .route("/v1/endpoint/{id}/healthz", get(endpoint::health))
        .route("/v1/endpoint/{id}/header", get(endpoint::header))
        .route("/v1/endpoint/{id}/regenerate", post(endpoint::regenerate))
        .route("/v1/identity", get(node::identities))
        .route("/v1/identity/{id}", get(node::identity))
        .route("/v1/ipam", post(node::ipam_any))
        .route("/v1/ipam/{ip}", post(node::ipam_exact).delete(node::ipam_release))
        .route("/v1/policy", get(policy::show).put(policy::import).delete(policy::delete))
        .route("/v1/policy/wait", get(policy::wait))
        .route("/v1/policy/validate", post(preview::validate))
        .route("/v1/policy/explain", post(preview::explain))
        .route("/v1/policy/diff", post(preview::diff))
        .route("/v1/service", get(tables::services))
        .route("/v1/service/{id}", get(tables::show_service).put(tables::put_service).delete(tables::delete_service))
        .route("/v1/node", get(tables::nodes))
        .route("/v1/node/{name}", get(tables::show_node).put(tables::put_node).delete(tables::delete_node))
        .route("/v1/map", get(maps::list))
        .route("/v1/map/{name}", get(maps::show))
        .route("/v1/flows", get(flows::follow))
        .route("/v1/flowtable", get(flowtable::list).delete(flowtable::flush))
        .route("/v1/template", get(template::status))
        .route("/v1/template/check", post(template::check))
        .route("/v1/template/apply", post(template::apply))
        .route("/v1/metrics", get(node::metrics))
        .route("/v1/debuginfo", get(node::debuginfo))
        .route("/v1/cleanup", post(node::cleanup))
        .route("/v1/openapi.json", get(|| async { Json(pilus_api::openapi::document()) }))
        .fallback(|uri: axum::http::Uri| async move { Failure::not_found(format!("no resource {uri}; see /v1/openapi.json")) })
        .method_not_allowed_fallback(|method: axum::http::Method, uri: axum::http::Uri| async move {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "invalid", format!("{uri} does not take {method}; see /v1/openapi.json"))
        })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&agent), timed))
        .layer(axum::extract::DefaultBodyLimit::max(LONGEST_BODY))
        .with_state(agent)
}

/// Counts answers by route and status.
async fn timed(State(agent): State<App>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    // Clients can make up methods, not routes.
    let method = match request.method().as_str() {
        known @ ("GET" | "PUT" | "PATCH" | "POST" | "DELETE") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let answer = next.run(request).await;
    agent.api_stats.answered(&method, &route, answer.status().as_u16(), begun.elapsed());
    answer
}

/// Serves until the agent stops. The socket is there, with its mode and group, when the first request can be answered.
pub async fn serve(agent: &App) -> Result<(), std::io::Error> {
    let path = &agent.options.socket;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // A socket left by a killed agent. Our locks say that nobody serves it.
    let next = path.with_extension("new");
    let _ = std::fs::remove_file(&next);
    let listener = UnixListener::bind(&next)?;
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o660))?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name("pilus") {
        nix::unistd::chown(&next, None, Some(group.gid))?;
    }
    std::fs::rename(&next, path)?;
    tracing::info!(socket = %path.display(), "ready");
    axum::serve(listener, router(Arc::clone(agent))).await
}
