//! The other end of the live channel: takes snapshots of a VMM's guest and puts them together.
#![expect(unsafe_code, reason = "hands a descriptor to a child process")]

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use vmm::live::protocol::{
    Decoder, End, Failure, Kept, Memory, Message, Order, PAGE, ProtocolError, Report, Take,
};

use crate::client::Vmm;

/// The descriptor that the VMM finds its end at.
const STORE_FD: i32 = 3;
/// A test that fails does not hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// The store's end of the channel, and the snapshot that was last kept.
pub struct Store {
    pub socket: UnixStream,
    pub decoder: Decoder<Report>,
    pub image: Vec<u8>,
    pub number: u64,
    /// How long it takes for each frame of pages.
    pub pause: Duration,
}

/// A snapshot that is not kept yet.
#[derive(Debug)]
pub struct Taken {
    pub image: Vec<u8>,
    pub state: Vec<u8>,
    pub memory: Memory,
    pub end: End,
}

/// Gives the open descriptor `fd` the number that the child expects, and lets it live through `exec`.
fn place(fd: i32) -> io::Result<()> {
    let result = if fd == STORE_FD {
        // SAFETY: changes a flag of an open descriptor.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }
    } else {
        // SAFETY: in the child, nothing else uses the number yet that is written over.
        unsafe { libc::dup2(fd, STORE_FD) }
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Starts a VMM that has a store.
pub fn start(arguments: &[&str]) -> (Vmm, Store) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = crate::trace::vmm();
    command.args(["--store-fd", "3"]).args(arguments);
    let fd = theirs.as_raw_fd();
    // SAFETY: the closure makes one system call, which is safe after fork.
    unsafe { command.pre_exec(move || place(fd)) };
    let vmm = Vmm::spawn(command);
    drop(theirs);
    for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
        set(&ours, Some(PATIENCE)).unwrap();
    }
    let store = Store {
        socket: ours,
        decoder: Decoder::new(),
        image: Vec::new(),
        number: 0,
        pause: Duration::ZERO,
    };
    (vmm, store)
}

impl Store {
    pub fn say(&mut self, order: &Order) {
        self.socket.write_all(&order.encode()).unwrap();
    }

    pub fn receive(&mut self) -> Result<Option<Report>, ProtocolError> {
        self.decoder.receive(&mut self.socket)
    }

    pub fn hear(&mut self) -> Report {
        self.receive().unwrap().expect("the channel is open")
    }

    /// Asks for a snapshot.
    pub fn ask(&mut self, full: bool) -> u64 {
        self.number += 1;
        let number = self.number;
        self.say(&Order::Take(Take { number, full }));
        number
    }

    /// Takes a snapshot.
    pub fn take(&mut self, full: bool) -> Result<Taken, Failure> {
        let number = self.ask(full);
        self.finish(number)
    }

    /// Hears all of the snapshot `number` that it was asked for.
    pub fn finish(&mut self, number: u64) -> Result<Taken, Failure> {
        let memory = match self.hear() {
            Report::Memory(memory) => memory,
            Report::Failed(failure) => return Err(failure),
            other => panic!("{other:?}"),
        };
        assert_eq!(memory.number, number);
        let len = usize::try_from(memory.len).unwrap();
        let mut image = match memory.full {
            true => vec![0; len],
            false => self.image.clone(),
        };
        assert_eq!(image.len(), len);
        let (mut state, mut total, mut count, mut frozen) = (Vec::new(), 0, 0, false);
        loop {
            match self.hear() {
                Report::Pages(pages) => {
                    std::thread::sleep(self.pause);
                    let at = usize::try_from(pages.offset()).unwrap();
                    image[at..at + pages.bytes().len()].copy_from_slice(pages.bytes());
                    count += pages.bytes().len() / PAGE;
                    self.decoder.recycle(Report::Pages(pages));
                }
                Report::Freeze => {
                    assert!(!frozen, "frozen once");
                    frozen = true;
                    self.say(&Order::Frozen);
                }
                Report::State(part) => {
                    assert!(frozen, "the state is of the instant");
                    total = part.total();
                    state.extend(part.bytes());
                }
                Report::End(end) => {
                    assert_eq!((end.number, end.pages), (number, count as u64));
                    assert_eq!(state.len() as u64, total);
                    assert!(frozen && total > 0);
                    return Ok(Taken {
                        image,
                        state,
                        memory,
                        end,
                    });
                }
                Report::Failed(failure) => return Err(failure),
                Report::Memory(memory) => panic!("{memory:?}"),
            }
        }
    }

    /// Says that `taken` is durable.
    pub fn keep(&mut self, taken: &Taken) {
        let number = taken.memory.number;
        self.say(&Order::Kept(Kept { number }));
        self.image.clone_from(&taken.image);
    }

    /// Says that `taken` is lost.
    pub fn lose(&mut self, taken: &Taken) {
        let number = taken.memory.number;
        let reason = "for a test".into();
        self.say(&Order::Lost(Failure { number, reason }));
    }

    /// Takes a snapshot and keeps it.
    pub fn took(&mut self, full: bool) -> Taken {
        let taken = self.take(full).unwrap();
        self.keep(&taken);
        taken
    }
}

impl Taken {
    /// Writes the two files of a snapshot.
    pub fn write(&self, state: &Path, memory: &Path) {
        fs::write(state, &self.state).unwrap();
        fs::write(memory, &self.image).unwrap();
    }

    /// The first word of each of `pages` pages from `first` on.
    pub fn words(&self, first: usize, pages: usize) -> Vec<u32> {
        let pages = self.image[first..].chunks_exact(PAGE).take(pages);
        pages
            .map(|page| u32::from_le_bytes(*page.first_chunk().unwrap()))
            .collect()
    }
}
