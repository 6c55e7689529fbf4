// SPDX-License-Identifier: Apache-2.0
//! Ports and ICMP types, field by field.

use super::cursor::{Cursor, all, one_of, shorten};
use super::l7::l7_rules;
use super::sections::bounded;
use crate::policy::l7::L7Rules;
use crate::policy::section::{Family, IcmpField, IcmpRule, Port, PortProtocol, PortRule, Protocol};
use std::num::NonZeroU16;

const PORT_RULE_LATER: &[&str] = &["terminatingTLS", "originatingTLS", "serverNames", "listener"];

pub fn port_rule(at: &Cursor<'_>, deny: bool) -> Option<PortRule> {
    let fields = at.map("a port rule")?;
    let allowed = fields.allow(&["ports", "rules"], PORT_RULE_LATER);
    let rules = fields.get("rules").filter(|f| !f.value.is_null()).map_or(Some(None), |f| l7_rules(&f.value));
    let items = bounded(&fields, "ports", "port", PortRule::MAX_PORTS);
    let ports = all(items?, port_protocol);
    allowed?;
    let (rules, ports) = (rules?, ports?);
    if let (Some(rules), Some(field)) = (&rules, fields.get("rules")) {
        if deny {
            field.error("a deny rule denies whole ports: rules about what is said on them cannot stand here");
            return None;
        }
        if let Some(bad) = ports.iter().find(|p| !fits(rules, p)) {
            let which = if matches!(rules, L7Rules::Dns(_)) { "TCP, UDP or ANY" } else { "TCP" };
            field.error(format!(
                "{} rules need single ports with protocol {which}, not {} {}",
                rules.kind(),
                bad.port,
                bad.protocol.as_str()
            ));
            return None;
        }
        if !at.sink.options.l7 {
            field.error(format!(
                "{} rules are not supported yet: no proxy enforces them; leave `rules` out to allow everything on the port",
                rules.kind()
            ));
            return None;
        }
    }
    Some(PortRule { ports, rules })
}

/// Whether a proxy can look at what is said on a port.
fn fits(rules: &L7Rules, port: &PortProtocol) -> bool {
    let protocol = match rules {
        L7Rules::Http(_) | L7Rules::Kafka(_) => port.protocol == Protocol::Tcp,
        L7Rules::Dns(_) => port.protocol != Protocol::Sctp,
    };
    protocol && port.end_port.is_none()
}

fn port_protocol(at: &Cursor<'_>) -> Option<PortProtocol> {
    let fields = at.map("a port")?;
    let allowed = fields.allow(&["port", "endPort", "protocol"], &[]);
    let port = fields.required("port", "a number from 1 to 65535, or a port's name").and_then(port);
    let end_port = match fields.value("endPort") {
        Some(end) => port_number(end).map(|n| Some((n, end))),
        None => Some(None),
    };
    let protocol = match fields.value("protocol") {
        Some(p) => one_of(p, "protocol", &Protocol::ALL, Protocol::as_str, true),
        None => Some(Protocol::Any),
    };
    allowed?;
    let (port, end_port) = (port?, end_port?);
    Some(PortProtocol { end_port: range_end(&port, end_port)?, port, protocol: protocol? })
}

/// The end of a range that begins at `port`.
pub fn range_end(port: &Port, end: Option<(NonZeroU16, &Cursor<'_>)>) -> Option<Option<NonZeroU16>> {
    let Some((end, at)) = end else { return Some(None) };
    match port {
        Port::Name(name) => {
            at.error(format!("a range begins with a number, not with the named port `{name}`"));
            None
        }
        Port::Number(first) if end < *first => {
            at.error(format!("the range ends at {end}, before it begins at {first}"));
            None
        }
        Port::Number(_) => Some(Some(end)),
    }
}

/// Decimal or with `0x`.
fn number(text: &str) -> Option<NonZeroU16> {
    let digits = |t: &str, radix| t.chars().all(|c| c.is_digit(radix));
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if digits(hex, 16) => u16::from_str_radix(hex, 16).ok(),
        // A leading zero means octal to some readers.
        None if digits(text, 10) && !text.starts_with('0') => text.parse().ok(),
        Some(_) | None => None,
    };
    parsed.and_then(NonZeroU16::new)
}

/// A number or its text, or a name.
pub fn port(at: &Cursor<'_>) -> Option<Port> {
    let text = at.scalar("a port number from 1 to 65535, or a port's name")?;
    if let Some(number) = number(text) {
        return Some(Port::Number(number));
    }
    if Port::good_name(text) && !text.starts_with("0x") {
        return Some(Port::Name(text.to_owned()));
    }
    at.error(format!("expected a port number from 1 to 65535, or a port's name, found {:?}", shorten(text)));
    None
}

pub fn port_number(at: &Cursor<'_>) -> Option<NonZeroU16> {
    let text = at.scalar("a port number from 1 to 65535")?;
    let parsed = number(text);
    if parsed.is_none() {
        at.error(format!("expected a port number from 1 to 65535, found {:?}", shorten(text)));
    }
    parsed
}

pub fn icmp_rule(at: &Cursor<'_>) -> Option<IcmpRule> {
    let fields = at.map("an ICMP rule")?;
    let allowed = fields.allow(&["fields"], &[]);
    let items = bounded(&fields, "fields", "ICMP type", PortRule::MAX_PORTS);
    let fields = all(items?, icmp_field);
    allowed?;
    Some(IcmpRule { fields: fields? })
}

fn icmp_field(at: &Cursor<'_>) -> Option<IcmpField> {
    let fields = at.map("an ICMP type")?;
    let allowed = fields.allow(&["family", "type"], &[]);
    let family = match fields.value("family") {
        Some(f) => one_of(f, "family", &Family::ALL, Family::as_str, false),
        None => Some(Family::IPv4),
    };
    let kind = fields.required("type", "an ICMP type: a number from 0 to 255, or its name");
    allowed?;
    let (family, kind) = (family?, kind?);
    let text = kind.scalar("an ICMP type: a number from 0 to 255, or its name")?;
    let names = match family {
        Family::IPv4 => ICMP4,
        Family::IPv6 => ICMP6,
    };
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let number = if plain { text.parse().ok() } else { names.iter().find(|(name, _)| *name == text).map(|(_, n)| *n) };
    match number {
        Some(kind) => Some(IcmpField { family, kind }),
        None => {
            let expected = "expected a number from 0 to 255, or a name such as EchoRequest";
            kind.error(format!("unknown ICMP type {:?} of {} ({expected})", shorten(text), family.as_str()));
            None
        }
    }
}

const ICMP4: &[(&str, u8)] = &[
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

const ICMP6: &[(&str, u8)] = &[
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];
