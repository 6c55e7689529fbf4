// SPDX-License-Identifier: Apache-2.0
mod badinput;
mod basic;
mod node;
mod swap;
mod verdicts;
