// SPDX-License-Identifier: Apache-2.0
//! Policy: from what users write to the rule blocks that the kernel reads.
//!
//! [`input::parse`] reads documents into [`Rule`]s, a [`Repository`] holds them, [`resolve`] turns repository and known
//! identities into an [`EndpointPolicy`], [`block::blocks`] lays that out for the kernel, [`explain::verdict`] answers as
//! the kernel would.

pub mod block;
pub mod explain;
pub mod input;
mod repository;
mod resolve;
mod rule;
mod selector_cache;

pub use block::{TooLarge, blocks};
pub use explain::{Verdict, verdict};
pub use input::InputError;
pub use repository::{Repository, Revision};
pub use resolve::{Direction, DirectionPolicy, EndpointPolicy, EnforcementMode, Entry, Peer, RuleRef, resolve};
pub use rule::{
    EgressDenyRule, EgressRule, Entity, IngressDenyRule, IngressRule, ObjectKind, ObjectRef, Origin, PortProtocol, PortRule, Protocol, Rule,
};
pub use selector_cache::SelectorCache;
