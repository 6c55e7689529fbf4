// SPDX-License-Identifier: Apache-2.0
//! The flow table's keeper: idle times, removal of what is closed or expired before the kernel has to evict, and listing.

use super::Tables;
use super::counts::{Attribution, RuleCounts};
use super::nat::{self, Mapped};
use pilus_loader::collection::Program;
use pilus_loader::{Error, clock};
use pilus_model::abi::*;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Idle times in seconds, as options give them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts(FlowTimeouts);

/// What conntrack in the kernel uses, shorter where nothing is at stake.
impl Default for Timeouts {
    fn default() -> Self {
        Self(FlowTimeouts { tcp: 21600, tcp_open: 60, tcp_closing: 10, udp: 30, udp_reply: 180, icmp: 30, other: 600, deny: 60 })
    }
}

impl Timeouts {
    /// Jiffies are compared in 32 bits, half of them for the future: with 1000 a second that is 24 days.
    pub const MAX: u32 = 1_000_000;

    fn field(&mut self, key: &str) -> Option<&mut u32> {
        let t = &mut self.0;
        Some(match key {
            "flow-timeout-tcp" => &mut t.tcp,
            "flow-timeout-tcp-open" => &mut t.tcp_open,
            "flow-timeout-tcp-closing" => &mut t.tcp_closing,
            "flow-timeout-udp" => &mut t.udp,
            "flow-timeout-udp-reply" => &mut t.udp_reply,
            "flow-timeout-icmp" => &mut t.icmp,
            "flow-timeout-other" => &mut t.other,
            "flow-timeout-deny" => &mut t.deny,
            _ => return None,
        })
    }

    /// Option and seconds, in the order of the options.
    pub fn list(&self) -> [(&'static str, u32); 8] {
        let t = &self.0;
        [
            ("flow-timeout-tcp", t.tcp),
            ("flow-timeout-tcp-open", t.tcp_open),
            ("flow-timeout-tcp-closing", t.tcp_closing),
            ("flow-timeout-udp", t.udp),
            ("flow-timeout-udp-reply", t.udp_reply),
            ("flow-timeout-icmp", t.icmp),
            ("flow-timeout-other", t.other),
            ("flow-timeout-deny", t.deny),
        ]
    }

    /// `None`: there is no such option.
    pub fn set(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        let field = self.field(key)?;
        Some(match value.parse() {
            Ok(seconds) if (1..=Self::MAX).contains(&seconds) => {
                *field = seconds;
                Ok(())
            }
            _ => Err(format!("`{value}`: takes seconds, 1 to {}", Self::MAX)),
        })
    }

    fn shortest(&self) -> u32 {
        self.list().into_iter().map(|(_, seconds)| seconds).min().unwrap_or(1)
    }

    fn in_jiffies(self, hz: u32) -> FlowTimeouts {
        let t = self.0;
        FlowTimeouts {
            tcp: t.tcp * hz,
            tcp_open: t.tcp_open * hz,
            tcp_closing: t.tcp_closing * hz,
            udp: t.udp * hz,
            udp_reply: t.udp_reply * hz,
            icmp: t.icmp * hz,
            other: t.other * hz,
            deny: t.deny * hz,
        }
    }
}

/// Idle limits while the table is nearly full: shorter only for flows that are over, denied, or were never answered.
fn pressed(t: &FlowTimeouts) -> FlowTimeouts {
    FlowTimeouts { tcp_closing: 0, tcp_open: t.tcp_open / 8, udp: t.udp / 8, icmp: t.icmp / 8, deny: t.deny / 8, ..*t }
}

/// Entries of each of the two flow tables for a node with this much memory: half a percent of it, at 144 bytes an entry.
pub fn entries_for(memory_kib: u64) -> u32 {
    let entries = memory_kib.saturating_mul(1024) / 200 / 144;
    u32::try_from(entries.clamp(65_536, 4 << 20)).unwrap_or(65_536) & !1023
}

/// The same for this node.
pub fn default_entries() -> u32 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    entries_for(total.unwrap_or(0))
}

/// Low 32 bits of the kernel's jiffies, from the program that reads them as the flow table does.
pub fn jiffies(flow_clock: &Program) -> Result<u32, Error> {
    Ok(flow_clock.test_run(&[0; 14], None, 1)?.retval)
}

fn is_closing(flow: &Flow) -> bool {
    let both = FLOW_FIN_A | FLOW_FIN_B;
    flow.flags & FLOW_RST != 0 || flow.flags & both == both
}

/// Idle limit of an entry, jiffies. The kernel side decides the same in `lib/ct_entry.h`.
pub fn idle_limit(flow: &Flow, proto: u8, t: &FlowTimeouts) -> u32 {
    match proto {
        _ if flow.flags & FLOW_DENY != 0 => t.deny,
        6 if is_closing(flow) => t.tcp_closing,
        6 if flow.flags & FLOW_REPLY != 0 => t.tcp,
        6 => t.tcp_open,
        17 if flow.flags & FLOW_REPLY != 0 => t.udp_reply,
        17 => t.udp,
        1 | 58 => t.icmp,
        _ => t.other,
    }
}

/// How long ago a packet of the flow was seen, jiffies.
pub fn idle(flow: &Flow, now: u32) -> u32 {
    let idle = now.wrapping_sub(flow.last);
    // A packet of this very moment may have moved `last` past `now`.
    if idle < u32::MAX / 2 { idle } else { 0 }
}

/// How a flow stands, for people.
pub fn state(flow: &Flow, proto: u8) -> &'static str {
    match proto {
        _ if flow.flags & FLOW_DENY != 0 => "denied",
        6 if is_closing(flow) => "closing",
        6 if flow.flags & FLOW_REPLY != 0 => "established",
        6 => "opening",
        _ if flow.flags & FLOW_REPLY != 0 => "replied",
        _ => "unreplied",
    }
}

/// What the keeper knows and did, of both tables together where it is not said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// IPv4 and IPv6: entries after the last sweep, and room.
    pub present: [u64; 2],
    pub capacity: [u64; 2],
    /// Entries removed so far: idle for too long, after FIN or RST, early because the table was nearly full, and on request.
    pub expired: u64,
    pub closed: u64,
    pub early: u64,
    pub flushed: u64,
    pub sweeps: u64,
    /// Duration of the last sweep.
    pub took: Duration,
    /// Time until the next one.
    pub interval: Duration,
}

/// Percent of a table at which flows go early.
const PRESSURE: u64 = 80;
const SLOWEST: Duration = Duration::from_secs(5);
const FASTEST: Duration = Duration::from_millis(250);

/// When to look again: the sooner the less room is left, and four times before what came since the last sweep would fill the
/// table; with at most a fifth of a processor's time.
fn next_interval(stats: &Stats, grown: [u64; 2], since: Duration, shortest: u32) -> Duration {
    let mut next = SLOWEST.min(Duration::from_secs(shortest.into()));
    for (family, grown) in grown.into_iter().enumerate() {
        let room = stats.capacity[family].saturating_sub(stats.present[family]);
        next = next.min(SLOWEST.mul_f64((room as f64 / stats.capacity[family] as f64).powi(2)));
        if grown > 0 {
            next = next.min(since.mul_f64(room as f64 / grown as f64 / 4.0).min(SLOWEST));
        }
    }
    next.max(FASTEST).max(stats.took * 4).min(SLOWEST.max(stats.took * 4))
}

/// Keeps both flow tables.
#[derive(Debug)]
pub struct FlowKeeper {
    tables: Arc<Tables>,
    /// What removed flows carried goes here.
    counts: Arc<RuleCounts>,
    hz: u32,
    timeouts: Mutex<Timeouts>,
    stats: Mutex<Stats>,
    last: Mutex<Instant>,
    wake: Notify,
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FlowKeeper {
    /// Writes the idle times.
    pub fn new(tables: Arc<Tables>, counts: Arc<RuleCounts>, timeouts: Timeouts) -> Result<Self, Error> {
        let hz = clock::hz()?;
        let capacity = [tables.flow4.max_entries().into(), tables.flow6.max_entries().into()];
        let stats = Stats { capacity, interval: FASTEST, ..Stats::default() };
        tables.timeouts.put(&0, &timeouts.in_jiffies(hz))?;
        let timeouts = Mutex::new(timeouts);
        Ok(Self { tables, counts, hz, timeouts, stats: Mutex::new(stats), last: Mutex::new(Instant::now()), wake: Notify::new() })
    }

    pub fn timeouts(&self) -> Timeouts {
        *lock(&self.timeouts)
    }

    /// From now on, also for flows that are there.
    pub fn set_timeouts(&self, timeouts: Timeouts) -> Result<(), Error> {
        let mut held = lock(&self.timeouts);
        self.tables.timeouts.put(&0, &timeouts.in_jiffies(self.hz))?;
        *held = timeouts;
        self.wake.notify_one();
        Ok(())
    }

    pub fn stats(&self) -> Stats {
        *lock(&self.stats)
    }

    /// Returns when it is time for a sweep.
    pub async fn due(&self) {
        let interval = self.stats().interval;
        let _ = tokio::time::timeout(interval, self.wake.notified()).await;
    }

    pub fn seconds(&self, jiffies: u32) -> u32 {
        jiffies / self.hz
    }

    /// Idle times as the tables have them, jiffies.
    pub fn limits(&self) -> FlowTimeouts {
        self.timeouts().in_jiffies(self.hz)
    }

    /// Removes what is closed or expired; under pressure also what soon would be.
    pub fn sweep(&self, flow_clock: &Program) -> Result<Stats, Error> {
        let begun = Instant::now();
        let now = jiffies(flow_clock)?;
        let limits = self.limits();
        let before = self.stats();
        let (mut present, mut grown, mut removed) = ([0; 2], [0; 2], [0; 3]);
        for family in 0..2 {
            let pass = if family == 0 { Self::pass::<FlowKey4> } else { Self::pass::<FlowKey6> };
            let (seen, expired, closed) = pass(self, now, &limits)?;
            present[family] = seen - expired - closed;
            grown[family] = if before.sweeps == 0 { 0 } else { seen.saturating_sub(before.present[family]) };
            removed[0] += expired;
            removed[1] += closed;
            if present[family] * 100 > before.capacity[family] * PRESSURE {
                let (seen, expired, closed) = pass(self, now, &pressed(&limits))?;
                present[family] = seen - expired - closed;
                removed[2] += expired + closed;
            }
        }
        let since = begun.duration_since(std::mem::replace(&mut *lock(&self.last), begun));
        let mut stats = lock(&self.stats);
        stats.present = present;
        stats.expired += removed[0];
        stats.closed += removed[1];
        stats.early += removed[2];
        stats.sweeps += 1;
        stats.took = begun.elapsed();
        stats.interval = next_interval(&stats, grown, since, self.timeouts().shortest());
        Ok(*stats)
    }

    /// One pass over a table: entries seen, and removed as expired and as closed.
    fn pass<K: Mapped>(&self, now: u32, limits: &FlowTimeouts) -> Result<(u64, u64, u64), Error> {
        let table = K::table(&self.tables);
        let (mut seen, mut expired, mut closed, mut mapped) = (0, Vec::new(), Vec::new(), Vec::new());
        let (mut carried, mut counted) = (Attribution::new(&self.tables), Ok(()));
        table.each(|key, entry| {
            seen += 1;
            let (flow, proto) = (K::flow(&entry), key.proto());
            if flow.flags & FLOW_NAT != 0 {
                // It lives as long as the container's flow does. Younger ones have theirs.
                if idle(flow, now) > limits.tcp_closing {
                    mapped.push((key, *flow));
                }
            } else if idle(flow, now) > idle_limit(flow, proto, limits) {
                counted = std::mem::replace(&mut counted, Ok(())).and_then(|()| key.count(&mut carried, flow));
                if proto == 6 && is_closing(flow) { &mut closed } else { &mut expired }.push(key);
            }
        })?;
        let mut removed = [table.delete_batch(&expired)?, table.delete_batch(&closed)?];
        counted?;
        self.counts.fold(&carried.counts);
        let mut orphans = Vec::new();
        for (key, flow) in mapped {
            if !nat::is_used(&self.tables, &key, &flow)? {
                orphans.push(key);
            }
        }
        removed[0] += table.delete_batch(&orphans)?;
        Ok((seen, removed[0] as u64, removed[1] as u64))
    }

    /// Has every flow, or those of one slot, judged anew with its next packet. How many there were.
    pub fn flush(&self, slot: Option<u16>) -> Result<u64, Error> {
        let flushed = self.forget::<FlowKey4>(slot)? + self.forget::<FlowKey6>(slot)?;
        lock(&self.stats).flushed += flushed;
        Ok(flushed)
    }

    fn forget<K: Mapped>(&self, slot: Option<u16>) -> Result<u64, Error> {
        let table = K::table(&self.tables);
        let (mut keys, mut masqueraded) = (Vec::new(), Vec::new());
        let (mut carried, mut counted) = (Attribution::new(&self.tables), Ok(()));
        table.each(|key, entry| {
            let flow = K::flow(&entry);
            if flow.flags & FLOW_NAT != 0 || slot.is_some_and(|slot| !flow.ep.contains(&slot)) {
                return;
            }
            if flow.flags & FLOW_MASQUERADE != 0 {
                masqueraded.push((key, entry));
            } else {
                counted = std::mem::replace(&mut counted, Ok(())).and_then(|()| key.count(&mut carried, flow));
                keys.push(key);
            }
        })?;
        counted?;
        let flushed = masqueraded.len() as u64;
        // The other side knows its port, so that one stays; no epoch is half of all away.
        for (key, mut entry) in masqueraded {
            let flow = K::flow_mut(&mut entry);
            flow.epoch = flow.epoch.wrapping_add(1 << 31);
            table.put(&key, &entry)?;
        }
        let removed = table.delete_batch(&keys)? as u64;
        self.counts.fold(&carried.counts);
        Ok(flushed + removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_grows_with_memory_within_bounds() {
        let gib = |n: u64| entries_for(n << 20);
        assert_eq!((gib(0), gib(1)), (65_536, 65_536));
        assert_eq!(gib(8), 297_984);
        assert!(gib(8) * 2 - gib(16) < 2048 || gib(16) - gib(8) * 2 < 2048, "{} {}", gib(8), gib(16));
        assert_eq!(gib(1 << 20), 4 << 20);
        assert_eq!(entries_for(u64::MAX), 4 << 20);
    }

    #[test]
    fn a_timeout_is_set_by_its_option_and_within_bounds() {
        for (key, old) in Timeouts::default().list() {
            let mut t = Timeouts::default();
            assert_eq!(t.set(key, "7"), Some(Ok(())));
            let changed: Vec<_> = t.list().into_iter().filter(|(_, s)| *s == 7).collect();
            assert_eq!((changed.as_slice(), old != 7), (&[(key, 7)][..], true));
            for bad in ["0", "-1", "1.5", "", "1000001", "soon"] {
                let refused = t.set(key, bad);
                assert!(matches!(&refused, Some(Err(why)) if why.contains(bad) && why.contains("seconds")), "{refused:?}");
            }
            assert_eq!(t.list().into_iter().find(|(k, _)| *k == key), Some((key, 7)), "a refused value changes nothing");
        }
        assert_eq!(Timeouts::default().set("flow-timeout-gre", "7"), None);
        let jiffies = Timeouts(FlowTimeouts { tcp: Timeouts::MAX, ..Timeouts::default().0 }).in_jiffies(1000);
        assert!(jiffies.tcp < u32::MAX / 2);
    }

    #[test]
    fn a_filling_table_is_swept_more_often() {
        let stats = |present: u64, took_ms| Stats {
            present: [0, present],
            capacity: [1000, 1000],
            took: Duration::from_millis(took_ms),
            ..Stats::default()
        };
        let second = Duration::from_secs(1);
        let next = |s: &Stats, grown| next_interval(s, [0, grown], second, 10);
        assert_eq!(next(&stats(0, 1), 0), SLOWEST);
        assert_eq!(next(&stats(500, 1), 0), SLOWEST / 4, "half full");
        assert_eq!(next(&stats(800, 1), 0), FASTEST, "nearly full");
        // 900 free, 450 a second: four looks in two seconds.
        assert_eq!(next(&stats(100, 1), 450), second / 2);
        assert_eq!(next(&stats(800, 1), 10_000), FASTEST);
        assert_eq!(next(&stats(800, 500), 10_000), second * 2, "not more than a fifth of the time");
        assert_eq!(next_interval(&stats(0, 1), [0; 2], second, 1), second, "as fine as the shortest idle time");
        assert_eq!(next(&stats(0, 9000), 0), second * 36);
    }

    #[test]
    fn under_pressure_only_what_is_judged_anew_goes_early() {
        let t = Timeouts::default().in_jiffies(1000);
        let p = pressed(&t);
        let of = |flags, proto, t: &FlowTimeouts| idle_limit(&Flow { flags, ..Flow::default() }, proto, t);
        for (flags, proto) in [(FLOW_REPLY, 6), (FLOW_REPLY, 17), (0, 47), (FLOW_REPLY | FLOW_FIN_A, 6)] {
            assert_eq!(of(flags, proto, &p), of(flags, proto, &t), "{flags} {proto}");
        }
        for (flags, proto) in [(0, 6), (0, 17), (0, 58), (FLOW_DENY, 6), (FLOW_RST | FLOW_REPLY, 6), (FLOW_FIN_A | FLOW_FIN_B, 6)] {
            assert!(of(flags, proto, &p) < of(flags, proto, &t), "{flags} {proto}");
        }
    }
}
