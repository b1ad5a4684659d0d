//! What a virtio device is, to the state machine that drives it.

use std::os::fd::RawFd;
use std::sync::Arc;

use event_manager::EventSet;

use super::queue::{QueueError, QueueState, Virtqueue};
use super::saved::{DeviceState, RestoreError};
use crate::metrics::Metrics;

/// What a device is, before any driver has spoken to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceTraits {
    /// Device ID (virtio 1.2 §5).
    pub device_id: u32,
    /// Feature bits of the device type (0 to 23, 50 to 127); the ring's and the transport's own are
    /// added by the state machine.
    pub features: u64,
    /// The largest size of each queue, each a power of two. Its length is the number of queues.
    pub queue_sizes: Vec<u16>,
    /// Length of the device-specific configuration space in bytes.
    pub config_len: u64,
}

/// What a call of [`VirtioDevice::process`] left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// The queue is empty; the driver will ring when there is more.
    Idle,
    /// The work allowed for one call is done and there is more: call again, after others had a turn.
    More,
}

/// A descriptor of the device's own that gives it work: a tap, a timer, an I/O engine's completions.
///
/// A device whose set of descriptors changes (one for each connection, say) keeps them in an epoll of its own and
/// names that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The descriptor. Stays open for the device's life.
    pub fd: RawFd,
    /// What to wait for. With `EDGE_TRIGGERED` the device must read until there is nothing left, or come back to it by
    /// itself.
    pub events: EventSet,
}

/// A virtio device, knowing neither its transport nor its threads.
///
/// All calls come from one [`VirtioState`](super::state::VirtioState) under its lock:
///
/// ```text
///          start_queue(0..n)            process(index), wake(source)…
///  created ────────────────► running ──────────────────► running
///     ▲                         │ stop_queue(0..n), also after an error of process
///     └──────── reset() ◄───────┘
/// ```
pub trait VirtioDevice: Send {
    /// What the device is. Must not change over the device's life.
    fn traits(&self) -> DeviceTraits;

    /// What it counts, for who reads it. Asked once, before any driver has spoken to it.
    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        None
    }

    /// Fills `data` from the configuration space. `offset + data.len()` is within
    /// [`DeviceTraits::config_len`].
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes a write to the configuration space, bounded as for [`read_config`](Self::read_config).
    /// Devices whose space is read-only keep this default.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Gives the device a validated queue to work on, with the `features` the driver accepted.
    fn start_queue(&mut self, index: u16, queue: Virtqueue, features: u64);

    /// Takes a queue back and says where it stood. All requests taken from it are completed, or will
    /// be found again by the restored queue. Idempotent: `None` for a queue that does not run.
    fn stop_queue(&mut self, index: u16) -> Option<QueueState>;

    /// Works on queue `index`, which the driver has rung for. Bounded work: see [`Progress`].
    ///
    /// Also comes once after each start: edges of the device's own descriptors before it were for nobody, so what the
    /// queue gets from them is looked for here.
    ///
    /// An error means the driver broke a rule; the device is stopped and reported as needing a reset.
    fn process(&mut self, index: u16) -> Result<Progress, QueueError>;

    /// The device's own descriptors. Must not change over the device's life.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// Source `index` of [`sources`](Self::sources) is ready. Bounded work, like [`process`](Self::process):
    /// [`Progress::More`] brings the same call again after others had a turn.
    ///
    /// Comes in every state of the device, also without a driver: a source that stays ready then would keep the thread
    /// from sleeping, so the device silences it.
    fn wake(&mut self, index: usize) -> Result<Progress, QueueError> {
        let _ = index;
        Ok(Progress::Idle)
    }

    /// The configuration space has changed since the last call, and the driver is to be told. Asked after
    /// [`process`](Self::process) and [`wake`](Self::wake).
    fn take_config_change(&mut self) -> bool {
        false
    }

    /// Forgets everything a driver has set. All queues are stopped before.
    fn reset(&mut self);

    /// Why the device cannot be part of a snapshot, if so: what it is lies with somebody else.
    fn unsavable(&self) -> Option<&'static str> {
        None
    }

    /// What a driver and the device have agreed on beyond features, configuration and queues. All queues are stopped
    /// before, and started again where they stood after that.
    fn save(&self) -> DeviceState {
        DeviceState::Plain
    }

    /// Goes on from `state`, before any queue is started.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Plain => Ok(()),
            other => Err(RestoreError::kind(self.traits().device_id, other)),
        }
    }
}

/// Fills `data` with what is at `offset` of a configuration space that is held as bytes; for
/// [`VirtioDevice::read_config`]. What lies behind its end stays as it is.
pub(super) fn copy_config(space: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let bytes = space.get(from..).unwrap_or_default();
    for (to, byte) in data.iter_mut().zip(bytes) {
        *to = *byte;
    }
}
