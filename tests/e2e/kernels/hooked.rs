// SPDX-License-Identifier: Apache-2.0
//! Programs with the example's hook, compiled once for all machines: the target directory of each is the host's, and in an
//! emulated one a compiler takes twenty times as long.

use pilus_codegen::{Build, Clang, EndpointConfig, Features, NodeConfig, ObjectCache, Templates};
use pilus_e2e::Node;
use std::fs::{self, File};
use std::net::Ipv6Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub const HOOK: &str = include_str!("../../../examples/templates/pass.c");
/// Below a node's templates.
pub const HOOK_FILE: &str = "custom/container.c";

pub fn shape(ipv4: bool, netkit: bool) -> Features {
    Features::default().with("ipv4", ipv4).with("netkit", netkit)
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() { copy_tree(&entry.path(), &to)? } else { fs::copy(entry.path(), to).map(drop)? }
    }
    Ok(())
}

/// Puts the shared objects of a shape into `to`, compiled now if never before.
fn objects(features: Features, to: &Path) -> anyhow::Result<()> {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hooked");
    fs::create_dir_all(&kept)?;
    // Root's tests leave nothing in the tree that its owner could not remove.
    let owner = fs::metadata(env!("CARGO_TARGET_TMPDIR"))?;
    std::os::unix::fs::chown(&kept, Some(owner.uid()), Some(owner.gid()))?;
    let one = File::create(kept.join("lock"))?;
    one.lock()?;
    let tree = tempfile::tempdir()?;
    copy_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf-templates"), tree.path())?;
    fs::write(tree.path().join(HOOK_FILE), HOOK)?;
    let templates = Templates::load(tree.path())?;
    // Values are no part of a shared object.
    let container = EndpointConfig {
        name: String::new(),
        slot: 0,
        id: 0,
        ifindex: 0,
        mac: [0; 6],
        host_mac: [0; 6],
        ipv4: None,
        ipv6: Ipv6Addr::UNSPECIFIED,
        mtu: 1500,
        features: features.clone(),
    };
    let node = NodeConfig { features };
    let all = [templates.render_container(&container)?, templates.render_netdev(&node)?, templates.render_slow(&node)?];
    fs::create_dir_all(to)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let cache = ObjectCache::new(kept.clone(), Vec::new(), Clang::find(), 0);
        for rendered in all {
            let key = cache.get_or_build(&templates, &rendered, Build::Shared).await?.key;
            for file in [format!("{key}.o"), format!("{key}.json")] {
                fs::copy(kept.join(&file), to.join(&file))?;
            }
        }
        Ok(())
    })
}

/// The node's agent finds its shape's objects with the hook as if it had compiled them before.
pub fn give(node: &Node, features: Features) {
    objects(features, &node.path("state/objects")).expect("objects with the hook");
}

/// Also those that this kernel has no use for: another one beside it has.
#[test]
fn the_hook_compiles_in_every_shape() {
    if std::env::var_os("PILUS_VM").is_some() {
        return println!("skipped: no kernel has a part in it, and this one is emulated");
    }
    let dir = tempfile::tempdir().expect("directory");
    for (ipv4, netkit) in [(true, false), (false, false), (true, true)] {
        objects(shape(ipv4, netkit), dir.path()).expect("objects with the hook");
    }
}
