//! The answering side: who has called, what they have asked, and what they have not read yet. Never waits.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::{Answer, Command};

/// Most callers at a time. More wait to be taken.
const MAX_CALLERS: usize = 16;
/// Most bytes of a command.
const MAX_LINE: usize = 4096;
/// Most bytes that a caller may leave unread. One answer may be longer, a second does not come then.
const MAX_UNREAD: usize = 1 << 20;

/// A caller, by the order in which they came. None has the number of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CallerId(u64);

#[derive(Debug)]
struct Caller {
    id: CallerId,
    stream: UnixStream,
    line: Vec<u8>,
    output: Vec<u8>,
}

/// The socket and everybody who has called.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    callers: Vec<Caller>,
    next: u64,
}

/// What a caller has asked, or what is wrong with it.
pub(crate) type Asked = Result<Command, String>;

impl Server {
    /// Listens at `path`, in a folder that is ours.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        // Of a supervisor that fell: the folder is ours alone.
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            callers: Vec::new(),
            next: 0,
        })
    }

    /// What to wait for, and whether for room to write; `None` is the listener.
    pub(crate) fn waits(&self) -> impl Iterator<Item = (Option<CallerId>, BorrowedFd<'_>, bool)> {
        let listener = (self.callers.len() < MAX_CALLERS).then(|| self.listener.as_fd());
        let callers = self.callers.iter().map(|caller| {
            let writing = !caller.output.is_empty();
            (Some(caller.id), caller.stream.as_fd(), writing)
        });
        listener
            .map(|fd| (None, fd, false))
            .into_iter()
            .chain(callers)
    }

    /// Takes a new caller.
    pub(crate) fn accept(&mut self) {
        // Who is gone again is not missed.
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        if stream.set_nonblocking(true).is_ok() {
            let id = CallerId(self.next);
            self.next += 1;
            self.callers.push(Caller {
                id,
                stream,
                line: Vec::new(),
                output: Vec::new(),
            });
        }
    }

    /// Reads what `caller` has to say, or writes what it had no room for.
    pub(crate) fn serve(&mut self, id: CallerId) -> Vec<Asked> {
        let Some(place) = self.callers.iter().position(|caller| caller.id == id) else {
            return Vec::new();
        };
        let caller = &mut self.callers[place];
        let result = if caller.output.is_empty() {
            caller.read()
        } else {
            caller.flush().map(|()| Vec::new())
        };
        result.unwrap_or_else(|_| {
            self.callers.swap_remove(place);
            Vec::new()
        })
    }

    /// Answers `caller`, if it is there still.
    pub(crate) fn answer(&mut self, id: CallerId, answer: &Answer) {
        let Some(place) = self.callers.iter().position(|caller| caller.id == id) else {
            return;
        };
        let caller = &mut self.callers[place];
        // What is made of strings and numbers is always JSON.
        let line = serde_json::to_vec(answer).unwrap_or_default();
        let stalls = caller.output.len() > MAX_UNREAD;
        caller.output.extend(line);
        caller.output.push(b'\n');
        if stalls || caller.flush().is_err() {
            self.callers.swap_remove(place);
        }
    }
}

impl Caller {
    fn read(&mut self) -> io::Result<Vec<Asked>> {
        let mut buffer = [0; MAX_LINE];
        let length = match self.stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(error) if is_not_now(&error) => 0,
            Err(error) => return Err(error),
        };
        let mut asked = Vec::new();
        for byte in &buffer[..length] {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                let command = serde_json::from_slice(&line);
                asked.push(command.map_err(|error| format!("not a command: {error}")));
            } else if self.line.len() < MAX_LINE {
                self.line.push(*byte);
            } else {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        Ok(asked)
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if is_not_now(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Has the server do all that it would be woken for.
    fn work(server: &mut Server) -> Vec<(CallerId, Asked)> {
        let mut asked = Vec::new();
        for _ in 0..40 {
            server.accept();
            let ids: Vec<_> = server.waits().filter_map(|(id, ..)| id).collect();
            for id in ids {
                asked.extend(server.serve(id).into_iter().map(|command| (id, command)));
            }
        }
        asked
    }

    fn server() -> (Server, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::bind(&folder.path().join("s")).unwrap();
        (server, folder)
    }

    #[test]
    fn commands_are_taken_line_by_line_and_answered() {
        let (mut server, folder) = server();
        let path = folder.path().join("s");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(b"{\"command\":").unwrap();
        assert!(work(&mut server).is_empty());
        stream.write_all(b"\"metrics\"}\nnonsense\n").unwrap();
        let asked = work(&mut server);
        let (id, command) = &asked[0];
        assert_eq!(command, &Ok(Command::Metrics { guest: None }));
        assert!(asked[1].1.is_err());
        server.answer(*id, &Answer::Ok(json!(7)));
        let mut answer = [0; 9];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"{\"ok\":7}\n");
        drop(stream);
        work(&mut server);
        assert!(server.callers.is_empty());
    }

    #[test]
    fn callers_who_say_too_much_or_read_nothing_are_dropped() {
        let (mut server, folder) = server();
        let path = folder.path().join("s");
        let mut loud = UnixStream::connect(&path).unwrap();
        loud.write_all(&[b'x'; 2 * MAX_LINE]).unwrap();
        work(&mut server);
        assert!(server.callers.is_empty());
        let mut deaf = UnixStream::connect(&path).unwrap();
        deaf.write_all(b"{\"command\":\"metrics\"}\n").unwrap();
        let id = work(&mut server)[0].0;
        let answer = Answer::Ok("x".repeat(MAX_UNREAD).into());
        for _ in 0..4 {
            server.answer(id, &answer);
        }
        assert!(server.callers.is_empty());
    }

    #[test]
    fn more_callers_than_there_are_places_wait() {
        let (mut server, folder) = server();
        let path = folder.path().join("s");
        let streams: Vec<_> = (0..20)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        while server.waits().any(|(id, ..)| id.is_none()) {
            server.accept();
        }
        assert_eq!(server.callers.len(), MAX_CALLERS);
        drop(streams);
    }
}
