// SPDX-License-Identifier: Apache-2.0
//! The node's own devices: what leads out of the node, and past the host's stack where that is wanted.

use super::hooks::{Hook, attach, detach_filter, drop_unused_qdisc};
use super::rows::RowWriter;
use super::sysctl::{SysctlError, Sysctls};
use super::{Tables, host};
use crate::options::{AttachMode, HostRouting};
use pilus_loader::bpffs::BpfFs;
use pilus_loader::collection::Program;
use pilus_loader::hook::{self, Dir};
use pilus_loader::netlink::{LinkInfo, Netlink};
use pilus_model::abi::*;
use pilus_model::ipcache::words;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(transparent)]
    Kernel(#[from] pilus_loader::Error),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error("option `device`: there is no device {0} in this network namespace")]
    Unknown(String),
    #[error("more than {} devices", SLOT_NEXT_HOPS - SLOT_DEVICES)]
    TooMany,
}

/// How the node reaches the rest of the world.
pub struct Devices {
    /// Empty: the default route's.
    pub names: Vec<String>,
    pub routing: HostRouting,
    /// What containers open with the world leaves under the device's addresses.
    pub masquerade: bool,
    pub ipv4: bool,
    pub attach_mode: AttachMode,
    pub tcx: bool,
    pub sysctls: Sysctls,
}

/// Programs of devices.
#[derive(Clone, Copy, Debug)]
pub struct DevicePrograms<'a> {
    pub from_netdev: &'a Program,
    pub from_netdev_stack: &'a Program,
    pub to_netdev: &'a Program,
}

fn pin(fs: &BpfFs, ifindex: u32, dir: Dir) -> PathBuf {
    let name = if dir == Dir::Ingress { format!("device{ifindex}") } else { format!("device{ifindex}-out") };
    fs.links().join(name)
}

impl Devices {
    /// Whether every configured device is there.
    pub async fn check(&self, netlink: &Netlink) -> Result<(), DeviceError> {
        for name in &self.names {
            netlink.link_by_name(name).await?.ok_or_else(|| DeviceError::Unknown(name.clone()))?;
        }
        Ok(())
    }

    async fn wanted(&self, netlink: &Netlink) -> Result<Vec<LinkInfo>, DeviceError> {
        let mut links = Vec::new();
        for name in &self.names {
            links.extend(netlink.link_by_name(name).await?);
        }
        if self.names.is_empty()
            && let Some(index) = netlink.default_route_device().await?
        {
            links.extend(netlink.link_by_index(index).await?);
        }
        Ok(links)
    }

    /// Makes rows, hooks and settings what the devices are now. Idempotent. Names of the devices.
    pub async fn set_up(
        &self,
        fs: &BpfFs,
        tables: &Tables,
        rows: &RowWriter,
        netlink: &Netlink,
        programs: DevicePrograms<'_>,
    ) -> Result<Vec<String>, DeviceError> {
        let links = self.wanted(netlink).await?;
        let names: Vec<String> = links.iter().map(|l| l.name.clone()).collect();
        if !names.is_empty() {
            let forwarding: Vec<String> = names.iter().cloned().chain([host::HOST_DEVICE.to_owned()]).collect();
            self.sysctls.forward(&forwarding, self.ipv4)?;
        }
        let past_stack = self.routing == HostRouting::Bpf;
        // What has no Ethernet header (a tunnel, a serial line) is the stack's: programs look for addresses behind one.
        let hooked: Vec<&LinkInfo> = links.iter().filter(|l| (past_stack || self.masquerade) && l.mac.is_some()).collect();
        let mut slots: BTreeMap<DeviceKey, u32> = tables.device.entries()?.into_iter().map(|(k, v)| (k, v.slot)).collect();
        let next_hops = if past_stack { next_hops(netlink).await? } else { BTreeSet::new() };
        let is_wanted =
            |k: &DeviceKey| hooked.iter().any(|l| l.index == k.ifindex) && (k.next_hop == NextHop::default() || next_hops.contains(k));
        let gone: Vec<(DeviceKey, u32)> = slots.iter().filter(|(k, _)| !is_wanted(k)).map(|(k, slot)| (*k, *slot)).collect();
        for (key, slot) in gone {
            // No new flow takes it; then the old ones are routed anew.
            tables.device.delete(&key)?;
            slots.remove(&key);
            rows.clear(&tables.endpoint, slot)?;
            if key.next_hop == NextHop::default() {
                let both = [Dir::Ingress, Dir::Egress];
                detach(fs, netlink, key.ifindex, &both).await?;
            }
        }
        let way = if past_stack { EP_ROUTE } else { 0 } | if self.masquerade { EP_MASQUERADE } else { 0 };
        let addresses = netlink.lasting_addresses().await?;
        let mut ways = Vec::new();
        for link in hooked {
            let device = DeviceKey { ifindex: link.index, ..DeviceKey::default() };
            let slot = slot_of(&mut slots, device).ok_or(DeviceError::TooMany)?;
            let of_link = || addresses.iter().filter(|(index, ..)| *index == link.index).map(|(_, ip, _)| *ip);
            let ip4 = of_link().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip.octets()) } else { None }).unwrap_or_default();
            let all6: Vec<Ipv6Addr> = of_link().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }).collect();
            // One that everybody can answer, if there is one.
            let ip6 = all6.iter().find(|ip| !ip.is_unique_local()).or(all6.first()).copied().unwrap_or(Ipv6Addr::UNSPECIFIED);
            let row = Endpoint {
                ifindex: link.index,
                mac: link.mac.unwrap_or_default(),
                host_mac: link.mac.unwrap_or_default(),
                identity: Reserved::World.raw(),
                policy_in: POLICY_OPEN,
                policy_out: POLICY_OPEN,
                flags: EP_VALID | EP_DROPS | way,
                ip4: Be32::from_wire(ip4),
                ip6: words(ip6.into()).1,
                mtu: link.mtu.min(u32::from(u16::MAX)) as u16,
                ..Endpoint::default()
            };
            rows.write(&tables.endpoint, slot, row)?;
            let hang = |dir, program| {
                attach(Hook { pin: &pin(fs, link.index, dir), ifindex: link.index, dir, ours: false }, program, self.attach_mode, self.tcx)
            };
            tables.device.put(&device, &DeviceEntry { slot })?;
            ways.push((device.ifindex, row));
            // Nothing is marked for translation before something translates.
            let mut taken = self.masquerade && hang(Dir::Egress, programs.to_netdev)?;
            taken |= hang(Dir::Ingress, if past_stack { programs.from_netdev } else { programs.from_netdev_stack })?;
            if taken {
                drop_unused_qdisc(netlink, link.index).await?;
            }
            if !self.masquerade {
                detach(fs, netlink, link.index, &[Dir::Egress]).await?;
            }
        }
        // A next hop without a slot of its own is the kernel's to find, for each packet.
        for (ifindex, row) in ways {
            for key in next_hops.iter().filter(|k| k.ifindex == ifindex) {
                let Some(slot) = slot_of(&mut slots, *key) else { break };
                tables.next_hop.put(&slot, &key.next_hop)?;
                rows.write(&tables.endpoint, slot, row)?;
                tables.device.put(key, &DeviceEntry { slot })?;
            }
        }
        let way = if slots.is_empty() { 0 } else { way };
        if let Some(world) = tables.endpoint.get(&SLOT_WORLD)? {
            rows.write(&tables.endpoint, SLOT_WORLD, Endpoint { flags: world.flags & !(EP_ROUTE | EP_MASQUERADE) | way, ..world })?;
        }
        Ok(names)
    }
}

/// The slot that a way out has, or gets: devices and next hops cannot take each other's.
fn slot_of(slots: &mut BTreeMap<DeviceKey, u32>, way: DeviceKey) -> Option<u32> {
    if let Some(slot) = slots.get(&way) {
        return Some(*slot);
    }
    let mut all = if way.next_hop == NextHop::default() { SLOT_DEVICES..SLOT_NEXT_HOPS } else { SLOT_NEXT_HOPS..SLOT_FIRST };
    let slot = all.find(|s| !slots.values().any(|used| used == s))?;
    slots.insert(way, slot);
    Some(slot)
}

/// Ways out whose next hop does not depend on more of a packet than the programs ask the routes about: not on its mark, its
/// type of service, its ports.
async fn next_hops(netlink: &Netlink) -> Result<BTreeSet<DeviceKey>, DeviceError> {
    if netlink.rules_ask_for_more(MARK_MASK).await? {
        return Ok(BTreeSet::new());
    }
    let way = |(ifindex, gateway): (u32, IpAddr)| {
        let family = if gateway.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
        DeviceKey { ifindex, next_hop: NextHop { family: family as u32, addr: words(gateway).1 } }
    };
    Ok(netlink.gateways().await?.into_iter().map(way).collect())
}

/// Has every flow with the world judged and routed anew.
pub fn renew(tables: &Tables, rows: &RowWriter) -> Result<(), pilus_loader::Error> {
    rows.renew(&tables.endpoint, SLOT_WORLD)?;
    for (_, entry) in tables.device.entries()? {
        rows.renew(&tables.endpoint, entry.slot)?;
    }
    Ok(())
}

/// Takes our programs, and nobody else's, from a device.
async fn detach(fs: &BpfFs, netlink: &Netlink, ifindex: u32, sides: &[Dir]) -> Result<(), DeviceError> {
    let mut taken = false;
    for dir in sides {
        hook::detach_link(&pin(fs, ifindex, *dir))?;
        taken |= detach_filter(ifindex, *dir)?;
    }
    if taken {
        drop_unused_qdisc(netlink, ifindex).await?;
    }
    Ok(())
}
