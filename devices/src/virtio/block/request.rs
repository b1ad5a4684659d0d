//! What a driver asks of a block device (virtio 1.2 §5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::GuestAddress;

use super::SECTOR_SIZE;
use crate::memory::GuestMemory;
use crate::virtio::chain::Chain;
use crate::virtio::queue::QueueError;

/// Length of the header: type, reserved, sector.
const HEADER_LEN: usize = 16;
/// Length of a serial number (§5.2.6.1).
pub const SERIAL_LEN: usize = 20;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the chain's writable buffers from byte `offset` of the disk.
    Read {
        /// Byte offset on the disk.
        offset: u64,
    },
    /// Write the chain's readable buffers to byte `offset` of the disk.
    Write {
        /// Byte offset on the disk.
        offset: u64,
    },
    /// Make everything written before durable.
    Flush,
    /// Give the disk's serial number.
    GetId,
}

/// How a request ended, as the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was done.
    Ok,
    /// It was not, or only in part.
    IoError,
    /// The device cannot do such things.
    Unsupported,
}

impl Status {
    /// The value of the status byte.
    pub fn code(self) -> u8 {
        let code = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        code.to_le_bytes()[0]
    }
}

/// A request whose header and status byte are taken off its chain: only data is left there.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What to do, or what to answer instead.
    pub operation: Result<Operation, Status>,
    /// Where the status byte goes.
    pub status: GuestAddress,
}

impl Request {
    /// Reads the request in `chain` to a disk of `disk_len` bytes.
    ///
    /// An error is a chain that cannot be answered at all; what can be answered comes back as the
    /// operation's `Err`. No layout is assumed: header and status may be cut into any buffers (§2.7.4).
    pub fn parse(
        memory: &GuestMemory,
        chain: &mut Chain,
        disk_len: u64,
        read_only: bool,
    ) -> Result<Self, QueueError> {
        let head = chain.head();
        let broken = |what| QueueError::Request { head, what };
        let mut header = [0; HEADER_LEN];
        if !chain.readable.read(memory, &mut header)? {
            return Err(broken("a block request starts with 16 readable bytes"));
        }
        let status = chain.writable.take_last_byte();
        let status = status.ok_or_else(|| broken("a block request ends in a writable byte"))?;

        let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let operation = match u32::from_le_bytes([k0, k1, k2, k3]) {
            VIRTIO_BLK_T_IN => byte_offset(sector, chain.writable.len(), disk_len)
                .map(|offset| Operation::Read { offset }),
            VIRTIO_BLK_T_OUT if read_only => Err(Status::IoError),
            VIRTIO_BLK_T_OUT => byte_offset(sector, chain.readable.len(), disk_len)
                .map(|offset| Operation::Write { offset }),
            VIRTIO_BLK_T_FLUSH => Ok(Operation::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Operation::GetId),
            _ => Err(Status::Unsupported),
        };
        Ok(Self { operation, status })
    }
}

/// Where on the disk `len` bytes from `sector` start, if they are whole sectors and all on the disk.
fn byte_offset(sector: u64, len: u32, disk_len: u64) -> Result<u64, Status> {
    let len = u64::from(len);
    let offset = sector.checked_mul(SECTOR_SIZE).ok_or(Status::IoError)?;
    let end = offset.checked_add(len).ok_or(Status::IoError)?;
    if len % SECTOR_SIZE != 0 || end > disk_len {
        return Err(Status::IoError);
    }
    Ok(offset)
}
