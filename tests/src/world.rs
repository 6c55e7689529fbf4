// SPDX-License-Identifier: Apache-2.0
//! A small node: containers A, B and C, the host and the world, in the programs' own tables.

use crate::objects;
use crate::outcome::{Counts, FlowView, Outcome, Seen};
use crate::packet::Packet;
use crate::sandbox::Sandbox;
use crate::tuple::Tuple;
pub use crate::who::*;
use crate::wire::*;
use Who::{A, C, Host};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use pilus_codegen::{Build, Features};
use pilus_loader::collection::{Collection, Program};
use pilus_loader::events::Reader;
use pilus_loader::maps::{PercpuMap, PinnedMap, Pod, ProgArray, create_all};
use pilus_loader::stages::Stages;
use pilus_model::abi::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The tables, with the programs loaded beside them.
pub struct World<'a> {
    pub sandbox: &'a Sandbox,
    pub build: Build,
    pub endpoint: PinnedMap<u32, Endpoint>,
    pub flow4: PinnedMap<FlowKey4, Flow4>,
    pub flow6: PinnedMap<FlowKey6, Flow6>,
    pub policy: PinnedMap<PolicyKey, PolicyBlock>,
    pub frag: PinnedMap<FragKey, FragEntry>,
    pub ipcache: PinnedMap<IpcacheKey, IpcacheEntry>,
    pub ipcache_lpm: PinnedMap<IpcacheLpmKey, IpcacheEntry>,
    pub device: PinnedMap<DeviceKey, DeviceEntry>,
    pub nat46: PinnedMap<u32, Nat46Range>,
    pub direct: PinnedMap<IpcacheLpmKey, DirectEntry>,
    pub timeouts: PinnedMap<u32, FlowTimeouts>,
    pub reporting: PinnedMap<u32, Reporting>,
    pub denial: PercpuMap<Denial>,
    pub rule_count: PercpuMap<Counter>,
    pub metrics: PercpuMap<Counter>,
    pub receive: ProgArray,
    pub containers: Vec<(Who, Collection)>,
    pub netdev: Collection,
    pub slow: Collection,
    /// What keeps the slow path in its place.
    _stages: Stages,
    events: RefCell<Reader>,
}

fn sizes() -> [(&'static str, u32); 8] {
    let small = 4096;
    [
        // More than there are ports for masqueraded flows.
        (map::FLOW4, 4 * small),
        (map::FLOW6, 4 * small),
        (map::POLICY, small),
        (map::RULE_RECORD, small),
        (map::RULE_COUNT, small),
        (map::IPCACHE, small),
        (map::IPCACHE_LPM, small),
        (map::EVENTS, 1 << 20),
    ]
}

fn open<K: Pod, V: Pod>(sandbox: &Sandbox, name: &str) -> PinnedMap<K, V> {
    PinnedMap::open(sandbox.fs(), name).expect(name)
}

fn clear<K: Pod, V: Pod>(map: &PinnedMap<K, V>) {
    let keys: Vec<K> = map.entries().expect("entries").into_iter().map(|(k, _)| k).collect();
    map.delete_batch(&keys).expect("delete");
}

impl<'a> World<'a> {
    /// Makes tables and devices and loads the programs. Once a sandbox.
    pub fn new(sandbox: &'a Sandbox, build: Build, features: &Features) -> World<'a> {
        // Refusals are each processor's own.
        let mut own = CpuSet::new();
        own.set(sched_getcpu().expect("a processor")).expect("a processor");
        sched_setaffinity(Pid::from_raw(0), &own).expect("a processor");
        create_all(sandbox.fs(), &sizes()).expect("tables");
        let stages = Stages::make().expect("stages");
        let slow = objects::load(sandbox, &stages, &objects::slow(features), "slow");
        let mut containers = Vec::new();
        for who in Who::CONTAINERS {
            let elf = objects::container(&who.config(features), build);
            containers.push((who, objects::load(sandbox, &stages, &elf, "container")));
            sandbox.device(&format!("t{}", who.slot()), who.ifindex(), who.host_mac(), None).expect("a device");
        }
        sandbox.device("net", IFINDEX_NET, Who::Host.host_mac(), None).expect("a device");
        let netdev = objects::load(sandbox, &stages, &objects::netdev(features), "netdev");
        let percpu = |name| PercpuMap::open(sandbox.fs(), name).expect(name);
        let world = World {
            sandbox,
            build,
            endpoint: open(sandbox, map::ENDPOINT),
            flow4: open(sandbox, map::FLOW4),
            flow6: open(sandbox, map::FLOW6),
            policy: open(sandbox, map::POLICY),
            frag: open(sandbox, map::FRAG),
            ipcache: open(sandbox, map::IPCACHE),
            ipcache_lpm: open(sandbox, map::IPCACHE_LPM),
            device: open(sandbox, map::DEVICE),
            nat46: open(sandbox, map::NAT46),
            direct: open(sandbox, map::DIRECT),
            timeouts: open(sandbox, map::TIMEOUTS),
            reporting: open(sandbox, map::REPORTING),
            denial: PercpuMap::open(sandbox.fs(), map::DENIAL).expect("denial"),
            rule_count: percpu(map::RULE_COUNT),
            metrics: percpu(map::METRICS),
            receive: ProgArray::open(sandbox.fs(), map::RECEIVE).expect("receive"),
            containers,
            netdev,
            slow,
            _stages: stages,
            events: RefCell::new(Reader::open(sandbox.fs(), map::EVENTS).expect("events")),
        };
        world.reset(0);
        world
    }

    /// Back to the beginning; `flags` are added to every row. A may open to anybody; B takes from A TCP 80, UDP 53, SCTP
    /// 99, GRE and echo requests and opens nothing; A takes TCP 8080 and echo requests from the host; C takes anything.
    pub fn reset(&self, flags: u32) {
        clear(&self.flow4);
        clear(&self.flow6);
        clear(&self.policy);
        clear(&self.frag);
        clear(&self.ipcache);
        clear(&self.ipcache_lpm);
        clear(&self.device);
        clear(&self.direct);
        for place in self.denials().into_keys() {
            self.denial.reset(place).expect("denial");
        }
        for who in Who::ALL {
            self.endpoint.put(&who.slot(), &who.row(flags)).expect("row");
            if who != Who::World {
                for family in Family::BOTH {
                    self.announce(who.ip(*family), who.identity(), who.slot());
                }
            }
        }
        self.receive.set(C.slot(), self.program(C, "receive_own")).expect("receive");
        let all =
            FlowTimeouts { tcp: IDLE, tcp_open: IDLE, tcp_closing: IDLE, udp: IDLE, udp_reply: IDLE, icmp: IDLE, other: IDLE, deny: IDLE };
        self.timeouts.put(&0, &all).expect("timeouts");
        self.reporting.put(&0, &Reporting { interval: u32::MAX, sample: 1, drops: 0 }).expect("reporting");
        let from_a = [
            rule(80, 80, TCP, 0, 1),
            rule(53, 53, UDP, 0, 2),
            rule(99, 99, SCTP, 0, 3),
            rule(8, 8, ICMP, 0, 4),
            rule(128, 128, ICMPV6, 0, 5),
            rule(0, 0, GRE, 0, 6),
        ];
        self.rules(POLICY_B_IN, DIR_INGRESS, A.identity(), &from_a);
        let from_host = [rule(8080, 8080, TCP, 0, 7), rule(8, 8, ICMP, 0, 8), rule(128, 128, ICMPV6, 0, 9)];
        self.rules(POLICY_A_IN, DIR_INGRESS, Host.identity(), &from_host);
        self.drain();
    }

    /// Has the node masquerade what leaves by [`OUTER`], under its own addresses there.
    pub fn masquerade(&self) {
        let (ip4, ip6) = (node_ip(Family::V4), node_ip(Family::V6));
        let row = self.endpoint.get(&SLOT_HOST).expect("row").expect("row");
        let flags = EP_VALID | EP_ROUTE | EP_DROPS | EP_MASQUERADE;
        self.endpoint.put(&SLOT_DEVICES, &Endpoint { flags, ip4: words(ip4)[0], ip6: words(ip6), ..row }).expect("row");
        self.device.put(&DeviceKey { ifindex: OUTER, ..DeviceKey::default() }, &DeviceEntry { slot: SLOT_DEVICES }).expect("device");
        self.change(Who::World, |row| row.flags |= EP_MASQUERADE);
        for ip in [ip4, ip6] {
            self.announce(ip, Host.identity(), SLOT_HOST);
        }
    }

    /// Puts an address into the exact ipcache.
    pub fn announce(&self, ip: IpAddr, identity: u32, slot: u32) {
        let key = IpcacheKey { addr: words(ip), family: if ip.is_ipv4() { 4 } else { 6 }, ..IpcacheKey::default() };
        let entry = IpcacheEntry { identity, slot: slot as u16, ..IpcacheEntry::default() };
        self.ipcache.put(&key, &entry).expect("ipcache");
    }

    /// Puts a prefix into the other ipcache.
    pub fn announce_prefix(&self, ip: IpAddr, bits: u32, identity: u32, slot: u32) {
        let family = if ip.is_ipv4() { 4 } else { 6 };
        let key = IpcacheLpmKey { prefixlen: 32 + bits, family, addr: words(ip), ..IpcacheLpmKey::default() };
        let entry = IpcacheEntry { identity, slot: slot as u16, ..IpcacheEntry::default() };
        self.ipcache_lpm.put(&key, &entry).expect("ipcache_lpm");
    }

    /// Takes an address out of the exact ipcache.
    pub fn withdraw(&self, ip: IpAddr) {
        let key = IpcacheKey { addr: words(ip), family: if ip.is_ipv4() { 4 } else { 6 }, ..IpcacheKey::default() };
        self.ipcache.delete(&key).expect("ipcache");
    }

    /// Writes a peer's rules as chained blocks.
    pub fn rules(&self, policy: u32, dir: u8, peer: u32, rules: &[PolicyRule]) {
        let blocks: Vec<_> = rules.chunks(8).collect();
        for (chain, part) in blocks.iter().enumerate() {
            let mut block = PolicyBlock::default();
            block.rules[..part.len()].copy_from_slice(part);
            if chain + 1 < blocks.len() {
                block.rules[7].flags |= RULE_MORE;
            }
            let key = PolicyKey { policy: policy << 5 | u32::from(dir) << 4 | chain as u32, identity: peer };
            self.policy.put(&key, &block).expect("policy");
        }
    }

    /// Changes a row by one write.
    pub fn change(&self, who: Who, f: impl FnOnce(&mut Endpoint)) {
        let mut row = self.endpoint.get(&who.slot()).expect("row").expect("row");
        f(&mut row);
        self.endpoint.put(&who.slot(), &row).expect("row");
    }

    /// Changes the row and bumps its epoch, as a changed policy does.
    pub fn repolicy(&self, who: Who, f: impl FnOnce(&mut Endpoint)) {
        self.change(who, |row| {
            f(row);
            row.epoch += 1;
        });
    }

    /// The program of that function name in a container's object.
    pub fn program(&self, who: Who, name: &str) -> &Program {
        let (_, object) = self.containers.iter().find(|(w, _)| *w == who).expect("a container");
        object.programs.iter().find(|p| p.name == name).expect(name)
    }

    /// What packets of `via` meet first.
    pub fn entry(&self, via: Who) -> &Program {
        if via.is_container() { self.program(via, "from_container") } else { self.of_device("from_netdev") }
    }

    /// One of the programs of the node's own devices.
    pub fn of_device(&self, name: &str) -> &Program {
        self.netdev.programs.iter().find(|p| p.name == name).expect(name)
    }

    /// `struct __sk_buff` with that interface.
    pub fn context(ifindex: u32) -> [u8; 192] {
        let mut ctx = [0; 192];
        ctx[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        ctx
    }

    /// The device by which packets of `via` come: those of the world by one of the node, unless the host's stack sends them.
    pub fn device_of(via: Who) -> u32 {
        match via {
            Who::Host => IFINDEX_NET,
            Who::World => OUTER,
            container => container.ifindex(),
        }
    }

    /// The context of packets that `via` sends.
    pub fn context_of(via: Who) -> [u8; 192] {
        Self::context(Self::device_of(via))
    }

    /// Completes the Ethernet header as the sender would, where the row left it open.
    pub fn frame(via: Who, mut packet: Packet) -> Vec<u8> {
        if packet.eth_src == [0; 6] {
            packet.eth_src = if via.is_container() { via.mac() } else { via.host_mac() };
        }
        if packet.eth_dst == [0; 6] {
            packet.eth_dst = if via.is_container() { via.host_mac() } else { via.mac() };
        }
        packet.build()
    }

    /// Whether the kernel runs a frame in a test: one that says to be IP has a whole IP header at least.
    pub fn testable(frame: &[u8]) -> bool {
        frame.len() >= ETH && frame.len() >= Self::shortest([frame[12], frame[13]])
    }

    /// The shortest frame of an ether type that the kernel runs in a test.
    pub fn shortest(ether_type: [u8; 2]) -> usize {
        match u16::from_be_bytes(ether_type) {
            ETH_IP => ETH + 20,
            ETH_IPV6 => ETH + 40,
            _ => ETH,
        }
    }

    /// Runs a program on a frame and gathers all that changed.
    pub fn run(&self, program: &Program, ctx: &[u8; 192], frame: &[u8]) -> Outcome {
        self.drain();
        let before = self.counts();
        let run = program.test_run(frame, Some(ctx), 1).expect("test run");
        let mut counts = self.counts();
        for (key, (packets, bytes)) in before {
            let now = counts.entry(key).or_default();
            *now = (now.0 - packets, now.1 - bytes);
        }
        let without_flow = (0..2).filter_map(|dir| counts.remove(&(REASON_NO_FLOW as u8, dir))).map(|(packets, _)| packets).sum();
        counts.retain(|_, v| *v != (0, 0));
        let mark = run.ctx_out.map_or(0, |c| u32::from_ne_bytes([c[8], c[9], c[10], c[11]]));
        Outcome { retval: run.retval, out: run.data_out, mark, events: self.drain(), counts, without_flow }
    }

    /// Sends a packet.
    pub fn send(&self, via: Who, packet: Packet) -> Outcome {
        self.run(self.entry(via), &Self::context_of(via), &Self::frame(via, packet))
    }

    /// The events so far.
    pub fn drain(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.events.borrow_mut().consume(usize::MAX, &mut |record| seen.push(Seen::read(record))).expect("events");
        seen
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        for (index, cpus) in self.metrics.all().expect("metrics").iter().enumerate() {
            let total = cpus.iter().fold((0, 0), |(p, b), c| (p + c.packets, b + c.bytes));
            if total != (0, 0) {
                counts.insert(((index >> 1) as u8, (index & 1) as u8), total);
            }
        }
        counts
    }

    /// First packets that a rule decided.
    pub fn rule_packets(&self, rule: u32) -> u64 {
        self.rule_count.get(rule).expect("rule_count").iter().map(|c| c.packets).sum()
    }

    /// Refusals that the fast path repeats, by their place; those of all processors.
    pub fn denials(&self) -> BTreeMap<u32, Vec<Denial>> {
        let all = self.denial.all().expect("denial").into_iter().enumerate();
        let used = all.map(|(place, cpus)| (place as u32, cpus.into_iter().filter(|d| d.what != 0).collect::<Vec<_>>()));
        used.filter(|(_, cpus)| !cpus.is_empty()).collect()
    }

    /// Drops that no event has told of yet.
    pub fn untold(&self) -> u64 {
        self.denials().values().flatten().map(|d| u64::from(d.untold)).sum()
    }

    /// Has refusals be repeated for so many jiffies before one is reported again; 0: each is.
    pub fn report_drops(&self, jiffies: u32) {
        self.reporting.put(&0, &Reporting { interval: u32::MAX, sample: 1, drops: jiffies }).expect("reporting");
    }

    /// The kernel's clock of flow entries.
    pub fn jiffies(&self) -> u32 {
        self.of_device("flow_clock").test_run(&[0; 64], None, 1).expect("flow_clock").retval
    }

    /// Reads, changes or deletes (by None) the entry of a packet's flow; its flags are those of the kernel.
    pub fn edit_flow(&self, packet: &Packet, f: impl FnOnce(Flow) -> Option<Flow>) -> bool {
        let t = Tuple::of(packet);
        if t.src.is_ipv4() {
            let key = t.key4();
            let Some(entry) = self.flow4.get(&key).expect("flow4") else { return false };
            match f(entry.h) {
                Some(h) => self.flow4.put(&key, &Flow4 { h, ..entry }).expect("flow4"),
                None => drop(self.flow4.delete(&key).expect("flow4")),
            }
        } else {
            let key = t.key6();
            let Some(entry) = self.flow6.get(&key).expect("flow6") else { return false };
            match f(entry.h) {
                Some(h) => self.flow6.put(&key, &Flow6 { h }).expect("flow6"),
                None => drop(self.flow6.delete(&key).expect("flow6")),
            }
        }
        true
    }

    /// The entry of a packet's flow.
    pub fn flow(&self, packet: &Packet) -> Option<FlowView> {
        let mut found = None;
        self.edit_flow(packet, |h| {
            found = Some(FlowView::of(&h));
            Some(h)
        });
        found
    }

    /// Flow entries of both families.
    pub fn flows(&self) -> usize {
        self.flow4.entries().expect("flow4").len() + self.flow6.entries().expect("flow6").len()
    }
}
