// SPDX-License-Identifier: Apache-2.0
//! The command line: every command, flag and help text.

pub mod endpoint;
pub mod node;
pub mod policy;
pub mod tables;

pub use endpoint::EndpointCommand;
pub use node::{BpfCommand, MetricsCommand, MonitorArgs, StatusArgs, TemplateCommand};
pub use policy::PolicyCommand;
pub use tables::{NodeCommand, ServiceCommand};

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Longest time that a command waits, seconds. The agent waits no longer either.
const LONGEST_WAIT: u64 = 3600;

/// Client of pilus-agent: container networking and security with eBPF.
#[derive(Debug, Parser)]
#[command(name = "pilus", version, subcommand_required = true, arg_required_else_help = true)]
#[command(long_about = "Client of pilus-agent: container networking and security with eBPF.\n\n\
    It needs no privileges of its own, only access to the agent's socket. \
    The exit status is 0 when done, 1 when something failed or was not found, 2 for wrong usage.")]
pub struct Cli {
    /// What to print, where and how.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Args, Debug)]
pub struct Global {
    /// Socket of the agent
    #[arg(long, global = true, env = "PILUS_SOCKET", hide_env_values = true, value_name = "PATH", default_value = pilus_api::client::DEFAULT_SOCKET)]
    #[arg(help_heading = "Global options")]
    pub socket: PathBuf,
    /// Output format
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value = "table", help_heading = "Global options")]
    pub output: Format,
    /// Leave out the header line of tables
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_headers: bool,
    /// Colour the output
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto", help_heading = "Global options")]
    pub color: Color,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// The agent's answer as JSON; one object a line where output never ends
    Json,
    /// The agent's answer as YAML
    Yaml,
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Also into files and pipes
    Always,
    /// Not at all
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show whether the agent is well; exits 1 if not
    Status(StatusArgs),
    /// Show the versions of client and agent
    Version,
    /// Connect containers and look at them
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Show the numbers that stand for sets of labels
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Say who may talk to whom
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Say who is behind services that rules name
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Say which other nodes there are
    #[command(subcommand)]
    Node(NodeCommand),
    /// Look at what the kernel's maps hold
    #[command(subcommand)]
    Bpf(BpfCommand),
    /// Show what the agent and the datapath count
    #[command(subcommand)]
    Metrics(MetricsCommand),
    /// Follow what happens to packets
    Monitor(MonitorArgs),
    /// Show or change options of the agent
    #[command(
        after_long_help = "Examples:\n  pilus config\n  pilus config PolicyEnforcement=always\n  pilus config policy-audit-mode=true\n\nThe column CHANGEABLE says what can be changed while the agent runs."
    )]
    Config {
        /// Options to change; none shows all, e.g. PolicyEnforcement=default|always|never
        #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
        options: Vec<(String, String)>,
    },
    /// Try and apply edited datapath templates
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Remove everything that Pilus made on this node
    #[command(long_about = "Remove everything that Pilus made on this node: programs, maps, devices, routes, sysctls.\n\n\
        Containers lose their network. When the agent does not run, use `pilus-agent --cleanup`.")]
    Cleanup {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Print a script that completes this program's arguments in a shell
    #[command(after_long_help = "Examples:\n  pilus completion bash > /usr/share/bash-completion/completions/pilus\n  \
        pilus completion zsh > /usr/share/zsh/site-functions/_pilus")]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages, one per command
    #[command(hide = true)]
    Man {
        /// Directory to write into; made if absent
        dir: PathBuf,
    },
}

/// `pilus identity`.
#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// List identities and their labels
    List,
    /// Show one identity
    Get {
        /// Number of the identity
        id: u32,
    },
}

/// Splits `KEY=VALUE`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Turns `257`, `web` or `ipv4:10.1.2.3` into a reference that the API takes.
pub fn reference(text: &str) -> Result<String, String> {
    const KINDS: [&str; 5] = ["name:", "container-id:", "pod-name:", "ipv4:", "ipv6:"];
    if text.is_empty() {
        return Err("expected an id or a name".to_owned());
    }
    match KINDS.iter().find_map(|kind| text.strip_prefix(kind)) {
        Some("") => Err(format!("nothing follows {text}")),
        Some(_) => Ok(text.to_owned()),
        None if text.bytes().all(|b| b.is_ascii_digit()) => Ok(text.to_owned()),
        None => Ok(format!("name:{text}")),
    }
}

/// Refuses an empty word.
pub fn non_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("expected a value".to_owned()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (given, expected) in [
            ("257", Some("257")),
            ("web", Some("name:web")),
            ("name:257", Some("name:257")),
            ("web:1", Some("name:web:1")),
            ("pod-name:ns/web", Some("pod-name:ns/web")),
            ("ipv6:fd00::1", Some("ipv6:fd00::1")),
            ("ipv4:", None),
            ("", None),
        ] {
            assert_eq!(reference(given).ok().as_deref(), expected, "{given}");
        }
    }

    #[test]
    fn pairs() {
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(key_value("a="), Ok(("a".into(), String::new())));
        assert!(key_value("=b").is_err() && key_value("a").is_err());
    }
}
