// SPDX-License-Identifier: Apache-2.0
//! `pilus endpoint`.

use super::confirm;
use crate::args::EndpointCommand;
use crate::args::endpoint::{AddArgs, DeleteArgs};
use crate::failure::Failure;
use crate::output::{Output, note};
use pilus_api::Client;
use pilus_api::client::Options;
use pilus_api::types::{EndpointModel, EndpointRequest, LabelsRequest};
use serde::Serialize;
use std::io;
use std::path::Path;

/// Runs one of the commands.
pub async fn run(client: &Client, out: &mut Output, command: EndpointCommand) -> Result<(), Failure> {
    match command {
        EndpointCommand::List => out.show(&client.endpoints().await?, |out, endpoints| list(out, endpoints)),
        EndpointCommand::Get(one) => out.show(&client.endpoint(&one.endpoint).await?, details),
        EndpointCommand::Add(args) => add(client, out, args).await,
        EndpointCommand::Delete(args) => delete(client, out, args).await,
        EndpointCommand::Labels { endpoint, add, delete } => {
            let labels = if add.is_empty() && delete.is_empty() {
                client.endpoint_labels(&endpoint).await?
            } else {
                client.change_labels(&endpoint, &LabelsRequest { add, delete }).await?.labels
            };
            out.show(&labels, |out, labels| labels.iter().try_for_each(|label| out.line(label)))
        }
        EndpointCommand::Config { endpoint, options } => {
            let options: Options = if options.is_empty() {
                client.endpoint_config(&endpoint).await?
            } else {
                client.set_endpoint_config(&endpoint, &options.into_iter().collect()).await?
            };
            out.show(&options, |out, options| {
                let rows: Vec<_> = options.iter().map(|(k, v)| vec![k.clone(), v.clone()]).collect();
                out.table(&["option", "value"], &rows)
            })
        }
        EndpointCommand::Ports { endpoint, ports, clear } => {
            let ports = if ports.is_empty() && !clear {
                client.endpoint_ports(&endpoint).await?
            } else {
                client.set_endpoint_ports(&endpoint, &ports).await?
            };
            out.show(&ports, |out, ports| {
                let rows: Vec<_> = ports.iter().map(|p| vec![p.name.clone(), p.port.to_string(), p.protocol.clone()]).collect();
                out.table(&["name", "port", "protocol"], &rows)
            })
        }
        EndpointCommand::Health(one) => {
            let health = client.endpoint_health(&one.endpoint).await?;
            out.show(&health, |out, h| out.fields(&[("Health", h.health.clone()), ("State", h.state.clone())]))?;
            match health.health.as_str() {
                "ok" => Ok(()),
                wrong => Err(Failure::new(format!("endpoint {} is not well: {wrong}", said(&one.endpoint)))),
            }
        }
        EndpointCommand::Log(one) => out.show(&client.endpoint_log(&one.endpoint).await?, |out, log| {
            let rows: Vec<_> = log.iter().map(|e| vec![e.time.clone(), e.state.clone(), e.message.clone()]).collect();
            out.table(&["time", "state", "message"], &rows)
        }),
        EndpointCommand::Regenerate(one) => out.show(&client.regenerate(&one.endpoint).await?, |out, endpoint| {
            out.line(&format!("Endpoint {} ({}): {}", endpoint.id, endpoint.name, endpoint.state))
        }),
        EndpointCommand::Header(one) => out.show(&client.endpoint_header(&one.endpoint).await?, |out, header| out.text(&header.text)),
    }
}

async fn add(client: &Client, out: &mut Output, args: AddArgs) -> Result<(), Failure> {
    let wait = !args.no_wait;
    let request = EndpointRequest {
        netns: namespace(args.netns.as_deref(), args.pid)?,
        name: args.name,
        labels: args.labels,
        ports: args.ports,
        ifname: args.ifname,
        ipv4: args.ipv4,
        ipv6: args.ipv6,
        container_id: args.container_id,
        build: args.build.map(Into::into),
        ..EndpointRequest::default()
    };
    let put = client.put_endpoint(&request, wait).await?;
    if !put.created {
        note(&format!("endpoint {} existed already", put.endpoint.name));
    }
    out.show(&put.endpoint, |out, endpoint| {
        out.line(format!("Endpoint {} ({}): {}", endpoint.id, endpoint.name, addresses(endpoint)).trim_end())
    })
}

/// The namespace as the agent can open it: absolute, and not relative to this process.
fn namespace(netns: Option<&str>, pid: Option<u32>) -> Result<String, Failure> {
    let path = match (netns, pid) {
        (_, Some(pid)) => return Ok(format!("/proc/{pid}/ns/net")),
        (None, None) => return Err(Failure::Usage("give --netns or --pid".to_owned())),
        (Some(name), None) if !name.contains('/') => return Ok(format!("/run/netns/{name}")),
        (Some(path), None) => path,
    };
    if let Some(rest) = path.strip_prefix("/proc/self/") {
        return Ok(format!("/proc/{}/{rest}", std::process::id()));
    }
    let absolute = std::path::absolute(Path::new(path)).map_err(|e| Failure::new(format!("cannot make {path} absolute: {e}")))?;
    let text = absolute.into_os_string().into_string();
    text.map_err(|path| Failure::new(format!("{} is not UTF-8, which the API needs", path.to_string_lossy())))
}

#[derive(Serialize)]
struct Deletion {
    endpoint: String,
    deleted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

async fn delete(client: &Client, out: &mut Output, args: DeleteArgs) -> Result<(), Failure> {
    let endpoints = if args.all {
        confirm(args.yes, "disconnect every endpoint of this node")?;
        client.endpoints().await?.iter().map(|e| e.id.to_string()).collect()
    } else {
        args.endpoints
    };
    let mut done = Vec::new();
    for endpoint in endpoints {
        let answer = client.delete_endpoint(&endpoint, !args.no_wait).await;
        if let Err(error) = answer {
            if error.is_connect() {
                return Err(error.into());
            }
            done.push(Deletion { endpoint: said(&endpoint).to_owned(), deleted: false, error: Some(error.to_string()) });
            continue;
        }
        let deleted = answer.is_ok_and(|deleted| deleted);
        if !deleted {
            note(&format!("there is no endpoint {}", said(&endpoint)));
        }
        done.push(Deletion { endpoint: said(&endpoint).to_owned(), deleted, error: None });
    }
    out.show(&done, |out, done| done.iter().filter(|d| d.deleted).try_for_each(|d| out.line(&format!("Deleted endpoint {}", d.endpoint))))?;
    let failed: Vec<String> = done.iter().filter_map(|d| d.error.as_ref().map(|e| format!("endpoint {}: {e}", d.endpoint))).collect();
    if failed.is_empty() { Ok(()) } else { Err(Failure::new(failed.join("; "))) }
}

/// A reference as the user said it.
fn said(reference: &str) -> &str {
    reference.strip_prefix("name:").unwrap_or(reference)
}

fn addresses(endpoint: &EndpointModel) -> String {
    let v6 = endpoint.ipv6.map(|a| a.to_string());
    let v4 = endpoint.ipv4.map(|a| a.to_string());
    v6.into_iter().chain(v4).collect::<Vec<_>>().join(" ")
}

fn list(out: &mut Output, endpoints: &[EndpointModel]) -> io::Result<()> {
    let headers = ["id", "name", "state", "identity", "ingress", "egress", "ipv6", "ipv4", "labels"];
    let row = |e: &EndpointModel| {
        vec![
            e.id.to_string(),
            e.name.clone(),
            e.state.clone(),
            e.identity.id.to_string(),
            e.policy.ingress.clone(),
            e.policy.egress.clone(),
            e.ipv6.map(|a| a.to_string()).unwrap_or_default(),
            e.ipv4.map(|a| a.to_string()).unwrap_or_default(),
            e.labels.join(","),
        ]
    };
    out.table(&headers, &endpoints.iter().map(row).collect::<Vec<_>>())
}

fn details(out: &mut Output, e: &EndpointModel) -> io::Result<()> {
    let i = &e.interface;
    let options: Vec<String> = e.options.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut fields = vec![
        ("ID", e.id.to_string()),
        ("Name", e.name.clone()),
        ("State", e.state.clone()),
        ("Health", e.health.clone()),
        ("Identity", format!("{} [{}]", e.identity.id, e.identity.labels.join(" "))),
        ("Labels", e.labels.join(" ")),
        ("Addresses", addresses(e)),
        ("Namespace", e.netns.clone()),
        ("Interface", format!("{} (index {}, MAC {}, MTU {})", i.name, i.index, i.host_mac, i.mtu)),
        ("Inside", format!("{} (MAC {})", i.container_name, i.mac)),
        ("Policy", format!("revision {}, ingress {}, egress {}", e.policy.revision, e.policy.ingress, e.policy.egress)),
        ("Datapath", format!("{} build {}, attached by {}", e.datapath.build, e.datapath.shape_key, or_none(&e.datapath.attach))),
        ("Options", options.join(" ")),
    ];
    if !e.ports.is_empty() {
        let ports: Vec<String> = e.ports.iter().map(|p| format!("{}={}/{}", p.name, p.port, p.protocol)).collect();
        fields.insert(6, ("Ports", ports.join(" ")));
    }
    if let Some(ip) = e.nat46 {
        fields.insert(7, ("NAT46", format!("{ip} stands for it in IPv4")));
    }
    if let Some(id) = &e.container_id {
        fields.insert(2, ("Container", id.clone()));
    }
    out.fields(&fields)?;
    for p in &e.datapath.programs {
        out.line(&format!("Program {} id {} tag {}: {} instructions, {} bytes", p.name, p.id, p.tag, p.instructions, p.jited_bytes))?;
    }
    Ok(())
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "nothing yet" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_named_so_that_the_agent_finds_them() {
        let path = |netns| namespace(Some(netns), None).unwrap();
        assert_eq!(path("web"), "/run/netns/web");
        assert_eq!(path("/run/docker/netns/1"), "/run/docker/netns/1");
        assert_eq!(path("/proc/self/ns/net"), format!("/proc/{}/ns/net", std::process::id()));
        assert!(path("./web").starts_with('/') && path("./web").ends_with("/web"));
        assert_eq!(namespace(None, Some(7)).unwrap(), "/proc/7/ns/net");
        assert!(namespace(None, None).is_err());
    }
}
