//! All numbers at one point in time.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use devices::metrics::Value;
use serde_json::{Map, json};

use super::Group;

/// All numbers at one point in time, or what was added between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Milliseconds since 1970, UTC.
    at: u64,
    groups: BTreeMap<String, Group>,
}

impl Snapshot {
    /// `groups`, as they are now.
    pub(super) fn new(groups: BTreeMap<String, Group>) -> Self {
        // A host whose clock is before 1970 reports 1970.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            at: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            groups,
        }
    }

    /// What was added since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let groups = self.groups.iter().map(|(name, group)| {
            let old = before.groups.get(name);
            let group = group.iter().map(|(metric, value)| {
                let old = old.and_then(|old| old.get(metric));
                (*metric, old.map_or(*value, |old| value.since(*old)))
            });
            (name.clone(), group.collect())
        });
        Self {
            at: self.at,
            groups: groups.collect(),
        }
    }

    /// One number, by its group and its name.
    pub fn get(&self, group: &str, name: &str) -> Option<Value> {
        self.groups.get(group)?.get(name).copied()
    }

    /// As Firecracker writes it.
    pub fn to_json(&self) -> serde_json::Value {
        let mut all = Map::new();
        all.insert("utc_timestamp_ms".into(), self.at.into());
        for (name, group) in &self.groups {
            let group = group
                .iter()
                .map(|(metric, value)| ((*metric).to_owned(), number(*value)));
            all.insert(name.clone(), Map::from_iter(group).into());
        }
        all.into()
    }
}

fn number(value: Value) -> serde_json::Value {
    match value {
        Value::Count(number) | Value::Level(number) => number.into(),
        Value::Latency {
            min_us,
            max_us,
            sum_us,
        } => json!({ "min_us": min_us, "max_us": max_us, "sum_us": sum_us }),
    }
}
