//! Every device a guest can see.
//!
//! A device here knows neither KVM nor threads nor file paths: it is told about guest accesses, says
//! what it wants to say through an [`Interrupt`](interrupt::Interrupt) or an
//! [`EventSink`](platform::EventSink), and does its queue work when it is called to. Who calls whom:
//!
//! ```text
//!   vCPU threads                                        device thread (event-manager)
//!   exit: port or MMIO access                           doorbell EventFd (KVM ioeventfd)
//!        │                                                     │
//!        ▼                                                     ▼
//!    bus::Bus ──► legacy::{serial, rtc, …}              virtio::worker::VirtioWorker
//!        │                                                     │ process_queue(index)
//!        └─────► virtio::mmio::MmioTransport ──registers──►    ▼
//!                 (PCI: another thin transport)         virtio::state::VirtioState
//!                        ▲                              one lock: status, features, queues
//!                        │ interrupt status, irqfd             │ start_queue, process, stop_queue
//!                        └──── VirtioInterrupt ◄────────── Box<dyn VirtioDevice>
//! ```
//!
//! A transport translates registers and nothing else; every rule of the virtio specification that
//! does not depend on the transport lives in [`virtio::state`] and [`virtio::queue`]. Interrupt
//! status, acknowledgement and notification bypass the state's lock, so a vCPU in its interrupt
//! handler never waits for a disk.

pub mod bus;
pub mod calendar;
pub mod file_lock;
pub mod interrupt;
pub mod legacy;
pub mod memory;
pub mod metrics;
pub mod pci;
pub mod platform;
pub mod rate_limiter;
pub mod throttle;
pub mod virtio;
