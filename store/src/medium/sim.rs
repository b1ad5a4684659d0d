//! A medium in memory that records what is done to it, fails on demand, and shows what a power cut could leave.
//!
//! # Model
//! Contents and names of files are separate, as in POSIX. An operation is pending until a later sync of its file (of the
//! names, for a creation or a removal) has returned. After a cut, each pending operation may be there or not, whatever
//! the others; of a write each sector of 512 bytes may be there or not. Two writes to one sector keep their order: both
//! pass through one page of the host's cache.

mod image;
mod log;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::image::{Image, SECTOR};
pub use self::log::{Log, Operation, Power};
use super::{Medium, MediumFile};

/// A medium in memory. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Simulated(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    image: Image,
    log: Option<Log>,
    read_only: bool,
    /// Operations until one fails, and how.
    failing: Option<Failing>,
    operations: u64,
}

/// How operations fail.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    /// Operations that still work. All later ones fail, or one only.
    pub after: u64,
    /// Whether later ones work again.
    pub once: bool,
    /// What they fail with.
    pub kind: io::ErrorKind,
}

impl Simulated {
    /// A medium with this on it.
    pub fn of(image: Image) -> Self {
        let state = State {
            image,
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing can be written.
    pub fn set_read_only(&self) {
        self.state().read_only = true;
    }

    /// Begins to record.
    pub fn record(&self) {
        let mut state = self.state();
        state.log = Some(Log::new(state.image.clone()));
    }

    /// What was recorded.
    pub fn recorded(&self) -> Log {
        (self.state().log.take()).unwrap_or_else(|| Log::new(Image::default()))
    }

    /// Operations that were recorded so far: a place in the log.
    pub fn place(&self) -> usize {
        self.state()
            .log
            .as_ref()
            .map_or(0, |log| log.operations.len())
    }

    /// What is on it, as a program sees it.
    pub fn image(&self) -> Image {
        self.state().image.clone()
    }

    /// Makes operations fail.
    pub fn fail(&self, failing: Option<Failing>) {
        let mut state = self.state();
        state.failing = failing;
        state.operations = 0;
    }

    /// Operations that changed something or wanted to, since the last [`Simulated::fail`].
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Changes a byte behind the store's back.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) {
        self.state().image.flip(name, offset, mask);
    }
}

impl State {
    fn act(&mut self, operation: Operation) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let number = self.operations;
        self.operations += 1;
        if let Some(failing) = self.failing
            && (number == failing.after || (number > failing.after && !failing.once))
        {
            // A write that fails may have been done in part.
            if let Operation::Write { file, offset, data } = &operation {
                let half = data.len() / 2 / SECTOR * SECTOR;
                self.image.write(*file, *offset, &data[..half]);
            }
            return Err(failing.kind.into());
        }
        self.image.apply(&operation);
        if let Some(log) = &mut self.log {
            log.operations.push(operation);
        }
        Ok(())
    }
}

impl Medium for Simulated {
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        let file = self
            .state()
            .image
            .find(name)
            .ok_or(io::ErrorKind::NotFound)?;
        let medium = self.clone();
        Ok(Arc::new(SimulatedFile { medium, file }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        let mut state = self.state();
        if state.image.find(name).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.image.next_file();
        state.act(Operation::Create {
            name: name.to_owned(),
            file,
        })?;
        drop(state);
        let medium = self.clone();
        Ok(Arc::new(SimulatedFile { medium, file }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.image.find(name).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name = name.to_owned();
        state.act(Operation::Remove { name })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().image.names())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.state().act(Operation::SyncNames)
    }

    fn read_only(&self) -> bool {
        self.state().read_only
    }
}

#[derive(Debug)]
struct SimulatedFile {
    medium: Simulated,
    file: usize,
}

impl MediumFile for SimulatedFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.medium.state().image.size(self.file))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.medium.state().image.read(self.file, offset, buffer))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.medium.state().act(Operation::Write {
            file: self.file,
            offset,
            data: data.into(),
        })
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let file = self.file;
        self.medium.state().act(Operation::SetSize { file, size })
    }

    fn sync(&self) -> io::Result<()> {
        let file = self.file;
        self.medium.state().act(Operation::Sync { file })
    }
}
