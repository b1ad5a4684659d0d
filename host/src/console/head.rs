//! One terminal: a serial line, a screen with its keyboard, or the terminal `daruma up` was typed into.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use nix::sys::termios::{ControlFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{read, write};

use super::editor::Editor;
use super::table::Table;
use crate::view::{DEFAULT_SIZE, size_of};

/// Output waiting for a slow terminal; beyond it the oldest bytes are dropped.
const MAX_PENDING: usize = 256 * 1024;

/// A terminal and what it shows. Neither reading nor writing ever blocks.
#[derive(Debug)]
pub struct Head {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    /// Settings to put back, where the terminal outlives us.
    saved: Option<Termios>,
    pending: VecDeque<u8>,
    /// Channel that is shown.
    pub(super) view: usize,
    /// The prefix key was pressed.
    pub(super) chord: bool,
    pub(super) editor: Editor,
    /// The guests are shown on the whole of it, instead of the host's lines.
    pub(super) table: Option<Table>,
    /// For each channel: position up to which it was shown here.
    pub(super) seen: Vec<u64>,
}

impl Head {
    /// A head on two descriptors; a terminal among them is made raw until the head is dropped.
    #[must_use]
    pub fn new(input: OwnedFd, output: OwnedFd) -> Self {
        let saved = tcgetattr(&input).ok();
        if let Some(settings) = &saved {
            let mut raw = settings.clone();
            cfmakeraw(&mut raw);
            // A serial line without carrier must neither block nor hang up.
            raw.control_flags |= ControlFlags::CLOCAL | ControlFlags::CREAD;
            // A terminal that refuses stays cooked: still usable.
            let _ = tcsetattr(&input, SetArg::TCSANOW, &raw);
        }
        Self {
            input: Some(input),
            output: Some(output),
            saved,
            pending: VecDeque::new(),
            view: super::HOST,
            chord: false,
            editor: Editor::default(),
            table: None,
            seen: Vec::new(),
        }
    }

    /// A terminal of the host by its device node.
    ///
    /// # Errors
    /// It cannot be opened, or there is no hardware behind the node.
    pub fn device(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits())
            .open(path)?;
        tcgetattr(&file)?;
        let output = OwnedFd::from(file);
        Ok(Self::new(output.try_clone()?, output))
    }

    /// Standard input and output.
    ///
    /// # Errors
    /// They cannot be duplicated.
    pub fn stdio() -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let stdout = io::stdout();
        let kind = SFlag::from_bits_truncate(fstat(&stdout)?.st_mode) & SFlag::S_IFMT;
        // Non-blocking is a property of the open file, which the shell we were started from shares: open our own.
        // Only terminals and pipes can block.
        let reopened = (kind == SFlag::S_IFCHR || kind == SFlag::S_IFIFO)
            .then(|| {
                OpenOptions::new()
                    .write(true)
                    .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
                    .open("/proc/self/fd/1")
            })
            .and_then(Result::ok);
        let output = match reopened {
            Some(file) => file.into(),
            None => stdout.as_fd().try_clone_to_owned()?,
        };
        Ok(Self::new(input, output))
    }

    /// Where keys come from, while there can be any.
    #[must_use]
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(AsFd::as_fd)
    }

    /// Where output goes, while some waits.
    #[must_use]
    pub fn blocked_output(&self) -> Option<BorrowedFd<'_>> {
        self.output
            .as_ref()
            .filter(|_| !self.pending.is_empty())
            .map(AsFd::as_fd)
    }

    /// Columns and lines.
    pub(super) fn size(&self) -> (u16, u16) {
        self.output.as_ref().map_or(DEFAULT_SIZE, size_of)
    }

    /// The keys that were pressed. At its end, or broken, the input is closed; the output goes on.
    pub fn read(&mut self) -> Vec<u8> {
        let mut buffer = [0; 512];
        let Some(input) = &self.input else {
            return Vec::new();
        };
        match read(input, &mut buffer) {
            Ok(0) => self.input = None,
            Ok(length) => return buffer[..length].to_vec(),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.input = None,
        }
        Vec::new()
    }

    /// Shows bytes, now or when the terminal takes them.
    pub fn queue(&mut self, bytes: &[u8]) {
        if self.output.is_none() {
            return;
        }
        self.pending.extend(bytes);
        let excess = self.pending.len().saturating_sub(MAX_PENDING);
        self.pending.drain(..excess);
        self.flush();
    }

    /// Writes what the terminal takes without blocking.
    pub fn flush(&mut self) {
        while !self.pending.is_empty() {
            let Some(output) = &self.output else { return };
            let (chunk, _) = self.pending.as_slices();
            match write(output, chunk) {
                Ok(0) | Err(Errno::EAGAIN) => return,
                Ok(length) => {
                    self.pending.drain(..length);
                }
                Err(Errno::EINTR) => {}
                Err(_) => {
                    self.output = None;
                    self.pending.clear();
                }
            }
        }
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        self.leave_table();
        self.flush();
        if let (Some(input), Some(saved)) = (&self.input, &self.saved) {
            let _ = tcsetattr(input, SetArg::TCSADRAIN, saved);
        }
    }
}
