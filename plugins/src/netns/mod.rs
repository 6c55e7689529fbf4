// SPDX-License-Identifier: Apache-2.0
//! What `pilus-netns` is asked and what it answers: one JSON request on stdin, one JSON response on stdout.

mod nl;
mod work;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Makes an interface that was created inside the namespace a container's own. May be repeated.
    /// In the namespace of the program itself it only gets its name, Ethernet address and MTU: somebody else will take it away.
    Configure(Box<Configure>),
    /// Says what an interface is like.
    Inspect {
        /// File of the namespace, as `/proc/123/ns/net`.
        netns: PathBuf,
        name: String,
    },
    /// Removes an interface; one that is absent is fine.
    Delete { netns: PathBuf, name: String },
}

/// What [`Request::Configure`] makes of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configure {
    /// File of the namespace.
    pub netns: PathBuf,
    /// Which interface. One that already has `name` and `mac` is taken for it if there is none such (a repeated request).
    pub link: LinkRef,
    /// Its name from now on.
    pub name: String,
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    #[serde(default)]
    pub addresses: Vec<Prefix>,
    /// On-link gateway of the IPv6 default route, a link-local address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// On-link gateway of the IPv4 default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway4: Option<Ipv4Addr>,
}

/// Names an interface inside the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkRef {
    Index(u32),
    Name(String),
}

/// An Ethernet address, in JSON as `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

/// An address with its prefix length, in JSON as `10.5.0.5/32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    pub ip: IpAddr,
    /// Prefix length.
    pub plen: u8,
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = "an Ethernet address is six pairs of hexadecimal digits with colons between";
        let mut mac = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad)?;
        }
        if parts.next().is_some() { Err(bad) } else { Ok(Self(mac)) }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.plen)
    }
}

impl FromStr for Prefix {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = "a prefix is an IP address, a slash and a length";
        let (ip, plen) = s.split_once('/').ok_or(bad)?;
        let ip: IpAddr = ip.parse().map_err(|_| bad)?;
        let plen: u8 = plen.parse().map_err(|_| bad)?;
        if plen > if ip.is_ipv4() { 32 } else { 128 } {
            Err("a prefix length is at most 32 for IPv4 and 128 for IPv6")
        } else {
            Ok(Self { ip, plen })
        }
    }
}

macro_rules! as_text {
    ($($t:ty),*) => {$(
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(Mac, Prefix);

/// One response: `{"ok":true,…}` or `{"error":{…}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Response {
    Error { error: Failure },
    Ok(Box<Done>),
}

impl Response {
    /// The answer as a result.
    pub fn into_result(self) -> Result<Done, Failure> {
        match self {
            Self::Ok(done) => Ok(*done),
            Self::Error { error } => Err(error),
        }
    }
}

/// A request was carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Always true.
    pub ok: bool,
    /// The interface afterwards; None after `delete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Whether `delete` found something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<bool>,
    /// What could not be done and is not needed, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An interface inside the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The other end is up too.
    pub carrier: bool,
    /// Index of the peer in its own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_index: Option<u32>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub address: Prefix,
    /// Not to be used yet, or found to be a duplicate.
    pub tentative: bool,
}

/// A route by an interface, of the main table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub destination: Prefix,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// Kind of a failure, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request could not be read.
    BadRequest,
    /// The namespace is not there, or is none.
    NoNetns,
    /// The interface is not there.
    NoLink,
    /// Another interface has that name; nothing was changed.
    NameTaken,
    /// The kernel refused something; `errno` says why.
    Kernel,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: Code,
    /// For people.
    pub message: String,
    /// Positive; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
}

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), errno: None }
    }

    fn kernel(code: Code, action: impl fmt::Display, errno: i32) -> Self {
        let why = std::io::Error::from_raw_os_error(errno);
        Self { code, message: format!("cannot {action}: {why}"), errno: Some(errno) }
    }
}

/// Carries out one request. The calling thread is in another network namespace afterwards: only for a program that is about to
/// end.
pub fn run(request: &str) -> Response {
    let result = serde_json::from_str(request)
        .map_err(|e| Failure::new(Code::BadRequest, format!("cannot read the request: {e}")))
        .and_then(|request| work::carry_out(&request));
    match result {
        Ok(done) => Response::Ok(Box::new(done)),
        Err(error) => Response::Error { error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_as_agreed() {
        let text = r#"{"op":"configure","netns":"/proc/123/fd/9","link":{"index":7},"name":"eth0","mac":"02:00:00:00:00:01","mtu":1500,
            "addresses":["fd00::5/128","10.5.0.5/32"],"gateway6":"fe80::1","gateway4":"169.254.1.1"}"#;
        let Request::Configure(c) = serde_json::from_str(text).unwrap() else { panic!("not configure") };
        assert_eq!(c.link, LinkRef::Index(7));
        assert_eq!(c.mac, Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(c.addresses[1], Prefix { ip: "10.5.0.5".parse().unwrap(), plen: 32 });
        let again: Request = serde_json::from_str(&serde_json::to_string(&Request::Configure(c.clone())).unwrap()).unwrap();
        assert_eq!(again, Request::Configure(c));
    }

    #[test]
    fn response_as_agreed() {
        let error = Response::Error { error: Failure::kernel(Code::NameTaken, "rename", 17) };
        let text = serde_json::to_string(&error).unwrap();
        assert!(text.starts_with(r#"{"error":{"code":"name-taken","message":"cannot rename"#), "{text}");
        assert_eq!(serde_json::from_str::<Response>(&text).unwrap(), error);
        let ok = Response::Ok(Box::new(Done { ok: true, ..Done::default() }));
        assert_eq!(serde_json::to_string(&ok).unwrap(), r#"{"ok":true}"#);
        assert_eq!(serde_json::from_str::<Response>(r#"{"ok":true}"#).unwrap(), ok);
    }

    #[test]
    fn bad_values_are_refused() {
        for bad in ["02:00:00:00:00", "2:0:0:0:0:1", "02:00:00:00:00:01:02", "+2:00:00:00:00:01"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        for bad in ["10.0.0.1", "10.0.0.1/33", "fd00::/129", "x/1"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        let Response::Error { error } = run(r#"{"op":"dance"}"#) else { panic!("accepted") };
        assert_eq!(error.code, Code::BadRequest);
    }
}
