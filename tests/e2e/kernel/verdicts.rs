// SPDX-License-Identifier: Apache-2.0
//! The table of verdicts, for both builds and both ways of attaching; in `tests/e2e/kernels` for netkit.

use pilus_e2e::NodeOptions;
use pilus_e2e::verdicts::table;

fn options(attach: &'static str, build: &'static str) -> NodeOptions {
    NodeOptions { attach, build, ..NodeOptions::default() }
}

#[test]
fn verdicts_shared_tc() {
    table(options("tc", "shared"));
}

#[test]
fn verdicts_own_tc() {
    table(options("tc", "own"));
}

#[test]
fn verdicts_shared_tcx() {
    if !pilus_loader::probe::Features::probe().expect("probe").tcx {
        return println!("skipped: this kernel has no tcx");
    }
    table(options("tcx", "shared"));
}

#[test]
fn verdicts_own_tcx() {
    if !pilus_loader::probe::Features::probe().expect("probe").tcx {
        return println!("skipped: this kernel has no tcx");
    }
    table(options("tcx", "own"));
}
