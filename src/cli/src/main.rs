// SPDX-License-Identifier: Apache-2.0
//! `pilus`, the command line client of the agent.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(pilus_cli::run(std::env::args_os()))
}
