// SPDX-License-Identifier: Apache-2.0
//! `pilus service` and `pilus node`.

use crate::args::{NodeCommand, ServiceCommand};
use crate::failure::Failure;
use crate::output::{Output, note};
use pilus_api::Client;
use pilus_api::types::{NodeModel, NodeRequest, ServiceBackend, ServiceModel, ServiceRequest};
use std::net::IpAddr;

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(",")
}

fn behind(s: &ServiceModel) -> String {
    match &s.selector {
        Some(labels) => labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","),
        None => list(s.backends.iter().map(|b| b.address)),
    }
}

fn service_details(out: &mut Output, s: &ServiceModel) -> std::io::Result<()> {
    let behind = (if s.selector.is_some() { "Selector" } else { "Backends" }, behind(s));
    out.fields(&[("Service", s.id.clone()), ("Labels", s.labels.join(" ")), behind])
}

/// Runs one of the commands about services.
pub async fn service(client: &Client, out: &mut Output, command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::List => out.show(&client.services().await?, |out, services| {
            let kind = |s: &ServiceModel| if s.selector.is_some() { "selector" } else { "backends" };
            let row = |s: &ServiceModel| vec![s.id.clone(), kind(s).to_owned(), behind(s), s.labels.join(",")];
            out.table(&["service", "by", "behind", "labels"], &services.iter().map(row).collect::<Vec<_>>())
        }),
        ServiceCommand::Get { service } => out.show(&client.service(&service).await?, service_details),
        ServiceCommand::Update(args) => {
            let request = ServiceRequest {
                labels: args.labels,
                selector: (!args.selector.is_empty()).then(|| args.selector.into_iter().collect()),
                backends: args.backend.into_iter().map(|address| ServiceBackend { address }).collect(),
            };
            let service = client.put_service(&args.service, &request).await?;
            service.warnings.iter().for_each(|w| note(w));
            out.show(&service, service_details)
        }
        ServiceCommand::Delete { services } => {
            for service in &services {
                client.delete_service(service).await?;
            }
            out.show(&services, |out, services| services.iter().try_for_each(|s| out.line(&format!("Deleted service {s}"))))
        }
    }
}

fn node_details(out: &mut Output, n: &NodeModel) -> std::io::Result<()> {
    let addresses = list::<IpAddr>(n.addresses.iter().copied());
    out.fields(&[("Node", n.name.clone()), ("Addresses", addresses), ("Identity", n.identity.to_string()), ("Labels", n.labels.join(" "))])
}

/// Runs one of the commands about nodes.
pub async fn node(client: &Client, out: &mut Output, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List => out.show(&client.nodes().await?, |out, nodes| {
            let place = |n: &NodeModel| if n.local { "this" } else { "other" };
            let row = |n: &NodeModel| {
                vec![
                    n.name.clone(),
                    place(n).to_owned(),
                    n.identity.to_string(),
                    list::<IpAddr>(n.addresses.iter().copied()),
                    n.labels.join(","),
                ]
            };
            out.table(&["name", "node", "identity", "addresses", "labels"], &nodes.iter().map(row).collect::<Vec<_>>())
        }),
        NodeCommand::Update { name, addresses, labels } => {
            out.show(&client.put_node(&name, &NodeRequest { addresses, labels }).await?, node_details)
        }
        NodeCommand::Delete { names } => {
            for name in &names {
                client.delete_node(name).await?;
            }
            out.show(&names, |out, names| names.iter().try_for_each(|n| out.line(&format!("Deleted node {n}"))))
        }
    }
}
