// SPDX-License-Identifier: Apache-2.0
//! What the runtime hands over: configuration and environment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use pilus_api::client::DEFAULT_SOCKET;
use serde::Deserialize;
use serde_json::Value;

use super::{Error, VERSIONS, code};
use crate::agent::LONGEST_WAIT;
use crate::labels::{POD_NAME, POD_NAMESPACE, Source, label};

/// How long a command waits for an agent that is not there, unless the configuration says otherwise.
const WAIT: Duration = Duration::from_secs(30);
/// What starts the names of endpoints that this plugin made.
const PREFIX: &str = "cni";
/// Longest interface name, bytes.
const NAME_LEN: usize = 15;
/// Capabilities that change what a container may do. To ignore them would be a promise not kept.
const REFUSED: [(&str, &str); 3] = [
    ("portMappings", "ports cannot be published on the node yet"),
    ("bandwidth", "bandwidth cannot be limited"),
    ("ipRanges", "addresses come from the agent's ranges"),
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    name: String,
    socket: Option<PathBuf>,
    mtu: Option<u16>,
    ipv4: Option<String>,
    ipv6: Option<String>,
    wait_seconds: Option<u64>,
    ipam: Option<Value>,
    runtime_config: Option<BTreeMap<String, Value>>,
    args: Option<Args>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", alias = "cni.dev/attachments", default, deserialize_with = "present")]
    valid_attachments: Option<Vec<ValidAttachment>>,
}

/// A list that is there and null is empty.
fn present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Vec<ValidAttachment>>, D::Error> {
    Ok(Some(Option::deserialize(d)?.unwrap_or_default()))
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    labels: Vec<KeyValue>,
    cni: Option<CniArgs>,
    #[serde(rename = "org.apache.mesos")]
    mesos: Option<Mesos>,
}

#[derive(Deserialize)]
struct CniArgs {
    #[serde(default)]
    labels: Vec<KeyValue>,
    #[serde(default)]
    ips: Vec<String>,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Mesos {
    network_info: Option<MesosNetwork>,
}

#[derive(Deserialize)]
struct MesosNetwork {
    labels: Option<MesosLabels>,
}

#[derive(Deserialize)]
struct MesosLabels {
    #[serde(default)]
    labels: Vec<KeyValue>,
}

/// An attachment that GC leaves alone.
#[derive(Clone, Debug, Deserialize)]
pub struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: &IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The configuration, checked.
pub struct Conf {
    pub cni_version: String,
    pub name: String,
    pub socket: PathBuf,
    pub mtu: Option<u16>,
    pub ipv4: Option<String>,
    pub ipv6: Option<String>,
    pub wait: Duration,
    pub prev_result: Option<Value>,
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    ipam: bool,
    runtime: BTreeMap<String, Value>,
    args: Args,
}

/// The version that a configuration claims, if it can be read at all.
pub fn version_of(conf: &str) -> Option<String> {
    let conf: Value = serde_json::from_str(conf).ok()?;
    conf.get("cniVersion")?.as_str().map(str::to_owned)
}

/// Names as the standard has them: of networks and of containers.
fn good_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn config(msg: impl Into<String>) -> Error {
    Error::new(code::CONFIG, msg)
}

impl Conf {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let undecodable = |e: &dyn std::fmt::Display| Error::new(code::DECODE, "the network configuration cannot be read").details(e);
        let value: Value = serde_json::from_str(text).map_err(|e| undecodable(&e))?;
        // Before anything else is looked at: what another version's fields mean is not known.
        let cni_version = match value.get("cniVersion").map(Value::as_str) {
            Some(Some(version)) if VERSIONS.contains(&version) => version.to_owned(),
            other => {
                let found = other.flatten().unwrap_or("missing");
                let msg = format!("cniVersion {found} is not supported");
                return Err(Error::new(code::VERSION, msg).details(format!("supported: {}", VERSIONS.join(", "))));
            }
        };
        let raw: Raw = serde_path_to_error::deserialize(value).map_err(|e| undecodable(&e))?;
        if !good_name(&raw.name) {
            return Err(config(format!("name `{}`: a network's name has letters, digits, `_`, `.` and `-`", raw.name)));
        }
        for (key, value) in [("ipv4", &raw.ipv4), ("ipv6", &raw.ipv6)] {
            if let Some(other) = value.as_deref().filter(|v| !matches!(*v, "auto" | "none")) {
                return Err(config(format!("{key} `{other}`: takes auto or none")));
            }
        }
        let socket = raw.socket.unwrap_or_else(|| DEFAULT_SOCKET.into());
        if !socket.is_absolute() {
            return Err(config(format!("socket `{}`: takes an absolute path", socket.display())));
        }
        if let Some(seconds) = raw.wait_seconds.filter(|s| *s > LONGEST_WAIT) {
            return Err(config(format!("waitSeconds {seconds}: takes 0 to {LONGEST_WAIT}")));
        }
        Ok(Self {
            cni_version,
            name: raw.name,
            socket,
            mtu: raw.mtu,
            ipv4: raw.ipv4,
            ipv6: raw.ipv6,
            wait: raw.wait_seconds.map_or(WAIT, Duration::from_secs),
            prev_result: raw.prev_result.filter(|p| !p.is_null()),
            valid_attachments: raw.valid_attachments,
            ipam: raw.ipam.is_some_and(|i| i.get("type").is_some()),
            runtime: raw.runtime_config.unwrap_or_default(),
            args: raw.args.unwrap_or_default(),
        })
    }

    pub fn version_index(&self) -> usize {
        VERSIONS.iter().position(|v| *v == self.cni_version).unwrap_or(0)
    }

    /// The name of an attachment's endpoint. None of the three parts holds a colon.
    pub fn endpoint(&self, container: &str, ifname: &str) -> String {
        format!("{PREFIX}:{}:{container}:{ifname}", self.name)
    }

    /// Whether an endpoint of this name is an attachment of this network.
    pub fn is_ours(&self, name: &str) -> bool {
        name.strip_prefix(PREFIX).and_then(|n| n.strip_prefix(':')).and_then(|n| n.split_once(':')).is_some_and(|(n, _)| n == self.name)
    }

    /// What would be a promise not kept.
    pub fn refuse_unsupported(&self) -> Result<(), Error> {
        if self.ipam {
            return Err(Error::new(code::UNSUPPORTED, "`ipam` is not supported").details("addresses come from the agent's ranges"));
        }
        for (key, why) in REFUSED {
            if self.runtime.get(key).is_some_and(|v| asks(key, v)) {
                return Err(Error::new(code::UNSUPPORTED, format!("runtimeConfig.{key} is not supported")).details(why));
            }
        }
        Ok(())
    }

    /// Addresses that the container is to have: at most one of each family.
    pub fn addresses(&self, args: &BTreeMap<String, String>) -> Result<Vec<IpAddr>, Error> {
        let runtime = self.runtime.get("ips").and_then(Value::as_array);
        let mut texts: Vec<&str> = runtime.into_iter().flatten().filter_map(Value::as_str).collect();
        if texts.is_empty() {
            texts = self.args.cni.iter().flat_map(|c| &c.ips).map(String::as_str).collect();
        }
        if texts.is_empty() {
            texts = args.get("IP").map(|ips| ips.split(',').collect()).unwrap_or_default();
        }
        let mut found: Vec<IpAddr> = Vec::new();
        for text in texts {
            let ip: IpAddr = text.split('/').next().unwrap_or(text).parse().map_err(|_| config(format!("`{text}` is no IP address")))?;
            if found.iter().any(|other| Family::of(other) == Family::of(&ip)) {
                return Err(config(format!("{text}: an interface has one address of each family")));
            }
            found.push(ip);
        }
        Ok(found)
    }

    pub fn mac(&self, args: &BTreeMap<String, String>) -> Option<String> {
        self.runtime.get("mac").and_then(Value::as_str).or_else(|| args.get("MAC").map(String::as_str)).map(str::to_owned)
    }

    pub fn labels(&self, args: &BTreeMap<String, String>) -> Result<Vec<String>, Error> {
        let pod = [("K8S_POD_NAMESPACE", POD_NAMESPACE), ("K8S_POD_NAME", POD_NAME)];
        let mut labels: Vec<String> =
            pod.iter().filter_map(|(arg, key)| Some(label(Source::Kubernetes, key, args.get(*arg).filter(|v| !v.is_empty())?))).collect();
        let mesos = self.args.mesos.iter().filter_map(|m| m.network_info.as_ref()?.labels.as_ref()).flat_map(|l| &l.labels);
        let plain = self.args.labels.iter().chain(self.args.cni.iter().flat_map(|c| &c.labels));
        for (source, l) in mesos.map(|l| (Source::Mesos, l)).chain(plain.map(|l| (Source::Container, l))) {
            // The key ends at the first `=` of a label's text.
            if l.key.is_empty() || l.key.contains('=') {
                return Err(config(format!("label key `{}` is empty or contains `=`", l.key)));
            }
            labels.push(label(source, &l.key, &l.value));
        }
        Ok(labels)
    }
}

/// Whether a capability's value asks for anything.
fn asks(key: &str, value: &Value) -> bool {
    match value {
        // A port that only the container has is not published. Runtimes write the key as their language does.
        Value::Array(ports) if key == "portMappings" => ports.iter().any(|port| {
            let host = port.as_object().and_then(|p| p.iter().find(|(k, _)| k.eq_ignore_ascii_case("hostPort")));
            host.is_none_or(|(_, port)| port.as_u64() != Some(0))
        }),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => fields.values().any(|v| !v.is_null() && v.as_u64() != Some(0)),
        other => !other.is_null(),
    }
}

/// What the environment says about one interface of one container.
pub struct Attachment {
    pub container: String,
    pub netns: String,
    pub ifname: String,
    pub args: BTreeMap<String, String>,
}

impl Attachment {
    pub fn from_env(env: impl Fn(&str) -> Option<String>, needs_netns: bool) -> Result<Self, Error> {
        let wrong = |msg: String| Error::new(code::ENVIRONMENT, msg);
        let needed = |name: &str| env(name).filter(|v| !v.is_empty()).ok_or_else(|| wrong(format!("{name} is missing")));
        let container = needed("CNI_CONTAINERID")?;
        if !good_name(&container) {
            return Err(wrong(format!("CNI_CONTAINERID `{container}`: has letters, digits, `_`, `.` and `-`")));
        }
        let ifname = needed("CNI_IFNAME")?;
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if ifname.len() > NAME_LEN || ifname == "." || ifname == ".." || ifname.contains(bad) {
            return Err(wrong(format!("CNI_IFNAME `{ifname}`: an interface's name has 1 to {NAME_LEN} bytes, no `/`, `:` or space")));
        }
        let netns = if needs_netns { needed("CNI_NETNS")? } else { env("CNI_NETNS").unwrap_or_default() };
        let mut args = BTreeMap::new();
        for pair in env("CNI_ARGS").unwrap_or_default().split(';').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong(format!("CNI_ARGS: `{pair}` is no KEY=VALUE")))?;
            args.insert(key.to_owned(), value.to_owned());
        }
        Ok(Self { container, netns, ifname, args })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(more: &str) -> Result<Conf, Error> {
        Conf::parse(&format!(r#"{{"cniVersion":"1.1.0","name":"pilus","type":"pilus-cni"{more}}}"#))
    }

    fn refused(more: &str) -> u32 {
        match conf(more) {
            Ok(conf) => conf.refuse_unsupported().expect_err("accepted").code,
            Err(e) => e.code,
        }
    }

    #[test]
    fn defaults() {
        let conf = conf("").unwrap();
        assert_eq!(conf.socket.to_str(), Some("/run/pilus/pilus.sock"));
        assert!(conf.valid_attachments.is_none() && conf.prev_result.is_none() && conf.mtu.is_none());
        assert!(conf.refuse_unsupported().is_ok());
        assert!(conf.labels(&BTreeMap::new()).unwrap().is_empty());
    }

    #[test]
    fn labels_of_every_source() {
        let conf = conf(
            r#","args":{"labels":[{"key":"app","value":"web"},{"key":"flag"}],"cni":{"labels":[{"key":"tier","value":"1"}]},
            "org.apache.mesos":{"network_info":{"name":"pilus","labels":{"labels":[{"key":"id","value":"a=b"}]}}}}"#,
        )
        .unwrap();
        let args = [("K8S_POD_NAME", "web-0"), ("K8S_POD_NAMESPACE", "prod"), ("IgnoreUnknown", "1")];
        let args = args.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let wanted = [
            "k8s:io.kubernetes.pod.namespace=prod",
            "k8s:io.kubernetes.pod.name=web-0",
            "mesos:id=a=b",
            "container:app=web",
            "container:flag",
            "container:tier=1",
        ];
        assert_eq!(conf.labels(&args).unwrap(), wanted);
    }

    #[test]
    fn addresses_by_every_way() {
        let none = BTreeMap::new();
        let ips = |more: &str, args: &BTreeMap<String, String>| {
            conf(more).unwrap().addresses(args).map(|ips| ips.iter().map(ToString::to_string).collect::<Vec<_>>()).map_err(|e| e.code)
        };
        assert_eq!(ips(r#","runtimeConfig":{"ips":["10.0.0.5/16","fd00::5"]}"#, &none).unwrap(), ["10.0.0.5", "fd00::5"]);
        assert_eq!(ips(r#","args":{"cni":{"ips":["fd00::6"]}}"#, &none).unwrap(), ["fd00::6"]);
        assert_eq!(ips("", &[("IP".to_owned(), "10.0.0.7".to_owned())].into()).unwrap(), ["10.0.0.7"]);
        assert_eq!(ips(r#","runtimeConfig":{"ips":["10.0.0.5","10.0.0.6"]}"#, &none), Err(code::CONFIG));
        assert_eq!(ips(r#","runtimeConfig":{"ips":["x"]}"#, &none), Err(code::CONFIG));
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        assert_eq!(refused(r#","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80}]}"#), code::UNSUPPORTED);
        assert_eq!(refused(r#","runtimeConfig":{"portMappings":[{"HostPort":80,"ContainerPort":80}]}"#), code::UNSUPPORTED);
        assert_eq!(refused(r#","runtimeConfig":{"bandwidth":{"ingressRate":1}}"#), code::UNSUPPORTED);
        assert_eq!(refused(r#","ipam":{"type":"host-local"}"#), code::UNSUPPORTED);
        assert_eq!(refused(r#","ipv4":"maybe""#), code::CONFIG);
        assert_eq!(refused(r#","socket":"pilus.sock""#), code::CONFIG);
        assert_eq!(refused(r#","waitSeconds":18446744073709551615"#), code::CONFIG);
        assert_eq!(refused(r#","mtu":"big""#), code::DECODE);
        assert_eq!(refused(r#","cniVersion":"0.2.0""#), code::VERSION);
        assert_eq!(refused(","), code::DECODE);
        for fine in [r#","runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":80}]}"#, r#","ipam":{}"#, r#","runtimeConfig":{}"#]
        {
            assert!(conf(fine).unwrap().refuse_unsupported().is_ok(), "{fine}");
        }
    }

    #[test]
    fn attachments_that_stay() {
        assert_eq!(conf(r#","cni.dev/valid-attachments":null"#).unwrap().valid_attachments.unwrap().len(), 0);
        let some = conf(r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]"#).unwrap();
        assert_eq!(some.valid_attachments.as_ref().unwrap()[0].container_id, "a");
        assert!(some.is_ours("cni:pilus:a:eth0") && !some.is_ours("cni:pilus2:a:eth0") && !some.is_ours("web"));
    }

    #[test]
    fn environment() {
        let env = |pairs: &'static [(&str, &str)]| move |name: &str| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        let good = [("CNI_CONTAINERID", "a-1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/n"), ("CNI_ARGS", "A=1;B=x=y;")];
        let good: &'static [(&str, &str)] = Box::leak(Box::new(good));
        let attachment = Attachment::from_env(env(good), true).unwrap();
        assert_eq!(attachment.args["B"], "x=y");
        let bad: [&'static [(&str, &str)]; 5] = [
            &[("CNI_IFNAME", "eth0")],
            &[("CNI_CONTAINERID", "a:b"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/n")],
            &[("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "sixteen-letters-"), ("CNI_NETNS", "/n")],
            &[("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")],
            &[("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/n"), ("CNI_ARGS", "x")],
        ];
        for pairs in bad {
            assert_eq!(Attachment::from_env(env(pairs), true).err().map(|e| e.code), Some(code::ENVIRONMENT), "{pairs:?}");
        }
        assert!(Attachment::from_env(env(&[("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")]), false).is_ok());
    }
}
