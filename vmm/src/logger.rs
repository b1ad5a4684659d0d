//! The log: one line for each record, to standard error or a file, as text or as JSON.
//!
//! A guest never waits for the log's reader: a FIFO that is full loses records, which are counted. What a guest can
//! cause again and again goes through [`Throttle`](devices::throttle::Throttle) before it comes here.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};
use serde_json::json;

use crate::jail::seccomp;
use crate::metrics;

mod calendar;

use calendar::Utc;

/// Most bytes of a message. A line of it is shorter than what a pipe takes whole or not at all (`PIPE_BUF`), also where
/// every byte of it is written as two in JSON.
const MAX_MESSAGE: usize = 1700;

/// How a record is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: time, guest, thread, level, message.
    #[default]
    Text,
    /// For programs: the same as one JSON object.
    Json,
}

/// What is to be different about the log from now on; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Where it goes: a file or a FIFO, which is made if there is none.
    pub path: Option<PathBuf>,
    /// What is important enough.
    pub level: Option<LevelFilter>,
    /// Whether a line has its level.
    pub show_level: Option<bool>,
    /// Whether a line has the place in the source that it comes from.
    pub show_origin: Option<bool>,
    /// Only records whose module's path begins so.
    pub module: Option<String>,
    /// How records are written.
    pub format: Option<Format>,
}

/// Why the log stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be opened.
    #[error("Cannot open {path} to write the log to", path = .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// There is no such level.
    #[error(
        "Log level \"{0}\" is unknown, permitted are Off, Error, Warning, Info, Debug and Trace"
    )]
    Level(String),
    /// There is no such format.
    #[error("Log format \"{0}\" is unknown, permitted are \"text\" and \"json\"")]
    Format(String),
}

impl TryFrom<&api::model::Logger> for Change {
    type Error = LogError;

    fn try_from(logger: &api::model::Logger) -> Result<Self, LogError> {
        let level = logger
            .level
            .as_deref()
            .map(|text| parse_level(text).ok_or_else(|| LogError::Level(text.into())));
        let format = logger.format.as_deref().map(|text| match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            other => Err(LogError::Format(other.into())),
        });
        Ok(Self {
            path: logger.log_path.clone(),
            level: level.transpose()?,
            show_level: logger.show_level,
            show_origin: logger.show_log_origin,
            module: logger.module.clone(),
            format: format.transpose()?,
        })
    }
}

/// A level by any of its names.
pub fn parse_level(text: &str) -> Option<LevelFilter> {
    // Firecracker writes "Warning" for what others call "warn".
    match text.to_ascii_lowercase().as_str() {
        "warning" => Some(LevelFilter::Warn),
        other => other.parse().ok(),
    }
}

/// The log as it is now.
struct State {
    id: String,
    file: Option<File>,
    hide_level: bool,
    show_origin: bool,
    module: Option<String>,
    format: Format,
}

static STATE: Mutex<State> = Mutex::new(State {
    id: String::new(),
    file: None,
    hide_level: false,
    show_origin: false,
    module: None,
    format: Format::Text,
});

/// The process's logger, which has its state in [`STATE`].
struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.wants(record) {
            return;
        }
        let mut line = state.line(record, SystemTime::now());
        line.push('\n');
        // A log that cannot be written cannot be reported either, only counted; the guest goes on.
        let counters = &metrics::process().logger;
        let written = match &mut state.file {
            Some(file) => file.write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
        match written {
            Ok(()) => counters.log_count.count(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                counters.missed_log_count.count();
            }
            Err(_) => counters.log_fails.count(),
        }
    }

    fn flush(&self) {}
}

impl State {
    fn wants(&self, record: &Record<'_>) -> bool {
        let path = record.module_path().unwrap_or_default();
        self.module
            .as_ref()
            .is_none_or(|module| path.starts_with(module.as_str()))
    }

    /// `record`, which came at `now`, as one line, whatever is in its message.
    fn line(&self, record: &Record<'_>, now: SystemTime) -> String {
        let time = Utc(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        let current = thread::current();
        let thread = current.name().unwrap_or("unnamed");
        let message = message(record.args());
        let origin = self.show_origin.then(|| {
            (
                record.file().unwrap_or("unknown"),
                record.line().unwrap_or(0),
            )
        });
        match self.format {
            Format::Text => {
                let mut line = format!("{time} [{}:{thread}", self.id);
                // Writing to a string cannot fail.
                if !self.hide_level {
                    let _ = write!(line, ":{}", record.level());
                }
                if let Some((file, number)) = origin {
                    let _ = write!(line, ":{file}:{number}");
                }
                let _ = write!(line, "] {message}");
                line
            }
            Format::Json => {
                let mut object = json!({
                    "time": time.to_string(),
                    "id": self.id,
                    "thread": thread,
                    "level": record.level().as_str(),
                    "module": record.module_path(),
                    "message": message,
                });
                if let Some((file, number)) = origin {
                    object["file"] = file.into();
                    object["line"] = number.into();
                }
                object.to_string()
            }
        }
    }
}

/// The text of a message, without what could end a line or steer a terminal, and not longer than [`MAX_MESSAGE`].
fn message(arguments: &fmt::Arguments<'_>) -> String {
    let mut text = arguments.to_string().replace(char::is_control, " ");
    if text.len() > MAX_MESSAGE {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE));
        text.push_str(" …");
    }
    text
}

/// Starts logging for the guest `id`. The first call in a process counts.
pub fn init(id: &str, level: LevelFilter, path: Option<&Path>) -> Result<(), LogError> {
    if log::set_logger(&Logger).is_err() {
        return Ok(());
    }
    STATE.lock().unwrap_or_else(PoisonError::into_inner).id = id.into();
    log::set_max_level(level);
    configure(&Change {
        path: path.map(Into::into),
        ..Change::default()
    })
}

/// Changes the log, wholly or not at all.
pub fn configure(change: &Change) -> Result<(), LogError> {
    let file = change.path.as_deref().map(open).transpose()?;
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.apply(change, file);
    drop(state);
    if let Some(level) = change.level {
        log::set_max_level(level);
    }
    Ok(())
}

impl State {
    fn apply(&mut self, change: &Change, file: Option<File>) {
        if let Some(file) = file {
            // Before the file that it was is closed.
            seccomp::set_log(file.as_raw_fd());
            self.file = Some(file);
        }
        if let Some(show) = change.show_level {
            self.hide_level = !show;
        }
        if let Some(show) = change.show_origin {
            self.show_origin = show;
        }
        if let Some(module) = &change.module {
            self.module = (!module.is_empty()).then(|| module.clone());
        }
        if let Some(format) = change.format {
            self.format = format;
        }
    }
}

/// Opens the log `path`.
fn open(path: &Path) -> Result<File, LogError> {
    // Also for reading: so a FIFO can be opened before its reader comes, and his going is no error.
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    file.map_err(|source| LogError::Open {
        path: path.into(),
        source,
    })
}

/// An error with all its causes, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use log::Level;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn state() -> State {
        State {
            id: "g".into(),
            file: None,
            hide_level: false,
            show_origin: false,
            module: None,
            format: Format::Text,
        }
    }

    fn line(state: &State, text: &str) -> String {
        let now = UNIX_EPOCH + Duration::from_micros(1_709_251_087_000_250);
        let mut builder = Record::builder();
        builder
            .level(Level::Warn)
            .module_path(Some("vmm::pci"))
            .file(Some("vmm/src/pci.rs"))
            .line(Some(7));
        state.line(&builder.args(format_args!("{text}")).build(), now)
    }

    /// A test's thread has the test's name.
    fn here() -> String {
        thread::current().name().unwrap().to_owned()
    }

    #[test]
    fn a_record_is_one_line_whatever_is_in_it() {
        let expected = format!("2024-02-29T23:58:07.000250Z [g:{}:WARN] a b [2Jc", here());
        assert_eq!(line(&state(), "a\nb\u{1b}[2Jc"), expected);
    }

    #[test]
    fn level_and_origin_are_shown_as_asked() {
        let mut state = state();
        let change = |show_level, show_origin| Change {
            show_level,
            show_origin,
            ..Change::default()
        };
        state.apply(&change(Some(false), Some(true)), None);
        let expected = format!(":{}:vmm/src/pci.rs:7] a", here());
        assert!(line(&state, "a").ends_with(&expected));
        state.apply(&change(Some(true), None), None);
        let expected = format!(":{}:WARN:vmm/src/pci.rs:7] a", here());
        assert!(line(&state, "a").ends_with(&expected));
    }

    #[test]
    fn json_lines_say_the_same() {
        let mut state = state();
        state.format = Format::Json;
        let object: serde_json::Value = serde_json::from_str(&line(&state, "\"a\"\n")).unwrap();
        let expected = json!({
            "time": "2024-02-29T23:58:07.000250Z", "id": "g", "thread": here(), "level": "WARN",
            "module": "vmm::pci", "message": "\"a\" ",
        });
        assert_eq!(object, expected);
    }

    #[test]
    fn lines_fit_a_pipe_whole_whatever_is_in_them() {
        let mut state = state();
        for format in [Format::Text, Format::Json] {
            state.format = format;
            for text in ["x", "\"", "\u{7}", "ü", "\u{2028}"] {
                assert!(line(&state, &text.repeat(5000)).len() < libc::PIPE_BUF);
            }
        }
    }

    #[test]
    fn modules_are_chosen_by_the_start_of_their_path() {
        let mut state = state();
        let vmm = Record::builder().module_path(Some("vmm::pci")).build();
        assert!(state.wants(&vmm));
        for (module, wanted) in [("vmm", true), ("devices", false), ("", true)] {
            let module = Some(module.to_owned());
            state.apply(
                &Change {
                    module,
                    ..Change::default()
                },
                None,
            );
            assert_eq!(state.wants(&vmm), wanted, "{:?}", state.module);
        }
    }

    #[test]
    fn a_full_fifo_loses_records_and_does_not_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let mut file = open(&path).unwrap();
        let line = [b'x'; 100];
        let result = (0..100_000).try_for_each(|_| file.write_all(&line));
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_the_api_says_is_checked() {
        let logger = |text| serde_json::from_str::<api::model::Logger>(text).unwrap();
        let change = Change::try_from(&logger(
            r#"{"log_path": "l", "level": "Warning", "show_level": true, "show_log_origin": false,
                "module": "vmm", "format": "json"}"#,
        ));
        let expected = Change {
            path: Some("l".into()),
            level: Some(LevelFilter::Warn),
            show_level: Some(true),
            show_origin: Some(false),
            module: Some("vmm".into()),
            format: Some(Format::Json),
        };
        assert_eq!(change.unwrap(), expected);
        let error = |text| Change::try_from(&logger(text)).unwrap_err();
        assert!(matches!(error(r#"{"level": "loud"}"#), LogError::Level(_)));
        assert!(matches!(error(r#"{"format": "xml"}"#), LogError::Format(_)));
        let missing = Change {
            path: Some("/nowhere/at/all".into()),
            ..Change::default()
        };
        assert!(matches!(configure(&missing), Err(LogError::Open { .. })));
    }
}
