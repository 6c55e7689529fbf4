// SPDX-License-Identifier: Apache-2.0
//! Packets and bytes by rule. The kernel counts what a rule was asked about, which is the first packet of each flow; those that
//! follow are in the flow's entry. They are given to the rules that decide about the flow now: when its entry is removed, and
//! when somebody asks.

use super::Tables;
use pilus_loader::Error;
use pilus_model::abi::*;
use pilus_model::identity::NumericIdentity;
use pilus_model::ipcache::{exact_key, lpm_key};
use pilus_model::policy::block::{BlockVerdict, lookup_with};
use pilus_model::policy::{Direction, Traffic};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// By index of the rule's record.
pub type Counts = HashMap<u16, Counter>;

fn add(counts: &mut Counts, index: u16, packets: u64, bytes: u64) {
    let count = counts.entry(index).or_default();
    count.packets += packets;
    count.bytes += bytes;
}

/// What flows that are no more had carried.
#[derive(Debug, Default)]
pub struct RuleCounts(Mutex<Counts>);

impl RuleCounts {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index stands for another rule from now on.
    pub fn reset(&self, index: u16) {
        self.lock().remove(&index);
    }

    pub fn fold(&self, counts: &Counts) {
        let mut held = self.lock();
        counts.iter().for_each(|(index, c)| add(&mut held, *index, c.packets, c.bytes));
    }
}

/// One end of a flow's key: address, port, and the slot behind it.
pub type End = (IpAddr, u16, u16);

/// Finds the rules that decide about flows. Looks at each policy, identity and port once.
pub struct Attribution<'a> {
    tables: &'a Tables,
    rows: HashMap<u16, Option<Endpoint>>,
    identities: HashMap<IpAddr, NumericIdentity>,
    rules: HashMap<(u32, NumericIdentity, u16, u8), Option<u16>>,
    pub counts: Counts,
}

impl<'a> Attribution<'a> {
    pub fn new(tables: &'a Tables) -> Self {
        Self { tables, rows: HashMap::new(), identities: HashMap::new(), rules: HashMap::new(), counts: Counts::new() }
    }

    fn row(&mut self, slot: u16) -> Result<Option<Endpoint>, Error> {
        if let Some(row) = self.rows.get(&slot) {
            return Ok(*row);
        }
        let row = self.tables.endpoint.get(&slot.into())?.filter(|row| row.flags & EP_VALID != 0);
        self.rows.insert(slot, row);
        Ok(row)
    }

    /// A container's identity is its row's, everybody else's that of the address.
    fn identity(&mut self, (ip, _, slot): End) -> Result<NumericIdentity, Error> {
        if u32::from(slot) >= SLOT_FIRST {
            return Ok(NumericIdentity(self.row(slot)?.map_or(0, |row| row.identity)));
        }
        if let Some(id) = self.identities.get(&ip) {
            return Ok(*id);
        }
        let found = match self.tables.ipcache.get(&exact_key(ip))? {
            Some(entry) => Some(entry),
            None => match lpm_key(ip, if ip.is_ipv4() { 32 } else { 128 }) {
                Ok(key) => self.tables.ipcache_lpm.get(&key)?,
                Err(_) => None,
            },
        };
        let id = found.map_or(Reserved::World.into(), |entry| NumericIdentity(entry.identity));
        self.identities.insert(ip, id);
        Ok(id)
    }

    fn rule(&mut self, policy: u32, direction: Direction, peer: NumericIdentity, dport: u16, proto: u8) -> Result<Option<u16>, Error> {
        if policy < POLICY_FIRST {
            return Ok(None);
        }
        let key = (policy, peer, dport, proto);
        if let Some(rule) = self.rules.get(&key) {
            return Ok(*rule);
        }
        let found = lookup_with(|key| self.tables.policy.get(key), policy, direction, peer, Traffic { dport, proto })?;
        let rule = match found {
            BlockVerdict::Allow(index) | BlockVerdict::Redirect(index) => Some(index),
            BlockVerdict::Deny(index) => index,
        };
        self.rules.insert(key, rule);
        Ok(rule)
    }

    /// Counts a flow's packets but its first, which the kernel gave to its rules already.
    pub fn flow(&mut self, a: End, b: End, proto: u8, flow: &Flow) -> Result<(), Error> {
        let packets: u64 = flow.packets.iter().map(|p| u64::from(*p)).sum();
        if packets < 2 || flow.flags & FLOW_DENY != 0 {
            return Ok(());
        }
        // The first packet was about as long as the others that its sender sent.
        let opener = usize::from(flow.flags & FLOW_OPENER_B != 0);
        let first = flow.bytes[opener] / u64::from(flow.packets[opener].max(1));
        let bytes = flow.bytes.iter().sum::<u64>() - first;
        let (from, to) = if opener == 0 { (a, b) } else { (b, a) };
        // An echo has its identifier where others have a port; other ICMP messages have their type.
        let dport = match proto {
            1 | 58 if to.1 & 0xff00 == 0x100 && from.1 == 0 => to.1 & 0xff,
            1 => 8,
            58 => 128,
            _ => to.1,
        };
        let (from_id, to_id) = (self.identity(from)?, self.identity(to)?);
        let sides = [(from.2, to_id, Direction::Egress), (to.2, from_id, Direction::Ingress)];
        for (slot, peer, direction) in sides {
            let Some(row) = self.row(slot)? else { continue };
            let policy = if direction == Direction::Egress { row.policy_out } else { row.policy_in };
            if let Some(index) = self.rule(policy, direction, peer, dport, proto)? {
                add(&mut self.counts, index, packets - 1, bytes);
            }
        }
        Ok(())
    }

    pub fn flow4(&mut self, k: &FlowKey4, flow: &Flow) -> Result<(), Error> {
        let ip = |ip: Be32| IpAddr::from(ip.to_wire());
        self.flow((ip(k.a), k.ap.get(), flow.ep[1]), (ip(k.b), k.bp.get(), flow.ep[0]), k.proto, flow)
    }

    pub fn flow6(&mut self, k: &FlowKey6, flow: &Flow) -> Result<(), Error> {
        let ip = |ip: [Be32; 4]| {
            let mut bytes = [0; 16];
            bytes.chunks_exact_mut(4).zip(ip).for_each(|(to, from)| to.copy_from_slice(&from.to_wire()));
            IpAddr::from(bytes)
        };
        self.flow((ip(k.a), k.ap.get(), flow.ep[1]), (ip(k.b), k.bp.get(), flow.ep[0]), k.proto, flow)
    }
}

/// What each of these rules decided so far: the kernel's counters, flows that were, and flows that are.
pub fn all(tables: &Tables, folded: &RuleCounts, rules: &[u16]) -> Result<Counts, Error> {
    let mut live = Attribution::new(tables);
    for (k, v) in tables.flow4.entries()? {
        live.flow4(&k, &v.h)?;
    }
    for (k, v) in tables.flow6.entries()? {
        live.flow6(&k, &v.h)?;
    }
    let mut counts = live.counts;
    folded.lock().iter().for_each(|(index, c)| add(&mut counts, *index, c.packets, c.bytes));
    for index in rules {
        for cpu in tables.rule_count.get(u32::from(*index))? {
            add(&mut counts, *index, cpu.packets, cpu.bytes);
        }
    }
    Ok(counts)
}
