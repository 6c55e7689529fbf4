// SPDX-License-Identifier: Apache-2.0
//! Programs are swapped, and the agent is killed, under traffic that counts itself.

use super::{Plan, Row, progress};
use crate::traffic::{ClosedLoop, Result as Traffic, kernel_drops};
use crate::{Container, Family, Node, NodeOptions};
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use pilus_loader::collection::Program;
use pilus_loader::hook::{self, Dir};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const SWAP_ROWS: &[&str] = &["swap_lost"];
pub const OPEN_ROWS: &[&str] = &["swap_open_loop_extra_loss"];
pub const RESTART_ROWS: &[&str] = &["restart_lost"];

/// Of both families together, for each way of attaching.
const PACKETS: u64 = 1_000_000;
const SWAPS: u64 = 1000;
const RESTARTS: u64 = 10;
/// Of one run of the loop.
const CHUNK: u64 = 100_000;

/// Traffic until there were that many packets and `work` (which says what it did) did that much while it ran. Lost packets, sent
/// packets, work done.
fn under_traffic(
    ends: (&Container, &Container),
    family: Family,
    packets: u64,
    least: u64,
    mut work: impl FnMut() -> Result<u64>,
) -> Result<(u64, u64, u64)> {
    let (mut lost, mut all, mut done) = (0, 0, 0);
    while all < packets || done < least {
        let traffic = ClosedLoop::start(ends.0, ends.1, family, CHUNK)?;
        while traffic.running().load(Ordering::Relaxed) {
            done += work()?;
        }
        let Traffic { sent, received } = traffic.join();
        lost += sent - received.min(sent);
        all += sent;
    }
    Ok((lost, all, done))
}

fn pair(node: &Node) -> Result<(Container, Container)> {
    Ok((node.add("client", &["app=client"])?, node.add("server", &["app=server"])?))
}

/// Applies one tree, then the other: every endpoint's program is swapped each time.
struct Swapper<'a> {
    node: &'a Node,
    turns: u64,
    times: Vec<f64>,
}

const HOOK: &str = "/* SPDX-License-Identifier: GPL-2.0 */\n\
                    static __always_inline int custom_from_container(struct __sk_buff *ctx) { return 0; }\n\
                    static __always_inline int custom_to_container(struct __sk_buff *ctx) { return 0; }\n";

impl Swapper<'_> {
    fn swap(&mut self) -> Result<u64> {
        let hook = self.node.path("state/templates/custom/container.c");
        if self.turns.is_multiple_of(2) {
            std::fs::write(&hook, HOOK)?;
        } else {
            std::fs::remove_file(&hook)?;
        }
        self.turns += 1;
        let since = Instant::now();
        let applied = self.node.block_on(self.node.client().apply_template())?;
        ensure!(applied.ok && applied.swapped == 2, "{applied:?}");
        self.times.push(since.elapsed().as_secs_f64() * 1000.0);
        Ok(applied.swapped as u64)
    }
}

/// Takes the client's program away, waits for what that does, and puts it back: what no swap does.
fn detach_once(node: &Node, seen: impl FnOnce() + Send) -> Result<()> {
    let ifindex = node.block_on(node.client().endpoint("name:client"))?.interface.index;
    node.run(|| -> Result<()> {
        let id = hook::tc_info(ifindex, Dir::Ingress)?.context("no filter")?;
        let program = Program::by_id(id)?.context("no program")?;
        hook::detach_tc(ifindex, Dir::Ingress, false)?;
        seen();
        Ok(hook::attach_tc(&program, ifindex, Dir::Ingress)?)
    })
}

/// The same loop loses packets when the program goes: else nothing that it says is worth anything.
fn control() -> Result<u64> {
    let node = Node::start(NodeOptions { attach: "tc", ..NodeOptions::default() })?;
    let (client, server) = pair(&node)?;
    let traffic = ClosedLoop::start(&client, &server, Family::V6, 20_000)?;
    detach_once(&node, || traffic.wait_lost())?;
    let Traffic { sent, received } = traffic.join();
    ensure!(received < sent, "the program was detached and nothing was lost");
    Ok(sent - received)
}

/// A connection that sends a byte there and back at each turn.
struct Connection(TcpStream, TcpStream);

impl Connection {
    fn open(client: &Container, server: &Container, family: Family) -> Result<Self> {
        let listener = server.listen(family, 9002)?;
        let near = client.connect(SocketAddr::new(server.ip(family), 9002))?;
        let (far, _) = listener.accept()?;
        far.set_nodelay(true)?;
        far.set_read_timeout(Some(crate::container::PATIENCE))?;
        Ok(Self(near, far))
    }

    fn turn(&mut self) -> Result<()> {
        let mut seen = [0];
        self.0.write_all(b"x")?;
        self.1.read_exact(&mut seen)?;
        self.1.write_all(&seen)?;
        self.0.read_exact(&mut seen)?;
        Ok(())
    }
}

pub fn swaps(_: &Plan) -> Result<Vec<Row>> {
    let control = control()?;
    let modes: &[&'static str] = if pilus_loader::probe::Features::probe()?.tcx { &["tc", "tcx"] } else { &["tc"] };
    let parts = 2 * modes.len() as u64;
    let (mut lost, mut sent, mut swaps, mut by_devices, mut by_queues) = (0, 0, 0, 0, 0);
    let since = Instant::now();
    for attach in modes {
        let node = Node::start(NodeOptions { attach, ..NodeOptions::default() })?;
        let (client, server) = pair(&node)?;
        let mut swapper = Swapper { node: &node, turns: 0, times: Vec::new() };
        let before = kernel_drops(&node)?;
        for family in Family::BOTH {
            let mut connection = Connection::open(&client, &server, family)?;
            let (l, s, d) = under_traffic((&client, &server), family, PACKETS.div_ceil(parts), SWAPS.div_ceil(parts), || {
                let swapped = swapper.swap()?;
                connection.turn().context("a connection broke")?;
                Ok(swapped)
            })?;
            progress(&format!("  {attach} {family:?}: {d} swaps, {s} packets, {l} lost; apply {:.0} ms", super::median(&swapper.times)));
            (lost, sent, swaps) = (lost + l, sent + s, swaps + d);
        }
        let after = kernel_drops(&node)?;
        (by_devices, by_queues) = (by_devices + after.0 - before.0, by_queues + after.1 - before.1);
        ensure!(node.metric("Missed tail call")? == 0, "a tail call was missed");
        ensure!(node.metric("Forwarded")? >= 2 * PACKETS / modes.len() as u64, "the programs did not count the packets");
    }
    let note = format!(
        "{sent} packets, {swaps} swaps of a device's program through the agent ({}), 0 connections broken, 0 tail calls missed, dropped by \
         devices {by_devices}, by softnet {by_queues}, {:.0} s; control lost {control}",
        modes.join(", "),
        since.elapsed().as_secs_f64()
    );
    Ok(vec![Row::new(SWAP_ROWS[0], "packets", vec![lost as f64]).note(note)])
}

/// Of one burst at full rate.
const BURST: u64 = 200_000;
/// Room for a whole burst, so that a slow reader loses nothing: what is missing was lost on the way.
const ROOM: usize = 512 << 20;

/// Sends as fast as it can while `work` runs over and over (which says what it did). Sent, received, work done.
fn burst(ends: (&Container, &Container), family: Family, mut work: impl FnMut() -> Result<u64>) -> Result<(u64, u64, u64)> {
    let far = ends.1.udp(family, 9001)?;
    setsockopt(&far, sockopt::RcvBufForce, &ROOM)?;
    far.set_read_timeout(Some(Duration::from_millis(500)))?;
    let near = ends.0.udp(family, 0)?;
    near.connect(SocketAddr::new(ends.1.ip(family), 9001))?;
    let sending = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let sent = (0..BURST).filter(|n| near.send(&n.to_be_bytes()).is_ok()).count();
            sending.store(false, Ordering::Relaxed);
            sent as u64
        });
        let receiver = scope.spawn(|| {
            let (mut received, mut buffer) = (0, [0; 64]);
            while received < BURST {
                match far.recv(&mut buffer) {
                    Ok(_) => received += 1,
                    Err(_) if sending.load(Ordering::Relaxed) => {}
                    Err(_) => break,
                }
            }
            received
        });
        let mut done = 0;
        while sending.load(Ordering::Relaxed) {
            done += work()?;
        }
        let sent = sender.join().ok().context("sender")?;
        Ok((sent, receiver.join().ok().context("receiver")?, done))
    })
}

/// Bursts with swaps and without, in turns.
pub fn open_loop(plan: &Plan) -> Result<Vec<Row>> {
    let control = {
        let node = Node::start(NodeOptions { attach: "tc", ..NodeOptions::default() })?;
        let (client, server) = pair(&node)?;
        let (sent, received, _) = burst((&client, &server), Family::V6, || detach_once(&node, || {}).map(|()| 1))?;
        ensure!(received < sent, "the program was detached and nothing was lost");
        sent - received
    };
    let node = Node::start(NodeOptions::default())?;
    let (client, server) = pair(&node)?;
    let mut swapper = Swapper { node: &node, turns: 0, times: Vec::new() };
    // Both trees are compiled before anything counts.
    swapper.swap()?;
    swapper.swap()?;
    let (mut with, mut without, mut swaps) = (Vec::new(), Vec::new(), 0);
    for _ in 0..plan.rounds {
        for family in Family::BOTH {
            let idle = || {
                std::thread::yield_now();
                Ok(0)
            };
            let (sent, received, _) = burst((&client, &server), family, idle)?;
            without.push((sent - received.min(sent)) as f64);
            let (sent, received, done) = burst((&client, &server), family, || swapper.swap())?;
            with.push((sent - received.min(sent)) as f64);
            swaps += done;
        }
    }
    let extra = with.iter().zip(&without).map(|(with, without)| with - without).collect();
    let (lost_with, lost_without): (f64, f64) = (with.iter().sum(), without.iter().sum());
    let note = format!(
        "full rate, {} bursts of {BURST} packets each way: {lost_with:.0} lost with {swaps} swaps, {lost_without:.0} without; control lost {control}",
        with.len()
    );
    Ok(vec![Row::new(OPEN_ROWS[0], "packets", extra).note(note)])
}

pub fn restarts(_: &Plan) -> Result<Vec<Row>> {
    let mut node = Node::start(NodeOptions::default())?;
    let (client, server) = pair(&node)?;
    let (mut lost, mut sent, mut restarts, mut times) = (0, 0, 0, Vec::new());
    for family in Family::BOTH {
        let (l, s, d) = under_traffic((&client, &server), family, CHUNK, RESTARTS / 2, || {
            let since = Instant::now();
            node.kill_agent()?;
            node.start_agent()?;
            times.push(since.elapsed().as_secs_f64() * 1000.0);
            Ok(1)
        })?;
        progress(&format!("  {family:?}: {d} restarts, {s} packets, {l} lost"));
        (lost, sent, restarts) = (lost + l, sent + s, restarts + d);
    }
    let builds = node.block_on(node.client().status()).context("status")?.objects.builds;
    ensure!(builds == 0, "{builds} objects were compiled after a restart");
    let note = format!("{sent} packets, {restarts} restarts; kill to first answer {:.0} ms", super::median(&times));
    Ok(vec![Row::new(RESTART_ROWS[0], "packets", vec![lost as f64]).note(note)])
}
