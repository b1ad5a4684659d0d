//! A connection after its negotiation: requests of many pieces of work go out, replies come in, in any order.
//!
//! Data moves straight between the socket and guest memory. Whatever goes wrong, with the server or on the way, ends
//! everything that is in flight with an error: nobody can say how far it has come.
#![expect(
    unsafe_code,
    reason = "vectored I/O straight between a socket and guest memory"
)]

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use libc::iovec;
use vmm_sys_util::timerfd::TimerFd;

use super::super::backend::Action;
use super::super::engine::{MAX_IN_FLIGHT, MAX_VECTORS, Remote, Work};
use super::protocol::{self, REPLY_LEN, REQUEST_LEN, Reply, Request};

/// How often it is looked whether the server still does something. One that has not moved a byte between two looks, with
/// requests in flight, is given up: after 15 to 30 seconds.
const TICK: Duration = Duration::from_secs(15);
/// How long a thread that waits for the last replies waits before it looks again. It has no other means: a vCPU's thread may
/// not wait for descriptors.
const NAP: Duration = Duration::from_micros(50);
/// Most bytes taken in one turn: the device has other things to do.
const TURN_BYTES: usize = 16 << 20;

/// Where a piece of work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nowhere.
    #[default]
    Free,
    /// Its request waits, or some of it.
    Outgoing,
    /// With the server.
    Away,
}

#[derive(Default)]
struct Slot {
    work: Work,
    stage: Stage,
    handle: u64,
    /// Bytes of the disk that have not been asked for with success.
    left: u64,
    /// Bytes of the request on its way.
    piece: u32,
    header: [u8; REQUEST_LEN],
    header_sent: usize,
    /// Data bytes of the request that have not gone.
    payload: u32,
}

/// What comes next from the server.
enum Incoming {
    Header,
    /// Data of a read.
    Data {
        token: u16,
        left: u32,
    },
}

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Many pieces in one call, and what has to be waited for is watched: by the device's thread.
    Watched,
    /// One piece in each call, and then again: by whoever stops the device, which may be a vCPU's thread. Its filter permits
    /// little, and this is rare.
    Plain,
}

/// A connection with work in flight.
pub(super) struct Link {
    /// `None` when the server is given up.
    stream: Option<UnixStream>,
    epoll: RawFd,
    /// A reply is not the only thing waited for: there is room for requests again.
    wants_room: bool,
    /// Most data bytes of a request.
    max: u32,
    slots: Box<[Slot]>,
    /// Tokens in the order in which their requests go. The first may have gone in part.
    outgoing: VecDeque<u16>,
    incoming: Incoming,
    header: [u8; REPLY_LEN],
    header_filled: usize,
    /// Pieces of work that have not ended.
    in_flight: usize,
    /// The thread that starts work.
    owner: Option<ThreadId>,
    ended: VecDeque<(u16, io::Result<()>)>,
    /// So that a handle is not used again soon.
    sequence: u64,
    timer: TimerFd,
    /// When the timer will have expired.
    look: Option<Instant>,
    moved: bool,
    vectors: Vec<iovec>,
}

// SAFETY: the addresses in `vectors` belong to no thread; they are only used in the call that has put them there.
unsafe impl Send for Link {}

impl Link {
    /// A connection over `stream`, which does not block, for requests of up to `max` data bytes, a multiple of 512.
    pub(super) fn new(stream: UnixStream, max: u32) -> io::Result<Self> {
        Ok(Self {
            stream: Some(stream),
            epoll: -1,
            wants_room: false,
            max,
            slots: (0..MAX_IN_FLIGHT).map(|_| Slot::default()).collect(),
            outgoing: VecDeque::with_capacity(MAX_IN_FLIGHT.into()),
            incoming: Incoming::Header,
            header: [0; REPLY_LEN],
            header_filled: 0,
            in_flight: 0,
            owner: None,
            ended: VecDeque::new(),
            sequence: 0,
            timer: TimerFd::new()?,
            look: None,
            moved: false,
            vectors: Vec::with_capacity(MAX_VECTORS),
        })
    }

    fn slot(&mut self, token: u16) -> &mut Slot {
        &mut self.slots[usize::from(token)]
    }

    /// Makes the next request of `token`'s work and queues it.
    fn ask(&mut self, token: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let handle = self.sequence << 16 | u64::from(token);
        let max = self.max;
        let slot = &mut self.slots[usize::from(token)];
        let (command, flags) = match slot.work.action {
            Action::Read => (protocol::READ, 0),
            Action::Write { durable } => (protocol::WRITE, if durable { protocol::FUA } else { 0 }),
            Action::Flush => (protocol::FLUSH, 0),
            Action::Discard => (protocol::TRIM, 0),
            Action::WriteZeroes { unmap } => (
                protocol::WRITE_ZEROES,
                if unmap { 0 } else { protocol::NO_HOLE },
            ),
        };
        slot.piece = u32::try_from(slot.left).map_or(max, |left| left.min(max));
        slot.handle = handle;
        let request = Request {
            flags,
            command,
            handle,
            offset: slot.work.offset,
            len: slot.piece,
        };
        slot.header = request.encode();
        slot.header_sent = 0;
        slot.payload = if command == protocol::WRITE {
            slot.piece
        } else {
            0
        };
        slot.stage = Stage::Outgoing;
        self.outgoing.push_back(token);
    }

    /// How the thread that asks may move bytes.
    fn manner(&self) -> Manner {
        if self.owner == Some(thread::current().id()) {
            Manner::Watched
        } else {
            Manner::Plain
        }
    }

    /// Sends as much as the socket takes.
    fn send(&mut self, manner: Manner) {
        while let Some(stream) = self.stream.as_ref().filter(|_| !self.outgoing.is_empty()) {
            self.vectors.clear();
            for token in &self.outgoing {
                let slot = &self.slots[usize::from(*token)];
                let rest = &slot.header[slot.header_sent..];
                // Read only, whatever the type says.
                let header = rest.as_ptr().cast_mut();
                push(&mut self.vectors, &[vector(header, rest.len())], rest.len());
                let payload = slot.payload as usize;
                if push(&mut self.vectors, slot.work.vectors.front(), payload) < payload {
                    break;
                }
            }
            let (fd, flags) = (stream.as_raw_fd(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
            let sent = match manner {
                Manner::Watched => {
                    let message = message(&mut self.vectors);
                    // SAFETY: the vectors are headers of ours and guest memory, which the engine keeps mapped as long as
                    // its work is here; the call only reads them.
                    unsafe { libc::sendmsg(fd, &raw const message, flags) }
                }
                Manner::Plain => {
                    let Some(first) = self.vectors.first() else {
                        break;
                    };
                    // SAFETY: as above, for the first of the vectors.
                    unsafe { libc::send(fd, first.iov_base, first.iov_len, flags) }
                }
            };
            match usize::try_from(sent) {
                Ok(sent) => self.sent(sent),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == ErrorKind::Interrupted => {}
                    error if error.kind() == ErrorKind::WouldBlock => break,
                    error => return self.give_up(&error),
                },
            }
        }
        if manner == Manner::Watched {
            self.want_room(!self.outgoing.is_empty());
        }
    }

    /// Takes off what has gone.
    fn sent(&mut self, mut sent: usize) {
        self.moved |= sent > 0;
        while let Some(&token) = self.outgoing.front() {
            let slot = self.slot(token);
            let header = sent.min(REQUEST_LEN - slot.header_sent);
            slot.header_sent += header;
            sent -= header;
            let payload = u32::try_from(sent).map_or(slot.payload, |sent| sent.min(slot.payload));
            slot.work.vectors.advance(payload as usize);
            slot.payload -= payload;
            sent -= payload as usize;
            if slot.header_sent < REQUEST_LEN || slot.payload > 0 {
                return;
            }
            slot.stage = Stage::Away;
            self.outgoing.pop_front();
        }
    }

    fn want_room(&mut self, wanted: bool) {
        let Some(stream) = &self.stream else { return };
        if wanted == self.wants_room {
            return;
        }
        let room = if wanted { libc::EPOLLOUT } else { 0 };
        let events = libc::EPOLLIN | room;
        match control(self.epoll, libc::EPOLL_CTL_MOD, stream.as_raw_fd(), events) {
            Ok(()) => self.wants_room = wanted,
            Err(error) => self.give_up(&error),
        }
    }

    /// Takes what the server has sent.
    fn receive(&mut self, manner: Manner) {
        let mut turn = 0;
        while let Some(stream) = self.stream.as_ref().filter(|_| turn < TURN_BYTES) {
            self.vectors.clear();
            let mut wanted = 0;
            if let Incoming::Data { token, left } = self.incoming {
                let vectors = self.slots[usize::from(token)].work.vectors.front();
                wanted = left as usize;
                let full = MAX_VECTORS - 1;
                let there = push_up_to(&mut self.vectors, vectors, wanted, full);
                if there < wanted {
                    wanted = usize::MAX;
                }
            }
            // What follows the data is a header, of which most of the time some is there already.
            if wanted != usize::MAX {
                let rest = &mut self.header[self.header_filled..];
                let header = vector(rest.as_mut_ptr(), rest.len());
                push(&mut self.vectors, &[header], rest.len());
            }
            let fd = stream.as_raw_fd();
            let received = match manner {
                Manner::Watched => {
                    let mut message = message(&mut self.vectors);
                    // SAFETY: the vectors are our header and guest memory, which the engine keeps mapped as long as its
                    // work is here, and to which nothing in this process holds a reference.
                    unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) }
                }
                Manner::Plain => {
                    let Some(first) = self.vectors.first() else {
                        return;
                    };
                    // SAFETY: as above, for the first of the vectors.
                    unsafe { libc::read(fd, first.iov_base, first.iov_len) }
                }
            };
            match usize::try_from(received) {
                Ok(0) => return self.give_up(&"the server has closed the connection"),
                Ok(received) => {
                    turn += received;
                    self.moved = true;
                    if let Err(why) = self.received(received) {
                        return self.give_up(&why);
                    }
                }
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == ErrorKind::Interrupted => {}
                    error if error.kind() == ErrorKind::WouldBlock => return,
                    error => return self.give_up(&error),
                },
            }
        }
    }

    /// Goes through what has come.
    fn received(&mut self, mut received: usize) -> Result<(), String> {
        if let Incoming::Data { token, left } = self.incoming {
            let data = u32::try_from(received).map_or(left, |received| received.min(left));
            self.slot(token).work.vectors.advance(data as usize);
            received -= data as usize;
            if data < left {
                let left = left - data;
                self.incoming = Incoming::Data { token, left };
                return Ok(());
            }
            self.incoming = Incoming::Header;
            self.piece_done(token);
        }
        self.header_filled += received;
        if self.header_filled == REPLY_LEN {
            self.header_filled = 0;
            let reply = Reply::decode(&self.header).map_err(|error| error.to_string())?;
            self.replied(reply)?;
        }
        Ok(())
    }

    fn replied(&mut self, reply: Reply) -> Result<(), String> {
        let handle = reply.handle;
        let token = u16::try_from(handle & 0xffff).unwrap_or(u16::MAX);
        let known = self.slots.get(usize::from(token));
        let Some(slot) = known.filter(|slot| slot.stage == Stage::Away && slot.handle == handle)
        else {
            return Err(format!(
                "the server replies to {handle:#x}, which nobody asks"
            ));
        };
        if reply.error != 0 {
            self.end(
                token,
                Err(io::Error::from_raw_os_error(os_error(reply.error))),
            );
        } else if slot.work.action == Action::Read && slot.piece > 0 {
            let left = slot.piece;
            self.incoming = Incoming::Data { token, left };
        } else {
            self.piece_done(token);
        }
        Ok(())
    }

    /// The request of `token` has succeeded.
    fn piece_done(&mut self, token: u16) {
        let slot = self.slot(token);
        slot.work.offset = slot.work.offset.saturating_add(slot.piece.into());
        slot.left -= u64::from(slot.piece);
        if slot.left > 0 {
            self.ask(token);
        } else {
            self.end(token, Ok(()));
        }
    }

    fn end(&mut self, token: u16, result: io::Result<()>) {
        self.slot(token).stage = Stage::Free;
        self.in_flight -= 1;
        self.ended.push_back((token, result));
    }

    /// Looks, when it is time, whether the server still does something.
    fn look(&mut self) {
        if self.look.is_none_or(|look| look > Instant::now()) {
            return;
        }
        if self.in_flight > 0 && !std::mem::take(&mut self.moved) {
            return self.give_up(&"the server does nothing any more");
        }
        self.set_timer(self.in_flight > 0);
    }

    fn set_timer(&mut self, on: bool) {
        let time = if on { TICK } else { Duration::ZERO };
        match self.timer.reset(time, None) {
            // After the timer, so that it has expired by then.
            Ok(()) => self.look = on.then(|| Instant::now() + TICK),
            Err(error) => self.give_up(&error),
        }
    }

    /// Sends and takes what can be, without waiting.
    fn turn(&mut self) {
        let manner = self.manner();
        self.look();
        self.receive(manner);
        // Room that is wanted no more is not waited for either.
        if !self.outgoing.is_empty() || (self.wants_room && manner == Manner::Watched) {
            self.send(manner);
        }
    }

    /// From now on everything fails.
    fn give_up(&mut self, why: &dyn std::fmt::Display) {
        if self.stream.take().is_none() {
            return;
        }
        log::error!(
            "An NBD disk has lost its server: {why}. {} requests in flight fail, as will all others until the drive is \
             given a server anew",
            self.in_flight
        );
        self.outgoing.clear();
        for token in 0..MAX_IN_FLIGHT {
            if self.slot(token).stage != Stage::Free {
                self.end(token, Err(gone()));
            }
        }
        self.incoming = Incoming::Header;
        if self.look.take().is_some() {
            // It is ready no more, and if that should fail, it is closed with the disk.
            let _ = self.timer.reset(Duration::ZERO, None);
        }
    }
}

impl Remote for Link {
    fn watch(&mut self, epoll: RawFd) -> io::Result<()> {
        let Some(stream) = &self.stream else {
            return Err(gone());
        };
        control(
            epoll,
            libc::EPOLL_CTL_ADD,
            stream.as_raw_fd(),
            libc::EPOLLIN,
        )?;
        control(
            epoll,
            libc::EPOLL_CTL_ADD,
            self.timer.as_raw_fd(),
            libc::EPOLLIN,
        )?;
        self.epoll = epoll;
        Ok(())
    }

    fn queue(&mut self, token: u16, work: &mut Work) {
        self.in_flight += 1;
        self.owner = Some(thread::current().id());
        let slot = self.slot(token);
        std::mem::swap(&mut slot.work, work);
        slot.left = slot.work.len;
        slot.stage = Stage::Outgoing;
        if self.stream.is_none() {
            return self.end(token, Err(gone()));
        }
        self.ask(token);
        if self.look.is_none() {
            self.moved = true;
            self.set_timer(true);
        }
    }

    fn submit(&mut self) {
        if !self.outgoing.is_empty() {
            self.send(self.manner());
        }
    }

    fn reap(&mut self) -> Option<(u16, io::Result<()>)> {
        if self.ended.is_empty() {
            self.turn();
        }
        self.ended.pop_front()
    }

    fn work(&self, token: u16) -> &Work {
        &self.slots[usize::from(token)].work
    }

    fn is_busy(&self) -> bool {
        self.in_flight > 0 || !self.ended.is_empty()
    }

    fn wait(&mut self) {
        loop {
            self.turn();
            if !self.ended.is_empty() || self.in_flight == 0 {
                return;
            }
            thread::park_timeout(NAP);
        }
    }

    fn abandon(&mut self) {
        if self.in_flight > 0 {
            self.give_up(&"its requests are abandoned");
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // A farewell, if there is room for one: in the middle of a request it would be taken for data.
        let idle = self.outgoing.is_empty();
        if let Some(stream) = self.stream.as_mut().filter(|_| idle) {
            let farewell = Request {
                flags: 0,
                command: protocol::DISCONNECT,
                handle: 0,
                offset: 0,
                len: 0,
            };
            let _ = stream.write(&farewell.encode());
        }
    }
}

fn gone() -> io::Error {
    ErrorKind::NotConnected.into()
}

/// The host's number of a server's error: those that the protocol knows are the same; others mean nothing here.
fn os_error(error: u32) -> i32 {
    let known = [
        libc::EPERM,
        libc::EIO,
        libc::ENOMEM,
        libc::EINVAL,
        libc::ENOSPC,
        libc::EOVERFLOW,
        libc::EOPNOTSUPP,
        libc::ESHUTDOWN,
    ];
    let mut same = known
        .into_iter()
        .filter(|known| known.unsigned_abs() == error);
    same.next().unwrap_or(libc::EIO)
}

fn vector(base: *mut u8, len: usize) -> iovec {
    iovec {
        iov_base: base.cast(),
        iov_len: len,
    }
}

/// Appends `vectors`, but no more than `len` bytes of them and as many as one call takes; says how many bytes.
fn push(list: &mut Vec<iovec>, vectors: &[iovec], len: usize) -> usize {
    push_up_to(list, vectors, len, MAX_VECTORS)
}

fn push_up_to(list: &mut Vec<iovec>, vectors: &[iovec], len: usize, most: usize) -> usize {
    let mut left = len;
    for vector in vectors {
        if left == 0 || list.len() >= most {
            break;
        }
        let taken = vector.iov_len.min(left);
        list.push(iovec {
            iov_base: vector.iov_base,
            iov_len: taken,
        });
        left -= taken;
    }
    len - left
}

fn message(vectors: &mut [iovec]) -> libc::msghdr {
    // SAFETY: plain numbers and addresses, for which zero is none.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    message
}

fn control(epoll: RawFd, operation: i32, fd: RawFd, events: i32) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: events.cast_unsigned(),
        u64: 0,
    };
    // SAFETY: the call reads one event, which lives.
    match unsafe { libc::epoll_ctl(epoll, operation, fd, &raw mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
