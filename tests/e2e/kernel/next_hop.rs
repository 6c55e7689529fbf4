// SPDX-License-Identifier: Apache-2.0
//! Gateways behind a device of the node: a flow's is looked up once, and followed when it changes.

use crate::support::{netlink, until};
use pilus_e2e::bench::pins;
use pilus_e2e::{Container, Family, Node, NodeOptions, outside};
use pilus_loader::maps::PinnedMap;
use pilus_loader::netlink::{RouteSpec, RuleSpec};
use pilus_model::abi::{Be16, DeviceEntry, DeviceKey, Flow4, Flow6, FlowKey4, FlowKey6, NextHop, SLOT_FIRST, SLOT_NEXT_HOPS, map};
use pilus_model::ipcache::words;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// The second gateway's Ethernet address. It has the same wire as the first, and no stack: only its frames are looked at.
const SECOND: [u8; 6] = [2, 0, 0, 1, 0, 0x99];

struct Setup {
    node: Node,
    world: Container,
    client: Container,
    eth0: u32,
}

fn next(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => std::net::Ipv4Addr::from(u32::from(ip) + 1).into(),
        IpAddr::V6(ip) => std::net::Ipv6Addr::from(u128::from(ip) + 1).into(),
    }
}

fn server(family: Family) -> IpAddr {
    if family == Family::V4 { "198.51.100.9" } else { "2001:db8:ffff::9" }.parse().expect("address")
}

impl Setup {
    fn new() -> Self {
        let args = ["--ipv6-range", "fd00:7::/64", "--ipv4-range", "10.77.0.0/16", "--masquerade", "false"].map(str::to_owned);
        let mut node = Node::prepare(NodeOptions { args: args.into(), ..NodeOptions::default() }).expect("node");
        let world = outside::connect(&node, 0, 1500, true).expect("world");
        let addresses = Family::BOTH.map(|f| next(world.ip(f)));
        let eth0 = node.run(move || {
            netlink(async |n| {
                let index = n.link_by_name("eth0").await.expect("list").expect("eth0").index;
                for ip in addresses {
                    n.neighbour_replace(index, ip, SECOND).await.expect("neighbour");
                }
                index
            })
        });
        node.start_agent().expect("agent");
        let client = node.add("client", &["app=client"]).expect("client");
        Self { node, world, client, eth0 }
    }

    fn gateway(&self, family: Family, second: bool) -> IpAddr {
        let first = self.world.ip(family);
        if second { next(first) } else { first }
    }

    fn route_by(&self, family: Family, gateway: IpAddr) {
        let any: IpAddr = if family == Family::V4 { "0.0.0.0" } else { "::" }.parse().expect("address");
        let spec = RouteSpec { gateway: Some(gateway), ..RouteSpec::new(any, 0, self.eth0) };
        self.node.run(|| netlink(async |n| n.route_replace(&spec).await.expect("route")));
    }

    /// Slots of gateways; devices themselves are left out.
    fn ways(&self) -> BTreeMap<(u32, NextHop), u32> {
        let fs = pins(&self.node).expect("pins");
        let devices = PinnedMap::<DeviceKey, DeviceEntry>::open(&fs, map::DEVICE).expect("devices").entries().expect("entries");
        let hops = PinnedMap::<u32, NextHop>::open(&fs, map::NEXT_HOP).expect("next hops");
        let of_hops = devices.into_iter().filter(|(k, _)| k.next_hop != NextHop::default());
        of_hops
            .map(|(k, v)| {
                assert!((SLOT_NEXT_HOPS..SLOT_FIRST).contains(&v.slot));
                assert_eq!(hops.get(&v.slot).expect("read"), Some(k.next_hop), "of slot {}", v.slot);
                ((k.ifindex, k.next_hop), v.slot)
            })
            .collect()
    }

    fn way(&self, gateway: IpAddr) -> (u32, NextHop) {
        let family = if gateway.is_ipv4() { 2 } else { 10 };
        (self.eth0, NextHop { family, addr: words(gateway).1 })
    }

    /// Slots that flows to the server's port go to.
    fn slots(&self, family: Family) -> BTreeSet<u16> {
        let fs = pins(&self.node).expect("pins");
        let is_ours = |a: Be16, b: Be16| [a.get(), b.get()].contains(&9);
        match family {
            Family::V4 => {
                let flows = PinnedMap::<FlowKey4, Flow4>::open(&fs, map::FLOW4).expect("flows").entries().expect("entries");
                flows.into_iter().filter(|(k, _)| is_ours(k.ap, k.bp)).flat_map(|(_, f)| f.h.ep).collect()
            }
            Family::V6 => {
                let flows = PinnedMap::<FlowKey6, Flow6>::open(&fs, map::FLOW6).expect("flows").entries().expect("entries");
                flows.into_iter().filter(|(k, _)| is_ours(k.ap, k.bp)).flat_map(|(_, f)| f.h.ep).collect()
            }
        }
    }

    fn has_way(&self, gateway: IpAddr, wanted: bool) {
        let key = self.way(gateway);
        until("the node's ways out follow its routes", || {
            let ways = self.ways();
            if ways.contains_key(&key) == wanted { Ok(()) } else { Err(format!("{gateway} in {ways:?}")) }
        });
    }
}

/// Sends a datagram and tells where on the wire it went.
struct Probe {
    near: UdpSocket,
    wire: socket2::Socket,
    world: [u8; 6],
    sent: u32,
}

impl Probe {
    fn new(setup: &Setup, family: Family) -> Self {
        let near = setup.client.udp(family, 0).expect("socket");
        near.connect(SocketAddr::new(server(family), 9)).expect("connect");
        Self { near, wire: setup.world.packet_socket().expect("packet socket"), world: setup.world.mac, sent: 0 }
    }

    fn second(&mut self) -> bool {
        self.sent += 1;
        let mark = [b"next hop".as_slice(), &self.sent.to_be_bytes()].concat();
        let mut buffer = [0; 2048];
        // What others sent meanwhile may have filled it.
        self.wire.set_nonblocking(true).expect("socket");
        while (&self.wire).read(&mut buffer).is_ok() {}
        self.wire.set_nonblocking(false).expect("socket");
        // The world's word that nobody listens is told by the next call, once.
        self.near.send(&mark).or_else(|_| self.near.send(&mark)).expect("send");
        loop {
            let n = (&self.wire).read(&mut buffer).unwrap_or_else(|e| panic!("datagram {}: {e}", self.sent));
            if buffer[..n].ends_with(&mark) {
                let to = buffer[..6].try_into().expect("six");
                assert!([self.world, SECOND].contains(&to), "a frame for {to:x?}");
                return to == SECOND;
            }
        }
    }
}

#[test]
fn flows_follow_their_gateway() {
    let mut setup = Setup::new();
    for family in Family::BOTH {
        setup.has_way(setup.gateway(family, false), true);
        // What is answered is on the fast path.
        let to = server(family);
        setup.world.run(|| {
            netlink(async |n| n.add_address(1, to, if to.is_ipv4() { 32 } else { 128 }).await.expect("address"));
        });
        let mut far = setup.world.clone();
        match to {
            IpAddr::V4(ip) => far.ipv4 = Some(ip),
            IpAddr::V6(ip) => far.ipv6 = ip,
        }
        let far = far.udp(family, 9).expect("socket");
        let mut probe = Probe::new(&setup, family);
        assert!(!probe.second(), "{family:?}: the first gateway");
        let mut question = [0; 64];
        let (n, from) = far.recv_from(&mut question).expect("question");
        far.send_to(&question[..n], from).expect("answer");
        probe.near.recv(&mut question).expect("answer");
        for _ in 0..100 {
            assert!(!probe.second(), "{family:?}: the first gateway");
        }
        let (way, slots) = (setup.way(setup.gateway(family, false)), setup.slots(family));
        assert!(slots.contains(&(setup.ways()[&way] as u16)), "{family:?}: {slots:?} of {:?}", setup.ways());
        // From the moment on in which the agent has followed, each packet takes the new way.
        setup.route_by(family, setup.gateway(family, true));
        setup.has_way(setup.gateway(family, true), true);
        setup.has_way(setup.gateway(family, false), false);
        for n in 0..100 {
            assert!(probe.second(), "{family:?}: packet {n} takes the old way");
        }
    }
    // Nobody tells the programs.
    setup.node.kill_agent().expect("kill");
    let mut probes = Family::BOTH.map(|f| (f, Probe::new(&setup, f)));
    for (family, probe) in &mut probes {
        assert!(probe.second(), "{family:?}: the second gateway");
        setup.route_by(*family, setup.gateway(*family, false));
        until("the route is followed without the agent", || if probe.second() { Err("not yet".into()) } else { Ok(()) });
    }
    // A restart finds what is there.
    setup.node.start_agent().expect("agent");
    for (family, probe) in &mut probes {
        setup.has_way(setup.gateway(*family, false), true);
        setup.has_way(setup.gateway(*family, true), false);
        assert!(!probe.second(), "{family:?}: the first gateway");
    }
}

/// Routes that depend on more than the programs ask about are the kernel's to look up.
#[test]
fn rules_by_mark_are_left_to_the_kernel() {
    let setup = Setup::new();
    let gateways = Family::BOTH.map(|f| setup.gateway(f, false));
    for ipv6 in [false, true] {
        gateways.iter().for_each(|g| setup.has_way(*g, true));
        let rule = RuleSpec { ipv6, priority: 1000, fwmark: 0x10, fwmask: 0x10, table: 254 };
        assert!(setup.node.run(|| netlink(async |n| n.rule_add(&rule).await)).expect("rule"));
        gateways.iter().for_each(|g| setup.has_way(*g, false));
        for family in Family::BOTH {
            assert!(!Probe::new(&setup, family).second(), "{family:?}: by the kernel's routes");
        }
        assert!(setup.node.run(|| netlink(async |n| n.rule_delete(&rule).await)).expect("rule"));
    }
    gateways.iter().for_each(|g| setup.has_way(*g, true));
    // A mark of our own asks for nothing.
    let own = RuleSpec { ipv6: false, priority: 1000, fwmark: 0x200, fwmask: 0xf00, table: 2005 };
    let more = setup.node.run(|| {
        netlink(async |n| {
            n.rule_add(&own).await.expect("rule");
            n.rules_ask_for_more(pilus_model::abi::MARK_MASK).await.expect("rules")
        })
    });
    assert!(!more);
}
