//! The guest's virtio devices: made from the configuration, placed on the MMIO bus, connected to KVM.

mod block;
mod net;
mod tap;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use devices::bus::{Bus, BusError};
use devices::rate_limiter::RateLimiter;
use devices::virtio::block::raw_file::RawFileError;
use devices::virtio::device::VirtioDevice;
use devices::virtio::mmio::{self, MmioTransport};
use devices::virtio::rng::Rng;
use devices::virtio::worker::VirtioWorker;

use crate::boot::cmdline::{self, MmioDevice};
use crate::config::{RateLimiterConfig, VmConfig};
use crate::layout::{LEGACY_IRQS, VIRTIO_IRQS, VIRTIO_MMIO, VIRTIO_MMIO_STRIDE};
use crate::memory::GuestMemory;
use crate::vm::{Vm, VmError};

/// Why a virtio device cannot be made or placed.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    #[error(
        "{devices} virtio devices without ACPI, permitted are {lines}: switch ACPI on or remove devices"
    )]
    TooFewLines { devices: usize, lines: usize },
    #[error("Cannot open {path} for drive \"{id}\"", path = .path.display())]
    OpenDrive {
        id: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("Cannot use {path} for drive \"{id}\"", path = .path.display())]
    UseDrive {
        id: String,
        path: PathBuf,
        #[source]
        source: RawFileError,
    },
    #[error("Cannot make the events of drive \"{id}\"")]
    DriveEvents {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error("Cannot open the tap of network interface \"{id}\"")]
    OpenTap {
        id: String,
        #[source]
        source: tap::TapError,
    },
    #[error("Cannot use the tap of network interface \"{id}\"")]
    UseTap {
        id: String,
        #[source]
        source: devices::virtio::net::tap::TapError,
    },
    #[error("Cannot make the timer of a rate limiter")]
    RateLimiter(#[source] io::Error),
    #[error("Cannot make the events of virtio device {index}")]
    Events {
        index: usize,
        #[source]
        source: io::Error,
    },
    #[error("Cannot place virtio device {index}")]
    Bus {
        index: usize,
        #[source]
        source: BusError,
    },
    #[error("Cannot connect virtio device {index}")]
    Connect {
        index: usize,
        #[source]
        source: VmError,
    },
}

impl VirtioError {
    /// Whether another configuration would help (rather than another host).
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::OpenDrive { .. }
                | Self::UseDrive { .. }
                | Self::OpenTap { .. }
                | Self::TooFewLines { .. }
        )
    }
}

/// Which thread does a device's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The event thread, with the serial port and the control socket: for devices with little to do that never wait.
    Shared,
    /// One of its own: for devices that move data, so that a slow disk holds up neither a network nor the console.
    Own,
}

/// A device, not yet placed anywhere.
pub struct Made {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Who does its work.
    pub thread: Thread,
}

impl Made {
    fn new(device: impl VirtioDevice + 'static, thread: Thread) -> Self {
        let device = Box::new(device);
        Self { device, thread }
    }
}

/// Makes the devices of `config`, drives first: the order in which the guest numbers them.
pub fn make(config: &VmConfig) -> Result<Vec<Made>, VirtioError> {
    let mut devices = Vec::new();
    for drive in &config.drives {
        devices.push(Made::new(block::make(drive, config.vcpus)?, Thread::Own));
    }
    for interface in &config.net {
        devices.push(Made::new(net::make(interface)?, Thread::Own));
    }
    if let Some(limits) = config.entropy {
        let rng = Rng::limited(rate_limiter(limits)?);
        devices.push(Made::new(rng, Thread::Shared));
    }
    debug_assert_eq!(devices.len(), config.virtio_devices());
    Ok(devices)
}

fn rate_limiter(limits: RateLimiterConfig) -> Result<RateLimiter, VirtioError> {
    RateLimiter::new(limits.into()).map_err(VirtioError::RateLimiter)
}

/// Where the devices of `config` are: known before they exist, for ACPI and the command line.
pub fn places(config: &VmConfig) -> Result<Vec<MmioDevice>, VirtioError> {
    let devices = config.virtio_devices();
    // Without ACPI a guest knows of no I/O APIC and has only the 16 lines of the PC's first interrupt controller.
    let without_ioapic = cmdline::acpi_is_off(&config.boot.cmdline);
    let lines = VIRTIO_IRQS
        .into_iter()
        .filter(|line| *line < LEGACY_IRQS || !without_ioapic);
    let places: Vec<_> = (VIRTIO_MMIO..)
        .step_by(usize::try_from(VIRTIO_MMIO_STRIDE).unwrap_or(usize::MAX))
        .zip(lines)
        .map(|(address, irq)| MmioDevice {
            address,
            size: VIRTIO_MMIO_STRIDE,
            irq,
        })
        .take(devices)
        .collect();
    if places.len() < devices {
        return Err(VirtioError::TooFewLines {
            devices,
            lines: places.len(),
        });
    }
    Ok(places)
}

/// Puts `devices` at `places` and returns what does their work, and on which thread.
pub fn attach(
    vm: &Vm,
    memory: &Arc<GuestMemory>,
    bus: &mut Bus,
    devices: Vec<Made>,
    places: &[MmioDevice],
) -> Result<Vec<(VirtioWorker, Thread)>, VirtioError> {
    let mut workers = Vec::with_capacity(devices.len());
    for (index, (made, place)) in devices.into_iter().zip(places).enumerate() {
        let connect = |source| VirtioError::Connect { index, source };
        let line = vm.interrupt_line(place.irq).map_err(connect)?;
        let transport = MmioTransport::new(made.device, memory.clone(), Arc::new(line))
            .map_err(|source| VirtioError::Events { index, source })?;
        for (queue, doorbell) in (0..).zip(transport.doorbells()) {
            vm.watch_write(doorbell, place.address + mmio::QUEUE_NOTIFY, queue)
                .map_err(connect)?;
        }
        let worker = transport
            .worker()
            .map_err(|source| VirtioError::Events { index, source })?;
        workers.push((worker, made.thread));
        bus.insert(place.address, mmio::LEN, Arc::new(transport))
            .map_err(|source| VirtioError::Bus { index, source })?;
    }
    Ok(workers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MAX_VIRTIO_DEVICES, firecracker};
    use std::path::Path;

    fn config(drives: usize, boot_args: &str) -> VmConfig {
        let drives: Vec<_> = (0..drives)
            .map(|i| {
                format!(r#"{{"drive_id": "d{i}", "is_root_device": false, "path_on_host": "{i}"}}"#)
            })
            .collect();
        let text = format!(
            r#"{{"boot-source": {{"kernel_image_path": "k", "boot_args": "{boot_args}"}}, "drives": [{}]}}"#,
            drives.join(",")
        );
        firecracker::parse(text.as_bytes(), Path::new("t"))
            .unwrap()
            .vm
    }

    #[test]
    fn the_most_devices_have_places_of_their_own_outside_of_ram() {
        let places = places(&config(MAX_VIRTIO_DEVICES, "")).unwrap();
        assert_eq!(places.len(), MAX_VIRTIO_DEVICES);
        for pair in places.windows(2) {
            assert!(pair[0].address + mmio::LEN <= pair[1].address);
            assert_ne!(pair[0].irq, pair[1].irq);
        }
        assert!(places[0].address > crate::layout::BOOT_TIMER);
        assert!(places.last().unwrap().address + mmio::LEN < crate::layout::IOAPIC);
    }

    #[test]
    fn without_acpi_only_legacy_lines_are_used() {
        let few = places(&config(10, "acpi=off")).unwrap();
        assert!(few.iter().all(|place| place.irq < LEGACY_IRQS));
        let error = places(&config(11, "acpi=off")).unwrap_err();
        assert!(matches!(
            error,
            VirtioError::TooFewLines {
                devices: 11,
                lines: 10
            }
        ));
    }
}
