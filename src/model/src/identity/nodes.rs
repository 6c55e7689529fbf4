// SPDX-License-Identifier: Apache-2.0
//! Identities of other nodes, counted by reference: nodes with equal labels share one.

use super::{NumericIdentity, free_number, reserved_labels};
use crate::abi::Reserved;
use crate::label::{Label, LabelError, Labels, Source};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bits of an identity of scope remote node.
const REMOTE_NODE: u32 = 2 << 24;

/// Which labels of nodes have which number. A number follows from the labels unless others have it already; a node without
/// labels is the fixed `remote-node`.
#[derive(Clone, Debug, Default)]
pub struct NodeIdentities {
    by_labels: BTreeMap<Arc<Labels>, (NumericIdentity, u64)>,
}

impl NodeIdentities {
    /// All labels of a node: its own (source `node`, also where none is written) and that it is one.
    ///
    /// # Errors
    /// A label is none, or of another source.
    pub fn labels<S: AsRef<str>>(own: impl IntoIterator<Item = S>) -> Result<Labels, String> {
        let mut all = reserved_labels(Reserved::RemoteNode);
        for text in own {
            let label: Label = text.as_ref().parse().map_err(|e: LabelError| e.to_string())?;
            if !matches!(label.source(), Source::Node | Source::Unspec) {
                return Err(format!("label {label}: labels of nodes have the source `node`"));
            }
            let label = Label::new(Source::Node, label.key(), label.value()).map_err(|e| e.to_string())?;
            all.add(label).map_err(|e| e.to_string())?;
        }
        Ok(all)
    }

    /// The number of labels that [`Self::labels`] gave, with one more reference. None if there are too many.
    pub fn allocate(&mut self, labels: &Arc<Labels>) -> Option<NumericIdentity> {
        if let Some((id, references)) = self.by_labels.get_mut(labels) {
            *references += 1;
            return Some(*id);
        }
        let id = if labels.len() == 1 {
            Reserved::RemoteNode.into()
        } else {
            let text: Vec<String> = labels.iter().map(ToString::to_string).collect();
            free_number(&text.join(","), REMOTE_NODE, |id| self.by_labels.values().any(|(taken, _)| *taken == id))?
        };
        self.by_labels.insert(Arc::clone(labels), (id, 1));
        Some(id)
    }

    /// Gives back one reference. The number, if it was the last.
    pub fn release(&mut self, labels: &Arc<Labels>) -> Option<NumericIdentity> {
        let (id, references) = self.by_labels.get_mut(labels)?;
        *references -= 1;
        if *references > 0 {
            return None;
        }
        let id = *id;
        self.by_labels.remove(labels);
        Some(id)
    }

    /// Number of labels that have one.
    pub fn lookup(&self, labels: &Labels) -> Option<NumericIdentity> {
        self.by_labels.get(labels).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Scope;

    #[test]
    fn nodes_with_equal_labels_share_a_number() {
        let labels = |own: &[&str]| Arc::new(NodeIdentities::labels(own).unwrap());
        let (plain, db) = (labels(&[]), labels(&["role=db", "node:zone=a"]));
        assert_eq!(db.iter().map(ToString::to_string).collect::<Vec<_>>(), ["node:role=db", "node:zone=a", "reserved:remote-node"]);
        assert!(NodeIdentities::labels(["k8s:a=b"]).is_err() && NodeIdentities::labels(["a=b", "a=c"]).is_err());
        let mut nodes = NodeIdentities::default();
        assert_eq!(nodes.allocate(&plain), Some(NumericIdentity(6)));
        let id = nodes.allocate(&db).unwrap();
        assert!(id.scope() == Scope::RemoteNode && !id.is_endpoint());
        assert_eq!((nodes.allocate(&labels(&["zone=a", "role=db"])), nodes.lookup(&db)), (Some(id), Some(id)));
        assert_ne!(nodes.allocate(&labels(&["role=web"])), Some(id));
        assert_eq!((nodes.release(&db), nodes.release(&db), nodes.release(&db)), (None, Some(id), None));
        assert_eq!(nodes.allocate(&db), Some(id), "the number follows from the labels");
    }
}
