// SPDX-License-Identifier: Apache-2.0
//! The compiler: its words in the tree's terms, its limits, and objects that are the same wherever they are made.

mod common;

use common::{Tree, clang, endpoint, fake};
use pilus_codegen::{Build, BuildError, Clang, Diagnostic, Severity, Templates, build_embedded, libclang, syntax_check};
use std::fs;

async fn compile(templates: &Templates, build: Build, clang: &Clang) -> Result<Vec<u8>, BuildError> {
    let work = tempfile::tempdir().unwrap();
    let rendered = templates.render_container(&endpoint()).unwrap();
    let result = clang.compile(templates, &rendered, build, work.path()).await.map(|c| c.bytes);
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0, "a build cleans up after itself");
    result
}

async fn complaints(tree: &Tree, build: Build) -> Vec<Diagnostic> {
    match compile(&tree.load(), build, &clang()).await {
        Err(BuildError::Compile { diagnostics, .. }) => diagnostics,
        other => panic!("expected clang to complain, got {other:?}"),
    }
}

/// File, line and column.
type Place<'a> = (&'a str, u32, u32);

fn place(d: &Diagnostic) -> Place<'_> {
    (d.file.as_str(), d.line, d.column)
}

/// One edit for each kind of place, and where the first error belongs.
const WRONG: &[(&str, &str, &str, Place)] = &[
    // In a header of the tree, in a macro that another line uses: the use leads.
    ("lib/extra.h", "((x) * 2)", "((x) * undeclared)", ("lib/extra.h", 7, 9)),
    ("lib/extra.h", "return DOUBLE(x);", "return nonsense;", ("lib/extra.h", 7, 9)),
    ("container.c", "return sum;", "return summ;", ("container.c", 16, 9)),
    // A value that the program reads and the template no longer has.
    ("container_config.h.tera", "VALUE(u16, EP_MTU, {{ mtu }})", "", ("container.c", 12, 9)),
    // In a line of the template, as clang sees it in the rendered header.
    ("lib/config.h", "typedef __u16 u16;", "typedef struct { int a; } *u16;", ("container_config.h.tera", 14, 12)),
    ("lib/config.h", "CONFIG_##name = on", "CONFIG_##name = on + missing", ("container_config.h.tera", 5, 1)),
];

#[tokio::test]
async fn a_complaint_is_placed_in_the_template_tree() {
    for (file, from, to, expected) in WRONG {
        let tree = Tree::new();
        let found = complaints(tree.edit(file, from, to), Build::Own).await;
        let first = found.iter().find(|d| d.severity == Severity::Error).unwrap();
        assert_eq!(place(first), *expected, "{to}: {found:#?}");
    }
}

#[tokio::test]
async fn the_front_end_places_them_alike() {
    for (file, from, to, expected) in WRONG {
        let tree = Tree::new();
        let templates = tree.edit(file, from, to).load();
        let rendered = templates.render_container(&endpoint()).unwrap();
        let in_process = libclang::check(&templates, &rendered, Build::Own).unwrap();
        let by_process = clang().syntax(&templates, &rendered, Build::Own).await.unwrap();
        for found in [&in_process, &by_process, &syntax_check(&clang(), &templates, &rendered, Build::Own).await.unwrap()] {
            let first = found.iter().find(|d| d.severity == Severity::Error).unwrap();
            assert_eq!(place(first), *expected, "{to}: {found:#?}");
        }
    }
    let words = |d: &Diagnostic| d.message.contains("included from") || d.message.contains("/tmp");
    let tree = Tree::new();
    let templates = tree.edit("lib/config.h", "typedef __u16 u16;", "typedef struct { int a; } *u16;").load();
    let rendered = templates.render_container(&endpoint()).unwrap();
    let found = libclang::check(&templates, &rendered, Build::Own).unwrap();
    assert!(!found.is_empty() && !found.iter().any(words), "{found:#?}");

    let templates = Tree::new().load();
    let rendered = templates.render_container(&endpoint()).unwrap();
    assert_eq!(libclang::check(&templates, &rendered, Build::Shared).unwrap(), []);
    assert_eq!(clang().syntax(&templates, &rendered, Build::Own).await.unwrap(), []);
}

#[tokio::test]
async fn the_text_of_an_error_leads_with_the_first() {
    let tree = Tree::new();
    tree.edit("lib/extra.h", "return DOUBLE(x);", "return first + second;");
    let error = compile(&tree.load(), Build::Shared, &clang()).await.unwrap_err();
    assert_eq!(error.to_string(), "lib/extra.h:7:9: error: use of undeclared identifier 'first' (and 1 more)");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn an_undefined_name_and_a_warning_stop_a_build() {
    let tree = Tree::new();
    let found = complaints(tree.edit("lib/extra.h", "#pragma once", "#pragma once\n#if CONFIG_NO_SUCH\n#endif"), Build::Shared).await;
    assert_eq!(place(&found[0]), ("lib/extra.h", 3, 5));
    assert!(found[0].message.contains("CONFIG_NO_SUCH"), "{found:#?}");
}

#[tokio::test]
async fn the_back_ends_complaints_are_kept() {
    let tree = Tree::new();
    let found = complaints(
        tree.edit("container.c", "return sum;", "char big[4096];\n\tasm volatile(\"\" ::\"r\"(big) : \"memory\");\n\treturn sum;"),
        Build::Shared,
    )
    .await;
    assert!(found.iter().any(|d| d.file == "container.c" && d.message.contains("stack limit")), "{found:#?}");
}

#[tokio::test]
async fn both_builds_compile_and_do_not_depend_on_the_place() {
    for build in [Build::Shared, Build::Own] {
        let one = compile(&Tree::new().load(), build, &clang()).await.unwrap();
        let two = compile(&Tree::new().load(), build, &clang()).await.unwrap();
        assert!(one.starts_with(b"\x7fELF"));
        assert_eq!(one, two);
        let holds = |text: &[u8]| one.windows(text.len()).any(|w| w == text);
        assert!(holds(b"container.c") && !holds(b"/tmp"), "names in the object are relative");
    }
}

#[tokio::test]
async fn the_printed_headers_win_over_the_trees_copy() {
    let tree = Tree::new();
    tree.write("generated/abi.h", "#error stale\n");
    compile(&tree.load(), Build::Shared, &clang()).await.unwrap();
}

#[tokio::test]
async fn a_compiler_that_wants_too_much_memory_is_stopped() {
    let tree = Tree::new();
    let mut bomb = String::from("#define A0 1,1,1,1,1,1,1,1\n");
    for n in 1..9 {
        bomb.push_str(&format!("#define A{n} {}\n", vec![format!("A{}", n - 1); 8].join(",")));
    }
    bomb.push_str("int bomb[] = { A8 };\n");
    tree.write("custom/hook.h", &bomb);
    let limited = Clang { memory_limit: 400 << 20, ..clang() };
    let error = compile(&tree.load(), Build::Shared, &limited).await.unwrap_err();
    assert!(matches!(error, BuildError::Memory { limit: 419_430_400, .. }), "{error:?}");
    assert_eq!(error.to_string(), "container: clang needs more memory than its limit of 400 MiB");
}

#[tokio::test]
async fn a_missing_compiler_is_said_plainly() {
    for clang in [Clang::default(), Clang::at("/nowhere/clang")] {
        let error = compile(&Tree::new().load(), Build::Shared, &clang).await.unwrap_err();
        assert!(matches!(error, BuildError::NoCompiler { .. }));
        assert!(error.to_string().contains("install clang-19") && error.to_string().contains("default shapes"), "{error}");
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn what_is_no_object_is_not_taken_for_one() {
    for program in ["/bin/true", "/bin/false"] {
        let error = compile(&Tree::new().load(), Build::Shared, &Clang::at(program)).await.unwrap_err();
        assert!(matches!(error, BuildError::Crashed { killed: false, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn the_version_is_the_compilers_own_line() {
    assert_eq!(fake("counts").version().await.unwrap(), "fake clang version 1.0");
    assert!(clang().version().await.unwrap().contains("clang version"));
}

#[test]
fn embedded_objects_are_reproducible() {
    let made = [Tree::new(), Tree::new()].map(|tree| {
        let out = tempfile::tempdir().unwrap();
        let embedded = build_embedded(tree.path(), out.path()).unwrap();
        assert_eq!(embedded.objects.len(), 6, "container, netdev and slow path, with and without IPv4");
        let objects: Vec<_> = embedded.objects.iter().map(|(program, key, path)| (*program, *key, fs::read(path).unwrap())).collect();
        let source = fs::read_to_string(&embedded.source).unwrap();
        let names: Vec<_> = fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 7, "nothing else is left: {names:?}");
        (objects, source)
    });
    assert_eq!(made[0], made[1]);
    let (objects, source) = &made[0];
    assert!(source.contains("pub static EMBEDDED: &[pilus_codegen::EmbeddedObject]"));
    assert!(objects.iter().all(|(program, key, bytes)| {
        bytes.starts_with(b"\x7fELF")
            && source.contains(&format!("key_hex: \"{key}\", bytes: include_bytes!(\"{program}-{}.o\")", key.short()))
    }));
}
