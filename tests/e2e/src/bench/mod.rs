// SPDX-License-Identifier: Apache-2.0
//! Measurements: what they print is judged by `bench/goals.toml`.
//!
//! Only ratios of variants that ran interleaved on one core mean anything on another machine; absolute times are for the one at hand.

mod add;
mod kernel;
mod path;
mod probe;
mod report;
mod shape;
mod swap;
mod traffic;

pub use kernel::relax_limits;
pub use report::{Goals, Report};
pub use shape::pins;

use anyhow::Result;

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rows whose name contains one of these; all if empty.
    pub rows: Vec<String>,
    /// Paired rounds of the traffic rows, and repetitions of the others.
    pub rounds: usize,
}

impl Plan {
    pub fn wants(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|p| name.contains(p.as_str()))
    }

    fn wants_any(&self, names: &[&str]) -> bool {
        names.iter().any(|n| self.wants(n))
    }
}

/// One line of the table.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    /// A value per round.
    pub samples: Vec<f64>,
    /// The baseline's value of the same round; empty where the goal is absolute.
    pub baseline: Vec<f64>,
    pub note: String,
}

impl Row {
    fn new(name: &str, unit: &'static str, samples: Vec<f64>) -> Self {
        Self { name: name.into(), unit, samples, ..Self::default() }
    }

    fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

/// Rows that are measured together.
pub struct Group {
    pub rows: &'static [&'static str],
    run: fn(&Plan) -> Result<Vec<Row>>,
}

/// In the order in which they run: what leaves the machine busy comes last.
pub const GROUPS: &[Group] = &[
    Group { rows: shape::ROWS, run: shape::run },
    Group { rows: traffic::ROWS, run: traffic::run },
    Group { rows: add::ONE_ROWS, run: add::one_by_one },
    Group { rows: add::OWN_ROWS, run: add::own },
    Group { rows: swap::SWAP_ROWS, run: swap::swaps },
    Group { rows: swap::OPEN_ROWS, run: swap::open_loop },
    Group { rows: swap::RESTART_ROWS, run: swap::restarts },
    Group { rows: add::MANY_ROWS, run: add::many },
];

/// Measures and hands each row to `report`; a group that fails is a row that says so.
pub fn run(plan: &Plan, report: &mut Report) {
    for group in GROUPS.iter().filter(|g| plan.wants_any(g.rows)) {
        let since = std::time::Instant::now();
        progress(&format!("{} ...", group.rows.join(" ")));
        match (group.run)(plan) {
            Ok(rows) => rows.into_iter().filter(|r| plan.wants(&r.name)).for_each(|r| report.add(r)),
            Err(e) => group.rows.iter().filter(|n| plan.wants(n)).for_each(|n| report.fail(n, &format!("{e:#}"))),
        }
        progress(&format!("  took {:.1} s", since.elapsed().as_secs_f64()));
    }
}

pub(crate) fn progress(text: &str) {
    eprintln!("{text}");
}

pub(crate) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// The value below which a share of all lies, by nearest rank.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let values = sorted(values);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}
