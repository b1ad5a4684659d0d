//! Snapshots as the supervisor sees them: the service that keeps them, what was asked of it and by whom.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::forks::Forks;
use super::guest::Phase;
use super::inquiry::Asker;
use super::ledger::StoreLeft;
use super::lifecycle::{End, State};
use super::{Message, Supervisor};
use crate::clock;
use crate::config::{Source, StoreConfig};
use crate::errors::chain;
use crate::images::{ImageError, Prepared};
use crate::own_kernel::OwnKernel;
use crate::remote::Answer;
use crate::snapshots::{Begin, DiskSource, Done, Found, GREETING, Opened, Process, What};

/// Name of the socket in the run folder on which live channels arrive.
const CHANNELS: &str = "store.sock";
/// Where the store is when there is no disk for it, in the run folder.
const IN_MEMORY: &str = "store";
/// How often a disk is looked for that may still appear.
const POLL: Duration = Duration::from_millis(100);

/// The machine's store.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    state: Stage,
    /// Where VMMs' live channels begin.
    channels: Option<UnixListener>,
    socket: PathBuf,
    machine: String,
    asked: HashMap<u64, Asked>,
    /// It is gone when the machine is.
    in_memory: bool,
    /// Guests that wait for the service, by the number of their preparation.
    waiting: Vec<(usize, u64)>,
}

/// How far it is.
#[derive(Debug, Default)]
enum Stage {
    /// There is none.
    #[default]
    Off,
    /// Its disk is being looked for.
    Sought,
    /// The service opens it.
    Opening(Process, PathBuf),
    /// It can be used.
    Up(Process, PathBuf),
    /// It cannot be used, for this reason.
    Failed(String),
}

/// What an answer is about.
#[derive(Debug)]
pub(super) enum Asked {
    Open {
        guest: usize,
        preparation: u64,
    },
    Find {
        asker: Asker,
        guest: usize,
    },
    Fork(Forks),
    Command(Asker),
    Checkpoint {
        guest: usize,
        begun: Duration,
    },
    /// A user's snapshot; whether the guest was ready.
    Taken {
        asker: Asker,
        guest: usize,
        begun: Duration,
        ready: bool,
    },
    Suspend {
        guest: usize,
    },
    History,
    Nothing,
}

/// Where the store is, and whether that is in memory.
pub(super) type StorePlace = Result<(PathBuf, bool), String>;

impl Keeping {
    pub(super) fn process(&self) -> Option<&Process> {
        match &self.state {
            Stage::Opening(process, _) | Stage::Up(process, _) => Some(process),
            _ => None,
        }
    }

    fn process_mut(&mut self) -> Option<&mut Process> {
        match &mut self.state {
            Stage::Opening(process, _) | Stage::Up(process, _) => Some(process),
            _ => None,
        }
    }

    /// Whether what is kept outlives the machine's being switched off.
    pub(super) fn lasts(&self) -> bool {
        self.is_up() && !self.in_memory
    }

    fn has_failed(&self) -> bool {
        matches!(self.state, Stage::Failed(_))
    }

    fn is_up(&self) -> bool {
        matches!(self.state, Stage::Up(..))
    }

    /// Whether writable disks of guests stand in the store.
    pub(super) fn has_disks(&self) -> bool {
        !matches!(self.state, Stage::Off)
    }

    /// What of it outlives a supervisor.
    pub(super) fn left(&self) -> Option<StoreLeft> {
        let Stage::Up(process, folder) = &self.state else {
            return None;
        };
        StoreLeft::of(
            process,
            self.channels.as_ref(),
            folder.clone(),
            self.in_memory,
        )
    }

    /// A live channel for the VMM of `guest`, whose other end the service has.
    pub(super) fn channel(&self, guest: &str) -> Option<OwnedFd> {
        self.channels.as_ref()?;
        let connect = || -> io::Result<OwnedFd> {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.write_all(format!("{guest}\n").as_bytes())?;
            Ok(stream.into())
        };
        connect().ok()
    }

    pub(super) fn ask(&mut self, what: What, about: Asked) -> Result<(), String> {
        match &mut self.state {
            Stage::Up(process, _) => {
                let id = process.ask(what);
                self.asked.insert(id, about);
                Ok(())
            }
            Stage::Off => Err("this machine keeps no snapshots: its file has no [store]".into()),
            Stage::Sought | Stage::Opening(..) => {
                Err("the store is being opened, try again in a moment".into())
            }
            Stage::Failed(reason) => Err(format!("there is no store: {reason}")),
        }
    }
}

/// The drives of a guest that stand in the store, by their ids.
pub(super) fn stored(images: &Prepared) -> Vec<DiskSource> {
    let drives = images.drives.iter().filter(|drive| !drive.pmem);
    let numbered = drives.enumerate();
    numbered
        .filter(|(_, drive)| drive.is_stored())
        .map(|(index, drive)| DiskSource {
            drive_id: format!("disk{index}"),
            image: drive.path.clone(),
        })
        .collect()
}

impl Supervisor {
    /// Has the store's place looked for.
    pub(super) fn open_store(&mut self, machine: &str, config: &StoreConfig) {
        let source = match config {
            StoreConfig::Off => return,
            StoreConfig::Wrong => {
                self.keeping.state = Stage::Failed("[store] of the machine file is wrong".into());
                return;
            }
            StoreConfig::At(source) => source.clone(),
        };
        self.keeping.machine = machine.to_owned();
        self.keeping.socket = self.settings.run_folder.join(CHANNELS);
        if let Some(left) = self.left.store.take() {
            match left.adopt() {
                Ok((process, channels)) => {
                    self.keeping.channels = Some(channels);
                    self.keeping.in_memory = left.in_memory;
                    self.keeping.state = Stage::Up(process, left.folder);
                    return;
                }
                Err(error) => {
                    let line = format!("host: the store's service has not lived on ({error})");
                    self.console.say(&line);
                    // Their disks were there.
                    self.disown_all();
                }
            }
        }
        // Of a supervisor that fell: the folder is ours alone.
        let _ = std::fs::remove_file(&self.keeping.socket);
        match UnixListener::bind(&self.keeping.socket) {
            Ok(listener) => self.keeping.channels = Some(listener),
            Err(error) => {
                self.keeping.state = Stage::Failed(format!("cannot listen: {error}"));
                return;
            }
        }
        self.keeping.state = Stage::Sought;
        let (mailbox, images) = (self.mailbox.clone(), self.images.clone());
        let memory = self.settings.run_folder.join(IN_MEMORY);
        let work = move || {
            let Some(images) = images.get() else { return };
            let place = match &source {
                Source::Path(path) => (images.base.join(path), false),
                Source::Disk(path) | Source::Flash(path) => loop {
                    let settled = images.disks.settled();
                    match images.disks.place(path) {
                        Some(place) => break (place, false),
                        None if settled => break (memory, true),
                        None => thread::sleep(POLL),
                    }
                },
            };
            mailbox.send(Message::Store(Ok(place)));
        };
        if let Err(error) = thread::Builder::new().spawn(work) {
            self.store_found(Err(format!("cannot start a thread: {error}")));
        }
    }

    /// The store's place is known.
    pub(super) fn store_found(&mut self, place: StorePlace) {
        match place {
            Ok((folder, in_memory)) => {
                self.keeping.in_memory = in_memory;
                if in_memory {
                    self.console.say(
                        "host: NO DISK FOR THE STORE: snapshots and what guests write are in memory, and gone with it",
                    );
                }
                self.start_store(folder);
            }
            Err(reason) => self.store_failed(&reason),
        }
    }

    fn start_store(&mut self, folder: PathBuf) {
        let Some(channels) = &self.keeping.channels else {
            return;
        };
        let program = &self.settings.program;
        match Process::start(program, &folder, &self.keeping.machine, channels) {
            Ok(process) => self.keeping.state = Stage::Opening(process, folder),
            Err(error) => self.store_failed(&format!("cannot start its service: {error}")),
        }
    }

    fn store_failed(&mut self, reason: &str) {
        self.console.say(&format!("host: no store: {reason}"));
        self.keeping.state = Stage::Failed(reason.to_owned());
        for (index, preparation) in std::mem::take(&mut self.keeping.waiting) {
            self.not_opened(index, preparation, &format!("there is no store: {reason}"));
        }
    }

    /// Gets the disks of a guest ready that stand in the store; it is launched when they are. Whether there are any.
    pub(super) fn open_disks(&mut self, index: usize) -> Result<bool, String> {
        let guest = &mut self.guests[index];
        let Some(images) = &guest.images else {
            return Ok(false);
        };
        let disks = stored(images);
        let preparation = guest.preparations;
        let heals = self.heals(index);
        let guest = &mut self.guests[index];
        let goes_on = matches!(guest.begin, Some(Begin::From(_)));
        let needs_store = !disks.is_empty() || goes_on;
        if !needs_store && (!heals || self.keeping.has_failed()) {
            guest.begin = None;
            return Ok(false);
        }
        if matches!(self.keeping.state, Stage::Sought | Stage::Opening(..)) {
            self.keeping.waiting.push((index, preparation));
            return Ok(true);
        }
        let usual = if heals { Begin::Resume } else { Begin::Left };
        let what = What::Open {
            guest: guest.name.clone(),
            disks,
            begin: guest.begin.take().unwrap_or(usual),
            folder: self.settings.run_folder.join(&guest.name),
        };
        let about = Asked::Open {
            guest: index,
            preparation,
        };
        self.keeping.ask(what, about)?;
        Ok(true)
    }

    fn not_opened(&mut self, index: usize, preparation: u64, reason: &str) {
        let guest = &mut self.guests[index];
        if matches!(guest.phase, Phase::Preparing) && guest.preparations == preparation {
            guest.phase = Phase::Down;
            self.restored(index, Err(reason.to_owned()));
            let guest = &self.guests[index];
            if guest.healing.was_ready && self.heals(index) && self.keeping.is_up() {
                // A guest that has run and cannot any more has fallen.
                self.guests[index].history.fell();
                return self.stand_up(index, reason.to_owned());
            }
            self.set_state(index, State::Failed, reason);
        }
    }

    /// The service has something to say.
    pub(super) fn store_speaks(&mut self) {
        let Some(process) = self.keeping.process_mut() else {
            return;
        };
        process.flush();
        let (replies, log) = process.read();
        for line in log {
            self.console.say(&format!("host: store: {line}"));
        }
        for reply in replies {
            match reply {
                Ok(reply) if reply.id == GREETING => self.greeted(reply.done),
                Ok(reply) => self.store_answers(reply.id, reply.done),
                Err(error) => self.console.say(&format!("host: store: {error}")),
            }
        }
    }

    fn greeted(&mut self, done: Done) {
        match (done, std::mem::take(&mut self.keeping.state)) {
            (Done::Ok(_), Stage::Opening(process, folder)) => {
                self.keeping.state = Stage::Up(process, folder);
                self.changed = true;
                for (index, preparation) in std::mem::take(&mut self.keeping.waiting) {
                    let guest = &self.guests[index];
                    let waits = matches!(guest.phase, Phase::Preparing);
                    if !waits || guest.preparations != preparation {
                        continue;
                    }
                    if let Err(reason) = self.open_disks(index) {
                        self.not_opened(index, preparation, &reason);
                    }
                }
            }
            (Done::Error(reason), _) => self.store_failed(&reason),
            (_, state) => self.keeping.state = state,
        }
    }

    fn store_answers(&mut self, id: u64, done: Done) {
        if let Done::Progress { what, done, total } = done {
            return self.store_progresses(id, &what, done, total);
        }
        let result = match done {
            Done::Ok(value) => Ok(value),
            Done::Error(reason) => Err(reason),
            Done::Progress { .. } => return,
        };
        match self.keeping.asked.remove(&id) {
            Some(Asked::Open { guest, preparation }) => {
                let opened = result.and_then(read::<Opened>);
                match opened {
                    Ok(opened) => self.disks_ready(guest, preparation, opened),
                    Err(reason) => self.not_opened(guest, preparation, &reason),
                }
            }
            Some(Asked::Find { asker, guest }) => match result.and_then(read::<Found>) {
                Ok(found) => self.restore_found(asker, guest, &found),
                Err(reason) => self.answer(asker, &Answer::Error(reason)),
            },
            Some(Asked::Fork(forks)) => self.fork_from(forks, result),
            Some(Asked::Command(asker)) => {
                self.answer(asker, &result.map_or_else(Answer::Error, Answer::Ok));
            }
            Some(Asked::Checkpoint { guest, begun }) => {
                self.checkpoint_done(guest, begun, result.and_then(|value| id_of(&value)));
            }
            Some(Asked::Taken {
                asker,
                guest,
                begun,
                ready,
            }) => {
                if let Ok(id) = result
                    .as_ref()
                    .map_err(drop)
                    .and_then(|it| id_of(it).map_err(drop))
                {
                    let guest = &mut self.guests[guest];
                    guest.healing.taken_if(ready, id, begun);
                    guest.history.taken(id);
                }
                self.answer(asker, &result.map_or_else(Answer::Error, Answer::Ok));
            }
            Some(Asked::Suspend { guest }) => {
                self.suspended(guest, result.and_then(|value| id_of(&value)));
            }
            Some(Asked::History) => {
                if let Ok(list) = result {
                    self.history_listed(&list);
                }
            }
            Some(Asked::Nothing) | None => {}
        }
    }

    fn store_progresses(&mut self, id: u64, what: &str, done: u64, total: u64) {
        match self.keeping.asked.get(&id) {
            Some(
                Asked::Command(asker)
                | Asked::Taken { asker, .. }
                | Asked::Find { asker, .. }
                | Asked::Fork(Forks { asker, .. }),
            ) => {
                let (asker, what) = (*asker, what.to_owned());
                self.answer(asker, &Answer::Progress { what, done, total });
            }
            Some(Asked::Open { guest, .. }) => {
                let line = match total {
                    0 => format!("host: {}: {what} ...", self.guests[*guest].name),
                    total => format!(
                        "host: {}: {what}: {} of {} MiB",
                        self.guests[*guest].name,
                        done >> 20,
                        total >> 20
                    ),
                };
                self.console.say(&line);
            }
            Some(
                Asked::Checkpoint { .. } | Asked::Suspend { .. } | Asked::History | Asked::Nothing,
            )
            | None => {}
        }
    }

    fn disks_ready(&mut self, index: usize, preparation: u64, opened: Opened) {
        let guest = &self.guests[index];
        if !matches!(guest.phase, Phase::Preparing) || guest.preparations != preparation {
            return self.close_unneeded(index);
        }
        for remark in &opened.remarks {
            let line = format!("host: {}: {remark}", self.guests[index].name);
            self.console.say(&line);
        }
        let load = opened.load.as_ref().map(|load| load.snapshot);
        if let Some(id) = opened.disks_of {
            let words = format!("from the disks of snapshot {id}, without its memory");
            self.set_state(index, State::Starting, &words);
            self.restored(index, Ok(id));
        }
        match (load, self.guests[index].state) {
            (Some(_), State::Restoring) => {}
            (Some(id), _) => self.set_state(index, State::Restoring, &format!("snapshot {id}")),
            (None, State::Unhealthy) => self.nothing_to_go_back_to(index),
            (None, _) => {}
        }
        let later = (self.guests[index].images.as_ref()).is_some_and(|images| images.own_later);
        if later && opened.load.is_none() {
            return self.read_own(index, preparation, opened);
        }
        self.launch_opened(index, preparation, opened);
    }

    fn launch_opened(&mut self, index: usize, preparation: u64, opened: Opened) {
        if let Err(reason) = self.launch_with(index, Some(opened)) {
            self.not_opened(index, preparation, &reason);
            self.close_disks(index);
        }
    }

    /// Has what a guest boots read from its disk, as the guest has left that.
    fn read_own(&mut self, index: usize, preparation: u64, opened: Opened) {
        let guest = &self.guests[index];
        let image = guest
            .images
            .as_ref()
            .and_then(|images| images.drives.first());
        let (Some(config), Some(image), Some(socket)) =
            (guest.config.clone(), image, opened.sockets.first())
        else {
            return;
        };
        let (image, socket) = (image.path.clone(), socket.clone());
        let (mailbox, images) = (self.mailbox.clone(), self.images.clone());
        let work = move || {
            // The loader set it before there was any guest.
            if let Some(images) = images.get() {
                let result = images.read_own(&config, &image, &socket);
                mailbox.send(Message::Own {
                    guest: index,
                    preparation,
                    opened: Box::new(opened),
                    result,
                });
            }
        };
        if let Err(error) = thread::Builder::new().spawn(work) {
            self.not_opened(
                index,
                preparation,
                &format!("cannot start a thread: {error}"),
            );
            self.close_disks(index);
        }
    }

    /// It is known what a guest boots.
    pub(super) fn own_read(
        &mut self,
        index: usize,
        preparation: u64,
        opened: Opened,
        result: Result<OwnKernel, ImageError>,
    ) {
        let guest = &mut self.guests[index];
        if !matches!(guest.phase, Phase::Preparing) || guest.preparations != preparation {
            return self.close_unneeded(index);
        }
        match (result, &mut guest.images) {
            (Ok(own), Some(images)) => {
                images.kernel.clone_from(&own.kernel);
                images.initrd.clone_from(&own.initrd);
                images.own = Some(own);
                self.launch_opened(index, preparation, opened);
            }
            (Ok(_), None) => {}
            (Err(error), _) => {
                self.not_opened(index, preparation, &chain(&error));
                self.close_disks(index);
            }
        }
    }

    /// The guest was stopped while its disks were opened. If it starts again already, that has opened them anew.
    fn close_unneeded(&mut self, index: usize) {
        if matches!(self.guests[index].phase, Phase::Down) {
            self.close_disks(index);
        }
    }

    /// The guest's VMM is gone: its disks are closed.
    pub(super) fn close_disks(&mut self, index: usize) {
        let guest = self.guests[index].name.clone();
        // Without a service nothing is open.
        let _ = self.keeping.ask(What::Close { guest }, Asked::Nothing);
    }

    /// The service has ended. Guests whose disks it had are of no use: they fall, and stand up again with it.
    pub(super) fn store_ended(&mut self, end: End) {
        // Its last words.
        self.store_speaks();
        self.changed = true;
        let asked: Vec<_> = self.keeping.asked.drain().collect();
        let reason = format!("the store's service ended: {end}");
        let was_up = match std::mem::take(&mut self.keeping.state) {
            Stage::Up(_, folder) => Some(folder),
            _ => None,
        };
        self.console.say(&format!("host: {reason}"));
        let now = clock::now();
        for guest in &mut self.guests {
            let has_disks = guest
                .images
                .as_ref()
                .is_some_and(|images| !stored(images).is_empty());
            if let Some(vm) = guest.vm().filter(|_| has_disks) {
                vm.fell(now);
                guest.healing.fallen = Some(reason.clone());
            }
        }
        match was_up {
            Some(folder) if self.going_down.is_none() => self.start_store(folder),
            _ => self.store_failed(&reason),
        }
        for (_, about) in asked {
            match about {
                Asked::Open { guest, preparation } => self.not_opened(guest, preparation, &reason),
                Asked::Find { asker, .. }
                | Asked::Command(asker)
                | Asked::Taken { asker, .. }
                | Asked::Fork(Forks { asker, .. }) => {
                    self.answer(asker, &Answer::Error(reason.clone()));
                }
                Asked::Checkpoint { guest, begun } => {
                    self.checkpoint_done(guest, begun, Err(reason.clone()));
                }
                Asked::Suspend { guest } => self.suspended(guest, Err(reason.clone())),
                Asked::History | Asked::Nothing => {}
            }
        }
    }
}

/// The snapshot that was taken.
fn id_of(taken: &Value) -> Result<u64, String> {
    let id = taken.get("id").and_then(Value::as_u64);
    id.ok_or_else(|| "the store's service named no snapshot".to_owned())
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("the store's service said: {error}"))
}
