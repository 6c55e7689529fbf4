// SPDX-License-Identifier: Apache-2.0
//! Harness: an agent as its own process in namespaces of its own, containers as network namespaces, sockets inside them.

pub mod bench;
pub mod container;
pub mod icmp;
pub mod node;
pub mod outside;
pub mod traffic;

pub use container::Container;
pub use node::{Node, NodeOptions};

/// Both families, for rows of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V6, Family::V4];
}
