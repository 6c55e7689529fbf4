// SPDX-License-Identifier: Apache-2.0
//! Attaching on the running kernel. Needs root and clang-19.

mod common;

use std::os::fd::AsFd;
use std::path::Path;

use common::{BASIC, block_on, compile, in_netns, netns, sandbox};
use pilus_loader::Error;
use pilus_loader::bpffs::BpfFs;
use pilus_loader::collection::{Collection, LoadOptions, Program};
use pilus_loader::hook::{self, Dir, LinkUpdate, Point};
use pilus_loader::netlink::{LocalPair, Netlink, PairSpec};
use pilus_loader::probe::Features;

/// A loaded object and a veth pair, in namespaces of their own.
fn with_device(test: impl FnOnce(&BpfFs, &Collection, u32) + Send + 'static) {
    sandbox(|root: &Path| {
        let fs = BpfFs::open(root).unwrap();
        let all = Collection::load(&fs, &compile(BASIC), &LoadOptions { name: "hook", ..Default::default() }).unwrap();
        let index = block_on(async {
            let pair = LocalPair {
                name: "a",
                ifindex: None,
                peer_name: "b",
                mac: [2, 0, 0, 0, 0, 1],
                peer_mac: [2, 0, 0, 0, 0, 2],
                mtu: 1500,
                noarp: false,
                no_autoconf: true,
            };
            Netlink::new().unwrap().create_veth_local(pair).await.unwrap().0
        });
        test(&fs, &all, index);
    });
}

fn delete(index: u32) {
    assert!(block_on(async { Netlink::new().unwrap().delete_link(index).await.unwrap() }));
}

#[test]
fn tcx_link_lives_by_its_pin() {
    with_device(|fs, all, index| {
        if !Features::probe().unwrap().tcx {
            println!("skipped: the kernel has no tcx");
            return;
        }
        let (pass, drop) = (all.program("pass").unwrap(), all.program("drop").unwrap());
        let pin = fs.links().join("a_ingress");
        assert_eq!(hook::link_info(&pin).unwrap(), None);
        assert_eq!(hook::update_link(&pin, pass).unwrap(), LinkUpdate::NoPin);
        hook::attach_tcx(pass, index, Dir::Ingress, &pin).unwrap();
        let info = hook::link_info(&pin).unwrap().unwrap();
        assert_eq!((info.prog_id, info.ifindex, info.point), (pass.id, index, Point::Tcx(Dir::Ingress)));
        assert_eq!(hook::attach_tcx(drop, index, Dir::Ingress, &pin).unwrap_err().errno(), Some(libc::EEXIST));
        // The other direction, and the same program twice.
        let egress = fs.links().join("a_egress");
        hook::attach_tcx(pass, index, Dir::Egress, &egress).unwrap();
        assert_eq!(hook::link_info(&egress).unwrap().unwrap().point, Point::Tcx(Dir::Egress));
        // Swapped in place: the same link.
        assert_eq!(hook::update_link(&pin, drop).unwrap(), LinkUpdate::Updated);
        let swapped = hook::link_info(&pin).unwrap().unwrap();
        assert_eq!((swapped.prog_id, swapped.link_id), (drop.id, info.link_id));
        assert!(hook::detach_link(&egress).unwrap() && !hook::detach_link(&egress).unwrap());
        assert!(!egress.exists());
        // The device goes, the pin stays and says so.
        delete(index);
        assert_eq!(hook::link_info(&pin).unwrap().unwrap().ifindex, 0);
        assert_eq!(hook::update_link(&pin, pass).unwrap(), LinkUpdate::Severed);
        assert!(hook::detach_link(&pin).unwrap() && !pin.exists());
        assert_eq!(hook::attach_tcx(pass, index, Dir::Ingress, &pin).unwrap_err().errno(), Some(libc::ENODEV));
        assert!(!pin.exists());
    });
}

#[test]
fn removing_the_tree_detaches() {
    with_device(|fs, all, index| {
        if !Features::probe().unwrap().tcx {
            println!("skipped: the kernel has no tcx");
            return;
        }
        let pin = fs.links().join("a_ingress");
        hook::attach_tcx(all.program("pass").unwrap(), index, Dir::Ingress, &pin).unwrap();
        let removed = fs.remove_all().unwrap();
        assert_eq!(removed[0], pin);
    });
}

#[test]
fn clsact_filter_is_found_by_asking() {
    with_device(|_, all, index| {
        let (pass, drop) = (all.program("pass").unwrap(), all.program("a_program_with_a_long_name").unwrap());
        for dir in [Dir::Ingress, Dir::Egress] {
            assert_eq!(hook::tc_info(index, dir).unwrap(), None);
            assert!(!hook::detach_tc(index, dir, true).unwrap());
        }
        hook::attach_tc(pass, index, Dir::Ingress).unwrap();
        assert_eq!(hook::tc_info(index, Dir::Ingress).unwrap(), Some(pass.id));
        assert_eq!(hook::tc_info(index, Dir::Egress).unwrap(), None);
        hook::attach_tc(drop, index, Dir::Egress).unwrap();
        // Replaced, not added to.
        hook::attach_tc(drop, index, Dir::Ingress).unwrap();
        let id = hook::tc_info(index, Dir::Ingress).unwrap().unwrap();
        assert_eq!(Program::by_id(id).unwrap().unwrap().name, "a_program_with_");
        assert!(hook::detach_tc(index, Dir::Ingress, false).unwrap());
        assert_eq!(hook::tc_info(index, Dir::Egress).unwrap(), Some(drop.id));
        assert!(hook::detach_tc(index, Dir::Egress, true).unwrap() && !hook::detach_tc(index, Dir::Egress, true).unwrap());
        delete(index);
        assert_eq!(hook::tc_info(index, Dir::Ingress).unwrap(), None);
        assert!(!hook::detach_tc(index, Dir::Ingress, true).unwrap());
        assert!(matches!(hook::attach_tc(pass, index, Dir::Ingress), Err(Error::Hook { errno: libc::ENODEV, .. })));
    });
}

#[test]
fn one_program_serves_both_hooks() {
    with_device(|fs, all, index| {
        let pass = all.program("pass").unwrap();
        hook::attach_tc(pass, index, Dir::Ingress).unwrap();
        if !Features::probe().unwrap().tcx {
            println!("skipped: the kernel has no tcx");
            return;
        }
        // Promotion: tcx first, then the filter goes.
        let pin = fs.links().join("a_ingress");
        hook::attach_tcx(pass, index, Dir::Ingress, &pin).unwrap();
        assert!(hook::detach_tc(index, Dir::Ingress, true).unwrap());
        assert_eq!(hook::link_info(&pin).unwrap().unwrap().prog_id, pass.id);
    });
}

/// A netkit pair whose other end is in a namespace that lives as long as the file.
fn netkit(up: bool) -> (std::fs::File, u32, u32) {
    let ns = netns();
    let spec = PairSpec {
        name: "nk",
        ifindex: Some(77_000),
        mac: [2, 0, 0, 0, 0, 3],
        mtu: 1400,
        peer_name: "peer",
        peer_mac: [2, 0, 0, 0, 0, 4],
        peer_netns: ns.as_fd(),
        up,
        no_autoconf: true,
    };
    let (index, link) = block_on(async {
        let nl = Netlink::new().unwrap();
        let index = nl.create_netkit(spec).await.unwrap();
        (index, nl.link_by_index(index).await.unwrap().unwrap())
    });
    assert_eq!((link.kind.as_deref(), link.mac, link.mtu), (Some("netkit"), Some([2, 0, 0, 0, 0, 3]), 1400));
    // There is no other device but loopback in there.
    let peer = in_netns(&ns, || {
        block_on(async {
            let nl = Netlink::new().unwrap();
            let peer = nl.link_by_name("peer").await.unwrap().unwrap();
            nl.set_up(peer.index).await.unwrap();
            peer
        })
    });
    assert_eq!((peer.mac, peer.mtu, Some(peer.index)), (Some([2, 0, 0, 0, 0, 4]), 1400, link.peer_index));
    (ns, index, peer.index)
}

#[test]
fn netkit_link_lives_by_its_pin() {
    with_device(|fs, all, veth| {
        if !Features::probe().unwrap().netkit {
            println!("skipped: the kernel has no netkit");
            return;
        }
        let (pass, drop) = (all.program("pass").unwrap(), all.program("drop").unwrap());
        let pin = fs.links().join("nk");
        assert_eq!(hook::attach_netkit(pass, veth, &pin).unwrap_err().errno(), Some(libc::ENXIO));
        assert!(!pin.exists());
        let (_ns, index, peer) = netkit(true);
        hook::attach_netkit(pass, index, &pin).unwrap();
        let info = hook::link_info(&pin).unwrap().unwrap();
        assert_eq!((info.prog_id, info.ifindex, info.point), (pass.id, peer, Point::NetkitPeer));
        assert_eq!(hook::attach_netkit(drop, index, &pin).unwrap_err().errno(), Some(libc::EEXIST));
        // Swapped in place: the same link.
        assert_eq!(hook::update_link(&pin, drop).unwrap(), LinkUpdate::Updated);
        let swapped = hook::link_info(&pin).unwrap().unwrap();
        assert_eq!((swapped.prog_id, swapped.link_id, swapped.ifindex), (drop.id, info.link_id, peer));
        // The device goes, the pin stays and says so.
        delete(index);
        assert_eq!(hook::link_info(&pin).unwrap().unwrap().ifindex, 0);
        assert_eq!(hook::update_link(&pin, pass).unwrap(), LinkUpdate::Severed);
        assert!(hook::detach_link(&pin).unwrap() && !pin.exists());
        assert_eq!(hook::attach_netkit(pass, index, &pin).unwrap_err().errno(), Some(libc::ENODEV));
    });
}

/// The other end of a netkit pair sends nothing before it has a program.
#[test]
fn netkit_passes_nothing_by_itself() {
    with_device(|fs, all, _| {
        if !Features::probe().unwrap().netkit {
            println!("skipped: the kernel has no netkit");
            return;
        }
        let (ns, index, peer) = netkit(true);
        block_on(async { Netlink::new().unwrap().add_address(index, [10, 9, 9, 1].into(), 24).await.unwrap() });
        let near = std::net::UdpSocket::bind("0.0.0.0:9999").unwrap();
        near.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let far = in_netns(&ns, move || {
            block_on(async { Netlink::new().unwrap().add_address(peer, [10, 9, 9, 2].into(), 24).await.unwrap() });
            std::net::UdpSocket::bind("10.9.9.2:0").unwrap()
        });
        far.set_broadcast(true).unwrap();
        let send = |what: &[u8]| far.send_to(what, "10.9.9.255:9999");
        send(b"before").unwrap();
        hook::attach_netkit(all.program("pass").unwrap(), index, &fs.links().join("nk")).unwrap();
        send(b"after").unwrap();
        let mut buffer = [0; 16];
        let n = near.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"after");
    });
}
