//! What a driver asks of a block device (virtio 1.2 §5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestAddress;

use super::SECTOR_SIZE;
use super::backend::Action;
use super::config::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS};
use crate::memory::GuestMemory;
use crate::virtio::chain::Chain;
use crate::virtio::queue::QueueError;

/// Length of the header: type, reserved, sector.
const HEADER_LEN: usize = 16;
/// Length of a range to discard or to zero: sector, number of sectors, flags.
const RANGE_LEN: usize = 16;
/// Most data bytes of one request. Drivers ask for a few MiB at most; a request that names the same pages over and over
/// could be as long as the disk and keep the thread for minutes.
pub(super) const MAX_REQUEST_BYTES: u32 = 64 << 20;
/// Length of a serial number (§5.2.6.1).
pub const SERIAL_LEN: usize = 20;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Something with a range of the disk.
    Disk {
        /// What.
        action: Action,
        /// Byte offset on the disk.
        offset: u64,
        /// Bytes of the disk.
        len: u64,
    },
    /// Give the disk's serial number.
    GetId,
}

impl Operation {
    const FLUSH: Self = Self::Disk {
        action: Action::Flush,
        offset: 0,
        len: 0,
    };
}

/// What decides about requests.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Length of the disk in bytes.
    pub disk_len: u64,
    /// Nothing may change the disk.
    pub read_only: bool,
    /// The features the driver has accepted.
    pub features: u64,
}

impl Rules {
    fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// May the disk be changed?
    fn writable(&self) -> Result<(), Status> {
        if self.read_only {
            return Err(Status::IoError);
        }
        Ok(())
    }

    /// Reads or writes `len` bytes from `sector` on.
    fn transfer(&self, action: Action, sector: u64, len: u32) -> Result<Operation, Status> {
        if len > MAX_REQUEST_BYTES || u64::from(len) % SECTOR_SIZE != 0 {
            return Err(Status::IoError);
        }
        self.range(action, sector, len.into())
    }

    /// `action` on `len` bytes from `sector` on, if all of them are on the disk.
    fn range(&self, action: Action, sector: u64, len: u64) -> Result<Operation, Status> {
        let offset = sector.checked_mul(SECTOR_SIZE).ok_or(Status::IoError)?;
        let end = offset.checked_add(len).ok_or(Status::IoError)?;
        if end > self.disk_len {
            return Err(Status::IoError);
        }
        Ok(Operation::Disk {
            action,
            offset,
            len,
        })
    }

    /// Discards or zeroes what one `struct virtio_blk_discard_write_zeroes` says (§5.2.6).
    fn deallocate(&self, kind: u32, range: [u8; RANGE_LEN]) -> Result<Operation, Status> {
        let [
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            s6,
            s7,
            n0,
            n1,
            n2,
            n3,
            f0,
            f1,
            f2,
            f3,
        ] = range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        let (action, known_flags, most) = match kind {
            VIRTIO_BLK_T_DISCARD => (Action::Discard, 0, MAX_DISCARD_SECTORS),
            _ => (
                Action::WriteZeroes { unmap },
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
                MAX_WRITE_ZEROES_SECTORS,
            ),
        };
        if flags & !known_flags != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > most {
            return Err(Status::IoError);
        }
        self.range(action, sector, u64::from(sectors) * SECTOR_SIZE)
    }
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
    /// Reads the request in `chain`.
    ///
    /// An error is a chain that cannot be answered at all; what can be answered comes back as the
    /// operation's `Err`. No layout is assumed: header and status may be cut into any buffers (§2.7.4).
    pub fn parse(
        memory: &GuestMemory,
        chain: &mut Chain,
        rules: &Rules,
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
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        let operation = match kind {
            VIRTIO_BLK_T_IN => rules.transfer(Action::Read, sector, chain.writable.len()),
            VIRTIO_BLK_T_OUT => rules.writable().and_then(|()| {
                // A driver that knows no flush: what it has written is durable when it is told so (§5.2.6.2).
                let durable = !rules.has(VIRTIO_BLK_F_FLUSH);
                rules.transfer(Action::Write { durable }, sector, chain.readable.len())
            }),
            VIRTIO_BLK_T_FLUSH => Ok(Operation::FLUSH),
            VIRTIO_BLK_T_GET_ID => Ok(Operation::GetId),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                let feature = match kind {
                    VIRTIO_BLK_T_DISCARD => VIRTIO_BLK_F_DISCARD,
                    _ => VIRTIO_BLK_F_WRITE_ZEROES,
                };
                let mut range = [0; RANGE_LEN];
                // One range, as the configuration says.
                let one = chain.readable.len() as usize == RANGE_LEN
                    && chain.readable.read(memory, &mut range)?;
                match rules.writable() {
                    Err(status) => Err(status),
                    Ok(()) if !rules.has(feature) => Err(Status::Unsupported),
                    Ok(()) if !one => Err(Status::IoError),
                    Ok(()) => rules.deallocate(kind, range),
                }
            }
            _ => Err(Status::Unsupported),
        };
        Ok(Self { operation, status })
    }
}
