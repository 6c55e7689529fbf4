// SPDX-License-Identifier: Apache-2.0
//! `pilus completion` and `pilus man`.

use crate::args::Cli;
use crate::failure::Failure;
use anyhow::Context;
use clap::CommandFactory;
use std::io::Write;
use std::path::Path;

/// Prints the completion script of a shell.
pub fn completion(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pilus", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(())
}

/// Writes a man page per command into a directory.
pub fn man(dir: &Path) -> Result<(), Failure> {
    let cannot = || format!("cannot write man pages into {}", dir.display());
    std::fs::create_dir_all(dir).with_context(cannot)?;
    let command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, dir).with_context(cannot)?;
    Ok(())
}
