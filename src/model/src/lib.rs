// SPDX-License-Identifier: Apache-2.0
//! What is and what should be: labels, identities, policy and the shapes shared with the kernel programs.
//!
//! This crate is pure: no tokio, no I/O, no clock, no logging.

pub mod abi;
pub mod delta;
pub mod endpoint;
pub mod flow;
pub mod identity;
pub mod ipcache;
pub mod label;
pub mod policy;
pub mod prefix;
pub mod selector;
