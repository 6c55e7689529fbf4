// SPDX-License-Identifier: Apache-2.0
//! Help texts, completions and man pages.

mod fake;

use clap::{Command, CommandFactory};
use fake::{finish, pilus};

fn walk(command: &Command, path: &str, visit: &mut impl FnMut(&Command, &str)) {
    visit(command, path);
    for sub in command.get_subcommands() {
        walk(sub, &format!("{path} {}", sub.get_name()), visit);
    }
}

#[test]
fn the_command_line_is_consistent() {
    pilus_cli::args::Cli::command().debug_assert();
}

#[test]
fn every_command_and_argument_has_a_help_text() {
    walk(&pilus_cli::args::Cli::command(), "pilus", &mut |command, path| {
        assert!(command.get_about().is_some(), "{path} has no help text");
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{path}: {} has no help text", argument.get_id());
        }
    });
}

#[test]
fn help_of_every_command_prints() {
    let mut paths = Vec::new();
    walk(&pilus_cli::args::Cli::command(), "pilus", &mut |_, path| paths.push(path.to_owned()));
    assert!(paths.len() > 40, "{paths:?}");
    for path in paths {
        let mut command = pilus();
        command.args(path.split(' ').skip(1)).arg("--help");
        let ran = finish(command, "");
        assert_eq!((ran.status, ran.err.as_str()), (Some(0), ""), "{path}");
        assert!(ran.out.contains(&format!("Usage: {path}")), "{path}: {}", ran.out);
    }
}

#[test]
fn completions_of_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let mut command = pilus();
        command.args(["completion", shell]);
        let ran = finish(command, "");
        assert_eq!((ran.status, ran.err.as_str()), (Some(0), ""), "{shell}");
        assert!(ran.out.contains("endpoint") && ran.out.contains("related-to"), "{shell}");
    }
}

#[test]
fn a_man_page_per_command() {
    let dir = tempfile::TempDir::new().unwrap();
    let target = dir.path().join("man");
    let mut command = pilus();
    command.env("PILUS_SOCKET", "/secret/place").arg("man").arg(&target);
    let ran = finish(command, "");
    assert_eq!((ran.status, ran.err.as_str()), (Some(0), ""));
    walk(&pilus_cli::args::Cli::command(), "pilus", &mut |command, path| {
        let page = target.join(format!("{}.1", path.replace(' ', "-")));
        assert_eq!(page.exists(), !command.is_hide_set(), "{}", page.display());
        if page.exists() {
            let text = std::fs::read_to_string(&page).unwrap();
            assert!(text.contains(".SH NAME") && !text.contains("/secret/place"), "{}", page.display());
        }
    });
    let ran = finish(
        {
            let mut command = pilus();
            command.args(["man", "/proc/nowhere"]);
            command
        },
        "",
    );
    assert_eq!(ran.status, Some(1));
    assert!(ran.err.starts_with("error: cannot write man pages into /proc/nowhere: "), "{}", ran.err);
}
