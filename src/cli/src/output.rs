// SPDX-License-Identifier: Apache-2.0
//! Tables, JSON, YAML and colours.

use crate::args::{Color, Format};
use crate::failure::Failure;
use serde::Serialize;
use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

/// Where a command prints to, and how.
pub struct Output {
    out: BufWriter<Stdout>,
    /// Chosen with `-o`.
    pub format: Format,
    headers: bool,
    color: bool,
}

/// What colour says about a piece of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Denied, failed.
    Bad,
    /// Let through.
    Good,
    /// Would have been denied; needs attention.
    Warn,
    /// Neither good nor bad.
    Plain,
}

impl Output {
    /// Output to stdout.
    pub fn new(format: Format, no_headers: bool, color: Color) -> Output {
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
                let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
                io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
            }
        };
        Output { out: BufWriter::new(io::stdout()), format, headers: !no_headers, color }
    }

    /// Prints `value` as JSON or YAML, or else what `table` prints.
    pub fn show<T: Serialize>(&mut self, value: &T, table: impl FnOnce(&mut Output, &T) -> io::Result<()>) -> Result<(), Failure> {
        match self.format {
            Format::Table => table(self, value)?,
            Format::Json => {
                let text = serde_json::to_string_pretty(value).map_err(|e| Failure::new(format!("cannot print as JSON: {e}")))?;
                writeln!(self.out, "{text}")?;
            }
            Format::Yaml => self.yaml(value)?,
        }
        self.flush()
    }

    /// Prints one of many values: a line of JSON, or a YAML document.
    pub fn show_one<T: Serialize>(&mut self, value: &T, table: impl FnOnce(&mut Output, &T) -> io::Result<()>) -> Result<(), Failure> {
        match self.format {
            Format::Table => table(self, value)?,
            Format::Json => {
                let text = serde_json::to_string(value).map_err(|e| Failure::new(format!("cannot print as JSON: {e}")))?;
                writeln!(self.out, "{text}")?;
            }
            Format::Yaml => {
                writeln!(self.out, "---")?;
                self.yaml(value)?;
            }
        }
        Ok(())
    }

    fn yaml<T: Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        let text = serde_saphyr::to_string(value).map_err(|e| Failure::new(format!("cannot print as YAML: {e}")))?;
        self.out.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            writeln!(self.out)?;
        }
        Ok(())
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }

    /// One line of text.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}", sanitize(text))
    }

    /// One line that carries colours from [`Output::paint`]; the caller has sanitized its parts.
    pub fn painted_line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    /// Text of several lines, such as a file.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        text.lines().try_for_each(|line| self.line(line))
    }

    /// Rows below headers, in columns as wide as their widest cell.
    pub fn table<H: AsRef<str>>(&mut self, headers: &[H], rows: &[Vec<String>]) -> io::Result<()> {
        let headers: Vec<String> = headers.iter().map(|h| sanitize(&h.as_ref().to_uppercase()).into_owned()).collect();
        let rows: Vec<Vec<Cow<'_, str>>> = rows.iter().map(|row| row.iter().map(|cell| sanitize(cell)).collect()).collect();
        let mut widths: Vec<usize> = headers.iter().map(|h| if self.headers { h.chars().count() } else { 0 }).collect();
        for row in &rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        if self.headers {
            write_row(&mut self.out, headers.iter().map(String::as_str), &widths)?;
        }
        rows.iter().try_for_each(|row| write_row(&mut self.out, row.iter().map(Cow::as_ref), &widths))
    }

    /// `Name: value` lines, the values aligned.
    pub fn fields(&mut self, fields: &[(&str, String)]) -> io::Result<()> {
        let width = fields.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
        for (name, value) in fields {
            let line = format!("{:width$} {}", format!("{name}:"), sanitize(value));
            writeln!(self.out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// Colours `text` if colours are wanted.
    pub fn paint<'a>(&self, tone: Tone, text: &'a str) -> Cow<'a, str> {
        let code = match tone {
            Tone::Bad => "31",
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Plain => return text.into(),
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m").into() } else { text.into() }
    }
}

fn write_row<'a>(out: &mut impl Write, cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> io::Result<()> {
    let mut line = String::new();
    for (cell, width) in cells.zip(widths) {
        let cell = if cell.is_empty() { "-" } else { cell };
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 2));
    }
    writeln!(out, "{}", line.trim_end())
}

/// Names and labels come from containers: what would steer the terminal is shown escaped.
pub fn sanitize(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| c == '\t' || !(c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'));
    if text.chars().all(harmless) {
        return text.into();
    }
    text.chars().map(|c| if harmless(c) { c.to_string() } else { c.escape_default().to_string() }).collect::<String>().into()
}

/// A remark that is neither result nor error.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "note: {}", sanitize(text));
}

/// `1 rule`, `2 rules`.
pub fn counted(count: u64, of: &str) -> String {
    format!("{count} {of}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(sanitize("a\x1b[2Jb\u{202e}c\nd"), "a\\u{1b}[2Jb\\u{202e}c\\nd");
        assert_eq!(sanitize("plain ü\t"), "plain ü\t");
    }

    #[test]
    fn rows_end_without_spaces_and_show_empty_cells() {
        let mut out = Vec::new();
        write_row(&mut out, ["a", "", "ü"].into_iter(), &[2, 1, 3]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a   -  ü\n");
    }
}
