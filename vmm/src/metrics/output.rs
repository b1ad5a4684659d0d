//! Where metrics are written: a file or FIFO, one JSON object a line, never waited for.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use devices::throttle::Throttle;

use super::Snapshot;

/// Why metrics cannot be written to where they are wanted.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Once is enough.
    #[error("Metrics are written to a file already, they cannot be written to another")]
    Configured,
    /// The file cannot be opened.
    #[error("Cannot open {path} to write metrics to", path = .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Where metrics are written.
pub(super) struct Output {
    file: File,
    /// The rest of a line that there was no room for.
    rest: Vec<u8>,
    /// What the lines so far say.
    written: Option<Snapshot>,
    failures: Throttle,
}

impl Output {
    /// Opens `path`, which is made if there is nothing.
    pub(super) fn open(path: &Path) -> Result<Self, OutputError> {
        // Also for reading: so a FIFO can be opened before its reader comes, and his going is no error.
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
            .open(path);
        let file = file.map_err(|source| OutputError::Open {
            path: path.into(),
            source,
        })?;
        Ok(Self {
            file,
            rest: Vec::new(),
            written: None,
            failures: Throttle::default(),
        })
    }

    /// Writes what is new in `snapshot`. `false` where there is no room: nothing of it counts as written.
    pub(super) fn write(&mut self, snapshot: Snapshot) -> io::Result<bool> {
        // A line that was begun is ended first, or it and the next are both lost.
        self.write_rest()?;
        if !self.rest.is_empty() {
            return Ok(false);
        }
        let new = match &self.written {
            Some(written) => snapshot.since(written),
            None => snapshot.clone(),
        };
        let mut line = new.to_json().to_string().into_bytes();
        line.push(b'\n');
        let length = line.len();
        self.rest = line;
        self.write_rest()?;
        if self.rest.len() == length {
            self.rest.clear();
            return Ok(false);
        }
        self.written = Some(snapshot);
        Ok(true)
    }

    fn write_rest(&mut self) -> io::Result<()> {
        let mut done = 0;
        let result = loop {
            if done == self.rest.len() {
                break Ok(());
            }
            match self.file.write(&self.rest[done..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => done += length,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => break Ok(()),
                    _ => break Err(error),
                },
            }
        };
        self.rest.drain(..done);
        if result.is_err() {
            // What is wrong with the file may pass, and half a line helps nobody.
            self.rest.clear();
        }
        result
    }

    /// Says in the log that a line could not be written.
    pub(super) fn failed(&mut self, error: &io::Error) {
        self.failures
            .warn(format_args!("Metrics cannot be written: {error}"));
    }
}
