// SPDX-License-Identifier: Apache-2.0
//! `/v1/flows`: events as newline-delimited JSON, for as long as the client listens.

use super::{App, Failure};
use crate::agent::Agent;
use crate::control::find_endpoint;
use crate::monitor::{Filter, Subscription};
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::response::Response;
use pilus_api::types::FlowEvent;
use pilus_model::abi::EventKind;
use pilus_model::endpoint::EndpointRef;
use serde::Deserialize;

/// Types that are no kind of the kernel's events.
const OURS: [&str; 2] = ["agent", "l7"];

/// Lists are comma separated.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    #[serde(rename = "type")]
    types: Option<String>,
    from: Option<String>,
    to: Option<String>,
    related: Option<String>,
}

/// Slots of endpoints: each is looked for once, when the client subscribes.
fn slots(agent: &Agent, field: &str, list: Option<&str>) -> Result<Vec<u16>, Failure> {
    let rows = agent.readers.endpoints.snapshot().rows;
    let slot = |text: &str| {
        let endpoint: EndpointRef = text.parse().map_err(|e| Failure::invalid(field, e))?;
        let found = find_endpoint(&rows, &endpoint).ok_or_else(|| Failure::not_found(format!("no endpoint {endpoint}")))?;
        Ok(found.record.id.0)
    };
    list.into_iter().flat_map(|l| l.split(',')).map(slot).collect()
}

fn kinds(list: Option<&str>) -> Result<(u32, bool), Failure> {
    let Some(list) = list else { return Ok((u32::MAX, true)) };
    let (mut kinds, mut agent) = (0, false);
    for name in list.split(',') {
        match EventKind::ALL.iter().find(|k| k.text() == name) {
            Some(kind) => kinds |= 1 << kind.raw(),
            None if OURS.contains(&name) => agent |= name == "agent",
            None => {
                let known: Vec<&str> = EventKind::ALL.iter().map(|k| k.text()).chain(OURS).collect();
                return Err(Failure::invalid("type", format!("`{name}` is not one of {}", known.join(", "))));
            }
        }
    }
    Ok((kinds, agent))
}

fn lines(events: &[FlowEvent]) -> Bytes {
    let mut bytes = Vec::with_capacity(events.len() * 1024);
    for event in events {
        // Strings and numbers only: it cannot fail.
        let _ = serde_json::to_writer(&mut bytes, event);
        bytes.push(b'\n');
    }
    bytes.into()
}

pub async fn follow(State(agent): State<App>, Query(wanted): Query<Wanted>) -> Result<Response, Failure> {
    let (kinds, words) = kinds(wanted.types.as_deref())?;
    let filter = Filter {
        kinds,
        agent: words,
        from: slots(&agent, "from", wanted.from.as_deref())?,
        to: slots(&agent, "to", wanted.to.as_deref())?,
        related: slots(&agent, "related", wanted.related.as_deref())?,
    };
    let events = futures::stream::unfold(agent.monitor.listen(filter), |mut subscription: Subscription| async move {
        let events = subscription.next().await;
        Some((Ok::<_, std::convert::Infallible>(lines(&events)), subscription))
    });
    Response::builder().header("content-type", "application/x-ndjson").body(Body::from_stream(events)).map_err(Failure::failed)
}
