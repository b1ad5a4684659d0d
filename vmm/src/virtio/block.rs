//! Disks: from the configuration to the device.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use devices::rate_limiter::LimitsControl;
use devices::virtio::block::nbd::NbdError;
use devices::virtio::block::qcow2::Qcow2Error;
use devices::virtio::block::raw_file::RawFileError;
use devices::virtio::block::{
    Backend, Block, BlockControl, Engine, Nbd, Options, Qcow2File, RawFile,
};

use super::VirtioError;
use super::listener::reach;
use crate::config::{DiskFormat, DriveConfig, DriveQueues, VcpuCount};
use crate::jail::opened::{self, Kind};
use crate::metrics;

/// Why an image is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(transparent)]
    Raw(#[from] RawFileError),
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
    #[error(transparent)]
    Nbd(#[from] NbdError),
}

/// What can be done with a drive while a guest has it.
pub struct Handle {
    /// How much the guest may move in a time.
    pub limits: LimitsControl,
    control: BlockControl,
    /// `None` is a server's: each connection to it is another disk.
    image: Option<Identity>,
}

impl Handle {
    /// Puts the image of `drive` in the place of the present one. If it is the same file, only its length is looked at
    /// again.
    pub fn replace(&mut self, drive: &DriveConfig) -> Result<(), VirtioError> {
        let changed = |source| VirtioError::ChangeDrive {
            id: drive.id.to_string(),
            source,
        };
        let (source, identity) = open(drive)?;
        if identity.is_some() && identity == self.image {
            return self.control.refresh().map_err(changed);
        }
        let disk = backend(drive, source)?;
        self.control.replace(disk).map_err(changed)?;
        self.image = identity;
        Ok(())
    }
}

/// Where a disk's bytes are.
enum Bytes {
    File(File),
    /// Behind a connection to a server.
    Server(UnixStream),
}

/// A file, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

/// Opens the image of `drive`, for a guest with `vcpus`.
pub(super) fn make(drive: &DriveConfig, vcpus: VcpuCount) -> Result<(Block, Handle), VirtioError> {
    let (source, image) = open(drive)?;
    let backend = backend(drive, source)?;
    // Without limits too: they may come later.
    let limiter = super::rate_limiter(drive.rate_limiter)?;
    let limits = limiter.control();
    let options = Options {
        serial: drive.id.to_string(),
        queues: drive
            .queues
            .unwrap_or_else(|| DriveQueues::for_vcpus(vcpus))
            .get(),
        limiter: Some(limiter),
    };
    let block = Block::new(backend, Engine::new(drive.engine), options).map_err(|source| {
        VirtioError::DriveEvents {
            id: drive.id.to_string(),
            source,
        }
    })?;
    metrics::process().watch("block", Some(drive.id.as_str()), &block);
    let handle = Handle {
        limits,
        control: block.control(),
        image,
    };
    Ok((block, handle))
}

/// Opens what [`make`] needs.
pub(super) fn open_ahead(drive: &DriveConfig) -> Result<(), VirtioError> {
    if drive.format == DiskFormat::Nbd {
        let stream = reach(&drive.path).map_err(|source| no_server(drive, source))?;
        opened::keep(Kind::Connection, &drive.path, stream);
        return Ok(());
    }
    opened::keep_file(&drive.path, !drive.read_only).map_err(|source| not_open(drive, source))?;
    if let DiskFormat::Qcow2 { backing_files } = &drive.format {
        opened::note(&drive.path);
        for path in backing_files {
            // One that does not exist permits nothing; nor does one that no image names matter.
            opened::note(path);
            let Ok(path) = opened::canonicalize(path) else {
                continue;
            };
            let _ = opened::keep_file(&path, false);
        }
    }
    Ok(())
}

fn not_open(drive: &DriveConfig, source: io::Error) -> VirtioError {
    VirtioError::OpenDrive {
        id: drive.id.to_string(),
        path: drive.path.clone(),
        source,
    }
}

fn no_server(drive: &DriveConfig, source: io::Error) -> VirtioError {
    VirtioError::DriveServer {
        id: drive.id.to_string(),
        path: drive.path.clone(),
        source,
    }
}

fn open(drive: &DriveConfig) -> Result<(Bytes, Option<Identity>), VirtioError> {
    if drive.format == DiskFormat::Nbd {
        let stream = match opened::take(Kind::Connection, &drive.path) {
            Some(stream) => stream.into(),
            None => reach(&drive.path).map_err(|source| no_server(drive, source))?,
        };
        return Ok((Bytes::Server(stream), None));
    }
    let failed = |source| not_open(drive, source);
    let file = opened::file(&drive.path, !drive.read_only).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let identity = Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
    };
    Ok((Bytes::File(file), Some(identity)))
}

fn backend(drive: &DriveConfig, bytes: Bytes) -> Result<Box<dyn Backend>, VirtioError> {
    disk(drive, bytes).map_err(|source| VirtioError::UseDrive {
        id: drive.id.to_string(),
        path: drive.path.clone(),
        source,
    })
}

fn disk(drive: &DriveConfig, bytes: Bytes) -> Result<Box<dyn Backend>, DiskError> {
    let file = match bytes {
        Bytes::File(file) => file,
        // The one export that a server has without being asked for a name.
        Bytes::Server(stream) => return Ok(Box::new(Nbd::new(stream, "", drive.read_only)?)),
    };
    Ok(match &drive.format {
        DiskFormat::Raw | DiskFormat::Nbd => Box::new(RawFile::new(file, drive.read_only)?),
        DiskFormat::Qcow2 { backing_files } => {
            let mut permitted = Permitted::new(&drive.path, backing_files);
            let mut open = |name: &str| permitted.open(name);
            Box::new(Qcow2File::new(file, drive.read_only, &mut open)?)
        }
    })
}

/// The files a drive's images may be based on, whatever the images say.
struct Permitted {
    files: Vec<PathBuf>,
    /// Where the image is that names the next file.
    directory: PathBuf,
}

impl Permitted {
    fn new(image: &Path, files: &[PathBuf]) -> Self {
        // Compared by what they are, not by how they are spelt. One that does not exist permits nothing.
        let files = files
            .iter()
            .filter_map(|file| opened::canonicalize(file).ok());
        Self {
            files: files.collect(),
            directory: directory(image),
        }
    }

    fn open(&mut self, name: &str) -> Result<File, Qcow2Error> {
        let refused = || Qcow2Error::BackingNotPermitted { name: name.into() };
        let path = self.directory.join(name);
        // What is not permitted is not even told from what does not exist.
        let path = opened::canonicalize(&path).map_err(|_| refused())?;
        if !self.files.contains(&path) {
            return Err(refused());
        }
        self.directory = directory(&path);
        opened::file(&path, false).map_err(|source| Qcow2Error::BackingOpen {
            name: name.into(),
            source,
        })
    }
}

fn directory(path: &Path) -> PathBuf {
    let path = opened::canonicalize(path).unwrap_or_else(|_| path.into());
    path.parent().map(Path::to_path_buf).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use devices::virtio::block::engine::Preference;

    use super::*;
    use crate::config::{DriveId, RateLimiterConfig};

    #[test]
    fn only_named_files_are_opened_however_they_are_spelt() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["image", "base", "secret"] {
            fs::write(at(name), name).unwrap();
        }
        fs::create_dir(at("deep")).unwrap();
        fs::write(at("deep/lowest"), "lowest").unwrap();
        std::os::unix::fs::symlink(at("secret"), at("innocent")).unwrap();

        let named = [at("deep/../base"), at("deep/lowest"), at("missing")];
        let mut permitted = Permitted::new(&at("image"), &named);
        for name in [
            "secret",
            "innocent",
            "../secret",
            "/etc/passwd",
            "missing",
            "",
            "json:{}",
        ] {
            let error = permitted.open(name).unwrap_err();
            assert!(
                matches!(error, Qcow2Error::BackingNotPermitted { .. }),
                "{name}: {error}"
            );
        }
        permitted.open("base").unwrap();
        permitted.open("deep/lowest").unwrap();
        // From there on, names are relative to the lower image.
        permitted.open("../base").unwrap();
        permitted.open(at("base").to_str().unwrap()).unwrap();
    }

    #[test]
    fn header_of_another_format_in_a_raw_image_means_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        // What a guest may write to its own disk: a qcow2 header of version 3 that names a backing file of the host.
        let mut image = vec![0; 64 << 10];
        image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        image[8..16].copy_from_slice(&0x200_u64.to_be_bytes());
        image[16..20].copy_from_slice(&11_u32.to_be_bytes());
        image[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
        image[0x200..0x20b].copy_from_slice(b"/etc/passwd");
        fs::write(&path, &image).unwrap();
        let drive = DriveConfig {
            id: DriveId::new("disk".into()).unwrap(),
            path: path.clone(),
            format: DiskFormat::default(),
            read_only: false,
            is_root: false,
            partuuid: None,
            rate_limiter: RateLimiterConfig::default(),
            engine: Preference::Synchronous,
            queues: None,
        };
        let (file, _) = open(&drive).unwrap();
        let disk = disk(&drive, file).unwrap();
        assert_eq!(disk.len(), 64 << 10);
        assert_eq!(fs::read(&path).unwrap(), image, "nothing was repaired");
    }

    #[test]
    fn no_file_is_permitted_by_default() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("base"), "base").unwrap();
        let mut permitted = Permitted::new(&dir.path().join("image"), &[]);
        assert!(permitted.open("base").is_err());
    }
}
