//! Requests before the start: they fill the configuration, section by section.

use std::fs::OpenOptions;
use std::path::Path;

use api::model::{Action, Balloon, Document, Drive, Logger};
use api::{Answer, Fault, Outcome, Request};

use super::{Controller, fault, replace};
use crate::clock::StartTime;
use crate::config::firecracker;
use crate::logger;
use crate::metrics;

impl Controller {
    /// Carries out `request` on a guest that has not been started.
    pub(super) fn prepare(&mut self, request: Request) -> Outcome {
        use Request as R;
        match request {
            R::PutBootSource(source) => {
                let initrd = source.initrd_path.as_deref();
                for (what, path) in [
                    ("kernel", Some(&*source.kernel_image_path)),
                    ("initrd", initrd),
                ] {
                    if let Some(path) = path {
                        openable("Boot source error", what, path, false)?;
                    }
                }
                self.edit("Boot source error", |all| all.boot_source = Some(source))
            }
            R::PutMachineConfig(machine) => self.edit("Machine config error", |all| {
                all.machine_config = Some(machine);
            }),
            R::PatchMachineConfig(update) => self.edit("Machine config error", |all| {
                let machine = all.machine_config.take().unwrap_or_default();
                all.machine_config = Some(machine.updated(update));
            }),
            R::PutDrive(drive) => self.put_drive(drive),
            R::PutNetworkInterface(interface) => self.edit("Network config error", |all| {
                replace(&mut all.network_interfaces, interface, |a| &a.iface_id);
            }),
            R::PutPmem(pmem) => {
                let path = pmem.path_on_host.clone();
                let writes = !pmem.read_only;
                self.edit_with(
                    "Pmem device error",
                    |all| replace(&mut all.pmem, pmem, |a| &a.id),
                    || openable("Pmem device error", "backing", &path, writes),
                )
            }
            R::PutFs(fs) => self.edit("File system error", |all| {
                replace(&mut all.fs, fs, |a| &a.tag);
            }),
            R::PutVsock(vsock) => self.edit("Vsock config error", |all| all.vsock = Some(vsock)),
            R::PutBalloon(balloon) => {
                self.edit("Balloon config error", |all| all.balloon = Some(balloon))
            }
            R::PatchBalloon(update) => {
                self.edit_balloon(|balloon| balloon.amount_mib = update.amount_mib)
            }
            R::PatchBalloonStatistics(update) => self.edit_balloon(|balloon| {
                balloon.stats_polling_interval_s = update.stats_polling_interval_s;
            }),
            R::PutEntropy(entropy) => {
                self.edit("Entropy device error", |all| all.entropy = Some(entropy))
            }
            R::PutConsole(console) => self.edit("Console error", |all| all.console = Some(console)),
            R::PutSerial(serial) => {
                self.edit("Serial device error", |all| all.serial = Some(serial))
            }
            R::PutMmdsConfig(config) => {
                self.edit("MMDS config error", |all| all.mmds_config = Some(config))
            }
            R::PutMetrics(section) => {
                let path = &section.metrics_path;
                if let Err(error) = metrics::process().write_to(path) {
                    return Err(fault::about("Metrics error", &error));
                }
                self.edit("Metrics error", |all| all.metrics = Some(section))
            }
            R::PutLogger(config) => self.put_logger(&config),
            // A guest whose configuration took a minute has not been booting for a minute.
            R::PutAction(Action::InstanceStart) => {
                self.settings.events.restart(StartTime::new(None, None));
                match self.start() {
                    Ok(()) => Ok(Answer::Done),
                    Err(error) => Err(fault::about("Start microvm error", &error)),
                }
            }
            R::LoadSnapshot(request) => self.load_snapshot(&request),
            _ => Err(Fault::before_start()),
        }
    }

    /// Changes the configuration, if what comes out can be run.
    fn edit(&mut self, what: &str, change: impl FnOnce(&mut Document)) -> Outcome {
        self.edit_with(what, change, || Ok(()))
    }

    /// As [`Self::edit`], if `also` finds nothing wrong.
    fn edit_with(
        &mut self,
        what: &str,
        change: impl FnOnce(&mut Document),
        also: impl FnOnce() -> Result<(), Fault>,
    ) -> Outcome {
        let mut document = self.document.clone();
        change(&mut document);
        firecracker::check(&document, self.settings.pci)
            .map_err(|error| fault::about(what, &error))?;
        also()?;
        self.document = document;
        Ok(Answer::Done)
    }

    fn edit_balloon(&mut self, change: impl FnOnce(&mut Balloon)) -> Outcome {
        let mut balloon = self
            .document
            .balloon
            .clone()
            .ok_or_else(fault::no_balloon)?;
        change(&mut balloon);
        self.edit("Balloon config error", |all| all.balloon = Some(balloon))
    }

    fn put_drive(&mut self, drive: Drive) -> Outcome {
        let path = drive.path_on_host.clone().unwrap_or_default();
        let writes = !drive.is_read_only.unwrap_or(false);
        // A server is called when its guest starts: it may take one call for its last.
        let is_file = drive.format.as_deref() != Some("nbd");
        let change = |all: &mut Document| replace(&mut all.drives, drive, |a| &a.drive_id);
        self.edit_with("Drive config error", change, || {
            if is_file {
                openable("Drive config error", "backing", &path, writes)?;
            }
            Ok(())
        })
    }

    fn put_logger(&mut self, config: &Logger) -> Outcome {
        let mut document = self.document.clone();
        document.logger = Some(config.clone());
        let failed = |error: &dyn std::error::Error| fault::about("Logger error", error);
        firecracker::check(&document, self.settings.pci).map_err(|error| failed(&error))?;
        let change = logger::Change::try_from(config).map_err(|error| failed(&error))?;
        logger::configure(&change).map_err(|error| failed(&error))?;
        self.document = document;
        Ok(Answer::Done)
    }
}

/// Finds out early that a file cannot be used: who configures a guest is still there to be told.
fn openable(what: &str, kind: &str, path: &Path, writes: bool) -> Result<(), Fault> {
    let opened = OpenOptions::new().read(true).write(writes).open(path);
    opened.map(drop).map_err(|error| {
        Fault::new(format!(
            "{what}: The {kind} file cannot be opened: {error}: {}",
            path.display()
        ))
    })
}
