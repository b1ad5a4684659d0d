use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use tempfile::TempDir;

use super::*;
use crate::virtio::queue::RING_FEATURES;
use crate::virtio::testing::{Buffer, GuestRing, TestGuest, Transport};

const SIZE: u16 = 16;

impl Callers for UnixListener {
    fn accept(&mut self) -> io::Result<UnixStream> {
        let (peer, _) = UnixListener::accept(self)?;
        peer.set_nonblocking(true)?;
        Ok(peer)
    }
}

/// A guest with a terminal on two pipes, and one named port on a socket.
struct World {
    guest: TestGuest,
    rings: Vec<GuestRing>,
    /// Buffers that the device has, for each queue.
    offered: [VecDeque<Buffer>; 6],
    keyboard: PipeWriter,
    screen: PipeReader,
    folder: TempDir,
    resizer: Resizer,
}

const TERMINAL_IN: usize = 0;
const TERMINAL_OUT: usize = 1;
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;
const DATA_IN: usize = 4;
const DATA_OUT: usize = 5;

/// A console at new pipes and at a new socket in `folder`, and the pipes' other ends.
fn console(folder: &TempDir) -> (Console, PipeWriter, PipeReader) {
    let (input, keyboard) = pipe().unwrap();
    let (screen, output) = pipe().unwrap();
    let listener = UnixListener::bind(folder.path().join("data")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let terminal = Host::Streams {
        input: File::from(OwnedFd::from(input)),
        output: Box::new(output),
    };
    let spec = |name: &str, console, host| PortSpec {
        name: name.into(),
        console,
        host,
    };
    let console = Console::new(vec![
        spec("terminal", true, terminal),
        spec("data", false, Host::Socket(Box::new(listener))),
    ]);
    (console.unwrap(), keyboard, screen)
}

impl World {
    fn new(on: Transport, features: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (console, keyboard, screen) = console(&folder);
        let resizer = console.resizer();
        let mut guest = TestGuest::new(on, console);
        let queues = if features & F_MULTIPORT != 0 { 6 } else { 2 };
        let rings = guest.start_queues(RING_FEATURES | features, &vec![SIZE; queues]);
        Self {
            guest,
            rings,
            offered: Default::default(),
            keyboard,
            screen,
            folder,
            resizer,
        }
    }

    /// A multi-port guest that has greeted the device and opened both ports.
    fn open(on: Transport) -> Self {
        let mut world = Self::new(on, F_SIZE | F_MULTIPORT | F_EMERG_WRITE);
        world.tell(u32::MAX, DEVICE_READY, 1);
        for port in [0, 1] {
            world.tell(port, PORT_READY, 1);
            world.tell(port, PORT_OPEN, 1);
        }
        world.heard();
        world
    }

    fn tell(&mut self, port: u32, event: u16, value: u16) {
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        self.print(CONTROL_OUT, &bytes);
    }

    /// Sends `bytes` by a queue.
    fn print(&mut self, queue: usize, bytes: &[u8]) {
        let buffer = self.rings[queue].data(bytes);
        self.rings[queue].add(&[buffer]);
        self.guest.notify(u16::try_from(queue).unwrap());
    }

    /// What comes out of a queue when the device has `count` buffers of `len` bytes.
    fn receive(&mut self, queue: usize, count: usize, len: u32) -> Vec<Vec<u8>> {
        let (ring, offered) = (&mut self.rings[queue], &mut self.offered[queue]);
        while offered.len() < count {
            let buffer = ring.buffer(len, true);
            ring.add(&[buffer]);
            offered.push_back(buffer);
        }
        self.guest.notify(u16::try_from(queue).unwrap());
        let ring = &mut self.rings[queue];
        let mut got = Vec::new();
        while let Some((_, written)) = ring.used() {
            let buffer = self.offered[queue].pop_front().unwrap();
            got.push(ring.contents(buffer)[..written as usize].to_vec());
        }
        if self.offered[queue].is_empty() {
            ring.reuse_buffers();
        }
        got
    }

    /// All control messages that wait: port, event, value and what follows.
    fn heard(&mut self) -> Vec<(u32, u16, u16, Vec<u8>)> {
        let messages = self.receive(CONTROL_IN, 12, 64);
        let parse = |bytes: Vec<u8>| {
            let message = Message {
                port: u32::from_le_bytes(bytes[..4].try_into().unwrap()),
                event: u16::from_le_bytes(bytes[4..6].try_into().unwrap()),
                value: u16::from_le_bytes(bytes[6..8].try_into().unwrap()),
            };
            (
                message.port,
                message.event,
                message.value,
                bytes[8..].to_vec(),
            )
        };
        messages.into_iter().map(parse).collect()
    }

    fn on_screen(&mut self, len: usize) -> Vec<u8> {
        let mut seen = vec![0; len];
        self.screen.read_exact(&mut seen).unwrap();
        seen
    }

    fn connect(&mut self) -> UnixStream {
        let peer = UnixStream::connect(self.folder.path().join("data")).unwrap();
        peer.set_nonblocking(true).unwrap();
        self.guest.run();
        peer
    }
}

fn would_block<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn a_driver_without_ports_gets_the_terminal() {
    for &on in Transport::ALL {
        let mut world = World::new(on, F_SIZE);
        world.print(TERMINAL_OUT, b"login: ");
        assert_eq!(world.on_screen(7), b"login: ");
        world.keyboard.write_all(b"root\n").unwrap();
        world.guest.run();
        assert_eq!(world.receive(TERMINAL_IN, 1, 64), [b"root\n"]);
    }
}

#[test]
fn ports_are_introduced_by_name() {
    for &on in Transport::ALL {
        let mut world = World::new(on, F_MULTIPORT);
        world.tell(u32::MAX, DEVICE_READY, 1);
        assert_eq!(
            world.heard(),
            [(0, PORT_ADD, 0, vec![]), (1, PORT_ADD, 0, vec![])]
        );
        let mut world = World::new(on, F_MULTIPORT);
        world.tell(0, PORT_READY, 1);
        world.tell(1, PORT_READY, 1);
        let expected = [
            (0, CONSOLE_PORT, 1, vec![]),
            (0, PORT_NAME, 0, b"terminal\0".to_vec()),
            (0, PORT_OPEN, 1, vec![]),
            (1, PORT_NAME, 0, b"data\0".to_vec()),
            (1, PORT_OPEN, 0, vec![]),
        ];
        assert_eq!(world.heard(), expected);
        assert_eq!(world.guest.config_u32(4), 2);
    }
}

#[test]
fn a_named_port_carries_bytes_both_ways_and_says_who_is_there() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        let mut peer = world.connect();
        assert_eq!(world.heard(), [(1, PORT_OPEN, 1, vec![])]);
        world.print(DATA_OUT, b"to the host");
        let mut got = [0; 11];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"to the host");
        peer.write_all(b"to the guest").unwrap();
        world.guest.run();
        assert_eq!(world.receive(DATA_IN, 2, 8), [&b"to the g"[..], b"uest"]);

        let second = world.connect();
        assert_eq!((&second).read(&mut got).unwrap(), 0, "turned away");
        drop(peer);
        world.guest.run();
        assert_eq!(world.heard(), [(1, PORT_OPEN, 0, vec![])]);
        world.print(DATA_OUT, b"into the void");
        assert!(world.rings[DATA_OUT].used().is_some());
        let _third = world.connect();
        assert_eq!(world.heard(), [(1, PORT_OPEN, 1, vec![])]);
    }
}

#[test]
fn a_peer_that_hangs_up_unread_makes_way_for_the_next() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        for _ in 0..3 {
            let mut peer = world.connect();
            peer.write_all(&[1; 10_000]).unwrap();
            world.guest.run();
            drop(peer);
            world.guest.run();
            assert_eq!(
                world.guest.run(),
                0,
                "asleep though the dead peer has said more"
            );
        }
        let mut last = world.connect();
        last.write_all(b"still here").unwrap();
        world.guest.run();
        let told: Vec<_> = world.heard().iter().map(|told| (told.1, told.2)).collect();
        let (open, closed) = ((PORT_OPEN, 1), (PORT_OPEN, 0));
        assert_eq!(told, [open, closed, open, closed, open, closed, open]);
        let bytes = world.receive(DATA_IN, 8, 2048).concat();
        assert!(bytes.ends_with(b"still here"), "{}", bytes.len());
    }
}

#[test]
fn the_last_words_of_a_peer_reach_a_slow_guest_before_it_is_told() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        let mut peer = world.connect();
        assert_eq!(world.heard(), [(1, PORT_OPEN, 1, vec![])]);
        peer.write_all(&[1; 10_000]).unwrap();
        world.guest.run();
        drop(peer);
        world.guest.run();
        assert!(world.heard().is_empty());
        let mut got = 0;
        while got < 10_000 {
            let parts = world.receive(DATA_IN, 2, 1000);
            assert!(!parts.is_empty(), "{got}");
            got += parts.iter().map(Vec::len).sum::<usize>();
        }
        assert_eq!(world.heard(), [(1, PORT_OPEN, 0, vec![])]);
    }
}

#[test]
fn an_error_of_one_port_leaves_the_others_input() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        let mut peer = world.connect();
        // A buffer outside the memory, found when the terminal is worked on; both have input by then.
        let ring = &mut world.rings[TERMINAL_IN];
        ring.descriptor(0, 1 << 40, 64, 2, 0);
        ring.offer(0);
        ring.publish();
        world.keyboard.write_all(b"lost").unwrap();
        peer.write_all(b"kept").unwrap();
        world.guest.run();
        assert_ne!(world.guest.status() & 0x40, 0, "needs a reset");
        let sizes = [SIZE; 6];
        world.rings = world
            .guest
            .start_queues(RING_FEATURES | F_MULTIPORT, &sizes);
        world.offered = Default::default();
        world.tell(1, PORT_OPEN, 1);
        assert_eq!(world.receive(DATA_IN, 1, 64), [b"kept"]);
    }
}

#[test]
fn each_of_many_requests_is_seen_by_a_driver_that_rings_when_asked() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        let mut peer = world.connect();
        for round in 0..100_u8 {
            world.print(TERMINAL_OUT, &[round]);
            assert_eq!(world.on_screen(1), [round]);
            world.keyboard.write_all(&[round]).unwrap();
            world.guest.run();
            assert_eq!(world.receive(TERMINAL_IN, 1, 8), [[round]]);
            peer.write_all(&[round]).unwrap();
            world.guest.run();
            assert_eq!(world.receive(DATA_IN, 1, 8), [[round]]);
            world.rings[TERMINAL_OUT].reuse_buffers();
        }
    }
}

#[test]
fn a_guest_that_does_not_read_leaves_its_peer_alone() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        let mut peer = world.connect();
        let mut sent = 0;
        while let Ok(more) = peer.write(&[7; 4096]) {
            sent += more;
            world.guest.run();
        }
        assert_eq!(world.guest.run(), 0, "asleep though there is more to read");
        let mut got = 0;
        while got < sent {
            let parts = world.receive(DATA_IN, 8, 2048);
            assert!(!parts.is_empty(), "{got} of {sent}");
            got += parts.iter().map(Vec::len).sum::<usize>();
        }
        assert_eq!(got, sent);
    }
}

#[test]
fn a_peer_that_does_not_read_holds_back_its_guest_and_loses_nothing() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        let mut peer = world.connect();
        let mut sent = 0;
        loop {
            world.print(DATA_OUT, &[9; 2048]);
            sent += 2048;
            world.rings[DATA_OUT].reuse_buffers();
            if world.rings[DATA_OUT].used().is_none() {
                break;
            }
        }
        assert_eq!(world.guest.run(), 0, "asleep while the peer is full");
        let mut got = 0;
        let mut buffer = [0; 4096];
        while got < sent {
            match peer.read(&mut buffer) {
                Ok(length) => got += length,
                result => assert!(would_block(result)),
            }
            world.guest.run();
        }
        assert_eq!(got, sent);
        assert!(world.rings[DATA_OUT].used().is_some());
    }
}

#[test]
fn output_that_a_slow_peer_has_half_taken_is_neither_lost_nor_said_twice_by_being_saved() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        let mut peer = world.connect();
        let mut sent = Vec::new();
        for number in 0.. {
            // Longer than what the device reads at a time.
            let text: Vec<_> = (0..9000_u32)
                .map(|at| (at / 7 + number).to_le_bytes()[0])
                .collect();
            world.print(DATA_OUT, &text);
            sent.extend(text);
            world.rings[DATA_OUT].reuse_buffers();
            if world.rings[DATA_OUT].used().is_none() {
                break;
            }
        }
        let mut got = Vec::<u8>::new();
        let mut buffer = [0; 1000];
        while got.len() < sent.len() {
            world.guest.save().unwrap();
            match peer.read(&mut buffer) {
                Ok(length) => got.extend(&buffer[..length]),
                result => assert!(would_block(result)),
            }
            world.guest.run();
        }
        assert!(got == sent, "on {on:?}");
        assert!(world.rings[DATA_OUT].used().is_some());
    }
}

#[test]
fn a_console_goes_on_with_its_ports_open_and_tells_of_the_peer_that_is_gone() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        let mut peer = world.connect();
        assert_eq!(world.heard(), [(1, PORT_OPEN, 1, vec![])]);
        // What the guest has no buffers for, from both sides.
        world.resizer.resize(80, 25).unwrap();
        peer.write_all(b"before").unwrap();
        world.guest.run();
        let text = world.guest.save().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (device, keyboard, screen) = console(&folder);
        world.guest.replace(device, &text).unwrap();
        (world.keyboard, world.screen, world.folder) = (keyboard, screen, folder);
        drop(peer);
        world.guest.run();
        assert_eq!(world.guest.config_u16(0), 80);
        assert_eq!(world.receive(DATA_IN, 1, 64), [b"before"]);
        let heard = world.heard();
        assert!(
            heard.contains(&(0, RESIZE, 0, vec![80, 0, 25, 0])),
            "{heard:?}"
        );
        assert!(heard.contains(&(1, PORT_OPEN, 0, vec![])), "{heard:?}");
        let mut next = world.connect();
        assert_eq!(world.heard(), [(1, PORT_OPEN, 1, vec![])]);
        next.write_all(b"after").unwrap();
        world.guest.run();
        assert_eq!(world.receive(DATA_IN, 1, 64), [b"after"]);
        world.print(TERMINAL_OUT, b"on screen");
        assert_eq!(world.on_screen(9), b"on screen");
    }
}

#[test]
fn another_size_is_told_by_configuration_and_message() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        world.guest.acknowledge();
        world.resizer.resize(132, 43).unwrap();
        world.guest.run();
        assert_eq!(world.guest.acknowledge() & 2, 2);
        assert_eq!(
            (world.guest.config_u16(0), world.guest.config_u16(2)),
            (132, 43)
        );
        assert_eq!(world.heard(), [(0, RESIZE, 0, vec![132, 0, 43, 0])]);
        world.resizer.resize(132, 43).unwrap();
        world.guest.run();
        assert!(world.heard().is_empty());
    }
}

#[test]
fn an_emergency_byte_is_printed_without_queues() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        world.guest.write_config(8, &u32::from(b'!').to_le_bytes());
        assert_eq!(world.on_screen(1), b"!");
    }
}

#[test]
fn a_reset_forgets_the_driver_and_keeps_the_peers() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        let _peer = world.connect();
        world.guest.reset();
        world.rings = world
            .guest
            .start_queues(RING_FEATURES | F_MULTIPORT, &[SIZE; 6]);
        world.offered = Default::default();
        assert!(world.heard().is_empty());
        world.tell(1, PORT_READY, 1);
        let heard = world.heard();
        assert_eq!(heard[1], (1, PORT_OPEN, 1, vec![]), "{heard:?}");
    }
}

#[test]
fn nonsense_from_the_driver_is_harmless() {
    for &on in Transport::ALL {
        let mut world = World::open(on);
        for event in 0..10 {
            world.tell(u32::MAX, event, 7);
            world.tell(2, event, 1);
        }
        world.print(CONTROL_OUT, b"short");
        for _ in 0..600 {
            world.tell(0, DEVICE_READY, 1);
            world.rings[CONTROL_OUT].used();
            world.rings[CONTROL_OUT].reuse_buffers();
        }
        world.print(TERMINAL_OUT, b"alive");
        assert_eq!(world.on_screen(5), b"alive");
    }
}
