// SPDX-License-Identifier: Apache-2.0
//! `/v1/flows`: events as newline-delimited JSON, for as long as the client listens.

use super::{App, Failure};
use crate::agent::Agent;
use crate::control::find_endpoint;
use crate::monitor::agent_event;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::response::Response;
use futures::StreamExt;
use pilus_api::types::{FlowEvent, PeerModel};
use pilus_model::endpoint::EndpointRef;
use serde::Deserialize;
use std::sync::Arc;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

const TYPES: [&str; 6] = ["drop", "trace", "debug", "capture", "agent", "policy-verdict"];

#[derive(Deserialize)]
pub struct Filter {
    /// Comma separated.
    #[serde(rename = "type")]
    types: Option<String>,
    from: Option<String>,
    to: Option<String>,
    related: Option<String>,
}

fn is(peer: &Option<PeerModel>, wanted: &str) -> bool {
    peer.as_ref().is_some_and(|p| wanted.split(',').any(|id| id.parse() == Ok(p.endpoint)))
}

impl Filter {
    /// Replaces references by ids: an endpoint is looked for once, when the client subscribes.
    fn resolve(&mut self, agent: &Agent) -> Result<(), Failure> {
        let rows = agent.readers.endpoints.snapshot().rows;
        for field in [&mut self.from, &mut self.to, &mut self.related].into_iter().flatten() {
            let ids: Result<Vec<String>, Failure> = field
                .split(',')
                .map(|text| {
                    let endpoint: EndpointRef = text.parse().map_err(|e| Failure::invalid("endpoint", e))?;
                    let found = find_endpoint(&rows, &endpoint).ok_or_else(|| Failure::not_found(format!("no endpoint {endpoint}")))?;
                    Ok(found.record.id.to_string())
                })
                .collect();
            *field = ids?.join(",");
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        for t in self.types.iter().flat_map(|t| t.split(',')) {
            if !TYPES.contains(&t) {
                return Err(Failure::invalid("type", format!("`{t}` is not one of {}", TYPES.join(", "))));
            }
        }
        Ok(())
    }

    fn passes(&self, e: &FlowEvent) -> bool {
        // What was lost concerns every filter.
        if e.kind == "lost" {
            return true;
        }
        if self.types.as_ref().is_some_and(|t| !t.split(',').any(|t| t == e.kind)) {
            return false;
        }
        self.from.as_ref().is_none_or(|w| is(&e.source, w))
            && self.to.as_ref().is_none_or(|w| is(&e.destination, w))
            && self.related.as_ref().is_none_or(|w| is(&e.source, w) || is(&e.destination, w))
    }
}

fn line(event: &FlowEvent) -> Bytes {
    let mut bytes = serde_json::to_vec(event).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

pub async fn follow(State(agent): State<App>, Query(mut filter): Query<Filter>) -> Result<Response, Failure> {
    filter.check()?;
    filter.resolve(&agent)?;
    let filter = Arc::new(filter);
    let events = BroadcastStream::new(agent.monitor.listen()).filter_map(move |event| {
        let filter = Arc::clone(&filter);
        async move {
            match event {
                Ok(event) => filter.passes(&event).then(|| Ok::<_, std::convert::Infallible>(line(&event))),
                Err(BroadcastStreamRecvError::Lagged(n)) => Some(Ok(line(&agent_event("lost", "the listener is too slow", n)))),
            }
        }
    });
    Response::builder().header("content-type", "application/x-ndjson").body(Body::from_stream(events)).map_err(Failure::failed)
}
