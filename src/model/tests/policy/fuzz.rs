// SPDX-License-Identifier: Apache-2.0
//! Damaged documents and random changes: never a panic, never more allowed than is written. What is taken is printed, read
//! again and resolved, and each verdict is asked of the rules as written; a field with a damaged name is never left out.
//!
//! A hundredth of `PILUS_FUZZ_ROUNDS` documents are tried, `PILUS_FUZZ_SEED` says which: without them few, and the same each time.

use super::engine::{Told, check_verdicts, random_changes, random_ports, random_services};
use super::oracle::{Random, random_document, random_labels};
use super::truth;
use pilus_model::identity::NumericIdentity;
use pilus_model::label::Labels;
use pilus_model::policy::input::{Options, parse_with};
use pilus_model::policy::{Direction, EnforcementMode, Engine, PortNames, Rule, Subject, block};

const L7: Options = Options::ALL;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: takes a number")))
}

fn rounds(few: usize) -> usize {
    number("PILUS_FUZZ_ROUNDS").map_or(few, |n| usize::try_from(n / 100).unwrap().max(few))
}

fn random(seed: u64) -> Random {
    Random(seed ^ number("PILUS_FUZZ_SEED").unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn corpus(r: &mut Random) -> Vec<String> {
    let written = truth::cases().into_iter().flat_map(|c| c.steps).filter_map(|s| s.import);
    written.chain((0..40).map(|_| random_document(r))).collect()
}

fn damaged(r: &mut Random, corpus: &[String]) -> String {
    let mut text = corpus[r.below(corpus.len())].clone().into_bytes();
    for _ in 0..1 + r.below(2) {
        let (at, other) = (r.below(text.len().max(1)), &corpus[r.below(corpus.len())]);
        match r.below(7) {
            0 if !text.is_empty() => text[at] = r.below(128) as u8,
            1 if !text.is_empty() => drop(text.remove(at)),
            2 => text.insert(at, b"{}[]:,-*&!|>'\"\n #0/.~"[r.below(21)]),
            3 => text.truncate(at),
            4 => {
                let from = r.below(other.len());
                let part = &other.as_bytes()[from..(from + r.below(60)).min(other.len())];
                text.splice(at..at, part.iter().copied());
            }
            5 => {
                let end = (at + r.below(30)).min(text.len());
                drop(text.drain(at..end));
            }
            _ => {
                let words =
                    ["null", "&a ", "*a", "!!str ", "true", "65536", "0x10", "---\n", "fromCIDR", "toPorts", "reserved:all", "::/0"];
                text.splice(at..at, r.one(&words).bytes());
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads, prints, reads again, resolves. True if the text was taken.
fn survives(text: &str) -> bool {
    let rules = match parse_with("fuzz", text, L7) {
        Ok(rules) => rules,
        Err(errors) => {
            assert!(
                !errors.is_empty() && errors.iter().all(|e| e.line > 0 && !e.message.is_empty() && !e.to_string().contains('\n')),
                "{errors:?}"
            );
            return false;
        }
    };
    let json = serde_json::to_string(&rules).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Rule>>(&json).unwrap(), rules, "{text}");
    let again = parse_with("fuzz", &json, L7).unwrap_or_else(|e| panic!("{e:?}\n{json}\n{text}"));
    for (a, b) in rules.iter().zip(&again) {
        let parts = |r: &Rule| {
            (
                r.endpoint_selector.clone(),
                r.ingress.clone(),
                r.ingress_deny.clone(),
                r.egress.clone(),
                r.egress_deny.clone(),
                r.enable_default_deny,
            )
        };
        assert_eq!(parts(a), parts(b), "{text}");
    }
    // Without a proxy nothing is taken that needs one.
    if rules.iter().any(json_has_l7) {
        assert!(parse_with("fuzz", text, Options::default()).is_err(), "{text}");
    }
    let mut engine = Engine::new(EnforcementMode::Default, true);
    for (n, (_, labels)) in truth::ENDPOINTS.iter().enumerate() {
        let labels = Labels::parse(*labels).unwrap();
        engine.set_identity(NumericIdentity(256 + n as u32), Some(&labels));
        engine.add_subject(Subject { labels, ports: PortNames::from([("http".to_owned(), [(80, 6)].into())]) });
    }
    if engine.import(rules, None).is_ok() {
        for (_, policy) in engine.policies() {
            for direction in Direction::ALL {
                block::blocks(2, direction, policy.direction(direction), &mut |_| 1).unwrap();
            }
        }
        engine.delete_all();
        assert!(engine.prefixes().is_empty());
    }
    true
}

fn json_has_l7(rule: &Rule) -> bool {
    [&rule.ingress, &rule.egress].into_iter().flatten().flat_map(|s| &s.to_ports).any(|p| p.rules.as_ref().is_some_and(|r| !r.is_empty()))
}

#[test]
fn damaged_documents_do_no_harm() {
    let mut r = random(0x005e_ed0f_d0c5);
    let corpus = corpus(&mut r);
    let tries = rounds(10_000);
    let taken = (0..tries).filter(|_| survives(&damaged(&mut r, &corpus))).count();
    assert!(taken > tries / 50 && taken < tries * 9 / 10, "{taken} of {tries}");
}

#[test]
fn no_field_is_ever_left_out() {
    let names = [
        "endpointSelector",
        "ingress",
        "egress",
        "ingressDeny",
        "egressDeny",
        "enableDefaultDeny",
        "fromEndpoints",
        "toEndpoints",
        "fromRequires",
        "fromCIDR",
        "toCIDR",
        "fromCIDRSet",
        "toCIDRSet",
        "cidr",
        "except",
        "fromEntities",
        "toEntities",
        "toServices",
        "toPorts",
        "ports",
        "port",
        "endPort",
        "protocol",
        "icmps",
        "fields",
        "type",
        "family",
        "rules",
        "http",
        "path",
        "method",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "podSelector",
        "namespaceSelector",
        "ipBlock",
        "from",
        "to",
        "policyTypes",
        "spec",
        "specs",
    ];
    let mut r = Random(0x0ddba11);
    let corpus = corpus(&mut r);
    let mut tried = 0;
    for text in corpus.iter().filter(|t| parse_with("t", t, L7).is_ok()) {
        for name in names {
            for (at, _) in text.match_indices(&format!("{name}:")) {
                if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.' || c == '/') {
                    continue;
                }
                let broken = format!("{}{name}x{}", &text[..at], &text[at + name.len()..]);
                assert!(parse_with("t", &broken, L7).is_err(), "{broken}");
                tried += 1;
            }
        }
    }
    assert!(tried > 500, "{tried}");
}

/// Documents that were damaged and are taken nevertheless, over endpoints that change: the policies that follow say what the
/// rules say, as an evaluator without any cleverness reads them.
#[test]
fn what_is_taken_admits_no_more_than_it_says() {
    let mut r = random(0x7a4e_0b1d);
    let corpus = corpus(&mut r);
    let (mut asked, mut taken) = (0, 0);
    for _ in 0..rounds(2_000) / 10 {
        let mut told = Told { services: random_services(&mut r), ..Told::default() };
        let host_always = r.below(2) == 0;
        let mut engine = Engine::new(EnforcementMode::Default, host_always);
        engine.set_services(told.services.clone(), None).unwrap();
        for n in 0..4 {
            let (id, labels, ports) = (256 + n, random_labels(&mut r), random_ports(&mut r));
            engine.set_identity(NumericIdentity(id), Some(&labels));
            engine.set_peer_ports(NumericIdentity(id), ports.clone());
            told.identities.insert(id, labels.clone());
            told.peer_ports.insert(id, ports.clone());
            let subject = Subject { labels, ports };
            if !told.subjects.contains(&subject) {
                engine.add_subject(subject.clone());
                told.subjects.push(subject);
            }
        }
        for n in 0..10 {
            // Rules are told apart by where they were written.
            let found = (0..20)
                .find_map(|_| parse_with(&format!("t{n}"), &damaged(&mut r, &corpus), Options::default()).ok().filter(|r| !r.is_empty()));
            let Some(rules) = found else { continue };
            if engine.import(rules, None).is_ok() {
                taken += 1;
                asked += check_verdicts(&mut r, &engine, &told, host_always);
            }
        }
    }
    assert!(taken > 500 && asked > taken * 20, "{taken} documents, {asked} verdicts");
}

#[test]
fn random_changes_of_other_seeds() {
    let seed = random(0xc0ffee).0;
    let asked: usize = (0..rounds(1_000) as u64 / 500).map(|n| random_changes(seed.wrapping_add(n), 50)).sum();
    assert!(asked > 0);
}
