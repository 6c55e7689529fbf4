// SPDX-License-Identifier: Apache-2.0
//! Traffic that counts itself.

use crate::container::PATIENCE;
use crate::{Container, Family, Node};
use anyhow::Result as Anyhow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Packets on their way at one time: few enough that no queue overflows.
const WINDOW: u64 = 32;
/// How often the sender, when no answer comes, looks whether it is to go on without.
const LOOK: Duration = Duration::from_millis(500);

/// What a run saw. Each packet is sent, received and answered once; `received` counts answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Result {
    pub sent: u64,
    pub received: u64,
}

/// UDP with a fixed window: a packet is sent only when an answer made room. Count-limited, so that no deadline cuts off
/// packets on their way. No answer is waited for less than anything else here is ([`PATIENCE`]): a machine that stands
/// still for seconds, as an emulated one beside others does, loses nothing by that.
pub struct ClosedLoop {
    running: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    /// Somebody loses packets on purpose.
    expected: Arc<AtomicBool>,
    client: std::thread::JoinHandle<Anyhow<Result>>,
    server: std::thread::JoinHandle<Anyhow<()>>,
}

impl ClosedLoop {
    pub fn start(client: &Container, server: &Container, family: Family, packets: u64) -> Anyhow<Self> {
        let far = server.udp(family, 9000)?;
        let near = client.udp(family, 0)?;
        near.connect(SocketAddr::new(server.ip(family), 9000))?;
        near.set_read_timeout(Some(LOOK))?;
        let running = Arc::new(AtomicBool::new(true));
        let done = Arc::clone(&running);
        let lost = Arc::new(AtomicU64::new(0));
        let expected = Arc::new(AtomicBool::new(false));
        let (counted, on_purpose) = (Arc::clone(&lost), Arc::clone(&expected));
        let echo = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            loop {
                let (n, from) = far.recv_from(&mut buffer)?;
                if &buffer[..n] == b"end" {
                    return Ok(());
                }
                far.send_to(&buffer[..n], from)?;
            }
        });
        let stop = server.udp(family, 0)?;
        let end_at = SocketAddr::new(server.ip(family), 9000);
        let client = std::thread::spawn(move || {
            let result = run(&near, packets, &counted, &on_purpose);
            done.store(false, Ordering::Relaxed);
            // Inside the server's own namespace nothing can get lost.
            stop.send_to(b"end", end_at)?;
            result
        });
        Ok(Self { running, lost, expected, client, server: echo })
    }

    /// True until the last packet was answered.
    pub fn running(&self) -> &AtomicBool {
        &self.running
    }

    /// Waits until a packet is lost, as it is meant to be, or all are answered.
    pub fn wait_lost(&self) {
        self.expected.store(true, Ordering::Relaxed);
        while self.running.load(Ordering::Relaxed) && self.lost.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
    }

    /// Kills the agent and starts it again for as long as this traffic runs, and at least so often.
    pub fn join_under_restarts(self, node: &mut Node, at_least: u32) -> Result {
        let mut restarts = 0;
        while restarts < at_least || self.running.load(Ordering::Relaxed) {
            node.kill_agent().expect("kill");
            node.start_agent().expect("start");
            restarts += 1;
        }
        let result = self.join();
        println!("{restarts} restarts, {result:?}");
        result
    }

    pub fn join(self) -> Result {
        let result = self.client.join().expect("client thread").expect("client");
        self.server.join().expect("server thread").expect("server");
        result
    }
}

fn run(near: &std::net::UdpSocket, packets: u64, told: &AtomicU64, expected: &AtomicBool) -> Anyhow<Result> {
    let (mut sent, mut received, mut lost) = (0u64, 0u64, 0u64);
    let mut buffer = [0; 64];
    let mut answered = Instant::now();
    while received + lost < packets {
        while sent < packets && sent < received + lost + WINDOW {
            near.send(&sent.to_be_bytes())?;
            sent += 1;
        }
        match near.recv(&mut buffer) {
            Ok(_) => {
                received += 1;
                answered = Instant::now();
            }
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                if expected.load(Ordering::Relaxed) || answered.elapsed() >= PATIENCE {
                    lost = sent - received;
                    told.store(lost, Ordering::Relaxed);
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Result { sent, received })
}

/// Packets that the node's devices and its processors' queues dropped since the devices were made, and since the machine started.
pub fn kernel_drops(node: &Node) -> Anyhow<(u64, u64)> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let (devices, queues) = node.run(|| Ok::<_, std::io::Error>((read("dev")?, read("softnet_stat")?)))?;
    // Name, then eight columns of what was received (the fourth: dropped) and as many of what was sent.
    let device = |line: &str| -> Option<u64> {
        let columns: Vec<u64> = line.split_once(':')?.1.split_whitespace().filter_map(|c| c.parse().ok()).collect();
        Some(columns.get(3)? + columns.get(11)?)
    };
    let queue = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    Ok((devices.lines().filter_map(device).sum(), queues.lines().filter_map(queue).sum()))
}
