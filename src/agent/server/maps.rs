// SPDX-License-Identifier: Apache-2.0
//! `/v1/map`: the kernel's tables as people read them.

use super::{App, Failure};
use crate::agent::Agent;
use crate::datapath::nat::Mapped;
use axum::Json;
use axum::extract::{Path, State};
use pilus_api::types::{MapInfo, MapModel};
use pilus_model::abi::*;
use pilus_model::endpoint::EndpointId;
use pilus_model::ipcache::{exact_address, lpm_prefix};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(super) fn ip4(ip: Be32) -> Ipv4Addr {
    Ipv4Addr::from(ip.get())
}

pub(super) fn ip6(ip: [Be32; 4]) -> Ipv6Addr {
    let mut bytes = [0; 16];
    for (to, from) in bytes.chunks_exact_mut(4).zip(ip) {
        to.copy_from_slice(&from.to_wire());
    }
    Ipv6Addr::from(bytes)
}

pub(super) fn proto(p: u8) -> String {
    match p {
        0 => "any".into(),
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

pub(super) fn names(flags: u64, list: &[(&str, u64)], prefix: &str) -> String {
    let set: Vec<String> = list
        .iter()
        .filter(|(name, bit)| bit.is_power_of_two() && flags & bit != 0 && *name != "FLOW_SLOW")
        .map(|(name, _)| name.trim_start_matches(prefix).to_lowercase())
        .collect();
    set.join(",")
}

fn flow_row(a: String, b: String, p: u8, ap: Be16, bp: Be16, f: &Flow) -> Vec<String> {
    vec![
        proto(p),
        format!("{a} {}", ap.get()),
        format!("{b} {}", bp.get()),
        format!("{},{}", f.ep[1], f.ep[0]),
        format!("{}/{}", f.packets[0], f.bytes[0]),
        format!("{}/{}", f.packets[1], f.bytes[1]),
        names(u64::from(f.flags), FLOW_FLAGS, "FLOW_"),
        f.epoch.to_string(),
    ]
}

fn nat_rows(agent: &Agent) -> Result<Vec<Vec<String>>, pilus_loader::Error> {
    let t = &agent.tables;
    let endpoints = agent.readers.endpoints.snapshot().rows;
    let name = |slot| endpoints.get(&EndpointId(slot)).map(|s| s.record.name.clone()).unwrap_or_else(|| format!("slot {slot}"));
    let end = |ip: IpAddr, port: Be16| SocketAddr::new(ip, port.get()).to_string();
    let mut rows = Vec::new();
    for (k, v) in t.flow4.entries()? {
        if let Some(m) = k.mapping(&v.h) {
            let own = t.endpoint.get(&u32::from(m.slot))?.unwrap_or_default().ip4;
            let [source, seen, destination] = [(own, m.port), m.outside, m.remote].map(|(ip, port)| end(ip4(ip).into(), port));
            rows.push(vec![proto(k.proto), name(m.slot), source, seen, destination]);
        }
    }
    for (k, v) in t.flow6.entries()? {
        if let Some(m) = k.mapping(&v.h) {
            let own = t.endpoint.get(&u32::from(m.slot))?.unwrap_or_default().ip6;
            let [source, seen, destination] = [(own, m.port), m.outside, m.remote].map(|(ip, port)| end(ip6(ip).into(), port));
            rows.push(vec![proto(k.proto), name(m.slot), source, seen, destination]);
        }
    }
    Ok(rows)
}

fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn table(agent: &Agent, name: &str) -> Result<Option<MapModel>, pilus_loader::Error> {
    let t = &agent.tables;
    let (columns, rows) = match name {
        "flows" => {
            let mut rows = Vec::new();
            for (k, v) in t.flow4.entries()? {
                rows.push(flow_row(ip4(k.a).to_string(), ip4(k.b).to_string(), k.proto, k.ap, k.bp, &v.h));
            }
            for (k, v) in t.flow6.entries()? {
                rows.push(flow_row(ip6(k.a).to_string(), ip6(k.b).to_string(), k.proto, k.ap, k.bp, &v.h));
            }
            (columns(&["PROTO", "A", "B", "SLOTS", "A->B", "B->A", "FLAGS", "EPOCH"]), rows)
        }
        "endpoint" => {
            let valid = t.endpoint.entries()?.into_iter().filter(|(_, r)| r.flags & EP_VALID != 0);
            let rows = valid.map(|(slot, r)| {
                vec![
                    slot.to_string(),
                    r.ifindex.to_string(),
                    r.identity.to_string(),
                    r.policy_in.to_string(),
                    r.policy_out.to_string(),
                    names(u64::from(r.flags), ENDPOINT_FLAGS, "EP_"),
                    ip6(r.ip6).to_string(),
                    ip4(r.ip4).to_string(),
                    r.mac.map(|b| format!("{b:02x}")).join(":"),
                    r.epoch.to_string(),
                ]
            });
            (columns(&["SLOT", "IFINDEX", "IDENTITY", "POLICY-IN", "POLICY-OUT", "FLAGS", "IPV6", "IPV4", "MAC", "EPOCH"]), rows.collect())
        }
        "policy" => {
            let mut entries = t.policy.entries()?;
            entries.sort_by_key(|(k, _)| (k.policy, k.identity));
            let mut rows = Vec::new();
            let counts = agent.policies.counts()?;
            for (k, block) in entries {
                for r in block.rules.iter().filter(|r| r.flags & RULE_USED != 0) {
                    let count = counts.get(&r.idx).copied().unwrap_or_default();
                    rows.push(vec![
                        (k.policy >> 5).to_string(),
                        if k.policy >> 4 & 1 == 0 { "egress" } else { "ingress" }.into(),
                        if k.identity == 0 { "any".into() } else { k.identity.to_string() },
                        if (r.lo, r.hi) == (0, 65535) { "any".into() } else { format!("{}-{}", r.lo, r.hi) },
                        proto(r.proto),
                        if r.flags & RULE_DENY != 0 { "deny" } else { "allow" }.into(),
                        agent.policies.rule_text(u32::from(r.idx)).unwrap_or_default(),
                        count.packets.to_string(),
                        count.bytes.to_string(),
                    ]);
                }
            }
            (columns(&["POLICY", "DIRECTION", "PEER", "PORTS", "PROTO", "VERDICT", "RULE", "PACKETS", "BYTES"]), rows)
        }
        "nat" => (columns(&["PROTO", "ENDPOINT", "SOURCE", "SEEN AS", "DESTINATION"]), nat_rows(agent)?),
        "ipcache" => {
            let exact = t.ipcache.entries()?.into_iter().filter_map(|(k, v)| Some((exact_address(&k)?.to_string(), v)));
            let prefixes =
                t.ipcache_lpm.entries()?.into_iter().filter_map(|(k, v)| lpm_prefix(&k).map(|(ip, len)| (format!("{ip}/{len}"), v)));
            let rows = exact.chain(prefixes).map(|(ip, v)| vec![ip, v.identity.to_string(), v.slot.to_string()]);
            (columns(&["ADDRESS", "IDENTITY", "SLOT"]), rows.collect())
        }
        "metrics" => {
            let mut rows = Vec::new();
            for (i, cpus) in t.metrics.all()?.iter().enumerate() {
                let (packets, bytes) = cpus.iter().fold((0, 0), |(p, b), c| (p + c.packets, b + c.bytes));
                if packets > 0 {
                    let reason = match (i >> 1) as u32 {
                        0 => "Forwarded".to_owned(),
                        REASON_EVENT_LOST => "Event lost".to_owned(),
                        REASON_NO_FLOW => "TCP without a flow".to_owned(),
                        r => DropReason::from_raw(r as u8).map_or_else(|| r.to_string(), |d| d.text().to_owned()),
                    };
                    let dir = if i & 1 == 0 { "egress" } else { "ingress" };
                    rows.push(vec![reason, dir.into(), packets.to_string(), bytes.to_string()]);
                }
            }
            (columns(&["REASON", "DIRECTION", "PACKETS", "BYTES"]), rows)
        }
        _ => return Ok(None),
    };
    Ok(Some(MapModel { name: name.into(), columns, rows }))
}

pub async fn list(State(_): State<App>) -> Json<Vec<MapInfo>> {
    let info = |m: &MapDef| MapInfo {
        name: m.name.into(),
        doc: m.doc.into(),
        max_entries: m.max_entries,
        key_size: m.key_size,
        value_size: m.value_size,
    };
    Json(MAPS.iter().map(info).collect())
}

pub async fn show(State(agent): State<App>, Path(name): Path<String>) -> Result<Json<MapModel>, Failure> {
    let text = name.clone();
    let rows = tokio::task::spawn_blocking(move || table(&agent, &text)).await.map_err(Failure::failed)?.map_err(Failure::failed)?;
    rows.map(Json).ok_or_else(|| Failure::not_found(format!("no table {name}; there are flows, endpoint, policy, ipcache, nat, metrics")))
}
