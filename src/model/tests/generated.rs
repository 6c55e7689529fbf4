// SPDX-License-Identifier: Apache-2.0
//! The committed C headers are what the Rust declarations print. `PILUS_BLESS=1` rewrites them.

use pilus_model::abi::print;
use std::path::Path;

fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf-templates/generated").join(name);
    if std::env::var_os("PILUS_BLESS").is_some() {
        std::fs::write(&path, text).expect("write the header");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "{} is stale: run `make generated` and commit it", path.display());
}

#[test]
fn abi_header_is_current() {
    check("abi.h", &print::abi_h());
}

#[test]
fn maps_header_is_current() {
    check("maps.h", &print::maps_h());
}
