// SPDX-License-Identifier: Apache-2.0
//! Who is on the small node, and what their rows say.

use crate::packet::Packet;
use crate::wire::*;
use pilus_codegen::{EndpointConfig, Features};
use pilus_model::abi::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP family of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}
use Family::{V4, V6};

/// Who is there. In IPv4 A's address sorts behind B's, in IPv6 before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    A,
    B,
    /// Has a receiving program of its own.
    C,
    Host,
    World,
}
use Who::{A, B, C, Host, World as Outside};

/// Policy of B's ingress and of A's; a test's own policies start at [`POLICY_FREE`].
pub const POLICY_B_IN: u32 = 10;
pub const POLICY_A_IN: u32 = 11;
pub const POLICY_FREE: u32 = 20;
/// Idle time of every flow, jiffies.
pub const IDLE: u32 = 10_000_000;

/// Device of the node that leads to the world.
pub const OUTER: u32 = 1;

/// The node's own address on [`OUTER`].
pub fn node_ip(family: Family) -> IpAddr {
    match family {
        V4 => Ipv4Addr::new(192, 0, 2, 33).into(),
        V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x21).into(),
    }
}

impl Who {
    pub const CONTAINERS: [Who; 3] = [A, B, C];
    pub const ALL: [Who; 5] = [A, B, C, Host, Outside];

    pub fn slot(self) -> u32 {
        match self {
            A => 300,
            B => 301,
            C => 302,
            Host => SLOT_HOST,
            Outside => SLOT_WORLD,
        }
    }

    pub fn identity(self) -> u32 {
        match self {
            A => 4001,
            B => 4002,
            C => 4003,
            Host => Reserved::Host.raw(),
            Outside => Reserved::World.raw(),
        }
    }

    pub fn is_container(self) -> bool {
        Self::CONTAINERS.contains(&self)
    }

    /// Host side of a container; the host's own device.
    pub fn ifindex(self) -> u32 {
        if self.is_container() { IFINDEX_BASE + self.slot() } else { 7 }
    }

    pub fn mac(self) -> Mac {
        [2, 0, 0, 0, 0xaa, if self.is_container() { self.slot() as u8 } else { 1 }]
    }

    pub fn host_mac(self) -> Mac {
        [2, 0, 0, 0, 0xbb, if self.is_container() { self.slot() as u8 } else { 1 }]
    }

    pub fn ip4(self) -> Ipv4Addr {
        match self {
            A => Ipv4Addr::new(10, 7, 0, 9),
            B => Ipv4Addr::new(10, 7, 0, 3),
            C => Ipv4Addr::new(10, 7, 0, 4),
            Host => Ipv4Addr::new(10, 7, 0, 1),
            Outside => Ipv4Addr::new(198, 51, 100, 7),
        }
    }

    pub fn ip6(self) -> Ipv6Addr {
        match self {
            Outside => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7),
            Host => Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 1),
            _ => Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, self.slot() as u16),
        }
    }

    pub fn ip(self, family: Family) -> IpAddr {
        match family {
            V4 => self.ip4().into(),
            V6 => self.ip6().into(),
        }
    }

    pub fn link_local(self) -> Ipv6Addr {
        link_local(self.mac())
    }

    /// What its own build is made of.
    pub fn config(self, features: &Features) -> EndpointConfig {
        EndpointConfig {
            name: format!("{self:?}"),
            slot: self.slot() as u16,
            id: self.slot() as u16 - 200,
            ifindex: self.ifindex(),
            mac: self.mac(),
            host_mac: self.host_mac(),
            ipv4: Some(self.ip4()),
            ipv6: self.ip6(),
            mtu: 1420,
            features: features.clone(),
        }
    }

    /// Its row to begin with; `flags` are added.
    pub fn row(self, flags: u32) -> Endpoint {
        let (policy_in, policy_out, kind) = match self {
            A => (POLICY_A_IN, POLICY_OPEN, 0),
            B => (POLICY_B_IN, POLICY_NONE, 0),
            C => (POLICY_OPEN, POLICY_OPEN, EP_RECEIVE),
            Host | Outside => (POLICY_OPEN, POLICY_OPEN, EP_STACK),
        };
        Endpoint {
            epoch: 7 * self.slot() + 3,
            ifindex: self.ifindex(),
            mac: self.mac(),
            host_mac: self.host_mac(),
            identity: self.identity(),
            policy_in,
            policy_out,
            flags: EP_VALID | kind | flags,
            ip4: if self == Outside { Be32::default() } else { Be32::from_wire(self.ip4().octets()) },
            ip6: if self == Outside { [Be32::default(); 4] } else { words(self.ip6().into()) },
            tunnel: Be32::default(),
            id: self.slot() as u16,
            mtu: 1420,
        }
    }
}

impl Family {
    pub const BOTH: &'static [Family] = &[V4, V6];
    pub const ONLY4: &'static [Family] = &[V4];
    pub const ONLY6: &'static [Family] = &[V6];

    /// A packet between the two.
    pub fn ip(self, src: Who, dst: Who) -> Packet {
        Packet::ip(src.ip(self), dst.ip(self))
    }

    pub fn number(self) -> u8 {
        if self == V4 { 4 } else { 6 }
    }

    pub fn icmp(self) -> u8 {
        if self == V4 { ICMP } else { ICMPV6 }
    }
}

/// An address as it stands in keys and rows; IPv4 in the first word.
pub fn words(ip: IpAddr) -> [Be32; 4] {
    let mut out = [Be32::default(); 4];
    for (word, bytes) in out.iter_mut().zip(octets(ip).chunks_exact(4)) {
        *word = Be32::from_wire([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    out
}

/// A used rule.
pub fn rule(lo: u16, hi: u16, proto: u8, flags: u8, idx: u16) -> PolicyRule {
    PolicyRule { lo, hi, proto, flags: RULE_USED | flags, idx }
}
