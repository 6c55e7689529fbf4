// SPDX-License-Identifier: Apache-2.0
//! `pilus bpf`.

use crate::args::BpfCommand;
use crate::args::node::CtCommand;
use crate::failure::Failure;
use crate::output::Output;
use pilus_api::Client;
use serde_json::json;

/// Runs one of the commands.
pub async fn run(client: &Client, out: &mut Output, command: &BpfCommand) -> Result<(), Failure> {
    let map = match command {
        BpfCommand::Ct(CtCommand::Flush) => {
            client.flush_flows().await?;
            return out.show(&json!({"flushed": true}), |out, _| out.line("Forgot all connections"));
        }
        BpfCommand::Ct(CtCommand::List) => "flows",
        BpfCommand::Policy(_) => "policy",
        BpfCommand::Ipcache(_) => "ipcache",
        BpfCommand::Endpoint(_) => "endpoint",
        BpfCommand::Metrics(_) => "metrics",
    };
    out.show(&client.map(map).await?, |out, map| out.table(&map.columns, &map.rows))
}
