// SPDX-License-Identifier: Apache-2.0
//! `/v1/policy/validate|explain|diff`: questions that change nothing.

use super::maps::proto;
use super::policy::rules;
use super::{App, Body, Failure, ask};
use crate::agent::Agent;
use crate::control::{Event, find_endpoint};
use crate::state::IpcachePrefix;
use axum::Json;
use axum::extract::State;
use pilus_api::types::*;
use pilus_model::abi::{POLICY_NONE, POLICY_OPEN, Reserved};
use pilus_model::endpoint::{EndpointId, EndpointRef};
use pilus_model::identity::NumericIdentity;
use pilus_model::policy::block::{BlockVerdict, lookup_with};
use pilus_model::policy::input::{self, Options};
use pilus_model::policy::{Direction, EnforcementMode, Engine, EntryKey, Half, Party, Traffic, Verdict, shadowed};
use pilus_model::prefix::Prefix;
use std::net::IpAddr;

/// Name and number of each protocol that has one.
const PROTOCOLS: [(&str, u8); 5] = [("tcp", 6), ("udp", 17), ("sctp", 132), ("icmp", 1), ("icmpv6", 58)];

async fn engine(agent: &Agent) -> Result<Box<Engine>, Failure> {
    Ok(ask(agent, Event::Engine).await?)
}

/// Runs what takes a while beside the requests of others.
async fn apart<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(f).await.map_err(Failure::failed)
}

/// Where the node's containers have their addresses.
pub fn ranges(agent: &Agent) -> Vec<Prefix> {
    let (v4, v6) = (&agent.v4_range, &agent.v6_range);
    let both = [(IpAddr::V4(v4.base), v4.len), (IpAddr::V6(v6.base), v6.len)];
    both.into_iter().filter_map(|(ip, len)| Prefix::new(ip, len).ok()).collect()
}

pub async fn validate(State(agent): State<App>, Body(body): Body<PolicyImport>) -> Result<Json<PolicyValidation>, Failure> {
    let engine = engine(&agent).await?;
    let ranges = ranges(&agent);
    apart(move || Json(validated(*engine, &body, &ranges))).await
}

/// What an import into a node without rules would say. `options` say where containers have their addresses.
pub fn validate_alone(options: &crate::options::Options, body: &PolicyImport) -> PolicyValidation {
    let v4 = options.ipv4_range.map(|r| (IpAddr::V4(r.base), r.len));
    let v6 = options.ipv6_range.map(|r| (IpAddr::V6(r.base), r.len));
    let ranges: Vec<Prefix> = v4.into_iter().chain(v6).filter_map(|(ip, len)| Prefix::new(ip, len).ok()).collect();
    validated(Engine::new(EnforcementMode::Default, false), body, &ranges)
}

fn validated(mut engine: Engine, body: &PolicyImport, ranges: &[Prefix]) -> PolicyValidation {
    let problem = |message: String| PolicyProblem { file: String::new(), line: 0, column: 0, path: String::new(), message };
    let texts = body.documents.iter().map(|d| (d.name.as_str(), d.text.as_str()));
    let rules = match input::parse_all(texts, Options::default()) {
        Ok(rules) => rules,
        Err(errors) => {
            let errors = errors.into_iter().map(|e| PolicyProblem {
                file: e.file,
                line: e.line,
                column: e.column,
                path: e.path,
                message: e.message,
            });
            return PolicyValidation { errors: errors.collect(), ..PolicyValidation::default() };
        }
    };
    let (count, warnings) = (rules.len(), shadowed(&rules, ranges));
    let errors: Vec<PolicyProblem> = match (count, engine.import(rules, Some(crate::control::room()))) {
        (0, _) => vec![problem("there is no rule in what was given".into())],
        (_, Ok(_)) => Vec::new(),
        (_, Err(e)) => vec![problem(e.to_string())],
    };
    PolicyValidation { valid: errors.is_empty(), rules: count, errors, warnings }
}

/// `80/tcp`, or a port of TCP.
fn traffic(text: &str) -> Result<Traffic, Failure> {
    let (port, name) = text.split_once('/').unwrap_or((text, "tcp"));
    let bad = || Failure::invalid("dport", format!("`{text}`: expected PORT/PROTOCOL such as 80/tcp, 53/udp, 8/icmp or 128/icmpv6"));
    let known = PROTOCOLS.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, number)| *number);
    let proto = known.or_else(|| name.parse().ok()).ok_or_else(bad)?;
    Ok(Traffic { dport: port.parse().map_err(|_| bad())?, proto })
}

/// One end of a connection, and which endpoint it is.
struct End {
    party: Party,
    endpoint: Option<(EndpointId, String)>,
}

fn end(agent: &Agent, field: &str, text: &str) -> Result<End, Failure> {
    let other = |identity| Ok(End { party: Party { identity, subject: None }, endpoint: None });
    if let Some(number) = text.strip_prefix("identity:") {
        let number = number.parse().map_err(|_| Failure::invalid(field, format!("`{number}` is no identity number")))?;
        return other(NumericIdentity(number));
    }
    if let Some(fixed) = Reserved::ALL.iter().find(|r| r.text() == text.strip_prefix("reserved:").unwrap_or(text)) {
        return other((*fixed).into());
    }
    let reference = match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => EndpointRef::Ipv4(ip),
        Ok(IpAddr::V6(ip)) => EndpointRef::Ipv6(ip),
        Err(_) => text.parse().map_err(|e| Failure::invalid(field, e))?,
    };
    let rows = agent.readers.endpoints.snapshot().rows;
    if let Some(spec) = find_endpoint(&rows, &reference) {
        let r = &spec.record;
        let party = Party { identity: r.identity, subject: Some(r.subject()) };
        return Ok(End { party, endpoint: Some((r.id, r.name.clone())) });
    }
    let ip: IpAddr = match reference {
        EndpointRef::Ipv4(ip) => ip.into(),
        EndpointRef::Ipv6(ip) => ip.into(),
        other => return Err(Failure::not_found(format!("{field}: no endpoint {other}"))),
    };
    let rows = agent.readers.ipcache.snapshot().rows;
    let found = Prefix::address(ip).covering().find_map(|p| rows.get(&IpcachePrefix { ip: p.ip(), len: p.length() }));
    other(found.map_or(Reserved::World.into(), |row| row.identity))
}

fn peer(engine: &Engine, end: &End) -> PeerModel {
    let labels = engine.labels(end.party.identity).map(|l| l.iter().map(ToString::to_string).collect()).unwrap_or_default();
    let (endpoint, name) = end.endpoint.clone().map_or((0, String::new()), |(id, name)| (id.0, name));
    PeerModel { endpoint, name, identity: end.party.identity.get(), labels }
}

fn named(verdict: &Verdict) -> (&'static str, String) {
    match verdict {
        Verdict::Allow(rule) => ("allow", rule.to_string()),
        Verdict::Redirect(rule, _) => ("redirect", rule.to_string()),
        Verdict::Deny(rule) => ("deny", rule.as_ref().map(ToString::to_string).unwrap_or_default()),
        Verdict::OpenAllow => ("open", String::new()),
    }
}

fn entry(key: &EntryKey) -> String {
    let peer = if key.peer == NumericIdentity::ANY { "any".to_owned() } else { key.peer.to_string() };
    let proto = proto(key.proto);
    format!("identity {peer}, block {}, rule {}: {}-{}/{proto}", key.chain, key.slot, key.lo, key.hi)
}

/// What the kernel's tables say, and by which rule.
fn kernel(
    agent: &Agent,
    id: EndpointId,
    direction: Direction,
    peer: NumericIdentity,
    traffic: Traffic,
) -> Result<(&'static str, String), Failure> {
    let Some(row) = agent.tables.endpoint.get(&u32::from(id.0)).map_err(Failure::failed)? else { return Ok(("none", String::new())) };
    let policy = if direction == Direction::Ingress { row.policy_in } else { row.policy_out };
    match policy {
        POLICY_NONE => return Ok(("none", String::new())),
        POLICY_OPEN => return Ok(("open", String::new())),
        _ => {}
    }
    let found = lookup_with(|key| agent.tables.policy.get(key), policy, direction, peer, traffic).map_err(Failure::failed)?;
    let rule = |index: u16| agent.policies.rule_text(u32::from(index)).unwrap_or_default();
    Ok(match found {
        BlockVerdict::Allow(index) => ("allow", rule(index)),
        BlockVerdict::Redirect(index) => ("redirect", rule(index)),
        BlockVerdict::Deny(index) => ("deny", index.map(rule).unwrap_or_default()),
    })
}

pub async fn explain(State(agent): State<App>, Body(question): Body<PolicyQuestion>) -> Result<Json<PolicyAnswer>, Failure> {
    let traffic = traffic(&question.dport)?;
    let (from, to) = (end(&agent, "from", &question.from)?, end(&agent, "to", &question.to)?);
    let engine = engine(&agent).await?;
    let told = engine.explain(&from.party, &to.party, traffic);
    let asked = std::sync::Arc::clone(&agent);
    let counts = apart(move || asked.policies.counts_by_rule()).await?.map_err(Failure::failed)?;
    let mut agrees = true;
    let mut half = |me: &End, half: &Option<Half>, direction, peer: NumericIdentity| -> Result<Option<PolicyVerdict>, Failure> {
        let (Some(half), Some((id, _))) = (half, &me.endpoint) else { return Ok(None) };
        let (verdict, rule) = named(&half.verdict);
        let (kernel, kernel_rule) = kernel(&agent, *id, direction, peer, traffic)?;
        agrees &= kernel == verdict && kernel_rule == rule;
        let entry = half.key.as_ref().map(entry).unwrap_or_default();
        let by = match &half.verdict {
            Verdict::Allow(rule) | Verdict::Redirect(rule, _) | Verdict::Deny(Some(rule)) => counts.get(rule),
            Verdict::Deny(None) | Verdict::OpenAllow => None,
        };
        let count = by.map(|c| FlowCount { packets: c.packets, bytes: c.bytes }).unwrap_or_default();
        Ok(Some(PolicyVerdict { verdict: verdict.into(), rule, entry, kernel: kernel.into(), kernel_rule, count }))
    };
    let egress = half(&from, &told.egress, Direction::Egress, to.party.identity)?;
    let ingress = half(&to, &told.ingress, Direction::Ingress, from.party.identity)?;
    Ok(Json(PolicyAnswer { allowed: told.allowed(), agrees, from: peer(&engine, &from), to: peer(&engine, &to), egress, ingress }))
}

pub async fn diff(State(agent): State<App>, Body(body): Body<PolicyImport>) -> Result<Json<PolicyDiff>, Failure> {
    let new = rules(&body)?;
    let engine = engine(&agent).await?;
    let rows = agent.readers.endpoints.snapshot().rows;
    let changes = apart(move || {
        let changes = engine.diff(new).map_err(|e| Failure::invalid("documents", e))?;
        let change = |c: pilus_model::policy::Change| {
            let concerned = rows.values().filter(|s| s.record.subject() == *c.subject);
            let (before, _) = named(&c.before);
            let (after, rule) = named(&c.after);
            PolicyChange {
                endpoints: concerned.map(|s| format!("{} ({})", s.record.id, s.record.name)).collect(),
                direction: c.direction.to_string(),
                peer: c.peer.get(),
                labels: engine.labels(c.peer).map(|l| l.iter().map(ToString::to_string).collect()).unwrap_or_default(),
                protocol: PROTOCOLS.iter().find(|(_, n)| *n == c.proto).map_or("other", |(name, _)| name).to_owned(),
                first: c.lo,
                last: c.hi,
                before: before.into(),
                after: after.into(),
                rule,
            }
        };
        Ok::<_, Failure>(changes.into_iter().map(change).collect())
    });
    Ok(Json(PolicyDiff { changes: changes.await?? }))
}
