//! The asking side.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::{Answer, Command, SOCKET};

/// Folders in which a supervisor's run folder may be.
const PLACES: [&str; 2] = ["/run", "/tmp"];
/// Most bytes of an answer: dozens of guests with dozens of devices each.
const MAX_ANSWER: u64 = 16 << 20;
/// How long an answer, or the next news of it, may take: more than the supervisor gives its guests' VMMs. Snapshots have
/// longer: until a damaged disk has said that it is one.
const PATIENCE: Duration = Duration::from_secs(10);
const LONG_PATIENCE: Duration = Duration::from_secs(120);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody to ask.
    #[error("no machine runs on this host: start one with 'daruma up FILE'")]
    NoMachine,
    /// Too many to ask.
    #[error("several machines run on this host, say which by --socket: {0}")]
    SeveralMachines(String),
    /// Not reached.
    #[error("cannot ask the supervisor at {path}")]
    Io {
        /// Its socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It spoke something else.
    #[error("cannot understand the supervisor at {path}")]
    Json {
        /// Its socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// It refused.
    #[error("{0}")]
    Refused(String),
}

/// The socket of the machine that runs here.
///
/// # Errors
/// There is none, or more than one.
pub fn find() -> Result<PathBuf, AskError> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = PLACES.into_iter().map(PathBuf::from).chain(runtime);
    let mut found: Vec<_> = places.flat_map(|place| sockets_in(&place)).collect();
    found.sort();
    found.dedup();
    match found.len() {
        0 => Err(AskError::NoMachine),
        1 => found.pop().ok_or(AskError::NoMachine),
        _ => {
            let paths: Vec<_> = found
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            Err(AskError::SeveralMachines(paths.join(", ")))
        }
    }
}

/// Sockets of supervisors whose run folder is in `place`, and that answer.
fn sockets_in(place: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name == "daruma" || name.starts_with("daruma-")
        })
        .map(|entry| entry.path().join(SOCKET))
        // One that was killed leaves its folder behind.
        .filter(|path| UnixStream::connect(path).is_ok())
        .collect()
}

/// The console of a guest.
#[derive(Debug)]
pub struct Attached {
    /// Its name.
    pub guest: String,
    /// What it prints comes from there, keys go there.
    pub stream: UnixStream,
    /// What came already.
    pub first: Vec<u8>,
}

/// Asks the supervisor at `socket` for the console of a guest.
///
/// # Errors
/// It cannot be reached, or refuses.
pub fn attach(socket: &Path, guest: &str) -> Result<Attached, AskError> {
    let guest = guest.to_owned();
    let (answer, reader) = converse(socket, &Command::Console { guest }, |_, _, _| ())?;
    let guest = answer.get("guest").and_then(serde_json::Value::as_str);
    let guest = guest.unwrap_or_default().to_owned();
    let first = reader.buffer().to_vec();
    let stream = reader.into_inner();
    // A guest may be silent for as long as it likes.
    let timeouts = stream.set_read_timeout(None);
    timeouts.map_err(|source| AskError::Io {
        path: socket.to_owned(),
        source,
    })?;
    Ok(Attached {
        guest,
        stream,
        first,
    })
}

/// Has the supervisor at `socket` carry out `command`. `progress` gets what is being done, how much of it is, and of how
/// much.
///
/// # Errors
/// It cannot be reached, or refuses.
pub fn ask(
    socket: &Path,
    command: &Command,
    progress: impl FnMut(&str, u64, u64),
) -> Result<serde_json::Value, AskError> {
    Ok(converse(socket, command, progress)?.0)
}

/// The answer, and what comes after it.
fn converse(
    socket: &Path,
    command: &Command,
    mut progress: impl FnMut(&str, u64, u64),
) -> Result<(serde_json::Value, BufReader<UnixStream>), AskError> {
    let io = |source| AskError::Io {
        path: socket.to_owned(),
        source,
    };
    let json = |source| AskError::Json {
        path: socket.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(socket).map_err(io)?;
    let patience = match command {
        Command::Metrics { .. } | Command::Sample => PATIENCE,
        _ => LONG_PATIENCE,
    };
    stream.set_read_timeout(Some(patience)).map_err(io)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
    let mut line = serde_json::to_vec(command).map_err(json)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(io)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut answer = String::new();
        let mut line = (&mut reader).take(MAX_ANSWER);
        line.read_line(&mut answer).map_err(io)?;
        match serde_json::from_str(&answer).map_err(json)? {
            Answer::Ok(value) => return Ok((value, reader)),
            Answer::Error(reason) => return Err(AskError::Refused(reason)),
            Answer::Progress { what, done, total } => progress(&what, done, total),
        }
    }
}
