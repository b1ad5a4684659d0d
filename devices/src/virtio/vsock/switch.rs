//! All streams: who is who, who is ready, and who has something to say to the guest.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use event_manager::EventSet;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};

use super::connection::{Connection, Outgoing};
use super::packet::{Header, Operation, Ports, STREAM};
use super::{HOST_CID, Host, MAX_CONNECTIONS};
use crate::metrics::VsockMetrics;
use crate::throttle::Throttle;
use crate::virtio::chain::Buffers;
use crate::virtio::queue::QueueError;
use crate::virtio::vectors::GuestVectors;

/// Most answers to packets of no stream that wait for the guest to take them.
const MAX_RESETS: usize = 64;
/// The first of the host's ports for programs that come to the guest: above those that guests know.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// What the listener's events carry; streams' carry their place.
const LISTENER: u64 = u64::MAX;
/// Events taken at a time.
const BATCH: usize = 32;

pub(super) struct Switch {
    cid: u64,
    host: Box<dyn Host>,
    epoll: Epoll,
    places: Vec<Option<Connection>>,
    by_ports: HashMap<Ports, usize>,
    /// Places of streams with something for the guest.
    line: VecDeque<usize>,
    resets: VecDeque<Header>,
    next_port: u32,
    /// Programs may still wait: they could not be taken, and the listener does not tell again.
    unaccepted: bool,
    pub(super) metrics: Arc<VsockMetrics>,
    refused: Throttle,
}

impl Switch {
    pub(super) fn new(cid: u64, host: Box<dyn Host>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, LISTENER);
        epoll.ctl(ControlOperation::Add, host.listener(), event)?;
        Ok(Self {
            cid,
            host,
            epoll,
            places: Vec::new(),
            by_ports: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_HOST_PORT,
            unaccepted: false,
            metrics: Arc::default(),
            refused: Throttle::default(),
        })
    }

    /// Ready when any socket is.
    pub(super) fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    pub(super) fn cid(&self) -> u64 {
        self.cid
    }

    /// Ends all streams without a word.
    pub(super) fn clear(&mut self) {
        let gone = self.places.iter().flatten().count() as u64;
        self.metrics.conns_removed.add(gone);
        self.places.clear();
        self.by_ports.clear();
        self.line.clear();
        self.resets.clear();
        self.retry(false);
    }

    /// Whether another packet of the guest's can be answered.
    pub(super) fn has_room(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether there is something for the guest.
    pub(super) fn has_something(&self) -> bool {
        !self.resets.is_empty() || !self.line.is_empty()
    }

    /// Takes note of sockets that are ready. Without a guest to `serve`, programs that come are turned away.
    pub(super) fn look(&mut self, serve: bool) {
        let mut events = [EpollEvent::default(); BATCH];
        // An interrupted wait comes again: the events still wait.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            if event.data() == LISTENER {
                self.accept(serve);
                continue;
            }
            let place = usize::try_from(event.data()).unwrap_or(usize::MAX);
            let set = event.event_set();
            let hung_up = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
            let input = set.intersects(EventSet::IN | EventSet::READ_HANG_UP);
            let output = set.contains(EventSet::OUT);
            let Some(Some(connection)) = self.places.get_mut(place) else {
                continue;
            };
            let anonymous = !connection.has_ports();
            if connection.ready(input, output, hung_up).is_err() {
                self.metrics.conn_event_fails.count();
                self.remove(place);
                continue;
            }
            if anonymous && connection.has_ports() {
                let ports = connection.ports;
                self.by_ports.insert(ports, place);
            }
            self.queue(place);
        }
        self.retry(serve);
    }

    /// Takes programs that could not be taken before: a stream that ends frees what they need.
    fn retry(&mut self, serve: bool) {
        if self.unaccepted {
            self.accept(serve);
        }
    }

    fn accept(&mut self, serve: bool) {
        self.unaccepted = false;
        loop {
            match self.host.accept() {
                Ok(socket) if serve => {
                    let port = self.free_port();
                    // Who finds no place sees the end of the stream.
                    self.insert(Connection::from_host(socket, port));
                }
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => {
                        self.unaccepted = true;
                        self.metrics.muxer_event_fails.count();
                        let what = format_args!("A program cannot reach the guest: {error}");
                        return self.refused.warn(what);
                    }
                },
            }
        }
    }

    /// A port of the host's that no stream has.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            let used = |connection: &Connection| connection.ports.host == port;
            if !self.places.iter().flatten().any(used) {
                return port;
            }
        }
    }

    /// Gives `connection` a place and watches its socket. `None` where all places are taken.
    fn insert(&mut self, connection: Connection) -> Option<usize> {
        let free = self.places.iter().position(Option::is_none);
        let place = free.unwrap_or(self.places.len());
        if place >= MAX_CONNECTIONS {
            self.metrics.conns_killed.count();
            let what = format_args!("More than {MAX_CONNECTIONS} streams of a guest");
            self.refused.warn(what);
            return None;
        }
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(events, place as u64);
        let fd = connection.socket().as_raw_fd();
        if let Err(error) = self.epoll.ctl(ControlOperation::Add, fd, event) {
            self.metrics.muxer_event_fails.count();
            let what = format_args!("A stream of a guest cannot be watched: {error}");
            self.refused.warn(what);
            return None;
        }
        if connection.has_ports() {
            self.by_ports.insert(connection.ports, place);
        }
        if place == self.places.len() {
            self.places.push(None);
        }
        self.places[place] = Some(connection);
        self.metrics.conns_added.count();
        Some(place)
    }

    /// Forgets a stream; its socket is closed, and with that no longer watched.
    fn remove(&mut self, place: usize) {
        let Some(connection) = self.places.get_mut(place).and_then(Option::take) else {
            return;
        };
        self.metrics.conns_removed.count();
        if connection.has_ports() {
            self.by_ports.remove(&connection.ports);
        }
        if connection.queued {
            // The next stream there gets a turn of its own; without this the line grows with each that comes and goes.
            self.line.retain(|queued| *queued != place);
        }
    }

    /// Puts a stream that has something to say into the line, once.
    fn queue(&mut self, place: usize) {
        if let Some(Some(connection)) = self.places.get_mut(place)
            && !connection.queued
            && connection.has_something()
        {
            connection.queued = true;
            self.line.push_back(place);
        }
    }

    /// Takes a packet of the guest's; `data` is what lies after its header.
    pub(super) fn take(
        &mut self,
        header: &Header,
        data: &mut Buffers,
        vectors: &mut GuestVectors,
    ) -> Result<(), QueueError> {
        if header.source_cid != self.cid || header.destination_cid != HOST_CID {
            // From or to somebody else: there is nobody to answer.
            return Ok(());
        }
        let fits = header.len <= data.len();
        let stream = header.kind == STREAM;
        if let Some(&place) = self.by_ports.get(&header.ports())
            && let Some(connection) = &mut self.places[place]
        {
            data.truncate(header.len);
            if !stream || !fits {
                self.metrics.conns_killed.count();
                connection.end();
            } else if connection.take(header, data, vectors)? {
                self.remove(place);
                self.retry(true);
            }
            self.queue(place);
            return Ok(());
        }
        match header.operation {
            Some(Operation::Reset) => {}
            Some(Operation::Request) if stream && fits => match self.connect(header) {
                Some(place) => self.queue(place),
                None => self.reset(header),
            },
            _ => self.reset(header),
        }
        Ok(())
    }

    /// Reaches the program the guest asks for.
    fn connect(&mut self, request: &Header) -> Option<usize> {
        let socket: UnixStream = self.host.connect(request.destination_port).ok()?;
        self.insert(Connection::from_guest(socket, request))
    }

    fn reset(&mut self, header: &Header) {
        let mut answer = Header::to_guest(self.cid, header.ports(), Operation::Reset);
        answer.kind = header.kind;
        self.metrics.conns_killed.count();
        self.resets.push_back(answer);
    }

    /// The next packet for the guest, whose data go to `room`. `None` where it turns out that there is none.
    pub(super) fn next(&mut self, room: &mut GuestVectors) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        let place = self.line.pop_front()?;
        let connection = self.places.get_mut(place)?.as_mut()?;
        connection.queued = false;
        match connection.next(self.cid, room) {
            Outgoing::Nothing => {
                self.queue(place);
                None
            }
            Outgoing::Packet(header) => {
                // At the end of the line: others have a turn.
                self.queue(place);
                Some(header)
            }
            Outgoing::Last(header) => {
                self.remove(place);
                self.retry(true);
                Some(header)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::virtio::chain::Chain;
    use crate::virtio::testing::guest_memory;

    const CID: u64 = 3;

    /// One program that guests reach by any port, and others that come, unless the host has no descriptors left.
    struct Programs {
        program: PathBuf,
        listener: UnixListener,
        full: Arc<AtomicBool>,
    }

    impl Host for Programs {
        fn listener(&self) -> RawFd {
            self.listener.as_raw_fd()
        }

        fn accept(&mut self) -> io::Result<UnixStream> {
            if self.full.load(Ordering::SeqCst) {
                return Err(io::Error::from_raw_os_error(libc::EMFILE));
            }
            let (stream, _) = self.listener.accept()?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        }

        fn connect(&mut self, _port: u32) -> io::Result<UnixStream> {
            let stream = UnixStream::connect(&self.program)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        }
    }

    struct Fixture {
        switch: Switch,
        program: UnixListener,
        full: Arc<AtomicBool>,
        folder: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let program = UnixListener::bind(folder.path().join("program")).unwrap();
            let listener = UnixListener::bind(folder.path().join("guest")).unwrap();
            listener.set_nonblocking(true).unwrap();
            let full = Arc::<AtomicBool>::default();
            let programs = Programs {
                program: folder.path().join("program"),
                listener,
                full: full.clone(),
            };
            Self {
                switch: Switch::new(CID, Box::new(programs)).unwrap(),
                program,
                full,
                folder,
            }
        }

        fn say(&mut self, operation: Operation) {
            let header = Header {
                source_cid: CID,
                destination_cid: HOST_CID,
                source_port: 1,
                destination_port: 2,
                len: 0,
                kind: STREAM,
                operation: Some(operation),
                flags: 0,
                buf_alloc: 1000,
                fwd_cnt: 0,
            };
            let mut nothing = Chain::new();
            let mut vectors = GuestVectors::new(guest_memory());
            self.switch
                .take(&header, &mut nothing.readable, &mut vectors)
                .unwrap();
        }

        fn streams(&self) -> usize {
            self.switch.places.iter().flatten().count()
        }
    }

    #[test]
    fn streams_that_come_and_go_leave_nothing_behind() {
        let mut f = Fixture::new();
        for _ in 0..100 {
            f.say(Operation::Request);
            assert_eq!((f.streams(), f.switch.line.len()), (1, 1));
            f.say(Operation::Reset);
            drop(f.program.accept().unwrap());
        }
        assert_eq!(f.streams(), 0);
        assert!(!f.switch.has_something());
    }

    #[test]
    fn program_that_could_not_be_taken_is_taken_when_a_stream_ends() {
        let mut f = Fixture::new();
        f.say(Operation::Request);
        f.full.store(true, Ordering::SeqCst);
        let mut program = UnixStream::connect(f.folder.path().join("guest")).unwrap();
        f.switch.look(true);
        assert_eq!(f.streams(), 1);

        f.full.store(false, Ordering::SeqCst);
        f.say(Operation::Reset);
        assert_eq!(f.streams(), 1);
        io::Write::write_all(&mut program, b"CONNECT 7\n").unwrap();
        f.switch.look(true);
        let request = f.switch.next(&mut GuestVectors::new(guest_memory()));
        let request = request.expect("the program's request");
        assert_eq!(request.operation, Some(Operation::Request));
        assert_eq!(request.destination_port, 7);
    }

    #[test]
    fn program_that_could_not_be_taken_is_turned_away_when_the_guest_starts_anew() {
        let mut f = Fixture::new();
        f.full.store(true, Ordering::SeqCst);
        let mut program = UnixStream::connect(f.folder.path().join("guest")).unwrap();
        f.switch.look(true);
        f.full.store(false, Ordering::SeqCst);
        f.switch.clear();
        assert_eq!(f.streams(), 0);
        program.set_nonblocking(true).unwrap();
        assert_eq!(io::Read::read(&mut program, &mut [0]).unwrap(), 0);
    }
}
