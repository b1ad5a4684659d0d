//! The guest's address spaces: which device answers at which port or physical address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// A device that answers to accesses of the guest's vCPUs.
///
/// `data` is never empty and never reaches past the range the device was registered for; its length is
/// what the guest chose (1, 2, 4 or 8 bytes, or a part of that where an access straddles ranges), so a
/// device checks it.
///
/// Several vCPUs may call at once: a device locks what it must and no more, so that one register never
/// waits for another. Simple devices are [`MutBusDevice`]s behind one `Mutex`.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads at `offset` bytes from the start of the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes the bytes the guest writes at `offset` bytes from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device that wants each access for itself, with the rules of [`BusDevice`] otherwise.
pub trait MutBusDevice: Send {
    /// As [`BusDevice::read`].
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// As [`BusDevice::write`].
    fn write(&mut self, offset: u64, data: &[u8]);
}

impl<D: MutBusDevice> BusDevice for Mutex<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut device = self.lock().unwrap_or_else(PoisonError::into_inner);
        device.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut device = self.lock().unwrap_or_else(PoisonError::into_inner);
        device.write(offset, data);
    }
}

/// A device as a [`Bus`] holds it.
pub type SharedDevice = Arc<dyn BusDevice>;

/// Why a device could not be put on a [`Bus`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or runs over the end of the 64-bit address space.
    #[error("Bus range of {len:#x} bytes at {base:#x} is empty or wraps around the address space")]
    BadRange {
        /// First address of the range.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device already answers within the range.
    #[error(
        "Bus range {base:#x}..={last:#x} overlaps the device at {other_base:#x}..={other_last:#x}; \
         give one of them another address"
    )]
    Overlap {
        /// First address of the refused range.
        base: u64,
        /// Last address of the refused range.
        last: u64,
        /// First address of the range already taken.
        other_base: u64,
        /// Last address of the range already taken.
        other_last: u64,
    },
}

struct Slot {
    last: u64,
    device: SharedDevice,
}

/// One address space (ports or physical memory) and the devices in it.
///
/// Addresses nobody claims behave like an open bus: they read as ones, and writes go nowhere.
#[derive(Default)]
pub struct Bus {
    slots: BTreeMap<u64, Slot>,
}

impl Bus {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `device` answer for `len` bytes from `base`.
    pub fn insert(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|rest| base.checked_add(rest))
            .ok_or(BusError::BadRange { base, len })?;
        // Ranges do not overlap, so only the one that starts last before our end can reach into us.
        if let Some((&other_base, other)) = self.slots.range(..=last).next_back()
            && other.last >= base
        {
            return Err(BusError::Overlap {
                base,
                last,
                other_base,
                other_last: other.last,
            });
        }
        self.slots.insert(base, Slot { last, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `address`. Says whether any device answered.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let mut claimed = false;
        let mut done = 0;
        while done < data.len() {
            let (slot, len) = self.part(address, done, data.len());
            let part = &mut data[done..done + len];
            // A device that leaves bytes alone must not hand the guest stale host memory.
            part.fill(0xff);
            if let Some((offset, device)) = slot {
                device.read(offset, part);
                claimed = true;
            }
            done += len;
        }
        claimed
    }

    /// Writes `data` at `address`. Says whether any device answered.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let mut claimed = false;
        let mut done = 0;
        while done < data.len() {
            let (slot, len) = self.part(address, done, data.len());
            if let Some((offset, device)) = slot {
                let part = &data[done..done + len];
                device.write(offset, part);
                claimed = true;
            }
            done += len;
        }
        claimed
    }

    /// The next part of an access of `total` bytes of which `done` are done: whom it belongs to (with
    /// the offset in that range) and how many bytes. Each part lies in one range or in none.
    fn part(
        &self,
        address: u64,
        done: usize,
        total: usize,
    ) -> (Option<(u64, &SharedDevice)>, usize) {
        let rest = total - done;
        // An access at the very top of the address space wraps there, as on the physical bus.
        let at = address.wrapping_add(done as u64);
        if let Some((base, slot)) = self.slots.range(..=at).next_back()
            && at <= slot.last
        {
            let room = (slot.last - at).saturating_add(1);
            let len = rest.min(usize::try_from(room).unwrap_or(usize::MAX));
            return (Some((at - base, &slot.device)), len);
        }
        let gap = self
            .slots
            .range(at..)
            .next()
            .map_or(u64::MAX, |(next, _)| next - at);
        let gap = gap.min((u64::MAX - at).saturating_add(1));
        (None, rest.min(usize::try_from(gap).unwrap_or(usize::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Answers each byte with its offset and remembers what was written where.
    #[derive(Default)]
    struct Recorder {
        written: Vec<(u64, Vec<u8>)>,
    }

    impl MutBusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            for (byte, at) in data.iter_mut().zip(offset..) {
                *byte = at.to_le_bytes()[0];
            }
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.written.push((offset, data.to_vec()));
        }
    }

    fn recorder() -> Arc<Mutex<Recorder>> {
        Arc::default()
    }

    #[test]
    fn access_reaches_the_device_with_its_offset() {
        let device = recorder();
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, device.clone()).unwrap();

        let mut data = [0; 2];
        assert!(bus.read(0x104, &mut data));
        assert_eq!(data, [4, 5]);
        assert!(bus.write(0x10e, &[7, 8]));
        assert_eq!(device.lock().unwrap().written, [(0xe, vec![7, 8])]);
    }

    #[test]
    fn unclaimed_address_reads_as_ones() {
        let bus = Bus::new();
        let mut data = [0; 4];
        assert!(!bus.read(0x3f8, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.write(0x3f8, &data));
    }

    #[test]
    fn access_over_a_range_end_is_split() {
        let (low, high) = (recorder(), recorder());
        let mut bus = Bus::new();
        bus.insert(0x10, 2, low.clone()).unwrap();
        bus.insert(0x14, 2, high.clone()).unwrap();

        let mut data = [0; 8];
        assert!(bus.read(0x0f, &mut data));
        assert_eq!(data, [0xff, 0, 1, 0xff, 0xff, 0, 1, 0xff]);
        assert!(bus.write(0x11, &[1, 2, 3, 4]));
        assert_eq!(low.lock().unwrap().written, [(1, vec![1])]);
        assert_eq!(high.lock().unwrap().written, [(0, vec![4])]);
    }

    #[test]
    fn overlap_and_bad_range_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x10, 0x10, recorder()).unwrap();
        for (base, len) in [(0x0f, 2), (0x10, 1), (0x1f, 1), (0, 0x100)] {
            let error = bus.insert(base, len, recorder()).unwrap_err();
            assert!(matches!(
                error,
                BusError::Overlap {
                    other_base: 0x10,
                    other_last: 0x1f,
                    ..
                }
            ));
        }
        let empty = bus.insert(0x40, 0, recorder());
        assert_eq!(empty, Err(BusError::BadRange { base: 0x40, len: 0 }));
        assert!(matches!(
            bus.insert(u64::MAX, 2, recorder()),
            Err(BusError::BadRange { .. })
        ));
        bus.insert(0x20, 1, recorder()).unwrap();
        bus.insert(u64::MAX, 1, recorder()).unwrap();
    }

    proptest! {
        #[test]
        fn any_access_ends_and_matches_a_byte_by_byte_one(
            bases in proptest::collection::vec((any::<u8>(), 1..20_u64), 0..8),
            top in any::<bool>(),
            at in any::<u8>(),
            len in 1..64_usize,
        ) {
            // The window sits either at zero or over the wrap at the end of the address space.
            let shift = if top { u64::MAX - 0x80 } else { 0 };
            let mut bus = Bus::new();
            for (base, len) in bases {
                // Refused ranges (overlap, wrap) are part of the input space.
                let _ = bus.insert(u64::from(base).wrapping_add(shift), len, recorder());
            }
            let at = u64::from(at).wrapping_add(shift);
            let mut whole = vec![0; len];
            bus.read(at, &mut whole);
            let single: Vec<u8> = (0..len as u64)
                .map(|i| {
                    let mut byte = [0];
                    bus.read(at.wrapping_add(i), &mut byte);
                    byte[0]
                })
                .collect();
            prop_assert_eq!(whole, single);
        }
    }
}
