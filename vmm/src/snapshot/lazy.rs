//! Memory that comes page by page from a program that has the snapshot: Firecracker's back end `Uffd`.
//!
//! ```text
//!   VMM: memory without pages ── userfaultfd, where it is ──► program   (one message, by SCM_RIGHTS)
//!        vCPU, device, KVM touch a page, and wait ◄── page ── program
//!        a thread reads the connection:  ALL_SERVED ─► the memory is the VMM's own, the connection is closed
//!                                        its end    ─► so does the VMM, whose guest could only hang
//! ```
//!
//! The thread is one of its own because any other may be waiting for a page just then.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use devices::memory::GuestMemory;
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::events::Events;
use crate::exit::ExitReason;
use crate::jail::opened::{self, Kind};
use crate::jail::seccomp::{Seccomp, ThreadKind};
use crate::latch::ExitLatch;
use crate::logger::chain;
use crate::metrics;
use crate::terminal;
use crate::userfault::handler::ALL_SERVED;
use crate::userfault::{Features, Mapping, Modes, Userfault, UserfaultError, place_of};
use crate::virtio::reach;

/// Bytes of stack: system calls and a log line.
const STACK_BYTES: usize = 128 << 10;
/// How long a guest that cannot have its memory may take for an orderly end. One of whose threads waits for a page never
/// comes to it.
const GRACE: Duration = Duration::from_secs(1);

/// Why memory does not come from a program.
#[derive(Debug, thiserror::Error)]
pub enum LazyError {
    /// Page faults cannot be handed over.
    #[error("Cannot have the guest's page faults served by a program")]
    Userfault(#[from] UserfaultError),
    /// Nobody is there.
    #[error("Cannot connect to {path}, where the guest's memory is to be served", path = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Nobody listens.
    #[error("Cannot tell the program at {path} where the guest's memory is", path = .path.display())]
    Send {
        /// The socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Nobody could hear of the program's end.
    #[error("Cannot start the thread that waits for the program that serves the guest's memory")]
    Thread(#[source] io::Error),
}

/// Connects to the program at `path` for a later [`begin`]: ahead of a jail.
///
/// # Errors
/// It is not there.
pub fn open_ahead(path: &Path) -> Result<(), LazyError> {
    let stream = connect(path)?;
    opened::keep(Kind::Connection, path, stream);
    Ok(())
}

fn connect(path: &Path) -> Result<UnixStream, LazyError> {
    let connected = match opened::take(Kind::Connection, path) {
        Some(stream) => Ok(UnixStream::from(stream)),
        None => reach(path),
    };
    let connected = connected.and_then(|stream| {
        stream.set_nonblocking(false)?;
        Ok(stream)
    });
    connected.map_err(|source| LazyError::Connect {
        path: path.into(),
        source,
    })
}

/// Who is to hear of an end.
#[derive(Clone, Debug)]
pub struct Mourners {
    /// Filters of system calls.
    pub seccomp: Seccomp,
    /// Ends the run.
    pub latch: Arc<ExitLatch>,
    /// Tells the parent.
    pub events: Arc<Events>,
}

/// Memory that a program serves. Without [`Self::keep`] that is over with it.
#[derive(Debug)]
pub struct Lazy {
    stream: Option<UnixStream>,
    given_up: Arc<AtomicBool>,
}

/// Has the program at `path` serve all of `memory`, which nobody has touched yet.
///
/// # Errors
/// There is none, or page faults cannot be handed over.
pub fn begin(memory: &GuestMemory, path: &Path, mourners: Mourners) -> Result<Lazy, LazyError> {
    let stream = connect(path)?;
    // What the balloon gives back must not come back.
    let userfault = Userfault::open_kept(Features::EVENT_REMOVE)?;
    let mut mappings = Vec::new();
    let mut offset = 0;
    for region in memory.iter() {
        userfault.register(
            region,
            Modes {
                missing: true,
                write_protect: false,
            },
        )?;
        let (start, bytes) = place_of(region);
        mappings.push(Mapping::new(start, bytes, offset));
        offset += bytes;
    }
    let failed = |source| LazyError::Send {
        path: path.into(),
        source,
    };
    let message = serde_json::to_vec(&mappings).map_err(|error| failed(error.into()))?;
    let sent = stream.send_with_fd(&message[..], userfault.as_raw_fd());
    let sent = sent.map_err(|error| failed(error.into()))?;
    if sent != message.len() {
        return Err(failed(io::ErrorKind::WriteZero.into()));
    }
    let given_up = Arc::new(AtomicBool::new(false));
    let watch = Watch {
        stream: stream.try_clone().map_err(LazyError::Thread)?,
        userfault,
        mappings,
        given_up: given_up.clone(),
        mourners,
    };
    thread::Builder::new()
        .name("memory".into())
        .stack_size(STACK_BYTES)
        .spawn(move || watch.run())
        .map_err(LazyError::Thread)?;
    Ok(Lazy {
        stream: Some(stream),
        given_up,
    })
}

impl Lazy {
    /// There is a guest that needs the memory.
    pub fn keep(mut self) {
        self.stream = None;
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            self.given_up.store(true, Ordering::SeqCst);
            // One that is closed already needs no end.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// What the thread has.
struct Watch {
    stream: UnixStream,
    userfault: Userfault,
    mappings: Vec<Mapping>,
    given_up: Arc<AtomicBool>,
    mourners: Mourners,
}

impl Watch {
    fn run(self) {
        let why = match self.mourners.seccomp.enter(ThreadKind::Memory) {
            Ok(()) => self.watch(),
            Err(error) => Err(chain(&error)),
        };
        if let Err(why) = why {
            self.end(why);
        }
    }

    /// Returns when the program is needed no more. Otherwise: why the guest cannot go on.
    fn watch(&self) -> Result<(), String> {
        let mut byte = [0];
        let read = loop {
            match (&self.stream).read(&mut byte) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        if self.given_up.load(Ordering::SeqCst) {
            return Ok(());
        }
        match read {
            Ok(1) if byte == [ALL_SERVED] => {}
            Ok(1..) => {
                return Err(
                    "The program that serves the guest's memory says something unexpected".into(),
                );
            }
            Ok(0) => {
                return Err("The program that serves the guest's memory has ended before all of it was there: \
                     restore the guest again"
                    .into());
            }
            Err(error) => {
                return Err(format!(
                    "Cannot hear from the program that serves the guest's memory: {error}"
                ));
            }
        }
        for mapping in &self.mappings {
            let released = self
                .userfault
                .unregister(mapping.base_host_virt_addr, mapping.size);
            released.map_err(|error| {
                format!(
                    "Cannot take the guest's memory over from the program that served it: {error}"
                )
            })?;
        }
        log::info!("All of the guest's memory is there");
        Ok(())
    }

    /// Ends the process: in order, if no thread of it waits for a page.
    fn end(&self, why: String) {
        let Mourners { latch, events, .. } = &self.mourners;
        latch.set(ExitReason::Error(why.clone()));
        thread::sleep(GRACE);
        terminal::restore();
        log::error!("{why}");
        metrics::process().flush_without_waiting();
        events.exit_without_waiting(latch.reason().unwrap_or(&ExitReason::Error(why)));
        // Threads that wait for a page can be ended only with their process.
        process::exit(1)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use devices::memory::discard::discard;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::clock::StartTime;
    use crate::memory::testing::ram;
    use crate::userfault::handler::{Connection, Content, End, Page, Plan, SourceError};

    const LEN: u64 = 1 << 20;

    fn mourners() -> Mourners {
        Mourners {
            seccomp: Seccomp::off(),
            latch: Arc::new(ExitLatch::new().unwrap()),
            events: Arc::new(Events::new(None, StartTime::new(None, None))),
        }
    }

    fn source(offset: u64, page: &mut Page) -> Result<Content, SourceError> {
        page.fill(u8::try_from(offset / 4096)?);
        Ok(Content::Data)
    }

    #[test]
    fn what_the_balloon_gives_back_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        thread::scope(|scope| {
            let program = scope.spawn(move || {
                let stream = listener.accept().unwrap().0;
                let plan = Plan {
                    prefetch: Vec::new(),
                    fill_after: Some(Duration::from_millis(20)),
                };
                let connection = Connection::accept(stream, LEN).unwrap();
                connection.serve(&plan, &mut source).unwrap()
            });
            let memory = ram(1);
            let lazy = begin(&memory, &path, mourners()).unwrap();
            let byte = |page: u64| -> u8 { memory.read_obj(GuestAddress(page * 4096)).unwrap() };
            assert_eq!([byte(3), byte(9)], [3, 9]);
            discard(&memory, GuestAddress(3 * 4096), 2 * 4096).unwrap();
            assert_eq!([byte(3), byte(4), byte(5)], [0, 0, 5]);
            memory.write_obj(7_u8, GuestAddress(3 * 4096)).unwrap();
            lazy.keep();
            let report = program.join().unwrap();
            assert_eq!(report.end, End::AllServed);
            assert_eq!(report.removed, 2);
            assert_eq!([byte(3), byte(4), byte(255)], [7, 0, 255]);
            // By the kernel alone.
            discard(&memory, GuestAddress(255 * 4096), 4096).unwrap();
            assert_eq!(byte(255), 0);
        });
    }

    #[test]
    fn a_guest_that_is_not_built_leaves_nobody_who_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let memory = ram(1);
        let mourners = mourners();
        let lazy = begin(&memory, &path, mourners.clone()).unwrap();
        let stream = listener.accept().unwrap().0;
        let connection = Connection::accept(stream, LEN).unwrap();
        drop(lazy);
        let report = connection.serve(&Plan::default(), &mut source).unwrap();
        assert_eq!(report.end, End::Gone);
        assert!(!mourners.latch.is_set());
        let error = begin(&memory, &folder.path().join("nobody"), mourners).unwrap_err();
        assert!(error.to_string().contains("nobody"), "{error}");
    }
}
