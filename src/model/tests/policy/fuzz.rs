// SPDX-License-Identifier: Apache-2.0
//! Damaged documents from a fixed seed: never a panic, never more allowed than is written. What is taken is printed, read
//! again and resolved; a field with a damaged name is never left out. `PILUS_TEST_LONG=1` tries ten times as many.

use super::oracle::{Random, random_document};
use super::truth;
use pilus_model::identity::NumericIdentity;
use pilus_model::label::Labels;
use pilus_model::policy::input::{Options, parse_with};
use pilus_model::policy::{Direction, EnforcementMode, Engine, PortNames, Rule, Subject, block};

const L7: Options = Options::ALL;

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
    let mut r = Random(0x005e_ed0f_d0c5);
    let corpus = corpus(&mut r);
    let tries = if std::env::var_os("PILUS_TEST_LONG").is_some() { 100_000 } else { 10_000 };
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
