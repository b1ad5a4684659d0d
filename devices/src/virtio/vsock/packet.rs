//! Packets of the socket device (virtio 1.2 §5.10.6): a header, and data after it in some.

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 44;

/// The kind of socket this device has: a stream.
pub(super) const STREAM: u16 = 1;

/// What a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Operation {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    ReadWrite = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Operation {
    fn new(value: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::ReadWrite,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|operation| *operation as u16 == value)
    }
}

/// Flag of a shutdown: the sender will receive no more.
pub(super) const NO_RECEIVE: u32 = 1;
/// Flag of a shutdown: the sender will send no more.
pub(super) const NO_SEND: u32 = 2;

/// The ports of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// A header, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) destination_cid: u64,
    pub(super) source_port: u32,
    pub(super) destination_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) operation: Option<Operation>,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

/// The `N` bytes at `offset` of a header.
fn field<const N: usize>(bytes: &[u8; HEADER_LEN], offset: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[offset + i])
}

impl Header {
    /// Reads a copy of a header: what is checked is what is used.
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        Self {
            source_cid: u64::from_le_bytes(field(bytes, 0)),
            destination_cid: u64::from_le_bytes(field(bytes, 8)),
            source_port: u32::from_le_bytes(field(bytes, 16)),
            destination_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            operation: Operation::new(u16::from_le_bytes(field(bytes, 30))),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    /// The header as it lies in memory.
    pub(super) fn bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let operation = self.operation.map_or(0, |operation| operation as u16);
        bytes[0..8].copy_from_slice(&self.source_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.destination_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.destination_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&operation.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// A packet without data to the guest `cid`.
    pub(super) fn to_guest(cid: u64, ports: Ports, operation: Operation) -> Self {
        Self {
            source_cid: super::HOST_CID,
            destination_cid: cid,
            source_port: ports.host,
            destination_port: ports.guest,
            len: 0,
            kind: STREAM,
            operation: Some(operation),
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// The ports of a packet from the guest.
    pub(super) fn ports(&self) -> Ports {
        Ports {
            guest: self.source_port,
            host: self.destination_port,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn headers_come_back_as_they_were(mut bytes in any::<[u8; 32]>(), rest in any::<[u8; 12]>(), operation in 1_u8..8) {
            bytes[30..].copy_from_slice(&[operation, 0]);
            let mut header = [0; HEADER_LEN];
            header[..32].copy_from_slice(&bytes);
            header[32..].copy_from_slice(&rest);
            prop_assert_eq!(Header::parse(&header).bytes(), header);
        }
    }
}
