// SPDX-License-Identifier: Apache-2.0
//! Removes everything that Pilus ever made on the node, by what is there and not by what is remembered.

use crate::datapath::hooks::{detach_filter, drop_unused_qdisc};
use crate::datapath::host::{HOST_DEVICE, NET_DEVICE};
use crate::datapath::sysctl::Sysctls;
use crate::options::Options;
use pilus_loader::bpffs::BpfFs;
use pilus_loader::hook::Dir;
use pilus_loader::netlink::{Netlink, ROUTE_PROTOCOL, RouteSpec};
use pilus_model::abi::IFINDEX_BASE;
use std::path::Path;

fn remove_dir(path: &Path, done: &mut Vec<String>) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => done.push(format!("removed directory {}", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    Ok(())
}

/// Links, routes, maps, programs and pins of this network namespace and bpffs. Says what it removed; goes on after an error
/// and reports it at the end.
pub async fn kernel(bpf_root: &Path, state_dir: &Path) -> (Vec<String>, Vec<String>) {
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    match Netlink::new() {
        Ok(netlink) => links(&netlink, &mut done, &mut failed).await,
        Err(e) => failed.push(e.to_string()),
    }
    match Sysctls::new(state_dir).undo() {
        Ok(undone) => done.extend(undone),
        Err(e) => failed.push(e.to_string()),
    }
    if pilus_loader::bpffs::is_bpffs(bpf_root) && bpf_root.join("pilus").exists() {
        match BpfFs::open(bpf_root).and_then(|fs| fs.remove_all()) {
            Ok(paths) => done.extend(paths.iter().map(|p| format!("removed {}", p.display()))),
            Err(e) => failed.push(e.to_string()),
        }
    }
    (done, failed)
}

async fn links(netlink: &Netlink, done: &mut Vec<String>, failed: &mut Vec<String>) {
    let all = match netlink.links().await {
        Ok(all) => all,
        Err(e) => return failed.push(e.to_string()),
    };
    let nodes_own = all.iter().filter(|l| l.index < IFINDEX_BASE);
    for link in nodes_own {
        let mut taken = false;
        for dir in [Dir::Ingress, Dir::Egress] {
            match detach_filter(link.index, dir) {
                Ok(true) => {
                    taken = true;
                    done.push(format!("removed filter of {}", link.name));
                }
                Ok(false) => {}
                Err(e) => failed.push(e.to_string()),
            }
        }
        if taken && let Err(e) = drop_unused_qdisc(netlink, link.index).await {
            failed.push(e.to_string());
        }
    }
    let ours = |name: &str, index: u32| {
        name == HOST_DEVICE || name == NET_DEVICE || (index >= IFINDEX_BASE && name.len() == 11 && name.starts_with("plx"))
    };
    for link in all.iter().filter(|l| ours(&l.name, l.index)) {
        match netlink.delete_link(link.index).await {
            Ok(true) => done.push(format!("removed link {}", link.name)),
            // The other end of a pair goes with the first.
            Ok(false) => {}
            Err(e) => failed.push(e.to_string()),
        }
    }
    match netlink.all_routes().await {
        Ok(routes) => {
            for r in routes.iter().filter(|r| r.protocol == ROUTE_PROTOCOL) {
                let mut spec = RouteSpec::new(r.dst, r.plen, r.oif);
                spec.table = r.table;
                match netlink.route_delete(&spec).await {
                    Ok(true) => done.push(format!("removed route {}/{}", r.dst, r.plen)),
                    Ok(false) => {}
                    Err(e) => failed.push(e.to_string()),
                }
            }
        }
        Err(e) => failed.push(e.to_string()),
    }
}

/// The whole of `pilus-agent --cleanup`: kernel, then files.
pub async fn all(options: &Options) -> (Vec<String>, Vec<String>) {
    let (mut done, mut failed) = kernel(&options.bpf_root, &options.state_dir).await;
    let mut files = || -> std::io::Result<()> {
        remove_dir(&options.run_dir, &mut done)?;
        if options.socket.exists() {
            std::fs::remove_file(&options.socket)?;
            done.push(format!("removed socket {}", options.socket.display()));
        }
        remove_dir(&options.state_dir, &mut done)
    };
    if let Err(e) = files() {
        failed.push(e.to_string());
    }
    (done, failed)
}
