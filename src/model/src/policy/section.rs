// SPDX-License-Identifier: Apache-2.0
//! Sections of a rule: peers, ports and ICMP types as users write them.

use super::l7::L7Rules;
use super::rule::Entity;
use crate::prefix::Prefix;
use crate::selector::SelectorSpec;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

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

/// A port by number, or by the name that the endpoint it belongs to gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    Number(NonZeroU16),
    Name(String),
}

impl Port {
    /// Whether this may be a port's name: at most 15 lower case letters, digits and single hyphens, with a letter.
    pub fn good_name(text: &str) -> bool {
        let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        text.len() <= 15
            && text.chars().all(|c| ends(c) || c == '-')
            && text.chars().any(|c| c.is_ascii_lowercase())
            && text.starts_with(ends)
            && text.ends_with(ends)
            && !text.contains("--")
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for Port {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(number) => Ok(Self::Number(number)),
            Err(_) if Self::good_name(text) => Ok(Self::Name(text.to_owned())),
            Err(_) => Err(format!("`{text}` is neither a port from 1 to 65535 nor a port's name")),
        }
    }
}

/// Ports are printed as text, as the API that users know has them.
impl Serialize for Port {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A destination port, or the range `port` to `end_port` (included). Host order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortProtocol {
    pub port: Port,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<NonZeroU16>,
    #[serde(default)]
    pub protocol: Protocol,
}

/// A list of ports; one to [`PortRule::MAX_PORTS`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRule {
    pub ports: Vec<PortProtocol>,
    /// What may be said on them; absent: anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<L7Rules>,
}

impl PortRule {
    pub const MAX_PORTS: usize = 40;
}

/// A prefix without some inside of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CidrRule {
    pub cidr: Prefix,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<Prefix>,
}

/// Services, by name or by their labels. Without a namespace: the rule's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ServiceRef {
    #[serde(rename_all = "camelCase")]
    K8sService {
        service_name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
    },
    #[serde(rename_all = "camelCase")]
    K8sServiceSelector {
        selector: SelectorSpec,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
    },
}

/// Address family of an ICMP type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    #[default]
    IPv4,
    IPv6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::IPv4, Self::IPv6];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }
    /// IP protocol number of its ICMP.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::IPv4 => 1,
            Self::IPv6 => 58,
        }
    }
}

/// An ICMP type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IcmpField {
    #[serde(default)]
    pub family: Family,
    #[serde(rename = "type")]
    pub kind: u8,
}

/// A list of ICMP types; one to [`PortRule::MAX_PORTS`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IcmpRule {
    pub fields: Vec<IcmpField>,
}

/// An item of `ingress`, `egress`, or their deny lists. Peer kinds are a union. An absent peer list and a written one
/// differ: without any peer list a section with ports means every peer; an empty list selects nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Section {
    pub endpoints: Option<Vec<SelectorSpec>>,
    /// All of which a peer must match to be allowed by any rule; they allow nothing.
    pub requires: Vec<SelectorSpec>,
    pub cidr: Option<Vec<Prefix>>,
    pub cidr_set: Option<Vec<CidrRule>>,
    pub entities: Option<Vec<Entity>>,
    pub nodes: Option<Vec<SelectorSpec>>,
    /// Egress only.
    pub services: Option<Vec<ServiceRef>>,
    /// Empty: every port of every protocol.
    pub to_ports: Vec<PortRule>,
    /// Stands instead of ports.
    pub icmps: Vec<IcmpRule>,
}

impl Section {
    /// Whether some list of peers is written, empty or not.
    pub fn names_peers(&self) -> bool {
        self.endpoints.is_some()
            || self.cidr.is_some()
            || self.cidr_set.is_some()
            || self.entities.is_some()
            || self.nodes.is_some()
            || self.services.is_some()
    }
}

/// Declares how a direction's sections are written, as a module for `serde(with)`.
macro_rules! names {
    ($module:ident, $endpoints:literal, $requires:literal, $cidr:literal, $cidr_set:literal, $entities:literal, $nodes:literal) => {
        pub(super) mod $module {
            use super::{CidrRule, Entity, IcmpRule, PortRule, Prefix, Section, SelectorSpec, ServiceRef};
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            #[derive(Serialize, Deserialize)]
            #[serde(remote = "Section", deny_unknown_fields)]
            struct Fields {
                #[serde(rename = $endpoints, default, skip_serializing_if = "Option::is_none")]
                endpoints: Option<Vec<SelectorSpec>>,
                #[serde(rename = $requires, default, skip_serializing_if = "Vec::is_empty")]
                requires: Vec<SelectorSpec>,
                #[serde(rename = $cidr, default, skip_serializing_if = "Option::is_none")]
                cidr: Option<Vec<Prefix>>,
                #[serde(rename = $cidr_set, default, skip_serializing_if = "Option::is_none")]
                cidr_set: Option<Vec<CidrRule>>,
                #[serde(rename = $entities, default, skip_serializing_if = "Option::is_none")]
                entities: Option<Vec<Entity>>,
                #[serde(rename = $nodes, default, skip_serializing_if = "Option::is_none")]
                nodes: Option<Vec<SelectorSpec>>,
                #[serde(rename = "toServices", default, skip_serializing_if = "Option::is_none")]
                services: Option<Vec<ServiceRef>>,
                #[serde(rename = "toPorts", default, skip_serializing_if = "Vec::is_empty")]
                to_ports: Vec<PortRule>,
                #[serde(default, skip_serializing_if = "Vec::is_empty")]
                icmps: Vec<IcmpRule>,
            }

            #[derive(Serialize, Deserialize)]
            #[serde(transparent)]
            struct Item(#[serde(with = "Fields")] Section);

            pub fn serialize<S: Serializer>(sections: &[Section], s: S) -> Result<S::Ok, S::Error> {
                s.collect_seq(sections.iter().cloned().map(Item))
            }

            pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Section>, D::Error> {
                Ok(Vec::<Item>::deserialize(d)?.into_iter().map(|item| item.0).collect())
            }
        }
    };
}

names!(ingress_names, "fromEndpoints", "fromRequires", "fromCIDR", "fromCIDRSet", "fromEntities", "fromNodes");
names!(egress_names, "toEndpoints", "toRequires", "toCIDR", "toCIDRSet", "toEntities", "toNodes");
