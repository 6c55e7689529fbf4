// SPDX-License-Identifier: Apache-2.0
//! `pilus service` and `pilus node`, and how ports are named.

use super::{key_value, non_empty};
use clap::{Args, Subcommand};
use pilus_api::types::NamedPort;
use std::net::IpAddr;

/// `pilus service`.
#[derive(Debug, Subcommand)]
#[command(
    after_long_help = "A service S is NAMESPACE/NAME, or NAME in the namespace default. Rules with toServices mean who is behind it."
)]
pub enum ServiceCommand {
    /// List services
    List,
    /// Show one service
    Get {
        /// The service
        #[arg(value_name = "S", value_parser = non_empty)]
        service: String,
    },
    /// Make a service known, or say anew who is behind it; returns when rules follow
    Update(ServiceArgs),
    /// Forget services
    Delete {
        /// The services
        #[arg(value_name = "S", required = true, value_parser = non_empty)]
        services: Vec<String>,
    },
}

/// `pilus service update`.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:\n  pilus service update shop/web --selector app=web\n  \
    pilus service update billing --backend 192.0.2.10 --backend 2001:db8::10 --label kind=outside")]
#[command(group(clap::ArgGroup::new("behind").required(true).multiple(true).args(["selector", "backend"])))]
pub struct ServiceArgs {
    /// The service
    #[arg(value_name = "S", value_parser = non_empty)]
    pub service: String,
    /// Label of the endpoints behind it, in its namespace; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, conflicts_with = "backend")]
    pub selector: Vec<(String, String)>,
    /// Address behind it; repeatable
    #[arg(long, value_name = "ADDRESS")]
    pub backend: Vec<IpAddr>,
    /// Label of the service itself; repeatable
    #[arg(short, long = "label", value_name = "LABEL", value_parser = non_empty)]
    pub labels: Vec<String>,
}

/// `pilus node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List this node and those that were told of
    List,
    /// Make another node known, or say anew what it is; returns when its addresses are told apart
    #[command(after_long_help = "Examples:\n  pilus node update db1 --address 192.0.2.20 --address 2001:db8::20 --label role=db")]
    Update {
        /// Name of the node
        #[arg(value_parser = non_empty)]
        name: String,
        /// Address of it; repeatable
        #[arg(long = "address", value_name = "ADDRESS", required = true)]
        addresses: Vec<IpAddr>,
        /// Label, for rules with fromNodes and toNodes; repeatable
        #[arg(short, long = "label", value_name = "LABEL", value_parser = non_empty)]
        labels: Vec<String>,
    },
    /// Forget other nodes
    Delete {
        /// Names of the nodes
        #[arg(value_name = "NAME", required = true, value_parser = non_empty)]
        names: Vec<String>,
    },
}

/// Reads `NAME=80/tcp`.
pub fn named_port(text: &str) -> Result<NamedPort, String> {
    let parts = text.split_once('=').and_then(|(name, port)| Some((name, port.split_once('/')?)));
    let bad = || "expected NAME=PORT/PROTOCOL such as http=80/tcp".to_owned();
    let (name, (port, protocol)) = parts.filter(|(name, _)| !name.is_empty()).ok_or_else(bad)?;
    let port = port.parse().map_err(|_| bad())?;
    Ok(NamedPort { name: name.to_owned(), port, protocol: protocol.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named() {
        let port = named_port("http=80/tcp").unwrap();
        assert_eq!((port.name.as_str(), port.port, port.protocol.as_str()), ("http", 80, "tcp"));
        for bad in ["http", "http=80", "=80/tcp", "http=x/tcp", "http=70000/tcp"] {
            assert!(named_port(bad).is_err(), "{bad}");
        }
    }
}
