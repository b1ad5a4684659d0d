//! From the sources in a guest's configuration to files that its VMM can open.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use crate::config::{DiskFormat, GuestConfig, Kernel, Source};
use crate::disks::Disks;
use crate::flash::{Flash, FlashError};
use crate::own_kernel::{OwnKernel, OwnKernelError};

/// How often a disk that may still appear is looked for.
const POLL: Duration = Duration::from_millis(50);

/// Why an image cannot be used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Its file in flash is missing or damaged.
    #[error("cannot use {source_text}")]
    Flash {
        /// The source as configured.
        source_text: String,
        /// Cause.
        #[source]
        source: FlashError,
    },
    /// The guest's own disk does not say what it boots.
    #[error(transparent)]
    Own(#[from] OwnKernelError),
    /// A flash source on a machine that was not booted from our flash.
    #[error(
        "{name} is in flash, but this machine has no Daruma flash image; give a disk: source, a path, or a ROM (`daruma up --rom`)"
    )]
    NoFlash {
        /// The source as configured.
        name: String,
    },
    /// No disk has it.
    #[error("image {source_text} not found; looked in: {places}")]
    NotOnDisk {
        /// The source as configured.
        source_text: String,
        /// Every place that was looked in.
        places: String,
    },
    /// A path that cannot be opened.
    #[error("cannot open image {path}")]
    Path {
        /// The whole path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// A disk image, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Path of the image.
    pub path: PathBuf,
    /// What the image is.
    pub format: DiskFormat,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// It is memory to the guest.
    pub pmem: bool,
    /// Device and inode number: the same for every name of the file.
    pub identity: (u64, u64),
}

impl Drive {
    /// Whether what a guest writes to it can be kept in a store.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        !self.read_only && !self.pmem && self.format == DiskFormat::Raw
    }
}

/// All images of a guest, found.
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared {
    /// bzImage or ELF.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// What its own disk boots; `kernel` and `initrd` are copies that are removed with it.
    pub own: Option<OwnKernel>,
    /// Its own disk is in the store: what it boots is read once the store has opened it ([`Images::read_own`]).
    pub own_later: bool,
    /// Disks in their order.
    pub drives: Vec<Drive>,
}

impl Prepared {
    /// A drive of ours that `other` uses too, if one of the two writes to it; with a store, what they write is there.
    #[must_use]
    pub fn conflict(&self, other: &Self, has_store: bool) -> Option<&Drive> {
        let reads = |drive: &Drive| drive.read_only || has_store && drive.is_stored();
        self.drives.iter().find(|own| {
            (other.drives.iter())
                .any(|drive| drive.identity == own.identity && !(reads(drive) && reads(own)))
        })
    }
}

/// Where images are found.
#[derive(Debug)]
pub struct Images {
    /// The flash of the machine, if it has ours.
    pub flash: Option<Flash>,
    /// Attached disks.
    pub disks: Disks,
    /// Folder that relative paths start from.
    pub base: PathBuf,
    /// The executable that reads boot entries when it is called [`crate::own_kernel::READER_NAME`].
    pub program: PathBuf,
    /// Folder in memory for copies of guests' own kernels, each in a folder of its guest's name.
    pub run_folder: PathBuf,
}

impl Images {
    /// Finds the images of several guests and hands each result over as soon as it is there. In each round the guests
    /// have their turn in the given order. A disk that may still appear is waited for, and holds up no other guest.
    pub fn prepare(
        &self,
        mut guests: Vec<(usize, GuestConfig)>,
        has_store: bool,
        mut done: impl FnMut(usize, Result<Prepared, ImageError>),
    ) {
        loop {
            // Asked before looking: what appears in between is still found.
            let settled = self.disks.settled();
            guests.retain(
                |(index, config)| match self.try_prepare(config, has_store) {
                    Err(ImageError::NotOnDisk { .. }) if !settled => true,
                    result => {
                        done(*index, result);
                        false
                    }
                },
            );
            if guests.is_empty() {
                return;
            }
            thread::sleep(POLL);
        }
    }

    fn try_prepare(&self, config: &GuestConfig, has_store: bool) -> Result<Prepared, ImageError> {
        // Flash first: while its files are unpacked, disks have time to appear.
        let kernel = match &config.kernel {
            Kernel::File(Source::Flash(name)) => Some(
                self.flash(name)?
                    .kernel(name)
                    .map_err(|e| in_flash(name, e))?,
            ),
            Kernel::File(other) => Some(self.find(other)?),
            Kernel::OwnDisk => None,
        };
        let initrd = config
            .initrd
            .as_ref()
            .map(|source| self.find(source))
            .transpose()?;
        let drives = config.disks.iter().map(|disk| {
            let path = self.find(&disk.source)?;
            let identity = fs::metadata(&path)
                .map(|metadata| (metadata.dev(), metadata.ino()))
                .map_err(|source| ImageError::Path {
                    path: path.clone(),
                    source,
                })?;
            Ok(Drive {
                path,
                format: disk.format,
                read_only: disk.read_only,
                pmem: disk.pmem,
                identity,
            })
        });
        let drives: Vec<Drive> = drives.collect::<Result<_, ImageError>>()?;
        Ok(match (kernel, drives.first()) {
            (Some(kernel), _) => Prepared {
                kernel,
                initrd,
                own: None,
                own_later: false,
                drives,
            },
            (None, Some(first)) if has_store && first.is_stored() => Prepared {
                kernel: PathBuf::new(),
                initrd,
                own: None,
                own_later: true,
                drives,
            },
            (None, first) => {
                let own = OwnKernel::read(
                    &self.program,
                    // The configuration has a disk where it says that it boots from it.
                    first.map_or(&self.base, |drive| &drive.path),
                    None,
                    &self.run_folder.join(&config.name),
                    config.memory_mib,
                    &config.cmdline,
                )?;
                Prepared {
                    kernel: own.kernel.clone(),
                    initrd: own.initrd.clone(),
                    own: Some(own),
                    own_later: false,
                    drives,
                }
            }
        })
    }

    /// What the disk at `image` boots, which the store serves at `socket`.
    pub fn read_own(
        &self,
        config: &GuestConfig,
        image: &Path,
        socket: &Path,
    ) -> Result<OwnKernel, ImageError> {
        Ok(OwnKernel::read(
            &self.program,
            image,
            Some(socket),
            &self.run_folder.join(&config.name),
            config.memory_mib,
            &config.cmdline,
        )?)
    }

    fn find(&self, source: &Source) -> Result<PathBuf, ImageError> {
        match source {
            Source::Flash(name) => self.flash(name)?.file(name).map_err(|e| in_flash(name, e)),
            Source::Disk(path) => self.disks.find(path).ok_or_else(|| ImageError::NotOnDisk {
                source_text: source.to_string(),
                places: self.disks.places(),
            }),
            Source::Path(path) => {
                let path = self.base.join(path);
                // The VMM would say the same, but only after a process was started for it.
                match fs::File::open(&path) {
                    Ok(_) => Ok(path),
                    Err(source) => Err(ImageError::Path { path, source }),
                }
            }
        }
    }

    fn flash(&self, name: &str) -> Result<&Flash, ImageError> {
        self.flash.as_ref().ok_or_else(|| ImageError::NoFlash {
            name: format!("flash:{name}"),
        })
    }
}

fn in_flash(name: &str, source: FlashError) -> ImageError {
    ImageError::Flash {
        source_text: format!("flash:{name}"),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Limits, Machine};

    fn images(folder: &Path) -> Images {
        Images {
            flash: None,
            disks: Disks::folder(folder.to_owned()),
            base: folder.to_owned(),
            program: std::env::current_exe().unwrap(),
            run_folder: folder.to_owned(),
        }
    }

    fn config(kernel: &str, disk: &str) -> GuestConfig {
        let text = format!(
            "[[guest]]\nname = \"g\"\nmemory = 64\nkernel = \"{kernel}\"\nready = {{ boot-timer = true }}\n\
             [[guest.disk]]\nsource = \"{disk}\""
        );
        let mut machine = Machine::parse("m", &text, Limits::default()).unwrap();
        machine.guests.remove(0).config.unwrap()
    }

    fn prepare(folder: &Path, config: GuestConfig) -> Result<Prepared, ImageError> {
        let mut results = Vec::new();
        images(folder).prepare(vec![(7, config)], false, |index, result| {
            results.push((index, result));
        });
        let (index, result) = results.pop().unwrap();
        assert_eq!(index, 7);
        result
    }

    #[test]
    fn missing_image_names_path_and_places() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("k"), "kernel").unwrap();
        let error = prepare(folder.path(), config("k", "disk:no.img"))
            .unwrap_err()
            .to_string();
        let place = folder.path().display();
        assert_eq!(
            error,
            format!("image disk:no.img not found; looked in: {place}")
        );
        let error = prepare(folder.path(), config("nokernel", "disk:no.img")).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot open image {place}/nokernel")
        );
        let error = prepare(folder.path(), config("flash:k", "disk:no.img")).unwrap_err();
        assert!(
            error.to_string().contains("no Daruma flash image"),
            "{error}"
        );
    }

    #[test]
    fn one_file_under_two_names_is_one_disk() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("k"), "kernel").unwrap();
        fs::write(at("a.img"), "disk").unwrap();
        fs::write(at("other.img"), "disk").unwrap();
        fs::hard_link(at("a.img"), at("b.img")).unwrap();
        let [a, b, other] = ["disk:a.img", "b.img", "other.img"]
            .map(|disk| prepare(folder.path(), config("k", disk)).unwrap());
        assert_eq!(a.conflict(&b, false).unwrap().path, at("a.img"));
        assert_eq!(a.conflict(&other, false), None);
        assert_eq!(
            a.conflict(&b, true),
            None,
            "what they write is in the store"
        );
    }

    #[test]
    fn two_readers_share_a_disk() {
        let drive = |read_only| Prepared {
            kernel: PathBuf::new(),
            initrd: None,
            own: None,
            own_later: false,
            drives: vec![Drive {
                path: PathBuf::from("a"),
                format: DiskFormat::Raw,
                read_only,
                pmem: false,
                identity: (1, 2),
            }],
        };
        assert!(drive(true).conflict(&drive(true), false).is_none());
        assert!(drive(true).conflict(&drive(false), false).is_some());
    }
}
