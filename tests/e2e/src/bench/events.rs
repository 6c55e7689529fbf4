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
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const ROWS: &[&str] = &["events_per_second"];

const EVENTS: u32 = 2_000_000;

/// What has come so far.
#[derive(Default)]
struct Come {
    events: AtomicU64,
    bytes: AtomicU64,
}

/// Reads as the agent does, woken when much has gathered, and looking by itself when nothing comes, until all came or are counted as lost.
fn read(reader: &mut Reader, come: &Come, lost: &(impl Fn() -> Result<u64> + Sync), ready: &Barrier) -> Result<()> {
    // Before others, on a processor that is not the producer's; which waits, for this thread begins on its own.
    let placed = super::kernel::own_processor(0);
    ready.wait();
    placed?;
    let mut take = |record: &[u8]| {
        come.events.fetch_add(1, Ordering::Relaxed);
        come.bytes.fetch_add(record.len() as u64, Ordering::Relaxed);
    };
    while come.events.load(Ordering::Relaxed) + lost()? < u64::from(EVENTS) {
        if reader.poll(Duration::from_millis(1), &mut take)? == 0 {
            reader.consume(usize::MAX, &mut take)?;
        }
    }
    Ok(())
}

pub fn run(plan: &Plan) -> Result<Vec<Row>> {
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
    let (mut samples, mut losses, mut making) = (Vec::new(), 0, Vec::new());
    on_own_processor(|cpu| {
        ensure!(cpu > 0, "one processor cannot both make events and read them");
        for round in 0..=plan.rounds {
            let (come, before) = (Come::default(), lost()?);
            let missing = || Ok(lost()? - before);
            let ready = Barrier::new(2);
            let mut since = Instant::now();
            let ns = std::thread::scope(|scope| {
                let consumer = scope.spawn(|| read(&mut reader, &come, &missing, &ready));
                ready.wait();
                since = Instant::now();
                let ns = report.test_run(&frame, None, EVENTS)?.duration_ns;
                consumer.join().ok().context("the reader")??;
                anyhow::Ok(ns)
            })?;
            let took = since.elapsed().as_secs_f64();
            let (events, bytes) = (come.events.into_inner(), come.bytes.into_inner());
            ensure!(bytes >= events * u64::from(EVENT_PAYLOAD), "events are shorter than they are");
            if round > 0 {
                let missing = missing()?;
                losses += missing;
                making.push(f64::from(ns));
                // What lost some was too fast.
                samples.push(if missing == 0 { f64::from(EVENTS) / took } else { 0.0 });
            }
        }
        Ok(())
    })?;
    let note =
        format!("{EVENTS} a round with {EVENT_PAYLOAD} bytes of packet, made in {:.0} ns each; {losses} lost", super::median(&making));
    Ok(vec![Row::new(ROWS[0], "1/s", samples).note(note)])
}
