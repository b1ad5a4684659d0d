//! The store's service: the process that has the store, and all that is done with it.
//!
//! Its standard input is the socket to the supervisor, its standard output the one on which live channels arrive. One
//! thread reads requests; what may take long has a thread of its own. When the supervisor is gone, so is the service.

mod begin;
mod capture;
mod common;
mod guest;
mod restore;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use serde_json::{Value, json};
use store::medium::Directory;
use store::{Options, Store, Thoroughness};

use self::common::Memories;
use self::guest::{Errand, Guest, GuestError};
use super::CHECKPOINT;
use super::protocol::{Begin, Done, Found, GREETING, Origin, Reply, Request, What};
use super::text::size;
use super::thinning::{Taken, Thinning};
use crate::errors::chain;

/// The longest request: a guest with many disks.
const MAX_LINE: u64 = 256 << 10;
/// The longest name of a guest, with the end of its line.
const MAX_NAME: usize = 64;
/// How often progress is told.
const BEAT: Duration = Duration::from_millis(500);
/// Bytes of memory for the store's index. The host has little.
const CACHE: usize = 4 << 20;

/// The service.
struct Service {
    store: Store,
    guests: Mutex<HashMap<String, Arc<Guest>>>,
    /// Guests that fell because the snapshot that they went on from is damaged, and all snapshots that are.
    damaged: Mutex<(HashMap<String, u64>, Vec<u64>)>,
    /// Held while a guest's disks are opened.
    gates: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Guests whose budget is too small, as was said.
    warned: Mutex<HashSet<String>>,
    /// What forks have in common.
    memories: Memories,
    /// Written to by those who delete, which nobody may who takes a snapshot: either waits for the other.
    tidying: RwLock<()>,
    answers: Answers,
}

/// The way back to the supervisor.
#[derive(Clone)]
struct Answers(Arc<Mutex<UnixStream>>);

impl Answers {
    fn say(&self, id: u64, done: Done) {
        // What is made of strings and numbers is always JSON.
        let mut line = serde_json::to_vec(&Reply { id, done }).unwrap_or_default();
        line.push(b'\n');
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a supervisor there is nobody to tell; the reading thread ends the process.
        let _ = stream.write_all(&line);
    }

    /// Tells progress of request `id`, now and then.
    fn teller(&self, id: u64) -> impl FnMut(&str, u64, u64) + use<> {
        let answers = self.clone();
        let mut next = Instant::now() + BEAT;
        move |what, done, total| {
            let now = Instant::now();
            if now >= next {
                next = now + BEAT;
                let what = what.to_owned();
                answers.say(id, Done::Progress { what, done, total });
            }
        }
    }
}

/// Runs the service: arguments are the store's folder and the name of the machine.
#[must_use]
#[expect(clippy::print_stderr, reason = "the log of a process of its own")]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter().skip(1);
    let (Some(folder), Some(machine)) = (arguments.next(), arguments.next()) else {
        eprintln!("the supervisor starts this process, with the store's folder and the machine");
        return ExitCode::FAILURE;
    };
    let (input, output) = (io::stdin(), io::stdout());
    let ends = (input.as_fd().try_clone_to_owned())
        .and_then(|input| Ok((input, output.as_fd().try_clone_to_owned()?)));
    let served = ends.and_then(|(stream, channels)| {
        let machine = machine.to_string_lossy();
        serve(stream.into(), channels.into(), Path::new(&folder), &machine)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the way to the supervisor broke: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(
    stream: UnixStream,
    channels: UnixListener,
    folder: &Path,
    machine: &str,
) -> io::Result<()> {
    let answers = Answers(Arc::new(Mutex::new(stream.try_clone()?)));
    let store = match open(folder, machine) {
        Ok(store) => store,
        Err(reason) => {
            answers.say(GREETING, Done::Error(reason));
            return Ok(());
        }
    };
    answers.say(GREETING, Done::Ok(json!({ "folder": folder })));
    let service = Arc::new(Service {
        store,
        guests: Mutex::default(),
        damaged: Mutex::default(),
        gates: Mutex::default(),
        warned: Mutex::default(),
        memories: Memories::default(),
        tidying: RwLock::default(),
        answers,
    });
    let (own, door) = (Arc::clone(&service), channels.try_clone()?);
    let accept = move || {
        let arriving = channels.incoming().take_while(io::Result::is_ok);
        arriving.for_each(|stream| own.arrived(stream));
    };
    let acceptor = thread::Builder::new()
        .name("channels".into())
        .spawn(accept)?;
    let served = service.listen(BufReader::new(stream));
    // Wakes the thread, which has the store as well.
    let _ = shutdown(door.as_raw_fd(), Shutdown::Both);
    let _ = acceptor.join();
    served
}

/// Opens the store in `folder`, or makes one where there is nothing.
fn open(folder: &Path, machine: &str) -> Result<Store, String> {
    let failed = |what: &str, error: &dyn std::error::Error| {
        format!("{what} {}: {}", folder.display(), chain(error))
    };
    fs::create_dir_all(folder).map_err(|error| failed("cannot make", &error))?;
    let medium = Directory::open(folder).map_err(|error| failed("cannot use", &error))?;
    let medium = Arc::new(medium);
    let options = Options {
        machine: machine.to_owned(),
        cache: CACHE,
        ..Options::default()
    };
    let opened = match Store::open(medium.clone(), options.clone()) {
        Err(store::Error::NotAStore { .. }) if is_empty(folder) => Store::create(medium, options),
        opened => opened,
    };
    opened.map_err(|error| failed("cannot open the store in", &error))
}

/// Whether there is nothing, or only what an interrupted beginning leaves.
fn is_empty(folder: &Path) -> bool {
    let begun = |name: OsString| name == "lock" || name == "index";
    fs::read_dir(folder).is_ok_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|entry| begun(entry.file_name())))
    })
}

impl Service {
    /// Takes requests until there is nobody to ask.
    #[expect(clippy::print_stderr, reason = "the log of a process of its own")]
    fn listen(self: &Arc<Self>, mut requests: impl BufRead) -> io::Result<()> {
        loop {
            let mut line = Vec::new();
            (&mut requests)
                .take(MAX_LINE)
                .read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Ok(());
            }
            match serde_json::from_slice(&line) {
                Ok(request) => Self::take(self, request),
                // A supervisor that falls may leave half a line.
                Err(_) if line == b"\n" => {}
                Err(error) => eprintln!("what was asked cannot be understood: {error}"),
            }
        }
    }

    /// Takes a request in, and sees to it that it is answered.
    fn take(service: &Arc<Self>, request: Request) {
        let Request { id, what } = request;
        // Quick, and the next request may be about the same guest.
        match what {
            What::Close { guest } => {
                service.close(&guest);
                return service.answer(id, Ok(Value::Null));
            }
            What::Left { guest } => {
                let noted = begin::left(&service.store, &guest);
                let noted = noted.map_err(|error| chain(&error));
                return service.answer(id, noted.map(|()| Value::Null));
            }
            _ => {}
        }
        let own = Arc::clone(service);
        let work = move || {
            let done = own.perform(id, what);
            own.answer(id, done);
        };
        if let Err(error) = thread::Builder::new().name("request".into()).spawn(work) {
            service.answer(id, Err(format!("cannot start a thread: {error}")));
        }
    }

    fn answer(&self, id: u64, done: Result<Value, String>) {
        self.answers.say(
            id,
            match done {
                Ok(value) => Done::Ok(value),
                Err(reason) => Done::Error(reason),
            },
        );
    }

    fn perform(&self, id: u64, what: What) -> Result<Value, String> {
        let mut tell = self.answers.teller(id);
        let failed = |error: GuestError| chain(&error);
        match what {
            What::Open {
                guest,
                disks,
                begin,
                folder,
            } => {
                // One after the other: the one before may still have the disks.
                let gate = Arc::clone(self.gates().entry(guest.clone()).or_default());
                let _alone = gate.lock().unwrap_or_else(PoisonError::into_inner);
                self.close(&guest);
                let (again, damaged) = {
                    let mut known = self.damaged();
                    (known.0.remove(&guest), known.1.clone())
                };
                // It has not got to what it was to go on from: the one before that is next.
                let again = again.filter(|_| begin == Begin::Left);
                let again = again.map(|snapshot| {
                    Begin::From(Origin {
                        snapshot,
                        fork_of: None,
                    })
                });
                let errand = Errand {
                    store: &self.store,
                    name: &guest,
                    disks: &disks,
                    begin: again.unwrap_or(begin),
                    damaged: &damaged,
                    folder: &folder,
                    memories: &self.memories,
                    tidying: &self.tidying,
                };
                let (opened, new) = Guest::open(&errand, &mut tell).map_err(failed)?;
                if opened.lost.is_some_and(|lost| lost.evidence.is_some()) {
                    self.tidy(&guest, || begin::forget_old(&self.store, &guest));
                }
                self.guests().insert(guest, Arc::new(new));
                serde_json::to_value(&opened).map_err(|error| error.to_string())
            }
            What::Find { guest, snapshot } => {
                let newest = || guest::newest(&self.store, &guest);
                let id = snapshot.map_or_else(newest, |id| Ok(Some(id)));
                let id = id.map_err(|error| chain(&error))?;
                let id = id.ok_or_else(|| format!("guest '{guest}' has no snapshots"))?;
                let (mut remarks, damaged) = (Vec::new(), self.damaged().1.clone());
                let fallen = begin::fallen(&self.store, &guest, id);
                let snapshot = match fallen.map_err(|error| chain(&error))? {
                    Some(info) => info.id,
                    None => {
                        let found =
                            restore::candidate(&self.store, &guest, id, &damaged, &mut remarks);
                        found.map_err(failed)?.info.id
                    }
                };
                let found = Found { snapshot, remarks };
                serde_json::to_value(&found).map_err(|error| error.to_string())
            }
            What::Take {
                guest,
                labels,
                thinning,
            } => {
                let taken = self.snapshot(&guest, labels, &mut tell)?;
                if let Some(thinning) = thinning {
                    self.tidy(&guest, || self.thin(&guest, thinning));
                }
                Ok(taken)
            }
            What::Stored { command } => {
                let _alone = (command.deletes())
                    .then(|| self.tidying.write().unwrap_or_else(PoisonError::into_inner));
                stored::perform(&self.store, command, &mut tell).map_err(|error| chain(&error))
            }
            What::Good { snapshots } => begin::good(&self.store, &snapshots)
                .map(|()| Value::Null)
                .map_err(|error| chain(&error)),
            // These were taken at once.
            What::Close { .. } | What::Left { .. } => Ok(Value::Null),
        }
    }

    fn snapshot(
        &self,
        name: &str,
        labels: BTreeMap<String, String>,
        tell: &mut stored::Tell<'_>,
    ) -> Result<Value, String> {
        let guest = self.guests().get(name).cloned();
        let guest = guest.ok_or_else(|| format!("guest '{name}' does not run"))?;
        let _kept = self.tidying.read().unwrap_or_else(PoisonError::into_inner);
        let taken = guest.snapshot(&self.store, name, labels, tell);
        let (info, end) = taken.map_err(|error| chain(&error))?;
        let mut value = stored::described(&info);
        value["pause_us"] = end.pause_us.into();
        value["pages"] = end.pages.into();
        Ok(value)
    }

    /// Deletes what is not to be kept of a guest. What cannot be deleted now is looked at again after the next snapshot.
    #[expect(clippy::print_stderr, reason = "the log of a process of its own")]
    fn tidy(&self, guest: &str, delete: impl FnOnce() -> store::Result<()>) {
        let Ok(_alone) = self.tidying.try_write() else {
            return;
        };
        let collect = || self.store.collect(Thoroughness::Worthwhile, &mut |_, _| {});
        if let Err(error) = delete().and_then(|()| collect()) {
            eprintln!("{guest}: old snapshots stay: {}", chain(&error));
        }
    }

    /// Deletes checkpoints of a guest that are not to be kept.
    #[expect(clippy::print_stderr, reason = "the log of a process of its own")]
    fn thin(&self, guest: &str, thinning: Thinning) -> store::Result<()> {
        let own = begin::own(&self.store, guest)?;
        let (budget, largest) = (thinning.budget, own.iter().map(|info| info.added).max());
        if let (Some(budget), Some(largest)) = (budget, largest)
            && budget < largest
            && self.warned().insert(guest.to_owned())
        {
            eprintln!(
                "{guest}: its budget of {} is smaller than one checkpoint of {}: only the newest and the newest good one are \
                 kept; for a few of them give it {}",
                size(budget),
                size(largest),
                size(largest.saturating_mul(2))
            );
        }
        let newest_good = own.iter().rev().find(|info| info.good).map(|info| info.id);
        let checkpoints = own.iter();
        let checkpoints = checkpoints.filter(|info| info.labels.contains_key(CHECKPOINT));
        let checkpoints = checkpoints.map(|info| Taken {
            id: info.id,
            time_ms: info.time_ms,
            bytes: info.added,
        });
        for id in thinning.unneeded(checkpoints.collect(), newest_good, capture::now_ms()) {
            match self.store.delete(id) {
                // A guest stands on it.
                Ok(()) | Err(store::Error::Busy { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A live channel: the supervisor has said whose before it gave it to the VMM.
    #[expect(clippy::print_stderr, reason = "the log of a process of its own")]
    fn arrived(&self, stream: io::Result<UnixStream>) {
        let attached = stream.and_then(|stream| {
            let name = read_name(&stream)?;
            // One without disks of the store was not opened.
            let guest = Arc::clone(self.guests().entry(name).or_default());
            guest.attach(stream)
        });
        if let Err(error) = attached {
            eprintln!("a live channel is of no use: {error}");
        }
    }

    fn close(&self, name: &str) {
        let guest = self.guests().remove(name);
        if let Some(damaged) = guest.and_then(|guest| guest.close()) {
            let mut known = self.damaged();
            known.0.insert(name.to_owned(), damaged);
            known.1.push(damaged);
        }
    }

    fn gates(&self) -> MutexGuard<'_, HashMap<String, Arc<Mutex<()>>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warned(&self) -> MutexGuard<'_, HashSet<String>> {
        self.warned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn damaged(&self) -> MutexGuard<'_, (HashMap<String, u64>, Vec<u64>)> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<String, Arc<Guest>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first line, and no byte more.
fn read_name(mut stream: &UnixStream) -> io::Result<String> {
    let mut name = Vec::new();
    let mut byte = [0];
    while name.len() < MAX_NAME {
        stream.read_exact(&mut byte)?;
        if byte == [b'\n'] {
            return String::from_utf8(name).map_err(io::Error::other);
        }
        name.push(byte[0]);
    }
    Err(io::ErrorKind::InvalidData.into())
}
