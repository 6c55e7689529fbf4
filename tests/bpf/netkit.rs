// SPDX-License-Identifier: Apache-2.0
//! The shape of nodes with netkit devices judges as the other one does. Which way a packet then goes only devices show:
//! `tests/e2e/kernels`.

use pilus_codegen::Features;
use pilus_tests::scenario::run_of;

#[test]
fn every_row_under_netkit() {
    run_of(&Features::default().with("netkit", true), crate::reasons::tables);
}
