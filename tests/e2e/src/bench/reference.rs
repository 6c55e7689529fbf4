// SPDX-License-Identifier: Apache-2.0
//! Small programs that the datapath is measured against, in a node's own tables.

use super::path::{Entry, addresses, block, mac, netns, pair, set_up};
use super::shape::pins;
use crate::container::{enter, new_netns};
use crate::{Container, Node};
use anyhow::{Context, Result};
use pilus_codegen::{Build, Clang, Features, NodeConfig, Templates};
use pilus_loader::collection::{Collection, LoadOptions, Program};
use pilus_loader::hook::{self, Dir};
use pilus_loader::maps::PinnedMap;
use pilus_loader::netlink::Netlink;
use pilus_model::abi::{Endpoint, map};
use std::path::PathBuf;

/// As in `reference.c`.
const SLOT: u32 = 65_535;
const NET: u8 = 8;

/// The programs, loaded. They reuse the node's tables.
pub struct Programs(Collection);

impl Programs {
    pub fn load(node: &Node) -> Result<Self> {
        let tree = tempfile::tempdir()?;
        let templates = Templates::load(node.path("state/applied"))?;
        for (name, bytes) in templates.files() {
            let path = tree.path().join(name);
            std::fs::create_dir_all(path.parent().context("a directory")?)?;
            std::fs::write(path, if name == "slow.c" { include_bytes!("reference.c") } else { bytes })?;
        }
        let templates = Templates::load(tree.path())?;
        let rendered = templates.render_slow(&NodeConfig { features: Features::default() })?;
        let work = tempfile::tempdir()?;
        let compiled = node.block_on(Clang::find().compile(&templates, &rendered, Build::Shared, work.path()))?;
        let options = LoadOptions { name: "reference", ..LoadOptions::default() };
        Ok(Self(Collection::load(&pins(node)?, &compiled.bytes, &options)?))
    }

    pub fn get(&self, name: &str) -> Result<&Program> {
        self.0.programs.iter().find(|p| p.name == name).with_context(|| format!("no program {name}"))
    }
}

/// A namespace with a device that runs one of the programs, and a receiver behind it.
pub struct Reference {
    pub entry: Entry,
    pub server: Container,
    _client: Container,
    link: PathBuf,
}

impl Reference {
    /// `policy`: the one that the receiver is to have, as in a row of the endpoint table.
    pub fn new(node: &Node, first: &Program, policy: u32) -> Result<Self> {
        let (client, mut server) = (Container::new("ref-client")?, Container::new("ref-server")?);
        let (middle, fs) = (new_netns()?, pins(node)?);
        let ends = [client.run(netns)?, server.run(netns)?];
        let (enters, leaves) = enter(&middle, || {
            block(async {
                let netlink = Netlink::new()?;
                let mut indices = [0; 2];
                for (n, end) in ends.iter().enumerate() {
                    let net = NET + n as u8;
                    indices[n] = pair(&netlink, &format!("r{n}"), mac(net, 9), mac(net, 1), end).await?;
                    addresses(&netlink, indices[n], net, 9).await?;
                }
                Ok::<_, anyhow::Error>((indices[0], indices[1]))
            })
        })?;
        set_up(&mut server, NET + 1, 1, Some(9))?;
        let row = Endpoint { ifindex: leaves, mac: mac(NET + 1, 1), host_mac: mac(NET + 1, 9), policy_in: policy, ..Endpoint::default() };
        PinnedMap::<u32, Endpoint>::open(&fs, map::ENDPOINT)?.put(&SLOT, &row)?;
        let link = fs.objects().join("bench_reference_link");
        enter(&middle, || hook::attach_tcx(first, enters, Dir::Ingress, &link))?;
        let entry = Entry { netns: middle, ifindex: enters, source: mac(NET, 1), destination: mac(NET, 9) };
        Ok(Self { entry, server, _client: client, link })
    }

    /// Another of the programs from now on.
    pub fn run(&self, program: &Program) -> Result<()> {
        hook::update_link(&self.link, program)?;
        Ok(())
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let _ = hook::detach_link(&self.link);
    }
}
