//! Runs the distribution's image tools: output to a log, failures with its last lines.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Error, RecipeFile};

/// Lines of a failed tool's output that go into the error.
const TAIL_LINES: usize = 8;

/// A distribution's administrator tools are not on every user's search path.
const ADMIN_FOLDERS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Runs `command` to its end, its output appended to `log`.
pub fn run(command: &mut Command, log: &Path) -> Result<(), Error> {
    run_said(command, log).map(|_| ())
}

/// As [`run`]; gives what the command said.
pub fn run_said(command: &mut Command, log: &Path) -> Result<String, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .map_err(Error::io("write", log))?;
    let start = output.metadata().map_or(0, |metadata| metadata.len());
    let same = output.try_clone().map_err(Error::io("write", log))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let status = command
        .env("PATH", format!("{path}:{ADMIN_FOLDERS}"))
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(same)
        .status()
        .map_err(|source| Error::Start {
            program: program.clone(),
            source,
        })?;
    let said = fs::read(log).unwrap_or_default();
    let said = said
        .get(usize::try_from(start).unwrap_or(usize::MAX)..)
        .unwrap_or_default();
    let said = String::from_utf8_lossy(said);
    if status.success() {
        return Ok(said.into_owned());
    }
    Err(Error::Tool {
        program,
        status,
        log: log.to_owned(),
        tail: tail(&said),
    })
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// An empty folder at `path`, whatever was there before.
pub fn empty_folder(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("empty", path)(error));
        }
        _ => {}
    }
    fs::create_dir_all(path).map_err(Error::io("create", path))
}

/// Writes a recipe's files below `root`.
pub fn write_files(root: &Path, files: &[RecipeFile]) -> Result<(), Error> {
    for file in files {
        let path = root.join(file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        fs::write(&path, file.content).map_err(Error::io("write", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(file.mode))
            .map_err(Error::io("set the mode of", &path))?;
    }
    Ok(())
}

/// A file of `size` bytes that takes no space yet, whatever was there before.
pub fn sparse_file(path: &Path, size: u64) -> Result<File, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(Error::io("create", path))?;
    file.set_len(size)
        .map_err(Error::io("set the size of", path))?;
    Ok(file)
}

/// `path` with `.new` appended: images are made beside their place and renamed into it when whole.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// Puts a finished image into its place.
pub fn finish(unfinished: &Path, path: &Path) -> Result<(), Error> {
    fs::rename(unfinished, path).map_err(Error::io("move the finished image to", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_end_of_what_this_run_said_and_not_of_the_run_before() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        run(Command::new("sh").args(["-c", "echo earlier"]), &log).unwrap();
        let error = run(
            Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]),
            &log,
        );
        let Err(Error::Tool { tail, status, .. }) = error else {
            panic!("{error:?}")
        };
        assert_eq!(tail, "one\ntwo");
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn a_missing_tool_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = run(
            &mut Command::new("no-such-tool"),
            &folder.path().join("log"),
        )
        .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("Could not start no-such-tool"),
            "{error}"
        );
    }
}
