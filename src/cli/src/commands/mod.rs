// SPDX-License-Identifier: Apache-2.0
//! What each command asks and prints.

mod bpf;
mod endpoint;
pub mod event;
mod generate;
mod monitor;
mod node;
mod policy;
mod tables;
mod template;

use crate::args::{Cli, Command, IdentityCommand};
use crate::failure::Failure;
use crate::output::Output;
use pilus_api::Client;
use std::io::{IsTerminal, Write};

/// Runs one command.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let client = Client::new(cli.global.socket);
    let mut out = Output::new(cli.global.output, cli.global.no_headers, cli.global.color);
    match cli.command {
        Command::Status(args) => node::status(client, &mut out, &args).await,
        Command::Version => node::version(&client, &mut out).await,
        Command::Endpoint(command) => endpoint::run(&client, &mut out, command).await,
        Command::Identity(command) => identity(&client, &mut out, &command).await,
        Command::Policy(command) => policy::run(&client, &mut out, command).await,
        Command::Service(command) => tables::service(&client, &mut out, command).await,
        Command::Node(command) => tables::node(&client, &mut out, command).await,
        Command::Bpf(command) => bpf::run(&client, &mut out, &command).await,
        Command::Metrics(command) => bpf::metrics(&client, &mut out, &command).await,
        Command::Monitor(args) => monitor::run(&client, &mut out, args).await,
        Command::Config { options } => node::config(&client, &mut out, options).await,
        Command::Template(command) => template::run(&client, &mut out, command).await,
        Command::Cleanup { yes } => node::cleanup(&client, &mut out, yes).await,
        Command::Completion { shell } => generate::completion(shell),
        Command::Man { dir } => generate::man(&dir),
    }
}

async fn identity(client: &Client, out: &mut Output, command: &IdentityCommand) -> Result<(), Failure> {
    match command {
        IdentityCommand::List => out.show(&client.identities().await?, |out, identities| {
            let rows: Vec<_> = identities.iter().map(|i| vec![i.id.to_string(), i.labels.join(",")]).collect();
            out.table(&["id", "labels"], &rows)
        }),
        IdentityCommand::Get { id } => out.show(&client.identity(*id).await?, |out, identity| {
            out.fields(&[("ID", identity.id.to_string()), ("Labels", identity.labels.join(" "))])
        }),
    }
}

/// Asks before something that cannot be undone. Without a terminal to ask on, `--yes` must have been given.
fn confirm(yes: bool, what: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(Failure::Usage(format!("this would {what}; give --yes to do it")));
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "This will {what}. Go on? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new("nothing was done")),
    }
}
