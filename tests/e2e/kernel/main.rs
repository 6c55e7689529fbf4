// SPDX-License-Identifier: Apache-2.0
mod answers;
mod badinput;
mod basic;
mod ct;
mod faults;
mod metrics;
mod monitor;
mod node;
mod restart;
mod revoke;
mod support;
mod swap;
mod verdicts;
