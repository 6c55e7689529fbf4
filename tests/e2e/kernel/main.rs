// SPDX-License-Identifier: Apache-2.0
mod basic;
mod swap;
mod verdicts;
