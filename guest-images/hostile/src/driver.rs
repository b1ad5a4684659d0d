//! A driver that keeps the rules: what a device must still serve after an attack, and where attacks start from.

use crate::device::{ACKNOWLEDGE, DRIVER, DRIVER_OK, Device, FEATURES_OK, NEEDS_RESET};
use crate::hw::{cpu, memory};
use crate::ring::{NEXT, Ring, SPAN, WRITE};

/// `VIRTIO_F_VERSION_1`, in the second 32 bits.
pub const VERSION_1: u32 = 1;
/// `VIRTIO_F_INDIRECT_DESC`.
pub const INDIRECT_DESC: u32 = 1 << 28;
/// Most queues that are set up.
pub const MAX_QUEUES: usize = 6;
const QUEUE_SIZE: u16 = 16;
/// Longer than any device takes, in ticks of the time stamp counter: 20 seconds and more.
const PATIENCE: u64 = 60_000_000_000;
/// How often a device is looked at for a reaction to nonsense, which need not come.
const LOOKS: u32 = 12;

/// A device whose queues run.
pub struct Driver {
    pub device: Device,
    pub rings: [Ring; MAX_QUEUES],
    pub queues: usize,
}

/// Resets `device`, agrees on features and leaves it before its queues are set up. `wanted` of the first 32 features are
/// accepted where they are offered.
pub fn agree(device: &Device, wanted: u32) -> Result<(), &'static str> {
    device.set_status(0);
    if device.status() != 0 {
        return Err("the device does not reset");
    }
    device.set_status(ACKNOWLEDGE);
    device.set_status(ACKNOWLEDGE | DRIVER);
    device.accept(0, device.offered(0) & wanted);
    device.accept(1, VERSION_1);
    device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if device.status() & FEATURES_OK == 0 {
        return Err("the device does not take its own features");
    }
    Ok(())
}

impl Driver {
    /// Sets up all queues of `device`, with their rings from `arena` on.
    pub fn start(device: &Device, arena: u64, wanted: u32) -> Result<Self, &'static str> {
        agree(device, wanted)?;
        let mut rings = [Ring::new(arena, QUEUE_SIZE); MAX_QUEUES];
        let mut queues = 0;
        for (index, ring) in (0_u16..).zip(&mut rings) {
            device.select(index);
            let max = device.max_size();
            if max == 0 {
                break;
            }
            let size = max.min(QUEUE_SIZE);
            *ring = Ring::new(arena + SPAN * u64::from(index), size);
            device.set_size(size.into());
            device.set_addresses(ring.addresses());
            device.enable(1);
            queues += 1;
        }
        device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        if device.status() & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK {
            return Err("the device does not take good queues");
        }
        Ok(Self {
            device: *device,
            rings,
            queues,
        })
    }

    /// Offers `head` in `queue` and rings.
    pub fn submit(&mut self, queue: u16, head: u16) {
        self.rings[usize::from(queue)].offer(head);
        self.device.notify(queue);
    }

    /// Waits until `queue` has used one more buffer; its length.
    pub fn wait(&mut self, queue: u16) -> Result<u32, &'static str> {
        let start = cpu::time();
        loop {
            if let Some(len) = self.rings[usize::from(queue)].take() {
                return Ok(len);
            }
            if cpu::time().wrapping_sub(start) > PATIENCE {
                return Err("a good request is not answered");
            }
        }
    }

    /// Gives the device time to find out what was done to it.
    pub fn settle(&self, queue: usize) {
        for _ in 0..LOOKS {
            if self.device.status() & NEEDS_RESET != 0 || self.rings[queue].has_used() {
                break;
            }
        }
    }

    /// Sends `len` bytes at the start of `queue`'s buffers and waits until they are taken.
    fn send(&mut self, queue: u16, len: u32) -> Result<u32, &'static str> {
        let ring = self.rings[usize::from(queue)];
        ring.describe(0, ring.buffers(), len, 0, 0);
        self.submit(queue, 0);
        self.wait(queue)
    }

    /// A block request of `kind` for `sector`, with `len` bytes of data that the device writes; its status.
    pub fn block(&mut self, kind: u32, sector: u64, len: u32) -> Result<u8, &'static str> {
        let ring = self.rings[0];
        let at = ring.buffers();
        memory::write64(at, kind.into());
        memory::write64(at + 8, sector);
        memory::write8(at + 16, 0xff);
        ring.describe(0, at, 16, NEXT, 1);
        ring.describe(1, at + 0x200, len, NEXT | WRITE, 2);
        ring.describe(2, at + 16, 1, WRITE, 0);
        self.submit(0, 0);
        self.wait(0)?;
        Ok(memory::read8(at + 16))
    }

    /// One good request, as the device's kind has it.
    pub fn serve_once(&mut self) -> Result<(), &'static str> {
        match self.device.kind {
            1 => {
                let at = self.rings[1].buffers();
                memory::clear(at, 80);
                self.send(1, 76).map(drop)
            }
            2 => match self.block(0, 0, 512)? {
                0 => Ok(()),
                _ => Err("a good read fails"),
            },
            3 => {
                memory::write8(self.rings[1].buffers(), b'.');
                self.send(1, 1).map(drop)
            }
            4 => {
                let ring = self.rings[0];
                ring.describe(0, ring.buffers(), 64, WRITE, 0);
                self.submit(0, 0);
                match self.wait(0)? {
                    64 => Ok(()),
                    _ => Err("a good request for 64 random bytes gets another number"),
                }
            }
            5 => {
                let page = self.rings[0].buffers() + 0x4000;
                for queue in 0..2 {
                    let at = self.rings[usize::from(queue)].buffers();
                    memory::write64(at, page >> 12);
                    self.send(queue, 4)?;
                }
                Ok(())
            }
            19 => {
                let ring = self.rings[0];
                ring.describe(0, ring.buffers(), 0x1000, WRITE, 0);
                self.submit(0, 0);
                let at = self.rings[1].buffers();
                crate::attacks::vsock::Packet::request(1).put(at);
                self.send(1, 44)?;
                match self.wait(0)? {
                    44 => Ok(()),
                    _ => Err("a connection to nowhere is not refused"),
                }
            }
            26 => {
                // FUSE_INIT. Where the file system's program has given up, the device answers in its place.
                let ring = self.rings[1];
                let at = ring.buffers();
                memory::clear(at, 0x400);
                memory::write32(at, 56);
                memory::write32(at + 4, 26);
                memory::write64(at + 8, 1);
                memory::write32(at + 40, 7);
                memory::write32(at + 44, 31);
                ring.describe(0, at, 56, NEXT, 1);
                ring.describe(1, at + 0x100, 0x100, WRITE, 0);
                self.submit(1, 0);
                match self.wait(1)? {
                    0..16 => Err("an answer without a header"),
                    _ => Ok(()),
                }
            }
            27 => {
                let ring = self.rings[0];
                memory::write64(ring.buffers(), 0);
                ring.describe(0, ring.buffers(), 4, NEXT, 1);
                ring.describe(1, ring.buffers() + 8, 4, WRITE, 0);
                self.submit(0, 0);
                self.wait(0).map(drop)
            }
            _ => Ok(()),
        }
    }
}
