//! The typed interface to one guest, for everybody who asks for something: the API, the control socket, the command line.
//!
//! ```text
//!   API thread ──► Desk ─┐                      ┌─► prepare: the configuration, until the start
//!   control socket ──────┴─► Inbox ─► Controller ┼─► start: builds the machine and runs it
//!   (main thread)                                ├─► runtime: pauses it, changes its devices
//!                                                └─► plug: devices that come and go, on threads of their own
//! ```
//!
//! Everything is carried out by the main thread, one thing after the other, between two turns of its event loop.

mod fault;
mod inbox;
mod opener;
mod plug;
mod prepare;
mod replace;
mod runtime;
mod snapshot;
mod start;
mod targets;

use std::sync::Arc;

use api::model::{
    Action as ApiAction, Document, Drive, InstanceInfo, MachineConfig, NetworkInterface, State,
    Version,
};
use api::{Answer, Fault, Outcome, Request};
use event_manager::SubscriberOps;
use serde::Deserialize;

pub use self::inbox::{Desk, Inbox, Order};
pub use self::opener::Opener;
pub use self::snapshot::{Load, LoadError};
pub use self::start::{Settings, StartError};
pub use self::targets::Targets;
use crate::control::Control;
use crate::device_thread::EndWatch;
use crate::exit::ExitReason;
use crate::latch::ExitLatch;
use crate::live;
use crate::machine::{EventLoop, MachineError, Running};
use crate::metrics;
use crate::mmds::{self, StoreError};
use crate::terminal::RawMode;

/// What can be asked for on the control socket.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are those of the contract")]
pub enum Action {
    PowerButton,
    Stop,
    Stats,
    Metrics,
    FlushMetrics,
    RenewGenerationId,
    Resize { columns: u16, rows: u16 },
    Balloon { amount_mib: u32 },
    AttachDrive { drive: Box<Drive> },
    AttachNet { interface: Box<NetworkInterface> },
    DetachDrive { drive_id: String },
    DetachNet { iface_id: String },
}

/// One guest, from an empty configuration to the end of its run.
pub struct Controller {
    settings: Settings,
    document: Document,
    latch: Arc<ExitLatch>,
    event_loop: EventLoop,
    inbox: Inbox,
    desk: Desk,
    guest: Option<Running>,
    /// Until there is a guest.
    store: Option<live::Channel>,
    /// The user's terminal is the guest's as long as it runs.
    raw_mode: Option<RawMode>,
}

impl Controller {
    /// A controller without a guest, and where it takes orders. Its control socket is `control`, and the store that takes
    /// snapshots of its guest is at the other end of `store`.
    pub fn new(
        settings: Settings,
        control: Option<std::os::unix::net::UnixStream>,
        store: Option<live::Channel>,
    ) -> Result<(Self, Desk), MachineError> {
        let latch = Arc::new(ExitLatch::new().map_err(MachineError::Event)?);
        let (inbox, desk, bell) = Inbox::new().map_err(MachineError::Event)?;
        let mut event_loop = EventLoop::new().map_err(MachineError::EventLoop)?;
        event_loop.add_subscriber(Box::new(EndWatch::new(latch.clone())));
        event_loop.add_subscriber(Box::new(bell));
        if let Some(socket) = control {
            event_loop.add_subscriber(Box::new(Control::new(socket, desk.clone())));
        }
        let document = Document {
            machine_config: Some(MachineConfig::default()),
            ..Document::default()
        };
        let controller = Self {
            settings,
            document,
            latch,
            event_loop,
            inbox,
            desk: desk.clone(),
            guest: None,
            store,
            raw_mode: None,
        };
        Ok((controller, desk))
    }

    /// Carries out orders until the run has ended, and says why it has.
    pub fn run(mut self) -> ExitReason {
        // What came before the loop did.
        self.work_off();
        while !self.latch.is_set() {
            match self.event_loop.run() {
                Ok(events) => metrics::process().vmm.device_events.add(events as u64),
                Err(error) => {
                    let what = format!("The event loop failed: {error}");
                    self.latch.set(ExitReason::Error(what));
                }
            }
            self.work_off();
        }
        if let Some(guest) = self.guest {
            guest.end();
        }
        drop(self.raw_mode);
        let unknown = || ExitReason::Error("The run ended without a reason".into());
        self.latch.reason().cloned().unwrap_or_else(unknown)
    }

    fn work_off(&mut self) {
        while let Some(order) = self.inbox.take() {
            match order {
                Order::Control(action) => self.act(action),
                Order::Changed(change) => self.changed(change),
                Order::Describe(reply) => {
                    self.forget_removed();
                    // Who asked may have waited long enough.
                    let _ = reply.send(self.document.clone());
                }
                Order::Api(request, reply) => {
                    self.forget_removed();
                    let counters = metrics::process().api.counters(&request);
                    match self.plug(*request, &reply) {
                        // How it ends is known later.
                        Ok(()) => counters.count(true),
                        Err(request) => {
                            let outcome = self.handle(*request);
                            counters.count(outcome.is_ok());
                            // Who asked may be gone.
                            let _ = reply.send(outcome);
                        }
                    }
                }
            }
        }
    }

    fn act(&self, action: Action) {
        match (&self.guest, action) {
            (
                Some(guest),
                action @ (Action::AttachDrive { .. }
                | Action::AttachNet { .. }
                | Action::DetachDrive { .. }
                | Action::DetachNet { .. }),
            ) => self.plug_by_control(guest, action),
            (Some(guest), action) => guest.targets.act(&action),
            (None, Action::Stop) => self.latch.set(ExitReason::Stopped),
            (None, action) => log::warn!("There is no guest yet for {action:?}"),
        }
    }

    /// Carries out a request of the API.
    pub fn handle(&mut self, request: Request) -> Outcome {
        use Request as R;
        match request {
            R::GetInstance => Answer::json(&self.instance()),
            R::GetVersion => Answer::json(&Version {
                firecracker_version: env!("CARGO_PKG_VERSION").into(),
            }),
            R::GetVmConfig => Answer::json(&self.document),
            R::GetMachineConfig => Answer::json(&self.document.machine_config),
            R::GetBalloon => match &self.document.balloon {
                Some(balloon) => Answer::json(balloon),
                None => Err(fault::no_balloon()),
            },
            R::NotSupported(what) => Err(Fault::not_supported(what)),
            R::GetMmds => Ok(Answer::Json(mmds::process().store().get().clone())),
            R::PutMmds(data) => metadata_changed(mmds::process().store().put(data)),
            R::PatchMmds(patch) => metadata_changed(mmds::process().store().patch(&patch)),
            R::GetMetrics => Ok(Answer::Json(metrics::process().snapshot().to_json())),
            R::PutAction(ApiAction::FlushMetrics) => self.flush_metrics(),
            request => match &mut self.guest {
                None => self.prepare(request),
                Some(guest) => runtime::handle(guest, &mut self.document, request),
            },
        }
    }

    fn flush_metrics(&self) -> Outcome {
        if self.guest.is_none() {
            return Err(Fault::before_start());
        }
        if metrics::process().flush() {
            Ok(Answer::Done)
        } else {
            Err(Fault::new(
                "Internal VMM error: Metrics go nowhere: PUT /metrics says where",
            ))
        }
    }

    fn instance(&self) -> InstanceInfo {
        let state = match &self.guest {
            None => State::NotStarted,
            Some(guest) if guest.is_paused() => State::Paused,
            Some(_) => State::Running,
        };
        InstanceInfo {
            app_name: "Daruma".into(),
            id: self.settings.id.clone(),
            state,
            vmm_version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

fn metadata_changed(result: Result<(), StoreError>) -> Outcome {
    match result {
        Ok(()) => Ok(Answer::Done),
        Err(error) => Err(Fault::new(error.to_string())),
    }
}

/// Puts `new` in the place of the one with its name, or behind all others.
fn replace<T>(all: &mut Vec<T>, new: T, name: impl Fn(&T) -> &String) {
    match all.iter().position(|old| name(old) == name(&new)) {
        Some(place) => all[place] = new,
        None => all.push(new),
    }
}
