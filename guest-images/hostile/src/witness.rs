//! The devices that are left alone for the moment: what they serve while another is attacked.

use crate::device::{Device, Devices};
use crate::driver::{Driver, INDIRECT_DESC};
use crate::hw::memory;

/// Where their rings are.
const ARENA: u64 = 0x180_0000;
const ARENA_OF_SECOND: u64 = 0x1c0_0000;

/// Two devices of different kinds, one of which is never the attacked one.
pub struct Witness {
    disk: Option<Driver>,
    rng: Option<Driver>,
    sector: u64,
}

impl Witness {
    /// The last disk, which is never attacked, and the rng.
    pub fn new(devices: &Devices) -> Result<Self, &'static str> {
        let last = |kind: u32| devices.iter().filter(|device| device.kind == kind).last();
        let start = |device: Option<&Device>, arena| {
            device
                .map(|device| Driver::start(device, arena, INDIRECT_DESC))
                .transpose()
        };
        Ok(Self {
            disk: start(last(2), ARENA)?,
            rng: start(last(4), ARENA_OF_SECOND)?,
            sector: 0,
        })
    }

    /// Whether it is the device that is never attacked.
    pub fn is_disk(&self, device: &Device) -> bool {
        self.disk
            .as_ref()
            .is_some_and(|disk| disk.device.is(device))
    }

    /// Whether it is one of the witnesses.
    pub fn has(&self, device: &Device) -> bool {
        let is = |driver: &Option<Driver>| driver.as_ref().is_some_and(|one| one.device.is(device));
        is(&self.disk) || is(&self.rng)
    }

    /// What the transport is called.
    pub fn transport(&self) -> &'static str {
        let disk = self.disk.as_ref();
        disk.map_or("none", |disk| disk.device.transport_name())
    }

    /// One request to each device but `attacked`. Each sector of the disk starts with its number.
    pub fn ask(&mut self, attacked: Option<&Device>) -> Result<(), &'static str> {
        self.sector = (self.sector + 1) % 64;
        if let Some(disk) = &mut self.disk {
            let data = disk.rings[0].buffers() + 0x200;
            memory::write64(data, u64::MAX);
            if disk.block(0, self.sector, 512)? != 0 {
                return Err("the other disk fails a good read");
            }
            if memory::read64(data) != self.sector {
                return Err("the other disk reads something else");
            }
        }
        match (&mut self.rng, attacked) {
            // Attacked itself: it is started anew when it is needed again.
            (Some(rng), Some(device)) if rng.device.is(device) => Ok(()),
            (Some(rng), _) => rng.serve_once(),
            (None, _) => Ok(()),
        }
    }

    /// Starts the rng anew: it was attacked.
    pub fn take_back(&mut self, device: &Device) -> Result<(), &'static str> {
        if let Some(rng) = &mut self.rng
            && rng.device.is(device)
        {
            *rng = Driver::start(device, ARENA_OF_SECOND, INDIRECT_DESC)?;
        }
        Ok(())
    }
}
