// SPDX-License-Identifier: Apache-2.0
//! Options: a flag, an environment variable and a key of the YAML file, in that order of precedence.

use crate::datapath::gc::{self, Timeouts};
use crate::datapath::reporting::Settings;
use clap::Parser;
use serde::Deserialize;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// A bad option: which one and what it takes. The agent exits 2.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: option `{option}`: {message}")]
pub struct OptionError {
    pub origin: String,
    pub option: String,
    pub message: String,
}

macro_rules! raw_options {
    ($($(#[doc = $doc:literal])* $field:ident : $ty:ty = $env:literal;)*) => {
        #[derive(Clone, Debug, Default, Deserialize, clap::Args)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        struct Raw {
            $($(#[doc = $doc])* #[arg(long, env = $env)] $field: Option<$ty>,)*
        }

        impl Raw {
            /// What is set here wins over `lower`.
            fn over(self, lower: Raw) -> Raw {
                Raw { $($field: self.$field.or(lower.$field),)* }
            }
        }
    };
}

raw_options! {
    /// Name of this node [default: host name]
    node_name: String = "PILUS_NODE_NAME";
    /// Directory that survives reboots [default: /var/lib/pilus]
    state_dir: PathBuf = "PILUS_STATE_DIR";
    /// Directory that does not survive reboots [default: /run/pilus]
    run_dir: PathBuf = "PILUS_RUN_DIR";
    /// Unix socket of the API [default: RUN_DIR/pilus.sock]
    socket: PathBuf = "PILUS_SOCKET";
    /// Mounted bpffs; pins go under BPF_ROOT/pilus/v1 [default: /sys/fs/bpf]
    bpf_root: PathBuf = "PILUS_BPF_ROOT";
    /// Template tree that users edit [default: the copy installed with the agent]
    template_dir: PathBuf = "PILUS_TEMPLATE_DIR";
    /// IPv6 prefix of this node's containers, at most /112 [default: a random ULA /64, kept in STATE_DIR]
    ipv6_range: String = "PILUS_IPV6_RANGE";
    /// IPv4 prefix of this node's containers, at most /28 [default: 10.N.0.0/16, kept in STATE_DIR]
    ipv4_range: String = "PILUS_IPV4_RANGE";
    /// Give containers an IPv4 address beside the IPv6 one [default: true]
    enable_ipv4: bool = "PILUS_ENABLE_IPV4";
    /// Device that leads out of the node; repeatable [default: the device of the default route, if there is one]
    device: Vec<String> = "PILUS_DEVICE";
    /// bpf: containers' packets pass the host's stack and its netfilter by; stack: they go through both [default: bpf]
    host_routing: String = "PILUS_HOST_ROUTING";
    /// What containers open with the world leaves under the address of the device that it leaves by [default: true]
    masquerade: bool = "PILUS_MASQUERADE";
    /// Prefixes that know containers by their own addresses; repeatable [default: none]
    masquerade_exclude: Vec<String> = "PILUS_MASQUERADE_EXCLUDE";
    /// IPv6 prefix of 96 bits, such as 64:ff9b:1::/96, behind which containers without IPv4 reach IPv4 addresses, and by which these reach them [default: none]
    nat46_range: String = "PILUS_NAT46_RANGE";
    /// Overlay between nodes: disabled [default: disabled]
    tunnel: String = "PILUS_TUNNEL";
    /// MTU of containers, bytes [default: 1500, or the smallest of the default route's device]
    mtu: u16 = "PILUS_MTU";
    /// Devices of containers that are connected from now on: veth, or netkit where the kernel has it [default: veth]
    datapath_mode: String = "PILUS_DATAPATH_MODE";
    /// shared: containers of one shape share a program; own: each has its own [default: shared]
    endpoint_build: String = "PILUS_ENDPOINT_BUILD";
    /// auto, tcx or tc [default: auto]
    attach_mode: String = "PILUS_ATTACH_MODE";
    /// Where state is kept: embedded [default: embedded]
    kvstore: String = "PILUS_KVSTORE";
    /// default: enforced where a rule selects; always; never [default: default]
    enable_policy: String = "PILUS_ENABLE_POLICY";
    /// Report what policy denies, for every endpoint, but let it through [default: false]
    policy_audit_mode: bool = "PILUS_POLICY_AUDIT_MODE";
    /// Whether the host may always reach its containers: auto, always, policy [default: auto]
    allow_localhost: String = "PILUS_ALLOW_LOCALHOST";
    /// Entries of each of the two flow tables when it is first made [default: half a percent of memory each, 65536 to 4194304]
    flow_table_size: u32 = "PILUS_FLOW_TABLE_SIZE";
    /// Idle time of established TCP flows, seconds [default: 21600]
    flow_timeout_tcp: u32 = "PILUS_FLOW_TIMEOUT_TCP";
    /// Idle time of TCP flows that were not answered yet, seconds [default: 60]
    flow_timeout_tcp_open: u32 = "PILUS_FLOW_TIMEOUT_TCP_OPEN";
    /// Idle time of TCP flows after FIN in both directions or RST, seconds [default: 10]
    flow_timeout_tcp_closing: u32 = "PILUS_FLOW_TIMEOUT_TCP_CLOSING";
    /// Idle time of UDP flows that were not answered, seconds [default: 30]
    flow_timeout_udp: u32 = "PILUS_FLOW_TIMEOUT_UDP";
    /// Idle time of UDP flows that were answered, seconds [default: 180]
    flow_timeout_udp_reply: u32 = "PILUS_FLOW_TIMEOUT_UDP_REPLY";
    /// Idle time of ICMP and ICMPv6 flows, seconds [default: 30]
    flow_timeout_icmp: u32 = "PILUS_FLOW_TIMEOUT_ICMP";
    /// Idle time of flows of other protocols, seconds [default: 600]
    flow_timeout_other: u32 = "PILUS_FLOW_TIMEOUT_OTHER";
    /// Idle time of flows that policy denies, seconds [default: 60]
    flow_timeout_deny: u32 = "PILUS_FLOW_TIMEOUT_DENY";
    /// Drops of packets alike (same ends, ports and protocol) are reported once in so many seconds, with their number; 0: each [default: 1]
    drop_interval: u32 = "PILUS_DROP_INTERVAL";
    /// Of each flow of a container with Trace=flow or all, a packet is reported at least once in so many seconds of traffic; 0: not for the time alone [default: 5]
    trace_interval: u32 = "PILUS_TRACE_INTERVAL";
    /// With Trace=all, one of so many packets of each side of an established flow is reported [default: 1]
    trace_sample: u32 = "PILUS_TRACE_SAMPLE";
    /// Address and port for Prometheus, e.g. 127.0.0.1:9780 or [::1]:9780 [default: none]
    metrics_addr: String = "PILUS_METRICS_ADDR";
    /// text or json [default: text]
    log_format: String = "PILUS_LOG_FORMAT";
    /// error, warn, info, debug, trace, or a filter expression [default: info]
    log_level: String = "PILUS_LOG_LEVEL";
}

/// Connects containers and enforces policy between them.
#[derive(Debug, Parser)]
#[command(name = "pilus-agent", version, about, max_term_width = 100, args_override_self = true)]
struct Flags {
    /// YAML file of options [default: /etc/pilus/agent.yaml if present]
    #[arg(long, env = "PILUS_CONFIG")]
    config: Option<PathBuf>,
    /// Remove everything that Pilus ever made on this node, say what, and exit
    #[arg(long)]
    cleanup: bool,
    /// Say what an import of these policy files and directories (-: standard input) would say, and exit with 0 if it would be
    /// taken; needs no privilege and no agent
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with = "cleanup")]
    validate: Vec<String>,
    #[command(flatten)]
    raw: Raw,
}

macro_rules! choice {
    ($(#[doc = $doc:literal])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($variant),* }
        impl $name {
            const EXPECTED: &'static str = concat!($("`", $text, "` "),*);
            pub fn as_str(self) -> &'static str { match self { $(Self::$variant => $text),* } }
        }
        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                match s {
                    $($text => Ok(Self::$variant),)*
                    other => Err(format!("`{other}` is not one of {}", Self::EXPECTED.trim_end().replace("` `", "`, `"))),
                }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
    };
}

choice! {
    /// How programs hang on devices.
    AttachMode { Auto = "auto", Tcx = "tcx", Tc = "tc" }
}
choice! {
    /// How a container's header is compiled.
    EndpointBuild { Shared = "shared", Own = "own" }
}
choice! {
    /// When policy is enforced.
    EnablePolicy { Default = "default", Always = "always", Never = "never" }
}
choice! {
    /// Whether the local host reaches containers whatever policy says.
    AllowLocalhost { Auto = "auto", Always = "always", Policy = "policy" }
}
choice! {
    /// Who routes containers' packets out of the node.
    HostRouting { Bpf = "bpf", Stack = "stack" }
}
choice! {
    /// Shape of log lines.
    LogFormat { Text = "text", Json = "json" }
}
choice! {
    Tunnel { Disabled = "disabled" }
}
choice! {
    /// Kind of containers' devices.
    DatapathMode { Veth = "veth", Netkit = "netkit" }
}
choice! {
    Kvstore { Embedded = "embedded" }
}

/// An address prefix without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix<A> {
    pub base: A,
    pub len: u8,
}

impl<A: fmt::Display> fmt::Display for Prefix<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.len)
    }
}

impl Prefix<Ipv6Addr> {
    /// Whether one of the two lies in the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        let bits = self.len.min(other.len);
        (u128::from(self.base) ^ u128::from(other.base)).checked_shr(128 - u32::from(bits)).unwrap_or(0) == 0
    }
}

fn split_prefix(text: &str) -> Result<(&str, u8), String> {
    let (base, len) = text.split_once('/').ok_or_else(|| format!("`{text}` has no prefix length (ADDRESS/LENGTH)"))?;
    Ok((base, len.parse().map_err(|_| format!("`{len}` is no prefix length"))?))
}

impl std::str::FromStr for Prefix<Ipv6Addr> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (base, len) = split_prefix(text)?;
        let base: Ipv6Addr = base.parse().map_err(|_| format!("`{base}` is no IPv6 address"))?;
        if !(8..=112).contains(&len) {
            return Err(format!("prefix length {len}: takes 8 to 112, so that there is room for containers"));
        }
        if u128::from(base) & (u128::MAX >> len) != 0 {
            return Err(format!("`{text}` has bits set behind the prefix length"));
        }
        Ok(Self { base, len })
    }
}

impl std::str::FromStr for Prefix<Ipv4Addr> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (base, len) = split_prefix(text)?;
        let base: Ipv4Addr = base.parse().map_err(|_| format!("`{base}` is no IPv4 address"))?;
        if !(8..=28).contains(&len) {
            return Err(format!("prefix length {len}: takes 8 to 28, so that there is room for containers"));
        }
        if u32::from(base) & (u32::MAX >> len) != 0 {
            return Err(format!("`{text}` has bits set behind the prefix length"));
        }
        Ok(Self { base, len })
    }
}

/// Everything decided, every value parsed.
#[derive(Clone, Debug)]
pub struct Options {
    pub node_name: String,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub socket: PathBuf,
    pub bpf_root: PathBuf,
    /// `None`: the installed copy, or the one that the agent carries.
    pub template_dir: Option<PathBuf>,
    pub ipv6_range: Option<Prefix<Ipv6Addr>>,
    pub ipv4_range: Option<Prefix<Ipv4Addr>>,
    pub enable_ipv4: bool,
    /// Empty: the default route's.
    pub devices: Vec<String>,
    pub host_routing: HostRouting,
    pub masquerade: bool,
    pub masquerade_exclude: Vec<pilus_model::prefix::Prefix>,
    pub nat46_range: Option<Prefix<Ipv6Addr>>,
    pub mtu: Option<u16>,
    pub datapath_mode: DatapathMode,
    pub endpoint_build: EndpointBuild,
    pub attach_mode: AttachMode,
    pub enable_policy: EnablePolicy,
    pub policy_audit_mode: bool,
    pub allow_localhost: AllowLocalhost,
    pub flow_table_size: u32,
    pub flow_timeouts: Timeouts,
    pub reporting: Settings,
    pub metrics_addr: Option<SocketAddr>,
    pub log_format: LogFormat,
    pub log_level: String,
    pub cleanup: bool,
    /// Policies to look at, instead of anything else.
    pub validate: Vec<String>,
}

const DEFAULT_CONFIG: &str = "/etc/pilus/agent.yaml";

fn read_file(path: &Path) -> Result<Raw, OptionError> {
    let fail = |message: String| OptionError { origin: path.display().to_string(), option: "config".into(), message };
    let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
    if text.trim().is_empty() {
        return Ok(Raw::default());
    }
    serde_saphyr::from_str(&text).map_err(|e| {
        let message = e.to_string().lines().next().unwrap_or_default().to_owned();
        // The key stands before the colon of the line at fault.
        let line = e.location().and_then(|at| text.lines().nth(at.line().saturating_sub(1) as usize));
        match line.and_then(|l| l.split_once(':')).map(|(key, _)| key.trim()) {
            Some(key) if !key.is_empty() => OptionError { option: key.to_owned(), ..fail(message) },
            _ => fail(message),
        }
    })
}

fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_else(|| "localhost".into())
}

impl Options {
    /// From the command line, the environment and the file. Help and usage errors end the process (0 and 2).
    pub fn from_process() -> Result<Self, OptionError> {
        Self::from_flags(Flags::parse())
    }

    /// The same for given arguments (the first is the program's name).
    pub fn from_args<I: IntoIterator<Item = String>>(args: I) -> Result<Self, OptionError> {
        let flags = Flags::try_parse_from(args).map_err(|e| OptionError {
            origin: "command line".into(),
            option: "usage".into(),
            message: e.to_string(),
        })?;
        Self::from_flags(flags)
    }

    fn from_flags(flags: Flags) -> Result<Self, OptionError> {
        let file = match &flags.config {
            Some(path) => read_file(path)?,
            None if Path::new(DEFAULT_CONFIG).exists() => read_file(Path::new(DEFAULT_CONFIG))?,
            None => Raw::default(),
        };
        let raw = flags.raw.over(file);
        fn bad(option: &str, message: String) -> OptionError {
            OptionError { origin: "configuration".into(), option: option.into(), message }
        }
        fn parse<T: std::str::FromStr<Err = String>>(option: &str, value: Option<String>, default: &str) -> Result<T, OptionError> {
            value.as_deref().unwrap_or(default).parse().map_err(|m| bad(option, m))
        }
        fn prefix<T: std::str::FromStr<Err = String>>(option: &str, value: Option<String>) -> Result<Option<T>, OptionError> {
            value.map(|v| v.parse().map_err(|m| bad(option, m))).transpose()
        }
        // Names of what later versions take; today there is one value each.
        parse::<Tunnel>("tunnel", raw.tunnel, "disabled")?;
        parse::<Kvstore>("kvstore", raw.kvstore, "embedded")?;
        if let Some(mtu) = raw.mtu.filter(|m| !(1280..=65535).contains(m)) {
            return Err(bad("mtu", format!("{mtu}: takes 1280 (the least that IPv6 allows) to 65535")));
        }
        let flow_table_size = raw.flow_table_size.unwrap_or_else(gc::default_entries);
        if !(1024..=16 << 20).contains(&flow_table_size) {
            return Err(bad("flow-table-size", format!("{flow_table_size}: takes 1024 to {}", 16 << 20)));
        }
        // In the environment they stand behind one another, with commas.
        let list = |given: Option<Vec<String>>| -> Vec<String> {
            given.into_iter().flatten().flat_map(|d| d.split(',').map(|p| p.trim().to_owned()).collect::<Vec<_>>()).collect()
        };
        let devices = list(raw.device);
        if let Some(name) = devices.iter().find(|d| d.is_empty() || d.len() > 15 || d.contains(['/', ' '])) {
            return Err(bad("device", format!("`{name}` is no name of a device")));
        }
        let excluded = list(raw.masquerade_exclude)
            .into_iter()
            .map(|text| pilus_model::prefix::Prefix::with_length(&text).map_err(|e| bad("masquerade-exclude", e.to_string())));
        let masquerade_exclude = excluded.collect::<Result<Vec<_>, _>>()?;
        let nat46_range: Option<Prefix<Ipv6Addr>> = prefix("nat46-range", raw.nat46_range.filter(|text| !text.is_empty()))?;
        let enable_ipv4 = raw.enable_ipv4.unwrap_or(true);
        if let Some(range) = &nat46_range {
            if range.len != 96 || range.base.is_multicast() || range.base.is_unicast_link_local() || range.base.segments()[0] == 0 {
                return Err(bad("nat46-range", format!("`{range}`: takes a routable prefix of 96 bits, such as 64:ff9b:1::/96")));
            }
            if !enable_ipv4 {
                return Err(bad("nat46-range", "there is nothing to translate to with enable-ipv4 false".into()));
            }
        }
        let mut flow_timeouts = Timeouts::default();
        let given = [
            ("flow-timeout-tcp", raw.flow_timeout_tcp),
            ("flow-timeout-tcp-open", raw.flow_timeout_tcp_open),
            ("flow-timeout-tcp-closing", raw.flow_timeout_tcp_closing),
            ("flow-timeout-udp", raw.flow_timeout_udp),
            ("flow-timeout-udp-reply", raw.flow_timeout_udp_reply),
            ("flow-timeout-icmp", raw.flow_timeout_icmp),
            ("flow-timeout-other", raw.flow_timeout_other),
            ("flow-timeout-deny", raw.flow_timeout_deny),
        ];
        for (key, value) in given {
            if let Some(seconds) = value
                && let Some(Err(message)) = flow_timeouts.set(key, &seconds.to_string())
            {
                return Err(bad(key, message));
            }
        }
        let mut reporting = Settings::default();
        let given = [("drop-interval", raw.drop_interval), ("trace-interval", raw.trace_interval), ("trace-sample", raw.trace_sample)];
        for (key, value) in given {
            if let Some(Some(Err(message))) = value.map(|n| reporting.set(key, &n.to_string())) {
                return Err(bad(key, message));
            }
        }
        let metrics_addr = raw.metrics_addr.filter(|text| !text.is_empty()).map(|text| {
            text.parse().map_err(|_| bad("metrics-addr", format!("`{text}`: takes ADDRESS:PORT, e.g. 127.0.0.1:9780 or [::1]:9780")))
        });
        let run_dir = raw.run_dir.unwrap_or_else(|| "/run/pilus".into());
        Ok(Self {
            node_name: raw.node_name.unwrap_or_else(host_name),
            state_dir: raw.state_dir.unwrap_or_else(|| "/var/lib/pilus".into()),
            socket: raw.socket.unwrap_or_else(|| run_dir.join("pilus.sock")),
            run_dir,
            bpf_root: raw.bpf_root.unwrap_or_else(|| "/sys/fs/bpf".into()),
            template_dir: raw.template_dir,
            ipv6_range: prefix("ipv6-range", raw.ipv6_range)?,
            ipv4_range: prefix("ipv4-range", raw.ipv4_range)?,
            enable_ipv4,
            devices,
            host_routing: parse("host-routing", raw.host_routing, "bpf")?,
            masquerade: raw.masquerade.unwrap_or(true),
            masquerade_exclude,
            nat46_range,
            mtu: raw.mtu,
            datapath_mode: parse("datapath-mode", raw.datapath_mode, "veth")?,
            endpoint_build: parse("endpoint-build", raw.endpoint_build, "shared")?,
            attach_mode: parse("attach-mode", raw.attach_mode, "auto")?,
            policy_audit_mode: raw.policy_audit_mode.unwrap_or(false),
            enable_policy: parse("enable-policy", raw.enable_policy, "default")?,
            allow_localhost: parse("allow-localhost", raw.allow_localhost, "auto")?,
            flow_table_size,
            flow_timeouts,
            reporting,
            metrics_addr: metrics_addr.transpose()?,
            log_format: parse("log-format", raw.log_format, "text")?,
            log_level: raw.log_level.unwrap_or_else(|| "info".into()),
            cleanup: flags.cleanup,
            validate: flags.validate,
        })
    }
}
