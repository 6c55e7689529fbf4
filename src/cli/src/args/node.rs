// SPDX-License-Identifier: Apache-2.0
//! `pilus status`, `bpf`, `monitor` and `template`.

use super::{LONGEST_WAIT, reference};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// `pilus status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print only the state
    #[arg(long, conflicts_with = "verbose")]
    pub brief: bool,
    /// Print also what is of interest when something is wrong
    #[arg(long)]
    pub verbose: bool,
    /// Return when the agent is well
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, or for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=LONGEST_WAIT))]
    pub timeout: u64,
}

/// `pilus bpf`.
#[derive(Debug, Subcommand)]
pub enum BpfCommand {
    /// Connections
    #[command(subcommand)]
    Ct(CtCommand),
    /// Rules as the programs look them up
    #[command(subcommand)]
    Policy(ListCommand),
    /// Identity and location of addresses
    #[command(subcommand)]
    Ipcache(ListCommand),
    /// Rows of endpoints
    #[command(subcommand)]
    Endpoint(ListCommand),
    /// Masqueraded connections: the container's end, and the node's in its place
    #[command(subcommand)]
    Nat(ListCommand),
    /// Counters of packets and drops
    #[command(subcommand)]
    Metrics(ListCommand),
}

/// `pilus bpf ct`.
#[derive(Clone, Debug, Subcommand)]
pub enum CtCommand {
    /// List connections
    #[command(
        long_about = "List connections, one line each: who opened it to whom, how it stands, and what went each way (packets/bytes).\n\n\
        IDLE is the time since a packet was seen, EXPIRES the time until the entry goes if none comes (seconds). \
        The agent's options flow-timeout-… set it; see `pilus config`."
    )]
    List(CtOf),
    /// Forget connections; policy judges their next packets anew
    Flush(CtOf),
}

/// Which connections.
#[derive(Args, Clone, Debug)]
pub struct CtOf {
    /// Only those of this endpoint
    #[arg(long, value_name = "E", value_parser = reference)]
    pub endpoint: Option<String>,
}

/// `pilus bpf MAP`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ListCommand {
    /// List the entries
    List,
}

/// `pilus metrics`.
#[derive(Clone, Debug, Subcommand)]
pub enum MetricsCommand {
    /// List all samples; Prometheus gets the same from the agent's option metrics-addr
    #[command(after_long_help = "Examples:\n  pilus metrics list\n  pilus metrics list flow_table\n  pilus metrics list --all -o json")]
    List {
        /// Only names that contain this
        #[arg(value_name = "TEXT")]
        name: Option<String>,
        /// Also those that are zero
        #[arg(long)]
        all: bool,
    },
}

/// `pilus monitor`.
#[derive(Args, Debug)]
#[command(
    long_about = "Follow what happens to packets, one event a line, until interrupted. Times are UTC.\n\n\
    Dropped packets are reported unless an endpoint's option DropNotification is false; \
    for those let through set its option Trace, for decisions of policy PolicyVerdict (see `pilus endpoint config --help`). \
    An event carries the first 128 bytes of its packet. What could not be kept is told as LOST, with a number.",
    after_long_help = "Examples:\n  pilus monitor -t drop\n  pilus monitor --related-to web --hex\n  pilus monitor -t drop,trace --from web --to ipv6:fd00::4 -v\n  pilus monitor -t drop -n 1 -o json\n  \
    pilus monitor --related-to web --pcap web.pcap\n  pilus monitor --pcap - | tcpdump -n -r -"
)]
pub struct MonitorArgs {
    /// Only events of these types, comma separated or repeated
    #[arg(short = 't', long = "type", value_name = "TYPE", value_enum, value_delimiter = ',')]
    pub types: Vec<EventType>,
    /// Only packets from this endpoint; repeatable
    #[arg(long, value_name = "E", value_parser = reference)]
    pub from: Vec<String>,
    /// Only packets to this endpoint; repeatable
    #[arg(long, value_name = "E", value_parser = reference)]
    pub to: Vec<String>,
    /// Only packets from or to this endpoint; repeatable
    #[arg(long, value_name = "E", value_parser = reference)]
    pub related_to: Vec<String>,
    /// Print the first bytes of each packet
    #[arg(long)]
    pub hex: bool,
    /// Write the packets into this file in pcap format; `-` is standard output, and then nothing else is printed there
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// Print also interfaces and lower headers, and at the end a summary on stderr
    #[arg(short, long)]
    pub verbose: bool,
    /// End after this many events
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// Types of events that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventType {
    /// A packet was dropped
    Drop,
    /// A packet passed a point of the datapath
    Trace,
    /// Policy decided about a new connection
    PolicyVerdict,
    /// A program tells what it does
    Debug,
    /// A packet as it was at some point
    Capture,
    /// A request passed the L7 proxy
    L7,
    /// The agent tells what it does
    Agent,
}

impl EventType {
    /// Name in the API.
    pub fn name(self) -> &'static str {
        match self {
            EventType::Drop => "drop",
            EventType::Trace => "trace",
            EventType::PolicyVerdict => "policy-verdict",
            EventType::Debug => "debug",
            EventType::Capture => "capture",
            EventType::L7 => "l7",
            EventType::Agent => "agent",
        }
    }
}

/// `pilus template`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum TemplateCommand {
    /// Show which templates run, and whether those on disk differ
    Status,
    /// Build and verify the edited templates without running them; exits 1 if they do not
    Check,
    /// Build the edited templates and swap them in under traffic; exits 1 and changes nothing if they do not build
    Apply,
}
