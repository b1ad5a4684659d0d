//! Images: immutable files that stay where they are, and that disks stand on.
//!
//! The store keeps no byte of an image, but the digest of each of its pages ([`list`]). Who opens the store says where the
//! image is ([`Store::attach`]), and each page is checked when it is read: a file that was changed, or that is another one,
//! is an error and never wrong data.

mod attached;
mod list;
mod manage;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};

pub(crate) use self::attached::Attached;
pub(crate) use self::list::{GROUP as LIST_GROUP, List};
pub use self::manage::image_list;
use crate::error::{Error, Result};
use crate::hash::{Digest, DigestMap};
use crate::index::View;
use crate::record;
use crate::store::Inner;

/// An image where it is.
pub trait Image: Send + Sync {
    /// Bytes.
    fn size(&self) -> io::Result<u64>;

    /// Reads exactly these bytes.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Where the next byte is that may not be zero, from `offset` on: so that holes need not be read.
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }
}

/// A file or a block device.
impl Image for File {
    fn size(&self) -> io::Result<u64> {
        // Not by its metadata, in which a block device has no size. Nobody reads where the file is at.
        let mut file = self;
        file.seek(SeekFrom::End(0))
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        let Ok(from) = i64::try_from(offset) else {
            return Ok(offset);
        };
        match lseek(self, from, Whence::SeekData) {
            Ok(found) => Ok(u64::try_from(found).unwrap_or(offset)),
            Err(Errno::ENXIO) => Ok(u64::MAX),
            // A file system, or a device, that knows no holes.
            Err(_) => Ok(offset),
        }
    }
}

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Hash of its length and of all its pages: what it is.
    pub id: Digest,
    /// Bytes.
    pub len: u64,
    /// Number of the file with its digests.
    file: u64,
}

impl ImageInfo {
    pub(crate) fn unseal(id: &Digest, bytes: &[u8]) -> Result<Self> {
        let what = || format!("image {id}");
        let info: Self = record::unseal(&what, bytes)?;
        if info.id != *id {
            return Err(Error::Record {
                what: what(),
                why: "it is another one's".to_owned(),
            });
        }
        Ok(info)
    }

    pub(crate) fn all(view: &View) -> Result<Vec<Self>> {
        let all = view.images()?.into_iter();
        all.map(|(id, bytes)| Self::unseal(&id, &bytes)).collect()
    }

    pub(crate) fn file(&self) -> u64 {
        self.file
    }
}

/// Name of a list's file.
pub(crate) fn name(number: u64) -> String {
    format!("image-{number:08x}")
}

/// Number of the list that a file name names.
pub(crate) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("image-")?;
    (digits.len() >= 8).then(|| u64::from_str_radix(digits, 16).ok())?
}

fn unknown(id: &Digest) -> Error {
    Error::NoImage {
        image: id.to_string(),
    }
}

/// Lists that are open, and where their images are.
///
/// A list's file is removed only with this locked and after its record is gone; who opens one looks at the record with
/// this locked. So nobody opens a file that is gone.
#[derive(Default)]
pub(crate) struct Images(Mutex<DigestMap<Open>>);

pub(crate) struct Open {
    list: Arc<List>,
    image: Option<Arc<Attached>>,
}

impl Open {
    fn new(list: Arc<List>, image: Arc<dyn Image>) -> Self {
        let image = Arc::new(Attached {
            list: Arc::clone(&list),
            image,
        });
        Self {
            list,
            image: Some(image),
        }
    }
}

impl Images {
    fn lock(&self) -> std::sync::MutexGuard<'_, DigestMap<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The list of an image.
    pub fn image_list(&self, id: &Digest) -> Result<Arc<List>> {
        let mut open = self.images.lock();
        if let Some(open) = open.get(id) {
            return Ok(Arc::clone(&open.list));
        }
        let record = self.index.view()?.image(id)?;
        let info = ImageInfo::unseal(id, &record.ok_or_else(|| unknown(id))?)?;
        let list = Arc::new(self.open_list(&info)?);
        let new = Open {
            list: Arc::clone(&list),
            image: None,
        };
        open.insert(*id, new);
        Ok(list)
    }

    /// Opens the list of an image as it is on the disk.
    pub fn open_list(&self, info: &ImageInfo) -> Result<List> {
        let name = name(info.file);
        let file = match self.medium.open(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let needed = list::size(info.len);
                let found = 0;
                return Err(Error::Partial {
                    name,
                    found,
                    needed,
                });
            }
            Err(error) => return Err(Error::io(format!("open {name}"))(error)),
        };
        List::open(&name, file, info.id, info.len)
    }

    /// An image that somebody has attached.
    pub fn image(&self, id: &Digest) -> Result<Arc<Attached>> {
        if let Some(open) = self.images.lock().get(id)
            && let Some(image) = &open.image
        {
            return Ok(Arc::clone(image));
        }
        Err(Error::Detached {
            image: id.to_string(),
            len: self.image_list(id)?.len(),
        })
    }

    /// Whether an image is in the store, in the transaction that is to refer to it.
    pub fn image_known(change: &crate::index::Change<'_>, id: Option<&Digest>) -> Result<()> {
        match id {
            Some(id) if change.image(id)?.is_none() => Err(unknown(id)),
            _ => Ok(()),
        }
    }
}
