// SPDX-License-Identifier: Apache-2.0
//! Wire types of the agent's API, its client over the unix socket and its OpenAPI document.
//! Adding fields is compatible; removing or renaming one is not.

pub mod client;
pub mod documents;
pub mod error;
pub mod flows;
pub mod openapi;
pub mod types;

pub use client::Client;
pub use error::ClientError;
pub use flows::{FlowFilter, Flows};
