//! One connection of a guest to the service.

use std::time::{Duration, Instant};

use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::Rules;
use super::http::{self, Outcome};
use super::store::Store;

/// The port of HTTP.
pub(super) const PORT: u16 = 80;
/// Most bytes of a request, and of what a guest may send ahead.
pub(super) const MAX_REQUEST: usize = 4096;
/// Bytes of an answer that wait for the guest to acknowledge them.
const SEND_BUFFER: usize = 8192;
/// How long a connection may be silent.
pub(super) const MAX_SILENCE: Duration = Duration::from_secs(30);

/// What is known of a connection beside its socket.
pub(super) struct Connection {
    /// Bytes of a request that is not whole yet.
    request: Vec<u8>,
    /// An answer, and how much of it the socket has.
    answer: Vec<u8>,
    sent: usize,
    /// There is no request after this answer.
    last: bool,
    /// It is one, not just a socket that listens.
    pub(super) is_open: bool,
    /// When the guest last sent something of use.
    heard: Instant,
}

/// A socket for a connection.
pub(super) fn socket() -> Socket<'static> {
    let buffer = |size| SocketBuffer::new(vec![0; size]);
    let mut socket = Socket::new(buffer(MAX_REQUEST), buffer(SEND_BUFFER));
    socket.set_timeout(Some(smoltcp::time::Duration::from_micros(
        u64::try_from(MAX_SILENCE.as_micros()).unwrap_or(u64::MAX),
    )));
    socket
}

impl Connection {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            request: Vec::new(),
            answer: Vec::new(),
            sent: 0,
            last: false,
            is_open: false,
            heard: now,
        }
    }

    /// When it will have been silent for too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.is_open
            .then(|| self.heard.checked_add(MAX_SILENCE))
            .flatten()
    }

    /// Does what there is to do. `true` where there may be something to send now.
    pub(super) fn serve(
        &mut self,
        socket: &mut Socket<'_>,
        store: &Store,
        rules: &Rules,
        now: Instant,
    ) -> bool {
        let mut busy = false;
        match socket.state() {
            State::Closed | State::TimeWait => {
                socket.abort();
                *self = Self::new(now);
                // Port 80 is not zero, and a socket that was aborted is closed.
                let _ = socket.listen(PORT);
                return false;
            }
            State::Listen => return false,
            _ if !self.is_open => {
                self.is_open = true;
                self.heard = now;
            }
            _ => {}
        }
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            socket.abort();
            return true;
        }
        // One request is answered after the other; a guest that sends more waits for its answers.
        while self.sent == self.answer.len() && !self.last && self.take(socket, store, rules, now) {
            busy |= self.send(socket);
        }
        busy |= self.send(socket);
        let all_sent = self.sent == self.answer.len();
        if all_sent && (self.last || !socket.may_recv()) && socket.may_send() {
            socket.close();
            busy = true;
        }
        busy
    }

    /// Takes bytes from the socket. `true` where they make a request that is answered.
    fn take(
        &mut self,
        socket: &mut Socket<'_>,
        store: &Store,
        rules: &Rules,
        now: Instant,
    ) -> bool {
        let room = MAX_REQUEST - self.request.len();
        let mut taken = 0;
        if socket.can_recv() {
            let request = &mut self.request;
            let received = socket.recv(|bytes| {
                let length = bytes.len().min(room);
                request.extend_from_slice(&bytes[..length]);
                (length, length)
            });
            taken = received.unwrap_or(0);
        }
        if taken > 0 {
            self.heard = now;
        }
        if self.request.is_empty() {
            return false;
        }
        let is_full = self.request.len() == MAX_REQUEST;
        match http::answer(&self.request, is_full, store, rules, now) {
            // The buffer of the socket is a ring: its bytes come in up to two pieces.
            Outcome::Incomplete => {
                taken > 0 && socket.can_recv() && self.take(socket, store, rules, now)
            }
            Outcome::Answer { taken, bytes, last } => {
                self.request.drain(..taken);
                (self.answer, self.sent, self.last) = (bytes, 0, last);
                true
            }
        }
    }

    /// Gives the socket as much of the answer as it takes. `true` where that was something.
    fn send(&mut self, socket: &mut Socket<'_>) -> bool {
        let rest = &self.answer[self.sent..];
        if rest.is_empty() || !socket.can_send() {
            return false;
        }
        let taken = socket.send_slice(rest).unwrap_or(0);
        self.sent += taken;
        if self.sent == self.answer.len() {
            // The memory of a large answer is not kept for a small one.
            self.answer = Vec::new();
            self.sent = 0;
        }
        taken > 0
    }
}
