// SPDX-License-Identifier: Apache-2.0
//! Rules as users write them. Field names in JSON are those of the input.

use crate::abi::Reserved;
use crate::label::Labels;
use crate::selector::SelectorSpec;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

/// Kind of a policy object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectKind {
    /// Its selectors are confined to its namespace.
    CiliumNetworkPolicy,
    CiliumClusterwideNetworkPolicy,
}

impl ObjectKind {
    pub const ALL: [Self; 2] = [Self::CiliumNetworkPolicy, Self::CiliumClusterwideNetworkPolicy];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
        }
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
    /// Endpoints of the cluster, host, remote nodes, init, health and unmanaged.
    Cluster,
    Host,
    RemoteNode,
    Health,
    Init,
    Unmanaged,
    /// Nobody.
    None,
}

impl Entity {
    pub const ALL: [Self; 9] =
        [Self::All, Self::World, Self::Cluster, Self::Host, Self::RemoteNode, Self::Health, Self::Init, Self::Unmanaged, Self::None];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::World => "world",
            Self::Cluster => "cluster",
            Self::Host => "host",
            Self::RemoteNode => "remote-node",
            Self::Health => "health",
            Self::Init => "init",
            Self::Unmanaged => "unmanaged",
            Self::None => "none",
        }
    }

    /// The fixed identity of the same name, if there is one.
    pub const fn reserved(self) -> Option<Reserved> {
        match self {
            Self::World => Some(Reserved::World),
            Self::Host => Some(Reserved::Host),
            Self::RemoteNode => Some(Reserved::RemoteNode),
            Self::Health => Some(Reserved::Health),
            Self::Init => Some(Reserved::Init),
            Self::Unmanaged => Some(Reserved::Unmanaged),
            Self::All | Self::Cluster | Self::None => None,
        }
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    /// TCP, UDP and SCTP.
    #[default]
    Any,
}

impl Protocol {
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Sctp, Self::Any];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Any => "ANY",
        }
    }

    /// IP protocol numbers that it stands for.
    pub const fn numbers(self) -> &'static [u8] {
        match self {
            Self::Tcp => &[6],
            Self::Udp => &[17],
            Self::Sctp => &[132],
            Self::Any => &[6, 17, 132],
        }
    }
}

/// A destination port, or the range `port` to `end_port` (included). Host order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortProtocol {
    #[serde(with = "port_text")]
    pub port: NonZeroU16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<NonZeroU16>,
    #[serde(default)]
    pub protocol: Protocol,
}

/// Ports are printed as text, as the API that users know has them.
mod port_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::num::NonZeroU16;

    pub fn serialize<S: Serializer>(port: &NonZeroU16, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(port)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<NonZeroU16, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

/// A list of ports; one to [`PortRule::MAX_PORTS`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRule {
    pub ports: Vec<PortProtocol>,
}

impl PortRule {
    pub const MAX_PORTS: usize = 40;
}

/// Declares a section of a rule for each direction. An absent peer list and a written one differ: without any peer
/// list a section with ports means every peer; an empty list selects nobody.
macro_rules! section {
    ($(#[doc = $doc:literal])* $name:ident, $endpoints:ident, $entities:ident) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct $name {
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $endpoints: Option<Vec<SelectorSpec>>,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $entities: Option<Vec<Entity>>,
            /// Empty: every port of every protocol.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub to_ports: Vec<PortRule>,
        }

        impl $name {
            pub(super) fn parts(&self) -> Section<'_> {
                Section { endpoints: self.$endpoints.as_deref(), entities: self.$entities.as_deref(), to_ports: &self.to_ports }
            }
        }

        impl From<SectionParts> for $name {
            fn from(p: SectionParts) -> Self {
                Self { $endpoints: p.endpoints, $entities: p.entities, to_ports: p.to_ports }
            }
        }
    };
}

section! {
    /// An item of `ingress`: who may come in.
    IngressRule, from_endpoints, from_entities
}
section! {
    /// An item of `egress`: where an endpoint may go.
    EgressRule, to_endpoints, to_entities
}

/// An item of `ingressDeny`.
pub type IngressDenyRule = IngressRule;
/// An item of `egressDeny`.
pub type EgressDenyRule = EgressRule;

/// A section of either direction, borrowed.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    pub endpoints: Option<&'a [SelectorSpec]>,
    pub entities: Option<&'a [Entity]>,
    pub to_ports: &'a [PortRule],
}

/// A section of either direction, owned.
pub(super) struct SectionParts {
    pub endpoints: Option<Vec<SelectorSpec>>,
    pub entities: Option<Vec<Entity>>,
    pub to_ports: Vec<PortRule>,
}

/// One rule, as written. An empty `ingress` is as if it were absent, and so are the other three.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    pub endpoint_selector: SelectorSpec,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<IngressRule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress_deny: Vec<IngressDenyRule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressRule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_deny: Vec<EgressDenyRule>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub origin: Arc<Origin>,
}
