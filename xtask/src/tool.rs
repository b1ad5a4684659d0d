//! Runs other programs: output to a log, failures with its last lines.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a failed program's output that go into the error.
const TAIL_LINES: usize = 30;

/// Administrator tools are not on every user's search path.
const ADMIN_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The search path for programs, with the administrator's folders.
pub fn search_path() -> String {
    let mut path = std::env::var("PATH").unwrap_or_default();
    for folder in ADMIN_FOLDERS {
        path.push(':');
        path.push_str(folder);
    }
    path
}

/// Where a program lies, if it is installed.
pub fn which(program: &str) -> Option<PathBuf> {
    search_path()
        .split(':')
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
}

/// `command`, in a plain environment: no translations, no questions.
pub fn prepare(command: &mut Command) -> &mut Command {
    command
        .env("PATH", search_path())
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
}

/// Runs `command` to its end. All it says goes to `log`, and line by line to `on_line`.
pub fn run(command: &mut Command, log: &Path, mut on_line: impl FnMut(&str)) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut log_file = create_log(log)?;
    let (reader, writer) = io::pipe().context("Could not make a pipe")?;
    let other_writer = writer.try_clone().context("Could not make a pipe")?;
    prepare(command).stdout(writer).stderr(other_writer);
    let mut child = command.spawn().with_context(|| {
        format!(
            "Could not start {program}: is it installed? `cargo xtask doctor` lists what is needed"
        )
    })?;
    // The command holds the pipe's writing ends too: the reader would never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut last = Vec::new();
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    while reader
        .read_until(b'\n', &mut bytes)
        .with_context(|| format!("Could not read from {program}"))?
        > 0
    {
        log_file
            .write_all(&bytes)
            .with_context(|| format!("Could not write {}", log.display()))?;
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_end();
        on_line(line);
        if !line.is_empty() {
            last.push(line.to_owned());
        }
        if last.len() > 2 * TAIL_LINES {
            last.drain(..TAIL_LINES);
        }
        bytes.clear();
    }
    let status = child
        .wait()
        .with_context(|| format!("Could not wait for {program}"))?;
    if !status.success() {
        let tail = last[last.len().saturating_sub(TAIL_LINES)..].join("\n  ");
        bail!(
            "{program} failed ({status}); the whole output is in {}, its end:\n  {tail}",
            log.display()
        );
    }
    Ok(())
}

/// What `command` prints on its standard output, if it succeeds.
pub fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = prepare(command)
        .output()
        .with_context(|| format!("Could not start {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn create_log(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("Could not create {}", folder.display()))?;
    }
    File::create(log).with_context(|| format!("Could not write {}", log.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_program_log_and_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("deep/log");
        let mut lines = Vec::new();
        let error = run(
            Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]),
            &log,
            |line| {
                lines.push(line.to_owned());
            },
        )
        .unwrap_err()
        .to_string();
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(fs::read_to_string(&log).unwrap(), "one\ntwo\n");
        assert!(error.starts_with("sh failed (exit status: 3)"), "{error}");
        assert!(
            error.contains(&log.display().to_string()) && error.ends_with("two"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        assert_eq!(which("no-such-program"), None);
        let error = output(&mut Command::new("no-such-program"))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "Could not start no-such-program");
    }
}
