// SPDX-License-Identifier: Apache-2.0
//! Identities: a number for each set of labels.

mod allocator;
mod nodes;
mod prefixes;

pub use allocator::{AllocateError, IdentityAllocator};
pub use nodes::NodeIdentities;
pub use prefixes::{PrefixIdentities, TooManyPrefixes};

use crate::abi::Reserved;
use crate::label::{Label, Labels};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// What an identity's number means. The top eight bits of a [`NumericIdentity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Known to the whole cluster (0); the only one that travels in packets.
    Cluster,
    /// Known to this node, such as prefixes (1).
    Node,
    /// A remote node (2).
    RemoteNode,
    /// Not one of ours.
    Other(u8),
}

/// An identity's number, host order: scope (8 bits) | cluster id (8) | number (16).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NumericIdentity(pub u32);

impl NumericIdentity {
    /// As a peer in policy: every identity. The same number as `Reserved::Unknown`.
    pub const ANY: Self = Self(0);
    /// First and last number of allocated identities.
    pub const FIRST: Self = Self(256);
    pub const LAST: Self = Self(65535);

    pub const fn get(self) -> u32 {
        self.0
    }
    /// The fixed identity with this number, if it is one.
    pub fn reserved(self) -> Option<Reserved> {
        Reserved::from_raw(self.0)
    }
    /// Whether the number lies below the allocated ones (named or not).
    pub const fn is_reserved(self) -> bool {
        self.0 < Self::FIRST.0
    }
    pub const fn scope(self) -> Scope {
        match (self.0 >> 24) as u8 {
            0 => Scope::Cluster,
            1 => Scope::Node,
            2 => Scope::RemoteNode,
            other => Scope::Other(other),
        }
    }
    /// Cluster id.
    pub const fn cluster(self) -> u8 {
        (self.0 >> 16) as u8
    }
    /// Number within scope and cluster.
    pub const fn number(self) -> u16 {
        self.0 as u16
    }
    /// Whether it is an endpoint, or one of several: an allocated identity of a cluster, `health` or `init`.
    pub fn is_endpoint(self) -> bool {
        match self.reserved() {
            Some(r) => matches!(r, Reserved::Health | Reserved::Init),
            None => self.scope() == Scope::Cluster && !self.is_reserved(),
        }
    }
}

impl From<Reserved> for NumericIdentity {
    fn from(r: Reserved) -> Self {
        Self(r.raw())
    }
}

impl fmt::Display for NumericIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NumericIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reserved() {
            Some(r) => write!(f, "{}({r})", self.0),
            None => self.0.fmt(f),
        }
    }
}

/// A number and the labels that it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub id: NumericIdentity,
    pub labels: Arc<Labels>,
}

/// A number that follows from a text unless another one has it: FNV-1a, and from there the next free one.
fn free_number(text: &str, scope: u32, taken: impl Fn(NumericIdentity) -> bool) -> Option<NumericIdentity> {
    let hash = text.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let start = (hash ^ hash >> 16) & 0xffff;
    let mut ids = (0..=0xffffu32).map(|n| NumericIdentity(scope | ((start + n) & 0xffff).max(1)));
    ids.find(|id| !taken(*id))
}

/// Labels of a fixed identity: `reserved:NAME`.
pub fn reserved_labels(identity: Reserved) -> Labels {
    Labels::from_iter([Label::reserved(identity.text())])
}

/// All fixed identities but `unknown`, which has no labels to select it by.
pub fn reserved_identities() -> impl Iterator<Item = Identity> {
    let named = Reserved::ALL.iter().filter(|r| **r != Reserved::Unknown);
    named.map(|r| Identity { id: (*r).into(), labels: Arc::new(reserved_labels(*r)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_number() {
        let id = NumericIdentity(0x0102_1234);
        assert_eq!((id.scope(), id.cluster(), id.number()), (Scope::Node, 2, 0x1234));
        assert!(!id.is_reserved() && !id.is_endpoint());
        assert!(NumericIdentity(256).is_endpoint() && NumericIdentity(0x0001_0100).is_endpoint());
        assert!(NumericIdentity(255).is_reserved() && !NumericIdentity(255).is_endpoint());
        assert!(!NumericIdentity(1).is_endpoint() && NumericIdentity(5).is_endpoint());
        assert_eq!(NumericIdentity(2).reserved(), Some(Reserved::World));
        assert_eq!(NumericIdentity(0x0300_0000).scope(), Scope::Other(3));
        assert_eq!(reserved_identities().count(), 10);
    }
}
