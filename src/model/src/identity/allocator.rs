// SPDX-License-Identifier: Apache-2.0
//! Which labels have which number, counted by reference.

use super::{Identity, NumericIdentity, reserved_identities};
use crate::label::{Label, Labels, Source};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use thiserror::Error;

/// Why no number was given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AllocateError {
    #[error("all {0} identities are in use")]
    Exhausted(u32),
    #[error("label `{0}` is reserved: it stands alone and names a fixed identity")]
    Reserved(Label),
    #[error("identity {0} is fixed and belongs to other labels")]
    Fixed(NumericIdentity),
    #[error("identity {0} lies outside of the allocated range 256 to 65535")]
    OutOfRange(NumericIdentity),
    #[error("identity {id} already belongs to `{labels}`")]
    Taken { id: NumericIdentity, labels: Arc<Labels> },
    #[error("`{labels}` already has identity {id}")]
    Known { id: NumericIdentity, labels: Arc<Labels> },
}

#[derive(Clone, Debug)]
struct Row {
    labels: Arc<Labels>,
    references: u64,
}

/// Gives numbers from 256 to 65535 to sets of labels. A number goes to other labels only when no reference is left, and
/// then as late as possible. Fixed identities are always there and are not counted.
#[derive(Clone, Debug)]
pub struct IdentityAllocator {
    by_id: BTreeMap<NumericIdentity, Row>,
    by_labels: HashMap<Arc<Labels>, NumericIdentity>,
    /// Where the search for a free number begins.
    next: u32,
}

impl Default for IdentityAllocator {
    fn default() -> Self {
        Self::new()
    }
}

impl IdentityAllocator {
    pub fn new() -> Self {
        let mut new = Self { by_id: BTreeMap::new(), by_labels: HashMap::new(), next: NumericIdentity::FIRST.0 };
        reserved_identities().for_each(|i| new.add(i.id, i.labels, 0));
        new
    }

    fn add(&mut self, id: NumericIdentity, labels: Arc<Labels>, references: u64) {
        self.by_labels.insert(labels.clone(), id);
        self.by_id.insert(id, Row { labels, references });
    }

    /// The number of these labels, with one more reference, and whether it is new.
    ///
    /// # Errors
    /// `Reserved` if a `reserved:` label is mixed with others or has no fixed number; `Exhausted`.
    pub fn allocate(&mut self, labels: &Labels) -> Result<(NumericIdentity, bool), AllocateError> {
        if let Some(&id) = self.by_labels.get(labels) {
            self.reference(id);
            return Ok((id, false));
        }
        refuse_reserved(labels)?;
        let id = self.free().ok_or(AllocateError::Exhausted(NumericIdentity::LAST.0 - NumericIdentity::FIRST.0 + 1))?;
        self.next = if id == NumericIdentity::LAST { NumericIdentity::FIRST.0 } else { id.0 + 1 };
        self.add(id, Arc::new(labels.clone()), 1);
        Ok((id, true))
    }

    /// Takes over a number known from before, with one more reference.
    ///
    /// # Errors
    /// Labels or number already stand for something else, or cannot be allocated.
    pub fn restore(&mut self, id: NumericIdentity, labels: &Labels) -> Result<(), AllocateError> {
        if let Some(row) = self.by_id.get(&id) {
            if *row.labels != *labels {
                let labels = row.labels.clone();
                return Err(if id.is_reserved() { AllocateError::Fixed(id) } else { AllocateError::Taken { id, labels } });
            }
            self.reference(id);
            return Ok(());
        }
        if let Some((labels, &id)) = self.by_labels.get_key_value(labels) {
            return Err(AllocateError::Known { id, labels: labels.clone() });
        }
        refuse_reserved(labels)?;
        if !(NumericIdentity::FIRST..=NumericIdentity::LAST).contains(&id) {
            return Err(AllocateError::OutOfRange(id));
        }
        self.add(id, Arc::new(labels.clone()), 1);
        Ok(())
    }

    /// Gives back one reference. True if it was the last: the number is free now. Unknown and fixed numbers: false.
    pub fn release(&mut self, id: NumericIdentity) -> bool {
        if id.is_reserved() {
            return false;
        }
        let Some(row) = self.by_id.get_mut(&id) else { return false };
        row.references -= 1;
        if row.references > 0 {
            return false;
        }
        if let Some(row) = self.by_id.remove(&id) {
            self.by_labels.remove(&row.labels);
        }
        true
    }

    /// Labels of a number.
    pub fn labels(&self, id: NumericIdentity) -> Option<&Arc<Labels>> {
        self.by_id.get(&id).map(|row| &row.labels)
    }
    /// Number of labels; takes no reference.
    pub fn lookup(&self, labels: &Labels) -> Option<NumericIdentity> {
        self.by_labels.get(labels).copied()
    }
    /// References to a number; fixed ones are not counted.
    pub fn references(&self, id: NumericIdentity) -> u64 {
        self.by_id.get(&id).map_or(0, |row| row.references)
    }
    /// All identities by number, fixed ones first.
    pub fn iter(&self) -> impl Iterator<Item = Identity> {
        self.by_id.iter().map(|(id, row)| Identity { id: *id, labels: row.labels.clone() })
    }

    fn reference(&mut self, id: NumericIdentity) {
        if let Some(row) = self.by_id.get_mut(&id)
            && !id.is_reserved()
        {
            row.references += 1;
        }
    }

    fn free(&self) -> Option<NumericIdentity> {
        let (first, last) = (NumericIdentity::FIRST.0, NumericIdentity::LAST.0);
        (self.next..=last).chain(first..self.next).map(NumericIdentity).find(|id| !self.by_id.contains_key(id))
    }
}

fn refuse_reserved(labels: &Labels) -> Result<(), AllocateError> {
    let kept = |l: &&Label| matches!(l.source(), Source::Reserved | Source::Cidr | Source::Node);
    labels.iter().find(kept).map_or(Ok(()), |l| Err(AllocateError::Reserved(l.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        Labels::parse(text.split(',')).unwrap()
    }

    #[test]
    fn numbers_are_shared_and_counted() {
        let mut a = IdentityAllocator::new();
        assert_eq!(a.allocate(&labels("k8s:a,k8s:b")), Ok((NumericIdentity(256), true)));
        assert_eq!(a.allocate(&labels("k8s:b,k8s:a")), Ok((NumericIdentity(256), false)));
        assert_eq!(a.allocate(&labels("k8s:c")), Ok((NumericIdentity(257), true)));
        assert_eq!(a.references(NumericIdentity(256)), 2);
        assert!(!a.release(NumericIdentity(256)));
        assert_eq!(a.lookup(&labels("k8s:a,k8s:b")), Some(NumericIdentity(256)));
        assert!(a.release(NumericIdentity(256)));
        assert!(!a.release(NumericIdentity(256)), "releasing the absent is nothing");
        assert_eq!(a.lookup(&labels("k8s:a,k8s:b")), None);
        assert_eq!(a.labels(NumericIdentity(256)), None);
        assert_eq!(a.allocate(&labels("k8s:d")), Ok((NumericIdentity(258), true)), "a freed number rests");
    }

    #[test]
    fn reserved_labels_have_fixed_numbers() {
        let mut a = IdentityAllocator::new();
        assert_eq!(a.allocate(&labels("reserved:host")), Ok((NumericIdentity(1), false)));
        assert_eq!(a.allocate(&labels("reserved:world-ipv6")), Ok((NumericIdentity(10), false)));
        assert!(!a.release(NumericIdentity(1)));
        assert_eq!(a.allocate(&labels("reserved:host")), Ok((NumericIdentity(1), false)));
        assert!(matches!(a.allocate(&labels("reserved:host,k8s:app=web")), Err(AllocateError::Reserved(_))));
        assert!(matches!(a.allocate(&labels("reserved:host=x")), Err(AllocateError::Reserved(_))));
        assert!(matches!(a.allocate(&labels("reserved:nobody")), Err(AllocateError::Reserved(_))));
    }

    #[test]
    fn restored_numbers_are_kept() {
        let mut a = IdentityAllocator::new();
        a.restore(NumericIdentity(256), &labels("k8s:a")).unwrap();
        a.restore(NumericIdentity(256), &labels("k8s:a")).unwrap();
        a.restore(NumericIdentity(1), &labels("reserved:host")).unwrap();
        assert_eq!(a.references(NumericIdentity(256)), 2);
        assert_eq!(a.allocate(&labels("k8s:b")), Ok((NumericIdentity(257), true)));
        assert!(matches!(a.restore(NumericIdentity(256), &labels("k8s:x")), Err(AllocateError::Taken { .. })));
        assert!(matches!(a.restore(NumericIdentity(300), &labels("k8s:a")), Err(AllocateError::Known { .. })));
        assert!(matches!(a.restore(NumericIdentity(1), &labels("k8s:x")), Err(AllocateError::Fixed(_))));
        assert!(matches!(a.restore(NumericIdentity(255), &labels("k8s:x")), Err(AllocateError::OutOfRange(_))));
        assert!(matches!(a.restore(NumericIdentity(65536), &labels("k8s:x")), Err(AllocateError::OutOfRange(_))));
        assert!(matches!(a.restore(NumericIdentity(300), &labels("reserved:x")), Err(AllocateError::Reserved(_))));
        assert_eq!(a.iter().filter(|i| !i.id.is_reserved()).count(), 2);
    }

    #[test]
    fn a_number_in_use_is_never_given_again() {
        let mut a = IdentityAllocator::new();
        for n in 256..=65535u32 {
            assert_eq!(a.allocate(&labels(&format!("k8s:n={n}"))), Ok((NumericIdentity(n), true)));
        }
        assert_eq!(a.allocate(&labels("k8s:more")), Err(AllocateError::Exhausted(65280)));
        assert!(a.release(NumericIdentity(4711)));
        assert_eq!(a.allocate(&labels("k8s:more")), Ok((NumericIdentity(4711), true)));
        assert_eq!(a.allocate(&labels("k8s:n=256")), Ok((NumericIdentity(256), false)));
    }
}
