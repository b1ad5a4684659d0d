//! One measured number: its name, unit, clock, and what peers did in the same run.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// What a number was counted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// Instructions of the machine, 1 ns each.
    Virtual,
    /// Time of one processor of this computer, spent on nothing else.
    Processor,
    /// No time at all: bytes, ratios.
    None,
}

/// One number.
#[derive(Debug, Serialize)]
pub struct Metric {
    /// The name that tools rely on.
    pub name: String,
    /// The value, in `unit`.
    pub value: f64,
    /// e.g. `ms`, `KiB`, `B`.
    pub unit: &'static str,
    /// What it was counted with.
    pub clock: Clock,
    /// The same number of others, by their names.
    pub peer: BTreeMap<String, f64>,
    /// What is to be reached, if the project set a goal; only for the table.
    #[serde(skip)]
    pub goal: Option<Goal>,
}

/// What a number is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The largest value that is good.
    AtMost(f64),
    /// The smallest value that is good.
    AtLeast(f64),
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, limit) = match self {
            Self::AtMost(most) => ("≤", most),
            Self::AtLeast(least) => ("≥", least),
        };
        // Enough digits for a limit below ten, no more than are meant for a large one.
        let digits = if *limit < 10.0 { 2 } else { 0 };
        write!(f, "{sign} {limit:.digits$}")
    }
}

impl Metric {
    /// A number without a peer.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, clock: Clock) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            clock,
            peer: BTreeMap::new(),
            goal: None,
        }
    }

    /// Adds the largest value that meets the goal.
    pub fn at_most(mut self, goal: f64) -> Self {
        self.goal = Some(Goal::AtMost(goal));
        self
    }

    /// Adds the smallest value that meets the goal.
    pub fn at_least(mut self, goal: f64) -> Self {
        self.goal = Some(Goal::AtLeast(goal));
        self
    }

    /// Adds a peer's number.
    pub fn peer(mut self, name: &str, value: f64) -> Self {
        self.peer.insert(name.to_owned(), value);
        self
    }
}

/// The numbers as a table for people.
pub fn table(metrics: &[Metric]) -> String {
    let mut text = format!(
        "{:<44} {:>12} {:>6}  {:>16}  peers\n",
        "metric", "value", "", "goal"
    );
    for metric in metrics {
        let goal = match metric.goal {
            None => String::new(),
            Some(goal) if goal.is_met(metric.value) => goal.to_string(),
            Some(goal) => format!("MISSED {goal}"),
        };
        // Ratios and counts of exits are small; everything else is not.
        let digits = if metric.value.abs() < 10.0 { 3 } else { 1 };
        let peers: Vec<String> = metric
            .peer
            .iter()
            .map(|(name, value)| format!("{name} {value:.digits$} ({:.2}×)", value / metric.value))
            .collect();
        text += &format!(
            "{:<44} {:>12.digits$} {:>6}  {goal:>16}  {}\n",
            metric.name,
            metric.value,
            metric.unit,
            peers.join(", ")
        );
    }
    text
}

/// The middle one of several values of the same thing.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_order_and_outliers() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn a_missed_goal_is_called_missed() {
        let missed = Metric::new("a", 2.0, "ms", Clock::Virtual).at_most(1.0);
        let met = Metric::new("b", 1.0, "ms", Clock::Virtual).at_most(1.0);
        assert!(table(&[missed]).contains("MISSED"));
        assert!(!table(&[met]).contains("MISSED"));
        let slow = Metric::new("c", 2.0, "MiB/s", Clock::Virtual).at_least(2.5);
        assert!(table(&[slow]).contains("MISSED ≥ 2.50"));
    }

    #[test]
    fn the_written_form_has_the_promised_fields() {
        let metric = Metric::new("a", 2.5, "ms", Clock::Virtual).peer("qemu", 5.0);
        assert_eq!(
            serde_json::to_value(&metric).unwrap(),
            serde_json::json!({
                "name": "a", "value": 2.5, "unit": "ms", "clock": "virtual",
                "peer": {"qemu": 5.0},
            })
        );
    }
}
