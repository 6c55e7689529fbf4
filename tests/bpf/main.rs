// SPDX-License-Identifier: Apache-2.0
//! The BPF programs, run by `BPF_PROG_TEST_RUN` on packets from tables of scenarios.

mod budget;
mod closing;
mod denial;
mod device;
mod events;
mod flow;
mod fragments;
mod fuzz;
mod gateway;
mod host;
mod malformed;
mod mtu;
mod nat;
mod nat46;
mod netkit;
mod policy;
mod reasons;
mod related;
mod source;
