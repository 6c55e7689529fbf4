// SPDX-License-Identifier: Apache-2.0
//! Connections that end, and begin again.

use crate::flow::{after_talk, back, there};
use pilus_model::abi::DropReason::*;
use pilus_model::abi::FlowState::{Established, New, Reopened, Reply};
use pilus_model::abi::*;
use pilus_tests::scenario::*;
use pilus_tests::wire::{ACK, FIN, RST, SYN};
use pilus_tests::world::Who::{A, B};

pub fn table() -> Vec<Scenario> {
    vec![
        row(
            "FIN of both sides",
            after_talk(vec![
                send(A, there(FIN | ACK)).pass(B, Established).flow(A, FLOW_REPLY | FLOW_FIN_A),
                send(B, back(ACK)).pass(A, Reply).flow(A, FLOW_REPLY | FLOW_FIN_A),
                send(B, back(FIN | ACK)).pass(A, Reply).flow(A, FLOW_REPLY | FLOW_FIN_A | FLOW_FIN_B),
                send(A, there(ACK)).pass(B, Established).flow(A, FLOW_REPLY | FLOW_FIN_A | FLOW_FIN_B).packets(4, 3),
            ]),
        ),
        row(
            "the answering side ends first",
            after_talk(vec![
                send(B, back(FIN | ACK)).pass(A, Reply).flow(A, FLOW_REPLY | FLOW_FIN_B),
                send(A, there(ACK)).pass(B, Established).flow(A, FLOW_REPLY | FLOW_FIN_B),
            ]),
        ),
        row(
            "RST of the opener",
            after_talk(vec![
                send(A, there(RST)).pass(B, Established).flow(A, FLOW_REPLY | FLOW_RST),
                send(B, back(ACK)).pass(A, Reply).flow(A, FLOW_REPLY | FLOW_RST),
            ]),
        ),
        row("RST of the other side", after_talk(vec![send(B, back(RST | ACK)).pass(A, Reply).flow(A, FLOW_REPLY | FLOW_RST)])),
        row(
            "opened again after FIN",
            after_talk(vec![
                send(A, there(FIN | ACK)).pass(B, Established),
                send(B, back(FIN | ACK)).pass(A, Reply),
                send(A, there(SYN)).pass(B, Reopened).flow(A, 0).packets(1, 0),
                send(B, back(SYN | ACK)).pass(A, Reply).flow(A, FLOW_REPLY),
            ]),
        ),
        row(
            "opened again after RST",
            after_talk(vec![send(B, back(RST)).pass(A, Reply), send(A, there(SYN)).pass(B, Reopened).flow(A, 0)]),
        ),
        row("a SYN on a live flow keeps it", after_talk(vec![send(A, there(SYN)).pass(B, New).flow(A, FLOW_REPLY).packets(3, 1)])),
        row(
            "opened again by the other side",
            after_talk(vec![
                act(|w, _| w.repolicy(A, |row| row.policy_in = POLICY_OPEN)),
                act(|w, _| w.repolicy(B, |row| row.policy_out = POLICY_OPEN)),
                send(A, there(RST)).pass(B, Established),
                send(B, back(SYN)).pass(A, Reopened).flow(B, 0),
                send(A, there(SYN | ACK)).pass(B, Reply).flow(B, FLOW_REPLY),
            ]),
        ),
        row(
            "opened again, but denied meanwhile",
            after_talk(vec![
                send(A, there(RST)).pass(B, Established),
                act(|w, _| w.repolicy(B, |row| row.policy_in = POLICY_NONE)),
                send(A, there(SYN)).drop(PolicyDenied).flow(A, FLOW_REPLY | FLOW_RST | FLOW_DENY),
            ]),
        ),
        row(
            "taken up by its FIN",
            vec![
                send(A, there(FIN | ACK)).pass(B, New).flow(A, FLOW_MIDSTREAM | FLOW_FIN_A),
                send(B, back(FIN | ACK)).pass(A, Reply).flow(A, FLOW_MIDSTREAM | FLOW_REPLY | FLOW_FIN_A | FLOW_FIN_B),
            ],
        ),
        row("taken up by its RST", vec![send(A, there(RST)).pass(B, New).flow(A, FLOW_MIDSTREAM | FLOW_RST)]),
        row(
            "SYN with RST is no SYN",
            vec![
                send(A, there(SYN | RST)).pass(B, New).flow(A, FLOW_MIDSTREAM | FLOW_RST),
                send(A, |f| f.ip(A, B).tcp(40000, 81, SYN | RST)).drop(PolicyDenied).no_flow(),
            ],
        ),
    ]
}

#[test]
fn connections_that_end() {
    run(table);
}
