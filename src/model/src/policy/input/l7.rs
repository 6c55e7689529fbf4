// SPDX-License-Identifier: Apache-2.0
//! Rules about what is said on a port, field by field.

use super::cursor::{Cursor, Fields, all, one_of, shorten};
use crate::policy::l7::{DnsRule, HeaderMatch, HttpRule, KAFKA_KEYS, KafkaRole, KafkaRule, L7Rules, check_expression};

const KINDS: &[&str] = &["http", "kafka", "dns"];

/// `None` inside: there is no rule, so nothing is restricted.
pub fn l7_rules(at: &Cursor<'_>) -> Option<Option<L7Rules>> {
    let fields = at.map("L7 rules")?;
    let mut good = Some(());
    let mut found: Option<L7Rules> = None;
    for field in &fields.fields {
        // These names are written in any case.
        let Some(kind) = KINDS.iter().find(|k| k.eq_ignore_ascii_case(field.name)) else {
            let later = ["l7", "l7proto"].contains(&field.name);
            let what = if later {
                "is not supported by this version".to_owned()
            } else {
                format!("unknown field `{}` (expected {})", shorten(field.name), KINDS.join(", "))
            };
            field.error(what);
            good = None;
            continue;
        };
        if field.value.is_null() {
            field.error("expected a list of rules, found nothing (null): leave the field out or write a list");
            good = None;
            continue;
        }
        let rules = field.value.list("rules").and_then(|items| match *kind {
            "http" => all(items, http).map(L7Rules::Http),
            "kafka" => all(items, kafka).map(L7Rules::Kafka),
            _ => all(items, dns).map(L7Rules::Dns),
        });
        match (rules, &found) {
            (None, _) => good = None,
            (Some(rules), Some(other)) => {
                field.error(format!("{} and {} rules cannot stand on one port", other.kind(), rules.kind()));
                good = None;
            }
            (Some(rules), None) => found = Some(rules),
        }
    }
    good?;
    Some(found.filter(|rules| !rules.is_empty()))
}

/// An expression; empty text counts as absent.
fn expression(fields: &Fields<'_>, name: &str) -> Option<Option<String>> {
    let Some(at) = fields.value(name) else { return Some(None) };
    let text = at.text("a regular expression")?;
    check_expression(text).map_err(|e| at.error(format!("{:?} is no regular expression that can be used: {e}", shorten(text)))).ok()?;
    Some((!text.is_empty()).then(|| text.to_owned()))
}

fn http(at: &Cursor<'_>) -> Option<HttpRule> {
    let fields = at.map("an HTTP rule")?;
    let allowed = fields.allow(&["path", "method", "host", "headers"], &["headerMatches"]);
    let (path, method, host) = (expression(&fields, "path"), expression(&fields, "method"), expression(&fields, "host"));
    let headers = match fields.value("headers") {
        Some(list) => list.list("headers").and_then(|items| {
            all(items, |item| {
                let text = item.text("a header (`Name: value` or `Name`)")?;
                HeaderMatch::try_from(text.to_owned()).map_err(|e| item.error(e)).ok()
            })
        }),
        None => Some(Vec::new()),
    };
    allowed?;
    Some(HttpRule { path: path?, method: method?, host: host?, headers: headers? })
}

/// A name that Kafka takes.
fn kafka_name(fields: &Fields<'_>, name: &str) -> Option<Option<String>> {
    let Some(at) = fields.value(name) else { return Some(None) };
    let text = at.text("a name")?;
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > 255 || !text.chars().all(good) {
        at.error(format!("expected 1 to 255 letters, digits, `.`, `_` and `-`, found {:?}", shorten(text)));
        return None;
    }
    Some(Some(text.to_owned()))
}

fn kafka(at: &Cursor<'_>) -> Option<KafkaRule> {
    let fields = at.map("a Kafka rule")?;
    let allowed = fields.allow(&["role", "apiKey", "apiVersion", "clientID", "topic"], &[]);
    let role = fields.value("role").map_or(Some(None), |r| one_of(r, "role", &KafkaRole::ALL, KafkaRole::as_str, true).map(Some));
    let api_key = fields.value("apiKey").map_or(Some(None), |k| one_of(k, "apiKey", &KAFKA_KEYS, |k| k, true).map(|k| Some(k.to_owned())));
    let api_version = fields.value("apiVersion").map_or(Some(None), |v| {
        let version = v.number("a version from 0 to 32767")?;
        if version < 0 {
            v.error(format!("expected a version from 0 to 32767, found {version}"));
            return None;
        }
        Some(Some(version))
    });
    let (client_id, topic) = (kafka_name(&fields, "clientID"), kafka_name(&fields, "topic"));
    allowed?;
    let (role, api_key) = (role?, api_key?);
    if role.is_some() && api_key.is_some() {
        at.error("role and apiKey cannot stand together: a role is a set of keys");
        return None;
    }
    Some(KafkaRule { role, api_key, api_version: api_version?, client_id: client_id?, topic: topic? })
}

fn dns(at: &Cursor<'_>) -> Option<DnsRule> {
    let fields = at.map("a DNS rule")?;
    fields.allow(&["matchName", "matchPattern"], &[])?;
    let (name, pattern) = (fields.value("matchName"), fields.value("matchPattern"));
    let (at, star) = match (name, pattern) {
        (Some(name), None) => (name, ""),
        (None, Some(pattern)) => (pattern, "*"),
        (Some(_), Some(_)) | (None, None) => {
            at.error("expected exactly one of matchName and matchPattern");
            return None;
        }
    };
    let text = at.text("a name")?;
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c) || star.contains(c);
    if text.is_empty() || text.len() > 255 || !text.chars().all(good) {
        at.error(format!(
            "expected a name of letters, digits, `.`, `_`, `-`{}, found {:?}",
            if star.is_empty() { "" } else { " and `*`" },
            shorten(text)
        ));
        return None;
    }
    Some(if star.is_empty() { DnsRule::MatchName(text.to_owned()) } else { DnsRule::MatchPattern(text.to_owned()) })
}
