// SPDX-License-Identifier: Apache-2.0
//! Harness of the tests that need a kernel.
//!
//! [`sandbox::Sandbox`] gives a test network and mount namespaces and a BPF file system of its own, [`packet`] builds and
//! checks packets, [`world::World`] holds a small node's tables with the programs loaded, and [`scenario`] runs packets
//! through them as rows of a table. [`truth`] reads the tables of what policies mean.

pub mod check;
pub mod objects;
pub mod outcome;
pub mod packet;
pub mod sandbox;
pub mod scenario;
pub mod truth;
pub mod tuple;
pub mod who;
pub mod wire;
pub mod world;
