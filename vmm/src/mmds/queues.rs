//! Frames between the service's TCP/IP and the guest, in memory and bounded.

use std::collections::VecDeque;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// Most frames that wait for the guest to take them. While they do, what it sends is lost.
const MAX_OUTGOING: usize = 32;
/// An Ethernet header and 1500 bytes.
const MAX_FRAME: usize = 1514;

/// One frame in, some frames out.
#[derive(Default)]
pub(super) struct Queues {
    pub(super) incoming: Option<Vec<u8>>,
    pub(super) outgoing: VecDeque<Vec<u8>>,
}

impl Queues {
    fn has_room(&self) -> bool {
        self.outgoing.len() < MAX_OUTGOING
    }
}

pub(super) struct Incoming(Vec<u8>);

pub(super) struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Queues {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        if !self.has_room() {
            return None;
        }
        let frame = self.incoming.take()?;
        Some((Incoming(frame), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        self.has_room().then_some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        // A guest leaves them to the device, and nothing between it and us can damage a frame.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}
