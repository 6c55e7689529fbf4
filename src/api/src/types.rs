// SPDX-License-Identifier: Apache-2.0
//! What stands in request and response bodies.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Body of every answer with a status of 400 or more.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct ApiError {
    /// Machine readable kind, e.g. `not-found`, `invalid`, `conflict`, `failed`, `timeout`.
    pub code: String,
    /// One line: what, where, what to do.
    pub message: String,
    /// Path of the field at fault, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// `PUT /v1/endpoint/{id}` with `id` = `name:NAME`: connect a network namespace.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EndpointRequest {
    pub name: String,
    /// Path of the network namespace, e.g. `/run/netns/web` or `/proc/123/ns/net`. With the agent's own, `/proc/self/ns/net`, the
    /// interface is only made and named there: whoever asked moves it into a container and gives it its addresses.
    pub netns: String,
    /// Labels `[source:]key[=value]`, or `reserved:init` alone while they are not known.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Name inside the container; `eth0` when absent.
    #[serde(default)]
    pub ifname: Option<String>,
    /// `auto`, `none` or an address of the node's range.
    #[serde(default)]
    pub ipv4: Option<String>,
    /// `auto`, `none` (where there is IPv4) or an address of the node's range.
    #[serde(default)]
    pub ipv6: Option<String>,
    /// Ethernet address inside the container; chosen when absent.
    #[serde(default)]
    pub mac: Option<String>,
    /// Bytes, 1280 or more; the node's when absent.
    #[serde(default)]
    pub mtu: Option<u16>,
    #[serde(default)]
    pub container_id: Option<String>,
    /// `shared` or `own`; the agent's default when absent.
    #[serde(default)]
    pub build: Option<Build>,
    /// Names of ports, for rules that name them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
}

/// A name of an endpoint's port.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedPort {
    pub name: String,
    pub port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// `PUT /v1/service/{id}`: what rules with `toServices` mean by the service.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceRequest {
    /// Labels `[source:]key[=value]` of the service itself.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Labels of the endpoints behind it, which are in its namespace.
    #[serde(default)]
    pub selector: Option<BTreeMap<String, String>>,
    /// Who is behind a service without a selector.
    #[serde(default)]
    pub backends: Vec<ServiceBackend>,
}

/// One of those behind a service.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceBackend {
    pub address: IpAddr,
}

/// A service as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct ServiceModel {
    /// `NAMESPACE/NAME`.
    pub id: String,
    pub namespace: String,
    pub name: String,
    pub labels: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<BTreeMap<String, String>>,
    pub backends: Vec<ServiceBackend>,
    /// What was taken but may not do what is meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `PUT /v1/node/{name}`: another node.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeRequest {
    pub addresses: Vec<IpAddr>,
    /// Labels `[node:]key[=value]`, for rules with `fromNodes` and `toNodes`.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// A node as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct NodeModel {
    pub name: String,
    /// The agent's own.
    pub local: bool,
    pub addresses: Vec<IpAddr>,
    pub labels: Vec<String>,
    /// Number of the identity that its addresses have.
    pub identity: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Build {
    Shared,
    Own,
}

/// `PATCH /v1/endpoint/{id}/labels`: the new set.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelsRequest {
    #[serde(default)]
    pub add: Vec<String>,
    /// Keys, or `source:key`.
    #[serde(default)]
    pub delete: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct IdentityModel {
    pub id: u32,
    pub labels: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceModel {
    /// Host side.
    pub name: String,
    pub index: u32,
    /// Inside the container.
    pub mac: String,
    pub host_mac: String,
    /// Name inside the container.
    pub container_name: String,
    pub mtu: u16,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct EndpointPolicyModel {
    /// Revision that the kernel enforces.
    pub revision: u64,
    /// `enforced`, `open` or `audit`.
    pub ingress: String,
    pub egress: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatapathModel {
    pub shape_key: String,
    pub build: String,
    pub programs: Vec<ProgramModel>,
    /// `tcx`, `tc` or empty while not attached.
    pub attach: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProgramModel {
    pub name: String,
    /// Kernel id.
    pub id: u32,
    pub tag: String,
    /// Instructions after the verifier's rewriting.
    pub instructions: u32,
    /// Bytes of machine code.
    pub jited_bytes: u32,
    pub verified_instructions: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct LogEntry {
    /// RFC 3339, UTC.
    pub time: String,
    pub state: String,
    pub message: String,
}

/// An endpoint as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointModel {
    pub id: u16,
    pub name: String,
    pub state: String,
    pub identity: IdentityModel,
    pub labels: Vec<String>,
    /// Names of its ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
    pub ipv6: Option<Ipv6Addr>,
    pub ipv4: Option<Ipv4Addr>,
    /// IPv4 address that stands for it among those who have nothing else; packets are translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat46: Option<Ipv4Addr>,
    pub interface: InterfaceModel,
    pub netns: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    pub policy: EndpointPolicyModel,
    pub datapath: DatapathModel,
    /// `ok`, or what is wrong.
    pub health: String,
    pub options: BTreeMap<String, String>,
    pub log: Vec<LogEntry>,
}

/// `GET /v1/endpoint/{id}/header`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderModel {
    pub path: String,
    pub text: String,
    pub shape_key: String,
}

/// `PUT /v1/policy`: documents as text; the whole call is imported or nothing.
/// Longest request body that the agent takes, bytes; policy imports come near it.
pub const LONGEST_BODY: usize = 64 << 20;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyImport {
    pub documents: Vec<PolicyDocument>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyDocument {
    /// File name, for errors.
    pub name: String,
    pub text: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct PolicyRevision {
    pub revision: u64,
    /// Rules in force after the call.
    pub rules: usize,
    /// Rules that a delete removed.
    #[serde(default)]
    pub deleted: usize,
    /// What was taken but may not do what is meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `GET /v1/policy`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct PolicyModel {
    pub revision: u64,
    /// Rules with the field names of the input.
    pub rules: Vec<serde_json::Value>,
    /// In the same order, what each decided: packets of both directions since it came, or since the agent started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counters: Vec<FlowCount>,
}

/// `GET /v1/policy/wait?revision=N`: answers when every endpoint has realised it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct PolicyWait {
    pub revision: u64,
    pub realised: bool,
    /// Endpoints that have not, `id (name)`.
    pub waiting: Vec<String>,
}

/// `POST /v1/policy/validate`: what an import of the documents would say. Nothing is changed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct PolicyValidation {
    pub valid: bool,
    /// Rules in the documents.
    pub rules: usize,
    pub errors: Vec<PolicyProblem>,
    /// What is taken but may not do what is meant.
    pub warnings: Vec<String>,
}

/// A mistake in a policy document.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct PolicyProblem {
    /// Empty if it is about the documents together.
    pub file: String,
    /// From 1; 0 if it has no place.
    pub line: u32,
    pub column: u32,
    /// Field, such as `spec.ingress[0].toPorts`.
    pub path: String,
    pub message: String,
}

/// `FILE:LINE:COLUMN: FIELD: MESSAGE`, less what there is not.
impl std::fmt::Display for PolicyProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// `POST /v1/policy/explain`: what becomes of a connection.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyQuestion {
    /// An endpoint (`257`, `name:web`, `ipv4:…`), an address, `identity:N`, or a fixed identity such as `host` or `world`.
    pub from: String,
    pub to: String,
    /// `PORT/PROTOCOL`, e.g. `80/tcp`; ICMP: `TYPE/icmp` or `TYPE/icmpv6`.
    pub dport: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct PolicyAnswer {
    pub allowed: bool,
    /// The kernel's tables say the same.
    pub agrees: bool,
    pub from: PeerModel,
    pub to: PeerModel,
    /// What the sender's policy says; absent if it is no endpoint of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<PolicyVerdict>,
    /// What the receiver's policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<PolicyVerdict>,
}

/// What one endpoint's policy says about a connection.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct PolicyVerdict {
    /// `allow`, `deny`, `redirect` (as far as L7 rules allow), or `open` (not enforced).
    pub verdict: String,
    /// Rule that decides: file, line and object; empty if none does.
    pub rule: String,
    /// Entry that decides, as the kernel has it; empty if none does.
    pub entry: String,
    /// What the kernel's tables say: as `verdict`, or `none` if the endpoint is not in them.
    pub kernel: String,
    /// Rule that the kernel's entry names.
    pub kernel_rule: String,
    /// What that rule decided so far, for everybody.
    #[serde(default)]
    pub count: FlowCount,
}

/// `POST /v1/policy/diff`: verdicts that an import would change.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct PolicyDiff {
    pub changes: Vec<PolicyChange>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct PolicyChange {
    /// Endpoints concerned, `id (name)`.
    pub endpoints: Vec<String>,
    /// `egress` or `ingress`.
    pub direction: String,
    /// Identity of the other side; 0: every one that is not listed for these endpoints.
    pub peer: u32,
    pub labels: Vec<String>,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or `other`.
    pub protocol: String,
    /// First and last port; ICMP: type.
    pub first: u16,
    pub last: u16,
    /// `allow`, `deny`, `redirect` or `open`.
    pub before: String,
    pub after: String,
    /// Rule that decides after the import; empty if none does.
    pub rule: String,
}

/// `GET /v1/config`: every option with its value; `PATCH` changes those that are changeable.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct ConfigModel {
    pub options: BTreeMap<String, String>,
    /// Names that PATCH accepts.
    pub changeable: Vec<String>,
}

/// `GET /v1/healthz`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatusModel {
    /// `ok`, `starting`, or what is wrong.
    pub state: String,
    pub version: String,
    pub node_name: String,
    pub uptime_seconds: u64,
    pub kernel: String,
    pub attach_mode: String,
    pub ipv6_range: String,
    pub ipv4_range: String,
    pub router_ipv6: String,
    pub router_ipv4: String,
    pub clang: String,
    pub template_hash: String,
    pub policy_revision: u64,
    pub endpoints: BTreeMap<String, usize>,
    pub identities: usize,
    pub objects: ObjectCounts,
    pub monitor: MonitorCounts,
    /// What needs a person's eye; empty when all is well.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct ObjectCounts {
    pub builds: u64,
    pub embedded: u64,
    pub disk: u64,
    pub shared: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct MonitorCounts {
    pub events: u64,
    /// Events for which the kernel's buffer had no room.
    pub lost: u64,
    pub listeners: usize,
}

/// `POST /v1/ipam`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct IpamModel {
    pub ipv6: Option<Ipv6Addr>,
    pub ipv4: Option<Ipv4Addr>,
}

/// `GET /v1/map/{name}`: one row per entry, as text columns.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct MapModel {
    pub name: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MapInfo {
    pub name: String,
    pub doc: String,
    pub max_entries: u32,
    pub key_size: usize,
    pub value_size: usize,
}

/// `GET /v1/flowtable`: one connection, as the datapath keeps it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowEntry {
    /// 4 or 6.
    pub family: u8,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or the protocol's number.
    pub protocol: String,
    /// Who sent the first packet.
    pub source: FlowEnd,
    pub destination: FlowEnd,
    /// TCP: `opening`, `established`, `closing`. Others: `unreplied`, `replied`. `denied` where policy denies.
    pub state: String,
    /// `allow`, `deny`, or `audit`: denied, but let through.
    pub verdict: String,
    /// Seconds since a packet was seen.
    pub idle: u32,
    /// Seconds until the entry goes unless a packet comes.
    pub expires: u32,
    /// Seconds since the entry was made; IPv4 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<u32>,
    /// From source to destination.
    pub sent: FlowCount,
    /// From destination to source.
    pub received: FlowCount,
    /// What else the entry says, e.g. `midstream`.
    pub flags: Vec<String>,
}

/// One end of a connection.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct FlowEnd {
    pub address: std::net::IpAddr,
    /// Port; the identifier of an ICMP echo; otherwise 0.
    pub port: u16,
    /// Row in the endpoint table.
    pub slot: u16,
    /// Name of the endpoint; `host` and `world`; empty if nobody has the slot any more.
    pub name: String,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct FlowCount {
    pub packets: u64,
    pub bytes: u64,
}

/// `DELETE /v1/flowtable`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct FlushResult {
    /// Entries removed.
    pub removed: u64,
}

/// `GET /v1/metrics`: one sample.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, JsonSchema)]
pub struct MetricModel {
    /// As Prometheus names it.
    pub name: String,
    pub help: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// One line of `GET /v1/flows` (newline-delimited JSON).
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowEvent {
    /// RFC 3339, UTC.
    pub time: String,
    /// `drop`, `trace`, `policy-verdict`, `debug`, `capture`, `l7`, `agent`, `lost`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Reason of a drop, trace point, or what the agent says.
    pub reason: String,
    /// `allow`, `deny`, `audit` or empty.
    #[serde(default)]
    pub verdict: String,
    /// `egress` or `ingress`.
    #[serde(default)]
    pub direction: String,
    /// `new`, `established`, `reply`, `related`, `reopened`, `revoked`, `none`.
    #[serde(default)]
    pub state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<PeerModel>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<PeerModel>,
    /// Rule that decided: file, line and object.
    #[serde(default)]
    pub rule: String,
    #[serde(default)]
    pub ifindex: u32,
    /// Length of the packet, bytes.
    #[serde(default)]
    pub length: u32,
    /// What a packet tool would print, e.g. `10.5.1.1.41000 > 10.5.1.2.80 tcp SYN seq 1 win 64240 length 0`.
    #[serde(default)]
    pub summary: String,
    /// The lower headers, e.g. `02:… > 02:… type 0x0800, IPv4 ttl 64 tos 0x0 id 0 DF length 60`.
    #[serde(default)]
    pub headers: String,
    /// First bytes from the Ethernet header, hex.
    #[serde(default)]
    pub packet: String,
    /// For `lost`: events that are missing. For `drop`: packets that it stands for, itself and those with the same ends, ports and
    /// protocol that were dropped since the last one and not reported by themselves.
    #[serde(default)]
    pub count: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct PeerModel {
    /// Endpoint id, 0 if it is none.
    pub endpoint: u16,
    #[serde(default)]
    pub name: String,
    pub identity: u32,
    pub labels: Vec<String>,
}

/// `GET /v1/template`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateStatus {
    /// Where edits are made.
    pub directory: String,
    /// Hash of the tree that runs, and of the one in the directory.
    pub applied: String,
    pub edited: String,
    pub differs: bool,
    /// Endpoints by shape key.
    pub shapes: BTreeMap<String, usize>,
}

/// `POST /v1/template/check`, `POST /v1/template/apply`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct TemplateResult {
    pub ok: bool,
    pub hash: String,
    /// Endpoints that run the tree now.
    pub swapped: usize,
    /// `file:line:column: severity: message`.
    pub diagnostics: Vec<String>,
}

/// `GET /v1/debuginfo`, `POST /v1/cleanup`: plain lines.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct Lines {
    pub lines: Vec<String>,
}

/// `PATCH /v1/config`: the options to change.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigPatch {
    pub options: BTreeMap<String, String>,
}

/// `GET /v1/endpoint/{id}/healthz`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct EndpointHealth {
    /// `ok`, or what is wrong.
    pub health: String,
    pub state: String,
}
