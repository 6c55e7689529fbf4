// SPDX-License-Identifier: Apache-2.0
//! `/v1/flowtable`: connections as people read them.

use super::maps::{ip4, ip6, names, proto};
use super::{App, Failure};
use crate::agent::Agent;
use crate::control::find_endpoint;
use crate::datapath::gc;
use crate::state::EndpointSpec;
use axum::Json;
use axum::extract::{Query, State};
use pilus_api::types::{FlowCount, FlowEnd, FlowEntry, FlushResult};
use pilus_model::abi::*;
use pilus_model::endpoint::{EndpointId, EndpointRef};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Of {
    endpoint: Option<String>,
}

impl Of {
    fn slot(&self, agent: &Agent) -> Result<Option<u16>, Failure> {
        let Some(text) = &self.endpoint else { return Ok(None) };
        let endpoint: EndpointRef = text.parse().map_err(|e| Failure::invalid("endpoint", e))?;
        let rows = agent.readers.endpoints.snapshot().rows;
        let found = find_endpoint(&rows, &endpoint).ok_or_else(|| Failure::not_found(format!("no endpoint {endpoint}")))?;
        Ok(Some(found.record.id.0))
    }
}

/// Flags that `state`, `verdict` and the order of the ends do not tell.
const TOLD: u16 = FLOW_OPENER_B | FLOW_REPLY | FLOW_DENY | FLOW_AUDIT;

struct Shown<'a> {
    agent: &'a Agent,
    endpoints: Arc<BTreeMap<EndpointId, EndpointSpec>>,
    now: u32,
    limits: FlowTimeouts,
}

impl Shown<'_> {
    fn name(&self, slot: u16) -> String {
        match u32::from(slot) {
            SLOT_HOST => "host".into(),
            SLOT_WORLD => "world".into(),
            _ => self.endpoints.get(&EndpointId(slot)).map(|s| s.record.name.clone()).unwrap_or_default(),
        }
    }

    fn entry(&self, a: (IpAddr, Be16), b: (IpAddr, Be16), protocol: u8, f: &Flow, created: Option<u32>) -> FlowEntry {
        let end = |(address, port): (IpAddr, Be16), slot| FlowEnd { address, port: port.get(), slot, name: self.name(slot) };
        let count = |way: usize| FlowCount { packets: f.packets[way].into(), bytes: f.bytes[way] };
        // Direction 0 is from A to B, and `ep` says where each direction goes.
        let mut ends = [(end(a, f.ep[1]), count(0)), (end(b, f.ep[0]), count(1))];
        if f.flags & FLOW_OPENER_B != 0 {
            ends.swap(0, 1);
        }
        let [(source, sent), (destination, received)] = ends;
        let idle = gc::idle(f, self.now);
        let flows = &self.agent.flows;
        let rest = names(u64::from(f.flags & !TOLD), FLOW_FLAGS, "FLOW_");
        FlowEntry {
            family: if a.0.is_ipv4() { 4 } else { 6 },
            protocol: proto(protocol),
            source,
            destination,
            state: gc::state(f, protocol).into(),
            verdict: match f.flags {
                flags if flags & FLOW_DENY != 0 => "deny",
                flags if flags & FLOW_AUDIT != 0 => "audit",
                _ => "allow",
            }
            .into(),
            idle: flows.seconds(idle),
            expires: flows.seconds(gc::idle_limit(f, protocol, &self.limits).saturating_sub(idle)),
            age: created.map(|at| flows.seconds(self.now.wrapping_sub(at))),
            sent,
            received,
            flags: rest.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect(),
        }
    }
}

fn table(agent: &Agent, now: u32, slot: Option<u16>) -> Result<Vec<FlowEntry>, pilus_loader::Error> {
    let shown = Shown { agent, endpoints: agent.readers.endpoints.snapshot().rows, now, limits: agent.flows.limits() };
    // What the world sees of a masqueraded flow is no connection of its own.
    let concerned = |flow: &Flow| flow.flags & FLOW_NAT == 0 && slot.is_none_or(|slot| flow.ep.contains(&slot));
    let mut all = Vec::new();
    agent.tables.flow4.each(|k, v| {
        if concerned(&v.h) {
            all.push(shown.entry((ip4(k.a).into(), k.ap), (ip4(k.b).into(), k.bp), k.proto, &v.h, Some(v.created)));
        }
    })?;
    agent.tables.flow6.each(|k, v| {
        if concerned(&v.h) {
            all.push(shown.entry((ip6(k.a).into(), k.ap), (ip6(k.b).into(), k.bp), k.proto, &v.h, None));
        }
    })?;
    Ok(all)
}

pub async fn list(State(agent): State<App>, Query(of): Query<Of>) -> Result<Json<Vec<FlowEntry>>, Failure> {
    let slot = of.slot(&agent)?;
    let shape = agent.host_shape(&agent.templates.current()).await.map_err(Failure::failed)?;
    let read = tokio::task::spawn_blocking(move || {
        let clock = shape.program("flow_clock").map_err(|e| e.to_string())?;
        let now = gc::jiffies(clock).map_err(|e| e.to_string())?;
        table(&agent, now, slot).map_err(|e| e.to_string())
    });
    Ok(Json(read.await.map_err(Failure::failed)?.map_err(Failure::failed)?))
}

pub async fn flush(State(agent): State<App>, Query(of): Query<Of>) -> Result<Json<FlushResult>, Failure> {
    let slot = of.slot(&agent)?;
    let flushed = tokio::task::spawn_blocking(move || agent.flows.flush(slot)).await;
    Ok(Json(FlushResult { removed: flushed.map_err(Failure::failed)?.map_err(Failure::failed)? }))
}
