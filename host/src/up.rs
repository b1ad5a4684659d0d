//! `daruma up` and `daruma check`: the same machine file on an ordinary Linux.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use thiserror::Error;

use crate::config::{ConfigError, Limits, Machine, host_memory_mib};
use crate::console::{Console, Head};
use crate::disks::Disks;
use crate::flash::{Flash, OpenError};
use crate::images::Images;
use crate::supervisor::{self, Ledger, Loaded, Outcome, Settings, Supervisor};

/// Why a machine does not come up.
#[derive(Debug, Error)]
pub enum UpError {
    /// The machine file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The machine file leaves nothing to run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The ROM that was named is none.
    #[error("cannot use {path} as the ROM")]
    Rom {
        /// Path of the ROM.
        path: PathBuf,
        /// Cause.
        #[source]
        source: OpenError,
    },
    /// The system refused something.
    #[error("cannot {step}")]
    System {
        /// What was tried.
        step: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// What to bring up.
#[derive(Debug)]
pub struct Options {
    /// The machine file.
    pub file: PathBuf,
    /// The executable that is a VMM when called [`supervisor::VMM_NAME`].
    pub program: PathBuf,
    /// ROM image that `flash:` sources are taken from.
    pub rom: Option<PathBuf>,
    /// Folder that `disk:` sources are taken from; the machine file's own without it.
    pub disk: Option<PathBuf>,
    /// Stop everything once every autostart guest is ready.
    pub power_off_when_ready: bool,
}

/// Runs a machine in the foreground.
///
/// # Errors
/// There is nothing to run, or the system refuses.
pub fn up(options: Options) -> Result<ExitCode, UpError> {
    let (name, text) = read(&options.file)?;
    let limits = Limits {
        host_memory_mib: host_memory_mib(),
    };
    let machine = Machine::parse(&name, &text, limits)?;

    let run_folder = RunFolder::create()?;
    let base = folder_of(&options.file);
    let flash = options
        .rom
        .map(|path| {
            Flash::of_file(&path, &run_folder.0.join("flash"))
                .map_err(|source| UpError::Rom { path, source })
        })
        .transpose()?;
    let images = Images {
        flash,
        // VMMs run in another folder: a relative path means ours.
        disks: Disks::folder(options.disk.map_or_else(
            || base.clone(),
            |folder| fs::canonicalize(&folder).unwrap_or(folder),
        )),
        base,
        program: options.program.clone(),
        run_folder: run_folder.0.clone(),
    };
    let settings = Settings {
        program: options.program,
        run_folder: run_folder.0.clone(),
        power_off_when_ready: options.power_off_when_ready,
        is_init: false,
        open_shell: false,
        timing_since: None,
        buttons: Vec::new(),
        left: Ledger::default(),
    };
    let system = |step| move |source| UpError::System { step, source };
    supervisor::block_signals().map_err(system("block signals"))?;
    let head = Head::stdio().map_err(system("use the terminal"))?;
    let supervisor = Supervisor::new(settings, Console::new(vec![head]))
        .map_err(system("set up the event loop"))?;
    let loaded = Loaded {
        machine: Some(Ok(machine)),
        images,
        remarks: Vec::new(),
    };
    Ok(match supervisor.run(move || loaded) {
        Outcome::Done { failed: true } => ExitCode::FAILURE,
        Outcome::Done { failed: false } | Outcome::PowerOff | Outcome::Reboot => ExitCode::SUCCESS,
    })
}

/// Everything wrong in a machine file, and the number of guests in it.
///
/// # Errors
/// The file cannot be read, or leaves nothing to run.
pub fn check(file: &Path) -> Result<(Vec<ConfigError>, usize), UpError> {
    let (name, text) = read(file)?;
    let limits = Limits {
        host_memory_mib: host_memory_mib(),
    };
    let machine = Machine::parse(&name, &text, limits)?;
    let count = machine.guests.len();
    let guests = machine
        .guests
        .into_iter()
        .filter_map(|entry| entry.config.err());
    let mut errors: Vec<_> = machine.remarks.into_iter().chain(guests).collect();
    errors.sort_by_key(|error| error.line);
    Ok((errors, count))
}

fn read(file: &Path) -> Result<(String, String), UpError> {
    let text = fs::read_to_string(file).map_err(|source| UpError::Read {
        path: file.to_owned(),
        source,
    })?;
    let name = file
        .file_name()
        .unwrap_or(file.as_os_str())
        .to_string_lossy()
        .into_owned();
    Ok((name, text))
}

/// The folder a file is in, absolute: VMM processes work elsewhere.
fn folder_of(file: &Path) -> PathBuf {
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())
}

/// A folder of our own, removed at the end.
struct RunFolder(PathBuf);

impl RunFolder {
    fn create() -> Result<Self, UpError> {
        let name = format!("daruma-{}", std::process::id());
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let places = [
            Some(PathBuf::from("/run")),
            runtime,
            Some(std::env::temp_dir()),
        ];
        let mut result = Err(io::ErrorKind::NotFound.into());
        for place in places.into_iter().flatten() {
            let folder = place.join(&name);
            // Not `create_dir_all`: a folder that someone else made beforehand is not ours.
            result = fs::create_dir(&folder).map(|()| Self(folder));
            if result.is_ok() {
                break;
            }
        }
        result.map_err(|source| UpError::System {
            step: "create a folder for the VMMs",
            source,
        })
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // What is left behind lies in a folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}
