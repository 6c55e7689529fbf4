// SPDX-License-Identifier: Apache-2.0
//! `pilus policy`.

use crate::args::PolicyCommand;
use crate::args::policy::ImportArgs;
use crate::failure::Failure;
use crate::output::{Output, Tone, counted, note};
use pilus_api::client::PolicyScope;
use pilus_api::types::{
    PeerModel, PolicyAnswer, PolicyChange, PolicyDiff, PolicyImport, PolicyModel, PolicyQuestion, PolicyValidation, PolicyVerdict,
    PolicyWait,
};
use pilus_api::{Client, documents};
use serde_json::Value;
use std::io;
use std::time::Duration;

/// Runs one of the commands.
pub async fn run(client: &Client, out: &mut Output, command: PolicyCommand) -> Result<(), Failure> {
    match command {
        PolicyCommand::Import(args) => import(client, out, &args).await,
        PolicyCommand::Validate { paths } => {
            let documents = documents::read(&paths, &mut io::stdin().lock())?;
            let told = client.validate_policy(&PolicyImport { documents }).await?;
            out.show(&told, validation)?;
            let mistakes = counted(told.errors.len() as u64, "mistake");
            if told.valid { Ok(()) } else { Err(Failure::new(format!("an import would be refused: {mistakes}"))) }
        }
        PolicyCommand::Diff { paths } => {
            let documents = documents::read(&paths, &mut io::stdin().lock())?;
            out.show(&client.diff_policy(&PolicyImport { documents }).await?, changes)
        }
        PolicyCommand::Explain { from, to, dport } => {
            let answer = client.explain_policy(&PolicyQuestion { from, to, dport }).await?;
            out.show(&answer, explanation)?;
            if answer.agrees { Ok(()) } else { Err(Failure::new("the kernel's tables say something else; see: pilus endpoint list")) }
        }
        PolicyCommand::Get { labels } => out.show(&client.policy(&labels).await?, rules),
        PolicyCommand::Delete { labels, all } => {
            let scope = if all { PolicyScope::All } else { PolicyScope::Labels(labels) };
            let revision = client.delete_policy(&scope).await?;
            if revision.deleted == 0 {
                note("no rule was removed");
            }
            out.show(&revision, |out, r| out.line(&format!("Revision: {}", r.revision)))
        }
        PolicyCommand::Wait { revision, timeout } => {
            let wait = client.wait_policy(revision, Duration::from_secs(timeout)).await?;
            out.show(&wait, |out, wait| out.line(&format!("Revision: {}", wait.revision)))?;
            realised(revision, &wait)
        }
    }
}

async fn import(client: &Client, out: &mut Output, args: &ImportArgs) -> Result<(), Failure> {
    let documents = documents::read(&args.paths, &mut io::stdin().lock())?;
    let revision = client.import_policy(&PolicyImport { documents }).await?;
    revision.warnings.iter().for_each(|warning| note(warning));
    out.show(&revision, |out, r| out.line(&format!("Revision: {}", r.revision)))?;
    if args.wait {
        let wait = client.wait_policy(revision.revision, Duration::from_secs(args.timeout)).await?;
        realised(revision.revision, &wait)?;
    }
    Ok(())
}

fn realised(revision: u64, wait: &PolicyWait) -> Result<(), Failure> {
    if wait.realised {
        return Ok(());
    }
    let waiting = if wait.waiting.is_empty() { "the agent".to_owned() } else { wait.waiting.join(", ") };
    Err(Failure::new(format!("revision {revision} is not yet realised by {waiting}; see: pilus endpoint log")))
}

fn rules(out: &mut Output, policy: &PolicyModel) -> io::Result<()> {
    let row = |(n, rule): (usize, &Value)| {
        let count = policy.counters.get(n).copied().unwrap_or_default();
        let peers = |direction: &str| match &rule[direction] {
            Value::Array(list) => list.len().to_string(),
            _ => String::new(),
        };
        let selector = ["endpointSelector", "nodeSelector"].iter().map(|key| &rule[key]).find(|v| !v.is_null());
        let labels = rule["labels"].as_array().map(|l| l.iter().map(label).collect::<Vec<_>>().join(",")).unwrap_or_default();
        let description = rule["description"].as_str().unwrap_or_default().to_owned();
        let (packets, bytes) = (count.packets.to_string(), count.bytes.to_string());
        vec![selector.map(compact).unwrap_or_default(), peers("ingress"), peers("egress"), packets, bytes, labels, description]
    };
    let rows: Vec<_> = policy.rules.iter().enumerate().map(row).collect();
    out.table(&["selector", "ingress", "egress", "packets", "bytes", "labels", "description"], &rows)?;
    let rules = counted(policy.rules.len() as u64, "rule");
    out.line(&format!("Revision: {} ({rules}; -o yaml shows them whole)", policy.revision))
}

fn validation(out: &mut Output, told: &PolicyValidation) -> io::Result<()> {
    for e in &told.errors {
        out.line(&e.to_string())?;
    }
    for warning in &told.warnings {
        out.line(&format!("warning: {warning}"))?;
    }
    if told.valid { out.line(&format!("{}, no mistake", counted(told.rules as u64, "rule"))) } else { Ok(()) }
}

fn changes(out: &mut Output, diff: &PolicyDiff) -> io::Result<()> {
    if diff.changes.is_empty() {
        return out.line("No verdict changes.");
    }
    let ports = |c: &PolicyChange| match (c.first, c.last) {
        (0, 255) if c.protocol.starts_with("icmp") => "any".to_owned(),
        (0, u16::MAX) => "any".to_owned(),
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let peer = |c: &PolicyChange| match c.peer {
        0 => "others".to_owned(),
        id if c.labels.is_empty() => id.to_string(),
        id => format!("{id} {}", c.labels.join(",")),
    };
    let row = |c: &PolicyChange| {
        let verdict = format!("{} -> {}", c.before, c.after);
        vec![c.endpoints.join(", "), c.direction.clone(), peer(c), format!("{}/{}", ports(c), c.protocol), verdict, c.rule.clone()]
    };
    out.table(&["endpoints", "direction", "peer", "ports", "verdict", "rule"], &diff.changes.iter().map(row).collect::<Vec<_>>())
}

fn explanation(out: &mut Output, answer: &PolicyAnswer) -> io::Result<()> {
    let who = |p: &PeerModel| {
        let name = if p.name.is_empty() { String::new() } else { format!("{} ({}), ", p.endpoint, p.name) };
        format!("{name}identity {} [{}]", p.identity, p.labels.join(","))
    };
    out.fields(&[("From", who(&answer.from)), ("To", who(&answer.to))])?;
    let half = |name: &str, verdict: &Option<PolicyVerdict>| match verdict {
        None => vec![name.to_owned(), "no policy here".to_owned(), String::new(), String::new(), String::new(), String::new()],
        Some(v) => {
            vec![name.to_owned(), v.verdict.clone(), v.rule.clone(), v.entry.clone(), v.kernel.clone(), v.count.packets.to_string()]
        }
    };
    out.table(
        &["side", "verdict", "rule", "entry", "kernel", "packets"],
        &[half("egress", &answer.egress), half("ingress", &answer.ingress)],
    )?;
    let (tone, text) = if answer.allowed { (Tone::Good, "ALLOWED") } else { (Tone::Bad, "DENIED") };
    let text = out.paint(tone, text).into_owned();
    out.painted_line(&text)
}

/// A selector in a few words.
fn compact(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut parts: Vec<String> = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let values: Vec<&str> = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let (key, operator) = (expression["key"].as_str().unwrap_or_default(), expression["operator"].as_str().unwrap_or_default());
        let part = if values.is_empty() { format!("{key} {operator}") } else { format!("{key} {operator} ({})", values.join(",")) };
        parts.push(part);
    }
    if parts.is_empty() { "all".to_owned() } else { parts.join(",") }
}

/// A label, written as a string or taken apart.
fn label(value: &Value) -> String {
    if let Some(text) = value.as_str() {
        return text.to_owned();
    }
    let part = |name: &str| value[name].as_str().unwrap_or_default();
    let source = if part("source").is_empty() { String::new() } else { format!("{}:", part("source")) };
    let text = if part("value").is_empty() { String::new() } else { format!("={}", part("value")) };
    format!("{source}{}{text}", part("key"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_and_labels_in_short() {
        let selector =
            json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]});
        assert_eq!(compact(&selector), "app=web,tier In (a,b)");
        assert_eq!(compact(&json!({})), "all");
        assert_eq!(label(&json!("k8s:a=b")), "k8s:a=b");
        assert_eq!(label(&json!({"source": "k8s", "key": "a", "value": "b"})), "k8s:a=b");
    }
}
