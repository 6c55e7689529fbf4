// SPDX-License-Identifier: Apache-2.0
//! `pilus monitor`.

use super::event;
use crate::args::MonitorArgs;
use crate::failure::Failure;
use crate::output::Output;
use crate::pcap::Pcap;
use pilus_api::types::FlowEvent;
use pilus_api::{Client, FlowFilter, Flows};
use std::io::Write;
use std::path::Path;

/// Prints events until interrupted, or as many as asked for.
pub async fn run(client: &Client, out: &mut Output, args: MonitorArgs) -> Result<(), Failure> {
    let filter = FlowFilter {
        types: args.types.iter().map(|t| t.name().to_owned()).collect(),
        from: args.from,
        to: args.to,
        related: args.related_to,
    };
    let mut sink = match &args.pcap {
        Some(path) => Some(Pcap::open(path)?),
        None => None,
    };
    let silent = args.pcap.as_deref() == Some(Path::new("-"));
    let mut flows = client.flows(&filter).await?;
    if args.verbose {
        let _ = writeln!(std::io::stderr(), "Following events; interrupt to end");
    }
    let mut seen = Seen::default();
    let style = event::Style { hex: args.hex, verbose: args.verbose };
    let to = Printer { out, style, silent, pcap: sink.as_mut() };
    let result = tokio::select! {
        biased;
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::from),
        followed = follow(&mut flows, to, args.count, &mut seen) => followed.and_then(|complete| match complete {
            true => Ok(()),
            false => Err(Failure::new(format!("the agent at {} ended the stream; it is stopping or restarting", client.socket().display()))),
        }),
    };
    out.flush()?;
    if let Some(sink) = &mut sink {
        sink.flush()?;
    }
    if args.verbose {
        let _ = writeln!(std::io::stderr(), "{} events, {} lost", seen.events, seen.lost);
    }
    result
}

/// Where events go.
struct Printer<'a> {
    out: &'a mut Output,
    style: event::Style,
    silent: bool,
    pcap: Option<&'a mut Pcap>,
}

impl Printer<'_> {
    fn show(&mut self, event: &FlowEvent) -> Result<(), Failure> {
        if let Some(pcap) = &mut self.pcap {
            pcap.write(event)?;
        }
        if self.silent {
            return Ok(());
        }
        let style = self.style;
        self.out.show_one(event, |out, event| event::print(out, event, style))
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if let Some(pcap) = &mut self.pcap {
            pcap.flush()?;
        }
        self.out.flush()
    }
}

#[derive(Default)]
struct Seen {
    events: u64,
    lost: u64,
}

/// Whether `count` was reached before the stream ended.
async fn follow(flows: &mut Flows, mut to: Printer<'_>, count: Option<u64>, seen: &mut Seen) -> Result<bool, Failure> {
    loop {
        if !flows.has_buffered() {
            to.flush()?;
        }
        let Some(event) = flows.next().await? else { return Ok(false) };
        to.show(&event)?;
        tally(&event, seen);
        if count.is_some_and(|count| seen.events >= count) {
            return Ok(true);
        }
    }
}

fn tally(event: &FlowEvent, seen: &mut Seen) {
    if event.kind == "lost" {
        seen.lost += event.count;
    } else {
        seen.events += 1;
    }
}
