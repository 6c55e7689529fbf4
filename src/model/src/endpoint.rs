// SPDX-License-Identifier: Apache-2.0
//! Endpoints: numbers, states and the ways to name one.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use thiserror::Error;

/// The number people know an endpoint by; 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointId(pub u16);

/// A row of the endpoint table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u16);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where an endpoint stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    Creating,
    WaitingForIdentity,
    WaitingToRegenerate,
    Regenerating,
    Ready,
    /// Read back after the agent's restart.
    Restoring,
    Disconnecting,
    Disconnected,
    /// The last attempt failed; what ran before still runs.
    NotReady,
}

impl EndpointState {
    pub const ALL: [Self; 9] = [
        Self::Creating,
        Self::WaitingForIdentity,
        Self::WaitingToRegenerate,
        Self::Regenerating,
        Self::Ready,
        Self::Restoring,
        Self::Disconnecting,
        Self::Disconnected,
        Self::NotReady,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::WaitingForIdentity => "waiting-for-identity",
            Self::WaitingToRegenerate => "waiting-to-regenerate",
            Self::Regenerating => "regenerating",
            Self::Ready => "ready",
            Self::Restoring => "restoring",
            Self::Disconnecting => "disconnecting",
            Self::Disconnected => "disconnected",
            Self::NotReady => "not-ready",
        }
    }

    /// Whether an endpoint may go from this state to `next`. Staying is no transition.
    pub const fn can_become(self, next: Self) -> bool {
        use EndpointState as S;
        match self {
            S::Creating => matches!(next, S::WaitingForIdentity | S::WaitingToRegenerate | S::NotReady | S::Disconnecting),
            S::WaitingForIdentity => matches!(next, S::WaitingToRegenerate | S::Ready | S::NotReady | S::Disconnecting),
            S::WaitingToRegenerate => matches!(next, S::Regenerating | S::WaitingForIdentity | S::Disconnecting),
            S::Regenerating => {
                matches!(next, S::Ready | S::NotReady | S::WaitingToRegenerate | S::WaitingForIdentity | S::Disconnecting)
            }
            S::Ready => matches!(next, S::WaitingForIdentity | S::WaitingToRegenerate | S::NotReady | S::Disconnecting),
            S::Restoring => matches!(next, S::WaitingForIdentity | S::WaitingToRegenerate | S::NotReady | S::Disconnecting),
            S::NotReady => matches!(next, S::WaitingForIdentity | S::WaitingToRegenerate | S::Ready | S::Disconnecting),
            S::Disconnecting => matches!(next, S::Disconnected),
            S::Disconnected => false,
        }
    }
}

impl fmt::Display for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text names no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RefError {
    #[error("endpoint number `{0}` is not between 1 and 65535")]
    BadId(String),
    #[error("`{kind}:` needs {expected}, not `{text}`")]
    BadValue { kind: &'static str, expected: &'static str, text: String },
    #[error("unknown way `{0}:` to name an endpoint (expected a number, name:, container-id:, pod-name:, ipv4: or ipv6:)")]
    UnknownKind(String),
    #[error("endpoint name {0:?} is empty or contains white space, `/` or a control character")]
    BadName(String),
}

/// How a user names an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointRef {
    Id(EndpointId),
    Name(String),
    ContainerId(String),
    PodName { namespace: String, name: String },
    Ipv4(Ipv4Addr),
    Ipv6(Ipv6Addr),
}

fn good_name(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/')
}

impl FromStr for EndpointRef {
    type Err = RefError;

    /// `12`, `name:web`, `container-id:…`, `pod-name:namespace/name`, `ipv4:…`, `ipv6:…`; anything else is a name.
    fn from_str(text: &str) -> Result<Self, RefError> {
        let Some((kind, rest)) = text.split_once(':') else {
            if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
                let id = text.parse().ok().filter(|id| *id != 0).ok_or_else(|| RefError::BadId(text.to_owned()))?;
                return Ok(Self::Id(EndpointId(id)));
            }
            return if good_name(text) { Ok(Self::Name(text.to_owned())) } else { Err(RefError::BadName(text.to_owned())) };
        };
        let bad = |kind, expected| RefError::BadValue { kind, expected, text: rest.to_owned() };
        match kind {
            "name" if good_name(rest) => Ok(Self::Name(rest.to_owned())),
            "name" => Err(RefError::BadName(rest.to_owned())),
            "container-id" if good_name(rest) => Ok(Self::ContainerId(rest.to_owned())),
            "container-id" => Err(bad("container-id", "a container's id")),
            "pod-name" => match rest.split_once('/') {
                Some((namespace, name)) if good_name(namespace) && good_name(name) => {
                    Ok(Self::PodName { namespace: namespace.to_owned(), name: name.to_owned() })
                }
                _ => Err(bad("pod-name", "namespace/name")),
            },
            "ipv4" => rest.parse().map(Self::Ipv4).map_err(|_| bad("ipv4", "an IPv4 address")),
            "ipv6" => rest.parse().map(Self::Ipv6).map_err(|_| bad("ipv6", "an IPv6 address")),
            other => Err(RefError::UnknownKind(other.to_owned())),
        }
    }
}

impl fmt::Display for EndpointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => write!(f, "name:{name}"),
            Self::ContainerId(id) => write!(f, "container-id:{id}"),
            Self::PodName { namespace, name } => write!(f, "pod-name:{namespace}/{name}"),
            Self::Ipv4(ip) => write!(f, "ipv4:{ip}"),
            Self::Ipv6(ip) => write!(f, "ipv6:{ip}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::EndpointState as S;
    use super::*;

    #[test]
    fn states_are_named_as_promised() {
        for state in S::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
            assert_eq!(serde_json::from_str::<S>(&format!("\"{}\"", state.as_str())).unwrap(), state);
        }
    }

    #[test]
    fn transitions() {
        let life = [S::Creating, S::WaitingForIdentity, S::WaitingToRegenerate, S::Regenerating, S::Ready, S::Disconnecting];
        assert!(life.windows(2).all(|w| w[0].can_become(w[1])));
        assert!(S::Restoring.can_become(S::WaitingToRegenerate) && S::NotReady.can_become(S::WaitingToRegenerate));
        for state in S::ALL {
            assert!(!state.can_become(state), "{state}");
            assert!(!state.can_become(S::Creating) && !state.can_become(S::Restoring), "{state}");
            assert_eq!(state.can_become(S::Disconnecting), !matches!(state, S::Disconnecting | S::Disconnected), "{state}");
            assert_eq!(state.can_become(S::Disconnected), state == S::Disconnecting, "{state}");
            assert_eq!(state.can_become(S::Regenerating), state == S::WaitingToRegenerate, "{state}");
        }
    }

    #[test]
    fn references_are_read() {
        let rows = [
            ("12", "12"),
            ("web", "name:web"),
            ("name:12", "name:12"),
            ("12a", "name:12a"),
            ("container-id:abc0", "container-id:abc0"),
            ("pod-name:default/web", "pod-name:default/web"),
            ("ipv4:10.0.0.1", "ipv4:10.0.0.1"),
            ("ipv6:fd00:0::1", "ipv6:fd00::1"),
        ];
        for (text, want) in rows {
            let parsed: EndpointRef = text.parse().unwrap();
            assert_eq!(parsed.to_string(), want);
            assert_eq!(want.parse::<EndpointRef>().unwrap(), parsed);
        }
        let bad = ["", "0", "65536", "a b", "name:", "pod-name:web", "pod-name:/web", "ipv4:fd00::1", "ipv6:10.0.0.1", "x:y", "fd00::1"];
        for text in bad {
            assert!(text.parse::<EndpointRef>().is_err(), "{text}");
        }
    }
}
