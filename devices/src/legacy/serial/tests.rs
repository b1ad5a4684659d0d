use std::io::{PipeWriter, Seek, SeekFrom, pipe};
use std::os::fd::OwnedFd;

use event_manager::{EventManager, SubscriberOps};
use proptest::prelude::*;

use super::*;

const IER: u64 = 1;
const LSR: u64 = 5;
const SCRATCH: u64 = 7;
const DATA_READY: u8 = 0x01;
const LOOPBACK: u8 = 0x10;
/// What the guest's FIFO holds beside the host's buffer.
const FIFO: usize = 64;

/// Output a test can look at.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn port() -> (Arc<Mutex<Serial>>, EventFd, Screen) {
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    let screen = Screen::default();
    let interrupt = Arc::new(line.try_clone().unwrap());
    let serial = Serial::new(interrupt, Box::new(screen.clone())).unwrap();
    (Arc::new(Mutex::new(serial)), line, screen)
}

fn read(serial: &Mutex<Serial>, offset: u64) -> u8 {
    let mut byte = [0];
    serial.lock().unwrap().read(offset, &mut byte);
    byte[0]
}

/// All that the guest can read now.
fn drain(serial: &Mutex<Serial>) -> Vec<u8> {
    std::iter::from_fn(|| (read(serial, LSR) & DATA_READY != 0).then(|| read(serial, 0))).collect()
}

fn numbered(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251).to_le_bytes()[0]).collect()
}

#[test]
fn output_appears_byte_by_byte() {
    let (serial, _, screen) = port();
    for byte in b"login: " {
        serial.lock().unwrap().write(0, &[*byte]);
    }
    assert_eq!(*screen.0.lock().unwrap(), b"login: ");
}

#[test]
fn input_raises_the_interrupt_the_guest_enabled() {
    let (serial, line, _) = port();
    serial.lock().unwrap().write(IER, &[1]);
    assert_eq!(serial.lock().unwrap().input(b"hi"), 2);
    assert_eq!(line.read().unwrap(), 1);
    assert_eq!(drain(&serial), b"hi");
}

#[test]
fn input_is_bounded_and_keeps_its_order() {
    let (serial, _, _) = port();
    let input = numbered(2 * INPUT_CAPACITY);
    let mut taken = 0;
    loop {
        match serial.lock().unwrap().input(&input[taken..]) {
            0 => break,
            more => taken += more,
        }
    }
    assert_eq!(taken, INPUT_CAPACITY + FIFO);
    assert_eq!(serial.lock().unwrap().input_room(), 0);
    assert_eq!(drain(&serial), input[..taken]);
    assert_eq!(serial.lock().unwrap().drained.read().unwrap(), 1);
    assert_eq!(serial.lock().unwrap().input_room(), INPUT_CAPACITY);
}

#[test]
fn input_during_loopback_waits_for_its_end() {
    let (serial, _, _) = port();
    serial
        .lock()
        .unwrap()
        .write(u64::from(MODEM_CONTROL), &[LOOPBACK]);
    assert_eq!(serial.lock().unwrap().input(b"abc"), 3);
    assert_eq!(drain(&serial), b"");
    serial.lock().unwrap().write(u64::from(MODEM_CONTROL), &[0]);
    assert_eq!(drain(&serial), b"abc");
}

#[test]
fn registers_are_one_byte_wide() {
    let (serial, _, screen) = port();
    serial.lock().unwrap().write(0, b"xy");
    serial.lock().unwrap().write(SCRATCH, &[0x5a]);
    let mut wide = [0; 2];
    serial.lock().unwrap().read(SCRATCH, &mut wide);
    assert_eq!((wide, read(&serial, SCRATCH)), ([0xff; 2], 0x5a));
    assert!(screen.0.lock().unwrap().is_empty());
}

struct Fed {
    serial: Arc<Mutex<Serial>>,
    events: EventManager<SerialInput>,
}

impl Fed {
    fn from(source: File) -> Self {
        let (serial, _, _) = port();
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(SerialInput::new(serial.clone(), source).unwrap());
        Self { serial, events }
    }

    fn by_pipe() -> (Self, PipeWriter) {
        let (reader, writer) = pipe().unwrap();
        (Self::from(File::from(OwnedFd::from(reader))), writer)
    }

    /// Handles events until there are none, and returns how often it woke.
    fn run(&mut self) -> u32 {
        let mut wakes = 0;
        while self.events.run_with_timeout(0).unwrap() > 0 {
            wakes += 1;
            assert!(wakes < 1000, "busy loop");
        }
        wakes
    }
}

#[test]
fn pipe_feeds_the_port() {
    let (mut fed, mut writer) = Fed::by_pipe();
    fed.run();
    writer.write_all(b"root\n").unwrap();
    fed.run();
    assert_eq!(drain(&fed.serial), b"root\n");
    writer.write_all(b"ls\n").unwrap();
    fed.run();
    assert_eq!(drain(&fed.serial), b"ls\n");
}

#[test]
fn source_is_left_alone_while_the_guest_does_not_read() {
    let (mut fed, mut writer) = Fed::by_pipe();
    let input = numbered(5 * INPUT_CAPACITY);
    writer.write_all(&input).unwrap();
    assert!(fed.run() <= 4);
    assert_eq!(fed.run(), 0, "asleep, though the pipe is readable");

    let mut got = Vec::new();
    while got.len() < input.len() {
        let part = drain(&fed.serial);
        assert!(!part.is_empty() && part.len() <= INPUT_CAPACITY + FIFO);
        got.extend(part);
        fed.run();
    }
    assert_eq!(got, input);
}

#[test]
fn end_of_the_source_is_not_a_busy_loop() {
    let (mut fed, mut writer) = Fed::by_pipe();
    writer.write_all(b"bye").unwrap();
    drop(writer);
    fed.run();
    assert_eq!(fed.run(), 0);
    assert_eq!(drain(&fed.serial), b"bye");
}

#[test]
fn regular_file_is_read_to_its_end_as_the_guest_drains_it() {
    let input = numbered(3 * INPUT_CAPACITY + 17);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&input).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut fed = Fed::from(file);
    let mut got = Vec::new();
    while got.len() < input.len() {
        let part = drain(&fed.serial);
        assert!(!part.is_empty());
        got.extend(part);
        fed.run();
    }
    assert_eq!(got, input);
}

#[test]
fn empty_source_is_no_trouble() {
    let mut fed = Fed::from(File::open("/dev/null").unwrap());
    assert_eq!(fed.run(), 0);
    assert_eq!(drain(&fed.serial), b"");
}

proptest! {
    #[test]
    fn any_accesses_are_harmless(
        accesses in proptest::collection::vec(
            (0..16_u64, any::<u64>(), 1..=8_usize, any::<bool>()), 0..100),
        input in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let (serial, _, _) = port();
        for (offset, value, len, write) in accesses {
            let mut data = value.to_le_bytes();
            let mut serial = serial.lock().unwrap();
            if write {
                serial.write(offset, &data[..len]);
            } else {
                serial.read(offset, &mut data[..len]);
            }
            serial.input(&input);
            prop_assert!(serial.waiting.len() <= INPUT_CAPACITY);
        }
    }
}

#[test]
fn a_port_goes_on_with_its_registers_and_the_input_that_nobody_has_read() {
    let (serial, _, _) = port();
    let mut port_before = serial.lock().unwrap();
    port_before.write(SCRATCH, &[0x5a]);
    port_before.write(IER, &[1]);
    let text: Vec<u8> = (0..200).collect();
    assert_eq!(port_before.input(&text), 200);
    let state = port_before.state();
    assert_eq!(state.received.len() + state.waiting.len(), 200);
    let json = serde_json::to_string(&state).unwrap();

    let (serial, line, _) = port();
    let screen = Screen::default();
    let state = serde_json::from_str(&json).unwrap();
    let restored = serial
        .lock()
        .unwrap()
        .restore(&state, Box::new(screen.clone()));
    restored.unwrap();
    assert!(
        line.read().is_ok(),
        "interrupted again for what it has not read"
    );
    assert_eq!(read(&serial, SCRATCH), 0x5a);
    assert_eq!(drain(&serial), text);
    serial.lock().unwrap().write(0, b"!");
    assert_eq!(*screen.0.lock().unwrap(), b"!");

    for (received, waiting) in [(FIFO + 1, 0), (0, INPUT_CAPACITY + 1)] {
        let bad = SerialState {
            received: vec![0; received],
            waiting: vec![0; waiting],
            ..SerialState::default()
        };
        let restored = serial
            .lock()
            .unwrap()
            .restore(&bad, Box::new(Screen::default()));
        assert!(restored.is_err(), "{received} {waiting}");
    }
}
