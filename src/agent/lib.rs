// SPDX-License-Identifier: Apache-2.0
//! The agent: tables of desired state, one control loop that writes them, reconcilers that make the kernel equal to them.

pub mod agent;
pub mod cleanup;
pub mod clock;
pub mod control;
pub mod datapath;
pub mod ipam;
pub mod kvstore;
pub mod locks;
pub mod metrics;
pub mod monitor;
pub mod options;
pub mod persist;
pub mod reconcile;
pub mod server;
pub mod state;
pub mod supervise;
pub mod table;
pub mod templates;
