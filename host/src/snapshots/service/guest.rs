//! What the service has of a guest that runs: its disks, the way to its VMM, and who serves its memory.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use store::{Base, Disk, Image, Info, Store};
use thiserror::Error;
use vmm::live::protocol::End;

use super::super::protocol::{Begin, DiskSource, Load, Opened};
use super::super::{AGENT, READY};
use super::begin::{self, Ground};
use super::capture::{self, Channel, DISK, Drive, TakeError};
use super::common::{Memories, Memory};
use super::restore::Pager;
use super::stored::Tell;
use crate::nbd;

/// At the end of the name of an image's list ([`store::image_list`]).
const LIST: &str = ".list";

/// Why a guest cannot start.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Its disks cannot be served.
    #[error(transparent)]
    Serve(#[from] nbd::ServeError),
    /// A file of its.
    #[error("cannot {doing} {path}", path = .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Somebody writes to its image.
    #[error(
        "{path} is in use by somebody who may write to it: a disk of the store stands on an image that stays as it is",
        path = .path.display()
    )]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// It has a disk that the snapshot has not.
    #[error("snapshot {snapshot} is of a guest without the disk {drive}")]
    NoDrive {
        /// The snapshot.
        snapshot: u64,
        /// Name of the drive.
        drive: String,
    },
    /// All are damaged.
    #[error("snapshot {snapshot} cannot be used, and there is none before it: {why}")]
    NoneLeft {
        /// The snapshot.
        snapshot: u64,
        /// What is wrong with it.
        why: String,
    },
    /// It is another's.
    #[error("snapshot {snapshot} is one of guest '{theirs}', not of '{guest}'")]
    Other {
        /// The snapshot.
        snapshot: u64,
        /// Whose it is.
        theirs: String,
        /// Who was to go on from it.
        guest: String,
    },
}

/// What is to be opened.
pub struct Errand<'a> {
    /// Where everything is.
    pub store: &'a Store,
    /// Name of the guest.
    pub name: &'a str,
    /// Its disks.
    pub disks: &'a [DiskSource],
    /// What it begins with.
    pub begin: Begin,
    /// Snapshots that are known to be damaged.
    pub damaged: &'a [u64],
    /// A folder of the guest's.
    pub folder: &'a Path,
    /// What forks have in common.
    pub memories: &'a Memories,
    /// Read from by those who write snapshots.
    pub tidying: &'a RwLock<()>,
}

/// A guest that runs, or is about to.
#[derive(Default)]
pub struct Guest {
    drives: Mutex<Vec<Drive>>,
    /// One for each of them.
    servers: Mutex<Vec<nbd::Service>>,
    channel: Mutex<Option<Channel>>,
    pager: Option<Pager>,
    _common: Option<Arc<Memory>>,
    /// The snapshot that its present state goes on from.
    parent: Mutex<Option<u64>>,
}

impl Guest {
    /// Gets the disks of a guest ready that is about to start.
    pub fn open(errand: &Errand<'_>, tell: &mut Tell<'_>) -> Result<(Opened, Self), GuestError> {
        let Errand { store, name, .. } = *errand;
        let mut remarks = Vec::new();
        let ground = begin::choose(errand, &mut remarks)?;
        let fork_of = match &errand.begin {
            Begin::From(origin) => origin.fork_of.as_ref(),
            _ => None,
        };
        let lost = begin::keep_fallen(errand, &ground, tell);
        let parent = match &ground {
            Ground::Snapshot(found) => Some(found.info.id),
            Ground::Left | Ground::Disks(_) => newest(store, name)?,
            Ground::Images => None,
        };
        let disks_of = match &ground {
            Ground::Disks(info) => Some(info.id),
            _ => None,
        };
        let (mut drives, mut servers) = (Vec::new(), Vec::new());
        let folder = errand.folder.join("store");
        let doing = |doing| {
            let path = folder.clone();
            move |source| GuestError::File {
                doing,
                path,
                source,
            }
        };
        // What a VMM that was killed has left.
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(doing("clear")(error));
            }
            _ => {}
        }
        fs::create_dir_all(&folder).map_err(doing("make"))?;
        let mut sockets = Vec::new();
        for source in errand.disks {
            let disk = match &ground {
                Ground::Images => new_disk(store, name, source, tell)?,
                ground => disk(store, name, source, ground.snapshot(), tell)?,
            };
            let socket = folder.join(format!("{}.nbd", source.drive_id));
            let listener = UnixListener::bind(&socket).map_err(doing("listen in"))?;
            let export = nbd::Export {
                disk: Arc::clone(&disk) as _,
                read_only: false,
            };
            let exports = nbd::Exports::one(&source.drive_id, export);
            servers.push(nbd::serve(listener, exports, report(name))?);
            drives.push((source.drive_id.clone(), disk));
            sockets.push(socket);
        }
        let (mut load, mut pager, mut common) = (None, None, None);
        if let Ground::Snapshot(found) = ground {
            let state = folder.join("state");
            fs::write(&state, &found.state).map_err(doing("write in"))?;
            let mut memory = folder.join("memory");
            let agent = found.info.labels.contains_key(AGENT);
            // One that cannot be read is refused by the VMM, with the reason.
            let sockets =
                vmm::snapshot::file::read(&state).is_ok_and(|it| it.document.vsock.is_some());
            let (snapshot, ready) = (found.info.id, found.info.labels.contains_key(READY));
            if fork_of.is_some() {
                let place = errand.folder.parent().unwrap_or(errand.folder);
                let shared = errand.memories.of(&found, place, tell)?;
                shared.path().clone_into(&mut memory);
                common = Some(shared);
            } else {
                // A hint: the guest is as well without.
                let first = found.ram.snapshot().working_set().unwrap_or_else(|error| {
                    remarks.push(format!(
                        "the guest waits for each page of its memory: {}",
                        crate::errors::chain(&error)
                    ));
                    None
                });
                let first = first.unwrap_or_default();
                let started = Pager::start(&memory, *found, first);
                pager = Some(started.map_err(doing("listen in"))?);
            }
            load = Some(Load {
                snapshot,
                state,
                memory,
                shared: common.is_some(),
                ready,
                agent,
                sockets,
            });
        }
        let opened = Opened {
            sockets,
            load,
            disks_of,
            lost,
            remarks,
        };
        let guest = Self {
            drives: Mutex::new(drives),
            servers: Mutex::new(servers),
            channel: Mutex::default(),
            pager,
            _common: common,
            parent: Mutex::new(parent),
        };
        Ok((opened, guest))
    }

    /// Its VMM can be told to take snapshots.
    pub fn attach(&self, stream: UnixStream) -> io::Result<()> {
        *lock(&self.channel) = Some(Channel::new(stream)?);
        Ok(())
    }

    /// Takes a snapshot.
    pub fn snapshot(
        &self,
        store: &Store,
        name: &str,
        labels: BTreeMap<String, String>,
        tell: &mut Tell<'_>,
    ) -> Result<(Info, End), TakeError> {
        let mut channel = lock(&self.channel);
        let Some(channel) = channel.as_mut() else {
            return Err(TakeError::Order("no VMM has a live channel"));
        };
        let parent = match *lock(&self.parent) {
            None => newest(store, name)?,
            parent => parent,
        };
        let drives = lock(&self.drives).clone();
        let errand = capture::Errand {
            store,
            guest: name,
            drives: &drives,
            parent,
            labels,
        };
        let taken = channel.take(errand, &mut |done, total| tell("saving", done, total))?;
        *lock(&self.parent) = Some(taken.0.id);
        Ok(taken)
    }

    /// The VMM is gone. Says which snapshot was found damaged while the guest went on from it.
    pub fn close(&self) -> Option<u64> {
        // A snapshot that is being taken ends with its VMM: then nobody has the disks any more.
        *lock(&self.channel) = None;
        lock(&self.servers).clear();
        lock(&self.drives).clear();
        self.pager.as_ref().and_then(Pager::stop)
    }
}

/// The newest snapshot of a guest that it can go on from.
pub fn newest(store: &Store, guest: &str) -> store::Result<Option<u64>> {
    Ok(begin::own(store, guest)?.pop().map(|info| info.id))
}

/// What the store calls a disk of a guest.
pub fn disk_name(guest: &str, source: &DiskSource) -> String {
    format!("{guest}/{}", source.drive_id)
}

/// Opens an image, which nobody may write to.
fn image_of(source: &DiskSource) -> Result<Arc<dyn Image>, GuestError> {
    let doing = |doing| {
        let path = source.image.clone();
        move |source| GuestError::File {
            doing,
            path,
            source,
        }
    };
    let image = File::open(&source.image).map_err(doing("open"))?;
    image.try_lock_shared().map_err(|error| match error {
        TryLockError::WouldBlock => GuestError::InUse {
            path: source.image.clone(),
        },
        TryLockError::Error(error) => doing("lock")(error),
    })?;
    Ok(Arc::new(image))
}

/// A disk of a guest: as it left it, new, or as in a snapshot.
pub fn disk(
    store: &Store,
    guest: &str,
    source: &DiskSource,
    snapshot: Option<&Info>,
    tell: &mut Tell<'_>,
) -> Result<Arc<Disk>, GuestError> {
    let name = disk_name(guest, source);
    if let Some(info) = snapshot {
        let object = format!("{DISK}{}", source.drive_id);
        let Some(found) = info.object(&object) else {
            return Err(GuestError::NoDrive {
                snapshot: info.id,
                drive: source.drive_id.clone(),
            });
        };
        if let Some(id) = &found.image {
            store.attach(id, image_of(source)?)?;
        }
        let disk = store.create_disk(&name, found.len, Some((info.id, &*object)))?;
        return Ok(Arc::new(disk));
    }
    let mut known = store.disks()?.into_iter();
    if let Some(known) = known.find(|disk| disk.name == name) {
        // The image is at the bottom, though the disk may stand on a snapshot.
        let below = match &known.base {
            Some((snapshot, object)) => store
                .info(*snapshot)?
                .object(object)
                .and_then(|it| it.image),
            None => known.image,
        };
        if let Some(id) = below {
            store.attach(&id, image_of(source)?)?;
        }
        return Ok(Arc::new(store.open_disk(&name)?));
    }
    new_disk(store, guest, source, tell)
}

/// A disk that is its image, whatever the guest has written to it before.
fn new_disk(
    store: &Store,
    guest: &str,
    source: &DiskSource,
    tell: &mut Tell<'_>,
) -> Result<Arc<Disk>, GuestError> {
    let image = image_of(source)?;
    // A list that is damaged is as good as none.
    let listed = list_of(&source.image).map(|list| store.adopt_with(Arc::clone(&image), &list));
    let adopted = match listed {
        Some(Ok(adopted)) => adopted,
        _ => store.adopt(image, &mut |done, total| {
            tell("reading the image for the first time", done, total);
        })?,
    };
    let name = disk_name(guest, source);
    let disk = store.create_disk(&name, adopted.len, Base::Image(adopted.id))?;
    Ok(Arc::new(disk))
}

/// The list that lies beside an image, so that the image need not be read for it. One that is older than the image is
/// not this image's any more.
fn list_of(image: &Path) -> Option<Vec<u8>> {
    /// That of an image of 128 GiB; reading a larger one takes long in any case.
    const MAX: u64 = 1 << 30;
    let mut list = image.as_os_str().to_owned();
    list.push(LIST);
    let changed = fs::metadata(image).and_then(|metadata| metadata.modified());
    let listed = fs::metadata(&list).ok().filter(|list| list.len() <= MAX)?;
    (listed.modified().ok()? >= changed.ok()?)
        .then(|| fs::read(&list).ok())
        .flatten()
}

/// What goes wrong with disks goes to the log.
#[expect(clippy::print_stderr, reason = "the log of a process of its own")]
fn report(guest: &str) -> nbd::Report {
    let guest = guest.to_owned();
    Arc::new(move |what| eprintln!("{guest}: {what}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
