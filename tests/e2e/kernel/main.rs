// SPDX-License-Identifier: Apache-2.0
mod answers;
mod badinput;
mod basic;
mod ct;
mod disk;
mod faults;
mod labels;
mod metrics;
mod monitor;
mod node;
mod outside;
mod restart;
mod revoke;
mod sizes;
mod support;
mod swap;
mod verdicts;
