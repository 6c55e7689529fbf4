// SPDX-License-Identifier: Apache-2.0
//! Harness: an agent as its own process in namespaces of its own, containers as network namespaces, sockets inside them.

pub mod bench;
pub mod container;
pub mod icmp;
pub mod node;
pub mod outside;
pub mod runtime;
pub mod traffic;
pub mod verdicts;

pub use container::Container;
pub use node::{Node, NodeOptions};
use std::time::Instant;

/// Looks again and again until `look` is content; what it says meanwhile is why it is not.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let since = Instant::now();
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(why) => assert!(since.elapsed() < container::PATIENCE, "{what}: {why}"),
        }
        std::thread::yield_now();
    }
}

/// Both families, for rows of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V6, Family::V4];
}
