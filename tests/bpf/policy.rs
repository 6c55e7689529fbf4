// SPDX-License-Identifier: Apache-2.0
//! Policies: blocks as written by hand and by the model, audit, reports and counters.

use pilus_model::abi::DropReason::*;
use pilus_model::abi::FlowState::{New, Reply};
use pilus_model::abi::*;
use pilus_model::identity::NumericIdentity;
use pilus_model::label::Labels;
use pilus_model::policy::{Direction, EnforcementMode, Repository, SelectorCache, blocks, input, resolve};
use pilus_tests::packet::Packet;
use pilus_tests::scenario::*;
use pilus_tests::wire::{GRE, ICMP, ICMPV6, SCTP, SYN, TCP, UDP};
use pilus_tests::world::Who::{self, A, B, C, Host};
use pilus_tests::world::{Family, POLICY_FREE, rule};

/// B's ingress (A's egress, if `dir` says so) is these rules for `peer`.
fn policy(dir: u8, peer: u32, rules: Vec<PolicyRule>) -> Step {
    act(move |w, _| {
        w.rules(POLICY_FREE, dir, peer, &rules);
        if dir == DIR_INGRESS {
            w.repolicy(B, |row| row.policy_in = POLICY_FREE);
        } else {
            w.repolicy(A, |row| row.policy_out = POLICY_FREE);
        }
    })
}

fn ingress(rules: &[PolicyRule]) -> Step {
    policy(DIR_INGRESS, A.identity(), rules.to_vec())
}

fn egress(rules: &[PolicyRule]) -> Step {
    policy(DIR_EGRESS, B.identity(), rules.to_vec())
}

fn tcp(port: u16) -> impl Fn(Family) -> Packet {
    move |f| f.ip(A, B).tcp(40000, port, SYN)
}

fn udp(port: u16) -> impl Fn(Family) -> Packet {
    move |f| f.ip(A, B).udp(40000, port)
}

/// n rules for UDP ports 1000, 1001, …, each a record of its own from 100 on.
fn many(n: u16) -> Vec<PolicyRule> {
    (0..n).map(|i| rule(1000 + i, 1000 + i, UDP, 0, 100 + i)).collect()
}

/// The rule's counter counts one packet more by the step.
fn counts(idx: u32, step: fn() -> Step) -> Vec<Step> {
    let before = std::rc::Rc::new(std::cell::Cell::new(0));
    let after = before.clone();
    vec![
        act(move |w, _| before.set(w.rule_packets(idx))),
        step(),
        act(move |w, _| assert_eq!(w.rule_packets(idx), after.get() + 1, "packets of rule {idx}")),
    ]
}

fn blocks_by_hand() -> Vec<Scenario> {
    vec![
        row(
            "ports and ranges, both ends included",
            vec![
                ingress(&[rule(100, 200, TCP, 0, 1), rule(65535, 65535, TCP, 0, 2), rule(0, 0, UDP, 0, 3)]),
                send(A, tcp(99)).drop(PolicyDenied),
                send(A, tcp(100)).pass(B, New),
                send(A, tcp(200)).pass(B, New),
                send(A, tcp(201)).drop(PolicyDenied),
                send(A, tcp(65535)).pass(B, New),
                send(A, udp(150)).drop(PolicyDenied),
                send(A, udp(0)).pass(B, New),
            ],
        ),
        row(
            "any protocol",
            vec![
                ingress(&[rule(53, 53, 0, 0, 1)]),
                send(A, tcp(53)).pass(B, New),
                send(A, udp(53)).pass(B, New),
                send(A, |f| f.ip(A, B).sctp(1, 53)).pass(B, New),
                send(A, udp(54)).drop(PolicyDenied),
                ingress(&[rule(0, 65535, 0, 0, 1)]),
                send(A, udp(54)).pass(B, New),
                send(A, |f| f.ip(A, B).raw_l4(GRE, &[0; 4])).pass(B, New),
                send(A, |f| f.ip(A, B).echo(false, 1)).pass(B, New),
            ],
        ),
        row(
            "the first match decides",
            vec![
                ingress(&[rule(80, 80, TCP, RULE_DENY, 1), rule(0, 65535, TCP, 0, 2)]),
                send(A, tcp(80)).drop(PolicyDeny).flow(A, FLOW_DENY),
                send(A, tcp(81)).pass(B, New),
                ingress(&[rule(0, 65535, TCP, 0, 2), rule(80, 80, TCP, RULE_DENY, 1)]),
                send(A, |f| f.ip(A, B).tcp(40001, 80, SYN)).pass(B, New),
            ],
        ),
        row(
            "ICMP types",
            vec![
                ingress(&[rule(8, 8, ICMP, 0, 1), rule(128, 128, ICMPV6, 0, 1)]),
                send(A, |f| f.ip(A, B).echo(false, 1)).pass(B, New),
                send(A, |f| f.ip(A, B).echo(true, 2)).drop(PolicyDenied),
                send(A, |f| f.ip(A, B).icmp(if f == Family::V4 { 13 } else { 139 }, 0, [0; 4])).drop(PolicyDenied),
            ],
        ),
        // Its answers once were judged as answers to IPv4's echo, and passed where that may.
        row6(
            "IPv4's ICMP in IPv6 is no echo",
            vec![
                ingress(&[rule(0, 0, ICMP, 0, 1)]),
                send(A, |f| f.ip(A, B).raw_l4(ICMP, &[0; 8])).pass(B, New),
                send(B, |f| f.ip(B, A).raw_l4(ICMP, &[0; 8])).pass(A, Reply),
                ingress(&[rule(8, 8, ICMP, 0, 1)]),
                send(B, |f| f.ip(B, A).raw_l4(ICMP, &[0; 8])).drop(Revoked),
            ],
        ),
        row("a chain of blocks", {
            let mut steps = vec![ingress(&many(128))];
            for n in [0, 7, 8, 9, 15, 16, 63, 64, 126, 127] {
                steps.push(send(A, udp(1000 + n)).pass(B, New));
            }
            steps.push(send(A, udp(999)).drop(PolicyDenied));
            steps.push(send(A, udp(1128)).drop(PolicyDenied));
            steps
        }),
        row(
            "one block exactly, and one rule more",
            vec![
                ingress(&many(8)),
                send(A, udp(1007)).pass(B, New),
                send(A, udp(1008)).drop(PolicyDenied),
                ingress(&many(9)),
                send(A, udp(1008)).pass(B, New),
                send(A, udp(1009)).drop(PolicyDenied),
            ],
        ),
        row(
            "a chain that breaks off denies",
            vec![
                ingress(&many(24)),
                act(|w, _| {
                    let key = PolicyKey { policy: POLICY_FREE << 5 | u32::from(DIR_INGRESS) << 4 | 1, identity: A.identity() };
                    assert!(w.policy.delete(&key).unwrap());
                }),
                send(A, udp(1007)).pass(B, New),
                send(A, udp(1008)).drop(PolicyDenied),
                send(A, udp(1020)).drop(PolicyDenied),
            ],
        ),
        row(
            "rules for any identity",
            vec![
                policy(DIR_INGRESS, 0, vec![rule(80, 80, TCP, 0, 1)]),
                send(A, tcp(80)).pass(B, New),
                send(A, tcp(81)).drop(PolicyDenied),
                send(Host, |f| f.ip(Host, B).tcp(1, 80, SYN)).pass(B, New),
                send(C, |f| f.ip(C, B).tcp(1, 80, SYN)).pass(B, New),
            ],
        ),
        row(
            "a chain for any identity",
            vec![policy(DIR_INGRESS, 0, many(20)), send(A, udp(1019)).pass(B, New), send(A, udp(1020)).drop(PolicyDenied)],
        ),
        row(
            "an identity's own rules decide alone",
            vec![
                policy(DIR_INGRESS, 0, vec![rule(80, 80, TCP, 0, 1)]),
                ingress(&[rule(81, 81, TCP, 0, 1)]),
                send(A, tcp(80)).drop(PolicyDenied),
                send(A, tcp(81)).pass(B, New),
                send(C, |f| f.ip(C, B).tcp(1, 80, SYN)).pass(B, New),
                send(C, |f| f.ip(C, B).tcp(1, 81, SYN)).drop(PolicyDenied),
            ],
        ),
        row(
            "egress and ingress both decide",
            vec![
                egress(&[rule(80, 81, TCP, 0, 1)]),
                ingress(&[rule(81, 82, TCP, 0, 2)]),
                send(A, tcp(80)).drop(PolicyDenied).dir(DIR_INGRESS),
                send(A, tcp(81)).pass(B, New),
                send(A, tcp(82)).drop(PolicyDenied).dir(DIR_EGRESS),
            ],
        ),
        row("egress denies by a rule", vec![egress(&[rule(80, 80, TCP, RULE_DENY, 1)]), send(A, tcp(80)).drop(PolicyDeny).dir(DIR_EGRESS)]),
        row(
            "a policy that has no rules",
            vec![act(|w, _| w.repolicy(B, |row| row.policy_in = POLICY_FREE + 1)), send(A, tcp(80)).drop(PolicyDenied)],
        ),
        row(
            "none and open",
            vec![
                act(|w, _| w.repolicy(B, |row| row.policy_in = POLICY_NONE)),
                send(A, tcp(80)).drop(PolicyDenied).dir(DIR_INGRESS),
                act(|w, _| w.repolicy(B, |row| row.policy_in = POLICY_OPEN)),
                send(A, udp(12345)).pass(B, New),
                send(A, |f| f.ip(A, B).raw_l4(253, &[])).pass(B, New),
                act(|w, _| w.repolicy(A, |row| row.policy_out = POLICY_NONE)),
                send(A, udp(12346)).drop(PolicyDenied).dir(DIR_EGRESS),
            ],
        ),
        row(
            "what a proxy should see is not let through",
            vec![
                ingress(&[rule(80, 80, TCP, RULE_L7, 1), rule(81, 81, TCP, RULE_AUTH, 2)]),
                send(A, tcp(80)).drop(PolicyL7),
                send(A, tcp(81)).drop(PolicyL7),
            ],
        ),
        row(
            "SCTP ports",
            vec![
                ingress(&[rule(132, 132, SCTP, 0, 1)]),
                send(A, |f| f.ip(A, B).sctp(1, 132)).pass(B, New),
                send(A, |f| f.ip(A, B).sctp(132, 1)).drop(PolicyDenied),
            ],
        ),
    ]
}

const OUT: (u8, u8, Option<DropReason>) = (DIR_EGRESS, EVENT_ALLOW, None);
const IN: (u8, u8, Option<DropReason>) = (DIR_INGRESS, EVENT_ALLOW, None);

fn reports() -> Vec<Scenario> {
    vec![
        row(
            "verdicts are reported",
            vec![
                send(A, tcp(80)).pass(B, New).verdicts(&[OUT, IN]),
                send(A, tcp(81)).drop(PolicyDenied).verdicts(&[OUT, (DIR_INGRESS, 0, Some(PolicyDenied))]),
                send(A, |f| f.ip(A, B).tcp(40000, 80, pilus_tests::wire::ACK))
                    .pass(B, pilus_model::abi::FlowState::Established)
                    .verdicts(&[]),
                act(|w, _| w.repolicy(A, |row| row.policy_out = POLICY_NONE)),
                send(A, udp(9)).drop(PolicyDenied).verdicts(&[(DIR_EGRESS, 0, Some(PolicyDenied))]),
            ],
        ),
        row(
            "audit of ingress",
            vec![
                act(|w, _| w.change(B, |row| row.flags |= EP_AUDIT_IN)),
                send(A, tcp(81)).pass(B, New).flow(A, 0).verdicts(&[OUT, (DIR_INGRESS, EVENT_AUDIT, Some(PolicyDenied))]),
                send(A, tcp(80)).pass(B, New).verdicts(&[OUT, IN]),
                send(B, |f| f.ip(B, A).udp(1, 2)).drop(PolicyDenied).dir(DIR_EGRESS),
            ],
        ),
        row(
            "audit of egress",
            vec![
                act(|w, _| w.change(B, |row| row.flags |= EP_AUDIT_OUT)),
                act(|w, _| w.change(A, |row| row.policy_in = POLICY_OPEN)),
                send(B, |f| f.ip(B, A).udp(1, 2)).pass(A, New).verdicts(&[(DIR_EGRESS, EVENT_AUDIT, Some(PolicyDenied)), IN]),
                send(A, udp(9)).drop(PolicyDenied),
            ],
        ),
        row(
            "audit of a rule that denies",
            vec![
                ingress(&[rule(80, 80, TCP, RULE_DENY, 1)]),
                act(|w, _| w.change(B, |row| row.flags |= EP_AUDIT_IN)),
                send(A, tcp(80)).pass(B, New).verdicts(&[OUT, (DIR_INGRESS, EVENT_AUDIT, Some(PolicyDeny))]),
            ],
        ),
        row("rules count first packets", {
            let mut steps = vec![ingress(&many(10)), egress(&[rule(0, 65535, 0, 0, 50)])];
            steps.extend(counts(109, || send(A, udp(1009)).pass(B, New)));
            steps.extend(counts(50, || send(A, udp(1008)).pass(B, New)));
            steps.extend(counts(50, || send(A, udp(2000)).drop(PolicyDenied)));
            steps
        }),
        row("rules that deny count too", {
            let mut steps = vec![ingress(&[rule(80, 80, TCP, RULE_DENY, 60)])];
            steps.extend(counts(60, || send(A, tcp(80)).drop(PolicyDeny)));
            steps
        }),
    ]
}

const RULES: &str = r#"
- endpointSelector: {matchLabels: {app: b}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: a}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}, {port: "5000", endPort: 5010, protocol: UDP}]}]
  - fromEntities: [host]
  ingressDeny:
  - fromEndpoints: [{}]
    toPorts: [{ports: [{port: "5005", protocol: UDP}]}]
"#;

fn labels(app: &str) -> Labels {
    Labels::parse([format!("k8s:app={app}").as_str()]).unwrap_or_else(|e| panic!("label of {app}: {e:?}"))
}

/// What users write, resolved and laid out by the model.
fn import() -> Step {
    act(|w, _| {
        let rules = input::parse("test", RULES).expect("rules");
        let mut repository = Repository::new();
        repository.import(rules);
        let mut cache = SelectorCache::new();
        for who in Who::CONTAINERS {
            let app = format!("{who:?}").to_lowercase();
            cache.insert(NumericIdentity(who.identity()), &labels(&app));
        }
        let policy = resolve(&repository, &mut cache, &labels("b"), EnforcementMode::Default, false);
        let laid = blocks(POLICY_FREE, Direction::Ingress, policy.direction(Direction::Ingress), &mut |_| 70).expect("room");
        w.policy.put_batch(&laid).expect("policy");
        w.repolicy(B, |row| row.policy_in = POLICY_FREE);
    })
}

fn model() -> Vec<Scenario> {
    vec![row(
        "as the model lays it out",
        vec![
            import(),
            send(A, tcp(80)).pass(B, New),
            send(A, tcp(81)).drop(PolicyDenied),
            send(A, udp(5000)).pass(B, New),
            send(A, udp(5010)).pass(B, New),
            send(A, udp(5011)).drop(PolicyDenied),
            send(A, udp(5005)).drop(PolicyDeny),
            send(C, |f| f.ip(C, B).udp(1, 5005)).drop(PolicyDeny),
            send(C, |f| f.ip(C, B).udp(1, 5006)).drop(PolicyDenied),
            send(Host, |f| f.ip(Host, B).tcp(1, 9999, SYN)).pass(B, New),
            send(Host, |f| f.ip(pilus_tests::world::Who::World, B).tcp(1, 9999, SYN)).drop(PolicyDenied),
        ],
    )]
}

pub fn table() -> Vec<Scenario> {
    [blocks_by_hand(), reports(), model()].into_iter().flatten().collect()
}

#[test]
fn policies() {
    run(table);
}
