// SPDX-License-Identifier: Apache-2.0
//! What a file may hold. To loosen one is a change to the architecture: say why beside it.

use crate::Finding;
use crate::code::{has_word, strip};

/// Line and what is wrong there.
type Hits = Vec<(usize, String)>;

pub struct Rule {
    pub name: &'static str,
    /// By path below the project's directory.
    pub applies: fn(&str) -> bool,
    pub find: fn(path: &str, text: &str) -> Hits,
    /// Path and text: what must be found, and what must not.
    pub bad: &'static [(&'static str, &'static str)],
    pub good: &'static [(&'static str, &'static str)],
}

pub const MAX_LINES: usize = 800;
pub const MAX_PROGRAM_LINES: usize = 300;

/// The only homes of `unsafe`.
const UNSAFE_IN: &[&str] = &[
    "loader/src/sys.rs",
    "codegen/src/libclang.rs",
    // Never shipped: raw sockets and counters that no library offers.
    "tests/e2e/src/icmp.rs",
    "tests/e2e/src/bench/kernel.rs",
];
/// The only places, apart from tests and the plugins crate, that start a process.
const PROCESSES_IN: &[&str] = &["codegen/src/clang.rs", "src/agent/supervise.rs"];
/// The only way to a packet's bytes is declared here.
const CTXP_IN: &str = "bpf-templates/include/bpf.h";

pub fn check(path: &str, text: &str) -> Vec<Finding> {
    let found = |rule: &Rule| {
        let hits = if (rule.applies)(path) { (rule.find)(path, text) } else { Hits::new() };
        hits.into_iter().map(|(line, what)| Finding { rule: rule.name, path: path.to_owned(), line, what }).collect::<Vec<_>>()
    };
    RULES.iter().flat_map(found).collect()
}

fn extension(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(_, ext)| ext)
}

fn generated(path: &str) -> bool {
    path.split('/').any(|part| part == "generated")
}

/// These files quote what the rules refuse.
fn is_tidy(path: &str) -> bool {
    path.starts_with("tests/tidy/")
}

fn rust(path: &str) -> bool {
    extension(path) == "rs" && !is_tidy(path)
}

fn test_code(path: &str) -> bool {
    path.split('/').any(|part| part == "tests")
}

fn bpf_source(path: &str) -> bool {
    path.starts_with("bpf-templates/") && matches!(extension(path), "c" | "h") && !generated(path)
}

fn bpf_program(path: &str) -> bool {
    path.strip_prefix("bpf-templates/").is_some_and(|file| !file.contains('/') && extension(file) == "c")
}

fn source(path: &str) -> bool {
    matches!(extension(path), "rs" | "c" | "h" | "sh" | "tera" | "py" | "js" | "ts" | "tsx" | "svelte") && !generated(path)
}

fn lines_with(text: &str, hit: impl Fn(&str) -> Option<String>) -> Hits {
    text.lines().enumerate().filter_map(|(n, line)| hit(line).map(|what| (n + 1, what))).collect()
}

fn words(text: &str, words: &[&str], why: &str) -> Hits {
    lines_with(text, |line| words.iter().find(|w| has_word(line, w)).map(|w| format!("`{w}`: {why}")))
}

fn too_long(text: &str, most: usize) -> Hits {
    let lines = text.lines().count();
    if lines > most { vec![(0, format!("{lines} lines, more than {most}"))] } else { Hits::new() }
}

fn wants_licence(path: &str) -> bool {
    // Data that is agreed elsewhere and kept here letter by letter.
    if path == "bench/goals.toml" {
        return false;
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    matches!(extension(path), "rs" | "c" | "h" | "sh" | "tera" | "toml" | "service")
        || matches!(name, "Makefile" | ".clang-format")
        || path == ".ci/run"
}

/// What clang reads for the kernel is under the kernel's licence; C elsewhere may be.
fn licence(path: &str, text: &str) -> Hits {
    let wanted: &[&str] = match extension(path) {
        _ if path.starts_with("bpf-templates/") => &["GPL-2.0"],
        "c" | "h" | "tera" => &["GPL-2.0", "Apache-2.0"],
        _ => &["Apache-2.0"],
    };
    match text.lines().take(3).find_map(|line| line.split_once("SPDX-License-Identifier: ")) {
        None => vec![(0, "no SPDX-License-Identifier in the first three lines".into())],
        Some((_, licence)) if !wanted.iter().any(|w| licence.starts_with(w)) => {
            vec![(1, format!("the licence here is {}", wanted.join(" or ")))]
        }
        Some(_) => Hits::new(),
    }
}

/// A test waits for what it wants to see, or for paused time; never for a while.
fn sleeps(path: &str, text: &str) -> Hits {
    let why = "a test waits for a state, not for a while";
    if extension(path) != "rs" {
        return lines_with(text, |line| shell_sleep(line).then(|| format!("`sleep`: {why}")));
    }
    let code = strip(text);
    // In a source file the tests begin with their module.
    let from = if test_code(path) { Some(0) } else { code.lines().position(|line| line.trim() == "#[cfg(test)]") };
    let Some(from) = from else { return Hits::new() };
    let mut hits = words(&code, &["thread::sleep", "time::sleep"], why);
    hits.extend(lines_with(text, |line| shell_sleep(line).then(|| format!("`sleep`: {why}"))));
    hits.retain(|(line, _)| *line > from);
    hits
}

/// `sleep` with a number, as a shell has it.
fn shell_sleep(line: &str) -> bool {
    line.match_indices("sleep ").any(|(at, word)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "_-.".contains(c))
            && line[at + word.len()..].starts_with(|c: char| c.is_ascii_digit() || c == '.')
    })
}

/// Options are read once and handed to who needs them.
fn config_statics(text: &str) -> Hits {
    lines_with(&strip(text), |line| {
        let (_, rest) = line.split_once("static ")?;
        let name = rest.split(':').next()?.trim();
        let config = ["CONFIG", "OPTION", "SETTINGS"].iter().any(|word| name.contains(word));
        let cell = ["OnceLock", "LazyLock", "OnceCell", "LazyCell", "Mutex", "RwLock", "Atomic", "ArcSwap"];
        (config && cell.iter().any(|c| rest.contains(c))).then(|| format!("`{name}`: no global configuration, pass it to who needs it"))
    })
}

/// Conditions of the preprocessor stand at the left edge and outside of every brace.
fn conditions_inside(text: &str) -> Hits {
    let mut hits = Hits::new();
    let mut depth = 0i32;
    let mut continued = false;
    for (n, line) in strip(text).lines().enumerate() {
        let directive = continued || line.trim_start().starts_with('#');
        let name = line.trim_start().trim_start_matches('#').trim_start();
        let condition = ["if", "elif", "else", "endif"].iter().any(|word| name.starts_with(word));
        if directive && !continued && condition && (depth > 0 || !line.starts_with('#')) {
            hits.push((n + 1, "a condition of the preprocessor inside a function: write `if (CONFIG_X)`".into()));
        }
        continued = directive && line.trim_end().ends_with('\\');
        if !directive {
            depth += line.matches('{').count() as i32 - line.matches('}').count() as i32;
        }
    }
    hits
}

pub const RULES: &[Rule] = &[
    Rule {
        name: "length",
        applies: source,
        find: |_, text| too_long(text, MAX_LINES),
        bad: &[("src/a.rs", LINES_801), ("bpf-templates/lib/a.h", LINES_801)],
        good: &[("src/a.rs", "x\n"), ("bpf-templates/generated/a.h", LINES_801), ("Cargo.lock", LINES_801)],
    },
    Rule {
        name: "program-length",
        applies: bpf_program,
        find: |_, text| too_long(text, MAX_PROGRAM_LINES - 1),
        bad: &[("bpf-templates/container.c", LINES_801)],
        good: &[("bpf-templates/container.c", "x\n"), ("bpf-templates/lib/slow.h", LINES_801)],
    },
    Rule {
        name: "licence",
        applies: wants_licence,
        find: licence,
        bad: &[
            ("src/a.rs", "fn a() {}\n"),
            ("src/a.rs", "\n\n\n// SPDX-License-Identifier: Apache-2.0\n"),
            ("bpf-templates/a.c", "/* SPDX-License-Identifier: Apache-2.0 */\n"),
            ("loader/a.rs", "// SPDX-License-Identifier: GPL-2.0\n"),
            ("Makefile", "all:\n"),
            (".ci/run", "#!/bin/sh\n"),
        ],
        good: &[
            ("scripts/a.sh", "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n"),
            ("bpf-templates/a.c", "/* SPDX-License-Identifier: GPL-2.0 */\n"),
            ("examples/a.c", "/* SPDX-License-Identifier: GPL-2.0 */\n"),
            ("docs/a.md", "words\n"),
        ],
    },
    Rule {
        name: "sleep",
        applies: |path| (rust(path) || (test_code(path) && matches!(extension(path), "sh" | "py"))) && !is_tidy(path),
        find: sleeps,
        bad: &[
            ("tests/kernel/a.rs", "fn a() { std::thread::sleep(second); }\n"),
            ("loader/tests/a.rs", "tokio::time::sleep(second).await;\n"),
            ("tests/scripts/a.sh", "true; sleep 1\n"),
            ("tests/kernel/a.rs", "sh(\"sleep 0.5\");\n"),
            ("src/agent/a.rs", "#[cfg(test)]\nmod tests {\nfn a() { thread::sleep(second) }\n}\n"),
        ],
        good: &[
            ("src/agent/a.rs", "fn a() { tokio::time::sleep(back_off).await }\n#[cfg(test)]\nmod tests {}\n"),
            ("tests/kernel/a.rs", "// never thread::sleep\nfn no_time::sleeper() {}\nlet x = \"sleep infinity\";\n"),
        ],
    },
    Rule {
        name: "ignored",
        applies: rust,
        find: |_, text| {
            let what = |line: &str| {
                let line = line.trim_start();
                (line.starts_with("#[ignore") || (line.starts_with("#[cfg_attr") && has_word(line, "ignore")))
                    .then(|| "a test that is not run: run it, or say at run time why it is skipped".to_owned())
            };
            lines_with(&strip(text), what)
        },
        bad: &[("tests/a.rs", "#[ignore]\n"), ("src/a.rs", "    #[ignore = \"slow\"]\n"), ("src/a.rs", "#[cfg_attr(slow, ignore)]\n")],
        good: &[("src/a.rs", "// #[ignore]\nlet ignore = 1;\n")],
    },
    Rule {
        name: "left-open",
        applies: |path| (source(path) || path == "Makefile" || path == ".ci/run") && !is_tidy(path),
        find: |_, text| words(text, &["todo!", "unimplemented!", "FIXME", "XXX", "HACK"], "finish it, or open an issue"),
        bad: &[
            ("src/a.rs", "todo!()\n"),
            ("src/a.rs", "unimplemented!(\"x\")\n"),
            ("bpf-templates/a.c", "/* FIXME: x */\n"),
            ("Makefile", "# XXX\n"),
            ("scripts/a.sh", "# HACK\n"),
        ],
        good: &[("scripts/a.sh", "mktemp -d a.XXXXXX\n"), ("src/a.rs", "fn hack() {}\n"), ("docs/a.md", "XXX\n")],
    },
    Rule {
        name: "static-mut",
        applies: rust,
        find: |_, text| words(&strip(text), &["static mut"], "use what the compiler can check"),
        bad: &[("src/a.rs", "static mut A: u8 = 0;\n")],
        good: &[("src/a.rs", "fn a(x: &'static str) {}\nstatic MUT: u8 = 0;\n")],
    },
    Rule {
        name: "static-config",
        applies: rust,
        find: |_, text| config_statics(text),
        bad: &[
            ("src/a.rs", "static CONFIG: OnceLock<Config> = OnceLock::new();\n"),
            ("src/a.rs", "pub static AGENT_OPTIONS: std::sync::LazyLock<Options> = x;\n"),
        ],
        good: &[("src/a.rs", "static LIBRARY: OnceLock<Library> = OnceLock::new();\nconst CONFIG: &str = \"x\";\n")],
    },
    Rule {
        name: "packet-bytes",
        applies: |path| bpf_source(path) && path != CTXP_IN,
        find: |_, text| words(&strip(text), &["->data", "->data_end", "->data_meta"], "use CTXP: the verifier must see a pointer"),
        bad: &[("bpf-templates/a.c", "void *d = (void *)(long)skb->data;\n"), ("bpf-templates/lib/a.h", "ctx->data_end\n")],
        good: &[("bpf-templates/a.c", "CTXP(ctx, data); /* not skb->data */ x->database = 1;\n"), (CTXP_IN, "skb->data\n")],
    },
    Rule {
        name: "preprocessor",
        applies: |path| bpf_source(path) && (bpf_program(path) || path.starts_with("bpf-templates/lib/")),
        find: |_, text| conditions_inside(text),
        bad: &[("bpf-templates/a.c", "int a(void)\n{\n#if CONFIG_X\n\tb();\n#endif\n}\n"), ("bpf-templates/lib/a.h", "\t#ifdef X\n")],
        good: &[
            ("bpf-templates/lib/a.h", "#ifndef X\n#define X() { \\\n\t}\n#endif\nint a(void)\n{\n#pragma unroll\n\tif (CONFIG_X) {}\n}\n"),
            ("bpf-templates/custom/a.h", "int a(void)\n{\n#if X\n#endif\n}\n"),
        ],
    },
    Rule {
        name: "templates",
        applies: |path| bpf_source(path) || extension(path) == "tera",
        find: |path, text| {
            let (marks, what): (&[&str], _) = match extension(path) {
                "tera" => (&["{%", "{#"], "a template holds values only"),
                _ => (&["{{", "{%", "{#", "%}"], "template syntax only in *.tera"),
            };
            lines_with(text, |line| marks.iter().any(|mark| line.contains(mark)).then(|| what.to_owned()))
        },
        bad: &[("bpf-templates/a.c", "u32 id = {{ id }};\n"), ("bpf-templates/a.h.tera", "{% if x %}\n")],
        good: &[("bpf-templates/a.h.tera", "VALUE(u32, ID, {{ id }})\n"), ("bpf-templates/a.c", "struct a a = { { 0 } };\n")],
    },
    Rule {
        name: "unsafe",
        applies: |path| rust(path) && !UNSAFE_IN.contains(&path),
        find: |_, text| words(&strip(text), &["unsafe"], "only the modules listed here hold unsafe code"),
        bad: &[("src/a.rs", "unsafe { x() }\n"), ("loader/src/maps.rs", "unsafe fn x();\n")],
        good: &[("src/a.rs", "// unsafe\n#![deny(unsafe_op_in_unsafe_fn)]\n"), ("loader/src/sys.rs", "unsafe { x() }\n")],
    },
    Rule {
        name: "setns",
        applies: |path| rust(path) && !path.starts_with("plugins/") && !test_code(path),
        find: |_, text| words(&strip(text), &["setns", "SYS_setns"], "only the plugins crate enters a namespace"),
        bad: &[("src/agent/a.rs", "nix::sched::setns(ns, flags)?;\n"), ("loader/src/sys.rs", "libc::setns(fd, 0);\n")],
        good: &[("plugins/src/a.rs", "setns(ns, flags)?;\n"), ("tests/src/a.rs", "setns(ns, flags)?;\n")],
    },
    Rule {
        name: "processes",
        applies: |path| rust(path) && !path.starts_with("plugins/") && !test_code(path) && !PROCESSES_IN.contains(&path),
        find: |_, text| {
            let starts = ["Command::new", "libc::fork(", "unistd::fork(", "execv(", "execve(", "posix_spawn(", "libc::system("];
            words(&strip(text), &starts, "only codegen and agent::supervise start processes")
        },
        bad: &[("src/agent/a.rs", "std::process::Command::new(\"ip\");\n"), ("loader/src/a.rs", "libc::fork()\n")],
        good: &[("src/agent/supervise.rs", "Command::new(path)\n"), ("src/cli/a.rs", "clap::Command::name(x)\n")],
    },
    Rule {
        name: "workspace-lints",
        applies: |path| path == "Cargo.toml" || path.ends_with("/Cargo.toml"),
        find: |_, text| {
            let inherits = text.lines().collect::<Vec<_>>().windows(2).any(|two| two == ["[lints]", "workspace = true"]);
            if inherits || !text.contains("[package]") { Hits::new() } else { vec![(0, "without `[lints] workspace = true`".into())] }
        },
        bad: &[("a/Cargo.toml", "[package]\nname = \"a\"\n")],
        good: &[("a/Cargo.toml", "[package]\n[lints]\nworkspace = true\n"), ("Cargo.toml", "[workspace]\n")],
    },
];

/// A file of 801 lines.
const LINES_801: &str = match std::str::from_utf8(&[b'\n'; MAX_LINES + 1]) {
    Ok(text) => text,
    Err(_) => unreachable!(),
};

/// Every file that a rule names as its exception.
pub fn allowed_files() -> impl Iterator<Item = &'static str> {
    UNSAFE_IN.iter().chain(PROCESSES_IN).copied().chain([CTXP_IN])
}
