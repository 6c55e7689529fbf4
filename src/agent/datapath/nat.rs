// SPDX-License-Identifier: Apache-2.0
//! Masqueraded flows: the container's entry in the flow table, and that of the tuple which the world sees.

use super::Tables;
use super::counts::Attribution;
use pilus_loader::Error;
use pilus_loader::maps::{PinnedMap, Pod};
use pilus_model::abi::*;
use pilus_model::ipcache::{lpm_key, lpm_prefix};
use pilus_model::prefix::Prefix;
use std::collections::BTreeSet;
use std::net::Ipv6Addr;

/// Address and port, both as in a packet.
type End<A> = (A, Be16);

/// A tuple that the world sees, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping<A> {
    /// The container's slot, and its own port (ICMP: identifier).
    pub slot: u16,
    pub port: Be16,
    /// The node's address and port.
    pub outside: End<A>,
    pub remote: End<A>,
}

impl<A: Copy> Mapping<A> {
    fn of(a: End<A>, b: End<A>, flow: &Flow) -> Option<Self> {
        let (outside, remote) = if flow.flags & FLOW_OPENER_B != 0 { (b, a) } else { (a, b) };
        (flow.flags & FLOW_NAT != 0).then_some(Self { slot: flow.ep[0], port: flow.aux, outside, remote })
    }

    /// Both ends of the container's own flow.
    fn inside(&self, container: A, proto: u8) -> [End<A>; 2] {
        let is_icmp = proto == 1 || proto == 58;
        [(container, self.port), (self.remote.0, if is_icmp { self.port } else { self.remote.1 })]
    }
}

/// A flow table as masquerading sees it.
pub trait Mapped: Pod + Sized {
    type Address: Copy;
    type Entry: Pod;
    fn flow(entry: &Self::Entry) -> &Flow;
    fn flow_mut(entry: &mut Self::Entry) -> &mut Flow;
    fn proto(&self) -> u8;
    /// Counts what the flow carried.
    fn count(&self, carried: &mut Attribution<'_>, flow: &Flow) -> Result<(), Error>;
    fn mapping(&self, flow: &Flow) -> Option<Mapping<Self::Address>>;
    /// Key of the flow behind a mapping, whose container has this row.
    fn inside(&self, mapping: &Mapping<Self::Address>, row: &Endpoint) -> Self;
    fn table(tables: &Tables) -> &PinnedMap<Self, Self::Entry>;
}

impl Mapped for FlowKey4 {
    type Address = Be32;
    type Entry = Flow4;
    fn flow(entry: &Flow4) -> &Flow {
        &entry.h
    }
    fn flow_mut(entry: &mut Flow4) -> &mut Flow {
        &mut entry.h
    }
    fn proto(&self) -> u8 {
        self.proto
    }
    fn count(&self, carried: &mut Attribution<'_>, flow: &Flow) -> Result<(), Error> {
        carried.flow4(self, flow)
    }
    fn mapping(&self, flow: &Flow) -> Option<Mapping<Be32>> {
        Mapping::of((self.a, self.ap), (self.b, self.bp), flow)
    }
    fn inside(&self, mapping: &Mapping<Be32>, row: &Endpoint) -> Self {
        let [one, other] = mapping.inside(row.ip4, self.proto);
        Self::between(one, other, self.proto)
    }
    fn table(tables: &Tables) -> &PinnedMap<Self, Flow4> {
        &tables.flow4
    }
}

impl Mapped for FlowKey6 {
    type Address = [Be32; 4];
    type Entry = Flow6;
    fn flow(entry: &Flow6) -> &Flow {
        &entry.h
    }
    fn flow_mut(entry: &mut Flow6) -> &mut Flow {
        &mut entry.h
    }
    fn proto(&self) -> u8 {
        self.proto
    }
    fn count(&self, carried: &mut Attribution<'_>, flow: &Flow) -> Result<(), Error> {
        carried.flow6(self, flow)
    }
    fn mapping(&self, flow: &Flow) -> Option<Mapping<[Be32; 4]>> {
        Mapping::of((self.a, self.ap), (self.b, self.bp), flow)
    }
    fn inside(&self, mapping: &Mapping<[Be32; 4]>, row: &Endpoint) -> Self {
        let [one, other] = mapping.inside(row.ip6, self.proto);
        Self::between(one, other, self.proto)
    }
    fn table(tables: &Tables) -> &PinnedMap<Self, Flow6> {
        &tables.flow6
    }
}

/// Whether the container's flow behind a mapping is there and leaves by it.
pub fn is_used<K: Mapped>(tables: &Tables, key: &K, flow: &Flow) -> Result<bool, Error> {
    let Some(mapping) = key.mapping(flow) else { return Ok(false) };
    let Some(row) = tables.endpoint.get(&u32::from(mapping.slot))? else { return Ok(false) };
    let inside = K::table(tables).get(&key.inside(&mapping, &row))?;
    let leaves_by = |f: &Flow| f.flags & FLOW_MASQUERADE != 0 && f.aux == mapping.outside.1;
    Ok(inside.is_some_and(|entry| leaves_by(K::flow(&entry))))
}

/// Makes the kernel's list of prefixes that are not masqueraded this one.
pub fn set_direct(tables: &Tables, prefixes: &[Prefix]) -> Result<(), Error> {
    let wanted: BTreeSet<Prefix> = prefixes.iter().copied().collect();
    for (key, _) in tables.direct.entries()? {
        let known = lpm_prefix(&key).and_then(|(ip, len)| Prefix::new(ip, len).ok());
        if known.is_none_or(|prefix| !wanted.contains(&prefix)) {
            tables.direct.delete(&key)?;
        }
    }
    for prefix in wanted {
        // A prefix is never longer than its address.
        if let Ok(key) = lpm_key(prefix.ip(), prefix.length()) {
            tables.direct.put(&key, &DirectEntry::default())?;
        }
    }
    Ok(())
}

/// Where IPv4 addresses stand among IPv6 ones.
pub fn set_nat46(tables: &Tables, prefix: Option<Ipv6Addr>) -> Result<(), Error> {
    let bytes = prefix.map(|ip| ip.octets()).unwrap_or_default();
    let word = |i: usize| Be32::from_wire([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]);
    tables.nat46.put(&0, &Nat46Range { prefix: std::array::from_fn(word), pad: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node 192.0.2.1 port 61000, remote 198.51.100.7 port 53, container 10.1.0.5 port 5353; sorted either way.
    #[test]
    fn a_mapping_leads_to_the_containers_flow() {
        let ip = |a: [u8; 4]| Be32::from_wire(a);
        let port = Be16::new;
        let row = Endpoint { ip4: ip([10, 1, 0, 5]), ..Endpoint::default() };
        for (proto, remote_port) in [(17, port(53)), (1, port(61000))] {
            for node in [[192, 0, 2, 1], [1, 0, 2, 255]] {
                let (outside, remote) = ((ip(node), port(61000)), (ip([198, 51, 100, 7]), remote_port));
                let key = FlowKey4::between(outside, remote, proto);
                let opener = if (key.a, key.ap) == outside { 0 } else { FLOW_OPENER_B };
                let flow = Flow { flags: FLOW_NAT | opener, ep: [300, 300], aux: port(5353), ..Flow::default() };
                let mapping = key.mapping(&flow).expect("a mapping");
                assert_eq!(mapping, Mapping { slot: 300, port: port(5353), outside, remote });
                let inside_port = if proto == 17 { port(53) } else { port(5353) };
                let wanted = FlowKey4::between((row.ip4, port(5353)), (remote.0, inside_port), proto);
                assert_eq!(key.inside(&mapping, &row), wanted);
            }
        }
        let plain = FlowKey4::between((row.ip4, port(1)), (row.ip4, port(2)), 6);
        assert_eq!(plain.mapping(&Flow::default()), None);
    }
}
