//! From a configuration to a guest that runs.

use std::io;
use std::sync::Arc;

use api::model::{Document, MachineConfig};

use super::Controller;
use crate::config::{ConfigError, VmConfig, firecracker};
use crate::events::Events;
use crate::exit::{CODE_BAD_CONFIGURATION, ExitReason};
use crate::jail::seccomp::{Seccomp, ThreadKind};
use crate::live;
use crate::logger::chain;
use crate::machine::{Context, Machine, MachineError, Snapshot};
use crate::terminal::RawMode;

/// What the command line says of how this process runs its guest.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The guest's name.
    pub id: String,
    /// Whether virtio devices are on PCI, or else on MMIO.
    pub pci: bool,
    /// Log the time when the guest says that it has booted.
    pub report_boot_time: bool,
    /// What each thread's system calls are filtered by.
    pub seccomp: Seccomp,
    /// What tells the parent.
    pub events: Arc<Events>,
}

/// Why a guest was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nobody said what to boot.
    #[error("Cannot start microvm without kernel configuration.")]
    NoKernel,
    /// The configuration cannot be run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The guest cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The terminal cannot be the guest's.
    #[error("Cannot switch the terminal to raw mode")]
    Terminal(#[source] io::Error),
}

impl StartError {
    /// The process's exit code for it.
    pub fn code(&self) -> u8 {
        match self {
            Self::NoKernel | Self::Config(_) => CODE_BAD_CONFIGURATION,
            Self::Machine(error) if error.is_configuration() => CODE_BAD_CONFIGURATION,
            Self::Machine(_) | Self::Terminal(_) => 1,
        }
    }
}

impl Controller {
    /// Takes a whole configuration, instead of what there was.
    pub fn load(&mut self, document: Document) {
        self.document = document;
        self.document
            .machine_config
            .get_or_insert_with(MachineConfig::default);
    }

    /// Builds the guest and lets it run. After an error there is none, and the configuration can be mended; only where
    /// some of its threads ran already, the process ends.
    pub fn start(&mut self) -> Result<(), StartError> {
        if self.document.boot_source.is_none() {
            return Err(StartError::NoKernel);
        }
        let config = firecracker::guest(&self.document, self.settings.pci)?;
        let machine = Machine::build(&config, &self.context())?;
        self.run_machine(machine)
    }

    /// As [`start`](Self::start), from a snapshot: the guest is paused.
    pub(super) fn resume_from(
        &mut self,
        config: &VmConfig,
        snapshot: &Snapshot,
    ) -> Result<(), StartError> {
        let machine = Machine::restore(config, &self.context(), snapshot)?;
        self.run_machine(machine)
    }

    fn context(&self) -> Context {
        Context {
            latch: self.latch.clone(),
            events: self.settings.events.clone(),
            seccomp: self.settings.seccomp.clone(),
            report_boot_time: self.settings.report_boot_time,
            live: self.store.is_some(),
        }
    }

    fn run_machine(&mut self, machine: Machine) -> Result<(), StartError> {
        let raw_mode = RawMode::enter().map_err(StartError::Terminal)?;
        let started = machine.start(&mut self.event_loop).inspect_err(|error| {
            self.latch.set(ExitReason::Error(chain(error)));
        });
        let guest = started?;
        if let Some(channel) = self.store.take() {
            let (subject, brake) = guest.live_subject();
            let parts = live::Parts {
                subject,
                brake,
                desk: self.desk.clone(),
                latch: self.latch.clone(),
            };
            if let Err(error) = live::start(channel, parts, self.settings.seccomp.clone()) {
                let what = format!("Cannot start the thread that takes snapshots: {error}");
                self.latch.set(ExitReason::Error(what));
            }
        }
        self.guest = Some(guest);
        self.raw_mode = Some(raw_mode);
        if let Err(error) = self.settings.seccomp.enter(ThreadKind::Event) {
            self.latch.set(ExitReason::Error(chain(&error)));
        }
        Ok(())
    }
}
