//! The files in flash: found, checked, and copied once to where VMM processes can open them.

mod mapping;
mod unpack;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::{fs, io};

use firmware_glue::cbfs::{Cbfs, CbfsError, Kind};
use firmware_glue::fmap::{Fmap, FmapError, flash_in_window};
use firmware_glue::layout::{AREA_CBFS, KERNEL, MAX_ROM_SIZE};
use firmware_glue::name::Name;
use thiserror::Error;

use mapping::{NewFile, PhysicalWindow};
use unpack::{Payload, UnpackError};

/// x86 maps the end of flash to the end of the first 4 GiB.
const FLASH_END: u64 = 1 << 32;

/// Why a file of the flash cannot be used.
#[derive(Debug, Clone, Error)]
pub enum FlashError {
    /// Not in flash, damaged, or without a hash.
    #[error(transparent)]
    Cbfs(#[from] CbfsError),
    /// The copy cannot be made.
    #[error("Cannot write {path}")]
    Write {
        /// Path of the copy.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// A text file that is none.
    #[error("Flash file {name} is not UTF-8 text")]
    NotText {
        /// Its name.
        name: String,
    },
}

/// Why there is no flash to read.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The window or the ROM file cannot be read.
    #[error("Cannot read {place}")]
    Read {
        /// What was opened.
        place: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// There is memory, but no flash image in it: the machine was booted another way.
    #[error(transparent)]
    NoFlash(#[from] FmapError),
}

#[derive(Debug)]
enum Image {
    Window(PhysicalWindow),
    File(Vec<u8>),
}

impl Image {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Window(window) => window.bytes(),
            Self::File(bytes) => bytes,
        }
    }
}

/// What a file was made into. Two guests that need the same share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Wanted {
    File(String),
    Kernel(String),
}

type Made = Arc<OnceLock<Result<PathBuf, FlashError>>>;

/// A flash image and the copies made of its files.
#[derive(Debug)]
pub struct Flash {
    image: Image,
    folder: PathBuf,
    made: Mutex<HashMap<Wanted, Made>>,
}

impl Flash {
    /// The flash of this machine, which ends at 4 GiB. Copies go to `folder`.
    pub fn of_machine(folder: &Path) -> Result<Self, OpenError> {
        let length = MAX_ROM_SIZE;
        let window = PhysicalWindow::open(FLASH_END - length as u64, length).map_err(|source| {
            OpenError::Read {
                place: "/dev/mem".to_owned(),
                source,
            }
        })?;
        Self::new(Image::Window(window), folder)
    }

    /// A ROM in a file, for `daruma up --rom`.
    pub fn of_file(rom: &Path, folder: &Path) -> Result<Self, OpenError> {
        let bytes = fs::read(rom).map_err(|source| OpenError::Read {
            place: rom.display().to_string(),
            source,
        })?;
        Self::new(Image::File(bytes), folder)
    }

    fn new(image: Image, folder: &Path) -> Result<Self, OpenError> {
        region(image.bytes())?;
        Ok(Self {
            image,
            folder: folder.to_owned(),
            made: Mutex::default(),
        })
    }

    /// A file as text.
    pub fn text(&self, name: &str) -> Result<String, FlashError> {
        let copy = self.checked_copy(name)?;
        let data = Cbfs::new(&copy).find(name)?.data();
        String::from_utf8(data.to_vec()).map_err(|_| FlashError::NotText {
            name: name.to_owned(),
        })
    }

    /// Path of a copy of a file.
    pub fn file(&self, name: &str) -> Result<PathBuf, FlashError> {
        self.once(Wanted::File(name.to_owned()), || {
            let copy = self.checked_copy(name)?;
            self.write(name, Cbfs::new(&copy).find(name)?.data())
        })
    }

    /// Path of a kernel: the ELF inside a bzImage if it can be had, else the file as it is.
    pub fn kernel(&self, name: &str) -> Result<PathBuf, FlashError> {
        let made = self.once(Wanted::Kernel(name.to_owned()), || {
            let copy = match self.checked_copy(name) {
                Err(FlashError::Cbfs(CbfsError::NotFound { .. })) if name == KERNEL => {
                    return self.kernel_of_payload();
                }
                copy => copy?,
            };
            let data = Cbfs::new(&copy).find(name)?.data();
            // Any kernel boots without this, only slower: no reason to fail.
            match self.unpack(&format!("{name}.elf"), data) {
                Ok(path) => Ok(path),
                Err(_) => self.file(name),
            }
        })?;
        Ok(made)
    }

    /// The kernel in coreboot's payload, where it lies instead of in a file of its own.
    fn kernel_of_payload(&self) -> Result<PathBuf, FlashError> {
        let region = region(self.image.bytes()).unwrap_or_default();
        let missing = || CbfsError::NotFound {
            name: Name::new(KERNEL),
        };
        let mut payloads = Cbfs::new(region)
            .files()
            .filter_map(Result::ok)
            .filter(|file| file.kind() == Kind::SELF);
        let image = payloads
            .find_map(|file| {
                let copy = self.checked_copy(file.name()).ok()?;
                unpack::kernel_of_payload(Cbfs::new(&copy).find(file.name()).ok()?.data())
            })
            .ok_or_else(missing)?;
        match self.unpack(&format!("{KERNEL}.elf"), &image) {
            Ok(path) => Ok(path),
            Err(_) => self.write(KERNEL, &image),
        }
    }

    /// Makes a copy once; who comes second waits for the first.
    fn once(
        &self,
        wanted: Wanted,
        make: impl FnOnce() -> Result<PathBuf, FlashError>,
    ) -> Result<PathBuf, FlashError> {
        let slot = {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(made.entry(wanted).or_default())
        };
        slot.get_or_init(make).clone()
    }

    /// A file with its metadata, read from flash once and checked after that: flash is slow on real boards, and what was
    /// checked must be what is used.
    fn checked_copy(&self, name: &str) -> Result<Vec<u8>, FlashError> {
        // `new` found the region.
        let region = region(self.image.bytes()).unwrap_or_default();
        let file = Cbfs::new(region).find(name)?;
        let data = file.data_range();
        let start = data.start - file.metadata().len();
        let copy = region[start..data.end].to_vec();
        Cbfs::new(&copy).find(name)?.verify()?;
        Ok(copy)
    }

    fn write(&self, name: &str, data: &[u8]) -> Result<PathBuf, FlashError> {
        let path = self.path(name)?;
        fs::write(&path, data).map_err(|source| write_error(&path, source))?;
        Ok(path)
    }

    fn unpack(&self, name: &str, image: &[u8]) -> Result<PathBuf, KernelLeft> {
        let payload = Payload::find(image)?;
        let path = self.path(name)?;
        let mut file =
            NewFile::create(&path, payload.size).map_err(|source| write_error(&path, source))?;
        if let Err(error) = payload.unpack(file.bytes_mut()) {
            let _ = fs::remove_file(&path);
            return Err(error.into());
        }
        Ok(path)
    }

    /// Path of the copy of `name`: the same below our folder, because errors of the VMM show it. A name that would lead
    /// out of the folder is made flat.
    fn path(&self, name: &str) -> Result<PathBuf, FlashError> {
        let plain = |part| matches!(part, Component::Normal(_));
        let path = if Path::new(name).components().all(plain) {
            self.folder.join(name)
        } else {
            self.folder
                .join(format!("flat-{}", name.replace('/', "%2f")))
        };
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(|source| write_error(folder, source))?;
        Ok(path)
    }
}

/// Why a kernel is used as it lies in flash.
#[derive(Debug, Error)]
enum KernelLeft {
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Flash(#[from] FlashError),
}

fn write_error(path: &Path, source: io::Error) -> FlashError {
    FlashError::Write {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

/// The CBFS in the flash image at the end of `window`.
fn region(window: &[u8]) -> Result<&[u8], FmapError> {
    Fmap::find(flash_in_window(window)?)?.region(AREA_CBFS)
}

#[cfg(test)]
mod tests;
