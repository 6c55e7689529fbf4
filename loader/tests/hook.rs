// SPDX-License-Identifier: Apache-2.0
//! Attaching on the running kernel. Needs root and clang-19.

mod common;

use std::path::Path;

use common::{BASIC, block_on, compile, sandbox};
use pilus_loader::Error;
use pilus_loader::bpffs::BpfFs;
use pilus_loader::collection::{Collection, LoadOptions, Program};
use pilus_loader::hook::{self, Dir, TcxUpdate};
use pilus_loader::netlink::{LocalPair, Netlink};
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
        assert_eq!(hook::tcx_info(&pin).unwrap(), None);
        assert_eq!(hook::update_tcx(&pin, pass).unwrap(), TcxUpdate::NoPin);
        hook::attach_tcx(pass, index, Dir::Ingress, &pin).unwrap();
        let info = hook::tcx_info(&pin).unwrap().unwrap();
        assert_eq!((info.prog_id, info.ifindex, info.dir), (pass.id, index, Dir::Ingress));
        assert_eq!(hook::attach_tcx(drop, index, Dir::Ingress, &pin).unwrap_err().errno(), Some(libc::EEXIST));
        // The other direction, and the same program twice.
        let egress = fs.links().join("a_egress");
        hook::attach_tcx(pass, index, Dir::Egress, &egress).unwrap();
        assert_eq!(hook::tcx_info(&egress).unwrap().unwrap().dir, Dir::Egress);
        // Swapped in place: the same link.
        assert_eq!(hook::update_tcx(&pin, drop).unwrap(), TcxUpdate::Updated);
        let swapped = hook::tcx_info(&pin).unwrap().unwrap();
        assert_eq!((swapped.prog_id, swapped.link_id), (drop.id, info.link_id));
        assert!(hook::detach_tcx(&egress).unwrap() && !hook::detach_tcx(&egress).unwrap());
        assert!(!egress.exists());
        // The device goes, the pin stays and says so.
        delete(index);
        assert_eq!(hook::tcx_info(&pin).unwrap().unwrap().ifindex, 0);
        assert_eq!(hook::update_tcx(&pin, pass).unwrap(), TcxUpdate::Severed);
        assert!(hook::detach_tcx(&pin).unwrap() && !pin.exists());
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
        assert_eq!(hook::tcx_info(&pin).unwrap().unwrap().prog_id, pass.id);
    });
}
