// SPDX-License-Identifier: Apache-2.0
//! From a configuration to loaded programs, step by step.

use super::{Plan, Row};
use crate::{Node, NodeOptions};
use anyhow::{Context, Result};
use pilus_codegen::{Build, Clang, EndpointConfig, Features, NodeConfig, Templates};
use pilus_loader::bpffs::BpfFs;
use pilus_loader::collection::{Collection, LoadOptions};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Instant;

pub const ROWS: &[&str] = &["load_default_shape_ms", "processed_insns", "compile_shape_ms", "render_header_ms"];

/// Renders until a reading of the clock no longer matters.
const RENDERS: u32 = 200;

/// The node's pins, as the agent sees them.
pub fn pins(node: &Node) -> Result<BpfFs> {
    let pid = node.agent_pid().context("no agent runs")?;
    let below = node.path("bpf");
    let root = PathBuf::from(format!("/proc/{pid}/root")).join(below.strip_prefix("/")?);
    Ok(BpfFs::open(&root)?)
}

fn config(n: u16) -> EndpointConfig {
    EndpointConfig {
        name: format!("bench-{n}"),
        slot: 256 + n,
        id: 256 + n,
        ifindex: 65792 + u32::from(n),
        mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        ipv4: Some(Ipv4Addr::new(10, 0, 0, 2)),
        ipv6: Ipv6Addr::LOCALHOST,
        mtu: 1500,
        features: Features::default(),
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let node = Node::start(NodeOptions::default())?;
    let templates = Templates::load(node.path("state/templates"))?;
    let clang = Clang::find();
    let work = tempfile::tempdir()?;

    let mut render = Vec::new();
    for round in 0..plan.rounds {
        let config = config(round as u16);
        let since = Instant::now();
        for _ in 0..RENDERS {
            templates.render_container(&config)?;
        }
        render.push(ms(since) / f64::from(RENDERS));
    }

    let container = templates.render_container(&config(0))?;
    let netdev = templates.render_netdev(&NodeConfig { features: Features::default() })?;
    let mut compile = Vec::new();
    let mut objects = Vec::new();
    let repeats = if plan.wants("compile_shape_ms") { plan.rounds } else { 1 };
    for round in 0..repeats {
        let compiled = node.block_on(clang.compile(&templates, &container, Build::Shared, work.path()))?;
        compile.push(compiled.took.as_secs_f64() * 1000.0);
        if round == 0 {
            let other = node.block_on(clang.compile(&templates, &netdev, Build::Shared, work.path()))?;
            objects = vec![("container", compiled.bytes), ("netdev", other.bytes)];
        }
    }

    let fs = pins(&node)?;
    let mut load = Vec::new();
    let mut parts = Vec::new();
    let mut insns = 0;
    let mut counts = String::new();
    // The first, which finds everything cold, does not count.
    for round in 0..=plan.rounds {
        let mut each = [0.0; 2];
        let mut programs = Vec::new();
        for (n, (name, elf)) in objects.iter().enumerate() {
            let pin = format!("bench_{name}");
            let since = Instant::now();
            let options = LoadOptions { name, max_entries: &[], pin: Some(fs.objects().join(&pin)) };
            let loaded = Collection::load(&fs, elf, &options)?;
            each[n] = ms(since);
            programs.extend(loaded.programs.into_iter().map(|p| (p.name.clone(), p.verified_insns)));
            fs.remove_object(&pin)?;
        }
        if round > 0 {
            load.push(each.iter().sum());
            parts.push(each[0]);
        }
        insns = programs.iter().map(|(_, n)| n).sum();
        counts = programs.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ");
    }
    let share = format!("container {:.1} of it", super::median(&parts));
    Ok(vec![
        Row::new("load_default_shape_ms", "ms", load).note(share),
        Row::new("processed_insns", "insns", vec![f64::from(insns)]).note(counts),
        Row::new("compile_shape_ms", "ms", compile).note("clang of the container program"),
        Row::new("render_header_ms", "ms", render),
    ])
}
