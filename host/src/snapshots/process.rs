//! The service as the supervisor sees it: a child at the other end of a socket.
#![expect(
    unsafe_code,
    reason = "a session of its own must be made between fork and exec"
)]

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc::{CLOSE_RANGE_CLOEXEC, c_uint, close_range};
use nix::unistd::{Pid, read, setsid};

use super::STORE_NAME;
use super::protocol::{Reply, Request, What};
use crate::lines::LineBuffer;

/// The longest answer: a list of thousands of snapshots.
const MAX_LINE: usize = 4 << 20;
/// Read in one go, so that the service does not hold up the guests.
const MAX_READ: usize = 64 << 10;

/// The process. Nothing here blocks.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    stream: UnixStream,
    /// Pipe of its log.
    log: OwnedFd,
    line: LineBuffer,
    log_line: LineBuffer,
    /// What it has not taken yet.
    unsent: VecDeque<u8>,
    next: u64,
    /// Its ends that have not ended.
    open: [bool; 2],
}

impl Process {
    /// Starts `program` as the service of the store in `folder`, of the machine of this name. Whoever connects to
    /// `channels` and says a guest's name in a line is the live channel to that guest's VMM from then on.
    pub fn start(
        program: &Path,
        folder: &Path,
        machine: &str,
        channels: &UnixListener,
    ) -> io::Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        let (log, their_log) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let mut command = Command::new(program);
        command
            .arg0(STORE_NAME)
            .arg(folder)
            .arg(machine)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(channels.try_clone()?)))
            .stderr(Stdio::from(their_log));
        let prepare_child = || {
            // Keys on the host's terminal must not reach it as signals.
            setsid()?;
            // SAFETY: the call takes numbers only, and what it does takes effect at exec.
            let marked = unsafe { close_range(3, c_uint::MAX, CLOSE_RANGE_CLOEXEC.cast_signed()) };
            Errno::result(marked)?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        unsafe { command.pre_exec(prepare_child) };
        let child = command.spawn()?;
        stream.set_nonblocking(true)?;
        crate::supervisor::set_nonblocking(&log)?;
        Ok(Self {
            pid: Pid::from_raw(i32::try_from(child.id()).map_err(|_| Errno::ESRCH)?),
            stream,
            log,
            line: LineBuffer::new(MAX_LINE),
            log_line: LineBuffer::new(1024),
            unsent: VecDeque::new(),
            next: super::protocol::GREETING,
            open: [true; 2],
        })
    }

    /// One that an earlier supervisor has started, whose questions had numbers up to `next`.
    pub fn adopt(pid: Pid, stream: UnixStream, log: OwnedFd, next: u64) -> Self {
        Self {
            pid,
            stream,
            log,
            line: LineBuffer::new(MAX_LINE),
            log_line: LineBuffer::new(1024),
            // What the earlier one had not finished to say ends here.
            unsent: VecDeque::from([b'\n']),
            next,
            open: [true; 2],
        }
    }

    /// The way to it, and its log.
    pub fn fds(&self) -> [RawFd; 2] {
        [self.stream.as_raw_fd(), self.log.as_raw_fd()]
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// What to wait for, and whether for room to write.
    pub fn waits(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let [stream, log] = self.open;
        let reads = [(stream, self.stream.as_fd()), (log, self.log.as_fd())];
        let reads = reads
            .into_iter()
            .filter_map(|(open, fd)| open.then_some((fd, false)));
        let writes = (stream && !self.unsent.is_empty()).then(|| (self.stream.as_fd(), true));
        reads.chain(writes)
    }

    /// Asks for something; the number that the answer will have.
    pub fn ask(&mut self, what: What) -> u64 {
        self.next += 1;
        let request = Request {
            id: self.next,
            what,
        };
        // What is made of strings and numbers is always JSON.
        self.unsent
            .extend(serde_json::to_vec(&request).unwrap_or_default());
        self.unsent.push_back(b'\n');
        self.flush();
        self.next
    }

    /// Writes what the service takes.
    pub fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.write(self.unsent.as_slices().0) {
                Ok(length) => drop(self.unsent.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It is gone; the end of the process says so.
                Err(_) => self.unsent.clear(),
            }
        }
    }

    /// Reads what it answered, and lines of its log.
    pub fn read(&mut self) -> (Vec<Result<Reply, String>>, Vec<String>) {
        let (mut replies, mut log) = (Vec::new(), Vec::new());
        let [stream_open, log_open] = &mut self.open;
        let bytes = read_some(&self.stream, stream_open);
        self.line.push(&bytes, |line| {
            replies.push(serde_json::from_str(&line).map_err(|error| error.to_string()));
        });
        let bytes = read_some(&self.log, log_open);
        self.log_line.push(&bytes, |line| log.push(line));
        (replies, log)
    }
}

fn read_some(fd: impl AsFd, open: &mut bool) -> Vec<u8> {
    let mut bytes = vec![0; MAX_READ];
    let length = match read(fd, &mut bytes) {
        Ok(length) => {
            *open = length > 0;
            length
        }
        Err(Errno::EAGAIN | Errno::EINTR) => 0,
        Err(_) => {
            *open = false;
            0
        }
    };
    bytes.truncate(length);
    bytes
}
