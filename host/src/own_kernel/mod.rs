//! A guest that boots from its own disk: kernel, initial RAM disk and command line come from the disk's boot entry.
//!
//! A process of its own reads the disk ([`reader`]), because what is on it is hostile: it has the disk as its standard
//! input, a pipe as its standard output, and nothing else. What comes out of the pipe is checked again here, and copied
//! to files that the VMM loads; they are removed as soon as it has.

pub mod reader;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use devices::virtio::block::nbd::NbdError;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::nbd::client::Client;

/// Name under which the executable is the reader of boot entries.
pub const READER_NAME: &str = "daruma-boot-entry";

/// Longest first line of an answer: a command line, a place, or an error.
const MAX_HEADER: u64 = 64 << 10;
/// What is said to a kernel that was told of no console.
const CONSOLE: &str = "console=ttyS0";

/// The reader's first line. The bytes of kernel and initial RAM disk follow it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Header {
    /// There is an entry.
    Entry {
        origin: String,
        cmdline: String,
        kernel: u64,
        initrd: u64,
    },
    /// There is none, and why.
    Error(String),
}

/// Why a guest cannot boot from its own disk.
#[derive(Debug, Error)]
pub enum OwnKernelError {
    /// The disk says so itself.
    #[error("cannot boot from {disk}: {reason}")]
    Disk {
        /// Path of the image.
        disk: PathBuf,
        /// What the reader found.
        reason: String,
    },
    /// The disk or one of the copies cannot be opened or written.
    #[error("cannot {action} {path}")]
    File {
        /// A verb.
        action: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Where the disk is served, something else is.
    #[error("cannot read {disk} with what the guest has written to it")]
    Served {
        /// Path of the image.
        disk: PathBuf,
        /// Cause.
        #[source]
        source: NbdError,
    },
    /// No process.
    #[error("cannot start {program} as {READER_NAME}")]
    Spawn {
        /// The executable.
        program: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The reader fell, or its bounds ended it.
    #[error("the reader of the boot entry of {disk} ended without an answer: {found}")]
    NoAnswer {
        /// Path of the image.
        disk: PathBuf,
        /// What came instead.
        found: String,
    },
    /// More than the guest could hold.
    #[error(
        "kernel and initial RAM disk of {disk} have {size} bytes, more than the guest's memory of {memory_mib} MiB"
    )]
    TooLarge {
        /// Path of the image.
        disk: PathBuf,
        /// Bytes of both.
        size: u64,
        /// The guest's memory.
        memory_mib: u64,
    },
}

/// A guest that is stopped and started again may have two preparations at a time: each has files of its own.
static PREPARATIONS: AtomicU64 = AtomicU64::new(0);

/// Files that are removed with this: the VMM has loaded them, or never will.
#[derive(Debug, Default, PartialEq, Eq)]
struct Copies(Vec<PathBuf>);

impl Drop for Copies {
    fn drop(&mut self) {
        for path in &self.0 {
            // One that stays costs memory, no more.
            let _ = fs::remove_file(path);
        }
    }
}

/// What a guest's own disk boots, copied to files, which are removed when this is dropped.
#[derive(Debug, PartialEq, Eq)]
pub struct OwnKernel {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk, if the entry has one.
    pub initrd: Option<PathBuf>,
    /// The entry's command line with a console and the configured words added.
    pub cmdline: String,
    /// Where the entry stands.
    pub origin: String,
    copies: Copies,
}

impl OwnKernel {
    /// Has `program` read the boot entry of the raw image `disk`, and copies its files into `folder`. Where the disk is
    /// served at `socket` by NBD, what is read is what the guest has written over the image.
    ///
    /// # Errors
    /// The disk has no entry that can be used, or the guest's memory of `memory_mib` could not hold it.
    pub fn read(
        program: &Path,
        disk: &Path,
        socket: Option<&Path>,
        folder: &Path,
        memory_mib: u64,
        extra: &str,
    ) -> Result<Self, OwnKernelError> {
        let mut command = Command::new(program);
        command.arg0(READER_NAME).env_clear().current_dir("/");
        match socket {
            None => command.stdin(File::open(disk).map_err(failed("open", disk))?),
            Some(socket) => {
                let connected = Client::connect(socket);
                let (stream, len) = connected.map_err(|source| OwnKernelError::Served {
                    disk: disk.to_owned(),
                    source,
                })?;
                command.arg(len.to_string()).stdin(OwnedFd::from(stream))
            }
        };
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        // The supervisor takes in every child that ends: how this one ended shows in what it wrote.
        let mut child = command.spawn().map_err(|source| OwnKernelError::Spawn {
            program: program.to_owned(),
            source,
        })?;
        let answer = child
            .stdout
            .take()
            .ok_or_else(|| OwnKernelError::NoAnswer {
                disk: disk.to_owned(),
                found: "no pipe".to_owned(),
            })?;
        // A reader that still writes when the pipe is closed ends by that; one that computes for ever, by its limits.
        receive(BufReader::new(answer), disk, folder, memory_mib, extra)
    }
}

fn receive(
    mut answer: impl BufRead,
    disk: &Path,
    folder: &Path,
    memory_mib: u64,
    extra: &str,
) -> Result<OwnKernel, OwnKernelError> {
    let no_answer = |found: String| OwnKernelError::NoAnswer {
        disk: disk.to_owned(),
        found,
    };
    let mut line = Vec::new();
    let read = answer
        .by_ref()
        .take(MAX_HEADER)
        .read_until(b'\n', &mut line);
    read.map_err(|error| no_answer(error.to_string()))?;
    let header = serde_json::from_slice(&line)
        .map_err(|error| no_answer(format!("{} bytes, {error}", line.len())))?;
    let (origin, cmdline, kernel, initrd) = match header {
        Header::Error(reason) => {
            return Err(OwnKernelError::Disk {
                disk: disk.to_owned(),
                reason: reason.replace(char::is_control, " "),
            });
        }
        Header::Entry {
            origin,
            cmdline,
            kernel,
            initrd,
        } => (origin, cmdline, kernel, initrd),
    };
    let size = kernel.saturating_add(initrd);
    if size > memory_mib << 20 {
        return Err(OwnKernelError::TooLarge {
            disk: disk.to_owned(),
            size,
            memory_mib,
        });
    }
    fs::create_dir_all(folder).map_err(failed("create", folder))?;
    let mut copies = Copies::default();
    let number = PREPARATIONS.fetch_add(1, Ordering::Relaxed);
    let mut copy = |name: &str, length: u64| {
        let path = folder.join(format!("{name}-{number}"));
        let mut file = File::create(&path).map_err(failed("create", &path))?;
        copies.0.push(path.clone());
        let copied = io::copy(&mut answer.by_ref().take(length), &mut file)
            .map_err(failed("write", &path))?;
        if copied != length {
            return Err(no_answer(format!(
                "{copied} of {length} bytes of the {name}"
            )));
        }
        Ok(path)
    };
    let kernel = copy("disk-kernel", kernel)?;
    let initrd = (initrd > 0)
        .then(|| copy("disk-initrd", initrd))
        .transpose()?;
    Ok(OwnKernel {
        kernel,
        initrd,
        cmdline: command_line(&cmdline, extra),
        origin: origin.replace(char::is_control, " "),
        copies,
    })
}

/// The entry's own words, a console if it names none, and what the machine file adds.
fn command_line(own: &str, extra: &str) -> String {
    let names_console = |text: &str| {
        text.split_whitespace()
            .any(|word| word.starts_with("console="))
    };
    let console = (!names_console(own) && !names_console(extra)).then_some(CONSOLE);
    let words: Vec<_> = [Some(own), console, Some(extra)]
        .into_iter()
        .flatten()
        .filter(|part| !part.is_empty())
        .collect();
    words.join(" ")
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OwnKernelError {
    let path = path.to_owned();
    move |source| OwnKernelError::File {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: &[u8]) -> (Result<OwnKernel, OwnKernelError>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let result = receive(bytes, Path::new("/d.img"), folder.path(), 64, "extra");
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| {
                name.trim_end_matches(|c: char| c.is_ascii_digit())
                    .to_owned()
            })
            .collect();
        left.sort();
        (result, left)
    }

    fn header(kernel: u64, initrd: u64) -> Vec<u8> {
        let header = Header::Entry {
            origin: "here".to_owned(),
            cmdline: "root=/dev/vda1 ro".to_owned(),
            kernel,
            initrd,
        };
        let mut line = serde_json::to_vec(&header).unwrap();
        line.push(b'\n');
        line
    }

    #[test]
    fn an_answer_becomes_two_files_and_a_command_line() {
        let (result, left) = answer(&[&header(6, 3)[..], b"kernelinixx"].concat());
        let own = result.unwrap();
        assert_eq!(own.cmdline, "root=/dev/vda1 ro console=ttyS0 extra");
        assert_eq!(left, ["disk-initrd-", "disk-kernel-"]);
        let (result, left) = answer(&[&header(6, 0)[..], b"kernel"].concat());
        assert_eq!(
            (result.unwrap().initrd, left),
            (None, vec!["disk-kernel-".to_owned()])
        );
    }

    #[test]
    fn two_preparations_of_a_guest_have_files_of_their_own_which_go_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let read = |kernel: &[u8]| {
            let bytes = [&header(6, 3)[..], kernel, b"ini"].concat();
            receive(&bytes[..], Path::new("/d.img"), folder.path(), 64, "").unwrap()
        };
        let (first, second) = (read(b"first."), read(b"second"));
        let kernel = first.kernel.clone();
        assert_eq!(fs::read(&kernel).unwrap(), b"first.");
        drop(first);
        assert!(!kernel.exists());
        assert_eq!(fs::read(&second.kernel).unwrap(), b"second");
        drop(second);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_console_that_the_disk_names_stays_the_only_one() {
        assert_eq!(command_line("ro console=tty0", ""), "ro console=tty0");
        assert_eq!(command_line("", "console=hvc0"), "console=hvc0");
        assert_eq!(command_line("", ""), "console=ttyS0");
    }

    #[test]
    fn an_answer_that_breaks_off_leaves_nothing_behind() {
        for bytes in [
            [&header(6, 3)[..], b"kern"].concat(),
            [&header(6, 3)[..], b"kernelin"].concat(),
        ] {
            let (result, left) = answer(&bytes);
            let error = result.unwrap_err().to_string();
            assert!(error.contains("ended without an answer"), "{error}");
            assert_eq!(left, Vec::<String>::new());
        }
    }

    #[test]
    fn nonsense_and_too_much_are_refused() {
        for bytes in [&b""[..], b"{}\n", b"{\"entry\":{}}\n", &[b'x'; 100_000]] {
            let (result, _) = answer(bytes);
            assert!(matches!(result, Err(OwnKernelError::NoAnswer { .. })));
        }
        for (kernel, initrd) in [(65 << 20, 0), (u64::MAX, u64::MAX)] {
            let (result, left) = answer(&header(kernel, initrd));
            assert!(matches!(result, Err(OwnKernelError::TooLarge { .. })));
            assert_eq!(left, Vec::<String>::new());
        }
    }

    #[test]
    fn the_disks_own_reason_is_told_on_one_line() {
        let (result, _) = answer(b"{\"error\":\"no\\nentry\"}\n");
        let error = result.unwrap_err().to_string();
        assert_eq!(error, "cannot boot from /d.img: no entry");
    }
}
