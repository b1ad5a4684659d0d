//! One client.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::message::{self, Head, MAX_HEAD};
use crate::{Fault, Handler, Outcome, Status, routes};

/// How long a client may take to send the rest of a request, or to take an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Most requests answered in one turn: other clients wait as long.
const TURN: usize = 16;
/// Bytes read at once.
const READ: usize = 4096;

/// Whether a client is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    Close,
}

/// A client's stream and what of it is half read or half written.
pub(super) struct Connection {
    stream: UnixStream,
    max_body: usize,
    input: Vec<u8>,
    /// What is in the input is no whole request: nothing goes on before more of it comes.
    starved: bool,
    /// That of the request whose body is being read.
    head: Option<Head>,
    output: Vec<u8>,
    written: usize,
    /// There will be no more requests.
    closing: bool,
    /// When the client must have gone on.
    deadline: Option<Instant>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, max_body: usize) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            max_body,
            input: Vec::new(),
            starved: true,
            head: None,
            output: Vec::new(),
            written: 0,
            closing: false,
            deadline: None,
        })
    }

    /// What it waits for. A client that does not take its answers is not heard.
    pub(super) fn interest(&self) -> PollFlags {
        if self.output.is_empty() {
            PollFlags::POLLIN
        } else {
            PollFlags::POLLOUT
        }
    }

    /// Until when it waits, if it does not wait for ever.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Does what can be done without waiting.
    pub(super) fn serve(&mut self, handler: &mut impl Handler, now: Instant) -> Next {
        let next = self.pump(handler, now).unwrap_or(Next::Close);
        let busy = !self.output.is_empty() || !self.input.is_empty() || self.head.is_some();
        self.deadline = match self.deadline {
            _ if !busy => None,
            None => Some(now + PATIENCE),
            before => before,
        };
        next
    }

    /// The client has not gone on in time.
    pub(super) fn expire(&mut self) {
        if self.output.is_empty() {
            let seconds = PATIENCE.as_secs();
            let message = format!("The request was not complete after {seconds} seconds");
            self.answer(
                Err(Fault::with_status(Status::RequestTimeout, message)),
                true,
            );
            // One try: a client that does not read does not get it.
            let _ = self.flush();
        }
    }

    fn pump(&mut self, handler: &mut impl Handler, now: Instant) -> io::Result<Next> {
        if !self.flush()? {
            return Ok(Next::Stay);
        }
        if self.closing {
            return Ok(Next::Close);
        }
        // What is here is answered before more is taken: so nobody's requests pile up.
        if !self.has_more() {
            let mut buffer = [0; READ];
            let length = match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Next::Close),
                Ok(length) => length,
                Err(error) if is_later(&error) => 0,
                Err(error) => return Err(error),
            };
            self.input.extend_from_slice(&buffer[..length]);
        }
        for _ in 0..TURN {
            self.starved = !self.take_request(handler);
            if self.starved {
                break;
            }
            // A new request has its own time.
            self.deadline = (!self.input.is_empty()).then_some(now + PATIENCE);
            if !self.flush()? {
                return Ok(Next::Stay);
            }
            if self.closing {
                return Ok(Next::Close);
            }
        }
        Ok(Next::Stay)
    }

    /// Carries out the request at the beginning of the input, if it is all there.
    fn take_request(&mut self, handler: &mut impl Handler) -> bool {
        if self.head.is_none() {
            match message::read_head(&self.input, self.max_body) {
                Ok(Some(head)) => {
                    self.input.drain(..head.length);
                    if head.expects_continue && self.input.len() < head.body {
                        self.output.extend(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                    self.head = Some(head);
                }
                Ok(None) => return false,
                Err(fault) => {
                    self.answer(Err(fault), true);
                    return true;
                }
            }
        }
        let Some(head) = self.head.take_if(|head| self.input.len() >= head.body) else {
            // The word that the client waits for.
            return !self.output.is_empty();
        };
        let body: Vec<_> = self.input.drain(..head.body).collect();
        let outcome = routes::parse(&head.method, &head.path, &body)
            .inspect_err(|fault| log::warn!("An API request is refused: {}", fault.message))
            .and_then(|request| handler.handle(request));
        self.answer(outcome, head.closes);
        true
    }

    fn answer(&mut self, outcome: Outcome, closes: bool) {
        self.closing |= closes;
        self.output.extend(message::write(outcome, self.closing));
    }

    /// Whether everything is written.
    fn flush(&mut self) -> io::Result<bool> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => self.written += length,
                Err(error) if is_later(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(true)
    }

    /// Whether there may be a whole request left that was not looked at, because others had to have their turn. Only the
    /// parser knows where a request ends: what looks like an end may be something that it skips.
    pub(super) fn has_more(&self) -> bool {
        self.output.is_empty() && !self.input.is_empty() && !self.starved
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

const _: () = assert!(MAX_HEAD > READ, "a head is read in several turns");
