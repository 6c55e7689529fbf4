// SPDX-License-Identifier: Apache-2.0
//! The client `pilus`: parses arguments, asks the agent over its socket, prints what it answers.

pub mod args;
mod commands;
mod failure;
mod output;
mod pcap;

use args::Cli;
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use failure::Failure;
use std::ffi::OsString;
use std::io::Write;

/// Runs one command line, program name first, and returns the exit status:
/// 0 done, 1 failed or not found, 2 wrong usage.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let mut command = Cli::command();
    let parsed = command.try_get_matches_from_mut(args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return unparsed(&error),
    };
    match execute(cli) {
        Ok(()) => 0,
        Err(failure) if failure.is_closed_pipe() => 0,
        Err(failure) => {
            complain(&failure.to_string());
            failure.status()
        }
    }
}

fn execute(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(commands::run(cli))
}

/// Help and version go to stdout; a mistake is one line like any other error.
fn unparsed(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            0
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            2
        }
        _ => {
            complain(&usage_line(&error.to_string()));
            2
        }
    }
}

/// Folds clap's paragraphs into one line and leaves out the usage summary, which `--help` shows.
fn usage_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let paragraphs = text.split("\n\n").filter(|p| !p.starts_with("Usage:") && !p.starts_with("For more information"));
    let words: Vec<&str> = paragraphs.flat_map(str::split_whitespace).collect();
    format!("{} (--help shows the usage)", words.join(" "))
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "error: {}", output::sanitize(line));
}
