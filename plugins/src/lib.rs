// SPDX-License-Identifier: Apache-2.0
//! What stands between container runtimes and the agent. Only this crate enters a network namespace, in programs that are
//! single-threaded and about to end, because a namespace belongs to a thread.

pub mod agent;
pub mod cni;
pub mod docker;
pub mod labels;
pub mod netns;
