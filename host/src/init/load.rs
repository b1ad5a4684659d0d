//! Finding the machine file and the images: what may take time, done beside the console.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use firmware_glue::cbfs::CbfsError;
use firmware_glue::layout::MACHINE;

use super::boot_options::BootOptions;
use crate::config::{Limits, Machine, Source, host_memory_mib};
use crate::disks::Disks;
use crate::errors::chain;
use crate::flash::{Flash, FlashError, OpenError};
use crate::images::Images;
use crate::supervisor::Loaded;

/// The machine file on a disk, where flash has none.
const DISK_MACHINE: &str = "machine.toml";
const POLL: Duration = Duration::from_millis(50);

/// Opens flash, finds the machine file and reads it. `program` is the executable of host, VMM and boot entries' reader.
pub fn load(
    options: &BootOptions,
    program: PathBuf,
    flash_folder: &Path,
    run_folder: &Path,
    mut remarks: Vec<String>,
) -> Loaded {
    let flash = match Flash::of_machine(flash_folder) {
        Ok(flash) => Some(flash),
        Err(OpenError::NoFlash(_)) => {
            remarks
                .push("no flash image of ours below 4 GiB: everything comes from disks".to_owned());
            None
        }
        Err(error) => {
            remarks.push(chain(&error));
            None
        }
    };
    let images = Images {
        flash,
        disks: Disks::of_machine(run_folder.join("disk")),
        base: PathBuf::from("/"),
        program,
        run_folder: run_folder.to_owned(),
    };
    let machine = (!options.recovery).then(|| {
        let (file, text) = text(options.machine.as_ref(), &images, &mut remarks)?;
        let limits = Limits {
            host_memory_mib: host_memory_mib(),
        };
        Machine::parse(&file, &text, limits).map_err(|error| chain(&error))
    });
    remarks.extend(images.disks.remarks());
    Loaded {
        machine,
        images,
        remarks,
    }
}

/// Name (for messages) and text of the machine file.
fn text(
    wanted: Option<&Source>,
    images: &Images,
    remarks: &mut Vec<String>,
) -> Result<(String, String), String> {
    match wanted {
        Some(Source::Flash(name)) => {
            let flash = images.flash.as_ref().ok_or_else(|| {
                format!("{name} is in flash, and this machine has no Daruma flash image")
            })?;
            let text = flash.text(name).map_err(|error| chain(&error))?;
            Ok((base_name(Path::new(name)), text))
        }
        Some(Source::Disk(path)) => on_disk(images, path),
        Some(Source::Path(path)) => read(Path::new(path)),
        None => {
            match images.flash.as_ref().map(|flash| flash.text(MACHINE)) {
                Some(Ok(text)) => return Ok((base_name(Path::new(MACHINE)), text)),
                // A ROM may leave it to the disk.
                None | Some(Err(FlashError::Cbfs(CbfsError::NotFound { .. }))) => {}
                Some(Err(error)) => remarks.push(chain(&error)),
            }
            on_disk(images, DISK_MACHINE)
        }
    }
}

fn on_disk(images: &Images, path: &str) -> Result<(String, String), String> {
    loop {
        // Asked before looking: what appears in between is still found.
        let settled = images.disks.settled();
        match images.disks.find(path) {
            Some(path) => return read(&path),
            None if settled => {
                return Err(format!(
                    "disk:{path} not found; looked in: {}",
                    images.disks.places()
                ));
            }
            None => sleep(POLL),
        }
    }
}

fn read(path: &Path) -> Result<(String, String), String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok((base_name(path), text))
}

fn base_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}
