// SPDX-License-Identifier: Apache-2.0
//! Goals, the table and the JSON file.

use super::{Row, median};
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The sections that there is code for. A row that several of them name is measured once and judged by each.
const SECTIONS: [&str; 4] = ["main-job", "datapath", "plugins", "policy"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
}

impl Goal {
    fn met(&self, value: f64) -> bool {
        !value.is_nan() && self.max.is_none_or(|m| value <= m) && self.min.is_none_or(|m| value >= m)
    }

    fn text(&self) -> String {
        match (self.min, self.max) {
            (Some(min), _) => format!(">= {min}"),
            (_, Some(max)) => format!("<= {max}"),
            _ => String::new(),
        }
    }
}

/// What each row must reach.
#[derive(Clone, Debug)]
pub struct Goals(BTreeMap<String, BTreeMap<String, Goal>>);

impl Goals {
    /// From `bench/goals.toml` here, or of the source tree that this program was built from.
    pub fn read() -> Result<Self> {
        let here = Path::new("bench/goals.toml");
        let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/goals.toml"));
        let path = if here.exists() { here } else { source };
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let all: BTreeMap<String, BTreeMap<String, Goal>> = toml::from_str(&text).with_context(|| path.display().to_string())?;
        for section in SECTIONS {
            anyhow::ensure!(all.contains_key(section), "{}: no section {section}", path.display());
        }
        Ok(Self(all))
    }

    /// Sections that name a row, with its goal there; without any, the row is of the first. Traffic rows carry their family at
    /// the end, the goals do not.
    fn of(&self, row: &str) -> Vec<(&'static str, Option<Goal>)> {
        let base = row.strip_suffix("_v4").or_else(|| row.strip_suffix("_v6")).unwrap_or(row);
        let goal = |section| self.0.get(section).and_then(|rows| rows.get(row).or_else(|| rows.get(base)));
        let named: Vec<_> = SECTIONS.into_iter().filter_map(|s| Some((s, Some(*goal(s)?)))).collect();
        if named.is_empty() { vec![(SECTIONS[0], None)] } else { named }
    }
}

/// A row as it is written.
#[derive(Clone, Debug, Serialize)]
struct Entry {
    section: &'static str,
    name: String,
    unit: String,
    median: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    /// Median of the baseline, in the same unit.
    baseline: Option<f64>,
    /// Median of the ratios of each round; what the goal is about where there is a baseline.
    ratio: Option<f64>,
    ratio_min: Option<f64>,
    ratio_max: Option<f64>,
    goal: Option<Goal>,
    /// Rounds that meet the goal.
    rounds_ok: usize,
    rounds: usize,
    ok: bool,
    note: String,
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

fn extremes(values: &[f64]) -> (Option<f64>, Option<f64>) {
    (finite(values.iter().copied().fold(f64::INFINITY, f64::min)), finite(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)))
}

fn judge(row: &Row, section: &'static str, goal: Option<Goal>) -> Entry {
    let paired = !row.baseline.is_empty();
    let ratios: Vec<f64> = row.samples.iter().zip(&row.baseline).map(|(a, b)| a / b).collect();
    let judged = if paired { &ratios } else { &row.samples };
    let rounds_ok = judged.iter().filter(|v| goal.is_none_or(|g| g.met(**v))).count();
    let (min, max) = extremes(&row.samples);
    let (ratio_min, ratio_max) = extremes(&ratios);
    // Eight of eleven rounds, and as many of another number.
    let ok = goal.is_none_or(|g| g.met(median(judged))) && (!paired || rounds_ok * 11 >= judged.len() * 8);
    Entry {
        section,
        name: row.name.clone(),
        unit: row.unit.into(),
        median: finite(median(&row.samples)),
        min,
        max,
        baseline: if paired { finite(median(&row.baseline)) } else { None },
        ratio: if paired { finite(median(&ratios)) } else { None },
        ratio_min,
        ratio_max,
        goal,
        rounds_ok,
        rounds: judged.len(),
        ok,
        note: row.note.clone(),
    }
}

/// Rows, judged as they come.
pub struct Report {
    goals: Goals,
    entries: Vec<Entry>,
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(v) if v == v.trunc() && v.abs() >= 10.0 || v == 0.0 => format!("{v:.0}"),
        Some(v) if v.abs() >= 100.0 => format!("{v:.0}"),
        Some(v) => format!("{v:.2}"),
    }
}

impl Report {
    pub fn new(goals: Goals) -> Self {
        Self { goals, entries: Vec::new() }
    }

    pub fn add(&mut self, row: Row) {
        for (section, goal) in self.goals.of(&row.name) {
            self.push(judge(&row, section, goal));
        }
    }

    /// A row that could not be measured.
    pub fn fail(&mut self, name: &str, why: &str) {
        self.unmeasured(name, &format!("failed: {why}"));
    }

    /// A row that this machine has no means for. It is missed all the same.
    pub fn skip(&mut self, name: &str, why: &str) {
        self.unmeasured(name, &format!("skipped: {why}"));
    }

    fn unmeasured(&mut self, name: &str, note: &str) {
        for (section, goal) in self.goals.of(name) {
            let row = Row::new(name, "", Vec::new()).note(note);
            self.push(Entry { ok: false, ..judge(&row, section, goal) });
        }
    }

    fn push(&mut self, entry: Entry) {
        super::progress(&format!("  {}", Self::line(&entry).trim_end()));
        self.entries.push(entry);
    }

    pub fn all_ok(&self) -> bool {
        self.entries.iter().all(|e| e.ok)
    }

    fn line(e: &Entry) -> String {
        let goal = e.goal.map(|g| g.text()).unwrap_or_default();
        let verdict = match (e.ok, goal.is_empty()) {
            (false, _) => "MISS",
            (true, true) => "",
            (true, false) => "ok",
        };
        let range = if e.rounds > 1 { format!("{}-{}", number(e.min), number(e.max)) } else { String::new() };
        let of = if e.ratio.is_some() { format!("{}/{}", e.rounds_ok, e.rounds) } else { String::new() };
        let ratio = e.ratio.map(|r| format!("{r:.3}")).unwrap_or_default();
        let baseline = e.baseline.map(|b| number(Some(b))).unwrap_or_default();
        format!(
            "{:<41} {:>9} {:>17} {:<7} {baseline:>9} {ratio:>7} {goal:>9} {of:>6} {verdict:<4}  {}",
            e.name,
            number(e.median),
            range,
            e.unit,
            e.note
        )
    }

    pub fn table(&self) -> String {
        let mut out = format!(
            "{:<41} {:>9} {:>17} {:<7} {:>9} {:>7} {:>9} {:>6} \n",
            "row", "median", "min-max", "unit", "baseline", "ratio", "goal", "rounds"
        );
        for section in SECTIONS {
            let mut of = self.entries.iter().filter(|e| e.section == section).peekable();
            if of.peek().is_some() {
                out.push_str(&format!("[{section}]\n"));
            }
            for entry in of {
                out.push_str(Self::line(entry).trim_end());
                out.push('\n');
            }
        }
        out
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        let text = serde_json::to_string_pretty(&self.entries)?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let goal = |min, max| Goal { min, max };
        let rows = |max, min| BTreeMap::from([("a".to_owned(), goal(None, Some(max))), ("b".to_owned(), goal(Some(min), None))]);
        let goals = [("main-job", rows(1.1, 0.75)), ("datapath", BTreeMap::from([("a".to_owned(), goal(None, Some(1.05)))]))];
        Report::new(Goals(goals.map(|(section, rows)| (section.to_owned(), rows)).into()))
    }

    #[test]
    fn a_row_needs_the_median_and_eight_of_eleven_rounds() {
        for (good, ok) in [(8, true), (7, false)] {
            let mut report = report();
            let samples = (0..11).map(|n| if n < good { 1.0 } else { 2.0 }).collect();
            report.add(Row { baseline: vec![1.0; 11], ..Row::new("a_v4", "us", samples) });
            assert_eq!(report.all_ok(), ok, "{good}");
        }
    }

    #[test]
    fn a_row_of_two_sections_is_judged_by_each() {
        let mut report = report();
        report.add(Row { baseline: vec![1.0], ..Row::new("a_v6", "us", vec![1.07]) });
        assert_eq!(report.entries.iter().map(|e| (e.section, e.ok)).collect::<Vec<_>>(), [("main-job", true), ("datapath", false)]);
        assert!(!report.all_ok());
    }

    #[test]
    fn goals_bound_from_either_side_and_a_failed_row_is_missed() {
        let mut report = report();
        report.add(Row { baseline: vec![1.0], ..Row::new("b_v6", "GB/s", vec![0.8]) });
        report.add(Row::new("none", "ms", vec![5.0]));
        assert!(report.all_ok());
        report.add(Row::new("b", "GB/s", vec![f64::NAN]));
        assert!(!report.all_ok());
        report.fail("a", "why");
        report.skip("b", "no such thing");
        assert!(report.table().contains("failed: why") && report.table().contains("skipped: no such thing"));
    }
}
