// SPDX-License-Identifier: Apache-2.0
//! What rules refer to by name and others know: services, and named ports of endpoints.

use super::section::ServiceRef;
use crate::label::Labels;
use crate::prefix::Prefix;
use crate::selector::SelectorSpec;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Names that an endpoint gives its ports: number and IP protocol.
pub type PortNames = BTreeMap<String, BTreeSet<(u16, u8)>>;

/// Namespace and name.
pub type ServiceName = (String, String);

/// A service, as far as rules ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    #[serde(default)]
    pub labels: Labels,
    /// Endpoints behind it, in its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<SelectorSpec>,
    /// Addresses behind it, for a service without a selector.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub addresses: BTreeSet<IpAddr>,
}

/// Every known service.
pub type Services = BTreeMap<ServiceName, Service>;

/// Who stands behind a service.
pub(super) enum Behind<'a> {
    Endpoints { namespace: &'a str, selector: &'a SelectorSpec },
    Addresses(Vec<Prefix>),
}

/// Who stands behind the services that a rule of a namespace names.
pub(super) fn behind<'a>(services: &'a Services, wanted: &ServiceRef, own: Option<&str>) -> Vec<Behind<'a>> {
    let who = |((namespace, _), service): (&'a ServiceName, &'a Service)| match &service.selector {
        Some(selector) => Behind::Endpoints { namespace, selector },
        None => Behind::Addresses(service.addresses.iter().map(|ip| Prefix::address(*ip)).collect()),
    };
    match wanted {
        ServiceRef::K8sService { service_name, namespace } => {
            let namespace = namespace.as_deref().or(own).unwrap_or("default");
            services.get_key_value(&(namespace.to_owned(), service_name.clone())).map(who).into_iter().collect()
        }
        ServiceRef::K8sServiceSelector { selector, namespace } => {
            let (selector, namespace) = (selector.selector(), namespace.as_deref().or(own));
            let hit = |((of, _), s): &(&ServiceName, &Service)| namespace.is_none_or(|n| n == of) && selector.matches(&s.labels);
            services.iter().filter(hit).map(who).collect()
        }
    }
}
