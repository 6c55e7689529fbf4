// SPDX-License-Identifier: Apache-2.0
//! Rules as users write them. Field names in JSON are those of the input.

use super::section::{Section, egress_names, ingress_names};
use crate::abi::Reserved;
use crate::label::Labels;
use crate::selector::SelectorSpec;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Kind of a policy object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectKind {
    /// Its selectors are confined to its namespace.
    CiliumNetworkPolicy,
    CiliumClusterwideNetworkPolicy,
    /// As [`Self::CiliumNetworkPolicy`].
    NetworkPolicy,
}

impl ObjectKind {
    pub const ALL: [Self; 3] = [Self::CiliumNetworkPolicy, Self::CiliumClusterwideNetworkPolicy, Self::NetworkPolicy];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }
    /// Whether its objects belong to a namespace.
    pub const fn namespaced(self) -> bool {
        !matches!(self, Self::CiliumClusterwideNetworkPolicy)
    }
}

/// The policy object that a rule belongs to. `namespace` is present exactly for namespaced kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectRef {
    pub kind: ObjectKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind.as_str(), self.name),
            None => write!(f, "{} {}", self.kind.as_str(), self.name),
        }
    }
}

/// Where a rule was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Name of the source, as given to the parser.
    pub file: Arc<str>,
    /// Line of the rule in it, from 1.
    pub line: u32,
    /// Which rule of the source it is, from 0.
    pub index: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectRef>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return f.write_str(&self.file);
        }
        write!(f, "{}:{}", self.file, self.line)?;
        self.object.as_ref().map_or(Ok(()), |object| write!(f, " ({object})"))
    }
}

/// A named group of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entity {
    /// Every peer.
    All,
    /// Everything outside of the cluster.
    World,
    /// The world's IPv4 addresses.
    #[serde(rename = "world-ipv4")]
    WorldIpv4,
    #[serde(rename = "world-ipv6")]
    WorldIpv6,
    /// Endpoints of the cluster, host, remote nodes, init, health and unmanaged.
    Cluster,
    Host,
    RemoteNode,
    Health,
    Init,
    Unmanaged,
    KubeApiserver,
    Ingress,
    /// Nobody.
    None,
}

impl Entity {
    pub const ALL: [Self; 13] = [
        Self::All,
        Self::World,
        Self::WorldIpv4,
        Self::WorldIpv6,
        Self::Cluster,
        Self::Host,
        Self::RemoteNode,
        Self::Health,
        Self::Init,
        Self::Unmanaged,
        Self::KubeApiserver,
        Self::Ingress,
        Self::None,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::World => "world",
            Self::WorldIpv4 => "world-ipv4",
            Self::WorldIpv6 => "world-ipv6",
            Self::Cluster => "cluster",
            Self::Host => "host",
            Self::RemoteNode => "remote-node",
            Self::Health => "health",
            Self::Init => "init",
            Self::Unmanaged => "unmanaged",
            Self::KubeApiserver => "kube-apiserver",
            Self::Ingress => "ingress",
            Self::None => "none",
        }
    }

    /// The fixed identity of the same name, if there is one.
    pub const fn reserved(self) -> Option<Reserved> {
        match self {
            Self::World => Some(Reserved::World),
            Self::WorldIpv4 => Some(Reserved::WorldIpv4),
            Self::WorldIpv6 => Some(Reserved::WorldIpv6),
            Self::Host => Some(Reserved::Host),
            Self::RemoteNode => Some(Reserved::RemoteNode),
            Self::Health => Some(Reserved::Health),
            Self::Init => Some(Reserved::Init),
            Self::Unmanaged => Some(Reserved::Unmanaged),
            Self::KubeApiserver => Some(Reserved::KubeApiserver),
            Self::Ingress => Some(Reserved::Ingress),
            Self::All | Self::Cluster | Self::None => None,
        }
    }
}

/// Whether a rule that has sections for a direction makes what no rule allows denied. Absent: it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefaultDeny {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<bool>,
}

impl DefaultDeny {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One rule, as written. An empty `ingress` is as if it were absent, and so are the other three.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    pub endpoint_selector: SelectorSpec,
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "ingress_names")]
    pub ingress: Vec<Section>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "ingress_names")]
    pub ingress_deny: Vec<Section>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "egress_names")]
    pub egress: Vec<Section>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "egress_names")]
    pub egress_deny: Vec<Section>,
    #[serde(default, skip_serializing_if = "DefaultDeny::is_default")]
    pub enable_default_deny: DefaultDeny,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub origin: Arc<Origin>,
}
