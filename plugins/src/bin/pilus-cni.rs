// SPDX-License-Identifier: Apache-2.0
//! The CNI plugin: command in the environment, configuration on stdin, result on stdout. Exits 0 when done, 1 with an error
//! object on stdout.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use pilus_plugins::cni::{self, Error, code};

fn main() -> ExitCode {
    // A runtime writes the configuration whether or not it is wanted.
    let conf = match io::stdin() {
        stdin if stdin.is_terminal() => Ok(String::new()),
        stdin => io::read_to_string(stdin).map_err(|e| Error::new(code::IO, format!("cannot read the configuration: {e}"))),
    };
    if std::env::var_os("CNI_COMMAND").is_none() {
        eprint!("{}", cni::USAGE);
    }
    let answer = conf.map_or_else(|e| e.answer(cni::NEWEST), |conf| cni::run(|name| std::env::var(name).ok(), &conf));
    let written = io::stdout().lock().write_all(answer.stdout.as_bytes());
    match (answer.ok, written) {
        (true, Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
