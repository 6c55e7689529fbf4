// SPDX-License-Identifier: Apache-2.0
//! The OpenAPI document is current, complete and consistent.

use serde_json::Value;
use std::path::Path;

#[test]
fn the_snapshot_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let document = pilus_api::openapi::document();
    if std::env::var_os("PILUS_BLESS").is_some() {
        let text = serde_json::to_string_pretty(&document).unwrap();
        std::fs::write(&path, text + "\n").unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let snapshot: Value = serde_json::from_str(&text).unwrap();
    assert!(snapshot == document, "openapi.json is stale: run PILUS_BLESS=1 cargo test -p pilus-api");
}

#[test]
fn every_reference_resolves() {
    fn walk(value: &Value, root: &Value) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    let pointer = target.strip_prefix('#').unwrap();
                    assert!(root.pointer(pointer).is_some(), "{target} leads nowhere");
                }
                map.values().for_each(|v| walk(v, root));
            }
            Value::Array(list) => list.iter().for_each(|v| walk(v, root)),
            _ => {}
        }
    }
    let document = pilus_api::openapi::document();
    walk(&document, &document);
}

#[test]
fn every_operation_has_a_name_of_its_own_and_an_error_answer() {
    let document = pilus_api::openapi::document();
    let mut names = std::collections::BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(names.insert(operation["operationId"].to_string()), "{method} {path}: operationId is taken");
            assert!(operation["responses"]["default"].is_object(), "{method} {path}: no error answer");
            assert!(operation["responses"].as_object().unwrap().keys().any(|s| s.starts_with('2')), "{method} {path}: no success");
        }
    }
    assert!(names.len() > 30, "{names:?}");
}
