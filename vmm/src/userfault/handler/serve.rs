//! The loop that serves page faults.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{ALL_SERVED, Connection, Content, HandlerError, PAGE_BYTES, Page, PageSource, Plan};
use crate::userfault::{Event, PAGE, Wake};

/// Pages that are served between two looks at who waits.
const BATCH: usize = 8;
/// Most faults that wait at once: each is a thread of the VMM's.
const MAX_WAITING: usize = 4096;
/// How long to wait for a VMM that is in the middle of giving pages back.
const PAUSE: Duration = Duration::from_millis(1);

/// How it came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything was served, and the VMM goes on by itself.
    AllServed,
    /// The VMM has gone before.
    Gone,
}

/// What was served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it came to an end.
    pub end: End,
    /// Offsets of the pages that were waited for, in the order of their first faults.
    pub faults: Vec<u64>,
    /// How many pages were there before anybody asked for them.
    pub ahead: u64,
    /// How many pages the guest gave back.
    pub removed: u64,
}

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    /// It is there.
    Yes,
    /// It was there.
    Before,
    /// Events are to be read first.
    Later,
    /// There is nobody to have it.
    Gone,
}

/// One bit for each page.
struct Bits(Vec<u64>);

impl Bits {
    fn new(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
        Self(vec![0; words])
    }

    fn place(offset: u64) -> (usize, u64) {
        let page = offset / PAGE;
        (
            usize::try_from(page / 64).unwrap_or(usize::MAX),
            1 << (page % 64),
        )
    }

    fn has(&self, offset: u64) -> bool {
        let (word, bit) = Self::place(offset);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Whether it was not set before.
    fn set(&mut self, offset: u64) -> bool {
        let (word, bit) = Self::place(offset);
        match self.0.get_mut(word) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }
}

struct Service<'a, S> {
    connection: Connection,
    source: &'a mut S,
    /// Pages that are there, or are known to be zero.
    served: Bits,
    /// Pages that were given back: zero from then on.
    removed: Bits,
    /// Addresses that are waited for.
    waiting: VecDeque<u64>,
    page: Box<Page>,
    report: Report,
}

pub(super) fn serve(
    connection: Connection,
    plan: &Plan,
    source: &mut impl PageSource,
) -> Result<Report, HandlerError> {
    let pages = connection.places.len() / PAGE;
    let service = Service {
        connection,
        source,
        served: Bits::new(pages),
        removed: Bits::new(pages),
        waiting: VecDeque::new(),
        page: Box::new([0; PAGE_BYTES]),
        report: Report {
            end: End::Gone,
            faults: Vec::new(),
            ahead: 0,
            removed: 0,
        },
    };
    service.run(plan)
}

/// What is to be served when nobody waits.
struct Background<'a> {
    prefetch: std::slice::Iter<'a, u64>,
    /// When all others are.
    fill_at: Option<Instant>,
    /// The next of them.
    fill: u64,
    /// The one that was to be served when it was found that events are to be read first.
    put_off: Option<u64>,
    /// The VMM knows that everything was served.
    told: bool,
}

impl<S: PageSource> Service<'_, S> {
    fn run(mut self, plan: &Plan) -> Result<Report, HandlerError> {
        let start = Instant::now();
        let mut background = Background {
            prefetch: plan.prefetch.iter(),
            fill_at: plan.fill_after.and_then(|after| start.checked_add(after)),
            fill: 0,
            put_off: None,
            told: false,
        };
        let mut blocked = false;
        loop {
            let timeout = match blocked {
                true => Some(PAUSE),
                false => background.timeout(),
            };
            let (faults, stream) = self.wait(timeout)?;
            if stream && self.is_gone()? {
                if background.told {
                    self.report.end = End::AllServed;
                }
                return Ok(self.report);
            }
            if faults {
                self.read_events()?;
            }
            blocked = false;
            while let Some(address) = self.waiting.pop_front() {
                match self.serve_fault(address)? {
                    Placed::Later => {
                        self.waiting.push_front(address);
                        blocked = true;
                        break;
                    }
                    Placed::Gone => return Ok(self.report),
                    Placed::Yes | Placed::Before => {}
                }
            }
            if !blocked {
                match self.serve_ahead(&mut background)? {
                    Placed::Later => blocked = true,
                    Placed::Gone => return Ok(self.report),
                    Placed::Yes | Placed::Before => {}
                }
            }
        }
    }

    /// Waits for the VMM: whether there are faults, and whether the connection has something to say.
    fn wait(&self, timeout: Option<Duration>) -> Result<(bool, bool), HandlerError> {
        let timeout = match timeout {
            None => PollTimeout::NONE,
            // What is longer is waited for in parts.
            Some(timeout) => PollTimeout::try_from(timeout.as_millis()).unwrap_or(PollTimeout::MAX),
        };
        let Connection {
            stream, userfault, ..
        } = &self.connection;
        let mut fds = [
            PollFd::new(userfault.as_fd(), PollFlags::POLLIN),
            PollFd::new(stream.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(HandlerError::Wait(error.into())),
        }
        let [faults, stream] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if faults.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL) {
            let why = io::Error::other("the userfaultfd is not one that can be read");
            return Err(HandlerError::Wait(why));
        }
        Ok((!faults.is_empty(), !stream.is_empty()))
    }

    /// Whether the VMM has gone; it has nothing else to say.
    fn is_gone(&mut self) -> Result<bool, HandlerError> {
        let mut byte = [0];
        match self.connection.stream.read(&mut byte) {
            Ok(0) => Ok(true),
            Ok(_) => Err(HandlerError::Unexpected),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(false),
                // It has gone without a word.
                _ => Ok(true),
            },
        }
    }

    fn read_events(&mut self) -> Result<(), HandlerError> {
        let mut events = Vec::new();
        self.connection
            .userfault
            .read(&mut events)
            .map_err(HandlerError::Wait)?;
        for event in events {
            match event {
                // Nothing here is write-protected: who does that waits for itself.
                Event::Fault(fault) if !fault.protected => self.waiting.push_back(fault.address),
                Event::Remove(range) | Event::Unmap(range) => self.remove(&range),
                Event::Fault(_) | Event::Other(_) => {}
            }
        }
        let found = self.waiting.len();
        if found > MAX_WAITING {
            return Err(HandlerError::TooMany { found });
        }
        Ok(())
    }

    fn remove(&mut self, addresses: &Range<u64>) {
        for range in self.connection.places.offsets(addresses) {
            for page in range.start / PAGE..range.end / PAGE {
                if self.removed.set(page * PAGE) {
                    self.report.removed += 1;
                }
            }
        }
    }

    fn serve_fault(&mut self, address: u64) -> Result<Placed, HandlerError> {
        let offset = self.connection.places.offset(address);
        let offset = offset.ok_or(HandlerError::Outside { address })?;
        let first = !self.served.has(offset);
        let placed = self.serve_page(offset, address)?;
        match placed {
            // Whoever put it there woke those who had waited by then, and nobody else.
            Placed::Before => drop(self.connection.userfault.wake(address, PAGE)),
            Placed::Yes if first => self.report.faults.push(offset),
            Placed::Yes | Placed::Later | Placed::Gone => {}
        }
        Ok(placed)
    }

    fn serve_page(&mut self, offset: u64, address: u64) -> Result<Placed, HandlerError> {
        let content = match self.removed.has(offset) {
            true => Content::Zero,
            false => self.content(offset)?,
        };
        self.put(offset, address, content)
    }

    /// Puts `content`, which is in the buffer, into the page at `offset`.
    fn put(&mut self, offset: u64, address: u64, content: Content) -> Result<Placed, HandlerError> {
        let userfault = &self.connection.userfault;
        let result = match content {
            Content::Zero => userfault.zero(address, PAGE, Wake::Yes),
            Content::Data => userfault.copy(address, &self.page[..], Wake::Yes),
        };
        let placed = match result {
            Ok(_) => Placed::Yes,
            Err(source) => match source.kind() {
                // There already, or not the handler's any more.
                io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound => Placed::Before,
                io::ErrorKind::WouldBlock => return Ok(Placed::Later),
                _ if source.raw_os_error() == Some(libc::ESRCH) => return Ok(Placed::Gone),
                _ => return Err(HandlerError::Place { offset, source }),
            },
        };
        self.served.set(offset);
        Ok(placed)
    }

    fn content(&mut self, offset: u64) -> Result<Content, HandlerError> {
        self.source
            .page(offset, &mut self.page)
            .map_err(|source| HandlerError::Source { offset, source })
    }

    /// Serves some pages that nobody waits for, if there are any.
    fn serve_ahead(&mut self, background: &mut Background<'_>) -> Result<Placed, HandlerError> {
        for _ in 0..BATCH {
            let put_off = background.put_off.take();
            let next = put_off.or_else(|| background.prefetch.next().copied());
            if let Some(offset) = next {
                let Some(address) = self.connection.places.address(offset) else {
                    continue;
                };
                if offset % PAGE != 0 || self.served.has(offset) || self.removed.has(offset) {
                    continue;
                }
                match self.serve_page(offset, address)? {
                    Placed::Yes => self.report.ahead += 1,
                    Placed::Before => {}
                    Placed::Gone => return Ok(Placed::Gone),
                    Placed::Later => {
                        background.put_off = Some(offset);
                        return Ok(Placed::Later);
                    }
                }
            } else if background.fills() {
                match self.fill(background)? {
                    Placed::Yes | Placed::Before => {}
                    other => return Ok(other),
                }
            } else {
                break;
            }
        }
        Ok(Placed::Yes)
    }

    /// Serves the next of all pages, or says that there is none.
    fn fill(&mut self, background: &mut Background<'_>) -> Result<Placed, HandlerError> {
        let offset = background.fill;
        let Some(address) = self.connection.places.address(offset) else {
            background.told = true;
            // A VMM that has gone is seen soon.
            let _ = self.connection.stream.write_all(&[ALL_SERVED]);
            return Ok(Placed::Yes);
        };
        if !self.served.has(offset) && !self.removed.has(offset) {
            // What is zero need not be put anywhere: it is zero when the VMM is on its own.
            let placed = match self.content(offset)? {
                Content::Zero => {
                    self.served.set(offset);
                    Placed::Before
                }
                Content::Data => self.put(offset, address, Content::Data)?,
            };
            match placed {
                Placed::Yes => self.report.ahead += 1,
                Placed::Before => {}
                Placed::Later | Placed::Gone => return Ok(placed),
            }
        }
        background.fill += PAGE;
        Ok(Placed::Yes)
    }
}

impl Background<'_> {
    fn fills(&self) -> bool {
        !self.told && self.fill_at.is_some_and(|at| Instant::now() >= at)
    }

    /// How long there is nothing to do. None: for ever.
    fn timeout(&self) -> Option<Duration> {
        if self.put_off.is_some() || !self.prefetch.as_slice().is_empty() {
            return Some(Duration::ZERO);
        }
        let at = self.fill_at.filter(|_| !self.told)?;
        // Rounded up: to wake before the time is to wake for nothing.
        let left = at.saturating_duration_since(Instant::now());
        Some(if left.is_zero() { left } else { left + PAUSE })
    }
}
