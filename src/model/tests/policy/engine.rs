// SPDX-License-Identifier: Apache-2.0
//! Random changes of rules, identities, endpoints, services and modes against the incremental engine. After each, what the
//! engine has must be what a new engine makes of the same facts; now and then every verdict is asked of the rules as
//! written. `PILUS_TEST_LONG=1` makes ten times as many changes.

use super::oracle::{self, Facts, Random, random_document, random_labels};
use pilus_model::identity::NumericIdentity;
use pilus_model::label::Labels;
use pilus_model::policy::block::{self, BlockVerdict};
use pilus_model::policy::{
    Direction, DirectionPolicy, EnforcementMode, Engine, PortNames, Revision, Rule, Service, Subject, Verdict, input, verdict,
};
use pilus_model::prefix::Prefix;
use std::collections::{BTreeMap, BTreeSet, HashMap};

pub fn random_ports(r: &mut Random) -> PortNames {
    let mut ports = PortNames::new();
    for name in ["http", "dns"] {
        if r.below(2) == 0 {
            let proto = if r.below(2) == 0 { 6 } else { 17 };
            ports.entry(name.to_owned()).or_default().insert((1 + r.below(12) as u16, proto));
        }
    }
    ports
}

pub fn random_services(r: &mut Random) -> BTreeMap<(String, String), Service> {
    let mut services = BTreeMap::new();
    for name in ["one", "two"] {
        if r.below(3) > 0 {
            let selector = (r.below(2) == 0)
                .then(|| serde_json::from_str(&format!(r#"{{"matchLabels": {{"app": "{}"}}}}"#, r.one(&["a", "b"]))).unwrap());
            let addresses = (0..r.below(3)).map(|_| oracle::random_address(r).parse().unwrap()).collect();
            services.insert(
                ("default".to_owned(), name.to_owned()),
                Service { labels: Labels::parse([format!("k8s:s={name}")]).unwrap(), selector, addresses },
            );
        }
    }
    services
}

/// Everything that the engine was told, in order.
#[derive(Default)]
pub struct Told {
    pub identities: BTreeMap<u32, Labels>,
    pub subjects: Vec<Subject>,
    pub peer_ports: BTreeMap<u32, PortNames>,
    pub services: BTreeMap<(String, String), Service>,
}

fn text(rules: &[Rule]) -> String {
    rules.iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect()
}

fn from_scratch(engine: &Engine, told: &Told, host_always: bool) -> Engine {
    let mut fresh = Engine::new(engine.mode(), host_always);
    let rules = engine.repository().rules().cloned().collect();
    fresh.set_services(told.services.clone(), None).unwrap();
    told.subjects.iter().for_each(|s| drop(fresh.add_subject(s.clone())));
    fresh.replace(rules, Revision(0)).unwrap();
    told.identities.iter().for_each(|(id, labels)| fresh.set_identity(NumericIdentity(*id), Some(labels)));
    told.peer_ports.iter().for_each(|(id, ports)| fresh.set_peer_ports(NumericIdentity(*id), ports.clone()));
    fresh
}

/// Everything that would be written: prefixes, and blocks of each endpoint with the place of the rule behind each entry.
fn contents(engine: &Engine) -> (Vec<(Prefix, u32)>, Vec<String>) {
    let places: HashMap<_, _> = engine.repository().rules().enumerate().map(|(n, r)| (std::sync::Arc::as_ptr(&r.origin), n)).collect();
    let mut out = Vec::new();
    for (subject, policy) in engine.policies() {
        for direction in Direction::ALL {
            let mut names = Vec::new();
            let rows = block::blocks(2, direction, policy.direction(direction), &mut |rule| {
                let place = places.get(&std::sync::Arc::as_ptr(&rule.0)).copied().unwrap_or(60_000);
                names.push(place);
                u16::try_from(place).unwrap()
            });
            out.push(format!("{subject:?} {direction} {} {rows:?}", **policy.direction(direction) == DirectionPolicy::Open));
        }
    }
    out.sort();
    (engine.prefixes().iter().map(|(p, id)| (p, id.get())).collect(), out)
}

/// Every pair's verdicts as the rules say them.
pub fn check_verdicts(r: &mut Random, engine: &Engine, told: &Told, host_always: bool) -> usize {
    let rules: Vec<Rule> = engine.repository().rules().map(|r| (**r).clone()).collect();
    let everyone: Vec<(NumericIdentity, Labels)> =
        engine.identities().map(|(id, l)| (id, l.clone())).chain([(NumericIdentity(0), Labels::new())]).collect();
    let facts = Facts { rules: &rules, mode: engine.mode(), host_always, services: &told.services, peer_ports: &told.peer_ports };
    let mut asked = 0;
    for subject in &told.subjects {
        let policy = engine.policy(subject).unwrap();
        for direction in Direction::ALL {
            let p = policy.direction(direction);
            let rows: HashMap<_, _> = block::blocks(7, direction, p, &mut |_| 1).unwrap().into_iter().collect();
            for (peer, labels) in &everyone {
                let (port, proto) = ([0u16, 1, 2, 3, 4, 8, 11, 12, 16, 80][r.below(10)], [6u8, 6, 17, 132, 1, 58][r.below(6)]);
                let found = verdict(p, *peer, port, proto);
                let want = facts.told(subject, direction, *peer, labels, port, proto);
                let agree = match (&want, &found) {
                    (oracle::Told::Open, found) => found.allowed(),
                    (oracle::Told::Allow(by), Verdict::Allow(rule)) => by.is_empty() || by.contains(&rule.0),
                    (oracle::Told::Deny(by), Verdict::Deny(Some(rule))) => by.contains(&rule.0),
                    (oracle::Told::Deny(by), Verdict::Deny(None)) => by.is_empty(),
                    _ => false,
                };
                assert!(
                    agree,
                    "{direction} of {subject:?} with {peer:?} [{labels}] {port}/{proto}: {found:?}, not {want:?}\n{}",
                    text(&rules)
                );
                if **p != DirectionPolicy::Open {
                    let written = block::lookup(&rows, 7, direction, *peer, port, proto);
                    assert_eq!(!matches!(written, BlockVerdict::Deny(_)), found.allowed(), "blocks: {peer:?} {port}/{proto}");
                }
                asked += 1;
            }
        }
    }
    asked
}

pub fn random_changes(seed: u64, changes: usize) -> usize {
    let mut r = Random(seed);
    let host_always = r.below(2) == 0;
    let mut engine = Engine::new(EnforcementMode::Default, host_always);
    let mut told = Told::default();
    let mut asked = 0;
    for step in 0..changes {
        match r.below(20) {
            0..=5 => {
                let text: String = (0..1 + r.below(2)).map(|_| random_document(&mut r)).collect();
                // A text with the same object twice is a mistake. Rules are told apart by where they were written.
                if let Ok(rules) = input::parse_with(&format!("t{step}"), &text, input::Options::ALL) {
                    engine.import(rules, None).unwrap();
                }
            }
            6..=9 => {
                let name = format!("k8s:io.cilium.k8s.policy.name=p{}", r.below(6));
                engine.delete_by_labels(&Labels::parse([name]).unwrap());
            }
            10 if r.below(4) == 0 => drop(engine.delete_all()),
            10..=13 => {
                let (id, labels) = match r.below(4) {
                    0 => ((2 << 24) + r.below(3) as u32, oracle::random_node_labels(&mut r)),
                    _ => (256 + r.below(8) as u32, random_labels(&mut r)),
                };
                if r.below(3) == 0 {
                    told.identities.remove(&id);
                    told.peer_ports.remove(&id);
                    engine.set_identity(NumericIdentity(id), None);
                } else {
                    engine.set_identity(NumericIdentity(id), Some(&labels));
                    told.identities.insert(id, labels);
                }
            }
            14 | 15 if told.subjects.len() < 5 => {
                let subject = Subject { labels: random_labels(&mut r), ports: random_ports(&mut r) };
                engine.add_subject(subject.clone());
                told.subjects.push(subject);
            }
            14..=16 if !told.subjects.is_empty() => {
                let at = r.below(told.subjects.len());
                engine.remove_subject(&told.subjects.remove(at));
            }
            17 => {
                let modes = [EnforcementMode::Default, EnforcementMode::Default, EnforcementMode::Always, EnforcementMode::Never];
                engine.set_mode(modes[r.below(4)]);
            }
            18 => {
                told.services = random_services(&mut r);
                engine.set_services(told.services.clone(), None).unwrap();
            }
            _ => {
                let (id, ports) = (256 + r.below(8) as u32, random_ports(&mut r));
                if told.identities.contains_key(&id) {
                    engine.set_peer_ports(NumericIdentity(id), ports.clone());
                    told.peer_ports.insert(id, ports);
                }
            }
        }
        let fresh = from_scratch(&engine, &told, host_always);
        assert_eq!(contents(&engine), contents(&fresh), "seed {seed:#x}, step {step}");
        asked += check_verdicts(&mut r, &engine, &told, host_always);
    }
    let subjects: BTreeSet<&Subject> = told.subjects.iter().collect();
    assert_eq!(engine.policies().count(), subjects.len());
    asked
}

#[test]
fn random_changes_leave_what_is_made_from_scratch() {
    let long = std::env::var_os("PILUS_TEST_LONG").is_some();
    let total = if long { 100_000 } else { 10_000 };
    let per_seed = 250;
    let threads = 2;
    let asked: usize = std::thread::scope(|scope| {
        let work = |t: usize| {
            move || {
                (0..total / per_seed / threads)
                    .map(|n| random_changes(0x9e37_79b9_7f4a_7c15 ^ ((t * 10_000 + n) as u64) << 7, per_seed))
                    .sum::<usize>()
            }
        };
        let handles: Vec<_> = (0..threads).map(|t| scope.spawn(work(t))).collect();
        handles.into_iter().map(|h| h.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).sum()
    });
    assert!(asked > total * 10, "{asked}");
}
