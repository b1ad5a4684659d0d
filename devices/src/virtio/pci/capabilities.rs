//! Configuration space of a virtio function: what it is, and the capabilities by which a driver finds its registers
//! (virtio 1.2 §4.1.2, §4.1.4).

use super::{BAR_LEN, DEVICE_CONFIG, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, NOTIFY_STRIDE, common};
use crate::pci::{Bar, ConfigSpace, Identity, Msix, msix};
use crate::virtio::device::DeviceTraits;

const VENDOR: u16 = 0x1af4;
/// Added to the virtio device ID.
const DEVICE_BASE: u16 = 0x1040;
/// A device without anything from before virtio 1.0.
const REVISION: u8 = 1;

/// Capability ID: vendor-specific.
const VENDOR_CAPABILITY: u8 = 0x09;

const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// Where in the PCI configuration access capability BAR, offset, length and data are (§4.1.4.9).
const WINDOW_BAR: u16 = 4;
const WINDOW_OFFSET: u16 = 8;
const WINDOW_LEN: u16 = 12;
const WINDOW_DATA: u16 = 16;

/// Where those capabilities are that do something.
pub(super) struct Capabilities {
    msix: u16,
    window: u16,
}

/// Configuration space of a function with its registers at `bar`.
pub(super) fn space(traits: &DeviceTraits, bar: Bar, msix: &Msix) -> (ConfigSpace, Capabilities) {
    let id = u16::try_from(traits.device_id).unwrap_or(0);
    let device = DEVICE_BASE.saturating_add(id);
    let identity = Identity {
        vendor: VENDOR,
        device,
        revision: REVISION,
        class: class(traits.device_id),
        subsystem: (VENDOR, device),
    };
    let mut space = ConfigSpace::new(&identity).with_memory(bar);
    // A driver walks the list from the front for each thing it looks for, two exits for each step: what Linux looks
    // for most comes first, and what a device does not have is not there.
    let mut add = |body: &[u8]| space.add_capability(VENDOR_CAPABILITY, body, &[]);
    add(&structure(COMMON_CFG, 0, common::LEN, &[]));
    add(&structure(ISR_CFG, ISR, 1, &[]));
    let queues = u32::try_from(traits.queue_sizes.len()).unwrap_or(0);
    let stride = u32::try_from(NOTIFY_STRIDE).unwrap_or(0);
    let multiplier = stride.to_le_bytes();
    add(&structure(NOTIFY_CFG, NOTIFY, queues * stride, &multiplier));
    if let Ok(len @ 1..) = u32::try_from(traits.config_len) {
        add(&structure(DEVICE_CFG, DEVICE_CONFIG, len, &[]));
    }
    let low = |offset: u64| u32::try_from(offset).unwrap_or(0);
    let body = msix.capability(low(MSIX_TABLE), low(MSIX_PENDING));
    let msix = space.add_capability(
        msix::CAPABILITY,
        &body,
        &msix::CONTROL_WRITABLE.to_le_bytes(),
    );
    let body = structure(PCI_CFG, 0, 0, &[0; 4]);
    // From the BAR's number on, but for the three bytes behind it, all is the driver's.
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    let window = space.add_capability(VENDOR_CAPABILITY, &body, &writable);
    (space, Capabilities { msix, window })
}

/// `struct virtio_pci_cap` from its length on (§4.1.4), with what follows it.
fn structure(kind: u8, offset: u64, len: u32, rest: &[u8]) -> Vec<u8> {
    let cap_len = u8::try_from(16 + rest.len()).unwrap_or(0);
    let offset = u32::try_from(offset).unwrap_or(0);
    let mut body = vec![cap_len, kind, 0, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(rest);
    body
}

/// What PCI calls a device of virtio's type `id`; virtio drivers do not look at it, people and firmware do.
fn class(id: u32) -> [u8; 3] {
    match id {
        // Network: Ethernet.
        1 => [0x02, 0x00, 0x00],
        // Block: mass storage, other.
        2 => [0x01, 0x80, 0x00],
        // Console: communication, other.
        3 => [0x07, 0x80, 0x00],
        // Unclassified, other.
        _ => [0x00, 0xff, 0x00],
    }
}

impl Capabilities {
    /// Register of MSI-X message control.
    pub(super) fn msix_control(&self) -> u16 {
        self.msix + 2
    }

    /// Register of the configuration access capability's data.
    pub(super) fn data_register(&self) -> u16 {
        self.window + WINDOW_DATA
    }

    /// As [`data_register`](Self::data_register).
    pub(super) fn data(&self) -> usize {
        self.data_register().into()
    }

    /// Where in the region an access to `register` goes by the configuration access capability, and how many bytes: if
    /// the access touches its data, and the driver has set it to something that is there.
    pub(super) fn window(
        &self,
        space: &ConfigSpace,
        register: u16,
        data: &[u8],
    ) -> Option<(u64, usize)> {
        let first = self.data();
        let start = usize::from(register);
        if start >= first + 4 || start + data.len() <= first {
            return None;
        }
        let mut bar = [0];
        space.read(self.window + WINDOW_BAR, &mut bar);
        let offset = u64::from(space.u32_at(self.window + WINDOW_OFFSET));
        let len = space.u32_at(self.window + WINDOW_LEN);
        let aligned = matches!(len, 1 | 2 | 4) && offset % u64::from(len) == 0;
        let inside = bar == [0] && offset + u64::from(len) <= BAR_LEN;
        let len = usize::try_from(len).ok()?;
        (aligned && inside).then_some((offset, len))
    }
}
