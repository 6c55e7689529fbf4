// SPDX-License-Identifier: Apache-2.0
//! What traces of established flows, and reports of drops, leave out, as the programs read it.

use super::Tables;
use pilus_loader::{Error, clock};
use pilus_model::abi;
use std::sync::{Arc, Mutex, PoisonError};

/// As options give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Seconds; 0: no packet is reported for the time alone.
    interval: u32,
    sample: u32,
    /// Seconds; 0: every drop is reported.
    drops: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval: 5, sample: 1, drops: 1 }
    }
}

impl Settings {
    /// Jiffies have 32 bits, and at most 1000 of them make a second.
    pub const MAX: u32 = 1_000_000;
    /// Of `drop-interval`: `DENIAL_LONGEST` at most.
    pub const MAX_DROPS: u32 = 3600;

    /// Option and value, in the order of the options.
    pub fn list(&self) -> [(&'static str, u32); 3] {
        [("drop-interval", self.drops), ("trace-interval", self.interval), ("trace-sample", self.sample)]
    }

    /// `None`: there is no such option.
    pub fn set(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        let (field, range, what) = match key {
            "drop-interval" => (&mut self.drops, 0..=Self::MAX_DROPS, "seconds, 0 (every drop) to"),
            "trace-interval" => (&mut self.interval, 0..=Self::MAX, "seconds, 0 (never) to"),
            "trace-sample" => (&mut self.sample, 1..=Self::MAX, "a number of packets, 1 (all) to"),
            _ => return None,
        };
        Some(match value.parse() {
            Ok(n) if range.contains(&n) => {
                *field = n;
                Ok(())
            }
            _ => Err(format!("`{value}`: takes {what} {}", range.end())),
        })
    }
}

/// Keeps the programs' row.
#[derive(Debug)]
pub struct Reporting {
    tables: Arc<Tables>,
    held: Mutex<Settings>,
}

impl Reporting {
    pub fn new(tables: Arc<Tables>, settings: Settings) -> Result<Self, Error> {
        let this = Self { tables, held: Mutex::new(settings) };
        this.set(settings)?;
        Ok(this)
    }

    pub fn settings(&self) -> Settings {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, also for flows that are there. A refusal that is known keeps the interval that it was given.
    pub fn set(&self, settings: Settings) -> Result<(), Error> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let hz = clock::hz()?;
        let interval = if settings.interval == 0 { u32::MAX } else { settings.interval * hz };
        let row = abi::Reporting { interval, sample: settings.sample, drops: settings.drops * hz };
        self.tables.reporting.put(&0, &row)?;
        *held = settings;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_set_by_their_options_and_within_bounds() {
        let bad: [(_, &[_]); 3] = [
            ("drop-interval", &["-1", "0.5", "3601", ""]),
            ("trace-interval", &["-1", "0.5", "1000001", ""]),
            ("trace-sample", &["0", "-1", "1000001", "all"]),
        ];
        for (key, bad) in bad {
            let mut s = Settings::default();
            assert_eq!(s.set(key, "7"), Some(Ok(())));
            assert_eq!(s.list().into_iter().filter(|(_, n)| *n == 7).collect::<Vec<_>>(), [(key, 7)]);
            for value in bad.iter().copied() {
                let refused = s.set(key, value);
                assert!(matches!(&refused, Some(Err(why)) if why.contains(&format!("`{value}`"))), "{refused:?}");
            }
            assert!(s.list().contains(&(key, 7)), "a refused value changes nothing");
        }
        let mut s = Settings::default();
        assert_eq!((s.set("trace-interval", "0"), s.set("trace-level", "1")), (Some(Ok(())), None));
        assert!(Settings::MAX.checked_mul(1000).is_some() && Settings::MAX_DROPS * 1000 <= abi::DENIAL_LONGEST);
    }
}
