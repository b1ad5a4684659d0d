//! Devices that come and go while the guest runs, and images that are exchanged.
//!
//! None of it is done on the main thread. Who asked gets the answer from where it is done; the configuration hears of it by
//! an order of its own.

use std::sync::PoisonError;
use std::sync::mpsc::{self, Sender};

use api::model::{Drive, NetworkInterface, PartialDrive};
use api::{Answer, Fault, Outcome, Request};

use super::opener::Job;
use super::{Action, Controller, Desk, Order, fault};
use crate::config::firecracker;
use crate::hotplug::{DeviceId, HotplugError};
use crate::machine::Running;

/// A section of the configuration as it is now.
pub enum Change {
    /// Of a drive that was plugged in, or has another image.
    Drive(Box<Drive>),
    /// Of an interface that was plugged in.
    Interface(Box<NetworkInterface>),
}

/// Where an answer goes. Who asked may be gone; by the control socket nobody waits.
pub type Reply = Option<Sender<Outcome>>;

fn send(reply: &Reply, outcome: Outcome) {
    if let Some(reply) = reply {
        let _ = reply.send(outcome);
    }
}

impl Change {
    fn id(&self) -> DeviceId {
        match self {
            Self::Drive(drive) => DeviceId::Drive(drive.drive_id.clone()),
            Self::Interface(interface) => DeviceId::Net(interface.iface_id.clone()),
        }
    }
}

impl Controller {
    /// What the guest is made of has changed.
    pub(super) fn changed(&mut self, change: Change) {
        match change {
            Change::Drive(drive) => {
                super::replace(&mut self.document.drives, *drive, |drive| &drive.drive_id);
            }
            Change::Interface(interface) => {
                let all = &mut self.document.network_interfaces;
                super::replace(all, *interface, |interface| &interface.iface_id);
            }
        }
    }

    /// Forgets what the guest has let go of.
    pub(super) fn forget_removed(&mut self) {
        let guest = self.guest.as_ref();
        let Some(hotplug) = guest.and_then(|guest| guest.targets.hotplug.as_ref()) else {
            return;
        };
        let now = hotplug.config();
        let document = &mut self.document;
        document.drives.retain(|drive| {
            now.drives
                .iter()
                .any(|has| has.id.as_str() == drive.drive_id)
        });
        document
            .network_interfaces
            .retain(|net| now.net.iter().any(|has| has.id == net.iface_id));
    }

    /// Carries out `request` if it is one of those that take their time. Otherwise gives it back.
    pub(super) fn plug(
        &mut self,
        request: Request,
        reply: &Sender<Outcome>,
    ) -> Result<(), Box<Request>> {
        let Some(guest) = &self.guest else {
            return Err(Box::new(request));
        };
        let reply = Some(reply.clone());
        match request {
            Request::PutDrive(drive) => self.attach(guest, Change::Drive(Box::new(drive)), reply),
            Request::PutNetworkInterface(interface) => {
                self.attach(guest, Change::Interface(Box::new(interface)), reply);
            }
            Request::DeleteDrive(id) => detach(guest, &DeviceId::Drive(id), &reply),
            Request::DeleteNetworkInterface(id) => detach(guest, &DeviceId::Net(id), &reply),
            Request::PatchDrive(update) => self.patch_drive(guest, &update, &reply),
            other => return Err(Box::new(other)),
        }
        Ok(())
    }

    /// The same by the control socket.
    pub(super) fn plug_by_control(&self, guest: &Running, action: Action) {
        match action {
            Action::AttachDrive { drive } => self.attach(guest, Change::Drive(drive), None),
            Action::AttachNet { interface } => {
                self.attach(guest, Change::Interface(interface), None);
            }
            Action::DetachDrive { drive_id } => detach(guest, &DeviceId::Drive(drive_id), &None),
            Action::DetachNet { iface_id } => detach(guest, &DeviceId::Net(iface_id), &None),
            _ => {}
        }
    }

    fn attach(&self, guest: &Running, change: Change, reply: Reply) {
        let id = change.id();
        let refused = |error: HotplugError, reply: &Reply| {
            guest.targets.events.attach_failed(&id, &error);
            send(reply, Err(refusal(&error, true)));
        };
        let Some(hotplug) = &guest.targets.hotplug else {
            return refused(HotplugError::NoPci, &reply);
        };
        let wrong = |source| HotplugError::Config {
            id: id.clone(),
            source: Box::new(source),
        };
        match change {
            Change::Drive(drive) => match firecracker::drive::check(&drive) {
                Ok(config) => hotplug.attach_drive(config, self.done(Change::Drive(drive), reply)),
                Err(error) => refused(wrong(error), &reply),
            },
            Change::Interface(interface) => {
                match firecracker::network_interfaces::check(&interface) {
                    Ok(config) => {
                        let done = self.done(Change::Interface(interface), reply);
                        hotplug.attach_net(config, done);
                    }
                    Err(error) => refused(wrong(error), &reply),
                }
            }
        }
    }

    /// What happens when a device is there, or is not.
    pub(super) fn done(&self, change: Change, reply: Reply) -> crate::hotplug::Reply {
        let desk = self.desk.clone();
        Box::new(move |result| match result {
            Ok(()) => finish(&desk, change, &reply),
            Err(error) => send(&reply, Err(refusal(&error, true))),
        })
    }

    fn patch_drive(&self, guest: &Running, update: &PartialDrive, reply: &Reply) {
        match self.prepare_patch(guest, update, reply) {
            Ok(job) => guest.opener.put(job),
            Err(fault) => send(reply, Err(fault)),
        }
    }

    /// Checks `update`. What is left to do may wait for another image's lock.
    fn prepare_patch(
        &self,
        guest: &Running,
        update: &PartialDrive,
        reply: &Reply,
    ) -> Result<Job, Fault> {
        const WHAT: &str = "Drive config error: Unable to patch the block device";
        let failed = |error: &dyn std::error::Error| fault::about(WHAT, error);
        let name = &update.drive_id;
        let unknown = || Fault::new(format!("{WHAT}: There is no drive \"{name}\""));
        let mut changed = self.document.clone();
        let mut drives = changed.drives.iter_mut();
        let drive = drives.find(|drive| drive.drive_id == *name);
        let drive = drive.ok_or_else(unknown)?;
        if let Some(path) = &update.path_on_host {
            drive.path_on_host = Some(path.clone());
        }
        if let Some(limiter) = update.rate_limiter {
            drive.rate_limiter = Some(drive.rate_limiter.unwrap_or_default().updated(limiter));
        }
        let drive = Box::new(drive.clone());
        let config = firecracker::drive::check(&drive).map_err(|error| failed(&error))?;
        firecracker::check(&changed, self.settings.pci).map_err(|error| failed(&error))?;
        let handle = guest.targets.handles.devices.drive(name);
        let handle = handle.ok_or_else(unknown)?;
        let limits = update.rate_limiter.is_some();
        let replaces = update.path_on_host.is_some();
        let (desk, reply) = (self.desk.clone(), reply.clone());
        Ok(Box::new(move || {
            let mut handle = handle.lock().unwrap_or_else(PoisonError::into_inner);
            if replaces && let Err(error) = handle.replace(&config) {
                return send(&reply, Err(fault::about(WHAT, &error)));
            }
            if limits && let Err(error) = handle.limits.set(config.rate_limiter.into()) {
                return send(&reply, Err(fault::about(WHAT, &error)));
            }
            finish(&desk, Change::Drive(drive), &reply);
        }))
    }
}

/// The configuration hears of it before who asked does, and so before that one's next request.
fn finish(desk: &Desk, change: Change, reply: &Reply) {
    let told = desk.put(Order::Changed(change));
    send(
        reply,
        told.map(|()| Answer::Done)
            .map_err(|error| fault::about("Internal VMM error", &error)),
    );
}

/// The guest is asked, and may take its time: what came of it is seen in the configuration.
fn detach(guest: &Running, id: &DeviceId, reply: &Reply) {
    let Some(hotplug) = &guest.targets.hotplug else {
        guest.targets.events.detach_failed(id, &HotplugError::NoPci);
        return send(reply, Err(refusal(&HotplugError::NoPci, false)));
    };
    let (sender, refused) = mpsc::channel();
    let told = move |result: Result<(), HotplugError>| {
        // Nobody listens any more when the guest has taken its time.
        let _ = sender.send(result);
    };
    hotplug.detach(id, Box::new(told));
    send(
        reply,
        match refused.try_recv() {
            Ok(Err(error)) => Err(refusal(&error, false)),
            Ok(Ok(())) | Err(_) => Ok(Answer::Done),
        },
    );
}

/// In Firecracker's words for a guest whose devices cannot come and go.
fn refusal(error: &HotplugError, attach: bool) -> Fault {
    let what = if attach { "plugged in" } else { "removed" };
    match error {
        HotplugError::NoPci => {
            let mut fault = Fault::after_start();
            fault.message.push_str(&format!(
                " Devices can be {what} while it runs if it was started with --enable-pci."
            ));
            fault
        }
        error => fault::about("Hot-plug error", error),
    }
}
