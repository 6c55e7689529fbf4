// SPDX-License-Identifier: Apache-2.0
mod answers;
mod badinput;
mod basic;
mod cni;
mod disk;
mod faults;
mod labels;
mod node;
mod outside;
mod restart;
mod revoke;
mod sizes;
mod support;
mod swap;
mod verdicts;
