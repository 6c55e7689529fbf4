// SPDX-License-Identifier: Apache-2.0
//! Where a container's labels come from, and how the agent is told.

use std::collections::BTreeMap;

/// Labels without their source.
pub type Map = BTreeMap<String, String>;

/// Who gave a label: the part before the colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The container runtime, or who started a container with it.
    Container,
    Kubernetes,
    Mesos,
}

/// Keys of what Kubernetes says about every pod.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";

impl Source {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Kubernetes => "k8s",
            Self::Mesos => "mesos",
        }
    }
}

/// A label as the API takes it.
pub fn label(source: Source, key: &str, value: &str) -> String {
    let source = source.as_str();
    if value.is_empty() { format!("{source}:{key}") } else { format!("{source}:{key}={value}") }
}

/// Whether the agent takes a label. Runtimes allow more: whole texts, and keys that could not be read back.
pub fn usable(key: &str, value: &str) -> bool {
    !key.is_empty() && !key.contains(|c: char| c == '=' || c.is_whitespace() || c.is_control()) && !value.contains(char::is_control)
}
