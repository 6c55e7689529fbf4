// SPDX-License-Identifier: Apache-2.0
//! Containers in the kernel: device, program, addresses inside, row. Each step finds out what is there already.

use super::Tables;
use super::policies::PolicyReconciler;
use super::programs::{ProgramError, Programs, Shape};
use super::rows::{RowError, RowWriter, endpoint_row};
use crate::options::{AttachMode, DatapathMode};
use crate::reconcile::{Reconcile, Status, Statuses};
use crate::state::{EndpointRecord, EndpointSpec, Facts, PolicySpec, device_name};
use crate::supervise::{self, HelperError};
use crate::table::{Reader, Writer, table};
use crate::templates::TemplateStore;
use pilus_codegen::{EndpointConfig, Features, Rendered};
use pilus_loader::bpffs::BpfFs;
use pilus_loader::collection::Program;
use pilus_loader::hook::{self, Dir, LinkUpdate, Point};
use pilus_loader::netlink::{LinkInfo, Netlink, PairSpec};
use pilus_model::abi::{EP_VALID, IFINDEX_BASE, POLICY_FIRST, SLOT_FIRST, SLOT_NODES};
use pilus_model::endpoint::EndpointId;
use pilus_plugins::netns::{Configure, LinkRef, Mac, Prefix, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("network namespace {}: {source}", path.display())]
    Netns { path: PathBuf, source: std::io::Error },
    #[error("interface {device} is gone, and network namespace {} with it ({why}); delete the endpoint", netns.display())]
    Gone { device: String, netns: PathBuf, why: Arc<str> },
    #[error(transparent)]
    Kernel(#[from] pilus_loader::Error),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Row(#[from] RowError),
    #[error("{0}")]
    Helper(#[from] HelperError),
    #[error("policy {0}: {1}")]
    Policy(u32, Arc<str>),
    #[error("policy {0} was replaced meanwhile")]
    Superseded(u32),
    #[error("interface index {index} is taken by {name}, which is not ours; remove it or delete and add the endpoint")]
    IndexTaken { index: u32, name: String },
    #[error("header file: {0}")]
    Header(std::io::Error),
    #[error("{0}")]
    Render(String),
}

const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Interface index of an endpoint's host side.
pub fn ifindex(id: EndpointId) -> u32 {
    IFINDEX_BASE + u32::from(id.0)
}

/// The endpoint whose host side has this interface index.
pub fn id_of_ifindex(index: u32) -> Option<EndpointId> {
    let slot = index.checked_sub(IFINDEX_BASE)?;
    (SLOT_FIRST..SLOT_NODES).contains(&slot).then_some(EndpointId(slot as u16))
}

/// Whether a device is a container's host side of the netkit kind.
pub fn is_netkit(link: &LinkInfo) -> bool {
    link.kind.as_deref() == Some(NETKIT) && id_of_ifindex(link.index).is_some_and(|id| link.name == device_name(id))
}

/// The kernel's name for the kind.
const NETKIT: &str = "netkit";

/// An endpoint's device.
#[derive(Clone, Copy)]
struct Device {
    /// Index of the container's end, in the container's namespace.
    peer: u32,
    netkit: bool,
    new: bool,
}

/// What the reconciler works with.
pub struct EndpointReconciler {
    pub fs: BpfFs,
    pub tables: Arc<Tables>,
    pub netlink: Netlink,
    pub programs: Arc<Programs>,
    pub templates: Arc<TemplateStore>,
    pub features: Features,
    pub attach_mode: AttachMode,
    /// Of devices that are made from now on; those that are there stay what they are.
    pub datapath_mode: DatapathMode,
    pub tcx: bool,
    pub run_dir: PathBuf,
    pub policy_status: Statuses<u32>,
    pub policies: Arc<PolicyReconciler>,
    pub wanted_policies: Reader<u32, PolicySpec>,
    pub rows: Arc<RowWriter>,
    facts: Mutex<Writer<EndpointId, Facts>>,
    /// Who has one works on that endpoint: reconciling and promotion change the same hook.
    turns: Mutex<BTreeMap<EndpointId, Arc<tokio::sync::Mutex<()>>>>,
    /// Containers that ended without a word, why we think so, and the regeneration that found out. What their path leads to
    /// later is another container's.
    ended: Mutex<BTreeMap<EndpointId, (u64, Arc<str>)>>,
    graveyard: tokio::sync::mpsc::UnboundedSender<u32>,
    regenerated: AtomicU64,
}

/// Parts that the reconciler is made of.
pub struct Parts {
    pub fs: BpfFs,
    pub tables: Arc<Tables>,
    pub netlink: Netlink,
    pub programs: Arc<Programs>,
    pub templates: Arc<TemplateStore>,
    pub features: Features,
    pub attach_mode: AttachMode,
    /// Of devices that are made from now on; those that are there stay what they are.
    pub datapath_mode: DatapathMode,
    pub tcx: bool,
    pub run_dir: PathBuf,
    pub policy_status: Statuses<u32>,
    pub policies: Arc<PolicyReconciler>,
    pub wanted_policies: Reader<u32, PolicySpec>,
    pub rows: Arc<RowWriter>,
}

impl EndpointReconciler {
    /// Updates that reached the kernel so far.
    pub fn regenerations(&self) -> u64 {
        self.regenerated.load(Ordering::Relaxed)
    }

    pub fn new(parts: Parts) -> (Arc<Self>, Reader<EndpointId, Facts>) {
        let (facts, reader) = table();
        let (graveyard, dead) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(bury(parts.netlink.clone(), dead));
        let Parts {
            fs,
            tables,
            netlink,
            programs,
            templates,
            features,
            attach_mode,
            datapath_mode,
            tcx,
            run_dir,
            policy_status,
            policies,
            wanted_policies,
            rows,
        } = parts;
        let this = Self {
            fs,
            tables,
            netlink,
            programs,
            templates,
            features,
            attach_mode,
            datapath_mode,
            tcx,
            run_dir,
            policy_status,
            policies,
            wanted_policies,
            rows,
            facts: Mutex::new(facts),
            turns: Mutex::default(),
            ended: Mutex::default(),
            graveyard,
            regenerated: AtomicU64::new(0),
        };
        (Arc::new(this), reader)
    }

    fn turn(&self, id: EndpointId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default())
    }

    fn pin(&self, id: EndpointId) -> PathBuf {
        self.fs.links().join(device_name(id))
    }

    /// Where an endpoint's rendered header is kept for people.
    pub fn header_path(&self, id: EndpointId) -> PathBuf {
        self.run_dir.join("endpoint").join(id.to_string()).join("container_config.h")
    }

    pub fn config(&self, record: &EndpointRecord) -> EndpointConfig {
        EndpointConfig {
            name: record.name.clone(),
            slot: record.id.0,
            id: record.id.0,
            ifindex: ifindex(record.id),
            mac: record.mac,
            host_mac: record.host_mac,
            ipv4: record.any_ipv4(),
            ipv6: record.ipv6,
            mtu: record.mtu,
            features: self.features.clone(),
        }
    }

    /// Renders, and loads the program if its shape is new.
    pub async fn shape(&self, record: &EndpointRecord) -> Result<(Rendered, Arc<Shape>), EndpointError> {
        let templates = self.templates.current();
        let rendered = templates.render_container(&self.config(record)).map_err(|e| EndpointError::Render(e.to_string()))?;
        let shape = self.programs.get(&templates, &rendered, record.build()).await?;
        Ok((rendered, shape))
    }

    /// Waits until both policies are in the kernel. A policy that is no longer wanted will never be: the endpoint has
    /// another one by now.
    async fn policies_written(&self, spec: &EndpointSpec) -> Result<(), EndpointError> {
        let mut wanted = self.wanted_policies.clone();
        let mut status = self.policy_status.clone();
        for id in [spec.policy_in, spec.policy_out].into_iter().filter(|id| *id >= POLICY_FIRST) {
            loop {
                match status.borrow_and_update().get(&id) {
                    Some(Status::Done(_)) => break,
                    Some(Status::Failed(_, why)) => return Err(EndpointError::Policy(id, Arc::clone(why))),
                    Some(Status::Begun) | None => {}
                }
                if !wanted.take().rows.contains_key(&id) {
                    return Err(EndpointError::Superseded(id));
                }
                tokio::select! {
                    changed = status.changed() => changed.map_err(|_| EndpointError::Superseded(id))?,
                    more = wanted.changed() => if !more { return Err(EndpointError::Superseded(id)) },
                }
            }
        }
        Ok(())
    }

    /// The device with its peer in the container's namespace.
    async fn device(&self, spec: &EndpointSpec) -> Result<Device, EndpointError> {
        let record = &spec.record;
        let index = ifindex(record.id);
        let name = record.device();
        let peer_name = format!("plxt{:08x}", record.id.0);
        if let Some(link) = self.netlink.link_by_index(index).await? {
            if link.name != name {
                return Err(EndpointError::IndexTaken { index, name: link.name });
            }
            if link.mac == Some(record.host_mac)
                && let Some(peer) = link.peer_index
            {
                return Ok(Device { peer, netkit: is_netkit(&link), new: false });
            }
            // Left by an endpoint that is gone.
            self.netlink.delete_link(index).await?;
        }
        let netns = self.namespace(spec)?;
        // A row that stands speaks of a device that was: of this endpoint, or of one that is gone and had its slot.
        self.rows.clear(&self.tables.endpoint, u32::from(record.id.0))?;
        let spec = PairSpec {
            name: &name,
            ifindex: Some(index),
            mac: record.host_mac,
            mtu: u32::from(record.mtu),
            peer_name: &peer_name,
            peer_mac: record.mac,
            peer_netns: netns.as_fd(),
            up: false,
            no_autoconf: true,
        };
        let netkit = self.datapath_mode == DatapathMode::Netkit;
        if netkit {
            self.netlink.create_netkit(spec).await?;
        } else {
            self.netlink.create_veth(spec).await?;
        }
        let link = self.netlink.link_by_index(index).await?;
        Ok(Device { peer: link.and_then(|l| l.peer_index).unwrap_or_default(), netkit, new: true })
    }

    /// Opens the namespace that the container's end goes into.
    fn namespace(&self, spec: &EndpointSpec) -> Result<std::fs::File, EndpointError> {
        let EndpointRecord { id, netns, .. } = &*spec.record;
        let gone = |why| EndpointError::Gone { device: spec.record.device(), netns: netns.clone(), why };
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, why)) = ended.get(id)
            && *at == spec.regeneration
        {
            return Err(gone(Arc::clone(why)));
        }
        std::fs::File::open(netns).map_err(|source| {
            let row = self.tables.endpoint.get(&u32::from(id.0));
            if !row.is_ok_and(|row| row.is_some_and(|r| r.flags & EP_VALID != 0)) {
                return EndpointError::Netns { path: netns.clone(), source };
            }
            // It had its interface.
            let why: Arc<str> = source.to_string().into();
            ended.insert(*id, (spec.regeneration, Arc::clone(&why)));
            gone(why)
        })
    }

    /// Hangs the program on the device, or swaps it in place. Returns how it hangs.
    fn attach(&self, id: EndpointId, device: Device, program: &Program) -> Result<&'static str, EndpointError> {
        let index = ifindex(id);
        let pin = self.pin(id);
        if device.netkit {
            if let Some(link) = hook::link_info(&pin)? {
                let here = link.point == Point::NetkitPeer && link.ifindex == device.peer;
                if here && (link.prog_id == program.id || hook::update_link(&pin, program)? == LinkUpdate::Updated) {
                    return Ok(NETKIT);
                }
                hook::detach_link(&pin)?;
            }
            tokio::task::block_in_place(|| hook::attach_netkit(program, index, &pin))?;
            return Ok(NETKIT);
        }
        if let Some(link) = hook::link_info(&pin)? {
            if link.ifindex == index && self.attach_mode != AttachMode::Tc {
                if link.prog_id == program.id || hook::update_link(&pin, program)? == LinkUpdate::Updated {
                    return Ok("tcx");
                }
            } else if link.ifindex == index {
                hook::attach_tc(program, index, Dir::Ingress)?;
            }
            hook::detach_link(&pin)?;
        }
        if self.attach_mode == AttachMode::Tcx {
            tokio::task::block_in_place(|| hook::attach_tcx(program, index, Dir::Ingress, &pin))?;
            hook::detach_tc(index, Dir::Ingress, true)?;
            return Ok("tcx");
        }
        if hook::tc_info(index, Dir::Ingress)? != Some(program.id) {
            hook::attach_tc(program, index, Dir::Ingress)?;
        }
        Ok("tc")
    }

    async fn configure(&self, record: &EndpointRecord, peer: u32) -> Result<(), EndpointError> {
        let netns = std::fs::File::open(&record.netns).map_err(|source| EndpointError::Netns { path: record.netns.clone(), source })?;
        let ipv6 = record.told_ipv6().map(|ip| Prefix { ip: IpAddr::V6(ip), plen: 128 });
        let ipv4 = record.ipv4.map(|ip| Prefix { ip: IpAddr::V4(ip), plen: 32 });
        let request = Request::Configure(Box::new(Configure {
            // The helper opens the very file that is open here, whatever the path means to it.
            netns: PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd())),
            link: LinkRef::Index(peer),
            name: record.ifname.clone(),
            mac: Mac(record.mac),
            mtu: u32::from(record.mtu),
            addresses: ipv6.into_iter().chain(ipv4).collect(),
            gateway6: ipv6.map(|_| GATEWAY6),
            gateway4: record.ipv4.map(|_| GATEWAY4),
        }));
        supervise::netns(&request).await?;
        Ok(())
    }

    fn write_header(&self, id: EndpointId, rendered: &Rendered) -> Result<(), EndpointError> {
        let path = self.header_path(id);
        if std::fs::read_to_string(&path).is_ok_and(|old| old == rendered.header) {
            return Ok(());
        }
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(EndpointError::Header)?;
        }
        let next = path.with_extension("new");
        std::fs::write(&next, &rendered.header).and_then(|()| std::fs::rename(&next, &path)).map_err(EndpointError::Header)
    }

    fn set_facts(&self, id: EndpointId, facts: Option<Facts>) {
        let mut writer = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        match facts {
            Some(facts) => writer.upsert(id, facts),
            None => writer.remove(&id),
        };
    }

    /// Moves devices that hang on clsact to tcx, one at a time: tcx first, then the filter goes, so there is no gap.
    /// Returns how many moved.
    pub async fn promote(&self, id: EndpointId) -> Result<bool, EndpointError> {
        let turn = self.turn(id);
        let _turn = turn.lock().await;
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner).rows().get(&id).cloned();
        let Some(mut facts) = facts else { return Ok(false) };
        if !self.tcx || self.attach_mode != AttachMode::Auto || facts.attach != "tc" {
            return Ok(false);
        }
        let index = ifindex(id);
        let Some(program) = hook::tc_info(index, Dir::Ingress)?.map(Program::by_id).transpose()?.flatten() else { return Ok(false) };
        tokio::task::block_in_place(|| hook::attach_tcx(&program, index, Dir::Ingress, &self.pin(id)))?;
        hook::detach_tc(index, Dir::Ingress, true)?;
        facts.attach = "tcx".into();
        self.set_facts(id, Some(facts));
        Ok(true)
    }
}

impl Reconcile for EndpointReconciler {
    type Key = EndpointId;
    type Value = EndpointSpec;
    type Error = EndpointError;
    const NAME: &'static str = "endpoint";

    async fn update(&self, id: &EndpointId, spec: &EndpointSpec) -> Result<(), EndpointError> {
        let record = &spec.record;
        let (rendered, shape) = self.shape(record).await?;
        let row = endpoint_row(spec, &rendered)?;
        let turn = self.turn(*id);
        let _turn = turn.lock().await;
        let device = self.device(spec).await?;
        let attach = self.attach(*id, device, shape.program("from_container")?)?;
        let slot = u32::from(id.0);
        if record.own {
            self.tables.receive.set(slot, shape.program("receive_own")?)?;
        }
        let live = self.tables.endpoint.get(&slot)?.is_some_and(|r| r.flags & EP_VALID != 0);
        if device.new || !live {
            // Up first, so that the container's side has a carrier when its addresses are set; no packet passes without a row.
            self.netlink.set_up(ifindex(*id)).await?;
            self.configure(record, device.peer).await?;
        }
        self.write_header(*id, &rendered)?;
        self.policies_written(spec).await?;
        // Not a moment after one of them was removed.
        self.policies
            .while_written([spec.policy_in, spec.policy_out], || self.rows.write(&self.tables.endpoint, slot, row))
            .ok_or(EndpointError::Superseded(spec.policy_in))??;
        if !record.own && self.tables.receive.get(slot)?.is_some() {
            self.tables.receive.clear(slot)?;
        }
        self.netlink.set_up(ifindex(*id)).await?;
        // The kernel notices a carrier late when it is busy, and drops what is sent meanwhile; asking makes it look.
        self.netlink.link_by_index(ifindex(*id)).await?;
        self.set_facts(
            *id,
            Some(Facts {
                shape_key: shape.key.short(),
                build: record.build().as_str().into(),
                programs: shape.models(),
                attach: attach.into(),
                ifindex: ifindex(*id),
                policy_revision: spec.policy_revision,
            }),
        );
        self.regenerated.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn delete(&self, id: &EndpointId) -> Result<(), EndpointError> {
        let turn = self.turn(*id);
        let _turn = turn.lock().await;
        let slot = u32::from(id.0);
        self.rows.clear(&self.tables.endpoint, slot)?;
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.set_facts(*id, None);
        self.tables.receive.clear(slot)?;
        let _ = std::fs::remove_dir_all(self.run_dir.join("endpoint").join(id.to_string()));
        let index = ifindex(*id);
        if self.netlink.link_by_index(index).await?.is_some_and(|l| l.name == device_name(*id)) {
            self.netlink.set_down(index).await?;
            let _ = self.graveyard.send(index);
            // The device's end severs the link; what is pinned is then an empty shell.
            self.netlink_gone(index).await?;
        }
        let pin = self.pin(*id);
        if pin.exists() {
            std::fs::remove_file(&pin).map_err(|source| EndpointError::Netns { path: pin, source })?;
        }
        Ok(())
    }

    async fn realised(&self) -> Result<Vec<EndpointId>, EndpointError> {
        let mut ids = BTreeSet::new();
        for (slot, row) in self.tables.endpoint.entries()? {
            if row.flags & EP_VALID != 0 && (SLOT_FIRST..SLOT_NODES).contains(&slot) {
                ids.insert(EndpointId(slot as u16));
            }
        }
        for link in self.netlink.links().await? {
            ids.extend(id_of_ifindex(link.index).filter(|id| link.name == device_name(*id)));
        }
        for name in self.fs.names(&self.fs.links())? {
            if let Some(slot) = name.strip_prefix("plx").and_then(|hex| u32::from_str_radix(hex, 16).ok()) {
                ids.insert(EndpointId(slot as u16));
            }
        }
        Ok(ids.into_iter().collect())
    }
}

impl EndpointReconciler {
    /// Waits until the burial of a device is over.
    async fn netlink_gone(&self, index: u32) -> Result<(), EndpointError> {
        let mut wait = std::time::Duration::from_millis(2);
        while self.netlink.link_by_index(index).await?.is_some() {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(std::time::Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Group number of devices that are about to be deleted.
const DEAD_GROUP: u32 = 0x706c_7800;

/// Deletes devices in groups: the kernel waits 16 to 32 ms per request, not per device.
async fn bury(netlink: Netlink, mut dead: tokio::sync::mpsc::UnboundedReceiver<u32>) {
    let mut batch = Vec::new();
    while dead.recv_many(&mut batch, 64).await > 0 {
        if let Err(e) = netlink.delete_links_group(&batch, DEAD_GROUP).await {
            tracing::warn!(error = %e, "deleting devices");
            for index in &batch {
                let _ = netlink.delete_link(*index).await;
            }
        }
        batch.clear();
    }
}
