//! `logger` and `metrics`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// Where it goes instead of standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// `"Off"`, `"Error"`, `"Warning"`, `"Info"`, `"Debug"` or `"Trace"`, in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Whether a line has its level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether a line has its place in the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Only lines of this module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Ours: `"text"` or `"json"`, one object a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

/// Where metrics are written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// A file or a named pipe.
    pub metrics_path: PathBuf,
}
