// SPDX-License-Identifier: Apache-2.0
//! Which crate may need which.

use crate::Finding;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Every crate of the workspace, and the others of ours that it may need. Development dependencies are not counted.
const OURS: &[(&str, &[&str])] = &[
    ("pilus-model", &[]),
    ("pilus-api", &[]),
    ("pilus-cli", &["pilus-api"]),
    // Between these two passes a path to an object file, and its key.
    ("pilus-codegen", &["pilus-model"]),
    ("pilus-loader", &["pilus-model"]),
    ("pilus-plugins", &["pilus-api"]),
    ("pilus-proxy", &["pilus-api", "pilus-model"]),
    ("pilus", &["pilus-api", "pilus-codegen", "pilus-loader", "pilus-model", "pilus-plugins"]),
    ("pilus-tidy", &[]),
];

/// Never shipped: these may need every one of ours, and none may need them.
const TESTS: &[&str] = &["pilus-tests", "pilus-e2e"];

/// Pure: no runtime, no I/O, no clock, no logging. What it needs is listed.
/// `regex` reads the expressions that HTTP rules hold, so that a bad one is refused with its place.
const MODEL_MAY_NEED: &[&str] = &["regex", "serde", "serde-saphyr", "serde_json", "thiserror", "zerocopy"];
const MODEL_NEVER: &[&str] = &["tokio", "mio", "tracing", "log", "nix", "rtnetlink", "hyper"];

/// Crates of others that stand behind one wall of ours.
const OWNED: &[(&str, &[&str])] = &[
    ("libbpf-rs", &["pilus-loader"]),
    ("libbpf-sys", &["pilus-loader"]),
    ("rtnetlink", &["pilus-loader"]),
    ("clang-sys", &["pilus-codegen"]),
    ("tera", &["pilus-codegen"]),
    ("redb", &["pilus"]),
];

/// Crate of ours, and what it needs itself outside of tests.
pub type Graph = BTreeMap<String, Vec<String>>;

fn cargo(root: &Path, arguments: &[&str]) -> String {
    #[expect(clippy::disallowed_methods, reason = "a test asks cargo")]
    let out = std::process::Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(arguments)
        .arg("--offline")
        .current_dir(root)
        .output()
        .expect("start cargo");
    assert!(out.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text from cargo")
}

/// What our crates declare. Asks cargo, without a network.
pub fn read(root: &Path) -> Graph {
    let text = cargo(root, &["metadata", "--format-version", "1", "--no-deps"]);
    parse(&serde_json::from_str(&text).expect("metadata in JSON"))
}

/// Every crate that the model is built with.
pub fn model_reaches(root: &Path) -> Vec<String> {
    let tree = cargo(root, &["tree", "-p", "pilus-model", "-e", "normal,build", "--prefix", "none", "--format", "{p}"]);
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn parse(metadata: &Value) -> Graph {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let needs = |package: &Value| {
        let outside_of_tests = |dep: &&Value| dep["kind"].as_str() != Some("dev");
        list(&package["dependencies"]).iter().filter(outside_of_tests).map(|dep| text(&dep["name"])).collect()
    };
    list(&metadata["packages"]).iter().map(|package| (text(&package["name"]), needs(package))).collect()
}

pub fn check(graph: &Graph, model_reaches: &[String]) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |of: &str, what: String| found.push(Finding { rule: "edges", path: of.to_owned(), line: 0, what });
    for (member, needs) in graph.iter().filter(|(member, _)| !TESTS.contains(&member.as_str())) {
        let Some((_, allowed)) = OURS.iter().find(|(name, _)| name == member) else {
            add(member, "is not in the list of crates: say there what it may need".into());
            continue;
        };
        for need in needs {
            if graph.contains_key(need) && !allowed.contains(&need.as_str()) {
                add(member, format!("must not need {need}"));
            }
            if let Some((_, owners)) = OWNED.iter().find(|(name, _)| name == need)
                && !owners.contains(&member.as_str())
            {
                add(member, format!("must not need {need}: it belongs to {}", owners.join(", ")));
            }
            if member == "pilus-model" && !MODEL_MAY_NEED.contains(&need.as_str()) {
                add(member, format!("is pure and must not need {need}"));
            }
        }
    }
    for need in model_reaches {
        if MODEL_NEVER.contains(&need.as_str()) {
            add("pilus-model", format!("reaches {need}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    type Edges<'a> = &'a [(&'a str, &'a [&'a str])];

    fn found(edges: Edges<'_>, model_reaches: &[&str]) -> Vec<String> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let graph = edges.iter().map(|(of, needs)| ((*of).to_owned(), owned(needs))).collect();
        check(&graph, &owned(model_reaches)).iter().map(|f| format!("{} {}", f.path, f.what)).collect()
    }

    #[test]
    fn each_wall_can_be_broken() {
        let bad: &[(&str, Edges<'_>)] = &[
            ("pilus-codegen must not need pilus-loader", &[("pilus-codegen", &["pilus-loader"]), ("pilus-loader", &[])]),
            ("pilus-loader must not need pilus-codegen", &[("pilus-loader", &["pilus-codegen"]), ("pilus-codegen", &[])]),
            (
                "pilus-cli must not need pilus-model",
                &[("pilus-cli", &["pilus-api", "pilus-model"]), ("pilus-api", &[]), ("pilus-model", &[])],
            ),
            ("pilus-cli must not need pilus", &[("pilus-cli", &["pilus"]), ("pilus", &[])]),
            ("pilus-model is pure and must not need libc", &[("pilus-model", &["serde", "libc"])]),
            ("pilus must not need libbpf-rs: it belongs to pilus-loader", &[("pilus", &["libbpf-rs"])]),
            (
                "pilus-api must not need pilus-tests",
                &[("pilus-api", &["pilus-tests"]), ("pilus-tests", &["pilus-model"]), ("pilus-model", &[])],
            ),
            ("pilus-new is not in the list of crates: say there what it may need", &[("pilus-new", &[])]),
        ];
        for (words, edges) in bad {
            assert_eq!(found(edges, &[]), [*words]);
        }
        assert_eq!(found(&[], &["serde", "tokio"]), ["pilus-model reaches tokio"]);
        assert!(found(&[("pilus-cli", &["pilus-api", "clap"]), ("pilus-api", &["hyper"])], &["pilus-model", "serde"]).is_empty());
    }

    #[test]
    fn tests_may_need_more() {
        let metadata = json!({ "packages": [
            { "name": "pilus-codegen", "dependencies": [{ "name": "pilus-loader", "kind": "dev" }] },
            { "name": "pilus-loader", "dependencies": [{ "name": "pilus-codegen", "kind": "dev" }, { "name": "pilus-codegen", "kind": null }] },
        ] });
        let found = check(&parse(&metadata), &[]);
        assert_eq!(found.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["pilus-loader"]);
    }
}
