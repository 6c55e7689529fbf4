// SPDX-License-Identifier: Apache-2.0
//! What a template can say about an endpoint or the node.

use serde::Serialize;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Switches that decide a program's shape, as templates see them: `{{ features.ipv4 | flag }}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Features(pub BTreeMap<String, bool>);

impl Default for Features {
    /// What an agent without options runs.
    fn default() -> Self {
        Features(DEFAULTS.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect())
    }
}

/// Every switch with the value that an agent without options gives it.
const DEFAULTS: &[(&str, bool)] = &[("ipv4", true), ("events", true), ("nat46", false), ("netkit", false)];

impl Features {
    /// The same features with `name` set.
    pub fn with(mut self, name: &str, on: bool) -> Self {
        self.0.insert(name.to_owned(), on);
        self
    }

    /// Whether `name` is on; an unknown one is off.
    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).copied().unwrap_or(false)
    }

    /// The shapes that are compiled with the project, so that a node without clang can run them.
    pub fn embedded_shapes() -> Vec<Features> {
        let with = |name, on| Features::default().with(name, on);
        vec![Features::default(), with("ipv4", false), with("nat46", true), with("netkit", true)]
    }
}

/// One container, as its template sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// For people, in a comment; never part of what is compiled.
    pub name: String,
    /// Row in the endpoint table.
    pub slot: u16,
    /// Endpoint id.
    pub id: u16,
    /// Interface index of the host side.
    pub ifindex: u32,
    /// The container's own MAC address.
    pub mac: [u8; 6],
    /// MAC address of the host side, which answers for the gateway.
    pub host_mac: [u8; 6],
    /// IPv4 address, if it has one.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Ipv6Addr,
    /// MTU of the container's interface.
    pub mtu: u16,
    /// Shape of its program.
    pub features: Features,
}

/// The node's own devices, as their template sees them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeConfig {
    /// Shape of the program.
    pub features: Features,
}

#[derive(Serialize)]
struct EndpointContext<'a> {
    name: String,
    slot: u16,
    id: u16,
    ifindex: u32,
    mac: String,
    host_mac: String,
    ipv4: String,
    ipv6: String,
    mtu: u16,
    features: &'a Features,
}

#[derive(Serialize)]
struct NodeContext<'a> {
    features: &'a Features,
}

impl EndpointConfig {
    pub(crate) fn context(&self) -> tera::TeraResult<tera::Context> {
        tera::Context::from_serialize(&EndpointContext {
            name: comment_text(&self.name),
            slot: self.slot,
            id: self.id,
            ifindex: self.ifindex,
            mac: mac_text(self.mac),
            host_mac: mac_text(self.host_mac),
            ipv4: self.ipv4.map(|a| a.to_string()).unwrap_or_default(),
            ipv6: self.ipv6.to_string(),
            mtu: self.mtu,
            features: &self.features,
        })
    }

    /// An endpoint for checks and for shared shapes, whose values are not compiled in.
    pub(crate) fn sample(features: Features) -> Self {
        EndpointConfig {
            name: "sample".to_owned(),
            slot: 1,
            id: 1,
            ifindex: 1,
            mac: [2, 0, 0, 0, 0, 1],
            host_mac: [2, 0, 0, 0, 0, 2],
            ipv4: features.has("ipv4").then_some(Ipv4Addr::new(192, 0, 2, 1)),
            ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
            mtu: 1500,
            features,
        }
    }
}

impl NodeConfig {
    pub(crate) fn context(&self) -> tera::TeraResult<tera::Context> {
        tera::Context::from_serialize(&NodeContext { features: &self.features })
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// A name that can neither end the C comment that holds it, nor open another, nor continue the line. A slash at the end
/// would meet the star of a comment's end.
fn comment_text(name: &str) -> String {
    let kept: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-:@/ ".contains(c) { c } else { '_' }).take(128).collect();
    kept.trim_matches(['/', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_inside_its_comment() {
        assert_eq!(comment_text("default/web-1"), "default/web-1");
        assert_eq!(comment_text("x */ int y; /*"), "x _/ int y_ /_");
        assert_eq!(comment_text("a\n#define B\\"), "a__define B_");
        assert_eq!(comment_text("ends/"), "ends");
    }
}
