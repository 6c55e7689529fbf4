// SPDX-License-Identifier: Apache-2.0
//! Request and response, streams and frames over three paths, on one processor: client, softirq and server share it, so that
//! a result is the cost of it all and not the luck of wake-ups.

use super::kernel::{self, Injector};
use super::path::{self, Entry, Path, STREAM_PORT, TCP_PORT, UDP_PORT, udp_frame};
use super::probe::{Seen, seen};
use super::reference::{Programs, Reference};
use super::{Plan, Row, median, progress, ratio};
use crate::container::{PATIENCE, enter};
use crate::{Container, Family, Node};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::time::Instant;

pub const ROWS: &[&str] = &[
    "rr_over_f_v4",
    "rr_over_f_v6",
    "stream1448_over_f_v4",
    "stream1448_over_f_v6",
    "udp_over_f_v4",
    "udp_over_f_v6",
    "live_over_routed_v4",
    "live_over_routed_v6",
    "live_over_f_v4",
    "live_over_f_v6",
];

/// Transactions of a round.
const TRANSACTIONS: usize = 20_000;
/// A stream is timed in pieces and their median counts; the first is not timed.
const PIECE: usize = 8 << 20;
const PIECES: usize = 17;
/// Frames of a test run, and runs of a round.
pub const FRAMES: u32 = 25_000;
pub const RUNS: usize = 7;
/// A common size of a small packet.
const PAYLOAD: usize = 64;
/// Bytes of a segment with timestamps, at most.
const SEGMENT: u64 = 1448;
/// Datagrams of one system call, and calls of a round.
const BATCH: usize = 32;
const BATCHES: usize = 3000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Rr,
    Stream,
    Udp,
    Live,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Rr, Kind::Stream, Kind::Udp, Kind::Live];

    /// Rows and what each is compared with.
    fn rows(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Kind::Rr => &[("rr_over_f", "f")],
            Kind::Stream => &[("stream1448_over_f", "f")],
            Kind::Udp => &[("udp_over_f", "f")],
            Kind::Live => &[("live_over_routed", "routed"), ("live_over_f", "f")],
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Kind::Rr => "us",
            Kind::Stream => "Gbit/s",
            Kind::Udp | Kind::Live => "ns",
        }
    }

    fn port(self) -> (&'static str, u16) {
        match self {
            Kind::Rr => ("tcp", TCP_PORT),
            Kind::Stream => ("tcp", STREAM_PORT),
            Kind::Udp | Kind::Live => ("udp", UDP_PORT),
        }
    }

    /// Packets that a round sends at least.
    fn packets(self) -> u64 {
        match self {
            Kind::Rr => 2 * TRANSACTIONS as u64,
            Kind::Stream => (PIECE * PIECES) as u64 / SEGMENT,
            Kind::Udp => (BATCH * BATCHES) as u64,
            Kind::Live => u64::from(FRAMES) * RUNS as u64,
        }
    }
}

/// Something that goes on over one path in one family, ready to be measured.
pub enum Talk {
    Rr(TcpStream),
    Stream { server: TcpStream, go: mpsc::Sender<()> },
    Udp { client: UdpSocket, server: UdpSocket },
    Live { frames: Injector, client: UdpSocket, server: UdpSocket },
}

/// A bound socket that is too small for what comes.
pub fn full(at: &Container, family: Family) -> Result<UdpSocket> {
    let socket = at.udp(family, UDP_PORT)?;
    socket2::SockRef::from(&socket).set_recv_buffer_size(4096)?;
    Ok(socket)
}

fn connected(path: &Path, family: Family, port: u16) -> Result<(TcpStream, TcpStream)> {
    let listener = path.server.listen(family, port)?;
    let client = path.client.connect(SocketAddr::new(path.server.ip(family), port))?;
    let (server, _) = listener.accept()?;
    server.set_nodelay(true)?;
    server.set_read_timeout(Some(PATIENCE))?;
    Ok((client, server))
}

pub fn open(path: &Path, family: Family, kind: Kind) -> Result<Talk> {
    let (_, port) = kind.port();
    match kind {
        Kind::Rr => {
            let (client, mut server) = connected(path, family, port)?;
            server.set_read_timeout(None)?;
            std::thread::spawn(move || {
                let mut byte = [0];
                while server.read_exact(&mut byte).is_ok() && server.write_all(&byte).is_ok() {}
            });
            Ok(Talk::Rr(client))
        }
        Kind::Stream => {
            let (mut client, server) = connected(path, family, port)?;
            let (go, rounds) = mpsc::channel();
            std::thread::spawn(move || {
                let data = vec![0x62; 128 << 10];
                for () in rounds {
                    for _ in 0..PIECE * PIECES / data.len() {
                        if client.write_all(&data).is_err() {
                            return;
                        }
                    }
                }
            });
            Ok(Talk::Stream { server, go })
        }
        Kind::Udp => {
            let (client, server) = (path.client.udp(family, 0)?, full(&path.server, family)?);
            greet(&client, &server, path, family)?;
            Ok(Talk::Udp { client, server })
        }
        Kind::Live => {
            let (client, server) = (path.client.udp(family, 0)?, full(&path.server, family)?);
            let from = client.local_addr()?;
            let frames = Injector::new(path.frame(family, from.port(), port, PAYLOAD)?)?;
            greet(&client, &server, path, family)?;
            Ok(Talk::Live { frames, client, server })
        }
    }
}

/// A packet each way: neighbours are known, and the flow has been answered.
fn greet(client: &UdpSocket, server: &UdpSocket, path: &Path, family: Family) -> Result<()> {
    let mut buffer = [0; 2048];
    // Full of frames from the round before.
    server.set_nonblocking(true)?;
    while server.recv(&mut buffer).is_ok() {}
    server.set_nonblocking(false)?;
    client.send_to(b"there", SocketAddr::new(path.server.ip(family), UDP_PORT))?;
    let (n, from) = server.recv_from(&mut buffer).context("nothing arrives at the server")?;
    ensure!(&buffer[..n] == b"there", "something else arrives");
    server.send_to(b"back", from)?;
    client.recv(&mut buffer).context("nothing comes back")?;
    Ok(())
}

/// One round over one path.
pub fn measure(talk: &mut Talk, path: &Path, family: Family) -> Result<f64> {
    match talk {
        Talk::Rr(client) => {
            let mut times = Vec::with_capacity(TRANSACTIONS);
            let mut byte = [0x62];
            for _ in 0..TRANSACTIONS {
                let since = Instant::now();
                client.write_all(&byte)?;
                client.read_exact(&mut byte)?;
                times.push(since.elapsed().as_nanos() as f64 / 1000.0);
            }
            Ok(median(&times))
        }
        Talk::Stream { server, go } => {
            let mut buffer = vec![0; 256 << 10];
            let mut rates = Vec::with_capacity(PIECES);
            go.send(()).ok().context("the sender ended")?;
            let (mut left, mut since) = (PIECE * PIECES, Instant::now());
            let mut piece = 0;
            while left > 0 {
                let n = server.read(&mut buffer).context("the stream stalls")?;
                ensure!(n > 0, "the stream ended");
                left -= n;
                piece += n;
                if piece >= PIECE || left == 0 {
                    rates.push(piece as f64 * 8.0 / since.elapsed().as_nanos() as f64);
                    (piece, since) = (0, Instant::now());
                }
            }
            Ok(median(&rates[1..]))
        }
        Talk::Udp { client, server } => {
            greet(client, server, path, family)?;
            client.connect(SocketAddr::new(path.server.ip(family), UDP_PORT))?;
            // The first ones fill the socket.
            let times = kernel::send_batches(client, &[0x62; PAYLOAD], BATCH, BATCHES)?;
            Ok(median(&times[BATCHES / 20..]) / BATCH as f64)
        }
        Talk::Live { frames, client, server } => {
            greet(client, server, path, family)?;
            // Fills the socket.
            enter(&path.entry.netns, || frames.receive(path.entry.ifindex, 1000))?;
            live(&path.entry, frames)
        }
    }
}

/// The policy bites: another port is refused.
fn denied(node: &Node, path: &Path) -> Result<()> {
    let before = node.metric("Policy denied")?;
    let since = Instant::now();
    for family in Family::BOTH {
        let _tried = path.client.connect_start(SocketAddr::new(path.server.ip(family), TCP_PORT + 9))?;
    }
    while node.metric("Policy denied")? < before + 2 {
        ensure!(since.elapsed() < PATIENCE, "policy does not deny what it does not allow");
    }
    Ok(())
}

/// Tables counted what was sent, and a rule let it in.
fn check(before: Seen, after: Seen, packets: u64, what: &str) -> Result<()> {
    let (flow, forwarded) = (after.flow - before.flow, after.forwarded - before.forwarded);
    ensure!(
        flow >= packets && forwarded >= packets,
        "{what}: {packets} packets sent, {flow} in the flow table, {forwarded} in the metrics"
    );
    ensure!(after.rules > 0, "{what}: no rule of the policy counted the flow");
    Ok(())
}

/// Rounds over paths of which the last is that of `node`: values of each, and packets that the node's tables counted.
pub fn compare(plan: &Plan, kind: Kind, family: Family, paths: &[Path], node: &Node) -> Result<(Vec<Vec<f64>>, u64)> {
    let (proto, port) = kind.port();
    let mut talks = Vec::new();
    for path in paths {
        talks.push(open(path, family, kind).with_context(|| format!("{kind:?} {family:?} over {}", path.name))?);
    }
    let server = &paths.last().context("no path")?.server;
    let before = seen(node, family, proto, server, port)?;
    let values = super::interleaved(plan.rounds, paths.len(), |n| {
        measure(&mut talks[n], &paths[n], family).with_context(|| format!("{kind:?} {family:?} over {}", paths[n].name))
    })?;
    let after = seen(node, family, proto, server, port)?;
    check(before, after, kind.packets() * (plan.rounds as u64 + 1), &format!("{kind:?} {family:?}"))?;
    Ok((values, after.flow - before.flow))
}

/// No packet is longer than the MTU.
pub fn single_packets(paths: &[Path]) -> Result<()> {
    for path in paths {
        path.client.run(kernel::segmentation_off)?;
        path.server.run(kernel::segmentation_off)?;
    }
    Ok(())
}

/// ns of a frame that a program sends on without asking who may, and of one over the bare pair: where a datapath on this
/// processor begins.
fn floor(plan: &Plan, family: Family, bare: &Path, node: &Node) -> Result<[Vec<f64>; 2]> {
    let programs = Programs::load(node)?;
    let reference = Reference::new(node, programs.get("no_hash")?, 0)?;
    let server = full(&reference.server, family)?;
    let from = (bare.client.ip(family), 40000);
    let frames = udp_frame(&reference.entry, from, (reference.server.ip(family), UDP_PORT), &[0x62; PAYLOAD])?;
    let frames = Injector::new(frames)?;
    let mut talk = open(bare, family, Kind::Live)?;
    let values =
        super::interleaved(plan.rounds, 2, |n| if n == 0 { live(&reference.entry, &frames) } else { measure(&mut talk, bare, family) })?;
    server.recv(&mut [0; 2048]).context("nothing arrives that the program without policy sends on")?;
    Ok(<[_; 2]>::try_from(values).expect("two ways"))
}

/// ns of a frame that enters: the median of some runs.
pub fn live(entry: &Entry, frames: &Injector) -> Result<f64> {
    enter(&entry.netns, || {
        let runs: Result<Vec<f64>> = (0..RUNS).map(|_| frames.receive(entry.ifindex, FRAMES)).collect();
        Ok(median(&runs?))
    })
}

pub fn suffix(family: Family) -> &'static str {
    if family == Family::V4 { "v4" } else { "v6" }
}

pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    // The agent and the namespaces belong to other processors too; what is measured does not.
    let (node, pilus) = path::pilus()?;
    let paths = [path::direct()?, path::routed()?, pilus];
    super::on_own_processor(|cpu| rows(plan, &node, &paths, cpu))
}

fn rows(plan: &Plan, node: &Node, paths: &[Path; 3], cpu: usize) -> Result<Vec<Row>> {
    single_packets(paths)?;
    denied(node, &paths[2])?;
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        for family in [Family::V4, Family::V6] {
            let named = |base: &str| format!("{base}_{}", suffix(family));
            if !kind.rows().iter().any(|(base, _)| plan.wants(&named(base))) {
                continue;
            }
            let (values, counted) = compare(plan, kind, family, paths, node)?;
            let [f, routed, pilus] = &values[..] else { unreachable!("three paths") };
            let mut note = format!(
                "f {:.2}, routed {:.2}; over f {:.3}, over routed {:.3}; cpu {cpu}, {counted} packets counted",
                median(f),
                median(routed),
                ratio(pilus, f),
                ratio(pilus, routed),
            );
            if kind == Kind::Live {
                let [alone, bare] = floor(plan, family, &paths[0], node)?;
                write!(note, "; sent on by a program without policy {:.0}, over f {:.3}", median(&alone), ratio(&alone, &bare))?;
            }
            for (base, to) in kind.rows() {
                let baseline = if *to == "f" { f.clone() } else { routed.clone() };
                rows.push(Row { baseline, ..Row::new(&named(base), kind.unit(), pilus.clone()).note(note.clone()) });
            }
            progress(&format!("  {kind:?} {family:?} done"));
        }
    }
    Ok(rows)
}
