// SPDX-License-Identifier: Apache-2.0
//! What users ask before and after an import: validate, diff, explain, and what an import of a directory with a mistake does.

use crate::support::policy;
use pilus_e2e::{Node, NodeOptions, bench};
use pilus_loader::maps::PinnedMap;
use pilus_model::abi::{PolicyBlock, PolicyKey, map};
use serde_json::Value;

fn node() -> Node {
    let args = ["--ipv6-range", "fd00:7::/64", "--ipv4-range", "10.77.0.0/16", "--allow-localhost", "policy"];
    Node::start(NodeOptions { args: args.map(str::to_owned).into(), ..NodeOptions::default() }).expect("node")
}

/// Exit code, output, errors.
fn pilus(node: &Node, args: &[&str]) -> (i32, String, String) {
    node.pilus(args).expect("pilus")
}

fn write(dir: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("a file");
    path.display().to_string()
}

const WEB: &str = "  endpointSelector: {matchLabels: {app: web}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n    toPorts: \
                   [{ports: [{port: \"80\", protocol: TCP}]}]\n";

#[test]
fn a_directory_with_a_mistake_changes_nothing() {
    let node = node();
    let _web = node.add("web", &["app=web"]).expect("web");
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().display().to_string();
    write(&dir, "a.yaml", &policy("a", WEB));
    let (code, out, errors) = pilus(&node, &["policy", "import", &path, "--wait"]);
    assert_eq!((code, out.as_str()), (0, "Revision: 1\n"), "{errors}");
    let before = node.block_on(node.client().policy(&[])).expect("policy");
    let rows = node.rows("policy").expect("rows");
    write(&dir, "a.yaml", &policy("a", &WEB.replace("client", "other")));
    let bad = write(&dir, "b.yaml", &policy("b", &WEB.replace("TCP", "TCQ")));
    write(&dir, "c.yaml", &policy("c", WEB));
    let mistake = format!("{bad}:8:47: spec.ingress[0].toPorts[0].ports[0].protocol: unknown protocol `TCQ`");
    let (code, out, errors) = pilus(&node, &["policy", "import", &path, "--wait"]);
    assert!(code == 1 && out.is_empty() && errors.contains(&mistake), "{code} {out}{errors}");
    let (code, out, errors) = pilus(&node, &["policy", "validate", &path]);
    assert!(code == 1 && out.starts_with(&mistake) && errors.contains("1 mistake"), "{code} {out}{errors}");
    let (code, alone, errors) = node.agent_once(&["--validate", &path]).expect("pilus-agent");
    assert_eq!((code, alone.as_str(), errors.as_str()), (1, out.as_str(), "pilus-agent: an import would be refused\n"));
    let (code, out, _) = pilus(&node, &["policy", "validate", &path, "-o", "json"]);
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &told["valid"], &told["errors"][0]["line"]), (1, &false.into(), &8.into()), "{told}");
    assert_eq!(node.block_on(node.client().policy(&[])).expect("policy"), before);
    assert_eq!(node.rows("policy").expect("rows"), rows);
    std::fs::remove_file(bad).expect("remove");
    let (code, out, errors) = pilus(&node, &["policy", "validate", &path]);
    assert_eq!((code, out.as_str()), (0, "2 rules, no mistake\n"), "{errors}");
    let (code, alone, errors) = node.agent_once(&["--validate", &path]).expect("pilus-agent");
    assert_eq!((code, alone, errors.as_str()), (0, out, ""));
    let (code, alone, errors) = node.agent_once(&["--validate", "/nowhere.yaml"]).expect("pilus-agent");
    assert!(code == 1 && alone.is_empty() && errors.contains("cannot read /nowhere.yaml: "), "{code} {errors}");
}

#[test]
fn prefixes_of_containers_are_told_at_import() {
    let node = node();
    let dir = tempfile::tempdir().expect("directory");
    let rule = |v4: &str, v6: &str| format!("- {{endpointSelector: {{}}, egress: [{{toCIDR: [{v4}, '{v6}']}}]}}\n");
    let path = write(&dir, "own.yaml", &rule("10.77.3.0/24", "fd00:7::/48"));
    for command in ["validate", "import"] {
        let (code, out, errors) = pilus(&node, &["policy", command, &path]);
        for prefix in ["10.77.3.0/24", "fd00:7::/48"] {
            let part = format!("own.yaml:1: {prefix} covers addresses of containers");
            let told = format!("{out}{errors}");
            if command == "validate" {
                let alone = node.agent_once(&["--validate", &path]).expect("pilus-agent");
                assert_eq!(alone, (code, out.clone(), errors.clone()));
            }
            assert!(code == 0 && told.lines().any(|l| l.contains(&part) && l.contains("will not match them")), "{command}: {told}");
        }
    }
    let path = write(&dir, "far.yaml", &rule("192.0.2.0/24", "2001:db8::/32"));
    let (code, _, errors) = pilus(&node, &["policy", "import", &path]);
    assert_eq!((code, errors.as_str()), (0, ""));
}

#[test]
fn a_diff_names_pairs_and_ports() {
    let node = node();
    let ends = ["web", "client"].map(|name| node.add(name, &[&format!("app={name}")]).expect("endpoint"));
    let dir = tempfile::tempdir().expect("directory");
    let diff = |text: &str| -> Vec<Value> {
        let path = write(&dir, "new.yaml", text);
        let (code, out, errors) = pilus(&node, &["policy", "diff", &path, "-o", "json"]);
        assert_eq!(code, 0, "{errors}");
        let told: Value = serde_json::from_str(&out).expect("JSON");
        told["changes"].as_array().expect("changes").clone()
    };
    node.import(&policy("web", WEB)).expect("import");
    assert!(diff(&policy("web", WEB)).is_empty(), "the same again");
    let before = node.block_on(node.client().policy(&[])).expect("policy");
    let told = diff(&policy("web", &WEB.replace("port: \"80\"", "port: \"80\", endPort: 90")));
    assert_eq!(told.len(), 1, "{told:?}");
    let one = &told[0];
    assert_eq!(one["endpoints"][0], format!("{} (web)", ends[0].id));
    assert_eq!((&one["direction"], &one["labels"][0]), (&"ingress".into(), &"unspec:app=client".into()), "{one}");
    assert_eq!((&one["protocol"], &one["first"], &one["last"]), (&"tcp".into(), &81.into(), &90.into()), "{one}");
    assert_eq!((&one["before"], &one["after"]), (&"deny".into(), &"allow".into()), "{one}");
    assert!(one["rule"].as_str().is_some_and(|r| r.contains("new.yaml:5")), "{one}");
    assert_eq!(node.block_on(node.client().policy(&[])).expect("policy"), before, "nothing is changed by asking");
}

/// The kernel's table is asked itself: a block that somebody takes out of it is missed.
#[test]
fn explain_tells_where_the_kernel_disagrees() {
    let node = node();
    let _ends = ["web", "client"].map(|name| node.add(name, &[&format!("app={name}")]).expect("endpoint"));
    node.import(&policy("web", WEB)).expect("import");
    let ask = ["policy", "explain", "--from", "client", "--to", "web", "--dport", "80/tcp"];
    let (code, out, errors) = pilus(&node, &ask);
    assert!(code == 0 && out.ends_with("ALLOWED\n") && out.contains("CiliumNetworkPolicy default/web"), "{out}{errors}");
    let fs = bench::pins(&node).expect("pins");
    let table: PinnedMap<PolicyKey, PolicyBlock> = PinnedMap::open(&fs, map::POLICY).expect("policy");
    let client = node.block_on(node.client().endpoint("name:client")).expect("endpoint").identity.id;
    let (key, block) = table.entries().expect("entries").into_iter().find(|(k, _)| k.identity == client).expect("the client's block");
    assert!(table.delete(&key).expect("delete"));
    let (code, out, errors) = pilus(&node, &ask);
    assert!(code == 1 && errors.contains("the kernel's tables say something else"), "{code} {out}{errors}");
    let row = out.lines().find(|l| l.starts_with("ingress")).expect("a row");
    assert!(row.contains("allow") && row.contains("deny"), "{out}");
    table.put(&key, &block).expect("put");
    assert_eq!(pilus(&node, &ask).0, 0);
}
