//! A directory of the host's file system.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Medium, MediumFile};

/// Name of the file whose lock says that a process has the store open.
const LOCK: &str = "lock";

/// A directory, locked for as long as this lives: exclusively, or shared with other readers.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    handle: File,
    read_only: bool,
    // `None` where the directory cannot be written, so that nobody else can change it either.
    _lock: Option<File>,
}

impl Directory {
    /// Opens a directory for reading and writing, making it if it is missing.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path)?;
        Self::with(path, false)
    }

    /// Opens a directory for reading.
    pub fn open_read_only(path: impl Into<PathBuf>) -> io::Result<Self> {
        Self::with(path.into(), true)
    }

    fn with(path: PathBuf, read_only: bool) -> io::Result<Self> {
        let handle = File::open(&path)?;
        let file = path.join(LOCK);
        let lock = if read_only {
            // A copy on a read-only disk may be without the file.
            File::open(file).ok()
        } else {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false);
            Some(options.open(file)?)
        };
        if let Some(lock) = &lock {
            let taken = if read_only {
                lock.try_lock_shared()
            } else {
                lock.try_lock()
            };
            match taken {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(
                        io::ErrorKind::ResourceBusy,
                        "another process has this store open",
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(Self {
            path,
            handle,
            read_only,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(!self.read_only);
        options
    }
}

impl Medium for Directory {
    fn open(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        Ok(Arc::new(self.options().open(self.path.join(name))?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MediumFile>> {
        let mut options = self.options();
        let file = options.create_new(true).open(self.path.join(name))?;
        Ok(Arc::new(file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != LOCK {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn read_only(&self) -> bool {
        self.read_only
    }
}

impl MediumFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(self, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn sync(&self) -> io::Result<()> {
        // Size and data; times do not matter.
        self.sync_data()
    }
}
