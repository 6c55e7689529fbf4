// SPDX-License-Identifier: Apache-2.0
mod answers;
mod badinput;
mod basic;
mod node;
mod revoke;
mod swap;
mod verdicts;
