// SPDX-License-Identifier: Apache-2.0
//! Measurements: what they print is judged by `bench/goals.toml`.
//!
//! Only ratios of variants that ran interleaved on one core mean anything on another machine; absolute times are for the one at hand.

mod add;
mod datapath;
mod direct;
mod events;
mod kernel;
pub mod path;
mod plugins;
mod policy;
mod probe;
mod reference;
mod report;
pub mod scale;
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

/// Why rows cannot be measured on this machine.
#[derive(Debug)]
struct Skipped(String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// Rows that are measured together.
pub struct Group {
    pub rows: &'static [&'static str],
    run: fn(&Plan) -> Result<Vec<Row>>,
}

/// In the order in which they run: what leaves the machine busy comes last.
pub const GROUPS: &[Group] = &[
    Group { rows: shape::ROWS, run: shape::run },
    Group { rows: traffic::ROWS, run: traffic::run },
    Group { rows: datapath::FAMILY_ROWS, run: datapath::families },
    Group { rows: datapath::MONITOR_ROWS, run: datapath::monitored },
    Group { rows: datapath::DENIED_ROWS, run: datapath::denied },
    Group { rows: datapath::SCALE_ROWS, run: datapath::scale },
    Group { rows: events::ROWS, run: events::run },
    Group { rows: direct::ROWS, run: direct::run },
    Group { rows: add::ONE_ROWS, run: add::one_by_one },
    Group { rows: add::OWN_ROWS, run: add::own },
    Group { rows: swap::SWAP_ROWS, run: swap::swaps },
    Group { rows: swap::OPEN_ROWS, run: swap::open_loop },
    Group { rows: swap::RESTART_ROWS, run: swap::restarts },
    Group { rows: plugins::CNI_ROWS, run: plugins::cni },
    Group { rows: plugins::CNI_BRIDGE_ROWS, run: plugins::cni_bridge },
    Group { rows: plugins::DOCKER_ROWS, run: plugins::docker_run },
    Group { rows: policy::RESOLVE_ROWS, run: policy::resolve },
    Group { rows: policy::ONE_ROWS, run: policy::one },
    Group { rows: add::MANY_ROWS, run: add::many },
    Group { rows: policy::MANY_ROWS, run: policy::many },
];

/// Rounds of variants, one after the other in each, and none always the first. A round before them warms up and does not count.
/// Values by variant.
fn interleaved(rounds: usize, variants: usize, mut measure: impl FnMut(usize) -> Result<f64>) -> Result<Vec<Vec<f64>>> {
    let mut values = vec![Vec::new(); variants];
    for round in 0..=rounds {
        for turn in 0..variants {
            let n = (turn + round) % variants;
            let value = measure(n)?;
            if round > 0 {
                values[n].push(value);
            }
        }
    }
    Ok(values)
}

/// Medians of the ratios of each round.
fn ratio(values: &[f64], to: &[f64]) -> f64 {
    median(&values.iter().zip(to).map(|(a, b)| a / b).collect::<Vec<_>>())
}

/// Runs `f` in a thread that has the last processor for itself; says which that is.
fn on_own_processor<T: Send>(f: impl FnOnce(usize) -> Result<T> + Send) -> Result<T> {
    let cpu = std::thread::available_parallelism()?.get() - 1;
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                kernel::own_processor(cpu)?;
                f(cpu)
            })
            .join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Measures and hands each row to `report`; a group that fails is a row that says so.
pub fn run(plan: &Plan, report: &mut Report) {
    for group in GROUPS.iter().filter(|g| plan.wants_any(g.rows)) {
        let since = std::time::Instant::now();
        progress(&format!("{} ...", group.rows.join(" ")));
        match (group.run)(plan) {
            Ok(rows) => rows.into_iter().filter(|r| plan.wants(&r.name)).for_each(|r| report.add(r)),
            Err(e) if e.is::<Skipped>() => group.rows.iter().filter(|n| plan.wants(n)).for_each(|n| report.skip(n, &e.to_string())),
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
