//! The block device: requests from a queue, one after the other, to a [`Backend`].

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::Bytes;

use super::SECTOR_SIZE;
use super::backend::Backend;
use super::request::{Operation, Request, SERIAL_LEN, Status};
use crate::memory::GuestMemory;
use crate::throttle::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::device::{DeviceTraits, Progress, VirtioDevice};
use crate::virtio::queue::{QueueError, QueueState, Virtqueue};

const QUEUE_SIZE: u16 = 256;
/// Data buffers of one request: header and status need a descriptor each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most data bytes of one request. Drivers ask for a few MiB at most; a request that names the same pages over and over
/// could be as long as the disk and keep the thread for minutes.
const MAX_REQUEST_BYTES: u32 = 64 << 20;
/// `struct virtio_blk_config` up to and including `blk_size` (§5.2.4).
const CONFIG_LEN: usize = 24;

/// A disk.
pub struct Block {
    queue: Option<Virtqueue>,
    chain: Chain,
    disk: Disk,
}

/// What serves the requests, apart from the queue they come by.
struct Disk {
    backend: Box<dyn Backend>,
    serial: [u8; SERIAL_LEN],
    /// The driver knows no flush: what it has written must be durable when it is told so (§5.2.6.2).
    write_through: bool,
    failures: Throttle,
}

impl Block {
    /// A disk with the contents of `backend`. `serial` is how the guest tells it from others
    /// (`/dev/disk/by-id`): its first 20 bytes count.
    pub fn new(backend: Box<dyn Backend>, serial: &str) -> Self {
        let mut id = [0; SERIAL_LEN];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let disk = Disk {
            backend,
            serial: id,
            write_through: true,
            failures: Throttle::default(),
        };
        Self {
            queue: None,
            chain: Chain::new(),
            disk,
        }
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[0..8].copy_from_slice(&(self.disk.backend.len() / SECTOR_SIZE).to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        // `blk_size` fits its 32 bits, being 512.
        config[20..24].copy_from_slice(&SECTOR_SIZE.to_le_bytes()[..4]);
        config
    }
}

impl Disk {
    /// Does what the request in `chain` asks and returns how many bytes of its buffers are filled.
    fn serve(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<u32, QueueError> {
        let (len, read_only) = (self.backend.len(), self.backend.read_only());
        let request = Request::parse(memory, chain, len, read_only)?;
        let room = chain.writable.len();
        let (status, filled) = match request.operation {
            Ok(operation) => match self.run(operation, memory, chain)? {
                Ok(filled) => (Status::Ok, filled),
                Err(error) => {
                    let what = format_args!("Disk failed on {operation:?}: {error}");
                    self.failures.warn(what);
                    (Status::IoError, 0)
                }
            },
            Err(status) => (status, 0),
        };
        memory
            .write_obj(status.code(), request.status)
            .map_err(QueueError::Memory)?;
        // The driver is told how many bytes are filled from the front on (§2.7.8.2). The status byte
        // is the last, so it counts only where all before it do.
        Ok(filled + u32::from(filled == room))
    }

    /// Runs `operation` on the data buffers of `chain` and returns how many bytes of them it filled.
    fn run(
        &mut self,
        operation: Operation,
        memory: &GuestMemory,
        chain: &mut Chain,
    ) -> Result<io::Result<u32>, QueueError> {
        if chain.readable.len().max(chain.writable.len()) > MAX_REQUEST_BYTES {
            return Ok(Err(io::ErrorKind::InvalidInput.into()));
        }
        Ok(match operation {
            Operation::Read { offset } => {
                let buffers = chain.writable.slices(memory)?;
                let read = self.backend.read_at(offset, &buffers);
                read.map(|()| chain.writable.len())
            }
            Operation::Write { offset } => {
                let buffers = chain.readable.slices(memory)?;
                let written = match self.backend.write_at(offset, &buffers) {
                    Ok(()) if self.write_through => self.backend.flush(),
                    written => written,
                };
                written.map(|()| 0)
            }
            Operation::Flush => self.backend.flush().map(|()| 0),
            Operation::GetId => Ok(self.get_id(memory, chain)?),
        })
    }

    /// Gives as much of the serial number as there is room for.
    fn get_id(&self, memory: &GuestMemory, chain: &mut Chain) -> Result<u32, QueueError> {
        let room = chain.writable.len();
        let (len, mut filled) = (SERIAL_LEN.min(room as usize), 0);
        if chain.writable.write(memory, &self.serial[..len])? {
            filled = room - chain.writable.len();
        }
        Ok(filled)
    }
}

impl VirtioDevice for Block {
    fn traits(&self) -> DeviceTraits {
        let read_only = u64::from(self.disk.backend.read_only()) << VIRTIO_BLK_F_RO;
        DeviceTraits {
            device_id: VIRTIO_ID_BLOCK,
            features: 1 << VIRTIO_BLK_F_FLUSH
                | 1 << VIRTIO_BLK_F_SEG_MAX
                | 1 << VIRTIO_BLK_F_BLK_SIZE
                | read_only,
            queue_sizes: vec![QUEUE_SIZE],
            config_len: CONFIG_LEN as u64,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(CONFIG_LEN);
        for (to, byte) in data.iter_mut().zip(&self.config()[from..]) {
            *to = *byte;
        }
    }

    fn start_queue(&mut self, _index: u16, queue: Virtqueue, features: u64) {
        self.disk.write_through = features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        self.queue = Some(queue);
    }

    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        self.queue.take().map(|queue| queue.state())
    }

    fn process(&mut self, _index: u16) -> Result<Progress, QueueError> {
        let Self { queue, chain, disk } = self;
        let Some(queue) = queue else {
            return Ok(Progress::Idle);
        };
        queue.serve(chain, |memory, chain| disk.serve(memory, chain))
    }

    fn reset(&mut self) {
        self.disk.write_through = true;
    }
}

#[cfg(test)]
mod tests;
