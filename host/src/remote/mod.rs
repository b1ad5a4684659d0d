//! Commands from other processes of the host: a Unix socket in the run folder, JSON, one object a line each way.
//!
//! ```text
//!   daruma metrics, guest, log, snapshot, store ──► client ──► DIR/control.sock ──► server ──► supervisor's loop
//! ```
//!
//! The socket is its owner's alone (mode 0600), as is all that the supervisor has. A client that stalls, says too much or
//! does not read holds up nobody: it is dropped.

mod client;
mod server;
pub mod text;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::snapshots::StoreCommand;

pub use client::{AskError, Attached, ask, attach, find};
pub(crate) use server::{CallerId, Said, Server};

/// Name of the socket in the run folder.
pub const SOCKET: &str = "control.sock";

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// What the guests' devices have counted since their VMMs started.
    Metrics {
        /// Of this guest, by its name or number; of all that run without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guest: Option<String>,
    },
    /// Take a snapshot of a guest that runs.
    Snapshot {
        /// Of this guest, by its name or number.
        guest: String,
        /// A user's words about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// Have a guest go on from a snapshot.
    Restore {
        /// This guest, by its name or number.
        guest: String,
        /// The snapshot's id; the guest's newest without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<u64>,
    },
    /// Start guests that go on from a snapshot of another one, beside it.
    Fork {
        /// Of this guest, by its name or number.
        guest: String,
        /// The snapshot's id; without it one is taken, or the newest is used of a guest that does not run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<u64>,
        /// How many.
        count: u32,
    },
    /// The guests, or one of them.
    Guests {
        /// This one, by its name or number, in full.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guest: Option<String>,
    },
    /// What the guests are at just now: [`Command::Guests`], and what they use. Two of these are a rate.
    Sample,
    /// Be the console of a guest. After the answer the connection is not JSON any more: what the guest prints comes, and keys
    /// go.
    Console {
        /// This guest, by its name or number.
        guest: String,
    },
    /// Have a guest start, stop and so on. Answered at once: what comes of it, [`Command::Guests`] says.
    Act {
        /// This guest, by its name or number.
        guest: String,
        /// What it is to do.
        act: Act,
    },
    /// What befell the guests.
    Log {
        /// What the VMM of this one said instead.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guest: Option<String>,
    },
    /// What only concerns the store.
    Store {
        /// What of it.
        what: StoreCommand,
    },
}

/// What a guest can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// Start, if it does not run.
    Start,
    /// Power off; it is ended when its time is up.
    Stop,
    /// End at once.
    Kill,
    /// Stop, and start again.
    Restart,
    /// Begin anew from its images. What its disks were is kept for a while as a snapshot.
    FactoryReset,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It was done; this came of it.
    Ok(Value),
    /// It was not, for this reason.
    Error(String),
    /// It is being done; the answer is still to come.
    Progress {
        /// What is done.
        what: String,
        /// How much of it, in bytes.
        done: u64,
        /// Of how much; 0 where that is not known.
        total: u64,
    },
}

/// Where the supervisor that works in the folder `run` listens.
#[must_use]
pub fn socket_in(run: &std::path::Path) -> PathBuf {
    run.join(SOCKET)
}

/// What VMMs have counted, by guest, as text: what is not zero, one group a line.
#[must_use]
pub fn metrics_as_text(metrics: &Value) -> String {
    let mut text = String::new();
    for (guest, groups) in metrics.as_object().into_iter().flatten() {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(guest);
        let Some(groups) = groups.as_object() else {
            continue;
        };
        for (name, group) in groups {
            // What all devices of a kind have together is said by them one after the other.
            let has_parts = groups.keys().any(|other| {
                other
                    .strip_prefix(name.as_str())
                    .is_some_and(|id| id.starts_with('_'))
            });
            let Some(group) = group.as_object().filter(|_| !has_parts) else {
                continue;
            };
            let numbers: Vec<_> = group
                .iter()
                .filter_map(|(metric, value)| number(metric, value))
                .collect();
            if !numbers.is_empty() {
                text.push_str(&format!("\n  {name}: {}", numbers.join(", ")));
            }
        }
    }
    text
}

fn number(metric: &str, value: &Value) -> Option<String> {
    match value {
        Value::Object(latency) => {
            let get = |name| latency.get(name).and_then(Value::as_u64).unwrap_or(0);
            let (min, max) = (get("min_us"), get("max_us"));
            (max > 0).then(|| format!("{metric} {min} to {max} us"))
        }
        value => (value.as_u64()? > 0).then(|| format!("{metric} {value}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn commands_and_answers_are_lines_of_json() {
        let command = Command::Metrics {
            guest: Some("web".to_owned()),
        };
        let text = serde_json::to_string(&command).unwrap();
        assert_eq!(text, r#"{"command":"metrics","guest":"web"}"#);
        let all = serde_json::from_str::<Command>(r#"{"command":"metrics"}"#);
        assert_eq!(all.unwrap(), Command::Metrics { guest: None });
        assert!(serde_json::from_str::<Command>(r#"{"command":"metrics","x":1}"#).is_err());
        let answer = Answer::Error("no".to_owned());
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"error":"no"}"#);
    }

    #[test]
    fn metrics_are_shown_without_zeroes_and_sums() {
        let metrics = json!({"web": {
            "utc_timestamp_ms": 5,
            "block": {"read_count": 3},
            "block_disk0": {"read_count": 3, "write_count": 0, "read_agg": {"min_us": 1, "max_us": 9, "sum_us": 10}},
            "vsock": {"conns_added": 0},
            "uart": {"write_count": 7},
        }, "idle": {}});
        assert_eq!(
            metrics_as_text(&metrics),
            "idle\nweb\n  block_disk0: read_agg 1 to 9 us, read_count 3\n  uart: write_count 7"
        );
    }
}
