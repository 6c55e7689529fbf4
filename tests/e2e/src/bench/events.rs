// SPDX-License-Identifier: Apache-2.0
//! Events through the ring buffer: one processor makes them, one reads them.

use super::reference::Programs;
use super::shape::pins;
use super::{Plan, Row, on_own_processor};
use crate::{Node, NodeOptions};
use anyhow::{Context, Result, ensure};
use pilus_loader::events::Reader;
use pilus_loader::maps::PercpuMap;
use pilus_model::abi::{Counter, DIR_EGRESS, EVENT_PAYLOAD, REASON_EVENT_LOST, map};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const ROWS: &[&str] = &["events_per_second"];

const EVENTS: u32 = 2_000_000;

/// In a thread of its own, which the reader's processor is for.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    std::thread::scope(|scope| scope.spawn(|| measure(plan)).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn measure(plan: &Plan) -> Result<Vec<Row>> {
    let mut node = Node::start(NodeOptions::default())?;
    let programs = Programs::load(&node)?;
    let report = programs.get("report")?;
    let fs = pins(&node)?;
    let mut reader = Reader::open(&fs, map::EVENTS)?;
    let metrics = PercpuMap::<Counter>::open(&fs, map::METRICS)?;
    let lost = || -> Result<u64> { Ok(metrics.get(REASON_EVENT_LOST << 1 | u32::from(DIR_EGRESS))?.iter().map(|c| c.packets).sum()) };
    // The agent reads the same buffer.
    drop(fs);
    node.kill_agent()?;
    let frame = [0x62; EVENT_PAYLOAD as usize];
    // Both sides have a processor before others: what others do is not measured.
    super::kernel::own_processor(0)?;
    let (mut samples, mut losses, mut making) = (Vec::new(), 0, Vec::new());
    for round in 0..=plan.rounds {
        let (read, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let before = lost()?;
        let (took, ns) = std::thread::scope(|scope| {
            let producer = scope.spawn(|| on_own_processor(|_| Ok(report.test_run(&frame, None, EVENTS)?.duration_ns)));
            let since = Instant::now();
            let mut missing = 0;
            while read.load(Ordering::Relaxed) + missing < u64::from(EVENTS) {
                // As the agent does: woken when much has gathered, and looking by itself when nothing comes.
                let mut take = |record: &[u8]| {
                    read.fetch_add(1, Ordering::Relaxed);
                    bytes.fetch_add(record.len() as u64, Ordering::Relaxed);
                };
                if reader.poll(Duration::from_millis(1), &mut take)? == 0 {
                    reader.consume(usize::MAX, &mut take)?;
                }
                missing = lost()? - before;
            }
            let took = since.elapsed().as_secs_f64();
            anyhow::Ok((took, producer.join().ok().context("the producer")??))
        })?;
        ensure!(
            bytes.load(Ordering::Relaxed) >= read.load(Ordering::Relaxed) * u64::from(EVENT_PAYLOAD),
            "events are shorter than they are"
        );
        if round > 0 {
            let missing = lost()? - before;
            losses += missing;
            making.push(f64::from(ns));
            // What lost some was too fast.
            samples.push(if missing == 0 { f64::from(EVENTS) / took } else { 0.0 });
        }
    }
    let note =
        format!("{EVENTS} a round with {EVENT_PAYLOAD} bytes of packet, made in {:.0} ns each; {losses} lost", super::median(&making));
    Ok(vec![Row::new(ROWS[0], "1/s", samples).note(note)])
}
