// SPDX-License-Identifier: Apache-2.0
//! Removes expired flows, and keeps the table of idle times.

use super::Tables;
use pilus_loader::collection::Program;
use pilus_loader::{Error, clock};
use pilus_model::abi::*;

/// Idle times in seconds: what conntrack in the kernel uses, shorter where nothing is at stake.
const TIMEOUTS: FlowTimeouts =
    FlowTimeouts { tcp: 21600, tcp_open: 60, tcp_closing: 10, udp: 30, udp_reply: 180, icmp: 30, other: 600, deny: 60 };

/// Idle times in the kernel's jiffies.
fn in_jiffies(hz: u32) -> FlowTimeouts {
    let t = TIMEOUTS;
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

/// Writes the idle times.
pub fn write_timeouts(tables: &Tables) -> Result<(), Error> {
    tables.timeouts.put(&0, &in_jiffies(clock::hz()?))
}

/// Low 32 bits of the kernel's jiffies, from the program that reads them as the flow table does.
pub fn jiffies(flow_clock: &Program) -> Result<u32, Error> {
    Ok(flow_clock.test_run(&[0; 14], None, 1)?.retval)
}

/// Idle limit of an entry, jiffies. The kernel side decides the same in `lib/ct.h`.
pub fn idle_limit(flow: &Flow, proto: u8, t: &FlowTimeouts) -> u32 {
    let both = FLOW_FIN_A | FLOW_FIN_B;
    match proto {
        _ if flow.flags & FLOW_DENY != 0 => t.deny,
        6 if flow.flags & FLOW_RST != 0 || flow.flags & both == both => t.tcp_closing,
        6 if flow.flags & FLOW_REPLY != 0 => t.tcp,
        6 => t.tcp_open,
        17 if flow.flags & FLOW_REPLY != 0 => t.udp_reply,
        17 => t.udp,
        1 | 58 => t.icmp,
        _ => t.other,
    }
}

/// One sweep over both tables. Returns entries seen and removed.
pub fn sweep(tables: &Tables, flow_clock: &Program) -> Result<(usize, usize), Error> {
    let now = jiffies(flow_clock)?;
    let t = tables.timeouts.get(&0)?.unwrap_or_default();
    let old = |f: &Flow, proto| {
        let idle = now.wrapping_sub(f.last);
        // A packet of this very moment may have moved `last` past `now`.
        idle < u32::MAX / 2 && idle > idle_limit(f, proto, &t)
    };
    let mut seen = 0;
    let mut dead4 = Vec::new();
    tables.flow4.each(|k, v| {
        seen += 1;
        if old(&v.h, k.proto) {
            dead4.push(k);
        }
    })?;
    let mut dead6 = Vec::new();
    tables.flow6.each(|k, v| {
        seen += 1;
        if old(&v.h, k.proto) {
            dead6.push(k);
        }
    })?;
    Ok((seen, tables.flow4.delete_batch(&dead4)? + tables.flow6.delete_batch(&dead6)?))
}

/// Removes every flow: each next packet is judged anew.
pub fn flush(tables: &Tables) -> Result<usize, Error> {
    let keys4: Vec<FlowKey4> = tables.flow4.entries()?.into_iter().map(|(k, _)| k).collect();
    let keys6: Vec<FlowKey6> = tables.flow6.entries()?.into_iter().map(|(k, _)| k).collect();
    Ok(tables.flow4.delete_batch(&keys4)? + tables.flow6.delete_batch(&keys6)?)
}
