// SPDX-License-Identifier: Apache-2.0
//! The order in which the kernel gets what follows from a change: at every write an address is judged by rules that are in
//! force, the former or the new ones, and by nothing between them.

use super::*;
use pilus_model::policy::{Traffic, input, verdict};
use std::collections::BTreeSet;

/// A kernel that takes over one row at a time, in any order that its reconcilers may choose.
struct Kernel {
    readers: Readers,
    /// Policy of an endpoint, and the revision of the row.
    rows: BTreeMap<EndpointId, (u32, Revision)>,
    policies: BTreeMap<u32, PolicySpec>,
    addresses: BTreeMap<IpcachePrefix, IpcacheSpec>,
    status: BTreeMap<IpcachePrefix, Status>,
}

impl Kernel {
    fn new(readers: Readers) -> Self {
        let (rows, policies, addresses, status) = Default::default();
        Self { readers, rows, policies, addresses, status }
    }

    fn endpoints_as_of(&self) -> Revision {
        let now = self.readers.endpoints.snapshot();
        let behind = |(id, spec): (&EndpointId, &EndpointSpec)| self.rows.get(id).is_none_or(|(policy, _)| *policy != spec.policy_in);
        // A row that did not change is as of the newest revision.
        let stale = now.rows.iter().filter(|(id, spec)| behind((id, spec)));
        stale.map(|(id, _)| self.rows.get(id).map_or(Revision::default(), |(_, at)| *at)).min().unwrap_or(now.revision)
    }

    /// Every write that could be next.
    fn writes(&self) -> Vec<Write> {
        let mut all = Vec::new();
        for (id, spec) in self.readers.endpoints.snapshot().rows.iter() {
            if self.rows.get(id).is_none_or(|(policy, _)| *policy != spec.policy_in) {
                all.push(Write::Endpoint(*id));
            }
        }
        let wanted = self.readers.ipcache.snapshot();
        let known = self.endpoints_as_of();
        for (row, spec) in wanted.rows.iter() {
            if self.addresses.get(row) != Some(spec) && spec.after <= known {
                all.push(Write::Address(*row));
            }
        }
        all.extend(self.addresses.keys().filter(|row| !wanted.rows.contains_key(row)).map(|row| Write::Address(*row)));
        all
    }

    fn make(&mut self, write: &Write) {
        match write {
            Write::Endpoint(id) => {
                let now = self.readers.endpoints.snapshot();
                self.policies.extend(self.readers.policies.snapshot().rows.iter().map(|(id, p)| (*id, p.clone())));
                self.rows.insert(*id, (now.rows[id].policy_in, now.revision));
            }
            Write::Address(row) => match self.readers.ipcache.snapshot().rows.get(row) {
                Some(spec) => drop(self.addresses.insert(*row, *spec)),
                None => drop(self.addresses.remove(row)),
            },
        }
        let now = self.readers.ipcache.snapshot().revision;
        let done = |(row, spec): (&IpcachePrefix, &IpcacheSpec)| {
            let same = self.readers.ipcache.snapshot().rows.get(row) == Some(spec);
            (*row, if same { Status::Done(now) } else { Status::Begun })
        };
        self.status = self.addresses.iter().map(done).collect();
    }

    fn tell(&self, world: &mut World) {
        let at = self.endpoints_as_of();
        let endpoints = self.rows.keys().map(|id| (*id, Status::Done(at))).collect();
        let (_a, mut endpoints) = tokio::sync::watch::channel(Arc::new(endpoints));
        let (_b, mut addresses) = tokio::sync::watch::channel(Arc::new(self.status.clone()));
        world.see(&mut endpoints, &mut addresses);
    }

    fn admits(&self, id: EndpointId, ip: IpAddr, traffic: Traffic) -> bool {
        let found = Prefix::address(ip).covering().find_map(|p| self.addresses.get(&IpcachePrefix { ip: p.ip(), len: p.length() }));
        let identity = found.map_or(Reserved::World.into(), |spec| spec.identity);
        match self.rows[&id].0 {
            POLICY_OPEN => true,
            policy => verdict(&self.policies[&policy].policy, identity, traffic.dport, traffic.proto).allowed(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Write {
    Endpoint(EndpointId),
    Address(IpcachePrefix),
}

fn world() -> (World, Readers) {
    let ipam = Ipam::new("fd00:7::/64".parse().unwrap(), "10.77.0.0/16".parse().unwrap(), true, 256..65536);
    World::new(Initial {
        records: Vec::new(),
        rules: RuleSet::default(),
        services: Services::new(),
        nodes: BTreeMap::new(),
        first_policy: 2,
        tree: "tree".into(),
        ipam,
        mode: EnforcementMode::Default,
        host_always: false,
        audit: false,
        own: false,
        mtu: 1500,
        nat46: false,
        ranges: Vec::new(),
    })
}

fn endpoint(name: &str) -> AddEndpoint {
    AddEndpoint {
        name: name.into(),
        container_id: None,
        netns: format!("/run/netns/{name}").into(),
        ifname: "eth0".into(),
        labels: Labels::parse([format!("app={name}")]).unwrap(),
        ipv6: None,
        ipv4: Wish::Auto,
        ipv4_alone: false,
        mac: None,
        mtu: None,
        own: None,
        ports: PortNames::new(),
    }
}

/// Rules about prefixes inside of each other, and about the world.
const RULES: [&str; 7] = [
    "ingress: [{fromCIDR: [10.0.0.0/8]}]",
    "ingress: [{fromCIDR: [10.1.0.0/16], toPorts: [{ports: [{port: 80}]}]}]",
    "ingressDeny: [{fromCIDR: [10.1.2.0/24]}]",
    "ingress: [{fromCIDR: [10.1.2.3/32]}]",
    "ingressDeny: [{fromCIDR: [10.1.2.3/32], toPorts: [{ports: [{port: 81}]}]}]",
    "ingress: [{fromEntities: [world]}]",
    "ingressDeny: [{fromEntities: [world], toPorts: [{ports: [{port: 81}]}]}]",
];
const ADDRESSES: [&str; 5] = ["192.0.2.1", "10.9.9.9", "10.1.9.9", "10.1.2.9", "10.1.2.3"];
const PORTS: [u16; 2] = [80, 81];

fn imported(world: &mut World, rules: &BTreeSet<usize>) {
    let rule = |n: &usize| format!("- {{endpointSelector: {{}}, {}, labels: [n={n}]}}\n", RULES[*n]);
    let text: String = rules.iter().map(rule).collect();
    world.engine.import(input::parse("t", &text).unwrap(), None).unwrap();
    world.publish_rules();
    world.settle();
}

fn deleted(world: &mut World, rules: &BTreeSet<usize>) {
    for n in rules {
        world.engine.delete_by_labels(&Labels::parse([format!("n={n}")]).unwrap());
    }
    world.publish_rules();
    world.settle();
}

type Verdicts = BTreeMap<(IpAddr, u16, EndpointId), bool>;

fn verdicts(kernel: &Kernel, ids: &[EndpointId]) -> Verdicts {
    let cases = ADDRESSES.iter().flat_map(|ip| PORTS.map(|port| (ip.parse().unwrap(), port)));
    let all = cases.flat_map(|(ip, port)| ids.iter().map(move |id| (ip, port, *id)));
    all.map(|(ip, port, id)| ((ip, port, id), kernel.admits(id, ip, Traffic { dport: port, proto: 6 }))).collect()
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Lets the kernel write until nothing is left, and looks after each write.
fn run(world: &mut World, kernel: &mut Kernel, r: &mut Random, mut look: impl FnMut(&Kernel, Option<Write>)) {
    loop {
        look(kernel, None);
        let writes = kernel.writes();
        let Some(write) = (!writes.is_empty()).then(|| writes[r.below(writes.len())]) else {
            kernel.tell(world);
            if kernel.writes().is_empty() {
                return;
            }
            continue;
        };
        kernel.make(&write);
        look(kernel, Some(write));
        if r.below(2) == 0 {
            kernel.tell(world);
        }
    }
}

/// Two endpoints under these rules, settled in the kernel.
fn begun(rules: &BTreeSet<usize>, r: &mut Random) -> (World, Kernel, Vec<EndpointId>) {
    let (mut world, readers) = world();
    let ids = ["a", "b"].map(|name| world.add(endpoint(name)).unwrap().0.id).into();
    world.settle();
    let mut kernel = Kernel::new(readers);
    imported(&mut world, rules);
    run(&mut world, &mut kernel, r, |_, _| {});
    (world, kernel, ids)
}

/// Whatever is written in whatever order: each verdict is the old one or the one of the end.
fn nothing_else(world: &mut World, kernel: &mut Kernel, r: &mut Random, ids: &[EndpointId], old: &Verdicts, what: &str) {
    let mut seen = Vec::new();
    run(world, kernel, r, |kernel, write| seen.push((write, verdicts(kernel, ids))));
    let new = verdicts(kernel, ids);
    for (write, now) in &seen {
        for (of, admitted) in now {
            assert!(*admitted == old[of] || *admitted == new[of], "{what}: {of:?} {admitted} after {write:?}");
        }
    }
}

/// As an import over the API does: first their prefixes, then the rules.
#[test]
fn a_prefix_comes_without_a_gap() {
    let mut r = Random(11);
    for round in 0..200 {
        let before: BTreeSet<usize> = (0..RULES.len()).filter(|_| r.below(3) == 0).collect();
        let (mut world, mut kernel, ids) = begun(&before, &mut r);
        let old = verdicts(&kernel, &ids);
        let more: BTreeSet<usize> = (0..RULES.len()).filter(|n| !before.contains(n) && r.below(2) == 0).collect();
        let rule = |n: &usize| format!("- {{endpointSelector: {{}}, {}, labels: [n={n}]}}\n", RULES[*n]);
        let rules = input::parse("u", &more.iter().map(rule).collect::<String>()).unwrap();
        let announced = world.engine.announce(&rules).unwrap();
        world.dirty = true;
        world.settle();
        run(&mut world, &mut kernel, &mut r, |kernel, write| {
            assert_eq!(verdicts(kernel, &ids), old, "round {round}: announced, after {write:?}; rules {before:?} and {more:?}");
        });
        world.engine.import(rules, None).unwrap();
        announced.into_iter().for_each(|prefix| world.engine.let_go(prefix));
        world.publish_rules();
        world.settle();
        nothing_else(&mut world, &mut kernel, &mut r, &ids, &old, &format!("round {round}: rules {before:?} and {more:?}"));
    }
}

#[test]
fn a_prefix_goes_without_a_gap() {
    let mut r = Random(7);
    for round in 0..200 {
        let before: BTreeSet<usize> = (0..RULES.len()).filter(|_| r.below(4) > 0).collect();
        let (mut world, mut kernel, ids) = begun(&before, &mut r);
        let old = verdicts(&kernel, &ids);
        let gone: BTreeSet<usize> = before.iter().copied().filter(|_| r.below(2) == 0).collect();
        deleted(&mut world, &gone);
        nothing_else(&mut world, &mut kernel, &mut r, &ids, &old, &format!("round {round}: rules {before:?} without {gone:?}"));
        // What is left is what the rules that are left would have given.
        let left: BTreeSet<IpcachePrefix> =
            kernel.addresses.keys().copied().filter(|row| row.len < 32 || row.ip.to_string() == "10.1.2.3").collect();
        let named: BTreeSet<usize> = before.difference(&gone).copied().collect();
        let wanted = [(0, "10.0.0.0", 8), (1, "10.1.0.0", 16), (2, "10.1.2.0", 24), (3, "10.1.2.3", 32), (4, "10.1.2.3", 32)];
        let wanted =
            wanted.iter().filter(|(n, ..)| named.contains(n)).map(|(_, ip, len)| IpcachePrefix { ip: ip.parse().unwrap(), len: *len });
        assert_eq!(left, wanted.collect(), "round {round}");
        assert_eq!(world.engine.prefixes().len(), left.len(), "round {round}: identities that nobody needs");
    }
}

/// A rule concerns whom it selects: the others' rows stay as they are, and are as of its revision all the same.
#[test]
fn rules_about_others_touch_nobody() {
    let mut r = Random(3);
    let (mut world, kernel, ids) = begun(&BTreeSet::from([0]), &mut r);
    let settled = world.settled.reader();
    let import = |world: &mut World, app: &str| {
        let rule = format!("- {{endpointSelector: {{matchLabels: {{app: {app}}}}}, ingress: [{{toPorts: [{{ports: [{{port: 80}}]}}]}}]}}");
        world.engine.import(input::parse("t", &rule).unwrap(), None).unwrap();
        world.publish_rules();
        world.settle();
        (kernel.readers.endpoints.snapshot(), settled.snapshot().rows[&()])
    };
    let before = kernel.readers.endpoints.snapshot();
    let (after, now) = import(&mut world, "nobody");
    assert_eq!(after.revision, before.revision);
    assert_eq!(now, Settled { rules: world.revision(), endpoints: after.revision });
    let (after, now) = import(&mut world, "a");
    let changed: Vec<bool> = ids.iter().map(|id| after.rows[id] != before.rows[id]).collect();
    assert_eq!(changed, [true, false]);
    assert_eq!((after.rows[&ids[0]].policy_revision, now.endpoints), (now.rules, after.revision));
}

/// The host's own addresses are the host's for as long as it has them, whoever else claims them.
#[test]
fn a_row_is_whose_it_is() {
    let (mut world, readers) = world();
    let (claimed, other): (IpAddr, IpAddr) = ("192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap());
    let labels = |n: &str| Arc::new(pilus_model::identity::NodeIdentities::labels([format!("n={n}")]).unwrap());
    let node = |n: &str, ips: &[IpAddr]| Some(NodeRecord { addresses: ips.iter().copied().collect(), labels: labels(n) });
    let host = |world: &mut World, ips: &[IpAddr]| world.host_addresses(ips.iter().copied().collect());
    let of = |ip: IpAddr| readers.ipcache.snapshot().rows.get(&IpcachePrefix::address(ip)).map(|spec| spec.identity);
    world.set_node("n".into(), node("n", &[claimed, other])).unwrap();
    world.settle();
    let id = of(claimed);
    assert!(id.is_some_and(|id| !id.is_reserved()) && of(other) == id);
    host(&mut world, &[claimed]);
    assert_eq!((of(claimed), of(other)), (Some(Reserved::Host.into()), id));
    host(&mut world, &[]);
    assert_eq!((of(claimed), of(other)), (id, id));
    assert!(matches!(world.set_node("m".into(), node("m", &[other])), Err(ControlError::AddressTaken { by, .. }) if by == "n"));
    world.set_node("n".into(), node("n", &[claimed])).unwrap();
    world.set_node("m".into(), node("m", &[other])).unwrap();
    world.settle();
    assert!(of(other) != id && of(claimed) == id);
}

/// Who was deleted has its addresses and its slot until the kernel has nothing left of it.
#[test]
fn what_is_leaving_keeps_its_place() {
    let (mut world, readers) = world();
    let told = |world: &mut World, ids: &[EndpointId]| {
        let all = ids.iter().map(|id| (*id, Status::Done(Revision(1)))).collect();
        let (_a, mut endpoints) = tokio::sync::watch::channel(Arc::new(all));
        let (_b, mut addresses) = tokio::sync::watch::channel(Arc::default());
        world.see(&mut endpoints, &mut addresses);
    };
    let old = world.add(endpoint("a")).unwrap().0;
    world.settle();
    told(&mut world, &[old.id]);
    world.delete(old.id);
    world.settle();
    let again = || AddEndpoint { ipv6: Some(old.ipv6), ipv4: Wish::Exact(old.ipv4.unwrap()), ..endpoint("b") };
    let refused = world.add(again()).map_err(|e| world.in_the_way(e));
    assert!(matches!(&refused, Err(ControlError::Leaving(why)) if matches!(**why, ControlError::Ipam(IpamError::Taken(_)))));
    let refused = world.add(endpoint("a")).map_err(|e| world.in_the_way(e));
    assert!(matches!(&refused, Err(ControlError::Leaving(why)) if matches!(**why, ControlError::InterfaceTaken { .. })));
    assert!(readers.leaving.snapshot().rows.contains_key(&old.id));
    told(&mut world, &[]);
    assert!(readers.leaving.snapshot().rows.is_empty());
    let new = world.add(again()).unwrap().0;
    assert_eq!((new.ipv6, new.ipv4), (old.ipv6, old.ipv4));
    // The kernel never had it: there is nothing to wait for.
    world.delete(new.id);
    assert!(readers.leaving.snapshot().rows.is_empty());
}
