// SPDX-License-Identifier: Apache-2.0
//! libbpf's words: kept for the caller during a load, else passed to tracing.
//!
//! libbpf prints on the thread that called it, so that a buffer per thread keeps loads that run side by side apart without a
//! lock. On a refused program it loads once more with the verifier's log on and prints that as a warning: a successful load
//! never pays for a log.

use std::cell::RefCell;
use std::sync::Once;

use libbpf_rs::PrintLevel;

thread_local! {
    static CAPTURE: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn print(level: PrintLevel, message: String) {
    let kept = CAPTURE.with_borrow_mut(|buffer| buffer.as_mut().map(|b| b.push_str(&message)).is_some());
    if !kept {
        let message = message.trim_end();
        match level {
            // Most of these are about attempts whose errno the caller handles (a qdisc that exists).
            PrintLevel::Warn | PrintLevel::Info => tracing::debug!(target: "libbpf", "{message}"),
            PrintLevel::Debug => tracing::trace!(target: "libbpf", "{message}"),
        }
    }
}

/// Makes libbpf print through us. Once a process.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        libbpf_rs::set_print(Some((PrintLevel::Info, print)));
    });
}

/// Runs `f` and returns what libbpf said meanwhile on this thread.
pub(crate) fn capture<T>(f: impl FnOnce() -> T) -> (T, String) {
    install();
    let outer = CAPTURE.replace(Some(String::new()));
    let result = f();
    let said = CAPTURE.replace(outer).unwrap_or_default();
    (result, said)
}

/// Bytes of verifier log that an error carries.
const LOG_TAIL: usize = 16 * 1024;

/// Program that libbpf says was refused.
pub(crate) fn refused_program(said: &str) -> Option<&str> {
    let line = said.lines().find(|l| l.contains("BPF program load failed"))?;
    line.split_once("prog '")?.1.split_once('\'').map(|(name, _)| name)
}

/// The end of the verifier's log in what libbpf said, whole lines; empty without one.
pub(crate) fn verifier_log(said: &str) -> &str {
    let Some((_, log)) = said.split_once("-- BEGIN PROG LOAD LOG --\n") else { return "" };
    // Newest libbpf ends the log with this line; a cut log has none.
    let log = log.split_once("-- END PROG LOAD LOG --").map_or(log, |(log, _)| log.rsplit_once('\n').map_or(log, |(log, _)| log));
    if log.len() <= LOG_TAIL {
        return log;
    }
    let mut at = log.len() - LOG_TAIL;
    while !log.is_char_boundary(at) {
        at += 1;
    }
    log[at..].split_once('\n').map_or("", |(_, rest)| rest)
}

/// The line that tells most: the last that the verifier wrote about the program itself, else libbpf's first (but for
/// one about tokens, which it writes on every kernel that gives none and gets over).
pub(crate) fn message(said: &str, log: &str) -> String {
    let of_verifier =
        log.lines().rev().map(str::trim).find(|l| {
            !l.is_empty() && !l.starts_with("processed ") && !l.starts_with("verification time") && !l.starts_with("stack depth")
        });
    let of_libbpf =
        || said.lines().find(|l| l.starts_with("libbpf:") && !l.contains("BPF token")).map(|l| l.trim_start_matches("libbpf:").trim());
    of_verifier.or_else(of_libbpf).unwrap_or("refused without a reason").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "libbpf: prog 'broken': BPF program load failed: Permission denied\nlibbpf: prog 'broken': -- BEGIN PROG LOAD LOG --\n0: R1=ctx() R10=fp0\nR0 invalid mem access 'scalar'\nprocessed 3 insns (limit 1000000)\n-- END PROG LOAD LOG --\nlibbpf: prog 'broken': failed to load: -EACCES\n";

    #[test]
    fn log_is_cut_out_of_libbpf_s_words() {
        assert_eq!(refused_program(SAID), Some("broken"));
        let log = verifier_log(SAID);
        assert!(log.starts_with("0: R1"), "{log}");
        assert_eq!(message(SAID, log), "R0 invalid mem access 'scalar'");
        assert_eq!(verifier_log("nothing"), "");
    }

    #[test]
    fn log_keeps_its_end() {
        let said = format!("-- BEGIN PROG LOAD LOG --\n{}last line\n", "a line of the log\n".repeat(10_000));
        let log = verifier_log(&said);
        assert!(log.len() <= LOG_TAIL && log.starts_with("a line") && log.ends_with("last line\n"));
    }
}
