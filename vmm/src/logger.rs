//! The log: one line for each record, to standard error or a file.

use std::error::Error;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use log::{LevelFilter, Log, Metadata, Record};

struct Logger {
    id: String,
    file: Option<Arc<File>>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = line(&self.id, record);
            // A log that cannot be written cannot be reported either; the guest goes on.
            let _ = match &self.file {
                Some(file) => (&**file).write_all(line.as_bytes()),
                None => io::stderr().write_all(line.as_bytes()),
            };
        }
    }

    fn flush(&self) {}
}

/// A record as one line, whatever is in its message.
fn line(id: &str, record: &Record<'_>) -> String {
    let mut line = format!("[{id}] {}: ", record.level());
    let start = line.len();
    // Writing to a string cannot fail.
    let _ = write!(line, "{}", record.args());
    let message: String = line[start..]
        .chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect();
    line.truncate(start);
    line.push_str(&message);
    line.push('\n');
    line
}

/// Starts logging for the guest `id`. The first call in a process counts.
pub fn init(id: &str, level: LevelFilter, path: Option<&Path>) -> io::Result<()> {
    let file = match path {
        Some(path) => Some(Arc::new(
            OpenOptions::new().create(true).append(true).open(path)?,
        )),
        None => None,
    };
    if log::set_boxed_logger(Box::new(Logger {
        id: id.into(),
        file,
    }))
    .is_ok()
    {
        log::set_max_level(level);
    }
    Ok(())
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
    use super::*;

    #[test]
    fn a_record_is_one_line_whatever_is_in_it() {
        let record = Record::builder()
            .level(log::Level::Warn)
            .args(format_args!("a\nb\u{1b}[2Jc"))
            .build();
        assert_eq!(line("g", &record), "[g] WARN: a b [2Jc\n");
    }
}
