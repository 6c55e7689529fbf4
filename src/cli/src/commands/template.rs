// SPDX-License-Identifier: Apache-2.0
//! `pilus template`.

use crate::args::TemplateCommand;
use crate::failure::Failure;
use crate::output::Output;
use pilus_api::Client;
use pilus_api::types::{TemplateResult, TemplateStatus};
use std::io;

/// Runs one of the commands.
pub async fn run(client: &Client, out: &mut Output, command: TemplateCommand) -> Result<(), Failure> {
    match command {
        TemplateCommand::Status => out.show(&client.template_status().await?, status),
        TemplateCommand::Check => {
            let result = client.check_template().await?;
            report(out, &result, |r| format!("Templates {} build", r.hash))
        }
        TemplateCommand::Apply => {
            let result = client.apply_template().await?;
            report(out, &result, |r| format!("Templates {} run on {} endpoints", r.hash, r.swapped))
        }
    }
}

fn status(out: &mut Output, t: &TemplateStatus) -> io::Result<()> {
    out.fields(&[
        ("Directory", t.directory.clone()),
        ("Applied", t.applied.clone()),
        ("Edited", t.edited.clone()),
        ("Differs", if t.differs { "yes (pilus template check|apply)" } else { "no" }.to_owned()),
    ])?;
    let rows: Vec<_> = t.shapes.iter().map(|(shape, n)| vec![shape.clone(), n.to_string()]).collect();
    out.table(&["shape", "endpoints"], &rows)
}

fn report(out: &mut Output, result: &TemplateResult, success: impl FnOnce(&TemplateResult) -> String) -> Result<(), Failure> {
    out.show(result, |out, result| {
        result.diagnostics.iter().try_for_each(|diagnostic| out.text(diagnostic))?;
        if result.ok { out.line(&success(result)) } else { Ok(()) }
    })?;
    if result.ok {
        return Ok(());
    }
    let diagnostics = match result.diagnostics.len() {
        1 => "1 diagnostic".to_owned(),
        n => format!("{n} diagnostics"),
    };
    Err(Failure::new(match result.swapped {
        0 => format!("the edited templates do not pass ({diagnostics}); what runs is unchanged"),
        n => format!("the edited templates do not pass everywhere ({diagnostics}); they run on {n} endpoints, the others are unchanged"),
    }))
}
