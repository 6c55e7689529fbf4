// SPDX-License-Identifier: Apache-2.0
//! The truth tables, judged by the evaluator and by the blocks as they would be written.

use super::truth::{self, Case, ENDPOINTS, End, Row};
use pilus_model::abi::Reserved;
use pilus_model::identity::{NodeIdentities, NumericIdentity};
use pilus_model::label::Labels;
use pilus_model::policy::block::{self, BlockVerdict};
use pilus_model::policy::input::{self, Options};
use pilus_model::policy::l7::HttpRequest;
use pilus_model::policy::{
    Direction, DirectionPolicy, EnforcementMode, Engine, Explanation, Half, Party, PortNames, Service, Subject, Traffic, Verdict,
};
use pilus_model::prefix::Prefix;
use std::collections::{BTreeSet, HashMap};

const FIRST: u32 = 256;
/// Another node with labels.
const NODE: NumericIdentity = NumericIdentity((2 << 24) + 7);

fn subject(case: &Case, name: &str) -> Subject {
    let labels = ENDPOINTS.iter().find(|(n, _)| *n == name).map(|(_, labels)| Labels::parse(*labels).unwrap()).unwrap();
    let mut ports = PortNames::new();
    for (port, what) in case.ports.get(name).into_iter().flatten() {
        let (number, proto) = what.split_once('/').unwrap();
        ports.entry(port.clone()).or_default().insert((number.parse().unwrap(), truth::protocol(proto)));
    }
    Subject { labels, ports }
}

fn party(engine: &Engine, case: &Case, end: &End) -> Party {
    match end {
        End::Endpoint(name) => {
            let place = ENDPOINTS.iter().position(|(n, _)| n == name).unwrap();
            Party { identity: NumericIdentity(FIRST + place as u32), subject: Some(subject(case, name)) }
        }
        End::Fixed(name) if name == "remote-node" && !case.node.is_empty() => Party { identity: NODE, subject: None },
        End::Fixed(name) => {
            let fixed = Reserved::ALL.iter().find(|r| r.text() == name).unwrap_or_else(|| panic!("nobody is {name}"));
            Party { identity: (*fixed).into(), subject: None }
        }
        // As the kernel finds it: the longest prefix, or else the world.
        End::Address(ip) => {
            let found = Prefix::address(*ip).covering().find_map(|p| engine.prefixes().lookup(p));
            Party { identity: found.unwrap_or(Reserved::World.into()), subject: None }
        }
    }
}

/// Whether the blocks say what the evaluator says.
fn check_blocks(policy: &DirectionPolicy, direction: Direction, peer: NumericIdentity, row: &Row, half: &Half) {
    if *policy == DirectionPolicy::Open {
        return;
    }
    let rows: HashMap<_, _> = block::blocks(3, direction, policy, &mut |_| 1).unwrap().into_iter().collect();
    let written = block::lookup(&rows, 3, direction, peer, row.dport, row.proto);
    let same = match (&half.verdict, written) {
        (Verdict::Allow(_), BlockVerdict::Allow(_)) | (Verdict::Redirect(..), BlockVerdict::Redirect(_)) => true,
        (Verdict::Deny(rule), BlockVerdict::Deny(index)) => rule.is_some() == index.is_some(),
        _ => false,
    };
    assert!(same, "{row:?}: {half:?}, but {written:?} is written");
}

fn passes(half: &Option<Half>, row: &Row) -> bool {
    match half.as_ref().map(|h| &h.verdict) {
        None => true,
        Some(Verdict::Redirect(_, rules)) => {
            let (method, path) = row.http.as_ref().unwrap_or_else(|| panic!("{row:?} meets L7 rules"));
            rules.allows_http(&HttpRequest { method, path, ..HttpRequest::default() })
        }
        Some(verdict) => verdict.allowed(),
    }
}

fn judge(engine: &Engine, case: &Case, row: &Row) -> Explanation {
    let (from, to) = (party(engine, case, &row.from), party(engine, case, &row.to));
    let told = engine.explain(&from, &to, Traffic { dport: row.dport, proto: row.proto });
    for (me, half, direction, peer) in
        [(&from, &told.egress, Direction::Egress, to.identity), (&to, &told.ingress, Direction::Ingress, from.identity)]
    {
        if let (Some(subject), Some(half)) = (&me.subject, half) {
            check_blocks(engine.policy(subject).unwrap().direction(direction), direction, peer, row, half);
        }
    }
    told
}

fn prepared(case: &Case) -> Engine {
    let mut engine = Engine::new(EnforcementMode::Default, case.host.as_deref() == Some("always"));
    for (n, (name, _)) in ENDPOINTS.iter().enumerate() {
        let (id, subject) = (NumericIdentity(FIRST + n as u32), subject(case, name));
        engine.set_identity(id, Some(&subject.labels));
        engine.set_peer_ports(id, subject.ports.clone());
        engine.add_subject(subject);
    }
    if !case.node.is_empty() {
        engine.set_identity(NODE, Some(&NodeIdentities::labels(&case.node).unwrap()));
    }
    let services = case.services.iter().map(|(name, s)| {
        let (namespace, name) = name.split_once('/').unwrap();
        let service = Service {
            labels: Labels::parse(&s.labels).unwrap(),
            selector: s.selector.clone(),
            addresses: s.addresses.iter().copied().collect(),
        };
        ((namespace.to_owned(), name.to_owned()), service)
    });
    engine.set_services(services.collect(), None).unwrap();
    engine
}

#[test]
fn every_row_is_true() {
    let (mut rows, mut told) = (0, BTreeSet::new());
    for case in truth::cases() {
        let mut engine = prepared(&case);
        for (n, step) in case.steps.iter().enumerate() {
            let what = || format!("{}, step {n}", case.name);
            match step.mode.as_deref() {
                Some("always") => engine.set_mode(EnforcementMode::Always),
                Some("never") => engine.set_mode(EnforcementMode::Never),
                Some("default") => engine.set_mode(EnforcementMode::Default),
                Some(other) => panic!("{other}: {}", what()),
                None => {}
            }
            match step.delete.as_deref() {
                Some("all") => assert!(engine.delete_all().0 > 0, "{}", what()),
                Some(label) => assert!(engine.delete_by_labels(&Labels::parse([label]).unwrap()).0 > 0, "{}", what()),
                None => {}
            }
            if let Some(text) = &step.import {
                let rules = input::parse_with("case", text, Options { l7: case.l7 }).unwrap_or_else(|e| panic!("{e:?}: {}", what()));
                if case.l7 && text.contains("rules: {") {
                    assert!(input::parse("case", text).is_err(), "L7 rules are refused without a proxy: {}", what());
                }
                engine.import(rules, None).unwrap();
            }
            for row in step.connections() {
                let found = judge(&engine, &case, &row);
                let allowed = passes(&found.egress, &row) && passes(&found.ingress, &row);
                assert_eq!(allowed, row.allowed, "{}: {row:?}\n{found:#?}", what());
                rows += 1;
            }
        }
        told.extend(case.name.split(' ').next().filter(|id| id.starts_with('S')).map(str::to_owned));
    }
    let missing: Vec<String> = (1..=30).map(|n| format!("S{n}")).filter(|id| !told.contains(id)).collect();
    assert!(missing.is_empty() && rows > 300, "{missing:?} {rows}");
}
