// SPDX-License-Identifier: Apache-2.0
//! Many rules: what they say, and how long the engine alone takes over them, in a process of its own so that its memory is
//! its own.

use super::median;
use pilus_model::identity::NumericIdentity;
use pilus_model::label::Labels;
use pilus_model::policy::{EnforcementMode, Engine, Rule, Subject, input};
use std::hint::black_box;
use std::time::Instant;

/// Of one of many identities.
pub fn labels(n: usize) -> Labels {
    let of = |key: &str, n: usize| format!("k8s:{key}={n}");
    let texts = [of("app", n % 250), of("tier", n % 7), of("pod", n), "k8s:io.kubernetes.pod.namespace=default".to_owned()];
    Labels::parse(texts).unwrap_or_default()
}

/// A rule about one application's endpoints: another one may come in on a port, from some addresses too.
pub fn rule(n: usize) -> String {
    let (subject, peer, port) = (n % 250, (n * 7 + 13) % 250, 1000 + n % 20_000);
    let cidr = if n.is_multiple_of(20) { format!("\n  - fromCIDR: [10.{}.{}.0/24]", n / 256 % 256, n % 256) } else { String::new() };
    format!(
        "- endpointSelector: {{matchLabels: {{app: '{subject}'}}}}\n  ingress:\n  - fromEndpoints: [{{matchLabels: {{app: '{peer}'}}}}]\n    \
         toPorts: [{{ports: [{{port: {port}, protocol: TCP}}]}}]{cidr}\n"
    )
}

fn rules(text: &str) -> Vec<Rule> {
    input::parse("scale", text).unwrap_or_else(|e| panic!("{e:?}"))
}

/// Resident and highest resident memory, MiB.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or_default()
    };
    (kib("VmRSS:") / 1024.0, kib("VmHWM:") / 1024.0)
}

/// What the goals are about.
pub const RULES: usize = 10_000;
pub const IDENTITIES: usize = 5_000;
pub const ENDPOINTS: usize = 250;

/// Prints one line of `name value` each.
pub fn run() {
    let (count, identities, endpoints) = (RULES, IDENTITIES, ENDPOINTS);
    let all = rules(&(0..count).map(rule).collect::<String>());

    let start = Instant::now();
    let mut engine = Engine::new(EnforcementMode::Default, true);
    for n in 0..identities {
        engine.set_identity(NumericIdentity(256 + n as u32), Some(&labels(n)));
    }
    engine.import(all, None).unwrap_or_else(|e| panic!("{e}"));
    for n in 0..endpoints {
        black_box(engine.add_subject(Subject::from(labels(n))));
    }
    println!("resolve_full_s {:.3}", start.elapsed().as_secs_f64());
    println!("resolve_full_mb {:.1}", memory().1);
    let size = engine.size().unwrap_or_else(|e| panic!("{e}"));
    println!("policies {}\nblocks {}\nrecords {}", size.policies, size.blocks, size.records);
    engine.take_changed();

    let mut one_rule = Vec::new();
    let mut touched = 0;
    for n in 0..21 {
        let more = rules(&rule(count + 11 * n + 1));
        let start = Instant::now();
        engine.import(more, None).unwrap_or_else(|e| panic!("{e}"));
        one_rule.push(start.elapsed().as_secs_f64() * 1e3);
        touched = engine.take_changed().len();
    }
    println!("add_one_rule_ms {:.3} (policies changed: {touched})", median(&one_rule));

    let mut broad = Vec::new();
    for n in 0..5 {
        let more = rules(&format!("- endpointSelector: {{}}\n  ingress: [{{fromEndpoints: [{{matchLabels: {{app: '{n}'}}}}]}}]\n"));
        let start = Instant::now();
        engine.import(more, None).unwrap_or_else(|e| panic!("{e}"));
        broad.push(start.elapsed().as_secs_f64() * 1e3);
        touched = engine.take_changed().len();
    }
    println!("add_one_rule_for_all_ms {:.3} (policies changed: {touched})", median(&broad));

    let mut one_identity = Vec::new();
    for n in 0..21 {
        let (id, of) = (NumericIdentity((256 + identities + n) as u32), labels(identities + 17 * n));
        let start = Instant::now();
        engine.set_identity(id, Some(&of));
        one_identity.push(start.elapsed().as_secs_f64() * 1e3);
        touched = engine.take_changed().len();
    }
    println!("add_one_identity_ms {:.3} (policies changed: {touched})", median(&one_identity));
    println!("rss_mb {:.1}", memory().0);
}
