use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::virtio::queue::RING_FEATURES;
use crate::virtio::state::NEEDS_RESET;
use crate::virtio::testing::{Buffer, GuestRing, TestGuest, Transport};
use crate::virtio::vsock::packet::{NO_RECEIVE, NO_SEND, Operation, Ports, STREAM};
use crate::virtio::vsock::{BUF_ALLOC, HOST_CID, MAX_CONNECTIONS};

const CID: u64 = 52;
const FEATURES: u64 = RING_FEATURES | FEATURE_STREAM;
/// What the guest says it has room for.
const ROOM: u32 = 1000;

/// Programs of the host, at sockets of a folder.
struct Programs {
    folder: PathBuf,
    listener: UnixListener,
}

impl Host for Programs {
    fn listener(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    fn accept(&mut self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.folder.join(port.to_string()))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

struct Fixture {
    guest: TestGuest,
    folder: TempDir,
    rings: Vec<GuestRing>,
    /// Buffers given to the device, oldest first.
    buffers: Vec<Buffer>,
    /// Memory the guest sends from.
    outgoing: Buffer,
    fwd_cnt: u32,
}

impl Fixture {
    fn new(on: Transport) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("v")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let programs = Programs {
            folder: folder.path().into(),
            listener,
        };
        let device = Vsock::new(CID, Box::new(programs)).unwrap();
        let mut fixture = Self {
            guest: TestGuest::new(on, device),
            folder,
            rings: Vec::new(),
            buffers: Vec::new(),
            outgoing: Buffer {
                address: 0,
                len: 0,
                writable: false,
            },
            fwd_cnt: 0,
        };
        fixture.start();
        fixture
    }

    fn start(&mut self) {
        self.rings = self.guest.start_queues(FEATURES, &[128, 128, 16]);
        self.buffers.clear();
        // The queues share one memory: 64 KiB for what the guest sends, the rest for what it receives.
        self.outgoing = self.rings[1].buffer(0x1_0000, false);
        self.rings[0].buffer(0x1_1000, false);
        self.fwd_cnt = 0;
    }

    fn add_buffers(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            let buffer = self.rings[0].buffer(len, true);
            self.rings[0].add(&[buffer]);
            self.buffers.push(buffer);
        }
        self.guest.notify(0);
    }

    /// Sends a packet of `header` and `data`.
    fn send(&mut self, header: &Header, data: &[u8]) {
        let packet = [&header.bytes()[..], data].concat();
        let memory = &self.rings[1].memory;
        vm_memory::Bytes::write_slice(
            &**memory,
            &packet,
            vm_memory::GuestAddress(self.outgoing.address),
        )
        .unwrap();
        let len = u32::try_from(packet.len()).unwrap();
        let head = self.rings[1].add(&[Buffer {
            len,
            ..self.outgoing
        }]);
        self.guest.notify(1);
        if let Some(used) = self.rings[1].used() {
            assert_eq!(used, (head, 0));
        }
    }

    fn header(&self, ports: Ports, operation: Operation) -> Header {
        Header {
            source_cid: CID,
            destination_cid: HOST_CID,
            source_port: ports.guest,
            destination_port: ports.host,
            len: 0,
            kind: STREAM,
            operation: Some(operation),
            flags: 0,
            buf_alloc: ROOM,
            fwd_cnt: self.fwd_cnt,
        }
    }

    fn say(&mut self, ports: Ports, operation: Operation) {
        let header = self.header(ports, operation);
        self.send(&header, &[]);
    }

    fn write(&mut self, ports: Ports, data: &[u8]) {
        let header = Header {
            len: u32::try_from(data.len()).unwrap(),
            ..self.header(ports, Operation::ReadWrite)
        };
        self.send(&header, data);
    }

    fn shut_down(&mut self, ports: Ports, flags: u32) {
        let header = Header {
            flags,
            ..self.header(ports, Operation::Shutdown)
        };
        self.send(&header, &[]);
    }

    /// The next packet the guest gets.
    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        self.guest.run();
        let (_, len) = self.rings[0].used()?;
        let packet = self.rings[0].contents(self.buffers.remove(0));
        let (header, data) = packet[..len as usize].split_at(HEADER_LEN);
        let header = Header::parse(header.try_into().unwrap());
        assert_eq!((header.source_cid, header.destination_cid), (HOST_CID, CID));
        assert_eq!(header.len as usize, data.len());
        Some((header, data.to_vec()))
    }

    fn expect(&mut self, ports: Ports, operation: Operation) -> Header {
        let (header, _) = self.next().expect("a packet");
        assert_eq!(header.operation, Some(operation), "{header:?}");
        let found = Ports {
            guest: header.destination_port,
            host: header.source_port,
        };
        assert_eq!(found, ports);
        header
    }

    /// A program that listens on `port`.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.folder.path().join(port.to_string())).unwrap()
    }

    /// A stream from the guest's `port` to a program.
    fn open(&mut self, program: &UnixListener, ports: Ports) -> UnixStream {
        self.say(ports, Operation::Request);
        self.expect(ports, Operation::Response);
        let (stream, _) = program.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// A program's end of a stream to come.
    fn come(&self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder.path().join("v")).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    fn lives(&mut self) {
        assert_eq!(self.guest.status() & NEEDS_RESET, 0);
        self.guest.run();
        assert_eq!(self.guest.run(), 0, "the device sleeps");
    }
}

fn at_end(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

const PORTS: Ports = Ports {
    guest: 1024,
    host: 5000,
};

#[test]
fn guest_reaches_a_program_and_both_talk() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on);
        f.add_buffers(16, 200);
        let program = f.listen(PORTS.host);
        let mut stream = f.open(&program, PORTS);
        f.write(PORTS, b"to the host");
        let mut text = [0; 11];
        stream.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"to the host");
        stream.write_all(b"to the guest").unwrap();
        let (header, data) = f.next().unwrap();
        assert_eq!(header.operation, Some(Operation::ReadWrite));
        assert_eq!((header.buf_alloc, header.fwd_cnt), (BUF_ALLOC, 11));
        assert_eq!(data, b"to the guest");

        // The program is done, then the guest.
        drop(stream);
        assert_eq!(
            f.expect(PORTS, Operation::Shutdown).flags,
            NO_SEND | NO_RECEIVE
        );
        f.say(PORTS, Operation::Reset);
        assert_eq!(f.next(), None);
        f.write(PORTS, b"x");
        f.expect(PORTS, Operation::Reset);
        f.lives();
    }
}

#[test]
fn program_reaches_the_guest_by_the_line_and_gets_the_answer() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on);
        f.add_buffers(16, 200);
        // What comes after the line is for the guest, and waits until it has accepted.
        let mut stream = f.come("CONNECT 77\nearly");
        let (request, _) = f.next().unwrap();
        assert_eq!(request.operation, Some(Operation::Request));
        assert_eq!(request.destination_port, 77);
        assert_eq!(f.next(), None);
        assert_eq!(
            stream.read(&mut [0]).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        let ports = Ports {
            guest: 77,
            host: request.source_port,
        };
        f.say(ports, Operation::Response);
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", ports.host));
        assert_eq!(f.next().unwrap().1, b"early");
        f.write(ports, b"hello");
        let mut text = [0; 5];
        stream.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
        f.shut_down(ports, NO_SEND | NO_RECEIVE);
        f.expect(ports, Operation::Reset);
        assert!(at_end(&mut stream));
        f.lives();
    }
}

#[test]
fn programs_that_want_nonsense_or_nobody_are_turned_away() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on);
        f.add_buffers(16, 200);
        for line in [
            "CONNECT\n",
            "CONNECT x\n",
            "CONNECT 4294967296\n",
            "GET / HTTP/1.1\r\n",
            "CONNECT 00000000000000000001\n",
            "\n",
        ] {
            let mut stream = f.come(line);
            assert_eq!(f.next(), None, "{line}");
            assert!(at_end(&mut stream), "{line}");
        }
        // Nobody listens in the guest.
        let mut stream = f.come("CONNECT 9\n");
        let (request, _) = f.next().unwrap();
        let ports = Ports {
            guest: 9,
            host: request.source_port,
        };
        f.say(ports, Operation::Reset);
        assert!(at_end(&mut stream));
        // There is no guest.
        f.guest.reset();
        let mut stream = f.come("CONNECT 9\n");
        f.guest.run();
        assert!(at_end(&mut stream));
    }
}

#[test]
fn guest_that_wants_nobody_or_nonsense_is_refused() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on);
        f.add_buffers(32, 200);
        f.say(PORTS, Operation::Request);
        f.expect(PORTS, Operation::Reset);
        for operation in [
            Operation::Response,
            Operation::ReadWrite,
            Operation::Shutdown,
            Operation::CreditRequest,
        ] {
            f.say(PORTS, operation);
            f.expect(PORTS, Operation::Reset);
        }
        let seqpacket = Header {
            kind: 2,
            ..f.header(PORTS, Operation::Request)
        };
        f.send(&seqpacket, &[]);
        assert_eq!(f.expect(PORTS, Operation::Reset).kind, 2);
        // No answer goes to an answer, nor to a stranger.
        f.say(PORTS, Operation::Reset);
        for (source_cid, destination_cid) in [(CID + 1, HOST_CID), (CID, 0), (CID, u64::MAX)] {
            let stranger = Header {
                source_cid,
                destination_cid,
                ..f.header(PORTS, Operation::Request)
            };
            f.send(&stranger, &[]);
        }
        assert_eq!(f.next(), None);
        f.lives();
    }
}

/// A header that is not true, and how many bytes come after it.
type Lie = fn(&Fixture) -> (Header, usize);

#[test]
fn lies_about_length_credit_and_state_end_the_stream_and_no_other() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on);
        f.add_buffers(64, 200);
        let program = f.listen(PORTS.host);
        let good = Ports {
            guest: 1,
            host: PORTS.host,
        };
        let mut other = f.open(&program, good);
        let lies: [Lie; 5] = [
            // Longer than the packet.
            |f| {
                let mut header = f.header(PORTS, Operation::ReadWrite);
                header.len = u32::MAX;
                (header, 10)
            },
            |f| (f.header(PORTS, Operation::Request), 0),
            |f| (f.header(PORTS, Operation::Response), 0),
            |f| {
                let mut header = f.header(PORTS, Operation::ReadWrite);
                header.operation = None;
                (header, 0)
            },
            |f| {
                let mut header = f.header(PORTS, Operation::ReadWrite);
                header.kind = 7;
                (header, 0)
            },
        ];
        for lie in lies {
            let mut stream = f.open(&program, PORTS);
            let (header, len) = lie(&f);
            f.send(&header, &vec![0; len]);
            f.expect(PORTS, Operation::Reset);
            assert!(at_end(&mut stream));
        }
        f.write(good, b"still here");
        let mut text = [0; 10];
        other.read_exact(&mut text).unwrap();
        f.lives();
    }
}

#[test]
fn full_program_holds_the_guest_up_within_its_credit_and_loses_nothing() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on);
        f.add_buffers(100, 100);
        let program = f.listen(PORTS.host);
        let mut stream = f.open(&program, PORTS);
        // The guest sends as long as it has credit, and nobody reads.
        let (mut sent, mut known) = (0_u32, 0_u32);
        let chunk: Vec<u8> = (0..8000_u32).map(|i| i.to_le_bytes()[0]).collect();
        while sent + 8000 - known <= BUF_ALLOC {
            f.write(PORTS, &chunk);
            sent += 8000;
            while let Some((header, _)) = f.next() {
                assert_eq!(header.operation, Some(Operation::CreditUpdate));
                known = header.fwd_cnt;
            }
        }
        assert!(known < sent, "something is held back");
        // Who goes on without credit is cut off, whatever lies in between.
        let mut text = Vec::new();
        let mut part = [0; 5000];
        loop {
            match stream.read(&mut part) {
                Ok(len) => text.extend_from_slice(&part[..len]),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    if text.len() == sent as usize {
                        break;
                    }
                    f.guest.run();
                }
            }
        }
        assert!(text.chunks(8000).all(|part| part == chunk));
        let mut last = known;
        while let Some((header, _)) = f.next() {
            last = header.fwd_cnt;
        }
        assert!(sent - last < BUF_ALLOC / 2, "the guest knows it may go on");
        f.lives();
    }
}

#[test]
fn sending_without_credit_ends_the_stream() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on);
        f.add_buffers(100, 100);
        let program = f.listen(PORTS.host);
        let mut stream = f.open(&program, PORTS);
        let mut ended = false;
        for _ in 0..200 {
            f.write(PORTS, &[1; 8000]);
            while let Some((header, _)) = f.next() {
                ended |= header.operation == Some(Operation::Reset);
            }
            if ended {
                break;
            }
        }
        assert!(ended, "a stream nobody reads cannot be written for ever");
        while let Ok(1..) = stream.read(&mut [0; 5000]) {}
        assert!(at_end(&mut stream));
        f.lives();
    }
}

#[test]
fn guest_without_room_gets_nothing_until_it_has_some() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on);
        f.add_buffers(30, 300);
        let program = f.listen(PORTS.host);
        let mut stream = f.open(&program, PORTS);
        stream.write_all(&[7; 2500]).unwrap();
        let mut received = 0;
        while let Some((_, data)) = f.next() {
            received += data.len();
        }
        assert_eq!(received, ROOM as usize);
        f.lives();
        f.fwd_cnt = ROOM;
        f.say(PORTS, Operation::CreditUpdate);
        while let Some((_, data)) = f.next() {
            received += data.len();
        }
        assert_eq!(received, 2 * ROOM as usize);
        // A guest that says it has read what was never sent has no room.
        f.fwd_cnt = 3_000_000_000;
        f.say(PORTS, Operation::CreditUpdate);
        assert_eq!(f.next(), None);
        f.lives();
    }
}

#[test]
fn half_closed_streams_carry_on_the_other_way() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on);
        f.add_buffers(30, 300);
        let program = f.listen(PORTS.host);
        let mut stream = f.open(&program, PORTS);
        f.write(PORTS, b"last words");
        f.shut_down(PORTS, NO_SEND);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "last words");
        stream.write_all(b"answer").unwrap();
        assert_eq!(f.next().unwrap().1, b"answer");
        stream.shutdown(Shutdown::Write).unwrap();
        let shutdown = f.expect(PORTS, Operation::Shutdown);
        assert_ne!(shutdown.flags & NO_SEND, 0);
        f.shut_down(PORTS, NO_RECEIVE);
        f.expect(PORTS, Operation::Reset);
        f.lives();
    }
}

#[test]
fn there_are_only_so_many_streams_and_places_are_used_again() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on);
        f.add_buffers(16, 64);
        let streams: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|_| {
                let stream = f.come("");
                f.guest.run();
                stream
            })
            .collect();
        let mut one_more = f.come("CONNECT 1\n");
        f.guest.run();
        assert!(at_end(&mut one_more));
        drop(streams);
        f.guest.run();
        f.come("CONNECT 1\n");
        assert_eq!(f.next().unwrap().0.operation, Some(Operation::Request));
    }
}

#[test]
fn guest_that_takes_no_answers_is_not_listened_to_until_it_does() {
    for &on in Transport::ALL {
        let mut f = Fixture::new(on);
        for _ in 0..100 {
            f.say(PORTS, Operation::ReadWrite);
        }
        f.lives();
        // Rings of 128 hold what was sent; answers to all of it come when there is room.
        let mut answers = 0;
        for _ in 0..10 {
            f.add_buffers(20, 64);
            while f.next().is_some() {
                answers += 1;
            }
        }
        assert_eq!(answers, 100);
        f.lives();
    }
}

#[test]
fn resumed_guest_is_told_that_its_streams_are_gone_and_finds_its_address() {
    for (&on, after) in Transport::ALL
        .iter()
        .flat_map(|on| [(on, CID), (on, CID + 1)])
    {
        let folder = tempfile::tempdir().unwrap();
        let device = |name: &str, cid| {
            let listener = UnixListener::bind(folder.path().join(name)).unwrap();
            let programs = Programs {
                folder: folder.path().into(),
                listener,
            };
            Vsock::new(cid, Box::new(programs)).unwrap()
        };
        let mut guest = TestGuest::new(on, device("a", CID));
        let mut rings = guest.start_queues(FEATURES, &[16, 16, 16]);
        let text = guest.save().unwrap();
        guest.replace(device("b", after), &text).unwrap();
        assert_eq!(guest.config_u64(0), after);
        for expected in [Some(4), None] {
            let buffer = rings[2].buffer(4, true);
            rings[2].add(&[buffer]);
            guest.notify(2);
            assert_eq!(rings[2].used().map(|(_, len)| len), expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a guest says, the device neither dies nor spins nor reaches beyond its bounds, and serves who comes then.
    #[test]
    fn hostile_packets_do_no_harm(
        packets in prop::collection::vec(
            (any::<[u8; HEADER_LEN]>(), 0_u8..6, 0_u16..9, 0_u32..3, prop_oneof![Just(0_u32), 1_u32..3000, any::<u32>()], 0_usize..2000),
            1..60,
        ),
        // Shorter than a header, in pieces, or with something to write in it.
        layouts in prop::collection::vec((1_u32..100, any::<bool>()), 1..20),
    ) {
        for &on in Transport::ALL {
            let mut f = Fixture::new(on);
            f.add_buffers(20, 500);
            let program = f.listen(1);
            program.set_nonblocking(true).unwrap();
            let mut streams = Vec::new();
            for (bytes, alike, operation, port, len, data) in &packets {
                let mut header = Header::parse(bytes);
                // Mostly right, so that they come far.
                if *alike > 0 {
                    header.source_cid = CID;
                    header.destination_cid = HOST_CID;
                    header.kind = STREAM;
                    header.source_port = *port;
                    header.destination_port = 1;
                    header.len = if *alike > 3 { u32::try_from(*data).unwrap() } else { *len };
                }
                let mut bytes = header.bytes();
                bytes[30..32].copy_from_slice(&operation.to_le_bytes());
                let header = Header::parse(&bytes);
                f.send(&header, &vec![1; *data]);
                streams.extend(program.accept().map(|(stream, _)| stream));
                for stream in &mut streams {
                    let _ = stream.write(b"something");
                }
                while f.next().is_some() {}
                if f.buffers.len() < 5 {
                    f.start();
                    f.add_buffers(20, 500);
                }
            }
            for &(len, writable) in &layouts {
                let buffer = f.rings[1].buffer(len, writable);
                f.rings[1].add(&[buffer]);
                f.guest.notify(1);
            }
            f.guest.run();
            drop((program, streams));
            f.start();
            f.add_buffers(20, 500);
            let program = f.listen(2);
            let ports = Ports { guest: 1, host: 2 };
            f.open(&program, ports);
        }
    }
}
