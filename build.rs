// SPDX-License-Identifier: Apache-2.0
//! Compiles the default shapes with the same code that the agent uses, so that a node without clang works.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=bpf-templates");
    println!("cargo::rerun-if-env-changed=PILUS_CLANG");
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
    let out = std::env::var("OUT_DIR").expect("set by cargo");
    let tree = Path::new(&root).join("bpf-templates");
    if let Err(e) = pilus_codegen::build_embedded(&tree, Path::new(&out)) {
        println!("cargo::error={e}");
        std::process::exit(1);
    }
    if let Err(e) = carry_tree(&tree, Path::new(&out)) {
        println!("cargo::error=cannot list bpf-templates: {e}");
        std::process::exit(1);
    }
}

/// Writes `tree.rs`: every file of the template tree, so that an agent without an installed copy has one.
fn carry_tree(tree: &Path, out: &Path) -> std::io::Result<()> {
    let mut files = Vec::new();
    let mut dirs = vec![tree.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let rows: String = files.iter().map(|f| format!("    ({:?}, include_str!({f:?})),\n", f.strip_prefix(tree).unwrap_or(f))).collect();
    std::fs::write(out.join("tree.rs"), format!("/// Path below the tree, and text.\npub static TREE: &[(&str, &str)] = &[\n{rows}];\n"))
}
