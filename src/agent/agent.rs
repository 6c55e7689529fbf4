// SPDX-License-Identifier: Apache-2.0
//! Puts the parts together and runs them.

use crate::control::{Event, Initial, Readers, World};
use crate::datapath::Tables;
use crate::datapath::counts::RuleCounts;
use crate::datapath::devices::{DeviceError, DevicePrograms, Devices, renew};
use crate::datapath::endpoints::{EndpointReconciler, Parts, id_of_ifindex, ifindex, is_netkit};
use crate::datapath::gc::FlowKeeper;
use crate::datapath::host::HostSide;
use crate::datapath::ipcache::IpcacheReconciler;
use crate::datapath::nat;
use crate::datapath::policies::PolicyReconciler;
use crate::datapath::programs::{ProgramError, Programs, Shape, embedded};
use crate::datapath::reporting::Reporting;
use crate::datapath::rows::RowWriter;
use crate::datapath::sysctl::Sysctls;
use crate::ipam::Ipam;
use crate::kvstore::{Embedded, Store, StoreError};
use crate::locks::{LockError, Locks};
use crate::metrics::{self, ApiStats};
use crate::monitor::Monitor;
use crate::options::{AllowLocalhost, AttachMode, DatapathMode, EnablePolicy, EndpointBuild, Options, Prefix};
use crate::persist::{self, Persisted};
use crate::reconcile::{Reconcile, Status, Statuses, drive};
use crate::state::{Facts, IpcachePrefix, Settled};
use crate::table::Reader;
use crate::templates::{TemplateError, TemplateStore};
use futures::StreamExt;
use pilus_codegen::{Build, Clang, EndpointConfig, Features, NodeConfig, ObjectCache, Templates};
use pilus_loader::bpffs::{self, BpfFs};
use pilus_loader::netlink::{Change, LinkInfo, Netlink};
use pilus_loader::probe;
use pilus_model::abi::{IFINDEX_BASE, SLOT_FIRST, SLOT_NODES};
use pilus_model::endpoint::{EndpointId, EndpointRef};
use pilus_model::policy::EnforcementMode;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// Why the agent cannot start. Some are for the administrator to mend (exit 2).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("option `bpf-root`: {0}")]
    BpfRoot(String),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Kernel(#[from] pilus_loader::Error),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("host program: {0}")]
    Program(String),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("option `metrics-addr`: cannot listen at {at}: {source}; choose another port, or end who has it")]
    Listen { at: SocketAddr, source: std::io::Error },
    #[error("option `{option}`: {message}")]
    Option { option: &'static str, message: String },
}

impl StartError {
    /// 2: usage or configuration, 1: anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BpfRoot(_) | Self::Option { .. } | Self::Device(DeviceError::Unknown(_)) => 2,
            _ => 1,
        }
    }
}

/// Everything that servers need.
pub struct Agent {
    pub options: Options,
    pub readers: Readers,
    pub events: mpsc::Sender<Event>,
    pub endpoint_status: Statuses<EndpointId>,
    pub ipcache_status: Statuses<IpcachePrefix>,
    pub persisted: watch::Receiver<Persisted>,
    pub facts: Reader<EndpointId, Facts>,
    pub endpoints: Arc<EndpointReconciler>,
    pub policies: Arc<PolicyReconciler>,
    pub tables: Arc<Tables>,
    pub flows: FlowKeeper,
    pub reporting: Reporting,
    pub programs: Arc<Programs>,
    pub templates: Arc<TemplateStore>,
    pub monitor: Monitor,
    pub api_stats: ApiStats,
    pub netlink: Netlink,
    pub host: HostSide,
    /// The node's own devices; changed by one at a time. None: everything is being removed, and nothing comes any more.
    pub devices: tokio::sync::Mutex<Option<Devices>>,
    pub kernel: (u32, u32),
    pub v6_range: Prefix<Ipv6Addr>,
    pub v4_range: Prefix<Ipv4Addr>,
    pub started: Instant,
    /// The mode, and whether every endpoint only reports.
    pub enforcement: watch::Sender<(EnforcementMode, bool)>,
    /// Template changes run one at a time.
    pub template_lock: tokio::sync::Mutex<()>,
    /// Set by a cleanup over the API: the agent has nothing left to run.
    pub stop: watch::Sender<bool>,
    _locks: Locks,
}

fn make_dir(path: &Path) -> Result<(), StartError> {
    std::fs::create_dir_all(path).map_err(|source| StartError::Io { path: path.to_owned(), source })
}

fn open_bpffs(root: &Path) -> Result<BpfFs, StartError> {
    if !bpffs::is_bpffs(root) {
        if !bpffs::same_mount_ns_as_init() {
            return Err(StartError::BpfRoot(format!(
                "{0} is no bpffs, and one mounted here would end with the agent and take every link along; mount it outside first: \
                 mount -t bpf bpf {0}",
                root.display()
            )));
        }
        make_dir(root)?;
        bpffs::mount(root)?;
    }
    BpfFs::open(root).map_err(|e| StartError::BpfRoot(e.to_string()))
}

/// The node's ranges: as given, as chosen before, or chosen now and kept.
fn ranges(options: &Options, store: &dyn Store) -> Result<(Prefix<Ipv6Addr>, Prefix<Ipv4Addr>), StartError> {
    let keep = |key: &str, text: String| -> Result<String, StartError> {
        if !store.create_only(key, text.as_bytes())? {
            let old = store.get(key)?.unwrap_or_default();
            return Ok(String::from_utf8_lossy(&old).into_owned());
        }
        Ok(text)
    };
    let bad = |option, message| StartError::Option { option, message };
    let v6 = match options.ipv6_range {
        Some(range) => range,
        None => {
            // RFC 4193: fd00::/8, 40 random bits, 16 bits of subnet.
            let mut net: [u8; 16] = [0; 16];
            net[..8].copy_from_slice(&rand::random::<[u8; 8]>());
            net[0] = 0xfd;
            keep("node/ipv6-range", format!("{}/64", Ipv6Addr::from(net)))?.parse().map_err(|m| bad("ipv6-range", m))?
        }
    };
    let v4 = match options.ipv4_range {
        Some(range) => range,
        None => {
            let text = format!("10.{}.0.0/16", rand::random::<u8>());
            keep("node/ipv4-range", text)?.parse().map_err(|m| bad("ipv4-range", m))?
        }
    };
    Ok((v6, v4))
}

async fn mtu(options: &Options, netlink: &Netlink) -> Result<u16, StartError> {
    if let Some(mtu) = options.mtu {
        return Ok(mtu);
    }
    let device = match netlink.default_route_device().await? {
        Some(index) => netlink.link_by_index(index).await?,
        None => None,
    };
    Ok(device.map_or(1500, |d| d.mtu.clamp(1280, 65535) as u16))
}

/// Where Prometheus asks. Taken before anything is touched, so that an address in use is told at once.
async fn listen(at: Option<SocketAddr>) -> Result<Option<TcpListener>, StartError> {
    let Some(at) = at else { return Ok(None) };
    let listener = TcpListener::bind(at).await.map_err(|source| StartError::Listen { at, source })?;
    Ok(Some(listener))
}

/// The option as the model names it.
pub fn enforcement(mode: EnablePolicy) -> EnforcementMode {
    match mode {
        EnablePolicy::Default => EnforcementMode::Default,
        EnablePolicy::Always => EnforcementMode::Always,
        EnablePolicy::Never => EnforcementMode::Never,
    }
}

/// Refuses what was asked for and the kernel cannot do.
fn check_kernel(options: &Options, kernel: probe::Features) -> Result<(), StartError> {
    let (major, minor) = kernel.kernel;
    let lacks = |option, message| Err(StartError::Option { option, message });
    if options.attach_mode == AttachMode::Tcx && !kernel.tcx {
        return lacks("attach-mode", format!("kernel {major}.{minor} has no tcx (6.6 has); use auto or tc"));
    }
    if options.datapath_mode == DatapathMode::Netkit && !kernel.netkit {
        return lacks(
            "datapath-mode",
            format!("kernel {major}.{minor} has no netkit (6.7 and later have, if built with CONFIG_NETKIT); use veth, or such a kernel"),
        );
    }
    Ok(())
}

impl Agent {
    /// Starts everything; when it returns, the API may be served.
    pub async fn start(options: Options) -> Result<Arc<Self>, StartError> {
        make_dir(&options.state_dir)?;
        make_dir(&options.run_dir)?;
        let fs = open_bpffs(&options.bpf_root)?;
        let locks = Locks::take(&options.state_dir, fs.root())?;
        let metrics_listener = listen(options.metrics_addr).await?;
        fs.remove_unfinished()?;
        let store: Arc<dyn Store> = Embedded::open(&options.state_dir)?;
        let kernel = probe::Features::probe()?;
        check_kernel(&options, kernel)?;
        let netlink = Netlink::new()?;
        let tables = Arc::new(Tables::open(&fs, options.flow_table_size)?);
        nat::set_nat46(&tables, options.nat46_range.map(|r| r.base))?;
        nat::set_direct(&tables, &options.masquerade_exclude)?;
        let rule_counts = Arc::new(RuleCounts::default());
        let flows = FlowKeeper::new(Arc::clone(&tables), Arc::clone(&rule_counts), options.flow_timeouts)?;
        let reporting = Reporting::new(Arc::clone(&tables), options.reporting)?;
        let templates = Arc::new(TemplateStore::open(&options)?);
        let cache = ObjectCache::new(options.state_dir.join("objects"), embedded(), Clang::find(), 0);
        // Programs know of netkit as long as a container has such a device, whatever new ones get.
        let netkit = options.datapath_mode == DatapathMode::Netkit || netlink.links().await?.iter().any(is_netkit);
        let features =
            Features::default().with("ipv4", options.enable_ipv4).with("nat46", options.nat46_range.is_some()).with("netkit", netkit);
        let programs = Arc::new(Programs::new(fs.clone(), cache, features.clone()));
        let (v6_range, v4_range) = ranges(&options, &*store)?;
        if let Some(nat46) = options.nat46_range.filter(|r| r.overlaps(&v6_range)) {
            let message = format!("{nat46} overlaps the range of this node's containers, {v6_range}");
            return Err(StartError::Option { option: "nat46-range", message });
        }
        let mtu = mtu(&options, &netlink).await?;
        let loaded = persist::load(&*store)?;
        let ipam = Ipam::new(v6_range, v4_range, options.enable_ipv4, SLOT_FIRST..SLOT_NODES);
        let host = HostSide {
            v6_range,
            v4_range: options.enable_ipv4.then_some(v4_range),
            router_v6: ipam.router_v6(),
            router_v4: ipam.router_v4(),
            mtu,
            attach_mode: options.attach_mode,
            tcx: kernel.tcx,
        };
        let mut prefixes = vec![IpcachePrefix { ip: v6_range.base.into(), len: v6_range.len }];
        if options.enable_ipv4 {
            prefixes.push(IpcachePrefix { ip: v4_range.base.into(), len: v4_range.len });
        }
        let mode = enforcement(options.enable_policy);
        let (world, readers) = World::new(Initial {
            records: loaded.records,
            rules: loaded.rules,
            services: loaded.services,
            nodes: loaded.nodes,
            first_policy: PolicyReconciler::first_free(&tables)?,
            tree: templates.current().tree_hash().into(),
            ipam,
            mode,
            audit: options.policy_audit_mode,
            host_always: options.allow_localhost == AllowLocalhost::Always,
            own: options.endpoint_build == EndpointBuild::Own,
            mtu,
            nat46: options.nat46_range.is_some(),
            ranges: prefixes,
        });
        let devices = Devices {
            names: options.devices.clone(),
            routing: options.host_routing,
            masquerade: options.masquerade,
            ipv4: options.enable_ipv4,
            attach_mode: options.attach_mode,
            tcx: kernel.tcx,
            sysctls: Sysctls::new(&options.state_dir),
        };
        devices.check(&netlink).await?;
        let rows = Arc::new(RowWriter::new(&tables.endpoint)?);
        let policies = Arc::new(PolicyReconciler::new(Arc::clone(&tables), Arc::clone(&rows), rule_counts));
        let (policy_tx, policy_status) = watch::channel(Arc::default());
        // An endpoint of an earlier agent exists, although this one has not looked yet.
        let restored = readers.endpoints.snapshot().rows.keys().map(|id| (*id, Status::Begun)).collect();
        let (endpoint_tx, endpoint_status) = watch::channel(Arc::new(restored));
        let (ipcache_tx, ipcache_status) = watch::channel(Arc::default());
        let (persisted_tx, persisted) = watch::channel(Persisted::default());
        let (endpoints, facts) = EndpointReconciler::new(Parts {
            fs: fs.clone(),
            tables: Arc::clone(&tables),
            netlink: netlink.clone(),
            programs: Arc::clone(&programs),
            templates: Arc::clone(&templates),
            features: features.clone(),
            attach_mode: options.attach_mode,
            datapath_mode: options.datapath_mode,
            tcx: kernel.tcx,
            run_dir: options.run_dir.clone(),
            policy_status,
            policies: Arc::clone(&policies),
            wanted_policies: readers.policies.clone(),
            rows,
        });
        let monitor = Monitor::start(&fs, Arc::clone(&tables), readers.clone(), Arc::clone(&policies))?;
        let (events, queue) = mpsc::channel(1024);
        let agent = Arc::new(Self {
            readers: readers.clone(),
            events,
            endpoint_status: endpoint_status.clone(),
            ipcache_status: ipcache_status.clone(),
            persisted,
            facts,
            endpoints: Arc::clone(&endpoints),
            policies: Arc::clone(&policies),
            tables,
            flows,
            reporting,
            programs,
            templates,
            monitor,
            api_stats: ApiStats::default(),
            netlink,
            host,
            devices: tokio::sync::Mutex::new(Some(devices)),
            kernel: kernel.kernel,
            v6_range,
            v4_range,
            started: Instant::now(),
            enforcement: watch::Sender::new((mode, options.policy_audit_mode)),
            template_lock: tokio::sync::Mutex::new(()),
            stop: watch::Sender::new(false),
            options,
            _locks: locks,
        });
        let templates = agent.templates.current();
        // The next container's shape beside the host's: the first one asked for finds it loaded.
        let (shape, _) = tokio::join!(agent.host_shape(&templates), agent.next_shape(&templates));
        let shape = shape.map_err(StartError::Program)?;
        agent.set_up_host(&fs, &shape).await?;
        tokio::spawn(persist::follow(store, readers.clone(), loaded.numbers, persisted_tx));
        // Removals wait for rows, and must not keep writes from being made.
        tokio::spawn(drive(policies, readers.policies.clone(), usize::MAX, policy_tx));
        let ipcache =
            Arc::new(IpcacheReconciler::new(Arc::clone(&agent.tables), Arc::clone(&agent.endpoints.rows), endpoint_status.clone()));
        tokio::spawn(drive(ipcache, readers.ipcache.clone(), 64, ipcache_tx));
        agent.remove_leftovers().await;
        tokio::spawn(drive(endpoints, readers.endpoints.clone(), 16, endpoint_tx));
        agent.send_host_addresses().await;
        tokio::spawn(Arc::clone(&agent).follow_changes());
        tokio::spawn(world.run(queue, endpoint_status, ipcache_status));
        tokio::spawn(Arc::clone(&agent).sweep_flows());
        tokio::spawn(Arc::clone(&agent).promote());
        if let Some(listener) = metrics_listener {
            tokio::spawn(metrics::serve(Arc::clone(&agent), listener));
        }
        Ok(agent)
    }

    /// What an agent that was killed left of containers that it had not promised, or had promised to remove. It goes before
    /// the first request is served: the same request again would find its interface's name taken.
    async fn remove_leftovers(&self) {
        let wanted = self.readers.endpoints.snapshot().rows;
        let found = match self.endpoints.realised().await {
            Ok(found) => found,
            Err(e) => return tracing::warn!(error = %e, "cannot list what an earlier agent left"),
        };
        let stale: Vec<EndpointId> = found.into_iter().filter(|id| !wanted.contains_key(id)).collect();
        let removed = futures::future::join_all(stale.iter().map(|id| self.endpoints.delete(id))).await;
        for (id, e) in stale.iter().zip(removed).filter_map(|(id, r)| Some((id, r.err()?))) {
            tracing::warn!(endpoint = %id, error = %e, "what an earlier agent left is not removed yet");
        }
    }

    /// A container that exists nowhere, for shapes that no endpoint has yet.
    pub fn sample(&self) -> EndpointConfig {
        EndpointConfig {
            name: "sample".into(),
            slot: SLOT_FIRST as u16,
            id: SLOT_FIRST as u16,
            ifindex: IFINDEX_BASE + SLOT_FIRST,
            mac: [2; 6],
            host_mac: [6; 6],
            ipv4: None,
            ipv6: Ipv6Addr::LOCALHOST,
            mtu: 1500,
            features: self.endpoints.features.clone(),
        }
    }

    /// The shared program of containers, loaded.
    async fn next_shape(&self, templates: &Templates) -> Result<Arc<Shape>, ProgramError> {
        let rendered = templates.render_container(&self.sample()).map_err(|e| ProgramError::Build(Arc::new(e)))?;
        self.programs.get(templates, &rendered, Build::Shared).await
    }

    /// The host program of a tree, loaded.
    pub async fn host_shape(&self, templates: &Templates) -> Result<Arc<Shape>, String> {
        let config = NodeConfig { features: self.endpoints.features.clone() };
        let rendered = templates.render_netdev(&config).map_err(|e| e.to_string())?;
        self.programs.get(templates, &rendered, Build::Shared).await.map_err(|e| e.to_string())
    }

    /// Brings the host's own side up to a shape.
    pub async fn set_up_host(&self, fs: &BpfFs, shape: &Shape) -> Result<(), StartError> {
        let program = shape.program("from_netdev").map_err(|e| StartError::Program(e.to_string()))?;
        let devices = self.devices.lock().await;
        let Some(devices) = &*devices else { return Ok(()) };
        self.host.set_up(fs, &self.tables, &self.endpoints.rows, &self.netlink, program).await?;
        self.set_up_devices(devices, fs, shape).await
    }

    async fn set_up_devices(&self, devices: &Devices, fs: &BpfFs, shape: &Shape) -> Result<(), StartError> {
        let program = |name| shape.program(name).map_err(|e| StartError::Program(e.to_string()));
        let programs = DevicePrograms {
            from_netdev: program("from_netdev")?,
            from_netdev_stack: program("from_netdev_stack")?,
            to_netdev: program("to_netdev")?,
        };
        let names = devices.set_up(fs, &self.tables, &self.endpoints.rows, &self.netlink, programs).await?;
        tracing::debug!(?names, "devices");
        Ok(())
    }

    /// Devices, addresses or routes of the node changed: flows with the world follow.
    async fn devices_changed(&self) -> Result<(), String> {
        let shape = self.host_shape(&self.templates.current()).await?;
        let devices = self.devices.lock().await;
        let Some(devices) = &*devices else { return Ok(()) };
        self.set_up_devices(devices, &self.endpoints.fs, &shape).await.map_err(|e| e.to_string())?;
        renew(&self.tables, &self.endpoints.rows).map_err(|e| e.to_string())
    }

    /// Router addresses and every address of the node, loopback and link-local ones apart.
    async fn send_host_addresses(&self) {
        let all = match self.netlink.addresses().await {
            Ok(all) => all,
            Err(e) => return tracing::warn!(error = %e, "host addresses"),
        };
        let usable = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => !ip.is_loopback(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
        };
        let mut now: Vec<IpAddr> = all.into_iter().map(|(_, ip, _)| ip).filter(usable).collect();
        now.push(self.host.router_v6.into());
        if self.options.enable_ipv4 {
            now.push(self.host.router_v4.into());
        }
        let _ = self.events.send(Event::HostAddresses(now)).await;
    }

    /// How far the rules are worked out.
    pub fn settled(&self) -> Settled {
        self.readers.settled.snapshot().rows.get(&()).copied().unwrap_or_default()
    }

    /// What others do to the node's devices, addresses and routes, and to the host sides of containers.
    async fn follow_changes(self: Arc<Self>) {
        let changes = match self.netlink.watch() {
            Ok(changes) => changes,
            Err(e) => return tracing::error!(error = %e, "changes of addresses and interfaces are not followed"),
        };
        // What changed between the first list and the watch.
        self.send_host_addresses().await;
        // What comes together is answered together.
        let mut changes = changes.ready_chunks(64);
        while let Some(changes) = changes.next().await {
            let lost = changes.contains(&Change::Lost);
            if lost || changes.iter().any(|c| matches!(c, Change::Address { .. } | Change::AddressGone { .. })) {
                self.send_host_addresses().await;
            }
            let gone = changes.iter().filter_map(|c| if let Change::LinkGone { index, .. } = c { id_of_ifindex(*index) } else { None });
            self.look_after(gone.collect()).await;
            if lost {
                self.look_after(self.facts.snapshot().rows.keys().copied().collect()).await;
            }
            let concerns_devices = |c: &Change| match c {
                Change::Link(LinkInfo { index, .. }) | Change::LinkGone { index, .. } | Change::Route { oif: index } => {
                    *index < IFINDEX_BASE
                }
                Change::Address { index, .. } | Change::AddressGone { index, .. } => *index < IFINDEX_BASE,
                Change::Lost => true,
            };
            if changes.iter().any(concerns_devices)
                && let Err(e) = self.devices_changed().await
            {
                tracing::warn!(error = %e, "the node's devices");
            }
        }
    }

    /// Endpoints whose interface went without being asked to are made whole, or it is found out why they cannot be.
    async fn look_after(&self, ids: Vec<EndpointId>) {
        for id in ids {
            let wanted = self.readers.endpoints.snapshot().rows.contains_key(&id);
            if wanted && matches!(self.netlink.link_by_index(ifindex(id)).await, Ok(None)) {
                let (reply, _) = tokio::sync::oneshot::channel();
                let _ = self.events.send(Event::Regenerate(Some(EndpointRef::Id(id)), reply)).await;
            }
        }
    }

    async fn sweep_flows(self: Arc<Self>) {
        loop {
            self.flows.due().await;
            let Ok(shape) = self.host_shape(&self.templates.current()).await else { continue };
            let this = Arc::clone(&self);
            let swept = tokio::task::spawn_blocking(move || shape.program("flow_clock").ok().map(|p| this.flows.sweep(p))).await;
            match swept {
                Ok(Some(Ok(stats))) => tracing::debug!(?stats, "flows swept"),
                Ok(Some(Err(e))) => tracing::warn!(error = %e, "flow sweep"),
                _ => {}
            }
        }
    }

    /// Moves containers from clsact to tcx when nothing else has changed for a while.
    async fn promote(self: Arc<Self>) {
        let mut facts = self.facts.clone();
        loop {
            let quiet = Duration::from_secs(2);
            while tokio::time::timeout(quiet, facts.changed()).await.is_ok_and(|alive| alive) {
                facts.take();
            }
            for id in facts.snapshot().rows.keys() {
                match self.endpoints.promote(*id).await {
                    // Each waits for the kernel under its network lock: others go first.
                    Ok(true) => tokio::time::sleep(Duration::from_millis(100)).await,
                    Ok(false) => {}
                    Err(e) => tracing::debug!(endpoint = %id, error = %e, "not promoted to tcx"),
                }
            }
            facts.take();
            if !facts.changed().await {
                return;
            }
        }
    }

    /// Keys of every shape that something runs now.
    pub fn shapes_in_use(&self, host: &Shape) -> BTreeSet<String> {
        let mut used: BTreeSet<String> = self.facts.snapshot().rows.values().map(|f| f.shape_key.clone()).collect();
        used.insert(host.key.short());
        used
    }
}
