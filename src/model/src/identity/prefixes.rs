// SPDX-License-Identifier: Apache-2.0
//! Node-local identities of address prefixes, counted by reference.

use super::{NumericIdentity, free_number};
use crate::abi::Reserved;
use crate::label::{Label, Labels};
use crate::prefix::Prefix;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use thiserror::Error;

/// Bits of an identity of scope node-local.
const NODE_LOCAL: u32 = 1 << 24;

/// More prefixes than the kernel's table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("more than {} different address prefixes in the rules", PrefixIdentities::MAX)]
pub struct TooManyPrefixes;

/// Which prefix has which number. Prefixes of length 0 have the fixed numbers of all IPv4 and of all IPv6 addresses.
///
/// A number follows from the prefix unless another one has it already: the same rules give the same numbers again after
/// a restart, without anything on disk.
#[derive(Clone, Debug, Default)]
pub struct PrefixIdentities {
    by_prefix: BTreeMap<Prefix, (NumericIdentity, u64)>,
    by_id: HashMap<NumericIdentity, Prefix>,
    /// Those whose references changed since this was asked last.
    touched: BTreeSet<Prefix>,
}

impl PrefixIdentities {
    /// Most prefixes; the kernel's table also holds the node's own.
    pub const MAX: usize = 50_000;

    pub fn new() -> Self {
        Self::default()
    }

    /// The number of a prefix, with one more reference, and whether it is new.
    ///
    /// # Errors
    /// There are [`Self::MAX`] already.
    pub fn allocate(&mut self, prefix: Prefix) -> Result<(NumericIdentity, bool), TooManyPrefixes> {
        if let Some((id, references)) = self.by_prefix.get_mut(&prefix) {
            *references += 1;
            self.touched.insert(prefix);
            return Ok((*id, false));
        }
        if self.by_prefix.len() >= Self::MAX {
            return Err(TooManyPrefixes);
        }
        let id = match prefix {
            Prefix::ALL4 => Reserved::WorldIpv4.into(),
            Prefix::ALL6 => Reserved::WorldIpv6.into(),
            _ => self.free(prefix),
        };
        self.touched.insert(prefix);
        self.by_prefix.insert(prefix, (id, 1));
        self.by_id.insert(id, prefix);
        Ok((id, true))
    }

    /// Gives back one reference. The number, if it was the last.
    pub fn release(&mut self, prefix: Prefix) -> Option<NumericIdentity> {
        let (id, references) = self.by_prefix.get_mut(&prefix)?;
        *references -= 1;
        self.touched.insert(prefix);
        if *references > 0 {
            return None;
        }
        let id = *id;
        self.by_prefix.remove(&prefix);
        self.by_id.remove(&id);
        Some(id)
    }

    /// Prefixes that were named, held, or let go since this was asked last.
    pub fn take_touched(&mut self) -> BTreeSet<Prefix> {
        std::mem::take(&mut self.touched)
    }

    /// Number of a prefix.
    pub fn lookup(&self, prefix: Prefix) -> Option<NumericIdentity> {
        self.by_prefix.get(&prefix).map(|(id, _)| *id)
    }
    /// How often a prefix is named and held.
    pub fn references(&self, prefix: Prefix) -> u64 {
        self.by_prefix.get(&prefix).map_or(0, |(_, references)| *references)
    }
    /// Prefix of a number.
    pub fn prefix(&self, id: NumericIdentity) -> Option<Prefix> {
        self.by_id.get(&id).copied()
    }
    /// All prefixes with their numbers: what the prefix table of the kernel has to hold.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, NumericIdentity)> {
        self.by_prefix.iter().map(|(prefix, (id, _))| (*prefix, *id))
    }
    pub fn len(&self) -> usize {
        self.by_prefix.len()
    }
    pub fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }

    /// Labels of a prefix's identity. It belongs to the world; shorter prefixes that cover it select it by its address.
    pub fn labels(prefix: Prefix) -> Labels {
        let world = match prefix {
            Prefix::ALL4 => Reserved::WorldIpv4,
            Prefix::ALL6 => Reserved::WorldIpv6,
            _ => Reserved::World,
        };
        Labels::from_iter([Label::reserved(world.text()), Label::prefix(prefix)])
    }

    fn free(&self, prefix: Prefix) -> NumericIdentity {
        free_number(&prefix.to_string(), NODE_LOCAL, |id| self.by_id.contains_key(&id)).unwrap_or(Reserved::World.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Scope;
    use super::*;

    #[test]
    fn numbers_follow_from_prefixes_and_are_counted() {
        let p = |t: &str| t.parse::<Prefix>().unwrap();
        let mut a = PrefixIdentities::new();
        let (id, new) = a.allocate(p("10.0.0.0/8")).unwrap();
        assert!(new && id.scope() == Scope::Node && !id.is_endpoint());
        assert_eq!(a.allocate(p("10.0.0.0/8")), Ok((id, false)));
        assert_eq!(a.allocate(Prefix::ALL6), Ok((NumericIdentity(10), true)));
        let mut b = PrefixIdentities::new();
        b.allocate(p("fd00::/8")).unwrap();
        assert_eq!(b.allocate(p("10.0.0.0/8")).unwrap().0, id, "the order does not matter");
        assert_eq!((a.release(p("10.0.0.0/8")), a.release(p("10.0.0.0/8")), a.release(p("10.0.0.0/8"))), (None, Some(id), None));
        assert_eq!(a.prefix(id), None);
        assert_eq!(a.take_touched(), [p("10.0.0.0/8"), Prefix::ALL6].into());
        a.release(Prefix::ALL6);
        assert_eq!((a.take_touched(), a.take_touched()), ([Prefix::ALL6].into(), [].into()));
    }

    #[test]
    fn no_number_is_given_twice() {
        let mut a = PrefixIdentities::new();
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..PrefixIdentities::MAX {
            let ip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n as u32);
            let (id, _) = a.allocate(Prefix::address(ip.into())).unwrap();
            assert!(seen.insert(id) && id.number() != 0);
        }
        assert_eq!(a.allocate(Prefix::ALL4), Err(TooManyPrefixes));
    }
}
