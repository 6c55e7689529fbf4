// SPDX-License-Identifier: Apache-2.0
//! `pilus-cni`: the Container Network Interface, 0.3.1 to 1.1.0.

mod conf;
mod result;

use std::path::Path;

use pilus_api::error::ClientError;
use pilus_api::types::{EndpointModel, EndpointRequest};
use serde::Serialize;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::netns;
use conf::{Attachment, Conf, Family};

/// What a runtime may ask for, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The last of them.
pub const NEWEST: &str = VERSIONS[VERSIONS.len() - 1];

/// For people who start the program by hand.
pub const USAGE: &str = "\
pilus-cni is a CNI plugin: container runtimes start it. Put it where the runtime looks for plugins (often /opt/cni/bin), and
this into a file such as /etc/cni/net.d/10-pilus.conf:

  {\"cniVersion\": \"1.0.0\", \"name\": \"pilus\", \"type\": \"pilus-cni\", \"socket\": \"/run/pilus/pilus.sock\"}

It takes ADD, DEL, CHECK, GC, STATUS and VERSION in CNI_COMMAND, and the configuration on stdin.
";

/// The standard's error codes; from 100 on they are ours.
pub mod code {
    pub const VERSION: u32 = 1;
    pub const UNSUPPORTED: u32 = 2;
    pub const UNKNOWN_CONTAINER: u32 = 3;
    pub const ENVIRONMENT: u32 = 4;
    pub const IO: u32 = 5;
    pub const DECODE: u32 = 6;
    pub const CONFIG: u32 = 7;
    pub const TRY_AGAIN: u32 = 11;
    pub const NOT_AVAILABLE: u32 = 50;
    /// The agent refused or failed; the message says why.
    pub const REFUSED: u32 = 100;
    /// CHECK found something that is not as ADD left it.
    pub const DIFFERENT: u32 = 101;
}

/// An error as runtimes read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Error {
    pub code: u32,
    pub msg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    fn details(self, details: impl std::fmt::Display) -> Self {
        Self { details: details.to_string(), ..self }
    }

    /// The object, in the version that was asked for.
    pub fn answer(&self, version: &str) -> Answer {
        let mut object = json!({ "cniVersion": version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            object["details"] = self.details.as_str().into();
        }
        Answer { stdout: format!("{object}\n"), ok: false }
    }
}

/// What goes to stdout, and whether it is a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub stdout: String,
    pub ok: bool,
}

/// Carries out what the environment asks for. The calling thread may be in another network namespace afterwards.
pub fn run(env: impl Fn(&str) -> Option<String>, conf: &str) -> Answer {
    let version = conf::version_of(conf);
    match carry_out(env, conf) {
        Ok(result) => Answer { stdout: result.map(|r| format!("{r}\n")).unwrap_or_default(), ok: true },
        Err(e) => e.answer(version.as_deref().filter(|v| VERSIONS.contains(v)).unwrap_or(NEWEST)),
    }
}

fn carry_out(env: impl Fn(&str) -> Option<String>, text: &str) -> Result<Option<Value>, Error> {
    let Some(command) = env("CNI_COMMAND") else { return Err(Error::new(code::ENVIRONMENT, "CNI_COMMAND is missing")) };
    if command == "VERSION" {
        let version = conf::version_of(text).unwrap_or_else(|| NEWEST.to_owned());
        return Ok(Some(json!({ "cniVersion": version, "supportedVersions": VERSIONS })));
    }
    let since = match command.as_str() {
        "ADD" | "DEL" => VERSIONS[0],
        "CHECK" => "0.4.0",
        "GC" | "STATUS" => "1.1.0",
        _ => {
            return Err(Error::new(
                code::ENVIRONMENT,
                format!("CNI_COMMAND is `{command}`: there are ADD, DEL, CHECK, GC, STATUS, VERSION"),
            ));
        }
    };
    let conf = Conf::parse(text)?;
    if conf.version_index() < VERSIONS.iter().position(|v| *v == since).unwrap_or(0) {
        return Err(Error::new(code::VERSION, format!("{command} needs cniVersion {since}, the configuration has {}", conf.cni_version)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::new(code::IO, format!("cannot start: {e}")))?;
    let agent = Agent::new(&conf.socket, conf.wait);
    runtime.block_on(async {
        match command.as_str() {
            "ADD" => add(&agent, &conf, &Attachment::from_env(env, true)?).await.map(Some),
            "DEL" => del(&agent, &conf, &Attachment::from_env(env, false)?).await,
            "CHECK" => check(&agent, &conf, &Attachment::from_env(env, true)?).await,
            "GC" => gc(&agent, &conf).await,
            _ => status(&agent).await,
        }
    })
}

fn failure(what: &str, e: &ClientError) -> Error {
    let code = match e {
        ClientError::Api { status: 504, .. } => code::TRY_AGAIN,
        ClientError::Api { status: 400, error } => match error.field.as_deref() {
            Some("netns" | "ifname") => code::ENVIRONMENT,
            _ => code::CONFIG,
        },
        ClientError::Api { .. } => code::REFUSED,
        _ => code::TRY_AGAIN,
    };
    Error::new(code, what).details(e)
}

async fn add(agent: &Agent, conf: &Conf, attachment: &Attachment) -> Result<Value, Error> {
    conf.refuse_unsupported()?;
    let what = || format!("cannot connect {} of container {}", attachment.ifname, attachment.container);
    if !Path::new(&attachment.netns).exists() {
        return Err(Error::new(code::UNKNOWN_CONTAINER, what()).details(format!("network namespace {} is not there", attachment.netns)));
    }
    let wished = conf.addresses(&attachment.args)?;
    let text = |family| wished.iter().find(|ip| Family::of(ip) == family).map(ToString::to_string);
    let request = EndpointRequest {
        name: conf.endpoint(&attachment.container, &attachment.ifname),
        netns: attachment.netns.clone(),
        labels: conf.labels(&attachment.args)?,
        ifname: Some(attachment.ifname.clone()),
        ipv4: text(Family::V4).or_else(|| conf.ipv4.clone()),
        ipv6: text(Family::V6).or_else(|| conf.ipv6.clone()),
        mac: conf.mac(&attachment.args),
        mtu: conf.mtu,
        container_id: Some(attachment.container.clone()),
        build: None,
        ports: Vec::new(),
    };
    let (put, repeated) = agent.call(|| agent.client.put_endpoint(&request, true)).await.map_err(|e| failure(&what(), &e))?;
    if !put.created && !repeated {
        return Err(Error::new(code::REFUSED, what()).details("it is connected already, as asked; DEL comes before another ADD"));
    }
    Ok(result::added(conf, attachment, &put.endpoint))
}

async fn del(agent: &Agent, conf: &Conf, attachment: &Attachment) -> Result<Option<Value>, Error> {
    let name = format!("name:{}", conf.endpoint(&attachment.container, &attachment.ifname));
    let what = format!("cannot disconnect {} of container {}", attachment.ifname, attachment.container);
    agent.call(|| agent.client.delete_endpoint(&name, true)).await.map_err(|e| failure(&what, &e))?;
    Ok(None)
}

async fn check(agent: &Agent, conf: &Conf, attachment: &Attachment) -> Result<Option<Value>, Error> {
    let what = format!("{} of container {} is not as it was left", attachment.ifname, attachment.container);
    let different = |why: String| Error::new(code::DIFFERENT, what.clone()).details(why);
    let Some(prev) = &conf.prev_result else {
        return Err(Error::new(code::CONFIG, "CHECK needs prevResult in the configuration"));
    };
    let name = format!("name:{}", conf.endpoint(&attachment.container, &attachment.ifname));
    let endpoint = match agent.call(|| agent.client.endpoint(&name)).await {
        Ok((endpoint, _)) => endpoint,
        Err(e) if e.is_not_found() => return Err(Error::new(code::UNKNOWN_CONTAINER, what).details(e)),
        Err(e) => return Err(failure(&what, &e)),
    };
    if endpoint.state == "not-ready" {
        return Err(different(endpoint.health));
    }
    result::is_in(prev, attachment, &endpoint).map_err(different)?;
    inside(attachment, &endpoint).map_err(different)?;
    Ok(None)
}

/// Compares the interface in the container with what the agent says.
fn inside(attachment: &Attachment, endpoint: &EndpointModel) -> Result<(), String> {
    let request = netns::Request::Inspect { netns: attachment.netns.clone().into(), name: attachment.ifname.clone() };
    let request = serde_json::to_string(&request).map_err(|e| e.to_string())?;
    let done = netns::run(&request).into_result().map_err(|e| e.to_string())?;
    let Some(found) = done.interface else { return Err(format!("interface {} cannot be seen", attachment.ifname)) };
    let mac = found.mac.map(|m| m.to_string()).unwrap_or_default();
    if mac != endpoint.interface.mac {
        return Err(format!("its Ethernet address is {mac}, not {}", endpoint.interface.mac));
    }
    if !found.up {
        return Err("it is down".into());
    }
    let missing = result::addresses(endpoint).into_iter().find(|ip| !found.addresses.iter().any(|a| a.address.ip == *ip));
    missing.map_or(Ok(()), |ip| Err(format!("it has lost address {ip}")))
}

/// Removes what this network's containers left behind: the runtime says which it still knows.
async fn gc(agent: &Agent, conf: &Conf) -> Result<Option<Value>, Error> {
    let Some(valid) = &conf.valid_attachments else {
        return Err(Error::new(code::CONFIG, "GC needs cni.dev/valid-attachments in the configuration"));
    };
    let valid: Vec<String> = valid.iter().map(|v| conf.endpoint(&v.container_id, &v.ifname)).collect();
    let what = format!("cannot clean up network {}", conf.name);
    let (endpoints, _) = agent.call(|| agent.client.endpoints()).await.map_err(|e| failure(&what, &e))?;
    let mut failed = None;
    for name in endpoints.into_iter().map(|e| e.name).filter(|n| conf.is_ours(n) && !valid.contains(n)) {
        let name = format!("name:{name}");
        if let Err(e) = agent.call(|| agent.client.delete_endpoint(&name, true)).await {
            failed.get_or_insert(failure(&what, &e));
        }
    }
    failed.map_or(Ok(None), Err)
}

async fn status(agent: &Agent) -> Result<Option<Value>, Error> {
    match agent.client.status().await {
        Ok(_) => Ok(None),
        Err(e) => Err(Error::new(code::NOT_AVAILABLE, "containers cannot be connected now").details(e)),
    }
}
