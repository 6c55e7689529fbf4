// SPDX-License-Identifier: Apache-2.0
//! Devices, addresses, routes, rules and neighbours on the running kernel. Needs root.

mod common;

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::Duration;

use common::{block_on, in_netns, netns, sandbox};
use futures::StreamExt as _;
use pilus_loader::Error;
use pilus_loader::netlink::{Change, LocalPair, Netlink, PairSpec, ROUTE_PROTOCOL, RouteKind, RouteSpec, RuleSpec};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn in_sandbox<F: Future<Output = ()>>(test: impl FnOnce(Netlink) -> F + Send + 'static) {
    sandbox(|_| block_on(async { test(Netlink::new().unwrap()).await }));
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

async fn pair(nl: &Netlink, name: &str, peer: &str) -> (u32, u32) {
    let spec = LocalPair { name, ifindex: None, peer_name: peer, mac: MAC, peer_mac: PEER_MAC, mtu: 1500, noarp: true, no_autoconf: true };
    nl.create_veth_local(spec).await.unwrap()
}

/// As [`pair`], both ends up. Index of the first.
async fn pair_up(nl: &Netlink) -> u32 {
    let (index, peer) = pair(nl, "a", "b").await;
    nl.set_up(index).await.unwrap();
    nl.set_up(peer).await.unwrap();
    index
}

#[test]
fn veth_with_chosen_index_and_peer_elsewhere() {
    in_sandbox(|nl| async move {
        let ns = netns();
        let spec = |name, index| PairSpec {
            name,
            ifindex: Some(index),
            mac: MAC,
            mtu: 1400,
            peer_name: "plxtmp",
            peer_mac: PEER_MAC,
            peer_netns: ns.as_fd(),
            up: true,
            no_autoconf: true,
        };
        assert_eq!(nl.create_veth(spec("plx1", 65800)).await.unwrap(), 65800);
        let ours = nl.link_by_name("plx1").await.unwrap().unwrap();
        assert_eq!((ours.index, ours.mac, ours.mtu, ours.up, ours.kind.as_deref()), (65800, Some(MAC), 1400, true, Some("veth")));
        let peer = in_netns(&ns, || block_on(async { Netlink::new().unwrap().link_by_name("plxtmp").await.unwrap().unwrap() }));
        assert_eq!((peer.mac, peer.mtu, peer.up, peer.peer_index), (Some(PEER_MAC), 1400, false, Some(65800)));
        assert_eq!(ours.peer_index, Some(peer.index));
        // No address of its own, also when the other end is up.
        in_netns(&ns, move || block_on(async { Netlink::new().unwrap().set_up(peer.index).await.unwrap() }));
        assert!(nl.addresses().await.unwrap().iter().all(|a| a.0 != 65800));

        assert!(matches!(nl.create_veth(spec("plx2", 65800)).await, Err(Error::IndexTaken { index: 65800 })));
        assert!(matches!(nl.create_veth(spec("plx1", 65801)).await, Err(Error::NameTaken { name }) if name == "plx1"));
        assert!(matches!(nl.create_veth(spec("plx2", 65801)).await, Err(Error::NameTaken { name }) if name == "plxtmp"));
        assert!(nl.link_by_index(65801).await.unwrap().is_none());
        assert!(nl.delete_link(65800).await.unwrap() && !nl.delete_link(65800).await.unwrap());
        let rest = in_netns(&ns, || block_on(async { Netlink::new().unwrap().links().await.unwrap() }));
        assert_eq!(rest.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["lo"]);
        // The kernel's choice.
        let index = nl.create_veth(PairSpec { ifindex: None, up: false, ..spec("plx3", 0) }).await.unwrap();
        assert_eq!(nl.link_by_index(index).await.unwrap().unwrap().name, "plx3");
    });
}

#[test]
fn local_pair_and_its_settings() {
    in_sandbox(|nl| async move {
        let (host, net) = pair(&nl, "pilus_host", "pilus_net").await;
        let links = nl.links().await.unwrap();
        let host_link = links.iter().find(|l| l.index == host).unwrap();
        assert!(host_link.noarp && !host_link.up && host_link.peer_index == Some(net) && host_link.group == 0);
        nl.set_noarp(host, false).await.unwrap();
        nl.set_mtu(host, 1450).await.unwrap();
        nl.set_mac(host, [2, 0, 0, 0, 0, 9]).await.unwrap();
        nl.set_up(host).await.unwrap();
        nl.set_up(host).await.unwrap();
        let now = nl.link_by_name("pilus_host").await.unwrap().unwrap();
        assert_eq!((now.noarp, now.mtu, now.mac, now.up), (false, 1450, Some([2, 0, 0, 0, 0, 9]), true));
        nl.set_down(host).await.unwrap();
        assert!(!nl.link_by_index(host).await.unwrap().unwrap().up);
        let again = LocalPair {
            name: "other",
            ifindex: None,
            peer_name: "pilus_net",
            mac: MAC,
            peer_mac: PEER_MAC,
            mtu: 1500,
            noarp: false,
            no_autoconf: false,
        };
        assert!(
            matches!(nl.create_veth_local(LocalPair { ifindex: Some(host), peer_name: "x", ..again.clone() }).await, Err(Error::IndexTaken { index }) if index == host)
        );
        let (chosen, _) =
            nl.create_veth_local(LocalPair { name: "chosen", ifindex: Some(65537), peer_name: "x", ..again.clone() }).await.unwrap();
        assert_eq!((chosen, nl.link_by_name("chosen").await.unwrap().unwrap().index), (65537, 65537));
        assert!(matches!(nl.create_veth_local(again).await, Err(Error::NameTaken { name }) if name == "pilus_net"));
        assert!(nl.link_by_name("other").await.unwrap().is_none());
        assert_eq!(nl.set_up(99_999).await.unwrap_err().errno(), Some(libc::ENODEV));
    });
}

#[test]
fn groups_go_in_one_go() {
    in_sandbox(|nl| async move {
        let mut indexes = vec![99_999];
        for i in 0..3 {
            indexes.push(pair(&nl, &format!("a{i}"), &format!("b{i}")).await.0);
        }
        pair(&nl, "stays", "stays_too").await;
        assert!(matches!(nl.delete_links_group(&indexes, 0).await, Err(Error::Invalid { .. })));
        assert_eq!(nl.delete_links_group(&indexes, 77).await.unwrap(), 3);
        let mut names: Vec<_> = nl.links().await.unwrap().into_iter().map(|l| l.name).collect();
        names.sort();
        assert_eq!(names, ["lo", "stays", "stays_too"]);
        assert_eq!(nl.delete_links_group(&indexes, 77).await.unwrap(), 0);
        assert!(!nl.delete_group(77).await.unwrap());
    });
}

#[test]
fn addresses_twice() {
    in_sandbox(|nl| async move {
        let index = pair_up(&nl).await;
        for (a, plen) in [(ip("fd00::1"), 128), (ip("10.1.2.3"), 32)] {
            assert!(nl.add_address(index, a, plen).await.unwrap());
            assert!(!nl.add_address(index, a, plen).await.unwrap());
            assert!(nl.addresses().await.unwrap().contains(&(index, a, plen)));
            assert!(nl.delete_address(index, a, plen).await.unwrap());
            assert!(!nl.delete_address(index, a, plen).await.unwrap());
        }
        assert!(nl.addresses().await.unwrap().iter().all(|a| a.0 != index));
        assert!(!nl.delete_address(99_999, ip("fd00::1"), 128).await.unwrap());
    });
}

/// The kernel does the last step from a work queue.
#[test]
fn addresses_are_in_use_at_once() {
    in_sandbox(|nl| async move {
        let index = pair_up(&nl).await;
        for n in 1..=100 {
            for (a, plen) in [(ip(&format!("fd00::{n:x}")), 128), (ip(&format!("10.1.2.{n}")), 32)] {
                nl.add_address(index, a, plen).await.unwrap();
                let routes = nl.all_routes().await.unwrap();
                assert!(routes.iter().any(|r| r.dst == a && r.kind == libc::RTN_LOCAL), "{a} is not in use");
            }
        }
    });
}

/// Nothing waits for ever for an address that the host's own rules send elsewhere.
#[test]
fn an_address_that_rules_hide_is_given_all_the_same() {
    in_sandbox(|nl| async move {
        let index = pair_up(&nl).await;
        let local = RuleSpec { ipv6: true, priority: 0, fwmark: 0, fwmask: 0, table: u32::from(libc::RT_TABLE_LOCAL) };
        // The kernel asks no rules of IPv6 before somebody has made one.
        assert!(nl.rule_add(&RuleSpec { priority: 10, table: u32::from(libc::RT_TABLE_MAIN), ..local }).await.unwrap());
        assert!(nl.rule_delete(&local).await.unwrap());
        tokio::time::pause();
        let since = tokio::time::Instant::now();
        assert!(nl.add_address(index, ip("fd00::1"), 128).await.unwrap());
        assert!(since.elapsed() >= Duration::from_secs(10), "it was waited for");
        // One that is there is not waited for again.
        let since = tokio::time::Instant::now();
        assert!(!nl.add_address(index, ip("fd00::1"), 128).await.unwrap());
        assert_eq!(since.elapsed(), Duration::ZERO);
    });
}

#[test]
fn routes_twice() {
    in_sandbox(|nl| async move {
        let (index, _) = pair(&nl, "a", "b").await;
        assert_eq!(nl.default_route_device().await.unwrap(), None);
        nl.set_up(index).await.unwrap();
        nl.add_address(index, ip("10.1.0.1"), 32).await.unwrap();
        nl.add_address(index, ip("fd00:1::1"), 128).await.unwrap();
        let specs = [
            RouteSpec { pref_source: Some(ip("10.1.0.1")), scope_link: true, mtu: Some(1350), ..RouteSpec::new(ip("10.2.0.0"), 16, index) },
            RouteSpec { mtu: Some(1350), ..RouteSpec::new(ip("fd00:2::"), 64, index) },
            RouteSpec { gateway: Some(ip("169.254.1.1")), onlink: true, ..RouteSpec::new(ip("0.0.0.0"), 0, index) },
            RouteSpec { gateway: Some(ip("fe80::1")), onlink: true, ..RouteSpec::new(ip("::"), 0, index) },
            RouteSpec { table: 2005, kind: RouteKind::Local, ..RouteSpec::new(ip("0.0.0.0"), 0, 1) },
        ];
        nl.set_up(1).await.unwrap();
        for spec in &specs {
            nl.route_replace(spec).await.unwrap();
            nl.route_replace(spec).await.unwrap();
            let all = nl.routes(spec.oif).await.unwrap();
            let found: Vec<_> = all.iter().filter(|r| (r.dst, r.plen, r.table) == (spec.dst, spec.plen, spec.table)).collect();
            assert_eq!(found.len(), 1, "{spec:?} in {all:?}");
            assert_eq!((found[0].gateway, found[0].mtu, found[0].protocol), (spec.gateway, spec.mtu, ROUTE_PROTOCOL));
            assert_eq!((found[0].pref_source, found[0].scope_link), (spec.pref_source, spec.scope_link));
        }
        assert_eq!(nl.default_route_device().await.unwrap(), Some(index));
        for spec in &specs {
            assert!(nl.route_delete(spec).await.unwrap(), "{spec:?}");
            assert!(!nl.route_delete(spec).await.unwrap(), "{spec:?}");
        }
        assert!(nl.all_routes().await.unwrap().iter().all(|r| r.protocol != ROUTE_PROTOCOL));
    });
}

#[test]
fn rules_twice() {
    in_sandbox(|nl| async move {
        for ipv6 in [false, true] {
            let rule = RuleSpec { ipv6, priority: 9, fwmark: 0x200, fwmask: 0xf00, table: 2005 };
            assert!(nl.rule_add(&rule).await.unwrap() && !nl.rule_add(&rule).await.unwrap());
            assert_eq!(nl.rules().await.unwrap().iter().filter(|r| **r == rule).count(), 1);
            assert!(!nl.rules_ask_for_more(0xf00).await.unwrap() && nl.rules_ask_for_more(0xff).await.unwrap());
            assert!(nl.rule_delete(&rule).await.unwrap() && !nl.rule_delete(&rule).await.unwrap());
        }
    });
}

#[test]
fn neighbours_twice() {
    in_sandbox(|nl| async move {
        let (index, _) = pair(&nl, "a", "b").await;
        nl.set_up(index).await.unwrap();
        for a in [ip("10.1.0.9"), ip("fe80::9")] {
            nl.neighbour_replace(index, a, MAC).await.unwrap();
            nl.neighbour_replace(index, a, PEER_MAC).await.unwrap();
            assert!(nl.neighbours(index).await.unwrap().contains(&(a, Some(PEER_MAC))));
            assert!(nl.neighbour_delete(index, a).await.unwrap());
            assert!(!nl.neighbours(index).await.unwrap().contains(&(a, Some(PEER_MAC))));
            nl.neighbour_delete(index, a).await.unwrap();
        }
        assert!(!nl.neighbour_delete(99_999, ip("10.1.0.9")).await.unwrap());
    });
}

#[test]
fn changes_are_told() {
    in_sandbox(|nl| async move {
        let mut changes = nl.watch().unwrap();
        let mut wait = async |wanted: &dyn Fn(&Change) -> bool| {
            let found = async { while !wanted(&changes.next().await.expect("the stream goes on")) {} };
            tokio::time::timeout(Duration::from_secs(10), found).await.expect("change was told");
        };
        let (index, _) = pair(&nl, "a", "b").await;
        wait(&|c| matches!(c, Change::Link(l) if l.index == index && !l.up)).await;
        nl.set_up(index).await.unwrap();
        wait(&|c| matches!(c, Change::Link(l) if l.name == "a" && l.up)).await;
        nl.add_address(index, ip("10.1.2.3"), 32).await.unwrap();
        wait(&|c| *c == Change::Address { index, ip: ip("10.1.2.3"), plen: 32 }).await;
        nl.delete_address(index, ip("10.1.2.3"), 32).await.unwrap();
        wait(&|c| *c == Change::AddressGone { index, ip: ip("10.1.2.3"), plen: 32 }).await;
        nl.delete_link(index).await.unwrap();
        wait(&|c| *c == Change::LinkGone { index, name: "a".into() }).await;
    });
}
