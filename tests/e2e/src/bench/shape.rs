// SPDX-License-Identifier: Apache-2.0
//! From a configuration to loaded programs, step by step.

use super::{Plan, Row};
use crate::{Node, NodeOptions};
use anyhow::{Context, Result};
use pilus_codegen::{Build, Clang, EndpointConfig, Features, NodeConfig, Templates};
use pilus_loader::bpffs::BpfFs;
use pilus_loader::collection::{Collection, LoadOptions};
use pilus_loader::stages::Stages;
use pilus_model::abi::{STAGES_APART, STAGES_OF_SLOW};
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
    let of_node = NodeConfig { features: Features::default() };
    let (netdev, slow) = (templates.render_netdev(&of_node)?, templates.render_slow(&of_node)?);
    let mut compile = Vec::new();
    let mut objects = Vec::new();
    let repeats = if plan.wants("compile_shape_ms") { plan.rounds } else { 1 };
    for round in 0..repeats {
        let compiled = node.block_on(clang.compile(&templates, &container, Build::Shared, work.path()))?;
        compile.push(compiled.took.as_secs_f64() * 1000.0);
        if round == 0 {
            // The longest first.
            for (name, rendered) in [("slow", &slow), ("netdev", &netdev)] {
                objects.push((name, node.block_on(clang.compile(&templates, rendered, Build::Shared, work.path()))?.bytes));
            }
            objects.push(("container", compiled.bytes));
        }
    }

    let fs = pins(&node)?;
    let mut load = Vec::new();
    let mut parts = Vec::new();
    let mut insns = 0;
    let mut counts = String::new();
    // The first, which finds everything cold, does not count.
    for round in 0..=plan.rounds {
        let stages = Stages::make()?;
        let since = Instant::now();
        // Side by side, as the agent does.
        let loaded = std::thread::scope(|scope| {
            let load = |(name, elf): &(&'static str, Vec<u8>)| {
                let (stage, apart): (&[_], &[_]) = if *name == "slow" { (STAGES_OF_SLOW, STAGES_APART) } else { (&[], &[]) };
                let pin = Some(fs.objects().join(format!("bench_{name}")));
                let options = LoadOptions { name, pin, stages: Some(&stages), stage, apart, ..LoadOptions::default() };
                Collection::load(&fs, elf, &options).map(|c| (*name, ms(since), c))
            };
            let tasks: Vec<_> = objects.iter().map(|o| scope.spawn(move || load(o))).collect();
            tasks.into_iter().map(|t| Ok(t.join().expect("load")?)).collect::<Result<Vec<_>>>()
        })?;
        let all = ms(since);
        for (name, ..) in &loaded {
            fs.remove_object(&format!("bench_{name}"))?;
        }
        if round > 0 {
            load.push(all);
            parts.push(loaded.iter().map(|(_, at, _)| *at).collect::<Vec<_>>());
        }
        let programs: Vec<_> = loaded.iter().flat_map(|(.., c)| &c.programs).map(|p| (&p.name, p.verified_insns)).collect();
        insns = programs.iter().map(|(_, n)| n).sum();
        counts = programs.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ");
    }
    let part = |n: usize| super::median(&parts.iter().map(|p| p[n]).collect::<Vec<_>>());
    let share = format!("side by side: slow path after {:.1}, host and devices {:.1}, container {:.1}", part(0), part(1), part(2));
    Ok(vec![
        Row::new("load_default_shape_ms", "ms", load).note(share),
        Row::new("processed_insns", "insns", vec![f64::from(insns)]).note(counts),
        Row::new("compile_shape_ms", "ms", compile).note("clang of the container program"),
        Row::new("render_header_ms", "ms", render),
    ])
}
