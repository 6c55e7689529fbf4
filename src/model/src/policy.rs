// SPDX-License-Identifier: Apache-2.0
//! Policy: from what users write to the rule blocks that the kernel reads.
//!
//! [`input::parse`] reads documents into [`Rule`]s, a [`Repository`] holds them, [`resolve`] turns repository and known
//! identities into an [`EndpointPolicy`], [`block::blocks`] lays that out for the kernel, [`explain::verdict`] answers as
//! the kernel would.

pub mod block;
mod compile;
mod diff;
mod engine;
mod entry;
pub mod explain;
pub mod input;
pub mod l7;
mod postings;
mod repository;
mod resolve;
mod rule;
mod section;
mod selector_cache;
mod tables;

pub use block::{TooLarge, blocks};
pub use diff::Change;
pub use engine::{Engine, Refused, Room, Size, Subject, shadowed};
pub use entry::{Action, Entry, Precedence, RuleRef, Tier};
pub use explain::{EntryKey, Explanation, Half, Party, Traffic, Verdict, half, verdict};
pub use input::InputError;
pub use repository::{Repository, Revision};
pub use resolve::{Direction, DirectionPolicy, EndpointPolicy, EnforcementMode, L7Conflict, Peer, resolve};
pub use rule::{DefaultDeny, Entity, ObjectKind, ObjectRef, Origin, Rule};
pub use section::{CidrRule, Family, IcmpField, IcmpRule, Port, PortProtocol, PortRule, Protocol, Section, ServiceRef};
pub use selector_cache::SelectorCache;
pub use tables::{PortNames, Service, ServiceName, Services};
