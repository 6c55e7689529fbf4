// SPDX-License-Identifier: Apache-2.0
//! `pilus endpoint`.

use super::tables::named_port;
use super::{key_value, non_empty, reference};
use clap::{Args, Subcommand, ValueEnum};
use pilus_api::types::{Build, NamedPort};

/// `pilus endpoint`.
#[derive(Debug, Subcommand)]
#[command(
    after_long_help = "An endpoint E is named by its id (257), its name (web or name:web), container-id:ID, pod-name:NAMESPACE/NAME, \
    ipv4:ADDRESS or ipv6:ADDRESS."
)]
pub enum EndpointCommand {
    /// List endpoints
    List,
    /// Show one endpoint
    Get(One),
    /// Connect a network namespace
    Add(AddArgs),
    /// Disconnect endpoints; what is not there is no error
    #[command(
        after_long_help = "Examples:\n  pilus endpoint delete web\n  pilus endpoint delete 257 name:db\n  pilus endpoint delete --all --yes"
    )]
    Delete(DeleteArgs),
    /// Show or change the labels of an endpoint
    #[command(after_long_help = "Examples:\n  pilus endpoint labels web\n  pilus endpoint labels web -a app=shop -a tier=front -d debug")]
    Labels {
        /// The endpoint
        #[arg(value_name = "E", value_parser = reference)]
        endpoint: String,
        /// Label to add, [SOURCE:]KEY[=VALUE]
        #[arg(short, long, value_name = "LABEL", value_parser = non_empty)]
        add: Vec<String>,
        /// Key of a label to remove, [SOURCE:]KEY
        #[arg(short, long, value_name = "KEY", value_parser = non_empty)]
        delete: Vec<String>,
    },
    /// Show or change the options of an endpoint
    #[command(
        after_long_help = "Options:\n  Trace=off|flow|all            events for packets let through: none, what is new about a flow, all\n  \
        DropNotification=true|false   events for dropped packets\n  PolicyVerdict=true|false      events for decisions about new connections\n  \
        PolicyAudit=true|false        report what policy denies, but let it through\n  Build=shared|own              run the shared program or one compiled for it\n\n\
        Examples:\n  pilus endpoint config web\n  pilus endpoint config web Trace=all PolicyAudit=true"
    )]
    Config {
        /// The endpoint
        #[arg(value_name = "E", value_parser = reference)]
        endpoint: String,
        /// Options to change; none shows all
        #[arg(value_name = "OPTION=VALUE", value_parser = key_value)]
        options: Vec<(String, String)>,
    },
    /// Show or set the names of an endpoint's ports, which rules may use
    #[command(after_long_help = "Examples:\n  pilus endpoint ports web\n  pilus endpoint ports web http=8080/tcp dns=5353/udp\n  \
        pilus endpoint ports web --clear")]
    Ports {
        /// The endpoint
        #[arg(value_name = "E", value_parser = reference)]
        endpoint: String,
        /// All names that its ports are to have; none shows them
        #[arg(value_name = "NAME=PORT/PROTOCOL", value_parser = named_port)]
        ports: Vec<NamedPort>,
        /// Take all names away
        #[arg(long, conflicts_with = "ports")]
        clear: bool,
    },
    /// Show whether an endpoint is well; exits 1 if not
    Health(One),
    /// Show what happened to an endpoint
    Log(One),
    /// Render, build and attach an endpoint's programs again
    Regenerate(One),
    /// Print the C header made for an endpoint
    Header(One),
}

/// A command about one endpoint.
#[derive(Args, Debug)]
pub struct One {
    /// The endpoint: id, name, container-id:…, ipv4:… or ipv6:…
    #[arg(value_name = "E", value_parser = reference)]
    pub endpoint: String,
}

/// `pilus endpoint add`.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:\n  ip netns add web && pilus endpoint add web --netns web --label app=web\n  \
    pilus endpoint add db --pid 4711 --label app=db --ipv4 none\n\n\
    Adding what exists already with the same properties is no error.")]
#[command(group(clap::ArgGroup::new("namespace").required(true).args(["netns", "pid"])))]
pub struct AddArgs {
    /// Name of the endpoint
    #[arg(value_parser = non_empty)]
    pub name: String,
    /// Network namespace: a path, or a name that `ip netns` knows
    #[arg(long, value_name = "PATH", value_parser = non_empty)]
    pub netns: Option<String>,
    /// Process whose network namespace is connected
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,
    /// Label, [SOURCE:]KEY[=VALUE]; repeatable
    #[arg(short, long = "label", value_name = "LABEL", value_parser = non_empty)]
    pub labels: Vec<String>,
    /// Name of a port, which rules may use; repeatable
    #[arg(short, long = "port", value_name = "NAME=PORT/PROTOCOL", value_parser = named_port)]
    pub ports: Vec<NamedPort>,
    /// Name of the interface inside [default: eth0]
    #[arg(long, value_name = "NAME", value_parser = non_empty)]
    pub ifname: Option<String>,
    /// auto, none or an address of the node's range [default: auto]
    #[arg(long, value_name = "ADDRESS", value_parser = ipv4)]
    pub ipv4: Option<String>,
    /// auto, none (IPv4 alone) or an address of the node's range [default: auto]
    #[arg(long, value_name = "ADDRESS", value_parser = ipv6)]
    pub ipv6: Option<String>,
    /// Id by which a container runtime knows it
    #[arg(long, value_name = "ID", value_parser = non_empty)]
    pub container_id: Option<String>,
    /// Run the shared program or one compiled for this endpoint [default: as the agent is configured]
    #[arg(long, value_enum)]
    pub build: Option<BuildArg>,
    /// Return at once instead of when traffic flows
    #[arg(long)]
    pub no_wait: bool,
    /// Return when traffic flows, which is the default
    #[arg(long, conflicts_with = "no_wait")]
    pub wait: bool,
}

/// `pilus endpoint delete`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["endpoints", "all"])))]
pub struct DeleteArgs {
    /// The endpoints
    #[arg(value_name = "E", value_parser = reference)]
    pub endpoints: Vec<String>,
    /// Every endpoint of the node
    #[arg(long)]
    pub all: bool,
    /// Do not ask before --all
    #[arg(long)]
    pub yes: bool,
    /// Return when it is sure that nothing will be left, instead of when nothing is
    #[arg(long)]
    pub no_wait: bool,
}

/// How the programs of an endpoint are made.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum BuildArg {
    /// One program for all endpoints of the same features
    Shared,
    /// A program compiled for this endpoint alone
    Own,
}

impl From<BuildArg> for Build {
    fn from(build: BuildArg) -> Build {
        match build {
            BuildArg::Shared => Build::Shared,
            BuildArg::Own => Build::Own,
        }
    }
}

fn ipv4(text: &str) -> Result<String, String> {
    match text {
        "auto" | "none" => Ok(text.to_owned()),
        _ => text.parse::<std::net::Ipv4Addr>().map(|a| a.to_string()).map_err(|_| "expected auto, none or an IPv4 address".to_owned()),
    }
}

fn ipv6(text: &str) -> Result<String, String> {
    match text {
        "auto" | "none" => Ok(text.to_owned()),
        _ => text.parse::<std::net::Ipv6Addr>().map(|a| a.to_string()).map_err(|_| "expected auto, none or an IPv6 address".to_owned()),
    }
}
