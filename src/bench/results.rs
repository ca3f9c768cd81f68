//! Collected samples and what follows from them: medians, ratios to the baseline, and whether the
//! machine was quiet enough to believe them. Pure.

use serde::Serialize;

use super::machine::Facts;
use super::plan::{Quantity, Sample};
use super::stats::Summary;

/// A baseline whose samples lie further apart than this makes ratios meaningless.
pub const SPREAD_LIMIT: f64 = 0.25;

/// Samples of one quantity for one subject, one per round.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// Of what.
    #[serde(flatten)]
    pub quantity: Quantity,
    /// In round order.
    pub samples: Vec<f64>,
}

impl Series {
    /// Median and range.
    pub fn summary(&self) -> Option<Summary> {
        Summary::of(&self.samples)
    }
}

/// Everything measured of one subject under one profile.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The subject's name.
    pub subject: String,
    /// In the order first measured.
    pub series: Vec<Series>,
    /// Tests that failed: round, test and why.
    pub failures: Vec<String>,
}

impl Row {
    /// The series of a quantity.
    pub fn series(&self, id: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.quantity.id == id)
    }

    /// Adds one sample.
    pub fn add(&mut self, sample: Sample) {
        let known = self
            .series
            .iter_mut()
            .find(|series| series.quantity.id == sample.quantity.id);
        match known {
            Some(series) => series.samples.push(sample.value),
            None => self.series.push(Series {
                quantity: sample.quantity,
                samples: vec![sample.value],
            }),
        }
    }
}

/// All subjects under one offload profile. The first row is the baseline of the ratios.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Profile name.
    pub profile: String,
    /// What it stands for.
    pub meaning: String,
    /// Offload settings read back from the underlay.
    pub offloads: Vec<String>,
    /// One per subject.
    pub rows: Vec<Row>,
}

/// One cell as shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Median and range.
    pub summary: Summary,
    /// Median over the baseline's median; `None` when that is missing or zero.
    pub ratio: Option<f64>,
}

impl Table {
    /// An empty table with one row per subject.
    pub fn new(profile: &str, meaning: &str, subjects: &[String]) -> Self {
        let row = |subject: &String| Row {
            subject: subject.clone(),
            series: Vec::new(),
            failures: Vec::new(),
        };
        Self {
            profile: profile.to_owned(),
            meaning: meaning.to_owned(),
            offloads: Vec::new(),
            rows: subjects.iter().map(row).collect(),
        }
    }

    /// Quantities any row has, in the order of the fullest row first.
    pub fn quantities(&self) -> Vec<&Quantity> {
        let mut found: Vec<&Quantity> = Vec::new();
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.series.len()));
        for series in rows.into_iter().flat_map(|row| &row.series) {
            if !found
                .iter()
                .any(|quantity| quantity.id == series.quantity.id)
            {
                found.push(&series.quantity);
            }
        }
        found
    }

    /// The cell of a quantity in a row.
    pub fn cell(&self, row: &Row, id: &str) -> Option<Cell> {
        let summary = row.series(id)?.summary()?;
        let baseline = self.rows.first()?.series(id).and_then(Series::summary);
        let ratio = baseline
            .filter(|baseline| baseline.median != 0.0)
            .map(|baseline| summary.median / baseline.median);
        Some(Cell { summary, ratio })
    }

    /// Headline quantities whose baseline samples spread too far, with that spread.
    pub fn noisy(&self) -> Vec<(String, f64)> {
        let Some(baseline) = self.rows.first() else {
            return Vec::new();
        };
        let spread = |series: &Series| {
            let spread = series.summary()?.spread();
            (series.quantity.headline && spread > SPREAD_LIMIT)
                .then(|| (series.quantity.title.clone(), spread))
        };
        baseline.series.iter().filter_map(spread).collect()
    }
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine.
    pub facts: Facts,
    /// The command line that gave this run, to repeat it.
    pub command: String,
    /// What was set: rounds, seconds, MTU and so on.
    pub settings: Vec<String>,
    /// Subjects that could not run here, and why.
    pub skipped: Vec<String>,
    /// One per profile.
    pub tables: Vec<Table>,
    /// Reasons to distrust the figures; empty for a quiet machine.
    pub doubts: Vec<String>,
}

impl Report {
    /// True when every test of every subject gave a result.
    pub fn complete(&self) -> bool {
        self.tables
            .iter()
            .flat_map(|table| &table.rows)
            .all(|row| row.failures.is_empty())
    }
}

/// Reasons to distrust a run.
///
/// `background` is the share of the machine others used before it began, `stolen` the share the
/// hypervisor took while it ran.
pub fn doubts(tables: &[Table], rounds: usize, background: f64, stolen: f64) -> Vec<String> {
    let mut doubts = Vec::new();
    if background > 0.10 {
        doubts.push(format!(
            "other programs used {:.0} % of the machine before the run",
            background * 100.0
        ));
    }
    if stolen > 0.05 {
        doubts.push(format!(
            "the hypervisor took {:.0} % of the processors",
            stolen * 100.0
        ));
    }
    if rounds < 3 {
        doubts.push(format!("{rounds} round(s): a median needs at least 3"));
    }
    for table in tables {
        for (title, spread) in table.noisy() {
            doubts.push(format!(
                "{}: baseline {} of \"{title}\" spreads {:.0} % (limit {:.0} %)",
                table.profile,
                table.rows[0].subject,
                spread * 100.0,
                SPREAD_LIMIT * 100.0
            ));
        }
    }
    doubts
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two subjects, one throughput and one latency, three rounds.
    pub fn example() -> Table {
        let mut table = Table::new("ideal", "veth as it is", &["kernel".into(), "weft".into()]);
        let rate = Quantity::throughput("tcp1".into(), "TCP, 1 stream".into(), "Gbit/s");
        let wait = Quantity::cost("rr/p50".into(), "round trip: p50".into(), "us").headline();
        for (row, rates, waits) in [
            (0, [10.0, 11.0, 10.5], [50.0, 51.0, 90.0]),
            (1, [12.0, 12.6, 13.0], [75.0, 76.0, 77.0]),
        ] {
            for value in rates {
                table.rows[row].add(Sample::new(rate.clone(), value));
            }
            for value in waits {
                table.rows[row].add(Sample::new(wait.clone(), value));
            }
        }
        table
    }

    #[test]
    fn ratios_compare_medians_with_the_first_row() {
        let table = example();
        let cell = table.cell(&table.rows[1], "tcp1").unwrap();
        assert_eq!(cell.summary.median, 12.6);
        assert_eq!(cell.ratio, Some(1.2));
        assert_eq!(table.cell(&table.rows[0], "tcp1").unwrap().ratio, Some(1.0));
        assert_eq!(table.cell(&table.rows[1], "udp64"), None);
    }

    #[test]
    fn a_restless_baseline_is_called_noisy() {
        let noisy = example().noisy();
        assert_eq!(noisy.len(), 1);
        assert_eq!(noisy[0].0, "round trip: p50");
    }

    #[test]
    fn quiet_machines_raise_no_doubts() {
        let mut table = example();
        table.rows[0].series.truncate(1);
        assert!(doubts(&[table.clone()], 3, 0.02, 0.0).is_empty());
        assert_eq!(doubts(&[table], 2, 0.5, 0.5).len(), 3);
    }

    #[test]
    fn quantities_come_in_the_order_measured() {
        let table = example();
        let ids: Vec<&str> = table
            .quantities()
            .iter()
            .map(|quantity| quantity.id.as_str())
            .collect();
        assert_eq!(ids, ["tcp1", "rr/p50"]);
    }
}
