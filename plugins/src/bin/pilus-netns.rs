// SPDX-License-Identifier: Apache-2.0
//! Does the work inside a container's network namespace, then exits: 0 done, 1 failed. One request on stdin, one response on
//! stdout, both JSON (`pilus_plugins::netns`).

use std::io::{self, Write as _};
use std::process::ExitCode;

use pilus_plugins::netns::{Response, run};

fn main() -> ExitCode {
    let answer = || -> io::Result<bool> {
        let response = run(&io::read_to_string(io::stdin())?);
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &response)?;
        out.write_all(b"\n")?;
        out.flush()?;
        Ok(matches!(response, Response::Ok(_)))
    };
    match answer() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("pilus-netns: {e}");
            ExitCode::FAILURE
        }
    }
}
