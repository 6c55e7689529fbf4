// SPDX-License-Identifier: Apache-2.0
//! The walls hold, and each could fall.

use pilus_tidy::rules::RULES;
use pilus_tidy::{Finding, edges, files, root, rules};

fn none(found: &[Finding]) {
    let list: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(list.is_empty(), "{} found:\n{}", list.len(), list.join("\n"));
}

#[test]
fn files_keep_the_rules() {
    let root = root();
    let mut found = Vec::new();
    let mut read = 0;
    for path in files(&root) {
        // What is not text has no rules.
        if let Ok(text) = std::fs::read_to_string(root.join(&path)) {
            found.extend(rules::check(&path, &text));
            read += 1;
        }
    }
    assert!(read > 50, "only {read} files read");
    none(&found);
}

#[test]
fn crates_need_what_they_may() {
    let (graph, reached) = (edges::read(&root()), edges::model_reaches(&root()));
    assert!(graph.len() > 5 && reached.len() > 5, "{graph:?}, {reached:?}");
    none(&edges::check(&graph, &reached));
}

#[test]
fn every_rule_can_fail_and_can_hold() {
    for rule in RULES {
        assert!(!rule.bad.is_empty() && !rule.good.is_empty(), "{} has no samples", rule.name);
        for (path, text) in rule.bad {
            let found = rules::check(path, text);
            assert!(found.iter().any(|f| f.rule == rule.name), "{} missed {path}: {text}", rule.name);
        }
        for (path, text) in rule.good {
            let found: Vec<_> = rules::check(path, text).into_iter().filter(|f| f.rule == rule.name).collect();
            assert!(found.is_empty(), "{} found {found:?} in {text}", rule.name);
        }
    }
}

#[test]
fn no_allowance_outlives_its_file() {
    for path in rules::allowed_files() {
        assert!(root().join(path).is_file(), "{path} is allowed something and does not exist");
    }
}
