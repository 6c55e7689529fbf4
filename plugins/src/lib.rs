// SPDX-License-Identifier: Apache-2.0
//! Programs that enter a network namespace. They are short-lived and single-threaded, because a namespace belongs to a thread;
//! no other crate does so.

pub mod netns;
