// SPDX-License-Identifier: Apache-2.0
//! Harness of the tests that need a kernel.
