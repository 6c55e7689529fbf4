// SPDX-License-Identifier: Apache-2.0
//! `pilus policy`.

use super::{LONGEST_WAIT, non_empty};
use clap::{Args, Subcommand};

/// `pilus policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Import rules: all of them or none
    Import(ImportArgs),
    /// Say what an import would say, and change nothing; exits 1 if it would be refused
    #[command(
        after_long_help = "Examples:\n  pilus policy validate policies/\n  pilus policy validate web.yaml -o json\n\nWhere no agent runs, as in a CI job, pilus-agent --validate policies/ says the same."
    )]
    Validate {
        /// Files, directories, or - for standard input
        #[arg(value_name = "PATH", required = true, value_parser = non_empty)]
        paths: Vec<String>,
    },
    /// Say which verdicts an import would change, and change nothing
    #[command(after_long_help = "Examples:\n  pilus policy diff web.yaml\n\nEach line is for the endpoints named: what becomes of \
        connections with a peer on these ports.")]
    Diff {
        /// Files, directories, or - for standard input
        #[arg(value_name = "PATH", required = true, value_parser = non_empty)]
        paths: Vec<String>,
    },
    /// Say what becomes of a connection, and which rule decides
    #[command(
        long_about = "Say what becomes of a connection, and which rule decides.\n\n\
        Asks the rules, then the kernel's tables, and says where the two disagree (they must not; exits 1 then).",
        after_long_help = "Examples:\n  pilus policy explain --from web --to db --dport 5432/tcp\n  \
        pilus policy explain --from web --to 192.0.2.7 --dport 443/tcp\n  pilus policy explain --from host --to web --dport 8/icmp"
    )]
    Explain {
        /// Who opens it: an endpoint, an address, identity:N, or host, world, remote-node, ...
        #[arg(long, value_name = "WHO", value_parser = non_empty)]
        from: String,
        /// To whom
        #[arg(long, value_name = "WHO", value_parser = non_empty)]
        to: String,
        /// Port and protocol; for ICMP the type
        #[arg(long, value_name = "PORT/PROTOCOL", value_parser = non_empty)]
        dport: String,
    },
    /// Show the rules in force
    Get {
        /// Only rules that carry this label; repeatable
        #[arg(short, long = "label", value_name = "LABEL", value_parser = non_empty)]
        labels: Vec<String>,
    },
    /// Remove rules
    #[command(after_long_help = "Examples:\n  pilus policy delete app=shop\n  pilus policy delete --all")]
    #[command(group(clap::ArgGroup::new("which").required(true).args(["labels", "all"])))]
    Delete {
        /// Labels, all of which a rule must carry to be removed
        #[arg(value_name = "LABEL", value_parser = non_empty)]
        labels: Vec<String>,
        /// Every rule
        #[arg(long)]
        all: bool,
    },
    /// Wait until every endpoint has realised a revision
    Wait {
        /// The revision that an import printed
        revision: u64,
        /// How long to wait
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=LONGEST_WAIT))]
        timeout: u64,
    },
}

/// `pilus policy import`.
#[derive(Args, Debug)]
#[command(
    long_about = "Import rules: all of them or none.\n\n\
    Takes CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and NetworkPolicy objects and bare lists of rules, as YAML or JSON, \
    any number of documents in a file. Of a directory, the files *.yaml, *.yml and *.json in it are taken, in the order of their names.",
    after_long_help = "Examples:\n  pilus policy import web.yaml --wait\n  pilus policy import /etc/pilus/policies\n  \
    kubectl get cnp -A -o yaml | pilus policy import -"
)]
pub struct ImportArgs {
    /// Files, directories, or - for standard input
    #[arg(value_name = "PATH", required = true, value_parser = non_empty)]
    pub paths: Vec<String>,
    /// Return when every endpoint enforces the rules
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait", value_parser = clap::value_parser!(u64).range(..=LONGEST_WAIT))]
    pub timeout: u64,
}
