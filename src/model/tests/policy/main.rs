// SPDX-License-Identifier: Apache-2.0
//! Policies as a whole: truth tables, random changes against an obvious evaluator, damaged documents.

mod engine;
mod fuzz;
mod oracle;
mod rows;
#[path = "../../../../tests/src/truth.rs"]
mod truth;
