//! One stream: a Unix socket on the host's side, ports and credit on the guest's.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use super::BUF_ALLOC;
use super::packet::{Header, NO_RECEIVE, NO_SEND, Operation, Ports};
use crate::virtio::chain::Buffers;
use crate::virtio::queue::QueueError;
use crate::virtio::vectors::GuestVectors;

/// Most bytes of the line by which a program says what it wants: "CONNECT 4294967295\n".
const MAX_LINE: usize = 19;

/// How far a stream has come.
enum State {
    /// The host's program has yet to say which port it wants.
    Greeting(Vec<u8>),
    /// The guest has yet to accept.
    Requested,
    Established,
    /// The guest is to be told that there is no stream any more.
    Ended,
}

pub(super) struct Connection {
    socket: UnixStream,
    pub(super) ports: Ports,
    state: State,
    /// Packets without data to be sent, one bit each.
    pending: u8,
    /// The socket may have something to read; true until it said otherwise.
    readable: bool,
    /// The program is gone for good.
    hung_up: bool,
    /// What each side has said it will not do any more, [`NO_RECEIVE`] and [`NO_SEND`].
    guest_closed: u32,
    host_closed: u32,
    /// The socket knows that there is no more for it.
    shut_down: bool,
    /// Bytes from the guest that the socket did not take, from `sent` on.
    backlog: Vec<u8>,
    sent: usize,
    /// Bytes received from the guest, passed on to the socket, and what of that the guest knows. Modulo 2³², as all
    /// counters (§5.10.6.3).
    received: u32,
    forwarded: u32,
    told: u32,
    /// Bytes sent to the guest, and what it said of its buffer.
    delivered: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// Waits in the switch's line of streams that have something to say.
    pub(super) queued: bool,
}

/// What a stream has for the guest.
pub(super) enum Outgoing {
    Nothing,
    /// A packet, with that many bytes of data in the buffers.
    Packet(Header),
    /// The last packet: the stream is no more.
    Last(Header),
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

/// Calls until no signal interrupts.
fn again(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Connection {
    fn new(socket: UnixStream, ports: Ports, state: State) -> Self {
        Self {
            socket,
            ports,
            state,
            pending: 0,
            readable: false,
            hung_up: false,
            guest_closed: 0,
            host_closed: 0,
            shut_down: false,
            backlog: Vec::new(),
            sent: 0,
            received: 0,
            forwarded: 0,
            told: 0,
            delivered: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            queued: false,
        }
    }

    /// A program that came to the guest; its end of the stream is `host_port`.
    pub(super) fn from_host(socket: UnixStream, host_port: u32) -> Self {
        let ports = Ports {
            guest: 0,
            host: host_port,
        };
        Self::new(socket, ports, State::Greeting(Vec::new()))
    }

    /// The guest's `request`, which `socket` answers.
    pub(super) fn from_guest(socket: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(socket, request.ports(), State::Established);
        connection.take_credit(request);
        connection.want(Operation::Response);
        connection
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// The guest knows the stream by its ports.
    pub(super) fn has_ports(&self) -> bool {
        !matches!(self.state, State::Greeting(_))
    }

    fn want(&mut self, operation: Operation) {
        self.pending |= 1 << operation as u16;
    }

    fn take_wanted(&mut self, operation: Operation) -> bool {
        let bit = 1 << operation as u16;
        let wanted = self.pending & bit != 0;
        self.pending &= !bit;
        wanted
    }

    /// The guest is to be told that the stream is no more.
    pub(super) fn end(&mut self) {
        self.state = State::Ended;
    }

    /// Whether there is something for the guest, as far as is known.
    pub(super) fn has_something(&self) -> bool {
        match self.state {
            State::Greeting(_) => false,
            State::Requested => self.pending != 0,
            State::Established => self.pending != 0 || self.may_read() && self.credit() > 0,
            State::Ended => true,
        }
    }

    fn may_read(&self) -> bool {
        self.readable && self.guest_closed & NO_RECEIVE == 0 && self.host_closed & NO_SEND == 0
    }

    /// Bytes the guest has room for. Nonsense of its making is no room.
    fn credit(&self) -> u32 {
        let in_flight = self.delivered.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    fn take_credit(&mut self, header: &Header) {
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
    }

    /// The socket is ready. `Err` where the program is gone before the guest has heard of it, or asks for nonsense.
    pub(super) fn ready(&mut self, input: bool, output: bool, hung_up: bool) -> Result<(), ()> {
        self.readable |= input || hung_up;
        self.hung_up |= hung_up;
        match &self.state {
            State::Greeting(_) => self.greet(),
            // Nobody is left to take the answer.
            State::Requested if self.hung_up => {
                self.end();
                Ok(())
            }
            State::Established if output => {
                self.flush();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Reads what the program wants, and not one byte of what it says to the guest.
    fn greet(&mut self) -> Result<(), ()> {
        let State::Greeting(line) = &mut self.state else {
            return Ok(());
        };
        loop {
            let mut byte = [0];
            match again(|| self.socket.read(&mut byte)) {
                Ok(0) => return Err(()),
                Ok(_) if byte == *b"\n" => break,
                Ok(_) if line.len() < MAX_LINE => line.extend(byte),
                Ok(_) => return Err(()),
                Err(error) if would_block(&error) => return Ok(()),
                Err(_) => return Err(()),
            }
        }
        let text = std::str::from_utf8(line).map_err(|_| ())?;
        let port = text.trim_end().strip_prefix("CONNECT ").ok_or(())?;
        self.ports.guest = port.parse().map_err(|_| ())?;
        self.state = State::Requested;
        self.want(Operation::Request);
        Ok(())
    }

    /// Takes a packet of the guest's; `data` are the `header.len` bytes after its header. `true` where the stream is at
    /// its end without another word.
    pub(super) fn take(
        &mut self,
        header: &Header,
        data: &mut Buffers,
        vectors: &mut GuestVectors,
    ) -> Result<bool, QueueError> {
        self.take_credit(header);
        match (&self.state, header.operation) {
            (_, Some(Operation::Reset)) => return Ok(true),
            (State::Requested, Some(Operation::Response)) => {
                self.state = State::Established;
                let answer = format!("OK {}\n", self.ports.host);
                // A socket with nothing in it takes a line.
                if self.socket.write_all(answer.as_bytes()).is_err() {
                    self.end();
                }
            }
            (State::Established, Some(Operation::ReadWrite)) => {
                self.forward(header.len, data, vectors)?;
            }
            (State::Established, Some(Operation::CreditUpdate)) => {}
            (State::Established, Some(Operation::CreditRequest)) => {
                self.want(Operation::CreditUpdate);
            }
            (State::Established, Some(Operation::Shutdown)) => {
                self.guest_closed |= header.flags & (NO_RECEIVE | NO_SEND);
                self.pass_on_shutdown();
            }
            (State::Ended, _) => {}
            // Not a thing to say at this point.
            _ => self.end(),
        }
        Ok(false)
    }

    /// Passes `len` bytes on to the program, and keeps what it does not take now.
    fn forward(
        &mut self,
        len: u32,
        data: &mut Buffers,
        vectors: &mut GuestVectors,
    ) -> Result<(), QueueError> {
        let unread = self.received.wrapping_sub(self.forwarded);
        if self.guest_closed & NO_SEND != 0 || len > BUF_ALLOC.saturating_sub(unread) {
            // More than it has credit for, or after it said that there is no more.
            self.end();
            return Ok(());
        }
        self.received = self.received.wrapping_add(len);
        if self.host_closed & NO_RECEIVE != 0 {
            self.count_forwarded(len as usize);
            return Ok(());
        }
        let mut written = 0;
        if self.backlog.is_empty() {
            vectors.clear();
            vectors.push(data.ranges())?;
            match again(|| vectors.write_to(&mut [], self.socket.as_raw_fd())) {
                Ok(bytes) => written = bytes,
                Err(error) if would_block(&error) => {}
                Err(_) => {
                    self.count_forwarded(len as usize);
                    self.program_reads_no_more();
                    return Ok(());
                }
            }
            self.count_forwarded(written);
        }
        // Only now is the data copied, and only what is left of it.
        self.backlog.drain(..std::mem::take(&mut self.sent));
        let start = self.backlog.len();
        let rest = (len as usize).saturating_sub(written);
        self.backlog.resize(start + rest, 0);
        let skipped = u32::try_from(written).unwrap_or(u32::MAX);
        data.skip(skipped);
        data.read(vectors.memory(), &mut self.backlog[start..])?;
        Ok(())
    }

    fn count_forwarded(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.forwarded = self.forwarded.wrapping_add(bytes);
        if self.forwarded.wrapping_sub(self.told) >= BUF_ALLOC / 2 {
            self.want(Operation::CreditUpdate);
        }
    }

    /// Writes what is kept, as far as the program takes it.
    fn flush(&mut self) {
        while self.sent < self.backlog.len() {
            match again(|| self.socket.write(&self.backlog[self.sent..])) {
                Ok(bytes) => {
                    self.sent += bytes;
                    self.count_forwarded(bytes);
                }
                Err(error) if would_block(&error) => return,
                Err(_) => {
                    self.count_forwarded(self.backlog.len() - self.sent);
                    self.program_reads_no_more();
                    break;
                }
            }
        }
        // Memory is given back: most streams never need it.
        (self.backlog, self.sent) = (Vec::new(), 0);
        self.pass_on_shutdown();
    }

    fn program_reads_no_more(&mut self) {
        self.host_closed |= NO_RECEIVE;
        self.want(Operation::Shutdown);
    }

    /// Closes what the guest has closed, once nothing is left to write.
    fn pass_on_shutdown(&mut self) {
        if !self.backlog.is_empty() {
            return;
        }
        // Once: each time makes the socket ready again. One whose other end is gone cannot be shut down, and need not.
        if self.guest_closed & NO_SEND != 0 && !self.shut_down {
            self.shut_down = true;
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        if self.guest_closed == NO_SEND | NO_RECEIVE {
            self.end();
        }
    }

    /// The next packet for guest `cid`; its data go to `room`.
    pub(super) fn next(&mut self, cid: u64, room: &mut GuestVectors) -> Outgoing {
        let ports = self.ports;
        let header = |operation| Header::to_guest(cid, ports, operation);
        if matches!(self.state, State::Ended) {
            return Outgoing::Last(header(Operation::Reset));
        }
        let first = [
            Operation::Request,
            Operation::Response,
            Operation::CreditUpdate,
            Operation::Shutdown,
        ];
        for operation in first {
            let mut header = header(operation);
            if self.take_wanted(operation) {
                if operation == Operation::Shutdown {
                    header.flags = self.host_closed;
                }
                return Outgoing::Packet(self.with_credit(header));
            }
        }
        let mut header = header(Operation::ReadWrite);
        if !matches!(self.state, State::Established) || !self.may_read() || self.credit() == 0 {
            return Outgoing::Nothing;
        }
        room.truncate(self.credit() as usize);
        match again(|| room.read_from(self.socket.as_raw_fd(), &mut [])) {
            Ok(0) => {
                header.operation = Some(Operation::Shutdown);
                self.host_closed |= NO_SEND;
                if self.hung_up {
                    self.host_closed |= NO_RECEIVE;
                }
                header.flags = self.host_closed;
            }
            Ok(bytes) => {
                header.len = u32::try_from(bytes).unwrap_or(u32::MAX);
                self.delivered = self.delivered.wrapping_add(header.len);
            }
            Err(error) if would_block(&error) => {
                self.readable = false;
                return Outgoing::Nothing;
            }
            Err(_) => {
                header.operation = Some(Operation::Reset);
                return Outgoing::Last(header);
            }
        }
        Outgoing::Packet(self.with_credit(header))
    }

    /// Every packet tells the guest how much it may send.
    fn with_credit(&mut self, mut header: Header) -> Header {
        header.buf_alloc = BUF_ALLOC;
        header.fwd_cnt = self.forwarded;
        self.told = self.forwarded;
        self.take_wanted(Operation::CreditUpdate);
        header
    }
}
