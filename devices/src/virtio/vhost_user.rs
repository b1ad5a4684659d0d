//! vhost-user: another process serves a device's queues, in memory that it shares with the guest.
//!
//! Specified in QEMU's `docs/interop/vhost-user.rst`. Notifications take one hop: the device passes the driver's on to
//! the backend, and the backend's on to the driver, so that transports know nothing of it.
//!
//! The backend may be slow, broken or hostile. Each exchange with it has a limit of time; after the first that fails the
//! connection is closed for good. A thread of the backend's own does all exchanges: see [`connection`].

mod connection;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use event_manager::EventSet;
use thiserror::Error;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::connection::Connection;
use super::device::Source;
use super::queue::{RING_FEATURES, Virtqueue};
use crate::memory::{self, GuestMemory};

/// Why a backend cannot be used, or no longer.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum BackendError {
    #[error("Cannot make the events of the queues")]
    Events(#[source] io::Error),
    #[error("Cannot start the threads for the backend")]
    Thread(#[source] io::Error),
    #[error("Backend does not take part in \"{exchange}\"")]
    Exchange {
        exchange: &'static str,
        #[source]
        source: vhost::Error,
    },
    #[error(
        "Backend offers the features {offered:#x}, needed are {needed:#x}: use one that serves virtio 1 with indirect \
         descriptors and event indices"
    )]
    Features { offered: u64, needed: u64 },
    #[error("Guest memory at {base:#x} cannot be shared with a backend")]
    PrivateMemory {
        base: u64,
        #[source]
        source: vhost::Error,
    },
    #[error("Rings of queue {index} lie in more than one region of guest memory")]
    ScatteredRings { index: u16 },
    #[error("Backend stopped queue {index} at the index {base:#x}, which has more than 16 bits")]
    Base { index: u16, base: u32 },
    #[error("Backend has closed the connection")]
    Closed,
}

/// The events of one queue.
#[derive(Clone)]
struct Queue {
    /// From the driver to the backend.
    kick: Arc<EventFd>,
    /// From the backend to the driver.
    call: Arc<EventFd>,
    running: bool,
}

/// What a thread does first; whether it may go on.
pub type Begin = fn() -> bool;

/// The process behind a device.
pub struct Backend {
    connection: Connection,
    /// Another descriptor of it.
    stream: UnixStream,
    /// What of the driver's features the backend wants to hear.
    features: u64,
    queues: Vec<Queue>,
    alive: bool,
}

impl Backend {
    /// Introduces us to the backend at the other end of `stream`, for a device of `queues` queues. Its threads `begin` so.
    pub fn new(stream: UnixStream, queues: u16, begin: Begin) -> Result<Self, BackendError> {
        let event = || {
            let event = EventFd::new(EFD_NONBLOCK).map_err(BackendError::Events)?;
            Ok(Arc::new(event))
        };
        let events = (0..queues)
            .map(|_| {
                Ok(Queue {
                    kick: event()?,
                    call: event()?,
                    running: false,
                })
            })
            .collect::<Result<_, BackendError>>()?;
        let other = stream.try_clone().map_err(BackendError::Events)?;
        let mut backend = Self {
            connection: Connection::new(other, queues, begin)?,
            stream,
            features: 0,
            queues: events,
            alive: true,
        };
        // Logging of dirty pages is vhost's own feature, no driver's.
        let offered = backend.exchange(negotiate)?;
        backend.features = offered & !VhostUserVirtioFeatures::LOG_ALL.bits();
        Ok(backend)
    }

    /// What the backend has to say: one source for each queue, in their order, and last the end of the connection.
    pub fn sources(&self) -> Vec<Source> {
        let call = |queue: &Queue| Source {
            fd: queue.call.as_raw_fd(),
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        };
        let end = Source {
            fd: self.stream.as_raw_fd(),
            events: EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED,
        };
        self.queues.iter().map(call).chain([end]).collect()
    }

    /// Whether the connection is good.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// Hands `queue` to the backend, with the `features` that the driver accepted.
    pub fn start(
        &mut self,
        index: u16,
        queue: &Virtqueue,
        features: u64,
    ) -> Result<(), BackendError> {
        let rings = HostRings::find(queue).ok_or(BackendError::ScatteredRings { index })?;
        let Some(events) = self.queues.get(usize::from(index)).cloned() else {
            return Ok(());
        };
        let is_first = !self.queues.iter().any(|queue| queue.running);
        let features = features & self.features;
        let regions = if is_first {
            Some(regions(queue.memory())?)
        } else {
            None
        };
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            queue.running = true;
        }
        self.exchange(move |frontend| {
            if let Some(regions) = regions {
                share(frontend, &regions, features)?;
            }
            start_queue(frontend, index, &rings, &events)
        })
    }

    /// Takes queue `index` back, if the backend has it, and says which entry of the available ring it would have taken
    /// next. It does not touch the rings any more.
    pub fn stop(&mut self, index: u16) -> Result<Option<u16>, BackendError> {
        let number = usize::from(index);
        match self.queues.get_mut(number) {
            Some(queue) if queue.running => queue.running = false,
            _ => return Ok(None),
        }
        self.exchange(move |frontend| {
            let base = frontend.get_vring_base(number);
            let base = base.map_err(failed("GET_VRING_BASE"))?;
            u16::try_from(base)
                .map(Some)
                .map_err(|_| BackendError::Base { index, base })
        })
    }

    /// Tells the backend that the driver has put requests into queue `index`.
    pub fn kick(&self, index: u16) {
        if let Some(queue) = self.queues.get(usize::from(index)) {
            // A counter that is full rings as well.
            let _ = queue.kick.write(1);
        }
    }

    /// Ends the connection for good.
    pub fn close(&mut self) {
        self.alive = false;
        for queue in &mut self.queues {
            queue.running = false;
        }
        self.connection.close();
    }

    fn exchange<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Frontend) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        if !self.alive {
            return Err(BackendError::Closed);
        }
        self.connection.exchange(work)
    }
}

/// Agrees with the backend on what it can; its features.
fn negotiate(frontend: &mut Frontend) -> Result<u64, BackendError> {
    let needed = RING_FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    frontend.set_owner().map_err(failed("SET_OWNER"))?;
    let features = frontend.get_features().map_err(failed("GET_FEATURES"))?;
    if features & needed != needed {
        let offered = features;
        return Err(BackendError::Features { offered, needed });
    }
    let offered = frontend
        .get_protocol_features()
        .map_err(failed("GET_PROTOCOL_FEATURES"))?;
    let wanted = offered & VhostUserProtocolFeatures::REPLY_ACK;
    frontend
        .set_protocol_features(wanted)
        .map_err(failed("SET_PROTOCOL_FEATURES"))?;
    if !wanted.is_empty() {
        // From now on each request is answered, so errors come with what caused them.
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(features)
}

/// `memory` as a backend maps it.
fn regions(memory: &GuestMemory) -> Result<Vec<VhostUserMemoryRegionInfo>, BackendError> {
    let region = |region| {
        VhostUserMemoryRegionInfo::from_guest_region(region).map_err(|source| {
            let base = GuestMemoryRegion::start_addr(region).0;
            BackendError::PrivateMemory { base, source }
        })
    };
    memory.iter().map(region).collect()
}

fn share(
    frontend: &Frontend,
    regions: &[VhostUserMemoryRegionInfo],
    features: u64,
) -> Result<(), BackendError> {
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    frontend
        .set_features(features | protocol)
        .map_err(failed("SET_FEATURES"))?;
    frontend
        .set_mem_table(regions)
        .map_err(failed("SET_MEM_TABLE"))?;
    Ok(())
}

fn start_queue(
    frontend: &mut Frontend,
    index: u16,
    rings: &HostRings,
    events: &Queue,
) -> Result<(), BackendError> {
    let number = usize::from(index);
    let config = VringConfigData {
        queue_max_size: rings.size,
        queue_size: rings.size,
        desc_table_addr: rings.descriptors,
        avail_ring_addr: rings.available,
        used_ring_addr: rings.used,
        ..VringConfigData::default()
    };
    frontend
        .set_vring_num(number, rings.size)
        .map_err(failed("SET_VRING_NUM"))?;
    frontend
        .set_vring_addr(number, &config)
        .map_err(failed("SET_VRING_ADDR"))?;
    frontend
        .set_vring_base(number, rings.next_available)
        .map_err(failed("SET_VRING_BASE"))?;
    frontend
        .set_vring_call(number, &events.call)
        .map_err(failed("SET_VRING_CALL"))?;
    // The kick starts the queue (vhost-user, "Ring states").
    frontend
        .set_vring_kick(number, &events.kick)
        .map_err(failed("SET_VRING_KICK"))?;
    frontend
        .set_vring_enable(number, true)
        .map_err(failed("SET_VRING_ENABLE"))
}

/// Says in which exchange something failed.
fn failed(exchange: &'static str) -> impl FnOnce(vhost::Error) -> BackendError {
    move |source| BackendError::Exchange { exchange, source }
}

/// Where a queue's rings are in this process: vhost-user names them so.
struct HostRings {
    descriptors: u64,
    available: u64,
    used: u64,
    /// Entries of each.
    size: u16,
    /// The entry of the available ring that is taken next.
    next_available: u16,
}

impl HostRings {
    /// `None` for rings that are not in one piece each.
    fn find(queue: &Virtqueue) -> Option<Self> {
        let rings = queue.rings();
        let size = usize::from(queue.size());
        let place = |address, len| {
            let address = GuestAddress(address);
            memory::contiguous(queue.memory(), address, len)?;
            let host = queue.memory().get_host_address(address).ok()?;
            Some(host.addr() as u64)
        };
        Some(Self {
            descriptors: place(rings.descriptors, 16 * size)?,
            available: place(rings.available, 6 + 2 * size)?,
            used: place(rings.used, 6 + 8 * size)?,
            size: queue.size(),
            next_available: queue.state().next_available,
        })
    }
}
