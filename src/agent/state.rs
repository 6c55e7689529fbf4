// SPDX-License-Identifier: Apache-2.0
//! The rows of the tables: what should be, and what is.

use crate::table::Revision;
use pilus_api::types::{LogEntry, ProgramModel};
use pilus_codegen::Build;
use pilus_model::endpoint::{EndpointId, EndpointState};
use pilus_model::identity::NumericIdentity;
use pilus_model::label::Labels;
use pilus_model::policy::{Direction, DirectionPolicy, PortNames, Rule, Subject};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// What of an endpoint survives a restart. Its slot is its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    pub id: EndpointId,
    pub name: String,
    pub container_id: Option<String>,
    pub netns: PathBuf,
    /// Name of the interface inside.
    pub ifname: String,
    pub labels: Labels,
    pub identity: NumericIdentity,
    pub ipv6: Ipv6Addr,
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address is set nowhere and told to nobody.
    #[serde(default)]
    pub ipv4_alone: bool,
    /// Stands for it among those who have IPv4 alone; it has none then.
    #[serde(default)]
    pub nat46: Option<Ipv4Addr>,
    pub mac: [u8; 6],
    pub host_mac: [u8; 6],
    pub mtu: u16,
    pub own: bool,
    pub options: EndpointOptions,
    /// Names of its ports.
    #[serde(default)]
    pub ports: PortNames,
}

impl EndpointRecord {
    /// Its own IPv4 address, or the one that stands for it.
    pub fn any_ipv4(&self) -> Option<Ipv4Addr> {
        self.ipv4.or(self.nat46)
    }
    pub fn told_ipv6(&self) -> Option<Ipv6Addr> {
        (!self.ipv4_alone).then_some(self.ipv6)
    }
    /// All by which others reach it.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.told_ipv6().map(IpAddr::from).into_iter().chain(self.any_ipv4().map(IpAddr::from))
    }
    /// What its policy follows from.
    pub fn subject(&self) -> Subject {
        Subject { labels: self.labels.clone(), ports: self.ports.clone() }
    }
    pub fn build(&self) -> Build {
        if self.own { Build::Own } else { Build::Shared }
    }
    /// Name of the host side.
    pub fn device(&self) -> String {
        device_name(self.id)
    }
}

/// Name of the host side of a container's veth.
pub fn device_name(id: EndpointId) -> String {
    format!("plx{:08x}", id.0)
}

/// How much of an endpoint's traffic is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trace {
    #[default]
    Off,
    /// First packets and changes of flows.
    Flow,
    All,
}

/// Options of one endpoint that change while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointOptions {
    pub trace: Trace,
    pub drops: bool,
    pub verdicts: bool,
    /// Verdicts are reported, not enforced.
    pub audit: bool,
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self { trace: Trace::Off, drops: true, verdicts: false, audit: false }
    }
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub addresses: BTreeSet<IpAddr>,
    /// With what says that it is a node.
    pub labels: Arc<Labels>,
}

/// An endpoint as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSpec {
    pub record: Arc<EndpointRecord>,
    pub policy_in: u32,
    pub policy_out: u32,
    /// Revision of the rules that brought these policies.
    pub policy_revision: u64,
    /// For every endpoint, verdicts are reported and not enforced.
    pub audit: bool,
    /// Hash of the template tree.
    pub tree: Arc<str>,
    /// Raised to have the endpoint made anew from its header.
    pub regeneration: u64,
}

impl EndpointSpec {
    /// Whether verdicts are reported and not enforced.
    pub fn audits(&self) -> bool {
        self.audit || self.record.options.audit
    }
}

/// A policy of one direction, named by its id.
#[derive(Clone, Debug)]
pub struct PolicySpec {
    pub direction: Direction,
    pub policy: Arc<DirectionPolicy>,
}

impl PartialEq for PolicySpec {
    /// Policies are immutable and shared by content: one allocation is one policy.
    fn eq(&self, other: &Self) -> bool {
        self.direction == other.direction && Arc::ptr_eq(&self.policy, &other.policy)
    }
}

/// A prefix of the ipcache; a full length is an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpcachePrefix {
    pub ip: IpAddr,
    pub len: u8,
}

impl IpcachePrefix {
    pub fn address(ip: IpAddr) -> Self {
        Self { ip, len: if ip.is_ipv4() { 32 } else { 128 } }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpcacheSpec {
    pub identity: NumericIdentity,
    pub slot: u16,
    /// Written when every endpoint's row is as of this revision: their policies know the identity by then.
    pub after: Revision,
}

/// The rules with their revision.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    pub revision: u64,
    pub rules: Arc<Vec<Arc<Rule>>>,
}

impl PartialEq for RuleSet {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision
    }
}

/// What the rules of a revision say about endpoints stands in their table as of one of its revisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    pub rules: u64,
    pub endpoints: Revision,
}

/// An endpoint as the control loop sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointStatus {
    pub state: EndpointState,
    /// Why it is not ready.
    pub problem: Option<Arc<str>>,
    pub ingress: PolicyMode,
    pub egress: PolicyMode,
    pub log: Arc<Vec<LogEntry>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyMode {
    Open,
    Enforced,
    Audit,
}

impl PolicyMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Enforced => "enforced",
            Self::Audit => "audit",
        }
    }
}

/// An endpoint as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub shape_key: String,
    pub build: String,
    pub programs: Vec<ProgramModel>,
    /// `tcx` or `tc`.
    pub attach: String,
    pub ifindex: u32,
    /// Revision of the rules that brought the policies that are enforced.
    pub policy_revision: u64,
}
