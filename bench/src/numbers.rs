//! Figures of several rounds: the middle one, and how far the others are from it.

use std::{fmt, time::Duration};

/// One figure, measured several times.
#[derive(Clone, Debug, Default)]
pub struct Figure(Vec<f64>);

impl Figure {
    /// Not measured yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes one more.
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// Takes one more, in milliseconds.
    pub fn add_millis(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * 1e3);
    }

    /// The middle one; zero if there are none.
    pub fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.get(middle) {
            Some(upper) if self.0.len().is_multiple_of(2) => f64::midpoint(self.0[middle - 1], *upper),
            Some(only) => *only,
            None => 0.0,
        }
    }
}

impl fmt::Display for Figure {
    /// `123 (120..130)`; with decimals if the figure is small or a precision is given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(least), Some(most)) = (self.0.first(), self.0.last()) else { return f.pad("-") };
        let decimals = f.precision().unwrap_or(usize::from(self.median() < 100.0));
        let text = format!("{:.decimals$} ({least:.decimals$}..{most:.decimals$})", self.median());
        f.write_fmt(format_args!("{text:>width$}", width = f.width().unwrap_or(0)))
    }
}

/// Bytes as megabytes.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Prints what was aimed at beside what came out.
pub fn verdict(what: &str, value: f64, target: f64, more_is_better: bool) {
    let met = if more_is_better { value >= target } else { value <= target };
    let sign = if more_is_better { "≥" } else { "≤" };
    println!("  {} {what}: {value:.2} (target {sign} {target})", if met { "met   " } else { "MISSED" });
}
