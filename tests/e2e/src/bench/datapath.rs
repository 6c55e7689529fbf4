// SPDX-License-Identifier: Apache-2.0
//! Frames against families, events, refusals and large policies: in the kernel only, without system calls.

use super::kernel::{Injector, Random};
use super::path::{self, Entry, Path, UDP_PORT, udp_frame};
use super::probe::{seen, settled};
use super::reference::{Programs, Reference};
use super::shape::pins;
use super::traffic::{FRAMES, Kind, RUNS, compare, full, live, measure, open, suffix};
use super::{Plan, Row, interleaved, median, on_own_processor, progress, ratio};
use crate::container::PATIENCE;
use crate::{Container, Family, Node, NodeOptions, outside};
use anyhow::{Context, Result, ensure};
use pilus_api::FlowFilter;
use pilus_loader::maps::PinnedMap;
use pilus_loader::netlink::Netlink;
use pilus_model::abi::*;
use pilus_model::ipcache::exact_key;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

pub const FAMILY_ROWS: &[&str] = &["live_v6_over_v4"];
pub const MONITOR_ROWS: &[&str] = &["monitor_aggregated_v4", "monitor_aggregated_v6", "monitor_every_packet_v4", "monitor_every_packet_v6"];
pub const DENIED_ROWS: &[&str] = &["denied_over_drop_program_v4", "denied_over_drop_program_v6"];
pub const SCALE_ROWS: &[&str] = &[
    "established_65k_over_10_v4",
    "established_65k_over_10_v6",
    "first_packet_65k_over_two_hash_reference_v4",
    "first_packet_65k_over_two_hash_reference_v6",
];

const PACKETS: u64 = FRAMES as u64 * RUNS as u64;

fn wants(plan: &Plan, base: &str, family: Family) -> Option<String> {
    let name = format!("{base}_{}", suffix(family));
    plan.wants(&name).then_some(name)
}

pub fn families(plan: &Plan) -> Result<Vec<Row>> {
    let (node, pilus) = path::pilus()?;
    on_own_processor(|cpu| {
        let both = [Family::V4, Family::V6];
        let before = both.map(|f| seen(&node, f, "udp", &pilus.server, UDP_PORT));
        let mut talks = both.into_iter().map(|f| open(&pilus, f, Kind::Live)).collect::<Result<Vec<_>>>()?;
        let values = interleaved(plan.rounds, 2, |n| measure(&mut talks[n], &pilus, both[n]))?;
        for (family, before) in both.into_iter().zip(before) {
            let counted = seen(&node, family, "udp", &pilus.server, UDP_PORT)?.flow - before?.flow;
            ensure!(counted >= PACKETS * (plan.rounds as u64 + 1), "{family:?}: {counted} packets in the flow table");
        }
        let [v4, v6] = <[_; 2]>::try_from(values).expect("two families");
        Ok(vec![Row { baseline: v4, ..Row::new(FAMILY_ROWS[0], "ns", v6).note(format!("cpu {cpu}")) }])
    })
}

/// Listens to traces until `done`; how many came, and how many it was told were lost.
fn listen(node: &Node, done: &AtomicBool) -> Result<(u64, u64)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let filter = FlowFilter { types: vec!["trace".into()], ..FlowFilter::default() };
        let mut flows = node.client().flows(&filter).await?;
        let (mut came, mut lost) = (0, 0);
        while !done.load(Ordering::Relaxed) {
            if let Ok(event) = tokio::time::timeout(PATIENCE / 200, flows.next()).await {
                let event = event?.context("the stream ended")?;
                if event.kind == "lost" { lost += event.count } else { came += 1 }
            }
        }
        Ok((came, lost))
    })
}

pub fn monitored(plan: &Plan) -> Result<Vec<Row>> {
    let (node, pilus) = path::pilus()?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let listener = scope.spawn(|| listen(&node, &done));
        let rows = on_own_processor(|cpu| {
            let mut rows = Vec::new();
            for family in [Family::V4, Family::V6] {
                let names = ["monitor_aggregated", "monitor_every_packet"].map(|base| wants(plan, base, family));
                if names.iter().all(Option::is_none) {
                    continue;
                }
                let events = || anyhow::Ok(node.block_on(node.client().status())?.monitor);
                let before = events()?;
                let mut talk = open(&pilus, family, Kind::Live)?;
                let values = interleaved(plan.rounds, 3, |n| {
                    let options = BTreeMap::from([("Trace".to_owned(), ["off", "flow", "all"][n].to_owned())]);
                    node.block_on(node.client().set_endpoint_config("name:client", &options))?;
                    measure(&mut talk, &pilus, family)
                })?;
                let after = events()?;
                // Every packet of one of the three is an event, or counted as lost.
                let (read, lost) = (after.events - before.events, after.lost - before.lost);
                ensure!(read + lost >= PACKETS * (plan.rounds as u64 + 1), "{family:?}: {read} events and {lost} lost");
                let note = format!(
                    "off {:.0} ns; cpu {cpu}, {read} events read by the agent, {lost} lost in the kernel's buffer",
                    median(&values[0])
                );
                for (n, name) in names.into_iter().enumerate().filter_map(|(n, name)| Some((n + 1, name?))) {
                    rows.push(Row { baseline: values[0].clone(), ..Row::new(&name, "ns", values[n].clone()).note(note.clone()) });
                }
            }
            Ok(rows)
        });
        done.store(true, Ordering::Relaxed);
        let (came, lost) = listener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        progress(&format!("  the listener saw {came} events and was told of {lost} lost"));
        rows
    })
}

pub fn denied(plan: &Plan) -> Result<Vec<Row>> {
    let (node, pilus) = path::pilus()?;
    let programs = Programs::load(&node)?;
    let reference = Reference::new(&node, programs.get("drop")?, 0)?;
    let mut rows = Vec::new();
    for family in [Family::V4, Family::V6] {
        let Some(name) = wants(plan, "denied_over_drop_program", family) else { continue };
        let (from, to) = ((pilus.client.ip(family), 40000), (pilus.server.ip(family), UDP_PORT + 9));
        let frames = [&pilus.entry, &reference.entry].map(|entry| udp_frame(entry, from, to, &[0x62; 64]).and_then(Injector::new));
        let [ours, theirs] = frames;
        let (ours, theirs) = (ours?, theirs?);
        let before = node.metric("Policy denied")?;
        let values = on_own_processor(|_| {
            interleaved(plan.rounds, 2, |n| if n == 0 { live(&pilus.entry, &ours) } else { live(&reference.entry, &theirs) })
        })?;
        let counted = node.metric("Policy denied")? - before;
        ensure!(counted >= PACKETS * (plan.rounds as u64 + 1), "{family:?}: only {counted} packets were denied");
        let note = format!("{counted} packets counted as denied; events of drops on, as by default");
        rows.push(Row { baseline: values[1].clone(), ..Row::new(&name, "ns", values[0].clone()).note(note) });
    }
    Ok(rows)
}

/// Addresses of a family that the large policy lets in one by one: more than an import takes, so they go into the tables directly.
const SOURCES: u32 = 65_536;
/// Their identities, which no agent gives.
const IDENTITIES: u32 = 1 << 24 | 0x80_0000;

fn source(family: Family, n: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(0xc612_0000 + n).into(),
        Family::V6 => Ipv6Addr::from((0x2001_0db8_0005_u128 << 80) + u128::from(n)).into(),
    }
}

/// The client, and ten addresses, may send to the measured port.
fn policy(name: &str, family: Family) -> String {
    let len = if family == Family::V4 { 32 } else { 128 };
    let prefixes: Vec<String> = (0..10).map(|n| format!("\"{}/{len}\"", source(family, n))).collect();
    let ports = format!("toPorts: [{{ports: [{{port: \"{UDP_PORT}\", protocol: UDP}}]}}]");
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\nspec:\n  endpointSelector: {{matchLabels: {{app: \
         {name}}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {{app: client}}}}]\n    {ports}\n  - fromCIDR: [{}]\n    {ports}\n",
        prefixes.join(", ")
    )
}

/// Frames of ever new flows from any of the sources.
fn strangers(entry: &Entry, to: &Container, family: Family) -> Result<Injector> {
    let mut payload = [0x62; 64];
    payload[..4].fill(0);
    let frame = udp_frame(entry, (source(family, 0), 0), (to.ip(family), UDP_PORT), &payload)?;
    // The end of the address, and the port; complements in the payload, and in IPv4's identification.
    let random: &[Random] = match family {
        Family::V4 => &[Random { at: 28, complements: &[18, 42] }, Random { at: 34, complements: &[44] }],
        Family::V6 => &[Random { at: 36, complements: &[62] }, Random { at: 54, complements: &[64] }],
    };
    Injector::with_random(frame, random)
}

struct Scale {
    node: Node,
    client: Container,
    /// With ten sources, with many, and without a policy.
    servers: [Container; 3],
    outside: Entry,
    _world: Container,
}

impl Scale {
    fn new() -> Result<Self> {
        // Room for the flows of a round.
        let args = vec!["--flow-table-size".into(), "262144".into()];
        let mut node = Node::prepare(NodeOptions { args, ..NodeOptions::default() })?;
        let world = outside::connect(&node, 0, 1500, true)?;
        node.start_agent()?;
        let names = ["few", "many", "open"];
        let servers = names.map(|n| node.add(n, &[&format!("app={n}")]));
        let [few, many, open] = servers;
        let servers = [few?, many?, open?];
        let client = node.add("client", &["app=client"])?;
        settled(&node, &["client", "few", "many", "open"])?;
        let ifindex = node.run(|| path::block(async { Ok(Netlink::new()?.link_by_name("eth0").await?.context("eth0")?.index) }))?;
        let outside = Entry { netns: node.run(path::netns)?, ifindex, source: world.mac, destination: world.host_mac };
        Ok(Self { node, client, servers, outside, _world: world })
    }

    fn policy_of(&self, name: &str) -> Result<u32> {
        let ifindex = self.node.block_on(self.node.client().endpoint(&format!("name:{name}")))?.interface.index;
        let rows = PinnedMap::<u32, Endpoint>::open(&pins(&self.node)?, map::ENDPOINT)?;
        Ok(rows.get(&(ifindex - IFINDEX_BASE))?.context("a row")?.policy_in)
    }

    /// Gives the policy of `many` an entry for each of the addresses, like that of the first.
    fn enlarge(&self, family: Family) -> Result<u32> {
        let fs = pins(&self.node)?;
        let ipcache = PinnedMap::<IpcacheKey, IpcacheEntry>::open(&fs, map::IPCACHE)?;
        let blocks = PinnedMap::<PolicyKey, PolicyBlock>::open(&fs, map::POLICY)?;
        let policy = self.policy_of("many")? << 5 | u32::from(DIR_INGRESS) << 4;
        let known = ipcache.get(&exact_key(source(family, 0)))?.context("the first address is not known")?;
        let block = blocks.get(&PolicyKey { policy, identity: known.identity })?.context("the first address has no entry")?;
        let all = || (0..SOURCES).map(|n| (n, IDENTITIES + n));
        let addresses: Vec<_> = all().map(|(n, identity)| (exact_key(source(family, n)), IpcacheEntry { identity, ..known })).collect();
        let entries: Vec<_> = all().map(|(_, identity)| (PolicyKey { policy, identity }, block)).collect();
        ipcache.put_batch(&addresses)?;
        blocks.put_batch(&entries)?;
        Ok(policy)
    }

    /// Takes it back.
    fn restore(&self, family: Family, policy: u32) -> Result<()> {
        let fs = pins(&self.node)?;
        let ipcache = PinnedMap::<IpcacheKey, IpcacheEntry>::open(&fs, map::IPCACHE)?;
        let blocks = PinnedMap::<PolicyKey, PolicyBlock>::open(&fs, map::POLICY)?;
        blocks.delete_batch(&(0..SOURCES).map(|n| PolicyKey { policy, identity: IDENTITIES + n }).collect::<Vec<_>>())?;
        ipcache.delete_batch(&(0..SOURCES).map(|n| exact_key(source(family, n))).collect::<Vec<_>>())?;
        Ok(())
    }

    fn established(&self, plan: &Plan, family: Family, name: &str) -> Result<Row> {
        let ifindex = self.node.block_on(self.node.client().endpoint("name:client"))?.interface.index;
        let to = |name, server: &Container| -> Result<Path> {
            let entry = Entry { netns: self.node.run(path::netns)?, ifindex, source: self.client.mac, destination: self.client.host_mac };
            Ok(Path { name, client: self.client.clone(), server: server.clone(), entry })
        };
        let paths = [to("10 entries", &self.servers[0])?, to("65k entries", &self.servers[1])?];
        let (values, counted) = compare(plan, Kind::Live, family, &paths, &self.node)?;
        let note = format!("{SOURCES} addresses in the policy; {counted} packets counted");
        Ok(Row { baseline: values[0].clone(), ..Row::new(name, "ns", values[1].clone()).note(note) })
    }

    /// What both look-ups add to a new flow's packet, ours over those of the reference.
    fn first(&self, plan: &Plan, family: Family, name: &str) -> Result<Row> {
        let [_, many, open] = &self.servers;
        let programs = Programs::load(&self.node)?;
        let reference = Reference::new(&self.node, programs.get("no_hash")?, self.policy_of("many")?)?;
        let frames = [
            strangers(&self.outside, many, family)?,
            strangers(&self.outside, open, family)?,
            strangers(&reference.entry, &reference.server, family)?,
        ];
        let _full = [full(many, family)?, full(open, family)?, full(&reference.server, family)?];
        let before = self.node.metric("Forwarded")?;
        let mut flows = Vec::new();
        let values = interleaved(plan.rounds, 4, |n| {
            if n < 2 {
                self.node.block_on(self.node.client().flush_flow_table(None))?;
                let value = live(&self.outside, &frames[n])?;
                flows.push(self.flows(family)?);
                return Ok(value);
            }
            reference.run(programs.get(["two_hashes", "no_hash"][n - 2])?)?;
            live(&reference.entry, &frames[2])
        })?;
        let (forwarded, least) = (self.node.metric("Forwarded")? - before, 4 * PACKETS * (plan.rounds as u64 + 1));
        ensure!(forwarded * 100 >= least * 99, "{family:?}: {forwarded} packets forwarded of {least}: policy does not know them all");
        let fewest = flows.iter().min().copied().unwrap_or(0) as u64;
        ensure!(fewest * 100 >= PACKETS.min(65_536) * 90, "{family:?}: only {fewest} flows of {PACKETS} packets");
        ensure!(seen(&self.node, family, "udp", many, UDP_PORT)?.rules > 0, "{family:?}: no rule counted");
        let [ours, without, two, none] = <[_; 4]>::try_from(values).expect("four variants");
        let minus = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>();
        let note = format!(
            "what policy adds; whole: ours {:.0} ns, without policy {:.0}, reference with {:.0}, without look-ups {:.0}; whole ratio {:.2}; {fewest} flows",
            median(&ours),
            median(&without),
            median(&two),
            median(&none),
            ratio(&ours, &two)
        );
        Ok(Row { baseline: minus(&two, &none), ..Row::new(name, "ns", minus(&ours, &without)).note(note) })
    }

    fn flows(&self, family: Family) -> Result<usize> {
        let fs = pins(&self.node)?;
        let mut count = 0;
        match family {
            Family::V4 => PinnedMap::<FlowKey4, Flow4>::open(&fs, map::FLOW4)?.each(|_, _| count += 1)?,
            Family::V6 => PinnedMap::<FlowKey6, Flow6>::open(&fs, map::FLOW6)?.each(|_, _| count += 1)?,
        }
        Ok(count)
    }
}

pub fn scale(plan: &Plan) -> Result<Vec<Row>> {
    let scale = Scale::new()?;
    let mut rows = Vec::new();
    for family in [Family::V4, Family::V6] {
        let names = ["established_65k_over_10", "first_packet_65k_over_two_hash_reference"].map(|base| wants(plan, base, family));
        if names.iter().all(Option::is_none) {
            continue;
        }
        scale.node.import(&policy("few", family))?;
        scale.node.import(&policy("many", family))?;
        let policy = scale.enlarge(family)?;
        let [established, first] = names;
        rows.extend(on_own_processor(|_| {
            let mut rows = Vec::new();
            if let Some(name) = established {
                rows.push(scale.established(plan, family, &name)?);
            }
            if let Some(name) = first {
                rows.push(scale.first(plan, family, &name)?);
            }
            Ok(rows)
        })?);
        scale.restore(family, policy)?;
    }
    Ok(rows)
}
