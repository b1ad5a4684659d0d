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
/// Most of them that watch a console. They do not count among the others.
const MAX_ATTACHED: usize = 32;
/// Most bytes of a console that wait for who watches it; the oldest make room.
const MAX_OUTPUT: usize = 256 << 10;
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
    /// The channel of the console that it watches: it says no commands any more.
    channel: Option<usize>,
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

/// What came from a caller.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// A command.
    Asked(Asked),
    /// Keys for who is at this channel of the console.
    Keys {
        /// The channel.
        channel: usize,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

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
        let attached = self.attached();
        let listener = self.callers.len() - attached < MAX_CALLERS;
        let listener = listener.then(|| self.listener.as_fd());
        let callers = self.callers.iter().flat_map(|caller| {
            let writing = !caller.output.is_empty();
            // Who has not read an answer is not listened to, but a console has keys whatever it shows.
            let reading = !writing || caller.channel.is_some();
            let wait = |wanted: bool, write| {
                wanted.then(|| (Some(caller.id), caller.stream.as_fd(), write))
            };
            [wait(writing, true), wait(reading, false)]
                .into_iter()
                .flatten()
        });
        listener
            .map(|fd| (None, fd, false))
            .into_iter()
            .chain(callers)
    }

    fn attached(&self) -> usize {
        self.callers
            .iter()
            .filter(|caller| caller.channel.is_some())
            .count()
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
                channel: None,
            });
        }
    }

    /// Reads what `caller` has to say, or writes what it had no room for.
    pub(crate) fn serve(&mut self, id: CallerId) -> Vec<Said> {
        let Some(place) = self.callers.iter().position(|caller| caller.id == id) else {
            return Vec::new();
        };
        let caller = &mut self.callers[place];
        let result = if let Some(channel) = caller.channel {
            caller.flush().and_then(|()| caller.keys(channel))
        } else if caller.output.is_empty() {
            caller.read()
        } else {
            caller.flush().map(|()| Vec::new())
        };
        result.unwrap_or_else(|_| {
            self.callers.swap_remove(place);
            Vec::new()
        })
    }

    /// Makes `caller` one that watches a channel of the console. To be answered after that, and shown `backlog`.
    ///
    /// # Errors
    /// There are too many of those.
    pub(crate) fn attach(&mut self, id: CallerId, channel: usize) -> Result<(), String> {
        if self.attached() >= MAX_ATTACHED {
            return Err(format!("{MAX_ATTACHED} consoles are watched already"));
        }
        let caller = self.callers.iter_mut().find(|caller| caller.id == id);
        if let Some(caller) = caller {
            caller.channel = Some(channel);
        }
        Ok(())
    }

    /// Shows bytes to `caller`, which watches a console.
    pub(crate) fn show(&mut self, id: CallerId, bytes: &[u8]) {
        self.show_where(bytes, |caller| caller.id == id);
    }

    /// Shows what came out of a channel to all who watch it.
    pub(crate) fn output(&mut self, channel: usize, bytes: &[u8]) {
        self.show_where(bytes, |caller| caller.channel == Some(channel));
    }

    fn show_where(&mut self, bytes: &[u8], wanted: impl Fn(&Caller) -> bool) {
        self.callers.retain_mut(|caller| {
            if !wanted(caller) {
                return true;
            }
            caller.output.extend(bytes);
            let excess = caller.output.len().saturating_sub(MAX_OUTPUT);
            caller.output.drain(..excess);
            caller.flush().is_ok()
        });
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
    /// What has come.
    fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        match self.stream.read(buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => Ok(&buffer[..length]),
            Err(error) if is_not_now(&error) => Ok(&[]),
            Err(error) => Err(error),
        }
    }

    fn keys(&mut self, channel: usize) -> io::Result<Vec<Said>> {
        let bytes = self.receive(&mut [0; MAX_LINE])?.to_vec();
        let some = (!bytes.is_empty()).then_some(Said::Keys { channel, bytes });
        Ok(some.into_iter().collect())
    }

    fn read(&mut self) -> io::Result<Vec<Said>> {
        let mut buffer = [0; MAX_LINE];
        let mut asked = Vec::new();
        for byte in self.receive(&mut buffer)? {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                let command = serde_json::from_slice(&line);
                let command = command.map_err(|error| format!("not a command: {error}"));
                asked.push(Said::Asked(command));
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
    fn work(server: &mut Server) -> Vec<(CallerId, Said)> {
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
        let expected = Command::Metrics { guest: None };
        assert_eq!(command, &Said::Asked(Ok(expected)));
        assert!(matches!(asked[1].1, Said::Asked(Err(_))));
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
    fn who_watches_a_console_gets_it_raw_and_has_keys_whatever_waits() {
        let (mut server, folder) = server();
        let path = folder.path().join("s");
        let mut stream = UnixStream::connect(&path).unwrap();
        let mut other = UnixStream::connect(&path).unwrap();
        for stream in [&mut stream, &mut other] {
            stream
                .write_all(b"{\"command\":\"console\",\"guest\":\"a\"}\n")
                .unwrap();
        }
        let asked = work(&mut server);
        for (channel, (id, _)) in (1..).zip(&asked) {
            server.attach(*id, channel).unwrap();
            server.answer(*id, &Answer::Ok(json!(7)));
            server.show(*id, b"old ");
        }
        server.output(1, b"{}\n\x1b");
        server.output(9, b"nobody's");
        let mut shown = [0; 9 + 8];
        stream.read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"{\"ok\":7}\nold {}\n\x1b");
        // It reads nothing more, and can still say Ctrl-C.
        for _ in 0..100 {
            server.output(1, &[b'x'; 64 << 10]);
        }
        assert!(
            server
                .callers
                .iter()
                .all(|caller| caller.output.len() <= MAX_OUTPUT)
        );
        stream.write_all(b"\x03\n{").unwrap();
        let said = Said::Keys {
            channel: 1,
            bytes: b"\x03\n{".to_vec(),
        };
        assert_eq!(work(&mut server), [(asked[0].0, said)]);
        drop((stream, other));
        work(&mut server);
        assert!(server.callers.is_empty());
    }

    #[test]
    fn consoles_are_bounded_and_leave_room_for_commands() {
        let (mut server, folder) = server();
        let path = folder.path().join("s");
        let mut streams = Vec::new();
        for number in 0..=MAX_ATTACHED {
            streams.push(UnixStream::connect(&path).unwrap());
            server.accept();
            let id = server.callers.last().unwrap().id;
            assert_eq!(server.attach(id, 1).is_ok(), number < MAX_ATTACHED);
        }
        assert!(server.waits().any(|(id, ..)| id.is_none()));
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
